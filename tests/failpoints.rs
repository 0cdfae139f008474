//! SIGKILL of the instance at each step of a launch, a kill and a finish: the next instance accounts for every run,
//! kills nothing twice, and leaves nothing. Needs the feature `failpoints`.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Done, PATIENCE, Row, Run, Started, World, eventually, is_alive, lines, proc_stat, signal, start};
use guardian::failpoint;
use guardian::model::{EventKind, Phase};
use rustix::process::Signal;

/// A tree that ignores SIGTERM, so that a kill of it goes through all steps.
const STUBBORN: [&str; 3] =
    ["sh", "-c", "echo $$ >> executed; trap '' TERM; setsid sleep 1000 & sleep 1000 & : > up; wait"];

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
    // First the client's end: it may have asked the next instance again.
    let done = end_of(client, how);
    let runs = world.finished();
    assert_ne!(world.running_instance(), first);

    // A launch that the dead instance had only recorded may be asked for again. What was executed may not be.
    let executed = lines(world.path("executed"));
    assert!(executed.len() <= 1, "one launch, executed {} times, as {runs:#?}", executed.len());
    assert!(runs.len() <= 2, "one launch, {} runs", runs.len());
    let audit = world.audit();
    for run in &runs {
        is_accounted_for(run, &done, &audit);
    }
    let accepted = audit.iter().filter(|row| row.kind == EventKind::RunAccepted).count();
    assert_eq!(accepted, runs.len(), "{audit:#?}");
    let instances = (world.audited(EventKind::InstanceStarted), world.audited(EventKind::InstanceStopped));
    assert_eq!(instances, (2, 0), "the first one died and did not stop by itself");
    assert_eq!(world.count_rows("kills") as usize, world.audited(EventKind::KillIntent));
    world.assert_audit_holds();
    eventually("nothing is left", || world.workload().is_empty().then_some(()));
    world.assert_nothing_left();
}

/// All failpoints of a group, both ways; names every one that failed.
fn dies_at_each(group: &str) {
    let mut failed = Vec::new();
    for name in failpoint::ALL.iter().filter(|name| name.starts_with(group)) {
        for how in [How::Detached, How::Foreground] {
            if std::panic::catch_unwind(|| dies_at(name, how)).is_err() {
                failed.push(format!("{name} ({how:?})"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
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
    let of_this_run = |row: &&Row| row.run_id.as_ref() == Some(&run.run_id);
    let intents = audit.iter().filter(of_this_run).filter(|row| row.kind == EventKind::KillIntent).count();
    assert_eq!(intents, usize::from(run.receipt.is_some()), "a receipt for each intent: {run:?}");
    if let Some(receipt) = &run.receipt {
        assert_eq!(receipt.survivors, 0, "{receipt:?}");
    }
    let is_end = |row: &&Row| matches!(row.kind, EventKind::RunFinished | EventKind::LaunchFailed);
    assert_eq!(audit.iter().filter(of_this_run).filter(is_end).count(), 1, "{audit:#?}");
}

#[test]
fn an_instance_killed_during_a_launch_leaves_nothing() {
    needs_cgroup!();
    dies_at_each("launch.");
}

#[test]
fn an_instance_killed_during_a_kill_is_followed_by_one_that_finishes_it() {
    needs_cgroup!();
    dies_at_each("kill.");
}

#[test]
fn an_instance_killed_at_the_end_of_a_run_is_followed_by_one_that_finishes_it_once() {
    needs_cgroup!();
    dies_at_each("finish.");
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
    // Stopped first, because a client that sees its instance go starts the next one at once.
    signal(client.pid(), Signal::STOP);
    eventually("the client is stopped", || proc_stat(client.pid()).filter(|stat| stat[0] == "T"));
    world.crash_instance();
    signal(client.pid(), Signal::KILL);
    eventually("the client is gone", || (!is_alive(client.pid())).then_some(()));
    assert_eq!(world.workload().len(), 3, "nobody is there to end it");
    let runs = world.finished();
    client.wait();
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
