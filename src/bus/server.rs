//! Accepts connections on the private socket and serves each peer. Apart from root, only the instance's own user may
//! connect; who a peer is, the kernel says.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, broadcast, watch};
use zbus::object_server::SignalEmitter;
use zbus::{Guid, Message, ObjectServer, OwnedGuid};

use super::access::Request;
use super::driver::{DRIVER_PATH, Driver, Listening};
use super::manager::Manager;
use super::run::RunObject;
use super::socket::{self, Look};
use super::{MANAGER_PATH, RUN_PATH, Services, Signal, run_path};
use crate::daemon::command::Caller;
use crate::model::RunId;

/// Connections at the same time; a further one waits in the socket's backlog for one to close. Each foreground run holds one.
const CONNECTIONS_MAX: usize = 4096;
/// The time a peer has for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Objects of runs that one connection keeps; the one made first goes.
const OBJECTS_MAX: usize = 64;

/// The number of open connections, for whoever decides that the instance is idle.
pub type Connections = watch::Receiver<usize>;

/// Serves until the future is dropped. Gives an error only when the socket cannot be used at all.
///
/// Runs in a tokio runtime with I/O and time. `connections` is told the number of open connections.
pub async fn serve_private(
    listener: UnixListener,
    services: Arc<Services>,
    connections: watch::Sender<usize>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let guid = OwnedGuid::from(Guid::generate());
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = Arc::new(connections);
    let mut names = Names::default();
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors or memory: the peers we have go on, and closing ones make room.
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(caller) = admitted(&stream, services.about.uid, &mut names) else { continue };
        let (services, guid, count) = (services.clone(), guid.clone(), connections.clone());
        tokio::spawn(async move {
            count.send_modify(|n| *n += 1);
            if let Err(e) = serve(stream, services, caller, guid).await {
                tracing::debug!("a connection ended: {e}");
            }
            count.send_modify(|n| *n -= 1);
            drop(permit);
        });
    }
}

/// The peer, if it may connect.
fn admitted(stream: &UnixStream, own_uid: u32, names: &mut Names) -> Option<Caller> {
    let peer = getsockopt(stream, sockopt::PeerCredentials).ok()?;
    if peer.uid() != 0 && peer.uid() != own_uid {
        tracing::warn!("refused a connection of uid {}: this instance is for uid {own_uid} and root", peer.uid());
        return None;
    }
    // Linux before 6.5 has no SO_PEERPIDFD. The pid alone can have been reused when the peer is already gone: then the
    // connection is closed, and nothing is done for it.
    let by_pid = || {
        let pid = rustix::process::Pid::from_raw(peer.pid())?;
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
    };
    let pidfd: Option<OwnedFd> = getsockopt(stream, sockopt::PeerPidfd).ok().or_else(by_pid);
    Some(Caller { uid: peer.uid(), user: names.of(peer.uid()), pidfd: pidfd.map(Arc::new) })
}

/// The names of the uids that have connected: two at most, and looking one up can take as long as a directory server does.
#[derive(Default)]
struct Names(HashMap<u32, String>);

impl Names {
    /// The name of a uid, or the uid again.
    fn of(&mut self, uid: u32) -> String {
        let look_up = || {
            let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
            user.map_or_else(|| uid.to_string(), |u| u.name)
        };
        self.0.entry(uid).or_insert_with(look_up).clone()
    }
}

async fn serve(stream: UnixStream, services: Arc<Services>, caller: Caller, guid: OwnedGuid) -> zbus::Result<()> {
    let listening = Arc::new(Listening::default());
    let (serving, server) = watch::channel(None);
    let objects =
        Arc::new(Objects { services: services.clone(), caller: caller.clone(), server, made: Mutex::default() });
    let looked = objects.clone();
    let look: Look = Arc::new(move |message| {
        let objects = looked.clone();
        Box::pin(async move { objects.look(&message).await })
    });
    let build = zbus::connection::Builder::socket(socket::halves(stream, caller.uid, look))
        .server(guid)
        .p2p()
        .serve_at(DRIVER_PATH, Driver { listening: listening.clone() })
        .serve_at(MANAGER_PATH, Manager::new(services.clone(), caller))
        .build();
    let connection = match tokio::time::timeout(HANDSHAKE, build).await {
        Ok(built) => built?,
        Err(_) => return Err(zbus::Error::Handshake(format!("not done in {} s", HANDSHAKE.as_secs()))),
    };
    serving.send_replace(Some(connection.object_server().clone()));
    let emitter = SignalEmitter::new(&connection, MANAGER_PATH)?;
    let telling = async {
        listening.begun().await;
        tell(services.signals.subscribe(), &emitter).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = connection.closed() => {}
        () = telling => {}
    }
    Ok(())
}

/// Passes signals on until none can come any more. A peer that does not read them is late, and then misses some; the
/// numbers of EventAppended tell it so.
async fn tell(mut signals: broadcast::Receiver<Signal>, emitter: &SignalEmitter<'_>) {
    loop {
        let sent = match signals.recv().await {
            Ok(Signal::EventAppended(seq)) => Manager::event_appended(emitter, seq).await,
            Ok(Signal::RunFinished(run, outcome)) => Manager::run_finished(emitter, &run.to_string(), outcome).await,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The objects of runs on one connection.
struct Objects {
    services: Arc<Services>,
    caller: Caller,
    /// There once the connection is built; a peer may send its first call before that.
    server: watch::Receiver<Option<ObjectServer>>,
    made: Mutex<VecDeque<RunId>>,
}

impl Objects {
    /// Makes the object that a call is for, if it is a run's that the peer may see.
    async fn look(&self, message: &Message) {
        let header = message.header();
        let Some(id) = header.path().and_then(|p| p.strip_prefix(RUN_PATH)?.strip_prefix('/')?.parse::<RunId>().ok())
        else {
            return;
        };
        if self.known(id) {
            return;
        }
        let mut built = self.server.clone();
        let Some(server) = built.wait_for(Option::is_some).await.ok().and_then(|s| s.clone()) else { return };
        let request = Request { services: &self.services, caller: &self.caller };
        let Ok(view) = request.run(id).await else { return };
        let object = RunObject::new(self.services.clone(), self.caller.clone(), view);
        if let Ok(None) = server.at(run_path(id), object).await
            && let Some(oldest) = self.remember(id)
        {
            // It is made again when it is asked for again.
            let _ = server.remove::<RunObject, _>(run_path(oldest)).await;
        }
    }

    fn known(&self, id: RunId) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    fn remember(&self, id: RunId) -> Option<RunId> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push_back(id);
        if made.len() > OBJECTS_MAX { made.pop_front() } else { None }
    }
}
