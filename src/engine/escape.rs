//! Escapees: when they are looked for, what is said of them, and how they are ended where the run asks for that.
//!
//! ```text
//!                     found, and to be ended            on record          grace over
//!  Resting ── Seek ──▶ Recording (intent) ─────────▶ Grace: SIGTERM ─────▶ Killing: SIGKILL
//!     ▲                                                 │ all gone            │ all gone, or not in time
//!     └──────────────── looked for anew ◀───────────────┴─────────────────────┘
//! ```
//!
//! One look at the processes of the host serves all runs that ask for it at the time: live ones once a minute, together, and
//! when a person looks at them; one that was killed, and any whose escapees are to be ended, when it is empty, and its end
//! waits for that; those that ended by themselves some seconds later, together, so that short runs cost no look each.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::{
    Action, Actor, AuditEvent, Escapee, EscapeeAct, EscapeeState, EventKind, Fate, Health, Mono, Now, ProcessId, Rule,
    RunId, Sought,
};

use super::deadlines::Due;
use super::{Effect, Engine, RECORD_WAIT, Record, Run, State, Ticket};

/// How often a live run's are looked for.
const EVERY: Duration = Duration::from_secs(60);
/// When those of runs that have ended by themselves are looked for.
const PARTED: Duration = Duration::from_secs(5);
/// How old a look must be before a person's question is the occasion for another.
const ASKED_AGAIN: Duration = Duration::from_secs(5);
/// How long an answer is waited for. A look takes some milliseconds; a process that is stuck in the kernel can hold it up.
const WAIT: Duration = Duration::from_secs(1);
/// When it is first seen whether a signal has ended them; then at twice the time, up to a second.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// How long they have to be gone after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How often those of a run are looked for anew after some were ended: they may have started others meanwhile.
const ROUNDS: u32 = 3;
/// How many are kept of a run.
const MOST: usize = 64;

/// What is known of a run's escapees.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Escapes {
    /// Those that were found.
    pub known: Vec<Escapee>,
    /// How far it has come to end them. The next instance looks for itself.
    #[serde(skip)]
    hunt: Hunt,
    /// The last look that was asked for.
    #[serde(skip)]
    sought: Option<(u64, Mono)>,
    /// What was asked to be done to them, and is not answered.
    #[serde(skip)]
    acting: Option<u64>,
    /// How often they were looked for since the last occasion.
    #[serde(skip)]
    rounds: u32,
    /// Whether the end of the run waits for it.
    #[serde(skip)]
    pub(super) last: LastLook,
}

/// How far ending them has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Hunt {
    /// None is being ended.
    #[default]
    Resting,
    /// The intent is being put on record.
    Recording,
    /// SIGTERM was sent; after this moment comes SIGKILL.
    Grace(Mono),
    /// SIGKILL was sent, then.
    Killing(Mono),
}

/// The look at the end of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum LastLook {
    /// The end does not wait for one.
    #[default]
    None,
    /// It does.
    Awaited,
    /// There was one, or there is to be none.
    Done,
}

