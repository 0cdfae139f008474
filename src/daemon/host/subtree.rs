//! A run below a shim: the backend `subtree`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::kernel::poll::{Poller, Registration};
use crate::kernel::process::Io;
use crate::kernel::tree::{self, Lost, Members, Table, Tree};
use crate::kernel::{Evidence, Exec, KernelError, clock, examine, process};
use crate::launch::orphans;
use crate::launch::subtree::record::{Entries, Record};
use crate::launch::subtree::{ShimLimits, Shims, Started};
use crate::model::{ContainerId, ExitStatus, ProcessId, RunId, Sample, Usage};

/// How many parents of a process are looked at.
const DEEPEST: usize = 1024;

/// A run's shim, and what is known of the processes below it.
#[derive(Debug)]
pub struct HostSubtree {
    run: RunId,
    record: Record,
    limits: ShimLimits,
    /// Who started the shim, or will: the client, or this instance. Not known for a run of an earlier instance.
    starter: Option<ProcessId>,
    shim: Option<Shim>,
    watch: RefCell<Option<Registration>>,
    /// Processes that were seen below the shim, by pid, with their start: what is looked for once it was killed.
    recorded: RefCell<BTreeMap<u32, u64>>,
    /// The starter, which is a subreaper too and gets the orphans once the shim was killed, if all its children are of its
    /// runs: what others that it had leave behind comes to it as well.
    foster_parent: Option<ProcessId>,
    /// The highest CPU time that was read: a sum over processes falls when one ends that nobody waits for.
    cpu_usec: Cell<u64>,
}

#[derive(Debug)]
struct Shim {
    id: ProcessId,
    /// None once it is gone.
    pidfd: Option<Arc<OwnedFd>>,
    /// The first process of the run's PID namespace.
    init: Vec<u32>,
    /// What the shim had read and written before its command was executed: all of it, and with write calls alone.
    own: Io,
    own_written: u64,
}

/// What is around a run: whom its orphans came to, and whom they must not be taken for.
#[derive(Debug)]
pub(super) struct Around<'a> {
    /// The instance.
    pub me: ProcessId,
    /// The shims of all runs.
    pub shims: &'a [u32],
}

/// Where the run's processes are to be looked for.
enum Where<'a> {
    /// Below the shim.
    Below(Tree<'a>),
    /// Nowhere: the shim said that it had no child left, or there never was one.
    Nowhere,
    /// Wherever they may be: the shim was killed.
    Anywhere(ProcessId),
}

impl HostSubtree {
    /// A run that is about to be launched.
    pub(super) fn new(run: RunId, record: Record) -> Self {
        Self {
            run,
            record,
            limits: ShimLimits::default(),
            starter: None,
            shim: None,
            watch: RefCell::default(),
            recorded: RefCell::default(),
            foster_parent: None,
            cpu_usec: Cell::default(),
        }
    }

    /// A run of an earlier instance. Without a shim on record, none was started.
    pub(super) fn reopen(
        run: RunId,
        record: Record,
        shim: Option<ProcessId>,
        foster_parent: Option<ProcessId>,
    ) -> Result<Self, KernelError> {
        let entries = record.read()?;
        let mut subtree = Self { foster_parent, ..Self::new(run, record) };
        if let Some(shim) = shim.or(entries.shim) {
            subtree.hold(shim, &entries)?;
        }
        Ok(subtree)
    }

    /// Holds the shim, dead or alive.
    fn hold(&mut self, id: ProcessId, entries: &Entries) -> Result<(), KernelError> {
        let pidfd = match process::open_known(id) {
            Ok(pidfd) => Some(Arc::new(pidfd)),
            Err(e) if e.is_gone() => None,
            Err(e) => return Err(e),
        };
        let init = entries.init.iter().map(|id| id.pid).collect();
        let own = process::io(id.pid).unwrap_or_default();
        let own_written = process::written_bytes(id.pid).unwrap_or(0);
        self.shim = Some(Shim { id, pidfd, init, own, own_written });
        Ok(())
    }

    /// Says what a shim is to hold the run to, and who starts it.
    pub(super) fn hold_to(&mut self, limits: ShimLimits, starter: ProcessId) {
        (self.limits, self.starter) = (limits, Some(starter));
    }

