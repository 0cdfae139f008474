//! Many at once: one kill however many ask for it, one instance however many start it, and refusals that change nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;

use common::{Done, Started, World, eventually, start};
use guardian::model::{EventKind, Phase};

/// A tree that needs the whole grace period, so that all requests meet the kill under way.
const STUBBORN: [&str; 3] = ["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000 & : > up; wait"];

fn all(started: Vec<Started>) -> Vec<Done> {
    started.into_iter().map(Started::wait).collect()
}

#[test]
fn a_hundred_simultaneous_kills_are_one_kill_with_one_receipt_and_equal_answers() {
    needs_cgroup!();
    let world = World::new();
    let run = world.detach(&["--grace", "5s"], &STUBBORN);
    eventually("the workload is up", || world.path("up").exists().then_some(()));

    let kills = (0..100).map(|_| start(&mut world.command(["kill", "--json", "--reason", "all at once", &run])));
    let kills = all(kills.collect());

    let answers: HashSet<&str> = kills.iter().map(|k| k.exits(0).stdout.as_str()).collect();
    assert_eq!(answers.len(), 1, "{answers:#?}");
    let runs = world.finished();
    world.assert_killed(&runs[0], "requested");
    let receipt = runs[0].receipt();
    assert_eq!((receipt.terminated, receipt.killed), (3, 3), "{receipt:?}");
    assert_eq!(world.count_rows("kills"), 1);
    assert_eq!(world.audited(EventKind::KillIntent), 1);
    assert_eq!(world.audited(EventKind::KillTerminated), 1);
    assert_eq!(world.audited(EventKind::RunKilled), 1);
    assert_eq!(world.audited(EventKind::RunFinished), 1);
    world.assert_audit_holds();
    world.assert_nothing_left();
}

#[test]
fn force_escalates_a_kill_under_way_and_stays_one_kill() {
    needs_cgroup!();
    let world = World::new();
    let run = world.detach(&["--grace", "50s"], &STUBBORN);
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    let graceful = start(&mut world.command(["kill", &run]));
    eventually("the run is stopping", || (world.show(&run).phase == Phase::Stopping).then_some(()));
    world.guardian(["kill", "--force", &run]).exits(0);
    graceful.wait().exits(0);
    let runs = world.finished();
    let receipt = runs[0].receipt();
    assert!(receipt.duration_usec < 40_000_000, "the grace period was waited for: {receipt:?}");
    assert_eq!(world.count_rows("kills"), 1);
    assert_eq!(world.audited(EventKind::KillIntent), 1);
    assert_eq!(world.audited(EventKind::KillEscalated), 1);
    world.assert_nothing_left();
}

#[test]
fn a_kill_of_what_cannot_be_killed_is_refused_by_name_and_changes_nothing() {
    needs_cgroup!();
    let world = World::new();
    // 17 runs: two of them start with the same digit.
    let runs: Vec<String> = (0..17).map(|_| world.detach(&[], &["true"])).collect();
    world.finished();
    let mut first_digits = HashSet::new();
    let shared = runs.iter().map(|r| &r[4..5]).find(|d| !first_digits.insert(*d)).unwrap();
    let unknown = (0..).map(|i| format!("run_{i:012x}")).find(|id| !runs.contains(id)).unwrap();
    // One live run that must stay untouched.
    let live = world.detach(&[], &STUBBORN);
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    let long = "f".repeat(100_000);
    let before = world.audit();

    let cases = [
        (unknown.as_str(), 3, "NoSuchRun"),
        ("run_000", 3, "NoSuchRun"),
        ("", 2, "InvalidRunId"),
        ("run_", 2, "InvalidRunId"),
        ("../../etc", 2, "InvalidRunId"),
        ("run_0123456789AB", 2, "InvalidRunId"),
        ("run_0123456789abc", 2, "InvalidRunId"),
        ("résumé", 2, "InvalidRunId"),
        (long.as_str(), 2, "InvalidRunId"),
        (shared, 2, "AmbiguousRunId"),
        (runs[0].as_str(), 4, "AlreadyFinished"),
    ];
    for (run, status, name) in cases {
        // By chance a run may start with these.
        if run == "run_000" && runs.iter().chain([&live]).any(|r| r.starts_with(run)) {
            continue;
        }
        for force in [&[][..], &["--force"]] {
            let done = world.guardian([&["kill"], force, &["--", run]].concat());
            done.exits(status);
            assert!(done.stdout.is_empty() && (10..2000).contains(&done.stderr.len()), "{name}: {done:?}");
        }
    }

    assert_eq!(world.audit(), before, "refused kills changed the record");
    assert_eq!(world.count_rows("kills"), 0);
    assert_ne!(world.show(&live).phase, Phase::Finished);
    world.guardian(["kill", "--force", &live]).exits(0);
    world.finished();
    world.assert_nothing_left();
}

