//! Orphans: processes of a run whose own parents exited. Whoever started the run adopts and reaps them.
//!
//! Killed processes stay as zombies until their parent reaps them, and an orphan's parent is init: in a container often
//! a program that reaps nothing, or late. As a child subreaper (Linux 3.4) the client of a foreground run, or the
//! instance for its detached ones, is the parent instead, so that a finished run leaves no entry in the process table.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::model::ExitStatus;

/// Becomes the parent of every descendant that is orphaned from now on.
pub fn adopt() -> std::io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Reaps every child that has exited and says how each ended. False once there is no child any more.
pub fn reap(mut ended: impl FnMut(u32, ExitStatus)) -> bool {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(pid, code)) => ended(pid.as_raw().unsigned_abs(), ExitStatus::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                ended(pid.as_raw().unsigned_abs(), ExitStatus::Signaled(signal as i32));
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
            Ok(_) => return true,
        }
    }
}
