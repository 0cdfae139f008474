//! What is done to the processes of a run that no cgroup holds: the passes, whichever way its processes are known.
//!
//! A pass reads which processes there are now and signals those that it had not met. What is forked meanwhile is met by
//! the next one, so passes go on until a reading shows none that is new. Nothing here is signalled by number: see
//! [`signal_if`].

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::kill::{MAX_PASSES, MAX_TIME, signal_if};
use super::super::{Evidence, KernelError, evidence};
use super::procfs::Proc;
use super::walk::Reading;
use crate::model::ProcessId;

/// How long a kill goes on stopping what it has not met before. A run that forks faster than it is stopped is killed as
/// far as it is known by then, and again by the next call.
const STOP_TIME: Duration = Duration::from_millis(150);

/// How the processes of a run are known.
pub trait Source {
    /// One reading of them.
    fn read(&self, proc: &mut Proc) -> Result<Reading, KernelError>;

    /// True if a process that an earlier reading showed, and that a pidfd holds by now, is there and of the run still.
    /// `checked` has pids of which that was found a moment ago; what is found on the way is added.
    fn holds(&self, proc: &mut Proc, id: ProcessId, checked: &mut HashSet<u32>) -> Result<bool, KernelError>;

    /// True for a process that is no part of what was asked to run. It is neither counted nor signalled, but killed.
    fn excludes(&self, _pid: u32) -> bool {
        false
    }
}

/// What is done to all processes of a run, our own process never among them: an instance or a client can have been
/// started inside the run that it ends. Ended ones (zombies) are nobody.
///
/// A process of another user, which an unprivileged instance may not signal, is passed over. `Gone` where the run has no
/// root any more by which its processes are known.
pub trait Members {
    /// Sends SIGTERM, then SIGCONT, to each: a stopped process acts on SIGTERM only then. Gives the number signalled.
    fn terminate(&self) -> Result<u32, KernelError>;

    /// Kills each. Gives the number that there were just before.
    ///
    /// All are stopped first, until none is new: a stopped process does not fork, and does not restart the others that it
    /// sees dying. One in the middle of a fork is stopped only after it, but SIGKILL ends the fork or comes after it, so
    /// that a reading after SIGKILL shows every child that there will ever be, and the passes go on for those. One call
    /// begins nothing new after 250 ms, and kills all that it stopped. The caller calls again until its proof of emptiness
    /// is there.
    fn kill(&self) -> Result<u32, KernelError>;

    /// Stops each until none is new, or lets each go on, in passes of 250 ms. Unlike a frozen cgroup, processes can be continued by others, and
    /// what had been stopped before goes on too.
    fn freeze(&self, frozen: bool) -> Result<(), KernelError>;

    /// Looks at them for no longer than the budget, lowest pid first. The total counts those too that /proc hides.
    fn evidence(&self, budget: Duration) -> Evidence;

    /// True if there is any, excluded ones aside.
    fn populated(&self) -> Result<bool, KernelError>;
}

impl<S: Source> Members for S {
    fn terminate(&self) -> Result<u32, KernelError> {
        Passes::new(self, Excluded::Spared)?.signal_all(&[Signal::TERM, Signal::CONT], MAX_TIME)
    }

    fn kill(&self) -> Result<u32, KernelError> {
        let mut passes = Passes::new(self, Excluded::Signalled)?;
        let mut new = passes.read()?;
        let present = new.counted;
        loop {
            let stopped = passes.signal(new, &[Signal::STOP], STOP_TIME);
            let killed = passes.signal_known(&[Signal::KILL]);
            stopped?;
            killed?;
            new = passes.read()?;
            if new.processes.is_empty() {
                return Ok(present);
            }
            if passes.started.elapsed() > MAX_TIME {
                return passes.signal_known(&[Signal::KILL]).map(|()| present);
            }
        }
    }

