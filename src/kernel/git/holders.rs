//! Who may hold a lock: whoever has the file open, and every living git of its owner, since git closes a lock that it goes on
//! to hold, while an editor or a hook runs.
//!
//! A lock belongs to who made it. Whose open files may not be seen holds it, unless all of its uids are another's.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::dir::{Identity, identity};
use crate::kernel::{KernelError, process};

/// A lock that is held against all processes.
#[derive(Debug)]
pub(super) struct Wanted {
    /// What tells it from others.
    identity: Identity,
    /// Its inode as `/proc/PID/fdinfo` shows it, which on some file systems is another than that of stat(2).
    shown: u64,
}

impl Wanted {
    /// What is held by this descriptor. None where the kernel does not show inodes there (before 5.14).
    pub(super) fn new(held: &OwnedFd) -> Option<Self> {
        let seen = statx(held, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).ok()?;
        let shown = shown(std::process::id(), held.as_raw_fd()).ok()??;
        Some(Self { identity: identity(&seen), shown })
    }
}

/// Whether somebody holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    /// Nobody.
    No,
    /// Somebody has it open.
    Open(String),
    /// Somebody may hold it, and will not for long.
    Perhaps(String),
    /// That cannot be told.
    Unknown(String),
}

/// Holds locks of this owner against all processes.
pub(super) fn of(wanted: &[Wanted], owner: u32, until: Instant) -> Vec<Held> {
    let mut held = vec![Held::No; wanted.len()];
    // What is said of all of them.
    let mut general = Held::No;
    let Ok(listed) = fs::read_dir("/proc") else {
        return vec![Held::Unknown("the processes of the host cannot be seen".to_owned()); wanted.len()];
    };
    for pid in listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if Instant::now() >= until {
            general = Held::Unknown("there was no time to look at all processes".to_owned());
            break;
        }
        if pid == std::process::id() {
            continue;
        }
        // What went away holds nothing.
        let Ok(stat) = process::stat(pid) else { continue };
        if stat.has_ended() {
            continue;
        }
        let who = format!("{} (pid {pid})", stat.comm);
        let may_be_owners = || process::uids(pid).map_or(true, |uids| uids.contains(&owner));
        if general == Held::No && may_be_owners() && is_working_git(pid, &stat.comm) {
            general = Held::Perhaps(format!("{who} is there, and may hold it"));
        }
        let mut all_seen = true;
        for fd in descriptors(pid).unwrap_or_else(|| {
            all_seen = false;
            Vec::new()
        }) {
            match shown(pid, fd) {
                Ok(inode) => {
                    let same = |(wanted, _): &(&Wanted, &mut Held)| Some(wanted.shown) == inode;
                    for (wanted, held) in wanted.iter().zip(&mut held).filter(same) {
                        if *held == Held::No && is_same(pid, fd, wanted) {
                            *held = Held::Open(format!("{who} has it open"));
                        }
                    }
                }
                Err(e) => all_seen &= e.is_gone(),
            }
            if Instant::now() >= until {
                break;
            }
        }
        // One that is gone meanwhile has closed what it had.
        if !all_seen && process::stat(pid).is_ok() && may_be_owners() {
            general = Held::Unknown(format!("what {who} has open cannot be seen"));
        }
    }
    held.into_iter().map(|held| if held == Held::No { general.clone() } else { held }).collect()
}

/// A git that works on some repository, which may be any. Its servers (`git credential-cache--daemon`, `git fsmonitor--daemon`)
/// lock nothing.
fn is_working_git(pid: u32, name: &str) -> bool {
    let is_git = name == "git" || name.starts_with("git-");
    let is_server = || process::command_line(pid, 200).is_some_and(|line| line.contains("--daemon"));
    is_git && !is_server()
}

/// None if they may not be seen.
fn descriptors(pid: u32) -> Option<Vec<i32>> {
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut fds = Vec::new();
    for entry in listed {
        fds.extend(entry.ok()?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Some(fds)
}

/// The inode of an open file. No server is asked. Who may list descriptors may still not see what they are.
fn shown(pid: u32, fd: i32) -> Result<Option<u64>, KernelError> {
    Ok(process::parse_colon(&process::read_text(&format!("/proc/{pid}/fdinfo/{fd}"))?, "ino"))
}

/// Another file system can have a file of the same number. Who cannot be asked is not let go.
fn is_same(pid: u32, fd: i32, wanted: &Wanted) -> bool {
    let path = format!("/proc/{pid}/fd/{fd}");
    let seen = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS);
    seen.map_or(true, |seen| identity(&seen) == wanted.identity)
}