impl Engine {
    /// Begins to look for those of a live run; at once for one of an earlier instance.
    pub(super) fn begin_seeking(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id).filter(|run| run.seeks()) else { return };
        let next = if run.adopted { now.mono } else { (now.mono + FIRST_LOOK).rounded_up(EVERY) };
        self.deadlines.set(id, Due::Seek, next);
    }

    pub(super) fn seek_due(&mut self, id: RunId, now: Now) {
        if let Some(run) = self.parted.get_mut(&id) {
            // Asked for once, and not answered: it is given up.
            if run.escapes.sought.is_some() {
                self.parted.remove(&id);
                return;
            }
            self.deadlines.set(id, Due::Seek, now.mono + EVERY);
            return self.seek(id, now);
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        match run.state {
            // The instance before was ending them, and nobody tells this one whether they are there.
            State::Emptied(..) if run.escapes.hunt == Hunt::Resting && run.escapes.ending().next().is_some() => {
                self.give_up(id, Fate::NotProved, now);
            }
            State::Emptied(..) if run.escapes.hunt == Hunt::Resting => {
                let notice = "whether processes of it are left elsewhere is not known: the look for them took too long";
                run.notices.push(notice.to_owned());
                self.settle(id, now);
            }
            State::Live { .. } => {
                run.escapes.rounds = 0;
                self.deadlines.set(id, Due::Seek, (now.mono + FIRST_LOOK).rounded_up(EVERY));
                self.seek(id, now);
            }
            _ => {}
        }
    }

    /// A person looks at a run.
    pub(super) fn shown(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        let fresh = run.escapes.sought.is_some_and(|(_, at)| now.mono.since(at) < ASKED_AGAIN);
        match run.state {
            State::Live { .. } if !fresh => self.seek(id, now),
            State::Queued { .. } => self.queue_shown(id),
            _ => {}
        }
    }

    fn seek(&mut self, id: RunId, now: Now) {
        self.looks += 1;
        let number = self.looks;
        let Some(run) = self.runs.get_mut(&id).or_else(|| self.parted.get_mut(&id)) else { return };
        // Without its shim those that are found by the mark are the run's, and are ended as such.
        if run.scattered || !run.seeks() {
            return;
        }
        let known = run.escapes.known.iter().filter(|e| e.fate.is_there()).map(|e| e.process).collect();
        run.escapes.sought = Some((number, now.mono));
        self.effects.extend(run.as_sought(number, known).map(Effect::Seek));
    }

    /// A kill is on record. To end escapees begins with it.
    pub(super) fn seek_with_kill(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id).filter(|run| run.kills(Rule::Escapees)) else { return };
        match run.escapes.hunt {
            Hunt::Resting => self.seek(id, now),
            _ => self.resume_hunt(id, now),
        }
    }

    /// The deadlines of a run were cleared: that of its hunt is set again.
    fn resume_hunt(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        let wait = match run.escapes.hunt {
            Hunt::Resting => return,
            Hunt::Recording => RECORD_WAIT,
            Hunt::Grace(_) | Hunt::Killing(_) if run.escapes.acting.is_some() => WAIT,
            Hunt::Grace(_) | Hunt::Killing(_) => Duration::ZERO,
        };
        self.deadlines.set(id, Due::Hunt, now.mono + wait);
    }

    /// The run is empty. Whether its end waits for a look at what is left elsewhere.
    pub(super) fn look_last(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let was_killed = matches!(run.state, State::Emptied(Some(_), _));
        let waits = run.seeks() && !run.scattered && (was_killed || run.kills(Rule::Escapees));
        run.escapes.last = if waits { LastLook::Awaited } else { LastLook::None };
        run.escapes.rounds = 0;
        if waits {
            self.deadlines.set(id, Due::Seek, now.mono + WAIT);
            self.resume_hunt(id, now);
            self.seek(id, now);
        }
    }

    /// All that can be done about escapees is done: the run may be over.
    fn settle(&mut self, id: RunId, now: Now) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.escapes.last = LastLook::Done;
        }
        self.deadlines.clear(id, Due::Seek);
        self.close(id, now);
    }

    /// A run that is over, and at whose end nobody looked.
    pub(super) fn part(&mut self, mut run: Run, now: Now) {
        let id = run.spec.id;
        if run.seeks() && run.started.is_some() && !run.scattered && run.escapes.last == LastLook::None {
            run.escapes.sought = None;
            self.deadlines.set(id, Due::Seek, (now.mono + FIRST_LOOK).rounded_up(PARTED));
            self.parted.insert(id, run);
        }
    }

    /// These were found.
    pub(super) fn sought(&mut self, id: RunId, number: u64, found: Vec<Escapee>, now: Now) {
        if let Some(run) = self.parted.remove(&id) {
            self.deadlines.clear(id, Due::Seek);
            return self.sought_of_parted(run, found, now);
        }
        let Some(run) = self.runs.get_mut(&id).filter(|r| r.is_contained() || matches!(r.state, State::Emptied(..)))
        else {
            return;
        };
        let before = run.escapes.known.clone();
        let mut audit = run.note(found, now);
        let ends = run.kills(Rule::Escapees) && run.escapes.hunt == Hunt::Resting;
        let meant = |e: &&mut Escapee| matches!(e.fate, Fate::LeftAlone | Fate::Ending);
        let mut begins = false;
        for escapee in run.escapes.known.iter_mut().filter(meant).filter(|_| ends) {
            (escapee.fate, begins) = (Fate::Ending, true);
        }
        run.tell_escapees(now);
        let is_last = matches!(run.state, State::Emptied(..)) && run.escapes.sought.is_some_and(|(n, _)| n == number);
        let settles = is_last && !begins && run.escapes.hunt == Hunt::Resting;
        if begins {
            run.escapes.hunt = Hunt::Recording;
            audit.extend(self.health_change(id, now));
            self.deadlines.set(id, Due::Hunt, now.mono + RECORD_WAIT);
            if let Some(mut record) = self.record_of(id, audit, now) {
                record.ticket = Some(Ticket::Escapees(id));
                self.effects.push(Effect::Record(Box::new(record)));
                self.effects.push(Effect::Publish(id));
            }
        } else if run.escapes.known != before {
            self.save(id, audit, now);
        }
        if settles {
            self.settle(id, now);
        }
    }

    /// It is over, and was told: what is on record of it is completed.
    fn sought_of_parted(&mut self, mut run: Run, found: Vec<Escapee>, now: Now) {
        let audit = run.note(found, now);
        if audit.is_empty() {
            return;
        }
        run.tell_escapees(now);
        let view = run.view(now);
        let record = Record { audit, run: Some((view.clone(), None)), ..Record::default() };
        self.effects.push(Effect::Record(Box::new(record)));
        self.effects.push(Effect::Amend(Box::new(view)));
    }

    /// The intent to end some is on record, or the store had its time.
    pub(super) fn escapees_recorded(&mut self, id: RunId, ok: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.escapes.hunt == Hunt::Recording) else { return };
        if !ok {
            let text = Escapee::sentence(run.escapes.ending());
            let event = run.event(EventKind::EscapeeFound, Actor::Guardian, text, json!({ "recorded": false }), now);
            self.effects.push(Effect::Journal(Box::new(event)));
        }
        run.escapes.hunt = Hunt::Grace(now.mono + run.spec.limits.grace);
        self.act_on_escapees(id, EscapeeAct::Terminate, now);
    }

    fn act_on_escapees(&mut self, id: RunId, act: EscapeeAct, now: Now) {
        self.looks += 1;
        let number = self.looks;
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.escapes.acting = Some(number);
        let meant = run.escapes.ending().map(|e| e.process).collect();
        self.effects.extend(run.as_sought(number, meant).map(|of| Effect::ActOnEscapees { of, act }));
        self.deadlines.set(id, Due::Hunt, now.mono + WAIT);
    }

    pub(super) fn hunt_due(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (hunt, unanswered) = (run.escapes.hunt, run.escapes.acting.take().is_some());
        match hunt {
            Hunt::Resting => {}
            Hunt::Recording => self.escapees_recorded(id, false, now),
            // Nobody tells any more what is there: what is not known is left alone.
            Hunt::Grace(_) | Hunt::Killing(_) if unanswered => self.give_up(id, Fate::NotProved, now),
            Hunt::Grace(until) if now.mono >= until => self.act_on_escapees(id, EscapeeAct::Kill, now),
            Hunt::Killing(since) if now.mono.since(since) >= KILL_WAIT => self.give_up(id, Fate::Survives, now),
            Hunt::Grace(_) | Hunt::Killing(_) => self.act_on_escapees(id, EscapeeAct::Look, now),
        }
    }

    /// What became of them.
    pub(super) fn acted_on_escapees(
        &mut self,
        id: RunId,
        number: u64,
        act: EscapeeAct,
        states: &[(ProcessId, EscapeeState)],
        now: Now,
    ) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.escapes.acting == Some(number)) else { return };
        run.escapes.acting = None;
        let ended = match (act, run.escapes.hunt) {
            (EscapeeAct::Terminate, _) => Fate::Gone,
            (_, Hunt::Killing(_)) => Fate::Killed,
            _ => Fate::Terminated,
        };
        let mut fates = Vec::new();
        for (process, state) in states {
            match state {
                EscapeeState::Gone => fates.push((*process, ended)),
                EscapeeState::NotProved => fates.push((*process, Fate::NotProved)),
                EscapeeState::There => {}
            }
        }
        if act == EscapeeAct::Kill {
            run.escapes.hunt = Hunt::Killing(now.mono);
        }
        let over = self.decide_fates(id, &fates, now);
        let Some(run) = self.runs.get(&id).filter(|_| !over) else { return };
        let (since, until) = match run.escapes.hunt {
            Hunt::Grace(until) => (before(until, run.spec.limits.grace), until),
            Hunt::Killing(since) => (since, since + KILL_WAIT),
            Hunt::Resting | Hunt::Recording => return,
        };
        let next = now.mono + now.mono.since(since).clamp(FIRST_LOOK, LONGEST_LOOK);
        self.deadlines.set(id, Due::Hunt, if now.mono < until { next.min(until) } else { next });
    }

    fn give_up(&mut self, id: RunId, fate: Fate, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        let fates: Vec<(ProcessId, Fate)> = run.escapes.ending().map(|e| (e.process, fate)).collect();
        self.decide_fates(id, &fates, now);
    }

    /// Says what became of some. True if none is being ended any more: then they are looked for anew.
    fn decide_fates(&mut self, id: RunId, fates: &[(ProcessId, Fate)], now: Now) -> bool {
        let Some(run) = self.runs.get_mut(&id) else { return true };
        let mut audit = Vec::new();
        for (process, fate) in fates {
            let mut ending = run.escapes.known.iter_mut();
            if let Some(escapee) = ending.find(|e| e.process == *process && e.fate == Fate::Ending) {
                escapee.fate = *fate;
                let (text, details) = (escapee.to_string(), json!({ "process": process, "fate": fate }));
                audit.push(run.event(EventKind::EscapeeEnded, Actor::Guardian, text, details, now));
            }
        }
        let over = run.escapes.ending().next().is_none();
        run.tell_escapees(now);
        if over {
            run.escapes.hunt = Hunt::Resting;
            run.escapes.rounds += 1;
        }
        let (rounds, is_empty) = (run.escapes.rounds, matches!(run.state, State::Emptied(..)));
        if !audit.is_empty() {
            self.save(id, audit, now);
        }
        if over {
            self.deadlines.clear(id, Due::Hunt);
            match (rounds < ROUNDS, is_empty) {
                (true, is_empty) => {
                    if is_empty {
                        self.deadlines.set(id, Due::Seek, now.mono + WAIT);
                    }
                    self.seek(id, now);
                }
                (false, true) => self.settle(id, now),
                (false, false) => {}
            }
        }
        over
    }
}

