//! Runs: what they are started with, where they are, how they ended, and the view of them that everyone is shown.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Escapee, Heartbeats, KillReason, Limits, Progress, Queued, Receipt, Rule, RunId, Wall};

/// A process that can be told from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid in the instance's PID namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot. With the boot id it names one process for ever.
    pub start_ticks: u64,
}

/// A cgroup that can be told from a later one at the same path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupIdentity {
    /// The directory, absolute.
    pub path: PathBuf,
    /// Its inode, which cgroup2 does not reuse within a boot.
    pub inode: u64,
}

/// What holds the processes of a run together, such that it can be told from a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ContainerId {
    /// A cgroup: one that we made, or a scope's.
    Cgroup(CgroupIdentity),
    /// A shim, which is the subreaper above them.
    Subtree {
        /// The shim; none before one was started.
        shim: Option<ProcessId>,
        /// The file in which it keeps how the main process ended.
        record: PathBuf,
        /// Who gets the orphans of the run, and no others, once its shim was killed.
        #[serde(default)]
        foster_parent: Option<ProcessId>,
    },
}

impl ContainerId {
    /// Its cgroup, if it is one.
    pub fn cgroup(&self) -> Option<&CgroupIdentity> {
        match self {
            ContainerId::Cgroup(cgroup) => Some(cgroup),
            ContainerId::Subtree { .. } => None,
        }
    }

    /// The directory of its cgroup, or the file that its shim keeps.
    pub fn path(&self) -> &Path {
        match self {
            ContainerId::Cgroup(cgroup) => &cgroup.path,
            ContainerId::Subtree { record, .. } => record,
        }
    }

    /// Its shim, if it has one.
    pub fn shim(&self) -> Option<ProcessId> {
        match self {
            ContainerId::Cgroup(_) => None,
            ContainerId::Subtree { shim, .. } => *shim,
        }
    }
}

/// What a run is started with; it does not change afterwards, but for extended limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Its id.
    pub id: RunId,
    /// The named kind it belongs to; `default` where the caller named none.
    pub workflow: String,
    /// What executes its command: `local` does so as it is.
    #[serde(default = "local")]
    pub executor: String,
    /// A name for people.
    pub name: Option<String>,
    /// The command and its arguments, as text for people.
    pub command: Vec<String>,
    /// The working directory, as text for people.
    pub cwd: String,
    /// The owner.
    pub uid: u32,
    /// The owner's name, or the uid again.
    pub user: String,
    /// The process that executes the command: the gated child until the gate opens.
    pub main: Option<ProcessId>,
    /// The client that a foreground run lives and dies with; none for a detached run.
    pub client: Option<ProcessId>,
    /// What contains it.
    #[serde(default)]
    pub containment: Containment,
    /// What it is held to.
    pub limits: Limits,
    /// The file that holds its output, for a detached run.
    pub log: Option<PathBuf>,
}

/// The executor of a run whose workflow has no other.
pub const LOCAL: &str = "local";

/// The executor of the Claude command line, which needs no table of its own.
pub const CLAUDE_CLI: &str = "claude-cli";
/// What stands for its command, wherever that is.
pub const CLAUDE: &str = "claude";

fn local() -> String {
    LOCAL.to_owned()
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Accepted; waits until it may run.
    Queued,
    /// Accepted; not yet contained.
    Starting,
    /// The command is executed; not yet ready.
    Initializing,
    /// Ready.
    Running,
    /// Being ended: SIGTERM and the grace period.
    Stopping,
    /// Being ended: `cgroup.kill`, until the cgroup is empty.
    Killing,
    /// Over. Final.
    Finished,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 7] = [
        Phase::Queued,
        Phase::Starting,
        Phase::Initializing,
        Phase::Running,
        Phase::Stopping,
        Phase::Killing,
        Phase::Finished,
    ];

    /// The name in D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Starting => "starting",
            Phase::Initializing => "initializing",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Killing => "killing",
            Phase::Finished => "finished",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing to say.
    #[default]
    Healthy,
    /// A limit is near, or something is odd.
    Warning,
    /// It needs a person.
    Critical,
}

impl Health {
    /// The name in D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Warning => "warning",
            Health::Critical => "critical",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One reason why a run is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReason {
    /// The rule that says so.
    pub rule: Rule,
    /// How bad it is.
    pub level: Health,
    /// A sentence for a person.
    pub text: String,
    /// Since when.
    pub since: Wall,
}

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called exit with this code, 0 to 255.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Outcome {
    /// The main process exited by itself.
    Exited {
        /// Its code, 0 to 255.
        code: i32,
    },
    /// The main process was ended by a signal that was not ours.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// Guardian ended it.
    Killed {
        /// Why.
        reason: KillReason,
    },
    /// The kernel's OOM killer ended the main process.
    Oom,
    /// It is over, and how it ended is not known.
    Lost {
        /// Why it is not known.
        why: String,
    },
}

impl Outcome {
    /// The short name in the database and for scripts.
    pub const fn code(&self) -> &'static str {
        match self {
            Outcome::Exited { .. } => "exited",
            Outcome::Signaled { .. } => "signaled",
            Outcome::Killed { .. } => "killed",
            Outcome::Oom => "oom",
            Outcome::Lost { .. } => "lost",
        }
    }

