//! What a run may rely on, below a shim as in a cgroup.

use std::time::Duration;

use guardian::model::{EventKind, Phase};

use crate::common::{Place, World, eventually, is_alive, lines, proc_stat, python, start};
use crate::{needs_place, needs_program};

#[test]
fn exit_statuses_and_signals_pass_through() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let not_executable = world.path("not-executable");
    std::fs::write(&not_executable, "#!/bin/sh\n").unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["true"], 0, "exited(0)"),
        (&["sh", "-c", "exit 3"], 3, "exited(3)"),
        (&["sh", "-c", "exit 255"], 255, "exited(255)"),
        (&["sh", "-c", "ulimit -c 0; kill -SEGV $$"], 139, "signaled(11)"),
        (&["sh", "-c", "kill -KILL $$"], 137, "signaled(9)"),
        (&["sh", "-c", "kill -TERM $$"], 143, "signaled(15)"),
        (&["no-such-command-anywhere"], 127, "exited(127)"),
        (&["/no/such/file"], 127, "exited(127)"),
        (&[not_executable.to_str().unwrap()], 126, "exited(126)"),
        (&["/"], 126, "exited(126)"),
    ];
    for (command, code, outcome) in cases {
        let done = world.run(&[], command);
        assert_eq!(done.code, Some(*code), "{command:?}: {done:?}");
        assert_eq!(world.runs()[0].ended(), *outcome, "{command:?}");
    }
    for (command, code, outcome) in &cases[..6] {
        let run = world.detach(&[], command);
        world.guardian(["wait", &run]).exits(*code);
        assert_eq!(world.show(&run).ended(), *outcome, "{command:?}, detached");
    }
    world.assert_nothing_left();
}

#[test]
fn standard_streams_directory_and_environment_are_those_of_the_client() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let script = "read x; echo \"$x $K $(pwd)\"; echo err >&2";
    let mut command = world.run_command(&["--env", "K=v", "--cwd", "/usr"], &["sh", "-c", script]);
    std::fs::write(world.path("stdin"), "in\n").unwrap();
    let done = crate::common::start(command.stdin(std::fs::File::open(world.path("stdin")).unwrap())).wait();
    assert_eq!(done.exits(0).stdout, "in v /usr\n");
    assert_eq!(done.stderr, "err\n");
}

#[test]
fn the_output_of_a_detached_run_is_in_its_log() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let waits = "echo out; echo err >&2; while [ ! -e go ]; do sleep 0.01; done; echo end; exit 7";
    let run = world.detach(&[], &["sh", "-c", waits]);
    eventually("the first output is in the log", || {
        (world.guardian(["logs", &run]).exits(0).stdout == "out\nerr\n").then_some(())
    });
    assert_ne!(world.show(&run).phase, Phase::Finished);
    std::fs::write(world.path("go"), "").unwrap();
    world.guardian(["wait", &run]).exits(7);
    assert_eq!(world.guardian(["logs", &run]).exits(0).stdout, "out\nerr\nend\n");
    world.assert_nothing_left();
}

#[test]
fn a_frozen_run_stands_still_until_it_is_thawed() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let ticks = "setsid sh -c 'while :; do echo tick >> child; sleep 0.01; done' & \
                 while :; do echo tick >> main; sleep 0.01; done";
    let run = world.detach(&["--grace", "1s"], &["sh", "-c", ticks]);
    let ticked = || (lines(world.path("main")).len(), lines(world.path("child")).len());
    eventually("both tick", || (ticked() > (1, 1) && ticked().1 > 1).then_some(()));
    world.guardian(["freeze", &run]).exits(0);
    assert!(world.show(&run).frozen);
    let is_stopped = |pid: u32| proc_stat(pid).is_some_and(|stat| stat[0] == "T");
    eventually("every process is stopped", || world.workload().iter().all(|pid| is_stopped(*pid)).then_some(()));
    let before = ticked();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ticked(), before, "they went on");
    world.guardian(["thaw", &run]).exits(0);
    eventually("both go on", || (ticked().0 > before.0 && ticked().1 > before.1).then_some(()));
    assert!(!world.show(&run).frozen);
    // SIGTERM reaches what is frozen.
    world.guardian(["freeze", &run]).exits(0);
    world.guardian(["kill", &run]).exits(0);
    let run = world.only_run();
    world.assert_killed(&run, "requested");
    assert_eq!(run.receipt().killed, 0, "{run:?}");
    world.assert_nothing_left();
}

/// Two processes that each compute, read and end: one that its parent waits for, and one that nobody of the run does.
const WORKS: &str = "
import os, time

def work():
    until = time.process_time() + 0.3
    with open('/dev/zero', 'rb') as zero:
        zero.read(4 << 20)
    while time.process_time() < until:
        pass
    os._exit(0)

child = os.fork()
if child == 0:
    work()
os.waitpid(child, 0)
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        os.setsid()
        work()
    os._exit(0)
os.waitpid(middle, 0)
kept = b'x' * (50 << 20)
open('up', 'w').close()
time.sleep(1000)
";

