//! The watchdog service in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use guardian::config::load_for;
use guardian::daemon::instance::{self, Options};
use guardian::daemon::state_dir;
use guardian::model::{Containment, InstanceKind, escape_lines};

/// Guardian's watchdog service
///
/// Without --user or --private it is the host's instance, which guards the runs of every user: root starts it, as the unit
/// guardiand.service. It serves in the foreground until SIGTERM or SIGINT; SIGHUP reads the configuration anew.
#[derive(Debug, Parser)]
#[command(name = "guardiand", version)]
struct Args {
    /// Serve one user's instance, on the session bus and on a socket in the state directory
    #[arg(long)]
    user: bool,
    /// Serve one user's private instance, on the socket alone: the same that `guardian` starts by itself where none answers
    #[arg(long, conflicts_with = "user")]
    private: bool,
    /// The state directory: database, logs, lock and socket [default: /var/lib/guardian; for a user's as for `guardian`]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The configuration file, instead of the ones in the usual places
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What has to contain runs: systemd, cgroupfs or subtree [default: instance.backend of the configuration]
    #[arg(long, value_name = "NAME")]
    backend: Option<Containment>,
    /// Check the configuration, say every mistake in it, and exit
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    guardian::failpoint::setup();
    if let Some(status) = guardian::launch::hidden(std::env::args_os) {
        return status;
    }
    match run(&guardian::cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("guardiand: {}", escape_lines(&format!("{e:#}")).join("\n           "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let kind = match (args.user, args.private) {
        (true, _) => InstanceKind::User,
        (_, true) => InstanceKind::Private,
        _ => InstanceKind::System,
    };
    if args.check_config {
        load_for(kind, args.config.as_deref())?;
        return Ok(());
    }
    if kind == InstanceKind::System && !nix::unistd::geteuid().is_root() {
        anyhow::bail!("the host's instance is root's: use --user or --private for one of your own");
    }
    let state_dir = state_dir::find(kind, args.state_dir.clone())?;
    instance::run(&Options { kind, state_dir, config: args.config.clone(), backend: args.backend, foreground: true })
}
