//! What a run says of itself, and what follows when it says nothing any more.
//!
//! ```text
//!             WATCHDOG=1                80 % of the time           all of it
//!  (none yet) ──────────▶ armed ──────────────────▶ warned ─────────────────▶ late ─▶ warned of, or killed
//!                          ▲ ▲ frozen: stands still    │ WATCHDOG=1             │ WATCHDOG=1     now or once it is idle
//!                          └─┴─────────────────────────┴────────────────────────┘
//! ```
//!
//! A heartbeat moves its own timer and no other. After a restart of the instance a whole window passes, since nobody
//! listened meanwhile.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::{
    Action, Actor, Answer, Error, EventKind, Health, KillMode, KillReason, Mono, Notification, Now, Readiness, Refused,
    Rule, RunId, human_duration,
};

use super::deadlines::Due;
use super::detect::Standing;
use super::run::Timer;
use super::watch::Tracked;
use super::{Effect, Engine, ReplyTo, Run, State, WARN_PERCENT, usec};

/// How often what a run says is published, and kept. It may say more than that, of which the last counts.
const TELL: Duration = Duration::from_secs(1);
/// How often it is on record that a run extends its own limits: one that does so with each message is one that waits.
const EXTENSION_AUDIT: Duration = Duration::from_secs(60);
/// The shortest window that a run can ask for.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// What is kept of a run's heartbeats beside what people are shown.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pulse {
    /// When the last one came.
    pub last: Option<Mono>,
    /// The timer of a frozen run: what is left of it, and what it allows.
    paused: Option<(Duration, Duration)>,
    /// None came in time, and none since.
    late: bool,
    /// What is said of that, once it is known what the run waits for.
    #[serde(skip)]
    to_say: Option<String>,
    /// The window that was configured, if the run has asked for another.
    configured: Option<Duration>,
    #[serde(skip)]
    told: Option<Mono>,
    /// It has changed what the next instance is to know, and that is still to be put on record.
    #[serde(skip)]
    pub(super) unsaved: bool,
    #[serde(skip)]
    extension_audited: Option<Mono>,
}

impl Run {
    fn notice_once(&mut self, notice: String) {
        if !self.notices.contains(&notice) {
            self.notices.push(notice);
        }
    }
}

impl Engine {
    pub(super) fn heard(
        &mut self,
        id: RunId,
        messages: &[Notification],
        refused: Refused,
        reply: Option<ReplyTo>,
        now: Now,
    ) {
        let answer = self.take_in(id, messages, refused, now);
        if let Some(reply) = reply {
            self.effects.push(Effect::Reply(reply, answer));
        }
    }

    fn take_in(&mut self, id: RunId, messages: &[Notification], refused: Refused, now: Now) -> Result<Answer, Error> {
        let run = self.runs.get_mut(&id).ok_or_else(|| Error::no_such_run(id))?;
        match run.state {
            State::Emptied(..) | State::Closing(_) => return Err(Error::already_finished(id)),
            State::Queued { .. } => {
                return Err(Error::invalid(format!("{id} is queued: nothing of it is executed yet")));
            }
            State::Accepting | State::Containing | State::Live { .. } | State::Stopping(..) | State::Killing(..) => {}
        }
        run.heartbeats.refused.add(refused);
        messages.iter().for_each(|said| self.said(id, said, now));
        if !messages.is_empty() || refused != Refused::default() {
            self.tell_soon(id, now);
        }
        Ok(Answer::Done)
    }

    fn said(&mut self, id: RunId, said: &Notification, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let heartbeats = &mut run.heartbeats;
        if let Some(status) = said.status.as_ref().filter(|s| **s != heartbeats.status) {
            heartbeats.status.clone_from(status);
            run.pulse.unsaved = true;
        }
        heartbeats.errno = said.errno.or(heartbeats.errno);
        if said.heartbeat {
            heartbeats.total = heartbeats.total.saturating_add(1);
            heartbeats.last_at = Some(now.wall);
            run.pulse.last = Some(now.mono);
        }
        if said.heartbeat || said.stopping {
            heartbeats.stopping = said.stopping;
        }
        if said.main_pid {
            run.notice_once(
                "MAINPID= was refused: a run's main process is the one that it was started with".to_owned(),
            );
        }
        if let State::Live { ready: false } = run.state
            && said.ready
            && run.spec.limits.readiness != Readiness::Exec
        {
            self.became_ready(id, now);
        }
        if let Some(progress) = &said.progress {
            self.progressed(id, progress, now);
        }
        if !self.runs.get(&id).is_some_and(|run| matches!(run.state, State::Live { .. })) {
            return;
        }
        if let Some(window) = said.window {
            self.set_window(id, window, now);
        }
        if said.heartbeat {
            self.beat(id, now);
        }
        if said.stopping {
            // It is about to end, and sends none from now on.
            self.stop_timer(id, Rule::HeartbeatTimeout);
            if let Some(run) = self.runs.get_mut(&id) {
                run.pulse.paused = None;
            }
        } else if said.stuck {
            self.find_out_why(id, "it says that it is stuck (WATCHDOG=trigger)".to_owned());
        }
        if let Some(at_least) = said.extend {
            self.extend_as_asked(id, at_least, now);
        }
    }

