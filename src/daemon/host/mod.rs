//! The real kernel: what the engine's driver sees and does on this host.
//!
//! Owns the wiring of the readers, hands and poller of `kernel` and the launch of `launch` into the trait [`Kernel`], for
//! each kind of container. Decides nothing but which backend is the strongest that can be had.

mod backend;
mod cgroup;
mod kernel;
mod looker;
mod notify;
mod oom;
mod seeker;
mod subtree;
mod unit;

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kernel::mount::{self, Cgroup2Mount};
use crate::kernel::poll::{Poller, Registration, Waker};
use crate::kernel::tree::Table;
use crate::kernel::{Evidence, Kernel as _, KernelError, clock, process};
use crate::launch::gate::Gate;
use crate::launch::mark::Owner;
use crate::launch::orphans;
use crate::launch::subtree::{ShimLimits, Shims};
use crate::launch::systemd::{IsOver, Manager};
use crate::model::{
    Considered, ContainerId, Containment, Error, ErrorKind, InstanceKind, Limits, ProcessId, Reserved, Resources, RunId,
};

use backend::Taken;
use cgroup::{HostCgroup, Kept};
use looker::Looker;
pub use notify::NotifyOptions;
use notify::Voices;
use oom::Slices;
use seeker::{Answers, Seeker};
use subtree::{Around, HostSubtree};
use unit::{HostUnit, Ready};

/// The part of the descriptors that may be kept open for sampling; the rest is for runs, clients and the store.
const KEPT_SHARE: usize = 8;
/// The part that no new run may take, and at most how many: without a descriptor nobody can connect, and a kill cannot
/// open `cgroup.kill`.
const RESERVE_SHARE: usize = 16;
const RESERVE_MOST: usize = 1024;

/// The descriptors that are open while a shim is started: its orders, pipes and files, and what the start itself needs.
const SHIM_START: usize = 20;

/// How the host is set up.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Whose runs are contained: the host's systemd manager makes units for a system instance, a user's for the others.
    pub kind: InstanceKind,
    /// The backend that is insisted on; none: the strongest that can be had.
    pub backend: Option<Containment>,
    /// The cgroup below which runs are made; chosen if none is configured.
    pub base: Option<PathBuf>,
    /// Where cgroup2 is mounted; found if none is given.
    pub mount: Option<Cgroup2Mount>,
    /// The name of the instance's directory, and a word of the mark on each run's.
    pub key: String,
    /// The directory of the shims' records.
    pub shims: PathBuf,
    /// Where runs can say how they are.
    pub notify: NotifyOptions,
    /// Kill one by one even where there is `cgroup.kill`: for the tests of what old kernels get.
    pub force_kill_fallback: bool,
    /// Mark runs' directories by extended attributes, where the kernel has them.
    pub use_user_xattrs: bool,
    /// Move the instance itself into a cgroup of its own. Only tests do not.
    pub move_instance: bool,
}

impl HostOptions {
    /// What an instance with this key and state directory uses when nothing is configured.
    pub fn new(key: impl Into<String>, state_dir: &Path) -> Self {
        Self {
            kind: InstanceKind::default(),
            backend: None,
            base: None,
            mount: None,
            key: key.into(),
            shims: state_dir.join("shims"),
            notify: NotifyOptions { dir: state_dir.join("notify"), stored: false },
            force_kill_fallback: false,
            use_user_xattrs: true,
            move_instance: true,
        }
    }
}

/// The host.
#[derive(Debug)]
pub struct Host {
    backend: Taken,
    considered: Vec<Considered>,
    /// Where cgroup2 is mounted, if it is.
    mount: Option<Cgroup2Mount>,
    owner: Owner,
    shims: Shims,
    /// Runs of whose units something is known by now.
    ready: Ready,
    poller: Poller,
    boot_id: String,
    me: ProcessId,
    force_kill_fallback: bool,
    nofile: Option<(u64, u64)>,
    kept: Kept,
    /// The limit of open descriptors.
    descriptors: usize,
    /// Containers made before their run was launched.
    reserved: HashMap<RunId, HostContainer>,
    /// The shims of runs.
    live_shims: HashMap<RunId, u32>,
    /// All processes, as they were when the samples began.
    table: Option<Table>,
    /// How many were seen below shims, in this round of samples.
    below_shims: usize,
    voices: Voices,
    /// What the OOM killer did in them.
    slices: Slices,
    /// What the threads beside the engine's have found.
    answers: Answers,
    seeker: Seeker,
    looker: Looker,
}

