//! D-Bus: the public contract, served peer to peer on a unix socket, and the client of it.
//!
//! ```text
//!  socket ─▶ server ─▶ peer (uid, pidfd) ─▶ manager, run ─▶ access ─▶ Commands  ─▶ engine
//!                                                              └────▶ Published, History (reads)
//!  client ◀─ a{sv} ─ view, launch: the wire forms of RunView and LaunchRequest, both ways
//! ```
//!
//! Owns names, wire forms, who may see what, and how many calls one user may have in flight. Holds no rule about runs:
//! a handler takes `&self`, checks access, sends a command or reads a published view, and answers. May touch the model,
//! the command channel and the published views; the store only through [`History`], and never from a runtime thread.

mod access;
pub mod client;
mod driver;
mod error;
mod explain;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod heartbeat;
mod launch;
mod manager;
mod moments;
mod object_manager;
mod on_bus;
mod rights;
mod run;
mod samples;
mod server;
pub mod socket;
mod statistics;
mod view;
mod which;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

pub use on_bus::{Held, serve_on};
pub use rights::Right;
pub use server::{Connections, serve_private};
pub use which::Bus;

use crate::daemon::command::Commands;
use crate::daemon::published::Published;
use crate::model::{
    AuditRow, Considered, Containment, Error, Evidence, Health, InstanceKind, Phase, RunId, RunView, Statistics,
    UsageSample, Wall,
};

/// The bus name, which a peer-to-peer connection answers to as well.
pub const BUS_NAME: &str = "org.guardian.Guardian1";
/// The manager's object.
pub const MANAGER_PATH: &str = "/org/guardian/Guardian1";
/// What the objects of runs are below.
pub const RUN_PATH: &str = "/org/guardian/Guardian1/run";
/// The manager's interface.
pub const MANAGER_INTERFACE: &str = "org.guardian.Guardian1.Manager";
/// The interface of a run.
pub const RUN_INTERFACE: &str = "org.guardian.Guardian1.Run";
/// What the names of our errors begin with; the kind follows.
pub const ERROR_PREFIX: &str = "org.guardian.Guardian1.Error.";

/// The path of a run's object.
pub fn run_path(run: RunId) -> String {
    format!("{RUN_PATH}/{run}")
}

/// Which runs to list. Everything that is `None` does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Of this workflow.
    pub workflow: Option<String>,
    /// In this phase.
    pub phase: Option<Phase>,
    /// With this health.
    pub health: Option<Health>,
    /// Of this owner.
    pub uid: Option<u32>,
    /// Created at this time or later.
    pub since: Option<Wall>,
    /// Created at this time or earlier.
    pub before: Option<Wall>,
    /// The finished ones too, from the store.
    pub finished: bool,
    /// Everybody's, and not those of who asks alone. Needs the right to see them; root gets them in any case.
    pub all_users: bool,
    /// At most so many finished ones, newest first; 0 for [`RunFilter::DEFAULT_LIMIT`].
    pub limit: u32,
}

impl RunFilter {
    /// How many finished runs are listed when no limit is named.
    pub const DEFAULT_LIMIT: u32 = 1000;
    /// How many can be asked for at once.
    pub const MAX_LIMIT: u32 = 10_000;

    /// Whether a run is one of them; `finished` and `limit` are not looked at.
    pub fn admits(&self, view: &RunView) -> bool {
        fn is<T: PartialEq>(wanted: &Option<T>, value: &T) -> bool {
            wanted.as_ref().is_none_or(|w| w == value)
        }
        is(&self.workflow, &view.spec.workflow)
            && is(&self.phase, &view.phase)
            && is(&self.health, &view.health)
            && is(&self.uid, &view.spec.uid)
            && self.since.is_none_or(|s| view.created_at >= s)
            && self.before.is_none_or(|b| view.created_at <= b)
    }
}

