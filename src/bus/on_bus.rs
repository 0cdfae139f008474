//! The instance on a message bus: a peer for each client that speaks to it, served as those of the socket are.
//!
//! ```text
//!  bus ══ Connection ══▶ route ─┬─ channel ─▶ peer of :1.42 (uid and pidfd, asked of the bus once)
//!                               └─ channel ─▶ peer of :1.43
//!  bus ◀═══════════════ what the peers answer, and signals that are addressed to them
//! ```
//!
//! So a client sees only objects that it may see, no signal about a run reaches anybody else, and what is unknown and what
//! is another's cannot be told apart, whatever is asked about it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use zbus::connection::socket::{ReadHalf, Split, WriteHalf};
use zbus::export::futures_core::Stream as _;
use zbus::fdo::DBusProxy;
use zbus::message::Type;
use zbus::names::{BusName, ErrorName, UniqueName};
use zbus::object_server::SignalEmitter;
use zbus::{Connection, Guid, Message, MessageStream, OwnedGuid};

use super::rights::{Authority, Peer};
use super::server::{self, Look};
use super::{BUS_NAME, Bus, ERROR_PREFIX, MANAGER_PATH, Services};
use crate::daemon::command::{Caller, CallerProcess};
use crate::model::ErrorKind;
use crate::stream::Boxed;

/// Whether the name on the bus is ours, once that is known: or why it is not.
pub type Held = watch::Sender<Option<Result<(), String>>>;

/// Messages of one client that wait for its peer; further ones are refused.
const WAITING: usize = 256;
/// Clients that are served at the same time.
const PEERS: usize = 4096;
/// The time that the bus may take to let us in, and for each answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The time between two attempts to come back to a bus that was restarted: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

const NOT_SERVED: &str = "this instance does not serve you: it is for its own user and root";
const DRIVER: &str = "org.freedesktop.DBus";
const DRIVER_PATH: &str = "/org/freedesktop/DBus";
/// `DBUS_NAME_FLAG_DO_NOT_QUEUE`.
const DO_NOT_QUEUE: u32 = 4;
/// `DBUS_REQUEST_NAME_REPLY_PRIMARY_OWNER` and `…_ALREADY_OWNER`.
const OWNED: [u32; 2] = [1, 4];

