//! What `--json` says, as far as the tests look at it: read by its keys, as a script of a user would.

use std::path::PathBuf;

use guardian::model::{Containment, EventKind, Fate, Health, KillMode, Phase, ProcessId, Refused, StepKind};
use serde::Deserialize;

/// A run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Run {
    pub run_id: String,
    pub phase: Phase,
    pub health: Health,
    pub health_reasons: Vec<Reason>,
    pub containment: Containment,
    pub cgroup: Option<Cgroup>,
    pub shim: Option<ProcessId>,
    pub main_process: Option<ProcessId>,
    pub frozen: bool,
    pub heartbeats: Heartbeats,
    pub escapees: Vec<Escapee>,
    pub notices: Vec<String>,
    pub usage: Usage,
    pub outcome: Option<Outcome>,
    pub exit_status: Option<i32>,
    pub receipt: Option<Receipt>,
}

impl Run {
    /// The outcome in words: `exited(7)`, `killed(its client is gone)`, …
    pub fn ended(&self) -> &str {
        self.outcome.as_ref().map_or("", |outcome| &outcome.text)
    }

    /// The receipt of a run that has one.
    #[track_caller]
    pub fn receipt(&self) -> &Receipt {
        self.receipt.as_ref().unwrap_or_else(|| panic!("no receipt: {self:?}"))
    }
}

/// Why a run is not healthy.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Reason {
    pub rule: String,
    pub level: Health,
    pub text: String,
}

/// What a run has said of itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Heartbeats {
    pub total: u64,
    pub last_at_usec: Option<u64>,
    pub status: String,
    pub stopping: bool,
    pub errno: Option<i32>,
    pub refused: Refused,
}

/// A run's cgroup.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Cgroup {
    pub path: PathBuf,
}

/// What a run has used, as far as it is known.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Usage {
    pub cpu_usec: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    pub tasks: Option<u64>,
    pub activity_bytes: Option<u64>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Outcome {
    pub kind: String,
    pub text: String,
    /// Why, if it was killed.
    pub reason: Option<String>,
}

/// The proof of a kill.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Receipt {
    pub mode: KillMode,
    pub reason: String,
    pub duration_usec: u64,
    pub steps: Vec<Step>,
    pub terminated: u32,
    pub killed: u32,
    pub survivors: u32,
    pub processes: Vec<serde_json::Value>,
    pub processes_total: u32,
    pub escapees: Vec<Escapee>,
}

/// A process that carries a run's mark outside of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Escapee {
    pub pid: u32,
    pub name: String,
    pub cgroup: String,
    pub fate: Fate,
}

impl Receipt {
    /// When a step was taken, in microseconds since the kill was requested.
    pub fn step(&self, kind: StepKind) -> Option<u64> {
        self.steps.iter().find(|step| step.kind == kind).map(|step| step.elapsed_usec)
    }
}

/// A step of a kill.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Step {
    pub kind: StepKind,
    pub elapsed_usec: u64,
}

/// A row of the audit log.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Row {
    pub seq: u64,
    pub kind: EventKind,
    pub run_id: Option<String>,
    pub actor: String,
    pub reason: String,
    pub hash: String,
}
