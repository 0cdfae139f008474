//! What the engine is told, and what it wants done.

use std::time::Duration;

use crate::model::{
    Actor, Answer, AuditEvent, ContainerId, Error, Evidence, ExitStatus, KillAnswer, KillMode, ProcessId, Receipt,
    Rule, RunId, RunSpec, RunView,
};

use super::run::Run;

/// Where the answer to a request goes; only the driver knows what is behind the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyTo(pub u64);

/// What must be on record before a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ticket {
    /// That it was accepted, before anything is made for it.
    Launch(RunId),
    /// That it is contained, before its gate is opened.
    Start(RunId),
    /// The intent of its kill, before the first signal.
    Kill(RunId),
    /// Its outcome, before anyone is told that it is finished.
    Finish(RunId),
}

/// Something that happened, or that somebody asks for.
#[derive(Debug)]
pub enum Event {
    /// A launch is asked for. The driver holds the gated process.
    Launch {
        /// What to launch.
        spec: Box<RunSpec>,
        /// Who is answered.
        reply: ReplyTo,
        /// Who asks.
        actor: Actor,
    },
    /// A kill is asked for.
    Kill {
        /// The run.
        run: RunId,
        /// How.
        mode: KillMode,
        /// Why.
        text: String,
        /// Who asks.
        actor: Actor,
        /// Who is answered.
        reply: ReplyTo,
    },
    /// More time is asked for.
    Extend {
        /// The run.
        run: RunId,
        /// The timer.
        rule: Rule,
        /// How much more.
        by: Duration,
        /// Who asks.
        actor: Actor,
        /// Who is answered.
        reply: ReplyTo,
    },
    /// A pause, or its end, is asked for.
    Freeze {
        /// The run.
        run: RunId,
        /// Pause, or go on.
        frozen: bool,
        /// Who asks.
        actor: Actor,
        /// Who is answered.
        reply: ReplyTo,
    },
    /// The client says how the main process ended.
    Reported {
        /// The run.
        run: RunId,
        /// What `waitid` said.
        status: ExitStatus,
        /// Who is answered.
        reply: ReplyTo,
    },
    /// The store has committed and synced it.
    Recorded(Ticket),
    /// The store could not; it keeps it and goes on trying.
    NotRecorded(Ticket),
    /// The store is in trouble: no new launches.
    StoreTroubled(String),
    /// The store is well again.
    StoreRecovered,
    /// The run's process was seen in the run's cgroup.
    Contained {
        /// The run.
        run: RunId,
        /// The process that will execute the command.
        main: ProcessId,
        /// What holds it.
        container: ContainerId,
        /// What could not be done as asked.
        notices: Vec<String>,
    },
    /// It could not be contained.
    NotContained {
        /// The run.
        run: RunId,
        /// Why.
        error: Error,
        /// What was made to hold it, if anything was: the process may be in it.
        container: Option<ContainerId>,
    },
    /// The gate of a detached run was opened; an error says why the command was not executed.
    GateOpened {
        /// The run.
        run: RunId,
        /// Whether the command is executed.
        result: Result<(), String>,
    },
    /// A look at whether the run has written output.
    Probed {
        /// The run.
        run: RunId,
        /// It has.
        output: bool,
    },
    /// The pidfd of the main process says that it exited.
    MainExited {
        /// The run.
        run: RunId,
        /// How, if the instance is its parent or the pidfd tells.
        status: Option<ExitStatus>,
        /// The OOM killer has struck in the run.
        oom: bool,
    },
    /// The pidfd of the client says that it exited.
    ClientGone(RunId),
    /// The container was looked at.
    Populated {
        /// The run.
        run: RunId,
        /// Whether any process is in it: in the cgroup or below it, or below the shim.
        populated: bool,
    },
    /// What contained the run is gone, and the run need not be: its shim was killed.
    ContainmentLost(RunId),
    /// Somebody else had what contains the run stop it.
    StoppedOutside(RunId),
    /// The processes were looked at.
    Inspected {
        /// The run.
        run: RunId,
        /// What was seen.
        evidence: Evidence,
    },
    /// SIGTERM and SIGCONT were sent.
    Terminated {
        /// The run.
        run: RunId,
        /// To how many processes.
        processes: u32,
        /// What went wrong, if anything did.
        trouble: Option<String>,
    },
    /// Everything in the run was sent SIGKILL, or that was tried.
    Killed {
        /// The run.
        run: RunId,
        /// How many processes were there.
        processes: u32,
        /// What went wrong, if anything did.
        trouble: Option<String>,
    },
    /// Freezing or thawing was done, or tried.
    FreezeDone {
        /// The run.
        run: RunId,
        /// What was asked.
        frozen: bool,
        /// What went wrong, if anything did.
        result: Result<(), String>,
        /// Who asked.
        actor: Actor,
        /// Who is answered.
        reply: ReplyTo,
    },
    /// The pidfd was asked how the main process ended.
    StatusAsked {
        /// The run.
        run: RunId,
        /// What it said.
        status: Option<ExitStatus>,
    },
    /// The removal of the container was tried.
    Removed {
        /// The run.
        run: RunId,
        /// What came of it.
        result: Removal,
    },
    /// A run of an earlier instance.
    Adopt {
        /// As that instance recorded it.
        run: Box<Run>,
        /// What is left of it.
        found: Found,
    },
    /// Look at the deadlines.
    Tick,
}

