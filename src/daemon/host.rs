//! The real kernel: what the engine's driver sees and does on this host.
//!
//! Owns the wiring of the readers, hands and poller of `kernel` and the launch of `launch` into the trait [`Kernel`].
//! Decides nothing.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstat, stat};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kernel::cgroup::{CgroupDir, parse_key, parse_number, parse_populated};
use crate::kernel::kill::Target;
use crate::kernel::mount::Cgroup2Mount;
use crate::kernel::poll::{Poller, Registration, Waker};
use crate::kernel::{Created, Evidence, Exec, Kernel, KernelError, Notice, Role, clock, evidence, process};
use crate::launch::cgroupfs::{self, Subtree};
use crate::launch::gate::{self, Gate};
use crate::launch::orphans;
use crate::model::{CgroupIdentity, Error, ErrorKind, ExitStatus, Now, ProcessId, Resources, RunId, Usage};

/// How long opening a gate waits for execve. A file on a network that hangs must not hold up the engine.
const EXEC_TIMEOUT: Duration = Duration::from_secs(1);

/// The part of the descriptors that may be kept open for sampling; the rest is for runs, clients and the store.
const KEPT_SHARE: usize = 8;
/// The part that no new run may take, and at most how many: without a descriptor nobody can connect, and a kill cannot
/// open `cgroup.kill`.
const RESERVE_SHARE: usize = 16;
const RESERVE_MOST: usize = 1024;

/// How the host is set up.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The cgroup below which runs are made; chosen if none is configured.
    pub base: Option<PathBuf>,
    /// Where cgroup2 is mounted; found if none is given.
    pub mount: Option<Cgroup2Mount>,
    /// The name of the instance's directory, and a word of the mark on each run's.
    pub key: String,
    /// Kill one by one even where there is `cgroup.kill`: for the tests of what old kernels get.
    pub force_kill_fallback: bool,
    /// Mark runs' directories by extended attributes, where the kernel has them.
    pub use_user_xattrs: bool,
    /// Move the instance itself into a cgroup of its own. Only tests do not.
    pub move_instance: bool,
}

impl HostOptions {
    /// What an instance with this key uses when nothing is configured.
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            base: None,
            mount: None,
            key: key.into(),
            force_kill_fallback: false,
            use_user_xattrs: true,
            move_instance: true,
        }
    }
}

/// The host.
#[derive(Debug)]
pub struct Host {
    subtree: Subtree,
    poller: Poller,
    boot_id: String,
    force_kill_fallback: bool,
    nofile: Option<(u64, u64)>,
    /// Counted by its clones: one for each descriptor kept for sampling.
    kept: Arc<()>,
    kept_most: usize,
    /// The limit of open descriptors.
    descriptors: usize,
    /// Cgroups made before their run was launched.
    reserved: HashMap<RunId, CgroupDir>,
}

/// A run's cgroup.
#[derive(Debug)]
pub struct HostCgroup {
    dir: CgroupDir,
    /// Its name in `/proc/PID/cgroup`.
    name: PathBuf,
    cpu: Counter,
    memory: Counter,
    watch: RefCell<Option<Registration>>,
}

/// A counter file, kept open from the first reading on.
#[derive(Debug)]
struct Counter {
    file: &'static str,
    kept: OnceCell<(OwnedFd, Arc<()>)>,
    /// There was no such file at the first reading: the controller is not enabled, and /proc serves for as long as the
    /// run lives.
    absent: Cell<bool>,
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

impl Counter {
    fn new(file: &'static str) -> Self {
        Self { file, kept: OnceCell::new(), absent: Cell::new(false) }
    }

    /// Reads the file. The descriptor is kept while the host has some to spare: a read through it costs 2 µs, opening
    /// the file each time 8.
    fn read(&self, dir: &CgroupDir, host: &Host) -> Result<String, KernelError> {
        if let Some((fd, _)) = self.kept.get() {
            return dir.read_kept(fd, self.file);
        }
        let fd = dir.open_file(self.file)?;
        let text = dir.read_kept(&fd, self.file)?;
        if Arc::strong_count(&host.kept) <= host.kept_most {
            let _ = self.kept.set((fd, host.kept.clone()));
        }
        Ok(text)
    }
}

impl HostCgroup {
    fn target(&self) -> Result<Target<'_>, KernelError> {
        self.dir.verify()?;
        Ok(Target { dir: &self.dir, name: &self.name })
    }