    /// The next one is waited for.
    fn beat(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let Some(allowed) = run.spec.limits.heartbeat_window() else { return };
        if run.frozen {
            // It was said before that.
            run.pulse.paused = Some((allowed, allowed));
            return;
        }
        // The next instance is to wait for it too.
        run.pulse.unsaved |= !run.timers.contains_key(&Rule::HeartbeatTimeout);
        (run.pulse.late, run.pulse.to_say) = (false, None);
        run.reasons.retain(|r| r.rule != Rule::HeartbeatTimeout);
        self.set_timer(id, Rule::HeartbeatTimeout, Timer { ends: now.mono + allowed, allowed });
    }

    /// The run wants another window: a shorter one than it was given, if any. It cannot loosen what it is held to.
    fn set_window(&mut self, id: RunId, window: Duration, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let Some(present) = run.spec.limits.heartbeat_window() else { return };
        let most = *run.pulse.configured.get_or_insert(present);
        let allowed = window.max(SHORTEST_WINDOW).min(most);
        if allowed == present {
            return;
        }
        run.spec.limits.watch.heartbeat_timeout = Some(allowed);
        run.pulse.unsaved = true;
        if run.timers.contains_key(&Rule::HeartbeatTimeout) {
            self.set_timer(id, Rule::HeartbeatTimeout, Timer { ends: now.mono + allowed, allowed });
        }
    }

    /// 80 % of the time has passed.
    pub(super) fn heartbeat_near(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (State::Live { .. }, Some(timer)) = (&run.state, run.timers.get(&Rule::HeartbeatTimeout).copied()) else {
            return;
        };
        let kills = run.kills(Rule::HeartbeatTimeout);
        let text = format!(
            "{WARN_PERCENT} % of heartbeat_timeout ({}) has passed without a heartbeat: it is {} in {}",
            human_duration(timer.allowed),
            if kills { "killed" } else { "late" },
            human_duration(timer.ends.since(now.mono))
        );
        run.warn(Rule::HeartbeatTimeout, Health::Warning, text.clone(), now);
        // What threatens a run is on record. That a heartbeat was nearly late is not worth a row each time.
        let details = json!({ "limit": Rule::HeartbeatTimeout, "allowed_usec": usec(timer.allowed), "ends_at_usec": now.wall_of(timer.ends).0 });
        let event = kills.then(|| run.event(EventKind::LimitWarning, Actor::Guardian, text, details, now));
        self.save(id, event.into_iter().collect(), now);
    }

    /// All of it has.
    pub(super) fn heartbeat_due(&mut self, id: RunId) {
        let Some(timer) = self.runs.get(&id).and_then(|r| r.timers.get(&Rule::HeartbeatTimeout)) else { return };
        let text = format!("no heartbeat for {}, the heartbeat_timeout", human_duration(timer.allowed));
        self.find_out_why(id, text);
    }

    /// It is late: what it waits for is looked at, and then said with that.
    fn find_out_why(&mut self, id: RunId, text: String) {
        if let Some(run) = self.runs.get_mut(&id).filter(|run| !run.pulse.late) {
            run.pulse.to_say = Some(text);
            self.effects.push(Effect::Explain(id));
        }
    }

    /// What it waits for is known.
    pub(super) fn late_because(&mut self, id: RunId, why: &str, now: Now) {
        // One that came in between is in time.
        if let Some(text) = self.runs.get_mut(&id).and_then(|run| run.pulse.to_say.take()) {
            self.heartbeat_late(id, format!("{text}: {why}"), now);
        }
    }

    fn heartbeat_late(&mut self, id: RunId, text: String, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (State::Live { .. }, Some(window)) = (&run.state, run.spec.limits.heartbeat_window()) else { return };
        if std::mem::replace(&mut run.pulse.late, true) {
            return;
        }
        let allowed = run.timers.get(&Rule::HeartbeatTimeout).map_or(window, |timer| timer.allowed);
        let status = run.heartbeats.status.as_str();
        let text = if status.is_empty() { text } else { format!("{text}; its status was: {status}") };
        let details = json!({
            "limit": Rule::HeartbeatTimeout, "allowed_usec": usec(allowed), "heartbeats": run.heartbeats.total,
            "last_heartbeat_usec": run.heartbeats.last_at.map(|at| at.0), "status": status,
        });
        let kills = run.kills(Rule::HeartbeatTimeout);
        self.stop_timer(id, Rule::HeartbeatTimeout);
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.warn(Rule::HeartbeatTimeout, Health::Critical, text.clone(), now);
        let event = run.event(EventKind::HeartbeatLate, Actor::Guardian, text, details, now);
        self.save(id, vec![event], now);
        if kills {
            let reason = KillReason::over(Rule::HeartbeatTimeout, allowed);
            self.start_kill(id, KillMode::Graceful, reason, Actor::Guardian, Vec::new(), now);
        }
        self.end_if_idle(id, now);
    }

