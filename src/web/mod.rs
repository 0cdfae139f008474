//! guardian-web: the HTTP interface, the dashboard and `/metrics`, as a client of the bus with no rights of its own.
//!
//! ```text
//!  socket ─▶ listen ─▶ serve (limits, HTTP) ─▶ door (Host, Origin) ─▶ routes (token, role, values) ─┬─▶ read
//!                                                                                                   ├─▶ act ─▶ sessions
//!                      instance ═ D-Bus ═ guardiand ◀───────────────────────────────────────────────┤
//!                          ▲                                                                        └─▶ events (SSE)
//!                          └── hub: one poller for all who listen ──────────────── broadcast ────────────▲
//! ```
//!
//! Holds no rule about runs: it asks, translates, and says who may ask. May touch the model, the shapes of JSON and the
//! client of the bus. One thread; what waits for anybody is bounded.

mod act;
mod arguments;
mod assets;
mod door;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod hub;
mod instance;
pub mod listen;
mod metrics;
mod openapi;
mod read;
mod reply;
mod routes;
mod serve;
mod sessions;
mod start;
pub mod tokens;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sd_notify::NotifyState;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::instance::Instance;
pub use self::instance::Target;
use self::listen::{Address, Listener};
use self::tokens::Keeper;

/// Who may listen to events at the same time.
const LISTENERS_MAX: usize = 256;
/// Descriptors for all connections, and for what else there is.
const DESCRIPTORS: u64 = 4096;
/// How long connections may go on once it is to end: a kill that is waited for, at most.
const END: Duration = Duration::from_secs(5);

/// How it is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The instance that it shows.
    pub target: Target,
    /// Where it listens, beside the sockets of systemd.
    pub listen: Vec<Address>,
    /// Further names under which it is asked.
    pub hosts: Vec<String>,
    /// Addresses that other hosts can reach are listened on, too.
    pub allow_remote: bool,
    /// The file of tokens.
    pub tokens: PathBuf,
    /// How long a kill is waited for before it is answered that it goes on.
    pub kill_wait: Duration,
    /// A link with a one-time code is printed once it listens.
    pub print_link: bool,
}

/// What every request is answered from.
pub struct App {
    instance: Instance,
    tokens: Keeper,
    sessions: sessions::Sessions,
    hub: hub::Hub,
    counters: metrics::Counters,
    connections: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    kill_wait: Duration,
    stop: watch::Sender<bool>,
}

/// The whole of `guardian-web`, until SIGTERM or SIGINT.
pub fn run(options: &Options) -> anyhow::Result<()> {
    log();
    // Before any thread: each has the mask of who started it.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    enough_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(main(options, signals))
}

/// As many as connections need, where a shell allows fewer and more can be had.
fn enough_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(wanted);
        if let Err(e) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!("the limit of descriptors stays as it is: {e}");
        }
    }
}

/// Lines for the journal, or for who watches.
fn log() {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = lines.with_target(false).without_time().with_ansi(false);
    let level = tracing_subscriber::filter::LevelFilter::INFO;
    let _ = tracing_subscriber::registry().with(level).with(lines).try_init();
}

async fn main(options: &Options, signals: SigSet) -> anyhow::Result<()> {
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    // Deprecated because a type could close its descriptor early, which a SignalFd does not; its successor is unsafe.
    #[allow(deprecated)]
    let signals = AsyncFd::new(signals)?;
    let tokens = Keeper::new(options.tokens.clone())?;
    let mut listeners = Vec::new();
    for socket in listen::of_systemd() {
        listeners.push(Listener::activated(socket, options.allow_remote)?);
    }
    for address in &options.listen {
        listeners.push(Listener::bind(address, options.allow_remote)?);
    }
    if listeners.is_empty() {
        bail!(
            "there is nothing to listen on: name an address, `--listen 127.0.0.1:8642` or `--listen unix:PATH`, or have \
             systemd open a socket (guardian-web.socket)"
        );
    }
    if tokens.all().is_empty() && !options.print_link {
        tracing::warn!(
            "there is no token in {}, so nobody can log in: `guardian token new --role operator NAME`",
            tokens.path().display()
        );
    }
    let app = Arc::new(App {
        instance: Instance::new(options.target.clone()),
        tokens,
        sessions: sessions::Sessions::default(),
        hub: hub::Hub::default(),
        counters: metrics::Counters::default(),
        connections: Arc::new(Semaphore::new(serve::CONNECTIONS_MAX)),
        listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
        kill_wait: options.kill_wait,
        stop: watch::Sender::new(false),
    });
    if options.print_link {
        print_link(&app, &listeners)?;
    }
    let (alive, mut ended) = mpsc::channel(1);
    tokio::spawn(hub::poll(app.clone()));
    for listener in listeners {
        let hosts = listener.hosts(&options.hosts);
        tokio::spawn(serve::serve(app.clone(), listener, routes::router(&app), hosts, alive.clone()));
    }
    drop(alive);
    tell(&[NotifyState::Ready]);
    let _ = signals.readable().await.context("cannot wait for signals")?;
    tell(&[NotifyState::Stopping]);
    app.stop.send_replace(true);
    // Until nobody holds its other end.
    if tokio::time::timeout(END, ended.recv()).await.is_err() {
        tracing::warn!("connections are cut that did not end within {} s", END.as_secs());
    }
    Ok(())
}

/// Waits until it is to end. Nothing is held of the channel meanwhile.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {e}");
    }
}

/// Prints a link that opens the dashboard logged in. The code is behind `#`: a browser does not send that part to anybody.
fn print_link(app: &App, listeners: &[Listener]) -> anyhow::Result<()> {
    let address = listeners.iter().find_map(Listener::address);
    let address = address.context("a link needs an address that a browser can open: --listen 127.0.0.1:PORT")?;
    let code = app.sessions.new_code(Instant::now())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "http://{address}/#code={code}").and_then(|()| out.flush()).context("cannot print the link")
}
