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
//! Samples alone are taken at leisure, and dropped where there is trouble or too much of them.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::doubt::Doubt;
use super::error::hint;
use super::retention::{self, Pruned};
use super::samples;
use super::{Batch, Launches, Notice, StoreError, Write, record};
use crate::failpoint;
use crate::model::{AuditRow, Retention, UsageMinute};

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
/// Minutes of samples that wait at once: some 8 MB at worst, while the disk is slow. More of them are dropped.
const MOST_SAMPLES: usize = 8192;
/// Between two passes of retention; also after [`PRUNE_WRITES`], so that a busy hour cannot outgrow the size.
const PRUNE: Duration = Duration::from_secs(600);
const PRUNE_WRITES: usize = 20_000;
/// How long a stopping writer tries to write what it holds.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What the thread is handed.
#[derive(Debug)]
enum Order {
    Write(Batch),
    Keep(Vec<UsageMinute>),
}

/// The engine's end of the writer.
#[derive(Debug)]
pub struct Writer {
    sender: Option<SyncSender<Order>>,
    /// Batches that are accepted and not yet written.
    unwritten: Arc<AtomicUsize>,
    /// Minutes of samples that are taken and not yet written.
    unkept: Arc<AtomicUsize>,
    /// Gives the number of batches that were not written, once, when the thread is through.
    end: Receiver<usize>,
}

