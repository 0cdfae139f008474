//! The configuration: what is read from TOML files, key by key over the built-in defaults.
//!
//! Owns the keys, their values' spelling (which the command line shares) and where the files are. Reads files and
//! nothing else. A configuration is loaded whole or refused whole, with every mistake in it named at once.
//!
//! ```text
//!  built-in config.toml ◀─ main file ◀─ config.d/10-a.toml ◀─ config.d/20-b.toml      (a later key wins)
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::executor::LOCAL;
use crate::model::{Cleanup, Containment, LimitUpdate, Limits, Readiness, Resources, Retention, Sandbox, Watch};

mod executors;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod keys;
mod load;
mod problem;
mod show;
mod sources;
#[cfg(test)]
mod tests;
mod values;

pub use executors::{ExecutorTable, Progress};
pub use keys::{kind, suggest};
pub use problem::{ConfigErrors, Problem};
pub use sources::{Origin, load_for, user_config_home};
pub use values::{
    check_workflow, parse_cost, parse_cost_or_off, parse_count_or_off, parse_duration_or_off, parse_number_or_off,
    parse_percent, parse_percent_or_off, parse_repeats_or_off, parse_size, parse_size_or_off,
};

/// The documented defaults, which every configuration starts from.
pub const BUILT_IN: &str = include_str!("../../config.toml");

/// The configuration of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What a run is held to whose workflow says nothing else.
    pub defaults: Limits,
    /// What workflows change of it.
    pub workflows: BTreeMap<String, LimitUpdate>,
    /// How runs are executed whose workflow says nothing else: the name of an executor.
    pub executor: String,
    /// Executors, by name.
    pub executors: BTreeMap<String, ExecutorTable>,
    /// The instance's own settings.
    pub instance: InstanceSettings,
    /// What the store keeps.
    pub retention: Retention,
    /// The cgroup2 directory to make cgroups in; none: the one that the instance was delegated.
    pub cgroup: Option<PathBuf>,
}

/// The instance's own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSettings {
    /// How often counters are read; 1 to 60 s.
    pub sample_interval: Duration,
    /// How long a private instance stays without runs and clients; `None` is for ever.
    pub idle_exit: Option<Duration>,
    /// What is kept of the output of a detached run.
    pub log_max_bytes: u64,
    /// How many runs may be live at once, those that are queued among them.
    pub max_runs: usize,
    /// How many of them may run at once; the others wait for their turn.
    pub max_running: Option<u64>,
    /// The backend that is insisted on; none: the strongest that can be had.
    pub backend: Option<Containment>,
}

impl Config {
    /// The limits of a run of this workflow, known or not, before what its command line names.
    pub fn limits(&self, workflow: &str) -> Limits {
        match self.workflows.get(workflow) {
            Some(update) => self.defaults.clone().with(update),
            None => self.defaults.clone(),
        }
    }

    /// The built-in defaults alone.
    pub fn built_in() -> Result<Self, ConfigErrors> {
        Self::load(&[])
    }

    /// Nothing limited, nothing kept: what the built-in file, which names every key, is applied to.
    fn blank() -> Self {
        Self {
            defaults: Limits {
                max_running: None,
                queue_timeout: None,
                init_timeout: None,
                max_runtime: None,
                watch: Watch::default(),
                grace: Duration::ZERO,
                readiness: Readiness::default(),
                resources: Resources::default(),
                isolate_pids: false,
                cleanup: Cleanup::default(),
                sandbox: Sandbox::default(),
                credentials: Vec::new(),
            },
            workflows: BTreeMap::new(),
            executor: LOCAL.to_owned(),
            executors: BTreeMap::new(),
            instance: InstanceSettings {
                sample_interval: Duration::ZERO,
                idle_exit: None,
                log_max_bytes: 0,
                max_runs: 0,
                max_running: None,
                backend: None,
            },
            retention: Retention { max_age: None, max_bytes: None },
            cgroup: None,
        }
    }
}
