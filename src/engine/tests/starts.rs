//! How many are started, and when one is ready.

use super::*;

#[test]
fn no_more_runs_are_live_than_are_allowed_and_a_reload_counts_at_once() {
    let mut b = Steps::new(1);
    assert_eq!(b.engine.live(), 0);
    b.launch(spec(ONE));
    assert_eq!(b.engine.live(), 1);
    let refused = b.launch(spec(TWO));
    let [Err(refusal)] = answers(&refused)[..] else { panic!("{refused:?}") };
    assert_eq!(refusal.kind, ErrorKind::LimitExceeded);
    assert!(has(&refused, |e| matches!(e, Effect::CloseGate(TWO))), "nothing of it is executed");
    b.step(Event::Configured(Settings { max_runs: 2, ..Settings::default() }));
    assert!(answers(&b.launch(spec(TWO))).is_empty());
    assert_eq!((b.engine.live(), b.engine.runs().count()), (2, 2));
    b.step(Event::Configured(Settings { max_runs: 9, ..Settings::default() }));
    let twice = b.launch(spec(TWO));
    assert!(matches!(answers(&twice)[..], [Err(Error { kind: ErrorKind::Internal, .. })]), "{twice:?}");
}

#[test]
fn it_is_known_who_is_being_contained() {
    let mut b = Steps::new(9);
    b.launch(spec(ONE));
    assert!(!b.engine.is_containing(ONE));
    b.step(Event::Recorded(Ticket::Launch(ONE)));
    assert!(b.engine.is_containing(ONE) && !b.engine.is_containing(TWO));
}

#[test]
fn a_run_is_looked_at_for_its_first_output_soon_and_then_ever_later() {
    let mut b = initializing(Readiness::Output, None);
    let mut looks = Vec::new();
    for _ in 0..12 {
        let next = b.engine.next_deadline().unwrap();
        looks
            .extend(wants_probe(&b.pass(next.since(b.now.mono))).iter().map(|_| b.now.mono.since(Mono(5_000_000_000))));
        b.step(Event::Probed { run: ONE, output: false });
    }
    assert_eq!(looks[..4], [50 * MS, 100 * MS, 200 * MS, 400 * MS], "{looks:?}");
    for pair in looks.windows(2) {
        assert!(pair[1] <= 2 * pair[0] + SECOND, "never late by more than its age and the grid: {pair:?}");
    }
    // Later looks fall together with those of other runs.
    assert!(looks[8..].iter().all(|at| (5 * SECOND + *at).subsec_nanos() == 0), "{looks:?}");
    b.step(Event::Probed { run: ONE, output: true });
    assert_eq!((b.phase(), wants_probe(&b.pass(60 * SECOND)).len()), (Some(Phase::Running), 0));
}

#[test]
fn who_is_ready_at_once_or_says_so_itself_is_not_looked_at_for_output() {
    for readiness in [Readiness::Exec, Readiness::Notify] {
        let mut b = initializing(readiness, None);
        let before = b.phase();
        assert_eq!(wants_probe(&b.pass(60 * SECOND)), [], "{readiness:?}");
        // A look that somebody had asked for changes nothing either.
        b.step(Event::Probed { run: ONE, output: true });
        assert_eq!((b.phase(), wants_probe(&b.pass(60 * SECOND)).len()), (before, 0), "{readiness:?}");
    }
}

