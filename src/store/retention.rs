//! Retention: what is removed when it is too old or takes too much room.
//!
//! Samples go first: what is too old by their own rules, and for want of room all of them before anything else is lost.
//! Then finished runs are removed with their kills, and rows from the beginning of the audit log, never from its middle.
//! The rows of live runs in `runs` and `kills` stay whatever their age; their oldest audit rows may go, or one run that
//! lives for a year would keep the log of the whole host. Each step is one small transaction that also moves the
//! chain's anchor and appends `audit_pruned`, so that the log verifies at every moment and says what it lost.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use serde_json::json;

use super::audit::{Appender, Link, hex, int};
use super::samples;
use super::schema::{self, meta};
use crate::model::{Actor, AuditEvent, AuditRow, EventKind, Retention, Wall};

/// Rows of each table that one step removes at most: some 10 ms, which a kill intent may have to wait.
pub(super) const STEP: i64 = 500;

/// What one step did.
#[derive(Debug)]
pub(super) enum Pruned {
    /// It removed something, and there may be more. With the event that it appended, if the log was cut.
    Some(Option<AuditRow>),
    /// There was nothing to remove.
    Nothing,
}

/// Goes one step. `shrinking` is kept by the caller between the steps of one pass.
pub(super) fn step(
    conn: &mut Connection,
    retention: &Retention,
    now: Wall,
    shrinking: &mut bool,
) -> rusqlite::Result<Pruned> {
    if samples::age(conn, now, retention.max_age)? {
        return Ok(Pruned::Some(None));
    }
    let age = retention.max_age.map(|age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
    // At the age's end of the clock nothing is older.
    let cutoff = age.and_then(|age| now.0.checked_sub(age)).map_or(0, int);
    if cutoff > 0
        && let done @ Pruned::Some(_) = remove(conn, Scope::Before(cutoff), now)?
    {
        return Ok(done);
    }
    if let Some(max) = retention.max_bytes {
        let used = used_bytes(conn)?;
        let goal = if *shrinking { max / 10 * 9 } else { max };
        *shrinking = used > goal;
        if *shrinking && samples::remove_oldest(conn)? {
            return Ok(Pruned::Some(None));
        }
        if *shrinking && let done @ Pruned::Some(_) = remove(conn, Scope::Oldest, now)? {
            return Ok(done);
        }
    }
    *shrinking = false;
    Ok(Pruned::Nothing)
}

/// Gives free pages back to the filesystem, after a pass.
pub(super) fn give_back(conn: &Connection) -> rusqlite::Result<()> {
    // The pragma frees one page a row it is stepped through.
    let mut statement = conn.prepare("PRAGMA incremental_vacuum(4096)")?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// What the rows take, without the pages that are free for the next ones.
pub(super) fn used_bytes(conn: &Connection) -> rusqlite::Result<u64> {
    conn.query_row(
        "SELECT (p.page_count - f.freelist_count) * s.page_size
         FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size s",
        [],
        |row| row.get::<_, i64>(0),
    )
    .map(|bytes| u64::try_from(bytes).unwrap_or(0))
}

#[derive(Debug, Clone, Copy)]
enum Scope {
    /// What is older than this.
    Before(i64),
    /// The oldest, whatever its age.
    Oldest,
}

fn remove(conn: &mut Connection, scope: Scope, now: Wall) -> rusqlite::Result<Pruned> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let cut = cut(&tx, scope)?;
    // By size, runs go up to the time that the log is cut at, so that both cover the same time. When there is no log
    // left to cut, they go by themselves.
    let before = match (scope, &cut) {
        (Scope::Before(cutoff), _) => cutoff,
        (Scope::Oldest, Some((_, time))) => *time,
        (Scope::Oldest, None) => i64::MAX,
    };
    let kills = tx
        .prepare_cached(
            "DELETE FROM kills WHERE run_id IN (SELECT id FROM runs WHERE phase = 'finished' AND finished_at < ?1
             ORDER BY finished_at LIMIT ?2)",
        )?
        .execute(params![before, STEP])?;
    let orphans = tx
        .prepare_cached(
            "DELETE FROM kills WHERE run_id IN (SELECT run_id FROM kills WHERE requested_at < ?1
             AND NOT EXISTS (SELECT 1 FROM runs WHERE id = run_id) ORDER BY requested_at LIMIT ?2)",
        )?
        .execute(params![before, STEP])?;
    // Nearly always gone already, by their age or for want of room.
    tx.prepare_cached(
        "DELETE FROM samples WHERE run_id IN (SELECT id FROM runs WHERE phase = 'finished' AND finished_at < ?1
         ORDER BY finished_at LIMIT ?2)",
    )?
    .execute(params![before, STEP])?;
    let runs = tx
        .prepare_cached(
            "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE phase = 'finished' AND finished_at < ?1
             ORDER BY finished_at LIMIT ?2)",
        )?
        .execute(params![before, STEP])?;
    if cut.is_none() && kills + orphans + runs == 0 {
        return Ok(Pruned::Nothing);
    }
    let row = cut.map(|(link, _)| cut_log(&tx, link, runs, now)).transpose()?;
    tx.commit()?;
    Ok(Pruned::Some(row))
}

/// The last link to remove in this step and its time; none if nothing is to be removed.
fn cut(tx: &Connection, scope: Scope) -> rusqlite::Result<Option<(Link, i64)>> {
    let mut statement = tx.prepare_cached("SELECT seq, time_usec, hash, kind FROM events ORDER BY seq LIMIT ?1")?;
    let mut rows = statement.query([STEP])?;
    let mut last = None;
    let mut count = 0;
    let mut worthwhile = false;
    while let Some(row) = rows.next()? {
        let time: i64 = row.get(1)?;
        if matches!(scope, Scope::Before(cutoff) if time >= cutoff) {
            break;
        }
        last = Some((Link { seq: row.get(0)?, hash: row.get(2)? }, time));
        count += 1;
        worthwhile |= row.get::<_, String>(3)? != EventKind::AuditPruned.as_str();
    }
    // Removing only the notes about earlier removals would write a new note each time, for ever; but a whole step of
    // them goes, or they would stand before what comes after them.
    Ok(last.filter(|_| worthwhile || count == STEP))
}

fn cut_log(tx: &Connection, link: Link, runs: usize, now: Wall) -> rusqlite::Result<AuditRow> {
    let first: Option<i64> =
        tx.query_row("SELECT seq FROM events ORDER BY seq LIMIT 1", [], |row| row.get(0)).optional()?;
    tx.prepare_cached("DELETE FROM events WHERE seq <= ?1")?.execute([link.seq])?;
    schema::write_meta(tx, meta::ANCHOR, &link.to_string())?;
    let mut log = Appender::new(tx)?;
    let row = log.append(&AuditEvent {
        at: now,
        kind: EventKind::AuditPruned,
        run: None,
        workflow: None,
        actor: Actor::Guardian,
        reason: format!("retention removed the audit log up to row {}", link.seq),
        details: json!({
            "first_seq": first, "last_seq": link.seq, "last_hash": hex(&link.hash), "runs_removed": runs,
        }),
    })?;
    log.finish()?;
    Ok(row)
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
