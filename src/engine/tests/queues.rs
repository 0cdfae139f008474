//! Who waits, for what, and who has a turn next.

use super::*;
use crate::model::Queued;

fn id(n: u8) -> RunId {
    RunId::from_bytes([0, 0, 0, 0, 1, n])
}

fn of(n: u8, uid: u32, workflow: &str) -> RunSpec {
    RunSpec { uid, workflow: workflow.into(), ..spec(id(n)) }
}

/// So many at once, on the host and of these workflows.
fn limited(host: Option<u64>, workflows: &[(&str, u64)]) -> Steps {
    let mut steps = Steps::new(1000);
    steps.step(Event::Configured(settings(host, workflows)));
    steps
}

fn settings(host: Option<u64>, workflows: &[(&str, u64)]) -> Settings {
    let workflows = workflows.iter().map(|(name, n)| ((*name).to_owned(), Some(*n))).collect();
    Settings { max_runs: 1000, concurrency: Concurrency { host, workflows, others: None } }
}

/// Asked for, and on record: started or queued.
fn submit(b: &mut Steps, spec: RunSpec) -> Vec<Effect> {
    let run = spec.id;
    let mut effects = b.launch(spec);
    let ticket = match b.engine.run(run).map(|r| &r.state) {
        Some(State::Queued { .. }) => Ticket::Queue(run),
        _ => Ticket::Launch(run),
    };
    effects.extend(b.step(Event::Recorded(ticket)));
    effects
}

/// The runs that are started, in order.
fn begun(effects: &[Effect]) -> Vec<RunId> {
    effects.iter().filter_map(|e| if let Effect::Contain(run) = e { Some(*run) } else { None }).collect()
}

/// Its command is executed, and it exits. Gives what follows.
fn exits(b: &mut Steps, run: RunId) -> Vec<Effect> {
    let main = ProcessId { pid: 9, start_ticks: 9 };
    b.step(Event::Contained { run, main, container: container(), notices: Vec::new() });
    b.step(Event::Recorded(Ticket::Start(run)));
    b.step(Event::GateOpened { run, result: Ok(()) });
    b.step(Event::MainExited { run, status: Some(ExitStatus::Exited(0)), oom: false });
    let mut effects = b.step(Event::Populated { run, populated: false });
    effects.extend(b.step(Event::Recorded(Ticket::Finish(run))));
    effects.extend(b.step(Event::Removed { run, result: Removal::Gone }));
    effects
}

/// Lets every run that has a turn exit at once, one after the other; gives the order.
fn all_in_turn(b: &mut Steps, mut running: Vec<RunId>) -> Vec<RunId> {
    let mut order = Vec::new();
    while !running.is_empty() {
        let next = running.remove(0);
        order.push(next);
        running.extend(begun(&exits(b, next)));
    }
    order
}

#[test]
fn a_run_beyond_the_limit_waits_and_is_accepted_once_that_is_on_record() {
    let mut b = limited(None, &[("builder", 1)]);
    assert_eq!(begun(&submit(&mut b, of(1, 7, "builder"))), [id(1)]);
    let asked = b.launch(of(2, 7, "builder"));
    assert!(answers(&asked).is_empty() && has(&asked, |e| matches!(e, Effect::Wait(run) if *run == id(2))));
    let kinds: Vec<EventKind> = audit(&asked).iter().map(|e| e.kind).collect();
    assert_eq!(kinds, [EventKind::RunAccepted, EventKind::RunQueued]);
    assert_eq!(audit(&asked)[1].reason, "1 builder run is running of 1 allowed");
    assert!(begun(&exits(&mut b, id(1))).is_empty(), "it has no turn before it is on record");
    let shown = b.engine.view(id(2), b.now).unwrap().queued;
    assert_eq!(shown, Some(Queued { place: 1, why: audit(&asked)[1].reason.clone(), ..Queued::default() }));
    let recorded = b.step(Event::Recorded(Ticket::Queue(id(2))));
    assert!(matches!(answers(&recorded)[..], [Ok(Answer::Run(run))] if *run == id(2)));
    assert_eq!(begun(&recorded), [id(2)]);
    // Another workflow has no limit.
    assert_eq!(begun(&submit(&mut b, of(3, 7, "lina"))), [id(3)]);
}

