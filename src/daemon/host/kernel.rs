//! The host as the driver sees it: each call goes to what holds the run.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstat, stat};
use rustix::io::Errno;
use rustix::system::sysinfo;

use super::backend::Taken;
use super::cgroup::HostCgroup;
use super::notify::STORED_AFTER;
use super::subtree::HostSubtree;
use super::unit::HostUnit;
use super::{Holder, Host, HostContainer, HostProcess};
use crate::failpoint;
use crate::kernel::cgroup::CgroupDir;
use crate::kernel::tree::Table;
use crate::kernel::{
    Attached, Created, Evidence, Exec, Finding, Heard, Kernel, KernelError, Notice, Role, clock, examine, process,
};
use crate::launch::subtree::{self as shims, ShimLimits};
use crate::launch::{gate, orphans, systemd};
use crate::model::{
    ContainerId, EscapeeAct, ExitStatus, Now, ProcessId, RunId, RunSpec, Sample, Sought, Usage, Worktree,
};

/// How long opening a gate waits for execve. A file on a network that hangs must not hold up the engine.
const EXEC_TIMEOUT: Duration = Duration::from_secs(1);

impl Kernel for Host {
    type Container = HostContainer;
    type Process = HostProcess;

    fn now(&self) -> Now {
        clock::now()
    }

    fn boot_id(&self) -> String {
        self.boot_id.clone()
    }

    fn create(&mut self, spec: &RunSpec) -> Result<Created<HostContainer>, KernelError> {
        fault("kernel.create")?;
        let reserved = self.reserved.remove(&spec.id);
        let (container, mut notices) = match (&self.backend, reserved) {
            (Taken::Systemd(_), _) => {
                (HostContainer::Unit(Box::new(HostUnit::wanted(spec))), super::unneeded(&spec.limits))
            }
            (Taken::Cgroupfs(tree), reserved) => {
                let cgroup = match reserved {
                    Some(HostContainer::Cgroup(cgroup)) => cgroup,
                    _ => HostCgroup::new(tree.create(spec.id)?, tree.mount())?,
                };
                let mut notices = tree.limit(cgroup.dir(), &spec.limits.resources);
                notices.extend(super::unneeded(&spec.limits));
                (HostContainer::Cgroup(cgroup), notices)
            }
            (Taken::Subtree, reserved) => {
                let mut subtree = match reserved {
                    Some(HostContainer::Subtree(subtree)) => subtree,
                    _ => HostSubtree::new(spec.id, self.shims.record(spec.id)?),
                };
                subtree.hold_to(ShimLimits::of(&spec.limits), spec.client.unwrap_or(self.me));
                (HostContainer::Subtree(subtree), shims::notices(&spec.limits))
            }
        };
        match &container {
            HostContainer::Unit(unit) => self.seeker.expect_unit(spec.id, unit.kind()),
            container => self.seeker.add(spec.id, container),
        }
        notices.extend(self.voices.notice(spec.id));
        Ok(Created { container, notices })
    }

    fn reopen(&mut self, run: RunId, known: Option<&ContainerId>) -> Result<HostContainer, KernelError> {
        fault("kernel.reopen")?;
        match known {
            Some(ContainerId::Cgroup(known)) => {
                let dir = match CgroupDir::open(&known.path) {
                    // systemd removes the cgroup of a service that has ended, and keeps how it ended.
                    Err(e) if e.is_gone() && self.manager().is_some() => {
                        let unit = known.path.file_name().and_then(|name| systemd::run_of(name.to_str()?));
                        if unit != Some((run, systemd::UnitKind::Service)) {
                            return Err(e);
                        }
                        let unit = HostUnit::ended(run, ContainerId::Cgroup(known.clone()));
                        return Ok(HostContainer::Unit(Box::new(unit)));
                    }
                    dir => dir?,
                };
                self.owner.prove(run, &dir, Some(known.inode))?;
                self.holding(run, dir)
            }
            Some(ContainerId::Subtree { shim, foster_parent, .. }) => self.reopen_subtree(run, *shim, *foster_parent),
            None => match self.find_cgroup(run)? {
                Some(dir) => self.holding(run, dir),
                None => self.reopen_subtree(run, None, None),
            },
        }
    }

    fn list(&mut self) -> Result<Vec<RunId>, KernelError> {
        fault("kernel.list")?;
        let mut runs = self.shims.list()?;
        match &self.backend {
            Taken::Systemd(manager) => runs.extend(manager.units()?.into_iter().map(|(run, _)| run)),
            Taken::Cgroupfs(tree) => runs.extend(tree.list()?),
            Taken::Subtree => {}
        }
        Ok(runs)
    }

