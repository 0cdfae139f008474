//! Samples: what runs used, a row for a minute of a run, rolled up as they age and the first to go for want of room.
//!
//! They are worth less than anything else here, and are treated so: their transactions are not synced, and are small, since
//! a kill intent may have to wait for one. What a power cut takes is the last minutes, never more than what was written
//! before the last record of anything else.

use std::time::Duration;

use rusqlite::{Connection, Row, TransactionBehavior, named_params, params};

use super::audit::{get, int};
use crate::model::{HOUR, MINUTE, RunId, Usage, UsageMinute, UsageSample, Wall, readings};

/// Rows that are written, or looked at, in one transaction: some 2 ms.
pub(super) const STEP: usize = 200;
/// Single readings are kept for so long, minutes for a day, hours for 30 days.
const READINGS: Duration = HOUR;
const MINUTES: Duration = Duration::from_secs(24 * 3600);
const HOURS: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) const COLUMNS: &str = "run_id, level, at, cpu_usec, memory_bytes, memory_peak_bytes, tasks, io_read_bytes, \
     io_write_bytes, activity_bytes, memory_pressure, readings";

/// Writes minutes of runs.
pub(super) fn keep<'a>(conn: &mut Connection, minutes: impl Iterator<Item = &'a UsageMinute>) -> rusqlite::Result<()> {
    // Within a transaction it would have no effect.
    conn.execute_batch("PRAGMA synchronous = NORMAL")?;
    let kept = insert(conn, minutes);
    conn.execute_batch("PRAGMA synchronous = FULL")?;
    kept
}

fn insert<'a>(conn: &mut Connection, minutes: impl Iterator<Item = &'a UsageMinute>) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let sql =
        format!("INSERT OR REPLACE INTO samples ({COLUMNS}) VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)");
    {
        let mut statement = tx.prepare_cached(&sql)?;
        for UsageMinute { run, summary, readings } in minutes {
            let usage = &summary.usage;
            statement.execute(params![
                run.to_string(),
                int(summary.at.0),
                usage.cpu_usec.map(int),
                usage.memory_bytes.map(int),
                usage.memory_peak_bytes.map(int),
                usage.tasks.map(int),
                usage.io_read_bytes.map(int),
                usage.io_write_bytes.map(int),
                usage.activity_bytes.map(int),
                summary.memory_pressure_percent,
                readings,
            ])?;
        }
    }
    tx.commit()
}

/// Goes one step in what their age asks for; true if there was something to do. `max_age` is what everything is held to.
pub(super) fn age(conn: &mut Connection, now: Wall, max_age: Option<Duration>) -> rusqlite::Result<bool> {
    let before = |age: Duration| int(now.0.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX)));
    let oldest = before(max_age.map_or(HOURS, |age| age.min(HOURS)));
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut done = 0;
    for level in [2, 1, 0] {
        done += tx.prepare_cached(&chosen("DELETE FROM samples", "level = ?1 AND at < ?2"))?.execute(params![
            level,
            oldest,
            STEP as i64
        ])?;
    }
    if done == 0 {
        let drop_readings = chosen("UPDATE samples SET level = 1, readings = NULL", "level = ?1 AND at < ?2");
        done = tx.prepare_cached(&drop_readings)?.execute(params![0, before(READINGS), STEP as i64])?;
    }
    if done == 0 {
        done = roll_up(&tx, before(MINUTES))?;
    }
    tx.commit()?;
    Ok(done > 0)
}

/// Removes some of the oldest, of whatever age; true if there were any.
pub(super) fn remove_oldest(conn: &mut Connection) -> rusqlite::Result<bool> {
    for level in [2, 1, 0] {
        let sql = chosen("DELETE FROM samples", "level = ?1 AND at <= ?2");
        if conn.prepare_cached(&sql)?.execute(params![level, i64::MAX, STEP as i64])? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A statement about the oldest rows for which a condition on `level` and `at` holds, ?3 of them.
fn chosen(verb: &str, condition: &str) -> String {
    format!(
        "{verb} WHERE (run_id, level, at) IN
         (SELECT run_id, level, at FROM samples WHERE {condition} ORDER BY level, at LIMIT ?3)"
    )
}

/// Makes one row of the minutes of a run in an hour, for some runs and hours that were over by then.
fn roll_up(tx: &Connection, before: i64) -> rusqlite::Result<usize> {
    let hour_usec = int(u64::try_from(HOUR.as_micros()).unwrap_or(u64::MAX));
    let before = before - before % hour_usec;
    let mut next =
        tx.prepare_cached("SELECT run_id, at FROM samples WHERE level = 1 AND at < ?1 ORDER BY at LIMIT 1")?;
    let mut insert = tx.prepare_cached(&format!(
        "INSERT OR REPLACE INTO samples ({COLUMNS})
         SELECT run_id, 2, max(at), max(cpu_usec), CAST(avg(memory_bytes) AS INTEGER), max(memory_peak_bytes), max(tasks),
             max(io_read_bytes), max(io_write_bytes), max(activity_bytes), max(memory_pressure), NULL
         FROM samples WHERE run_id = ?1 AND level = 1 AND at >= ?2 AND at < ?3 GROUP BY run_id"
    ))?;
    let mut delete =
        tx.prepare_cached("DELETE FROM samples WHERE run_id = ?1 AND level = 1 AND at >= ?2 AND at < ?3")?;
    let mut done = 0;
    while done < STEP {
        let mut found = next.query([before])?;
        let Some(row) = found.next()? else { break };
        let (run, at): (String, i64) = (row.get(0)?, row.get(1)?);
        let hour = at - at.rem_euclid(hour_usec);
        drop(found);
        insert.execute(params![run, hour, hour + hour_usec])?;
        done += delete.execute(params![run, hour, hour + hour_usec])?;
    }
    Ok(done)
}

/// What a run used since a time, in order.
pub(super) fn read(conn: &Connection, run: RunId, since: Wall) -> rusqlite::Result<Vec<UsageSample>> {
    let sql = format!("SELECT {COLUMNS} FROM samples WHERE run_id = :run AND at >= :since ORDER BY at");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(named_params! { ":run": run.to_string(), ":since": int(since.0) })?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        match get::<Option<String>>(row, 11)? {
            Some(text) => found.extend(readings(&text).into_iter().filter(|reading| reading.at >= since)),
            None => found.push(summary(row)?),
        }
    }
    Ok(found)
}

pub(super) fn summary(row: &Row<'_>) -> rusqlite::Result<UsageSample> {
    let number = |column| -> rusqlite::Result<Option<u64>> {
        Ok(get::<Option<i64>>(row, column)?.and_then(|n| u64::try_from(n).ok()))
    };
    Ok(UsageSample {
        at: Wall(number(2)?.unwrap_or_default()),
        span: if get::<i64>(row, 1)? == 2 { HOUR } else { MINUTE },
        usage: Usage {
            cpu_usec: number(3)?,
            memory_bytes: number(4)?,
            memory_peak_bytes: number(5)?,
            tasks: number(6)?,
            io_read_bytes: number(7)?,
            io_write_bytes: number(8)?,
            activity_bytes: number(9)?,
        },
        memory_pressure_percent: get(row, 10)?,
    })
}

#[cfg(test)]
#[path = "samples_tests.rs"]
mod tests;
