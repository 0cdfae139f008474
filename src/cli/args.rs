//! The definition of the command line: help, completions and man pages are made of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{parse_count_or_off, parse_percent_or_off, parse_size_or_off};
use crate::model::{Action, Containment, Readiness, Rule, parse_duration, valid_workflow_name};

// One paragraph, which clap wraps.
const EXIT_STATUSES: &str = "\
Exit status of `run` and `wait`: the command's own; 128 and the number of the signal that ended it; 124 when a limit ended \
it; 137 when it was killed; 125 when guardian itself failed; 126 when the command cannot be executed, 127 when it is not \
found. Of the others: 0 done, 2 a value that makes no sense, 3 no such run, 4 already finished, 5 not authorized, 6 the \
launch failed, 7 no cgroup to be had, 8 the audit cannot be written, 9 too many, 10 timed out, 11 no instance, 1 anything \
else.";

/// Runs workflows contained, notices stuck ones, ends them for good and keeps the proof.
#[derive(Debug, Parser)]
#[command(name = "guardian", version, about, after_help = EXIT_STATUSES, max_term_width = 100, infer_subcommands = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Write JSON on standard output (reading verbs): snake_case keys, durations and times in microseconds
    #[arg(long, global = true)]
    pub json: bool,
    /// Use the host's instance, on the system bus [default: $GUARDIAN_INSTANCE, or the first that is there: system,
    /// user, private]
    #[arg(long, global = true, conflicts_with_all = ["user", "private", "state_dir", "config", "backend"])]
    pub system: bool,
    /// Use your own instance on the session bus
    #[arg(long, global = true, conflicts_with_all = ["private", "state_dir", "config", "backend"])]
    pub user: bool,
    /// Use your own private instance, which is started if it does not answer; so do the next three options
    #[arg(long, global = true)]
    pub private: bool,
    /// Where the private instance keeps its database, logs and socket
    /// [default: $GUARDIAN_STATE_DIR, $XDG_STATE_HOME/guardian or ~/.local/state/guardian]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The configuration file of a private instance that has to be started [default: $GUARDIAN_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What has to contain runs: systemd, cgroupfs or subtree. A private instance that has to be started insists on it,
    /// and one that has another is refused [default: the strongest that can be had]
    #[arg(long, global = true, value_name = "NAME")]
    pub backend: Option<Containment>,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = false)]
    pub color: ColorWhen,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, without NO_COLOR.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do. The arguments of a verb are made when it is the one: those of all were half the work of a short `run`.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// Run a command contained and watched
    Run(Box<RunArgs>),
    /// List runs
    Ps(PsArgs),
    /// Show everything about runs
    Show(ShowArgs),
    /// Say what a run waits for, in a sentence: now, or when it was killed
    Explain(ExplainArgs),
    /// End runs, and show the receipts
    Kill(KillArgs),
    /// Wait for a run to end, and exit with its status
    Wait(WaitArgs),
    /// Show the output of a detached run
    Logs(LogsArgs),
    /// Give a run more time, by one of its limits
    Extend(ExtendArgs),
    /// Inside a run: say that it lives, and how it is
    Heartbeat(HeartbeatArgs),
    /// Pause runs
    Freeze(RunsArg),
    /// Let paused runs go on
    Thaw(RunsArg),
    /// List finished runs
    History(HistoryArgs),
    /// Show the audit log, or verify its hash chain
    Audit(AuditArgs),
    /// Say what guards this host, what is missing and what to type to get it
    Doctor,
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Run four workflows, three of them bad, and show how each ends
    Demo,
    /// Try the safety scenarios on this host, with real processes, against the instance that answers
    Selftest(SelftestArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one for each verb, into a directory; without one, print the main page
    Man {
        /// The directory
        dir: Option<PathBuf>,
    },
    /// The private instance: started by the other verbs when nobody answers
    #[command(hide = true)]
    Instance(InstanceArgs),
    /// What the scenarios of selftest run
    #[command(hide = true)]
    SelftestWorkload(WorkloadArgs),
}

/// The command line where the verb is `run`, for which people wait: each verb gets its own copy of the options of every
/// verb, and those for the other verbs were a fifth of the work of a short `run`. Knows no help.
#[derive(Debug, Parser)]
pub struct RunCli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: RunVerb,
}

/// The only verb.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum RunVerb {
    /// Run a command contained and watched
    Run(Box<RunArgs>),
}

impl From<RunCli> for Cli {
    fn from(RunCli { global, verb: RunVerb::Run(args) }: RunCli) -> Self {
        Self { global, verb: Verb::Run(args) }
    }
}

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

