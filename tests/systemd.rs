//! The backend `systemd`, against a real user's manager: tests/vm/inside/backend.py runs it in machines, as an ordinary user
//! with a session bus. It stops the manager, and kills the bus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use guardian::kernel::cgroup::{CgroupDir, parse_key, parse_populated};
use guardian::kernel::{KernelError, clock, mount, process};
use guardian::launch::mark::Owner;
use guardian::launch::systemd::{Manager, Options, ScopeRequest, Started, UnitKind, slice_of, unit_of};
use guardian::model::{Resources, RunId};

const PATIENCE: Duration = Duration::from_secs(40);

/// The deadline of a start, and what an emulated machine takes to notice it.
const DEADLINE: Duration = Duration::from_secs(18);

struct Rig {
    manager: Manager,
    owner: Owner,
    woken: Arc<AtomicUsize>,
}

/// A run's process: killed when the test is over.
struct Main(Child, OwnedFd);

impl Main {
    /// Starts it behind a gate of its own: what it forks before it is moved would not be.
    fn start(script: &str) -> Self {
        let script = format!("read gate; exec </dev/null; {script}");
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let pidfd = process::open(child.id()).unwrap();
        Self(child, pidfd)
    }

    fn open(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn new_run() -> RunId {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(std::process::id());
    let b = n.to_be_bytes();
    RunId::from_bytes([b[2], b[3], b[4], b[5], b[6], b[7]])
}

fn until(what: &str, mut is: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
    started.elapsed()
}

impl Rig {
    fn new() -> Self {
        let owner = Owner::new("test", clock::boot_id().unwrap(), true);
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let wake = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let started = Instant::now();
        let manager = Manager::connect(Options::from_env(false, owner.clone()), wake).unwrap();
        println!(
            "connected in {:?}: systemd {} at {}",
            started.elapsed(),
            manager.version(),
            manager.cgroup().display()
        );
        Self { manager, owner, woken }
    }

    fn ask(&self, run: RunId, pid: u32, workflow: &str, resources: Resources) -> mpsc::Receiver<Answer> {
        let (answer, is_answered) = mpsc::channel();
        let started = Instant::now();
        self.manager.start_scope(ScopeRequest {
            run,
            workflow: workflow.to_owned(),
            description: format!("Run {run} of {workflow}"),
            pid,
            pidfd: None,
            resources,
            runtime_max: None,
            done: Box::new(move |scope| drop(answer.send((scope, started.elapsed())))),
        });
        // Nor is it by a manager that is stopped, whose deadline is 15 s. An emulated machine may take its time.
        assert!(started.elapsed() < Duration::from_secs(5), "the engine's thread is not held up");
        is_answered
    }

    fn launch(&self, script: &str, workflow: &str, resources: Resources) -> (RunId, Main, Started) {
        let (run, mut main) = (new_run(), Main::start(script));
        let (scope, _) = self.ask(run, main.pid(), workflow, resources).recv_timeout(PATIENCE).unwrap();
        let scope = scope.unwrap();
        main.open();
        (run, main, scope)
    }

    /// What systemd knows of the unit: `not-found` once it is collected.
    fn load_state(&self, unit: &str) -> String {
        systemctl(&["show", "--value", "-p", "LoadState", "--", unit])
    }

    fn gone(&self, scope: &Started) -> Duration {
        until("the directory is removed", || scope.cgroup.verify().is_err_and(|e| e.is_gone()))
    }
}

type Answer = (Result<Started, KernelError>, Duration);

fn systemctl(arguments: &[&str]) -> String {
    let runtime_dir = format!("/run/user/{}", rustix::process::geteuid().as_raw());
    let mut command = Command::new("systemctl");
    command.args(["--user", "--no-pager"]).args(arguments).env("XDG_RUNTIME_DIR", runtime_dir);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn is_empty(cgroup: &CgroupDir) -> bool {
    match cgroup.parsed("cgroup.events", parse_populated) {
        Ok(populated) => !populated,
        Err(e) => e.is_gone(),
    }
}

fn name_of(cgroup: &CgroupDir) -> PathBuf {
    mount::find().unwrap().cgroup_of(cgroup.path()).unwrap()
}

fn signal_manager(manager: u32, name: &str) {
    assert!(Command::new("kill").args([name, &manager.to_string()]).status().unwrap().success());
}

/// The process of the user's manager: the one in its `init.scope` that was there first.
fn manager_pid(manager: &Manager) -> u32 {
    let init = CgroupDir::open(manager.cgroup().join("init.scope")).unwrap();
    *init.pids().unwrap().first().unwrap()
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("min {:?}, median {:?}, max {:?}", times[0], times[times.len() / 2], times[times.len() - 1])
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn each_run_is_in_a_scope_of_its_own() {
    let rig = Rig::new();
    let mut runs = Vec::new();
    let mut times = Vec::new();
    for _ in 0..10 {
        let (run, main) = (new_run(), Main::start("exec sleep 600"));
        let (scope, took) = rig.ask(run, main.pid(), "a-b", Resources::default()).recv_timeout(PATIENCE).unwrap();
        runs.push((run, main, scope.unwrap()));
        times.push(took);
    }
    println!("10 starts one after the other: {}", summary(times));
    let started = Instant::now();
    let asked: Vec<_> = (0..10)
        .map(|_| {
            let (run, main) = (new_run(), Main::start("exec sleep 600"));
            let answer = rig.ask(run, main.pid(), "other", Resources::default());
            (run, main, answer)
        })
        .collect();
    for (run, main, answer) in asked {
        let (scope, _) = answer.recv_timeout(PATIENCE).unwrap();
        runs.push((run, main, scope.unwrap()));
    }
    println!("10 starts at once: {:?}", started.elapsed());
    for (run, main, scope) in &runs {
        assert_eq!(process::cgroup(main.pid()).unwrap(), name_of(&scope.cgroup));
        assert!(!process::has_exited(&main.1));
        assert_eq!(scope.cgroup.pids().unwrap().into_iter().collect::<Vec<_>>(), [main.pid()]);
        rig.owner.prove(*run, &scope.cgroup, None).unwrap();
        let stranger = Owner::new("other", clock::boot_id().unwrap(), true);
        assert!(stranger.prove(*run, &scope.cgroup, None).is_err());
        assert_eq!(scope.notices, Vec::<String>::new());
    }
    let slice = rig.manager.cgroup().join("guardian.slice").join(slice_of("a-b"));
    assert_eq!(runs[0].2.cgroup.path(), slice.join(unit_of(runs[0].0, UnitKind::Scope)));
    let found = rig.manager.units().unwrap();
    for (run, _, scope) in &runs {
        assert!(found.contains(&(*run, scope.cgroup.path().to_owned())));
    }
    until("each answer is followed by a wake", || rig.woken.load(Ordering::Relaxed) == 20);
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn limits_are_in_force_or_told() {
    let rig = Rig::new();
    let all = Resources { memory_max_bytes: Some(64 << 20), tasks_max: Some(50), cpu_max_percent: Some(150) };
    let (_, _main, scope) = rig.launch("exec sleep 600", "limited", all);
    let controllers = std::fs::read_to_string(rig.manager.cgroup().join("cgroup.controllers")).unwrap();
    let has = |controller| controllers.split_ascii_whitespace().any(|c| c == controller);
    let limits =
        [("memory", "memory.max", "67108864"), ("pids", "pids.max", "50"), ("cpu", "cpu.max", "150000 100000")];
    for (controller, file, value) in limits {
        match has(controller) {
            true => assert_eq!(scope.cgroup.read(file).unwrap().trim(), value),
            false => assert!(scope.notices.iter().any(|n| n.contains(&format!("the {controller} controller")))),
        }
    }
    println!("controllers {}: notices {:#?}", controllers.trim(), scope.notices);
    assert_eq!(scope.notices.len(), limits.iter().filter(|(controller, ..)| !has(controller)).count());

    let (_, _main, scope) = rig.launch("exec sleep 600", "free", Resources::default());
    for file in ["memory.max", "pids.max", "cpu.max"] {
        let found = scope.cgroup.read(file).unwrap_or_else(|_| "max".to_owned());
        assert!(found.starts_with("max"), "{file}: {found}");
    }
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_killed_scope_is_removed_by_systemd_and_leaves_no_failed_unit() {
    let rig = Rig::new();
    let (mut empty, mut gone, mut collected) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let script = "trap '' TERM; setsid sleep 600 & sleep 600 & sleep 600; sleep 600";
        let (run, main, scope) = rig.launch(script, "killed", Resources::default());
        until("all are there", || scope.cgroup.pids().unwrap().len() == 4);
        let started = Instant::now();
        scope.cgroup.write("cgroup.kill", "1").unwrap();
        until("it is empty", || is_empty(&scope.cgroup));
        empty.push(started.elapsed());
        rig.gone(&scope);
        gone.push(started.elapsed());
        until("the unit is collected", || rig.load_state(&unit_of(run, UnitKind::Scope)) == "not-found");
        collected.push(started.elapsed());
        drop(main);
    }
    println!("from cgroup.kill to empty: {}", summary(empty));
    println!("from cgroup.kill to removed by systemd: {}", summary(gone));
    println!("from cgroup.kill to collected (with systemctl's own time): {}", summary(collected));
    assert_eq!(systemctl(&["list-units", "--all", "--failed", "--plain", "--no-legend"]), "");
    assert!(!systemctl(&["list-units", "--all", "--plain", "--no-legend"]).contains("guardian-run_"));
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_scope_whose_directory_somebody_removed_stays_until_it_is_collected() {
    let rig = Rig::new();
    let pid = manager_pid(&rig.manager);
    let mut runs = Vec::new();
    for _ in 0..5 {
        let (run, mut main, scope) = rig.launch("exec sleep 600", "removed", Resources::default());
        // So that systemd cannot come first.
        signal_manager(pid, "-STOP");
        scope.cgroup.write("cgroup.kill", "1").unwrap();
        main.0.wait().unwrap();
        until("it is empty", || is_empty(&scope.cgroup));
        until("it is removed", || scope.cgroup.remove().is_ok());
        signal_manager(pid, "-CONT");
        runs.push((run, unit_of(run, UnitKind::Scope)));
    }
    std::thread::sleep(Duration::from_secs(2));
    let stayed = runs.iter().filter(|(_, unit)| rig.load_state(unit) == "loaded").count();
    println!("of 5 whose directory we removed, {stayed} units stayed");
    for (run, unit) in &runs {
        rig.manager.collect(*run, UnitKind::Scope);
        until("the unit is collected", || rig.load_state(unit) == "not-found");
    }
    assert_eq!(systemctl(&["list-units", "--all", "--failed", "--plain", "--no-legend"]), "");
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_scope_that_holds_a_process_is_not_collected() {
    let rig = Rig::new();
    let (run, main, scope) = rig.launch("exec sleep 600", "held", Resources::default());
    rig.manager.collect(run, UnitKind::Scope);
    // Requests are served in turn, and a start takes longer than a look.
    rig.launch("exec sleep 600", "held", Resources::default());
    assert!(!process::has_exited(&main.1) && !is_empty(&scope.cgroup));
    assert_eq!(rig.load_state(&unit_of(run, UnitKind::Scope)), "loaded");
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_second_scope_of_the_same_run_is_refused() {
    let rig = Rig::new();
    let (run, main, scope) = rig.launch("exec sleep 600", "twice", Resources::default());
    let second = Main::start("exec sleep 600");
    let before = process::cgroup(second.pid()).unwrap();
    let (refused, _) = rig.ask(run, second.pid(), "twice", Resources::default()).recv_timeout(PATIENCE).unwrap();
    let error = refused.unwrap_err();
    assert!(matches!(error, KernelError::Busy { .. }), "{error}");
    println!("{error}");
    assert_eq!(process::cgroup(second.pid()).unwrap(), before);
    assert_eq!(process::cgroup(main.pid()).unwrap(), name_of(&scope.cgroup));
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_process_that_has_ended_is_gone_and_leaves_no_unit() {
    let rig = Rig::new();
    let mut main = Main::start("exit 0");
    main.open();
    main.0.wait().unwrap();
    let run = new_run();
    let (ended, took) = rig.ask(run, main.pid(), "ended", Resources::default()).recv_timeout(PATIENCE).unwrap();
    let error = ended.unwrap_err();
    println!("reaped before: {error} after {took:?}");
    // Not reaped: the process is there for systemd, and cannot be moved any more.
    let mut main = Main::start("exit 0");
    main.open();
    until("it has exited", || process::has_exited(&main.1));
    let zombie = new_run();
    let (ended, took) = rig.ask(zombie, main.pid(), "ended", Resources::default()).recv_timeout(PATIENCE).unwrap();
    let zombie_error = ended.unwrap_err();
    println!("not reaped: {zombie_error} after {took:?}");
    for run in [run, zombie] {
        until("nothing is left of it", || rig.load_state(&unit_of(run, UnitKind::Scope)) == "not-found");
    }
    assert!(error.is_gone() && zombie_error.is_gone(), "{error}, {zombie_error}");
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_manager_that_is_stopped_is_given_up_at_the_deadline() {
    let rig = Rig::new();
    let pid = manager_pid(&rig.manager);
    signal_manager(pid, "-STOP");
    let (run, main) = (new_run(), Main::start("exec sleep 600"));
    let answer = rig.ask(run, main.pid(), "stopped", Resources::default()).recv_timeout(PATIENCE);
    let absent = Manager::connect(Options::from_env(false, rig.owner.clone()), Arc::new(|| {}));
    signal_manager(pid, "-CONT");
    let (scope, took) = answer.unwrap();
    let error = scope.unwrap_err().to_string();
    println!("{error} (after {took:?})");
    assert!(error.contains("the systemd manager did not") && took < DEADLINE, "{error}");
    let absent = absent.unwrap_err().to_string();
    println!("{absent}");
    assert!(absent.contains("give an answer of its systemd manager"), "{absent}");
    // What it was asked it may still do: the process ends, and the scope with it.
    drop(main);
    until("nothing is left of it", || rig.load_state(&unit_of(run, UnitKind::Scope)) == "not-found");
    rig.launch("exec sleep 600", "stopped", Resources::default());
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_bus_that_goes_away_is_an_error_at_once_and_the_next_run_finds_the_next_bus() {
    let rig = Rig::new();
    let before = rig.launch("exec sleep 600", "bus", Resources::default());
    let pid = manager_pid(&rig.manager);
    signal_manager(pid, "-STOP");
    let main = Main::start("exec sleep 600");
    let answer = rig.ask(new_run(), main.pid(), "bus", Resources::default());
    std::thread::sleep(Duration::from_millis(300));
    let started = Instant::now();
    let own = rustix::process::geteuid().as_raw().to_string();
    assert!(Command::new("pkill").args(["-KILL", "-u", &own, "-x", "dbus-daemon"]).status().unwrap().success());
    let answer = answer.recv_timeout(PATIENCE);
    let took = started.elapsed();
    signal_manager(pid, "-CONT");
    let error = answer.unwrap().0.unwrap_err();
    println!("{error} ({took:?} after the bus's end)");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let mut last = String::new();
    until("the next bus serves", || {
        let main = Main::start("exec sleep 600");
        let answer = rig.ask(new_run(), main.pid(), "bus", Resources::default());
        let (scope, took) = answer.recv_timeout(PATIENCE).unwrap();
        last = format!(
            "{:?} in {took:?}",
            scope.as_ref().map(|s| s.cgroup.path().to_owned()).map_err(ToString::to_string)
        );
        println!("{last}");
        scope.is_ok()
    });
    assert!(!is_empty(&before.2.cgroup), "runs survive the bus");
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn runs_survive_a_manager_that_executes_itself_anew() {
    let rig = Rig::new();
    let before = rig.launch("exec sleep 600", "reexec", Resources::default());
    systemctl(&["daemon-reexec"]);
    let after = rig.launch("exec sleep 600", "reexec", Resources::default());
    for (_, main, scope) in [&before, &after] {
        assert_eq!(process::cgroup(main.pid()).unwrap(), name_of(&scope.cgroup));
    }
    before.2.cgroup.write("cgroup.kill", "1").unwrap();
    println!("removed {:?} after cgroup.kill, by a manager that was executed anew", rig.gone(&before.2));
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_process_killed_for_memory_does_not_end_the_run_and_can_be_counted_while_it_lives() {
    let rig = Rig::new();
    let small = Resources { memory_max_bytes: Some(24 << 20), ..Resources::default() };
    let oom = |c: &CgroupDir| c.parsed("memory.events", |t| parse_key(t, "oom_kill"));
    let (_, main, scope) = rig.launch("sleep 1; tail /dev/zero; exec sleep 600", "oom", small.clone());
    if !scope.cgroup.has("memory.events") {
        return eprintln!("SKIPPED: no memory controller");
    }
    until("one is killed", || oom(&scope.cgroup).unwrap() == 1);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!process::has_exited(&main.1) && !is_empty(&scope.cgroup));

    // When the main process is the one, systemd removes the counter soon. Who is told in time to read it?
    let (mut by_pidfd, mut by_events) = (0, 0);
    for n in 0..20 {
        let (_, main, scope) = rig.launch("sleep .3; exec tail /dev/zero", "oom", small.clone());
        let events = scope.cgroup.open_file("memory.events").unwrap();
        scope.cgroup.read_kept(&events, "memory.events").unwrap();
        let (fd, flags) = if n % 2 == 0 { (&main.1, PollFlags::IN) } else { (&events, PollFlags::PRI) };
        let kills = loop {
            // Without end it could wait for ever: a removed directory wakes nobody, and takes a throttled notice with it.
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            poll(&mut [PollFd::new(fd, flags)], Some(&second)).unwrap();
            match scope.cgroup.read_kept(&events, "memory.events").map(|t| parse_key(&t, "oom_kill")) {
                // Reclaim at the limit is told of, too.
                Ok(Some(0)) if n % 2 == 1 => {}
                other => break other.is_ok_and(|kills| kills == Some(1)),
            }
        };
        *(if n % 2 == 0 { &mut by_pidfd } else { &mut by_events }) += usize::from(kills);
        rig.gone(&scope);
    }
    println!(
        "runs killed for memory and counted: {by_pidfd} of 10 told by the pidfd, {by_events} of 10 by memory.events"
    );
}

#[test]
#[ignore = "needs a user's systemd manager"]
fn a_run_that_ends_by_itself_leaves_nothing() {
    let rig = Rig::new();
    let (mut times, mut slice) = (Vec::new(), PathBuf::new());
    for _ in 0..10 {
        let (_, main, scope) = rig.launch("exec sleep .2", "short", Resources::default());
        while !process::has_exited(&main.1) {}
        times.push(rig.gone(&scope));
        slice = scope.cgroup.path().parent().map(Path::to_owned).unwrap();
    }
    println!("from the main process's exit to removed by systemd: {}", summary(times));
    println!("the workflow's slice stays: {}", slice.exists());
}
