//! A run that a process contains instead of a cgroup: all that is below its *subreaper*, the root.
//!
//! A descendant of a living subreaper stays one, however it forks, daemonizes or changes session: an orphan's parent is
//! the nearest subreaper above it. So `ECHILD` from the root's wait is the proof that nothing is left. The root is no
//! process of the run and is never signalled here. Where it was killed, its orphans have another parent, and
//! [`Lost`] finds them.
//!
//! Owns how such processes are found ([`Table`], [`descendants`]), ended ([`Members`]) and counted. Decides nothing:
//! when to terminate, when to kill and when to repeat is the caller's.
//!
//! To walk from the root costs about 14 µs for each descendant, a [`Table`] about 9 µs for each process of the host. So
//! what concerns one run walks, and what concerns all of them, as sampling does, shares one table.

mod counters;
mod lost;
mod members;
mod procfs;
mod table;
mod walk;

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use super::process::Io;
use super::{KernelError, process};
use crate::model::{ProcessId, Usage};

pub use lost::Lost;
pub use members::Members;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use procfs::parse_children;
pub use table::{Entry, Table};
pub use walk::{Reading, Rest, children, descendants};

use members::Source;
use procfs::Proc;
use walk::Visitor;

/// How often a way up to the root is begun again because a process on it ended.
const MAX_RETRIES: usize = 8;

/// Everything below a subreaper. See [`Members`] for what can be done to it.
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a> {
    /// The subreaper.
    pub root: ProcessId,
    /// The same, held: as long as it has not exited, the pid is its own.
    pub pidfd: BorrowedFd<'a>,
    /// Pids below the root that are part of the containment and not of the run, as the init of a PID namespace is.
    pub excluded: &'a [u32],
}

impl Tree<'_> {
    /// What the run uses, from a table that serves all runs. CPU time: of its processes, of what these have waited for,
    /// and of what the root has. Memory: the resident memory of each, so that what they share counts for each. `Gone`
    /// if the root is not in the table.
    pub fn sample(&self, table: &Table) -> Result<Usage, KernelError> {
        let root = self.root_in(table)?;
        Ok(counters::usage(root.waited_cpu_ticks, self.processes(table)))
    }

    /// The bytes that the run has moved, from `/proc/PID/io` of each process and of the root.
    ///
    /// The kernel adds the bytes of a process to those of the parent that waits for it, as it does with CPU time, but
    /// does not keep them apart there. So the root's own must be taken off: `own` is what [`process::io`] said of the
    /// root when it was ready to start the command, and had started nothing. What it reads and writes later counts as
    /// the run's; a root that is spoken to meanwhile should `send(2)` and `recv(2)`, which are not counted.
    pub fn io(&self, table: &Table, own: Io) -> Result<Io, KernelError> {
        self.root_in(table)?;
        let now = process::io(self.root.pid).unwrap_or(own);
        Ok(counters::io(now, own, self.processes(table).filter_map(|e| process::io(e.pid).ok())))
    }

    /// Ended ones too: their counters are their parent's only once it has waited for them.
    fn processes<'t>(&self, table: &'t Table) -> impl Iterator<Item = &'t Entry> {
        table.below(self.root.pid).into_iter().filter(|e| !self.excludes(e.pid))
    }

    fn root_in<'t>(&self, table: &'t Table) -> Result<&'t Entry, KernelError> {
        table.get(self.root.pid).filter(|e| e.id() == self.root).ok_or_else(|| self.gone())
    }

    fn gone(&self) -> KernelError {
        KernelError::Gone { what: format!("process {}, which contained the run,", self.root.pid) }
    }

    fn is_alive(&self) -> bool {
        !process::has_exited(self.pidfd)
    }
}

