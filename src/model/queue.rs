//! Runs that wait until they may run, as everyone is shown them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The place of a run in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// Its number in the order of arrival, over all workflows; never given twice.
    pub place: u64,
    /// How many runs of its workflow came before it and wait still, and this one; 0 where that was not counted.
    pub position: u32,
    /// How many runs of its workflow wait.
    pub of: u32,
    /// What it waits for, in a sentence.
    pub why: String,
}

impl Queued {
    /// Where it is, in a few words.
    pub fn describe(&self, workflow: &str) -> String {
        format!("queued, {} for workflow {workflow}", self.turn())
    }

    /// `3rd of 12`.
    pub fn turn(&self) -> String {
        format!("{} of {}", ordinal(self.position), self.of)
    }
}

/// `1st`, `2nd`, `3rd`, `4th`, `11th`, `21st`.
fn ordinal(n: u32) -> impl fmt::Display {
    let ending = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_said_as_people_say_it() {
        let said = [1, 2, 3, 4, 11, 12, 13, 21, 102, 111].map(|n| ordinal(n).to_string());
        assert_eq!(said, ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]);
        let queued = Queued { position: 3, of: 12, ..Queued::default() };
        assert_eq!(queued.describe("builder"), "queued, 3rd of 12 for workflow builder");
    }
}
