//! Eyes and hands: what Guardian reads from the kernel and does to processes.
//!
//! Owns the readers of cgroup2 and /proc, pidfds, the clock and the poller, and the trait [`Kernel`] behind which the
//! real host and the simulated one are the same to the engine's driver. Decides nothing: no rule, no deadline, no retry.

pub mod cgroup;
pub mod clock;
mod errno;
pub mod escape;
pub mod examine;
pub mod footprint;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod git;
pub mod kill;
pub mod look;
pub mod mount;
pub mod notify;
pub mod output;
pub mod pidfd_info;
pub mod poll;
mod polled;
pub mod process;
pub mod sim;
mod syscall;
pub mod tree;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::model::Evidence;
use crate::model::{
    ContainerId, Containment, Escapee, EscapeeAct, EscapeeState, ExitStatus, GitLocks, Notification, Notify, Now,
    ProcessId, Refused, RunId, RunSpec, Sample, Sought, Usage, Worktree,
};

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
    /// The backend that was insisted on is not there.
    #[error("the backend {backend} cannot be had here: {why}")]
    NoBackend {
        /// Which.
        backend: Containment,
        /// Why not, and what to do.
        why: String,
    },
    /// The instance would be inside of a run that it is to guard.
    #[error("an instance that is started inside {run} cannot guard that run: run a guardian command outside of it")]
    InsideRun {
        /// The run.
        run: RunId,
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

/// A new container, and what could not be set on it.
#[derive(Debug)]
pub struct Created<C> {
    /// The container.
    pub container: C,
    /// What nothing here can do as asked, in sentences: limits above all.
    pub notices: Vec<String>,
}

/// What came of putting a process into its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attached {
    /// It is there.
    Now,
    /// Somebody else does it; [`Notice::Told`] tells that it is done, or failed.
    Later,
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
    /// `cgroup.events` of the run changed, or its shim exited.
    ContainerChanged(RunId),
    /// Whoever contains the run has told what it was asked for: that it has the process, or could not take it (see
    /// [`Kernel::complete`]), or what it knows of its end.
    Told(RunId),
    /// A message is at the run's notify socket (see [`Kernel::hear`]).
    Spoke(RunId),
    /// What was asked about escapees, or about what a run leaves, has an answer (see [`Kernel::findings`]).
    Found,
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
    /// What whoever executes it is to add to the environment, where that is not this instance: the wrapper of a service.
    pub notify: Option<Notify>,
    /// Where stdout and stderr go: created with mode 0600, appended to.
    pub log: PathBuf,
    /// What stdin reads; none: /dev/null.
    pub input: Option<Vec<u8>>,
    /// The file in which this launch is kept, if it is. Whoever executes it empties that just before: while it is whole,
    /// nothing was executed.
    pub kept: Option<PathBuf>,
}

/// What the processes of a run have said since it was last listened to.
#[derive(Debug, Default)]
pub struct Heard {
    /// The messages, in order.
    pub messages: Vec<Notification>,
    /// How many more were not taken.
    pub refused: Refused,
    /// Descriptors that came along. Their senders wait until they are closed, which says that all of it was taken in.
    pub barriers: Vec<OwnedFd>,
}

/// What was found out about escapees, and about what a run leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// They were looked for.
    Sought {
        /// Of which run.
        run: RunId,
        /// The number of the look.
        number: u64,
        /// Those that are there.
        found: Vec<Escapee>,
    },
    /// Locks of git were looked for.
    Locks {
        /// In the directory of which run.
        run: RunId,
        /// The number of the look.
        number: u64,
        /// What was found.
        found: GitLocks,
    },
    /// Something was done to some, or tried.
    Acted {
        /// Of which run.
        run: RunId,
        /// The number of what was asked for.
        number: u64,
        /// What.
        act: EscapeeAct,
        /// What came of it for each.
        states: Vec<(ProcessId, EscapeeState)>,
    },
}

/// The kernel, real or simulated. One thread uses it.
pub trait Kernel {
    /// What holds a run together, held open: a cgroup, whose identity is the descriptor and its inode and not its path,
    /// or a shim, held by pidfd.
    type Container;
    /// A process, held by pidfd. A gated one also holds its gate: dropped unopened, the child exits and executes nothing.
    type Process;

