//! What the processes of a run do, looked at for a bounded time.
//!
//! The first look is at files that answer at once, and is taken by the caller. All that tells more is read by a thread of
//! its own, because nothing bounds it: what reads the memory of a process waits for a lock of that process, which a stuck
//! one may hold for ever. The caller takes what is there when the time is over. Nothing here follows the path of another
//! process's file, so that no dead network file system is asked anything.

mod calls;
mod ends;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod memory;
mod open;
mod peers;
mod sockets;
mod tasks;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use self::tasks::Looked;
use super::cgroup::{CgroupDir, parse_key};
use super::{Evidence, clock, process};
use crate::model::{OpenFiles, ProcessSeen, RecentCpu};

/// As many processes as a person reads.
const MAX_PROCESSES: usize = 64;
/// Lookers that did not come back. With so many of them, the first look has to do.
const MAX_STUCK: usize = 2;
/// What a looker needs is on the heap.
const STACK_BYTES: usize = 256 << 10;

/// Threads that look at this moment; one that does not come back stays counted.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// Looks at the processes of a cgroup and below, lowest pid first. What goes away meanwhile is left out; when the
/// budget is over, so is the rest. The total counts all that were listed.
pub fn take(dir: &CgroupDir, budget: Duration) -> Evidence {
    let started = Instant::now();
    // Evidence is never a reason not to kill: what cannot be read is not in it.
    let pids = dir.pids().unwrap_or_default();
    let frozen = dir.read("cgroup.events").is_ok_and(|text| parse_key(&text, "frozen") == Some(1));
    Evidence { frozen, ..look_at(&pids, started, budget) }
}

/// The same for processes that are known by pid; the budget began at `started`.
pub(super) fn look_at(pids: &BTreeSet<u32>, started: Instant, budget: Duration) -> Evidence {
    let total = u32::try_from(pids.len()).unwrap_or(u32::MAX);
    let until = started + budget;
    let uptime_usec = uptime_usec();
    let first = pids.iter().take(MAX_PROCESSES).take_while(|_| Instant::now() < until);
    let mut looked: Vec<Looked> = first.filter_map(|pid| Looked::at(*pid, uptime_usec)).collect();
    let processes = looked.iter().map(|l| l.seen.clone()).collect();
    let Closer { processes, open } = look_closer(&mut looked, total, until).unwrap_or(Closer { processes, open: None });
    Evidence { processes, total, open, seen_at: Some(clock::now().wall), ..Evidence::default() }
}

/// What a closer look has told so far.
struct Closer {
    processes: Vec<ProcessSeen>,
    open: Option<OpenFiles>,
}

/// Adds what each process uses of the CPU in this time, which it waits for.
pub fn watch(evidence: &mut Evidence, time: Duration) {
    let began = Instant::now();
    let before: Vec<Option<u64>> = evidence.processes.iter().map(cpu_usec).collect();
    std::thread::sleep(time);
    for (process, before) in evidence.processes.iter_mut().zip(before) {
        if let (Some(before), Some(after)) = (before, cpu_usec(process)) {
            let over_usec = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            process.recent = Some(RecentCpu { over_usec, cpu_usec: after.saturating_sub(before) });
        }
    }
}

/// CPU time by the scheduler's own count of its threads: that of `stat` has the grain of a clock tick.
fn cpu_usec(process: &ProcessSeen) -> Option<u64> {
    let tids = process.threads.iter().map(|t| t.tid);
    let on_cpu = tids.filter_map(|tid| Some(process::scheduled(process.pid, tid).ok()??.on_cpu_nsec));
    let nsec = on_cpu.fold(0, u64::saturating_add);
    (!process.threads.is_empty()).then_some(nsec / 1000)
}

/// Time since boot, suspends too, as start times are counted.
fn uptime_usec() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (secs, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    secs.saturating_mul(1_000_000).saturating_add(nanos / 1000)
}

/// None if nothing came of it in time.
fn look_closer(looked: &mut Vec<Looked>, total: u32, until: Instant) -> Option<Closer> {
    if looked.is_empty() || Instant::now() >= until || LOOKING.load(Ordering::Relaxed) >= MAX_STUCK {
        return None;
    }
    let (sender, found) = mpsc::channel();
    let mut looked = std::mem::take(looked);
    LOOKING.fetch_add(1, Ordering::Relaxed);
    let looker = std::thread::Builder::new().name("look".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        let tell = |looked: &[Looked], open: Option<&OpenFiles>| {
            // Who gave up waiting is told nothing.
            let processes = looked.iter().map(|l| l.seen.clone()).collect();
            let _ = sender.send(Closer { processes, open: open.cloned() });
        };
        tasks::look(&mut looked, until);
        tell(&looked, None);
        let open = open::look(&looked, total, until);
        let tell = |looked: &[Looked]| tell(looked, Some(&open));
        tell(&looked);
        memory::look(&mut looked, until);
        ends::look(&mut looked, until, tell);
        tell(&looked);
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    });
    if looker.is_err() {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let mut last = None;
    // Ends when the looker is done and drops its end, too.
    while let Ok(more) = found.recv_timeout(until.saturating_duration_since(Instant::now())) {
        last = Some(more);
    }
    last
}

#[cfg(test)]
mod tests;
