//! Every hostile workload is ended by its limit with everything it started, and the receipt's counts are true.
//!
//! The workloads are in tests/workloads/hostile.py; each says by itself how many processes it has. They run where a cgroup
//! contains them, and as an ordinary user, where a shim does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::{Place, Run, World, eventually, is_alive, is_marked};
use guardian::model::{EventKind, KillMode, Phase, StepKind};

/// What SIGTERM does to the workload.
#[derive(Clone, Copy, PartialEq)]
enum Sigterm {
    /// Every process of it ends by SIGTERM, so nothing is left to be killed.
    Ends,
    /// No process of it does.
    Ignored,
    /// Some do.
    Mixed,
}

/// Two at a time would not be over their start when their time is.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `hostile.py WORKLOAD` with `--max-runtime` and `--grace 1s` and checks all that the kill promises. Gives the run, if it
/// could be made here.
fn is_ended_whole(place: Place, workload: &[&str], processes: Option<u32>, sigterm: Sigterm) -> Option<Run> {
    needs_place!(place, None);
    needs_program!("python3", None);
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // To start hundreds of processes takes seconds on a busy machine, and there are busier ones.
    let first = if processes.is_some_and(|n| n >= 500) { 6 } else { 2 };
    let (world, limit, done) = [first, 4 * first]
        .into_iter()
        .map(|limit| {
            let world = World::new_in(place);
            let options = ["--max-runtime", &format!("{limit}s"), "--grace", "1s"];
            let done = world.run(&options, &[&[common::python(), &world.script("hostile.py")], workload].concat());
            (world, limit, done)
        })
        .find(|(world, limit, _)| world.path("ready").exists() || *limit == 4 * first)
        .unwrap();

    done.exits(124);
    assert!(done.took >= Duration::from_secs(limit), "ended before its limit: {done:?}");
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
    Some(run)
}

