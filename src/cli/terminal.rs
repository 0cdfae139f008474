//! The terminal of a foreground run: kept as it was, whatever the command leaves it as, and asked who handles ^C.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use rustix::io::Errno;
use rustix::process::{getpgrp, test_kill_process_group};
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

/// A terminal as it was before the command ran.
pub struct Terminal {
    tty: std::fs::File,
    /// None for a run that began in the background: what the terminal is like then is the shell's or another program's
    /// doing, and nothing to go back to.
    modes: Option<Termios>,
}

impl Terminal {
    /// The controlling terminal, if this process has one.
    pub fn save() -> Option<Self> {
        let tty = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        if !isatty(&tty) {
            return None;
        }
        let foreground = tcgetpgrp(&tty).is_ok_and(|group| group == getpgrp());
        let modes = if foreground { tcgetattr(&tty).ok() } else { None };
        Some(Self { tty, modes })
    }

    /// Whether the terminal now passes ^C on as a key: a full-screen program or a line editor handles it itself.
    pub fn command_handles_keys(&self) -> bool {
        tcgetattr(&self.tty).is_ok_and(|m| !m.local_modes.contains(LocalModes::ICANON))
    }

    /// Puts back the modes and the foreground process group, if they are not what they were.
    pub fn restore(&self) {
        let Some(modes) = &self.modes else { return };
        // Setting either from the background stops a process by SIGTTOU, unless that is blocked.
        let mut ttou = SigSet::empty();
        ttou.add(Signal::SIGTTOU);
        let mut before = SigSet::empty();
        let blocked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ttou), Some(&mut before)).is_ok();
        let tty: BorrowedFd<'_> = self.tty.as_fd();
        // Only what was ours: a shell that put us in the background in the meantime keeps the terminal.
        if self.foreground_is_gone() {
            let _ = tcsetpgrp(tty, getpgrp());
        }
        if tcgetpgrp(tty).ok() == Some(getpgrp()) {
            let _ = tcsetattr(tty, OptionalActions::Drain, modes);
        }
        if blocked {
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        }
    }

    /// Whether the foreground process group has no process any more: the command made its own and ended.
    fn foreground_is_gone(&self) -> bool {
        match tcgetpgrp(&self.tty) {
            Ok(group) => group != getpgrp() && test_kill_process_group(group) == Err(Errno::SRCH),
            // The kernel names no process group when the one that was there is gone.
            Err(_) => true,
        }
    }
}

/// The signals of the list that this process does not ignore (as under `nohup`).
pub fn not_ignored(signals: &[Signal]) -> SigSet {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(str::trim);
    let ignored = ignored.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    signals.iter().copied().filter(|s| ignored >> (*s as i32 - 1) & 1 == 0).collect()
}
