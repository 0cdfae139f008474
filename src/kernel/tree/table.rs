//! One reading of all processes, and what is below one of them.

use std::collections::HashSet;

use super::super::KernelError;
use super::super::process::Stat;
use super::procfs::Proc;

/// A process as `/proc/PID/stat` shows it.
pub type Entry = Stat;

/// How often a process whose parent ended during the reading is looked at again. Its parent is the nearest subreaper
/// then, or init, and these seldom end too.
const MAX_REPAIRS: usize = 4;

/// All processes that /proc shows, as they were within some milliseconds. Those that ended meanwhile are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// In ascending order of pid.
    entries: Vec<Entry>,
    /// The places in `entries`, in ascending order of the parent's pid.
    by_parent: Vec<usize>,
}

impl Table {
    /// Reads /proc.
    pub fn read() -> Result<Self, KernelError> {
        Self::read_with(&mut Proc::open()?)
    }

    /// Reads /proc, which is open.
    ///
    /// A process that is there from the beginning to the end is in the table: the kernel lists pids in order, not by
    /// place. If its parent ended after it was read and before the parent was, it would hang on nothing, so it is read
    /// again until its parent is in the table too (or is one that /proc hides from us).
    pub(super) fn read_with(proc: &mut Proc) -> Result<Self, KernelError> {
        let mut entries = Vec::new();
        for pid in proc.pids()? {
            entries.extend(proc.stat(pid)?);
        }
        let mut table = Self::of(entries);
        for _ in 0..MAX_REPAIRS {
            let loose: Vec<(u32, u32)> = table
                .entries
                .iter()
                .filter(|e| e.ppid != 0 && table.get(e.ppid).is_none())
                .map(|e| (e.pid, e.ppid))
                .collect();
            let mut entries = std::mem::take(&mut table.entries);
            let mut changed = false;
            for (pid, ppid) in loose {
                let now = proc.stat(pid)?;
                changed |= now.as_ref().is_none_or(|n| n.ppid != ppid);
                entries.retain(|e| e.pid != pid);
                entries.extend(now);
            }
            table = Self::of(entries);
            if !changed {
                break;
            }
        }
        Ok(table)
    }

    /// The table of these processes.
    pub fn of(mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable_by_key(|e| e.pid);
        entries.dedup_by_key(|e| e.pid);
        let mut by_parent: Vec<usize> = (0..entries.len()).collect();
        by_parent.sort_by_key(|place| entries[*place].ppid);
        Self { entries, by_parent }
    }

    /// All of them, in ascending order of pid.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The process of this pid.
    pub fn get(&self, pid: u32) -> Option<&Entry> {
        self.entries.binary_search_by_key(&pid, |e| e.pid).ok().map(|place| &self.entries[place])
    }

    /// The children of a process, ended ones too.
    pub fn children(&self, pid: u32) -> impl Iterator<Item = &Entry> {
        let from = self.by_parent.partition_point(|place| self.entries[*place].ppid < pid);
        self.by_parent[from..].iter().map(|place| &self.entries[*place]).take_while(move |e| e.ppid == pid)
    }

    /// The descendants of a process, parents before their children, ended ones too; not the process itself.
    pub fn below(&self, root: u32) -> Vec<&Entry> {
        self.below_all(&[root], |_| true)
    }

    /// The same for many, which are not among them unless one is below another. What is below a process that does not
    /// pass is not looked at.
    pub(super) fn below_all(&self, roots: &[u32], passes: impl Fn(&Entry) -> bool) -> Vec<&Entry> {
        // Pids are given to others while the table is read, so that what it says of parents may go round in a circle.
        let mut seen: HashSet<u32> = roots.iter().copied().collect();
        let mut found: Vec<&Entry> = Vec::new();
        for root in roots {
            found.extend(self.children(*root).filter(|e| passes(e) && seen.insert(e.pid)));
        }
        let mut next = 0;
        while let Some(parent) = found.get(next) {
            let children = self.children(parent.pid);
            found.extend(children.filter(|e| passes(e) && seen.insert(e.pid)));
            next += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tree::testing::entry;

    fn pids(found: &[&Entry]) -> Vec<u32> {
        found.iter().map(|e| e.pid).collect()
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_whatever_their_pids() {
        // The pids of children are lower than that of the parent once the numbers have started over.
        let table = Table::of(vec![entry(1, 0), entry(50, 1), entry(9, 50), entry(7, 9), entry(60, 50), entry(61, 1)]);
        assert_eq!(pids(&table.below(50)), [9, 60, 7]);
        assert_eq!(pids(&table.below(7)), [0; 0]);
        assert_eq!(pids(&table.below(4000)), [0; 0]);
        assert_eq!(table.get(9).map(|e| e.ppid), Some(50));
        assert_eq!(table.get(8), None);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let table = Table::of(vec![entry(5, 6), entry(6, 5), entry(7, 7), entry(8, 5)]);
        assert_eq!(pids(&table.below(5)), [6, 8]);
        assert_eq!(pids(&table.below(7)), [0; 0]);
    }

    #[test]
    fn the_table_has_us_below_our_parent() {
        let table = Table::read().unwrap();
        let me = table.get(std::process::id()).unwrap();
        assert!(table.below(me.ppid).iter().any(|e| e.pid == me.pid));
        assert!(me.threads >= 1 && me.rss_pages > 0 && !me.has_ended());
        assert!(table.entries().windows(2).all(|w| w[0].pid < w[1].pid));
    }
}