#[test]
fn what_a_run_uses_is_counted_with_what_has_ended() {
    needs_place!(Place::User);
    needs_program!("python3");
    let world = World::new_in(Place::User);
    let run = world.detach(&[], &[python(), "-c", WORKS]);
    eventually("it is up", || world.path("up").exists().then_some(()));
    eventually("its orphan has ended", || (world.workload().len() == 1).then_some(()));
    let usage = eventually("all of its use is seen", || {
        let usage = world.show(&run).usage;
        let whole = usage.cpu_usec? >= 600_000 && usage.activity_bytes? >= 8 << 20 && usage.memory_bytes? >= 50 << 20;
        whole.then_some(usage)
    });
    assert_eq!(usage.tasks, Some(1), "{usage:?}");
    // What the shim itself did is none of it.
    assert!(usage.cpu_usec.unwrap() < 3_000_000 && usage.activity_bytes.unwrap() < 64 << 20, "{usage:?}");
    world.guardian(["kill", "--force", &run]).exits(0);
    let ended = world.show(&run).usage;
    assert!(ended.cpu_usec >= usage.cpu_usec, "it is kept when the run has ended: {ended:?} after {usage:?}");
    world.assert_nothing_left();
}

#[test]
fn what_a_run_uses_over_time_is_shown_while_it_lives_and_kept_when_it_has_ended() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let config = world.path("config.toml");
    std::fs::write(&config, "[instance]\nsample_interval = \"1s\"\n").unwrap();
    let script = "while [ ! -e go ]; do :; done; exec sleep 1000";
    let mut command = world.run_command(&["--detach"], &["sh", "-c", script]);
    let run = start(command.env("GUARDIAN_CONFIG", &config)).wait().exits(0).stdout.trim().to_owned();
    let samples = || -> Vec<serde_json::Value> {
        let shown = world.guardian(["show", "--samples", "--json", &run]).exits(0).stdout.clone();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["samples"].as_array().unwrap().clone()
    };
    let number =
        |sample: &serde_json::Value, key: &str| sample[key].as_u64().unwrap_or_else(|| panic!("{key}: {sample}"));
    let live = eventually("it is read more than once", || Some(samples()).filter(|all| all.len() >= 2));
    let grew = number(&live[1], "cpu_usec") - number(&live[0], "cpu_usec");
    let over = number(&live[1], "at_usec") - number(&live[0], "at_usec");
    assert!(grew > over / 20 && over >= 4_500_000, "it computes: {grew} of {over} µs");
    assert!(number(&live[0], "memory_bytes") > 0 && number(&live[0], "tasks") == 1, "{live:?}");
    std::fs::write(world.path("go"), "").unwrap();
    world.guardian(["kill", &run]).exits(0);
    let kept = eventually("the store has it", || Some(samples()).filter(|all| all.len() >= live.len()));
    assert_eq!(kept[..2], live[..2], "the same readings");
    assert!(world.show(&run).usage.memory_peak_bytes >= live[0]["memory_bytes"].as_u64());
    let table = world.guardian(["show", "--samples", &run]).exits(0).stdout.clone();
    assert!(table.contains("AT MOST") && table.contains(" % "), "{table}");
    world.assert_nothing_left();
}

#[test]
fn what_has_ended_is_told_of_in_statistics_and_as_csv() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let run = |options: &[&str], script: &str| world.run(&[&["-w", "lina"], options].concat(), &["sh", "-c", script]);
    run(&[], "true").exits(0);
    run(&["--name", "=1,\"2\""], "exit 3").exits(3);
    run(&["--max-runtime", "300ms"], "exec sleep 1000").exits(124);
    world.run(&[], &["true"]).exits(0);
    let live = world.detach(&["-w", "lina"], &["sleep", "1000"]);
    // The last of them is on record a moment after its client is told.
    let stats = |options: &[&str]| world.guardian([&["stats", "-w", "lina"], options].concat()).exits(0).stdout.clone();
    let told = eventually("all three are over", || {
        let told: serde_json::Value = serde_json::from_str(&stats(&["--json"])).unwrap();
        (told[0]["runs"] == 3).then_some(told)
    });
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    let outcomes = &told[0]["outcomes"];
    assert_eq!([&outcomes["succeeded"], &outcomes["failed"], &outcomes["killed"]], [1, 1, 1], "{told}");
    assert_eq!(told[0]["kills"], serde_json::json!({"max_runtime": 1}));
    assert!(told[0]["duration_usec"]["max"].as_u64().unwrap() < 60_000_000, "of those that ended themselves: {told}");
    assert_eq!(told[0]["days"].as_array().unwrap().iter().map(|d| d["runs"].as_u64().unwrap()).sum::<u64>(), 3);
    let table = stats(&[]);
    assert!(
        table.starts_with("WORKFLOW  RUNS  OK  FAILED  KILLED") && table.contains("killed for: max_runtime 1"),
        "{table}"
    );
    assert_eq!(stats(&["--csv"]).lines().nth(1).map(|l| l.starts_with("lina,3,1,1,0,1,0,0,")), Some(true));
    assert!(stats(&["--csv", "--days"]).starts_with("workflow,day,runs,"));
    assert_eq!(stats(&["--since", "1ms"]).lines().count(), 1, "none is so young");
    let csv = world.guardian(["history", "-w", "lina", "--csv"]).exits(0).stdout.clone();
    assert_eq!(csv.lines().count(), 4, "{csv}");
    assert!(csv.contains(",\"'=1,\"\"2\"\"\","), "a name is text and no formula: {csv}");
    assert_eq!(world.guardian(["stats", "--csv", "--json"]).code, Some(2));
    world.guardian(["kill", &live]).exits(0);
    world.assert_nothing_left();
}

