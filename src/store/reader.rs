//! Readers: what the bus and the recovery ask of the database. Each has a connection of its own, which in WAL mode
//! neither waits for the writer nor holds it up.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::StoreError;
use super::audit::{self, COLUMNS, StoredRow, Verification, int};
use super::schema::{self, meta};
use super::{past, samples};
use crate::model::{AuditRow, Health, PastRun, Phase, RunId, RunView, UsageSample, Wall, escape};

/// More runs than this are not listed at once.
const MOST_RUNS: usize = 10_000;

/// Which runs to list. What is `None` or empty does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this workflow.
    pub workflow: Option<String>,
    /// In one of these phases.
    pub phases: Vec<Phase>,
    /// Of this health.
    pub health: Option<Health>,
    /// Owned by this uid.
    pub uid: Option<u32>,
    /// Accepted at this time or later.
    pub since: Option<Wall>,
    /// Created at this time or earlier.
    pub before: Option<Wall>,
    /// This many at most; 10,000 in any case.
    pub limit: Option<usize>,
}

impl Filter {
    /// Every run that is not over.
    pub fn live() -> Self {
        let phases = Phase::ALL.into_iter().filter(|p| *p != Phase::Finished).collect();
        Self { phases, ..Self::default() }
    }

    /// Every run that is over.
    pub fn finished() -> Self {
        Self { phases: vec![Phase::Finished], ..Self::default() }
    }

    /// The query and what is bound to it. Phases and healths are written out, being words of ours: SQLite uses a
    /// partial index only where the query's text implies the index's condition.
    fn query(&self) -> (String, Vec<Value>) {
        let mut terms = Vec::new();
        let mut values = Vec::new();
        let mut bind = |term: &str, value: Value| {
            values.push(value);
            format!("{term} ?{}", values.len())
        };
        if let Some(workflow) = &self.workflow {
            terms.push(bind("workflow =", Value::from(workflow.clone())));
        }
        if let Some(uid) = self.uid {
            terms.push(bind("uid =", Value::from(i64::from(uid))));
        }
        if let Some(before) = self.before {
            terms.push(bind("created_at <=", Value::from(int(before.0))));
        }
        if let Some(since) = self.since {
            terms.push(bind("created_at >=", Value::from(int(since.0))));
        }
        let limit = bind("LIMIT", Value::from(int(self.limit.unwrap_or(MOST_RUNS).min(MOST_RUNS) as u64)));
        if let Some(health) = self.health {
            terms.push(format!("health = '{health}'"));
            if health != Health::Healthy {
                terms.push("health <> 'healthy'".to_owned());
            }
        }
        if !self.phases.is_empty() {
            let words: Vec<_> = self.phases.iter().map(|p| format!("'{p}'")).collect();
            terms.push(format!("phase IN ({})", words.join(", ")));
            if !self.phases.contains(&Phase::Finished) {
                terms.push("phase <> 'finished'".to_owned());
            }
        }
        let condition = if terms.is_empty() { String::new() } else { format!("WHERE {}", terms.join(" AND ")) };
        (format!("SELECT id, view FROM runs {condition} ORDER BY created_at DESC {limit}"), values)
    }
}

/// The runs that were live when they were last written, oldest first.
#[derive(Debug, Default)]
pub struct LiveRuns {
    /// Each with the engine's own state.
    pub runs: Vec<(RunView, String)>,
    /// The ids of those whose view cannot be read, and why: damaged, or written by a version that saw runs otherwise.
    /// One such row must not keep the others from being taken up.
    pub unreadable: Vec<(RunId, String)>,
}

/// A connection for reading.
#[derive(Debug)]
pub struct Reader {
    conn: Connection,
    /// The number of the last audit row that a power cut leaves.
    synced: Arc<AtomicU64>,
}

