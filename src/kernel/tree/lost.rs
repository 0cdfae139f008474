//! A run whose root was killed: its processes are looked for by what is known of them.

use std::collections::{BTreeMap, HashSet};

use super::super::process::Io;
use super::super::{KernelError, process};
use super::counters;
use super::members::Source;
use super::procfs::Proc;
use super::table::{Entry, Table};
use super::walk::{Rest, Visitor};
use crate::model::{ProcessId, RunId, Usage};

/// A run without its root. See [`super::Members`] for what can be done to it.
///
/// A process is of the run if it was recorded as one, carries the run's mark in its environment, or came to a foster
/// parent; and so is what is below such a one. What hung below a member only is known by none of these once that has
/// ended and init has it, so the caller records the members that it finds.
#[derive(Debug, Clone, Copy)]
pub struct Lost<'a> {
    /// The run, whose mark is `GUARDIAN_RUN_ID=<run>`.
    pub run: RunId,
    /// When its root was started, in clock ticks since boot: nothing of the run is older.
    pub root_start_ticks: u64,
    /// Processes that were seen below the root while it lived: pid and start.
    pub recorded: &'a BTreeMap<u32, u64>,
    /// Who got the orphans: the subreaper above the root (the instance, the client), of which the caller knows that it has
    /// no other children but those that are spared. Each child of it that is not older than the root, and does not carry
    /// the mark of another run, is of the run.
    pub foster_parent: Option<ProcessId>,
    /// Never taken, and what is below them only for its own record or mark: the roots of other runs.
    pub spared: &'a [u32],
    /// As in [`super::Tree`]: part of the containment, and not of the run.
    pub excluded: &'a [u32],
}

impl Lost<'_> {
    /// The processes of the run, each once, ended ones too. Reads the environment of each process
    /// that is not older than the root; one that cannot be read (another user's) has no mark.
    pub fn members(&self, table: &Table) -> Vec<Entry> {
        self.members_by(table, |pid| self.mark(pid))
    }

    fn members_by(&self, table: &Table, mark: impl Fn(u32) -> Mark) -> Vec<Entry> {
        let may_be = |e: &Entry| !self.is_spared(e);
        let has_foster = |e: &Entry| self.foster_parent.is_some_and(|foster| self.is_child_of(e, foster, table));
        let is_of_it = |e: &Entry| {
            let recorded = self.recorded.get(&e.pid) == Some(&e.start_ticks);
            recorded
                || self.is_young(e)
                    && match mark(e.pid) {
                        Mark::Ours => true,
                        Mark::None => has_foster(e),
                        Mark::Another => false,
                    }
        };
        let first: Vec<&Entry> = table.entries().iter().filter(|e| may_be(e) && is_of_it(e)).collect();
        let roots: Vec<u32> = first.iter().map(|e| e.pid).collect();
        first.into_iter().chain(table.below_all(&roots, may_be)).cloned().collect()
    }

    /// What the run uses. What its ended processes used is counted no more: it went to the root's parent.
    pub fn sample(&self, table: &Table) -> Usage {
        counters::usage(0, self.members(table).iter())
    }

    /// The bytes that its processes have moved.
    pub fn io(&self, table: &Table) -> Io {
        let read = self.members(table).into_iter().filter_map(|e| process::io(e.pid).ok());
        counters::io(Io::default(), Io::default(), read)
    }

    fn is_young(&self, entry: &Entry) -> bool {
        entry.start_ticks >= self.root_start_ticks
    }

    fn is_child_of(&self, entry: &Entry, parent: ProcessId, table: &Table) -> bool {
        parent.pid == entry.ppid && table.get(parent.pid).is_some_and(|e| e.id() == parent)
    }

    /// The mark in the environment of a process.
    fn mark(&self, pid: u32) -> Mark {
        match process::variable(pid, "GUARDIAN_RUN_ID") {
            Some(run) if run == self.run.to_string().as_bytes() => Mark::Ours,
            Some(_) => Mark::Another,
            None => Mark::None,
        }
    }

    fn foster_children(&self, proc: &mut Proc, visitor: &mut dyn Visitor) -> Result<(), KernelError> {
        let Some(foster) = self.foster_parent else { return Ok(()) };
        let Some(parent) = proc.stat(foster.pid)?.filter(|stat| stat.id() == foster) else { return Ok(()) };
        let mut children = Vec::new();
        // Without CONFIG_PROC_CHILDREN the table alone has them.
        proc.children(parent.pid, parent.threads, &mut children)?;
        children.retain(|pid| visitor.knows(*pid).is_none() && self.mark(*pid) != Mark::Another);
        for pid in children {
            let child = proc.stat(pid)?.filter(|c| c.ppid == foster.pid && self.is_young(c) && !self.is_spared(c));
            child.map_or(Ok(()), |c| visitor.meet(proc, &c))?;
        }
        Ok(())
    }

    fn is_spared(&self, entry: &Entry) -> bool {
        let pid = entry.pid;
        pid == std::process::id() || self.spared.contains(&pid) || self.foster_parent == Some(entry.id())
    }
}

