//! Escapees in simulated time: named once, ended where that is asked for and never else, told in the receipt.

use std::time::Duration;

use guardian::model::{Action, EventKind, Fate, KillMode, Outcome, Phase, Rule, RunId, Watch};

use super::engine_world::{Bench, Op, Store};

const SECOND: Duration = Duration::from_secs(1);

fn bench(escapees: Action) -> Bench {
    let mut b = Bench::new();
    b.watch = Watch { escapees, ..Watch::default() };
    b
}

/// A run with an escapee that does or does not care for SIGTERM, and a grace period of 2 s.
fn escaped(b: &mut Bench, ignores_term: bool) -> (RunId, u32) {
    let run = b.launch(true, 0, 0, 2_000);
    b.apply(Op::Fork { run: 0, ignores_term, stuck: false });
    let pid = b.escape(0).expect("a process that leaves");
    (run, pid)
}

fn is_named(b: &Bench, run: RunId) -> bool {
    b.reasons(run).iter().any(|r| r.rule == Rule::Escapees)
}

fn fates(b: &Bench, run: RunId) -> Vec<Fate> {
    b.on_record(run).map(|v| v.escapees.iter().map(|e| e.fate).collect()).unwrap_or_default()
}

#[test]
fn an_escapee_is_named_once_and_no_more_when_it_is_gone() {
    let mut b = bench(Action::Warn);
    let (run, pid) = escaped(&mut b, false);
    assert!(!is_named(&b, run));
    b.pass(61 * SECOND);
    let reason = b.reasons(run).into_iter().find(|r| r.rule == Rule::Escapees).expect("a reason");
    assert!(reason.text.contains(&format!("sim (pid {pid}) in cgroup /elsewhere is the run's")), "{}", reason.text);
    b.pass(600 * SECOND);
    assert_eq!(b.audited(run, EventKind::EscapeeFound), 1);
    assert!(b.is_alive(pid), "left alone");
    b.end(pid);
    b.pass(61 * SECOND);
    assert!(!is_named(&b, run));
    assert_eq!((b.phase(run), fates(&b, run)), (Some(Phase::Initializing), vec![Fate::Gone]));
    assert_eq!(b.audited(run, EventKind::HealthChanged), 2);
}

#[test]
fn a_person_who_looks_is_the_occasion_to_look_but_not_each_time() {
    let mut b = bench(Action::Warn);
    let (run, _) = escaped(&mut b, false);
    b.show(run);
    assert!(is_named(&b, run));
    b.apply(Op::Fork { run: 0, ignores_term: false, stuck: false });
    b.escape(0).unwrap();
    b.show(run);
    assert_eq!(fates(&b, run).len(), 1);
    b.pass(6 * SECOND);
    b.show(run);
    assert_eq!(fates(&b, run).len(), 2);
}

#[test]
fn an_escapee_is_ended_by_sigterm_grace_and_sigkill_and_the_run_lives_on() {
    let mut b = bench(Action::Kill);
    let (run, pid) = escaped(&mut b, true);
    b.show(run);
    b.pass_ms(1_900);
    assert!(b.is_alive(pid), "it has its grace period");
    assert_eq!(b.acts(run), 1, "one SIGTERM");
    b.pass_ms(300);
    assert!(!b.is_alive(pid));
    assert_eq!((b.phase(run), fates(&b, run)), (Some(Phase::Initializing), vec![Fate::Killed]));
    assert!(!is_named(&b, run));
    assert_eq!((b.audited(run, EventKind::EscapeeFound), b.audited(run, EventKind::EscapeeEnded)), (1, 1));
    b.pass(600 * SECOND);
    assert_eq!(b.acts(run), 2);
}

#[test]
fn a_dry_run_names_and_signals_nothing() {
    let mut b = bench(Action::Kill);
    b.watch.dry_run = true;
    let (run, pid) = escaped(&mut b, false);
    b.pass(61 * SECOND);
    assert!(b.reasons(run)[0].text.contains("but for dry_run"), "{:?}", b.reasons(run));
    b.kill(run, KillMode::Force).unwrap();
    b.pass(10 * SECOND);
    assert!(b.is_alive(pid) && b.finished(run).is_some());
}

#[test]
fn what_is_off_is_not_looked_for() {
    let mut b = bench(Action::Off);
    let (run, pid) = escaped(&mut b, false);
    b.pass(200 * SECOND);
    b.show(run);
    b.kill(run, KillMode::Force).unwrap();
    b.pass(20 * SECOND);
    assert!(b.is_alive(pid));
    assert_eq!((b.audited(run, EventKind::EscapeeFound), fates(&b, run)), (0, vec![]));
}

#[test]
fn the_receipt_of_a_kill_names_what_was_left_alone() {
    let mut b = bench(Action::Warn);
    let (run, pid) = escaped(&mut b, false);
    b.kill(run, KillMode::Graceful).unwrap();
    b.pass_ms(10);
    let receipt = b.finished(run).and_then(|v| v.receipt).expect("a receipt");
    assert_eq!((receipt.survivors, receipt.proved), (0, true));
    let told: Vec<_> = receipt.escapees.iter().map(|e| (e.process.pid, e.fate)).collect();
    assert_eq!(told, [(pid, Fate::LeftAlone)]);
    assert!(receipt.to_string().ends_with("1 escapee"), "{receipt}");
    assert!(is_named(&b, run) && b.is_alive(pid));
}

