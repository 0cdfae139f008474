//! What the processes of a run are doing, looked at for a bounded time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::cgroup::CgroupDir;
use super::{Evidence, process};
use crate::model::ProcessSeen;

/// As many processes as a person reads.
const MAX_PROCESSES: usize = 64;

/// Looks at the processes of a cgroup and below, lowest pid first. What goes away meanwhile is left out; when the
/// budget is over, so is the rest. The total counts all that were listed.
pub fn take(dir: &CgroupDir, budget: Duration) -> Evidence {
    let started = Instant::now();
    // Evidence is never a reason not to kill: what cannot be read is not in it.
    let pids = dir.pids().unwrap_or_default();
    look_at(&pids, started, budget)
}

/// The same for processes that are known by pid; the budget began at `started`.
pub(super) fn look_at(pids: &BTreeSet<u32>, started: Instant, budget: Duration) -> Evidence {
    let total = u32::try_from(pids.len()).unwrap_or(u32::MAX);
    let first = pids.iter().take(MAX_PROCESSES).take_while(|_| started.elapsed() < budget);
    Evidence { processes: first.filter_map(|pid| look(*pid)).collect(), total }
}

fn look(pid: u32) -> Option<ProcessSeen> {
    let stat = process::stat(pid).ok()?;
    Some(ProcessSeen { pid, ppid: stat.ppid, name: stat.comm, state: stat.state, wchan: process::wchan(pid) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(pids: &str) -> (tempfile::TempDir, CgroupDir) {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("cgroup.procs"), pids).unwrap();
        let dir = CgroupDir::open_unchecked(tmp.path()).unwrap();
        (tmp, dir)
    }

    #[test]
    fn what_is_gone_is_counted_but_not_described() {
        let me = std::process::id();
        let (_tmp, dir) = listing(&format!("{me}\n4194000\n"));
        let evidence = take(&dir, Duration::from_secs(5));
        assert_eq!(evidence.total, 2);
        assert_eq!(evidence.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [me]);
        assert!("RSD".contains(evidence.processes[0].state));
    }

    #[test]
    fn without_time_only_the_number_is_known() {
        let (_tmp, dir) = listing(&format!("{}\n", std::process::id()));
        assert_eq!(take(&dir, Duration::ZERO), Evidence { processes: Vec::new(), total: 1 });
    }
}
