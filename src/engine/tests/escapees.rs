//! When escapees are looked for and acted on, and which answers count.

use super::*;
use crate::model::{Action, Escapee, EscapeeAct, EscapeeState, Fate, Sought};

fn watched(escapees: Action) -> RunSpec {
    let plain = spec(ONE);
    let watch = Watch { escapees, ..plain.limits.watch };
    RunSpec { limits: Limits { watch, ..plain.limits.clone() }, ..plain }
}

fn escapee(pid: u32) -> Escapee {
    let process = ProcessId { pid, start_ticks: 50 };
    Escapee { process, name: "sh".into(), cgroup: "/elsewhere".into(), fate: Fate::LeftAlone }
}

fn looks(effects: &[Effect]) -> Vec<&Sought> {
    effects.iter().filter_map(|e| if let Effect::Seek(of) = e { Some(&**of) } else { None }).collect()
}

fn acts(effects: &[Effect]) -> Vec<(EscapeeAct, &Sought)> {
    effects
        .iter()
        .filter_map(|e| if let Effect::ActOnEscapees { of, act } = e { Some((*act, &**of)) } else { None })
        .collect()
}

fn timed(effects: Vec<(Duration, Effect)>) -> (Vec<Duration>, Vec<Effect>) {
    let wanted = |e: &Effect| matches!(e, Effect::Seek(_) | Effect::ActOnEscapees { .. });
    effects.into_iter().filter(|(_, e)| wanted(e)).unzip()
}

impl Steps {
    fn found(&mut self, number: u64, pids: &[u32]) -> Vec<Effect> {
        self.step(Event::Sought { run: ONE, number, found: pids.iter().map(|pid| escapee(*pid)).collect() })
    }

    fn acted(&mut self, number: u64, act: EscapeeAct, state: EscapeeState) -> Vec<Effect> {
        self.step(Event::ActedOnEscapees { run: ONE, number, act, states: vec![(escapee(5).process, state)] })
    }

