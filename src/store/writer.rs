//! The writer: one thread that commits what the engine hands it, many batches in one synced transaction.
//!
//! ```text
//!            commit fails                        commit succeeds, nothing waits
//!  sound ─────────────────▶ troubled ────────────────────────────────────────▶ sound
//!    Failed(ticket)*, Troubled   │  every second: try again                    Recorded(ticket)*, Recovered
//!                                └─ a batch comes: keep it, Failed(ticket); MOST kept: submit refuses
//! ```
//!
//! Nothing that was accepted is dropped, coalesced or reordered, in trouble or not: the bound is on what is accepted.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::error::hint;
use super::retention::{self, Pruned};
use super::{Batch, Notice, StoreError, record};
use crate::model::AuditRow;
use crate::model::Retention;

/// Where notices go. Called on the writer thread; must not block.
pub type NoticeSink = Box<dyn Fn(Notice) + Send>;
/// Where committed audit rows go. Called on the writer thread; must not block.
pub type JournalSink = Box<dyn Fn(&AuditRow) + Send>;

/// Batches that wait for the thread at once: enough for one slow sync.
const CHANNEL: usize = 1024;
/// Batches that are accepted and not yet written, in all: some 20 MB at worst, while writing fails and only then.
const MOST: usize = 4096;
/// Batches of one transaction: the first of them waits for the last.
const GROUP: usize = 256;
/// Between two attempts while writing fails.
const RETRY: Duration = Duration::from_secs(1);
/// Between two passes of retention; also after [`PRUNE_WRITES`], so that a busy hour cannot outgrow the size.
const PRUNE: Duration = Duration::from_secs(3600);
const PRUNE_WRITES: usize = 20_000;
/// How long a stopping writer tries to write what it holds.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// The engine's end of the writer.
#[derive(Debug)]
pub struct Writer {
    sender: Option<SyncSender<Batch>>,
    /// Batches that are accepted and not yet written.
    unwritten: Arc<AtomicUsize>,
    /// Gives the number of batches that were not written, once, when the thread is through.
    end: Receiver<usize>,
}

impl Writer {
    pub(super) fn start(
        conn: Connection,
        lock: File,
        suspect: PathBuf,
        retention: Retention,
        notices: NoticeSink,
        journal: Option<JournalSink>,
    ) -> Result<Self, StoreError> {
        let (sender, inbox) = mpsc::sync_channel(CHANNEL);
        let (done, end) = mpsc::sync_channel(1);
        let mut worker = Worker::new(conn, suspect, retention, notices, journal);
        let unwritten = worker.unwritten.clone();
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || {
            worker.run(&inbox);
            let left = worker.pending.len();
            // The database is closed before the lock is given up and before anyone is told.
            drop(worker);
            drop(lock);
            let _ = done.send(left);
        });
        thread.map_err(StoreError::io("start a thread for", "the store"))?;
        Ok(Self { sender: Some(sender), unwritten, end })
    }

    /// Hands over a batch without ever waiting; gives it back if too many wait already.
    pub fn submit(&self, batch: Batch) -> Result<(), Batch> {
        let Some(sender) = &self.sender else { return Err(batch) };
        // Counted before it is sent, or the thread could count it off first.
        if self.unwritten.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.unwritten.fetch_sub(1, Ordering::Relaxed);
            return Err(batch);
        }
        sender.try_send(batch).map_err(|(TrySendError::Full(batch) | TrySendError::Disconnected(batch))| {
            self.unwritten.fetch_sub(1, Ordering::Relaxed);
            batch
        })
    }

    /// Writes what was accepted and ends the thread; within some 5 s, whatever the disk does.
    pub fn stop(mut self) -> Result<(), StoreError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), StoreError> {
        if self.sender.take().is_none() {
            return Ok(());
        }
        // Not a join: a thread in an uninterruptible write to a dead disk never ends.
        let patience = STOP_PATIENCE + 2 * RETRY;
        match self.end.recv_timeout(patience) {
            Ok(0) => Ok(()),
            Ok(left) => Err(StoreError::Unwritten(left)),
            Err(_) => Err(StoreError::Stuck(patience.as_secs())),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            tracing::error!("{e}");
        }
    }
}

/// Why writing fails, since when, and when it is tried again.
struct Trouble {
    why: String,
    retry_at: Instant,
}

struct Worker {
    conn: Connection,
    suspect: PathBuf,
    retention: Retention,
    notices: NoticeSink,
    journal: Option<JournalSink>,
    pending: VecDeque<Batch>,
    unwritten: Arc<AtomicUsize>,
    /// How many of `pending`, from the front, have been told of the trouble.
    told: usize,
    trouble: Option<Trouble>,
    prune_at: Instant,
    shrinking: bool,
    /// Writes since the last pass of retention.
    writes: usize,
}