    /// Starts the shim of a detached run.
    pub(super) fn start(&self, shims: &Shims, exec: &Exec, nofile: Option<(u64, u64)>) -> Result<Started, KernelError> {
        shims.start(self.run, exec, nofile, &self.record, self.limits)
    }

    pub(super) fn run(&self) -> RunId {
        self.run
    }

    pub(super) fn identity(&self) -> ContainerId {
        let shim = self.shim.as_ref().map(|s| s.id);
        ContainerId::Subtree { shim, record: self.record.path().to_owned(), foster_parent: self.foster_parent }
    }

    /// Checks that a process is the one that the run's shim has started, and that the shim is a child of `parent`.
    pub(super) fn check(&self, main: ProcessId, parent: u32) -> Result<ProcessId, KernelError> {
        let not_ours = |why: String| KernelError::NotOurs { what: format!("process {}", main.pid), why };
        let entries = self.record.read()?;
        let (Some(shim), Some(noted)) = (entries.shim, entries.main) else {
            return Err(not_ours("no shim has put it on the run's record".to_owned()));
        };
        if noted != main {
            return Err(not_ours(format!("the run's record names process {}", noted.pid)));
        }
        let (of_main, of_shim) = (process::stat(main.pid)?, process::stat(shim.pid)?);
        if of_main.ppid != shim.pid || of_shim.id() != shim {
            return Err(not_ours(format!("it is not a child of the shim {}", shim.pid)));
        }
        if of_shim.ppid != parent {
            return Err(not_ours(format!("its shim {} is not a child of process {parent}", shim.pid)));
        }
        Ok(shim)
    }

    /// Takes in the shim and its command.
    pub(super) fn attach(&mut self, main: ProcessId) -> Result<(), KernelError> {
        let starter = self.starter.map_or(0, |id| id.pid);
        let shim = self.check(main, starter)?;
        let entries = self.record.read()?;
        self.hold(shim, &entries)?;
        // The instance's own other children are shims, which are known.
        let alone = starter == std::process::id() || tree::children(starter)? == [shim.pid];
        self.foster_parent = self.starter.filter(|_| alone);
        Ok(())
    }

    pub(super) fn watch(&self, run: RunId, poller: &Poller) -> Result<(), KernelError> {
        drop(self.watch.take());
        if let Some(pidfd) = self.shim.as_ref().and_then(|s| s.pidfd.as_ref()) {
            self.watch.replace(Some(poller.watch_shim(run, pidfd.clone())?));
        }
        Ok(())
    }

    /// How the main process ended, as its shim has seen it.
    pub(super) fn exit_status(&self) -> Option<ExitStatus> {
        self.record.read().ok()?.status
    }

    /// False once the shim was killed.
    pub(super) fn is_intact(&self) -> bool {
        !matches!(self.place(), Where::Anywhere(_))
    }

    pub(super) fn shim(&self) -> Option<ProcessId> {
        self.shim.as_ref().map(|s| s.id)
    }

    /// Whether anything may be left. While the shim lives, something is: it exits when it has no child any more.
    pub(super) fn populated(&self, around: &Around<'_>) -> Result<bool, KernelError> {
        match self.place() {
            Where::Below(_) => Ok(true),
            Where::Nowhere => Ok(false),
            Where::Anywhere(shim) => {
                // What was orphaned may have come to us, and the first process of a PID namespace is there until all of it
                // is reaped.
                orphans::reap_all();
                self.lost(shim, around, |lost| lost.populated())
            }
        }
    }

    pub(super) fn terminate(&self, around: &Around<'_>) -> Result<u32, KernelError> {
        self.act(around, |members| members.terminate())
    }

    pub(super) fn kill(&self, around: &Around<'_>) -> Result<u32, KernelError> {
        self.act(around, |members| members.kill())
    }

    pub(super) fn freeze(&self, around: &Around<'_>, frozen: bool) -> Result<(), KernelError> {
        self.act(around, |members| members.freeze(frozen).map(|()| 0)).map(drop)
    }

