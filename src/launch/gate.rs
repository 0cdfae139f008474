//! The gated launch of a foreground run: a child that exists, and can be contained, before it executes anything of the
//! run's. Here a shell waits at the gate.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::model::{ProcessId, RunId};

/// Why a command was not executed.
#[derive(Debug, thiserror::Error)]
#[error("cannot execute {command}: {source}")]
pub struct ExecError {
    command: String,
    source: io::Error,
}

impl ExecError {
    /// The exit status that a shell gives: 127 for a command that is not found, 126 for one that is refused.
    pub fn exit_status(&self) -> i32 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// A child behind its gate, or past it.
#[derive(Debug)]
pub struct Gated {
    child: Child,
    pidfd: OwnedFd,
    command: String,
    entrance: Option<std::fs::File>,
}

impl Gated {
    /// Its pidfd.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its pid.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.child.id(), start_ticks: 0 }
    }

    /// Lets it execute its command with GUARDIAN_RUN_ID in its environment.
    pub fn open_as(&mut self, run: RunId, _timeout: Option<Duration>) -> Result<(), ExecError> {
        let Some(mut entrance) = self.entrance.take() else { return Ok(()) };
        entrance
            .write_all(format!("{run}\n").as_bytes())
            .map_err(|source| ExecError { command: self.command.clone(), source })
    }
}

/// Starts a command behind a gate with this environment (`KEY=VALUE`); all else is the caller's: terminal, process
/// group, directory, descriptors. To be called before the caller starts any thread.
pub fn foreground(argv: &[Vec<u8>], env: Vec<Vec<u8>>) -> io::Result<Gated> {
    let (exit, entrance) = pipe_with(PipeFlags::empty())?;
    rustix::io::fcntl_setfd(&entrance, rustix::io::FdFlags::CLOEXEC)?;
    let fd = exit.as_raw_fd();
    let script =
        format!("IFS= read -r GUARDIAN_RUN_ID <&{fd} || exit 125; exec {fd}<&-; export GUARDIAN_RUN_ID; exec \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script, "sh"]).args(argv.iter().map(|a| OsStr::from_bytes(a))).env_clear();
    for entry in &env {
        if let Some(at) = entry.iter().position(|b| *b == b'=') {
            command.env(OsStr::from_bytes(&entry[..at]), OsStr::from_bytes(&entry[at + 1..]));
        }
    }
    let child = command.spawn()?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let name = argv.first().map(|a| String::from_utf8_lossy(a).into_owned()).unwrap_or_default();
    Ok(Gated { child, pidfd, command: name, entrance: Some(entrance.into()) })
}
