//! The backend `systemd`: a transient unit for each run, made by the host's systemd manager or a user's. A scope is put
//! around the gated child of a client (a foreground run); a service is started by systemd, which keeps how it ended and
//! where its output went (a detached run).
//!
//! ```text
//!   engine's thread ── start ───────▶ channel ──▶ thread "systemd" ── its socket, or the bus ──▶ systemd
//!                   ◀── done, wake ───                            ◀──────── JobRemoved ────────
//!
//!   <manager's cgroup>/guardian.slice/guardian-WORKFLOW.slice/guardian-run_0123456789ab.scope/ or .service/
//! ```
//!
//! Owns the connection to the manager, the names of units, and the properties that they are started with. The engine's
//! thread never waits for D-Bus: it asks, and is told. A unit's cgroup is a cgroup as any other: it is watched, sampled
//! and killed through its directory, never through systemd.
//!
//! The end is systemd's: it watches the cgroup, and when that becomes empty it removes the directory and forgets the unit,
//! within milliseconds. *We never remove the directory*: were we first, systemd's watch would end with it, and the unit
//! would stay for ever (M with 252 and 257). What is empty and still there is given up by [`Manager::collect`].

mod absent;
mod bus;
mod jobs;
mod names;
mod scope;
mod service;
mod socket;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use tokio::sync::{Mutex, Notify, mpsc};

pub use absent::Absent;
use bus::{Address, Place};
use jobs::{Jobs, Line};
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use names::object as object_of;
pub use names::{UnitKind, run_of, slice as slice_of, unit as unit_of};
use scope::{Surroundings, Wanted};
pub use service::Wanted as ServiceWanted;

use super::mark::Owner;
use crate::kernel::KernelError;
use crate::kernel::cgroup::CgroupDir;
use crate::kernel::mount::{self, Cgroup2Mount};
use crate::model::{ExitStatus, ProcessId, Resources, RunId};

/// How much longer than its own deadline the thread is waited for.
const SLACK: Duration = Duration::from_secs(3);

/// Where the host's bus is.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// Where the host's manager listens itself, to root alone.
const SYSTEM_SOCKET: &str = "/run/systemd/private";

/// The time that systemd may take to tell of a unit.
const LOOK: Duration = Duration::from_secs(5);

/// How often a lost connection is made anew before the next launch has to try.
const TRIES: u32 = 50;

/// How deep slices are followed below the manager's cgroup. Ours are two deep.
const SLICES_DEEP: usize = 8;

/// Makes the engine's poller return.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Where the manager is looked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The host's manager and not a user's.
    pub whole: bool,
    /// `DBUS_SESSION_BUS_ADDRESS`, or `DBUS_SYSTEM_BUS_ADDRESS`, if it is set.
    pub address: Option<String>,
    /// The directories in which the bus's socket may be, the best first.
    pub runtime_dirs: Vec<PathBuf>,
    /// Where cgroup2 is mounted; found if none is given.
    pub mount: Option<Cgroup2Mount>,
    /// Our uid.
    pub uid: u32,
    /// Whose the runs are: what their directories are marked with.
    pub owner: Owner,
}

impl Options {
    /// What the environment says.
    pub fn from_env(whole: bool, owner: Owner) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
        // After su, the variable is unset or another user's.
        let own = PathBuf::from(format!("/run/user/{uid}"));
        Self {
            whole,
            address: std::env::var(if whole { "DBUS_SYSTEM_BUS_ADDRESS" } else { "DBUS_SESSION_BUS_ADDRESS" }).ok(),
            runtime_dirs: named.into_iter().chain([own]).collect(),
            mount: None,
            uid,
            owner,
        }
    }
}

/// A scope to start around a process that waits behind its gate.
pub struct ScopeRequest {
    /// The run.
    pub run: RunId,
    /// Its workflow, a valid name.
    pub workflow: String,
    /// What a person reads in `systemctl --user status`. Other programs of the user read it too.
    pub description: String,
    /// The process. Before 255 systemd takes it by its number: who asks holds a pidfd, and checks with it afterwards that
    /// the process was alive all the time, so that the number was its own.
    pub pid: u32,
    /// The process, for those that take it as this.
    pub pidfd: Option<OwnedFd>,
    /// Its limits.
    pub resources: Resources,
    /// When systemd ends it by itself.
    pub runtime_max: Option<Duration>,
    /// See [`Done`].
    pub done: Done,
}