/// What came of checking the audit's hash chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Rows that were checked.
    pub rows: u64,
    /// The first row that is still kept; 0 if there is none.
    pub first_seq: u64,
    /// The last row; 0 if there is none.
    pub last_seq: u64,
    /// The last row's hash, to be kept elsewhere as an anchor.
    pub last_hash: String,
    /// The first row that does not fit, and what is wrong with it; `None` when the chain is whole.
    pub broken: Option<(u64, String)>,
}

/// The store's readers, as the bus needs them. Every method may block on the disk: the bus calls them on threads for that.
pub trait History: Send + Sync {
    /// One run, live or finished.
    fn run(&self, id: RunId) -> Result<Option<RunView>, Error>;
    /// Runs that the filter admits, newest first, at most `filter.limit` (never 0 here).
    fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, Error>;
    /// Up to three ids that start with the prefix (`run_` and digits), of this owner only if one is given.
    fn resolve(&self, prefix: &str, owner: Option<u32>) -> Result<Vec<RunId>, Error>;
    /// Rows of the audit with a greater number than `after`, in order, at most `max`, of this run only if one is given.
    fn events(&self, after: u64, max: u32, run: Option<RunId>) -> Result<Vec<AuditRow>, Error>;
    /// What there is to say about the runs that are over: of this workflow, of this owner, over since this time.
    fn statistics(
        &self,
        workflow: Option<&str>,
        uid: Option<u32>,
        since: Option<Wall>,
    ) -> Result<Vec<Statistics>, Error>;
    /// What a run used since a time, in order, as far as it is stored.
    fn samples(&self, run: RunId, since: Wall) -> Result<Vec<UsageSample>, Error>;
    /// Checks the whole hash chain.
    fn verify(&self) -> Result<AuditReport, Error>;
    /// The number of the last row; 0 if there is none.
    fn last_seq(&self) -> Result<u64, Error>;
}

/// What does not change while an instance lives, for people and `doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The version of the program.
    pub version: String,
    /// The instance's pid.
    pub pid: u32,
    /// The uid that it runs as; apart from root, the only one that may connect.
    pub uid: u32,
    /// Whose runs it guards.
    pub instance: InstanceKind,
    /// Where it keeps its database and logs.
    pub state_dir: PathBuf,
    /// The configuration file that was read; none if there is none.
    pub config: Option<PathBuf>,
    /// What contains runs.
    pub backend: Containment,
    /// The backends that were looked at, in order, and what became of each.
    pub considered: Vec<Considered>,
    /// When it began to serve.
    pub started_at: Wall,
    /// What is missing on this host, and what to type to get it, in sentences.
    pub notes: Vec<String>,
}

/// What clients that listen are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The audit has a row with this number.
    EventAppended(u64),
    /// A run began, or something about it changed.
    RunChanged(Arc<RunView>),
    /// A run is over.
    RunFinished(Arc<RunView>),
    /// The instance's own state changed.
    InstanceChanged,
}

/// Looks at the processes of a live run, and then watches what they use of the CPU for the time given. Blocks.
pub type EvidenceReader = Arc<dyn Fn(&RunView, Duration) -> Result<Evidence, Error> + Send + Sync>;

/// Everything the bus serves from.
pub struct Services {
    commands: Commands,
    published: Arc<Published>,
    history: Arc<dyn History>,
    evidence: EvidenceReader,
    about: About,
    signals: broadcast::Sender<Signal>,
    calls: access::Calls,
}

impl Services {
    /// Puts them together. The sender of signals stays with the daemon too; sending never blocks.
    pub fn new(
        commands: Commands,
        published: Arc<Published>,
        history: Arc<dyn History>,
        evidence: EvidenceReader,
        about: About,
        signals: broadcast::Sender<Signal>,
    ) -> Arc<Self> {
        Arc::new(Self { commands, published, history, evidence, about, signals, calls: access::Calls::default() })
    }
}

/// A channel for [`Signal`]s: a slow listener misses old ones rather than holding anyone up.
pub fn signals() -> broadcast::Sender<Signal> {
    broadcast::channel(1024).0
}