    fn identity(&self, container: &HostContainer) -> Option<ContainerId> {
        if let HostContainer::Unit(unit) = container
            && let Some(was) = unit.was()
        {
            return Some(was.clone());
        }
        container.holder().map(|holder| match holder {
            Holder::Cgroup(cgroup) => cgroup.identity(),
            Holder::Subtree(subtree) => subtree.identity(),
        })
    }

    fn spawn(&mut self, exec: &Exec, container: &mut HostContainer) -> Result<Option<HostProcess>, KernelError> {
        fault("kernel.spawn")?;
        let (gated, child) = match container {
            HostContainer::Cgroup(cgroup) => {
                cgroup.dir().verify()?;
                let start = || gate::detached(exec, self.nofile, Some(cgroup.dir().as_fd()));
                let (gated, child) = orphans::Child::start(start, |gated| gated.id().pid)?;
                (gated, Some(child))
            }
            HostContainer::Unit(unit) => {
                unit.start_service(self.backend.manager()?, exec, &self.ready)?;
                return Ok(None);
            }
            HostContainer::Subtree(subtree) => {
                let started = subtree.start(&self.shims, exec, self.nofile)?;
                (started.gated, None)
            }
        };
        let (pidfd, id, gate) = gated.into_parts();
        Ok(Some(HostProcess { child, ..HostProcess::started_elsewhere(pidfd, id, gate) }))
    }

    fn open_process(&mut self, id: ProcessId) -> Result<HostProcess, KernelError> {
        Ok(HostProcess::started_elsewhere(process::open_known(id)?, id, None))
    }

    fn process_id(&self, process: &HostProcess) -> ProcessId {
        process.id
    }

    fn open_gate(&mut self, process: &mut HostProcess) -> Result<(), KernelError> {
        fault("kernel.open_gate")?;
        process.gate.take().map_or(Ok(()), |gate| gate.open(Some(EXEC_TIMEOUT))).map_err(KernelError::from)
    }

    fn close_gate(&mut self, process: &mut HostProcess) {
        process.gate = None;
    }

    fn attach(&mut self, container: &mut HostContainer, process: &mut HostProcess) -> Result<Attached, KernelError> {
        fault("kernel.attach")?;
        match container {
            HostContainer::Cgroup(cgroup) => cgroup.attach(process)?,
            HostContainer::Unit(unit) => {
                unit.start_scope(self.backend.manager()?, process, &self.ready)?;
                return Ok(Attached::Later);
            }
            HostContainer::Subtree(subtree) => {
                subtree.attach(process.id)?;
                self.live_shims.extend(subtree.shim().map(|shim| (subtree.run(), shim.pid)));
            }
        }
        Ok(Attached::Now)
    }

    fn complete(
        &mut self,
        container: &mut HostContainer,
        process: &mut Option<HostProcess>,
    ) -> Result<Vec<String>, KernelError> {
        match container {
            HostContainer::Unit(unit) => unit.complete(process, self.mount()?),
            HostContainer::Cgroup(_) | HostContainer::Subtree(_) => Ok(Vec::new()),
        }
    }

    fn exit_status(&mut self, container: Option<&HostContainer>, process: Option<&HostProcess>) -> Option<ExitStatus> {
        let parent_says = match container {
            Some(HostContainer::Subtree(subtree)) => subtree.exit_status(),
            Some(HostContainer::Unit(unit)) => unit.exit_status(self.manager(), &self.ready),
            Some(HostContainer::Cgroup(_)) | None => None,
        };
        parent_says.or_else(|| match process {
            Some(HostProcess { child: Some(child), .. }) => child.status(),
            Some(process) => process::foreign_exit_status(&*process.pidfd),
            None => None,
        })
    }

    fn reap(&mut self) -> bool {
        orphans::reap_all()
    }

    fn watch_process(&mut self, run: RunId, role: Role, process: &HostProcess) -> Result<(), KernelError> {
        fault("kernel.watch_process")?;
        // The former watch first: an epoll takes a descriptor once.
        drop(process.watch.take());
        let watch = self.poller.watch_process(run, role, process.pidfd.clone())?;
        process.watch.replace(Some(watch));
        Ok(())
    }

