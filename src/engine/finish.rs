//! From the main process's exit to a finished run: empty, on record, its cgroup removed, published. In that order.

use std::time::Duration;

use serde_json::json;

use crate::model::{
    Actor, AuditEvent, Error, ErrorKind, EventKind, ExitStatus, KillReason, Now, Outcome, Receipt, Rule, RunId,
    StepKind,
};

use super::deadlines::Due;
use super::run::{Closing, Kill};
use super::{Effect, Engine, FIRST_STATUS, Main, RECORD_WAIT, Removal, Run, STATUS_WAIT, State, Stop, Ticket};

/// What a kill sends.
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// Removal gives EBUSY for some milliseconds after `populated 0`; this often it is tried again, about 5 s in all.
const REMOVALS: u32 = 60;
/// What a gated child exits with that executed nothing.
const NOTHING_EXECUTED: i32 = 125;
const LONGEST_REMOVAL_WAIT: Duration = Duration::from_millis(100);

impl Run {
    /// How the main process ended, as far as it is known.
    pub(super) fn exit_status(&self) -> Option<ExitStatus> {
        match self.main {
            Main::Exited { status, .. } => status,
            Main::Alive | Main::Unknown => None,
        }
    }

    /// Marks the main process as exited. A second report can only add what the first did not know.
    pub(super) fn set_exited(&mut self, status: Option<ExitStatus>, oom: bool, now: Now) {
        let by_itself = match &self.state {
            State::Stopping(kill, _) | State::Killing(kill, _) | State::Emptied(Some(kill), _) => !kill.acted(),
            _ => true,
        };
        match &mut self.main {
            main @ Main::Alive => *main = Main::Exited { status, oom, by_itself, at: now.mono },
            // Who reports its status, as a client does, knows nothing of the OOM killer.
            Main::Exited { status: known, oom: struck, .. } => {
                *known = known.or(status);
                *struck |= oom;
            }
            Main::Unknown => {}
        }
    }

    /// The proof of its kill.
    fn receipt_of(&self, kill: Kill) -> Receipt {
        let remains = self.remains(&kill);
        kill.receipt(self.spec.containment, !self.scattered, self.escapes.known.clone(), remains)
    }

    /// How the run ended; none while it depends on a status that is still to come.
    fn outcome(&self, kill: Option<&Kill>) -> Option<Outcome> {
        let natural = match self.main {
            // The status of a gated child that executed nothing, of a launch that another instance did not complete.
            Main::Exited { status: Some(ExitStatus::Exited(NOTHING_EXECUTED)), .. }
                if self.adopted && !self.executing =>
            {
                let why = "the instance stopped during its launch, and nothing was executed";
                Some(Outcome::Lost { why: why.to_owned() })
            }
            Main::Exited { status: Some(ExitStatus::Exited(code)), .. } => Some(Outcome::Exited { code }),
            Main::Exited { status: Some(ExitStatus::Signaled(SIGKILL)), oom, .. } if oom || self.oom_kills > 0 => {
                Some(Outcome::Oom)
            }
            Main::Exited { status: Some(ExitStatus::Signaled(signal)), .. } => Some(Outcome::Signaled { signal }),
            Main::Exited { status: None, .. } | Main::Alive => None,
            Main::Unknown => Some(Outcome::Lost { why: "the record of it was lost with the database".to_owned() }),
        };
        match (kill, self.main) {
            (Some(kill), _) if kill.answer.reason.code() == "launch_incomplete" => {
                let why = self.notices.last().cloned().unwrap_or_else(|| kill.answer.reason.to_string());
                Some(Outcome::Lost { why })
            }
            // Its child exits as soon as it sees that the gate stays closed, mostly before a signal is sent.
            (Some(kill), _) if self.kept_closed => Some(Outcome::Killed { reason: kill.answer.reason.clone() }),
            // With its shim a run in a PID namespace is ended by the kernel.
            (Some(kill), Main::Exited { status: Some(ExitStatus::Signaled(SIGKILL)), .. }) if self.scattered => {
                Some(Outcome::Killed { reason: kill.answer.reason.clone() })
            }
            (_, _) if self.stopped_outside => Some(Outcome::Killed { reason: KillReason::StoppedOutside }),
            // An earlier instance has sent it, and did not live to record that.
            (Some(kill), Main::Exited { status: Some(ExitStatus::Signaled(SIGTERM | SIGKILL)), .. })
                if kill.was_resumed() && natural != Some(Outcome::Oom) =>
            {
                Some(Outcome::Killed { reason: kill.answer.reason.clone() })
            }
            // What exited before anything was done to it ended by itself, whatever came over the rest of the run.
            (_, Main::Exited { by_itself: true, .. }) => natural,
            (Some(kill), _) if kill.acted() => Some(Outcome::Killed { reason: kill.answer.reason.clone() }),
            _ => natural,
        }
    }
}

