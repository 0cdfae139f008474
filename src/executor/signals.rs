//! Signals at both ends of a command: it begins with none blocked, and the relay ends by the one that ended it, so that
//! whoever waits for the relay sees what it would have seen of the command.
//!
//! Owns the change of a signal's action and of a child's mask, for which no crate has a safe call.
#![allow(unsafe_code)]

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// Has the command begin with no signal blocked, as the gate has left it: a child inherits the mask otherwise.
pub fn none_blocked(command: &mut Command) {
    let none = SigSet::empty();
    // SAFETY: the closure makes one system call between fork and execve, and allocates nothing.
    unsafe { command.pre_exec(move || Ok(none.thread_set_mask()?)) };
}

/// Ends this process by the signal that ended the command, or gives its exit status.
pub fn as_the_command(status: ExitStatus) -> ExitCode {
    if let Some(number) = status.signal() {
        if let Ok(signal) = Signal::try_from(number) {
            die_by(signal);
        }
        // Signals without a name, or one that does not end this process.
        return ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX));
    }
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

fn die_by(signal: Signal) {
    // The core, if one was wanted, is the command's. A size of zero does not keep a handler of cores from being started.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if signal != Signal::SIGKILL {
        let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action runs no code of ours.
        let _ = unsafe { sigaction(signal, &action) };
    }
    let mut only = SigSet::empty();
    only.add(signal);
    // First pending, then let in: whichever thread takes it, the process ends.
    let _ = raise(signal);
    let _ = only.thread_unblock();
}
