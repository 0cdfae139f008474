//! SIGKILL of the instance at each step of a launch, a kill and a finish: the next instance accounts for every run,
//! kills nothing twice, and leaves nothing. Needs the feature `failpoints`.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Done, PATIENCE, Row, Run, Started, World, eventually, is_alive, signal, start};
use guardian::failpoint;
use guardian::model::{EventKind, Phase};
use rustix::process::Signal;

/// A tree that ignores SIGTERM, so that a kill of it goes through all steps.
const STUBBORN: [&str; 3] = ["sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000 & : > up; wait"];

/// Whether the run is started detached or by a client that stays.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Detached,
    Foreground,
}

/// Starts an instance that passes failpoints, and gives its pid. Only this one does: what a client starts later lives.
fn instance_with(world: &World, failpoints: &str) -> u32 {
    start(world.command(["ps"]).env("FAILPOINTS", failpoints)).wait().exits(0);
    world.running_instance()
}

fn launch(world: &World, how: How) -> Started {
    let options: &[&str] = match how {
        How::Detached => &["--detach", "--max-runtime", "2s", "--grace", "500ms"],
        How::Foreground => &["--max-runtime", "2s", "--grace", "500ms"],
    };
    start(&mut world.run_command(options, &STUBBORN))
}

/// The instance dies at the failpoint; the next command starts the next instance; then everything must be in order.
fn dies_at(failpoint: &str, how: How) {
    eprintln!("-- {failpoint}, {how:?}");
    let world = World::new();
    let first = instance_with(&world, &format!("{failpoint}=return(kill)"));
    let client = launch(&world, how);
    eventually("the instance dies at the failpoint", || (!is_alive(first)).then_some(()));
    // Whoever is told that the instance is gone asks the next one, and may launch anew what was not launched.
    let done = end_of(client, how);
    let runs = world.finished();
    assert_ne!(world.running_instance(), first);

    assert!(runs.len() <= 1, "one launch, {} runs", runs.len());
    if let Some(run) = runs.first() {
        is_accounted_for(run, &done, &world.audit());
    }
    for kind in [EventKind::KillIntent, EventKind::RunFinished, EventKind::RunAccepted] {
        assert!(world.audited(kind) <= runs.len(), "{kind:?} more than once: {:#?}", world.audit());
    }
    let instances = (world.audited(EventKind::InstanceStarted), world.audited(EventKind::InstanceStopped));
    assert_eq!(instances, (2, 0), "the first one died and did not stop by itself");
    assert!(world.count_rows("kills") <= 1);
    world.assert_audit_holds();
    eventually("nothing is left", || world.workload().is_empty().then_some(()));
    world.assert_nothing_left();
}

/// The client's end. A foreground client may not outlive its run.
fn end_of(client: Started, how: How) -> Done {
    let done = client.wait();
    if how == How::Foreground {
        assert_ne!(done.code, Some(0), "{done:?}");
        assert!(done.took < PATIENCE);
    }
    done
}

fn is_accounted_for(run: &Run, client: &Done, audit: &[Row]) {
    assert_eq!(run.phase, Phase::Finished, "{run:?}");
    let outcome = run.outcome.as_ref().expect("an outcome");
    assert!(["killed", "lost"].contains(&outcome.kind.as_str()), "{outcome:?}; client: {client:?}");
    let intents = audit.iter().filter(|row| row.kind == EventKind::KillIntent).count();
    assert_eq!(run.receipt.is_some(), intents == 1, "a receipt for each intent: {run:?}");
    if let Some(receipt) = &run.receipt {
        assert_eq!(receipt.survivors, 0, "{receipt:?}");
    }
    let is_end = |row: &&Row| matches!(row.kind, EventKind::RunFinished | EventKind::LaunchFailed);
    assert_eq!(audit.iter().filter(is_end).count(), 1, "{audit:#?}");
}

#[test]
fn an_instance_killed_during_a_launch_leaves_nothing() {
    needs_cgroup!();
    for name in failpoint::ALL.iter().filter(|n| n.starts_with("launch.")) {
        dies_at(name, How::Detached);
        dies_at(name, How::Foreground);
    }
}

#[test]
fn an_instance_killed_during_a_kill_is_followed_by_one_that_finishes_it() {
    needs_cgroup!();
    for name in failpoint::ALL.iter().filter(|n| n.starts_with("kill.")) {
        dies_at(name, How::Detached);
        dies_at(name, How::Foreground);
    }
}

#[test]
fn an_instance_killed_at_the_end_of_a_run_is_followed_by_one_that_finishes_it_once() {
    needs_cgroup!();
    for name in failpoint::ALL.iter().filter(|n| n.starts_with("finish.")) {
        dies_at(name, How::Detached);
        dies_at(name, How::Foreground);
    }
}

#[test]
fn every_failpoint_is_of_one_of_these_groups() {
    let known = |name: &str| ["launch.", "kill.", "finish."].iter().any(|group| name.starts_with(group));
    assert!(failpoint::ALL.iter().all(|name| known(name)));
}

#[test]
fn an_instance_and_a_client_killed_together_leave_a_run_that_the_next_instance_ends() {
    needs_cgroup!();
    let world = World::new();
    let client = start(&mut world.run_command(&["--grace", "500ms"], &STUBBORN));
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    // Stopped, it cannot start the next instance before it dies.
    signal(client.pid(), Signal::STOP);
    world.crash_instance();
    signal(client.pid(), Signal::KILL);
    client.wait();
    assert_eq!(world.workload().len(), 3, "nobody is there to end it");
    let runs = world.finished();
    world.assert_killed(&runs[0], "client_gone");
    world.assert_nothing_left();
    world.assert_audit_holds();
}

#[test]
fn an_intent_that_takes_long_to_record_delays_a_kill_and_does_not_stop_it() {
    needs_cgroup!();
    let world = World::new();
    instance_with(&world, "kill.recorded=sleep(300)");
    world.run(&["--max-runtime", "1s", "--grace", "500ms"], &STUBBORN).exits(124);
    world.assert_killed(&world.only_run(), "max_runtime");
    world.assert_nothing_left();
}
