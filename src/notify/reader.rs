//! Reads the audit from where it stopped, each second, and puts what people are told into the outbox.
//!
//! A poll rather than the signal: one call a second is nothing to an instance, and what a lost signal costs cannot be told.
//! Nothing here starts an instance that is stopped.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::config::Config;
use super::event::{Event, Notice, notice, worth_telling};
use super::log;
use super::outbox::{Cursor, Outbox};
use super::serve::{Bell, host, now};
use crate::bus::client::{Bus, Client};
use crate::model::{AuditRow, Error, ErrorKind, RunId, RunView};

/// The time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Rows that are asked for at once.
const ROWS: u32 = 500;
/// How often the instance is asked how it is, and the service manager told.
const ASK: Duration = Duration::from_secs(5);
/// How long an instance may not answer before that is told: a restart takes less.
const GONE: Duration = Duration::from_secs(30);
/// How often the same trouble of ours is written down.
const SAY: Duration = Duration::from_secs(300);
/// Where what was last told of the instance is kept.
const INSTANCE: &str = "instance";

/// Whose audit is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The host's instance, on the system bus.
    System,
    /// The user's, on the session bus.
    User,
    /// The one behind this socket. That it does not answer is not told: a private one ends when it is idle.
    Socket(PathBuf),
}

/// The reader.
pub struct Reader {
    config: Arc<Config>,
    outbox: Outbox,
    bell: Arc<Bell>,
    source: Source,
    host: String,
    client: Option<Client>,
    cursor: Option<Cursor>,
    /// Since when the instance does not answer.
    silent: Option<Instant>,
    asks: Instant,
    tells: Instant,
    said: Option<(String, Instant)>,
    is_ready: bool,
}

impl Reader {
    /// A reader that is nowhere yet.
    pub fn new(config: Arc<Config>, outbox: Outbox, bell: Arc<Bell>, source: Source) -> Self {
        let at = Instant::now();
        Self {
            config,
            outbox,
            bell,
            source,
            host: host(),
            client: None,
            cursor: None,
            silent: None,
            asks: at,
            tells: at,
            said: None,
            is_ready: false,
        }
    }