    fn watch_container(&mut self, run: RunId, container: &HostContainer) -> Result<(), KernelError> {
        fault("kernel.watch_container")?;
        self.seeker.add(run, container);
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.watch(run, &self.poller, &self.slices),
            Some(Holder::Subtree(subtree)) => subtree.watch(run, &self.poller),
            None => Ok(()),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Notice>, KernelError> {
        let mut notices = self.poller.wait(timeout)?;
        let ready = std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner));
        notices.extend(ready.into_iter().map(Notice::Told));
        notices.extend(self.answers.are_there().then_some(Notice::Found));
        Ok(notices)
    }

    fn populated(&mut self, container: &HostContainer) -> Result<bool, KernelError> {
        fault("kernel.populated")?;
        match container {
            HostContainer::Cgroup(cgroup) => cgroup.populated(),
            HostContainer::Unit(unit) => unit.populated(),
            HostContainer::Subtree(subtree) => self.around(|around| subtree.populated(around)),
        }
    }

    fn was_stopped(&mut self, container: &HostContainer) -> Option<bool> {
        match (container, self.manager()) {
            (HostContainer::Unit(unit), Some(manager)) => unit.was_stopped(manager, &self.ready),
            _ => Some(false),
        }
    }

    fn is_intact(&mut self, container: &HostContainer) -> bool {
        match container.holder() {
            Some(Holder::Subtree(subtree)) => subtree.is_intact(),
            Some(Holder::Cgroup(_)) | None => true,
        }
    }

    fn terminate(&mut self, container: &HostContainer) -> Result<u32, KernelError> {
        fault("kernel.terminate")?;
        container.acted();
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.terminate(),
            Some(Holder::Subtree(subtree)) => self.around(|around| subtree.terminate(around)),
            None => Ok(0),
        }
    }

    fn kill(&mut self, container: &HostContainer) -> Result<u32, KernelError> {
        fault("kernel.kill")?;
        container.acted();
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.kill(self.force_kill_fallback),
            Some(Holder::Subtree(subtree)) => self.around(|around| subtree.kill(around)),
            None => Ok(0),
        }
    }

    fn freeze(&mut self, container: &HostContainer, frozen: bool) -> Result<(), KernelError> {
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.freeze(frozen),
            Some(Holder::Subtree(subtree)) => self.around(|around| subtree.freeze(around, frozen)),
            None => Err(KernelError::Gone { what: "the scope".into() }),
        }
    }

    fn evidence(&mut self, container: &HostContainer, budget: Duration) -> Evidence {
        if fault("kernel.evidence").is_err() {
            return Evidence::default();
        }
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.evidence(budget),
            Some(Holder::Subtree(subtree)) => self.around(|around| subtree.evidence(around, budget)),
            None => Evidence::default(),
        }
    }

    fn begin_samples(&mut self) {
        // One reading of /proc serves all runs that have no cgroup, and costs 9 µs for each process of the host; to walk from
        // the shims costs 14 µs for each process below them. The kernel tells the number of all threads.
        let (below, all) = (std::mem::take(&mut self.below_shims), usize::from(sysinfo().procs));
        self.table = if below * 3 > all * 2 { Table::read().ok() } else { None };
    }

    fn sample(&mut self, container: &HostContainer) -> Result<Usage, KernelError> {
        fault("kernel.sample")?;
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.sample(&self.kept),
            Some(Holder::Subtree(subtree)) => {
                let usage = self.around(|around| subtree.sample(self.table.as_ref(), around));
                self.below_shims += subtree.below();
                usage
            }
            None => Ok(Usage::default()),
        }
    }

    fn end_samples(&mut self) {
        self.table = None;
        self.voices.store(STORED_AFTER);
    }

    fn host_memory_pressure(&mut self) -> Option<u32> {
        // 10 µs for all runs. A trigger on the file of each would tell by poll; to close one takes 7 to 17 ms (M, Linux 6.18), in
        // which nothing else is decided, and it knows of windows of at most 10 s.
        examine::host_memory_pressure()
    }

    fn memory_pressure(&mut self, container: &HostContainer) -> Option<u32> {
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.memory_pressure(),
            Some(Holder::Subtree(_)) | None => None,
        }
    }

    fn usage(&mut self, container: &HostContainer) -> Result<Usage, KernelError> {
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.usage(&self.kept),
            Some(Holder::Subtree(subtree)) => self.around(|around| subtree.usage(around)),
            None => Ok(Usage::default()),
        }
    }

    fn examine(
        &mut self,
        container: &HostContainer,
        main: Option<&HostProcess>,
        known: Option<&Sample>,
    ) -> Result<Sample, KernelError> {
        fault("kernel.examine")?;
        let main = main.map(|process| process.id.pid);
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.examine(&self.kept, main, known),
            Some(Holder::Subtree(subtree)) => self.around(|around| subtree.examine(around, main)),
            None => Ok(Sample::default()),
        }
    }

    fn has_output(&mut self, container: &HostContainer, log: Option<&Path>) -> bool {
        match (log, container.holder()) {
            (Some(log), _) => stat(log).is_ok_and(|s| s.st_size > 0),
            (None, Some(Holder::Cgroup(cgroup))) => cgroup.has_written(),
            (None, Some(Holder::Subtree(subtree))) => subtree.has_written(),
            (None, None) => false,
        }
    }

    fn listen(&mut self, run: RunId, uid: u32) {
        self.voices.listen(run, uid, &self.poller);
    }

    fn hear(&mut self, run: RunId, container: Option<&HostContainer>) -> Heard {
        let holder = container.and_then(HostContainer::holder);
        self.voices.hear(run, |pid| holder.as_ref().is_some_and(|holder| Self::is_member(holder, pid)))
    }

    fn seek(&mut self, runs: Vec<Sought>) {
        self.seeker.look(runs);
    }

    fn act_on_escapees(&mut self, of: Sought, act: EscapeeAct) {
        self.seeker.act(of, act);
    }

    fn look_for_locks(&mut self, of: Worktree) {
        self.looker.look(of);
    }

    fn findings(&mut self) -> Vec<Finding> {
        self.answers.take()
    }

    fn oom_kills(&mut self, container: &HostContainer) -> u64 {
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.oom_kills(),
            Some(Holder::Subtree(_)) | None => 0,
        }
    }

    fn memory_peak(&mut self, container: &HostContainer) -> Option<u64> {
        match container.holder() {
            Some(Holder::Cgroup(cgroup)) => cgroup.dir().number("memory.peak").ok(),
            Some(Holder::Subtree(_)) | None => None,
        }
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

    fn unreserve(&mut self, run: RunId) -> Option<HostContainer> {
        self.voices.close(run);
        self.seeker.forget(run);
        self.reserved.remove(&run)
    }

    fn remove(&mut self, container: &HostContainer) -> Result<(), KernelError> {
        fault("kernel.remove")?;
        match container {
            HostContainer::Cgroup(cgroup) => cgroup.remove(),
            HostContainer::Unit(unit) => unit.remove(self.manager()),
            HostContainer::Subtree(subtree) => {
                subtree.remove()?;
                self.live_shims.remove(&subtree.run());
                Ok(())
            }
        }
    }
}