impl Worker {
    fn new(
        conn: Connection,
        suspect: PathBuf,
        retention: Retention,
        notices: NoticeSink,
        journal: Option<JournalSink>,
    ) -> Self {
        Self {
            conn,
            suspect,
            retention,
            notices,
            journal,
            pending: VecDeque::new(),
            unwritten: Arc::default(),
            told: 0,
            trouble: None,
            prune_at: Instant::now(),
            shrinking: false,
            writes: 0,
        }
    }

    /// Serves until the channel is closed and what it held is written, or cannot be.
    fn run(&mut self, inbox: &Receiver<Batch>) {
        loop {
            let next = self.trouble.as_ref().map_or(self.prune_at, |t| t.retry_at);
            let wait = next.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(wait) {
                Ok(batch) => {
                    self.pending.push_back(batch);
                    self.pending.extend(inbox.try_iter().take(GROUP - 1));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.last_attempts(),
            }
            self.turn(Instant::now());
        }
    }

    /// Does what is due.
    fn turn(&mut self, now: Instant) {
        match &self.trouble {
            Some(trouble) if now < trouble.retry_at => self.tell_failed(),
            _ => self.flush(now),
        }
        // One step of retention a turn, so that no kill intent waits for a whole pass.
        if self.trouble.is_none() && (now >= self.prune_at || self.writes >= PRUNE_WRITES) {
            self.prune(now);
        }
    }

    /// Writes all that is pending, in order.
    fn flush(&mut self, now: Instant) {
        while !self.pending.is_empty() {
            let group = self.pending.len().min(GROUP);
            match record::commit(&mut self.conn, self.pending.iter().take(group)) {
                Ok(rows) => self.committed(group, &rows),
                Err(e) => return self.failed(&e, now),
            }
        }
        if self.trouble.take().is_some() {
            (self.notices)(Notice::Recovered);
        }
    }

    fn committed(&mut self, group: usize, rows: &[AuditRow]) {
        self.told = self.told.saturating_sub(group);
        self.unwritten.fetch_sub(group, Ordering::Relaxed);
        for batch in self.pending.drain(..group) {
            self.writes += batch.writes.len();
            if let Some(ticket) = batch.ticket {
                (self.notices)(Notice::Recorded(ticket));
            }
        }
        self.to_journal(rows);
    }

    fn failed(&mut self, error: &rusqlite::Error, now: Instant) {
        let why = format!("the audit cannot be written: {error}{}", hint(error));
        if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) {
            // For the next open, which then looks at every page. If not even this can be written, the -wal that stays
            // behind has the same effect in most cases.
            let _ = File::create(&self.suspect);
        }
        let first = self.trouble.is_none();
        self.trouble = Some(Trouble { why: why.clone(), retry_at: now + RETRY });
        self.tell_failed();
        if first {
            (self.notices)(Notice::Troubled(why));
        }
    }

    /// Tells those that wait for a ticket and do not know yet.
    fn tell_failed(&mut self) {
        let Some(trouble) = &self.trouble else { return };
        for ticket in self.pending.iter().skip(self.told).filter_map(|batch| batch.ticket) {
            (self.notices)(Notice::Failed(ticket, trouble.why.clone()));
        }
        self.told = self.pending.len();
    }

    fn prune(&mut self, now: Instant) {
        match retention::step(&mut self.conn, &self.retention, record::now(), &mut self.shrinking) {
            Ok(Pruned::Some(row)) => {
                self.prune_at = now;
                self.to_journal(row.as_slice());
            }
            Ok(Pruned::Nothing) => {
                self.prune_at = now + PRUNE;
                self.writes = 0;
                // Only room on the disk is at stake, and the next pass tries again.
                if let Err(e) = retention::give_back(&self.conn) {
                    tracing::warn!("cannot give free pages of the database back: {e}{}", hint(&e));
                }
            }
            Err(e) => {
                // No trouble for the engine: if it is more than this, the next commit fails and says so.
                self.prune_at = now + PRUNE;
                self.writes = 0;
                tracing::warn!("cannot remove old rows from the database: {e}{}", hint(&e));
            }
        }
    }

    fn to_journal(&self, rows: &[AuditRow]) {
        if let Some(journal) = &self.journal {
            rows.iter().for_each(journal);
        }
    }

    fn last_attempts(&mut self) {
        let until = Instant::now() + STOP_PATIENCE;
        loop {
            self.flush(Instant::now());
            if self.pending.is_empty() || Instant::now() + RETRY > until {
                return;
            }
            thread::sleep(RETRY);
        }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
