//! The backend `subtree`, by turns with what it stands in for: launch, the kill of many, sampling, and what a shim weighs.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guardian::model::RunId;

use super::Extent;
use super::adaptor::Instance;
use super::host::{cpu_time, resident_mib, sleepers, until};
use super::kill::bare_kill;
use super::launch::{CLOCK, now, since};
use super::table::{Promise, Table, Unit, median_ms};

/// Measures.
pub fn measure(extent: Extent, table: &mut Table) {
    let instance = Instance::start_with_backend("subtree");
    launch(extent, table, &instance);
    kill(extent, table, &instance);
    sampling(extent, table, &instance);
}

fn launch(extent: Extent, table: &mut Table, instance: &Instance) {
    let (mut spawned, mut detached, mut foreground) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..extent.rounds.max(10) {
        let began = now();
        let output = Command::new(CLOCK[0]).arg(CLOCK[1]).stdin(Stdio::null()).output().unwrap();
        spawned.push(since(began, &output.stdout));

        let began = now();
        let view = instance.wait(instance.run(&CLOCK));
        detached.push(since(began, &std::fs::read(view.spec.log.expect("a detached run has a log")).unwrap()));

        let began = now();
        let output = instance.command(&["run", "--", CLOCK[0], CLOCK[1]]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        foreground.push(since(began, &output.stdout));
    }
    let baseline = Some(("posix_spawn", median_ms(spawned)));
    let promise = Promise::Times(1.0, 5.0);
    table.add("subtree: launch to exec, detached, over D-Bus", Unit::Ms, median_ms(detached), baseline, promise);
    table.add("subtree: launch to exec, guardian run", Unit::Ms, median_ms(foreground), baseline, promise);
}

fn kill(extent: Extent, table: &mut Table, instance: &Instance) {
    for processes in [1, 100, 1000] {
        let command = sleepers(processes);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..extent.rounds.min(7) {
            bare.push(bare_kill(&command, processes));
            let run = instance.run(&command);
            until("the workload is up", || (below_shim(instance, run) == processes).then_some(()));
            instance.kill(run);
            let receipt = instance.wait(run).receipt.unwrap();
            assert_eq!((receipt.killed as usize, receipt.survivors), (processes, 0));
            ours.push(Duration::from_micros(receipt.duration_usec));
        }
        let what = format!("subtree: kill to empty, {processes} processes, by its receipt");
        // The intent on durable record, the walk and the evidence are there for a single process too.
        let promise = Promise::Times(3.0, 2.0);
        table.add(&what, Unit::Ms, median_ms(ours), Some(("bare cgroup.kill", median_ms(bare))), promise);
    }
}

/// The processes below the shim of a run, the shim left out.
fn below_shim(instance: &Instance, run: RunId) -> usize {
    fn below(pid: u32) -> usize {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(|pid| 1 + below(pid)).sum()
    }
    shim(instance, run).map_or(0, below)
}

fn shim(instance: &Instance, run: RunId) -> Option<u32> {
    Some(instance.show(run).container?.shim()?.pid)
}

fn sampling(extent: Extent, table: &mut Table, instance: &Instance) {
    const RUNS: usize = 100;
    const PROCESSES: usize = 5;
    let command = sleepers(PROCESSES);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let runs: Vec<RunId> = (0..RUNS).map(|_| instance.run(&command)).collect();
    for run in &runs {
        until("the workload is up", || (below_shim(instance, *run) == PROCESSES).then_some(()));
    }
    let seconds = Duration::from_secs(extent.seconds);
    // Past the first samples, which find out how many processes there are.
    std::thread::sleep(Duration::from_secs(3));
    let before = cpu_time(instance.pid());
    std::thread::sleep(seconds);
    let ours = percent(cpu_time(instance.pid()) - before, seconds);
    let began = Instant::now();
    let mut passes = 0u32;
    while began.elapsed() < Duration::from_secs(2) {
        read_every_stat();
        passes += 1;
    }
    let bare = percent(began.elapsed() / passes, Duration::from_secs(1));
    let what = format!("subtree: sampling each second, of a core, {RUNS} runs of {PROCESSES} processes");
    table.add(&what, Unit::Percent, ours, Some(("reading every /proc/PID/stat", bare)), Promise::AtMost(2.0));

    let shims: Vec<PathBuf> =
        runs.iter().filter_map(|run| Some(format!("/proc/{}", shim(instance, *run)?).into())).collect();
    let resident: Vec<f64> = shims
        .iter()
        .filter_map(|p| p.file_name()?.to_str()?.parse().ok())
        .map(|pid| resident_mib(pid, "VmRSS"))
        .collect();
    let most = resident.iter().copied().fold(0.0, f64::max);
    table.add("subtree: resident memory of a shim, the largest of 100", Unit::MiB, most, None, Promise::AtMost(1.0));
    instance.kill_all(&runs);
}

fn percent(cpu: Duration, of: Duration) -> f64 {
    100.0 * cpu.as_secs_f64() / of.as_secs_f64()
}

/// What any way of looking at all processes costs at least.
fn read_every_stat() {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            let _ = std::fs::read(entry.path().join("stat"));
        }
    }
}