    /// Ends a run whose heartbeats have stopped and which is idle too, where that is what the rule does.
    pub(super) fn end_if_idle(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        let watch = &run.spec.limits.watch;
        let ends = watch.heartbeat_action == Action::KillIfIdle && !watch.dry_run;
        let (State::Live { .. }, true, Some(allowed)) = (&run.state, ends && run.pulse.late, watch.heartbeat_timeout)
        else {
            return;
        };
        let idle = |t: &Tracked| t.track.rule == Rule::IdleTimeout && t.track.standing() >= Standing::Near;
        if run.tracks.iter().any(idle) {
            let reason = KillReason::over(Rule::HeartbeatTimeout, allowed);
            self.start_kill(id, KillMode::Graceful, reason, Actor::Guardian, Vec::new(), now);
        }
    }

    /// A frozen run cannot send any: its time stands still.
    pub(super) fn heartbeats_stand_still(&mut self, id: RunId, frozen: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if frozen {
            if let Some(timer) = run.timers.remove(&Rule::HeartbeatTimeout) {
                run.pulse.paused = Some((timer.ends.since(now.mono), timer.allowed));
                self.deadlines.clear(id, Due::Timer(Rule::HeartbeatTimeout));
                self.deadlines.clear(id, Due::Warn(Rule::HeartbeatTimeout));
            }
        } else if let Some((left, allowed)) = run.pulse.paused.take() {
            self.set_timer(id, Rule::HeartbeatTimeout, Timer { ends: now.mono + left, allowed });
        }
    }

    /// `EXTEND_TIMEOUT_USEC=`, as systemd means it: what holds the run in its present state does not end it before this
    /// time is over. Bounded as any other extension.
    fn extend_as_asked(&mut self, id: RunId, at_least: Duration, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let State::Live { ready } = run.state else { return };
        let rule = if ready { Rule::MaxRuntime } else { Rule::InitTimeout };
        let ends = now.mono + at_least;
        let Some(timer) = run.timers.get(&rule).filter(|timer| timer.ends < ends) else { return };
        let by = ends.since(timer.ends);
        run.pulse.unsaved = true;
        let audited = &mut run.pulse.extension_audited;
        let on_record = audited.is_none_or(|at| now.mono.since(at) >= EXTENSION_AUDIT);
        if on_record {
            *audited = Some(now.mono);
        }
        let actor = Actor::User { uid: run.spec.uid, name: run.spec.user.clone() };
        match self.lengthen(id, rule, by) {
            Ok(ends) if on_record => {
                let Some(run) = self.runs.get(&id) else { return };
                let why = "the run has asked for it (EXTEND_TIMEOUT_USEC)";
                let event = super::extended(run, rule, by, now.wall_of(ends), actor, why, now);
                self.save(id, vec![event], now);
            }
            Ok(_) => {}
            Err(e) => {
                if let Some(run) = self.runs.get_mut(&id) {
                    run.notice_once(format!("EXTEND_TIMEOUT_USEC= was refused: {e}"));
                }
            }
        }
    }

    /// Publishes what a run said: at once if nothing was lately, else in a moment.
    fn tell_soon(&mut self, id: RunId, now: Now) {
        let told = self.runs.get(&id).and_then(|run| run.pulse.told);
        match told.map(|at| at + TELL).filter(|next| *next > now.mono) {
            Some(next) => self.deadlines.set(id, Due::Tell, next),
            None => self.tell(id, now),
        }
    }

    /// Whether something that a run said is still to be published.
    pub fn is_untold(&self, id: RunId) -> bool {
        self.deadlines.of(id).any(|(due, _)| due == Due::Tell)
    }

    pub(super) fn tell(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.pulse.told = Some(now.mono);
        match std::mem::take(&mut run.pulse.unsaved) {
            true => self.save(id, Vec::new(), now),
            false => self.effects.push(Effect::Publish(id)),
        }
    }
}

impl Run {
    /// Nobody has listened for a while: what is waited for gets all of its time again.
    pub(super) fn wait_anew(&mut self, now: Now) {
        if let Some(timer) = self.timers.get_mut(&Rule::HeartbeatTimeout) {
            timer.ends = now.mono + timer.allowed;
            self.reasons.retain(|r| r.rule != Rule::HeartbeatTimeout);
        }
        if let Some((left, allowed)) = &mut self.pulse.paused {
            *left = *allowed;
        }
        self.clocks_begin_anew(now);
    }
}
