//! Accepts connections on the private socket and serves each peer. Apart from root, only the instance's own user may
//! connect; who a peer is, the kernel says.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use zbus::names::{BusName, InterfaceName};
use zbus::object_server::SignalEmitter;
use zbus::{Guid, Message, ObjectServer, OwnedGuid, Variant};

use super::access::{self, Request};
use super::driver::{DRIVER_PATH, Driver, Listening};
use super::manager::Manager;
use super::moments::Moments;
use super::object_manager::{ObjectManager, Told};
use super::rights::{Peer, Right};
use super::run::RunObject;
use super::socket;
pub(super) use super::socket::Look;
use super::{MANAGER_INTERFACE, MANAGER_PATH, RUN_PATH, Services, Signal, run_path};
use crate::daemon::command::{Caller, CallerProcess};
use crate::failpoint;
use crate::model::{Outcome, RunId};

/// Connections at the same time; a further one waits in the socket's backlog for one to close. Each foreground run holds one.
const CONNECTIONS_MAX: usize = 4096;
/// The time a peer has for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Too short for a person to see, and longer than what is done for one call.
const MOMENT: Duration = Duration::from_millis(5);
/// The time in which changes of the instance and rows of the audit are told together: a launch makes several of each.
const TOGETHER: Duration = Duration::from_millis(50);
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
    if peer.uid() != 0 && peer.uid() != own_uid && failpoint::without("guard.rights").is_none() {
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
    let process = pidfd.map(CallerProcess::new).map(Arc::new);
    Some(Caller { uid: peer.uid(), user: names.of(peer.uid()), process })
}

/// The names of the uids that have connected: two at most, and looking one up can take as long as a directory server does.
#[derive(Default)]
struct Names(HashMap<u32, String>);

impl Names {
    /// The name of a uid, or the uid again.
    fn of(&mut self, uid: u32) -> String {
        self.0.entry(uid).or_insert_with(|| user_name(uid)).clone()
    }
}

/// The name of a uid, or the uid again. May block.
pub(super) fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |u| u.name)
}

async fn serve(stream: UnixStream, services: Arc<Services>, caller: Caller, guid: OwnedGuid) -> zbus::Result<()> {
    let peer = Peer { caller, authority: None, address: None };
    let uid = peer.caller.uid;
    let build = |look| zbus::connection::Builder::socket(socket::halves(stream, uid, look)).server(guid);
    serve_peer(build, services, peer).await
}

