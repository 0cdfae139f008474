//! From a request to a contained run.

use serde_json::json;

use crate::model::{
    Actor, Answer, ContainerId, Error, ErrorKind, EventKind, KillMode, KillReason, Now, Outcome, ProcessId, Readiness,
    RunId, RunSpec, human_duration,
};

use super::deadlines::Due;
use super::run::EarlyKill;
use super::{CONTAIN_WAIT, Effect, Engine, LAUNCH_RECORD_WAIT, ReplyTo, Run, State, Ticket};

impl Engine {
    pub(super) fn launch(&mut self, spec: RunSpec, reply: ReplyTo, actor: Actor, reason: String, now: Now) {
        let id = spec.id;
        if let Some(refusal) = self.refuse_launch(id) {
            self.effects.push(Effect::CloseGate(id));
            self.effects.push(Effect::Reply(reply, Err(refusal)));
            return;
        }
        let run = Run::new(spec, now, Some(reply));
        let full = self.full(&run.spec.workflow);
        let details = json!({
            "command": run.spec.command, "cwd": run.spec.cwd, "limits": run.spec.limits,
            "detached": run.spec.client.is_none(), "name": run.spec.name,
        });
        let event = run.event(EventKind::RunAccepted, actor, reason, details, now);
        if let Some(full) = full {
            return self.queue(run, &full, event, now);
        }
        self.runs.insert(id, run);
        self.deadlines.set(id, Due::Record, now.mono + LAUNCH_RECORD_WAIT);
        if let Some(mut record) = self.record_of(id, vec![event], now) {
            record.ticket = Some(Ticket::Launch(id));
            self.effects.push(Effect::Record(Box::new(record)));
        }
    }

    /// Why no launch at all is accepted now, if that is so: nothing has to be made for one.
    pub fn refuses_all(&self) -> Option<Error> {
        self.trouble.as_deref().map(store_unavailable)
    }

    fn refuse_launch(&self, id: RunId) -> Option<Error> {
        if let Some(refusal) = self.refuses_all() {
            return Some(refusal);
        }
        if self.runs.len() >= self.settings.max_runs {
            let max = self.settings.max_runs;
            return Some(Error::new(
                ErrorKind::LimitExceeded,
                format!(
                    "no more runs may be live at once than {max}, which is instance.max_runs of the configuration: wait or raise it"
                ),
            ));
        }
        // Drawn from 48 random bits: this is a bug or a broken random source, and nothing may be mixed up for it.
        self.runs.contains_key(&id).then(|| Error::internal(format!("the id {id} is in use: run the command again")))
    }

    /// The launch is on record, or will not be in time.
    pub(super) fn launch_recorded(&mut self, id: RunId, ok: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if !matches!(run.state, State::Accepting) {
            return;
        }
        if ok {
            run.state = State::Containing;
            self.deadlines.set(id, Due::Record, now.mono + CONTAIN_WAIT);
            self.effects.push(Effect::Contain(id));
        } else {
            let why = self.trouble.clone().unwrap_or_else(|| "it did not answer in time".to_owned());
            self.launch_failed(id, store_unavailable(&why), now);
        }
    }

    /// Somebody else contains it, and has said nothing.
    pub(super) fn containing_overdue(&mut self, id: RunId, now: Now) {
        let text = format!("what is to contain the run has not answered in {}", human_duration(CONTAIN_WAIT));
        self.launch_failed(id, Error::new(ErrorKind::LaunchFailed, text), now);
    }