    /// The sum of what /proc says of each process; processes that went away count nothing.
    fn sum(&self, of: impl Fn(u32) -> Result<u64, KernelError>) -> Result<u64, KernelError> {
        Ok(self.dir.pids()?.into_iter().filter_map(|pid| of(pid).ok()).sum())
    }
}

/// A counter that this cgroup does not have is none, not an error.
fn if_there<T>(read: Result<T, KernelError>) -> Result<Option<T>, KernelError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_gone() => Ok(None),
        Err(e) => Err(e),
    }
}

impl Host {
    /// Opens the host: makes the instance's subtree and moves the instance into it, if so asked. Gives the host, and
    /// what wakes its `wait` from other threads.
    pub fn new(options: HostOptions) -> Result<(Self, Waker), KernelError> {
        let boot_id = clock::boot_id()?;
        let subtree = Subtree::open(
            &cgroupfs::Options {
                base: options.base,
                mount: options.mount,
                key: options.key,
                use_user_xattrs: options.use_user_xattrs,
                move_instance: options.move_instance,
            },
            &boot_id,
        )?;
        orphans::adopt().map_err(|source| KernelError::Io { op: "adopt", what: "orphans".to_owned(), source })?;
        let (poller, waker) = Poller::new()?;
        let (nofile, limit) = raise_descriptor_limit();
        let host = Self {
            subtree,
            poller,
            boot_id,
            force_kill_fallback: options.force_kill_fallback,
            nofile,
            kept: Arc::new(()),
            kept_most: limit / KEPT_SHARE,
            descriptors: limit,
            reserved: HashMap::new(),
        };
        Ok((host, waker))
    }

    /// A process that a client gave by its pidfd.
    pub fn process(&self, pidfd: OwnedFd) -> Result<HostProcess, KernelError> {
        let id = process::identify(&pidfd)?;
        Ok(HostProcess { pidfd: Arc::new(pidfd), id, gate: None, child: None, watch: RefCell::default() })
    }

