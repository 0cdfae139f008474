//! Kills: who asks, who is answered when, and what is told of each step.

use super::*;
use crate::model::StepKind;

fn evidence() -> Evidence {
    let seen = ProcessSeen { pid: 8, name: "sh".into(), state: 'S', ..ProcessSeen::default() };
    Evidence { processes: vec![seen], total: 1, ..Evidence::default() }
}

impl Steps {
    /// Asked for, on record, and looked at.
    fn killing(mode: KillMode) -> Self {
        let mut b = Self::live(spec(ONE));
        b.kill(mode);
        b.step(Event::Recorded(Ticket::Kill(ONE)));
        b.step(Event::Inspected { run: ONE, evidence: evidence() });
        b
    }

    fn killed(&mut self, processes: u32) -> Vec<Effect> {
        self.step(Event::Killed { run: ONE, processes, trouble: None })
    }

    fn ends(&mut self) -> RunView {
        self.step(Event::MainExited { run: ONE, status: Some(ExitStatus::Signaled(15)), oom: false });
        self.step(Event::Populated { run: ONE, populated: false });
        self.engine.view(ONE, self.now).unwrap()
    }
}

fn reason(effects: &[Effect], kind: EventKind) -> Option<&str> {
    audit(effects).into_iter().find(|e| e.kind == kind).map(|e| e.reason.as_str())
}

#[test]
fn who_asks_is_answered_when_the_intent_is_on_record_and_then_at_once() {
    let mut b = Steps::live(spec(ONE));
    assert!(answers(&b.kill(KillMode::Graceful)).is_empty());
    assert!(answers(&b.kill(KillMode::Graceful)).is_empty());
    let recorded = b.step(Event::Recorded(Ticket::Kill(ONE)));
    let told = answers(&recorded);
    assert!(matches!(told[..], [Ok(Answer::Kill(_)), Ok(Answer::Kill(_))]) && told[0] == told[1], "{told:?}");
    assert_eq!(answers(&b.kill(KillMode::Graceful)), [told[0]]);
}

#[test]
fn what_its_processes_waited_for_is_told_with_the_first_signal_and_kept_in_the_receipt() {
    let told = "sh (pid 8) waits for something that cannot be read here";
    let mut b = Steps::killing(KillMode::Force);
    let first = b.killed(1);
    assert_eq!(reason(&first, EventKind::RunKilled), Some(told));
    assert!(!has(&b.killed(1), |e| matches!(e, Effect::Record(_))), "it is killed again, and told once");
    let receipt = b.ends().receipt.unwrap();
    assert_eq!((receipt.processes[0].pid, receipt.explanation.as_str()), (8, told));
    let mut b = Steps::killing(KillMode::Graceful);
    let terminated = b.step(Event::Terminated { run: ONE, processes: 1, trouble: None });
    assert_eq!(reason(&terminated, EventKind::KillTerminated), Some(told));
    b.pass(5 * SECOND);
    assert_eq!(reason(&b.killed(1), EventKind::RunKilled), Some(""), "it was told before");
}

#[test]
fn a_run_whose_client_is_gone_is_ended_wherever_it_is() {
    let gone = |b: &mut Steps| b.step(Event::ClientGone(ONE));
    let mut b = Steps::live(spec(ONE));
    let effects = gone(&mut b);
    assert_eq!(reason(&effects, EventKind::KillIntent), Some("its client is gone"));
    assert!(has(&b.step(Event::Recorded(Ticket::Kill(ONE))), |e| matches!(e, Effect::Terminate(ONE))));
    // During the launch: as soon as it is contained, and nothing of it is executed.
    let mut b = Steps::new(9);
    b.launch(spec(ONE));
    assert!(gone(&mut b).is_empty());
    b.step(Event::Recorded(Ticket::Launch(ONE)));
    let main = ProcessId { pid: 9, start_ticks: 9 };
    let effects = b.step(Event::Contained { run: ONE, main, container: container(), notices: Vec::new() });
    assert_eq!(reason(&effects, EventKind::KillIntent), Some("its client is gone"));
    assert!(has(&effects, |e| matches!(e, Effect::CloseGate(ONE))));
    // One that is empty waits for the client alone, which will say nothing any more.
    let mut b = Steps::live(spec(ONE));
    b.step(Event::Populated { run: ONE, populated: false });
    assert!(has(&gone(&mut b), |e| matches!(e, Effect::AskStatus(ONE))));
    // A kill that is under way is the one that there is.
    let mut b = Steps::killing(KillMode::Graceful);
    assert!(gone(&mut b).is_empty());
}