/// What holds a run together.
#[derive(Debug)]
pub enum HostContainer {
    /// A cgroup of ours.
    Cgroup(HostCgroup),
    /// A unit of systemd's.
    Unit(Box<HostUnit>),
    /// A shim.
    Subtree(HostSubtree),
}

/// What of a container holds processes.
enum Holder<'a> {
    Cgroup(&'a HostCgroup),
    Subtree(&'a HostSubtree),
}

impl HostContainer {
    /// Notes that we end what is in it.
    fn acted(&self) {
        if let HostContainer::Unit(unit) = self {
            unit.acted();
        }
    }

    /// None for a unit that is still to come.
    fn holder(&self) -> Option<Holder<'_>> {
        match self {
            HostContainer::Cgroup(cgroup) => Some(Holder::Cgroup(cgroup)),
            HostContainer::Unit(unit) => unit.cgroup().map(Holder::Cgroup),
            HostContainer::Subtree(subtree) => Some(Holder::Subtree(subtree)),
        }
    }
}

/// A process of a run.
#[derive(Debug)]
pub struct HostProcess {
    pidfd: Arc<OwnedFd>,
    id: ProcessId,
    gate: Option<Gate>,
    /// For a child of ours.
    child: Option<orphans::Child>,
    watch: RefCell<Option<Registration>>,
}

impl HostProcess {
    /// One that is not our child.
    fn started_elsewhere(pidfd: OwnedFd, id: ProcessId, gate: Option<Gate>) -> Self {
        Self { pidfd: Arc::new(pidfd), id, gate, child: None, watch: RefCell::default() }
    }
}

impl Host {
    /// Opens the host: takes the strongest backend that can be had, or the one that is insisted on. Gives the host, and
    /// what wakes its `wait` from other threads.
    pub fn new(options: HostOptions) -> Result<(Self, Waker), KernelError> {
        let boot_id = clock::boot_id()?;
        let owner = Owner::new(&options.key, &boot_id, options.use_user_xattrs);
        let (poller, waker) = Poller::new()?;
        let (backend, considered) = backend::choose(&options, &owner, &waker)?;
        let find = if backend.is_of_host(options.kind) { mount::find_whole } else { mount::find };
        let mount = options.mount.or_else(|| find().ok());
        let shims = Shims::new(options.shims, owner.clone(), process::pid_namespace()?);
        if let Some(run) = shims.run_around(std::process::id())? {
            // It would be ended with the run, and could never see it end.
            return Err(KernelError::InsideRun { run });
        }
        orphans::adopt().map_err(|source| KernelError::Io { op: "adopt", what: "orphans".to_owned(), source })?;
        let (nofile, limit) = raise_descriptor_limit();
        let answers = Answers::new(waker.clone());
        let host = Self {
            backend,
            considered,
            mount,
            owner,
            shims,
            ready: Ready::default(),
            poller,
            boot_id,
            me: process::stat(std::process::id())?.id(),
            force_kill_fallback: options.force_kill_fallback,
            nofile,
            kept: Kept::new(limit / KEPT_SHARE),
            descriptors: limit,
            reserved: HashMap::new(),
            live_shims: HashMap::new(),
            table: None,
            below_shims: 0,
            voices: Voices::new(options.notify),
            slices: Slices::default(),
            seeker: Seeker::new(answers.clone()),
            looker: Looker::new(answers.clone()),
            answers,
        };
        Ok((host, waker))
    }

