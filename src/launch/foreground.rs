//! The command of a foreground run, behind its gate: in the cgroup that was reserved for it, or below a shim.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::environment;
use super::gate::{self, ExecError, Gated};
use super::orphans;
use super::subtree::{self, Options, ShimLimits, record};
use crate::kernel::{KernelError, process};
use crate::model::{Containment, Error, ErrorKind, ExitStatus, LaunchRequest, Reserved};

/// Tries whether a run below a shim could have a PID namespace of its own here, or says why not.
pub fn isolation() -> Result<(), String> {
    let tried = Command::new("/proc/self/exe").args([subtree::VERB, subtree::PROBE]).stdin(Stdio::null()).output();
    let tried = tried.map_err(|e| format!("the shim cannot be started: {e}"))?;
    let said = String::from_utf8_lossy(&tried.stderr);
    let said = said.trim();
    match tried.status.success() {
        true => Ok(()),
        false => Err(said.strip_prefix("guardian: the shim: ").unwrap_or(said).to_owned()),
    }
}

/// The command.
#[derive(Debug)]
pub struct Child {
    /// Its process.
    gated: Gated,
    /// The record of its shim, which reaps it.
    record: Option<OwnedFd>,
}

impl Child {
    /// Starts it, with the run's id in its environment, the mark by which it is known, and its notify socket.
    pub fn start(
        request: &LaunchRequest,
        mut env: Vec<Vec<u8>>,
        reserved: &Reserved,
        container: Option<OwnedFd>,
    ) -> Result<Self, Error> {
        let run = reserved.run;
        environment::put(&mut env, run, reserved.notify.as_ref());
        let argv = reserved.command.as_ref().unwrap_or(&request.argv);
        let failed = |e: KernelError| Error::new(ErrorKind::LaunchFailed, format!("cannot start a process: {e}"));
        match (reserved.containment, container) {
            (Containment::Subtree, None) => Err(Error::internal("the instance gave no record for the shim")),
            (Containment::Subtree, Some(record)) => {
                let limits = ShimLimits {
                    isolated: reserved.isolate_pids,
                    data_bytes: reserved.data_max_bytes,
                    tasks: reserved.tasks_max,
                };
                let options = Options { run, record: record.as_fd(), limits };
                let started = subtree::foreground(argv, env, &options).map_err(failed)?;
                Ok(Self { gated: started.gated, record: Some(record) })
            }
            (Containment::Systemd | Containment::Cgroupfs, cgroup) => {
                let gated = gate::foreground(argv, env, cgroup.as_ref().map(AsFd::as_fd)).map_err(failed)?;
                Ok(Self { gated, record: None })
            }
        }
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.gated.pidfd().as_fd()
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.gated.id().pid
    }

    /// Lets it execute its command; see [`gate::Gate::open`].
    pub fn open(&mut self, timeout: Option<Duration>) -> Result<(), ExecError> {
        self.gated.open(timeout)
    }

    /// Reaps what has exited, and tells how the command ended if that is known now: to us, as its parent, or to its shim.
    pub fn reap(&self) -> Option<ExitStatus> {
        let main = self.gated.id().pid;
        let mut ended = None;
        // The first with its pid: reaped, the pid may become another's.
        orphans::reap(|pid, status| ended = ended.or((pid == main).then_some(status)));
        ended.or_else(|| record::read(self.record.as_ref()?).ok()?.status)
    }

    /// Whether it has stopped itself, or was stopped.
    pub fn is_stopped(&self) -> bool {
        // Held by pidfd, it keeps its pid for as long as it has not exited.
        let stopped = process::stat(self.gated.id().pid).is_ok_and(|stat| stat.state == 'T');
        stopped && !process::has_exited(self.gated.pidfd())
    }

    /// Sends it a signal. It may be gone.
    pub fn signal(&self, signal: Signal) {
        if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
            let _ = rustix::process::pidfd_send_signal(self.gated.pidfd(), signal);
        }
    }
}
