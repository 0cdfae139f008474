//! The client of an instance: typed calls over one peer-to-peer connection, with the model's types and errors.
//!
//! A lost connection is [`ErrorKind::Unavailable`]; the caller may connect to the next instance, which has taken the
//! live runs up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::message::EndianSig;
use zbus::wire::NATIVE_ENDIAN;
use zbus::{Connection, Message, OwnedObjectPath, Type};

use super::error::from_bus;
use super::explain::ExplanationDict;
use super::filter::FilterDict;
use super::launch::{LaunchDict, ReservedDict};
use super::manager::{AuditDict, WireEvent};
use super::samples::{WireSample, sample_from};
use super::statistics::StatisticsDict;
use super::view::{self, KillDict, RunDict, WireProcess, usec};
use super::wire::{self, Marshalled};
use super::{BUS_NAME, MANAGER_INTERFACE, MANAGER_PATH, RUN_INTERFACE, run_path};
use crate::daemon::command::LaunchRequest;
use crate::model::{
    AuditEvent, AuditRow, Containment, Error, ErrorKind, EventKind, ExitStatus, KillAnswer, KillMode, ProcessSeen,
    Reserved, RunId, RunView, Statistics, UsageSample, Wall,
};

pub use super::explain::Explained;
pub use super::manager::Description;
pub use super::{AuditReport, Bus, RunFilter};

/// The time that connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The time that a call may take which does not wait for a run: the engine records a kill's intent before it answers.
const CALL: Duration = Duration::from_secs(30);
/// The time that checking the whole audit may take.
const VERIFY: Duration = Duration::from_secs(600);
/// The longest path that fits into a socket address.
pub(super) const ADDRESS_MAX: usize = 107;

/// A connection to an instance.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
    /// Who is called: the instance's name, for which a bus may start one, or who had it when we connected.
    destination: Arc<str>,
}

/// Connects to the instance's socket. Kept apart from [`Client`] because it needs no runtime, and because who is told
/// "nobody listens" starts an instance.
pub fn connect_socket(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= ADDRESS_MAX {
        return UnixStream::connect(path);
    }
    // A deep state directory: the kernel follows /proc/self/fd/N to the directory, and the address stays short.
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = short_path(dir.as_fd(), Path::new(name));
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(short)?)?;
    Ok(UnixStream::from(socket))
}