#[test]
fn a_limit_that_cannot_be_enforced_is_told_of() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let options = ["--memory-max", "1G", "--tasks-max", "50", "--cpu-max", "150"];
    let done = world.run(&options, &["sh", "-c", "echo executed >&2"]);
    let notices = world.only_run().notices;
    for told in [
        "memory_max of 1073741824 bytes holds each process of the run alone",
        "tasks_max of 50 tasks cannot be enforced: no cgroup contains the run; isolate_pids makes it possible",
        "cpu_max of 150 % of a core cannot be enforced: no cgroup contains the run",
    ] {
        assert_eq!(notices.iter().filter(|notice| notice.contains(told)).count(), 1, "{told}: {notices:?}");
        let at_launch = done.exits(0).stderr.split("executed").next().unwrap();
        assert!(at_launch.contains(told), "{told}: {done:?}");
        assert_eq!(done.stderr.matches(told).count(), 1, "{told}: {done:?}");
    }
    assert_eq!(notices.len(), 3, "{notices:?}");
    let detached = world.guardian(["run", "--detach", "--cpu-max", "150", "--", "true"]);
    assert!(detached.exits(0).stderr.contains("cpu_max of 150 %"), "{detached:?}");
    world.finished();
}

#[test]
fn memory_max_holds_each_process() {
    needs_place!(Place::User);
    needs_program!("python3");
    let world = World::new_in(Place::User);
    let takes = |bytes: &str| world.run(&["--memory-max", "128M"], &[python(), "-c", &format!("bytearray({bytes})")]);
    takes("64 << 20").exits(0);
    assert!(takes("256 << 20").exits(1).stderr.contains("MemoryError"));
}

#[test]
fn a_run_without_output_is_ended_by_its_init_timeout() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    world.run(&["--init-timeout", "1s", "--grace", "1s"], &["sleep", "1000"]).exits(124);
    world.assert_killed(&world.only_run(), "init_timeout");
    world.run(&["--init-timeout", "3s"], &["sh", "-c", "echo ready; sleep 4"]).exits(0);
    world.assert_nothing_left();
}

fn leftovers_are_ended_and_the_exit_status_is_kept(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let leaves =
        "setsid sh -c 'trap \"\" TERM; sleep 1000 & : > up; wait' & while [ ! -e up ]; do sleep 0.01; done; exit 7";
    world.run(&["--grace", "500ms"], &["sh", "-c", leaves]).exits(7);
    world.assert_nothing_left();
    let run = world.only_run();
    assert_eq!(run.ended(), "exited(7)");
    let receipt = run.receipt();
    assert_eq!(receipt.reason, "leftovers");
    assert_eq!((receipt.terminated, receipt.killed, receipt.survivors), (2, 2, 0), "{receipt:?}");
    assert_eq!(world.audited(EventKind::KillIntent), 1);
}

#[test]
fn what_a_finished_command_leaves_behind_is_ended_and_its_exit_status_kept() {
    leftovers_are_ended_and_the_exit_status_is_kept(Place::User);
}

mod cgroupfs {
    use super::*;

    #[test]
    fn what_a_finished_command_leaves_behind_is_ended_and_its_exit_status_kept() {
        leftovers_are_ended_and_the_exit_status_is_kept(Place::Root);
    }
}

#[test]
fn the_shim_is_left_alone_by_what_ends_the_clients_process_group() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    // The command is of its client's group, as it must be for a terminal; its shim has left it.
    let script = "echo $PPID > shim; tr '\\0' ' ' < /proc/$PPID/cmdline > shown; trap '' INT; kill -INT 0; exit 5";
    let done = world.run(&[], &["sh", "-c", script]);
    let shim: u32 = lines(world.path("shim"))[0].parse().unwrap();
    // Nor by what ends every command of the client's kind by its arguments.
    assert_eq!(lines(world.path("shown"))[0].trim_end(), format!("guardian shim {}", world.only_run().run_id));
    assert_eq!(world.only_run().shim.map(|shim| shim.pid), Some(shim));
    assert!(matches!(done.code, Some(5 | 137)), "{done:?}");
    eventually("the shim is gone", || (!is_alive(shim)).then_some(()));
    assert_ne!(world.only_run().outcome.unwrap().reason.as_deref(), Some("containment_lost"));
    world.assert_nothing_left();
}
