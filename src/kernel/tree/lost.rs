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
    /// Those who got the orphans: subreapers above the root (the instance, the client). Each child of theirs that is
    /// not older than the root and not in `known_children` is of the run.
    pub foster_parents: &'a [ProcessId],
    /// Children of the foster parents that are not of the run. The caller must have started none since it listed them.
    pub known_children: &'a [u32],
    /// Never taken, and what is below them only for its own record or mark: the roots of other runs.
    pub spared: &'a [u32],
    /// As in [`super::Tree`]: part of the containment, and not of the run.
    pub excluded: &'a [u32],
}

impl Lost<'_> {
    /// The processes of the run, each once, ended ones too. Reads the environment of each process
    /// that is not older than the root; one that cannot be read (another user's) has no mark.
    pub fn members(&self, table: &Table) -> Vec<Entry> {
        let mark = format!("GUARDIAN_RUN_ID={}", self.run);
        self.members_by(table, |pid| process::has_variable(pid, mark.as_bytes()))
    }

    fn members_by(&self, table: &Table, has_mark: impl Fn(u32) -> bool) -> Vec<Entry> {
        let may_be = |e: &Entry| !self.is_spared(e);
        let is_known = |e: &Entry| self.recorded.get(&e.pid) == Some(&e.start_ticks) || self.was_adopted(e, table);
        let first =
            table.entries().iter().filter(|e| may_be(e) && (is_known(e) || self.is_young(e) && has_mark(e.pid)));
        let first: Vec<&Entry> = first.collect();
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

    fn was_adopted(&self, entry: &Entry, table: &Table) -> bool {
        let by =
            |foster: &ProcessId| foster.pid == entry.ppid && table.get(foster.pid).is_some_and(|e| e.id() == *foster);
        self.is_young(entry) && !self.known_children.contains(&entry.pid) && self.foster_parents.iter().any(by)
    }

    fn foster_children(&self, proc: &mut Proc, visitor: &mut dyn Visitor) -> Result<(), KernelError> {
        for foster in self.foster_parents {
            let Some(parent) = proc.stat(foster.pid)?.filter(|stat| stat.id() == *foster) else { continue };
            let mut children = Vec::new();
            // Without CONFIG_PROC_CHILDREN the table alone has them.
            proc.children(parent.pid, parent.threads, &mut children)?;
            children.retain(|pid| visitor.knows(*pid).is_none() && !self.known_children.contains(pid));
            for pid in children {
                let child = proc.stat(pid)?.filter(|c| c.ppid == foster.pid && self.is_young(c) && !self.is_spared(c));
                child.map_or(Ok(()), |c| visitor.meet(proc, &c))?;
            }
        }
        Ok(())
    }

    fn is_spared(&self, entry: &Entry) -> bool {
        entry.pid == std::process::id() || self.spared.contains(&entry.pid) || self.foster_parents.contains(&entry.id())
    }
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
        let mut pids: Vec<u32> =
            lost.members_by(&Table::of(table), |pid| marked.contains(&pid)).iter().map(|e| e.pid).collect();
        pids.sort_unstable();
        pids
    }

    fn lost<'a>(recorded: &'a BTreeMap<u32, u64>, foster_parents: &'a [ProcessId], spared: &'a [u32]) -> Lost<'a> {
        Lost {
            run: RUN,
            root_start_ticks: 100,
            recorded,
            foster_parents,
            known_children: &[210],
            spared,
            excluded: &[],
        }
    }

    #[test]
    fn a_record_counts_only_with_its_start() {
        let recorded = BTreeMap::from([(150, 150), (151, 140)]);
        let table = vec![entry(1, 0), entry(150, 1), entry(151, 1), entry(152, 150)];
        assert_eq!(found(&lost(&recorded, &[], &[]), table, &[]), [150, 152]);
    }

    #[test]
    fn a_mark_counts_only_in_what_is_not_older_than_the_root() {
        let table = vec![entry(1, 0), entry(99, 1), entry(100, 1), entry(101, 1), entry(300, 100), entry(301, 99)];
        assert_eq!(found(&lost(&BTreeMap::new(), &[], &[]), table, &[99, 100]), [100, 300]);
    }

    #[test]
    fn a_foster_child_is_of_the_run_unless_it_is_known_or_older() {
        let foster = [entry(50, 1).id(), ProcessId { pid: 51, start_ticks: 7 }];
        let table = vec![
            entry(1, 0),
            entry(50, 1),
            entry(51, 1),
            entry(60, 50),
            entry(209, 50),
            entry(210, 50),
            entry(211, 209),
            entry(212, 51),
        ];
        assert_eq!(found(&lost(&BTreeMap::new(), &foster, &[]), table, &[50]), [209, 211]);
    }

    #[test]
    fn what_is_below_a_spared_one_is_taken_for_its_own_mark_only() {
        let me = std::process::id();
        let ours = Entry { pid: me, start_ticks: 500, ..entry(0, 200) };
        let table = vec![entry(200, 1), entry(201, 200), entry(202, 201), entry(203, 201), ours, entry(204, me)];
        assert_eq!(found(&lost(&BTreeMap::new(), &[], &[201]), table, &[200, 201, 203, me]), [200, 203]);
    }
}