/// A short path to a file in an open directory, for socket addresses.
pub fn short_path(dir: BorrowedFd<'_>, name: &Path) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

/// What there is of an instance on a message bus.
#[derive(Debug)]
pub enum OnBus {
    /// It answers, or was started by the bus and answers.
    There(Client),
    /// There is no such bus, or no instance on it and none that the bus could start.
    Absent,
    /// The bus knows it, and it could not be started: why.
    Broken(String),
}

impl Client {
    /// Whether a message bus has the instance, or could start it. Nothing is started.
    pub async fn is_known_on(bus: Bus) -> bool {
        let Some(connection) = connect_bus(bus).await else { return false };
        let asked = async {
            let driver = zbus::fdo::DBusProxy::new(&connection).await?;
            if driver.name_has_owner(BUS_NAME.try_into()?).await? {
                return Ok::<_, zbus::Error>(true);
            }
            Ok(driver.list_activatable_names().await?.iter().any(|name| name.as_str() == BUS_NAME))
        };
        matches!(tokio::time::timeout(CONNECT, asked).await, Ok(Ok(true)))
    }

    /// Looks for the instance on a message bus, which may start it.
    pub async fn on_bus(bus: Bus) -> OnBus {
        let Some(connection) = connect_bus(bus).await else { return OnBus::Absent };
        let started = async {
            let driver = zbus::fdo::DBusProxy::new(&connection).await?;
            // Asked first: a bus does not know how to start what somebody else has started.
            if !driver.name_has_owner(BUS_NAME.try_into()?).await? {
                driver.start_service_by_name(BUS_NAME.try_into()?, 0).await?;
            }
            Ok::<_, zbus::Error>(())
        };
        match tokio::time::timeout(CALL, started).await {
            Ok(Ok(())) => OnBus::There(Self::to_name(connection)),
            Ok(Err(e)) if is_unknown(&e) => OnBus::Absent,
            Ok(Err(e)) => OnBus::Broken(from_bus(e).message),
            Err(_) => OnBus::Broken(format!("it did not start within {} s", CALL.as_secs())),
        }
    }

    /// The instance on a message bus, if it is there. None is started for it, neither now nor by a later call: who only watches
    /// must not start again what somebody has stopped.
    pub async fn there_on(bus: Bus) -> Option<Self> {
        let connection = connect_bus(bus).await?;
        let owner = async {
            let driver = zbus::fdo::DBusProxy::new(&connection).await?;
            Ok::<_, zbus::Error>(driver.get_name_owner(BUS_NAME.try_into()?).await?)
        };
        let owner = tokio::time::timeout(CONNECT, owner).await.ok()?.ok()?;
        let destination = owner.as_str().into();
        Some(Self { connection, destination })
    }

    fn to_name(connection: Connection) -> Self {
        Self { connection, destination: BUS_NAME.into() }
    }

    /// Connects to the socket at this path.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let stream = connect_socket(path).map_err(|e| {
            Error::new(ErrorKind::Unavailable, format!("no instance answers at {}: {e}", path.display()))
        })?;
        Self::over(stream).await
    }

    /// Speaks over a connected socket.
    pub async fn over(stream: UnixStream) -> Result<Self, Error> {
        let build = zbus::connection::Builder::unix_stream(stream).p2p().build();
        match tokio::time::timeout(CONNECT, build).await {
            Ok(connection) => Ok(Self::to_name(connection.map_err(from_bus)?)),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the instance did not answer in {} s: is it stopped? `guardian doctor` tells",
                    CONNECT.as_secs()
                ),
            )),
        }
    }

    async fn reply<B>(&self, at: (&str, &str), member: &str, body: &B, wait: Duration) -> Result<Message, Error>
    where
        B: Serialize + zbus::DynamicType,
    {
        let call = self.connection.call_method(Some(&*self.destination), at.0, Some(at.1), member, body);
        match tokio::time::timeout(wait, call).await {
            Ok(reply) => reply.map_err(from_bus),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("the instance did not answer {member} in {} s", wait.as_secs()),
            )),
        }
    }

    async fn call_at<B, R>(&self, at: (&str, &str), member: &str, body: &B, wait: Duration) -> Result<R, Error>
    where
        B: Serialize + zbus::DynamicType,
        R: DeserializeOwned + Type,
    {
        self.reply(at, member, body, wait).await?.body().deserialize().map_err(from_bus)
    }

    async fn call<B, R>(&self, member: &str, body: &B) -> Result<R, Error>
    where
        B: Serialize + zbus::DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call_at((MANAGER_PATH, MANAGER_INTERFACE), member, body, CALL).await
    }

    /// What contains the instance's runs.
    pub async fn backend(&self) -> Result<Containment, Error> {
        view::containment_from(&self.describe().await?.backend)
    }

    /// StartRun: a detached run.
    pub async fn start(&self, request: &LaunchRequest) -> Result<RunId, Error> {
        let (id, _): (String, OwnedObjectPath) = self.call("StartRun", &(LaunchDict::from(request),)).await?;
        id_from(&id)
    }

    /// ReserveRun: an id for a run, how its command is to be started and, where there is one, the descriptor of its cgroup
    /// or of the record for its shim.
    pub async fn reserve(&self, request: &LaunchRequest) -> Result<(Reserved, Option<OwnedFd>), Error> {
        let (id, container, descriptors): (String, ReservedDict, Vec<zbus::OwnedFd>) =
            self.call("ReserveRun", &(LaunchDict::from(request),)).await?;
        Ok((container.reserved(id_from(&id)?)?, descriptors.into_iter().next().map(Into::into)))
    }

    /// AttachRun: contains the gated child.
    pub async fn attach(&self, request: &LaunchRequest, child: BorrowedFd<'_>) -> Result<RunId, Error> {
        let body = (LaunchDict::from(request), zbus::Fd::from(child));
        let (id, _): (String, OwnedObjectPath) = self.call("AttachRun", &body).await?;
        id_from(&id)
    }

    /// ReportExit: how the main process of our foreground run ended.
    pub async fn report_exit(&self, run: RunId, status: ExitStatus) -> Result<(), Error> {
        let (kind, value) = view::exit_status(status);
        self.call("ReportExit", &(run.to_string(), kind, value)).await
    }

    /// KillRun: accepted and on record; [`Client::wait`] tells when it is done.
    pub async fn kill(&self, run: &str, mode: KillMode, reason: &str) -> Result<KillAnswer, Error> {
        let answer: KillDict = self.call("KillRun", &(run, mode.as_str(), reason)).await?;
        answer.try_into()
    }

    /// WaitRun: the run as it ended. [`ErrorKind::TimedOut`] when the time is over first.
    pub async fn wait(&self, run: &str, timeout: Option<Duration>) -> Result<RunView, Error> {
        let wait = timeout.map_or(Duration::MAX, |t| t.saturating_add(CALL));
        let body = (run, timeout.map_or(u64::MAX, usec));
        let dict: RunDict = self.call_at((MANAGER_PATH, MANAGER_INTERFACE), "WaitRun", &body, wait).await?;
        dict.try_into()
    }

    /// ExtendRun: when the timer will now end the run.
    pub async fn extend(&self, run: &str, limit: &str, by: Duration) -> Result<Wall, Error> {
        self.call("ExtendRun", &(run, limit, usec(by))).await.map(Wall)
    }

    /// FreezeRun.
    pub async fn freeze(&self, run: &str) -> Result<(), Error> {
        self.call("FreezeRun", &(run,)).await
    }

    /// ThawRun.
    pub async fn thaw(&self, run: &str) -> Result<(), Error> {
        self.call("ThawRun", &(run,)).await
    }

    /// ListRuns: live runs, and finished ones if the filter says so.
    pub async fn list(&self, filter: &RunFilter) -> Result<Vec<RunView>, Error> {
        let body = (FilterDict::from(filter),);
        let reply = self.reply((MANAGER_PATH, MANAGER_INTERFACE), "ListRuns", &body, CALL).await?;
        let body = reply.body();
        // What the quick way does not know (another byte order, a newer instance's key), the general one decides about.
        let native = reply.primary_header().endian_sig() == EndianSig::from(NATIVE_ENDIAN);
        let quick = (native && body.signature() == Marshalled::SIGNATURE).then(|| wire::list(body.data())).flatten();
        let dicts: Vec<RunDict> = match quick {
            Some(dicts) => dicts,
            None => body.deserialize().map_err(from_bus)?,
        };
        dicts.into_iter().map(RunView::try_from).collect()
    }

    /// Statistics: what there is to say about runs that are over. Of the filter its workflow, uid and users, and the time since
    /// which they are over.
    pub async fn statistics(&self, filter: &RunFilter) -> Result<Vec<Statistics>, Error> {
        let RunFilter { workflow, uid, since, all_users, .. } = filter.clone();
        let body = (FilterDict::from(&RunFilter { workflow, uid, since, all_users, ..RunFilter::default() }),);
        let dicts: Vec<StatisticsDict> = self.call("Statistics", &body).await?;
        dicts.into_iter().map(Statistics::try_from).collect()
    }

    /// ShowRun: one run, read anew.
    pub async fn show(&self, run: &str) -> Result<RunView, Error> {
        let dict: RunDict = self.call("ShowRun", &(run,)).await?;
        dict.try_into()
    }

    /// ExplainRun.
    pub async fn explain(&self, run: &str) -> Result<Explained, Error> {
        let dict: ExplanationDict = self.call("ExplainRun", &(run,)).await?;
        dict.try_into()
    }

    /// The processes of a live run.
    pub async fn processes(&self, run: RunId) -> Result<Vec<ProcessSeen>, Error> {
        let at = (&*run_path(run), RUN_INTERFACE);
        let processes: Vec<WireProcess> = self.call_at(at, "Processes", &(), CALL).await?;
        Ok(view::processes_from(processes))
    }

    /// What a run used since a time, in order.
    pub async fn samples(&self, run: RunId, since: Wall) -> Result<Vec<UsageSample>, Error> {
        let at = (&*run_path(run), RUN_INTERFACE);
        let samples: Vec<WireSample> = self.call_at(at, "Samples", &(since.0,), CALL).await?;
        Ok(samples.into_iter().map(sample_from).collect())
    }

    /// Events or RunEvents: rows of the audit after this one.
    pub async fn events(&self, after: u64, max: u32, run: Option<&str>) -> Result<Vec<AuditRow>, Error> {
        let rows: Vec<WireEvent> = match run {
            None => self.call("Events", &(after, max)).await?,
            Some(run) => self.call("RunEvents", &(run, after, max)).await?,
        };
        rows.into_iter().map(row_from).collect()
    }

    /// AuditVerify.
    pub async fn verify(&self) -> Result<AuditReport, Error> {
        let at = (MANAGER_PATH, MANAGER_INTERFACE);
        let d: AuditDict = self.call_at(at, "AuditVerify", &(), VERIFY).await?;
        Ok(AuditReport {
            rows: d.rows,
            first_seq: d.first_sequence,
            last_seq: d.last_sequence,
            last_hash: d.last_hash,
            broken: (!d.intact).then(|| (d.broken_sequence.unwrap_or_default(), d.problem.unwrap_or_default())),
        })
    }

    /// Describe.
    pub async fn describe(&self) -> Result<Description, Error> {
        self.call("Describe", &()).await
    }

    /// Reload.
    pub async fn reload(&self) -> Result<(), Error> {
        self.call("Reload", &()).await
    }

    /// Stop.
    pub async fn stop(&self) -> Result<(), Error> {
        self.call("Stop", &()).await
    }
}

