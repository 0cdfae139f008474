//! Who waits for a turn, and who has it next.
//!
//! As many runs run at once as may on the host, and as may of their workflow. The others are queued. When there is room, the
//! users that wait have a turn one after the other, the workflows of a user in the same way, and within those whoever came
//! first. A workflow that is at its limit holds up nobody else. Nothing of a queued run exists but its record: a detached run
//! outlives its instance, and is queued again by the next one; a foreground run goes with its client.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::model::{
    Actor, Answer, AuditEvent, Error, ErrorKind, EventKind, Health, KillAnswer, KillMode, KillReason, Mono, Now,
    Outcome, Queued, Rule, RunId, RunSpec, human_duration,
};

use super::deadlines::Due;
use super::launch::store_unavailable;
use super::run::{EarlyKill, Timer};
use super::{CONTAIN_WAIT, Effect, Engine, LAUNCH_RECORD_WAIT, ReplyTo, Run, State, Ticket, WARN_PERCENT};

/// How many runs may run at once. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Concurrency {
    /// Of all workflows together.
    pub host: Option<u64>,
    /// Of these workflows.
    pub workflows: BTreeMap<String, Option<u64>>,
    /// Of each other workflow.
    pub others: Option<u64>,
}

impl Concurrency {
    fn of(&self, workflow: &str) -> Option<u64> {
        self.workflows.get(workflow).copied().unwrap_or(self.others)
    }
}

/// Why a run has to wait.
pub(super) enum Full {
    Host { running: u64, allowed: u64 },
    Workflow { workflow: String, running: u64, allowed: u64 },
}

impl Full {
    fn sentence(&self) -> String {
        let runs = |n: u64| if n == 1 { "run is" } else { "runs are" };
        match self {
            Full::Host { running, allowed } => {
                format!("{running} {} running of {allowed} allowed on this host", runs(*running))
            }
            Full::Workflow { workflow, running, allowed } => {
                format!("{running} {workflow} {} running of {allowed} allowed", runs(*running))
            }
        }
    }
}

/// How many run now.
#[derive(Default)]
struct Running {
    all: u64,
    of: BTreeMap<String, u64>,
}

impl Running {
    fn add(&mut self, workflow: &str) {
        self.all += 1;
        match self.of.get_mut(workflow) {
            Some(n) => *n += 1,
            None => drop(self.of.insert(workflow.to_owned(), 1)),
        }
    }

    /// Why one more of this workflow has to wait, if it has to.
    fn full(&self, workflow: &str, allowed: &Concurrency) -> Option<Full> {
        let running = self.of.get(workflow).copied().unwrap_or_default();
        if let Some(allowed) = allowed.of(workflow).filter(|allowed| running >= *allowed) {
            return Some(Full::Workflow { workflow: workflow.to_owned(), running, allowed });
        }
        let allowed = allowed.host.filter(|allowed| self.all >= *allowed)?;
        Some(Full::Host { running: self.all, allowed })
    }
}

/// The workflows of a user who waits, and of each its runs by their places.
type Workflows = BTreeMap<String, Turns<BTreeSet<(u64, RunId)>>>;

/// Who waits: users, their workflows, and the runs of those in the order of their places. Empty ones are let go of; who comes
/// anew stands behind those that have waited.
#[derive(Debug, Default)]
pub(super) struct Line {
    users: BTreeMap<u32, Turns<Workflows>>,
    /// How many turns there were.
    turns: u64,
    /// The last place that was given.
    last_place: u64,
    /// Something has changed since turns were given last: only then is it looked who may have one.
    stirred: bool,
}

#[derive(Debug)]
struct Turns<T> {
    /// When it last had a turn, counted in turns.
    last: u64,
    waiting: T,
}

impl Line {
    /// There may be room now.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    fn next_place(&mut self) -> u64 {
        self.last_place += 1;
        self.last_place
    }

    fn join(&mut self, run: &Run) {
        let Some(place) = run.place else { return };
        self.stirred = true;
        let (spec, last) = (&run.spec, self.turns);
        let user = self.users.entry(spec.uid).or_insert_with(|| Turns { last, waiting: BTreeMap::new() });
        let workflow = user.waiting.entry(spec.workflow.clone());
        workflow.or_insert_with(|| Turns { last, waiting: BTreeSet::new() }).waiting.insert((place, spec.id));
    }

    pub(super) fn leave(&mut self, run: &Run) {
        let (Some(place), Some(user)) = (run.place, self.users.get_mut(&run.spec.uid)) else { return };
        if let Some(workflow) = user.waiting.get_mut(&run.spec.workflow) {
            workflow.waiting.remove(&(place, run.spec.id));
            if workflow.waiting.is_empty() {
                user.waiting.remove(&run.spec.workflow);
            }
        }
        if user.waiting.is_empty() {
            self.users.remove(&run.spec.uid);
        }
    }

    /// Gives the next turn, to a workflow for which there is room.
    fn turn(&mut self, has_room: impl Fn(&str) -> bool) -> Option<RunId> {
        let first = |workflow: &Turns<BTreeSet<(u64, RunId)>>| workflow.waiting.first().map(|(place, _)| *place);
        let ready = self.users.iter().flat_map(|(uid, user)| {
            let workflows = user.waiting.iter().filter(|(name, _)| has_room(name));
            workflows.map(move |(name, workflow)| ((user.last, workflow.last, first(workflow)), *uid, name))
        });
        let (_, uid, name) = ready.min_by_key(|(order, ..)| *order)?;
        let name = name.clone();
        let user = self.users.get_mut(&uid)?;
        self.turns += 1;
        user.last = self.turns;
        let workflow = user.waiting.get_mut(&name)?;
        workflow.last = self.turns;
        workflow.waiting.first().map(|(_, id)| *id)
    }
}

