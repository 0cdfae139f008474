//! The store's readers behind the trait by which the bus knows them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bus::{AuditReport, History, RunFilter};
use crate::model::{AuditRow, Collector, Error, ErrorKind, Phase, RunId, RunView, Statistics, UsageSample, Wall};
use crate::store::{Filter, Reader, StoreError, Verification};

/// Two connections: what takes long does not hold up what does not.
pub struct Readers {
    quick: Mutex<Reader>,
    slow: Mutex<Reader>,
}

impl Readers {
    /// Takes the two connections.
    pub fn new(quick: Reader, slow: Reader) -> Self {
        Self { quick: Mutex::new(quick), slow: Mutex::new(slow) }
    }

    /// The connection for short reads.
    pub fn quick(&self) -> MutexGuard<'_, Reader> {
        // A reader keeps nothing between two calls that a panic could have left half-changed.
        self.quick.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slow(&self) -> MutexGuard<'_, Reader> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(e: StoreError) -> Error {
    Error::new(ErrorKind::StoreUnavailable, format!("the history cannot be read: {e}"))
}

impl History for Readers {
    fn run(&self, id: RunId) -> Result<Option<RunView>, Error> {
        self.quick().run(id).map_err(unavailable)
    }

    fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, Error> {
        if filter.phase.is_some_and(|phase| phase != Phase::Finished) {
            return Ok(Vec::new());
        }
        let filter = Filter {
            workflow: filter.workflow.clone(),
            health: filter.health,
            uid: filter.uid,
            since: filter.since,
            before: filter.before,
            limit: usize::try_from(filter.limit).ok(),
            // Live runs are published; their rows here are older.
            ..Filter::finished()
        };
        self.slow().runs(&filter).map_err(unavailable)
    }

    fn statistics(
        &self,
        workflow: Option<&str>,
        uid: Option<u32>,
        since: Option<Wall>,
    ) -> Result<Vec<Statistics>, Error> {
        let filter = Filter { workflow: workflow.map(Into::into), uid, since, ..Filter::default() };
        let mut collector = Collector::default();
        self.slow().past(&filter, &mut |run| collector.add(run)).map_err(unavailable)?;
        Ok(collector.finish())
    }

    fn resolve(&self, prefix: &str, owner: Option<u32>) -> Result<Vec<RunId>, Error> {
        let reader = self.quick();
        let mut ids = reader.resolve(prefix).map_err(unavailable)?;
        if let Some(owner) = owner {
            let mut owned = Vec::new();
            for id in ids {
                if reader.run(id).map_err(unavailable)?.is_some_and(|view| view.spec.uid == owner) {
                    owned.push(id);
                }
            }
            ids = owned;
        }
        Ok(ids)
    }

    fn events(&self, after: u64, max: u32, run: Option<RunId>) -> Result<Vec<AuditRow>, Error> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        self.slow().events(after, max, run).map_err(unavailable)
    }

    fn verify(&self) -> Result<AuditReport, Error> {
        Ok(match self.slow().verify().map_err(unavailable)? {
            Verification::Intact { rows, first_seq, last_seq, head_hash } => {
                AuditReport { rows, first_seq, last_seq, last_hash: head_hash, broken: None }
            }
            Verification::Broken { seq, good_rows, what } => {
                AuditReport { rows: good_rows, broken: Some((seq, what)), ..AuditReport::default() }
            }
        })
    }

    fn samples(&self, run: RunId, since: Wall) -> Result<Vec<UsageSample>, Error> {
        self.slow().samples(run, since).map_err(unavailable)
    }

    fn last_seq(&self) -> Result<u64, Error> {
        self.quick().last_seq().map_err(unavailable)
    }
}