    /// Both clocks.
    fn now(&self) -> Now;
    /// The boot id, which monotonic times and process start times belong to.
    fn boot_id(&self) -> String;

    /// Makes the run's container and sets its resource limits. Fails with `Busy` if one of that name exists.
    fn create(&mut self, spec: &RunSpec) -> Result<Created<Self::Container>, KernelError>;
    /// Opens the container of a run from an earlier instance: `NotOurs` if inode, mark or start time differ, `Gone` if
    /// there is none. A cgroup that is not among ours is looked for at the known path: the earlier instance may have had
    /// another subtree. If it is not known (the earlier instance died too soon), the mark on it decides.
    fn reopen(&mut self, run: RunId, known: Option<&ContainerId>) -> Result<Self::Container, KernelError>;
    /// The runs that have a container here, whatever it holds.
    fn list(&mut self) -> Result<Vec<RunId>, KernelError>;
    /// What tells it from a later one; none before it is made, which is when the process is attached.
    fn identity(&self, container: &Self::Container) -> Option<ContainerId>;

    /// Starts the command behind a closed gate: the process exists, and has executed nothing of the run's. Where the
    /// kernel can do so, it begins its life in the container; attaching it still is what proves it there. (To move a
    /// process into a cgroup takes 8 to 15 ms on an idle host, to begin there nothing.) None where somebody else starts it
    /// in the container: [`Notice::Told`] says when, and `complete` gives it.
    fn spawn(&mut self, exec: &Exec, container: &mut Self::Container) -> Result<Option<Self::Process>, KernelError>;
    /// Opens the process that was known by this id; `Gone` if it is not that process any more.
    fn open_process(&mut self, id: ProcessId) -> Result<Self::Process, KernelError>;
    /// Pid and start time.
    fn process_id(&self, process: &Self::Process) -> ProcessId;
    /// Lets a gated process execute its command; an error says why it could not (`execve` failed). Not gated: nothing.
    fn open_gate(&mut self, process: &mut Self::Process) -> Result<(), KernelError>;
    /// Closes the gate of a gated process unopened: it exits and executes nothing. Not gated: nothing.
    fn close_gate(&mut self, process: &mut Self::Process);
    /// Puts the process into the container and checks in /proc that it is there.
    fn attach(&mut self, container: &mut Self::Container, process: &mut Self::Process)
    -> Result<Attached, KernelError>;
    /// Takes in what became of an attachment that was promised for later, and checks in /proc that the process is there.
    /// Gives what could not be done as asked, in sentences.
    fn complete(
        &mut self,
        container: &mut Self::Container,
        process: &mut Option<Self::Process>,
    ) -> Result<Vec<String>, KernelError>;
    /// How the main process ended, if it has: known if it is our child or a shim's, else asked of the pidfd (Linux 6.15+,
    /// and only once its parent has reaped it), else none.
    fn exit_status(
        &mut self,
        container: Option<&Self::Container>,
        process: Option<&Self::Process>,
    ) -> Option<ExitStatus>;
    /// Reaps every child that has exited, orphans of runs among them. False once there is no child any more.
    fn reap(&mut self) -> bool;

    /// Watches for the process's exit.
    fn watch_process(&mut self, run: RunId, role: Role, process: &Self::Process) -> Result<(), KernelError>;
    /// Watches for the moment when it may be empty: `cgroup.events`, or the exit of the shim.
    fn watch_container(&mut self, run: RunId, container: &Self::Container) -> Result<(), KernelError>;
    /// Sleeps until something happens or the time is over (`None`: without end), and says what happened.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Notice>, KernelError>;

