//! The hash chain of the audit log: how a row is hashed, appended and verified.
//!
//! Each row's hash is SHA-256 over the previous row's hash and the row's own content, so that a row that is changed,
//! removed, added or moved breaks the chain from there on. `meta` keeps both ends: the anchor, which is the last link
//! that retention removed, and the head, without which rows missing at the end would go unnoticed. The chain proves
//! that nobody changed the log by mistake or by hand; who can rewrite the whole file can also rewrite the chain, and
//! the copy in the journal is what tells.

use std::fmt;
use std::str::FromStr;

use rusqlite::types::{FromSql, Type};
use rusqlite::{Connection, Row, params};
use sha2::{Digest, Sha256};

use super::schema::{self, meta};
use crate::model::{Actor, AuditEvent, AuditRow, EventKind, Wall};

/// Begins every hashed text: names the encoding, which never changes without a new name.
const ENCODING: &[u8] = b"guardian-audit-1\0";

/// The columns of `events` in the order of [`StoredRow::read`].
pub(super) const COLUMNS: &str =
    "seq, time_usec, kind, run, workflow, actor_uid, actor, reason, details, prev_hash, hash";

/// One link of the chain: a row's number and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub seq: i64,
    pub hash: [u8; 32],
}

impl Link {
    /// What the first row of all builds on.
    pub const START: Link = Link { seq: 0, hash: [0; 32] };
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, hex(&self.hash))
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || "a link of the audit chain is a number and 64 hexadecimal digits".to_owned();
        let (seq, digits) = text.split_once(':').ok_or_else(refuse)?;
        // After the last number there is none for the next row.
        let seq = seq.parse().ok().filter(|seq| (0..i64::MAX).contains(seq)).ok_or_else(refuse)?;
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(refuse());
        }
        let mut hash = [0; 32];
        for (i, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| refuse())?;
        }
        Ok(Link { seq, hash })
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, b| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// A row exactly as it is in the database: what is hashed.
pub(super) struct StoredRow {
    pub seq: i64,
    pub time_usec: i64,
    pub kind: String,
    pub run: Option<String>,
    pub workflow: Option<String>,
    pub actor_uid: Option<i64>,
    pub actor: String,
    pub reason: String,
    pub details: String,
    pub prev_hash: [u8; 32],
    pub hash: [u8; 32],
}