    fn freeze(&self, frozen: bool) -> Result<(), KernelError> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        Passes::new(self, Excluded::Spared)?.signal_all(&[signal], MAX_TIME).map(drop)
    }

    fn evidence(&self, budget: Duration) -> Evidence {
        let started = Instant::now();
        evidence::look_at(&present(self).unwrap_or_default(), started, budget)
    }

    fn populated(&self) -> Result<bool, KernelError> {
        present(self).map(|pids| !pids.is_empty())
    }
}

/// Those that count, by pid.
fn present(source: &impl Source) -> Result<BTreeSet<u32>, KernelError> {
    let reading = source.read(&mut Proc::open()?)?;
    let live = reading.entries.iter().filter(|e| !e.has_ended()).map(|e| e.pid);
    Ok(live.chain(reading.hidden).filter(|pid| counts(source, *pid)).collect())
}

fn counts(source: &impl Source, pid: u32) -> bool {
    pid != std::process::id() && !source.excludes(pid)
}

/// What is done to those that the source excludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excluded {
    Spared,
    Signalled,
}

/// What a reading showed that none before it did.
#[derive(Debug, Default)]
struct New {
    processes: Vec<ProcessId>,
    /// Of all in the reading.
    counted: u32,
    torn: bool,
}

/// The passes of one call, and all that they have met.
struct Passes<'a, S> {
    source: &'a S,
    excluded: Excluded,
    proc: Proc,
    started: Instant,
    /// Parents before their children.
    known: Vec<ProcessId>,
    met: HashSet<ProcessId>,
    /// How many of `known` were sent what is for all that are known.
    signalled: usize,
}

impl<'a, S: Source> Passes<'a, S> {
    fn new(source: &'a S, excluded: Excluded) -> Result<Self, KernelError> {
        let (known, met) = (Vec::new(), HashSet::new());
        Ok(Self { source, excluded, proc: Proc::open()?, started: Instant::now(), known, met, signalled: 0 })
    }

    fn read(&mut self) -> Result<New, KernelError> {
        let reading = self.source.read(&mut self.proc)?;
        let mut new = New { torn: reading.torn, ..New::default() };
        for process in reading.entries.iter().filter(|e| !e.has_ended()) {
            let counts = counts(self.source, process.pid);
            new.counted += u32::from(counts);
            let is_meant = counts || self.excluded == Excluded::Signalled && process.pid != std::process::id();
            if is_meant && self.met.insert(process.id()) {
                new.processes.push(process.id());
            }
        }
        let hidden = reading.hidden.iter().filter(|pid| counts(self.source, **pid)).count();
        new.counted = new.counted.saturating_add(u32::try_from(hidden).unwrap_or(u32::MAX));
        self.known.extend(&new.processes);
        Ok(new)
    }

    fn signal_all(&mut self, signals: &[Signal], within: Duration) -> Result<u32, KernelError> {
        let new = self.read()?;
        self.signal(new, signals, within)
    }

    /// Signals these, and those that the next readings show, until none is new or the time since the start is over. Gives
    /// the number signalled.
    fn signal(&mut self, mut new: New, signals: &[Signal], within: Duration) -> Result<u32, KernelError> {
        let mut signalled = 0;
        for _ in 0..MAX_PASSES {
            if new.processes.is_empty() && !new.torn || self.started.elapsed() > within {
                break;
            }
            let mut checked = HashSet::new();
            for id in new.processes {
                signalled += u32::from(self.signal_one(id, signals, &mut checked)?);
            }
            new = self.read()?;
        }
        Ok(signalled)
    }

    /// Signals all that were met since the last time, however long that takes.
    fn signal_known(&mut self, signals: &[Signal]) -> Result<(), KernelError> {
        let mut checked = HashSet::new();
        let mut failed = Ok(());
        for place in self.signalled..self.known.len() {
            // One that fails does not save the others.
            if let Err(e) = self.signal_one(self.known[place], signals, &mut checked) {
                failed = Err(e);
            }
        }
        self.signalled = self.known.len();
        failed
    }

    fn signal_one(
        &mut self,
        id: ProcessId,
        signals: &[Signal],
        checked: &mut HashSet<u32>,
    ) -> Result<bool, KernelError> {
        signal_if(id.pid, signals, || self.source.holds(&mut self.proc, id, checked))
    }
}