/// A limit in time, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

/// A limit in numbers, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberLimit(pub Option<u64>);

// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Return at once; output goes to a log (`guardian logs`)
    #[arg(short, long)]
    pub detach: bool,
    /// The workflow, which brings its limits from the configuration
    #[arg(short, long, value_name = "NAME", value_parser = workflow)]
    pub workflow: Option<String>,
    /// A name for people
    #[arg(short, long, value_name = "TEXT")]
    pub name: Option<String>,
    /// The longest time in all: 90s, 30m, 1h30m, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub max_runtime: Option<TimeLimit>,
    /// The longest time until it is ready, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub init_timeout: Option<TimeLimit>,
    /// What is done when it is not ready by then: kill, warn or off
    #[arg(long, value_name = "ACTION")]
    pub init_action: Option<Action>,
    /// What is done when the longest time in all is over: kill, warn or off
    #[arg(long, value_name = "ACTION")]
    pub max_runtime_action: Option<Action>,
    /// The longest time in which it does nothing at all, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub idle_timeout: Option<TimeLimit>,
    /// What is done then: warn, kill or off
    #[arg(long, value_name = "ACTION")]
    pub idle_action: Option<Action>,
    /// The longest time in which it computes and does nothing else, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub spin_timeout: Option<TimeLimit>,
    /// What is done then: warn, kill or off
    #[arg(long, value_name = "ACTION")]
    pub spin_action: Option<Action>,
    /// The longest time in which it waits for a terminal or its standard input, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub input_timeout: Option<TimeLimit>,
    /// What is done then: warn or off
    #[arg(long, value_name = "ACTION", value_parser = Action::parse_harmless)]
    pub input_action: Option<Action>,
    /// The longest time from one heartbeat to the next, counted from the first one, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub heartbeat_timeout: Option<TimeLimit>,
    /// What is done when they stop: kill_if_idle, warn, kill or off
    #[arg(long, value_name = "ACTION", value_parser = Action::parse_of_heartbeats)]
    pub heartbeat_action: Option<Action>,
    /// What is done about processes of it that are found outside of what contains it: warn, kill (they are ended) or off
    #[arg(long, value_name = "ACTION")]
    pub escapees: Option<Action>,
    /// What makes it ready: its first output or READY=1, being executed, or READY=1 alone
    #[arg(long, value_name = "WHEN", value_parser = clap::builder::PossibleValuesParser::new(["output", "exec", "notify"]))]
    pub readiness: Option<String>,
    /// The time between SIGTERM and cgroup.kill
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    /// The most memory: 512M, 2G, or off
    #[arg(long, value_name = "SIZE", value_parser = size_limit)]
    pub memory_max: Option<NumberLimit>,
    /// The most tasks (threads count), or off
    #[arg(long, value_name = "NUMBER", value_parser = number_limit)]
    pub tasks_max: Option<NumberLimit>,
    /// The most CPU in percent of one core (150 or 150%), or off
    #[arg(long, value_name = "PERCENT", value_parser = percent_limit)]
    pub cpu_max: Option<NumberLimit>,
    /// Start it as this user, by name or uid: in the user's home directory and with the user's environment unless --cwd
    /// and --env say otherwise. Needs the right to do so
    #[arg(long, value_name = "USER", requires = "detach")]
    pub uid: Option<String>,
    /// In a PID namespace of its own, where no cgroup contains it
    #[arg(long)]
    pub isolate_pids: bool,
    /// Set a variable, or pass on one of this environment (repeatable)
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<OsString>,
    /// The working directory
    #[arg(short = 'C', long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND", allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

impl RunArgs {
    /// The readiness that was named.
    pub fn readiness(&self) -> Option<Readiness> {
        self.readiness.as_deref().and_then(|r| r.parse().ok())
    }
}

// Which runs.
#[derive(Debug, Args, Default)]
pub struct FilterArgs {
    /// Everybody's runs, which root sees in any case and others need the right to see
    #[arg(short = 'A', long)]
    pub all_users: bool,
    /// Of this workflow
    #[arg(short, long, value_name = "NAME", value_parser = workflow)]
    pub workflow: Option<String>,
    /// With this health: healthy, warning, critical
    #[arg(long, value_name = "HEALTH", value_parser = clap::builder::PossibleValuesParser::new(["healthy", "warning", "critical"]))]
    pub health: Option<String>,
    /// Created within this time: 10m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
}