/// What came of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Gone,
    /// Something is still there.
    Busy,
    /// It is not the run's any more, or the kernel refuses: left alone.
    Refused(String),
}

/// What is left of a run of an earlier instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The host was booted since: nothing can be left, and no old identity counts.
    Rebooted,
    /// Its container is gone: nothing can be left in it.
    Gone,
    /// What is in its container's place cannot be proved to be the run's: left alone.
    Foreign(String),
    /// Its container is there.
    There {
        /// The container.
        container: ContainerId,
        /// The main process still is the process that it was.
        main_alive: bool,
        /// The client still is the process that it was; true for a detached run.
        client_alive: bool,
    },
}

/// Something to be done by the driver, in the order given.
#[derive(Debug)]
pub enum Effect {
    /// Put it on record, in one transaction.
    Record(Box<Record>),
    /// Make the container, put the process into it, check, watch. Answered by `Contained` or `NotContained`.
    Contain(RunId),
    /// Open the gate of a detached run. Answered by `GateOpened`.
    OpenGate(RunId),
    /// Drop the gated process: it exits and executes nothing.
    CloseGate(RunId),
    /// Look whether the run has written output. Answered by `Probed`.
    Probe(RunId),
    /// Look whether anything is in the container. Answered by `Populated`.
    Look(RunId),
    /// Look at the processes. Answered by `Inspected`.
    Inspect(RunId),
    /// SIGTERM, SIGCONT, thaw. Answered by `Terminated`.
    Terminate(RunId),
    /// SIGKILL to everything: `cgroup.kill`, or what stands in for it. Answered by `Killed`.
    Kill(RunId),
    /// Freeze or thaw. Answered by `FreezeDone`.
    Freeze {
        /// The run.
        run: RunId,
        /// Freeze, or thaw.
        frozen: bool,
        /// Who asked.
        actor: Actor,
        /// Who is answered.
        reply: ReplyTo,
    },
    /// Ask the pidfd how the main process ended. Answered by `StatusAsked`.
    AskStatus(RunId),
    /// Remove the container. Answered by `Removed`.
    Remove(RunId),
    /// Send it to the journal: the store could not take it in time.
    Journal(Box<AuditEvent>),
    /// Publish the run as it now is.
    Publish(RunId),
    /// Publish the run's end, and let go of everything that is held for it.
    Finish(Box<RunView>),
    /// Answer.
    Reply(ReplyTo, Result<Answer, Error>),
}

/// What is put on record together.
#[derive(Debug, Default)]
pub struct Record {
    /// Entries of the audit log.
    pub audit: Vec<AuditEvent>,
    /// The run as it now is, and the engine's state of it for the next instance (none once it is finished).
    pub run: Option<(RunView, Option<String>)>,
    /// The intent of a kill.
    pub intent: Option<KillAnswer>,
    /// The proof of a kill.
    pub receipt: Option<Receipt>,
    /// Who waits for it.
    pub ticket: Option<Ticket>,
}
