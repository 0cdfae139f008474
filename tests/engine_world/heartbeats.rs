//! What a run says of itself, and what follows when it says nothing any more.

use std::time::Duration;

use guardian::model::{
    Action, Answer, EventKind, ExitStatus, Health, KillReason, Notification, Outcome, Phase, Readiness, Rule, RunId,
    Watch,
};
use proptest::prelude::*;

use crate::engine_world::{Bench, Op};

const SECOND: u64 = 1000;

/// Any message. Windows are not among them: what is asserted of those that are killed counts on the one that was given.
pub fn message() -> impl Strategy<Value = Notification> {
    let extend = prop_oneof![Just(None), (1u64..20_000).prop_map(|ms| Some(Duration::from_millis(ms)))];
    let flags = (any::<bool>(), prop::bool::weighted(0.8), prop::bool::weighted(0.1));
    (flags, extend, crate::agents::progress()).prop_map(|((ready, heartbeat, stopping), extend, progress)| {
        Notification { ready, heartbeat, extend, stopping, progress, ..said() }
    })
}

pub fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Off), Just(Action::Warn), Just(Action::Kill), Just(Action::KillIfIdle)]
}

fn said() -> Notification {
    Notification::default()
}

fn heartbeat() -> Notification {
    Notification { heartbeat: true, ..said() }
}

fn extend(ms: u64) -> Notification {
    Notification { extend: Some(Duration::from_millis(ms)), ..said() }
}

fn say(b: &mut Bench, run: usize, said: Notification) {
    b.apply(Op::Say { run, said });
}

fn reason_of_late(b: &Bench, run: RunId) -> Option<(Health, String)> {
    let reasons = b.reasons(run);
    reasons.into_iter().find(|r| r.rule == Rule::HeartbeatTimeout).map(|r| (r.level, r.text))
}

#[test]
fn a_run_that_sends_no_heartbeat_is_not_held_to_any() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::Kill;
    let run = b.launch(true, 0, 0, 100);
    b.pass_ms(24 * 3600 * SECOND);
    assert_eq!((b.phase(run), b.reasons(run).len()), (Some(Phase::Initializing), 0));
}

#[test]
fn a_run_whose_heartbeats_stop_is_warned_of_at_80_percent_and_critical_until_the_next() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 100);
    for _ in 0..5 {
        say(&mut b, 0, heartbeat());
        b.pass_ms(7_900);
        assert_eq!(reason_of_late(&b, run), None, "each one counts anew");
    }
    b.pass_ms(200);
    let (level, text) = reason_of_late(&b, run).expect("80 %");
    assert_eq!((level, text.contains("it is late in")), (Health::Warning, true), "{text}");
    b.pass_ms(2_000);
    assert_eq!(reason_of_late(&b, run).map(|r| r.0), Some(Health::Critical));
    b.pass_ms(3600 * SECOND);
    assert_eq!(b.audited(run, EventKind::HeartbeatLate), 1, "once, however long it lasts");
    assert_eq!(b.phase(run), Some(Phase::Initializing), "warned of and not killed");
    say(&mut b, 0, heartbeat());
    assert_eq!(reason_of_late(&b, run), None);
    b.pass_ms(11_000);
    assert_eq!(b.audited(run, EventKind::HeartbeatLate), 2, "late once more");
}

#[test]
fn a_run_is_ended_for_late_heartbeats_where_that_is_what_the_rule_does() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::Kill;
    let run = b.launch(true, 0, 0, 100);
    say(&mut b, 0, Notification { status: Some("step 3".into()), ..heartbeat() });
    b.pass_ms(9_999);
    assert_eq!(b.phase(run), Some(Phase::Initializing));
    b.pass_ms(2);
    let view = b.finished(run).expect("finished");
    let Some(Outcome::Killed { reason: KillReason::Limit { rule, allowed, .. } }) = view.outcome else {
        panic!("{view:?}")
    };
    assert_eq!((rule, allowed), (Rule::HeartbeatTimeout, Duration::from_secs(10)));
    assert_eq!(view.heartbeats.status, "step 3", "its last words are kept");
    assert_eq!(b.audited(run, EventKind::HeartbeatLate), 1);
    assert_eq!(b.audited(run, EventKind::LimitWarning), 1, "what threatens it is on record");
}