/// Told once, from another thread, before the wake; not told if the manager is dropped first. After an error the unit may
/// still come to be, with the process in it: close the gate, and it goes as the process does.
pub type Done = Box<dyn FnOnce(Result<Started, KernelError>) + Send>;

impl fmt::Debug for ScopeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeRequest").field("run", &self.run).field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// A unit that holds its process.
#[derive(Debug)]
pub struct Started {
    /// Its cgroup, opened while the process was in it, and marked.
    pub cgroup: CgroupDir,
    /// The job that started it.
    job: Option<String>,
    /// The main process of a service.
    pub main: Option<Main>,
    /// What is not in force, in sentences.
    pub notices: Vec<String>,
}

/// A process that systemd started.
#[derive(Debug)]
pub struct Main {
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Its pid and start time.
    pub id: ProcessId,
}

/// A systemd manager.
#[derive(Debug)]
pub struct Manager {
    requests: mpsc::UnboundedSender<Request>,
    place: Place,
    whole: bool,
    jobs: Arc<Jobs>,
    stale: Arc<AtomicBool>,
    wake: WakeFn,
}

enum Request {
    Scope(ScopeRequest),
    Service(Box<ServiceWanted>, Done),
    Look(RunId, UnitKind, Looked),
    Collect(RunId, UnitKind),
    CollectEnded(IsOver),
}

/// Told, as [`Done`], how the main process of a service ended: none while it runs, for a scope, and when systemd knows no such
/// unit any more or does not answer.
pub type Looked = Box<dyn FnOnce(Option<ExitStatus>) + Send>;

/// Whether a run is on our record, and over.
pub type IsOver = Box<dyn Fn(RunId) -> bool + Send + Sync>;

#[derive(Clone)]
struct WakeFn(Wake);

impl fmt::Debug for WakeFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wake")
    }
}

