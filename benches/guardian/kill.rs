//! From the request to kill to an empty cgroup, against a bare `cgroup.kill`; a psutil tree kill beside it.

use std::process::{Command, Stdio};
use std::time::Instant;

use guardian::model::StepKind;

use super::Extent;
use super::adaptor::Instance;
use super::host::{Cgroup, processes_in, sleepers, until};
use super::table::{Promise, Table, Unit, median_ms};

/// Measures.
pub fn measure(extent: Extent, table: &mut Table) {
    let instance = Instance::start();
    let mut intents = Vec::new();
    for processes in [1, 100, 1000] {
        let rounds = if processes == 1000 { extent.rounds.min(5) } else { extent.rounds };
        let command = sleepers(processes);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        // One after the other by turns, so that both meet the same machine.
        let (mut ours, mut bare, mut inside) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            bare.push(bare_kill(&command, processes));
            let run = instance.run(&command);
            let cgroup = instance.show(run).container.unwrap().path().to_owned();
            until("the workload is up", || (processes_in(&cgroup) == processes).then_some(()));
            let began = Instant::now();
            instance.kill(run);
            let receipt = instance.wait(run).receipt.unwrap();
            ours.push(began.elapsed());
            assert_eq!((receipt.killed as usize, receipt.survivors), (processes, 0));
            inside.push(std::time::Duration::from_micros(receipt.duration_usec));
            let recorded = receipt.steps.iter().find(|s| s.kind == StepKind::IntentRecorded);
            intents.extend(recorded.map(|s| std::time::Duration::from_micros(s.elapsed_usec)));
        }
        let bare = median_ms(bare);
        let what = format!("kill to empty, {processes} processes, over D-Bus");
        let promise = Promise::Times(1.25, 2.0);
        table.add(&what, Unit::Ms, median_ms(ours), Some(("bare cgroup.kill", bare)), promise);
        let what = format!("  the same, by its receipt, {processes} processes");
        table.add(&what, Unit::Ms, median_ms(inside), Some(("bare cgroup.kill", bare)), promise);
    }
    let commit = bare_commit(&instance, extent.rounds);
    let baseline = Some(("a synced SQLite commit", commit));
    table.add("what a durable intent adds to a kill", Unit::Ms, median_ms(intents), baseline, Promise::AtMost(1.0));
    psutil(table);
}

/// `cgroup.kill` of a command with so many processes, until the cgroup is empty.
pub fn bare_kill(command: &[&str], processes: usize) -> std::time::Duration {
    let cgroup = Cgroup::new("kill").unwrap();
    let mut child = cgroup.start(command);
    until("the workload is up", || (processes_in(cgroup.path()) == processes).then_some(()));
    let took = cgroup.kill();
    child.wait().unwrap();
    took
}

/// One row, committed with synchronous=FULL in WAL mode on the filesystem of the state directory.
fn bare_commit(instance: &Instance, rounds: usize) -> f64 {
    let database = rusqlite::Connection::open(instance.path("bare.db")).unwrap();
    database.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (a TEXT)").unwrap();
    let mut times = Vec::new();
    for _ in 0..rounds.max(20) {
        let began = Instant::now();
        database.execute("INSERT INTO t VALUES (?1)", ["x".repeat(300)]).unwrap();
        times.push(began.elapsed());
    }
    median_ms(times)
}

/// What a process manager does without cgroups: kills the tree that psutil sees. The daemons are not in it.
fn psutil(table: &mut Table) {
    const KILL: &str = "
import psutil, sys, time
began = time.monotonic()
parent = psutil.Process(int(sys.argv[1]))
tree = parent.children(recursive=True) + [parent]
for process in tree:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
psutil.wait_procs(tree, timeout=3)
print((time.monotonic() - began) * 1000)
";
    let python = if std::path::Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    if !Command::new(python).args(["-c", "import psutil"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
        table.note("psutil is not installed (python3-psutil): its tree kill is not measured".to_owned());
        return;
    }
    let hostile = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/workloads/hostile.py");
    let work = tempfile::tempdir().unwrap();
    let cgroup = Cgroup::new("psutil").unwrap();
    let script = "cd \"$0\" && exec \"$@\"";
    let mut child =
        cgroup.start(&["sh", "-c", script, work.path().to_str().unwrap(), python, hostile, "daemons", "999"]);
    until("the daemons are up", || work.path().join("ready").exists().then_some(()));
    let parent = child.id().to_string();
    // Reaped at once, as its parent in real life would do.
    let reaper = std::thread::spawn(move || child.wait());
    let output = Command::new(python).args(["-c", KILL, &parent]).output().unwrap();
    reaper.join().unwrap().unwrap();
    let took: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(f64::NAN);
    let survivors = processes_in(cgroup.path());
    table.add("a psutil tree kill, 1 parent and 999 daemons", Unit::Ms, took, None, Promise::None);
    table.add("  daemons that it leaves alive", Unit::Count, survivors as f64, None, Promise::None);
    let began = Instant::now();
    cgroup.kill();
    let took = began.elapsed().as_secs_f64() * 1000.0;
    table.note(format!("cgroup.kill then ended the {survivors} that psutil left, in {took:.1} ms"));
}