#[test]
fn users_take_turns_and_so_do_their_workflows_and_within_one_who_came_first_is_first() {
    let mut b = limited(Some(1), &[]);
    let first = submit(&mut b, of(0, 7, "a"));
    for n in 1..=6 {
        submit(&mut b, of(n, 7, if n < 5 { "a" } else { "b" }));
    }
    for n in 10..=12 {
        submit(&mut b, of(n, 8, "a"));
    }
    let order = all_in_turn(&mut b, begun(&first));
    let expected = [0, 1, 10, 5, 11, 2, 12, 6, 3, 4].map(id);
    assert_eq!(order, expected, "the user with three runs is through when the one with seven has had as many turns");
}

#[test]
fn who_comes_anew_is_neither_before_nor_long_behind_who_waits() {
    let mut b = limited(Some(1), &[]);
    let first = submit(&mut b, of(0, 7, "a"));
    for n in 1..=5 {
        submit(&mut b, of(n, 7, "a"));
    }
    assert_eq!(begun(&exits(&mut b, begun(&first)[0])), [id(1)]);
    // One run at a time, each asked for when the last is over: half of the turns, and no more.
    submit(&mut b, of(50, 8, "a"));
    let mut order = Vec::new();
    let mut running = id(1);
    for n in 51..57 {
        let next = begun(&exits(&mut b, running))[0];
        order.push(next);
        if next.to_string() >= id(50).to_string() {
            submit(&mut b, of(n, 8, "a"));
        }
        running = next;
    }
    let of_the_other = order.iter().filter(|run| **run >= id(50)).count();
    assert_eq!(of_the_other, 3, "{order:?}");
}

#[test]
fn a_workflow_at_its_limit_holds_up_nobody_else() {
    let mut b = limited(Some(3), &[("slow", 1)]);
    submit(&mut b, of(1, 7, "slow"));
    for n in 2..=4 {
        assert!(begun(&submit(&mut b, of(n, 7, "slow"))).is_empty());
    }
    assert_eq!(begun(&submit(&mut b, of(5, 7, "fast"))), [id(5)]);
    assert_eq!(begun(&submit(&mut b, of(6, 7, "fast"))), [id(6)]);
    let waits = submit(&mut b, of(7, 7, "fast"));
    assert_eq!(audit(&waits)[1].reason, "3 runs are running of 3 allowed on this host");
    assert_eq!(begun(&exits(&mut b, id(5))), [id(7)], "those of slow came first, and have no room");
    assert_eq!(begun(&exits(&mut b, id(1))), [id(2)]);
}

#[test]
fn a_reload_that_raises_a_limit_starts_those_who_wait_at_once() {
    let mut b = limited(Some(1), &[]);
    [0, 3, 1, 2].into_iter().for_each(|n| drop(submit(&mut b, of(n, 7, "a"))));
    assert_eq!(begun(&b.step(Event::Configured(settings(Some(3), &[])))), [id(3), id(1)]);
    assert_eq!(begun(&b.step(Event::Configured(settings(None, &[])))), [id(2)]);
}

#[test]
fn a_queued_run_that_is_killed_executes_nothing_and_says_so() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(1, 7, "a"));
    submit(&mut b, spec(ONE));
    submit(&mut b, of(3, 7, "test"));
    assert_eq!(b.phase(), Some(Phase::Queued));
    let killed = b.kill(KillMode::Graceful);
    assert!(answers(&killed).is_empty(), "first it is put on record");
    let kinds: Vec<EventKind> = audit(&killed).iter().map(|e| e.kind).collect();
    assert_eq!(kinds, [EventKind::KillIntent, EventKind::RunFinished]);
    assert!(!has(&killed, |e| matches!(e, Effect::Terminate(_) | Effect::Kill(_) | Effect::Contain(_))));
    let over = b.step(Event::Recorded(Ticket::Finish(ONE)));
    assert!(matches!(answers(&over)[..], [Ok(Answer::Kill(_))]), "{over:?}");
    let Some(Effect::Finish(view)) = over.iter().find(|e| matches!(e, Effect::Finish(_))) else { panic!("{over:?}") };
    let outcome = view.outcome.clone().unwrap();
    assert_eq!((outcome.to_string().as_str(), outcome.exit_status()), ("killed(because)", 137));
    assert!(view.receipt.is_none() && view.notices.iter().any(|n| n.contains("nothing of it was executed")));
    assert_eq!(begun(&exits(&mut b, id(1))), [id(3)], "it is not in the queue any more");
}