    pub(super) fn evidence(&self, around: &Around<'_>, budget: Duration) -> Evidence {
        match self.place() {
            Where::Below(tree) => tree.evidence(budget),
            Where::Nowhere => Evidence::default(),
            Where::Anywhere(shim) => self.lost(shim, around, |lost| Ok(lost.evidence(budget))).unwrap_or_default(),
        }
    }

    /// Sums over the processes in a table that serves all runs.
    pub(super) fn sample(&self, table: Option<&Table>, around: &Around<'_>) -> Result<Usage, KernelError> {
        let usage = match self.place() {
            Where::Below(tree) => {
                let own;
                let table = match table {
                    Some(table) => table,
                    None => {
                        own = below(&tree)?;
                        &own
                    }
                };
                let members = table.below(tree.root.pid).into_iter().map(|e| (e.pid, e.start_ticks)).collect();
                self.recorded.replace(members);
                tree.sample(table)?
            }
            Where::Nowhere => Usage { cpu_usec: self.record.read()?.empty, ..Usage::default() },
            Where::Anywhere(shim) => {
                let table = Table::read()?;
                self.lost(shim, around, |lost| Ok(lost.sample(&table)))?
            }
        };
        self.cpu_usec.set(self.cpu_usec.get().max(usage.cpu_usec.unwrap_or(0)));
        Ok(Usage { cpu_usec: usage.cpu_usec.map(|_| self.cpu_usec.get()), ..usage })
    }

    /// How many processes the last sample saw.
    pub(super) fn below(&self) -> usize {
        self.recorded.borrow().len()
    }

    /// The same, and what has to be read of each process alone.
    pub(super) fn usage(&self, around: &Around<'_>) -> Result<Usage, KernelError> {
        let io = match (self.place(), &self.shim) {
            (Where::Below(tree), Some(shim)) => {
                let table = below(&tree)?;
                let io = tree.io(&table, shim.own)?;
                return Ok(with_io(self.sample(Some(&table), around)?, io));
            }
            (Where::Anywhere(shim), _) => {
                let table = Table::read()?;
                self.lost(shim, around, |lost| Ok(lost.io(&table)))?
            }
            _ => return self.sample(None, around),
        };
        Ok(with_io(self.sample(None, around)?, io))
    }

    /// Looks at each process below the shim; nothing is known of a run that has none.
    pub(super) fn examine(&self, around: &Around<'_>, main: Option<u32>) -> Result<Sample, KernelError> {
        let Where::Below(tree) = self.place() else { return Ok(Sample::default()) };
        let found = tree::descendants(tree.root.pid)?;
        let hidden = !found.rest.hidden.is_empty();
        let pids: Vec<u32> = found.entries.iter().map(|e| e.pid).filter(|pid| !tree.excluded.contains(pid)).collect();
        let mut entries = found.entries;
        entries.push(process::stat(tree.root.pid)?);
        let sampled = self.sample(Some(&Table::of(entries)), around)?;
        let mut sample = Sample {
            cpu_usec: sampled.cpu_usec,
            memory_bytes: sampled.memory_bytes,
            suspended_usec: Some(clock::suspended_usec()),
            ..Sample::default()
        };
        examine::processes(pids.into_iter(), main, &mut sample);
        sample.processes = sample.processes.filter(|_| !hidden);
        Ok(sample)
    }

    /// Any write counts, to a terminal, a pipe or a file. What an orphan had written is the shim's once it has reaped it.
    pub(super) fn has_written(&self) -> bool {
        let (Where::Below(tree), Some(shim)) = (self.place(), &self.shim) else { return false };
        let written = |pid: u32| process::written_bytes(pid).unwrap_or(0);
        let below = tree::descendants(tree.root.pid).unwrap_or_default();
        written(shim.id.pid) > shim.own_written || below.entries.iter().any(|e| written(e.pid) > 0)
    }

    /// Whether a process is below the shim. Whoever loses its parent there becomes a child of the shim, or of the first
    /// process of the run's PID namespace, which is one; so that all parents lead to it.
    pub(super) fn has_member(&self, pid: u32) -> bool {
        let Where::Below(tree) = self.place() else { return false };
        let mut at = pid;
        for _ in 0..DEEPEST {
            match process::stat(at) {
                Ok(stat) if stat.ppid == tree.root.pid => return !tree.excluded.contains(&at) || at != pid,
                Ok(stat) if stat.ppid > 1 => at = stat.ppid,
                _ => return false,
            }
        }
        false
    }

