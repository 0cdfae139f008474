//! The journal layer: each audit event with its own MESSAGE_ID and fields, on a thread of its own.
//!
//! The journal's socket blocks when journald stops reading, after about 280 messages. So nobody but this thread writes
//! to it: the queue is bounded, what does not fit is dropped and counted, and SQLite stays the record of truth.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::failpoint;
use crate::model::{AuditEvent, EventKind, escape};

/// Events that wait for journald. What is shown of them is escaped, since journalctl(1) shows some fields as they are.
const WAITING: usize = 1024;

/// An event for the journal; without a number when the store could not take it.
#[derive(Debug)]
pub struct Entry {
    /// Its number in the audit log.
    pub seq: Option<u64>,
    /// What happened.
    pub event: AuditEvent,
}

/// The queue's end.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Boxed, because the channel has room for all of them from the beginning.
    sender: SyncSender<Box<Entry>>,
    dropped: Arc<AtomicU64>,
}

/// Sets up where log lines go: to the journal where one listens, and to standard error for a person who watches.
pub fn init_logging(stderr: bool) {
    let journal = journald();
    let late = journal.is_none().then(Late::default);
    // Under systemd that is the journal as well.
    let stderr = (stderr && std::env::var_os("JOURNAL_STREAM").is_none()).then(|| {
        tracing_subscriber::fmt::layer().with_writer(|| Lines).with_target(false).without_time().with_ansi(false)
    });
    let level = tracing_subscriber::filter::LevelFilter::INFO;
    // A second call in one process (tests do that) changes nothing.
    let _ = tracing_subscriber::registry().with(level).with(journal).with(late).with(stderr).try_init();
}

/// None if no journald listens.
fn journald() -> Option<tracing_journald::Layer> {
    let layer = tracing_journald::layer().ok()?;
    Some(layer.with_field_prefix(None).with_syslog_identifier("guardiand".to_owned()))
}

/// The journal of a host whose journald did not listen when the instance started: it may by now.
#[derive(Default)]
struct Late(OnceLock<tracing_journald::Layer>);

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Late {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if self.0.get().is_none() {
            journald().map(|layer| self.0.set(layer));
        }
        // It has to be told of each span from its beginning. Events of ours are in none.
        if let Some(layer) = self.0.get().filter(|_| context.event_span(event).is_none()) {
            layer.on_event(event, context);
        }
    }
}

impl Journal {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("journal".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || write(&receiver))?;
        Ok(Self { sender, dropped: Arc::default() })
    }

    /// Sends an event, or drops and counts it.
    pub fn send(&self, entry: Entry) {
        if self.sender.try_send(Box::new(entry)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events the journal did not get. The audit log has them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write(receiver: &Receiver<Box<Entry>>) {
    while let Ok(entry) = receiver.recv() {
        let _ = failpoint::hit("journal.entry");
        let Entry { seq, event } = *entry;
        let run = event.run.map(|r| r.to_string()).unwrap_or_default();
        let workflow = event.workflow.as_deref().unwrap_or_default();
        let (actor, kind) = (event.actor.to_string(), event.kind.as_str());
        let seq = seq.unwrap_or_default();
        let text = sentence(&event);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    message_id = event.kind.message_id(),
                    guardian_run_id = run,
                    guardian_workflow = workflow,
                    guardian_event = kind,
                    guardian_actor = actor,
                    guardian_reason = escape(&event.reason),
                    guardian_seq = seq,
                    "{text}"
                )
            };
        }
        match event.kind {
            EventKind::Unkillable | EventKind::StoreSetAside => log!(error),
            EventKind::LimitWarning
            | EventKind::Verdict
            | EventKind::HealthChanged
            | EventKind::HeartbeatLate
            | EventKind::EscapeeFound
            | EventKind::EscapeeEnded
            | EventKind::LaunchFailed
            | EventKind::ForeignCgroup
            | EventKind::KillIntent
            | EventKind::RunKilled => log!(warn),
            _ => log!(info),
        }
    }
}

fn sentence(event: &AuditEvent) -> String {
    let what = event.kind.as_str().replace('_', " ");
    let about = event.run.map(|r| format!("{r}: ")).unwrap_or_default();
    if event.reason.is_empty() { format!("{about}{what}") } else { format!("{about}{what}: {}", escape(&event.reason)) }
}

/// Standard error, for a person who watches: a line for each event, whatever is in it.
struct Lines;

impl Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        writeln!(io::stderr(), "{}", line_of(event))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn line_of(event: &[u8]) -> String {
    escape(String::from_utf8_lossy(event).trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Actor, Wall};

    #[test]
    fn what_is_logged_is_one_line_whatever_is_in_it() {
        let event = AuditEvent {
            at: Wall(1),
            kind: EventKind::KillIntent,
            run: None,
            workflow: None,
            actor: Actor::Guardian,
            reason: "\x1b[2J\nrun_0: run finished".into(),
            details: serde_json::Value::Null,
        };
        assert_eq!(sentence(&event), r"kill intent: \u{1b}[2J\nrun_0: run finished");
        assert_eq!(line_of(b" WARN a\nb\xff\x1b\n"), " WARN a\\nb\u{fffd}\\u{1b}");
    }
}