    /// Takes over the notify sockets that an earlier instance left open, for the runs that are taken up.
    pub fn keep(&mut self, sockets: Vec<(RunId, OwnedFd)>) {
        self.voices.keep(sockets);
    }

    /// A process that a client gave by its pidfd.
    pub fn process(&self, pidfd: OwnedFd) -> Result<HostProcess, KernelError> {
        let id = process::identify(&pidfd)?;
        Ok(self.known_process(pidfd, id))
    }

    /// A process that was identified by this pidfd.
    pub fn known_process(&self, pidfd: OwnedFd, id: ProcessId) -> HostProcess {
        HostProcess::started_elsewhere(pidfd, id, None)
    }

    /// Whether there are descriptors for one more run: four or five, and more while a shim is started.
    pub fn room(&self) -> Result<(), Error> {
        let reserve = (self.descriptors / RESERVE_SHARE).min(RESERVE_MOST);
        let starting = if self.containment() == Containment::Subtree { SHIM_START } else { 0 };
        let most = self.descriptors.saturating_sub(reserve + starting);
        // The kernel gives the lowest number that is free, so with all below it taken it is the number of open ones.
        match rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 0) {
            Ok(fd) if usize::try_from(fd.as_raw_fd()).is_ok_and(|fd| fd < most) => Ok(()),
            _ => Err(Error::new(
                ErrorKind::LimitExceeded,
                format!(
                    "the instance may open {} files, and the runs that are live leave no room for another: wait, or raise \
                     the hard limit (ulimit -Hn) before an instance starts",
                    self.descriptors
                ),
            )),
        }
    }

    /// Makes the container of a run that is about to be launched, so that its client can start the command in it, and
    /// `create` finds it. Gives what the client needs for that: the cgroup to fork into, or the record for a shim. A scope
    /// can only be made around a process that is there.
    pub fn reserve(
        &mut self,
        run: RunId,
        uid: u32,
        limits: &Limits,
    ) -> Result<(Reserved, Option<OwnedFd>), KernelError> {
        kernel::fault("kernel.reserve")?;
        let (container, fd) = match &self.backend {
            Taken::Systemd(_) => (None, None),
            Taken::Cgroupfs(tree) => {
                let cgroup = HostCgroup::new(tree.create(run)?, tree.mount())?;
                let fd = cgroup.dir().as_fd().try_clone_to_owned();
                (Some(HostContainer::Cgroup(cgroup)), Some(fd))
            }
            Taken::Subtree => {
                let record = self.shims.record(run)?;
                let fd = record.as_fd().try_clone_to_owned();
                (Some(HostContainer::Subtree(HostSubtree::new(run, record))), Some(fd))
            }
        };
        let what = || format!("the container of {run}");
        let fd = fd.transpose().map_err(|source| KernelError::Io { op: "keep", what: what(), source })?;
        container.iter().for_each(|container| self.seeker.add(run, container));
        self.reserved.extend(container.map(|container| (run, container)));
        self.listen(run, uid);
        let ShimLimits { isolated, data_bytes, tasks } = ShimLimits::of(limits);
        let reserved = Reserved {
            run,
            containment: self.containment(),
            limited: limits.isolate_pids || limits.resources != Resources::default(),
            isolate_pids: isolated,
            data_max_bytes: data_bytes,
            tasks_max: tasks,
            notify: self.notify(run, limits),
            command: None,
        };
        Ok((reserved, fd))
    }

    /// Checks that a process which is to be attached was started by this client: it is its child, or its shim's.
    pub fn is_started_by(&self, run: RunId, main: ProcessId, client: ProcessId) -> Result<(), KernelError> {
        let not_ours = |why: String| KernelError::NotOurs { what: format!("process {}", main.pid), why };
        match self.reserved.get(&run) {
            Some(HostContainer::Subtree(subtree)) => subtree.check(main, client.pid).map(drop),
            None if self.containment() == Containment::Subtree => Err(not_ours(
                "this instance contains runs by a shim, so call ReserveRun first and start the command below one"
                    .to_owned(),
            )),
            Some(HostContainer::Cgroup(_) | HostContainer::Unit(_)) | None => {
                match process::stat(main.pid)?.ppid == client.pid {
                    true => Ok(()),
                    false => Err(not_ours(format!(
                        "it is not a child of the caller ({}): a foreground run is attached by its parent",
                        client.pid
                    ))),
                }
            }
        }
    }

    /// Removes what is the instance's own, if no run is left.
    pub fn leave(&self) {
        if let Taken::Cgroupfs(tree) = &self.backend {
            tree.leave();
        }
    }

    /// The backend.
    pub fn containment(&self) -> Containment {
        self.backend.containment()
    }

    /// The backends that were considered, in order, and what became of each.
    pub fn considered(&self) -> &[Considered] {
        &self.considered
    }

    /// What is missing on this host, and what follows, in sentences.
    pub fn notes(&self) -> Vec<String> {
        let Taken::Cgroupfs(tree) = &self.backend else { return Vec::new() };
        let missing = tree.missing_controllers();
        let controllers = (!missing.is_empty()).then(|| {
            format!(
                "the controllers {} are not available in {}: limits that need them cannot be enforced, and usage is read \
                 from /proc; on a host that gives them to cgroup v1, boot with systemd.unified_cgroup_hierarchy=1",
                missing.join(", "),
                tree.path().display()
            )
        });
        controllers.into_iter().collect()
    }

    /// The cgroup below which the runs' are; none where a shim contains each.
    pub fn control_group(&self) -> Option<PathBuf> {
        match &self.backend {
            Taken::Systemd(manager) => Some(manager.cgroup()),
            Taken::Cgroupfs(tree) => Some(tree.path().to_owned()),
            Taken::Subtree => None,
        }
    }

    fn mount(&self) -> Result<&Cgroup2Mount, KernelError> {
        self.mount.as_ref().ok_or_else(|| KernelError::Gone { what: "the mount of cgroup2".into() })
    }

    /// The systemd manager, where it contains new runs.
    fn manager(&self) -> Option<&Manager> {
        self.backend.manager().ok()
    }

    /// Removes the notify sockets of runs that are over, and has systemd give up the services that it keeps of them: after those
    /// that are live were taken up.
    pub fn tidy(&mut self, is_over: IsOver) {
        self.voices.tidy();
        if let Some(manager) = self.manager() {
            manager.collect_ended(is_over);
        }
    }

    /// Whether another start of the instance is needed before runs can be contained again.
    pub fn is_stale(&self) -> bool {
        self.manager().is_some_and(Manager::is_stale)
    }

    /// What is around a run below a shim.
    fn around<T>(&self, then: impl FnOnce(&Around<'_>) -> T) -> T {
        let shims: Vec<u32> = self.live_shims.values().copied().collect();
        then(&Around { me: self.me, shims: &shims })
    }
}

/// What was asked for and has no effect where a cgroup contains the run.
fn unneeded(limits: &Limits) -> Vec<String> {
    let notice = || "isolate_pids has no effect: a cgroup contains the run".to_owned();
    limits.isolate_pids.then(notice).into_iter().collect()
}

/// Looks at the processes of a container that is known by its identity alone, from any thread. `Gone` or `NotOurs` if it
/// is not there any more.
pub fn look(container: &ContainerId, budget: Duration) -> Result<Evidence, KernelError> {
    match container {
        ContainerId::Cgroup(cgroup) => cgroup::look(cgroup, budget),
        ContainerId::Subtree { shim, record, .. } => subtree::look(*shim, record, budget),
    }
}

/// Raises the soft limit of open descriptors to the hard one. Gives the limits from before, which runs are started
/// with, and the limit in force.
fn raise_descriptor_limit() -> (Option<(u64, u64)>, usize) {
    let before = getrlimit(Resource::Nofile);
    let (Some(soft), Some(hard)) = (before.current, before.maximum) else {
        return (None, usize::MAX);
    };
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) });
    let now = if raised.is_ok() { hard } else { soft };
    (Some((soft, hard)), usize::try_from(now).unwrap_or(usize::MAX))
}