// Arguments of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// The finished ones too
    #[arg(short, long)]
    pub all: bool,
    /// In this phase: starting, initializing, running, stopping, killing, finished
    #[arg(long, value_name = "PHASE", value_parser = clap::builder::PossibleValuesParser::new(["starting", "initializing", "running", "stopping", "killing", "finished"]))]
    pub phase: Option<String>,
    /// Print the ids only
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

// Arguments of `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many, newest first
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

// Some runs.
#[derive(Debug, Args)]
pub struct RunsArg {
    /// The runs, by id or the unique beginning of one
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,
}

// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub runs: RunsArg,
    /// And what they used over time: the last hour as it was read, then by the minute, after a day by the hour
    #[arg(short, long)]
    pub samples: bool,
}

// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The run, by id or the unique beginning of one
    #[arg(value_name = "RUN")]
    pub run: String,
}

// Arguments of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    #[command(flatten)]
    pub runs: RunsArg,
    /// cgroup.kill at once, without SIGTERM and grace
    #[arg(short, long)]
    pub force: bool,
    /// Why; goes on record
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Return when the kill is on record, not when it is done
    #[arg(long)]
    pub no_wait: bool,
}

// Arguments of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The run, by id or the unique beginning of one
    #[arg(value_name = "RUN")]
    pub run: String,
    /// The longest time to wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

// Arguments of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The run, by id or the unique beginning of one
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Go on until the run is over
    #[arg(short, long)]
    pub follow: bool,
    /// The last lines only
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub lines: Option<u64>,
}

// Arguments of `extend`.
#[derive(Debug, Args)]
pub struct ExtendArgs {
    /// The run, by id or the unique beginning of one
    #[arg(value_name = "RUN")]
    pub run: String,
    /// The limit: init_timeout, max_runtime, heartbeat_timeout, idle_timeout, spin_timeout or input_timeout
    #[arg(value_name = "LIMIT", value_parser = clap::builder::PossibleValuesParser::new(Rule::TIMED.map(Rule::as_str)))]
    pub limit: String,
    /// How much longer
    #[arg(value_name = "TIME", value_parser = parse_duration)]
    pub by: Duration,
}

// Arguments of `heartbeat`.
#[derive(Debug, Args)]
pub struct HeartbeatArgs {
    /// It is initialized
    #[arg(long)]
    pub ready: bool,
    /// How it is, in a few words, which `guardian show` and `guardian ps` tell; the empty text takes them back
    #[arg(long, value_name = "TEXT")]
    pub status: Option<String>,
    /// It needs at least this long from now: init_timeout (until it is ready) or max_runtime (afterwards) leave it that much
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub extend: Option<Duration>,
    /// It is about to end, and sends no heartbeat any more
    #[arg(long)]
    pub stopping: bool,
}

// Arguments of `audit`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditArgs {
    /// Only the rows of this run
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// Only rows after this one
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub after: u64,
    /// Go on as rows are written
    #[arg(short, long)]
    pub follow: bool,
    #[command(subcommand)]
    pub verb: Option<AuditVerb>,
}

// What else to do with the audit.
#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Check the hash chain of the whole audit
    Verify,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Check a configuration file, and say where it is wrong
    Check {
        /// The file [default: the one that an instance would read]
        file: Option<PathBuf>,
    },
    /// Show what holds: defaults, file and drop-ins together
    Show,
}

// Arguments of `instance`.
#[derive(Debug, Args)]
pub struct InstanceArgs {
    /// Start another process that is nobody's child, and return
    #[arg(long)]
    pub detach: bool,
}

fn workflow(text: &str) -> Result<String, String> {
    valid_workflow_name(text).map(|()| text.to_owned())
}

fn time_limit(text: &str) -> Result<TimeLimit, String> {
    if text == "off" { Ok(TimeLimit(None)) } else { parse_duration(text).map(|d| TimeLimit(Some(d))) }
}

fn size_limit(text: &str) -> Result<NumberLimit, String> {
    parse_size_or_off(text).map(NumberLimit)
}

fn number_limit(text: &str) -> Result<NumberLimit, String> {
    parse_count_or_off(text).map(NumberLimit)
}

/// Here without its sign, too.
fn percent_limit(text: &str) -> Result<NumberLimit, String> {
    let is_bare = text.starts_with(|c: char| c.is_ascii_digit()) && !text.ends_with('%');
    let percent = if is_bare { parse_percent_or_off(&format!("{text}%")) } else { parse_percent_or_off(text) };
    percent.map(|percent| NumberLimit(percent.map(u64::from)))
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
