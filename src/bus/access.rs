//! Who may see and do what, and how much at once.
//!
//! A run's owner and uid 0 may see it and act on it, and who is granted the right by polkit. For everybody else a run that
//! exists and one that does not give the same answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::rights::{Peer, Right};
use super::{History, RunFilter, Services};
use crate::daemon::command::{Answer, Caller, Command, LaunchRequest};
use crate::failpoint;
use crate::model::{Error, ErrorKind, Phase, RunId, RunView};

/// Calls of one user that are worked on at the same time; further ones wait for a turn.
const IN_FLIGHT: usize = 64;
/// Calls of one user that wait for a turn; further ones are refused. A hundred simultaneous kills of one run all get
/// their answer, and a client in a loop cannot fill the memory.
const QUEUED: usize = 1024;
/// Calls of WaitRun that one user has open. They last as long as runs do, so they are not counted with the others.
const WAITING: usize = 4096;

/// The calls in flight, by uid. Only uids that may connect get here, so the map stays small.
#[derive(Default)]
pub struct Calls(Mutex<HashMap<u32, Arc<Turns>>>);

struct Turns {
    queue: Arc<Semaphore>,
    work: Arc<Semaphore>,
    waits: Arc<Semaphore>,
}

/// A call in flight, until it is dropped.
pub struct Turn {
    _queue: OwnedSemaphorePermit,
    _work: OwnedSemaphorePermit,
}

impl Calls {
    fn of(&self, uid: u32) -> Arc<Turns> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Turns {
            queue: Arc::new(Semaphore::new(IN_FLIGHT + QUEUED)),
            work: Arc::new(Semaphore::new(IN_FLIGHT)),
            waits: Arc::new(Semaphore::new(WAITING)),
        };
        all.entry(uid).or_insert_with(|| Arc::new(new())).clone()
    }

    /// Waits for a turn.
    pub async fn enter(&self, uid: u32) -> Result<Turn, Error> {
        let turns = self.of(uid);
        let queue = turns.queue.clone().try_acquire_owned().map_err(|_| too_many(IN_FLIGHT + QUEUED, "calls", uid))?;
        let work = turns.work.clone().acquire_owned().await.map_err(|e| Error::internal(e.to_string()))?;
        Ok(Turn { _queue: queue, _work: work })
    }

    /// Begins a wait for the end of a run.
    pub fn enter_wait(&self, uid: u32) -> Result<OwnedSemaphorePermit, Error> {
        self.of(uid).waits.clone().try_acquire_owned().map_err(|_| too_many(WAITING, "waits for runs", uid))
    }
}

fn too_many(max: usize, what: &str, uid: u32) -> Error {
    Error::new(ErrorKind::LimitExceeded, format!("uid {uid} has {max} {what} open already: let some finish first"))
}

/// Whether the caller may see this run, and act on it.
pub fn may_see(caller: &Caller, view: &RunView) -> bool {
    caller.uid == 0 || caller.uid == view.spec.uid
}

/// A request of one caller: what every handler works with.
pub struct Request<'a> {
    /// The services asked.
    pub services: &'a Arc<Services>,
    /// Who asks.
    pub peer: &'a Peer,
}