#[test]
fn a_run_whose_heartbeats_stop_is_ended_where_it_is_idle_too_and_else_warned_of() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::KillIfIdle;
    b.watch = Watch { idle_timeout: Some(Duration::from_secs(60)), ..Watch::default() };
    let (idle, busy) = (b.launch(true, 0, 0, 100), b.launch(true, 0, 0, 100));
    b.watch = Watch::default();
    let unwatched = b.launch(true, 0, 0, 100);
    (0..3).for_each(|run| say(&mut b, run, heartbeat()));
    for _ in 0..12 {
        b.apply(Op::Does { run: 1, cpu_ms: 0, bytes: 1 });
        b.pass_ms(3_000);
    }
    assert_eq!(reason_of_late(&b, idle).map(|r| r.0), Some(Health::Critical), "late, and not yet known to be idle");
    for _ in 0..10 {
        b.apply(Op::Does { run: 1, cpu_ms: 0, bytes: 1 });
        b.pass_ms(3_000);
    }
    let outcome = b.finished(idle).and_then(|v| v.outcome);
    let reason = KillReason::over(Rule::HeartbeatTimeout, Duration::from_secs(10));
    assert_eq!(outcome, Some(Outcome::Killed { reason }));
    for run in [busy, unwatched] {
        assert_eq!(
            (b.phase(run), reason_of_late(&b, run).map(|r| r.0)),
            (Some(Phase::Initializing), Some(Health::Critical))
        );
    }
    // One that is idle and is heard of is not ended.
    say(&mut b, 1, heartbeat());
    for _ in 0..30 {
        b.pass_ms(9_000);
        say(&mut b, 1, heartbeat());
    }
    assert_eq!((b.phase(busy), reason_of_late(&b, busy)), (Some(Phase::Initializing), None));
}

#[test]
fn heartbeats_are_no_events_and_do_not_extend_max_runtime() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 20_000, 100);
    for _ in 0..100 {
        say(&mut b, 0, heartbeat());
        b.pass_ms(190);
    }
    assert_eq!(b.audit_of(run), ["run_accepted", "run_started", "limit_warning", "health_changed"]);
    b.pass_ms(1_001);
    assert_eq!(b.finished(run).and_then(|v| v.outcome).map(|o| o.exit_status()), Some(124));
}

#[test]
fn the_time_of_a_frozen_run_stands_still() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::Kill;
    let run = b.launch(true, 0, 0, 100);
    say(&mut b, 0, heartbeat());
    b.pass_ms(6_000);
    b.apply(Op::Freeze { run: 0, frozen: true });
    b.pass_ms(3600 * SECOND);
    b.apply(Op::Freeze { run: 0, frozen: false });
    b.pass_ms(3_900);
    assert_eq!(b.phase(run), Some(Phase::Initializing), "a tenth of a second is left");
    b.pass_ms(101);
    assert!(b.finished(run).is_some());
}

#[test]
fn a_whole_window_passes_after_a_restart_and_it_is_still_waited_for() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::Kill;
    let run = b.launch(true, 0, 0, 100);
    say(&mut b, 0, heartbeat());
    b.pass_ms(9_000);
    b.apply(Op::Crash { rebooted: false });
    b.pass_ms(9_999);
    assert_eq!(b.phase(run), Some(Phase::Initializing));
    b.pass_ms(2);
    assert!(b.finished(run).is_some(), "the next instance knows that it has sent one");
}

#[test]
fn what_was_extended_is_waited_for_and_the_next_heartbeat_counts_as_ever() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::Kill;
    let run = b.launch(true, 0, 0, 100);
    assert!(b.extend(run, Rule::HeartbeatTimeout, Duration::from_secs(5)).is_err(), "none is waited for");
    say(&mut b, 0, heartbeat());
    assert!(matches!(b.extend(run, Rule::HeartbeatTimeout, Duration::from_secs(5)), Ok(Answer::Deadline(_))));
    b.pass_ms(14_999);
    assert_eq!(b.phase(run), Some(Phase::Initializing));
    say(&mut b, 0, heartbeat());
    b.pass_ms(9_999);
    assert_eq!(b.phase(run), Some(Phase::Initializing));
    b.pass_ms(2);
    assert!(b.finished(run).is_some());
}

#[test]
fn a_run_may_ask_for_a_shorter_window_and_not_for_a_longer_one() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::Kill;
    b.shortest_window = Duration::from_secs(4);
    let window = |secs| Notification { window: Some(Duration::from_secs(secs)), ..said() };
    let (long, short) = (b.launch(true, 0, 0, 100), b.launch(true, 0, 0, 100));
    say(&mut b, 0, heartbeat());
    say(&mut b, 0, window(4));
    say(&mut b, 0, window(3600));
    say(&mut b, 1, heartbeat());
    say(&mut b, 1, window(4));
    b.pass_ms(4_001);
    assert!(b.finished(short).is_some());
    assert_eq!(b.phase(long), Some(Phase::Initializing));
    b.pass_ms(6_000);
    assert!(b.finished(long).is_some(), "it cannot loosen what it is held to");
}

