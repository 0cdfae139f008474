//! How runs end, and are told to have ended.

use super::*;

impl Steps {
    fn exited(&mut self, status: ExitStatus) -> Vec<Effect> {
        self.step(Event::MainExited { run: ONE, status: Some(status), oom: false })
    }

    fn emptied(&mut self) -> Vec<Effect> {
        self.step(Event::Populated { run: ONE, populated: false })
    }

    fn recorded(&mut self, ticket: fn(RunId) -> Ticket) -> Vec<Effect> {
        self.step(Event::Recorded(ticket(ONE)))
    }

    fn terminated(&mut self, processes: u32) -> Vec<Effect> {
        self.step(Event::Terminated { run: ONE, processes, trouble: None })
    }
}

fn requested() -> Outcome {
    Outcome::Killed { reason: KillReason::Requested { text: "because".into() } }
}

#[test]
fn a_status_of_125_is_the_commands_unless_another_instance_left_its_gate_closed() {
    let mut b = Steps::live(spec(ONE));
    let executed = b.kept();
    b.exited(ExitStatus::Exited(125));
    let told = b.emptied();
    assert_eq!(outcome(&b), Some(Outcome::Exited { code: 125 }));
    let finished = audit(&told).into_iter().find(|e| e.kind == EventKind::RunFinished).unwrap();
    assert_eq!(finished.details["status"], json!(ExitStatus::Exited(125)));

    let mut gated = Steps::new(9);
    gated.contained(spec(ONE));
    let gated = gated.kept();
    let exited = |run: Run, reported: bool| {
        let mut b = Steps::new(9);
        b.step(Event::Adopt { run: Box::new(run), found: there() });
        let status = ExitStatus::Exited(125);
        if reported {
            b.step(Event::Reported { run: ONE, status, reply: ReplyTo(3) });
        } else {
            b.step(Event::StatusAsked { run: ONE, status: Some(status) });
        }
        b.emptied();
        outcome(&b)
    };
    assert_eq!(exited(executed.clone(), false), Some(Outcome::Exited { code: 125 }));
    assert_eq!(exited(executed, true), Some(Outcome::Exited { code: 125 }));
    assert_eq!(exited(gated.clone(), true), Some(Outcome::Exited { code: 125 }), "a client reports what it has opened");
    assert!(matches!(exited(gated, false), Some(Outcome::Lost { .. })), "nothing was executed");
}

