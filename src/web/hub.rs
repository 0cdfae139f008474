//! What happens, looked for once for all who listen: one poller, which sleeps while nobody does.
//!
//! ```text
//!  Describe, four times a second ─▶ a new row? ─▶ Events ─▶ rows ─┐
//!                                   └▶ ListRuns, and compare ─▶ runs that are new or differ, as text ─▶ broadcast
//! ```
//!
//! The list of a thousand runs is the dear part for the instance: it is asked for at once when something happened, but not
//! again before a multiple of the time that it took, and every [`REFRESHED`] for what runs use.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast, watch};

use super::App;
use super::reply::text_of;
use crate::bus::client::{Description, RunFilter};
use crate::json as shapes;
use crate::model::{AuditRow, Error, ErrorKind, EventKind, RunId, RunView};

/// How often it is looked whether something happened.
const TICK: Duration = Duration::from_millis(200);
/// The shortest time between two lists, at least and at most: with [`TICK`] a run is seen within a second of its start.
const LISTED: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(700));
/// How many times as long as a list took no other is asked for, within these bounds.
const REST: u32 = 60;
/// The longest time between two lists.
const REFRESHED: Duration = Duration::from_secs(2);
/// The shortest time between two events of one run or of the instance, unless it has another phase or health.
const THROTTLE: Duration = Duration::from_secs(1);
/// Rows of the audit in one question.
pub const PAGE: u32 = 500;
/// Finished runs that are asked for in one tick; of more, the rows of the audit tell.
const FINISHED_MAX: usize = 64;
/// Events that wait for a listener; who is further behind is cut off, and comes back with its cursor.
const BEHIND: usize = 4096;

/// What listeners are told, ready to be sent.
#[derive(Debug, Clone)]
pub enum Event {
    /// A row of the audit.
    Row(u64, Bytes),
    /// Anything else.
    Other(Bytes),
}

/// The one who tells.
#[derive(Debug)]
pub struct Hub {
    events: broadcast::Sender<Event>,
    /// The last row that was told; none while nobody listens, and before the instance has answered.
    told: watch::Sender<Option<u64>>,
    wanted: Notify,
}

impl Default for Hub {
    fn default() -> Self {
        Self { events: broadcast::channel(BEHIND).0, told: watch::Sender::new(None), wanted: Notify::new() }
    }
}

impl Hub {
    /// Listens. Every row after the one that is then named is told.
    pub async fn listen(&self, patience: Duration) -> Option<(broadcast::Receiver<Event>, u64)> {
        let events = self.events.subscribe();
        let mut told = self.told.subscribe();
        self.wanted.notify_one();
        let seq = tokio::time::timeout(patience, told.wait_for(Option::is_some)).await.ok()?.ok()?.unwrap_or_default();
        Some((events, seq))
    }

    fn tell(&self, event: Event) {
        // An error says that nobody listens any more.
        let _ = self.events.send(event);
    }
}

/// An event as it is sent.
fn frame(name: &str, id: Option<u64>, value: &Value) -> Bytes {
    // JSON has no line break of its own here, so that it is one line.
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {name}\n{id}data: {}\n\n", text_of(value)).into()
}

/// A row of the audit as it is sent.
pub fn row_frame(row: &AuditRow) -> Bytes {
    frame("audit", Some(row.seq), &shapes::row(row))
}

/// Looks and tells, for as long as there are listeners, for ever.
pub async fn poll(app: Arc<App>) {
    let mut poller = Poller::default();
    loop {
        if app.hub.events.receiver_count() == 0 {
            poller = Poller::default();
            app.hub.told.send_replace(None);
            app.hub.wanted.notified().await;
            continue;
        }
        match poller.tick(&app).await {
            Ok(()) => poller.is_down = false,
            Err(e) if !poller.is_down => {
                poller.is_down = true;
                // Told again once it is back.
                poller.instance = None;
                let value = json!({"error": e.kind, "message": e.message});
                app.hub.tell(Event::Other(frame("unavailable", None, &value)));
            }
            Err(_) => {}
        }
        tokio::time::sleep(TICK).await;
    }
}

/// What was told last.
#[derive(Debug, Default)]
struct Poller {
    seq: Option<u64>,
    runs: HashMap<RunId, (RunView, Instant)>,
    listed: Option<Instant>,
    /// How long the last list took.
    took: Duration,
    /// Something happened, or was held back, since the last list.
    is_due: bool,
    instance: Option<(Description, Instant)>,
    is_down: bool,
}

