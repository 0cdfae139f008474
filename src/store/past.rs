//! Runs that are over, for statistics: from an index that has all they ask for.

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::Filter;
use super::audit::{get, int};
use crate::model::{PastRun, Wall};

/// Reads by the names in [`past_run`]; `phase` is written out, or the index would not be used.
const SELECT: &str = "SELECT workflow, started_at, ready_at, finished_at, outcome, exit_code, ended_by, cpu_usec, \
     memory_peak_bytes FROM runs WHERE phase = 'finished'";

/// Gives each run that the filter's workflow and uid admit and that was over at its time or later, by workflow.
pub(super) fn each(conn: &Connection, filter: &Filter, mut give: impl FnMut(PastRun)) -> rusqlite::Result<()> {
    let (sql, values) = query(filter);
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        give(past_run(row)?);
    }
    Ok(())
}

pub(super) fn query(filter: &Filter) -> (String, Vec<Value>) {
    let mut sql = SELECT.to_owned();
    let mut values = Vec::new();
    let mut bind = |term: &str, value: Option<Value>| {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" AND {term} ?{}", values.len()));
        }
    };
    bind("workflow =", filter.workflow.clone().map(Value::from));
    bind("finished_at >=", filter.since.map(|at| int(at.0).into()));
    bind("uid =", filter.uid.map(|uid| i64::from(uid).into()));
    sql.push_str(" ORDER BY workflow");
    (sql, values)
}

fn past_run(row: &Row<'_>) -> rusqlite::Result<PastRun> {
    let number = |column| -> rusqlite::Result<Option<u64>> {
        Ok(get::<Option<i64>>(row, column)?.and_then(|n| u64::try_from(n).ok()))
    };
    Ok(PastRun {
        workflow: get(row, 0)?,
        started_at: number(1)?.map(Wall),
        ready_at: number(2)?.map(Wall),
        finished_at: Wall(number(3)?.unwrap_or_default()),
        outcome: get::<Option<String>>(row, 4)?.unwrap_or_default(),
        exit_code: get(row, 5)?,
        ended_by: get(row, 6)?,
        cpu_usec: number(7)?,
        memory_peak_bytes: number(8)?,
    })
}

#[cfg(test)]
#[path = "past_tests.rs"]
mod tests;
