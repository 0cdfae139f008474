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
    /// Pids of processes of other users that /proc hides from us (hidepid=2). They can be counted, but not proved to be
    /// the ones that they were, so they are never signalled.
    pub hidden: Vec<u32>,
    /// Something ended meanwhile whose children may be somewhere else by now: the next reading finds them.
    pub torn: bool,
}

/// The descendants of a process, not the process itself. `Gone` if it is.
///
/// Where the kernel has `/proc/PID/task/TID/children` (CONFIG_PROC_CHILDREN) it is these that are read, else all of
/// /proc.
pub fn descendants(root: u32) -> Result<Reading, KernelError> {
    read(&mut Proc::open()?, root)
}

pub(super) fn read(proc: &mut Proc, root: u32) -> Result<Reading, KernelError> {
    let gone = || KernelError::Gone { what: format!("process {root}") };
    let stat = proc.stat(root)?.ok_or_else(gone)?;
    let mut listed = Vec::new();
    match proc.children(&stat, &mut listed)? {
        true => below(proc, &stat, listed),
        false if proc.has_children_files()? => Err(gone()),
        false => from_table(proc, root),
    }
}

pub(super) fn from_table(proc: &mut Proc, root: u32) -> Result<Reading, KernelError> {
    let table = Table::read_with(proc)?;
    Ok(Reading { entries: table.below(root).into_iter().cloned().collect(), ..Reading::default() })
}

fn below(proc: &mut Proc, root: &Stat, mut listed: Vec<u32>) -> Result<Reading, KernelError> {
    let mut found = Reading::default();
    let mut seen = HashSet::from([root.pid]);
    let (mut next, mut asked_again) = (0, false);
    loop {
        listed.retain(|pid| seen.insert(*pid));
        let none_is_new = listed.is_empty();
        for child in listed.drain(..) {
            match proc.stat(child)? {
                Some(stat) => found.entries.push(stat),
                None if is_hidden(child) => found.hidden.push(child),
                None => found.torn = true,
            }
        }
        if let Some(parent) = found.entries.get(next) {
            next += 1;
            found.torn |= !parent.has_ended() && !proc.children(parent, &mut listed)?;
        } else if none_is_new && asked_again {
            return Ok(found);
        } else {
            // What lost its parent after the root was asked, and before that parent was, is the root's by now.
            proc.children(root, &mut listed)?;
            asked_again = true;
        }
    }
}
