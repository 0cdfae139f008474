//! The watchdog service in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use guardian::config::load_for_user;
use guardian::daemon::instance::{self, Options};
use guardian::daemon::state_dir;
use guardian::model::Containment;

/// Guardian's watchdog service
///
/// Serves the private instance of one user and one state directory in the foreground, until SIGTERM or SIGINT: the same
/// that `guardian` starts by itself where none answers. SIGHUP reads the configuration anew.
#[derive(Debug, Parser)]
#[command(name = "guardiand", version)]
struct Args {
    /// Serve the private instance, on a socket in the state directory
    #[arg(long, required_unless_present = "check_config")]
    private: bool,
    /// The state directory: database, logs, lock and socket [default: as for `guardian`]
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
    if let Some(status) = guardian::launch::subtree::main(std::env::args_os()) {
        return status;
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("guardiand: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.check_config {
        load_for_user(args.config.as_deref())?;
        return Ok(());
    }
    let state_dir = state_dir::find(args.state_dir.clone())?;
    instance::run(&Options { state_dir, config: args.config.clone(), backend: args.backend, foreground: true })
}