    /// Whether any process is in it: in the cgroup or below it, below the shim, or left of a run whose shim was killed.
    fn populated(&mut self, container: &Self::Container) -> Result<bool, KernelError>;
    /// Whether somebody else had what contains the run stop it, before we did anything to it: asked once it is empty. None if
    /// that is not known yet: [`Notice::Told`] says when.
    fn was_stopped(&mut self, container: &Self::Container) -> Option<bool>;
    /// Whether it still holds the run together. False once its shim was killed: see `Event::ContainmentLost`.
    fn is_intact(&mut self, container: &Self::Container) -> bool;
    /// Sends SIGTERM, then SIGCONT, to every process in it, each through a pidfd and after checking that it is there;
    /// then thaws what is frozen. Gives the number of processes signalled.
    fn terminate(&mut self, container: &Self::Container) -> Result<u32, KernelError>;
    /// Kills everything in it. Gives the number of processes that were there just before.
    fn kill(&mut self, container: &Self::Container) -> Result<u32, KernelError>;
    /// Freezes or thaws it.
    fn freeze(&mut self, container: &Self::Container, frozen: bool) -> Result<(), KernelError>;
    /// Looks at the processes for no longer than the budget, whatever state they are in; what they grew by is the
    /// caller's to add.
    fn evidence(&mut self, container: &Self::Container, budget: Duration) -> Evidence;
    /// Called before `sample` is called for every run: what is read once for all of them is read now.
    fn begin_samples(&mut self) {}
    /// Called after that.
    fn end_samples(&mut self) {}
    /// Reads the counters that cost little: of a cgroup those that it has itself.
    fn sample(&mut self, container: &Self::Container) -> Result<Usage, KernelError>;
    /// Percent of the last minute in which some process of the host waited for memory; none where the kernel does not tell.
    fn host_memory_pressure(&mut self) -> Option<u32> {
        None
    }
    /// Percent of the last minute in which all processes of the run did.
    fn memory_pressure(&mut self, _container: &Self::Container) -> Option<u32> {
        None
    }
    /// Reads everything, from /proc where the container does not tell.
    fn usage(&mut self, container: &Self::Container) -> Result<Usage, KernelError>;
    /// Looks at the run and at each of its processes, for detection. `main` is the first process of the run; `known` is
    /// an earlier look, of which the kernel may take over what cannot have changed since.
    fn examine(
        &mut self,
        container: &Self::Container,
        main: Option<&Self::Process>,
        known: Option<&Sample>,
    ) -> Result<Sample, KernelError>;
    /// True once a process of the run has written output: `wchar` of any of them, or a byte in the log.
    fn has_output(&mut self, container: &Self::Container, log: Option<&std::path::Path>) -> bool;
    /// Opens the run's notify socket for its user: the one that an earlier instance left open, or a new one at the same path.
    /// Opened before: nothing. One that cannot be opened is told by the notices of `create`.
    fn listen(&mut self, run: RunId, uid: u32);
    /// Takes in what is at the run's notify socket, as much as is taken at once. What no process in the container has sent is
    /// refused; without a container all of it.
    fn hear(&mut self, run: RunId, container: Option<&Self::Container>) -> Heard;
    /// Looks for the escapees of these runs, all in one look at the processes of the host, and returns at once:
    /// [`Notice::Found`] says when there is an answer. There may be none, or late.
    fn seek(&mut self, runs: Vec<Sought>);
    /// Sees whether these escapees are there, or signals them, each through a pidfd and after it was proved to be the run's;
    /// answered as `seek`.
    fn act_on_escapees(&mut self, of: Sought, act: EscapeeAct);
    /// Looks for locks of git in the directory of a run that is over, and removes those that are to be removed; answered as
    /// `seek`. Nothing is removed any more once nobody waits for the answer.
    fn look_for_locks(&mut self, of: Worktree);
    /// The answers since the last call.
    fn findings(&mut self) -> Vec<Finding>;
    /// The number of times the OOM killer struck in the run; 0 where there is no memory controller to tell.
    fn oom_kills(&mut self, container: &Self::Container) -> u64;
    /// The most memory that it ever used, where the kernel keeps that: `memory.peak`.
    fn memory_peak(&mut self, _container: &Self::Container) -> Option<u64> {
        None
    }
    /// Gives back the disk space of the oldest part of a log that is over its size, keeping the newest.
    fn cap_log(&mut self, log: &std::path::Path, max_bytes: u64) -> Result<(), KernelError>;
    /// Gives up what was made for a run that is over or not launched after all: its notify socket is closed; the container
    /// that was made ahead is given.
    fn unreserve(&mut self, run: RunId) -> Option<Self::Container>;
    /// Removes it: the cgroup and the empty ones below it, or the shim's record. `Busy` if a process is there or still
    /// going.
    fn remove(&mut self, container: &Self::Container) -> Result<(), KernelError>;
}
