//! What is fuzzed here: the state of a run as an earlier instance left it in the database, whatever became of it there. It
//! is taken up, and the run goes on to its end.

use super::{Effect, Engine, Event, Found, Removal, Run, Settings};
use crate::model::fuzz::Target;
use crate::model::{
    CgroupIdentity, ContainerId, EscapeeAct, EscapeeState, Evidence, GitLocks, Mono, Notification, Now, Refused, RunId,
    Sample, Wall,
};

pub const TARGETS: &[Target] = &[("run_state", run_state)];

/// As many deadlines of a run are waited for.
const MOST_TICKS: usize = 64;
/// A deadline that is later than this never comes: 290 years.
const NEVER: Mono = Mono(u64::MAX / 2);

fn run_state(data: &[u8]) {
    let Ok(run) = serde_json::from_slice::<Run>(data) else { return };
    let text = serde_json::to_string(&run).unwrap_or_default();
    let again = serde_json::from_str::<Run>(&text).map(|run| serde_json::to_string(&run).unwrap_or_default());
    assert_eq!(again.ok(), Some(text));
    let there = |main_alive, client_alive| {
        let container = ContainerId::Cgroup(CgroupIdentity { path: "/guardian/run".into(), inode: 7 });
        Found::There { container, main_alive, client_alive }
    };
    let all = [there(true, true), there(false, true), there(true, false), Found::Rebooted, Found::Gone];
    let waiting =
        [Found::Waiting, Found::Forgotten("its launch is gone".into())].into_iter().filter(|_| run.is_waiting());
    for found in all.into_iter().chain([Found::Foreign("it is another's".into())]).chain(waiting) {
        go_on(run.clone(), found);
    }
}

/// Takes up a run, answers what the engine asks for, and lets all its time pass.
fn go_on(run: Run, found: Found) {
    let id = run.spec.id;
    let mut now = Now { mono: Mono(1_000_000_000), wall: Wall(1_700_000_000_000_000) };
    let mut engine = Engine::new(Settings { max_runs: 10, ..Settings::default() });
    let mut effects = engine.step(Event::Adopt { run: Box::new(run), found }, now);
    effects.extend(engine.step(Event::Recovered, now));
    perform(&mut engine, effects, now);
    check_that_nothing_follows_from_what_is_refused(&mut engine, id, now);
    report(&mut engine, id, now);
    for _ in 0..MOST_TICKS {
        let Some(next) = engine.next_deadline().filter(|next| *next < NEVER) else { break };
        let passed = next.since(now.mono);
        now = Now { mono: now.mono.max(next), wall: Wall(now.wall.0.saturating_add(passed.as_micros() as u64)) };
        let effects = engine.step(Event::Tick, now);
        perform(&mut engine, effects, now);
        assert!(engine.view(id, now).is_none_or(|view| view.spec.id == id));
    }
}

/// Answers as a host does on which the run is, does nothing, and ends when it is told to.
fn perform(engine: &mut Engine, effects: Vec<Effect>, now: Now) {
    let mut effects = std::collections::VecDeque::from(effects);
    let mut performed = 0;
    while let Some(effect) = effects.pop_front() {
        performed += 1;
        assert!(performed < 10_000, "it never comes to an end: {effect:?}");
        let event = match effect {
            Effect::Record(record) => record.ticket.map(Event::Recorded),
            Effect::Probe(run) => Some(Event::Probed { run, output: false }),
            Effect::Sample(run) => Some(Event::Sampled { run, sample: Sample::default() }),
            Effect::Examine(run) => Some(Event::Examined { run, look: Sample::default() }),
            Effect::Seek(of) => Some(Event::Sought { run: of.run, number: of.number, found: Vec::new() }),
            Effect::LookForLocks(of) => {
                Some(Event::LocksFound { run: of.run, number: of.number, found: GitLocks::default() })
            }
            Effect::ActOnEscapees { of, act } => {
                let state = if act == EscapeeAct::Kill { EscapeeState::Gone } else { EscapeeState::There };
                let states = of.known.iter().map(|known| (*known, state)).collect();
                Some(Event::ActedOnEscapees { run: of.run, number: of.number, act, states })
            }
            Effect::Look(run) => Some(Event::Populated { run, populated: false }),
            Effect::Inspect(run) | Effect::Explain(run) => {
                Some(Event::Inspected { run, evidence: Evidence::default() })
            }
            Effect::Terminate(run) => Some(Event::Terminated { run, processes: 1, trouble: None }),
            Effect::Kill(run) => Some(Event::Killed { run, processes: 1, trouble: None }),
            Effect::AskStatus(run) => Some(Event::StatusAsked { run, status: None }),
            Effect::Remove(run) => Some(Event::Removed { run, result: Removal::Gone }),
            _ => None,
        };
        if let Some(event) = event {
            effects.extend(engine.step(event, now));
        }
    }
}

/// An agent goes on to report, which takes back no total.
fn report(engine: &mut Engine, id: RunId, now: Now) {
    let turns = |engine: &Engine| engine.run(id).and_then(|run| run.progress.as_ref()).map_or(0, |p| p.turns);
    for message in [
        &b"X_GUARDIAN_TURNS=7\nX_GUARDIAN_REPEATS=12\nX_GUARDIAN_WAITING=an answer"[..],
        b"X_GUARDIAN_WAITING=\nX_GUARDIAN_COST_MICRO_USD=99999999\nX_GUARDIAN_RESULT=success",
    ] {
        let before = turns(engine);
        let (messages, refused) = (vec![Notification::parse(message)], Refused::default());
        let effects = engine.step(Event::Heard { run: id, messages, refused, reply: None }, now);
        assert!(turns(engine) >= before || engine.run(id).is_none());
        perform(engine, effects, now);
    }
}

/// A message that is refused is counted, and changes nothing else.
fn check_that_nothing_follows_from_what_is_refused(engine: &mut Engine, id: RunId, now: Now) {
    let Some(before) = engine.run(id).cloned() else { return };
    let refused = Refused { foreign: 1, flooded: 2, too_long: u64::MAX };
    engine.step(Event::Heard { run: id, messages: Vec::new(), refused, reply: None }, now);
    let Some(mut after) = engine.run(id).cloned() else { return };
    assert!(after.heartbeats.refused.too_long >= before.heartbeats.refused.too_long);
    after.heartbeats.refused = before.heartbeats.refused;
    let text = |run: &Run| serde_json::to_string(run).unwrap_or_default();
    assert_eq!(text(&after), text(&before));
}