    /// One was found, and SIGTERM is on its way to it. Gives the number of that.
    fn hunting() -> (Self, u64) {
        let mut b = Self::live(watched(Action::Kill));
        let asked = looks(&b.step(Event::Shown(ONE)))[0].number;
        b.found(asked, &[5]);
        let effects = b.step(Event::Recorded(Ticket::Escapees(ONE)));
        let [(EscapeeAct::Terminate, of)] = acts(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!(of.known, [escapee(5).process]);
        let number = of.number;
        (b, number)
    }

    fn fates(&self) -> Vec<Fate> {
        self.run().escapes.known.iter().map(|e| e.fate).collect()
    }
}

#[test]
fn a_persons_question_is_the_occasion_for_a_look_once_the_last_is_five_seconds_old() {
    let mut b = Steps::live(watched(Action::Warn));
    assert_eq!(looks(&b.step(Event::Shown(ONE))).len(), 1);
    b.pass(5 * SECOND - MS);
    assert!(looks(&b.step(Event::Shown(ONE))).is_empty());
    b.pass(MS);
    assert_eq!(looks(&b.step(Event::Shown(ONE))).len(), 1);
}

#[test]
fn the_end_of_a_run_waits_for_the_look_at_its_end_and_not_for_an_earlier_one() {
    let mut b = Steps::live(watched(Action::Warn));
    let early = looks(&b.step(Event::Shown(ONE)))[0].number;
    b.kill(KillMode::Force);
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    b.step(Event::Killed { run: ONE, processes: 1, trouble: None });
    b.step(Event::MainExited { run: ONE, status: Some(ExitStatus::Signaled(9)), oom: false });
    let emptied = b.step(Event::Populated { run: ONE, populated: false });
    let last = looks(&emptied)[0].number;
    assert_ne!(early, last);
    b.found(early, &[]);
    assert_eq!(outcome(&b), None);
    b.found(last, &[5]);
    assert!(outcome(&b).is_some());
    assert_eq!(b.engine.view(ONE, b.now).unwrap().receipt.unwrap().escapees, [escapee(5)]);
}

#[test]
fn a_kill_looks_for_escapees_at_once_where_they_are_ended() {
    for (action, at_once) in [(Action::Kill, 1), (Action::Warn, 0), (Action::Off, 0)] {
        let mut b = Steps::live(watched(action));
        b.kill(KillMode::Graceful);
        assert_eq!(looks(&b.step(Event::Recorded(Ticket::Kill(ONE)))).len(), at_once, "{action:?}");
    }
}

#[test]
fn a_kill_does_not_hold_up_those_that_are_being_ended() {
    // SIGTERM was answered: what became of them is looked at on.
    let (mut b, number) = Steps::hunting();
    b.acted(number, EscapeeAct::Terminate, EscapeeState::There);
    b.kill(KillMode::Graceful);
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    let (at, effects) = timed(b.pass(10 * MS));
    assert_eq!((at.first(), acts(&effects)[0].0), (Some(&Duration::ZERO), EscapeeAct::Look));
    // It was not: an answer has its time, and then nothing is known.
    let (mut b, number) = Steps::hunting();
    b.kill(KillMode::Graceful);
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    assert_eq!(timed(b.pass(SECOND - MS)).0, []);
    assert_eq!(b.fates(), [Fate::Ending]);
    b.acted(number, EscapeeAct::Terminate, EscapeeState::Gone);
    assert_eq!(b.fates(), [Fate::Gone]);
    let (mut b, _) = Steps::hunting();
    b.kill(KillMode::Graceful);
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    b.pass(SECOND);
    assert_eq!(b.fates(), [Fate::NotProved]);
}

#[test]
fn an_answer_to_another_question_says_nothing_of_this_one() {
    let (mut b, number) = Steps::hunting();
    b.acted(number - 1, EscapeeAct::Look, EscapeeState::Gone);
    assert_eq!(b.fates(), [Fate::Ending]);
    b.acted(number, EscapeeAct::Terminate, EscapeeState::There);
    let (_, effects) = timed(b.pass(10 * MS));
    let [(EscapeeAct::Look, of)] = acts(&effects)[..] else { panic!("{effects:?}") };
    assert_ne!(of.number, number);
    b.acted(number, EscapeeAct::Terminate, EscapeeState::Gone);
    assert_eq!(b.fates(), [Fate::Ending], "that was answered before");
}

#[test]
fn a_run_that_ended_by_itself_is_looked_for_once_and_never_one_of_which_nothing_can_be_outside() {
    let ended = |spec: RunSpec, scattered: bool| {
        let mut b = Steps::live(spec);
        if scattered {
            b.step(Event::ContainmentLost(ONE));
            b.step(Event::Recorded(Ticket::Kill(ONE)));
        }
        b.step(Event::MainExited { run: ONE, status: Some(ExitStatus::Exited(0)), oom: false });
        b.step(Event::Populated { run: ONE, populated: false });
        b.step(Event::Recorded(Ticket::Finish(ONE)));
        b.step(Event::Removed { run: ONE, result: Removal::Gone });
        assert!(b.engine.run(ONE).is_none());
        b
    };
    let mut b = ended(watched(Action::Warn), false);
    let (at, effects) = timed(b.pass(3600 * SECOND));
    assert_eq!((looks(&effects).len(), at[0] <= 6 * SECOND), (1, true), "{at:?}");
    assert!(looks(&effects)[0].is_empty && b.engine.next_deadline().is_none(), "given up without an answer");
    for (spec, scattered) in [(watched(Action::Off), false), (watched(Action::Warn), true)] {
        assert_eq!(ended(spec, scattered).engine.next_deadline(), None, "nothing is left to do");
    }
    // One that never began leaves nothing behind.
    let mut b = Steps::new(9);
    b.launch(watched(Action::Warn));
    b.step(Event::NotRecorded(Ticket::Launch(ONE)));
    b.step(Event::Recorded(Ticket::Finish(ONE)));
    assert!(b.engine.run(ONE).is_none() && b.engine.next_deadline().is_none());
}

#[test]
fn each_has_its_own_fate() {
    let mut b = Steps::live(watched(Action::Kill));
    let asked = looks(&b.step(Event::Shown(ONE)))[0].number;
    b.found(asked, &[5, 6]);
    let number = acts(&b.step(Event::Recorded(Ticket::Escapees(ONE))))[0].1.number;
    let states = vec![(escapee(6).process, EscapeeState::Gone), (escapee(5).process, EscapeeState::There)];
    b.step(Event::ActedOnEscapees { run: ONE, number, act: EscapeeAct::Terminate, states });
    assert_eq!(b.fates(), [Fate::Ending, Fate::Gone]);
    let (_, effects) = timed(b.pass(10 * MS));
    assert_eq!(acts(&effects)[0].1.known, [escapee(5).process], "of those that are left");
}

#[test]
fn those_that_start_ever_new_ones_are_ended_three_times_and_then_left_to_the_next_occasion() {
    let mut b = Steps::live(watched(Action::Kill));
    let mut effects = b.step(Event::Shown(ONE));
    let mut rounds = 0;
    while let Some(number) = looks(&effects).first().map(|of| of.number) {
        rounds += 1;
        assert!(rounds < 9, "it goes on for ever");
        b.found(number, &[4 + rounds]);
        let number = acts(&b.step(Event::Recorded(Ticket::Escapees(ONE))))[0].1.number;
        let states = vec![(escapee(4 + rounds).process, EscapeeState::Gone)];
        effects = b.step(Event::ActedOnEscapees { run: ONE, number, act: EscapeeAct::Terminate, states });
    }
    assert_eq!((rounds, b.fates()), (3, vec![Fate::Gone; 3]));
    // The next occasion begins anew.
    let (_, effects) = timed(b.pass(61 * SECOND));
    assert_eq!(looks(&effects).len(), 1);
}

#[test]
fn the_oldest_that_are_gone_make_room_for_new_ones_and_none_that_is_being_ended() {
    let pids = |b: &Steps| b.run().escapes.known.iter().map(|e| e.process.pid).collect::<Vec<_>>();
    let all = |from: u32, to: u32| (from..=to).collect::<Vec<_>>();
    let mut b = Steps::live(watched(Action::Warn));
    b.found(1, &all(1, 64));
    assert_eq!(pids(&b), all(1, 64));
    let mut without_three = all(1, 65);
    without_three.remove(2);
    b.found(1, &without_three);
    assert_eq!(pids(&b), without_three, "the third was gone");
    b.found(1, &all(1, 66).into_iter().filter(|pid| *pid != 3).collect::<Vec<_>>());
    assert_eq!(pids(&b), all(2, 66).into_iter().filter(|pid| *pid != 3).collect::<Vec<_>>(), "all are there");
    let (mut b, _) = Steps::hunting();
    b.found(1, &[vec![5], all(101, 164)].concat());
    assert_eq!(pids(&b), [vec![5], all(102, 164)].concat());
}

#[test]
fn what_is_said_of_them_is_as_old_as_it_is() {
    let mut b = Steps::live(watched(Action::Warn));
    b.found(1, &[5]);
    let said = b.run().reasons.clone();
    assert_eq!((said.len(), said[0].since), (1, b.now.wall));
    b.pass(30 * SECOND);
    assert!(b.found(2, &[5]).is_empty(), "nothing is new");
    assert_eq!(b.run().reasons, said);
    b.found(3, &[5, 6]);
    assert_eq!((b.run().reasons.len(), b.run().reasons[0].since), (1, b.now.wall));
}