impl Writer {
    pub(super) fn start(
        conn: Connection,
        lock: File,
        suspect: PathBuf,
        retention: Retention,
        synced: Arc<AtomicU64>,
        notices: NoticeSink,
        journal: Option<JournalSink>,
    ) -> Result<Self, StoreError> {
        let (sender, inbox) = mpsc::sync_channel(CHANNEL);
        let (done, end) = mpsc::sync_channel(1);
        let worker = Worker::new(conn, suspect, retention, synced, notices, journal);
        let mut worker = worker.map_err(StoreError::sqlite("read the newest row"))?;
        let (unwritten, unkept) = (worker.unwritten.clone(), worker.unkept.clone());
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || {
            worker.run(&inbox);
            let left = worker.pending.len();
            // The database is closed before the lock is given up and before anyone is told.
            drop(worker);
            drop(lock);
            let _ = done.send(left);
        });
        thread.map_err(StoreError::io("start a thread for", "the store"))?;
        Ok(Self { sender: Some(sender), unwritten, unkept, end })
    }

    /// Hands over a batch without ever waiting; gives it back if too many wait already.
    pub fn submit(&self, batch: Batch) -> Result<(), Batch> {
        let Some(sender) = &self.sender else { return Err(batch) };
        // Counted before it is sent, or the thread could count it off first.
        if self.unwritten.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.unwritten.fetch_sub(1, Ordering::Relaxed);
            return Err(batch);
        }
        let Err(TrySendError::Full(order) | TrySendError::Disconnected(order)) = sender.try_send(Order::Write(batch))
        else {
            return Ok(());
        };
        self.unwritten.fetch_sub(1, Ordering::Relaxed);
        match order {
            Order::Write(batch) => Err(batch),
            Order::Keep(_) => Ok(()),
        }
    }

    /// Hands over samples, which are written when there is nothing better to do; they are dropped where that is not soon.
    pub fn keep_samples(&self, minutes: Vec<UsageMinute>) {
        let Some(sender) = &self.sender else { return };
        let count = minutes.len();
        let taken = self.unkept.fetch_add(count, Ordering::Relaxed) < MOST_SAMPLES
            && sender.try_send(Order::Keep(minutes)).is_ok();
        if !taken {
            self.unkept.fetch_sub(count, Ordering::Relaxed);
        }
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
    launches: Launches,
    retention: Retention,
    doubt: Doubt,
    notices: NoticeSink,
    journal: Option<JournalSink>,
    pending: VecDeque<Batch>,
    /// The number of the last row that is synced, for readers.
    synced: Arc<AtomicU64>,
    /// Rows that are committed and not synced: neither journal nor readers may know more than the disk after a power cut.
    unsynced: Vec<AuditRow>,
    unwritten: Arc<AtomicUsize>,
    samples: VecDeque<UsageMinute>,
    unkept: Arc<AtomicUsize>,
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
        synced: Arc<AtomicU64>,
        notices: NoticeSink,
        journal: Option<JournalSink>,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            doubt: Doubt::open(&conn)?,
            conn,
            // The database is in the state directory, and what says that it is suspect beside it.
            launches: Launches::of(suspect.parent().unwrap_or(Path::new("."))),
            suspect,
            retention,
            synced,
            notices,
            journal,
            pending: VecDeque::new(),
            unsynced: Vec::new(),
            unwritten: Arc::default(),
            samples: VecDeque::new(),
            unkept: Arc::default(),
            told: 0,
            trouble: None,
            prune_at: Instant::now(),
            shrinking: false,
            writes: 0,
        })
    }

    /// Serves until the channel is closed and what it held is written, or cannot be.
    fn run(&mut self, inbox: &Receiver<Order>) {
        loop {
            let next = self.trouble.as_ref().map_or(self.prune_at, |t| t.retry_at);
            let wait = match self.samples.is_empty() {
                true => next.saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            match inbox.recv_timeout(wait) {
                Ok(order) => {
                    self.take(order);
                    inbox.try_iter().take(GROUP - 1).for_each(|order| self.take(order));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.last_attempts(),
            }
            self.turn(Instant::now());
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Write(batch) => self.pending.push_back(batch),
            Order::Keep(minutes) => self.samples.extend(minutes),
        }
    }

    /// Does what is due.
    fn turn(&mut self, now: Instant) {
        match &self.trouble {
            Some(trouble) if now < trouble.retry_at => self.tell_failed(),
            _ => self.flush(now),
        }
        self.keep_samples();
        // One step of retention a turn, so that no kill intent waits for a whole pass.
        if self.trouble.is_none() && (now >= self.prune_at || self.writes >= PRUNE_WRITES) {
            self.prune(now);
        }
    }

    /// Writes all that is pending, in order.
    fn flush(&mut self, now: Instant) {
        while !self.pending.is_empty() {
            let group = self.pending.len().min(GROUP);
            let kept = self.keep_launches(group);
            match kept.and_then(|()| record::commit(&mut self.conn, self.pending.iter().take(group))) {
                Ok(rows) => self.committed(group, rows),
                Err(e) => return self.failed(&e, now),
            }
        }
        if self.trouble.take().is_some() {
            (self.notices)(Notice::Recovered);
        }
    }

    /// Keeps what queued runs are to execute: before it is on record that they are queued.
    fn keep_launches(&self, group: usize) -> rusqlite::Result<()> {
        for write in self.pending.iter().take(group).flat_map(|batch| &batch.writes) {
            if let Write::KeepLaunch(launch) = write {
                let kept = self.launches.keep(launch);
                kept.map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            }
        }
        Ok(())
    }

    fn committed(&mut self, group: usize, rows: Vec<AuditRow>) {
        let _ = failpoint::hit("store.committed");
        self.unsynced.extend(rows);
        if !record::are_provisional(self.pending.iter().take(group)) {
            self.tell_synced();
        }
        self.told = self.told.saturating_sub(group);
        self.unwritten.fetch_sub(group, Ordering::Relaxed);
        for batch in self.pending.drain(..group) {
            self.writes += batch.writes.len();
            for write in &batch.writes {
                // What stays is removed by the next instance.
                if let Write::ForgetLaunch(run) = write
                    && let Err(e) = self.launches.forget(*run)
                {
                    tracing::warn!("the launch that was kept of {run} cannot be removed: {e}");
                }
            }
            if let Some(ticket) = batch.ticket {
                (self.notices)(Notice::Recorded(ticket));
            }
        }
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
        // First: what fails for it is refused with the reason.
        if first {
            (self.notices)(Notice::Troubled(why));
        }
        self.tell_failed();
    }

    /// Tells those that wait for a ticket and do not know yet.
    fn tell_failed(&mut self) {
        let Some(trouble) = &self.trouble else { return };
        for ticket in self.pending.iter().skip(self.told).filter_map(|batch| batch.ticket) {
            (self.notices)(Notice::Failed(ticket, trouble.why.clone()));
        }
        self.told = self.pending.len();
    }

    /// Writes some of the samples. They are given up where writing fails: the next commit finds out whether it goes on to.
    fn keep_samples(&mut self) {
        if self.samples.is_empty() {
            return;
        }
        let step = self.samples.len().min(samples::STEP);
        let kept = match &self.trouble {
            Some(_) => Ok(self.samples.len()),
            None => samples::keep(&mut self.conn, self.samples.iter().take(step)).map(|()| step),
        };
        let gone = kept.unwrap_or_else(|e| {
            tracing::warn!("samples of what runs used are lost: {e}{}", hint(&e));
            self.samples.len()
        });
        self.samples.drain(..gone);
        self.unkept.fetch_sub(gone, Ordering::Relaxed);
    }

    fn prune(&mut self, now: Instant) {
        let wall = record::now();
        let mut retention = self.retention;
        if self.doubt.doubts(wall, now) {
            retention.max_age = None;
        }
        match retention::step(&mut self.conn, &retention, wall, &mut self.shrinking) {
            Ok(Pruned::Some(row)) => {
                self.prune_at = now;
                self.unsynced.extend(row);
                self.tell_synced();
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

    /// Tells of all that was committed, which is synced.
    fn tell_synced(&mut self) {
        let rows = std::mem::take(&mut self.unsynced);
        if let Some(last) = rows.last() {
            self.synced.store(last.seq, Ordering::Release);
        }
        if let Some(journal) = &self.journal {
            rows.iter().for_each(journal);
        }
    }

    fn last_attempts(&mut self) {
        let until = Instant::now() + STOP_PATIENCE;
        loop {
            self.flush(Instant::now());
            while !self.samples.is_empty() {
                self.keep_samples();
            }
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