#[test]
fn many_first_commands_start_one_instance() {
    needs_cgroup!();
    let world = World::new();
    let firsts = (0..20).map(|_| start(&mut world.command(["ps", "--json"])));
    for done in all(firsts.collect()) {
        done.exits(0);
    }
    assert_eq!(world.audited(EventKind::InstanceStarted), 1);
    eventually("one process of guardian is left", || (world.guardians().len() == 1).then_some(()));
}

#[test]
fn many_runs_at_once_are_kept_apart() {
    needs_cgroup!();
    let world = World::new();
    let runs = (0..40).map(|i| {
        let command = format!("echo {i}; sleep 1000 & exit {i}");
        start(&mut world.run_command(&["--grace", "1s"], &["sh", "-c", &command]))
    });
    for (i, done) in all(runs.collect()).into_iter().enumerate() {
        assert_eq!((done.code, done.stdout.as_str()), (Some(i as i32), format!("{i}\n").as_str()), "{}", done.stderr);
    }
    assert_eq!(world.finished().len(), 40);
    assert_eq!(world.audited(EventKind::RunFinished), 40);
    world.assert_audit_holds();
    world.assert_nothing_left();
}

#[test]
fn a_refused_launch_leaves_no_cgroup_behind() {
    needs_cgroup!();
    let world = World::new();
    let config = world.path("config.toml");
    std::fs::write(&config, "[instance]\nmax_runs = 1\n").unwrap();
    let with_config = |mut command: std::process::Command| start(command.env("GUARDIAN_CONFIG", &config)).wait();
    let live = with_config(world.run_command(&["--detach"], &["sleep", "1000"]));
    live.exits(0);
    for _ in 0..3 {
        let refused = with_config(world.run_command(&[], &["true"]));
        assert!(refused.exits(125).stderr.contains("instance.max_runs"), "{refused:?}");
    }
    let subtree = world.show(live.stdout.trim()).cgroup.unwrap().path.parent().unwrap().to_owned();
    eventually("only the live run has a cgroup", || {
        let names = std::fs::read_dir(&subtree).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        (names.filter(|n| n.starts_with("run_")).collect::<Vec<_>>() == [live.stdout.trim()]).then_some(())
    });
    world.guardian(["kill", live.stdout.trim()]).exits(0);
    world.assert_nothing_left();
}

#[test]
fn an_instance_short_of_descriptors_refuses_runs_and_stays_reachable() {
    needs_cgroup!();
    let world = World::new();
    let first = world.command(["ps"]);
    let guardian = first.get_program().to_owned();
    let mut limited = std::process::Command::new("bash");
    limited.args(["-c", "ulimit -n 160 && exec \"$0\" ps"]).arg(guardian);
    limited.envs(first.get_envs().filter_map(|(key, value)| Some((key, value?))));
    start(&mut limited).wait().exits(0);
    let mut runs = Vec::new();
    let refused = loop {
        let done = start(&mut world.run_command(&["--detach"], &["sleep", "1000"])).wait();
        match done.code {
            Some(0) => runs.push(done.stdout.trim().to_owned()),
            _ => break done,
        }
        assert!(runs.len() < 100, "160 descriptors are not enough for a hundred runs");
    };
    assert!(runs.len() > 10 && refused.stderr.contains("leave no room"), "{} runs, then {refused:?}", runs.len());
    for run in &runs {
        world.guardian(["kill", "--force", run]).exits(0);
    }
    world.assert_nothing_left();
}
