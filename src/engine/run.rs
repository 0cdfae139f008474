//! One run as the engine knows it. Serialized whole for the next instance, which goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{
    Actor, AuditEvent, ContainerId, Containment, Escapee, EventKind, Evidence, ExitStatus, Health, HealthReason,
    Heartbeats, KillAnswer, KillMode, KillReason, Mono, Now, Outcome, Phase, Progress, Receipt, Remains, Rule, RunSpec,
    RunView, Sample, Step, StepKind, Usage, Wall, explain,
};

use super::agent::Agent;
use super::detect::Standing;
use super::escape::Escapes;
use super::event::ReplyTo;
use super::heartbeat::Pulse;
use super::remains::LocksLook;
use super::watch::Tracked;

/// A live run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// What it was started with.
    pub spec: RunSpec,
    /// Where it is.
    pub state: State,
    /// Its place in the queue, if it had to wait for its turn.
    #[serde(default)]
    pub place: Option<u64>,
    /// Its main process.
    pub main: Main,
    /// What holds it, once something does.
    #[serde(alias = "cgroup")]
    pub container: Option<ContainerId>,
    /// What could not be done as asked.
    pub notices: Vec<String>,
    /// When it was accepted.
    pub created: Now,
    /// When its process was seen in its cgroup.
    pub started: Option<Wall>,
    /// When it became ready.
    pub ready: Option<Wall>,
    /// The timers that run.
    pub timers: BTreeMap<Rule, Timer>,
    /// Timers that are near their end, which is said when it is known what the run waits for.
    #[serde(skip)]
    pub near: BTreeSet<Rule>,
    /// It is frozen.
    pub frozen: bool,
    /// What contained it is gone.
    #[serde(default)]
    pub scattered: bool,
    /// Somebody else had its unit stopped.
    #[serde(default)]
    pub stopped_outside: bool,
    /// How far the rules have come that judge by looks.
    #[serde(default)]
    pub tracks: Vec<Tracked>,
    /// The last sample.
    #[serde(skip)]
    pub sampled: Option<(Mono, Sample)>,
    /// The last look.
    #[serde(skip)]
    pub looked: Option<Sample>,
    /// How often the OOM killer is known to have struck.
    #[serde(default)]
    pub oom_kills: u64,
    /// The health that is on record in the audit log.
    #[serde(default)]
    pub told_health: Health,
    /// Why it is not healthy.
    pub reasons: Vec<HealthReason>,
    /// What it says of itself.
    #[serde(default)]
    pub heartbeats: Heartbeats,
    /// What is waited for because of that.
    #[serde(default)]
    pub pulse: Pulse,
    /// How far it has come, if it reports that.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// What follows from that.
    #[serde(default)]
    pub agent: Agent,
    /// What of it is outside of its container.
    #[serde(default)]
    pub escapes: Escapes,
    /// Whether locks of git were looked for in its directory. The next instance looks for itself.
    #[serde(skip)]
    pub(super) locks: LocksLook,
    /// A kill that came before the process was contained; it is begun as soon as that is so.
    #[serde(skip)]
    pub early_kill: Option<EarlyKill>,
    /// Its command is known to be executed: its gate was opened, or it was seen to do something.
    pub executing: bool,
    /// It was taken up by an instance that did not launch it.
    pub adopted: bool,
    /// It is contained, and its gate stays closed until that is on record. Not kept: the next instance finds either a
    /// record of the start, or a run of which nothing was executed.
    #[serde(skip)]
    pub opening: bool,
    /// A kill has kept the gate closed: whatever its child exits with, the command was not executed.
    #[serde(default)]
    pub kept_closed: bool,
    /// Who waits for the launch.
    #[serde(skip)]
    pub launch_reply: Option<ReplyTo>,
}

/// A kill that has to wait for the launch.
#[derive(Debug, Clone)]
pub struct EarlyKill {
    /// How.
    pub mode: KillMode,
    /// Why.
    pub reason: KillReason,
    /// Who.
    pub actor: Actor,
    /// Who is answered.
    pub replies: Vec<ReplyTo>,
}

/// A timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// When it ends the run.
    pub ends: Mono,
    /// The time it allows in all, extensions included.
    pub allowed: Duration,
}

