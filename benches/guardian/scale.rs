//! What an instance costs while it only watches: memory, processor time, wakeups, and the list; idle, with 1,000 runs,
//! with 5,000 runs and a million past events.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guardian::model::RunId;
use rustix::process::Resource;

use super::Extent;
use super::adaptor::Instance;
use super::host::{cpu_time, descriptors, own_cpu_time, resident_mib, wakeups};
use super::table::{Promise, Table, Unit, median_ms};

const SLEEP: [&str; 2] = ["sleep", "100000"];

/// What is promised for so many runs.
struct Promises {
    memory_mib: Promise,
    sampling_percent: Promise,
    list_ms: Promise,
}

/// Measures an instance that has nothing to do.
pub fn idle(extent: Extent, table: &mut Table) {
    let instance = Instance::start();
    std::thread::sleep(Duration::from_secs(1));
    resident(table, "idle", instance.pid(), Promise::AtMost(8.0));
    let before = wakeups(instance.pid());
    std::thread::sleep(Duration::from_secs(extent.seconds.min(10)));
    let woken = wakeups(instance.pid()) - before;
    let what = format!("wakeups while idle, in {} s", extent.seconds.min(10));
    table.add(&what, Unit::Count, woken as f64, None, Promise::AtMost(0.0));
}

/// Measures instances that watch many runs.
pub fn measure(extent: Extent, table: &mut Table) {
    let promises = Promises {
        memory_mib: Promise::AtMost(12.0),
        sampling_percent: Promise::AtMost(0.7),
        list_ms: Promise::AtMost(3.0),
    };
    let instance = Instance::start();
    let before = descriptors(instance.pid());
    let runs = start(&instance, 1000);
    let each = (descriptors(instance.pid()) - before).div_ceil(runs.len() as u64);
    watched(extent, table, &instance, &runs, "", promises);
    late(table, &instance);
    instance.kill_all(&runs);
    drop(instance);

    attached(table, if extent.quick { 200 } else { 1000 });
    if extent.quick {
        return;
    }
    as_usual(table);

    // Linear in runs and flat in history: the promises of 1,000 runs, five times; history adds nothing.
    let (count, events) = (5000, 1_000_000);
    // What an instance keeps for itself is not more than it keeps for a hundred runs.
    let (needed, most) = (u64::from(count + 100) * each, rustix::process::getrlimit(Resource::Nofile).maximum);
    if let Some(most) = most.filter(|most| *most < needed) {
        eprintln!(
            "!!! {count} runs WERE NOT MEASURED: an instance needs {needed} descriptors for them, and a process may have \
             {most} here; allow it more: ulimit -Hn {needed}"
        );
        return;
    }
    let times = f64::from(count) / 1000.0;
    eprintln!("  writing {events} past events");
    let instance = Instance::start_with_history(events);
    let runs = start(&instance, count);
    let promises = Promises {
        memory_mib: Promise::AtMost(8.0 + 4.0 * times),
        sampling_percent: Promise::AtMost(0.7 * times),
        list_ms: Promise::AtMost(3.0 * times),
    };
    watched(extent, table, &instance, &runs, &format!(", {events} past events"), promises);
    kill_beside(table, &instance, extent);
    instance.kill_all(&runs);
}

/// Starts so many runs, each of a process that sleeps.
pub fn start(instance: &Instance, count: u32) -> Vec<RunId> {
    eprintln!("  starting {count} runs");
    (0..count).map(|_| instance.run(&SLEEP)).collect()
}

fn watched(extent: Extent, table: &mut Table, instance: &Instance, runs: &[RunId], beside: &str, promises: Promises) {
    let (pid, count) = (instance.pid(), runs.len());
    let of_runs = format!("{count} runs{beside}");
    let views = instance.list();
    assert_eq!(views.len(), count);
    // Past the first samples, when everything that is kept has been made.
    std::thread::sleep(Duration::from_secs(3));
    resident(table, &of_runs, pid, promises.memory_mib);

    let seconds = Duration::from_secs(extent.seconds);
    let before = cpu_time(pid);
    std::thread::sleep(seconds);
    let ours = percent(cpu_time(pid) - before, seconds);
    let cgroups: Vec<PathBuf> = views.iter().filter_map(|v| Some(v.container.as_ref()?.path().to_owned())).collect();
    let bare = percent(bare_loop(&cgroups, extent.seconds, Duration::from_secs(1)), seconds);
    let what = format!("sampling each second, of a core, {of_runs}");
    table.add(&what, Unit::Percent, ours, Some(("two kept descriptors", bare)), promises.sampling_percent);

    let times = |call: &dyn Fn()| {
        let time = |_| {
            let began = Instant::now();
            call();
            began.elapsed()
        };
        median_ms((0..extent.rounds.max(10)).map(time).collect())
    };
    let list = times(&|| assert_eq!(instance.list().len(), count));
    let baseline = Some(("a call that says nothing", times(&|| instance.describe())));
    table.add(&format!("list of {of_runs}"), Unit::Ms, list, baseline, promises.list_ms);
    let ps = times(&|| {
        let output = instance.command(&["ps", "--json"]).output().unwrap();
        assert!(output.status.success());
    });
    table.add("  the same by guardian ps --json", Unit::Ms, ps, None, Promise::None);
}

