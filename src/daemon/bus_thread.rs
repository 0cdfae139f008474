//! The bus's thread: a tokio runtime of its own, for the bus, the signals to the process, and nothing else.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use crate::bus::{self, Bus, Services};

use super::command::{Caller, Command, Commands};

/// What is done before the thread ends, so that the last answers reach their clients.
const LINGER: Duration = Duration::from_millis(50);

/// The signals that stop the instance, or make it read its configuration anew.
fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Blocks them in this thread and all that it will start: they are read from a descriptor. SIGXFSZ too, so that a file that
/// may not grow (`ulimit -f`) is an error for the store, like a full disk, and not our end. Run commands get a clean mask from
/// the gate.
pub fn block_signals() -> anyhow::Result<()> {
    let mut blocked = signals();
    blocked.add(Signal::SIGXFSZ);
    blocked.thread_block().context("cannot block signals")
}

/// Where the bus is served.
#[derive(Debug)]
pub struct Listen {
    /// The socket in the state directory.
    pub socket: UnixListener,
    /// The message bus on which the name is taken.
    pub bus: Option<Bus>,
    /// Told when the name is ours there.
    pub held: bus::Held,
}

/// Starts the thread. It ends when the first of the two is dropped, and drops the sender of the second.
pub fn start(
    listen: Listen,
    services: Arc<Services>,
    commands: Commands,
    connections: watch::Sender<usize>,
) -> anyhow::Result<(oneshot::Sender<()>, mpsc::Receiver<()>)> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (done, is_done) = mpsc::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .thread_stack_size(256 * 1024)
        .max_blocking_threads(8)
        .build()
        .context("cannot start the bus")?;
    let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let serve = async move {
        tokio::select! {
            served = serve(listen, services, connections) => {
                if let Err(e) = served {
                    tracing::error!("the bus cannot be served: {e}");
                    stop_instance(&commands, Command::Stop).await;
                }
            }
            () = obey(signals, &commands) => {}
            _ = stopped => {}
        }
        tokio::time::sleep(LINGER).await;
    };
    std::thread::Builder::new()
        .name("bus".to_owned())
        .spawn(move || {
            runtime.block_on(serve);
            // A blocking read of the history may still be under way: the process does not wait for it.
            runtime.shutdown_background();
            drop(done);
        })
        .context("cannot start the bus")?;
    Ok((stop, is_done))
}

/// Serves everywhere, until the first of it cannot be served any more.
async fn serve(listen: Listen, services: Arc<Services>, connections: watch::Sender<usize>) -> io::Result<()> {
    let Listen { socket, bus, held } = listen;
    let on_socket = bus::serve_private(socket, services.clone(), connections);
    let on_bus = async {
        match bus {
            Some(bus) => {
                let served = bus::serve_on(bus, services.clone(), &held).await;
                held.send_replace(Some(served.as_ref().map(|_| ()).map_err(ToString::to_string)));
                served
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = on_socket => served,
        served = on_bus => served,
    }
}

async fn obey(signals: SignalFd, commands: &Commands) {
    // Deprecated because a type could close its descriptor early, which a SignalFd does not; its successor is unsafe.
    #[allow(deprecated)]
    let Ok(signals) = AsyncFd::new(signals) else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = signals.readable().await else { return };
        while let Ok(Some(signal)) = signals.get_ref().read_signal() {
            let hangup = i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32);
            stop_instance(commands, if hangup { Command::Reload } else { Command::Stop }).await;
        }
        ready.clear_ready();
    }
}

async fn stop_instance(commands: &Commands, command: Command) {
    let uid = nix::unistd::geteuid().as_raw();
    let caller = Caller { uid, user: "signal".to_owned(), process: None };
    if let Err(e) = commands.ask(command, caller).await {
        tracing::error!("{e}");
    }
}