impl Poller {
    async fn tick(&mut self, app: &App) -> Result<(), Error> {
        let now = Instant::now();
        let instance = app.instance.ask(|c| async move { c.describe().await }).await?;
        let last = instance.last_sequence;
        // An audit that begins anew: the store was set aside.
        let seq = self.seq.unwrap_or(last).min(last);
        self.is_due |= self.seq.is_some_and(|known| known != last);
        self.seq = Some(seq);
        let mut finished = self.rows(app, seq, last).await?;
        self.tell_instance(app, instance, now);
        let since = self.listed.map(|at| now.saturating_duration_since(at));
        if since.is_none_or(|since| {
            since >= REFRESHED || (self.is_due && since >= (self.took * REST).clamp(LISTED.0, LISTED.1))
        }) {
            finished.extend(self.list(app, now).await?);
        }
        app.hub.told.send_replace(self.seq);
        for run in finished.into_iter().take(FINISHED_MAX) {
            self.over(app, run).await?;
        }
        Ok(())
    }

    /// Tells the rows after this one; gives the runs that they say are over.
    async fn rows(&mut self, app: &App, mut seq: u64, last: u64) -> Result<HashSet<RunId>, Error> {
        let mut finished = HashSet::new();
        while seq < last {
            let rows = match app.instance.ask(|c| async move { c.events(seq, PAGE, None).await }).await {
                // Not ours to read: the runs tell what happens.
                Err(e) if e.kind == ErrorKind::NotAuthorized => Vec::new(),
                rows => rows?,
            };
            if rows.is_empty() {
                seq = last;
            }
            for row in &rows {
                seq = row.seq;
                app.hub.tell(Event::Row(seq, row_frame(row)));
                if row.event.kind == EventKind::RunFinished {
                    finished.extend(row.event.run);
                }
            }
            self.seq = Some(seq);
            // With what was told, or a listener who comes now would miss it. Nobody comes before the first list.
            if self.listed.is_some() {
                app.hub.told.send_replace(self.seq);
            }
        }
        Ok(finished)
    }

    fn tell_instance(&mut self, app: &App, instance: Description, now: Instant) {
        let is_new = match &self.instance {
            None => true,
            Some((told, at)) => *told != instance && now.saturating_duration_since(*at) >= THROTTLE,
        };
        if is_new {
            let value = Value::Object(shapes::instance(&instance));
            app.hub.tell(Event::Other(frame("instance", None, &value)));
            self.instance = Some((instance, now));
        }
    }

    /// Tells the live runs that are new or differ; gives those that are not live any more. The first list is what was there
    /// before.
    async fn list(&mut self, app: &App, now: Instant) -> Result<Vec<RunId>, Error> {
        let live = app.instance.list(RunFilter::default()).await?;
        self.took = now.elapsed();
        let mut gone = std::mem::take(&mut self.runs);
        let is_first = self.listed.is_none();
        (self.is_due, self.listed) = (false, Some(now));
        for view in live {
            let id = view.spec.id;
            match gone.remove(&id) {
                Some((told, at)) if told == view => drop(self.runs.insert(id, (told, at))),
                Some((told, at)) if is_held_back(&told, &view, now.saturating_duration_since(at)) => {
                    self.is_due = true;
                    self.runs.insert(id, (told, at));
                }
                _ => {
                    if !is_first {
                        app.hub.tell(Event::Other(frame("run", None, &shapes::run(&view))));
                    }
                    self.runs.insert(id, (view, now));
                }
            }
        }
        Ok(gone.into_keys().collect())
    }

    /// Tells how a run ended.
    async fn over(&mut self, app: &App, run: RunId) -> Result<(), Error> {
        let id = run.to_string();
        let id = id.as_str();
        match app.instance.ask(|c| async move { c.show(id).await }).await {
            Ok(view) => {
                app.hub.tell(Event::Other(frame("run", None, &shapes::run(&view))));
                self.runs.remove(&run);
                Ok(())
            }
            Err(e) if e.kind == ErrorKind::NoSuchRun => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn is_held_back(told: &RunView, now: &RunView, since: Duration) -> bool {
    (told.phase, told.health, told.frozen) == (now.phase, now.health, now.frozen) && since < THROTTLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_data_whatever_is_in_it() {
        let bytes = frame("run", Some(7), &json!({"name": "a\r\n\nevent: audit\ndata: x\u{2028}"}));
        let text = std::str::from_utf8(&bytes).unwrap();
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!((lines.len(), lines[0], lines[1], lines[3], lines[4]), (5, "event: run", "id: 7", "", ""));
        assert!(lines[2].starts_with("data: {") && !text.contains('\r'));
    }
}