impl Reader {
    pub(super) fn open(path: &Path, synced: Arc<AtomicU64>) -> Result<Self, StoreError> {
        let conn = schema::connect(path).map_err(StoreError::sqlite("open the database for reading"))?;
        // Not opened read-only, because a reader of a WAL database must be able to write its -shm.
        conn.execute_batch("PRAGMA query_only = ON").map_err(StoreError::sqlite("open the database for reading"))?;
        Ok(Self { conn, synced })
    }

    /// The run of this id.
    pub fn run(&self, id: RunId) -> Result<Option<RunView>, StoreError> {
        let view: Option<String> = self
            .conn
            .prepare_cached("SELECT view FROM runs WHERE id = ?1")
            .and_then(|mut s| s.query_row([id.to_string()], |row| row.get(0)).optional())
            .map_err(StoreError::sqlite("read a run"))?;
        view.map(|view| read_view(&id.to_string(), &view)).transpose()
    }

    /// Whether an id was ever given to a run that is still known.
    pub fn exists(&self, id: RunId) -> Result<bool, StoreError> {
        self.conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM runs WHERE id = ?1)")
            .and_then(|mut s| s.query_row([id.to_string()], |row| row.get(0)))
            .map_err(StoreError::sqlite("look for a run"))
    }

    /// Whether a run is known, and nothing is left to do for it.
    pub fn is_over(&self, id: RunId) -> Result<bool, StoreError> {
        self.conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM runs WHERE id = ?1 AND state IS NULL)")
            .and_then(|mut s| s.query_row([id.to_string()], |row| row.get(0)))
            .map_err(StoreError::sqlite("look for a run that is over"))
    }

    /// The runs that the filter lets through, newest first.
    pub fn runs(&self, filter: &Filter) -> Result<Vec<RunView>, StoreError> {
        let (sql, values) = filter.query();
        let rows: Vec<(String, String)> = self
            .conn
            .prepare_cached(&sql)
            .and_then(|mut s| s.query_map(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(StoreError::sqlite("list runs"))?;
        rows.iter().map(|(id, view)| read_view(id, view)).collect()
    }

    /// The runs that the last instance left live.
    pub fn live_states(&self) -> Result<LiveRuns, StoreError> {
        let fail = || StoreError::sqlite("read the live runs");
        let mut statement = self
            .conn
            .prepare("SELECT id, view, state FROM runs WHERE state IS NOT NULL ORDER BY created_at")
            .map_err(fail())?;
        let mut rows = statement.query([]).map_err(fail())?;
        let mut live = LiveRuns::default();
        while let Some(row) = rows.next().map_err(fail())? {
            let id: String = row.get(0).map_err(fail())?;
            match (read_live(&id, row), RunId::from_str(&id)) {
                (Ok(run), _) => live.runs.push(run),
                (Err(StoreError::Unreadable { why, .. }), Ok(id)) => live.unreadable.push((id, why)),
                (Err(e), _) => return Err(e),
            }
        }
        Ok(live)
    }

    /// The ids that begin with this text (`run_` may be left out), two at most: enough to know that it is ambiguous.
    pub fn resolve(&self, prefix: &str) -> Result<Vec<RunId>, StoreError> {
        if !RunId::is_prefix(prefix) {
            return Ok(Vec::new());
        }
        let digits = prefix.strip_prefix(RunId::PREFIX).unwrap_or(prefix);
        let from = format!("{}{digits}", RunId::PREFIX);
        // Ids are hexadecimal, so `g` is behind all that begin with the prefix.
        let ids: Vec<String> = self
            .conn
            .prepare_cached("SELECT id FROM runs WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT 2")
            .and_then(|mut s| s.query_map([from], |row| row.get(0))?.collect())
            .map_err(StoreError::sqlite("look for a run"))?;
        ids.iter().map(|id| id.parse().map_err(|e| unreadable(format!("run {id:?}"), e))).collect()
    }

    /// Audit rows after a cursor, `max` at most, of one run or of all. None that a power cut could still take back and
    /// give its number to another.
    pub fn events(&self, after_seq: u64, max: usize, run: Option<RunId>) -> Result<Vec<AuditRow>, StoreError> {
        let (after, max, synced) = (int(after_seq), int(max as u64), int(self.synced.load(Ordering::Acquire)));
        let fail = || StoreError::sqlite("read the audit log");
        let rows: Vec<StoredRow> = match run {
            None => self
                .conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM events WHERE seq > ?1 AND seq <= ?3 ORDER BY seq LIMIT ?2"
                ))
                .and_then(|mut s| s.query_map(params![after, max, synced], StoredRow::read)?.collect()),
            Some(run) => self
                .conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM events WHERE run = ?4 AND seq > ?1 AND seq <= ?3 ORDER BY seq LIMIT ?2"
                ))
                .and_then(|mut s| {
                    s.query_map(params![after, max, synced, run.to_string()], StoredRow::read)?.collect()
                }),
        }
        .map_err(fail())?;
        rows.into_iter()
            .map(|row| {
                let seq = row.seq;
                row.into_model().map_err(|e| unreadable(format!("audit row {seq}"), e))
            })
            .collect()
    }

    /// What a run used since a time, in order: its last hour in single readings, then minutes, after a day hours. The minute
    /// that is under way is not among it.
    pub fn samples(&self, run: RunId, since: Wall) -> Result<Vec<UsageSample>, StoreError> {
        samples::read(&self.conn, run, since).map_err(StoreError::sqlite("read the samples of a run"))
    }

    /// Gives each run that is over by its workflow, if the filter's workflow and uid admit it and it was over at the filter's
    /// time or later.
    pub fn past(&self, filter: &Filter, give: &mut dyn FnMut(PastRun)) -> Result<(), StoreError> {
        past::each(&self.conn, filter, give).map_err(StoreError::sqlite("read the runs that are over"))
    }

    /// The number of the last audit row that [`Reader::events`] gives; 0 before the first.
    pub fn last_seq(&self) -> Result<u64, StoreError> {
        let head = schema::read_link(&self.conn, meta::HEAD).map_err(StoreError::sqlite("read the audit log's end"))?;
        Ok(u64::try_from(head.seq).unwrap_or(0).min(self.synced.load(Ordering::Acquire)))
    }

    /// Goes over the whole audit log: some seconds for a million rows.
    pub fn verify(&self) -> Result<Verification, StoreError> {
        let fail = || StoreError::sqlite("verify the audit log");
        // One transaction, so that all of it is seen as it was at one moment.
        let tx = self.conn.unchecked_transaction().map_err(fail())?;
        audit::verify(&tx).map_err(fail())
    }
}