impl Engine {
    pub(super) fn recorded(&mut self, ticket: Ticket, ok: bool, now: Now) {
        match ticket {
            Ticket::Launch(id) => {
                self.deadlines.clear(id, Due::Record);
                self.launch_recorded(id, ok, now);
            }
            Ticket::Queue(id) => self.queue_recorded(id, ok, now),
            Ticket::Start(id) => self.start_recorded(id, ok, now),
            Ticket::Kill(id) => self.kill_recorded(id, ok, now),
            Ticket::Finish(id) => self.finish_recorded(id, now),
            Ticket::Escapees(id) => self.escapees_recorded(id, ok, now),
        }
    }

    pub(super) fn record_overdue(&mut self, id: RunId, now: Now) {
        match self.runs.get(&id).map(|r| &r.state) {
            Some(State::Queued { .. }) => self.queue_recorded(id, false, now),
            Some(State::Accepting) => self.launch_recorded(id, false, now),
            Some(State::Containing) => self.containing_overdue(id, now),
            Some(State::Live { .. }) => self.start_recorded(id, false, now),
            Some(State::Stopping(_, Stop::Recording)) => self.kill_recorded(id, false, now),
            Some(State::Closing(_)) => self.finish_recorded(id, now),
            _ => {}
        }
    }

    pub(super) fn main_exited(&mut self, id: RunId, status: Option<ExitStatus>, oom: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.set_exited(status, oom, now);
        match run.state {
            State::Live { .. } | State::Stopping(..) | State::Killing(..) => self.effects.push(Effect::Look(id)),
            State::Emptied(..) => self.close(id, now),
            State::Queued { .. } | State::Accepting | State::Containing | State::Closing(_) => {}
        }
    }

    pub(super) fn status_known(&mut self, id: RunId, status: ExitStatus, reported: bool, now: Now) {
        if let Some(run) = self.runs.get_mut(&id) {
            // A client reports what became of a command whose gate it opened.
            run.executing |= reported;
        }
        // Who reports has reaped it, so it has exited, whatever the order in which the news came.
        self.main_exited(id, Some(status), false, now);
    }

    pub(super) fn status_asked(&mut self, id: RunId, status: Option<ExitStatus>, now: Now) {
        if let Some(status) = status {
            return self.status_known(id, status, false, now);
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        let why = match run.main {
            Main::Alive => "its main process left the run",
            Main::Exited { .. } | Main::Unknown => "nobody reported how its main process ended",
        };
        let is_looked_at = run.is_looked_at();
        let State::Emptied(kill, since) = &mut run.state else { return };
        let waited = now.mono.since(*since);
        if is_looked_at {
            return self.deadlines.set(id, Due::Status, now.mono + waited.clamp(FIRST_STATUS, STATUS_WAIT));
        }
        if waited < STATUS_WAIT {
            // Soon after the end at first: a new parent reaps at once. Then ever later: a client has to reconnect.
            let next = (now.mono + waited.max(FIRST_STATUS)).min(*since + STATUS_WAIT);
            return self.deadlines.set(id, Due::Status, next);
        }
        let kill = kill.take();
        let receipt = kill.map(|k| run.receipt_of(k));
        self.close_as(id, Outcome::Lost { why: why.to_owned() }, receipt, Vec::new(), now);
    }

    /// The kernel says that nothing is in the cgroup or below it.
    pub(super) fn emptied(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let kill = match std::mem::replace(&mut run.state, State::Emptied(None, now.mono)) {
            State::Live { .. } => None,
            // The intent is on its way to the record, and its answer with it; the look after that comes back here.
            state @ State::Stopping(_, Stop::Recording) => return run.state = state,
            State::Stopping(mut kill, _) | State::Killing(mut kill, _) => {
                kill.did(StepKind::Emptied, 0, now);
                Some(kill)
            }
            // Empty before anything was in it, or told twice.
            state => return run.state = state,
        };
        run.state = State::Emptied(kill, now.mono);
        self.deadlines.clear_run(id);
        self.deadlines.set(id, Due::Status, now.mono + FIRST_STATUS);
        self.look_last(id, now);
        if matches!(self.runs.get(&id).map(|run| &run.state), Some(State::Emptied(Some(_), _))) {
            self.look_for_locks(id, now);
        }
        self.close(id, now);
    }

    /// Closes an emptied run if its outcome is known, and nothing is looked for any more, nor done about escapees.
    pub(super) fn close(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| !run.is_looked_at()) else { return };
        let State::Emptied(kill, since) = &mut run.state else { return };
        let (kill, since) = (kill.take(), *since);
        match run.outcome(kill.as_ref()) {
            Some(outcome) if kill.is_none() && run.is_cut_short(&outcome) => {
                run.state = State::Emptied(None, since);
                self.look_for_locks(id, now);
            }
            Some(outcome) => {
                let receipt = kill.map(|k| run.receipt_of(k));
                self.close_as(id, outcome, receipt, Vec::new(), now);
            }
            None => run.state = State::Emptied(kill, since),
        }
    }

