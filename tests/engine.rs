//! The rules of the core, held over random sequences of events: launches, forks, exits, kills, dying clients, a store
//! that is stuck or fails, an instance that dies and is followed by the next, a cgroup that somebody replaced.
//!
//! `ENGINE_SEQUENCES=1000000 cargo test --release --test engine` goes through more of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "engine_world/agents.rs"]
mod agents;
mod engine_world;
#[path = "engine_world/escapees.rs"]
mod escapees;
#[path = "engine_world/heartbeats.rs"]
mod heartbeats;

use std::time::Duration;

use engine_world::{Bench, Op, Store};
use guardian::model::{
    Action, Containment, ErrorKind, ExitStatus, KillMode, KillReason, Outcome, Phase, Readiness, Rule, Watch,
};
use proptest::prelude::*;

fn watch() -> impl Strategy<Value = Watch> {
    let action = || prop_oneof![1 => Just(Action::Off), 1 => Just(Action::Warn), 2 => Just(Action::Kill)];
    let time = || prop_oneof![Just(None), (1000u64..30_000).prop_map(|ms| Some(Duration::from_millis(ms)))];
    (
        action(),
        action(),
        time(),
        action(),
        time(),
        action(),
        time(),
        prop::bool::weighted(0.2),
        (action(), agents::watch()),
    )
        .prop_map(
            |(
                init_action,
                idle_action,
                idle_timeout,
                spin_action,
                spin_timeout,
                max_runtime_action,
                input_timeout,
                dry_run,
                (escapees, agent),
            )| {
                let input_action = Action::Warn;
                Watch {
                    init_action,
                    max_runtime_action,
                    idle_timeout,
                    idle_action,
                    spin_timeout,
                    spin_action,
                    input_timeout,
                    input_action,
                    escapees,
                    pressure_max_percent: None,
                    dry_run,
                    agent,
                    ..Watch::default()
                }
            },
        )
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let run = 0usize..4;
    let op = prop_oneof![
        4 => (any::<bool>(), prop_oneof![Just(0u64), 1u64..20_000], prop_oneof![Just(0u64), 1u64..20_000], 0u64..5_000, watch())
            .prop_map(|(detached, init, max, grace, watch)| Op::Launch { detached, init_ms: init, max_ms: max, grace_ms: grace, watch }),
        4 => (run.clone(), any::<bool>()).prop_map(|(run, force)| Op::Kill { run, force }),
        4 => (run.clone(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(run, ignores_term, stuck)| Op::Fork { run, ignores_term, stuck }),
        3 => (run.clone(), 0i32..4).prop_map(|(run, code)| Op::MainExits { run, code }),
        2 => run.clone().prop_map(|run| Op::OthersExit { run }),
        2 => run.clone().prop_map(|run| Op::Report { run }),
        2 => run.clone().prop_map(|run| Op::ClientDies { run }),
        2 => run.clone().prop_map(|run| Op::Output { run }),
        2 => (run.clone(), prop::sample::select(Rule::TIMED.to_vec()), 1u64..10_000).prop_map(|(run, rule, ms)| Op::Extend { run, rule, ms }),
        3 => (run.clone(), 0u64..2_000, 0u64..3).prop_map(|(run, cpu_ms, bytes)| Op::Does { run, cpu_ms, bytes }),
        1 => (run.clone(), prop::bool::weighted(0.8), any::<bool>()).prop_map(|(run, activity, input)| Op::Shows { run, activity, input }),
        2 => Just(Op::Sample),
        1 => (run.clone(), any::<bool>()).prop_map(|(run, frozen)| Op::Freeze { run, frozen }),
        8 => prop_oneof![1u64..50, 50u64..700, 700u64..30_000, Just(61_000u64)].prop_map(|ms| Op::Pass { ms }),
        2 => prop_oneof![Just(Store::Well), Just(Store::Stuck), Just(Store::Failing), Just(Store::Full)].prop_map(Op::Store),
        1 => (1u32..50).prop_map(|times| Op::BusyRemovals { times }),
        1 => run.clone().prop_map(|run| Op::Replace { run }),
        1 => run.clone().prop_map(|run| Op::Scatter { run }),
        1 => run.clone().prop_map(|run| Op::Stop { run }),
        3 => run.clone().prop_map(|run| Op::Escape { run }),
        1 => prop::bool::weighted(0.3).prop_map(|stuck| Op::SeekerStuck { stuck }),
        1 => run.clone().prop_map(|run| Op::Unstick { run }),
        4 => (run, heartbeats::message()).prop_map(|(run, said)| Op::Say { run, said }),
        2 => any::<bool>().prop_map(|rebooted| Op::Crash { rebooted }),
        2 => (7u32..9, prop::sample::select(vec!["test", "other"])).prop_map(|(uid, workflow)| Op::Of { uid, workflow }),
        2 => (limit(), limit()).prop_map(|(host, test)| Op::Limit { host, test }),
    ];
    prop::collection::vec(op, 1..40)
}

fn limit() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![1 => Just(None), 2 => (1u64..4).prop_map(Some)]
}

