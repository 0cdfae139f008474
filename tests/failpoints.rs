//! SIGKILL of the instance at each step of a launch, a kill and a finish: the next instance accounts for every run,
//! kills nothing twice, and leaves nothing. The same for a shim at each of its own steps, without a next one. Needs the
//! feature `failpoints`.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{
    Done, PATIENCE, Place, Row, Run, Started, World, all_hold, eventually, is_alive, lines, proc_stat, signal, start,
};
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
    // On a slow disk it answers before that is committed.
    let started = || (world.audited(EventKind::InstanceStarted) == 1).then_some(());
    eventually("the start of the instance is on record", started);
    world.running_instance()
}

/// A run can stop the shim of another before that has begun.
#[test]
fn a_shim_that_does_not_begin_holds_up_the_engine_for_two_seconds_at_most() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    instance_with(&world, "shim.begun=sleep(60000)");
    let refused = world.run(&["--detach"], &["touch", "executed"]);
    assert!(refused.exits(125).stderr.contains("it is not ready after 2 s"), "{refused:?}");
    assert!(!world.path("executed").exists());
    world.finished();
    world.assert_nothing_left();
}

fn launch(world: &World, how: How) -> Started {
    let options: &[&str] = match how {
        How::Detached => &["--detach", "--max-runtime", "2s", "--grace", "500ms"],
        How::Foreground => &["--max-runtime", "2s", "--grace", "500ms"],
    };
    start(&mut world.run_command(options, &STUBBORN))
}

