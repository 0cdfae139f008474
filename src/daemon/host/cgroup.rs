//! A run in a cgroup of its own: the backends `cgroupfs` and, once a scope has taken the run in, `systemd`.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::HostProcess;
use super::oom::{MEMORY_EVENTS, Slices, Tally};
use crate::failpoint;
use crate::kernel::cgroup::{CgroupDir, parse_io, parse_key, parse_number, parse_populated};
use crate::kernel::examine::{self, parse_full_minute, parse_pressure_total};
use crate::kernel::kill::{Target, is_spared};
use crate::kernel::mount::Cgroup2Mount;
use crate::kernel::poll::{Poller, Registration};
use crate::kernel::{Evidence, KernelError, clock, look, process};
use crate::launch::cgroupfs;
use crate::model::{CgroupIdentity, ContainerId, RunId, Sample, Usage};

/// How many counter files are kept open, and how many may be.
#[derive(Debug)]
pub(super) struct Kept {
    /// Counted by its clones: one for each descriptor kept for sampling.
    count: Arc<()>,
    most: usize,
}

impl Kept {
    pub(super) fn new(most: usize) -> Self {
        Self { count: Arc::new(()), most }
    }
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
    /// How often the OOM killer struck, where the kernel tells of it.
    oom: RefCell<Option<Arc<Tally>>>,
    /// Bytes that its processes had written before they were the run's.
    before: Cell<u64>,
}

/// Whether anything is in it, and whether it is frozen.
const EVENTS: &str = "cgroup.events";

/// A counter file, kept open from the first reading on.
#[derive(Debug)]
struct Counter {
    file: &'static str,
    kept: OnceCell<(OwnedFd, Arc<()>)>,
    /// There was no such file at the first reading: the controller is not enabled, and /proc serves for as long as the
    /// run lives.
    absent: Cell<bool>,
}

impl Counter {
    fn new(file: &'static str) -> Self {
        Self { file, kept: OnceCell::new(), absent: Cell::new(false) }
    }

    /// Reads the file. The descriptor is kept while the host has some to spare: a read through it costs 2 µs, opening
    /// the file each time 8.
    fn read(&self, dir: &CgroupDir, kept: &Kept) -> Result<String, KernelError> {
        if let Some((fd, _)) = self.kept.get() {
            return dir.read_kept(fd, self.file);
        }
        let fd = dir.open_file(self.file)?;
        let text = dir.read_kept(&fd, self.file)?;
        if Arc::strong_count(&kept.count) <= kept.most {
            let _ = self.kept.set((fd, kept.count.clone()));
        }
        Ok(text)
    }
}

impl HostCgroup {
    pub(super) fn new(dir: CgroupDir, mount: &Cgroup2Mount) -> Result<Self, KernelError> {
        Ok(Self {
            name: cgroupfs::name_of(&dir, mount)?,
            dir,
            cpu: Counter::new("cpu.stat"),
            memory: Counter::new("memory.current"),
            watch: RefCell::default(),
            oom: RefCell::default(),
            before: Cell::default(),
        })
    }

    /// Its name in `/proc/PID/cgroup`.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// Puts a process into it, and checks that it is there.
    pub(super) fn attach(&self, process: &HostProcess) -> Result<(), KernelError> {
        cgroupfs::attach(&self.dir, &self.name, process.id, &*process.pidfd)
    }

    pub(super) fn dir(&self) -> &CgroupDir {
        &self.dir
    }

    pub(super) fn identity(&self) -> ContainerId {
        ContainerId::Cgroup(CgroupIdentity { path: self.dir.path().to_owned(), inode: self.dir.inode() })
    }

    pub(super) fn watch(&self, run: RunId, poller: &Poller, slices: &Slices) -> Result<(), KernelError> {
        let events = Arc::new(self.dir.open_file("cgroup.events")?);
        self.watch.replace(Some(poller.watch_cgroup(run, events)?));
        if let Ok(events) = self.dir.open_file(MEMORY_EVENTS) {
            let watch = poller.watch_cgroup(run, Arc::new(events))?;
            self.oom.replace(Some(slices.tally(self.dir.path(), watch)));
        }
        Ok(())
    }

    pub(super) fn populated(&self) -> Result<bool, KernelError> {
        // Whoever made the cgroup may remove it as soon as it is empty, and what the OOM killer did with it.
        self.oom_kills();
        let populated = self.dir.understand(EVENTS, &self.events()?, parse_populated)?;
        Ok(populated && !(failpoint::without("guard.kill").is_some() && self.dir.pids()?.into_iter().all(is_spared)))
    }

    pub(super) fn terminate(&self) -> Result<u32, KernelError> {
        self.target()?.terminate()
    }