/// Serves one peer over the connection that is built with a look at each message, until it is closed.
pub(super) async fn serve_peer(
    build: impl FnOnce(Look) -> zbus::connection::Builder<'static>,
    services: Arc<Services>,
    peer: Peer,
) -> zbus::Result<()> {
    let listening = Arc::new(Listening::default());
    let (serving, server) = watch::channel(None);
    let objects = Arc::new(Objects { services: services.clone(), peer: peer.clone(), server, made: Mutex::default() });
    let look: Look = Arc::new(move |message| {
        let objects = objects.clone();
        Box::pin(async move { objects.look(&message).await })
    });
    let mut build = build(look)
        .p2p()
        .serve_at(MANAGER_PATH, Manager::new(services.clone(), peer.clone()))
        .serve_at(RUN_PATH, ObjectManager::new(services.clone(), peer.clone()));
    // A bus has its own driver, which knows who listens and sends them what is addressed to them.
    if peer.address.is_some() {
        listening.begin();
    } else {
        build = build.serve_at(DRIVER_PATH, Driver { listening: listening.clone() });
    }
    let connection = match tokio::time::timeout(HANDSHAKE, build.build()).await {
        Ok(built) => built?,
        Err(_) => return Err(zbus::Error::Handshake(format!("not done in {} s", HANDSHAKE.as_secs()))),
    };
    serving.send_replace(Some(connection.object_server().clone()));
    let mut emitter = SignalEmitter::new(&connection, MANAGER_PATH)?;
    if let Some(address) = &peer.address {
        emitter = emitter.set_destination(BusName::try_from(address.as_str())?.to_owned());
    }
    let telling = async {
        listening.begun().await;
        let runs = tell_runs(&services, &emitter, peer);
        // Everybody on a bus is told at once.
        match emitter.destination() {
            Some(_) => runs.await,
            None => drop(tokio::join!(runs, tell_manager(&services, &emitter))),
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = connection.closed() => {}
        () = telling => {}
    }
    Ok(())
}

/// Tells a peer of its runs, until no signal can come any more. One that does not read them is late, and then misses some.
async fn tell_runs(services: &Services, emitter: &SignalEmitter<'_>, peer: Peer) {
    let mut moments = Moments::new(services, MOMENT);
    let mut told = Told::new(services, peer);
    while let Some(signals) = moments.next().await {
        for signal in signals {
            let sent = match signal {
                Signal::RunChanged(view) if told.concerns(&view) => told.changed(emitter, view).await,
                Signal::RunFinished(view) if told.concerns(&view) => {
                    let outcome = view.outcome.as_ref().map_or("lost", Outcome::code);
                    match told.finished(emitter, &view).await {
                        Ok(()) => Manager::run_finished(emitter, &view.spec.id.to_string(), outcome).await,
                        failed => failed,
                    }
                }
                _ => continue,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

/// Tells of the audit and of the instance, which everybody may know, until no signal can come any more. The numbers of
/// EventAppended tell who is late what they missed.
pub(super) async fn tell_manager(services: &Services, emitter: &SignalEmitter<'_>) {
    let mut moments = Moments::new(services, TOGETHER);
    let mut known = properties(services);
    while let Some(signals) = moments.next().await {
        for signal in signals {
            let sent = match signal {
                Signal::EventAppended(seq) => Manager::event_appended(emitter, seq).await,
                _ => manager_changed(services, emitter, &mut known).await,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

/// The manager's properties that change.
fn properties(services: &Services) -> Vec<(&'static str, Variant<'static>)> {
    let state = services.published.instance();
    vec![
        ("Health", state.health.as_str().into()),
        ("HealthReasons", state.reasons.into()),
        ("RunsActive", (services.published.active() as u64).into()),
        ("RunsTotal", state.runs_total.into()),
        ("KillsTotal", state.kills_total.into()),
    ]
}

async fn manager_changed(
    services: &Services,
    emitter: &SignalEmitter<'_>,
    known: &mut Vec<(&'static str, Variant<'static>)>,
) -> zbus::Result<()> {
    let now = properties(services);
    let changed: HashMap<&str, Variant<'_>> =
        now.iter().zip(known.iter()).filter(|(now, before)| now != before).map(|(now, _)| now.clone()).collect();
    *known = now;
    if changed.is_empty() {
        return Ok(());
    }
    let interface = InterfaceName::try_from(MANAGER_INTERFACE)?;
    zbus::fdo::Properties::properties_changed(emitter, interface, changed, Cow::from(&[][..])).await
}

/// The objects of runs on one connection.
struct Objects {
    services: Arc<Services>,
    peer: Peer,
    /// There once the connection is built; a peer may send its first call before that.
    server: watch::Receiver<Option<ObjectServer>>,
    made: Mutex<VecDeque<RunId>>,
}

impl Objects {
    /// Makes the object that a call is for, if it is a run's that the peer may see.
    async fn look(&self, message: &Message) {
        let header = message.header();
        // Who looks through the tree finds the live runs that it may see, as far as objects are kept.
        if header.path().is_some_and(|p| p.as_str() == RUN_PATH)
            && header.member().is_some_and(|m| m.as_str() == "Introspect")
        {
            let live = self.services.published.live().into_iter().map(|l| l.view);
            let seen = live.filter(|v| access::may_see(&self.peer.caller, v)).map(|v| v.spec.id);
            for id in seen.take(OBJECTS_MAX) {
                self.make(id).await;
            }
            return;
        }
        let Some(id) = header.path().and_then(|p| p.strip_prefix(RUN_PATH)?.strip_prefix('/')?.parse::<RunId>().ok())
        else {
            return;
        };
        self.make(id).await;
    }

    async fn make(&self, id: RunId) {
        if self.known(id) {
            return;
        }
        let mut built = self.server.clone();
        let Some(server) = built.wait_for(Option::is_some).await.ok().and_then(|s| s.clone()) else { return };
        let request = Request { services: &self.services, peer: &self.peer };
        let Ok(view) = request.run(id, Right::ReadAll).await else { return };
        let object = RunObject::new(self.services.clone(), self.peer.clone(), view);
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
