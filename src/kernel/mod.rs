//! Eyes and hands: what Guardian reads from the kernel and does to processes.
//!
//! Owns the readers of cgroup2 and /proc, pidfds, the clock and the poller, and the trait [`Kernel`] behind which the
//! real host and the simulated one are the same to the engine's driver. Decides nothing: no rule, no deadline, no retry.

pub mod cgroup;
pub mod clock;
mod errno;
pub mod evidence;
pub mod kill;
pub mod mount;
pub mod pidfd_info;
pub mod poll;
pub mod process;
pub mod sim;
pub mod tree;

use std::path::PathBuf;
use std::time::Duration;

pub use crate::model::Evidence;
use crate::model::{CgroupIdentity, ExitStatus, Now, ProcessId, Resources, RunId, Usage};

/// Why the kernel would not do something. `Gone` and `Busy` are events more than errors.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process or cgroup went away (ESRCH, ENOENT, ENODEV).
    #[error("{what} is gone")]
    Gone {
        /// What.
        what: String,
    },
    /// Removal was refused because something is still there (EBUSY, ENOTEMPTY).
    #[error("{what} is still in use")]
    Busy {
        /// What.
        what: String,
    },
    /// It is not what it was: another inode, another start time. Nothing was done to it.
    #[error("{what} is not ours: {why}")]
    NotOurs {
        /// What.
        what: String,
        /// How that was seen.
        why: String,
    },
    /// No cgroup can be made here.
    #[error("no cgroup can be made in {path}: {why}", path = path.display())]
    NotDelegated {
        /// Where it was tried.
        path: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// Anything else, with what was tried on what.
    #[error("{op} {what}: {source}")]
    Io {
        /// The operation: `open`, `read`, `write 1 to`, …
        op: &'static str,
        /// The file or process.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A new cgroup, and what could not be set on it.
#[derive(Debug)]
pub struct Created<C> {
    /// The cgroup.
    pub cgroup: C,
    /// Limits that nothing here can enforce, in sentences.
    pub notices: Vec<String>,
}

/// The part that a watched process has in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It executes the command.
    Main,
    /// It is the client of a foreground run.
    Client,
}

/// Something that the kernel noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A watched process exited.
    ProcessExited(RunId, Role),
    /// `cgroup.events` of the run changed.
    CgroupChanged(RunId),
    /// The command eventfd was written: look at the command channel.
    Woken,
}

/// What is executed for a detached run. The strings hold no NUL byte (checked before).
#[derive(Debug, Clone)]
pub struct Exec {
    /// The command and its arguments; not empty.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, as `KEY=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// The working directory, absolute.
    pub cwd: Vec<u8>,
    /// Where stdout and stderr go: created with mode 0600, appended to. Stdin is /dev/null.
    pub log: PathBuf,
}

/// The kernel, real or simulated. One thread uses it.
pub trait Kernel {
    /// A cgroup, held open: its identity is the descriptor and its inode, not its path.
    type Cgroup;
    /// A process, held by pidfd. A gated one also holds its gate: dropped unopened, the child exits and executes nothing.
    type Process;

    /// Both clocks.
    fn now(&self) -> Now;
    /// The boot id, which monotonic times and process start times belong to.
    fn boot_id(&self) -> String;

    /// Makes the run's cgroup and sets its resource limits. Fails with `Busy` if one of that name exists.
    fn create(&mut self, run: RunId, resources: &Resources) -> Result<Created<Self::Cgroup>, KernelError>;
    /// Opens the cgroup of a run from an earlier instance: `NotOurs` if inode or mark differ, `Gone` if there is none.
    /// One that is not in our subtree is looked for at the known path: the earlier instance may have had another one.
    /// If it is not known (the earlier instance died too soon), the mark on the directory decides.
    fn reopen(&mut self, run: RunId, known: Option<&CgroupIdentity>) -> Result<Self::Cgroup, KernelError>;
    /// The runs that have a directory in our subtree, whatever it holds.
    fn list(&mut self) -> Result<Vec<RunId>, KernelError>;
    /// Path and inode.
    fn identity(&self, cgroup: &Self::Cgroup) -> CgroupIdentity;

