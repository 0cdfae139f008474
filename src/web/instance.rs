//! The instance that is shown: one connection to it, which is made again when it is lost. None is started here; a bus
//! starts what it knows.

use std::path::PathBuf;

use tokio::sync::Mutex;

use crate::bus::client::{Bus, Client, RunFilter};
use crate::model::{Error, ErrorKind, InstanceKind, RunView, Statistics};

/// Which instance.
#[derive(Debug, Clone)]
pub enum Target {
    /// The one on this bus.
    OnBus(InstanceKind, Bus),
    /// The private one with this socket.
    Private(PathBuf),
}

/// The connection to it.
#[derive(Debug)]
pub struct Instance {
    target: Target,
    client: Mutex<Option<Client>>,
}

impl Instance {
    /// Not yet connected.
    pub fn new(target: Target) -> Self {
        Self { target, client: Mutex::default() }
    }

    /// Whether it is everybody's, and not that of our user.
    pub fn is_everybodys(&self) -> bool {
        matches!(self.target, Target::OnBus(InstanceKind::System, _))
    }

    /// The connection, and whether it was just made.
    async fn client(&self) -> Result<(Client, bool), Error> {
        // Held while connecting, so that many requests make one connection.
        let mut held = self.client.lock().await;
        if let Some(client) = &*held {
            return Ok((client.clone(), false));
        }
        let client = match &self.target {
            Target::Private(socket) => Client::connect(socket).await?,
            // It only watches: a scrape each few seconds must not start again what somebody has stopped.
            Target::OnBus(kind, bus) => Client::there_on(*bus).await.ok_or_else(|| {
                unavailable(format!(
                    "there is no {kind} instance on the {bus} bus: `systemctl status guardiand` tells why"
                ))
            })?,
        };
        Ok((held.insert(client).clone(), true))
    }

    /// Asks once: for what must not be done twice.
    pub async fn once<T, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (client, _) = self.client().await?;
        let answer = ask(client).await;
        self.look_at(&answer).await;
        answer
    }

    /// Asks, and once more where an older connection proves to be lost: the instance was restarted.
    pub async fn ask<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (client, new) = self.client().await?;
        let answer = ask(client).await;
        self.look_at(&answer).await;
        match answer {
            Err(e) if e.kind == ErrorKind::Unavailable && !new => self.once(ask).await,
            answer => answer,
        }
    }

    async fn look_at<T>(&self, answer: &Result<T, Error>) {
        if answer.as_ref().is_err_and(|e| e.kind == ErrorKind::Unavailable) {
            *self.client.lock().await = None;
        }
    }

    /// Everybody's runs or, where we have no right to those, our user's own; newest first.
    pub async fn list(&self, filter: RunFilter) -> Result<Vec<RunView>, Error> {
        let ask = async |all_users| {
            let filter = RunFilter { all_users, ..filter.clone() };
            let filter = &filter;
            self.ask(|c| async move { c.list(filter).await }).await
        };
        let mut runs = match ask(true).await {
            Err(e) if e.kind == ErrorKind::NotAuthorized => ask(false).await,
            runs => runs,
        }?;
        runs.sort_by_key(|view| std::cmp::Reverse(view.created_at));
        Ok(runs)
    }

    /// What everybody's runs that are over say of their workflows or, without that right, our user's own.
    pub async fn statistics(&self, filter: RunFilter) -> Result<Vec<Statistics>, Error> {
        let ask = async |all_users| {
            let filter = RunFilter { all_users, ..filter.clone() };
            let filter = &filter;
            self.ask(|c| async move { c.statistics(filter).await }).await
        };
        match ask(true).await {
            Err(e) if e.kind == ErrorKind::NotAuthorized => ask(false).await,
            all => all,
        }
    }
}

fn unavailable(why: String) -> Error {
    Error::new(ErrorKind::Unavailable, why)
}
