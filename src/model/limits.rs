//! Limits: the rules of the configuration that a run is held to, and the resources it may use.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::watch::{Action, Watch, WatchUpdate};

/// A rule that can warn about a run or end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The run has waited too long for its turn.
    QueueTimeout,
    /// The run was not ready in time.
    InitTimeout,
    /// The run took longer than it may in all.
    MaxRuntime,
    /// The run has sent heartbeats, and then no more.
    HeartbeatTimeout,
    /// The run does nothing: it computes, reads, writes, starts and ends nothing.
    IdleTimeout,
    /// The run computes and does nothing else.
    SpinTimeout,
    /// The run waits for somebody to type, or for its standard input.
    InputTimeout,
    /// The run's memory is near its limit.
    Memory,
    /// The kernel's OOM killer has ended a process of the run.
    Oom,
    /// All processes of the run wait for memory.
    Pressure,
    /// The main process exited and left processes in the cgroup.
    Leftovers,
    /// The run was killed and its cgroup is still not empty after 60 s.
    Unkillable,
    /// Processes that carry the run's mark were found outside of what contains it.
    Escapees,
    /// An agent has not come to the end of a turn in time.
    TurnTimeout,
    /// It does the same again and again.
    Loop,
    /// It has begun more turns than it may.
    MaxTurns,
    /// It has used the tokens that it may.
    MaxTokens,
    /// It has cost what it may.
    MaxCost,
    /// It waits for a permission, or for input that it asked for.
    PermissionTimeout,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 19] = [
        Rule::QueueTimeout,
        Rule::InitTimeout,
        Rule::MaxRuntime,
        Rule::HeartbeatTimeout,
        Rule::IdleTimeout,
        Rule::SpinTimeout,
        Rule::InputTimeout,
        Rule::Memory,
        Rule::Oom,
        Rule::Pressure,
        Rule::Leftovers,
        Rule::Unkillable,
        Rule::Escapees,
        Rule::TurnTimeout,
        Rule::Loop,
        Rule::MaxTurns,
        Rule::MaxTokens,
        Rule::MaxCost,
        Rule::PermissionTimeout,
    ];

    /// The rules that have a time of their own, which can be extended.
    pub const TIMED: [Rule; 9] = [
        Rule::QueueTimeout,
        Rule::InitTimeout,
        Rule::MaxRuntime,
        Rule::HeartbeatTimeout,
        Rule::IdleTimeout,
        Rule::SpinTimeout,
        Rule::InputTimeout,
        Rule::TurnTimeout,
        Rule::PermissionTimeout,
    ];

    /// The name in configuration, D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rule::QueueTimeout => "queue_timeout",
            Rule::InitTimeout => "init_timeout",
            Rule::MaxRuntime => "max_runtime",
            Rule::HeartbeatTimeout => "heartbeat_timeout",
            Rule::IdleTimeout => "idle_timeout",
            Rule::SpinTimeout => "spin_timeout",
            Rule::InputTimeout => "input_timeout",
            Rule::Memory => "memory",
            Rule::Oom => "oom",
            Rule::Pressure => "pressure",
            Rule::Leftovers => "leftovers",
            Rule::Unkillable => "unkillable",
            Rule::Escapees => "escapees",
            Rule::TurnTimeout => "turn_timeout",
            Rule::Loop => "loop",
            Rule::MaxTurns => "max_turns",
            Rule::MaxTokens => "max_tokens",
            Rule::MaxCost => "max_cost",
            Rule::PermissionTimeout => "permission_timeout",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Rule {
    type Err = String;

    /// Reads the name of a rule with a time of its own: the only ones that a caller can name.
    fn from_str(text: &str) -> Result<Self, String> {
        Rule::TIMED.into_iter().find(|r| r.as_str() == text).ok_or_else(|| {
            let known = Rule::TIMED.map(Rule::as_str).join(", ");
            format!(
                "{:?} is not a limit that can be extended: use one of {known}",
                text.chars().take(40).collect::<String>()
            )
        })
    }
}

