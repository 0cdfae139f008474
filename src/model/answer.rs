//! What a request to an instance is answered with.

use super::{KillAnswer, Reserved, RunId, Wall};

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Attach and Start: the run is contained, and its gate may open or is open.
    Run(RunId),
    /// Reserve: the id, and how its command is to be started.
    Reserved(Reserved),
    /// Kill: the intent is on record.
    Kill(KillAnswer),
    /// Extend: when the timer now ends the run.
    Deadline(Wall),
    /// Done.
    Done,
}
