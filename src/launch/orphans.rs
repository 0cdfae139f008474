//! Orphans: processes of a run whose own parents exited. Whoever started the run adopts and reaps them.
//!
//! Killed processes stay as zombies until their parent reaps them, and an orphan's parent is init: in a container often
//! a program that reaps nothing, or late. As a child subreaper (Linux 3.4) the client of a foreground run, or the
//! instance for its detached ones, is the parent instead, so that a finished run leaves no entry in the process table.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::kernel::process;
use crate::model::{ExitStatus, RunId};

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

/// The children of the calling thread that carry the mark of this run: its id in the environment that they were started
/// with. Whatever is left when the run is over has left its cgroup, as root or a process of the same user can. Those that
/// the kernel does not show (another user's, or built without CONFIG_PROC_CHILDREN) are not among them. Gives pid and name.
pub fn marked(run: RunId) -> Vec<(u32, String)> {
    let mark = run.to_string();
    let is_marked = |pid: &u32| process::variable(*pid, "GUARDIAN_RUN_ID").is_some_and(|v| v == mark.as_bytes());
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let marked = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_marked);
    marked.filter_map(|pid| Some((pid, process::stat(pid).ok()?.comm))).collect()
}

/// How the children that somebody holds ended; none for one that lives. One table for the process, as there is one
/// parent: the others that are reaped are orphans, or were given up behind their gate, and are forgotten.
static CHILDREN: Mutex<BTreeMap<u32, Option<ExitStatus>>> = Mutex::new(BTreeMap::new());

fn children() -> MutexGuard<'static, BTreeMap<u32, Option<ExitStatus>>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child of ours whose exit status will be asked for.
#[derive(Debug)]
pub struct Child(u32);

impl Child {
    /// Starts a child and remembers it, with no chance for it to be reaped and forgotten in between.
    pub fn start<T, E>(start: impl FnOnce() -> Result<T, E>, pid: impl FnOnce(&T) -> u32) -> Result<(T, Self), E> {
        let mut children = children();
        let started = start()?;
        let pid = pid(&started);
        children.insert(pid, None);
        Ok((started, Self(pid)))
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        reap_all();
        children().get(&self.0).copied().flatten()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        children().remove(&self.0);
    }
}

/// Reaps every child that has exited. False once there is no child any more.
pub fn reap_all() -> bool {
    let mut children = children();
    reap(|pid, status| {
        if let Some(known) = children.get_mut(&pid) {
            *known = Some(status);
        }
    })
}
