//! Looks for escapees: those that are asked for together are one look, and its answers come back as events. So do those of
//! looks for what a run leaves.

use super::{Driver, Recorder};
use crate::engine::Event;
use crate::kernel::{Finding, Kernel};
use crate::model::RunId;

impl<K: Kernel, R: Recorder> Driver<K, R> {
    /// A person looks at a run.
    pub fn shown(&mut self, run: RunId) {
        self.refresh(run);
        self.handle(Event::Shown(run));
    }

    /// Asks for what the events so far have wanted.
    pub(super) fn seek(&mut self) {
        let mut runs = std::mem::take(&mut self.seeking);
        // Of two looks at a run that were wanted at the same time the later one will do.
        runs.reverse();
        runs.sort_by_key(|sought| sought.run);
        runs.dedup_by_key(|sought| sought.run);
        if !runs.is_empty() {
            self.kernel.seek(runs);
        }
    }

    /// Takes in the answers.
    pub(super) fn found(&mut self) {
        for finding in self.kernel.findings() {
            self.handle(match finding {
                Finding::Sought { run, number, found } => Event::Sought { run, number, found },
                Finding::Locks { run, number, found } => Event::LocksFound { run, number, found },
                Finding::Acted { run, number, act, states } => Event::ActedOnEscapees { run, number, act, states },
            });
        }
    }
}
