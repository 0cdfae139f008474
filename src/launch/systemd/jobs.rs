//! The jobs of systemd for units of runs. One subscription tells what it was asked to do with each, by whomever, and how it
//! went: what it is asked to stop gets a job before anything is done to it.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};
use zbus::export::futures_core::Stream as _;
use zbus::message::{Flags, Type};
use zbus::{Connection, MatchRule, Message, MessageStream, ObjectPath};

use super::bus::{MANAGER, MANAGER_PATH, SYSTEMD};
use super::names;
use crate::model::RunId;

/// The jobs that systemd was given for units of runs.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    seen: HashMap<RunId, HashSet<String>>,
    /// Those that we asked for ourselves.
    own: HashMap<RunId, HashSet<String>>,
}

impl Jobs {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a job for the unit of a run that we asked for.
    pub(super) fn is_ours(&self, run: RunId, job: &str) {
        self.table().own.entry(run).or_default().insert(job.to_owned());
    }

    /// Whether there was a job for the unit of a run that was not ours.
    pub(super) fn has_others(&self, run: RunId) -> bool {
        let table = self.table();
        let own = table.own.get(&run);
        let is_ours = |job: &String| own.is_some_and(|own| own.contains(job));
        table.seen.get(&run).is_some_and(|seen| !seen.iter().all(is_ours))
    }

    pub(super) fn forget(&self, run: RunId) {
        let mut table = self.table();
        table.seen.remove(&run);
        table.own.remove(&run);
    }
}

/// A connection to the bus, and the ends of jobs that are waited for on it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub bus: Connection,
    ends: Arc<Ends>,
}

/// A job and its result.
type End = (String, String);

/// Who waits for the ends of a unit's jobs, by its name.
type Waiting = HashMap<String, mpsc::UnboundedSender<End>>;

/// None can wait once the connection is lost.
#[derive(Debug)]
struct Ends(Mutex<Option<Waiting>>);

impl Ends {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Begins to listen. The stream has to be read: one that is not would hold up the connection. `lost` is told when the
    /// connection is.
    pub(super) async fn listen(bus: Connection, jobs: Arc<Jobs>, lost: Arc<Notify>) -> zbus::Result<Self> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SYSTEMD)
            .path(MANAGER_PATH)
            .interface(MANAGER)
            .build()?;
        let mut stream = MessageStream::for_match_rule(rule, &bus, None).await?;
        let ends = Arc::new(Ends(Mutex::new(Some(HashMap::new()))));
        let line = Self { bus, ends: ends.clone() };
        line.subscribe().await?;
        tokio::spawn(async move {
            while let Some(Ok(signal)) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
                heard(&signal, &jobs, &ends);
            }
            *ends.waiting() = None;
            lost.notify_one();
        });
        Ok(line)
    }

    /// Asks systemd for its signals, which it sends over its own socket unasked. It does what it is asked in turn, so nobody
    /// waits for the answer.
    pub(super) async fn subscribe(&self) -> zbus::Result<()> {
        if !self.bus.is_bus() {
            return Ok(());
        }
        let ask = Message::method_call(MANAGER_PATH, "Subscribe")
            .destination(SYSTEMD)
            .interface(MANAGER)
            .with_flags(Flags::NO_REPLY_EXPECTED)
            .build(&())?;
        self.bus.send(&ask).await
    }

    /// From now on, the ends of this unit's jobs.
    pub(super) fn ends_of(&self, unit: &str) -> JobEnds {
        let (sender, receiver) = mpsc::unbounded_channel();
        if let Some(waiting) = self.ends.waiting().as_mut() {
            waiting.insert(unit.to_owned(), sender);
        }
        JobEnds { receiver, unit: unit.to_owned(), ends: self.ends.clone() }
    }
}

fn heard(signal: &Message, jobs: &Jobs, ends: &Ends) {
    let (header, body) = (signal.header(), signal.body());
    match header.member().map(|m| m.as_str()) {
        Some("JobNew") => {
            let Ok((_, job, unit)) = body.deserialize::<(u32, ObjectPath<'_>, &str)>() else { return };
            let Some((run, _)) = names::run_of(unit) else { return };
            jobs.table().seen.entry(run).or_default().insert(job.as_str().to_owned());
        }
        Some("JobRemoved") => {
            let Ok((_, job, unit, result)) = body.deserialize::<(u32, ObjectPath<'_>, &str, &str)>() else { return };
            let waiting = ends.waiting();
            if let Some(waiter) = waiting.as_ref().and_then(|w| w.get(unit)) {
                // Whoever has given up waiting needs nothing.
                let _ = waiter.send((job.as_str().to_owned(), result.to_owned()));
            }
        }
        _ => {}
    }
}

/// The ends of the jobs of one unit.
pub(super) struct JobEnds {
    receiver: mpsc::UnboundedReceiver<End>,
    unit: String,
    ends: Arc<Ends>,
}

impl JobEnds {
    /// Waits for the end of a job; gives its result.
    pub(super) async fn of(&mut self, job: &ObjectPath<'_>) -> zbus::Result<String> {
        while let Some((ended, result)) = self.receiver.recv().await {
            if ended == job.as_str() {
                return Ok(result);
            }
        }
        Err(zbus::Error::InputOutput(io::Error::from(io::ErrorKind::ConnectionReset).into()))
    }
}

impl Drop for JobEnds {
    fn drop(&mut self) {
        if let Some(waiting) = self.ends.waiting().as_mut() {
            waiting.remove(&self.unit);
        }
    }
}
