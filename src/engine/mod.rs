//! The pure core: when a run is warned, killed and finished. `step(event, now) -> effects`; no I/O, no clock.
//!
//! ```text
//!          no room: Queued ─┐ has its turn
//!             Launch       Recorded       Contained      Probed(output)
//!  (gated) ──▶ Accepting ──▶ Containing ──▶ Live ──────────▶ Live (ready)
//!                 │              │           │ timer, Kill, ClientGone, leftovers
//!                 │ NotRecorded  │ Not-      ▼
//!                 │              │ Contained Stopping: Recording ─▶ Signalling ─▶ Grace
//!                 │              │           │ force, grace over    │
//!                 │              │           ▼                      │ Populated(false), from
//!                 │              │           Killing: cgroup.kill,  │ any state that has a cgroup
//!                 │              │           again and again ───────┤
//!                 │              │                                  ▼
//!                 │              │                        Emptied (exit status still to come)
//!                 ▼              ▼                                  ▼
//!                 Closing: outcome on record, then cgroup removed, then published ──▶ gone
//! ```
//!
//! Rules that this module alone holds, and that its property tests check:
//! - nothing is signalled before the intent is on record, or the store had its bounded time for it;
//! - the grace period is honoured unless force is asked for;
//! - a run is over only when its cgroup was read as empty, or is proved to be gone;
//! - no more runs run at once than may, and of those that wait nobody is passed over for long ([`queue`]);
//! - one kill for each run, however many ask; one terminal outcome; nothing happens to a run after it.
//!
//! Imports the model alone. The driver in `daemon` performs the effects and brings back what came of them.

mod adopt;
mod agent;
mod deadlines;
pub mod detect;
mod escape;
mod event;
mod finish;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod heartbeat;
mod kill;
mod launch;
mod memory;
mod queue;
mod remains;
mod run;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::model::{
    Actor, Answer, AuditEvent, Containment, Error, EventKind, Mono, Now, Readiness, Rule, RunId, RunView, Wall,
    human_duration,
};

pub use agent::Agent;
use deadlines::{Deadlines, Due};
pub use escape::Escapes;
pub use event::{Effect, Event, Found, Record, Removal, ReplyTo, Ticket};
pub use heartbeat::Pulse;
pub use queue::Concurrency;
use queue::Line;
pub use run::{Main, Run, State, Stop};
pub use watch::Tracked;

/// How long a run waits for its record. The store commits in about 0.1 ms; a stuck one must not stop a kill.
const RECORD_WAIT: Duration = Duration::from_millis(500);
/// A launch can wait for a slow disk, since nothing is executed meanwhile.
const LAUNCH_RECORD_WAIT: Duration = Duration::from_secs(5);
/// How long a run may take to be contained, where another program does that. It has deadlines of its own, 15 s and less;
/// and D-Bus callers wait for 25 s.
const CONTAIN_WAIT: Duration = Duration::from_secs(18);
/// How long processes that are still there after the main process exited are left to go by themselves: the other end
/// of a pipeline, a child that is being reaped. After that they are leftovers.
const SETTLE: Duration = Duration::from_millis(100);
/// How long the client has to report how the main process ended. It may have to start the next instance first.
const STATUS_WAIT: Duration = Duration::from_secs(3);
/// When the pidfd is first asked for a status that nobody has reported.
const FIRST_STATUS: Duration = Duration::from_millis(5);
/// Slurm found 60 s too short to give up on a process: it is when to alert. The run is never closed for it.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(60);
/// First look at whether a run is ready; then at twice the age each time, so that looks stay few and never late by
/// more than the age.
const FIRST_PROBE: Duration = Duration::from_millis(50);
/// Later looks fall together on a grid, so that many runs that wait for their first output make few wakeups.
const PROBE_GRID: Duration = Duration::from_secs(1);
/// A limit warns at this part of its time.
const WARN_PERCENT: u32 = 80;

/// What the engine is held to itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// How many runs may be live at once, those that are queued among them.
    pub max_runs: usize,
    /// How many may run at once.
    pub concurrency: Concurrency,
}

/// All runs and their deadlines.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    runs: BTreeMap<RunId, Run>,
    deadlines: Deadlines,
    /// Who waits for a turn.
    line: Line,
    /// Runs of an earlier instance are being taken up: until all are, nobody has a turn.
    recovering: bool,
    /// Runs that are over, and whose escapees are still to be looked for.
    parted: BTreeMap<RunId, Run>,
    /// How many looks for escapees and locks were asked for.
    looks: u64,
    /// Why the store is in trouble, while it is.
    trouble: Option<String>,
    effects: Vec<Effect>,
}

