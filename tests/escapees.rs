//! Processes of a run outside of what contains it: named, left alone or ended as the run asks for it, and nobody else ever.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{Escapee, Run};
use common::{Place, World, cgroup2_mount, eventually, is_alive, lines, signal, spare_uid, start};
use guardian::model::{EventKind, Fate, Health, Phase};
use rustix::process::Signal;

/// A cgroup of the test's own, which nobody else knows.
struct Elsewhere(PathBuf);

impl Elsewhere {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = cgroup2_mount().unwrap().join(format!("elsewhere-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_str().unwrap())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for pid in lines(self.0.join("cgroup.procs")) {
            signal(pid.parse().unwrap(), Signal::KILL);
        }
        for _ in 0..200 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// A process that the test started, and nobody else has anything to do with.
struct Bystander(Child);

impl Bystander {
    /// With the mark of a run, or without one; of another user, or of the test's.
    fn new(mark: Option<&str>, uid: Option<u32>) -> Self {
        let mut command = match uid {
            Some(uid) => {
                let mut command = Command::new("setpriv");
                command.args([
                    "--reuid",
                    &uid.to_string(),
                    "--regid",
                    &uid.to_string(),
                    "--clear-groups",
                    "sleep",
                    "1000",
                ]);
                command
            }
            None => {
                let mut command = Command::new("sleep");
                command.arg("1000");
                command
            }
        };
        command.env_remove("GUARDIAN_RUN_ID").envs(mark.map(|run| ("GUARDIAN_RUN_ID", run)));
        Self(command.current_dir("/").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn is_alive(&self) -> bool {
        is_alive(self.pid())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Leaves a process behind that says its pid and ignores SIGTERM, and goes on until it is told to exit.
const STUBBORN: &str = "setsid sh -c \"trap '' TERM; echo \\$\\$ > escapee; exec sleep 1000\" & \
                        while [ ! -e go ]; do sleep 0.01; done; exit 3";
/// The same, and it minds SIGTERM.
const MEEK: &str = "setsid sh -c \"echo \\$\\$ > escapee; exec sleep 1000\" & \
                    while [ ! -e go ]; do sleep 0.01; done; exit 3";

impl World {
    /// A run whose process is in another cgroup.
    fn escaped(&self, action: &str, script: &str) -> (String, u32, Elsewhere) {
        let options = ["--escapees", action, "--grace", "500ms", "--readiness", "exec"];
        let run = self.detach(&options, &["sh", "-c", script]);
        let number = || lines(self.path("escapee")).first().and_then(|line| line.parse::<u32>().ok());
        let pid = eventually("the process that is to escape is there", number);
        let is_executed = || std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "sleep\n");
        eventually("it is executed", || is_executed().then_some(()));
        let elsewhere = Elsewhere::new();
        elsewhere.take(pid);
        (run, pid, elsewhere)
    }

    /// The run, once something is said of its escapees. To show a run is an occasion to look for them.
    #[track_caller]
    fn told(&self, run: &str, what: &str, holds: impl Fn(&[Escapee]) -> bool) -> Run {
        eventually(what, || Some(self.show(run)).filter(|shown| holds(&shown.escapees)))
    }
}

#[track_caller]
fn is_gone(pid: u32) {
    eventually("it is ended", || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_process_that_left_the_cgroup_is_named_everywhere_and_left_alone() {
    needs_cgroup!();
    let world = World::new();
    let (run, pid, elsewhere) = world.escaped("warn", MEEK);
    let shown = world.told(&run, "it is named", |all| !all.is_empty());
    let expected = Escapee { pid, name: "sleep".into(), cgroup: elsewhere.name(), fate: Fate::LeftAlone };
    assert_eq!(shown.escapees, [expected]);
    let reason = shown.health_reasons.iter().find(|r| r.rule == "escapees").expect("a reason");
    let place = format!("sleep (pid {pid}) in cgroup {}", elsewhere.name());
    assert_eq!(shown.health, Health::Warning);
    assert!(reason.text.starts_with(&format!("{place} is the run's and outside")), "{reason:?}");
    assert!(world.guardian(["explain", &run]).exits(0).stdout.contains(&format!("outside of the run: {place}")));
    assert!(world.guardian(["show", &run]).exits(0).stdout.contains(&format!("{place}: left alone")));

    world.guardian(["kill", &run]).exits(0);
    let ended = world.finished().remove(0);
    world.assert_killed(&ended, "requested");
    assert_eq!(ended.receipt().escapees.iter().map(|e| (e.pid, e.fate)).collect::<Vec<_>>(), [(pid, Fate::LeftAlone)]);
    assert!(is_alive(pid), "it was to be named only");
    assert_eq!((world.audited(EventKind::EscapeeFound), world.audited(EventKind::EscapeeEnded)), (1, 0));
    signal(pid, Signal::KILL);
    is_gone(pid);
    world.assert_nothing_left();
}

#[test]
fn the_main_process_is_known_wherever_it_is_and_without_a_mark() {
    needs_cgroup!();
    let world = World::new();
    let script = "sleep 1000 & echo $$ > escapee; exec env -i sleep 1001";
    let (run, pid, elsewhere) = world.escaped("kill", script);
    let shown = world.told(&run, "it is named", |all| !all.is_empty());
    assert_eq!((shown.escapees[0].pid, &shown.escapees[0].cgroup), (pid, &elsewhere.name()));
    is_gone(pid);
    world.finished();
    world.assert_nothing_left();
}

#[test]
fn an_escapee_that_is_to_be_ended_is_ended_and_its_run_lives_on() {
    needs_cgroup!();
    let world = World::new();
    let (run, pid, _elsewhere) = world.escaped("kill", STUBBORN);
    let shown = world.told(&run, "it is ended", |all| all.iter().any(|e| e.fate == Fate::Killed));
    assert!(!is_alive(pid));
    assert_eq!((shown.phase, shown.health), (Phase::Running, Health::Healthy));
    assert_eq!((world.audited(EventKind::EscapeeFound), world.audited(EventKind::EscapeeEnded)), (1, 1));
    std::fs::write(world.path("go"), "").unwrap();
    world.guardian(["wait", &run]).exits(3);
    world.assert_nothing_left();
    world.assert_audit_holds();
}

#[test]
fn a_killed_run_is_over_when_its_escapees_are_gone_and_the_receipt_says_how() {
    needs_cgroup!();
    let world = World::new();
    let (run, pid, _elsewhere) = world.escaped("kill", MEEK);
    world.guardian(["kill", "--force", &run]).exits(0);
    let ended = world.finished().remove(0);
    assert!(!is_alive(pid), "it was to be ended before the run is over");
    let told: Vec<_> = ended.receipt().escapees.iter().map(|e| (e.pid, e.fate)).collect();
    assert_eq!((told, ended.receipt().survivors), (vec![(pid, Fate::Terminated)], 0));
    world.assert_nothing_left();
}

#[test]
fn a_run_that_ends_by_itself_tells_of_its_escapees_too() {
    needs_cgroup!();
    let world = World::new();
    let (run, pid, _elsewhere) = world.escaped("warn", MEEK);
    std::fs::write(world.path("go"), "").unwrap();
    world.guardian(["wait", &run]).exits(3);
    let shown = world.told(&run, "the finished run names it", |all| !all.is_empty());
    assert_eq!((shown.ended(), shown.escapees[0].pid, shown.escapees[0].fate), ("exited(3)", pid, Fate::LeftAlone));
    assert!(shown.usage.cpu_usec.is_some(), "what is known of it stays known");
    signal(pid, Signal::KILL);
    is_gone(pid);
    std::fs::remove_file(world.path("go")).unwrap();
    std::fs::remove_file(world.path("escapee")).unwrap();

    let (run, pid, _elsewhere) = world.escaped("kill", MEEK);
    std::fs::write(world.path("go"), "").unwrap();
    world.guardian(["wait", &run]).exits(3);
    assert!(!is_alive(pid), "it was to be ended before the run is over");
    assert_eq!(world.show(&run).escapees[0].fate, Fate::Terminated);
    world.assert_nothing_left();
}

#[test]
fn what_is_off_is_neither_named_nor_ended() {
    needs_cgroup!();
    let world = World::new();
    let (run, pid, _elsewhere) = world.escaped("off", MEEK);
    assert_eq!(world.show(&run).escapees, []);
    world.guardian(["kill", "--force", &run]).exits(0);
    let ended = world.finished().remove(0);
    assert_eq!((&ended.escapees, ended.receipt().escapees.len()), (&Vec::new(), 0));
    assert!(is_alive(pid));
    signal(pid, Signal::KILL);
    is_gone(pid);
}

#[test]
fn who_only_claims_to_be_of_the_run_or_does_not_even_is_left_alone() {
    needs_cgroup!();
    let world = World::new();
    let elder = Bystander::new(Some("run_ffffffffffff"), None);
    let run = world.detach(&["--escapees", "kill", "--readiness", "exec"], &["sleep", "1000"]);
    let other_user = Bystander::new(Some(&run), Some(spare_uid()));
    let no_mark = Bystander::new(None, None);
    let another_run = Bystander::new(Some("run_0123456789ab"), None);
    let longer = Bystander::new(Some(&format!("{run}0")), None);
    // Who says of itself that it is of the run, and could be, asks to be ended with it: and shows that there was a look.
    let claims = Bystander::new(Some(&run), None);
    let shown = world.told(&run, "the one that could be is ended", |all| all.iter().any(|e| !e.fate.is_there()));
    assert_eq!(shown.escapees.iter().map(|e| e.pid).collect::<Vec<_>>(), [claims.pid()]);
    world.guardian(["kill", "--force", &run]).exits(0);
    let receipt = world.finished().remove(0).receipt().escapees.clone();
    assert_eq!(receipt.iter().map(|e| e.pid).collect::<Vec<_>>(), [claims.pid()]);
    assert!(!claims.is_alive());
    for left in [&elder, &other_user, &no_mark, &another_run, &longer] {
        assert!(left.is_alive(), "{} had nothing to do with the run", left.pid());
    }
}

/// Its processes carry their own mark, and its client and its child behind the gate are in a run.
#[test]
fn a_run_within_a_run_is_no_escapee() {
    needs_cgroup!();
    let world = World::new();
    let guardian = world.executable().to_str().unwrap().to_owned();
    let inner = [&guardian, "run", "--escapees", "kill", "--", "sh", "-c", "echo $$ > inner; exec sleep 1000"];
    let outer = world.detach(&["--escapees", "kill", "--readiness", "exec"], &inner);
    let number = || lines(world.path("inner")).first().and_then(|line| line.parse::<u32>().ok());
    let inner = eventually("the inner run is up", number);
    let claims = Bystander::new(Some(&outer), None);
    let shown = world.told(&outer, "there was a look", |all| all.iter().any(|e| !e.fate.is_there()));
    assert_eq!(shown.escapees.iter().map(|e| e.pid).collect::<Vec<_>>(), [claims.pid()]);
    assert!(is_alive(inner));
    assert!(world.runs().iter().filter(|r| r.run_id != outer).all(|r| r.escapees.is_empty()));
    world.guardian(["kill", "--force", &outer]).exits(0);
    world.finished();
    world.assert_nothing_left();
}

#[test]
fn the_next_instance_looks_for_them_at_once() {
    needs_cgroup!();
    let world = World::new();
    let (run, pid, _elsewhere) = world.escaped("kill", MEEK);
    world.crash_instance();
    assert!(is_alive(pid));
    // Any command starts it; none of these is an occasion to look.
    world.guardian(["ps"]).exits(0);
    is_gone(pid);
    world.guardian(["kill", &run]).exits(0);
    world.finished();
    world.assert_nothing_left();
}

/// Without a cgroup, what is not below the shim is outside. To leave it takes somebody else who starts a process.
fn below_a_shim(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let script = "(setsid sleep 1000 & echo $! > inside) ; while [ ! -e go ]; do sleep 0.01; done";
    let options = ["--escapees", "kill", "--grace", "500ms", "--readiness", "exec"];
    let run = world.detach(&options, &["sh", "-c", script]);
    let number = || lines(world.path("inside")).first().and_then(|line| line.parse::<u32>().ok());
    let inside = eventually("the daemon is there", number);
    let outside = Bystander::new(Some(&run), world.uid());
    let no_mark = Bystander::new(None, world.uid());
    let shown = world.told(&run, "the one outside is ended", |all| all.iter().any(|e| !e.fate.is_there()));
    let told: Vec<_> = shown.escapees.iter().map(|e| (e.pid, e.fate)).collect();
    assert_eq!(told, [(outside.pid(), Fate::Terminated)]);
    assert!(is_alive(inside), "a double fork is no escape");
    assert!(no_mark.is_alive() && !outside.is_alive());
    let left = Bystander::new(Some(&run), world.uid());
    world.guardian(["kill", &run]).exits(0);
    let ended = world.finished().remove(0);
    assert!(ended.receipt().escapees.iter().any(|e| e.pid == left.pid() && e.fate == Fate::Terminated), "{ended:?}");
    assert!(!left.is_alive() && !is_alive(inside) && no_mark.is_alive());
    [outside, left, no_mark].into_iter().for_each(drop);
    world.assert_nothing_left();
}

#[test]
fn below_a_shim_of_root_what_is_outside_is_ended_and_what_is_inside_is_not() {
    below_a_shim(Place::Subtree);
}

#[test]
fn below_a_shim_of_a_user_what_is_outside_is_ended_and_what_is_inside_is_not() {
    below_a_shim(Place::User);
}

/// What was the run's is found by its mark then, and is ended as the run and not as escapees of it.
#[test]
fn a_run_whose_shim_was_killed_has_no_escapees() {
    needs_place!(Place::Subtree);
    let world = World::new_in(Place::Subtree);
    let client = start(&mut world.run_command(
        &["--escapees", "kill"],
        &["sh", "-c", "setsid sleep 1000 & : > up; while [ ! -e go ]; do sleep 0.01; done; kill -9 $PPID; sleep 1000"],
    ));
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    std::fs::write(world.path("go"), "").unwrap();
    client.wait().exits(137);
    let ended = world.finished().remove(0);
    world.assert_killed(&ended, "containment_lost");
    assert_eq!((ended.escapees.len(), world.audited(EventKind::EscapeeFound)), (0, 0));
    world.assert_nothing_left();
}
