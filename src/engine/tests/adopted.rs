//! What an earlier instance left behind.

use super::*;

#[test]
fn a_launch_that_left_nothing_behind_is_lost_and_one_that_had_begun_is_over() {
    let mut b = Steps::new(9);
    b.launch(spec(ONE));
    b.step(Event::Recorded(Ticket::Launch(ONE)));
    let (adopted, effects) = next(&b, Found::Gone);
    let Some(Outcome::Lost { why }) = outcome(&adopted) else { panic!("{effects:?}") };
    assert_eq!(why, "the instance stopped during its launch, and nothing was executed");
    let (mut adopted, effects) = next(&b, there());
    assert!(
        audit(&effects).iter().any(|e| e.kind == EventKind::KillIntent && e.reason == "its launch did not complete")
    );
    let effects = adopted.step(Event::Recorded(Ticket::Kill(ONE)));
    assert!(has(&effects, |e| matches!(e, Effect::Kill(ONE))), "nobody waits for it: {effects:?}");
    // How one ended that was live is asked for first, and then for as long as a client may need.
    let (mut adopted, _) = next(&Steps::live(spec(ONE)), Found::Gone);
    assert_eq!(adopted.phase(), Some(Phase::Finished));
    while outcome(&adopted).is_none() {
        assert!(adopted.pass(SECOND / 2).iter().all(|(_, e)| matches!(e, Effect::AskStatus(ONE))));
        adopted.step(Event::StatusAsked { run: ONE, status: None });
        assert!(adopted.now.mono.since(Mono(5_000_000_000)) < 10 * SECOND);
    }
    let why = Some(Outcome::Lost { why: "nobody reported how its main process ended".into() });
    assert_eq!(outcome(&adopted), why);
}

#[test]
fn the_next_instance_looks_for_output_only_of_who_is_not_ready_and_does_not_notify() {
    for (readiness, looks) in [(Readiness::Output, true), (Readiness::Notify, false), (Readiness::Exec, false)] {
        let (mut adopted, _) = next(&initializing(readiness, None), there());
        assert_eq!(!wants_probe(&adopted.pass(SECOND)).is_empty(), looks, "{readiness:?}");
    }
}

#[test]
fn what_an_earlier_instance_has_sent_is_its_kill_and_what_ended_before_that_is_not() {
    let mut b = Steps::live(spec(ONE));
    b.kill(KillMode::Graceful);
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    let killed = Outcome::Killed { reason: KillReason::Requested { text: "because".into() } };
    for (status, expected) in [
        (ExitStatus::Signaled(15), killed.clone()),
        (ExitStatus::Signaled(9), killed),
        (ExitStatus::Signaled(11), Outcome::Signaled { signal: 11 }),
        (ExitStatus::Exited(0), Outcome::Exited { code: 0 }),
    ] {
        let (mut adopted, _) = next(&b, Found::Gone);
        adopted.step(Event::StatusAsked { run: ONE, status: Some(status) });
        assert_eq!(outcome(&adopted), Some(expected), "{status:?}");
    }
    // Without a kill it was somebody else.
    let (mut adopted, _) = next(&Steps::live(spec(ONE)), Found::Gone);
    adopted.step(Event::StatusAsked { run: ONE, status: Some(ExitStatus::Signaled(15)) });
    assert_eq!(outcome(&adopted), Some(Outcome::Signaled { signal: 15 }));
}

#[test]
fn the_next_instance_kills_on_and_reports_what_cannot_be_killed_once() {
    let mut b = Steps::live(spec(ONE));
    b.kill(KillMode::Force);
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    b.step(Event::Killed { run: ONE, processes: 2, trouble: None });
    let wants_inspection = |effects: &[(Duration, Effect)]| {
        effects.iter().filter(|(_, e)| matches!(e, Effect::Inspect(ONE))).map(|(at, _)| *at).collect::<Vec<_>>()
    };
    b.at(b.now.mono + 40 * SECOND);
    let (mut adopted, effects) = next(&b, there());
    assert!(has(&effects, |e| matches!(e, Effect::Kill(ONE))), "{effects:?}");
    assert_eq!(wants_inspection(&adopted.pass(40 * SECOND)), [20 * SECOND], "60 s after the kill");
    let seen =
        ProcessSeen { pid: 8, name: "sh".into(), state: 'D', wchan: Some("nfs".into()), ..ProcessSeen::default() };
    let evidence = Evidence { processes: vec![seen], total: 2, ..Evidence::default() };
    let effects = adopted.step(Event::Inspected { run: ONE, evidence });
    let told = audit(&effects)[0];
    assert_eq!(told.reason, "1 min after SIGKILL sh (pid 8, state D, in nfs) is still there");
    assert_eq!((told.kind, adopted.run().health()), (EventKind::Unkillable, Health::Critical));
    let (mut third, _) = next(&adopted, there());
    assert_eq!(wants_inspection(&third.pass(3600 * SECOND)), []);
}