impl Engine {
    /// An engine without runs.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            runs: BTreeMap::new(),
            deadlines: Deadlines::default(),
            line: Line::default(),
            recovering: false,
            parted: BTreeMap::new(),
            looks: 0,
            trouble: None,
            effects: Vec::new(),
        }
    }

    /// The live runs.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// How many live runs there are. Asked at every turn of the loop.
    pub fn live(&self) -> usize {
        self.runs.len()
    }

    /// Whether somebody else is about to contain it.
    pub fn is_containing(&self, id: RunId) -> bool {
        self.runs.get(&id).is_some_and(|run| matches!(run.state, State::Containing))
    }

    /// A live run.
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id)
    }

    /// The view of a live run.
    pub fn view(&self, id: RunId, now: Now) -> Option<RunView> {
        self.runs.get(&id).map(|r| r.view(now))
    }

    /// When `Tick` is next to be given.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.deadlines.next()
    }

    /// Decides what to do about an event. The effects are to be performed in order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        self.decide(event, now);
        self.give_turns(now);
        std::mem::take(&mut self.effects)
    }

    fn decide(&mut self, event: Event, now: Now) {
        match event {
            Event::Launch { spec, reply, actor, reason } => self.launch(*spec, reply, actor, reason, now),
            Event::Kill { run, mode, text, actor, reply } => self.kill_asked(run, mode, text, actor, reply, now),
            Event::Extend { run, rule, by, actor, reply } => {
                let answer = self.extend(run, rule, by, actor, now);
                self.effects.push(Effect::Reply(reply, answer));
            }
            Event::Freeze { run, frozen, actor, reply } => self.freeze_asked(run, frozen, actor, reply),
            Event::FreezeDone { run, frozen, result, actor, reply } => {
                self.freeze_done(run, frozen, result, actor, reply, now);
            }
            Event::Heard { run, messages, refused, reply } => self.heard(run, &messages, refused, reply, now),
            Event::Reported { run, status, reply } => {
                let answer = if self.runs.contains_key(&run) { Ok(Answer::Done) } else { Err(Error::no_such_run(run)) };
                self.effects.push(Effect::Reply(reply, answer));
                self.status_known(run, status, true, now);
            }
            Event::Recorded(ticket) => self.recorded(ticket, true, now),
            Event::NotRecorded(ticket) => self.recorded(ticket, false, now),
            Event::StoreTroubled(why) => self.trouble = Some(why),
            Event::StoreRecovered => {
                self.trouble = None;
                self.line.stir();
            }
            Event::Contained { run, main, container, notices } => self.contained(run, main, container, notices, now),
            Event::NotContained { run, error, container } => self.not_contained(run, error, container, now),
            Event::GateOpened { run, result } => self.gate_opened(run, result, now),
            Event::Probed { run, output } => self.probed(run, output, now),
            Event::Sampled { run, sample } => self.sampled(run, sample, now),
            Event::Examined { run, look } => self.examined(run, look, now),
            Event::Shown(run) => self.shown(run, now),
            Event::Sought { run, number, found } => self.sought(run, number, found, now),
            Event::ActedOnEscapees { run, number, act, states } => {
                self.acted_on_escapees(run, number, act, &states, now);
            }
            Event::LocksFound { run, number, found } => self.locks_found(run, number, found, now),
            Event::OomKilled { run, kills } => self.oom_killed(run, kills, now),
            Event::MainExited { run, status, oom } => self.main_exited(run, status, oom, now),
            Event::ClientGone(run) => self.client_gone(run, now),
            Event::Populated { run, populated: false } => self.emptied(run, now),
            Event::Populated { run, populated: true } => self.still_populated(run, now),
            Event::ContainmentLost(run) => self.containment_lost(run, now),
            Event::StoppedOutside(run) => self.stopped_outside(run, now),
            Event::Inspected { run, evidence } => self.inspected(run, evidence, now),
            Event::Terminated { run, processes, trouble } => self.terminated(run, processes, trouble, now),
            Event::Killed { run, processes, trouble } => self.killed(run, processes, trouble, now),
            Event::StatusAsked { run, status } => self.status_asked(run, status, now),
            Event::Removed { run, result } => self.removed(run, result, now),
            Event::Adopt { run, found } => self.adopt(*run, found, now),
            Event::Recovered => {
                self.recovering = false;
                self.line.stir();
            }
            Event::Configured(settings) => {
                self.settings = settings;
                self.line.stir();
            }
            Event::Tick => {
                while let Some((run, due)) = self.deadlines.pop(now.mono) {
                    self.fall_due(run, due, now);
                }
            }
        }
    }

    fn fall_due(&mut self, run: RunId, due: Due, now: Now) {
        match due {
            Due::Record => self.record_overdue(run, now),
            Due::Probe => self.effects.push(Effect::Probe(run)),
            Due::Warn(Rule::QueueTimeout) => self.queue_near(run, now),
            Due::Timer(Rule::QueueTimeout) => self.queue_over(run, now),
            Due::Warn(Rule::HeartbeatTimeout) => self.heartbeat_near(run, now),
            Due::Timer(Rule::HeartbeatTimeout) => self.heartbeat_due(run),
            Due::Warn(rule) => self.warn_timer(run, rule),
            Due::Timer(rule) => self.timer_due(run, rule, now),
            Due::Watch => self.look_due(run),
            Due::Tell => self.tell(run, now),
            Due::Seek => self.seek_due(run, now),
            Due::Locks => self.locks_overdue(run, now),
            Due::Hunt => self.hunt_due(run, now),
            Due::Settle => self.effects.push(Effect::Look(run)),
            Due::Grace => self.grace_over(run),
            Due::KillAgain => self.effects.push(Effect::Kill(run)),
            Due::Unkillable => self.unkillable(run),
            Due::Status => self.effects.push(Effect::AskStatus(run)),
            Due::RemoveAgain => self.effects.push(Effect::Remove(run)),
        }
    }

    /// Puts the run as it now is on record, with audit events, and publishes it.
    fn save(&mut self, id: RunId, mut audit: Vec<AuditEvent>, now: Now) {
        audit.extend(self.health_change(id, now));
        if let Some(record) = self.record_of(id, audit, now) {
            self.effects.push(Effect::Record(Box::new(record)));
            self.effects.push(Effect::Publish(id));
        }
    }

    /// The record of the run as it now is; to be completed by the caller.
    fn record_of(&self, id: RunId, audit: Vec<AuditEvent>, now: Now) -> Option<Record> {
        let run = self.runs.get(&id)?;
        let state = match &run.state {
            State::Closing(_) => None,
            // Ids, times and texts: serializing them cannot fail, and a run without state is adopted from its cgroup.
            _ => serde_json::to_string(run).ok(),
        };
        Some(Record { audit, run: Some((run.view(now), state)), ..Record::default() })
    }

    /// Begins the timers of a run that was contained just now.
    fn begin_timers(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        let limits = &run.spec.limits;
        let ready = matches!(run.state, State::Live { ready: true });
        // Who is to say READY=1 is not looked at.
        let is_looked_at = !ready && limits.readiness != Readiness::Notify;
        let timers = [
            (Rule::InitTimeout, limits.allowed(Rule::InitTimeout).filter(|_| !ready)),
            (Rule::MaxRuntime, limits.allowed(Rule::MaxRuntime)),
        ];
        for (rule, allowed) in timers {
            if let Some(allowed) = allowed {
                self.set_timer(id, rule, run::Timer { ends: now.mono + allowed, allowed });
            }
        }
        if is_looked_at {
            self.deadlines.set(id, Due::Probe, now.mono + FIRST_PROBE);
        }
    }

    fn set_timer(&mut self, id: RunId, rule: Rule, timer: run::Timer) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.timers.insert(rule, timer);
        let rest = u64::try_from(last_part(timer.allowed).as_nanos()).unwrap_or(u64::MAX);
        let warn_at = Mono(timer.ends.0.saturating_sub(rest));
        self.deadlines.set(id, Due::Timer(rule), timer.ends);
        self.deadlines.set(id, Due::Warn(rule), warn_at);
    }

    fn stop_timer(&mut self, id: RunId, rule: Rule) {
        self.deadlines.clear(id, Due::Timer(rule));
        self.deadlines.clear(id, Due::Warn(rule));
        if let Some(run) = self.runs.get_mut(&id) {
            run.timers.remove(&rule);
            run.reasons.retain(|r| r.rule != rule);
        }
    }

    fn probed(&mut self, id: RunId, output: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Live { ready: false } = &run.state else { return };
        let is_looked_at = run.spec.limits.readiness != Readiness::Notify;
        if !output || !is_looked_at {
            let age = now.mono.since(run.created.mono);
            // The timer has the last look: it is due, and the run has just been seen not to be ready.
            let over = run.timers.get(&Rule::InitTimeout).is_some_and(|t| t.ends <= now.mono);
            let ends = over && run.kills(Rule::InitTimeout);
            if over {
                self.limit_reached(id, Rule::InitTimeout, now);
            }
            if !ends && is_looked_at {
                self.deadlines.set(id, Due::Probe, (now.mono + age).rounded_up(PROBE_GRID.min(age)));
            }
            return;
        }
        self.became_ready(id, now);
    }

    fn became_ready(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.state = State::Live { ready: true };
        run.executing = true;
        run.ready = Some(now.wall);
        self.deadlines.clear(id, Due::Probe);
        self.stop_timer(id, Rule::InitTimeout);
        self.begin_first_turn(id, now);
        if let Some(run) = self.runs.get(&id) {
            let event = run.event(EventKind::RunReady, Actor::Guardian, "", json!({}), now);
            self.save(id, vec![event], now);
        }
    }

    fn extend(&mut self, id: RunId, rule: Rule, by: Duration, actor: Actor, now: Now) -> Result<Answer, Error> {
        let ends = now.wall_of(self.lengthen(id, rule, by)?);
        if let Some(run) = self.runs.get(&id) {
            let event = extended(run, rule, by, ends, actor, "", now);
            self.save(id, vec![event], now);
        }
        Ok(Answer::Deadline(ends))
    }

    /// Gives a rule more time, and tells when it will now be over. To be put on record by the caller.
    fn lengthen(&mut self, id: RunId, rule: Rule, by: Duration) -> Result<Mono, Error> {
        let run = self.runs.get_mut(&id).ok_or_else(|| Error::no_such_run(id))?;
        match run.state {
            State::Emptied(..) | State::Closing(_) => return Err(Error::already_finished(id)),
            State::Stopping(..) | State::Killing(..) => {
                return Err(Error::invalid(format!(
                    "{id} is being ended already: its limits cannot be extended any more"
                )));
            }
            State::Queued { .. } | State::Accepting | State::Containing | State::Live { .. } => {}
        }
        let ends = match run.timers.get(&rule).copied() {
            None => self.extend_track(id, rule, by).ok_or_else(|| {
                Error::invalid(format!("{id} has no {rule} running: `guardian show {id}` lists its deadlines"))
            })?,
            Some(timer) => {
                let timer = run::Timer { ends: timer.ends + by, allowed: timer.allowed.saturating_add(by) };
                // What systemd was told at the start it does, whatever we promise afterwards.
                let backstop = run.spec.limits.backstop().filter(|_| run.spec.containment == Containment::Systemd);
                if let (Rule::MaxRuntime, Some(most)) = (rule, backstop)
                    && timer.allowed.saturating_add(run.spec.limits.grace) > most
                {
                    return Err(Error::invalid(format!(
                        "systemd ends {id} {} after its start, which cannot be changed any more: its {rule} and grace \
                         together have to stay below that",
                        human_duration(most)
                    )));
                }
                self.set_timer(id, rule, timer);
                timer.ends
            }
        };
        if let Some(run) = self.runs.get_mut(&id) {
            run.reasons.retain(|r| r.rule != rule);
        }
        Ok(ends)
    }

    fn freeze_asked(&mut self, id: RunId, frozen: bool, actor: Actor, reply: ReplyTo) {
        let refusal = match self.runs.get(&id).map(|r| &r.state) {
            None => Error::no_such_run(id),
            Some(State::Live { .. }) => {
                return self.effects.push(Effect::Freeze { run: id, frozen, actor, reply });
            }
            Some(State::Emptied(..) | State::Closing(_)) => Error::already_finished(id),
            Some(State::Queued { .. }) => Error::invalid(format!("{id} is queued: there is nothing to freeze yet")),
            Some(State::Accepting | State::Containing) => Error::invalid(format!("{id} is still starting: try again")),
            // A frozen run cannot act on SIGTERM: a kill thaws it, and nothing may freeze it again.
            Some(State::Stopping(..) | State::Killing(..)) => {
                Error::invalid(format!("{id} is being ended: it cannot be frozen or thawed"))
            }
        };
        self.effects.push(Effect::Reply(reply, Err(refusal)));
    }

    fn freeze_done(
        &mut self,
        id: RunId,
        frozen: bool,
        result: Result<(), String>,
        actor: Actor,
        reply: ReplyTo,
        now: Now,
    ) {
        let answer = result.map(|()| Answer::Done).map_err(Error::internal);
        if answer.is_ok() {
            self.heartbeats_stand_still(id, frozen, now);
            self.clocks_stand_still(id, frozen, now);
        }
        if answer.is_ok()
            && let Some(run) = self.runs.get_mut(&id)
        {
            run.frozen = frozen;
            self.watch_frozen(id, now);
        }
        if answer.is_ok()
            && let Some(run) = self.runs.get(&id)
        {
            let kind = if frozen { EventKind::RunFrozen } else { EventKind::RunThawed };
            let event = run.event(kind, actor, "", json!({}), now);
            self.save(id, vec![event], now);
        }
        self.effects.push(Effect::Reply(reply, answer));
    }
}

/// That a rule was given more time.
fn extended(run: &Run, rule: Rule, by: Duration, ends: Wall, actor: Actor, why: &str, now: Now) -> AuditEvent {
    let details = json!({ "limit": rule, "by_usec": usec(by), "ends_at_usec": ends.0 });
    run.event(EventKind::LimitExtended, actor, why, details, now)
}

/// What is left of a timer's time when it warns.
fn last_part(allowed: Duration) -> Duration {
    allowed / 100 * (100 - WARN_PERCENT)
}

fn usec(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