#[test]
fn that_a_shim_was_killed_is_told_once_and_of_a_run_that_it_held() {
    let mut b = Steps::live(spec(ONE));
    let lost = |b: &mut Steps| b.step(Event::ContainmentLost(ONE));
    assert!(reason(&lost(&mut b), EventKind::ContainmentLost).is_some());
    assert!(lost(&mut b).is_empty());
    assert_eq!(b.run().notices.len(), 1);
    let mut b = Steps::live(spec(ONE));
    b.step(Event::Populated { run: ONE, populated: false });
    assert!(lost(&mut b).is_empty() && b.run().notices.is_empty(), "it was empty by then");
}

#[test]
fn who_stopped_a_run_is_who_did_something_to_it_first() {
    let stopped = KillReason::StoppedOutside;
    let requested = KillReason::Requested { text: "because".into() };
    for (signalled, reason) in [(0, stopped), (1, requested)] {
        let mut b = Steps::killing(KillMode::Graceful);
        b.step(Event::Terminated { run: ONE, processes: signalled, trouble: None });
        b.step(Event::StoppedOutside(ONE));
        assert_eq!(b.ends().outcome, Some(Outcome::Killed { reason }), "{signalled}");
    }
}

#[test]
fn a_run_in_its_grace_period_is_looked_at_each_second_and_one_that_is_filled_again_is_emptied_again() {
    let populated = |b: &mut Steps| b.step(Event::Populated { run: ONE, populated: true });
    let mut b = Steps::killing(KillMode::Graceful);
    b.step(Event::Terminated { run: ONE, processes: 0, trouble: None });
    populated(&mut b);
    let looks: Vec<_> = b.pass(2 * SECOND).into_iter().filter(|(_, e)| matches!(e, Effect::Look(ONE))).collect();
    assert_eq!(looks.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [SECOND]);
    // Somebody moves a process into it after it was empty: it goes the way of the others.
    b.step(Event::Populated { run: ONE, populated: false });
    assert_eq!(b.phase(), Some(Phase::Finished));
    assert!(has(&populated(&mut b), |e| matches!(e, Effect::Kill(ONE))));
    assert_eq!(b.phase(), Some(Phase::Stopping));
    let mut b = Steps::live(spec(ONE));
    b.step(Event::MainExited { run: ONE, status: None, oom: false });
    b.step(Event::Populated { run: ONE, populated: false });
    populated(&mut b);
    assert_eq!(b.phase(), Some(Phase::Running));
    b.pass(SECOND / 10);
    assert_eq!(
        reason(&populated(&mut b), EventKind::KillIntent),
        Some("its main process exited and left others behind")
    );
}

#[test]
fn a_receipt_has_each_step_with_its_time() {
    let mut b = Steps::killing(KillMode::Graceful);
    b.pass(2 * MS);
    b.step(Event::Terminated { run: ONE, processes: 3, trouble: None });
    b.pass(5 * SECOND);
    b.killed(2);
    b.pass(MS);
    let receipt = b.ends().receipt.unwrap();
    let steps: Vec<_> = receipt.steps.iter().map(|s| (s.kind, s.elapsed_usec, s.processes)).collect();
    let expected = [
        (StepKind::IntentRecorded, 0, 0),
        (StepKind::Terminated, 2_000, 3),
        (StepKind::Killed, 5_002_000, 2),
        (StepKind::Emptied, 5_003_000, 0),
    ];
    assert_eq!(steps, expected);
    assert_eq!((receipt.terminated, receipt.killed, receipt.duration_usec), (3, 2, 5_003_000));
    // Nobody was seen: there is nothing to be explained.
    let mut b = Steps::live(spec(ONE));
    b.kill(KillMode::Force);
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    assert_eq!(reason(&b.killed(0), EventKind::RunKilled), Some(""));
    assert_eq!(b.ends().receipt.unwrap().explanation, "");
}

#[test]
fn a_run_was_killed_if_anything_was_sent_to_it_and_else_ended_by_itself() {
    for (processes, expected) in [
        (1, Outcome::Killed { reason: KillReason::Requested { text: "because".into() } }),
        (0, Outcome::Signaled { signal: 15 }),
    ] {
        let mut b = Steps::killing(KillMode::Force);
        b.killed(processes);
        assert_eq!(b.ends().outcome, Some(expected), "{processes}");
    }
}