    /// Removes the record, unless its shim still keeps it.
    pub(super) fn remove(&self) -> Result<(), KernelError> {
        match self.place() {
            Where::Below(tree) => Err(KernelError::Busy { what: format!("the shim {}", tree.root.pid) }),
            Where::Nowhere | Where::Anywhere(_) => self.record.remove(),
        }
    }

    fn act(
        &self,
        around: &Around<'_>,
        act: impl Fn(&dyn Members) -> Result<u32, KernelError>,
    ) -> Result<u32, KernelError> {
        match self.place() {
            Where::Below(tree) => {
                // A run can stop its shim, which then reaps nobody.
                let _ = process::signal(tree.pidfd, rustix::process::Signal::CONT);
                match act(&tree) {
                    // Killed just now: what is left is found in another way.
                    Err(e) if e.is_gone() && !self.is_intact() => self.lost(tree.root, around, |lost| act(lost)),
                    done => done,
                }
            }
            Where::Nowhere => Ok(0),
            Where::Anywhere(shim) => self.lost(shim, around, |lost| act(lost)),
        }
    }

    /// Looks for the run without its shim, and puts on record what was found.
    fn lost<T>(
        &self,
        shim: ProcessId,
        around: &Around<'_>,
        then: impl FnOnce(&Lost<'_>) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let spared: Vec<u32> = around.shims.iter().copied().chain([around.me.pid]).collect();
        let recorded = self.recorded.borrow().clone();
        let lost = Lost {
            run: self.run,
            root_start_ticks: shim.start_ticks,
            recorded: &recorded,
            foster_parent: self.foster_parent,
            spared: &spared,
            excluded: self.shim.as_ref().map_or(&[], |s| s.init.as_slice()),
        };
        let found = lost.members(&Table::read()?);
        self.recorded.borrow_mut().extend(found.iter().map(|e| (e.pid, e.start_ticks)));
        then(&lost)
    }

    fn place(&self) -> Where<'_> {
        let Some(shim) = &self.shim else { return Where::Nowhere };
        match &shim.pidfd {
            Some(pidfd) if !process::has_exited(pidfd) => {
                Where::Below(Tree { root: shim.id, pidfd: pidfd.as_fd(), excluded: &shim.init })
            }
            // Its last word, written before it exited. A record can be written by whoever is of the same user, so a command
            // that lives on gives it the lie.
            _ if self.record.read().is_ok_and(|said| said.empty.is_some() && !said.main.is_some_and(is_alive)) => {
                Where::Nowhere
            }
            _ => Where::Anywhere(shim.id),
        }
    }
}

fn is_alive(process: ProcessId) -> bool {
    process::open_known(process).is_ok_and(|pidfd| !process::has_exited(pidfd))
}

/// Looks at the processes below a shim.
pub(super) fn look(shim: Option<ProcessId>, record: &Path, budget: Duration) -> Result<Evidence, KernelError> {
    let root = shim.ok_or_else(|| KernelError::Gone { what: "the shim".into() })?;
    let pidfd = process::open_known(root)?;
    let init: Vec<u32> = Record::open(record)?.read()?.init.iter().map(|id| id.pid).collect();
    Ok(Tree { root, pidfd: pidfd.as_fd(), excluded: &init }.evidence(budget))
}

/// A table of the tree alone: walking it costs nothing for the host's other processes.
fn below(tree: &Tree<'_>) -> Result<Table, KernelError> {
    let mut entries = tree::descendants(tree.root.pid)?.entries;
    entries.push(process::stat(tree.root.pid)?);
    Ok(Table::of(entries))
}

fn with_io(usage: Usage, io: Io) -> Usage {
    Usage {
        io_read_bytes: Some(io.read_bytes),
        io_write_bytes: Some(io.write_bytes),
        activity_bytes: Some(io.characters),
        ..usage
    }
}