/// The instance dies at the failpoint; the next command starts the next instance; then everything must be in order.
fn dies_at(place: Place, failpoint: &str, how: How) {
    eprintln!("-- {failpoint}, {how:?}, {place:?}");
    let world = World::new_in(place);
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

/// All failpoints of a group, both ways.
fn dies_at_each(place: Place, group: &str) {
    needs_place!(place);
    let names = failpoint::ALL.iter().filter(|name| name.starts_with(group));
    let cases = names.flat_map(|name| [(name, How::Detached), (name, How::Foreground)]).collect();
    all_hold(cases, |(name, how)| dies_at(place, name, *how));
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

/// The instance dies at this step of the turn of a queued run: it is neither lost nor executed twice.
fn dies_in_a_turn(place: Place, failpoint: &str) {
    // So often it is passed before: by the first run, and by what was made ahead for the second and given up.
    let before = match failpoint {
        "queue.opened" => 0,
        "cgroup.made" => 2,
        _ => 1,
    };
    let world = World::new_in(place);
    std::fs::write(world.path("config.toml"), "[instance]\nmax_running = 1\n").unwrap();
    let mut command = world.command(["ps"]);
    command.env("GUARDIAN_CONFIG", world.path("config.toml"));
    start(command.env("FAILPOINTS", format!("{failpoint}={before}*off->return(kill)"))).wait().exits(0);
    let first = world.running_instance();
    let blocker = world.detach(&[], &["sleep", "1000"]);
    let queued = world.detach(&[], &["sh", "-c", "echo $$ >> executed; exit 3"]);
    assert_eq!(world.show(&queued).phase, Phase::Queued);
    world.guardian(["kill", "--force", "--no-wait", &blocker]);
    eventually("the instance dies at the failpoint", || (!is_alive(first)).then_some(()));
    let runs = world.finished();
    let run = runs.iter().find(|run| run.run_id == queued).expect("it is known");
    // Whoever adopts a command that has exited meanwhile cannot know its status everywhere.
    let ended = failpoint == "queue.opened" || run.ended() == "exited(3)";
    assert!(ended && lines(world.path("executed")).len() == 1, "{run:#?}: {:?}", lines(world.path("executed")));
    world.assert_audit_holds();
    world.assert_nothing_left();
}

/// In every place.
macro_rules! everywhere {
    ($place:expr) => {
        use super::*;

        #[test]
        fn an_instance_killed_during_a_launch_leaves_nothing() {
            dies_at_each($place, "launch.");
        }

        #[test]
        fn an_instance_killed_during_a_kill_is_followed_by_one_that_finishes_it() {
            dies_at_each($place, "kill.");
        }

        #[test]
        fn an_instance_killed_at_the_end_of_a_run_is_followed_by_one_that_finishes_it_once() {
            dies_at_each($place, "finish.");
        }

        #[test]
        fn an_instance_and_a_client_killed_together_leave_a_run_that_the_next_instance_ends() {
            instance_and_client_die_together($place);
        }

        #[test]
        fn a_queued_run_whose_instance_is_killed_at_any_step_of_its_turn_is_executed_once() {
            needs_place!($place);
            all_hold(failpoint::TURN.to_vec(), |failpoint| dies_in_a_turn($place, failpoint));
        }

        #[test]
        fn an_intent_that_takes_long_to_record_delays_a_kill_and_does_not_stop_it() {
            an_intent_takes_long($place);
        }
    };
}

mod cgroupfs {
    everywhere!(Place::Root);

    #[test]
    fn a_queued_run_whose_instance_is_killed_while_it_makes_its_cgroup_is_executed_once() {
        needs_place!(Place::Root);
        dies_in_a_turn(Place::Root, "cgroup.made");
    }
}

mod subtree {
    everywhere!(Place::User);

    #[test]
    fn a_shim_killed_before_its_command_executes_nothing() {
        shim_dies_at_each(&["shim.begun", "shim.forked"]);
    }

    #[test]
    fn a_shim_killed_when_its_command_is_ready_leaves_nothing() {
        shim_dies_at_each(&["shim.ready"]);
    }

    #[test]
    fn a_shim_killed_after_its_command_leaves_nothing() {
        shim_dies_at_each(&["shim.reaped", "shim.noted", "shim.empty"]);
    }

    #[test]
    fn every_failpoint_of_a_shim_is_of_one_of_these() {
        let tested = ["shim.begun", "shim.forked", "shim.ready", "shim.reaped", "shim.noted", "shim.empty"];
        assert_eq!(failpoint::SHIM, tested);
    }
}

/// All of these, both ways, with and without a PID namespace.
fn shim_dies_at_each(failpoints: &[&str]) {
    needs_place!(Place::User);
    let mut cases = Vec::new();
    for failpoint in failpoints {
        for how in [How::Detached, How::Foreground] {
            cases.extend([(*failpoint, how, false), (*failpoint, how, true)]);
        }
    }
    all_hold(cases, |(failpoint, how, isolated)| shim_dies_at(failpoint, *how, *isolated));
}

/// The shim dies at the failpoint; its command exits with 7 and leaves a process behind that ignores SIGTERM.
fn shim_dies_at(failpoint: &str, how: How, isolated: bool) {
    eprintln!("-- {failpoint}, {how:?}, isolated: {isolated}");
    let world = World::new_in(Place::User);
    let failpoints = format!("{failpoint}=return(kill)");
    let mut options = vec!["--grace", "500ms"];
    options.extend(isolated.then_some("--isolate-pids"));
    options.extend((how == How::Detached).then_some("--detach"));
    let leaves = "echo executed >> executed; trap '' TERM; setsid sleep 1000 & exit 7";
    let mut command = world.run_command(&options, &["sh", "-c", leaves]);
    match how {
        How::Detached => drop(instance_with(&world, &failpoints)),
        How::Foreground => drop(command.env("FAILPOINTS", &failpoints)),
    }
    let client = start(&mut command);
    let done = client.wait();
    let runs = world.finished();
    eventually("nothing is left", || world.workload().is_empty().then_some(()));

    let executed = lines(world.path("executed")).len();
    assert!(executed <= 1, "{executed}");
    assert!(runs.len() <= 1, "one launch, {} runs", runs.len());
    for run in &runs {
        shim_is_accounted_for(run, failpoint, executed);
    }
    if runs.is_empty() || failpoint == "shim.begun" || failpoint == "shim.forked" {
        assert_eq!(executed, 0, "{done:?}");
        assert_eq!(done.code, Some(125), "{done:?}");
        assert!(done.stderr.contains("the shim"), "{done:?}");
    }
    let audit = world.audit();
    let ends = audit.iter().filter(|row| matches!(row.kind, EventKind::RunFinished | EventKind::LaunchFailed)).count();
    assert_eq!(ends, runs.len(), "{audit:#?}");
    world.assert_audit_holds();
    // What was reserved for a launch that never came is kept for some seconds.
    let records = || std::fs::read_dir(world.shims_directory()).into_iter().flatten().count();
    eventually("no record is left", || (records() == 0).then_some(()));
    world.assert_nothing_left();
}

/// The outcome says no more than what can be known.
fn shim_is_accounted_for(run: &Run, failpoint: &str, executed: usize) {
    eprintln!("   {}, receipt: {:?}", run.ended(), run.receipt.as_ref().map(|r| (&r.reason, r.survivors)));
    if let Some(receipt) = &run.receipt {
        assert_eq!(receipt.survivors, 0, "{run:?}");
    }
    let outcome = run.outcome.as_ref().expect("an outcome");
    match failpoint {
        "shim.begun" | "shim.forked" => assert_eq!((outcome.kind.as_str(), executed), ("lost", 0), "{run:?}"),
        // In a PID namespace the kernel may have been quicker than the command.
        "shim.ready" if executed == 0 => {
            let killed = run.ended() == "signaled(9)";
            assert!(killed || ["killed", "lost"].contains(&outcome.kind.as_str()), "{run:?}");
        }
        // Who has got the orphan knows how it ended; in a PID namespace the kernel may have been quicker.
        "shim.ready" | "shim.reaped" => {
            let ended = run.ended() == "exited(7)" || (run.ended() == "signaled(9)" && failpoint == "shim.ready");
            assert!(ended || ["killed", "lost"].contains(&outcome.kind.as_str()), "{run:?}");
        }
        // It is on record.
        _ => assert_eq!(run.ended(), "exited(7)", "{run:?}"),
    }
}

#[test]
fn every_failpoint_is_of_one_of_these_groups() {
    let known = |name: &str| ["launch.", "kill.", "finish."].iter().any(|group| name.starts_with(group));
    assert!(failpoint::ALL.iter().all(|name| known(name)));
}

fn instance_and_client_die_together(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
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

fn an_intent_takes_long(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    instance_with(&world, "kill.recorded=sleep(300)");
    world.run(&["--max-runtime", "1s", "--grace", "500ms"], &STUBBORN).exits(124);
    world.assert_killed(&world.only_run(), "max_runtime");
    world.assert_nothing_left();
}
