//! The private instance: the process behind the hidden verb.

use std::path::PathBuf;
use std::time::Duration;

/// What an instance is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it keeps its database, logs, lock and socket.
    pub state_dir: PathBuf,
    /// The configuration file; none for the default places.
    pub config: Option<PathBuf>,
    /// The time without a run and a connection after which it exits; none: it stays.
    pub idle_exit: Option<Duration>,
}

/// Serves until told to stop or idle for long enough. An instance that finds another one serving returns at once.
///
/// What goes wrong before the socket listens is written to standard error, which whoever started it reads; once it
/// listens, standard error is no longer used.
pub fn run(options: Options) -> anyhow::Result<()> {
    anyhow::bail!("no instance is built in yet: {}", options.state_dir.display())
}