fn sequences() -> u32 {
    std::env::var("ENGINE_SEQUENCES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// Every invariant is checked after every step of every sequence; `engine_world` says which and how.
    #[test]
    fn the_rules_hold_over_random_sequences(ops in ops(), late in heartbeats::action(), notify in any::<bool>()) {
        let mut bench = Bench::new();
        bench.heartbeat_action = late;
        bench.readiness = if notify { Readiness::Notify } else { Readiness::Output };
        for op in ops {
            bench.apply(op);
        }
        bench.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Within a workflow of a user who came first has the first turn, and nobody is passed over for longer than a round.
    #[test]
    fn turns_are_fair(of in prop::collection::vec((7u32..10, prop::sample::select(vec!["test", "other", "third"])), 1..40),
                      slots in 1u64..4, crash_after in 0usize..60, rebooted in any::<bool>()) {
        let mut b = Bench::new();
        b.limit(Some(slots), None);
        let blockers: Vec<_> = (0..slots).map(|_| b.launch(true, 0, 0, 0)).collect();
        let mut runs = Vec::new();
        for (uid, workflow) in &of {
            (b.uid, b.workflow) = (*uid, workflow);
            runs.push((b.launch(true, 0, 0, 0), *uid, *workflow));
        }
        prop_assert_eq!(b.queued(), of.len());
        blockers.iter().for_each(|run| drop(b.kill(*run, KillMode::Force)));
        let mut order: Vec<usize> = Vec::new();
        for step in 0..200 {
            if step == crash_after {
                b.apply(Op::Crash { rebooted });
            }
            let live = |b: &Bench, n: usize| b.phase(runs[n].0).is_some_and(|p| !matches!(p, Phase::Queued | Phase::Finished));
            let begun: Vec<usize> = (0..runs.len()).filter(|n| !order.contains(n) && b.phase(runs[*n].0) != Some(Phase::Queued)).collect();
            order.extend(begun);
            match (0..runs.len()).find(|n| live(&b, *n)) {
                Some(n) => drop(b.kill(runs[n].0, KillMode::Force)),
                None if order.len() == runs.len() => break,
                None => {}
            }
            // How it ended may be asked for in vain, for some seconds.
            b.pass_ms(4_000);
        }
        prop_assert_eq!(order.len(), runs.len(), "everybody had a turn");
        for (at, n) in order.iter().enumerate() {
            let (_, uid, workflow) = runs[*n];
            let later = order[at + 1..].iter().filter(|m| (runs[**m].1, runs[**m].2) == (uid, workflow));
            for m in later {
                // What has its turn in the same step is seen in the order of arrival.
                prop_assert!(m > n, "{m} came before {n}, and had its turn after it");
            }
        }
        b.settle();
    }
}

#[test]
fn a_queued_run_is_started_in_its_place_by_the_next_instance_and_after_a_reboot() {
    for rebooted in [false, true] {
        let mut b = Bench::new();
        b.limit(None, Some(1));
        let first = b.launch(true, 0, 0, 0);
        let waiting = [b.launch(true, 0, 0, 0), b.launch(true, 0, 0, 0)];
        assert!(waiting.iter().all(|run| b.phase(*run) == Some(Phase::Queued)));
        b.apply(Op::Crash { rebooted });
        if !rebooted {
            b.kill(first, KillMode::Force).unwrap();
        }
        b.pass_ms(5_000);
        assert_eq!(b.phase(waiting[0]), Some(Phase::Initializing), "rebooted: {rebooted}");
        assert_eq!(b.phase(waiting[1]), Some(Phase::Queued));
        b.kill(waiting[0], KillMode::Force).unwrap();
        b.pass_ms(5_000);
        assert_eq!(b.phase(waiting[1]), Some(Phase::Initializing));
        b.settle();
    }
}

#[test]
fn a_run_over_its_max_runtime_gets_sigterm_grace_and_cgroup_kill() {
    let mut b = Bench::new();
    let run = b.launch(false, 0, 3_000, 1_000);
    b.apply(Op::Fork { run: 0, ignores_term: true, stuck: false });
    b.pass_ms(2_999);
    assert_eq!(b.phase(run), Some(Phase::Initializing));
    b.pass_ms(2);
    assert_eq!(b.phase(run), Some(Phase::Stopping));
    b.pass_ms(998);
    assert_eq!(b.phase(run), Some(Phase::Stopping));
    b.pass_ms(20);
    let view = b.finished(run).expect("finished");
    assert_eq!(view.outcome.as_ref().map(Outcome::exit_status), Some(124));
    let receipt = view.receipt.expect("a receipt");
    assert_eq!((receipt.terminated, receipt.killed, receipt.survivors), (2, 1, 0));
}

#[test]
fn a_run_that_shows_output_is_not_killed_for_initialization_even_at_the_last_moment() {
    let mut b = Bench::new();
    let silent = b.launch(true, 1_000, 0, 100);
    let ready = b.launch(true, 1_000, 0, 100);
    b.pass_ms(999);
    b.apply(Op::Output { run: 1 });
    b.pass_ms(50);
    assert_eq!(b.phase(ready), Some(Phase::Running));
    assert_eq!(b.finished(silent).and_then(|v| v.outcome).map(|o| o.exit_status()), Some(124));
}

#[test]
fn an_idle_run_is_ended_after_its_time_and_one_that_moved_is_not() {
    let mut b = Bench::new();
    b.watch = Watch { idle_timeout: Some(Duration::from_secs(6)), idle_action: Action::Kill, ..Watch::default() };
    let (idle, busy) = (b.launch(true, 0, 0, 100), b.launch(true, 0, 0, 100));
    for _ in 0..8 {
        b.apply(Op::Does { run: 1, cpu_ms: 0, bytes: 1 });
        b.pass_ms(1_000);
        b.apply(Op::Sample);
    }
    let outcome = b.finished(idle).and_then(|v| v.outcome);
    assert_eq!(
        outcome.map(|o| (o.exit_status(), o.to_string())),
        Some((124, "killed(idle_timeout of 6 s is over)".into()))
    );
    assert_eq!(b.phase(busy), Some(Phase::Initializing));
    b.apply(Op::Shows { run: 1, activity: false, input: false });
    b.pass_ms(60_000);
    assert_eq!(b.phase(busy), Some(Phase::Initializing), "what is not known is not idle");
}

#[test]
fn what_is_left_after_the_main_process_is_ended_and_its_exit_status_kept() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 500);
    b.apply(Op::Fork { run: 0, ignores_term: true, stuck: false });
    b.apply(Op::MainExits { run: 0, code: 3 });
    b.pass_ms(99);
    assert_eq!(b.phase(run), Some(Phase::Initializing), "they may still go by themselves");
    b.pass_ms(700);
    let view = b.finished(run).expect("finished");
    assert_eq!(view.outcome, Some(Outcome::Exited { code: 3 }));
    assert_eq!(view.receipt.map(|r| r.killed), Some(1));
}