/// Serves on the bus, under the well-known name, for ever: a bus that is restarted is come back to. An error is one of the
/// beginning: no bus, or the name is another's. `held` is told when the name is ours.
pub async fn serve_on(bus: Bus, services: Arc<Services>, held: &Held) -> io::Result<()> {
    let mut pause = AGAIN.0;
    let mut been_there = false;
    loop {
        let why = match join(bus).await {
            Ok((connection, messages)) => {
                been_there = true;
                pause = AGAIN.0;
                held.send_replace(Some(Ok(())));
                route(bus, &connection, messages, &services).await;
                io::Error::other("the connection was lost")
            }
            Err(e) if !been_there => return Err(e),
            Err(e) => e,
        };
        tracing::warn!("not on the {bus} bus any more, trying again: {why}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Connects and takes the name. What arrives from then on is in the stream, so nothing is lost that is sent at once.
async fn join(bus: Bus) -> io::Result<(Connection, MessageStream)> {
    let failed = |what: String| io::Error::other(what);
    let address = bus.address().ok_or_else(|| failed(format!("there is no {bus} bus here")))?;
    let join = async {
        let connection = zbus::connection::Builder::address(address.as_str()).build().await?;
        let messages = MessageStream::from(&connection);
        let gone = "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',\
                    member='NameOwnerChanged',arg2=''";
        connection.call_method(Some(DRIVER), DRIVER_PATH, Some(DRIVER), "AddMatch", &gone).await?;
        let body = (BUS_NAME, DO_NOT_QUEUE);
        let reply = connection.call_method(Some(DRIVER), DRIVER_PATH, Some(DRIVER), "RequestName", &body).await?;
        let owned = OWNED.contains(&reply.body().deserialize::<u32>()?);
        let other = if owned { None } else { Some(owner(&connection).await) };
        zbus::Result::Ok((connection, messages, other))
    };
    match tokio::time::timeout(ANSWER, join).await {
        Ok(Ok((connection, messages, None))) => Ok((connection, messages)),
        Ok(Ok((_, _, Some(owner)))) => Err(failed(format!(
            "the name {BUS_NAME} on the {bus} bus is taken by {owner}: another instance serves there already"
        ))),
        Ok(Err(e)) => Err(failed(format!("the {bus} bus at {address}: {e}"))),
        Err(_) => Err(failed(format!("the {bus} bus at {address} did not answer in {} s", ANSWER.as_secs()))),
    }
}

/// Who has our name, for people.
async fn owner(connection: &Connection) -> String {
    let asked = async {
        let driver = DBusProxy::new(connection).await?;
        let name = driver.get_name_owner(BUS_NAME.try_into()?).await?;
        let pid = driver.get_connection_unix_process_id(BusName::from(name.inner().clone())).await?;
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (process, cgroup) = (read("comm"), read("cgroup"));
        let unit = cgroup.trim().rsplit('/').find(|part| part.ends_with(".service") || part.ends_with(".scope"));
        let unit = unit.map(|unit| format!(" of {unit}")).unwrap_or_default();
        zbus::Result::Ok(format!("{name} (pid {pid}, {}{unit})", process.trim()))
    };
    asked.await.unwrap_or_else(|_| "another".to_owned())
}

/// Gives each message to the peer of its sender, until the connection is lost.
async fn route(bus: Bus, connection: &Connection, mut messages: MessageStream, services: &Arc<Services>) {
    let mut peers: HashMap<String, mpsc::Sender<Message>> = HashMap::new();
    let guid = OwnedGuid::from(Guid::generate());
    let telling = async {
        if let Ok(emitter) = SignalEmitter::new(connection, MANAGER_PATH) {
            server::tell_manager(services, &emitter).await;
        }
        std::future::pending::<()>().await;
    };
    let mut telling = std::pin::pin!(telling);
    loop {
        let message = tokio::select! {
            message = poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)) => message,
            () = &mut telling => None,
        };
        let Some(Ok(message)) = message else { return };
        let header = message.header();
        let Some(sender) = header.sender().map(|s| s.as_str().to_owned()) else { continue };
        match header.message_type() {
            Type::MethodCall if message.data().len() > most_bytes(&message) => {
                let why = format!("the message is larger than {} KiB", most_bytes(&message) / 1024);
                refuse(connection, &message, ErrorKind::LimitExceeded, &why).await;
            }
            Type::MethodCall => {
                if !peers.contains_key(&sender) {
                    if peers.len() >= PEERS {
                        let why = "too many clients are served at the moment: try again";
                        refuse(connection, &message, ErrorKind::LimitExceeded, why).await;
                        continue;
                    }
                    let (to, incoming) = mpsc::channel(WAITING);
                    let peer = serve(bus, connection.clone(), sender.clone(), incoming, services.clone(), guid.clone());
                    tokio::spawn(peer);
                    peers.insert(sender.clone(), to);
                }
                match peers.get(&sender).map(|to| to.try_send(message.clone())) {
                    Some(Err(mpsc::error::TrySendError::Full(_))) => {
                        let why = "too many calls of this client wait already";
                        refuse(connection, &message, ErrorKind::LimitExceeded, why).await;
                    }
                    // It was not let in, or its peer has ended.
                    Some(Err(mpsc::error::TrySendError::Closed(_))) => {
                        refuse(connection, &message, ErrorKind::NotAuthorized, NOT_SERVED).await;
                    }
                    Some(Ok(())) | None => {}
                }
            }
            Type::Signal if sender == DRIVER => {
                if let Ok((name, _, _)) = message.body().deserialize::<(&str, &str, &str)>() {
                    peers.remove(name);
                }
            }
            _ => {}
        }
    }
}

/// The most bytes that a call may have: a launch has a command and an environment, each byte of which can take eight.
fn most_bytes(message: &Message) -> usize {
    let header = message.header();
    match header.member().map(|m| m.as_str()) {
        Some("StartRun" | "AttachRun" | "ReserveRun") => 20 << 20,
        _ => 64 << 10,
    }
}

async fn refuse(connection: &Connection, message: &Message, kind: ErrorKind, why: &str) {
    let header = message.header();
    let Ok(name) = ErrorName::try_from(format!("{ERROR_PREFIX}{}", kind.as_str())) else { return };
    if let Ok(error) = Message::error(&header, name).build(&why) {
        let _ = connection.send(&error).await;
    }
}

/// Serves one client until it leaves the bus.
async fn serve(
    bus: Bus,
    connection: Connection,
    name: String,
    mut incoming: mpsc::Receiver<Message>,
    services: Arc<Services>,
    guid: OwnedGuid,
) {
    let own = services.about.uid;
    let caller = who(&connection, &name).await;
    let Some(caller) = caller.filter(|c| bus == Bus::System || c.uid == own || c.uid == 0) else {
        tracing::warn!("a client on the {bus} bus is not served: nobody knows who it is, or it is another user");
        // What came meanwhile is answered too: nobody waits for a peer that there is not.
        incoming.close();
        while let Some(message) = incoming.recv().await {
            refuse(&connection, &message, ErrorKind::NotAuthorized, NOT_SERVED).await;
        }
        return;
    };
    let authority = (bus == Bus::System).then(|| Authority::new(connection.clone(), name.clone()));
    let peer = Peer { caller, authority, address: Some(name) };
    let build = |look| {
        let socket = Split::new(
            Box::new(FromBus { incoming, look }) as Box<dyn ReadHalf>,
            Box::new(ToBus { connection }) as Box<dyn WriteHalf>,
        );
        zbus::connection::Builder::authenticated_socket(socket, guid)
    };
    if let Err(e) = server::serve_peer(build, services, peer).await {
        tracing::debug!("a client's peer ended: {e}");
    }
}

/// Who a client is: asked of the bus, which had it from the kernel.
async fn who(connection: &Connection, name: &str) -> Option<Caller> {
    let unique = UniqueName::try_from(name.to_owned()).ok()?;
    let asked = async {
        let driver = DBusProxy::new(connection).await?;
        let credentials = driver.get_connection_credentials(BusName::from(unique.clone())).await?;
        let (uid, pid) = (credentials.unix_user_id(), credentials.process_id());
        // From dbus 1.15 on the bus has a pidfd. Else the number is opened and the bus is asked whether the client is
        // still there: then the number was its own all the time.
        let pidfd = match (credentials.into_process_fd(), pid) {
            (Some(pidfd), _) => Some(pidfd.into()),
            (None, Some(pid)) => {
                let opened = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                let opened = opened.map(|p| rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()));
                let there = driver.name_has_owner(BusName::from(unique)).await?;
                // A client can outlive the process that connected: then the number may be somebody else's by now.
                opened.and_then(Result::ok).filter(|_| there && uid.is_some_and(|uid| Caller::can_be(pid, uid)))
            }
            (None, None) => None,
        };
        zbus::Result::Ok((uid, pidfd))
    };
    let (uid, pidfd) = tokio::time::timeout(ANSWER, asked).await.ok()?.ok()?;
    let uid = uid?;
    // A directory server may take its time.
    let user = tokio::task::spawn_blocking(move || server::user_name(uid)).await.ok()?;
    Some(Caller { uid, user, process: pidfd.map(CallerProcess::new).map(Arc::new) })
}