/// Whose run a process says that it is of, by its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Ours,
    Another,
    None,
}

impl Source for Lost<'_> {
    fn visit(&self, proc: &mut Proc, visitor: &mut dyn Visitor) -> Result<Rest, KernelError> {
        // What forks and ends at once, again and again, is never there long enough to be met after a whole table was
        // read. It is always a child of the foster parent.
        self.foster_children(proc, visitor)?;
        self.members(&Table::read_with(proc)?).iter().try_for_each(|e| visitor.meet(proc, e))?;
        Ok(Rest::default())
    }

    /// A process that was of the run is of it for ever, wherever it hangs by now.
    fn holds(&self, proc: &mut Proc, id: ProcessId, _: &mut HashSet<u32>) -> Result<bool, KernelError> {
        Ok(proc.stat(id.pid)?.is_some_and(|stat| stat.id() == id))
    }

    fn excludes(&self, pid: u32) -> bool {
        self.excluded.contains(&pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tree::testing::entry;

    const RUN: RunId = RunId::from_bytes([1; 6]);

    fn found(lost: &Lost, table: Vec<Entry>, marked: &[u32]) -> Vec<u32> {
        let mark = |pid| match pid {
            213 => Mark::Another,
            pid if marked.contains(&pid) => Mark::Ours,
            _ => Mark::None,
        };
        let mut pids: Vec<u32> = lost.members_by(&Table::of(table), mark).iter().map(|e| e.pid).collect();
        pids.sort_unstable();
        pids
    }

    fn lost<'a>(recorded: &'a BTreeMap<u32, u64>, foster_parent: Option<ProcessId>, spared: &'a [u32]) -> Lost<'a> {
        Lost { run: RUN, root_start_ticks: 100, recorded, foster_parent, spared, excluded: &[] }
    }

    #[test]
    fn a_record_counts_only_with_its_start() {
        let recorded = BTreeMap::from([(150, 150), (151, 140)]);
        let table = vec![entry(1, 0), entry(150, 1), entry(151, 1), entry(152, 150)];
        assert_eq!(found(&lost(&recorded, None, &[]), table, &[]), [150, 152]);
    }

    #[test]
    fn a_mark_counts_only_in_what_is_not_older_than_the_root() {
        let table = vec![entry(1, 0), entry(99, 1), entry(100, 1), entry(101, 1), entry(300, 100), entry(301, 99)];
        assert_eq!(found(&lost(&BTreeMap::new(), None, &[]), table, &[99, 100]), [100, 300]);
    }

    #[test]
    fn a_foster_child_is_of_the_run_unless_it_is_spared_or_older_or_of_another() {
        let children = [entry(60, 50), entry(209, 50), entry(210, 50), entry(211, 209), entry(213, 50)];
        let table = || [&[entry(1, 0), entry(50, 1)], &children[..]].concat();
        let found = |foster| found(&lost(&BTreeMap::new(), foster, &[210]), table(), &[50]);
        assert_eq!(found(Some(entry(50, 1).id())), [209, 211]);
        assert_eq!(found(Some(ProcessId { pid: 50, start_ticks: 7 })), [0u32; 0], "another process of its pid");
        assert_eq!(found(None), [0u32; 0]);
    }

    #[test]
    fn what_is_below_a_spared_one_is_taken_for_its_own_mark_only() {
        let me = std::process::id();
        let ours = Entry { pid: me, start_ticks: 500, ..entry(0, 200) };
        let table = vec![entry(200, 1), entry(201, 200), entry(202, 201), entry(203, 201), ours, entry(204, me)];
        assert_eq!(found(&lost(&BTreeMap::new(), None, &[201]), table, &[200, 201, 203, me]), [200, 203]);
    }
}
