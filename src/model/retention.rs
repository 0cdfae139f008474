//! What is kept, and for how long.

use std::time::Duration;

/// How long and how much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Finished runs and audit rows older than this are removed; `None` keeps them whatever their age.
    pub max_age: Option<Duration>,
    /// When the database holds more than this, the oldest are removed until it holds nine tenths; `None` is no bound.
    pub max_bytes: Option<u64>,
}
