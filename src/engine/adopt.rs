//! Taking up the runs of an earlier instance. What cannot be proved to be ours is left alone and reported.

use serde_json::json;

use crate::model::{Actor, AuditEvent, EventKind, KillMode, KillReason, Now, Outcome, Readiness, RunSpec, StepKind};

use super::deadlines::Due;
use super::escape::LastLook;
use super::run::Stop;
use super::{Effect, Engine, FIRST_PROBE, Found, Main, RECORD_WAIT, Run, State, UNKILLABLE_AFTER};

impl Engine {
    pub(super) fn adopt(&mut self, mut run: Run, found: Found, now: Now) {
        let id = run.spec.id;
        self.recovering = true;
        let launched = !matches!(run.state, State::Queued { .. } | State::Accepting | State::Containing);
        if found == Found::Waiting {
            return self.queue_again(run, now);
        }
        run.adopted = true;
        match found {
            Found::Waiting => {}
            Found::Forgotten(why) => self.adopt_as_lost(run, &why, Vec::new(), now),
            Found::Rebooted => {
                // Old pids, inodes and monotonic times mean nothing in this boot.
                run.container = None;
                self.adopt_as_lost(run, "the host was rebooted", Vec::new(), now);
            }
            Found::Foreign(why) => {
                let details = json!({ "container": run.container });
                let event = run.event(EventKind::ForeignCgroup, Actor::Guardian, why, details, now);
                run.container = None;
                self.adopt_as_lost(run, "its container cannot be proved to be its own", vec![event], now);
            }
            Found::Gone if !launched => {
                run.container = None;
                self.adopt_as_lost(
                    run,
                    "the instance stopped during its launch, and nothing was executed",
                    Vec::new(),
                    now,
                );
            }
            Found::Gone => {
                run.container = None;
                run.set_exited(None, false, now);
                self.take_up(run, now);
                // It could only be removed when it was empty.
                self.emptied(id, now);
            }
            Found::There { container, main_alive, client_alive } => {
                run.container = Some(container);
                if !main_alive {
                    run.set_exited(None, false, now);
                }
                self.take_up(run, now);
                if !launched {
                    self.start_kill(
                        id,
                        KillMode::Force,
                        KillReason::LaunchIncomplete,
                        Actor::Guardian,
                        Vec::new(),
                        now,
                    );
                } else if !client_alive {
                    self.client_gone(id, now);
                }
                self.effects.push(Effect::Look(id));
            }
        }
    }

    fn adopt_as_lost(&mut self, mut run: Run, why: &str, audit: Vec<AuditEvent>, now: Now) {
        let id = run.spec.id;
        // What a process is held against says nothing of this boot, or of what came in the place of the run.
        run.escapes.last = LastLook::Done;
        self.runs.insert(id, run);
        self.close_as(id, Outcome::Lost { why: why.to_owned() }, None, audit, now);
    }

    /// Goes on where the earlier instance stopped: the same deadlines, the same kill.
    fn take_up(&mut self, mut run: Run, now: Now) {
        let id = run.spec.id;
        if let State::Stopping(kill, _) | State::Killing(kill, _) = &mut run.state {
            kill.did(StepKind::Resumed, 0, now);
        }
        let event = run.event(EventKind::RunAdopted, Actor::Guardian, "", json!({ "phase": run.phase() }), now);
        run.wait_anew(now);
        let timers = run.timers.clone();
        let (state, readiness) = (run.state.clone(), run.spec.limits.readiness);
        self.runs.insert(id, run);
        timers.into_iter().for_each(|(rule, timer)| self.set_timer(id, rule, timer));
        self.save(id, vec![event], now);
        match state {
            State::Live { ready } => {
                if !ready && readiness != Readiness::Notify {
                    self.deadlines.set(id, Due::Probe, now.mono + FIRST_PROBE);
                }
                self.watch_again(id, now);
                self.begin_seeking(id, now);
            }
            // The intent is on record: that is how it is known here. Signals sent twice do no harm; sent never, they do.
            State::Stopping(_, Stop::Recording) => self.kill_recorded(id, true, now),
            State::Stopping(kill, Stop::Signalling) => {
                self.effects.push(match kill.answer.mode {
                    KillMode::Graceful => Effect::Terminate(id),
                    KillMode::Force => Effect::Kill(id),
                });
            }
            State::Stopping(_, Stop::Grace(until)) => self.deadlines.set(id, Due::Grace, until),
            State::Killing(_, killing) => {
                if !killing.unkillable {
                    self.deadlines.set(id, Due::Unkillable, killing.since + UNKILLABLE_AFTER);
                }
                self.effects.push(Effect::Kill(id));
            }
            State::Emptied(kill, _) => {
                self.deadlines.set(id, Due::Status, now.mono + super::FIRST_STATUS);
                self.look_last(id, now);
                if kill.is_some() {
                    self.look_for_locks(id, now);
                }
            }
            State::Closing(_) => self.deadlines.set(id, Due::Record, now.mono + RECORD_WAIT),
            State::Queued { .. } | State::Accepting | State::Containing => {}
        }
    }
}

impl Run {
    /// A run that is known from its cgroup alone, because the database was lost.
    pub fn unrecorded(spec: RunSpec, now: Now) -> Self {
        let mut run = Self::new(spec, now, None);
        run.main = Main::Unknown;
        run.state = State::Live { ready: true };
        run.notices.push("the record of this run was lost with the database: only its container is known".to_owned());
        run
    }
}