    /// Starts the command behind a closed gate: the process exists, and has executed nothing of the run's. Where the
    /// kernel can do so, it begins its life in the cgroup; attaching it still is what proves it there. (To move a process
    /// takes 8 to 15 ms on an idle host, to begin there nothing.)
    fn spawn(&mut self, exec: &Exec, cgroup: &Self::Cgroup) -> Result<Self::Process, KernelError>;
    /// Opens the process that was known by this id; `Gone` if it is not that process any more.
    fn open_process(&mut self, id: ProcessId) -> Result<Self::Process, KernelError>;
    /// Pid and start time.
    fn process_id(&self, process: &Self::Process) -> ProcessId;
    /// Lets a gated process execute its command; an error says why it could not (`execve` failed). Not gated: nothing.
    fn open_gate(&mut self, process: &mut Self::Process) -> Result<(), KernelError>;
    /// Closes the gate of a gated process unopened: it exits and executes nothing. Not gated: nothing.
    fn close_gate(&mut self, process: &mut Self::Process);
    /// Moves the process into the cgroup and checks in /proc that it is there.
    fn attach(&mut self, cgroup: &Self::Cgroup, process: &Self::Process) -> Result<(), KernelError>;
    /// How a process that has exited ended: known if it is our child, else asked of the pidfd (Linux 6.15+, and only once
    /// its parent has reaped it), else none.
    fn exit_status(&mut self, process: &Self::Process) -> Option<ExitStatus>;
    /// Reaps every child that has exited, orphans of runs among them. False once there is no child any more.
    fn reap(&mut self) -> bool;

    /// Watches for the process's exit.
    fn watch_process(&mut self, run: RunId, role: Role, process: &Self::Process) -> Result<(), KernelError>;
    /// Watches `cgroup.events`.
    fn watch_cgroup(&mut self, run: RunId, cgroup: &Self::Cgroup) -> Result<(), KernelError>;
    /// Sleeps until something happens or the time is over (`None`: without end), and says what happened.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Notice>, KernelError>;

    /// Whether any process is in the cgroup or below it.
    fn populated(&mut self, cgroup: &Self::Cgroup) -> Result<bool, KernelError>;
    /// Sends SIGTERM, then SIGCONT, to every process in the cgroup and below, each through a pidfd and after checking
    /// that it is there; then thaws what is frozen. Gives the number of processes signalled.
    fn terminate(&mut self, cgroup: &Self::Cgroup) -> Result<u32, KernelError>;
    /// Kills everything in the cgroup and below. Gives the number of processes that were there just before.
    fn kill(&mut self, cgroup: &Self::Cgroup) -> Result<u32, KernelError>;
    /// Freezes or thaws the cgroup.
    fn freeze(&mut self, cgroup: &Self::Cgroup, frozen: bool) -> Result<(), KernelError>;
    /// Looks at the processes for no longer than the budget.
    fn evidence(&mut self, cgroup: &Self::Cgroup, budget: Duration) -> Evidence;
    /// Reads the counters that the cgroup has; `tasks` and, without the controller, memory are left out.
    fn sample(&mut self, cgroup: &Self::Cgroup) -> Result<Usage, KernelError>;
    /// Reads everything, from /proc where the cgroup does not tell.
    fn usage(&mut self, cgroup: &Self::Cgroup) -> Result<Usage, KernelError>;
    /// True once a process of the run has written output: `wchar` of any of them, or a byte in the log.
    fn has_output(&mut self, cgroup: &Self::Cgroup, log: Option<&std::path::Path>) -> bool;
    /// The number of times the OOM killer struck in the cgroup; 0 where there is no memory controller.
    fn oom_kills(&mut self, cgroup: &Self::Cgroup) -> u64;
    /// Gives back the disk space of the oldest part of a log that is over its size, keeping the newest.
    fn cap_log(&mut self, log: &std::path::Path, max_bytes: u64) -> Result<(), KernelError>;
    /// Gives up the cgroup that was made ahead for a run which is not launched after all.
    fn unreserve(&mut self, run: RunId) -> Option<Self::Cgroup>;
    /// Removes the cgroup and the empty ones below it. `Busy` if a process is there or still going.
    fn remove(&mut self, cgroup: &Self::Cgroup) -> Result<(), KernelError>;
}