/// The columns `id, view, state` of a live run. The last two are taken as bytes: damaged text is no text.
pub(super) fn read_live(id: &str, row: &Row<'_>) -> Result<(RunView, String), StoreError> {
    let bytes = |column| {
        let value = row.get_ref(column).map_err(StoreError::sqlite("read the live runs"))?;
        value.as_bytes().map_err(|e| unreadable(format!("run {id}"), e))
    };
    let view =
        serde_json::from_slice(bytes(1)?).map_err(|e| unreadable(format!("run {id}"), format!("its view: {e}")))?;
    let state = std::str::from_utf8(bytes(2)?);
    let state = state.map_err(|e| unreadable(format!("run {id}"), format!("its state: {e}")))?;
    Ok((view, state.to_owned()))
}

pub(super) fn read_view(id: &str, view: &str) -> Result<RunView, StoreError> {
    serde_json::from_str(view).map_err(|e| unreadable(format!("run {id}"), format!("its view: {e}")))
}

/// Why a row cannot be read. What is wrong may be in it, whatever that is.
pub(super) fn unreadable(what: String, why: impl ToString) -> StoreError {
    // What is escaped is longer.
    let clip = |text: &str| escape(&text.chars().take(200).collect::<String>()).chars().take(400).collect();
    StoreError::Unreadable { what: clip(&what), why: clip(&why.to_string()) }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