impl Manager {
    /// Finds the manager and checks that it is of use, in 2 s at most. `wake` is called after each `done`.
    pub fn connect(options: Options, wake: Wake) -> Result<Self, Absent> {
        let whole = options.whole;
        if (options.uid == 0) != whole {
            return Err(if whole { Absent::NotRoot } else { Absent::Root });
        }
        let address = match (whole, options.address.clone()) {
            (true, Some(bus)) => Address { socket: None, bus },
            (true, None) => Address { socket: Some(SYSTEM_SOCKET.into()), bus: format!("unix:path={SYSTEM_BUS}") },
            (false, named) => {
                Address { socket: None, bus: bus::address(named.as_deref(), &options.runtime_dirs, options.uid)? }
            }
        };
        let nowhere = |e: KernelError| Absent::Elsewhere { cgroup: "of the user".to_owned(), why: e.to_string() };
        let find = if whole { mount::find_whole } else { mount::find };
        let mount = options.mount.map_or_else(find, Ok).map_err(nowhere)?;
        let not_started = |e: io::Error| Absent::NoThread(e.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(2)
            .thread_stack_size(256 * 1024)
            .build()
            .map_err(not_started)?;
        let (requests, incoming) = mpsc::unbounded_channel();
        let (found, is_found) = std_mpsc::channel();
        let wake = WakeFn(wake);
        let (uid, owner, told) = (options.uid, options.owner, wake.clone());
        let jobs = Arc::<Jobs>::default();
        let seen = jobs.clone();
        let stale = Arc::<AtomicBool>::default();
        let worn = stale.clone();
        let serve = async move {
            let lost = Arc::<Notify>::default();
            let (line, place) = match line(&address, &mount, uid, seen.clone(), lost.clone()).await {
                Ok(found) => found,
                Err(absent) => return drop(found.send(Err(absent))),
            };
            let (line, place_here) = (Mutex::new(line), place.clone());
            let link = Link { address, mount, uid, owner, place: place_here, jobs: seen, stale: worn, line, lost };
            if found.send(Ok(place)).is_ok() {
                Arc::new(link).serve(incoming, told.0).await;
            }
        };
        std::thread::Builder::new()
            .name("systemd".to_owned())
            .spawn(move || {
                runtime.block_on(serve);
                runtime.shutdown_background();
            })
            .map_err(not_started)?;
        let place = is_found
            .recv_timeout(bus::CONNECT + SLACK)
            .unwrap_or_else(|_| Err(Absent::NoThread("it does not answer".to_owned())))?;
        Ok(Self { requests, place, whole, jobs, stale, wake })
    }

    /// The major version of systemd; 0 if it is not known.
    pub fn version(&self) -> u32 {
        self.place.version
    }

    /// The directory of the cgroup that is ours to use: the manager's or, of the host's, the slice.
    pub fn cgroup(&self) -> PathBuf {
        if self.whole { self.place.dir.join("guardian.slice") } else { self.place.dir.clone() }
    }

    /// Asks for a scope, in 15 s at most, or 17 if the bus has to be connected to anew. Returns at once.
    pub fn start_scope(&self, request: ScopeRequest) {
        self.ask(Request::Scope(request));
    }

    /// Asks for a service, as for a scope. Its wrapper waits at the gate.
    pub fn start_service(&self, wanted: ServiceWanted, done: Done) {
        self.ask(Request::Service(Box::new(wanted), done));
    }

    /// Asks systemd how a run's main process ended. What was done to its unit before is known when this is told.
    pub fn look(&self, run: RunId, kind: UnitKind, looked: Looked) {
        self.ask(Request::Look(run, kind, looked));
    }

    fn ask(&self, request: Request) {
        let Err(mpsc::error::SendError(request)) = self.requests.send(request) else { return };
        let ended = |run, kind| scope::failed(&names::unit(run, kind), io::Error::other("the thread for it has ended"));
        match request {
            Request::Scope(request) => (request.done)(Err(ended(request.run, UnitKind::Scope))),
            Request::Service(wanted, done) => done(Err(ended(wanted.run, UnitKind::Service))),
            Request::Look(_, _, looked) => looked(None),
            Request::Collect(..) | Request::CollectEnded(_) => {}
        }
        (self.wake.0)();
    }

    /// Makes systemd give up the unit of a run, if no process is in it. Returns at once; the directory goes when it is
    /// done. For a service, and for a scope that is empty and has not gone by itself; one that has is left in peace.
    pub fn collect(&self, run: RunId, kind: UnitKind) {
        // Without the thread the unit stays until the next instance does it.
        let _ = self.requests.send(Request::Collect(run, kind));
    }

    /// The same for each service that systemd keeps though its run is over: whoever was to give it up died just before.
    pub fn collect_ended(&self, is_over: IsOver) {
        let _ = self.requests.send(Request::CollectEnded(is_over));
    }

    /// Whether systemd was asked to stop the unit of a run, by somebody else while it was live.
    pub fn was_stopped(&self, run: RunId) -> bool {
        self.jobs.has_others(run)
    }

    /// Whether the cgroups of new runs cannot be changed from here any more: `guardian.slice` was stopped and made anew, and
    /// what our service may write to is the old one. Whoever starts us anew gives us the new one.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Forgets that of a run that is over.
    pub fn forget(&self, run: RunId) {
        // Stopped with all that was in it: what comes in its place is another.
        if self.whole && !self.cgroup().exists() {
            self.stale.store(true, Ordering::Relaxed);
        }
        self.jobs.forget(run);
    }

    /// The units of runs, of whichever instance, with their directories. Read from the cgroups alone.
    pub fn units(&self) -> Result<Vec<(RunId, PathBuf)>, KernelError> {
        units_below(&self.place.dir)
    }
}

/// The units of runs below a manager's cgroup: in `guardian.slice`, and in any other slice that somebody moved them to.
/// Nothing but slices is looked into, so that no run can show us scopes of its own making inside of its cgroup.
pub fn units_below(manager: &Path) -> Result<Vec<(RunId, PathBuf)>, KernelError> {
    let mut found = Vec::new();
    collect(&CgroupDir::open_unchecked(manager)?, SLICES_DEEP, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(dir: &CgroupDir, depth: usize, found: &mut Vec<(RunId, PathBuf)>) -> Result<(), KernelError> {
    for name in dir.children()? {
        let Ok(name) = name.to_str() else { continue };
        if let Some((run, _)) = names::run_of(name) {
            found.push((run, dir.path().join(name)));
        } else if name.ends_with(".slice") && depth > 0 {
            match dir.child(name.as_ref()).and_then(|slice| collect(&slice, depth - 1, found)) {
                Err(e) if !e.is_gone() => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The thread's end: the connection, made anew when the bus was restarted, or the manager executed itself anew.
struct Link {
    address: Address,
    mount: Cgroup2Mount,
    uid: u32,
    owner: Owner,
    place: Place,
    jobs: Arc<Jobs>,
    stale: Arc<AtomicBool>,
    line: Mutex<Line>,
    lost: Arc<Notify>,
}

impl Link {
    /// Serves until the manager is dropped. Starts go on side by side.
    async fn serve(self: Arc<Self>, mut incoming: mpsc::UnboundedReceiver<Request>, wake: Wake) {
        loop {
            let request = tokio::select! {
                request = incoming.recv() => request,
                () = self.lost.notified(), if !self.is_by_bus() => {
                    tokio::spawn(self.clone().listen_again());
                    continue;
                }
            };
            let Some(request) = request else { return };
            let (link, wake) = (self.clone(), wake.clone());
            tokio::spawn(async move {
                match request {
                    Request::Scope(request) => link.start_scope(request, &wake).await,
                    Request::Service(wanted, done) => link.start_service(*wanted, done, &wake).await,
                    Request::Look(run, kind, looked) => {
                        looked(link.look(run, kind).await);
                        wake();
                    }
                    Request::Collect(run, kind) => drop(link.collect(run, kind).await),
                    Request::CollectEnded(is_over) => link.collect_ended(&is_over).await,
                }
            });
        }
    }

    async fn start_scope(&self, request: ScopeRequest, wake: &Wake) {
        let ScopeRequest { run, workflow, description, pid, pidfd, resources, runtime_max, done } = request;
        let wanted = Wanted { run, workflow, description, pid, pidfd, resources, runtime_max };
        let started = scope::start(self, &wanted, self.around()).await;
        self.started(run, UnitKind::Scope, started, done, wake).await;
    }

    async fn start_service(&self, wanted: ServiceWanted, done: Done, wake: &Wake) {
        let run = wanted.run;
        let started = service::start(self, &wanted, self.around(), self.uid == 0).await;
        // The unit has the gate now.
        drop(wanted);
        self.started(run, UnitKind::Service, started, done, wake).await;
    }

    fn around(&self) -> Surroundings<'_> {
        Surroundings { place: &self.place, mount: &self.mount, owner: &self.owner }
    }

    async fn started(
        &self,
        run: RunId,
        kind: UnitKind,
        started: Result<Started, KernelError>,
        done: Done,
        wake: &Wake,
    ) {
        let started = started.and_then(|started| self.can_be_killed(started));
        if let Ok(Started { job: Some(job), .. }) = &started {
            self.jobs.is_ours(run, job);
        }
        // Of the same name as another's, it is that other's.
        let is_left = matches!(&started, Err(e) if !matches!(e, KernelError::Busy { .. }));
        done(started);
        wake();
        if is_left {
            self.collect(run, kind).await;
        }
    }

    /// A unit that we could not end is given back before anything is executed in it.
    fn can_be_killed(&self, started: Started) -> Result<Started, KernelError> {
        match accessat(CWD, started.cgroup.path().join("cgroup.procs"), Access::WRITE_OK, AtFlags::EACCESS) {
            Err(Errno::ROFS) => {
                self.stale.store(true, Ordering::Relaxed);
                let why = "guardian.slice was stopped and made anew, and the instance starts anew to see it: try again";
                Err(scope::failed(&started.cgroup.path().display().to_string(), io::Error::other(why)))
            }
            // Anything else shows when it is used, and is told then.
            _ => Ok(started),
        }
    }

    async fn look(&self, run: RunId, kind: UnitKind) -> Option<ExitStatus> {
        let Line { bus, .. } = self.line().await.ok()?;
        let unit = names::unit(run, kind);
        let look = async {
            match kind {
                UnitKind::Service => service::status(&bus, &unit).await.ok().flatten(),
                // Nothing is kept of a scope; that it was asked for is what counts.
                UnitKind::Scope => {
                    let _ = scope::property_of(&bus, &unit, kind, "ControlGroup").await;
                    None
                }
            }
        };
        tokio::time::timeout(LOOK, look).await.ok().flatten()
    }

    /// Gives the job that stops it, if there is one.
    async fn collect(&self, run: RunId, kind: UnitKind) -> Option<String> {
        let Line { bus, .. } = self.line().await.ok()?;
        scope::collect(&bus, &names::unit(run, kind), kind, &self.mount).await
    }

    /// Gives up the services that systemd keeps of runs that are over: they have no cgroup any more, so no list of those has them.
    /// What is not on record is left alone: it may be another instance's.
    async fn collect_ended(&self, is_over: &IsOver) {
        for _ in 0..TRIES {
            if let Ok(Line { bus, .. }) = self.line().await
                && let Ok(Ok(ended)) = tokio::time::timeout(LOOK, service::ended(&bus)).await
            {
                for run in ended.into_iter().filter(|run| is_over(*run)) {
                    self.collect(run, UnitKind::Service).await;
                }
                return;
            }
            tokio::time::sleep(scope::AWAY).await;
        }
    }

    /// Gives up the unit that an earlier instance had started for a run, before it is started again.
    async fn make_room(&self, run: RunId, kind: UnitKind) {
        if let Some(job) = self.collect(run, kind).await {
            self.jobs.is_ours(run, &job);
        }
    }

    /// The connection; another one if it was lost.
    async fn line(&self) -> Result<Line, Absent> {
        let mut kept = self.line.lock().await;
        if kept.bus.is_closed() {
            *kept = line(&self.address, &self.mount, self.uid, self.jobs.clone(), self.lost.clone()).await?.0;
        }
        Ok(kept.clone())
    }

    /// Whether the manager is spoken to by way of a bus, and has no socket for us. A bus that is lost stays lost: a launch
    /// fails at once, and the next one looks for the next bus.
    fn is_by_bus(&self) -> bool {
        self.address.socket.is_none()
    }

    /// The connection, for a unit that the manager has. None while the manager may come back.
    async fn line_again(&self, unit: &str) -> Result<Option<Line>, KernelError> {
        match self.line().await {
            Ok(line) => Ok(Some(line)),
            Err(absent) if self.is_by_bus() => Err(scope::unreachable(unit, &absent)),
            Err(_) => Ok(None),
        }
    }

    /// Connects anew at once, and not with the next launch: what others have systemd do with live runs is to be heard.
    async fn listen_again(self: Arc<Self>) {
        for _ in 0..TRIES {
            if self.line().await.is_ok() {
                return;
            }
            tokio::time::sleep(scope::AWAY).await;
        }
    }
}

/// Finds the manager, and listens to what it does.
async fn line(
    address: &Address,
    mount: &Cgroup2Mount,
    uid: u32,
    jobs: Arc<Jobs>,
    lost: Arc<Notify>,
) -> Result<(Line, Place), Absent> {
    let (bus, place) = bus::connect(address, mount, uid).await?;
    let deaf = |why: String| Absent::NoManager { address: address.bus.clone(), why, uid };
    let line = tokio::time::timeout(bus::CONNECT, Line::listen(bus, jobs, lost)).await;
    let line = line.map_err(|_| deaf("it does not let us listen to it".to_owned()))?;
    Ok((line.map_err(|e| deaf(bus::reason(&e)))?, place))
}

#[cfg(test)]
mod tests;