impl Escapes {
    fn ending(&self) -> impl Iterator<Item = &Escapee> {
        self.known.iter().filter(|e| e.fate == Fate::Ending)
    }
}

/// What is done about the escapees of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    Name,
    End,
    /// They would be ended, but for `dry_run`.
    Pretend,
}

/// When SIGTERM was sent that gives them until then.
fn before(until: Mono, grace: Duration) -> Mono {
    Mono(until.0.saturating_sub(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX)))
}

impl Run {
    /// Whether its escapees are looked for. Without a main process on record it is not known since when there are any.
    fn seeks(&self) -> bool {
        self.spec.limits.watch.escapees != Action::Off && self.spec.main.is_some()
    }

    fn as_sought(&self, number: u64, known: Vec<ProcessId>) -> Option<Box<Sought>> {
        let is_empty = matches!(self.state, State::Emptied(..) | State::Closing(_));
        let main = self.spec.main?;
        Some(Box::new(Sought { run: self.spec.id, number, uid: self.spec.uid, main, is_empty, known }))
    }

    /// Takes in what was found. Gives an event for each that is new.
    fn note(&mut self, found: Vec<Escapee>, now: Now) -> Vec<AuditEvent> {
        for known in self.escapes.known.iter_mut().filter(|e| e.fate.is_there() && e.fate != Fate::Ending) {
            if !found.iter().any(|f| f.process == known.process) {
                known.fate = Fate::Gone;
            }
        }
        let is_new = |f: &Escapee| !self.escapes.known.iter().any(|k| k.process == f.process);
        let new: Vec<Escapee> = found.into_iter().filter(is_new).collect();
        let watch = self.spec.limits.watch;
        let event = |e: &Escapee| {
            let then = match self.intent() {
                Intent::Name => "it is left alone",
                Intent::End => "it is ended",
                Intent::Pretend => "it would be ended, but for dry_run",
            };
            let text = format!("{}: {then}", Escapee::sentence(std::iter::once(e)));
            let details = json!({
                "process": e.process, "name": e.name, "cgroup": e.cgroup, "action": watch.escapees, "dry_run": watch.dry_run,
            });
            self.event(EventKind::EscapeeFound, Actor::Guardian, text, details, now)
        };
        let events = new.iter().map(event).collect();
        self.escapes.known.extend(new);
        // The oldest of those that are gone make room, and then of all but those that are being ended.
        while self.escapes.known.len() > MOST {
            let known = &self.escapes.known;
            let gone = known.iter().position(|e| !e.fate.is_there());
            let Some(at) = gone.or_else(|| known.iter().position(|e| e.fate != Fate::Ending)) else { break };
            self.escapes.known.remove(at);
        }
        events
    }

    /// What is done about escapees.
    fn intent(&self) -> Intent {
        match (self.spec.limits.watch.escapees, self.kills(Rule::Escapees)) {
            (Action::Kill, true) => Intent::End,
            (Action::Kill, false) => Intent::Pretend,
            (Action::Off | Action::Warn | Action::KillIfIdle, _) => Intent::Name,
        }
    }

    /// Says which are there, or takes it back.
    fn tell_escapees(&mut self, now: Now) {
        let there: Vec<&Escapee> = self.escapes.known.iter().filter(|e| e.fate.is_there()).collect();
        let said = self.reasons.iter().find(|r| r.rule == Rule::Escapees).map(|r| r.text.clone());
        if there.is_empty() {
            return self.reasons.retain(|r| r.rule != Rule::Escapees);
        }
        let advice = match self.intent() {
            Intent::Name => "end what should not be there with `kill PID`, or set escapees = \"kill\"",
            Intent::End => "what is proved to be the run's is ended",
            Intent::Pretend => "that would be ended, but for dry_run",
        };
        let text = format!("{}: {advice}", Escapee::sentence(there.into_iter()));
        if said.as_ref() != Some(&text) {
            self.warn(Rule::Escapees, Health::Warning, text, now);
        }
    }
}
