//! What a launch is asked for with.

use std::path::PathBuf;
use std::time::Duration;

use super::{Containment, LimitUpdate, RunId};

/// What a run is to be started with. Every byte string is without NUL and of bounded length (the bus checks).
#[derive(Debug, Clone, Default)]
pub struct LaunchRequest {
    /// The workflow; none is `default`.
    pub workflow: Option<String>,
    /// Why it is started, in the caller's words; goes on record.
    pub reason: String,
    /// A name for people.
    pub name: Option<String>,
    /// The command and its arguments; not empty.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, as `KEY=VALUE`. For a detached run only, and never stored.
    pub env: Vec<Vec<u8>>,
    /// The working directory, absolute.
    pub cwd: Vec<u8>,
    /// Limits named for this run.
    pub limits: LimitUpdate,
    /// The id that the caller reserved.
    pub reserved: Option<RunId>,
    /// Whose run it is to be; none: the caller's.
    pub uid: Option<u32>,
    /// What a detached run reads from its standard input; none: nothing. Never stored.
    pub prompt: Option<Vec<u8>>,
}

/// What a client is given for a run that it is about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// Its id.
    pub run: RunId,
    /// What will contain it.
    pub containment: Containment,
    /// It is to be held to something that not every host can enforce: its notices say what, as soon as it is contained.
    pub limited: bool,
    /// For a shim: whether the run gets a PID namespace of its own.
    pub isolate_pids: bool,
    /// For a shim: `RLIMIT_DATA` of each process, in bytes.
    pub data_max_bytes: Option<u64>,
    /// For a shim: `RLIMIT_NPROC`, in tasks.
    pub tasks_max: Option<u64>,
    /// Where its processes can say how they are.
    pub notify: Option<Notify>,
    /// What is executed in place of the command, if it is not executed as it is.
    pub command: Option<Vec<Vec<u8>>>,
}

/// What a run's command is told about heartbeats, by its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// The run's own socket, which speaks the protocol of sd_notify(3): `NOTIFY_SOCKET`.
    pub socket: PathBuf,
    /// The longest time from one heartbeat to the next: `WATCHDOG_USEC`. None: they are not waited for.
    pub window: Option<Duration>,
}

/// A backend that was looked at when the instance began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Which.
    pub backend: Containment,
    /// It contains this instance's runs.
    pub chosen: bool,
    /// Why, or why not and what to do, in a sentence.
    pub why: String,
}

/// What a queued run is to execute, as it is kept until its turn comes. In a file of its own, and nowhere else: it has the
/// environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLaunch {
    /// The run.
    pub run: RunId,
    /// The command and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, as `KEY=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// The working directory, absolute.
    pub cwd: Vec<u8>,
    /// What it reads from its standard input; none: nothing.
    pub prompt: Option<Vec<u8>>,
}