    /// The exit status of `guardian run` and `guardian wait`: the command's own; 128 and the signal; 124 when a limit
    /// ended it; 137 when it was killed, by us or for memory; 125 when nobody knows.
    pub const fn exit_status(&self) -> i32 {
        match self {
            Outcome::Exited { code } => *code,
            Outcome::Signaled { signal } => 128 + *signal,
            Outcome::Killed { reason: KillReason::Limit { .. } } => 124,
            Outcome::Killed { .. } | Outcome::Oom => 137,
            Outcome::Lost { .. } => 125,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Exited { code } => write!(f, "exited({code})"),
            Outcome::Signaled { signal } => write!(f, "signaled({signal})"),
            Outcome::Killed { reason } => write!(f, "killed({reason})"),
            Outcome::Oom => f.write_str("oom"),
            Outcome::Lost { why } => write!(f, "lost({why})"),
        }
    }
}

/// What contains a run, the strongest first. The name of the backend that does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Containment {
    /// A transient scope of a systemd manager.
    Systemd,
    /// A cgroup2 directory of its own.
    #[default]
    Cgroupfs,
    /// No cgroup: a shim, the subreaper of all its processes.
    Subtree,
}

impl Containment {
    /// Every one, in the order of preference.
    pub const ALL: [Containment; 3] = [Containment::Systemd, Containment::Cgroupfs, Containment::Subtree];

    /// The name in configuration, D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Containment::Systemd => "systemd",
            Containment::Cgroupfs => "cgroupfs",
            Containment::Subtree => "subtree",
        }
    }
}

impl FromStr for Containment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|b| b.as_str() == text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            format!("{shown:?} is not a backend: it is none of systemd, cgroupfs and subtree")
        })
    }
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a run uses, as last read. `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all its processes, ended ones too: `usage_usec` of `cpu.stat`; in a subtree summed from /proc, where
    /// what ended processes used is told by those that reaped them.
    pub cpu_usec: Option<u64>,
    /// Memory: `memory.current` or, without the controller, the resident memory of its processes summed from /proc.
    pub memory_bytes: Option<u64>,
    /// The most memory that was read so far; of a finished run `memory.peak` (Linux 5.19), which misses nothing.
    pub memory_peak_bytes: Option<u64>,
    /// Tasks (threads): `pids.current` or, without the controller, the threads of its processes.
    pub tasks: Option<u64>,
    /// Bytes that its processes had fetched from storage: `rbytes` of `io.stat` or, without the controller, `read_bytes`
    /// of `/proc/PID/io` of each, which counts ended children once they are reaped.
    pub io_read_bytes: Option<u64>,
    /// Bytes that they had sent to storage: `wbytes`, or `write_bytes`.
    pub io_write_bytes: Option<u64>,
    /// Bytes that they moved with any read or write call, to and from anything, pipes and terminals too: `rchar` and
    /// `wchar` of `/proc/PID/io`. It grows when something is done that is not seen as CPU time.
    pub activity_bytes: Option<u64>,
}

/// A run as everyone is shown it, live or finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunView {
    /// What it was started with.
    pub spec: RunSpec,
    /// Where it is.
    pub phase: Phase,
    /// How it is doing.
    pub health: Health,
    /// Why it is not healthy.
    pub reasons: Vec<HealthReason>,
    /// What holds it, once something does: its cgroup, or its shim.
    #[serde(alias = "cgroup")]
    pub container: Option<ContainerId>,
    /// It is frozen: paused for inspection.
    pub frozen: bool,
    /// When it was accepted.
    pub created_at: Wall,
    /// When its process was seen in its cgroup, just before the command was executed.
    pub started_at: Option<Wall>,
    /// When it became ready.
    pub ready_at: Option<Wall>,
    /// When it was over.
    pub finished_at: Option<Wall>,
    /// When its timers will end it, extensions included.
    pub deadlines: Vec<(Rule, Wall)>,
    /// How it ended, once it did.
    pub outcome: Option<Outcome>,
    /// The kill's proof, if there was one and it is done.
    pub receipt: Option<Receipt>,
    /// Its place in the queue, while it is queued.
    #[serde(default)]
    pub queued: Option<Queued>,
    /// What it uses.
    pub usage: Usage,
    /// What it says of itself.
    #[serde(default)]
    pub heartbeats: Heartbeats,
    /// How far it has come, if it is an agent that reports that.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// Processes that carry its mark and were found outside of it; at most 64, the last ones.
    #[serde(default)]
    pub escapees: Vec<Escapee>,
    /// What could not be done as asked, in sentences: a limit that nothing here can enforce.
    pub notices: Vec<String>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_outcome_gives_the_exit_status_that_scripts_expect() {
        let limit = KillReason::over(Rule::MaxRuntime, Duration::from_secs(3));
        let cases = [
            (Outcome::Exited { code: 7 }, 7),
            (Outcome::Signaled { signal: 11 }, 139),
            (Outcome::Killed { reason: limit }, 124),
            (Outcome::Killed { reason: KillReason::ClientGone }, 137),
            (Outcome::Oom, 137),
            (Outcome::Lost { why: "the host was rebooted".into() }, 125),
        ];
        for (outcome, status) in cases {
            assert_eq!(outcome.exit_status(), status, "{outcome}");
        }
    }
}