    /// Whether there are descriptors for one more run: three or four, of which the last must not be taken.
    pub fn room(&self) -> Result<(), Error> {
        let most = self.descriptors - (self.descriptors / RESERVE_SHARE).min(RESERVE_MOST);
        // The kernel gives the lowest number that is free, so with all below it taken it is the number of open ones.
        match rustix::io::fcntl_dupfd_cloexec(self.subtree.fd(), 0) {
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

    /// Makes the cgroup of a run that is about to be launched, so that its client can fork into it. `create` finds it.
    pub fn reserve(&mut self, run: RunId) -> Result<OwnedFd, KernelError> {
        let Created { cgroup, .. } = self.subtree.create(run, &Resources::default())?;
        let fd = cgroup.as_fd().try_clone_to_owned().map_err(|source| KernelError::Io {
            op: "keep",
            what: cgroup.path().display().to_string(),
            source,
        })?;
        self.reserved.insert(run, cgroup);
        Ok(fd)
    }

    /// Removes the instance's own cgroups, if no run is left in them.
    pub fn leave(&self) {
        self.subtree.leave();
    }

    /// What is missing on this host, and what follows, in sentences.
    pub fn notes(&self) -> Vec<String> {
        let missing = self.subtree.missing_controllers();
        let controllers = (!missing.is_empty()).then(|| {
            format!(
                "the controllers {} are not available in {}: limits that need them cannot be enforced, and usage is read \
                 from /proc; on a host that gives them to cgroup v1, boot with systemd.unified_cgroup_hierarchy=1",
                missing.join(", "),
                self.subtree.path().display()
            )
        });
        controllers.into_iter().collect()
    }

    /// The directory that holds the runs' cgroups.
    pub fn subtree(&self) -> &Path {
        self.subtree.path()
    }

    fn cgroup(&self, dir: CgroupDir) -> Result<HostCgroup, KernelError> {
        Ok(HostCgroup {
            name: self.subtree.name_of(&dir)?,
            dir,
            cpu: Counter::new("cpu.stat"),
            memory: Counter::new("memory.current"),
            watch: RefCell::default(),
        })
    }

    fn launch(&self, exec: &Exec, cgroup: Option<BorrowedFd<'_>>) -> Result<HostProcess, KernelError> {
        let start = || gate::detached(exec, self.nofile, cgroup);
        let (gated, child) = orphans::Child::start(start, |gated| gated.id().pid)?;
        let (pidfd, id, gate) = gated.into_parts();
        Ok(HostProcess { pidfd: Arc::new(pidfd), id, gate, child: Some(child), watch: RefCell::default() })
    }

    fn cpu_usec(&self, cgroup: &HostCgroup) -> Result<u64, KernelError> {
        let text = cgroup.cpu.read(&cgroup.dir, self)?;
        cgroup.dir.understand(cgroup.cpu.file, &text, |t| parse_key(t, "usage_usec"))
    }

    fn memory_bytes(&self, cgroup: &HostCgroup) -> Result<Option<u64>, KernelError> {
        if cgroup.memory.absent.get() {
            return Ok(None);
        }
        let text = if_there(cgroup.memory.read(&cgroup.dir, self))?;
        cgroup.memory.absent.set(text.is_none());
        text.map(|t| cgroup.dir.understand(cgroup.memory.file, &t, parse_number)).transpose()
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

impl Kernel for Host {
    type Cgroup = HostCgroup;
    type Process = HostProcess;

    fn now(&self) -> Now {
        clock::now()
    }

    fn boot_id(&self) -> String {
        self.boot_id.clone()
    }

    fn create(&mut self, run: RunId, resources: &Resources) -> Result<Created<HostCgroup>, KernelError> {
        let Created { cgroup, notices } = match self.reserved.remove(&run) {
            Some(cgroup) => self.subtree.limit(cgroup, resources),
            None => self.subtree.create(run, resources)?,
        };
        Ok(Created { cgroup: self.cgroup(cgroup)?, notices })
    }

    fn reopen(&mut self, run: RunId, known: Option<&CgroupIdentity>) -> Result<HostCgroup, KernelError> {
        self.cgroup(self.subtree.reopen(run, known)?)
    }

    fn list(&mut self) -> Result<Vec<RunId>, KernelError> {
        self.subtree.list()
    }

    fn identity(&self, cgroup: &HostCgroup) -> CgroupIdentity {
        cgroup.dir.identity()
    }

    fn spawn(&mut self, exec: &Exec, cgroup: &HostCgroup) -> Result<HostProcess, KernelError> {
        cgroup.dir.verify()?;
        self.launch(exec, Some(cgroup.dir.as_fd()))
    }

    fn open_process(&mut self, id: ProcessId) -> Result<HostProcess, KernelError> {
        let pidfd = Arc::new(process::open_known(id)?);
        Ok(HostProcess { pidfd, id, gate: None, child: None, watch: RefCell::default() })
    }

    fn process_id(&self, process: &HostProcess) -> ProcessId {
        process.id
    }

    fn open_gate(&mut self, process: &mut HostProcess) -> Result<(), KernelError> {
        process.gate.take().map_or(Ok(()), |gate| gate.open(Some(EXEC_TIMEOUT))).map_err(KernelError::from)
    }

    fn close_gate(&mut self, process: &mut HostProcess) {
        process.gate = None;
    }

    fn attach(&mut self, cgroup: &HostCgroup, process: &HostProcess) -> Result<(), KernelError> {
        self.subtree.attach(&cgroup.dir, process.id, &*process.pidfd)
    }

    fn exit_status(&mut self, process: &HostProcess) -> Option<ExitStatus> {
        match &process.child {
            Some(child) => child.status(),
            None => process::foreign_exit_status(&*process.pidfd),
        }
    }

    fn reap(&mut self) -> bool {
        orphans::reap_all()
    }

    fn watch_process(&mut self, run: RunId, role: Role, process: &HostProcess) -> Result<(), KernelError> {
        // The former watch first: an epoll takes a descriptor once.
        drop(process.watch.take());
        let watch = self.poller.watch_process(run, role, process.pidfd.clone())?;
        process.watch.replace(Some(watch));
        Ok(())
    }

    fn watch_cgroup(&mut self, run: RunId, cgroup: &HostCgroup) -> Result<(), KernelError> {
        let events = Arc::new(cgroup.dir.open_file("cgroup.events")?);
        cgroup.watch.replace(Some(self.poller.watch_cgroup(run, events)?));
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Notice>, KernelError> {
        self.poller.wait(timeout)
    }

    fn populated(&mut self, cgroup: &HostCgroup) -> Result<bool, KernelError> {
        const FILE: &str = "cgroup.events";
        let text = match &*cgroup.watch.borrow() {
            Some(watch) => cgroup.dir.read_kept(watch.fd(), FILE)?,
            None => cgroup.dir.read(FILE)?,
        };
        cgroup.dir.understand(FILE, &text, parse_populated)
    }

    fn terminate(&mut self, cgroup: &HostCgroup) -> Result<u32, KernelError> {
        cgroup.target()?.terminate()
    }

    fn kill(&mut self, cgroup: &HostCgroup) -> Result<u32, KernelError> {
        cgroup.target()?.kill(self.force_kill_fallback)
    }

    fn freeze(&mut self, cgroup: &HostCgroup, frozen: bool) -> Result<(), KernelError> {
        cgroup.dir.verify()?;
        cgroup.dir.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    fn evidence(&mut self, cgroup: &HostCgroup, budget: Duration) -> Evidence {
        evidence::take(&cgroup.dir, budget)
    }

    fn sample(&mut self, cgroup: &HostCgroup) -> Result<Usage, KernelError> {
        let cpu_usec = Some(self.cpu_usec(cgroup)?);
        Ok(Usage { cpu_usec, memory_bytes: self.memory_bytes(cgroup)?, tasks: None })
    }

    fn usage(&mut self, cgroup: &HostCgroup) -> Result<Usage, KernelError> {
        let cpu_usec = Some(self.cpu_usec(cgroup)?);
        let memory_bytes = match self.memory_bytes(cgroup)? {
            Some(bytes) => bytes,
            None => cgroup.sum(process::resident_bytes)?,
        };
        let tasks = match if_there(cgroup.dir.number("pids.current"))? {
            Some(tasks) => tasks,
            None => cgroup.dir.pids()?.len() as u64,
        };
        Ok(Usage { cpu_usec, memory_bytes: Some(memory_bytes), tasks: Some(tasks) })
    }

    fn has_output(&mut self, cgroup: &HostCgroup, log: Option<&Path>) -> bool {
        match log {
            Some(log) => stat(log).is_ok_and(|s| s.st_size > 0),
            // Any write counts, to a terminal, a pipe or a file: there is no cheap way to tell which it was.
            None => cgroup.sum(process::written_bytes).is_ok_and(|bytes| bytes > 0),
        }
    }

    fn oom_kills(&mut self, cgroup: &HostCgroup) -> u64 {
        cgroup.dir.parsed("memory.events", |t| parse_key(t, "oom_kill")).unwrap_or(0)
    }

    fn cap_log(&mut self, log: &Path, max_bytes: u64) -> Result<(), KernelError> {
        let failed = |op| move |e: Errno| KernelError::from_errno(op, log.display().to_string(), e);
        let file = rustix::fs::open(log, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("open"))?;
        let now = fstat(&file).map_err(failed("look at"))?;
        // st_blocks counts units of 512 bytes, whatever the file system's own block is.
        let allocated = u64::try_from(now.st_blocks).unwrap_or(0).saturating_mul(512);
        let oldest = u64::try_from(now.st_size).unwrap_or(0).saturating_sub(max_bytes);
        if allocated <= max_bytes || oldest == 0 {
            return Ok(());
        }
        // The size stays as it was: the run appends at the end, and readers know by offset what they have read.
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, oldest).map_err(failed("cap"))
    }

    fn unreserve(&mut self, run: RunId) -> Option<HostCgroup> {
        self.reserved.remove(&run).and_then(|dir| self.cgroup(dir).ok())
    }

    fn remove(&mut self, cgroup: &HostCgroup) -> Result<(), KernelError> {
        cgroup.dir.remove()
    }
}
