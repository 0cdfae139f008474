//! Locks of git that a run has left: found in the repository of its directory, held against every process of the host, and
//! removed where that is asked for and each doubt is cleared.
//!
//! The directory is its user's, who may have put anything there, for an instance with more rights than theirs to trip over. So
//! nothing is opened by way of a link, nothing but directories is opened at all, how much is looked at is bounded, and what is
//! removed is a file of the user's own in a directory of the user's own. A file system can hang for ever: this is for a thread
//! that nobody waits for.

mod dir;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod holders;
mod repository;
#[cfg(test)]
mod tests;
mod walk;

use std::time::{Duration, Instant};

use rustix::fs::{FileType, Statx, StatxFlags, StatxTimestamp};

use self::dir::identity;
use self::holders::{Held, Wanted};
use self::repository::{Repository, find, reason};
use self::walk::{Lock, Walk};
use crate::model::{GitLock, GitLocks, LockFate, Wall, Worktree};

/// How long the walk through a repository takes at most.
const WALK: Duration = Duration::from_millis(250);
/// When the whole look is over, from when it was asked for. Whoever asked waits longer: nothing is removed that is told to nobody.
const BUDGET: Duration = Duration::from_millis(750);
/// How soon it is looked again whether a git is still there that may hold a lock: most live for some milliseconds.
const AGAIN: Duration = Duration::from_millis(25);

/// Looks for the locks in the repository of a directory, for a look that was asked for at this moment.
pub fn look(of: &Worktree, asked: Instant) -> GitLocks {
    let until = asked + BUDGET;
    let not_looked_at = match (Instant::now() < until).then(|| find(&of.dir, of.uid)) {
        Some(Ok(Some(repository))) => return look_in(of, repository, until),
        Some(Ok(None)) => Vec::new(),
        Some(Err(why)) => vec![why],
        None => vec![format!("locks of git in {}: there was no time to look", of.dir.display())],
    };
    GitLocks { not_looked_at, ..GitLocks::default() }
}

fn look_in(of: &Worktree, repository: Repository, until: Instant) -> GitLocks {
    let Walk { locks, total, unseen: not_looked_at, .. } = Walk::through(repository, until.min(Instant::now() + WALK));
    // A doubt about each: a lock without one is held against all processes.
    let mut doubts: Vec<Option<String>> = locks.iter().map(|lock| doubt(of, lock)).collect();
    let mut candidates = Vec::new();
    for (n, (lock, doubt)) in locks.iter().zip(&mut doubts).enumerate().filter(|(_, (_, doubt))| doubt.is_none()) {
        match held_and_wanted(lock) {
            Ok(wanted) => candidates.push((n, wanted)),
            Err(why) => *doubt = Some(why),
        }
    }
    let (numbers, wanted): (Vec<usize>, Vec<Wanted>) = candidates.into_iter().unzip();
    for (n, held) in numbers.into_iter().zip(holders(&wanted, of.uid, until)) {
        doubts[n] = match held {
            Held::No => None,
            Held::Open(why) | Held::Perhaps(why) | Held::Unknown(why) => Some(why),
        };
    }
    let told = |(lock, doubt): (&Lock, Option<String>)| {
        let fate = match doubt {
            Some(why) => LockFate::LeftAlone { why },
            None if of.removes => removed(lock, until),
            None => LockFate::Stale,
        };
        GitLock { path: lock.dir.path.join(&lock.name).to_string_lossy().into_owned(), fate }
    };
    GitLocks { locks: locks.iter().zip(doubts).map(told).collect(), total, not_looked_at }
}

/// Who holds each, looked at anew for as long as that may only be somebody who is soon gone.
fn holders(wanted: &[Wanted], owner: u32, until: Instant) -> Vec<Held> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut last = None;
    loop {
        let held = holders::of(wanted, owner, until);
        // One that ran out of time knows less than the one before it.
        if Instant::now() >= until {
            return last.unwrap_or(held);
        }
        let is_open = held.iter().any(|held| matches!(held, Held::Perhaps(_)));
        if !is_open || Instant::now() + AGAIN >= until {
            return held;
        }
        last = Some(held);
        std::thread::sleep(AGAIN);
    }
}

/// What speaks against a lock being the run's, by what it is.
fn doubt(of: &Worktree, lock: &Lock) -> Option<String> {
    let seen = &lock.seen;
    if FileType::from_raw_mode(seen.stx_mode.into()) != FileType::RegularFile {
        return Some("it is no regular file".to_owned());
    }
    if seen.stx_uid != of.uid {
        return Some(format!("it belongs to uid {}, and not to the run's user", seen.stx_uid));
    }
    if seen.stx_nlink != 1 {
        return Some(format!("it is one of {} links to the same file", seen.stx_nlink));
    }
    match lock.dir.stat() {
        Ok(dir) if dir.st_uid != of.uid && of.uid != 0 => {
            return Some("its directory belongs to somebody else".to_owned());
        }
        Ok(_) => {}
        Err(e) => return Some(reason(e)),
    }
    if lock.dir.is_shared().unwrap_or(true) {
        return Some("other hosts may have its file system too, and it may be held there".to_owned());
    }
    let Some(since) = of.since else {
        return Some(
            "the clock was set or the host suspended while the run lived: when it was made is not known".to_owned(),
        );
    };
    match made(seen) {
        made if made < since => Some("it is older than the run".to_owned()),
        made if made > of.until => Some("it was made after the run was over".to_owned()),
        _ => None,
    }
}

/// When a file was made; where that is not kept, at the first of what is known of it.
fn made(seen: &Statx) -> Wall {
    let at = |time: StatxTimestamp| {
        let usec = i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_nsec / 1000);
        Wall(u64::try_from(usec.max(0)).unwrap_or(u64::MAX))
    };
    let changed = at(seen.stx_ctime).min(at(seen.stx_mtime));
    match StatxFlags::from_bits_retain(seen.stx_mask).contains(StatxFlags::BTIME) {
        true => at(seen.stx_btime),
        false => changed,
    }
}

/// What is needed to hold the lock against what others have open.
fn held_and_wanted(lock: &Lock) -> Result<Wanted, String> {
    let held = lock.dir.hold(&lock.name).map_err(reason)?;
    Wanted::new(&held).ok_or_else(|| "this kernel does not show who has it open".to_owned())
}

/// Removes a lock, if it still is what was looked at.
fn removed(lock: &Lock, until: Instant) -> LockFate {
    let left = |why: String| LockFate::LeftAlone { why };
    let what_tells = |seen: &Statx| (identity(seen), seen.stx_ctime.tv_sec, seen.stx_ctime.tv_nsec, seen.stx_nlink);
    if Instant::now() >= until {
        return left("there was no time to remove it".to_owned());
    }
    match lock.dir.look_at(&lock.name) {
        Ok(now) if what_tells(&now) == what_tells(&lock.seen) => {}
        Ok(_) => return left("it has changed while it was looked at".to_owned()),
        Err(e) => return left(reason(e)),
    }
    match lock.dir.unlink(&lock.name) {
        Ok(()) => LockFate::Removed,
        Err(e) => left(format!("nobody holds it, but it cannot be removed: {}", reason(e))),
    }
}
