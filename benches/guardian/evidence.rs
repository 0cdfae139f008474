//! What a run waits for, seen and explained, against the bare reading of what `ps` shows of the same processes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use guardian::kernel::cgroup::CgroupDir;
use guardian::kernel::look;
use guardian::model::explain;

use super::Extent;
use super::host::{Cgroup, processes_in, until};
use super::table::{Promise, Table, Unit, median_ms};

/// The most that a look takes, in milliseconds.
const PROMISED_MS: f64 = 250.0;

/// Measures.
pub fn measure(extent: Extent, table: &mut Table) {
    let pipes = "i=0; while [ $i -lt 31 ]; do sleep 1000 | sleep 1000 & i=$((i+1)); done; sleep 1000";
    let blocked = "mkfifo $0; i=0; while [ $i -lt 62 ]; do cat <>$0 & i=$((i+1)); done; wait";
    let work = tempfile::tempdir().unwrap();
    let fifo = work.path().join("fifo");
    let cases = [("asleep", pipes, "x", 64), ("reading a FIFO", blocked, fifo.to_str().unwrap(), 63)];
    for (what, script, argument, processes) in cases {
        let cgroup = Cgroup::new("evidence").unwrap();
        let mut child = cgroup.start(&["sh", "-c", script, argument]);
        until("the workload is up", || (processes_in(cgroup.path()) == processes).then_some(()));
        let dir = CgroupDir::open(cgroup.path()).unwrap();
        let (mut looks, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..extent.rounds.max(10) {
            let began = Instant::now();
            let evidence = look::take(&dir, Duration::from_millis(250));
            let told = explain(&evidence);
            looks.push(began.elapsed());
            assert_eq!(evidence.processes.len(), processes, "{}", told.sentence);
            assert!(evidence.processes.iter().all(|p| !p.threads.is_empty()), "{:?}", told.details);
            bare.push(bare_look(&dir.pids().unwrap()));
        }
        let what = format!("evidence and sentence, {processes} processes {what}");
        let baseline = Some(("their stat and wchan", median_ms(bare)));
        table.add(&what, Unit::Ms, median_ms(looks), baseline, Promise::AtMost(PROMISED_MS));
        cgroup.kill();
        child.wait().unwrap();
    }
}

fn bare_look(pids: &BTreeSet<u32>) -> Duration {
    let began = Instant::now();
    for pid in pids {
        for file in ["stat", "wchan"] {
            std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
        }
    }
    began.elapsed()
}
