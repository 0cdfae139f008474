//! What a launch is asked for with.

use super::{LimitUpdate, RunId};

/// What a run is to be started with. Every byte string is without NUL and of bounded length (the bus checks).
#[derive(Debug, Clone, Default)]
pub struct LaunchRequest {
    /// The workflow; none is `default`.
    pub workflow: Option<String>,
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
    /// The id that the caller reserved; for a foreground run only.
    pub reserved: Option<RunId>,
}