impl Host {
    /// The container of a cgroup that is proved to be the run's.
    fn holding(&self, run: RunId, dir: CgroupDir) -> Result<HostContainer, KernelError> {
        let unit = dir.path().file_name().and_then(|name| systemd::run_of(name.to_str()?));
        let cgroup = HostCgroup::new(dir, self.mount()?)?;
        Ok(match unit.filter(|(id, _)| *id == run) {
            Some((_, kind)) => HostContainer::Unit(Box::new(HostUnit::of(run, kind, Some(cgroup)))),
            None => HostContainer::Cgroup(cgroup),
        })
    }

    /// The cgroup of a run of which no more is known than its id, if it has one that is proved to be ours.
    fn find_cgroup(&self, run: RunId) -> Result<Option<CgroupDir>, KernelError> {
        let found = match &self.backend {
            Taken::Cgroupfs(tree) => tree.reopen(run),
            Taken::Systemd(manager) => {
                let Some((_, path)) = manager.units()?.into_iter().find(|(id, _)| *id == run) else { return Ok(None) };
                CgroupDir::open(&path).and_then(|dir| self.owner.prove(run, &dir, None).map(|()| dir))
            }
            Taken::Subtree => return Ok(None),
        };
        match found {
            Err(e) if e.is_gone() => Ok(None),
            found => found.map(Some),
        }
    }

    fn reopen_subtree(
        &mut self,
        run: RunId,
        shim: Option<ProcessId>,
        foster_parent: Option<ProcessId>,
    ) -> Result<HostContainer, KernelError> {
        let record = match self.shims.reopen(run) {
            // The shim can tell no more how its command ends, but it still holds the run.
            Err(e) if e.is_gone() && shim.is_some_and(|shim| process::open_known(shim).is_ok()) => {
                self.shims.record(run)?
            }
            record => record?,
        };
        let subtree = HostSubtree::reopen(run, record, shim, foster_parent)?;
        self.live_shims.extend(subtree.shim().map(|shim| (run, shim.pid)));
        Ok(HostContainer::Subtree(subtree))
    }
}

/// Passes a failpoint, whose error is one of the kernel's.
pub(super) fn fault(name: &'static str) -> Result<(), KernelError> {
    failpoint::hit(name).map_err(|source| KernelError::Io { op: "pass", what: name.to_owned(), source })
}