impl StoredRow {
    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: get(row, 0)?,
            time_usec: get(row, 1)?,
            kind: get(row, 2)?,
            run: get(row, 3)?,
            workflow: get(row, 4)?,
            actor_uid: get(row, 5)?,
            actor: get(row, 6)?,
            reason: get(row, 7)?,
            details: get(row, 8)?,
            prev_hash: get(row, 9)?,
            hash: get(row, 10)?,
        })
    }

    /// The row of an event with this number, after the row with this hash.
    pub fn of(event: &AuditEvent, seq: i64, prev_hash: [u8; 32]) -> serde_json::Result<Self> {
        let mut row = Self {
            seq,
            time_usec: int(event.at.0),
            kind: event.kind.as_str().to_owned(),
            run: event.run.map(|id| id.to_string()),
            workflow: event.workflow.clone(),
            actor_uid: event.actor.uid().map(i64::from),
            actor: event.actor.to_string(),
            reason: event.reason.clone(),
            details: serde_json::to_string(&event.details)?,
            prev_hash,
            hash: [0; 32],
        };
        row.hash = row.compute(&prev_hash);
        Ok(row)
    }

    /// The hash that this content has after that previous hash. Every field is preceded by its length and every
    /// optional one by whether it is there, so that no two different rows give the same text.
    fn compute(&self, previous: &[u8; 32]) -> [u8; 32] {
        let mut sha = Sha256::new();
        sha.update(ENCODING);
        sha.update(previous);
        sha.update(self.seq.to_le_bytes());
        sha.update(self.time_usec.to_le_bytes());
        feed(&mut sha, Some(&self.kind));
        feed(&mut sha, self.run.as_deref());
        feed(&mut sha, self.workflow.as_deref());
        match self.actor_uid {
            None => sha.update([0]),
            Some(uid) => {
                sha.update([1]);
                sha.update(uid.to_le_bytes());
            }
        }
        feed(&mut sha, Some(&self.actor));
        feed(&mut sha, Some(&self.reason));
        feed(&mut sha, Some(&self.details));
        sha.finalize().into()
    }

    /// The row in the model's words.
    pub fn into_model(self) -> Result<AuditRow, String> {
        let seq = u64::try_from(self.seq).map_err(|_| format!("its seq is {}", self.seq))?;
        let at = u64::try_from(self.time_usec).map_err(|_| format!("its time_usec is {}", self.time_usec))?;
        let kind = EventKind::ALL.iter().copied().find(|k| k.as_str() == self.kind);
        let kind = kind.ok_or_else(|| format!("its kind, {:?}, is none that this version knows", clip(&self.kind)))?;
        let run = self.run.map(|id| id.parse()).transpose().map_err(|e| format!("its run: {e}"))?;
        let actor = match self.actor_uid {
            None if self.actor == Actor::Guardian.to_string() => Actor::Guardian,
            None => return Err(format!("its actor, {:?}, has no actor_uid", clip(&self.actor))),
            Some(uid) => {
                let uid = u32::try_from(uid).map_err(|_| format!("its actor_uid is {uid}"))?;
                Actor::User { uid, name: self.actor }
            }
        };
        let details = serde_json::from_str(&self.details).map_err(|e| format!("its details are not JSON: {e}"))?;
        let event =
            AuditEvent { at: Wall(at), kind, run, workflow: self.workflow, actor, reason: self.reason, details };
        Ok(AuditRow { seq, event, hash: hex(&self.hash) })
    }
}

/// As much of a text as a person needs to recognise it.
fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Reads a column; what cannot be read is told by the column's name, which SQLite's own errors leave out.
pub(super) fn get<T: FromSql>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    row.get(column).map_err(|e| {
        let name = row.as_ref().column_name(column).unwrap_or("?").to_owned();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Null, format!("its {name}: {e}").into())
    })
}

fn feed(sha: &mut Sha256, text: Option<&str>) {
    match text {
        None => sha.update([0]),
        Some(text) => {
            sha.update([1]);
            sha.update((text.len() as u64).to_le_bytes());
            sha.update(text.as_bytes());
        }
    }
}

/// The end of the chain while a transaction appends to it.
pub(super) struct Appender<'a> {
    tx: &'a Connection,
    head: Link,
    /// The number of the next row.
    next: i64,
}

impl<'a> Appender<'a> {
    /// Begins to append in a transaction.
    pub fn new(tx: &'a Connection) -> rusqlite::Result<Self> {
        let head = schema::read_link(tx, meta::HEAD)?;
        // If rows were added by hand behind the head, step over them instead of failing at every commit from now on:
        // the log goes on, and verification names the place.
        let last: i64 =
            tx.prepare_cached("SELECT coalesce(max(seq), 0) FROM events")?.query_row([], |row| row.get(0))?;
        Ok(Self { tx, head, next: after(head.seq.max(last))? })
    }

    /// Appends one event.
    pub fn append(&mut self, event: &AuditEvent) -> rusqlite::Result<AuditRow> {
        let row = StoredRow::of(event, self.next, self.head.hash)
            .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
        let insert = format!("INSERT INTO events ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)");
        self.tx.prepare_cached(&insert)?.execute(params![
            row.seq,
            row.time_usec,
            row.kind,
            row.run,
            row.workflow,
            row.actor_uid,
            row.actor,
            row.reason,
            row.details,
            row.prev_hash,
            row.hash,
        ])?;
        self.head = Link { seq: row.seq, hash: row.hash };
        self.next = after(row.seq)?;
        Ok(AuditRow { seq: u64::try_from(row.seq).unwrap_or(0), event: event.clone(), hash: hex(&row.hash) })
    }

