//! Every hostile workload is ended by its limit with everything it started, and the receipt's counts are true.
//!
//! The workloads are in tests/workloads/hostile.py; each says by itself how many processes it has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::{Run, World, is_alive, is_marked};
use guardian::model::{EventKind, StepKind};

/// What SIGTERM does to the workload.
#[derive(Clone, Copy, PartialEq)]
enum Sigterm {
    /// Every process of it ends by SIGTERM, so nothing is left for `cgroup.kill`.
    Ends,
    /// No process of it does.
    Ignored,
    /// Some do.
    Mixed,
}

/// Two at a time would not be over their start when their two seconds are.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `hostile.py WORKLOAD` with `--max-runtime 2s --grace 1s` and checks all that the kill promises.
fn is_ended_whole(workload: &[&str], processes: Option<u32>, sigterm: Sigterm) {
    needs_cgroup!();
    needs_program!("python3");
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/workloads/hostile.py");
    let command = [&[common::python(), script], workload].concat();

    let done = world.run(&["--max-runtime", "2s", "--grace", "1s"], &command);

    done.exits(124);
    assert!(done.took >= Duration::from_secs(2), "ended before its limit: {done:?}");
    world.assert_nothing_left();
    let run = world.only_run();
    world.assert_killed(&run, "max_runtime");
    assert!(done.stderr.contains(&run.run_id), "stderr names the run: {}", done.stderr);

    let ready = common::lines(world.path("ready"));
    let counted = ready.first().and_then(|l| l.strip_prefix("ready ")?.parse().ok());
    let counted: u32 = counted.unwrap_or_else(|| panic!("the workload was not ready before its limit: {done:?}"));
    assert_eq!(processes.unwrap_or(counted), counted);
    counts_are_true(&run, counted, sigterm);
    assert_eq!(world.audited(EventKind::KillIntent), 1);
    assert_eq!(world.audited(EventKind::RunFinished), 1);
    world.assert_audit_holds();
}

fn counts_are_true(run: &Run, counted: u32, sigterm: Sigterm) {
    let receipt = run.receipt();
    assert_eq!(receipt.processes_total, counted, "{receipt:?}");
    match sigterm {
        // A server that forks as it shuts down: what came after the count was signalled as well.
        Sigterm::Mixed => assert!(receipt.terminated >= counted, "{receipt:?}"),
        Sigterm::Ends | Sigterm::Ignored => assert_eq!(receipt.terminated, counted, "{receipt:?}"),
    }
    assert_eq!(receipt.processes.len(), counted.min(64) as usize, "{receipt:?}");
    match sigterm {
        Sigterm::Ends => assert_eq!(receipt.killed, 0, "{receipt:?}"),
        Sigterm::Ignored => assert_eq!(receipt.killed, counted, "{receipt:?}"),
        Sigterm::Mixed => assert!(receipt.killed <= counted, "{receipt:?}"),
    }
    let intent = receipt.step(StepKind::IntentRecorded).expect("the intent is on record");
    let terminated = receipt.step(StepKind::Terminated).expect("SIGTERM was sent");
    let emptied = receipt.step(StepKind::Emptied).expect("the cgroup was seen empty");
    assert!(intent <= terminated && terminated <= emptied && emptied <= receipt.duration_usec, "{receipt:?}");
    match receipt.step(StepKind::Killed) {
        Some(killed) => assert!(killed - terminated >= 1_000_000, "the grace period was cut short: {receipt:?}"),
        None => assert!(sigterm != Sigterm::Ignored, "{receipt:?}"),
    }
}

#[test]
fn a_tree_that_ignores_sigterm_is_ended_whole() {
    is_ended_whole(&["stubborn", "20"], Some(21), Sigterm::Ignored);
}

#[test]
fn double_forked_setsid_daemons_are_ended_whole() {
    is_ended_whole(&["daemons", "20"], Some(21), Sigterm::Ignored);
}

#[test]
fn a_fork_bomb_held_to_500_tasks_is_ended_whole() {
    is_ended_whole(&["bomb", "500"], Some(500), Sigterm::Ignored);
}

#[test]
fn a_thousand_sleepers_are_ended_whole_by_sigterm() {
    is_ended_whole(&["sleepers", "1000"], Some(1001), Sigterm::Ends);
}

#[test]
fn a_stopped_process_is_continued_so_that_sigterm_ends_it() {
    is_ended_whole(&["stopped"], Some(2), Sigterm::Ends);
}

#[test]
fn a_child_in_a_sub_cgroup_of_its_own_is_ended_with_its_cgroup() {
    is_ended_whole(&["sub_cgroup"], Some(2), Sigterm::Ignored);
}

#[test]
fn a_frozen_sub_cgroup_is_thawed_so_that_sigterm_ends_it() {
    is_ended_whole(&["frozen"], Some(2), Sigterm::Ends);
}

#[test]
fn a_web_server_started_with_nohup_is_ended() {
    let server = format!("nohup {} -u -m http.server --bind 127.0.0.1 0 >http.log 2>&1 &", common::python());
    is_ended_whole(&["service", "http.log", "sh", "-c", &server], Some(2), Sigterm::Ends);
}

#[test]
fn a_daemonized_redis_server_is_ended() {
    needs_program!("redis-server");
    let server = ["redis-server", "--daemonize", "yes", "--port", "0", "--unixsocket", "redis.sock", "--save", ""];
    is_ended_whole(&[&["service", "redis.sock"], &server[..]].concat(), Some(2), Sigterm::Ends);
}

#[test]
fn a_detached_tmux_server_is_ended() {
    needs_program!("tmux");
    // Its server, and the shell in its only pane, which as an interactive one ignores SIGTERM but not the hang-up.
    is_ended_whole(
        &["service", "tmux.sock", "tmux", "-S", "tmux.sock", "new", "-d", "sleep 1000"],
        None,
        Sigterm::Mixed,
    );
}

#[test]
fn the_main_job_of_the_readme_leaves_nothing_that_ps_shows() {
    needs_cgroup!();
    let world = World::new();
    let done = world.run(&["--max-runtime", "1s"], &["sh", "-c", "setsid sleep 1000 & sleep 1000"]);
    done.exits(124);
    let ps = std::process::Command::new("ps").args(["-e", "-o", "pid="]).output().unwrap();
    assert!(ps.status.success());
    let listed: Vec<u32> = String::from_utf8_lossy(&ps.stdout).lines().filter_map(|l| l.trim().parse().ok()).collect();
    let ours = |pid: &u32| is_alive(*pid) && is_marked(*pid, world.mark()) && !world.guardians().contains(pid);
    let left: Vec<u32> = listed.into_iter().filter(ours).collect();
    assert!(left.is_empty(), "{left:?}");
    world.assert_nothing_left();
    let run = world.only_run();
    world.assert_killed(&run, "max_runtime");
    // A shell that executes its last command in its own place is one process less.
    assert!(matches!(run.receipt().terminated, 2 | 3), "the shell and two sleeps");
}
