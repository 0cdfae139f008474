//! What is fuzzed here: rows of the database, whoever changed them. A row is read, and then written again as the same; or
//! the error names the column.

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::audit::{Link, StoredRow};
use super::error::StoreError;
use super::reader::{read_live, read_view, unreadable};
use super::record::view_json;
use super::{audit, samples};
use crate::model::fuzz::{Target, check_sentence};
use crate::model::readings;

pub const TARGETS: &[Target] = &[("store_rows", rows), ("run_view", view), ("readings", readings_of_a_minute)];

const LIVE: &str = "id, view, state";

/// The name of a table, and a line for each column: `i` and a number, `t` and a text, `b` and bytes, or nothing.
fn rows(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    match lines.next() {
        Some(b"events") => with_row(audit::COLUMNS, lines, audit_row),
        Some(b"runs") => with_row(LIVE, lines, live_run),
        Some(b"samples") => with_row(samples::COLUMNS, lines, sample),
        Some(b"meta") => link(&String::from_utf8_lossy(lines.next().unwrap_or_default())),
        _ => {}
    }
}

/// Has SQLite give a row of these values. A damaged file can have any in any column, text that is not UTF-8 among them.
fn with_row<'a>(columns: &str, mut lines: impl Iterator<Item = &'a [u8]>, check: fn(&Row<'_>)) {
    thread_local! {
        static SQLITE: Option<Connection> = Connection::open_in_memory().ok();
    }
    let (mut values, mut terms) = (Vec::new(), Vec::new());
    for column in columns.split(", ") {
        let (value, term) = match lines.next() {
            Some([b'i', number @ ..]) => (Value::Integer(String::from_utf8_lossy(number).parse().unwrap_or(0)), "?"),
            Some([b't', text @ ..]) => (Value::Blob(text.to_vec()), "CAST(? AS TEXT)"),
            Some([b'b', bytes @ ..]) => (Value::Blob(bytes.to_vec()), "?"),
            _ => (Value::Null, "?"),
        };
        values.push(value);
        terms.push(format!("{term} AS {column}"));
    }
    SQLITE.with(|sqlite| {
        let Some(sqlite) = sqlite else { return };
        let selected = sqlite.prepare_cached(&format!("SELECT {}", terms.join(", ")));
        let checked = selected.and_then(|mut row| {
            row.query_row(params_from_iter(values), |row| {
                check(row);
                Ok(())
            })
        });
        assert_eq!(checked, Ok(()));
    });
}

fn audit_row(row: &Row<'_>) {
    let stored = match StoredRow::read(row) {
        Ok(stored) => stored,
        Err(e) => return names_a_column(&e.to_string(), audit::COLUMNS),
    };
    let (seq, prev_hash, hash) = (stored.seq, stored.prev_hash, audit::hex(&stored.hash));
    match stored.into_model() {
        Ok(read) => {
            let Ok(again) = StoredRow::of(&read.event, seq, prev_hash) else { return assert_eq!(read.hash, "") };
            let again = again.into_model().map(|again| (again.seq, again.event));
            // A fraction may be read as its neighbour; none is ever written.
            if !read.event.details.to_string().contains('.') {
                assert_eq!(again, Ok((read.seq, read.event)));
            }
            assert_eq!(read.hash, hash);
        }
        Err(e) => {
            names_a_column(&e, audit::COLUMNS);
            check_sentence(&unreadable(format!("audit row {seq}"), e).to_string());
        }
    }
}

fn live_run(row: &Row<'_>) {
    let id = row.get::<_, String>(0).unwrap_or_default();
    match read_live(&id, row) {
        Ok((view, _)) => assert_eq!(view_json(&view).ok().and_then(|text| read_view(&id, &text).ok()), Some(view)),
        Err(StoreError::Unreadable { what, why }) => check_sentence(&format!("{what} {why}")),
        Err(e) => names_a_column(&e.to_string(), LIVE),
    }
}

fn sample(row: &Row<'_>) {
    match samples::summary(row) {
        Ok(read) => {
            let used = [read.usage.cpu_usec, read.usage.memory_bytes, read.usage.tasks, Some(read.at.0)];
            assert!(used.into_iter().flatten().all(|number| i64::try_from(number).is_ok()));
        }
        Err(e) => names_a_column(&e.to_string(), samples::COLUMNS),
    }
}

fn names_a_column(told: &str, columns: &str) {
    let is_named = columns.split(", ").any(|column| told.contains(&format!("its {column}")));
    assert!(is_named, "{told:?} names no column");
}

fn link(text: &str) {
    match text.parse::<Link>() {
        Ok(link) => assert_eq!(link.to_string().parse(), Ok(link)),
        Err(e) => check_sentence(&e),
    }
}

/// The view of a run, as JSON.
fn view(data: &[u8]) {
    match read_view("run_000000000001", &String::from_utf8_lossy(data)) {
        Ok(view) => assert_eq!(view_json(&view).ok().and_then(|text| read_view("", &text).ok()), Some(view)),
        Err(e) => check_sentence(&e.to_string()),
    }
}

fn readings_of_a_minute(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    assert!(readings(text).len() <= text.split(';').count());
}