#[test]
fn a_run_that_somebody_else_has_stopped_is_told_as_that_and_not_as_ours() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 60_000);
    b.apply(Op::Fork { run: 0, ignores_term: false, stuck: false });
    b.apply(Op::Stop { run: 0 });
    b.pass_ms(1);
    let view = b.finished(run).expect("finished");
    assert_eq!(view.outcome, Some(Outcome::Killed { reason: KillReason::StoppedOutside }));
    assert_eq!(view.receipt, None, "it was no kill of ours");
    // What we had begun to end is ours, whoever comes afterwards.
    let run = b.launch(true, 0, 0, 60_000);
    b.apply(Op::Fork { run: 1, ignores_term: true, stuck: false });
    b.kill(run, KillMode::Graceful).unwrap();
    b.pass_ms(1);
    b.apply(Op::Stop { run: 1 });
    b.pass_ms(1);
    let reason = b.finished(run).and_then(|v| v.outcome);
    assert!(matches!(reason, Some(Outcome::Killed { reason: KillReason::Requested { .. } })), "{reason:?}");
}

#[test]
fn no_time_is_promised_that_systemd_will_not_give() {
    let mut b = Bench::new();
    let minutes = |m: u64| Duration::from_secs(60 * m);
    // Twice the limit, ten minutes and the grace is what systemd was told at the start.
    for (containment, by, granted) in [
        (Containment::Systemd, minutes(20), true),
        (Containment::Systemd, minutes(21), false),
        (Containment::Cgroupfs, minutes(600), true),
    ] {
        b.containment = containment;
        let run = b.launch(true, 0, 600_000, 1_000);
        let answer = b.extend(run, Rule::MaxRuntime, by);
        assert_eq!(answer.is_ok(), granted, "{containment} {by:?}: {answer:?}");
        if let Err(e) = answer {
            assert!(e.message.contains("systemd ends"), "{e}");
            b.pass_ms(600_001);
            let status = b.finished(run).and_then(|v| v.outcome).map(|o| o.exit_status());
            assert_eq!(status, Some(124), "a refusal leaves the limit as it was");
        }
    }
}