#[derive(Debug)]
struct ToBus {
    connection: Connection,
}

struct FromBus {
    incoming: mpsc::Receiver<Message>,
    look: Look,
}

impl std::fmt::Debug for FromBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FromBus")
    }
}

impl ReadHalf for FromBus {
    fn receive_message<'a, 'b, 'd, 'c>(
        &'a mut self,
        _seq: u64,
        _bytes: &'b mut Vec<u8>,
        _fds: &'d mut Vec<std::os::fd::OwnedFd>,
    ) -> Boxed<'c, zbus::Result<Message>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let gone = || zbus::Error::InputOutput(io::Error::from(io::ErrorKind::BrokenPipe).into());
            let message = self.incoming.recv().await.ok_or_else(gone)?;
            (self.look)(message.clone()).await;
            Ok(message)
        })
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

impl WriteHalf for ToBus {
    fn send_message<'a, 'b, 'c>(&'a mut self, message: &'b Message) -> Boxed<'c, zbus::Result<()>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            // What has no addressee would go to everybody.
            match message.header().destination() {
                Some(_) => self.connection.send(message).await,
                None => Ok(()),
            }
        })
    }

    fn close<'a, 'c>(&'a mut self) -> Boxed<'c, io::Result<()>>
    where
        'a: 'c,
        Self: 'c,
    {
        // The connection to the bus is everybody's.
        Box::pin(std::future::ready(Ok(())))
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}
