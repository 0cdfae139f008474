//! The backend `systemd`: a transient scope for each run, made by the user's systemd manager.
//!
//! ```text
//!   engine's thread ── start_scope ──▶ channel ──▶ thread "systemd" ── session bus ──▶ systemd --user
//!                   ◀──────── done, wake ────────                  ◀── JobRemoved ──
//!
//!   <manager's cgroup>/guardian.slice/guardian-WORKFLOW.slice/guardian-run_0123456789ab.scope/
//! ```
//!
//! Owns the connection to the manager, the names of units, and the properties that a scope is started with. The engine's
//! thread never waits for D-Bus: it asks, and is told. A scope's cgroup is a cgroup as any other: it is watched, sampled
//! and killed through its directory, never through systemd.
//!
//! The end is systemd's: it watches the cgroup, and when that becomes empty it removes the directory and forgets the unit,
//! within milliseconds. *We never remove the directory*: were we first, systemd's watch would end with it, and the unit
//! would stay for ever (M with 252 and 257). What is empty and still there is given up by [`Manager::collect`].

mod absent;
mod bus;
mod names;
mod scope;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use zbus::Connection;

pub use absent::Absent;
use bus::Place;
pub use names::{run_of, scope as unit_of, slice as slice_of};
use scope::{Surroundings, Wanted};

use super::mark::Owner;
use crate::kernel::KernelError;
use crate::kernel::cgroup::CgroupDir;
use crate::kernel::mount::{self, Cgroup2Mount};
use crate::model::{Resources, RunId};

/// How much longer than its own deadline the thread is waited for.
const SLACK: Duration = Duration::from_secs(3);

/// How deep slices are followed below the manager's cgroup. Ours are two deep.
const SLICES_DEEP: usize = 8;

/// Makes the engine's poller return.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Where the manager is looked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// `DBUS_SESSION_BUS_ADDRESS`, if it is set.
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
    pub fn from_env(owner: Owner) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
        // After su, the variable is unset or another user's.
        let own = PathBuf::from(format!("/run/user/{uid}"));
        Self {
            address: std::env::var("DBUS_SESSION_BUS_ADDRESS").ok(),
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
    /// The process. systemd takes it by its number: who asks holds a pidfd, and checks with it afterwards that the
    /// process was alive all the time, so that the number was its own.
    pub pid: u32,
    /// Its limits.
    pub resources: Resources,
    /// Told once, from another thread, before the wake; not told if the manager is dropped first. After an error the
    /// scope may still come to be, with the process in it: close the gate, and it goes as the process does.
    pub done: Box<dyn FnOnce(Result<Scope, KernelError>) + Send>,
}

impl fmt::Debug for ScopeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeRequest").field("run", &self.run).field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// A scope that holds the process.
#[derive(Debug)]
pub struct Scope {
    /// The name of the unit.
    pub unit: String,
    /// Its cgroup, opened while the process was in it, and marked.
    pub cgroup: CgroupDir,
    /// Limits that are not in force, in sentences.
    pub notices: Vec<String>,
}

/// The user's systemd manager.
#[derive(Debug)]
pub struct Manager {
    requests: mpsc::UnboundedSender<Request>,
    place: Place,
    wake: WakeFn,
}