#[test]
fn who_waits_too_long_is_warned_of_and_given_up() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(1, 7, "a"));
    let plain = spec(ONE);
    let limits = Limits { queue_timeout: Some(10 * SECOND), ..plain.limits.clone() };
    submit(&mut b, RunSpec { limits, ..plain });
    assert!(b.pass(8 * SECOND - MS).is_empty());
    let near: Vec<Effect> = b.pass(MS).into_iter().map(|(_, e)| e).collect();
    assert!(audit(&near).iter().any(|e| e.kind == EventKind::LimitWarning && e.reason.contains("given up in 2 s")));
    let answer =
        b.step(Event::Extend { run: ONE, rule: Rule::QueueTimeout, by: SECOND, actor: me(), reply: ReplyTo(3) });
    assert!(matches!(answers(&answer)[..], [Ok(Answer::Deadline(_))]), "{answer:?}");
    b.pass(3 * SECOND - MS);
    assert_eq!(b.phase(), Some(Phase::Queued));
    b.pass(MS);
    let outcome = outcome(&b).unwrap();
    assert_eq!((outcome.to_string().as_str(), outcome.exit_status()), ("killed(queue_timeout of 11 s is over)", 124));
}

#[test]
fn who_has_a_turn_is_not_held_to_the_time_of_waiting_any_more() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(1, 7, "a"));
    let plain = spec(ONE);
    let limits = Limits { queue_timeout: Some(10 * SECOND), ..plain.limits.clone() };
    submit(&mut b, RunSpec { limits, ..plain });
    b.pass(9 * SECOND);
    assert_eq!(b.run().health(), Health::Warning);
    assert_eq!(begun(&exits(&mut b, id(1))), [ONE]);
    assert_eq!(b.run().health(), Health::Healthy, "what it was warned of is over");
    b.pass(15 * SECOND);
    assert_eq!(b.phase(), Some(Phase::Starting));
}

#[test]
fn nobody_has_a_turn_while_the_audit_cannot_be_written() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(1, 7, "a"));
    submit(&mut b, of(2, 7, "a"));
    b.step(Event::StoreTroubled("disk full".into()));
    assert!(begun(&exits(&mut b, id(1))).is_empty());
    assert_eq!(begun(&b.step(Event::StoreRecovered)), [id(2)]);
    // One that cannot be put on record is refused.
    for is_silent in [false, true] {
        let asked = b.launch(of(3, 7, "a"));
        assert!(answers(&asked).is_empty());
        let refused = match is_silent {
            false => b.step(Event::NotRecorded(Ticket::Queue(id(3)))),
            true => b.pass(LAUNCH_RECORD_WAIT).into_iter().map(|(_, effect)| effect).collect(),
        };
        assert!(matches!(answers(&refused)[..], [Err(Error { kind: ErrorKind::StoreUnavailable, .. })]), "{refused:?}");
        b.step(Event::Recorded(Ticket::Finish(id(3))));
    }
    assert!(begun(&exits(&mut b, id(2))).is_empty());
}

#[test]
fn a_foreground_run_is_answered_when_it_has_its_turn_and_goes_with_its_client() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(1, 7, "a"));
    let client = Some(ProcessId { pid: 3, start_ticks: 3 });
    assert!(answers(&submit(&mut b, RunSpec { client, ..spec(ONE) })).is_empty());
    assert!(answers(&submit(&mut b, RunSpec { client, ..spec(TWO) })).is_empty());
    let gone = b.step(Event::ClientGone(ONE));
    assert!(matches!(answers(&gone)[..], [Err(Error { kind: ErrorKind::LaunchFailed, .. })]), "{gone:?}");
    assert!(has(&gone, |e| matches!(e, Effect::CloseGate(ONE))));
    assert_eq!(outcome(&b), Some(Outcome::Killed { reason: KillReason::ClientGone }));
    assert_eq!(begun(&exits(&mut b, id(1))), [TWO]);
    let main = ProcessId { pid: 9, start_ticks: 9 };
    b.step(Event::Contained { run: TWO, main, container: container(), notices: Vec::new() });
    let started = b.step(Event::Recorded(Ticket::Start(TWO)));
    assert!(matches!(answers(&started)[..], [Ok(Answer::Run(TWO))]), "{started:?}");
}

#[test]
fn what_only_a_live_run_can_do_is_refused_to_a_queued_one() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(1, 7, "a"));
    submit(&mut b, spec(ONE));
    let freeze = b.step(Event::Freeze { run: ONE, frozen: true, actor: me(), reply: ReplyTo(3) });
    let said = Event::Heard { run: ONE, messages: Vec::new(), refused: Default::default(), reply: Some(ReplyTo(4)) };
    let said = b.step(said);
    let extend = b.step(Event::Extend { run: ONE, rule: Rule::MaxRuntime, by: SECOND, actor: me(), reply: ReplyTo(5) });
    for refused in [freeze, said, extend] {
        let [Err(e)] = answers(&refused)[..] else { panic!("{refused:?}") };
        assert_eq!(e.kind, ErrorKind::InvalidArgument, "{e}");
    }
    let shown = b.step(Event::Shown(ONE));
    assert!(has(&shown, |e| matches!(e, Effect::Publish(ONE))), "what it waits for is looked at anew");
}

