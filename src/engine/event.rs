//! What the engine is told, and what it wants done.

use std::time::Duration;

use crate::model::{
    Actor, Answer, AuditEvent, ContainerId, Error, Escapee, EscapeeAct, EscapeeState, Evidence, ExitStatus, GitLocks,
    KillAnswer, KillMode, Notification, ProcessId, Receipt, Refused, Rule, RunId, RunSpec, RunView, Sample, Sought,
    Worktree,
};

use super::Settings;
use super::run::Run;

/// Where the answer to a request goes; only the driver knows what is behind the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyTo(pub u64);

/// What must be on record before a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ticket {
    /// That it was accepted, before anything is made for it.
    Launch(RunId),
    /// That it is queued, and what it is to execute, before anyone is told that it was accepted.
    Queue(RunId),
    /// That it is contained, before its gate is opened.
    Start(RunId),
    /// The intent of its kill, before the first signal.
    Kill(RunId),
    /// Its outcome, before anyone is told that it is finished.
    Finish(RunId),
    /// The intent to end escapees of it, before the first signal.
    Escapees(RunId),
}

impl Ticket {
    /// Whether nothing that a power cut leaves follows from it before the next record of the run, which is synced: a run
    /// that was only accepted executes nothing, and nobody was told of it.
    pub fn is_provisional(self) -> bool {
        matches!(self, Self::Launch(_))
    }
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
        /// Why, in their words; may be empty.
        reason: String,
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
    /// The run says something of itself.
    Heard {
        /// The run.
        run: RunId,
        /// What, in order.
        messages: Vec<Notification>,
        /// What was said and not taken.
        refused: Refused,
        /// Who is answered, if somebody says it for the run.
        reply: Option<ReplyTo>,
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
    /// The counters that cost little were read.
    Sampled {
        /// The run.
        run: RunId,
        /// What they say.
        sample: Sample,
    },
    /// The run and each of its processes were looked at.
    Examined {
        /// The run.
        run: RunId,
        /// What was seen.
        look: Sample,
    },
    /// A person looks at the run.
    Shown(RunId),
    /// Its escapees were looked for.
    Sought {
        /// The run.
        run: RunId,
        /// Of the look that was asked for.
        number: u64,
        /// Those that are there, at most 64: first those that were known, as they were.
        found: Vec<Escapee>,
    },
    /// Something was done to escapees, or tried.
    ActedOnEscapees {
        /// The run.
        run: RunId,
        /// That of what was asked for.
        number: u64,
        /// What.
        act: EscapeeAct,
        /// What came of it for each.
        states: Vec<(ProcessId, EscapeeState)>,
    },
    /// Locks of git were looked for in the directory of a run that is over.
    LocksFound {
        /// The run.
        run: RunId,
        /// Of the look that was asked for.
        number: u64,
        /// What was found.
        found: GitLocks,
    },
    /// The OOM killer has struck in the run.
    OomKilled {
        /// The run.
        run: RunId,
        /// How often, in all.
        kills: u64,
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
    /// All runs of an earlier instance are taken up: others may have their turn.
    Recovered,
    /// Other settings are in force.
    Configured(Settings),
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
    /// The kernel refuses, for now at least.
    Failed(String),
    /// It is not the run's any more: left alone.
    Refused(String),
}

/// What is left of a run of an earlier instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The host was booted since: nothing can be left, and no old identity counts.
    Rebooted,
    /// It was queued, nothing of it was executed, and what it is to execute is at hand.
    Waiting,
    /// It was queued, and what it is to execute is not known any more.
    Forgotten(String),
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
    /// It has to wait for its turn: give up what was made ahead for a detached run, and watch the client of a foreground run.
    Wait(RunId),
    /// Make the container, put the process into it, check, watch. Answered by `Contained` or `NotContained`.
    Contain(RunId),
    /// Open the gate of a detached run; of one that was queued, let go of what is kept of its launch first. Answered by
    /// `GateOpened`.
    OpenGate(RunId),
    /// Drop the gated process: it exits and executes nothing.
    CloseGate(RunId),
    /// Look whether the run has written output. Answered by `Probed`.
    Probe(RunId),
    /// Read the counters that cost little. Answered by `Sampled`.
    Sample(RunId),
    /// Look at the run and at each of its processes, for detection. Answered by `Examined`.
    Examine(RunId),
    /// Look for escapees, off this thread. Answered by `Sought`, some time.
    Seek(Box<Sought>),
    /// See whether these escapees are there, or signal them, off this thread. Answered by `ActedOnEscapees`, some time.
    ActOnEscapees {
        /// Which, and what they are held against.
        of: Box<Sought>,
        /// What is done.
        act: EscapeeAct,
    },
    /// Look for locks of git in the directory of a run that is over, off this thread, and remove those that are to be removed.
    /// Answered by `LocksFound`, some time.
    LookForLocks(Box<Worktree>),
    /// Look whether anything is in the container. Answered by `Populated`.
    Look(RunId),
    /// Look at what each process waits for, now. Answered by `Inspected`.
    Inspect(RunId),
    /// The same of a run that is to be warned of, when other things leave time for it.
    Explain(RunId),
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
    /// Publish what was found out of a run after its end.
    Amend(Box<RunView>),
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
