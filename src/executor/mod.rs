//! Executors: how an agent's command is built, and how its progress is read from what it writes.
//!
//! ```text
//!  workflow ─▶ Executor ─▶ command line: guardian relay SPEC -- CMD …      (an executor that reads nothing: CMD alone)
//!
//!   in the run:  CMD ══ pipe ══▶ relay ══▶ the run's standard output, byte by byte
//!                                  └─ lines ─▶ Reader ─▶ Report ─▶ datagrams to NOTIFY_SOCKET
//! ```
//!
//! Owns the formats of streams, the relay and the datagrams. Knows the model and no D-Bus; what a report is taken for is
//! the engine's.

pub mod command;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod handed;
mod jsonl;
mod lines;
mod matcher;
mod passing;
mod pick;
mod reader;
pub mod relay;
mod report;
pub mod sender;
mod signals;
mod stream_json;

use serde::{Deserialize, Serialize};

pub use matcher::{Matcher, Matchers};
pub use report::Report;

pub use crate::model::{CLAUDE_CLI, LOCAL};

/// How the commands of a workflow are executed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "progress", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Executor {
    /// As they are.
    #[default]
    Local,
    /// An agent that writes what `claude -p --output-format stream-json --verbose` does.
    StreamJson {
        /// The executable that stands for `claude`: a name or a path.
        command: String,
    },
    /// An agent that writes a JSON object a line, of which the configuration says what it means.
    Jsonl(Box<Matchers>),
}

impl Executor {
    /// What `claude-cli` is where the configuration says nothing of it.
    pub fn claude_cli() -> Self {
        Self::StreamJson { command: "claude".to_owned() }
    }

    /// The executor as an argument of the relay; none for one that needs no relay.
    pub fn spec(&self) -> Option<String> {
        match self {
            Self::Local => None,
            reading => serde_json::to_string(reading).ok(),
        }
    }

    /// The executor of a relay's argument.
    pub fn from_spec(spec: &str) -> Result<Self, String> {
        serde_json::from_str(spec).map_err(|e| format!("the relay's description of the executor makes no sense: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_read_back_as_it_was() {
        let matchers = Matchers { turn: Some("/type=turn".parse().unwrap()), ..Matchers::default() };
        for executor in [Executor::claude_cli(), Executor::Jsonl(Box::new(matchers))] {
            assert_eq!(Executor::from_spec(&executor.spec().unwrap()), Ok(executor));
        }
        assert_eq!(Executor::Local.spec(), None);
        assert!(Executor::from_spec("{\"progress\":\"xml\"}").unwrap_err().contains("makes no sense"));
    }
}