impl Request<'_> {
    /// Asks the engine.
    pub async fn ask(&self, command: Command) -> Result<Answer, Error> {
        self.services.commands.ask(command, self.peer.caller.clone()).await
    }

    /// Reads from the store on a thread that may block.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn History) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let history = self.services.history.clone();
        blocking(move || read(history.as_ref())).await
    }

    /// Whether the caller has a right over what is not its own. Root has all, and so has the user whose instance this is.
    pub async fn has(&self, right: Right) -> bool {
        let uid = self.peer.caller.uid;
        if uid == 0 || uid == self.services.about.uid || failpoint::without("guard.rights").is_some() {
            return true;
        }
        match &self.peer.authority {
            Some(authority) => authority.grants(right).await,
            None => false,
        }
    }

    /// Whether the caller is shown the runs of others too, of those that it asks for. Refuses who asks for everybody's and may
    /// not see them; to who asks for somebody else's, without the right, there are none.
    pub async fn sees_all(&self, filter: &RunFilter) -> Result<bool, Error> {
        let own = self.peer.caller.uid;
        // Who asks for their own runs need not wait for polkit.
        let others = filter.all_users || filter.uid.is_some_and(|wanted| wanted != own);
        let sees_all = own == 0 || (others && self.has(Right::ReadAll).await);
        if filter.all_users && !sees_all { Err(lacks(Right::ReadAll)) } else { Ok(sees_all) }
    }

    /// Refuses who has not this right over the instance as a whole.
    pub async fn demand(&self, right: Right) -> Result<(), Error> {
        if self.has(right).await {
            return Ok(());
        }
        Err(lacks(right))
    }

    /// Refuses a launch for somebody else, but by who may do that.
    pub async fn may_launch(&self, request: &LaunchRequest) -> Result<(), Error> {
        match request.uid {
            Some(uid) if uid != self.peer.caller.uid => self.demand(Right::StartRun).await,
            _ => Ok(()),
        }
    }

    /// The run with exactly this id, live or finished: the caller's own, or any for who has the right. A run of somebody
    /// else and one that does not exist give the same answer, in the same way.
    pub async fn run(&self, id: RunId, right: Right) -> Result<Arc<RunView>, Error> {
        let live = self.services.published.run(id);
        if let Some(own) = live.as_ref().filter(|v| may_see(&self.peer.caller, v)) {
            return Ok(own.clone());
        }
        // Read for a live run of somebody else too: it takes the time that an unknown one does.
        let stored = self.read(move |h| h.run(id)).await?.map(Arc::new);
        let known = live.or(stored);
        if let Some(own) = known.as_ref().filter(|v| may_see(&self.peer.caller, v)) {
            return Ok(own.clone());
        }
        // Both at once, so that a polkit that hangs is waited for once.
        let sees = async { right == Right::ReadAll || self.has(Right::ReadAll).await };
        match (tokio::join!(self.has(right), sees), known) {
            ((true, _), Some(view)) => Ok(view),
            // Who may see it is told why nothing is done.
            ((false, true), Some(_)) if right != Right::ReadAll => Err(lacks(right)),
            _ => Err(Error::no_such_run(id)),
        }
    }

    /// The run with this id or unique beginning of an id.
    pub async fn find(&self, text: &str, right: Right) -> Result<Arc<RunView>, Error> {
        if let Ok(id) = text.parse() {
            return self.run(id, right).await;
        }
        if !RunId::is_prefix(text) {
            let shown: String = text.chars().take(40).collect();
            return Err(Error::new(
                ErrorKind::InvalidRunId,
                format!(
                    "{shown:?} is not a run id, nor the beginning of one: `guardian ps --all` lists the runs you may see"
                ),
            ));
        }
        let digits = text.strip_prefix(RunId::PREFIX).unwrap_or(text);
        let prefix = format!("{}{digits}", RunId::PREFIX);
        // Of one's own runs the beginning is enough; who has rights over all names one of all.
        let own = self.matching(&prefix, (self.peer.caller.uid != 0).then_some(self.peer.caller.uid)).await?;
        let ids = match own.as_slice() {
            [] if self.has(right).await => self.matching(&prefix, None).await?,
            _ => own,
        };
        match ids.as_slice() {
            [] => Err(Error::no_such_run(text)),
            [id] => self.run(*id, right).await,
            some => {
                let some: Vec<_> = some.iter().take(3).map(RunId::to_string).collect();
                Err(Error::new(
                    ErrorKind::AmbiguousRunId,
                    format!("{text} is the beginning of more than one run id ({}): give more digits", some.join(", ")),
                ))
            }
        }
    }

    /// The ids that begin so, of one owner's runs or of all.
    async fn matching(&self, prefix: &str, owner: Option<u32>) -> Result<Vec<RunId>, Error> {
        let live = self.services.published.live();
        let mut ids: Vec<RunId> = live
            .iter()
            .map(|l| &l.view)
            .filter(|v| owner.is_none_or(|uid| uid == v.spec.uid) && v.spec.id.to_string().starts_with(prefix))
            .map(|v| v.spec.id)
            .collect();
        let wanted = prefix.to_owned();
        ids.extend(self.read(move |h| h.resolve(&wanted, owner)).await?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The live run with this id or unique beginning of an id.
    pub async fn find_live(&self, text: &str, right: Right) -> Result<RunId, Error> {
        let view = self.find(text, right).await?;
        if view.phase == Phase::Finished { Err(Error::already_finished(view.spec.id)) } else { Ok(view.spec.id) }
    }
}

/// The refusal of who has not this right.
pub fn lacks(right: Right) -> Error {
    let action = right.action();
    Error::new(
        ErrorKind::NotAuthorized,
        format!("only root, the user whose instance this is, and who is granted {action} by polkit may do this"),
    )
}

/// Does what may block on a thread of its own.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::internal(format!("a reader failed: {e}"))))
}

/// An answer of the engine that does not fit the question.
pub fn unexpected(answer: &Answer) -> Error {
    Error::internal(format!("the engine answered {answer:?} to another question: please report this"))
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