enum Request {
    Start(ScopeRequest),
    Collect(RunId),
}

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
        if options.uid == 0 {
            return Err(Absent::Root);
        }
        let address = bus::address(options.address.as_deref(), &options.runtime_dirs, options.uid)?;
        let nowhere = |e: KernelError| Absent::Elsewhere { cgroup: "of the user".to_owned(), why: e.to_string() };
        let mount = options.mount.map_or_else(mount::find, Ok).map_err(nowhere)?;
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
        let serve = async move {
            let (connection, place) = match bus::connect(&address, &mount, uid).await {
                Ok(found) => found,
                Err(absent) => return drop(found.send(Err(absent))),
            };
            let link = Link { address, mount, uid, owner, place: place.clone(), connection: Mutex::new(connection) };
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
        Ok(Self { requests, place, wake })
    }

    /// The major version of systemd; 0 if it is not known.
    pub fn version(&self) -> u32 {
        self.place.version
    }

    /// The directory of the manager's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.place.dir
    }

    /// Asks for a scope, in 5 s at most, or 7 if the bus has to be connected to anew. Returns at once.
    pub fn start_scope(&self, request: ScopeRequest) {
        if let Err(mpsc::error::SendError(Request::Start(request))) = self.requests.send(Request::Start(request)) {
            let unit = names::scope(request.run);
            (request.done)(Err(scope::failed(&unit, io::Error::other("the thread for it has ended"))));
            (self.wake.0)();
        }
    }

    /// Makes systemd give up the scope of a run, if no process is in it. Returns at once; the directory goes when it is
    /// done. For one that is empty and has not gone by itself; one that has is left in peace.
    pub fn collect(&self, run: RunId) {
        // Without the thread the scope stays until the next instance lists it.
        let _ = self.requests.send(Request::Collect(run));
    }

    /// The scopes of runs, of whichever instance, with their directories. Read from the cgroups alone.
    pub fn scopes(&self) -> Result<Vec<(RunId, PathBuf)>, KernelError> {
        scopes_below(&self.place.dir)
    }
}

/// The scopes of runs below a manager's cgroup: in `guardian.slice`, and in any other slice that somebody moved them to.
/// Nothing but slices is looked into, so that no run can show us scopes of its own making inside of its cgroup.
pub fn scopes_below(manager: &Path) -> Result<Vec<(RunId, PathBuf)>, KernelError> {
    let mut found = Vec::new();
    collect(&CgroupDir::open_unchecked(manager)?, SLICES_DEEP, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(dir: &CgroupDir, depth: usize, found: &mut Vec<(RunId, PathBuf)>) -> Result<(), KernelError> {
    for name in dir.children()? {
        let Ok(name) = name.to_str() else { continue };
        if let Some(run) = names::run_of(name) {
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

/// The thread's end: the connection, made anew when the bus was restarted.
struct Link {
    address: String,
    mount: Cgroup2Mount,
    uid: u32,
    owner: Owner,
    place: Place,
    connection: Mutex<Connection>,
}

impl Link {
    /// Serves until the manager is dropped. Starts go on side by side.
    async fn serve(self: Arc<Self>, mut incoming: mpsc::UnboundedReceiver<Request>, wake: Wake) {
        while let Some(request) = incoming.recv().await {
            let (link, wake) = (self.clone(), wake.clone());
            tokio::spawn(async move {
                match request {
                    Request::Start(request) => link.start(request, &wake).await,
                    Request::Collect(run) => link.collect(run).await,
                }
            });
        }
    }

    async fn start(&self, request: ScopeRequest, wake: &Wake) {
        let ScopeRequest { run, workflow, description, pid, resources, done } = request;
        let unit = names::scope(run);
        let connection = match self.connection().await {
            Ok(connection) => connection,
            Err(absent) => {
                done(Err(scope::failed(&unit, io::Error::other(absent.to_string()))));
                return wake();
            }
        };
        let wanted = Wanted { run, workflow, description, pid, resources };
        let around = Surroundings { version: self.place.version, mount: &self.mount, owner: &self.owner };
        let started = scope::start(&connection, &wanted, around).await;
        // Of the same name as another's, it is that other's.
        let is_left = matches!(&started, Err(e) if !matches!(e, KernelError::Busy { .. }));
        done(started);
        wake();
        if is_left {
            self.collect(run).await;
        }
    }

    async fn collect(&self, run: RunId) {
        if let Ok(connection) = self.connection().await {
            scope::collect(&connection, &names::scope(run), &self.mount).await;
        }
    }

    async fn connection(&self) -> Result<Connection, Absent> {
        let mut connection = self.connection.lock().await;
        if connection.is_closed() {
            *connection = bus::connect(&self.address, &self.mount, self.uid).await?.0;
        }
        Ok(connection.clone())
    }
}

#[cfg(test)]
mod tests;