/// The bus, if there is one and it lets us in.
async fn connect_bus(bus: Bus) -> Option<Connection> {
    let address = bus.address()?;
    let build = zbus::connection::Builder::address(address.as_str());
    tokio::time::timeout(CONNECT, build.build()).await.ok()?.ok()
}

/// Whether the bus says that it knows no service of this name.
fn is_unknown(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::FDO(e) if matches!(**e, zbus::fdo::Error::ServiceUnknown(_)))
        || matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.DBus.Error.ServiceUnknown")
}

fn id_from(text: &str) -> Result<RunId, Error> {
    text.parse().map_err(|e| Error::internal(format!("the instance's answer cannot be read: {e}")))
}

pub(super) fn row_from(e: WireEvent) -> Result<AuditRow, Error> {
    let (seq, at, kind, run, workflow, uid, actor, reason, details, hash) = e;
    let kind = EventKind::ALL.iter().copied().find(|k| k.as_str() == kind).ok_or_else(|| {
        let kind: String = kind.chars().take(40).collect();
        Error::internal(format!("row {seq} of the audit has the kind {kind:?}, which this version does not know"))
    })?;
    let event = AuditEvent {
        at: Wall(at),
        kind,
        run: if run.is_empty() { None } else { Some(id_from(&run)?) },
        workflow: (!workflow.is_empty()).then_some(workflow),
        actor: view::actor_from((uid, actor)),
        reason,
        details: serde_json::from_str(&details).unwrap_or(serde_json::Value::Null),
    };
    Ok(AuditRow { seq, event, hash })
}
