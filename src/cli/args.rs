//! The definition of the command line: help, completions and man pages are made of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub mod agent;
mod executor;
mod selftest;

pub use agent::{AgentArgs, HeartbeatArgs};
pub use executor::ExecutorArgs;
pub use selftest::{Scenario, SelftestArgs, WorkloadArgs};

use crate::config::{parse_count_or_off, parse_percent_or_off, parse_size_or_off};
use crate::model::{Action, Containment, Readiness, Rule, parse_duration, valid_workflow_name};
use crate::web::tokens::Role;

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
    /// Watch runs live in the terminal, the worst first, and end, extend or freeze them by a key
    Top(TopArgs),
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
    /// Tell how long and how much workflows take, how their runs end, and which limits would fit
    Stats(StatsArgs),
    /// Show the audit log, or verify its hash chain
    Audit(AuditArgs),
    /// Say what guards this host, what is missing and what to type to get it
    Doctor,
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Serve the dashboard on this host, and print a link that opens it
    Web(WebArgs),
    /// Make, list and revoke tokens, by which people and programs use guardian-web
    #[command(subcommand)]
    Token(TokenVerb),
    /// Try the channels by which guardian-notify tells people
    #[command(subcommand)]
    Notify(NotifyVerb),
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
    /// The longest time for which it waits where as many runs as may run at once do so, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub queue_timeout: Option<TimeLimit>,
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
    /// Remove locks of git that it leaves when it is killed, if they are proved to be its own and nobody's any more
    #[arg(long)]
    pub cleanup_git_locks: bool,
    /// Set a variable, or pass on one of this environment (repeatable)
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<OsString>,
    /// The working directory
    #[arg(short = 'C', long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    #[command(flatten)]
    pub agent: AgentArgs,
    #[command(flatten)]
    pub executor: ExecutorArgs,
    /// The command and its arguments; `claude` if there is none and an option for agents is given
    #[arg(required_unless_present_any = executor::INSTEAD_OF_A_COMMAND, trailing_var_arg = true, value_name = "COMMAND", allow_hyphen_values = true)]
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
    /// In this phase: queued, starting, initializing, running, stopping, killing, finished
    #[arg(long, value_name = "PHASE", value_parser = clap::builder::PossibleValuesParser::new(["queued", "starting", "initializing", "running", "stopping", "killing", "finished"]))]
    pub phase: Option<String>,
    /// Print the ids only
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
}

// One paragraph each, which clap wraps.
const TOP: &str = "\
Keys: Up, Down, PgUp, PgDn, Home and End select a run; Enter tells all about it; k kills it and K does so by force, both ask \
for a reason and then whether that is so; f freezes or thaws it, e extends a limit, l shows its log; / filters, Esc takes the \
filter back; s or > and < sort by another column, r the other way round; A lists everybody's runs; ? tells the keys; q or \
Ctrl-C quits.

The health is a symbol: ✗ critical, ! warning, ✓ healthy. DEADLINE is how much is over of the time after which a run is ended, \
BEAT the time since its last heartbeat, CPU% what it uses of one core.";

// Arguments of `top`.
#[derive(Debug, Args)]
#[command(after_long_help = TOP)]
pub struct TopArgs {
    /// The time from one reading to the next, at least 100ms
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = delay)]
    pub delay: Duration,
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
    /// Write CSV, with a heading: times in UTC and durations in microseconds, as in --json
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

// One paragraph each, which clap wraps.
const STATS: &str = "\
P50, P95, P99 and LONGEST are of the runs that exited by themselves, from start to end; CPU and MEMORY are of all runs, the 95th \
percentile. KILLED are those that Guardian ended; `killed for` below counts what was left behind by others, too.

A limit is suggested where 20 runs or more tell: max_runtime is the 99th percentile of the runs that exited by themselves and \
half of it again, init_timeout three times that of the time until they were ready, memory_max that of the most memory and a \
quarter of it again, each rounded up. Runs that a limit has ended do not tell how long they would have taken.

Days are those of UTC. What retention has removed is not counted.";

// Arguments of `stats`.
#[derive(Debug, Args)]
#[command(after_long_help = STATS)]
pub struct StatsArgs {
    /// Everybody's runs, which root sees in any case and others need the right to see
    #[arg(short = 'A', long)]
    pub all_users: bool,
    /// Of this workflow
    #[arg(short, long, value_name = "NAME", value_parser = workflow)]
    pub workflow: Option<String>,
    /// Of runs that ended within this time: 24h, 7d, 30d [default: all that are on record]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Day by day
    #[arg(short, long)]
    pub days: bool,
    /// Write CSV, with a heading: durations in microseconds, memory in bytes
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
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
    /// The limit: queue_timeout, init_timeout, max_runtime, heartbeat_timeout, idle_timeout, spin_timeout, input_timeout,
    /// turn_timeout or permission_timeout
    #[arg(value_name = "LIMIT", value_parser = clap::builder::PossibleValuesParser::new(Rule::TIMED.map(Rule::as_str)))]
    pub limit: String,
    /// How much longer
    #[arg(value_name = "TIME", value_parser = parse_duration)]
    pub by: Duration,
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

// Arguments of `web`.
#[derive(Debug, Args)]
pub struct WebArgs {
    /// The port, on 127.0.0.1 [default: a free one]
    #[arg(short, long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub port: u16,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token, and print it: once, what is kept of it is a hash
    New {
        /// What it allows: viewer (to read), operator (to end, extend, freeze and thaw runs, too) or starter (to
        /// have commands executed, too)
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// Whose it is, or what for: goes on record with what is done by it
        name: String,
    },
    /// List tokens
    List,
    /// Revoke a token
    Revoke {
        /// Its name
        name: String,
    },
}

/// What to do with the channels of guardian-notify.
#[derive(Debug, Subcommand)]
pub enum NotifyVerb {
    /// Send a message through each channel now, and say whether it was taken or why not
    Test {
        /// The channel [default: all of the configuration, which --config names; else the host's for root, and your own]
        channel: Option<String>,
    },
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

fn delay(text: &str) -> Result<Duration, String> {
    let delay = parse_duration(text)?;
    if delay < Duration::from_millis(100) { Err("that is less than 100ms".to_owned()) } else { Ok(delay) }
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