/// Where a run is, with what it needs there. Every state answers every event (see the module's table).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum State {
    /// It waits for its turn; nothing of it is executed.
    Queued {
        /// That is on record.
        #[serde(skip)]
        on_record: bool,
        /// What it waits for, in a sentence.
        why: String,
    },
    /// Being put on record; nothing is made for it yet.
    Accepting,
    /// On record; its cgroup is made and its process moved.
    Containing,
    /// Its command is executed.
    Live {
        /// It is ready: running, no more initializing.
        ready: bool,
    },
    /// Being ended; `cgroup.kill` is not written yet.
    Stopping(Kill, Stop),
    /// `cgroup.kill` was written.
    Killing(Kill, Killing),
    /// Its cgroup is empty; how the main process ended is still to be told.
    Emptied(Option<Kill>, Mono),
    /// It is over and its outcome is being put on record; then its cgroup is removed.
    Closing(Closing),
}

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// The intent is being put on record.
    Recording,
    /// The intent is on record; the first signal is being sent.
    Signalling,
    /// SIGTERM was sent; after this moment comes `cgroup.kill`.
    Grace(Mono),
}

/// How far killing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killing {
    /// When `cgroup.kill` was first written.
    pub since: Mono,
    /// How often it was written.
    pub attempts: u32,
    /// It was reported unkillable.
    pub unkillable: bool,
}

/// A kill under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kill {
    /// What everyone who asks is answered.
    pub answer: KillAnswer,
    /// When it was requested.
    pub requested: Mono,
    /// What was done so far.
    pub steps: Vec<Step>,
    /// The processes just before the first signal.
    pub evidence: Evidence,
    /// Processes that were sent SIGTERM.
    pub terminated: u32,
    /// Processes there when `cgroup.kill` was first written.
    pub killed: u32,
    /// Who waits for the intent to be on record.
    #[serde(skip)]
    pub replies: Vec<ReplyTo>,
}

/// A run that is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Closing {
    /// How it ended.
    pub outcome: Outcome,
    /// The kill's proof.
    pub receipt: Option<Receipt>,
    /// When it was over.
    pub at: Now,
    /// How often the removal of its cgroup was tried; none before the outcome is on record.
    pub removals: Option<u32>,
}

/// The main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Main {
    /// It lives.
    Alive,
    /// It exited.
    Exited {
        /// How, once that is known.
        status: Option<ExitStatus>,
        /// The OOM killer had struck in the run by then.
        oom: bool,
        /// Nothing had been done to it by then.
        by_itself: bool,
        /// When that was noticed.
        at: Mono,
    },
    /// The record of it was lost with the database.
    Unknown,
}

impl Kill {
    /// A kill that was just requested.
    pub fn new(answer: KillAnswer, now: Now, replies: Vec<ReplyTo>) -> Self {
        Self {
            answer,
            requested: now.mono,
            steps: Vec::new(),
            evidence: Evidence::default(),
            terminated: 0,
            killed: 0,
            replies,
        }
    }

    /// Adds a step.
    pub fn did(&mut self, kind: StepKind, processes: u32, now: Now) {
        let elapsed_usec = u64::try_from(now.mono.since(self.requested).as_micros()).unwrap_or(u64::MAX);
        self.steps.push(Step { kind, at: now.wall, elapsed_usec, processes });
    }

    /// What the processes waited for just before the first signal, in a sentence; empty if there were none.
    pub fn explanation(&self) -> String {
        if self.evidence.total > 0 { explain(&self.evidence).sentence } else { String::new() }
    }

    /// True once anything was sent to any of the run's processes.
    pub fn acted(&self) -> bool {
        self.terminated > 0 || self.killed > 0
    }

    /// True if an earlier instance began it, of which it is not known what it had sent.
    pub fn was_resumed(&self) -> bool {
        self.steps.iter().any(|step| step.kind == StepKind::Resumed)
    }

    /// The proof, of a run that the kernel has said to be empty.
    pub fn receipt(
        self,
        containment: Containment,
        proved: bool,
        escapees: Vec<Escapee>,
        remains: Option<Remains>,
    ) -> Receipt {
        let explanation = self.explanation();
        Receipt {
            run: self.answer.run,
            mode: self.answer.mode,
            reason: self.answer.reason,
            actor: self.answer.actor,
            requested_at: self.answer.requested_at,
            duration_usec: self.steps.last().map_or(0, |s| s.elapsed_usec),
            steps: self.steps,
            terminated: self.terminated,
            killed: self.killed,
            survivors: 0,
            containment,
            proved,
            escapees,
            remains,
            explanation,
            growth: self.evidence.growth,
            processes: self.evidence.processes,
            processes_total: self.evidence.total,
        }
    }
}

