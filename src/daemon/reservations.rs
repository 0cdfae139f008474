//! Ids that were given out for foreground runs which are not attached yet.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{Error, ErrorKind, Mono, ProcessId, RunId};

use super::command::Caller;

/// How long a reservation holds: a client forks and attaches at once.
const HOLDS: Duration = Duration::from_secs(10);
/// How many there may be. Each is a directory in the subtree.
const MOST: usize = 1024;

/// The reservations.
#[derive(Debug, Default)]
pub struct Reservations(BTreeMap<RunId, (ProcessId, Mono)>);

impl Reservations {
    /// Adds one for the caller's process.
    pub fn add(&mut self, run: RunId, caller: &Caller, now: Mono) -> Result<(), Error> {
        if self.0.len() >= MOST {
            let message = format!("{MOST} runs are reserved and not attached yet: try again in some seconds");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        self.0.insert(run, (client(caller)?, now + HOLDS));
        Ok(())
    }

    /// Takes one out, for the process that it was made for.
    pub fn take(&mut self, run: RunId, caller: &Caller) -> Result<(), Error> {
        let client = client(caller)?;
        match self.0.get(&run) {
            Some((owner, _)) if *owner == client => {
                self.0.remove(&run);
                Ok(())
            }
            _ => Err(Error::invalid(format!("{run} is not reserved for this process, or was so for too long"))),
        }
    }

    /// When the next one expires.
    pub fn next(&self) -> Option<Mono> {
        self.0.values().map(|(_, at)| *at).min()
    }

    /// Takes out those that have expired.
    pub fn expired(&mut self, now: Mono) -> Vec<RunId> {
        let expired: Vec<RunId> = self.0.iter().filter(|(_, (_, at))| *at <= now).map(|(run, _)| *run).collect();
        self.0.retain(|run, _| !expired.contains(run));
        expired
    }
}

fn client(caller: &Caller) -> Result<ProcessId, Error> {
    let process = caller.process.as_ref().ok_or_else(|| Error::invalid("the caller's process is not known"))?;
    process.id().map_err(|e| Error::invalid(format!("the caller is not a live process: {e}")))
}