fn counts_are_true(run: &Run, counted: u32, sigterm: Sigterm) {
    let receipt = run.receipt();
    assert_eq!(receipt.processes_total, counted, "{receipt:?}");
    match sigterm {
        // A server that forks as it shuts down: what came after the count was signalled as well. What it hangs up on may be
        // gone before its turn comes.
        Sigterm::Mixed => assert!((1..=2 * counted).contains(&receipt.terminated), "{receipt:?}"),
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
    let emptied = receipt.step(StepKind::Emptied).expect("it was seen empty");
    assert!(intent <= terminated && terminated <= emptied && emptied <= receipt.duration_usec, "{receipt:?}");
    match receipt.step(StepKind::Killed) {
        Some(killed) => assert!(killed - terminated >= 1_000_000, "the grace period was cut short: {receipt:?}"),
        None => assert!(sigterm != Sigterm::Ignored, "{receipt:?}"),
    }
}

/// A run that kills its shim is ended by force as soon as the instance has seen it, whatever it has started by then.
fn a_run_that_kills_its_shim_is_ended(workload: &[&str], detached: bool) {
    needs_place!(Place::User);
    needs_program!("python3");
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::new_in(Place::User);
    let script = world.script("hostile.py");
    let command = [&[common::python(), &script], workload].concat();

    // Long, because the limit is not what ends it.
    let options = ["--max-runtime", "50s", "--grace", "50s"];
    if detached {
        let run = world.detach(&options, &command);
        world.guardian(["wait", &run]).exits(137);
    } else {
        let done = world.run(&options, &command);
        assert!(done.exits(137).stderr.contains("its shim was killed"), "{done:?}");
    }

    world.assert_nothing_left();
    let run = world.only_run();
    world.assert_killed(&run, "containment_lost");
    assert_eq!(run.receipt().mode, KillMode::Force, "there is nothing to wait for: {run:?}");
    assert!(world.path("ready").exists(), "it was to kill its shim when it was up");
    assert_eq!(world.audited(EventKind::ContainmentLost), 1);
    assert_eq!(world.audited(EventKind::KillIntent), 1);
    world.assert_audit_holds();
}

/// In every place.
macro_rules! everywhere {
    ($place:expr) => {
        use super::*;

        #[test]
        fn a_tree_that_ignores_sigterm_is_ended_whole() {
            is_ended_whole($place, &["stubborn", "20"], Some(21), Sigterm::Ignored);
        }

        #[test]
        fn double_forked_setsid_daemons_are_ended_whole() {
            is_ended_whole($place, &["daemons", "20"], Some(21), Sigterm::Ignored);
        }

        #[test]
        fn daemons_that_empty_their_environment_and_execute_something_else_are_ended_whole() {
            is_ended_whole($place, &["emptied", "20"], Some(21), Sigterm::Ignored);
        }

        #[test]
        fn a_child_that_is_a_subreaper_itself_is_ended_with_what_came_to_it() {
            is_ended_whole($place, &["subreaper", "5"], Some(7), Sigterm::Ignored);
        }

        #[test]
        fn a_fork_bomb_held_to_500_tasks_is_ended_whole() {
            let run = is_ended_whole($place, &["bomb", "500"], Some(500), Sigterm::Ignored);
            // One second of it is the grace. What follows takes milliseconds for a cgroup and about a tenth of a second for
            // a subtree, whose every process is stopped first; the rest is for a host that has other work.
            let took = run.map_or(0, |run| run.receipt().duration_usec);
            assert!(took < 5_000_000, "{took} µs");
        }

        #[test]
        fn a_thousand_sleepers_are_ended_whole_by_sigterm() {
            is_ended_whole($place, &["sleepers", "1000"], Some(1001), Sigterm::Ends);
        }

        #[test]
        fn a_stopped_process_is_continued_so_that_sigterm_ends_it() {
            is_ended_whole($place, &["stopped"], Some(2), Sigterm::Ends);
        }

        #[test]
        fn a_web_server_started_with_nohup_is_ended() {
            let server = format!("nohup {} -u -m http.server --bind 127.0.0.1 0 >http.log 2>&1 &", common::python());
            is_ended_whole($place, &["service", "http.log", "sh", "-c", &server], Some(2), Sigterm::Ends);
        }

        #[test]
        fn a_daemonized_redis_server_is_ended() {
            needs_program!("redis-server");
            let settings = ["--daemonize", "yes", "--port", "0", "--unixsocket", "redis.sock", "--save", ""];
            let server = [&["service", "redis.sock", "redis-server"], &settings[..]].concat();
            is_ended_whole($place, &server, Some(2), Sigterm::Ends);
        }

        #[test]
        fn a_detached_tmux_server_is_ended() {
            needs_program!("tmux");
            // Its server, and the shell in its only pane, which as an interactive one ignores SIGTERM but not the hang-up.
            let server = ["service", "tmux.sock", "tmux", "-S", "tmux.sock", "new", "-d", "sleep 1000"];
            is_ended_whole($place, &server, None, Sigterm::Mixed);
        }

        #[test]
        fn the_main_job_of_the_readme_leaves_nothing_that_ps_shows() {
            leaves_nothing_that_ps_shows($place);
        }
    };
}

mod cgroupfs {
    everywhere!(Place::Root);

    #[test]
    fn a_child_in_a_sub_cgroup_of_its_own_is_ended_with_its_cgroup() {
        is_ended_whole(Place::Root, &["sub_cgroup"], Some(2), Sigterm::Ignored);
    }

    #[test]
    fn a_frozen_sub_cgroup_is_thawed_so_that_sigterm_ends_it() {
        is_ended_whole(Place::Root, &["frozen"], Some(2), Sigterm::Ends);
    }
}

mod subtree {
    everywhere!(Place::User);

    #[test]
    fn a_run_that_stops_its_shim_again_and_again_is_ended_whole() {
        is_ended_whole(Place::User, &["stops_shim"], Some(1), Sigterm::Ignored);
    }

    #[test]
    fn a_run_that_kills_its_shim_and_goes_on_is_ended() {
        a_run_that_kills_its_shim_is_ended(&["kills_shim", "10"], false);
    }

    #[test]
    fn a_detached_run_that_kills_its_shim_and_goes_on_is_ended() {
        a_run_that_kills_its_shim_is_ended(&["kills_shim", "10"], true);
    }

    #[test]
    fn a_run_that_kills_its_shim_and_then_starts_daemons_is_ended() {
        a_run_that_kills_its_shim_is_ended(&["kills_shim_and_forks", "100"], false);
    }

    #[test]
    fn a_detached_run_that_kills_its_shim_and_then_starts_daemons_is_ended() {
        a_run_that_kills_its_shim_is_ended(&["kills_shim_and_forks", "100"], true);
    }

    #[test]
    fn a_run_that_kills_its_shim_and_then_is_a_fork_bomb_is_ended() {
        a_run_that_kills_its_shim_is_ended(&["kills_shim_and_bombs", "200"], false);
    }

    #[test]
    fn a_detached_run_that_kills_its_shim_and_then_is_a_fork_bomb_is_ended() {
        a_run_that_kills_its_shim_is_ended(&["kills_shim_and_bombs", "200"], true);
    }

    #[test]
    fn nothing_survives_two_hundred_kills() {
        nothing_survives(20, 10);
    }
}

/// Rounds of runs side by side, each killed in one of both ways.
fn nothing_survives(rounds: usize, runs: usize) {
    needs_place!(Place::User);
    needs_program!("python3");
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::new_in(Place::User);
    let script = world.script("hostile.py");
    let mix: [&[&str]; 6] = [
        &["stubborn", "3"],
        &["daemons", "3"],
        &["emptied", "3"],
        &["subreaper", "2"],
        &["sleepers", "5"],
        &["stopped"],
    ];
    for round in 0..rounds {
        let started: Vec<String> = (0..runs)
            .map(|i| {
                let directory = world.path(&format!("{round}.{i}"));
                std::fs::create_dir(&directory).unwrap();
                std::os::unix::fs::chown(&directory, world.uid(), world.uid()).unwrap();
                let options = ["--grace", "100ms", "--cwd", directory.to_str().unwrap()];
                world.detach(&options, &[&[common::python(), &script], mix[(round + i) % mix.len()]].concat())
            })
            .collect();
        for i in 0..runs {
            let ready = world.path(&format!("{round}.{i}")).join("ready");
            eventually("the workload is up", || ready.exists().then_some(()));
        }
        // All at once, so that each is looked for among the others.
        let kills: Vec<_> = started
            .iter()
            .enumerate()
            .map(|(i, run)| {
                let force: &[&str] = if (round + i) % 2 == 0 { &["--force"] } else { &[] };
                common::start(&mut world.command([&["kill", run], force].concat()))
            })
            .collect();
        for kill in kills {
            let told = kill.wait();
            assert!(told.exits(0).stdout.contains("0 survivors"), "{told:?}");
        }
        let left = world.workload();
        assert!(left.is_empty(), "round {round}: {:?}", left.iter().map(|&p| common::describe(p)).collect::<Vec<_>>());
    }
    let all = world.runs();
    assert_eq!(all.len(), rounds * runs);
    for run in &all {
        assert_eq!(run.phase, Phase::Finished, "{run:?}");
        world.assert_killed(run, "requested");
        assert!(run.receipt().processes_total >= 2, "it was to be killed with its children: {run:?}");
    }
    assert_eq!(world.audited(EventKind::KillIntent), all.len());
    world.assert_nothing_left();
    world.assert_audit_holds();
}

fn leaves_nothing_that_ps_shows(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
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