/// What makes a run ready, which ends its initialization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// Its first written output: a byte in the log of a detached run, a write by any of its processes otherwise. READY=1
    /// does as well.
    #[default]
    Output,
    /// Ready as soon as the command is executed.
    Exec,
    /// READY=1 on its notify socket, and nothing else.
    Notify,
}

impl Readiness {
    /// The name in configuration, D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Readiness::Output => "output",
            Readiness::Exec => "exec",
            Readiness::Notify => "notify",
        }
    }
}

impl FromStr for Readiness {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "output" => Ok(Readiness::Output),
            "exec" => Ok(Readiness::Exec),
            "notify" => Ok(Readiness::Notify),
            _ => Err(format!(
                "{:?} is not a readiness: use output, exec or notify",
                text.chars().take(40).collect::<String>()
            )),
        }
    }
}

/// The limits of one run, resolved from defaults, workflow and command line. `None` is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How many runs of its workflow may run at once; the others wait for their turn.
    #[serde(default)]
    pub max_running: Option<u64>,
    /// Time for which the run may wait for its turn.
    #[serde(default)]
    pub queue_timeout: Option<Duration>,
    /// Time from launch until the run is ready.
    pub init_timeout: Option<Duration>,
    /// Total time of the run.
    pub max_runtime: Option<Duration>,
    /// What else it is watched for, and what the rules do.
    #[serde(default)]
    pub watch: Watch,
    /// Time between SIGTERM and `cgroup.kill`.
    pub grace: Duration,
    /// What ends initialization.
    pub readiness: Readiness,
    /// What the kernel holds the run to.
    pub resources: Resources,
    /// Whether it gets a PID namespace of its own, where no cgroup contains it.
    #[serde(default)]
    pub isolate_pids: bool,
    /// What is done about what it leaves.
    #[serde(default)]
    pub cleanup: Cleanup,
    /// What a service of systemd's may do outside of its cgroup.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// Secrets that systemd hands to a service, in files that it alone can read.
    #[serde(default)]
    pub credentials: Vec<Credential>,
}

/// What is done about what a run leaves in its directory once it is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    /// Locks of git are removed that are proved to be the run's, and nobody's any more.
    pub git_locks: bool,
}

/// How much a run sees of what it could use to leave its cgroup. Only a service can be kept from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// No bus, no cron, no change of cgroups, no new privileges.
    #[default]
    Strict,
    /// What any service of its user has: for a run that needs the user's bus, or a container engine.
    Off,
}

impl Sandbox {
    /// The name in configuration, D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Sandbox::Strict => "strict",
            Sandbox::Off => "off",
        }
    }
}

impl FromStr for Sandbox {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "strict" => Ok(Sandbox::Strict),
            "off" => Ok(Sandbox::Off),
            _ => Err(format!("{:?} is not a sandbox: use strict or off", text.chars().take(40).collect::<String>())),
        }
    }
}

/// A secret: the run finds it as a file of this name in `$CREDENTIALS_DIRECTORY`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its name.
    pub name: String,
    /// The file that systemd reads it from.
    pub path: String,
}

impl FromStr for Credential {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |name: &str| {
            !name.is_empty()
                && name.len() <= 64
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !name.starts_with('.')
        };
        match text.split_once(':') {
            Some((name, path)) if plain(name) && path.starts_with('/') && !path.contains(['\0', '\n']) => {
                Ok(Self { name: name.to_owned(), path: path.to_owned() })
            }
            _ => Err(format!(
                "{:?} is not a credential: write NAME:PATH, a name of letters, digits, '-', '_' and '.', and the absolute \
                 path of a file",
                text.chars().take(80).collect::<String>()
            )),
        }
    }
}

