//! Tells people what the audit says.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use guardian::model::escape_lines;
use guardian::notify::{self, Config, Options, Source};

/// Tells people when a run is in trouble or was ended, and when Guardian is
///
/// It reads the audit of an instance and sends messages through the channels of its configuration: webhooks, chats, mail,
/// Alertmanager, a program of your own. It serves in the foreground until SIGTERM or SIGINT; what is not delivered by then waits
/// in its state directory.
#[derive(Debug, Parser)]
#[command(name = "guardian-notify", version)]
struct Args {
    /// Tell of your own instance, on the session bus, with the configuration in your home directory
    #[arg(long)]
    user: bool,
    /// Tell of the instance behind this socket: `bus.sock` in the state directory of a private one
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// The configuration [default: /etc/guardian/notify.toml, with --user ~/.config/guardian/notify.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the outbox is [default: $STATE_DIRECTORY, $XDG_STATE_HOME/guardian-notify or ~/.local/state/guardian-notify]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Check the configuration, say every mistake in it, and exit
    #[arg(long)]
    check_config: bool,
    /// Send a message through this channel, or through each, say what came of it, and exit
    #[arg(long, value_name = "CHANNEL", num_args = 0..=1, default_missing_value = "", conflicts_with = "check_config")]
    test: Option<String>,
}

fn main() -> ExitCode {
    match run(guardian::cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("guardian-notify: {}", escape_lines(&format!("{e:#}")).join("\n                 "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let file = args.config.or_else(|| notify::usual_file(args.user));
    let file = file.context("there is no home directory: name the configuration with --config")?;
    let config = Config::load(&file)?;
    if args.check_config {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(channel) = args.test {
        let good = notify::test(&config, Some(channel.as_str()).filter(|name| !name.is_empty()))?;
        return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let source = match (args.socket, args.user) {
        (Some(socket), _) => Source::Socket(socket),
        (None, true) => Source::User,
        (None, false) => Source::System,
    };
    let state_dir = args.state_dir.map_or_else(usual_state_dir, Ok)?;
    notify::serve(Options { config, state_dir, source })?;
    Ok(ExitCode::SUCCESS)
}

fn usual_state_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("STATE_DIRECTORY")
        .or_else(|| absolute("XDG_STATE_HOME").map(|dir| dir.join("guardian-notify")))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state/guardian-notify")))
        .context("there is no home directory: name a directory for the outbox with --state-dir")
}
