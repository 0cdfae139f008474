//! What is done to the processes of a run that no cgroup holds: the passes, whichever way its processes are known.
//!
//! A pass reads which processes there are now, and signals each that was not met before as soon as it is found. What is
//! forked meanwhile is met by the next one, so passes go on until one shows none that is new. Nothing here is signalled
//! by number: see [`signal_if`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::kill::{MAX_TIME, signal_if};
use super::super::process::Stat;
use super::super::{Evidence, KernelError, look};
use super::procfs::Proc;
use super::walk::{Rest, Visitor};
use crate::model::ProcessId;

/// Passes of one kind in a call. One over a few processes takes 50 µs, and what forks and ends at once, again and
/// again, is met by one of many.
const MAX_PASSES: usize = 256;

/// How long a kill goes on stopping what it has not met before. A run that forks faster than it is stopped is killed as
/// far as it is known by then, and again by the next call.
const STOP_TIME: Duration = Duration::from_millis(150);

/// How long what was sent SIGSTOP is given to stop before it is looked at again.
const STOPPING: Duration = Duration::from_millis(1);

/// How the processes of a run are known.
pub trait Source {
    /// One reading of them, shown to the visitor as they are found.
    fn visit(&self, proc: &mut Proc, visitor: &mut dyn Visitor) -> Result<Rest, KernelError>;

    /// True if a process that a reading showed, and that a pidfd holds by now, is there and of the run still.
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
/// A process of another user, which an unprivileged instance may not signal, is passed over. `Gone` if the root by
/// which they are known was gone before anything was done.
pub trait Members {
    /// Sends SIGTERM, then SIGCONT, to each: a stopped process acts on SIGTERM only then. Gives the number signalled.
    fn terminate(&self) -> Result<u32, KernelError>;

    /// Kills each. Gives the number that there were just before.
    ///
    /// All are stopped first, until none is new: a stopped process does not fork, and does not restart the others that
    /// it sees dying. One in the middle of a fork is stopped only after it, but SIGKILL ends the fork or comes after
    /// it, so that a reading after SIGKILL shows every child that there will ever be, and the passes go on for those.
    /// One call begins no pass after 250 ms, and kills all that it stopped, unless the root dies meanwhile: what is
    /// stopped then is for [`Lost`](super::Lost) to kill. The caller calls again until its proof of emptiness is there.
    fn kill(&self) -> Result<u32, KernelError>;

    /// Stops each until none is new and none is seen to run, or lets each go on; begins no pass after 250 ms. A parent
    /// that waits in vfork(2) is in state D until its child is let go on. Unlike those in a frozen cgroup, processes
    /// can be continued by others, and what had been stopped before the freeze goes on with the thaw.
    fn freeze(&self, frozen: bool) -> Result<(), KernelError>;

    /// Looks at them for no longer than the budget, lowest pid first. The total counts those too that /proc hides.
    fn evidence(&self, budget: Duration) -> Evidence;

    /// True if there is any, excluded ones aside.
    fn populated(&self) -> Result<bool, KernelError>;
}

impl<S: Source> Members for S {
    fn terminate(&self) -> Result<u32, KernelError> {
        let mut passes = Passes::new(self, Excluded::Spared);
        passes.look = Look::AtAll;
        passes.signal(&mut Proc::open()?, &[Signal::TERM, Signal::CONT], MAX_TIME)
    }

    fn kill(&self) -> Result<u32, KernelError> {
        let mut proc = Proc::open()?;
        let mut passes = Passes::new(self, Excluded::Signalled);
        let stopped = passes.signal(&mut proc, &[Signal::STOP], STOP_TIME);
        let present = passes.counted_first;
        let killed = passes.signal_known(&mut proc, &[Signal::KILL]);
        stopped?;
        killed?;
        passes.signal(&mut proc, &[Signal::KILL], MAX_TIME).map(|_| present)
    }

    fn freeze(&self, frozen: bool) -> Result<(), KernelError> {
        let mut proc = Proc::open()?;
        let mut passes = Passes::new(self, Excluded::Spared);
        if !frozen {
            return passes.signal(&mut proc, &[Signal::CONT], MAX_TIME).map(drop);
        }
        // One that is stopped in the middle of a fork stops after it: its child is there only by then.
        passes.look = Look::AtAll;
        loop {
            passes.signal(&mut proc, &[Signal::STOP], MAX_TIME)?;
            if !passes.some_run || passes.started.elapsed() > MAX_TIME {
                return Ok(());
            }
            std::thread::sleep(STOPPING);
        }
    }

    fn evidence(&self, budget: Duration) -> Evidence {
        let started = Instant::now();
        look::look_at(&present(self).unwrap_or_default(), started, budget)
    }

