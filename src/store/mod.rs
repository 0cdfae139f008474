//! The record of truth: SQLite, one writer thread behind a bounded channel, readers with connections of their own.
//!
//! Owns the schema, the hash chain of the audit log, retention and what is done with a corrupt database. Knows runs as
//! the model's views plus one opaque text, the engine's own state, which it hands back to the next instance.

use crate::model::{AuditEvent, KillAnswer, Receipt, RunView};

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
    /// The intent of a kill.
    KillIntent(KillAnswer),
    /// The kill's proof.
    KillDone(Box<Receipt>),
}

/// What is written in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order.
    pub writes: Vec<Write>,
    /// Asks for [`Notice::Recorded`] or [`Notice::Failed`] with this number.
    pub ticket: Option<u64>,
}

/// What the writer tells the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The batch with this ticket is committed and synced.
    Recorded(u64),
    /// The batch with this ticket could not be committed now; it is kept and tried again.
    Failed(u64, String),
    /// Writing fails; every batch is kept (up to a bound) and tried again.
    Troubled(String),
    /// Writing works again, and nothing is waiting.
    Recovered,
}
