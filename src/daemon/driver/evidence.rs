//! Evidence: what the processes of a run wait for. Before a kill it is taken at once; for a warning it waits its turn.
//!
//! A look at a run with many processes, or on a slow /proc, takes as long as it is given. Hundreds of runs can be warned of in
//! the same second: each turn of the loop gives them a share, so that deadlines and the ping to systemd come in between.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::{Event, State};
use crate::kernel::Kernel;
use crate::model::RunId;

use super::{Driver, Recorder};

/// Between the intent of a kill and the first signal: for all kills of a turn together.
const BEFORE_KILL: Duration = Duration::from_millis(250);
/// What is left for each kill where others have used that up: enough for some processes.
const LEAST: Duration = Duration::from_millis(5);
/// For one warning.
const BEFORE_WARNING: Duration = Duration::from_millis(50);
/// After this no further one is begun in a turn. With the last one it makes 75 ms: a limit fires within 100.
const SHARE: Duration = Duration::from_millis(25);

/// What a turn has had of it, and what is left for the next ones.
#[derive(Debug, Default)]
pub(super) struct Turn {
    waiting: VecDeque<RunId>,
    used: Duration,
}

impl<K: Kernel, R: Recorder> Driver<K, R> {
    /// Takes evidence before a kill.
    pub(super) fn inspect(&mut self, run: RunId) {
        let begun = self.kernel.now().mono;
        self.take_evidence(run, BEFORE_KILL.saturating_sub(self.evidence.used).max(LEAST));
        self.evidence.used += self.kernel.now().mono.since(begun);
        self.pass("kill.evidence");
    }

    fn take_evidence(&mut self, run: RunId, budget: Duration) {
        let held = self.held.get(&run);
        let container = held.and_then(|h| h.container.as_ref());
        let mut evidence = container.map(|c| self.kernel.evidence(c, budget)).unwrap_or_default();
        evidence.growth = held.and_then(|h| h.usage.growth());
        self.queue.push_back(Event::Inspected { run, evidence });
    }

    /// Takes evidence for a warning in this turn or in a later one.
    pub(super) fn explain_later(&mut self, run: RunId) {
        if !self.evidence.waiting.contains(&run) {
            self.evidence.waiting.push_back(run);
        }
    }

    /// Whether there is evidence to be taken.
    pub(super) fn is_explaining(&self) -> bool {
        !self.evidence.waiting.is_empty()
    }

    /// Begins a turn: takes evidence for warnings until it has had its share.
    pub(super) fn explain(&mut self) {
        self.evidence.used = Duration::ZERO;
        let begun = self.kernel.now().mono;
        while self.kernel.now().mono.since(begun) < SHARE {
            let Some(run) = self.evidence.waiting.pop_front() else { return };
            // One that is being ended meanwhile is not warned of any more.
            if self.engine.run(run).is_some_and(|run| matches!(run.state, State::Live { .. })) {
                self.take_evidence(run, BEFORE_WARNING);
                self.drain();
            }
        }
    }
}
