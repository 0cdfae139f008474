//! Why a run ended, in sentences.

use super::output::escape;
use crate::model::{KillReason, Outcome, RunView};

/// What whoever started or awaited the run is told about its end; nothing when it simply exited by itself.
pub fn sentences(view: &RunView) -> Vec<String> {
    let id = view.spec.id;
    let mut told = Vec::new();
    match &view.outcome {
        None | Some(Outcome::Exited { .. } | Outcome::Signaled { .. }) => {
            if let Some(receipt) = &view.receipt {
                match receipt.reason {
                    KillReason::Leftovers => told.push(format!("{id} left processes behind when it exited")),
                    ref reason => {
                        told.push(format!("{id} was being ended when it exited: {}", escape(&reason.to_string())))
                    }
                }
            }
        }
        Some(Outcome::Killed { reason }) if view.started_at.is_none() && view.receipt.is_none() => {
            told.push(format!("{id} was ended before its command was executed: {}", escape(&reason.to_string())));
        }
        Some(Outcome::Killed { reason }) => told.push(format!("{id} was ended: {}", escape(&reason.to_string()))),
        Some(Outcome::Oom) => told.push(format!("{id} was ended by the kernel: it was out of memory")),
        Some(Outcome::Lost { why }) => {
            told.push(format!("{id} is over, and how it ended is not known: {}", escape(why)))
        }
    }
    if let Some(receipt) = &view.receipt {
        told.push(receipt.to_string());
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{finished, killed};

    #[test]
    fn a_run_that_exits_by_itself_is_not_talked_about() {
        assert!(sentences(&finished(Outcome::Exited { code: 3 })).is_empty());
    }

    #[test]
    fn the_end_by_a_limit_is_explained_and_proved() {
        let told = sentences(&killed());
        assert_eq!(told[0], "run_000000000001 was ended: max_runtime of 3 s is over");
        assert_eq!(told[1], "SIGTERM to 2 processes, no cgroup.kill needed, 0 survivors, 4 ms");
    }
}