    pub(super) fn contained(
        &mut self,
        id: RunId,
        main: ProcessId,
        container: ContainerId,
        notices: Vec<String>,
        now: Now,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if !matches!(run.state, State::Containing) {
            return;
        }
        run.state = State::Live { ready: run.spec.limits.readiness == Readiness::Exec };
        run.spec.main = Some(main);
        run.container = Some(container);
        run.started = Some(now.wall);
        run.ready = matches!(run.state, State::Live { ready: true }).then_some(now.wall);
        run.notices = notices;
        run.opening = true;
        let details = json!({ "container": run.container, "main": run.spec.main, "notices": run.notices });
        let event = run.event(EventKind::RunStarted, Actor::Guardian, "", details, now);
        let early = run.early_kill.take();
        self.begin_timers(id, now);
        self.begin_watching(id, now);
        self.begin_seeking(id, now);
        self.deadlines.set(id, Due::Record, now.mono + LAUNCH_RECORD_WAIT);
        if let Some(mut record) = self.record_of(id, vec![event], now) {
            record.ticket = Some(Ticket::Start(id));
            self.effects.push(Effect::Record(Box::new(record)));
            self.effects.push(Effect::Publish(id));
        }
        if let Some(EarlyKill { mode, reason, actor, replies }) = early {
            self.start_kill(id, mode, reason, actor, replies, now);
        }
        // The process may have died before it was watched, or while nobody looked.
        self.effects.push(Effect::Look(id));
    }

    /// The start is on record, or will not be in time: the gate may open, or never will.
    pub(super) fn start_recorded(&mut self, id: RunId, ok: bool, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if !matches!(run.state, State::Live { .. }) || !std::mem::take(&mut run.opening) {
            return;
        }
        self.deadlines.clear(id, Due::Record);
        let detached = run.spec.client.is_none();
        if !ok {
            let why = self.trouble.clone().unwrap_or_else(|| "it did not answer in time".to_owned());
            self.abort_launch(id, store_unavailable(&why), now);
        } else if detached {
            self.effects.push(Effect::OpenGate(id));
        } else {
            self.answer_launch(id, Ok(Answer::Run(id)));
        }
    }

    /// Its process is in its cgroup and will execute nothing: it goes the way of every kill.
    fn abort_launch(&mut self, id: RunId, error: Error, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.notices.push(format!("the launch failed: {error}"));
        run.kept_closed = true;
        self.answer_launch(id, Err(error));
        self.effects.push(Effect::CloseGate(id));
        self.start_kill(id, KillMode::Force, KillReason::LaunchIncomplete, Actor::Guardian, Vec::new(), now);
    }

    pub(super) fn not_contained(&mut self, id: RunId, error: Error, container: Option<ContainerId>, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if !matches!(run.state, State::Containing) {
            return;
        }
        if container.is_none() {
            return self.launch_failed(id, error, now);
        }
        run.container = container;
        self.abort_launch(id, error, now);
    }

    /// Nothing was made for it: it is over at once.
    pub(super) fn launch_failed(&mut self, id: RunId, error: Error, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let event = run.event(EventKind::LaunchFailed, Actor::Guardian, error.message.clone(), json!({}), now);
        let outcome = Outcome::Lost { why: format!("the launch failed: {error}") };
        for reply in run.early_kill.take().map(|k| k.replies).unwrap_or_default() {
            self.effects.push(Effect::Reply(reply, Err(Error::already_finished(id))));
        }
        self.answer_launch(id, Err(error));
        self.effects.push(Effect::CloseGate(id));
        self.close_as(id, outcome, None, vec![event], now);
    }

    pub(super) fn gate_opened(&mut self, id: RunId, result: Result<(), String>, now: Now) {
        if let Some(run) = self.runs.get_mut(&id).filter(|r| matches!(r.state, State::Live { .. })) {
            run.executing = true;
            self.save(id, Vec::new(), now);
        }
        let answer = match result {
            Ok(()) => Ok(Answer::Run(id)),
            // The child exits by itself, as a shell's would: the run ends as exited(126) or exited(127).
            Err(why) => Err(Error::new(ErrorKind::LaunchFailed, why)),
        };
        self.answer_launch(id, answer);
    }

    pub(super) fn answer_launch(&mut self, id: RunId, answer: Result<Answer, Error>) {
        if let Some(reply) = self.runs.get_mut(&id).and_then(|r| r.launch_reply.take()) {
            self.effects.push(Effect::Reply(reply, answer));
        }
    }
}

pub(super) fn store_unavailable(why: &str) -> Error {
    Error::new(
        ErrorKind::StoreUnavailable,
        format!("no run is started while the audit cannot be written ({why}): `guardian doctor` says where it is kept"),
    )
}