/// How much later than our own limit and grace a unit is ended by systemd, should we be gone: `RuntimeMaxSec=` cannot be
/// changed on a live unit (M with 252 and 257), so it leaves as much again as was given, for `guardian extend`.
const BACKSTOP: Duration = Duration::from_secs(600);

impl Limits {
    /// The time from one heartbeat to the next, if heartbeats are waited for at all.
    pub fn heartbeat_window(&self) -> Option<Duration> {
        self.allowed(Rule::HeartbeatTimeout)
    }

    /// When systemd ends a unit by itself; never without a limit of ours that would.
    pub fn backstop(&self) -> Option<Duration> {
        let kills = self.watch.max_runtime_action == Action::Kill && !self.watch.dry_run;
        self.max_runtime
            .filter(|_| kills)
            .map(|limit| limit.saturating_mul(2).saturating_add(self.grace).saturating_add(BACKSTOP))
    }
}

/// Limits that the kernel enforces through cgroup controllers. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `memory.max`, in bytes.
    pub memory_max_bytes: Option<u64>,
    /// `pids.max`, in tasks (threads count).
    pub tasks_max: Option<u64>,
    /// `cpu.max`, in percent of one core (200 is two cores).
    pub cpu_max_percent: Option<u32>,
}

/// Limits that a caller named for one run; what is `None` comes from the workflow. `Some(None)` is `off`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitUpdate {
    /// See [`Limits::max_running`]. For the configuration alone.
    pub max_running: Option<Option<u64>>,
    /// See [`Limits::queue_timeout`].
    pub queue_timeout: Option<Option<Duration>>,
    /// See [`Limits::init_timeout`].
    pub init_timeout: Option<Option<Duration>>,
    /// See [`Limits::max_runtime`].
    pub max_runtime: Option<Option<Duration>>,
    /// See [`Limits::watch`].
    pub watch: WatchUpdate,
    /// See [`Limits::grace`].
    pub grace: Option<Duration>,
    /// See [`Limits::readiness`].
    pub readiness: Option<Readiness>,
    /// See [`Resources::memory_max_bytes`].
    pub memory_max_bytes: Option<Option<u64>>,
    /// See [`Resources::tasks_max`].
    pub tasks_max: Option<Option<u64>>,
    /// See [`Resources::cpu_max_percent`].
    pub cpu_max_percent: Option<Option<u32>>,
    /// See [`Limits::isolate_pids`].
    pub isolate_pids: Option<bool>,
    /// See [`Cleanup::git_locks`].
    pub cleanup_git_locks: Option<bool>,
    /// See [`Limits::sandbox`]. For the configuration alone.
    pub sandbox: Option<Sandbox>,
    /// See [`Limits::credentials`]. For the configuration alone: systemd reads the files as root.
    pub credentials: Option<Vec<Credential>>,
    /// The executor, by name: how its command is executed, and how its progress is read.
    pub executor: Option<String>,
}

impl Limits {
    /// These limits with what the update names put in their place.
    pub fn with(mut self, update: &LimitUpdate) -> Self {
        fn put<T: Copy>(field: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *field = value;
            }
        }
        put(&mut self.max_running, update.max_running);
        put(&mut self.queue_timeout, update.queue_timeout);
        put(&mut self.init_timeout, update.init_timeout);
        put(&mut self.max_runtime, update.max_runtime);
        self.watch = self.watch.with(&update.watch);
        put(&mut self.grace, update.grace);
        put(&mut self.readiness, update.readiness);
        put(&mut self.resources.memory_max_bytes, update.memory_max_bytes);
        put(&mut self.resources.tasks_max, update.tasks_max);
        put(&mut self.resources.cpu_max_percent, update.cpu_max_percent);
        put(&mut self.isolate_pids, update.isolate_pids);
        put(&mut self.cleanup.git_locks, update.cleanup_git_locks);
        put(&mut self.sandbox, update.sandbox);
        self.credentials = update.credentials.clone().unwrap_or(self.credentials);
        self
    }
}
