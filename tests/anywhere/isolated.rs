//! `--isolate-pids`: a PID namespace for a run, also for an ordinary user.

use rustix::process::Signal;

use crate::common::{Place, World, eventually, proc_file, proc_stat, python, signal};
use crate::{needs_place, needs_program};

#[test]
fn an_isolated_run_sees_its_own_processes_alone() {
    needs_place!(Place::User);
    needs_program!("ps");
    let world = World::new_in(Place::User);
    let done = world.run(&["--isolate-pids"], &["sh", "-c", "sleep 1000 & ps -e -o comm="]);
    let mut seen: Vec<&str> = done.exits(0).stdout.lines().map(str::trim).collect();
    seen.sort_unstable();
    assert_eq!(seen, ["guardian-init", "ps", "sh", "sleep"]);
    world.assert_nothing_left();
    let doctor = world.guardian(["doctor"]);
    assert!(doctor.exits(0).stdout.contains("isolate_pids can be had"), "{doctor:?}");
    assert_eq!(world.only_run().receipt().processes_total, 1, "the first process of the namespace is not the run's");
}

#[test]
fn the_user_of_an_isolated_run_stays_the_same() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let done = world.run(&["--isolate-pids"], &["sh", "-c", "id -u; echo $PPID; touch made"]);
    assert_eq!(done.exits(0).stdout, format!("{}\n0\n", world.uid().unwrap()));
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(world.path("made")).unwrap()),
        world.uid().unwrap()
    );
}

#[test]
fn an_isolated_run_is_ended_whole_by_its_limit() {
    needs_place!(Place::User);
    needs_program!("python3");
    for (workload, killed) in [(["stubborn", "5"], 6), (["emptied", "5"], 6), (["subreaper", "3"], 5)] {
        let world = World::new_in(Place::User);
        let script = world.script("hostile.py");
        let options = ["--isolate-pids", "--max-runtime", "2s", "--grace", "500ms"];
        world.run(&options, &[&[python(), script.as_str()], &workload[..]].concat()).exits(124);
        world.assert_nothing_left();
        let run = world.only_run();
        world.assert_killed(&run, "max_runtime");
        assert_eq!((run.receipt().terminated, run.receipt().killed), (killed, killed), "{workload:?}: {run:?}");
    }
}

#[test]
fn all_of_an_isolated_run_ends_with_its_shim_and_it_takes_no_instance() {
    needs_place!(Place::User);
    needs_program!("python3");
    let world = World::new_in(Place::User);
    let script = world.script("hostile.py");
    let run = world.detach(&["--isolate-pids"], &[python(), &script, "emptied", "5"]);
    eventually("the workload is up", || world.path("ready").exists().then_some(()));
    let (instance, shim) = (world.running_instance(), world.show(&run).shim.unwrap().pid);
    signal(instance, Signal::STOP);
    eventually("the instance stands still", || proc_stat(instance).filter(|stat| stat[0] == "T"));
    assert_eq!(world.workload().len(), 6);
    signal(shim, Signal::KILL);
    // The first process of the namespace has ended all others and waits in the kernel until the instance, to which the main
    // process has come, has reaped that.
    let is_first = |pid: &u32| proc_file(*pid, "comm") == b"guardian-init\n";
    eventually("the kernel has ended it", || world.workload().iter().all(is_first).then_some(()));
    signal(instance, Signal::CONT);
    let run = world.finished().remove(0);
    assert_eq!(run.ended(), "killed(its shim was killed)", "{run:?}");
    let receipt = run.receipt();
    assert_eq!((receipt.reason.as_str(), receipt.survivors), ("containment_lost", 0), "{receipt:?}");
    assert_eq!((receipt.processes_total, receipt.killed), (0, 0), "the kernel had ended all of it: {receipt:?}");
    assert!(receipt.duration_usec < 2_000_000, "nothing was left to wait for: {receipt:?}");
    world.assert_nothing_left();
}

/// Forks until it may not, and tells how many processes there were with it.
const FORKS: &str = "
import os, signal
processes = 1
try:
    while processes < 50:
        if os.fork() == 0:
            signal.pause()
        processes += 1
except BlockingIOError:
    pass
print(processes)
";

#[test]
fn tasks_max_is_enforced_in_an_isolated_run() {
    needs_place!(Place::User);
    needs_program!("python3");
    let world = World::new_in(Place::User);
    // Other processes of the same user do not count.
    let other = world.detach(&[], &["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; : > up; wait"]);
    eventually("the other run is up", || world.path("up").exists().then_some(()));
    let done = world.run(&["--isolate-pids", "--tasks-max", "5", "--grace", "1s"], &[python(), "-c", FORKS]);
    assert_eq!(done.exits(0).stdout, "5\n", "{done:?}");
    assert_eq!(world.runs()[0].notices.iter().filter(|notice| notice.contains("tasks_max")).count(), 0);
    world.guardian(["kill", "--force", &other]).exits(0);
    world.assert_nothing_left();
}

#[test]
fn where_no_namespace_can_be_made_an_isolated_run_is_refused_and_told_why() {
    needs_place!(Place::NoNamespaces);
    let world = World::new_in(Place::NoNamespaces);
    for detach in [&[][..], &["--detach"]] {
        let refused = world.run(&[detach, &["--isolate-pids"]].concat(), &["touch", "executed"]);
        assert_eq!(refused.exits(125).stdout, "");
        assert_eq!(refused.stderr.matches("no PID namespace can be made here").count(), 1, "told once: {refused:?}");
        assert!(refused.stderr.contains("user.max_user_namespaces"), "{refused:?}");
    }
    assert!(!world.path("executed").exists());
    let doctor = world.guardian(["doctor"]);
    assert!(doctor.exits(0).stdout.contains("isolate_pids cannot be had: no PID namespace can be made"), "{doctor:?}");
    world.run(&[], &["true"]).exits(0);
    // What was reserved for a launch that never came is kept for some seconds.
    let records = || std::fs::read_dir(world.shims_directory()).unwrap().count();
    eventually("nothing is reserved any more", || (records() == 0).then_some(()));
    world.assert_nothing_left();
}
