//! The vocabulary as types: runs, phases, limits, kills, receipts, outcomes, audit events and named errors.
//!
//! Owns what these words mean and how they are spelt for people and machines. Touches nothing: no clock, no file, no
//! bus, no kernel. Everything else imports this room; it imports nothing of the crate.

mod agent_watch;
mod answer;
mod bus_address;
mod error;
mod escapee;
mod event;
mod evidence;
mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod heartbeat;
mod id;
mod instance;
mod kill;
mod launch;
mod limits;
mod progress;
mod queue;
mod remains;
mod retention;
mod run;
mod sample;
mod statistics;
mod text;
mod time;
mod usage_sample;
mod watch;
mod workflow;

pub use agent_watch::{AgentWatch, AgentWatchUpdate};
pub use answer::Answer;
pub use bus_address::{bus_address_of, usable_bus_address};
pub use error::{Error, ErrorKind};
pub use escapee::{Escapee, EscapeeAct, EscapeeState, Fate, Sought};
pub use event::{AuditEvent, AuditRow, EventKind};
pub use evidence::{
    Access, Evidence, File, FutexBy, Growth, Holder, LastOutput, Object, Polled, ProcessSeen, RELAY_NAME, RecentCpu,
    ThreadSeen, UnixPeer, Wait,
};
pub use explain::{Explanation, explain, signs_of_life};
pub use heartbeat::{Heartbeats, Notification, Refused};
pub use id::{InvalidRunId, RunId};
pub use instance::InstanceKind;
pub use kill::{Actor, KillAnswer, KillMode, KillReason, Receipt, Step, StepKind};
pub use launch::{Considered, KeptLaunch, LaunchRequest, Notify, Reserved};
pub use limits::{Cleanup, Credential, LimitUpdate, Limits, Readiness, Resources, Rule, Sandbox};
pub use progress::{AgentResult, Dollars, Progress, ProgressUpdate};
pub use queue::Queued;
pub use remains::{GitLock, GitLocks, LockFate, OpenFile, OpenFiles, REMAINS_NAMED, Remains, Worktree, others};
pub use retention::Retention;
pub use run::{
    CLAUDE, CLAUDE_CLI, CgroupIdentity, ContainerId, Containment, ExitStatus, Health, HealthReason, LOCAL, Outcome,
    Phase, ProcessId, RunSpec, RunView, Usage,
};
pub use sample::{Processes, Sample};
pub use statistics::{Collector, Day, Outcomes, PastRun, Quantiles, Statistics, Suggested, Suggestion};
pub use text::{escape, escape_lines, is_unsafe};
pub use time::{Mono, Now, Wall, human_duration, parse_duration};
pub use usage_sample::{HOUR, MINUTE, OpenMinute, UsageMinute, UsageSample, readings};
pub use watch::{Action, Watch, WatchUpdate};
pub use workflow::valid_workflow_name;
