//! The descendants of one process, found from it downwards: its cost is theirs, however many others there are.

use std::collections::HashSet;

use super::super::KernelError;
use super::super::process::Stat;
use super::procfs::{Proc, is_hidden};
use super::table::Table;

/// What one reading found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// The processes, parents before their children, ended ones too.
    pub entries: Vec<Stat>,
    /// What else there is.
    pub rest: Rest,
}

/// What a reading could not show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rest {
    /// Pids of processes of other users that /proc hides from us (hidepid=2). They can be counted, but not proved to be
    /// the ones that they were, so they are never signalled.
    pub hidden: Vec<u32>,
    /// Something ended before it was looked at, and its children may be somewhere else by now: the next reading finds
    /// them.
    pub torn: bool,
}

/// Who is shown each process of a reading as soon as it is found.
pub trait Visitor {
    /// The number of threads of a process that needs no second look: only its children are asked for.
    fn knows(&self, pid: u32) -> Option<u32>;

    /// True for one that was met by an earlier reading. That it goes away is no surprise.
    fn has_met(&self, pid: u32) -> bool;

    /// A process that it does not know, ended or not. Its children are asked for afterwards.
    fn meet(&mut self, proc: &mut Proc, process: &Stat) -> Result<(), KernelError>;
}

impl Visitor for Vec<Stat> {
    fn knows(&self, _: u32) -> Option<u32> {
        None
    }

    fn has_met(&self, _: u32) -> bool {
        false
    }

    fn meet(&mut self, _: &mut Proc, process: &Stat) -> Result<(), KernelError> {
        self.push(process.clone());
        Ok(())
    }
}

/// The descendants of a process, not the process itself. `Gone` if it is.
///
/// Where the kernel has `/proc/PID/task/TID/children` (CONFIG_PROC_CHILDREN) it is these that are read, else all of
/// /proc.
pub fn descendants(root: u32) -> Result<Reading, KernelError> {
    let mut entries = Vec::new();
    let rest = visit(&mut Proc::open()?, root, &mut entries)?;
    Ok(Reading { entries, rest })
}

/// The pids of the children of a process, ended ones too. `Gone` if it is.
pub fn children(parent: u32) -> Result<Vec<u32>, KernelError> {
    let gone = || KernelError::Gone { what: format!("process {parent}") };
    let mut proc = Proc::open()?;
    let threads = proc.stat(parent)?.ok_or_else(gone)?.threads;
    let mut listed = Vec::new();
    match proc.children(parent, threads, &mut listed)? {
        true => Ok(listed),
        false if proc.has_children_files()? => Err(gone()),
        false => Ok(Table::read_with(&mut proc)?.children(parent).map(|e| e.pid).collect()),
    }
}

pub(super) fn visit(proc: &mut Proc, root: u32, visitor: &mut dyn Visitor) -> Result<Rest, KernelError> {
    let gone = || KernelError::Gone { what: format!("process {root}") };
    let threads = proc.stat(root)?.ok_or_else(gone)?.threads;
    let mut listed = Vec::new();
    match proc.children(root, threads, &mut listed)? {
        true => below(proc, (root, threads), listed, visitor),
        false if proc.has_children_files()? => Err(gone()),
        false => from_table(proc, root, visitor),
    }
}

fn from_table(proc: &mut Proc, root: u32, visitor: &mut dyn Visitor) -> Result<Rest, KernelError> {
    let table = Table::read_with(proc)?;
    table.below(root).into_iter().try_for_each(|e| visitor.meet(proc, e))?;
    Ok(Rest::default())
}

fn below(
    proc: &mut Proc,
    root: (u32, u32),
    mut listed: Vec<u32>,
    visitor: &mut dyn Visitor,
) -> Result<Rest, KernelError> {
    let (mut rest, mut seen, mut found) = (Rest::default(), HashSet::from([root.0]), Vec::new());
    let (mut next, mut asked_again) = (0, false);
    loop {
        listed.retain(|pid| seen.insert(*pid));
        let none_is_new = listed.is_empty();
        // New ones first: they may be short-lived.
        listed.sort_by_key(|pid| visitor.knows(*pid).is_some());
        for child in listed.drain(..) {
            if let Some(threads) = visitor.knows(child) {
                found.push((child, threads, true));
                continue;
            }
            let was_met = visitor.has_met(child);
            match proc.stat(child)? {
                Some(stat) => {
                    visitor.meet(proc, &stat)?;
                    if !stat.has_ended() {
                        found.push((child, stat.threads, was_met));
                    }
                }
                None if is_hidden(child) => rest.hidden.push(child),
                None => rest.torn |= !was_met,
            }
        }
        if let Some(&(parent, threads, was_met)) = found.get(next) {
            next += 1;
            rest.torn |= !proc.children(parent, threads, &mut listed)? && !was_met;
        } else if none_is_new && asked_again {
            return Ok(rest);
        } else {
            // What lost its parent after the root was asked, and before that parent was, is the root's by now.
            proc.children(root.0, root.1, &mut listed)?;
            asked_again = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_lists_no_children_is_read_whole() {
        let me = std::process::id();
        let mut proc = Proc::open().unwrap();
        let parent = proc.stat(me).unwrap().unwrap().ppid;
        let (mut walked, mut read) = (Vec::new(), Vec::new());
        visit(&mut proc, parent, &mut walked).unwrap();
        from_table(&mut proc, parent, &mut read).unwrap();
        assert!(walked.iter().any(|e| e.pid == me) && read.iter().any(|e| e.pid == me));
    }

    #[test]
    fn below_a_process_that_was_reaped_is_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(descendants(child.id()).unwrap_err().is_gone());
    }
}