impl Run {
    /// It waits for its turn, or did so and nothing of it was executed: the next instance can queue it again. The gate of a
    /// run is opened only when its start is on record.
    pub fn is_waiting(&self) -> bool {
        let is_begun = !matches!(self.state, State::Queued { .. } | State::Accepting | State::Containing);
        self.place.is_some() && self.spec.client.is_none() && !is_begun
    }

    /// It was queued, and its gate may not have been opened yet: nothing on record tells. What is kept of its launch does, which
    /// is emptied just before.
    pub fn may_be_unopened(&self) -> bool {
        let is_live = matches!(self.state, State::Live { .. });
        self.place.is_some() && self.spec.client.is_none() && is_live && !self.executing
    }

    /// Its place, as everyone is shown it, but for the others.
    pub(super) fn queued(&self) -> Option<Queued> {
        match (&self.state, self.place) {
            (State::Queued { why, .. }, Some(place)) => Some(Queued { place, why: why.clone(), ..Queued::default() }),
            _ => None,
        }
    }
}

impl Engine {
    /// Why a run of this workflow would have to wait, if it would. Who has room has nobody before it: whoever could have a
    /// turn has had it.
    pub(super) fn full(&self, workflow: &str) -> Option<Full> {
        let allowed = &self.settings.concurrency;
        if allowed.host.is_none() && allowed.of(workflow).is_none() {
            return None;
        }
        self.running().full(workflow, allowed)
    }

    fn running(&self) -> Running {
        let mut running = Running::default();
        // One that is empty counts until its end is known: somebody may move a process into it still.
        let counts = |run: &&Run| !matches!(run.state, State::Queued { .. } | State::Closing(_));
        self.runs.values().filter(counts).for_each(|run| running.add(&run.spec.workflow));
        running
    }

    /// Puts a run that has to wait on record.
    pub(super) fn queue(&mut self, mut run: Run, full: &Full, accepted: AuditEvent, now: Now) {
        let id = run.spec.id;
        let why = full.sentence();
        let place = self.line.next_place();
        run.place = Some(place);
        let event = run.event(EventKind::RunQueued, Actor::Guardian, why.clone(), json!({ "place": place }), now);
        run.state = State::Queued { on_record: false, why };
        let allowed = run.spec.limits.queue_timeout;
        self.runs.insert(id, run);
        self.effects.push(Effect::Wait(id));
        if let Some(allowed) = allowed {
            self.set_timer(id, Rule::QueueTimeout, Timer { ends: now.mono + allowed, allowed });
        }
        self.deadlines.set(id, Due::Record, now.mono + LAUNCH_RECORD_WAIT);
        if let Some(mut record) = self.record_of(id, vec![accepted, event], now) {
            record.ticket = Some(Ticket::Queue(id));
            self.effects.push(Effect::Record(Box::new(record)));
        }
    }

    /// That it is queued is on record, or will not be in time.
    pub(super) fn queue_recorded(&mut self, id: RunId, ok: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Queued { on_record: on_record @ false, .. } = &mut run.state else { return };
        self.deadlines.clear(id, Due::Record);
        if !ok {
            let why = self.trouble.clone().unwrap_or_else(|| "it did not answer in time".to_owned());
            return self.launch_failed(id, store_unavailable(&why), now);
        }
        *on_record = true;
        let is_detached = run.spec.client.is_none();
        self.line.join(run);
        self.effects.push(Effect::Publish(id));
        // The client of a foreground run waits with it.
        if is_detached {
            self.answer_launch(id, Ok(Answer::Run(id)));
        }
    }

