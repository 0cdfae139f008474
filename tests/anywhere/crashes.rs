//! The instance or the shim is killed in the middle of a run.

use guardian::model::{EventKind, Phase};
use rustix::process::Signal;

use crate::common::{Place, World, eventually, is_alive, lines, signal, start};
use crate::needs_place;

/// A tree that says when it is up, and ends by SIGTERM.
const TREE: [&str; 3] =
    ["sh", "-c", "trap 'echo TERM > noted; exit 0' TERM; setsid sleep 1000 & sleep 1000 & : > up; wait"];

fn an_exit_status_outlives_the_instance(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let run = world.detach(&[], &["sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 7"]);
    let shim = world.show(&run).shim.unwrap().pid;
    world.crash_instance();
    std::fs::write(world.path("go"), "").unwrap();
    eventually("nobody is left", || (!is_alive(shim)).then_some(()));
    assert_eq!(world.instance(), None);
    // The next instance.
    world.guardian(["wait", &run]).exits(7);
    assert_eq!(world.show(&run).ended(), "exited(7)");
    world.assert_nothing_left();
    world.assert_audit_holds();
}

#[test]
fn the_exit_status_of_a_detached_run_outlives_the_instance() {
    an_exit_status_outlives_the_instance(Place::Subtree);
    an_exit_status_outlives_the_instance(Place::User);
}

#[test]
fn an_instance_killed_with_sigkill_is_followed_by_one_that_takes_up_its_runs() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let run = world.detach(&["--grace", "1s"], &TREE);
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    let first = world.running_instance();
    world.crash_instance();
    assert_eq!(world.workload().len(), 3, "runs go on without an instance");
    assert_ne!(world.show(&run).phase, Phase::Finished);
    assert_ne!(world.running_instance(), first);
    assert_eq!(world.audited(EventKind::RunAdopted), 1);
    world.guardian(["kill", &run, "--reason", "the test is over"]).exits(0);
    let runs = world.finished();
    assert_eq!(runs[0].ended(), "killed(the test is over)");
    assert_eq!(runs[0].receipt().terminated, 3);
    assert_eq!(lines(world.path("noted")), ["TERM"]);
    world.assert_nothing_left();
    world.assert_audit_holds();
}

#[test]
fn a_foreground_run_goes_on_while_its_instance_is_killed() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let client =
        start(&mut world.run_command(&[], &["sh", "-c", ": > up; while [ ! -e go ]; do sleep 0.01; done; exit 7"]));
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    world.crash_instance();
    std::fs::write(world.path("go"), "").unwrap();
    client.wait().exits(7);
    assert_eq!(world.finished()[0].ended(), "exited(7)");
    world.assert_nothing_left();
}

#[test]
fn a_client_killed_with_sigkill_takes_its_run_with_it() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let client = start(&mut world.run_command(&["--grace", "1s"], &TREE));
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    signal(client.pid(), Signal::KILL);
    client.wait();
    let runs = world.finished();
    world.assert_killed(&runs[0], "client_gone");
    assert_eq!(lines(world.path("noted")), ["TERM"], "a graceful kill");
    world.assert_nothing_left();
}

#[test]
fn instance_and_shim_killed_together_leave_a_run_that_the_next_instance_ends() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let run = world.detach(&["--grace", "1s"], &TREE);
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    let shim = world.show(&run).shim.unwrap().pid;
    world.crash_instance();
    signal(shim, Signal::KILL);
    eventually("the shim is gone", || (!is_alive(shim)).then_some(()));
    assert_eq!(world.workload().len(), 3, "nobody is there to end it");
    let runs = world.finished();
    world.assert_killed(&runs[0], "containment_lost");
    world.assert_nothing_left();
    world.assert_audit_holds();
}

#[test]
fn the_shim_of_one_run_killed_is_not_the_end_of_another() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let lost = world.detach(&[], &["sh", "-c", "setsid sleep 1000 & : > lost; sleep 1000"]);
    let other = world.detach(&[], &["sh", "-c", "setsid sleep 1000 & : > other; sleep 1000"]);
    let foreground =
        start(&mut world.run_command(&[], &["sh", "-c", "setsid sleep 1000 & : > foreground; sleep 1000"]));
    for up in ["lost", "other", "foreground"] {
        eventually("the workload is up", || world.path(up).exists().then_some(()));
    }
    signal(world.show(&lost).shim.unwrap().pid, Signal::KILL);
    world.guardian(["wait", &lost]).exits(137);
    world.assert_killed(&world.show(&lost), "containment_lost");
    assert_ne!(world.show(&other).phase, Phase::Finished);
    assert!(is_alive(foreground.pid()));
    // A shell that executes its last command in its own place is one process less.
    assert!(matches!(world.workload().len(), 4 | 6), "{:?}", world.workload());
    world.guardian(["kill", "--force", &other]).exits(0);
    signal(foreground.pid(), Signal::TERM);
    foreground.wait().exits(137);
    world.assert_nothing_left();
}