    /// The run is over: its outcome goes on record.
    pub(super) fn close_as(
        &mut self,
        id: RunId,
        outcome: Outcome,
        receipt: Option<Receipt>,
        mut audit: Vec<AuditEvent>,
        now: Now,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        self.line.leave(run);
        self.line.stir();
        run.timers.clear();
        if receipt.is_none() {
            let told = run.locks_left();
            run.notices.extend(told);
        }
        // That a timer was near, or memory short, is of no concern any more.
        run.reasons.retain(|r| matches!(r.rule, Rule::Oom | Rule::Leftovers | Rule::Unkillable | Rule::Escapees));
        if run.opening {
            let error = format!("{id} was over before its command was executed: {outcome}");
            self.answer_launch(id, Err(Error::new(ErrorKind::LaunchFailed, error)));
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        let details = json!({ "outcome": outcome, "receipt": receipt, "status": run.exit_status() });
        let reason = receipt.as_ref().map_or_else(|| outcome.to_string(), |r| format!("{outcome}: {r}"));
        run.state = State::Closing(Closing { outcome, receipt: receipt.clone(), at: now, removals: None });
        audit.push(run.event(EventKind::RunFinished, Actor::Guardian, reason, details, now));
        self.deadlines.clear_run(id);
        self.deadlines.set(id, Due::Record, now.mono + RECORD_WAIT);
        if let Some(mut record) = self.record_of(id, audit, now) {
            record.receipt = receipt;
            record.ticket = Some(Ticket::Finish(id));
            self.effects.push(Effect::Record(Box::new(record)));
        }
    }

    fn finish_recorded(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Closing(Closing { removals: removals @ None, .. }) = &mut run.state else { return };
        *removals = Some(0);
        let has_container = run.container.is_some();
        self.deadlines.clear(id, Due::Record);
        self.answer_early_kill(id);
        if has_container {
            self.effects.push(Effect::Remove(id));
        } else {
            self.finish(id, now);
        }
    }

    pub(super) fn removed(&mut self, id: RunId, result: Removal, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Closing(Closing { removals: Some(removals), .. }) = &mut run.state else { return };
        *removals += 1;
        let why = match result {
            Removal::Gone => return self.finish(id, now),
            Removal::Busy | Removal::Failed(_) if *removals < REMOVALS => {
                let wait = Duration::from_millis(1 << (*removals - 1).min(7)).min(LONGEST_REMOVAL_WAIT);
                return self.deadlines.set(id, Due::RemoveAgain, now.mono + wait);
            }
            Removal::Busy => "something is in it that came after the run had ended".to_owned(),
            Removal::Failed(why) | Removal::Refused(why) => why,
        };
        // The run had ended before: what is there now was not the run's, and is not ours to kill.
        run.notices.push(format!("its container was left alone: {why}"));
        let details = json!({ "container": run.container });
        let event = run.event(EventKind::ForeignCgroup, Actor::Guardian, why, details, now);
        self.save(id, vec![event], now);
        self.finish(id, now);
    }

    fn finish(&mut self, id: RunId, now: Now) {
        if let Some(run) = self.runs.remove(&id) {
            self.deadlines.clear_run(id);
            self.effects.push(Effect::Finish(Box::new(run.view(now))));
            self.part(run, now);
        }
    }
}
