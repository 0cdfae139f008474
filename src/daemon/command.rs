//! What the bus asks of the engine, and what it is answered. The only things that cross between the two threads,
//! beside the published views.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::kernel::{KernelError, process};
pub use crate::model::{Answer, LaunchRequest};
use crate::model::{Error, ErrorKind, ExitStatus, KillMode, Notification, ProcessId, Rule, RunId};

/// Who asks, as the kernel gave it with the connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Their uid.
    pub uid: u32,
    /// Their name, or the uid again.
    pub user: String,
    /// Their process; none where the connection could not give one.
    pub process: Option<Arc<CallerProcess>>,
}

/// A caller's process, held by its pidfd.
#[derive(Debug)]
pub struct CallerProcess {
    pidfd: OwnedFd,
    id: OnceLock<ProcessId>,
}

impl CallerProcess {
    /// The process of this pidfd.
    pub fn new(pidfd: OwnedFd) -> Self {
        Self { pidfd, id: OnceLock::new() }
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Which process it is. A pidfd stays the same process's, so /proc is read once, while it was alive.
    pub fn id(&self) -> Result<ProcessId, KernelError> {
        if let Some(id) = self.id.get() {
            return Ok(*id);
        }
        let id = process::identify(&self.pidfd)?;
        Ok(*self.id.get_or_init(|| id))
    }
}

impl Caller {
    /// Whether a process has this uid, as its real or its effective one.
    pub fn can_be(pid: u32, uid: u32) -> bool {
        process::uids(pid).is_ok_and(|[real, effective, ..]| real == uid || effective == uid)
    }
}

/// A request.
#[derive(Debug)]
pub enum Command {
    /// Give the caller an id for a run and what its command is to be started in: where cgroups are ours, the run's cgroup,
    /// so that the gated child can begin its life in it (to move it there takes 8 to 15 ms on an idle host); where there
    /// are none, the record for a shim. Answered with [`Answer::Reserved`]; the id is the caller's for a few seconds.
    Reserve {
        /// What is going to be started.
        request: LaunchRequest,
        /// Where the descriptor goes.
        container: oneshot::Sender<OwnedFd>,
    },
    /// Contain a gated child of the caller: a foreground run, which lives and dies with the caller.
    Attach {
        /// What is behind the gate.
        request: LaunchRequest,
        /// Its pidfd.
        child: OwnedFd,
    },
    /// Start a detached run.
    Start {
        /// What to start.
        request: LaunchRequest,
    },
    /// The client that started a foreground run has reaped its main process.
    ReportExit {
        /// The run.
        run: RunId,
        /// What `waitid` said.
        status: ExitStatus,
    },
    /// End a run. Answered once the intent is on record, not when the run is over.
    Kill {
        /// The run.
        run: RunId,
        /// How.
        mode: KillMode,
        /// Why, in the caller's words.
        text: String,
    },
    /// Give a timer of a run more time.
    Extend {
        /// The run.
        run: RunId,
        /// Which timer.
        rule: Rule,
        /// How much longer.
        by: Duration,
    },
    /// Say something for a run, as its processes do.
    Heartbeat {
        /// The run.
        run: RunId,
        /// What.
        said: Box<Notification>,
    },
    /// Pause a run.
    Freeze(RunId),
    /// Let it go on.
    Thaw(RunId),
    /// Read everything about one live run anew, and publish it.
    Refresh(RunId),
    /// Read the configuration anew, whole or not at all.
    Reload,
    /// Stop the instance; live runs go on and the next instance takes them up.
    Stop,
}

/// A request on its way.
#[derive(Debug)]
pub struct Envelope {
    /// What is asked.
    pub command: Command,
    /// Who asks.
    pub caller: Caller,
    /// Where the answer goes. Dropped unanswered only if the engine is gone.
    pub reply: oneshot::Sender<Result<Answer, Error>>,
}

/// The bus's end of the command channel.
#[derive(Clone)]
pub struct Commands {
    // Boxed, because the channel has room for all of them from the beginning.
    sender: mpsc::SyncSender<Box<Envelope>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

/// How many requests may wait for the engine. Beyond it, callers are refused rather than kept.
const WAITING: usize = 4096;

impl Commands {
    /// A channel; `wake` makes the engine's poller return.
    pub fn new(wake: Arc<dyn Fn() + Send + Sync>) -> (Self, mpsc::Receiver<Box<Envelope>>) {
        let (sender, receiver) = mpsc::sync_channel(WAITING);
        (Self { sender, wake }, receiver)
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, command: Command, caller: Caller) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        self.sender.try_send(Box::new(Envelope { command, caller, reply })).map_err(|e| match e {
            mpsc::TrySendError::Full(_) => {
                Error::new(ErrorKind::LimitExceeded, format!("{WAITING} requests are waiting already: try again"))
            }
            mpsc::TrySendError::Disconnected(_) => stopping(),
        })?;
        (self.wake)();
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn stopping() -> Error {
    Error::new(ErrorKind::Unavailable, "the instance is stopping: run the command again, which starts the next one")
}