    /// Reads until it is told to stop.
    pub async fn run(mut self) -> anyhow::Result<()> {
        self.cursor = self.outbox.cursor()?;
        let watchdog = sd_notify::watchdog_enabled().map(|within| within / 3);
        let mut pinged = Instant::now();
        // It serves what waits in the outbox from now on, whether the instance answers or not.
        tell(&[NotifyState::Ready]);
        while !self.bell.is_over() {
            let more = match self.look().await {
                Ok(more) => more,
                Err(e) => {
                    self.trouble(&e);
                    false
                }
            };
            self.gone()?;
            self.status();
            if watchdog.is_some_and(|every| pinged.elapsed() >= every) {
                tell(&[NotifyState::Watchdog]);
                pinged = Instant::now();
            }
            let until = Instant::now() + if more { Duration::ZERO } else { LOOK };
            while Instant::now() < until && !self.bell.is_over() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        tell(&[NotifyState::Stopping]);
        Ok(())
    }

    /// Reads what is new; whether there is more.
    async fn look(&mut self) -> anyhow::Result<bool> {
        let looked = self.try_look().await;
        let kind = looked.as_ref().err().and_then(|e| e.downcast_ref::<Error>()).map(|e| e.kind);
        if kind == Some(ErrorKind::Unavailable) {
            // The next look connects anew.
            self.client = None;
            self.silent.get_or_insert_with(Instant::now);
        } else {
            // Who refuses answers.
            self.silent = None;
        }
        looked
    }

    async fn try_look(&mut self) -> anyhow::Result<bool> {
        let client = match self.client.clone() {
            Some(client) => client,
            None => self.connect().await?,
        };
        self.look_at(&client).await
    }

    async fn look_at(&mut self, client: &Client) -> anyhow::Result<bool> {
        if self.asks <= Instant::now() {
            self.ask(client).await?;
            self.asks = Instant::now() + ASK;
        }
        let after = self.cursor.as_ref().map_or(0, |c| c.seq);
        let rows = client.events(after, ROWS, None).await?;
        let Some(last) = rows.last() else { return Ok(false) };
        let more = rows.len() as u64 == u64::from(ROWS);
        let cursor = Cursor { seq: last.seq, hash: last.hash.clone() };
        let notices = self.notices(client, &rows).await?;
        self.take(&notices, Some(&cursor), &[])?;
        self.cursor = Some(cursor);
        Ok(more)
    }

    async fn notices(&self, client: &Client, rows: &[AuditRow]) -> anyhow::Result<Vec<Notice>> {
        let mut runs: HashMap<RunId, Option<RunView>> = HashMap::new();
        let mut notices = Vec::new();
        for row in worth_telling(rows) {
            if let Some(id) = row.event.run
                && !runs.contains_key(&id)
            {
                let run = match client.show(&id.to_string()).await {
                    // Nobody answers any more: these rows are read again.
                    Err(e) if e.kind == ErrorKind::Unavailable => return Err(e.into()),
                    run => run.ok(),
                };
                runs.insert(id, run);
            }
            let run = row.event.run.and_then(|id| runs.get(&id)).and_then(Option::as_ref);
            notices.extend(notice(row, run, &self.host));
        }
        Ok(notices)
    }

    async fn connect(&mut self) -> anyhow::Result<Client> {
        let absent = |what: &str| Error::new(ErrorKind::Unavailable, what.to_owned());
        let client = match &self.source {
            Source::System => Client::there_on(Bus::System).await.ok_or_else(|| {
                absent("there is no instance on the system bus: `systemctl status guardiand` tells why")
            })?,
            Source::User => Client::there_on(Bus::Session).await.ok_or_else(|| {
                absent("there is no instance on the session bus: `systemctl --user status guardiand` tells why")
            })?,
            Source::Socket(path) => Client::connect(path).await?,
        };
        let place = self.place(&client).await?;
        if self.cursor.as_ref() != Some(&place) {
            self.take(&[], Some(&place), &[])?;
            self.cursor = Some(place);
        }
        if !self.is_ready {
            let seq = self.cursor.as_ref().map_or(0, |c| c.seq);
            log::info(&format!("tells of what the audit has after row {seq}"));
            self.is_ready = true;
        }
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Where to go on in this instance's audit: where we were, if that is in it; at its end, if we were nowhere; else at its
    /// beginning.
    async fn place(&self, client: &Client) -> anyhow::Result<Cursor> {
        let beginning = Cursor { seq: 0, hash: String::new() };
        let last = client.describe().await?.last_sequence;
        let row = async |seq: u64| -> anyhow::Result<Option<AuditRow>> {
            Ok(client.events(seq.saturating_sub(1), 1, None).await?.into_iter().next())
        };
        let Some(cursor) = self.cursor.clone() else {
            if last == 0 {
                return Ok(beginning);
            }
            return Ok(row(last).await?.map_or(beginning, |row| Cursor { seq: row.seq, hash: row.hash }));
        };
        if cursor.seq == 0 {
            return Ok(cursor);
        }
        let found = row(cursor.seq).await?;
        let is_same = match &found {
            Some(row) if row.seq == cursor.seq => row.hash == cursor.hash,
            // Retention has removed it: what is left comes after it.
            Some(row) => row.seq > cursor.seq,
            None => false,
        };
        if is_same {
            return Ok(cursor);
        }
        log::warn(&format!("the audit has begun anew: row {} is not the one that was read", cursor.seq));
        Ok(beginning)
    }

    /// Asks the instance how it is, and tells when that has changed.
    async fn ask(&mut self, client: &Client) -> anyhow::Result<()> {
        let told = self.outbox.meta(INSTANCE)?.unwrap_or_default();
        let is = client.describe().await?;
        let state = if is.health == "healthy" { String::new() } else { is.health_reasons.join("; ") };
        self.instance(&told, &state)
    }

    /// Tells that the instance does not answer, once it has not for long.
    fn gone(&mut self) -> anyhow::Result<()> {
        let for_long = self.silent.is_some_and(|since| since.elapsed() >= GONE);
        if !for_long || matches!(self.source, Source::Socket(_)) {
            return Ok(());
        }
        let told = self.outbox.meta(INSTANCE)?.unwrap_or_default();
        self.instance(&told, "guardiand does not answer: nobody holds the limits of runs")
    }

    /// Tells what is new of the instance: a trouble, another, or none any more.
    fn instance(&mut self, told: &str, state: &str) -> anyhow::Result<()> {
        if told == state {
            return Ok(());
        }
        let (event, sentence) = match state {
            "" => (Event::Recovered, format!("guardiand is well again; it was: {told}")),
            trouble => (Event::Trouble, trouble.to_owned()),
        };
        let notice = Notice::of_instance(event, now(), sentence, &self.host);
        self.take(&[notice], None, &[(INSTANCE, state)])
    }

    fn take(&mut self, notices: &[Notice], cursor: Option<&Cursor>, keep: &[(&str, &str)]) -> anyhow::Result<()> {
        let taken = self.outbox.take(&self.config, notices, cursor, keep, now())?;
        if taken.queued > 0 {
            self.bell.ring();
        }
        Ok(())
    }

    /// Writes down what is wrong, not each second.
    fn trouble(&mut self, e: &anyhow::Error) {
        let kind = e.downcast_ref::<Error>().map(|e| e.kind);
        let mut text = format!("{e:#}");
        if kind == Some(ErrorKind::NotAuthorized) {
            text.push_str(
                ": who reads the audit of the host's instance needs org.guardian.Guardian1.read-all of polkit",
            );
        }
        let is_new = self.said.as_ref().is_none_or(|(said, at)| *said != text || at.elapsed() > SAY);
        if is_new {
            log::warn(&format!("the audit cannot be read: {text}"));
            self.said = Some((text, Instant::now()));
        }
    }

    /// Tells the service manager how it is.
    fn status(&mut self) {
        if self.tells > Instant::now() || std::env::var_os("NOTIFY_SOCKET").is_none() {
            return;
        }
        self.tells = Instant::now() + ASK;
        let Ok((waiting, counts)) = self.outbox.summary() else { return };
        let of = |what: &str| counts.get(what).copied().unwrap_or(0);
        let row = self.cursor.as_ref().map_or(0, |c| c.seq);
        let text = format!(
            "{} messages wait; {} delivered, {} repeated, {} failed tries, {} given up, {} dropped; read to row {row}",
            waiting,
            of("delivered"),
            of("repeated"),
            of("failed"),
            of("given_up"),
            of("dropped")
        );
        tell(&[NotifyState::Status(&text)]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // Where there is no service manager nobody is to be told.
    let _ = sd_notify::notify(states);
}
