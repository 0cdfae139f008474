//! From the decision to end a run to the moment when its cgroup is empty.

use std::time::Duration;

use serde_json::json;

use crate::model::{
    Actor, Answer, Error, ErrorKind, EventKind, Evidence, Health, KillAnswer, KillMode, KillReason, Now, Rule, RunId,
    StepKind, human_duration,
};

use super::deadlines::Due;
use super::run::{EarlyKill, Kill, Killing, Stop};
use super::{Effect, Engine, Main, RECORD_WAIT, ReplyTo, State, Ticket, UNKILLABLE_AFTER};

/// How long to wait before `cgroup.kill` is written once more; longer each time, up to ten times this.
const KILL_AGAIN: Duration = Duration::from_millis(100);

/// How often a run in its grace period is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Engine {
    pub(super) fn kill_asked(
        &mut self,
        id: RunId,
        mode: KillMode,
        text: String,
        actor: Actor,
        reply: ReplyTo,
        now: Now,
    ) {
        let reason = KillReason::Requested { text };
        let Some(run) = self.runs.get_mut(&id) else {
            return self.effects.push(Effect::Reply(reply, Err(Error::no_such_run(id))));
        };
        match &mut run.state {
            State::Emptied(..) | State::Closing(_) => {
                self.effects.push(Effect::Reply(reply, Err(Error::already_finished(id))));
            }
            State::Queued { .. } => self.end_queued(id, reason, actor, vec![reply], now),
            State::Accepting | State::Containing => self.kill_early(id, mode, reason, actor, Some(reply)),
            State::Live { .. } => self.start_kill(id, mode, reason, actor, vec![reply], now),
            State::Stopping(kill, _) => {
                let escalates = mode == KillMode::Force && kill.answer.mode == KillMode::Graceful;
                if escalates {
                    self.escalate(id, &reason, actor, now);
                }
                self.answer_kill(id, reply);
            }
            State::Killing(..) => self.answer_kill(id, reply),
        }
    }

    /// Answers at once if the intent is on record, else when it is.
    fn answer_kill(&mut self, id: RunId, reply: ReplyTo) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        match &mut run.state {
            State::Stopping(kill, Stop::Recording) => kill.replies.push(reply),
            State::Stopping(kill, _) | State::Killing(kill, _) => {
                self.effects.push(Effect::Reply(reply, Ok(Answer::Kill(kill.answer.clone()))));
            }
            _ => {}
        }
    }

    /// A kill of a run whose process is not contained yet: it waits for that, and the gate is not opened.
    pub(super) fn kill_early(
        &mut self,
        id: RunId,
        mode: KillMode,
        reason: KillReason,
        actor: Actor,
        reply: Option<ReplyTo>,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let kill = run.early_kill.get_or_insert_with(|| EarlyKill { mode, reason, actor, replies: Vec::new() });
        kill.mode = kill.mode.max(mode);
        kill.replies.extend(reply);
    }

    /// Begins the one kill of a run: its intent goes on record first.
    pub(super) fn start_kill(
        &mut self,
        id: RunId,
        mode: KillMode,
        reason: KillReason,
        actor: Actor,
        mut replies: Vec<ReplyTo>,
        now: Now,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        // Who asked for a kill during the launch is answered with the kill that there is.
        replies.extend(run.early_kill.take().map(|early| early.replies).unwrap_or_default());
        if std::mem::take(&mut run.opening) {
            // The gate stays closed: nothing of the command is executed any more.
            run.kept_closed = true;
            let error = format!("{id} was killed before its command was executed: {reason}");
            self.answer_launch(id, Err(Error::new(ErrorKind::LaunchFailed, error)));
            self.effects.push(Effect::CloseGate(id));
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        let answer = KillAnswer { run: id, mode, reason, actor, requested_at: now.wall };
        run.state = State::Stopping(Kill::new(answer.clone(), now, replies), Stop::Recording);
        run.timers.clear();
        let details =
            json!({ "mode": mode, "reason": answer.reason, "grace_usec": super::usec(run.spec.limits.grace) });
        let event = run.event(EventKind::KillIntent, answer.actor.clone(), answer.reason.to_string(), details, now);
        self.deadlines.clear_run(id);
        self.deadlines.set(id, Due::Record, now.mono + RECORD_WAIT);
        if let Some(mut record) = self.record_of(id, vec![event], now) {
            record.intent = Some(answer);
            record.ticket = Some(Ticket::Kill(id));
            self.effects.push(Effect::Record(Box::new(record)));
            self.effects.push(Effect::Publish(id));
        }
    }

    fn escalate(&mut self, id: RunId, reason: &KillReason, actor: Actor, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Stopping(kill, stop) = &mut run.state else { return };
        kill.answer.mode = KillMode::Force;
        kill.did(StepKind::Escalated, 0, now);
        let in_grace = matches!(stop, Stop::Grace(_));
        let event = run.event(EventKind::KillEscalated, actor, reason.to_string(), json!({}), now);
        self.save(id, vec![event], now);
        // Before the grace period the intent or the first signal is still under way: what follows it looks at the mode.
        if in_grace {
            self.deadlines.clear(id, Due::Grace);
            self.effects.push(Effect::Kill(id));
        }
    }

    /// The intent is on record, or the store had its time: the kill goes on either way.
    pub(super) fn kill_recorded(&mut self, id: RunId, ok: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Stopping(kill, stop @ Stop::Recording) = &mut run.state else { return };
        *stop = Stop::Signalling;
        kill.did(if ok { StepKind::IntentRecorded } else { StepKind::IntentNotRecorded }, 0, now);
        for reply in kill.replies.drain(..) {
            self.effects.push(Effect::Reply(reply, Ok(Answer::Kill(kill.answer.clone()))));
        }
        let (mode, answer) = (kill.answer.mode, kill.answer.clone());
        if !ok {
            let details = json!({ "mode": mode, "recorded": false });
            let event = run.event(EventKind::KillIntent, answer.actor, answer.reason.to_string(), details, now);
            self.effects.push(Effect::Journal(Box::new(event)));
        }
        self.deadlines.clear(id, Due::Record);
        self.effects.push(Effect::Inspect(id));
        self.seek_with_kill(id, now);
        self.effects.push(match mode {
            KillMode::Graceful => Effect::Terminate(id),
            KillMode::Force => Effect::Kill(id),
        });
    }

    pub(super) fn inspected(&mut self, id: RunId, evidence: Evidence, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        match &mut run.state {
            State::Stopping(kill, Stop::Signalling) => kill.evidence = evidence,
            State::Killing(kill, Killing { unkillable: true, .. }) => {
                kill.did(StepKind::Unkillable, evidence.total, now);
                let who = evidence.processes.first().map_or_else(
                    || "a process that /proc does not show".to_owned(),
                    |p| {
                        let wait = p.wchan.as_deref().map_or_else(String::new, |w| format!(", in {w}"));
                        format!("{} (pid {}, state {}{wait})", p.name, p.pid, p.state)
                    },
                );
                let text = format!("{} after SIGKILL {} is still there", human_duration(UNKILLABLE_AFTER), who);
                run.warn(Rule::Unkillable, Health::Critical, text.clone(), now);
                let details = json!({ "processes": evidence.brief(), "total": evidence.total });
                let event = run.event(EventKind::Unkillable, Actor::Guardian, text, details, now);
                self.save(id, vec![event], now);
            }
            State::Live { .. } => self.explained(id, &evidence, now),
            _ => {}
        }
    }

    pub(super) fn terminated(&mut self, id: RunId, processes: u32, trouble: Option<String>, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Stopping(kill, stop @ Stop::Signalling) = &mut run.state else { return };
        kill.terminated = processes;
        kill.did(StepKind::Terminated, processes, now);
        run.frozen = false;
        if kill.answer.mode == KillMode::Force {
            return self.effects.push(Effect::Kill(id));
        }
        let until = now.mono + run.spec.limits.grace;
        *stop = Stop::Grace(until);
        let details = json!({ "processes": processes, "trouble": trouble, "evidence": kill.evidence.brief() });
        let explanation = kill.explanation();
        let event = run.event(EventKind::KillTerminated, Actor::Guardian, explanation, details, now);
        self.deadlines.set(id, Due::Grace, until);
        self.save(id, vec![event], now);
        self.effects.push(Effect::Look(id));
    }

    pub(super) fn grace_over(&mut self, id: RunId) {
        if let Some(State::Stopping(_, Stop::Grace(_))) = self.runs.get(&id).map(|r| &r.state) {
            self.effects.push(Effect::Kill(id));
        }
    }

    pub(super) fn killed(&mut self, id: RunId, processes: u32, trouble: Option<String>, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let mut audit = Vec::new();
        let attempts = match std::mem::replace(&mut run.state, State::Accepting) {
            State::Stopping(mut kill, Stop::Signalling | Stop::Grace(_)) => {
                kill.killed = processes;
                kill.did(StepKind::Killed, processes, now);
                let details = json!({ "processes": processes, "trouble": trouble, "evidence": kill.evidence.brief() });
                // It is said once: after a SIGTERM it was said with that.
                let explanation = if kill.terminated == 0 { kill.explanation() } else { String::new() };
                run.state = State::Killing(kill, Killing { since: now.mono, attempts: 1, unkillable: false });
                audit.push(run.event(EventKind::RunKilled, Actor::Guardian, explanation, details, now));
                self.deadlines.clear(id, Due::Grace);
                self.deadlines.set(id, Due::Unkillable, now.mono + UNKILLABLE_AFTER);
                1
            }
            State::Killing(kill, mut killing) => {
                killing.attempts = killing.attempts.saturating_add(1);
                run.state = State::Killing(kill, killing);
                killing.attempts
            }
            // It was over before the effect was performed.
            other => return run.state = other,
        };
        run.frozen = false;
        self.deadlines.set(id, Due::KillAgain, now.mono + KILL_AGAIN * attempts.min(10));
        if !audit.is_empty() {
            self.save(id, audit, now);
        }
        self.effects.push(Effect::Look(id));
    }

    pub(super) fn unkillable(&mut self, id: RunId) {
        if let Some(State::Killing(_, killing)) = self.runs.get_mut(&id).map(|r| &mut r.state) {
            killing.unkillable = true;
            self.effects.push(Effect::Inspect(id));
        }
    }

    pub(super) fn client_gone(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        match run.state {
            State::Queued { .. } => self.end_queued(id, KillReason::ClientGone, Actor::Guardian, Vec::new(), now),
            State::Accepting | State::Containing => {
                self.kill_early(id, KillMode::Graceful, KillReason::ClientGone, Actor::Guardian, None);
            }
            State::Live { .. } => {
                self.start_kill(id, KillMode::Graceful, KillReason::ClientGone, Actor::Guardian, Vec::new(), now);
            }
            // Nobody will report any more how it ended; the pidfd may still tell.
            State::Emptied(..) => self.effects.push(Effect::AskStatus(id)),
            State::Stopping(..) | State::Killing(..) | State::Closing(_) => {}
        }
    }

    /// Its processes may scatter from now on, so it is ended at once: those that are found by their mark, by record and by
    /// descent. A kill that is under way finds them in the same way.
    pub(super) fn containment_lost(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if std::mem::replace(&mut run.scattered, true) || !run.is_contained() {
            return;
        }
        let notice = "its shim was killed, so its processes were found by the run's mark, by record and by descent";
        run.notices.push(notice.to_owned());
        let event =
            run.event(EventKind::ContainmentLost, Actor::Guardian, notice, json!({ "container": run.container }), now);
        let live = matches!(run.state, State::Live { .. });
        self.save(id, vec![event], now);
        if live {
            self.start_kill(id, KillMode::Force, KillReason::ContainmentLost, Actor::Guardian, Vec::new(), now);
        }
    }

    /// It ends without us, and not by itself.
    pub(super) fn stopped_outside(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let by_us = match &run.state {
            State::Live { .. } => false,
            State::Stopping(kill, _) | State::Killing(kill, _) => kill.acted(),
            _ => true,
        };
        if by_us || std::mem::replace(&mut run.stopped_outside, true) {
            return;
        }
        let text = KillReason::StoppedOutside.to_string();
        let event = run.event(EventKind::StoppedOutside, Actor::Guardian, text, json!({}), now);
        self.save(id, vec![event], now);
    }

    /// The larger part of a timer's time has passed. That is said with what the run waits for.
    pub(super) fn warn_timer(&mut self, id: RunId, rule: Rule) {
        // With a timer its deadlines go, so it is there, and the run is live.
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.near.insert(rule);
        self.effects.push(Effect::Explain(id));
    }

    /// What it waits for is known.
    pub(super) fn timers_near(&mut self, id: RunId, why: &str, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let mut audit = Vec::new();
        for rule in std::mem::take(&mut run.near) {
            let Some(timer) = run.timers.get(&rule).copied() else { continue };
            let left = timer.ends.since(now.mono);
            // It was given more time meanwhile.
            if left > super::last_part(timer.allowed) {
                continue;
            }
            let (passed, left) = (run.passed(rule, timer, now), human_duration(left));
            let then = if run.kills(rule) { "it is killed" } else { "that is too long" };
            let text = format!("{passed}: {then} in {left}; {why}");
            run.warn(rule, Health::Warning, text.clone(), now);
            let details = json!({ "limit": rule, "allowed_usec": super::usec(timer.allowed), "ends_at_usec": now.wall_of(timer.ends).0 });
            audit.push(run.event(EventKind::LimitWarning, Actor::Guardian, text, details, now));
        }
        if !audit.is_empty() {
            self.save(id, audit, now);
        }
    }

    pub(super) fn timer_due(&mut self, id: RunId, rule: Rule, now: Now) {
        match rule {
            // It may have become ready since the last look: look before the kill.
            Rule::InitTimeout => self.effects.push(Effect::Probe(id)),
            _ => self.limit_reached(id, rule, now),
        }
    }

    pub(super) fn limit_reached(&mut self, id: RunId, rule: Rule, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        let (State::Live { .. }, Some(timer)) = (&run.state, run.timers.get(&rule)) else { return };
        let (allowed, seen) = (timer.allowed, run.seen(rule, timer.allowed));
        if !run.kills(rule) {
            return self.timer_over(id, rule, allowed, seen, now);
        }
        let reason = KillReason::Limit { rule, allowed, seen: seen.unwrap_or_default() };
        self.start_kill(id, KillMode::Graceful, reason, Actor::Guardian, Vec::new(), now);
    }

    /// Something is in the cgroup. That matters if the main process is not.
    pub(super) fn still_populated(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        match (&run.state, run.main) {
            (State::Live { .. }, Main::Exited { at, .. }) => {
                let settled = at + super::SETTLE;
                if now.mono < settled {
                    return self.deadlines.set(id, Due::Settle, settled);
                }
                let details = json!({ "status": run.exit_status() });
                let event = run.event(EventKind::MainExited, Actor::Guardian, "", details, now);
                self.save(id, vec![event], now);
                self.start_kill(id, KillMode::Graceful, KillReason::Leftovers, Actor::Guardian, Vec::new(), now);
            }
            // Its emptying is told, but not by a cgroup that systemd removes just then (systemd 257): so it is looked for.
            (State::Stopping(_, Stop::Grace(_)), _) => self.deadlines.set(id, Due::Settle, now.mono + LOOK_AGAIN),
            // Somebody moved a process into a run that had ended: it is in the run's cgroup, so it goes with it.
            (State::Emptied(..), _) => {
                let state = std::mem::replace(&mut run.state, State::Live { ready: true });
                self.deadlines.clear(id, Due::Status);
                if let State::Emptied(Some(kill), _) = state {
                    run.state = State::Stopping(kill, Stop::Signalling);
                    self.effects.push(Effect::Kill(id));
                } else {
                    self.deadlines.set(id, Due::Settle, now.mono + super::SETTLE);
                }
            }
            _ => {}
        }
    }
}