impl Run {
    /// A run that was just asked for.
    pub fn new(spec: RunSpec, now: Now, reply: Option<ReplyTo>) -> Self {
        Self {
            spec,
            state: State::Accepting,
            place: None,
            main: Main::Alive,
            container: None,
            notices: Vec::new(),
            created: now,
            started: None,
            ready: None,
            timers: BTreeMap::new(),
            near: BTreeSet::new(),
            frozen: false,
            scattered: false,
            stopped_outside: false,
            tracks: Vec::new(),
            sampled: None,
            looked: None,
            oom_kills: 0,
            told_health: Health::default(),
            reasons: Vec::new(),
            heartbeats: Heartbeats::default(),
            pulse: Pulse::default(),
            progress: None,
            agent: Agent::default(),
            escapes: Escapes::default(),
            locks: LocksLook::default(),
            early_kill: None,
            executing: false,
            adopted: false,
            opening: false,
            kept_closed: false,
            launch_reply: reply,
        }
    }

    /// Its process was put into a container, and the run is not over.
    pub fn is_contained(&self) -> bool {
        matches!(self.state, State::Live { .. } | State::Stopping(..) | State::Killing(..))
    }

    /// The phase that people are shown.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Queued { .. } => Phase::Queued,
            State::Accepting | State::Containing => Phase::Starting,
            State::Live { ready: false } => Phase::Initializing,
            State::Live { ready: true } => Phase::Running,
            State::Stopping(..) => Phase::Stopping,
            State::Killing(..) => Phase::Killing,
            // The kernel has said that it is empty; who waits is told when that is on record.
            State::Emptied(..) | State::Closing(_) => Phase::Finished,
        }
    }

    /// The worst of its reasons.
    pub fn health(&self) -> Health {
        self.reasons.iter().map(|r| r.level).max().unwrap_or_default()
    }

    /// Adds a reason, or replaces the one of the same rule.
    pub fn warn(&mut self, rule: Rule, level: Health, text: String, now: Now) {
        self.reasons.retain(|r| r.rule != rule);
        self.reasons.push(HealthReason { rule, level, text, since: now.wall });
    }

    /// When each rule's time will be over: that of timers, and of rules of which something was said.
    fn ends(&self) -> impl Iterator<Item = (Rule, Mono)> + '_ {
        let near = self.tracks.iter().filter(|t| t.told == Standing::Near);
        self.timers.iter().map(|(rule, t)| (*rule, t.ends)).chain(near.map(|t| (t.track.rule, t.track.ends())))
    }

    /// An audit event about this run.
    pub fn event(
        &self,
        kind: EventKind,
        actor: Actor,
        reason: impl Into<String>,
        details: serde_json::Value,
        now: Now,
    ) -> AuditEvent {
        AuditEvent {
            at: now.wall,
            kind,
            run: Some(self.spec.id),
            workflow: Some(self.spec.workflow.clone()),
            actor,
            reason: reason.into(),
            details,
        }
    }

    /// The view that everyone is shown.
    pub fn view(&self, now: Now) -> RunView {
        let closing = match &self.state {
            State::Closing(closing) => Some(closing),
            _ => None,
        };
        RunView {
            spec: self.spec.clone(),
            phase: self.phase(),
            health: self.health(),
            reasons: self.reasons.clone(),
            container: self.container.clone(),
            frozen: self.frozen,
            created_at: self.created.wall,
            started_at: self.started,
            ready_at: self.ready,
            finished_at: closing.map(|c| c.at.wall),
            deadlines: self.ends().map(|(rule, at)| (rule, now.wall_of(at))).collect(),
            outcome: closing.map(|c| c.outcome.clone()),
            receipt: closing.and_then(|c| c.receipt.clone()),
            queued: self.queued(),
            usage: Usage::default(),
            heartbeats: self.heartbeats.clone(),
            progress: self.progress.clone(),
            escapees: self.escapes.known.clone(),
            notices: self.notices.clone(),
        }
    }
}