#[test]
fn the_next_instance_queues_again_who_waited_in_the_same_order_and_with_the_same_patience() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(9, 7, "a"));
    let plain = spec(ONE);
    let limits = Limits { queue_timeout: Some(100 * SECOND), ..plain.limits.clone() };
    submit(&mut b, RunSpec { limits, ..plain });
    submit(&mut b, spec(TWO));
    b.pass(10 * SECOND);
    let kept = |run| serde_json::from_str::<Run>(&serde_json::to_string(b.engine.run(run).unwrap()).unwrap()).unwrap();
    assert!(kept(ONE).is_waiting() && !kept(id(9)).is_waiting());
    let mut next = limited(Some(1), &[]);
    // Another boot, whose clock has hardly begun; it was down for 80 s.
    next.now = Now { mono: Mono(1_000_000_000), wall: Wall(b.now.wall.0 + 80_000_000) };
    for run in [TWO, ONE] {
        let taken = next.step(Event::Adopt { run: Box::new(kept(run)), found: Found::Waiting });
        assert!(begun(&taken).is_empty(), "until all are taken up it is not known who runs");
    }
    assert_eq!(begun(&next.step(Event::Recovered)), [ONE]);
    assert_eq!(next.engine.run(TWO).map(Run::phase), Some(Phase::Queued));
    // In whatever boot, how long ago it came is known: without that nothing that it leaves would be known to be its own.
    let mut later = limited(Some(1), &[]);
    later.now = Now { mono: Mono(5_000_000_000_000), ..next.now };
    later.step(Event::Adopt { run: Box::new(kept(ONE)), found: Found::Waiting });
    later.step(Event::Recovered);
    let main = ProcessId { pid: 9, start_ticks: 9 };
    later.step(Event::Contained { run: ONE, main, container: container(), notices: Vec::new() });
    assert_eq!(later.run().worktree(1, later.now).since, Some(later.now.wall));
    // Of the hundred seconds ten are left.
    let mut alone = Steps::new(1000);
    alone.now = next.now;
    alone.step(Event::Configured(settings(Some(1), &[])));
    submit(&mut alone, of(9, 7, "a"));
    alone.step(Event::Adopt { run: Box::new(kept(ONE)), found: Found::Waiting });
    alone.step(Event::Recovered);
    alone.pass(10 * SECOND - MS);
    assert_eq!(alone.phase(), Some(Phase::Queued));
    alone.pass(MS);
    assert_eq!(outcome(&alone).map(|o| o.exit_status()), Some(124));
}

#[test]
fn a_run_that_had_its_turn_when_the_instance_died_is_queued_again_and_a_forgotten_one_is_lost() {
    let mut b = limited(Some(1), &[]);
    submit(&mut b, of(1, 7, "a"));
    submit(&mut b, spec(ONE));
    exits(&mut b, id(1));
    assert_eq!(b.phase(), Some(Phase::Starting));
    assert!(b.kept().is_waiting(), "nothing of it was executed");
    let mut next = limited(Some(1), &[]);
    next.step(Event::Adopt { run: Box::new(b.kept()), found: Found::Waiting });
    assert_eq!(begun(&next.step(Event::Recovered)), [ONE]);
    let mut lost = limited(Some(1), &[]);
    lost.step(Event::Adopt { run: Box::new(b.kept()), found: Found::Forgotten("the file is gone".into()) });
    assert_eq!(outcome(&lost), Some(Outcome::Lost { why: "the file is gone".into() }));
    // Whether its gate was opened is not on record at first; afterwards it is.
    let main = ProcessId { pid: 9, start_ticks: 9 };
    b.step(Event::Contained { run: ONE, main, container: container(), notices: Vec::new() });
    assert!(!b.kept().is_waiting() && b.kept().may_be_unopened());
    let mut again = limited(Some(1), &[]);
    again.step(Event::Adopt { run: Box::new(b.kept()), found: Found::Waiting });
    assert_eq!(again.engine.view(ONE, again.now).unwrap().spec.main, None, "what hung there is no process of it");
    assert_eq!((begun(&again.step(Event::Recovered)), again.run().started), (vec![ONE], None));
    b.step(Event::Recorded(Ticket::Start(ONE)));
    b.step(Event::GateOpened { run: ONE, result: Ok(()) });
    assert!(!b.kept().may_be_unopened());
}