    pub(super) fn kill(&self, force_fallback: bool) -> Result<u32, KernelError> {
        self.target()?.kill(force_fallback)
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<(), KernelError> {
        self.dir.verify()?;
        self.dir.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    pub(super) fn evidence(&self, budget: Duration) -> Evidence {
        look::take(&self.dir, budget)
    }

    pub(super) fn sample(&self, kept: &Kept) -> Result<Usage, KernelError> {
        let cpu_usec = Some(self.cpu_usec(kept)?);
        Ok(Usage { cpu_usec, memory_bytes: self.memory_bytes(kept)?, ..Usage::default() })
    }

    pub(super) fn usage(&self, kept: &Kept) -> Result<Usage, KernelError> {
        let sampled = self.sample(kept)?;
        let memory_bytes = match sampled.memory_bytes {
            Some(bytes) => bytes,
            None => self.sum(process::resident_bytes)?,
        };
        let tasks = match if_there(self.dir.number("pids.current"))? {
            Some(tasks) => tasks,
            None => self.sum(|pid| Ok(process::stat(pid)?.threads.into()))?,
        };
        let io = self.io()?;
        let (read, written) = match if_there(self.dir.parsed("io.stat", parse_io))? {
            Some(bytes) => bytes,
            None => (io.read_bytes, io.write_bytes),
        };
        Ok(Usage {
            memory_bytes: Some(memory_bytes),
            tasks: Some(tasks),
            io_read_bytes: Some(read),
            io_write_bytes: Some(written),
            activity_bytes: Some(io.characters),
            ..sampled
        })
    }

    /// Looks at it and at each of its processes.
    pub(super) fn examine(
        &self,
        kept: &Kept,
        main: Option<u32>,
        known: Option<&Sample>,
    ) -> Result<Sample, KernelError> {
        let sampled = self.sample(kept)?;
        let mut sample = Sample {
            cpu_usec: sampled.cpu_usec,
            memory_bytes: sampled.memory_bytes,
            // It counts every thread, ended ones too. A kernel without pressure stall information leaves it to /proc.
            cpu_wait_usec: self.dir.read("cpu.pressure").ok().and_then(|text| parse_pressure_total(&text)),
            memory_pressure: self.memory_pressure(),
            frozen: Some(self.dir.understand(EVENTS, &self.events()?, |text| parse_key(text, "frozen"))? == 1),
            suspended_usec: Some(clock::suspended_usec()),
            ..Sample::default()
        };
        // Where no process has run for a microsecond, none has read, written, begun, ended or come to wait for anything else:
        // to look at /proc would cost ten times as much.
        match known.filter(|known| known.cpu_usec == sampled.cpu_usec) {
            Some(known) => {
                sample.io_bytes = known.io_bytes;
                sample.activity_bytes = known.activity_bytes;
                sample.processes = known.processes;
                sample.waits_for_input = known.waits_for_input;
            }
            None => {
                let io = if_there(self.dir.parsed("io.stat", parse_io))?;
                sample.io_bytes = io.map(|(read, written)| read.saturating_add(written));
                examine::processes(self.dir.pids()?.into_iter(), main, &mut sample);
            }
        }
        Ok(sample)
    }

    pub(super) fn memory_pressure(&self) -> Option<u32> {
        self.dir.read("memory.pressure").ok().and_then(|text| parse_full_minute(&text))
    }

    fn events(&self) -> Result<String, KernelError> {
        match &*self.watch.borrow() {
            Some(watch) => self.dir.read_kept(watch.fd(), EVENTS),
            None => self.dir.read(EVENTS),
        }
    }

    /// Any write counts, to a terminal, a pipe or a file: there is no cheap way to tell which it was.
    pub(super) fn has_written(&self) -> bool {
        self.sum(process::written_bytes).is_ok_and(|bytes| bytes > self.before.get())
    }

    /// What has been written so far is not the run's: systemd's own, by the process that was to become its wrapper.
    pub(super) fn forget_writes(&self) {
        self.before.set(self.sum(process::written_bytes).unwrap_or_default());
    }

    pub(super) fn oom_kills(&self) -> u64 {
        self.oom.borrow().as_ref().map_or(0, |tally| tally.kills())
    }

    pub(super) fn remove(&self) -> Result<(), KernelError> {
        self.dir.remove()
    }

    /// Of the processes that live, and of their children that they have reaped.
    fn io(&self) -> Result<process::Io, KernelError> {
        let each = self.dir.pids()?.into_iter().filter_map(|pid| process::io(pid).ok());
        Ok(each.fold(process::Io::default(), |sum, io| process::Io {
            read_bytes: sum.read_bytes.saturating_add(io.read_bytes),
            write_bytes: sum.write_bytes.saturating_add(io.write_bytes),
            characters: sum.characters.saturating_add(io.characters),
        }))
    }

    fn cpu_usec(&self, kept: &Kept) -> Result<u64, KernelError> {
        let text = self.cpu.read(&self.dir, kept)?;
        self.dir.understand(self.cpu.file, &text, |t| parse_key(t, "usage_usec"))
    }

    fn memory_bytes(&self, kept: &Kept) -> Result<Option<u64>, KernelError> {
        if self.memory.absent.get() {
            return Ok(None);
        }
        let text = if_there(self.memory.read(&self.dir, kept))?;
        self.memory.absent.set(text.is_none());
        text.map(|t| self.dir.understand(self.memory.file, &t, parse_number)).transpose()
    }

    fn target(&self) -> Result<Target<'_>, KernelError> {
        self.dir.verify()?;
        Ok(Target { dir: &self.dir, name: &self.name })
    }

    /// The sum of what /proc says of each process; processes that went away count nothing.
    fn sum(&self, of: impl Fn(u32) -> Result<u64, KernelError>) -> Result<u64, KernelError> {
        Ok(self.dir.pids()?.into_iter().filter_map(|pid| of(pid).ok()).sum())
    }
}

/// Looks at the processes of a cgroup, unless another came in its place.
pub(super) fn look(known: &CgroupIdentity, budget: Duration) -> Result<Evidence, KernelError> {
    let dir = CgroupDir::open(&known.path)?;
    match dir.inode() == known.inode {
        true => Ok(look::take(&dir, budget)),
        false => Err(KernelError::NotOurs { what: known.path.display().to_string(), why: "it is another one".into() }),
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