#[test]
fn a_killed_run_is_over_when_its_escapees_are_ended_too() {
    let mut b = bench(Action::Kill);
    let (run, pid) = escaped(&mut b, true);
    b.kill(run, KillMode::Graceful).unwrap();
    b.pass_ms(1_900);
    assert!(b.finished(run).is_none() && b.is_alive(pid));
    b.pass_ms(300);
    let receipt = b.finished(run).and_then(|v| v.receipt).expect("a receipt");
    assert_eq!(receipt.escapees.iter().map(|e| e.fate).collect::<Vec<_>>(), [Fate::Killed]);
    assert!(!b.is_alive(pid));
    assert!(receipt.duration_usec < 100_000, "the run itself was empty at once: {receipt:?}");
}

#[test]
fn a_run_that_ends_by_itself_is_over_at_once_and_its_escapees_are_told_later() {
    let mut b = bench(Action::Warn);
    let (run, pid) = escaped(&mut b, false);
    b.apply(Op::MainExits { run: 0, code: 3 });
    b.pass_ms(1);
    assert_eq!(b.finished(run).and_then(|v| v.outcome), Some(Outcome::Exited { code: 3 }));
    assert_eq!(fates(&b, run), []);
    b.pass(6 * SECOND);
    assert_eq!((fates(&b, run), b.audited(run, EventKind::EscapeeFound)), (vec![Fate::LeftAlone], 1));
    let shown = b.finished(run).expect("it is at hand still");
    assert_eq!((shown.escapees.len(), shown.outcome), (1, Some(Outcome::Exited { code: 3 })));
    assert!(b.is_alive(pid));
}

#[test]
fn a_run_that_ends_by_itself_waits_for_escapees_that_are_to_be_ended() {
    let mut b = bench(Action::Kill);
    let (run, pid) = escaped(&mut b, false);
    b.apply(Op::MainExits { run: 0, code: 3 });
    b.pass_ms(50);
    let view = b.finished(run).expect("finished");
    assert_eq!((view.outcome, view.receipt), (Some(Outcome::Exited { code: 3 }), None));
    assert_eq!(view.escapees.iter().map(|e| e.fate).collect::<Vec<_>>(), [Fate::Terminated]);
    assert!(!b.is_alive(pid));
}

#[test]
fn a_look_that_gives_no_answer_holds_up_an_end_for_a_second_and_is_told() {
    let mut b = bench(Action::Kill);
    let (run, _) = escaped(&mut b, false);
    b.apply(Op::SeekerStuck { stuck: true });
    b.kill(run, KillMode::Force).unwrap();
    b.pass_ms(900);
    assert!(b.finished(run).is_none());
    b.pass_ms(200);
    let view = b.finished(run).expect("finished");
    assert!(view.notices.iter().any(|n| n.contains("is not known")), "{:?}", view.notices);
    assert!(view.receipt.is_some_and(|r| r.escapees.is_empty()));
}

#[test]
fn an_escapee_that_nothing_ends_is_told_and_the_run_is_over() {
    let mut b = bench(Action::Kill);
    let run = b.launch(true, 0, 0, 1_000);
    b.apply(Op::Fork { run: 0, ignores_term: true, stuck: true });
    b.escape(0).unwrap();
    b.kill(run, KillMode::Graceful).unwrap();
    b.pass(20 * SECOND);
    let view = b.finished(run).expect("finished");
    assert_eq!(view.escapees.iter().map(|e| e.fate).collect::<Vec<_>>(), [Fate::Survives]);
    assert!(is_named(&b, run));
}

#[test]
fn a_stuck_store_delays_the_first_signal_by_half_a_second() {
    let mut b = bench(Action::Kill);
    let (run, pid) = escaped(&mut b, false);
    b.apply(Op::Store(Store::Stuck));
    b.show(run);
    b.pass_ms(499);
    assert_eq!(b.acts(run), 0, "the intent comes first");
    b.pass_ms(2);
    assert!(b.acts(run) == 1 && !b.is_alive(pid));
    assert_eq!(b.journalled(), 1);
}

#[test]
fn the_next_instance_looks_at_once_and_goes_on() {
    let mut b = bench(Action::Kill);
    let (run, pid) = escaped(&mut b, true);
    b.show(run);
    b.pass_ms(500);
    b.apply(Op::Crash { rebooted: false });
    assert!(b.is_alive(pid));
    b.pass_ms(2_300);
    assert!(!b.is_alive(pid));
    assert_eq!((b.phase(run), b.audited(run, EventKind::EscapeeFound)), (Some(Phase::Initializing), 1));
    assert_eq!(fates(&b, run), [Fate::Killed]);
}

#[test]
fn an_instance_that_gets_no_answer_gives_up_what_the_one_before_was_ending() {
    let mut b = bench(Action::Kill);
    let run = b.launch(false, 0, 0, 2_000);
    b.escape(0).expect("its main process, the only one it has");
    // The intent to end it is on record, and nothing else is.
    b.show(run);
    b.apply(Op::Store(Store::Stuck));
    b.pass(200 * SECOND);
    b.apply(Op::SeekerStuck { stuck: true });
    b.apply(Op::Crash { rebooted: false });
    b.apply(Op::Store(Store::Well));
    b.pass(10 * SECOND);
    assert!(matches!(b.finished(run).and_then(|v| v.outcome), Some(Outcome::Lost { .. })), "{:?}", b.phase(run));
    assert_eq!(fates(&b, run), [Fate::NotProved]);
}