/// All of it, and what is the instance's alone: the rest is pages of the executable file, which clients share.
fn resident(table: &mut Table, when: &str, pid: u32, promise: Promise) {
    let all = resident_mib(pid, "VmRSS");
    table.add(&format!("resident memory, {when}"), Unit::MiB, all, None, promise);
    table.add("  of it anonymous", Unit::MiB, resident_mib(pid, "RssAnon"), None, Promise::None);
}

/// Of one core.
pub fn percent(cpu: Duration, of: Duration) -> f64 {
    cpu.as_secs_f64() / of.as_secs_f64() * 100.0
}

/// The least that sampling could cost: two files a run kept open, each read once in a while.
fn bare_loop(cgroups: &[PathBuf], rounds: u64, interval: Duration) -> Duration {
    let names = ["cpu.stat", "cgroup.events"];
    let paths = cgroups.iter().flat_map(|c| names.map(|name| c.join(name)));
    let files: Vec<File> = paths.filter_map(|path| File::open(path).ok()).collect();
    let mut buffer = [0; 4096];
    let before = own_cpu_time();
    for _ in 0..rounds {
        let began = Instant::now();
        for file in &files {
            let _ = std::hint::black_box(file.read_at(&mut buffer, 0));
        }
        std::thread::sleep(interval.saturating_sub(began.elapsed()));
    }
    own_cpu_time() - before
}

/// What watching costs if nothing is configured, over the time in which the rules look at each run once.
fn as_usual(table: &mut Table) {
    let instance = Instance::start_as_usual();
    let runs = start(&instance, 1000);
    std::thread::sleep(Duration::from_secs(3));
    // The shortest window is that of input_timeout, 24 s.
    let (interval, seconds) = (Duration::from_secs(5), Duration::from_secs(48));
    let before = cpu_time(instance.pid());
    std::thread::sleep(seconds);
    let ours = percent(cpu_time(instance.pid()) - before, seconds);
    let views = instance.list();
    let cgroups: Vec<PathBuf> = views.iter().filter_map(|v| Some(v.container.as_ref()?.path().to_owned())).collect();
    let bare = percent(bare_loop(&cgroups, 9, interval), seconds);
    let what = "watching as usual, samples each 5 s and looks, of a core, 1000 runs";
    table.add(what, Unit::Percent, ours, Some(("two kept descriptors", bare)), Promise::AtMost(0.3));
    instance.kill_all(&runs);
}

/// So many runs have a deadline of which it is told how late the latest one is.
pub const WITH_DEADLINE: usize = 50;

/// How long after its deadline a run's kill begins, while all the others are watched.
fn late(table: &mut Table, instance: &Instance) {
    let what = format!("  max_runtime beside them, after its deadline, worst of {WITH_DEADLINE}");
    table.add(&what, Unit::Ms, worst_late_ms(instance), None, Promise::AtMost(100.0));
}

/// The longest time from a deadline to the kill that begins then, in milliseconds.
pub fn worst_late_ms(instance: &Instance) -> f64 {
    let allowed = Duration::from_millis(1500);
    let runs: Vec<RunId> = (0..WITH_DEADLINE).map(|_| instance.run_for(&SLEEP, allowed)).collect();
    let late = runs.into_iter().map(|run| {
        let view = instance.wait(run);
        let (started, receipt) = (view.started_at.unwrap(), view.receipt.unwrap());
        Duration::from_micros(receipt.requested_at.0.saturating_sub(started.0)).saturating_sub(allowed)
    });
    late.max().unwrap_or_default().as_secs_f64() * 1000.0
}

/// Foreground runs: the instance also holds the client of each.
fn attached(table: &mut Table, count: usize) {
    let instance = Instance::start();
    let mut children: Vec<Child> =
        (0..count).map(|_| Command::new(SLEEP[0]).arg(SLEEP[1]).stdin(Stdio::null()).spawn().unwrap()).collect();
    let runs: Vec<RunId> = children.iter().map(|child| instance.attach(child, &SLEEP)).collect();
    std::thread::sleep(Duration::from_secs(3));
    resident(table, &format!("{count} attached runs"), instance.pid(), Promise::AtMost(12.0));
    runs.iter().for_each(|run| instance.kill(*run));
    children.iter_mut().for_each(|child| drop(child.wait()));
    runs.iter().for_each(|run| drop(instance.wait(*run)));
}

/// A kill while everything else goes on.
fn kill_beside(table: &mut Table, instance: &Instance, extent: Extent) {
    let mut times = Vec::new();
    for _ in 0..extent.rounds {
        let run = instance.run(&SLEEP);
        let began = Instant::now();
        instance.kill(run);
        instance.wait(run);
        times.push(began.elapsed());
    }
    table.add("  a kill beside them, 1 process", Unit::Ms, median_ms(times), None, Promise::AtMost(2.25));
}