#[test]
fn init_timeout_ends_what_is_not_ready_after_a_last_look_and_is_over_with_the_first_output() {
    let mut b = initializing(Readiness::Output, Some(10 * SECOND));
    b.pass(9 * SECOND);
    assert_eq!(b.run().timers.get(&Rule::InitTimeout).map(|t: &Timer| t.allowed), Some(10 * SECOND));
    b.step(Event::Probed { run: ONE, output: false });
    assert_eq!(b.phase(), Some(Phase::Initializing), "its time is not over");
    assert!(wants_probe(&b.pass(SECOND)).contains(&SECOND), "a look before the kill");
    let mut ready = Steps { engine: Engine::new(Settings { max_runs: 9, ..Settings::default() }), now: b.now };
    ready.step(Event::Adopt { run: Box::new(b.kept()), found: there() });
    let ended = b.step(Event::Probed { run: ONE, output: false });
    assert_eq!(b.phase(), Some(Phase::Stopping));
    let intent = audit(&ended)[0];
    assert_eq!(
        (intent.reason.as_str(), &intent.details["grace_usec"]),
        ("init_timeout of 10 s is over", &json!(5_000_000))
    );
    assert_eq!(wants_probe(&b.pass(60 * SECOND)), [], "it is not looked at any more");
    ready.step(Event::Probed { run: ONE, output: true });
    ready.pass(60 * SECOND);
    assert_eq!(ready.phase(), Some(Phase::Running));
}

#[test]
fn one_that_notifies_is_ended_by_its_init_timeout_too_and_with_a_warning_alone_goes_on_being_looked_at() {
    let mut b = initializing(Readiness::Notify, Some(10 * SECOND));
    assert_eq!(wants_probe(&b.pass(10 * SECOND)), [10 * SECOND]);
    b.step(Event::Probed { run: ONE, output: true });
    assert_eq!(b.phase(), Some(Phase::Stopping), "output is nothing to it");
    let mut plain = spec(ONE);
    plain.limits.watch.init_action = crate::model::Action::Warn;
    plain.limits.readiness = Readiness::Output;
    plain.limits.init_timeout = Some(10 * SECOND);
    let mut b = Steps::live(plain);
    b.step(Event::OomKilled { run: ONE, kills: 1 });
    b.pass(10 * SECOND);
    let over = b.step(Event::Probed { run: ONE, output: false });
    assert_eq!((b.phase(), b.run().health()), (Some(Phase::Initializing), Health::Critical));
    let changed = audit(&over).into_iter().find(|e| e.kind == EventKind::HealthChanged).unwrap();
    assert_eq!(changed.reason, "critical: init_timeout of 10 s is over", "and not what is less bad");
    assert!(!wants_probe(&b.pass(60 * SECOND)).is_empty());
    b.step(Event::Probed { run: ONE, output: true });
    let rules: Vec<Rule> = b.run().reasons.iter().map(|r| r.rule).collect();
    assert_eq!((b.phase(), rules), (Some(Phase::Running), vec![Rule::Oom]), "that one is taken back, and no other");
}

#[test]
fn nothing_is_launched_while_the_store_is_in_trouble() {
    let mut b = Steps::new(9);
    assert!(b.engine.refuses_all().is_none());
    b.step(Event::StoreTroubled("disk full".into()));
    let refusal = b.engine.refuses_all().unwrap();
    assert_eq!(refusal.kind, ErrorKind::StoreUnavailable);
    assert!(refusal.message.contains("(disk full)"), "{refusal}");
    assert_eq!(answers(&b.launch(spec(ONE))), [&Err(refusal)]);
    b.step(Event::StoreRecovered);
    assert!(b.engine.refuses_all().is_none() && answers(&b.launch(spec(ONE))).is_empty());
}

#[test]
fn what_could_not_be_contained_is_lost_and_what_was_made_for_it_is_killed() {
    for made in [None, Some(container())] {
        let mut b = Steps::new(9);
        b.launch(spec(ONE));
        b.step(Event::Recorded(Ticket::Launch(ONE)));
        let error = Error::new(ErrorKind::LaunchFailed, "no cgroup can be made".to_owned());
        let (kills, refusal) = (made.is_some(), Err(error.clone()));
        let effects = b.step(Event::NotContained { run: ONE, error, container: made });
        assert_eq!(answers(&effects), [&refusal]);
        assert!(has(&effects, |e| matches!(e, Effect::CloseGate(ONE))));
        assert_eq!(b.phase(), Some(if kills { Phase::Stopping } else { Phase::Finished }));
        let why = outcome(&b).map(|o| o.to_string());
        assert_eq!(why.is_some_and(|why| why.contains("no cgroup can be made")), !kills);
    }
}
