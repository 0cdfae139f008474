//! How often the OOM killer struck in a run's cgroup, also where that is gone before it could be asked.
//!
//! systemd removes a scope as soon as nothing is in it, and what the kernel had counted there goes with it. The cgroup above,
//! a workflow's slice, has the same counted, together with that of all runs in it, and stays. What its count has risen by and
//! none of them accounts for is of the run that is gone; of two that are gone, nobody can say whose it is, and nothing is said.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::{Errno, pread};

use crate::kernel::cgroup::{CgroupDir, parse_key};
use crate::kernel::poll::Registration;

/// Where the kernel tells of the OOM killer; there with the memory controller.
pub(super) const MEMORY_EVENTS: &str = "memory.events";

/// The count of a cgroup, by its file. `ENODEV`: it is gone.
fn count(events: impl AsFd) -> Result<u64, Errno> {
    let mut chunk = [0; 4096];
    let length = pread(events, &mut chunk, 0)?;
    let text = String::from_utf8_lossy(chunk.get(..length).unwrap_or_default());
    parse_key(&text, "oom_kill").ok_or(Errno::INVAL)
}

fn held<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cgroups above those of runs, by their path, for as long as there is a run in them.
#[derive(Debug, Default)]
pub(super) struct Slices(Mutex<HashMap<PathBuf, Weak<Slice>>>);

/// A cgroup above those of runs.
#[derive(Debug)]
struct Slice {
    dir: CgroupDir,
    events: OwnedFd,
    /// How much of its count is explained, by the runs in it or by the time before.
    explained: AtomicU64,
    tallies: Mutex<Vec<Weak<Tally>>>,
}

/// What is known of the OOM killer in a run's cgroup.
#[derive(Debug)]
pub(super) struct Tally {
    watch: Registration,
    slice: Option<Arc<Slice>>,
    kills: AtomicU64,
    /// The cgroup is gone, and what could be known of it is.
    closed: AtomicBool,
}

impl Slices {
    /// Begins to count for a cgroup, whose `memory.events` is watched.
    pub(super) fn tally(&self, cgroup: &Path, watch: Registration) -> Arc<Tally> {
        let slice = cgroup.parent().and_then(|path| self.above(path));
        let kills = AtomicU64::new(count(watch.fd()).unwrap_or_default());
        let tally = Arc::new(Tally { watch, slice, kills, closed: AtomicBool::default() });
        if let Some(slice) = &tally.slice {
            let mut tallies = held(&slice.tallies);
            tallies.retain(|tally| tally.strong_count() > 0);
            tallies.push(Arc::downgrade(&tally));
        }
        tally
    }

    /// A cgroup above, if it counts.
    fn above(&self, path: &Path) -> Option<Arc<Slice>> {
        let mut slices = held(&self.0);
        let known = slices.get(path).and_then(Weak::upgrade);
        if let Some(slice) = known.filter(|slice| slice.dir.verify().is_ok()) {
            return Some(slice);
        }
        let dir = CgroupDir::open(path).ok()?;
        let events = dir.open_file(MEMORY_EVENTS).ok()?;
        let explained = AtomicU64::new(count(&events).ok()?);
        let slice = Arc::new(Slice { dir, events, explained, tallies: Mutex::default() });
        slices.retain(|_, slice| slice.strong_count() > 0);
        slices.insert(path.to_owned(), Arc::downgrade(&slice));
        Some(slice)
    }
}

impl Tally {
    /// How often it struck there, as far as that can be known.
    pub(super) fn kills(&self) -> u64 {
        if self.closed.load(Relaxed) {
            return self.kills.load(Relaxed);
        }
        match count(self.watch.fd()) {
            Ok(kills) => self.take(kills),
            Err(Errno::NODEV) => self.close(),
            // Nothing is known now. Whoever asks again may be told.
            Err(_) => {}
        }
        self.kills.load(Relaxed)
    }

    fn take(&self, kills: u64) {
        let new = kills.saturating_sub(self.kills.fetch_max(kills, Relaxed));
        if let Some(slice) = &self.slice {
            slice.explained.fetch_add(new, Relaxed);
        }
    }

    /// The cgroup is gone: what nothing else accounts for is its.
    fn close(&self) {
        self.closed.store(true, Relaxed);
        let Some(slice) = &self.slice else { return };
        let others: Vec<Arc<Tally>> = held(&slice.tallies).iter().filter_map(Weak::upgrade).collect();
        let mut alone = true;
        for other in others.iter().filter(|other| !other.closed.load(Relaxed)) {
            match count(other.watch.fd()) {
                Ok(kills) => other.take(kills),
                Err(_) => alone = false,
            }
        }
        let Ok(all) = count(&slice.events) else { return };
        let new = all.saturating_sub(slice.explained.swap(all, Relaxed));
        if alone {
            self.kills.fetch_add(new, Relaxed);
        }
    }
}
