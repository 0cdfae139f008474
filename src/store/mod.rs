//! The record of truth: SQLite, one writer thread behind a bounded channel, readers with connections of their own.
//!
//! Owns the schema, the hash chain of the audit log, retention and what is done with a corrupt database. Touches the
//! state directory only. Knows runs as the model's views plus one opaque text, the engine's own state, which it hands
//! back to the next instance; decides nothing about runs.
//!
//! ```text
//!  engine ── Batch ──▶ Writer ═ bounded channel ═▶ writer thread ── one transaction, fsync ──▶ guardian.db
//!    ▲                                                  │                                        │ WAL
//!    └──────────────── Notice ──────────────────────────┴── AuditRow ──▶ journal          Reader ┘
//! ```
//!
//! What is accepted is written in the order in which it was accepted, or the process ends first: a full disk makes the
//! writer keep and retry, then refuse; it never makes it forget. Samples of what runs used are another matter: see `samples`.

use crate::model::{AuditEvent, KeptLaunch, KillAnswer, Receipt, RunId, RunView};

mod audit;
mod doubt;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod launches;
mod open;
mod past;
mod reader;
mod record;
mod retention;
mod samples;
mod schema;
#[cfg(test)]
mod testing;
mod writer;

pub use audit::Verification;
pub use error::StoreError;
pub use launches::Launches;
pub use open::{Opened, SetAside, Store};
pub use reader::{Filter, LiveRuns, Reader};
pub use writer::{JournalSink, NoticeSink, Writer};

/// One thing to write.
#[derive(Debug, Clone)]
pub enum Write {
    /// The run as it now is: inserted or replaced.
    Run {
        /// What is shown.
        view: Box<RunView>,
        /// The engine's state of a live run, for the next instance; none once it is finished.
        state: Option<String>,
    },
    /// One entry of the audit log.
    Audit(AuditEvent),
    /// The intent of a kill. Written again when the kill is escalated.
    KillIntent(KillAnswer),
    /// The kill's proof.
    KillDone(Box<Receipt>),
    /// What a queued run is to execute: into a file, before the batch is committed.
    KeepLaunch(Box<KeptLaunch>),
    /// It is over: the file is removed after that, if it is there still.
    ForgetLaunch(RunId),
}

/// What is written in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order.
    pub writes: Vec<Write>,
    /// Asks for [`Notice::Recorded`] or [`Notice::Failed`] with this number.
    pub ticket: Option<u64>,
    /// Nothing follows from it before a later batch is synced, and it with that one: it need not be synced itself, and the
    /// journal has it afterwards. It outlives the instance, and a power cut only with the later one.
    pub is_provisional: bool,
}

/// What the writer tells the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The batch with this ticket is committed and, unless it is provisional, synced. It may come after [`Notice::Failed`].
    Recorded(u64),
    /// The batch with this ticket could not be committed now; it is kept and tried again. Told once a ticket.
    Failed(u64, String),
    /// Writing fails; every batch is kept (up to a bound) and tried again. Told once until [`Notice::Recovered`].
    Troubled(String),
    /// Writing works again, and nothing is waiting.
    Recovered,
}