    /// Takes up a run that waited when an earlier instance stopped, and begins it anew. What it waited for so far counts.
    pub(super) fn queue_again(&mut self, run: Run, now: Now) {
        let Run { spec, state, place, created, mut timers, .. } = run;
        let id = spec.id;
        self.line.last_place = self.line.last_place.max(place.unwrap_or_default());
        let waited = std::time::Duration::from_micros(now.wall.0.saturating_sub(created.wall.0));
        // Monotonic times of another boot mean nothing in this one.
        let mono = Mono(now.mono.0.saturating_sub(waited.as_nanos().try_into().unwrap_or(0)));
        let allowed = timers.remove(&Rule::QueueTimeout).map(|timer| timer.allowed).or(spec.limits.queue_timeout);
        let why = match state {
            State::Queued { why, .. } => why,
            _ => "it had its turn when the instance stopped, and nothing of it was executed".to_owned(),
        };
        let mut run = Run::new(RunSpec { main: None, ..spec }, Now { mono, ..created }, None);
        (run.state, run.place) = (State::Queued { on_record: true, why }, place);
        self.line.join(&run);
        let event = run.event(EventKind::RunAdopted, Actor::Guardian, "", json!({ "phase": run.phase() }), now);
        self.runs.insert(id, run);
        if let Some(allowed) = allowed {
            let ends = now.mono + allowed.saturating_sub(waited);
            self.set_timer(id, Rule::QueueTimeout, Timer { ends, allowed });
        }
        self.save(id, vec![event], now);
    }

    /// Gives turns for as long as there is room.
    pub(super) fn give_turns(&mut self, now: Now) {
        if !self.line.stirred || self.recovering || self.trouble.is_some() {
            return;
        }
        self.line.stirred = false;
        if self.line.users.is_empty() {
            return;
        }
        let mut running = self.running();
        let allowed = &self.settings.concurrency;
        while let Some(id) = self.line.turn(|workflow| running.full(workflow, allowed).is_none()) {
            let Some(run) = self.runs.get_mut(&id) else { return };
            self.line.leave(run);
            running.add(&run.spec.workflow);
            run.state = State::Containing;
            run.timers.remove(&Rule::QueueTimeout);
            run.reasons.retain(|reason| reason.rule != Rule::QueueTimeout);
            self.deadlines.clear_run(id);
            self.deadlines.set(id, Due::Record, now.mono + CONTAIN_WAIT);
            self.effects.push(Effect::Publish(id));
            self.effects.push(Effect::Contain(id));
        }
    }

    /// Looks again at what a queued run waits for, for a person who asks.
    pub(super) fn queue_shown(&mut self, id: RunId) {
        let Some(full) = self.runs.get(&id).and_then(|run| self.full(&run.spec.workflow)) else { return };
        if let Some(State::Queued { why, on_record: true }) = self.runs.get_mut(&id).map(|run| &mut run.state) {
            *why = full.sentence();
            self.effects.push(Effect::Publish(id));
        }
    }

    /// The larger part of the time has passed for which it may wait.
    pub(super) fn queue_near(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (State::Queued { why, .. }, Some(timer)) = (&run.state, run.timers.get(&Rule::QueueTimeout)) else {
            return;
        };
        let (allowed, left) = (human_duration(timer.allowed), human_duration(timer.ends.since(now.mono)));
        let rule = Rule::QueueTimeout;
        let text = format!("{WARN_PERCENT} % of {rule} ({allowed}) has passed: it is given up in {left}; {why}");
        let details = json!({
            "limit": rule, "allowed_usec": super::usec(timer.allowed), "ends_at_usec": now.wall_of(timer.ends).0,
        });
        run.warn(rule, Health::Warning, text.clone(), now);
        let event = run.event(EventKind::LimitWarning, Actor::Guardian, text, details, now);
        self.save(id, vec![event], now);
    }

    /// It may wait no longer.
    pub(super) fn queue_over(&mut self, id: RunId, now: Now) {
        let Some(timer) = self.runs.get(&id).and_then(|run| run.timers.get(&Rule::QueueTimeout)) else { return };
        let reason = KillReason::over(Rule::QueueTimeout, timer.allowed);
        self.end_queued(id, reason, Actor::Guardian, Vec::new(), now);
    }

    /// Ends a run that waits. There is nothing to signal: the intent and the end are one record.
    pub(super) fn end_queued(&mut self, id: RunId, reason: KillReason, actor: Actor, replies: Vec<ReplyTo>, now: Now) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| matches!(run.state, State::Queued { .. })) else { return };
        run.notices.push("it was ended while it was queued: nothing of it was executed".to_owned());
        let details = json!({ "reason": reason, "queued": true });
        let event = run.event(EventKind::KillIntent, actor.clone(), reason.to_string(), details, now);
        let mode = KillMode::Graceful;
        run.early_kill = Some(EarlyKill { mode, reason: reason.clone(), actor, replies });
        let error = format!("{id} was ended while it was queued, and nothing of it was executed: {reason}");
        self.answer_launch(id, Err(Error::new(ErrorKind::LaunchFailed, error)));
        self.effects.push(Effect::CloseGate(id));
        self.close_as(id, Outcome::Killed { reason }, None, vec![event], now);
    }

    /// Answers those who ended a run before anything of it was executed.
    pub(super) fn answer_early_kill(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Closing(closing) = &run.state else { return };
        let Some(EarlyKill { mode, reason, actor, replies }) = run.early_kill.take() else { return };
        let answer = KillAnswer { run: id, mode, reason, actor, requested_at: closing.at.wall };
        for reply in replies {
            self.effects.push(Effect::Reply(reply, Ok(Answer::Kill(answer.clone()))));
        }
    }
}