impl Source for Tree<'_> {
    fn visit(&self, proc: &mut Proc, visitor: &mut dyn Visitor) -> Result<Rest, KernelError> {
        let rest = walk::visit(proc, self.root.pid, visitor)?;
        // Looked at afterwards: until then the pid was its own.
        if self.is_alive() { Ok(rest) } else { Err(self.gone()) }
    }

    /// Goes up from parent to parent. Parents come before their children, so that most often one step is enough.
    fn holds(&self, proc: &mut Proc, id: ProcessId, checked: &mut HashSet<u32>) -> Result<bool, KernelError> {
        'again: for _ in 0..MAX_RETRIES {
            let Some(mut child) = proc.stat(id.pid)?.filter(|stat| stat.id() == id) else { return Ok(false) };
            let mut way = vec![id.pid];
            while child.ppid != self.root.pid && !checked.contains(&child.ppid) {
                if child.ppid == 0 {
                    return Ok(false);
                }
                // A parent that ended meanwhile has left its child to another one. A pid that was given to another
                // process since is told by its start: no parent is younger than its child.
                let Some(parent) = proc.stat(child.ppid)?.filter(|p| p.start_ticks <= child.start_ticks) else {
                    continue 'again;
                };
                way.push(parent.pid);
                child = parent;
            }
            checked.extend(way);
            return Ok(self.is_alive());
        }
        Ok(false)
    }

    fn excludes(&self, pid: u32) -> bool {
        self.excluded.contains(&pid)
    }
}

#[cfg(test)]
mod testing {
    use super::Entry;

    /// A sleeping process of one thread, with its pid for a start.
    pub fn entry(pid: u32, ppid: u32) -> Entry {
        let (comm, start_ticks) = (format!("p{pid}"), u64::from(pid));
        let (cpu_ticks, waited_cpu_ticks, rss_pages) = (0, 0, 0);
        Entry { pid, comm, state: 'S', ppid, threads: 1, cpu_ticks, waited_cpu_ticks, start_ticks, rss_pages }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use rustix::process::Signal;

    use super::super::kill::signal_if;
    use super::*;

    /// This root is no subreaper, so that what loses its parent leaves it.
    #[test]
    fn a_process_that_leaves_between_the_reading_and_the_check_is_not_signalled() {
        let script = "sh -c 'sleep 600 >/dev/null & echo $!; read x'; read x";
        let mut root =
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = root.id();
        let mut line = String::new();
        BufReader::new(root.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let leaver: u32 = line.trim().parse().unwrap();
        let (pidfd, held) = (process::open(pid).unwrap(), process::open(leaver).unwrap());
        let tree = Tree { root: process::stat(pid).unwrap().id(), pidfd: pidfd.as_fd(), excluded: &[] };
        let mut proc = Proc::open().unwrap();
        let mut read = Vec::new();
        tree.visit(&mut proc, &mut read).unwrap();
        let (middle, leaver) = (read[0].id(), read[1].id());
        assert_eq!(held_pid(&held), leaver.pid);
        assert!(tree.holds(&mut proc, leaver, &mut HashSet::new()).unwrap());
        let mut checked = HashSet::new();
        assert!(tree.holds(&mut proc, middle, &mut checked).unwrap());
        assert_eq!(checked, HashSet::from([middle.pid]));
        let later = ProcessId { start_ticks: leaver.start_ticks + 1, ..leaver };
        assert!(!tree.holds(&mut proc, later, &mut checked).unwrap(), "another process of the same pid");

        let sent = signal_if(leaver.pid, &[Signal::KILL], || {
            process::signal(process::open_known(middle)?, Signal::KILL)?;
            while process::stat(leaver.pid)?.ppid == middle.pid {
                std::thread::yield_now();
            }
            tree.holds(&mut proc, leaver, &mut HashSet::new())
        });
        assert!(!sent.unwrap());
        assert!(!process::has_exited(&held));
        process::signal(&held, Signal::KILL).unwrap();
        root.kill().unwrap();
        root.wait().unwrap();
        assert!(tree.visit(&mut proc, &mut read).unwrap_err().is_gone());
    }

    fn held_pid(pidfd: impl AsFd) -> u32 {
        process::identify(pidfd).unwrap().pid
    }
}