#[test]
fn ready_ends_the_initialization_and_output_does_not_where_ready_is_waited_for() {
    let mut b = Bench::new();
    b.readiness = Readiness::Notify;
    let (ready, silent) = (b.launch(true, 1_000, 0, 100), b.launch(true, 1_000, 0, 100));
    b.apply(Op::Output { run: 0 });
    b.apply(Op::Output { run: 1 });
    b.pass_ms(900);
    assert_eq!(b.phase(ready), Some(Phase::Initializing));
    say(&mut b, 0, Notification { ready: true, ..said() });
    assert_eq!(b.phase(ready), Some(Phase::Running));
    b.pass_ms(1_000);
    assert_eq!(b.phase(ready), Some(Phase::Running));
    let killed = b.finished(silent).and_then(|v| v.outcome).map(|o| o.exit_status());
    assert_eq!(killed, Some(124), "output is not what it was to show");
    b.readiness = Readiness::Output;
    let either = b.launch(true, 1_000, 0, 100);
    say(&mut b, 2, Notification { ready: true, ..said() });
    assert_eq!(b.phase(either), Some(Phase::Running));
}

#[test]
fn a_run_can_say_that_it_needs_at_least_so_long() {
    let mut b = Bench::new();
    b.readiness = Readiness::Notify;
    let run = b.launch(true, 10_000, 0, 100);
    say(&mut b, 0, extend(2_000));
    b.pass_ms(9_000);
    say(&mut b, 0, extend(5_000));
    b.pass_ms(4_900);
    assert_eq!(b.phase(run), Some(Phase::Initializing), "what it has is not cut, and is made longer");
    // With every message again, as sd_notify(3) has it: one row of the audit for a minute of that.
    for _ in 0..50 {
        say(&mut b, 0, extend(5_000));
        b.pass_ms(100);
    }
    assert_eq!(b.audited(run, EventKind::LimitExtended), 1);
    b.pass_ms(5_001);
    assert_eq!(b.finished(run).and_then(|v| v.outcome).map(|o| o.exit_status()), Some(124));
    // Ready, it is max_runtime that it extends.
    let run = b.launch(true, 0, 10_000, 100);
    say(&mut b, 1, Notification { ready: true, ..said() });
    say(&mut b, 1, extend(15_000));
    b.pass_ms(14_900);
    assert_eq!(b.phase(run), Some(Phase::Running));
    b.pass_ms(200);
    assert_eq!(b.finished(run).and_then(|v| v.outcome).map(|o| o.exit_status()), Some(124));
}

#[test]
fn a_run_that_is_about_to_end_sends_no_heartbeats_and_none_are_waited_for() {
    let mut b = Bench::new();
    b.heartbeat_action = Action::Kill;
    let run = b.launch(true, 0, 0, 100);
    say(&mut b, 0, heartbeat());
    say(&mut b, 0, Notification { stopping: true, errno: Some(5), ..said() });
    b.pass_ms(3600 * SECOND);
    assert_eq!(b.phase(run), Some(Phase::Initializing));
    b.apply(Op::MainExits { run: 0, code: 0 });
    b.pass_ms(10);
    let view = b.finished(run).expect("finished");
    assert_eq!((view.heartbeats.stopping, view.heartbeats.errno, view.heartbeats.total), (true, Some(5), 1));
    assert_eq!(view.outcome, Some(Outcome::Exited { code: 0 }));
}

#[test]
fn a_run_that_says_that_it_is_stuck_is_taken_at_its_word() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 100);
    say(&mut b, 0, Notification { stuck: true, ..said() });
    let (level, text) = reason_of_late(&b, run).expect("a reason");
    assert_eq!((level, text.contains("it says that it is stuck")), (Health::Critical, true), "{text}");
}

#[test]
fn another_main_process_is_refused_with_one_notice() {
    let mut b = Bench::new();
    let run = b.launch(false, 0, 0, 100);
    (0..3).for_each(|_| say(&mut b, 0, Notification { main_pid: true, ..said() }));
    b.apply(Op::MainExits { run: 0, code: 0 });
    b.report(run, ExitStatus::Exited(0));
    let notices = b.finished(run).expect("finished").notices;
    assert_eq!(notices.iter().filter(|n| n.contains("MAINPID")).count(), 1, "{notices:?}");
}