    /// Records the new end of the chain; before the transaction is committed.
    pub fn finish(self) -> rusqlite::Result<()> {
        schema::write_meta(self.tx, meta::HEAD, &self.head.to_string())
    }
}

/// The number of the row after that one.
fn after(seq: i64) -> rusqlite::Result<i64> {
    seq.checked_add(1).ok_or_else(|| senseless(format!("after row {seq} of the audit log there is no number left")))
}

/// SQLite has no unsigned integers. Times and counts beyond 2^63 are nonsense; they stay as big as they can be.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verification {
    /// Every row is as it was written, and none is missing.
    Intact {
        /// How many rows there are.
        rows: u64,
        /// The first that retention has left; 0 in an empty log.
        first_seq: u64,
        /// The last; 0 in an empty log.
        last_seq: u64,
        /// The hash of the last, in hexadecimal: keep it elsewhere, and the whole log up to here is pinned.
        head_hash: String,
    },
    /// The log is not as it was written.
    Broken {
        /// The first row that is wrong or missing.
        seq: u64,
        /// How many rows before it are good.
        good_rows: u64,
        /// What is wrong, in a sentence.
        what: String,
    },
}

/// Goes over the whole chain. The connection is in a transaction, so that pruning cannot move the anchor meanwhile.
pub(super) fn verify(conn: &Connection) -> rusqlite::Result<Verification> {
    let anchor = schema::read_link(conn, meta::ANCHOR)?;
    let head = schema::read_link(conn, meta::HEAD)?;
    let mut last = anchor;
    let mut rows = 0;
    let broken =
        |seq: i64, rows, what| Ok(Verification::Broken { seq: u64::try_from(seq).unwrap_or(0), good_rows: rows, what });
    let mut statement = conn.prepare(&format!("SELECT {COLUMNS} FROM events ORDER BY seq"))?;
    let mut cursor = statement.query([])?;
    while let Some(row) = cursor.next()? {
        let expected = last.seq + 1;
        let seq: i64 = row.get(0)?;
        let row = match StoredRow::read(row) {
            Ok(row) => row,
            // STRICT tables keep the types, but not the length of a hash nor the encoding of a text.
            Err(
                e @ (rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::Utf8Error(..)),
            ) => return broken(seq, rows, format!("row {seq} cannot be read: {e}")),
            Err(e) => return Err(e),
        };
        if seq != expected {
            let what = if seq < expected {
                format!("row {seq} is before the first row that is kept, {expected}: it was added")
            } else if seq == expected + 1 {
                format!("row {expected} is missing")
            } else {
                format!("rows {expected} to {} are missing", seq - 1)
            };
            return broken(seq.min(expected), rows, what);
        }
        if row.prev_hash != last.hash {
            let what = match rows {
                0 => format!("row {seq} does not build on the chain's anchor: it or the anchor was changed"),
                _ => format!("row {seq} does not build on row {}: one of them was changed or replaced", last.seq),
            };
            return broken(seq, rows, what);
        }
        if row.hash != row.compute(&last.hash) {
            return broken(seq, rows, format!("row {seq} was changed: its content does not give its hash"));
        }
        last = Link { seq, hash: row.hash };
        rows += 1;
    }
    if last != head {
        return if last.seq < head.seq {
            broken(last.seq + 1, rows, format!("rows {} to {} are missing at the end", last.seq + 1, head.seq))
        } else {
            broken(
                head.seq.max(1),
                rows,
                format!("the log should end with row {}, with another hash or place", head.seq),
            )
        };
    }
    let first_seq = if rows == 0 { 0 } else { u64::try_from(anchor.seq + 1).unwrap_or(0) };
    let last_seq = if rows == 0 { 0 } else { u64::try_from(last.seq).unwrap_or(0) };
    Ok(Verification::Intact { rows, first_seq, last_seq, head_hash: hex(&last.hash) })
}

/// The error of a column whose text is there but makes no sense.
pub(super) fn senseless(why: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, why.into())
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
