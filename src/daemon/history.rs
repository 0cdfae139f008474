//! The store's readers behind the trait by which the bus knows them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bus::{AuditReport, History, RunFilter};
use crate::model::{AuditRow, Error, ErrorKind, Phase, RunId, RunView};
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
        let filter = Filter {
            workflow: filter.workflow.clone(),
            phases: filter.phase.into_iter().collect::<Vec<Phase>>(),
            health: filter.health,
            uid: filter.uid,
            since: filter.since,
            limit: Some(filter.limit),
            ..Filter::finished()
        };
        self.slow().runs(&filter).map_err(unavailable)
    }

    fn resolve(&self, prefix: &str, owner: Option<u32>) -> Result<Vec<RunId>, Error> {
        self.quick().resolve(prefix, owner).map_err(unavailable)
    }

    fn events(&self, after: u64, max: u32, run: Option<RunId>) -> Result<Vec<AuditRow>, Error> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        self.slow().events(after, max, run).map_err(unavailable)
    }

    fn verify(&self) -> Result<AuditReport, Error> {
        Ok(match self.slow().verify().map_err(unavailable)? {
            Verification::Whole { rows, first_seq, last_seq, head } => {
                AuditReport { rows, first_seq, last_seq, last_hash: head, broken: None }
            }
            Verification::Broken { seq, why } => AuditReport { broken: Some((seq, why)), ..AuditReport::default() },
        })
    }

    fn last_seq(&self) -> Result<u64, Error> {
        self.quick().last_seq().map_err(unavailable)
    }
}