    fn populated(&self) -> Result<bool, KernelError> {
        present(self).map(|pids| !pids.is_empty())
    }
}

/// Those that count, by pid.
fn present(source: &impl Source) -> Result<BTreeSet<u32>, KernelError> {
    let mut entries = Vec::new();
    let rest = source.visit(&mut Proc::open()?, &mut entries)?;
    let live = entries.iter().filter(|e| !e.has_ended()).map(|e| e.pid);
    Ok(live.chain(rest.hidden).filter(|pid| counts(source, *pid)).collect())
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

/// What a pass looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Of those that were met before, only at their children: this halves the time in which others fork. Right for what
    /// was stopped, which makes no more threads.
    AtTheNew,
    AtAll,
}

/// The passes of one call, and all that they have met.
struct Passes<'a, S> {
    source: &'a S,
    excluded: Excluded,
    look: Look,
    started: Instant,
    /// Parents before their children.
    known: Vec<ProcessId>,
    /// Start and threads by pid.
    met: HashMap<u32, (u64, u32)>,
    /// What the first pass found that counts.
    counted_first: u32,
    pass: Pass<'a>,
    /// The last pass showed one that is neither stopped nor in the middle of a system call that nothing interrupts.
    some_run: bool,
}

/// What one pass does and has done.
#[derive(Default)]
struct Pass<'a> {
    signals: &'a [Signal],
    checked: HashSet<u32>,
    new: u32,
    counted: u32,
    signalled: u32,
}

impl<'a, S: Source> Passes<'a, S> {
    fn new(source: &'a S, excluded: Excluded) -> Self {
        let (look, started, pass) = (Look::AtTheNew, Instant::now(), Pass::default());
        let (known, met) = (Vec::new(), HashMap::new());
        Self { source, excluded, look, started, known, met, counted_first: 0, pass, some_run: false }
    }

    /// Signals each process that was not met before, and goes on with this until none is new or the time since the
    /// start is over. Gives the number signalled.
    fn signal(&mut self, proc: &mut Proc, signals: &'a [Signal], within: Duration) -> Result<u32, KernelError> {
        let mut signalled = 0;
        for _ in 0..MAX_PASSES {
            let is_first = self.known.is_empty();
            self.pass = Pass { signals, ..Pass::default() };
            self.some_run = false;
            let visited = self.source.visit(proc, self);
            signalled += self.pass.signalled;
            if is_first {
                self.counted_first = self.pass.counted;
            }
            let rest = match visited {
                // The root may have exited because nothing was left below it, as soon as the run was signalled.
                Err(e) if e.is_gone() && !self.known.is_empty() => return Ok(signalled),
                visited => visited?,
            };
            if is_first {
                let hidden = rest.hidden.iter().filter(|pid| counts(self.source, **pid)).count();
                self.counted_first = self.counted_first.saturating_add(u32::try_from(hidden).unwrap_or(u32::MAX));
            }
            if self.pass.new == 0 && !rest.torn || self.started.elapsed() > within {
                break;
            }
        }
        Ok(signalled)
    }

    /// Signals all that were met, however long that takes.
    fn signal_known(&mut self, proc: &mut Proc, signals: &[Signal]) -> Result<(), KernelError> {
        let mut checked = HashSet::new();
        let mut failed = Ok(());
        for id in &self.known {
            // One that fails does not save the others.
            if let Err(e) = signal_if(id.pid, signals, || self.source.holds(proc, *id, &mut checked)) {
                failed = Err(e);
            }
        }
        failed
    }
}

impl<S: Source> Visitor for Passes<'_, S> {
    fn knows(&self, pid: u32) -> Option<u32> {
        self.met.get(&pid).filter(|_| self.look == Look::AtTheNew).map(|(_, threads)| *threads)
    }

    fn has_met(&self, pid: u32) -> bool {
        self.met.contains_key(&pid)
    }

    fn meet(&mut self, proc: &mut Proc, process: &Stat) -> Result<(), KernelError> {
        let counts = counts(self.source, process.pid);
        let is_meant = counts || self.excluded == Excluded::Signalled && process.pid != std::process::id();
        if process.has_ended() || !is_meant {
            return Ok(());
        }
        self.some_run |= matches!(process.state, 'R' | 'S');
        let id = process.id();
        match self.met.insert(id.pid, (id.start_ticks, process.threads)) {
            Some((start_ticks, _)) if start_ticks == id.start_ticks => return Ok(()),
            _ => self.known.push(id),
        }
        self.pass.new += 1;
        self.pass.counted += u32::from(counts);
        let Pass { signals, checked, .. } = &mut self.pass;
        let sent = signal_if(id.pid, signals, || self.source.holds(proc, id, checked))?;
        self.pass.signalled += u32::from(sent);
        Ok(())
    }
}