#[test]
fn a_launch_that_could_not_be_put_on_record_is_lost_and_says_why() {
    let mut b = Steps::new(9);
    b.contained(spec(ONE));
    let effects = b.step(Event::NotRecorded(Ticket::Start(ONE)));
    let [Err(refusal)] = answers(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(refusal.kind, ErrorKind::StoreUnavailable);
    b.recorded(Ticket::Kill);
    b.step(Event::Killed { run: ONE, processes: 1, trouble: None });
    b.exited(ExitStatus::Signaled(9));
    b.emptied();
    let Some(Outcome::Lost { why }) = outcome(&b) else { panic!("{:?}", b.run()) };
    assert!(why.starts_with("the launch failed: no run is started while the audit cannot be written"), "{why}");
}

#[test]
fn one_that_is_killed_before_its_gate_opens_was_killed_whatever_its_child_exits_with() {
    let mut b = Steps::new(9);
    b.contained(spec(ONE));
    let effects = b.kill(KillMode::Graceful);
    assert!(has(&effects, |e| matches!(e, Effect::CloseGate(ONE))));
    b.exited(ExitStatus::Exited(125));
    b.recorded(Ticket::Kill);
    b.terminated(0);
    b.emptied();
    assert_eq!(outcome(&b), Some(requested()));
}

#[test]
fn what_ended_by_itself_before_a_kill_did_anything_is_told_as_that() {
    let mut b = Steps::live(spec(ONE));
    b.exited(ExitStatus::Signaled(9));
    b.kill(KillMode::Graceful);
    b.recorded(Ticket::Kill);
    b.terminated(1);
    b.emptied();
    assert_eq!(outcome(&b), Some(Outcome::Signaled { signal: 9 }), "what was left was killed");

    // With its shim all of a run in a PID namespace is killed by the kernel.
    let mut b = Steps::live(spec(ONE));
    b.step(Event::ContainmentLost(ONE));
    b.exited(ExitStatus::Signaled(9));
    b.recorded(Ticket::Kill);
    b.step(Event::Killed { run: ONE, processes: 0, trouble: None });
    b.emptied();
    assert_eq!(outcome(&b), Some(Outcome::Killed { reason: KillReason::ContainmentLost }));

    // Nobody was there to be signalled: how it ended is still to be told.
    let mut b = Steps::live(spec(ONE));
    b.kill(KillMode::Graceful);
    b.recorded(Ticket::Kill);
    b.terminated(0);
    b.emptied();
    assert_eq!(outcome(&b), None);
    b.exited(ExitStatus::Exited(3));
    assert_eq!(outcome(&b), Some(Outcome::Exited { code: 3 }));
    assert_eq!(b.engine.view(ONE, b.now).unwrap().receipt.unwrap().terminated, 0);
}

/// Whether something is wanted first at this time from now, with a store that says nothing.
fn first(b: &mut Steps, is: impl Fn(&Effect) -> bool) -> Option<Duration> {
    b.pass(60 * SECOND).into_iter().find(|(_, e)| is(e)).map(|(at, _)| at)
}

#[test]
fn a_store_that_says_nothing_holds_up_each_step_for_a_bounded_time() {
    let refused = |e: &Effect| matches!(e, Effect::Reply(_, Err(e)) if e.kind == ErrorKind::StoreUnavailable);
    let mut b = Steps::new(9);
    b.launch(spec(ONE));
    assert_eq!(first(&mut b, refused), Some(5 * SECOND), "to be accepted");
    let mut b = Steps::new(9);
    b.contained(spec(ONE));
    assert_eq!(first(&mut b, refused), Some(5 * SECOND), "to be started");
    assert!(b.phase() != Some(Phase::Running));
    let mut b = Steps::live(spec(ONE));
    b.kill(KillMode::Graceful);
    assert_eq!(first(&mut b, |e| matches!(e, Effect::Terminate(ONE))), Some(SECOND / 2), "to be killed");
    let mut b = Steps::live(spec(ONE));
    b.exited(ExitStatus::Exited(0));
    b.emptied();
    assert_eq!(first(&mut b, |e| matches!(e, Effect::Remove(ONE))), Some(SECOND / 2), "to be finished");
    let mut b = Steps::new(9);
    b.launch(spec(ONE));
    b.recorded(Ticket::Launch);
    let failed = |e: &Effect| matches!(e, Effect::Reply(_, Err(e)) if e.kind == ErrorKind::LaunchFailed);
    assert_eq!(first(&mut b, failed), Some(18 * SECOND), "to be contained by somebody else");
    // Nothing follows from a launch that was accepted before it is started, with whose record it is synced.
    let tickets = [Ticket::Launch, Ticket::Start, Ticket::Kill, Ticket::Finish, Ticket::Escapees].map(|t| t(ONE));
    assert_eq!(tickets.map(Ticket::is_provisional), [true, false, false, false, false]);
}

#[test]
fn a_cgroup_that_is_still_in_use_is_removed_later_and_left_alone_after_five_seconds() {
    let over = || {
        let mut b = Steps::live(spec(ONE));
        b.exited(ExitStatus::Exited(0));
        b.emptied();
        b.recorded(Ticket::Finish);
        b
    };
    for busy in [Removal::Busy, Removal::Failed("device busy".into())] {
        let (mut b, mut waits) = (over(), Vec::new());
        let told = loop {
            let effects = b.step(Event::Removed { run: ONE, result: busy.clone() });
            let Some(next) = b.engine.next_deadline() else { break effects };
            waits.push(next.since(b.now.mono));
            assert!(has(&b.pass(waits[waits.len() - 1]).into_iter().map(|(_, e)| e).collect::<Vec<_>>(), |e| {
                matches!(e, Effect::Remove(ONE))
            }));
            assert!(waits.len() < 100, "for ever");
        };
        assert_eq!(waits[..9], [1, 2, 4, 8, 16, 32, 64, 100, 100].map(|ms| ms * MS));
        assert_eq!(waits.len(), 59);
        assert!(audit(&told).iter().any(|e| e.kind == EventKind::ForeignCgroup));
        let finished = told.iter().find_map(|e| if let Effect::Finish(view) = e { Some(view) } else { None }).unwrap();
        assert!(finished.notices[0].starts_with("its container was left alone: "), "{:?}", finished.notices);
    }
    let mut b = over();
    let told = b.step(Event::Removed { run: ONE, result: Removal::Refused("another inode".into()) });
    assert!(audit(&told)[0].reason == "another inode" && b.engine.run(ONE).is_none());
    let mut b = over();
    let told = b.step(Event::Removed { run: ONE, result: Removal::Gone });
    assert!(audit(&told).is_empty() && b.engine.run(ONE).is_none());
}
