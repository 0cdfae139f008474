//! The HTTP interface, the dashboard and `/metrics` in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use guardian::bus::Bus;
use guardian::daemon::state_dir;
use guardian::model::{InstanceKind, escape_lines, parse_duration};
use guardian::web::listen::Address;
use guardian::web::tokens::{FILE, SYSTEM_FILE};
use guardian::web::{Options, Target, run};

/// Guardian's HTTP interface: the dashboard, the API and metrics
///
/// Serves on the sockets that systemd hands it and on the addresses that are named, until SIGTERM or SIGINT. It is a client of
/// guardiand and has no rights but those of its user. Everything but metrics and the page itself needs a token of `guardian
/// token new`.
#[derive(Debug, Parser)]
#[command(name = "guardian-web", version)]
struct Args {
    /// Show the host's instance, on the system bus: so does no option
    #[arg(long, conflicts_with_all = ["user", "private", "state_dir"])]
    system: bool,
    /// Show your own instance on the session bus
    #[arg(long, conflicts_with = "private")]
    user: bool,
    /// Show your own private instance
    #[arg(long)]
    private: bool,
    /// The state directory of your own instance, where its tokens are too [default: as for `guardian`]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Listen here: an IP address of this host with a port (0 takes a free one), or unix:PATH (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// A name under which a proxy passes requests on, beside the address itself (repeatable)
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Listen on addresses that other hosts can reach, although there is no TLS
    #[arg(long)]
    allow_remote: bool,
    /// The file of tokens [default: systemd's credential web-tokens, /etc/guardian/web-tokens, or web-tokens in the state
    /// directory]
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// How long a kill is waited for before it is answered that it goes on (202)
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = parse_duration)]
    kill_wait: Duration,
    /// Print a link that opens the dashboard as an operator, once and within five minutes
    #[arg(long)]
    print_link: bool,
}

fn main() -> ExitCode {
    match options(guardian::cli::parse()).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("guardian-web: {}", escape_lines(&format!("{e:#}")).join("\n              "));
            ExitCode::FAILURE
        }
    }
}

fn options(args: Args) -> anyhow::Result<Options> {
    let kind = match (args.user, args.private || args.state_dir.is_some()) {
        (true, _) => InstanceKind::User,
        (_, true) => InstanceKind::Private,
        _ => InstanceKind::System,
    };
    let state_dir = || state_dir::find(InstanceKind::Private, args.state_dir.clone());
    let target = match Bus::of(kind) {
        Some(bus) => Target::OnBus(kind, bus),
        None => Target::Private(state_dir()?.join(state_dir::SOCKET)),
    };
    let credential = || std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join(FILE));
    let tokens = match (args.tokens, kind) {
        (Some(named), _) => named,
        (None, InstanceKind::System) => {
            credential().filter(|file| file.exists()).unwrap_or_else(|| PathBuf::from(SYSTEM_FILE))
        }
        (None, _) => state_dir()?.join(FILE),
    };
    Ok(Options {
        target,
        listen: args.listen,
        hosts: args.host,
        allow_remote: args.allow_remote,
        tokens,
        kill_wait: args.kill_wait,
        print_link: args.print_link,
    })
}
