//! The arguments of `selftest`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The safety scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Scenario {
    /// A kill among appends, renames and fsyncs of 4 processes, and git commits
    KillDuringFileOperations,
    /// A kill among the transactions of 2 processes in SQLite, with a WAL and with a rollback journal, and in PostgreSQL
    /// where it is installed
    KillDuringDatabaseWrites,
    /// A kill of 25 processes: in sessions of their own, daemons, stopped, deaf to SIGTERM
    KillWithMultipleProcesses,
    /// A kill of a run that there never was
    KillNonExistentWorkflow,
    /// A kill of a run that is over
    KillAlreadyCompletedWorkflow,
    /// 100 kills of one run at once, graceful and by force
    ConcurrentKillRequests,
    /// A kill by another user
    KillPermissionValidation,
    /// 20 runs, and what the instance and the host hold before and after
    ResourceCleanupVerification,
    /// A run that never gets ready, with an init_timeout
    StuckInInitialization,
    /// A run whose heartbeats stop, with a heartbeat_timeout
    HeartbeatLost,
    /// A command that exits and leaves daemons behind
    Leftovers,
    /// Processes outside of a run that are of it: asked for elsewhere, and moved where that is possible
    Escapes,
    /// SIGKILL of the client of a foreground run
    ClientKilled,
    /// SIGKILL of an instance (a private one, of its own) in the middle of a kill
    DaemonKilled,
    /// A launch and a kill by an instance (a private one, of its own) that cannot write to its state directory any more
    FullStateDirectory,
}

// One paragraph each, which clap wraps.
const SELFTEST: &str = "\
Each scenario starts real processes, ends them in its way, and asks the kernel and not the instance what is left; a process \
beside them must not be touched. What would harm an instance is done to a private one that selftest starts for it.

With --json: an array with an object for each scenario, in the order in which they were tried: `scenario`, its name; `tried`, \
what is done, and `observed`, what was seen, both for people; `not_tried`, an array with why something was left out; `verdict`, \
which is `holds`, `fails` or `not_tried`; `duration_usec`.

Exit status: 0 if none fails, 1 if one does. What could not be tried here is told and is no failure, unless --strict is given.";

// Arguments of `selftest`. No documentation, as of all arguments: it would stand for that of the verb in its help and man page.
#[derive(Debug, Args)]
#[command(after_long_help = SELFTEST)]
pub struct SelftestArgs {
    /// The scenarios to try [default: all]
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<Scenario>,
    /// Exit with 1 where something could not be tried, too
    #[arg(long)]
    pub strict: bool,
}

// Arguments of a workload of the scenarios.
#[derive(Debug, Args)]
pub struct WorkloadArgs {
    /// What it does
    pub kind: String,
    /// Where it works
    pub dir: PathBuf,
}