#[test]
fn a_run_whose_shim_was_killed_is_ended_at_once_and_says_so() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 60_000);
    b.apply(Op::Fork { run: 0, ignores_term: true, stuck: false });
    b.apply(Op::Scatter { run: 0 });
    let view = b.finished(run).expect("finished, without waiting for the grace period");
    assert_eq!(view.outcome, Some(Outcome::Killed { reason: KillReason::ContainmentLost }));
    assert!(view.notices.iter().any(|n| n.contains("its shim was killed")), "{:?}", view.notices);
    assert_eq!(view.receipt.map(|r| (r.mode, r.terminated, r.killed)), Some((KillMode::Force, 0, 2)));
}

#[test]
fn a_process_that_leaves_by_itself_shortly_after_is_no_leftover() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 500);
    b.apply(Op::Fork { run: 0, ignores_term: false, stuck: false });
    b.apply(Op::MainExits { run: 0, code: 0 });
    b.pass_ms(50);
    b.apply(Op::OthersExit { run: 0 });
    let view = b.finished(run).expect("finished");
    assert_eq!((view.outcome, view.receipt), (Some(Outcome::Exited { code: 0 }), None));
}

#[test]
fn kill_requests_are_idempotent_and_force_escalates() {
    let mut b = Bench::new();
    let run = b.launch(false, 0, 0, 60_000);
    b.apply(Op::Fork { run: 0, ignores_term: true, stuck: false });
    let first = b.kill(run, KillMode::Graceful).unwrap();
    let second = b.kill(run, KillMode::Graceful).unwrap();
    assert_eq!(first, second);
    assert_eq!(b.phase(run), Some(Phase::Stopping));
    b.kill(run, KillMode::Force).unwrap();
    b.apply(Op::Report { run: 0 });
    b.pass_ms(10);
    assert_eq!(b.finished(run).and_then(|v| v.outcome).map(|o| o.exit_status()), Some(137));
    assert_eq!(b.kill(run, KillMode::Graceful).unwrap_err().kind, ErrorKind::NoSuchRun);
}

