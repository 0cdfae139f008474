//! What a request to an instance is answered with.

use super::{KillAnswer, RunId, Wall};

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Attach and Start: the run is contained, and its gate may open or is open.
    Run(RunId),
    /// Kill: the intent is on record.
    Kill(KillAnswer),
    /// Extend: when the timer now ends the run.
    Deadline(Wall),
    /// Done.
    Done,
}