#[test]
fn a_stuck_store_delays_a_kill_by_half_a_second_and_no_more() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 1_000, 100);
    b.apply(Op::Store(Store::Stuck));
    b.pass_ms(1_499);
    assert_eq!(b.acts(run), 0, "the intent comes first");
    b.pass_ms(2);
    assert_eq!(b.acts(run), 1);
    assert_eq!(b.journalled(), 1, "the journal has the intent that the store could not take");
}

#[test]
fn a_limit_is_kept_to_while_hundreds_of_slow_runs_are_warned_of() {
    let mut b = Bench::new();
    let warned: Vec<_> = (0..500).map(|_| b.launch(true, 0, 100_000, 0)).collect();
    let ended = b.launch(true, 0, 80_020, 0);
    let due = b.now() + Duration::from_millis(80_020);
    b.evidence_takes(20);
    b.pass_ms(79_000);
    assert!(warned.iter().all(|run| b.reasons(*run).is_empty()));
    b.pass_ms(1_030);
    let late = b.first_act(ended).expect("ended").since(due);
    assert!(late < Duration::from_millis(100), "{late:?} late");
    // All of them are warned of, which takes 10 s here, with what they wait for.
    let told = warned.iter().filter(|run| b.reasons(**run).iter().any(|r| r.text.contains("sim (pid ")));
    assert_eq!(told.count(), 500, "{:?}", b.reasons(warned[0]));
}

#[test]
fn a_run_that_cannot_die_is_reported_and_never_called_finished() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 0);
    b.apply(Op::Fork { run: 0, ignores_term: true, stuck: true });
    b.kill(run, KillMode::Force).unwrap();
    b.pass_ms(3_600_000);
    assert_eq!(b.phase(run), Some(Phase::Killing));
    assert!(b.reasons(run).iter().any(|r| r.rule == Rule::Unkillable));
    b.apply(Op::Unstick { run: 0 });
    b.pass_ms(2_000);
    assert!(b.finished(run).is_some());
}

#[test]
fn launches_are_refused_while_the_audit_cannot_be_written() {
    let mut b = Bench::new();
    b.apply(Op::Store(Store::Failing));
    b.apply(Op::Pass { ms: 1 });
    let refused = b.try_launch(true).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::StoreUnavailable);
    b.apply(Op::Store(Store::Well));
    b.pass_ms(1_000);
    assert!(b.try_launch(true).is_ok());
}

#[test]
fn an_unknown_exit_status_makes_a_run_lost_only_after_the_client_had_its_time() {
    let mut b = Bench::new();
    let run = b.launch(false, 0, 0, 0);
    b.apply(Op::MainExits { run: 0, code: 5 });
    b.pass_ms(2_000);
    assert!(b.finished(run).is_none());
    b.report(run, ExitStatus::Exited(5));
    assert_eq!(b.finished(run).and_then(|v| v.outcome), Some(Outcome::Exited { code: 5 }));
    let lost = b.launch(false, 0, 0, 0);
    b.apply(Op::MainExits { run: 1, code: 5 });
    b.pass(Duration::from_secs(4));
    assert!(matches!(b.finished(lost).and_then(|v| v.outcome), Some(Outcome::Lost { .. })));
}
