use super::*;
use crate::model::{OpenMinute, Retention};
use crate::store::retention::{self, Pruned};
use crate::store::testing::{back_to_version_2, event, open, run_id, write, write_finished, write_live};

/// The beginning of an hour, in seconds since 1970.
const BEGIN: u64 = 1_700_002_800;

fn at(secs: u64) -> Wall {
    Wall((BEGIN + secs) * 1_000_000)
}

/// A minute of run `n`, with a reading each 5 s.
fn minute(n: u32, minute: u64) -> UsageMinute {
    let mut open = OpenMinute::default();
    for reading in 0..12 {
        let secs = minute * 60 + reading * 5;
        let usage = Usage {
            cpu_usec: Some(secs * 1000),
            memory_bytes: Some(100 + reading),
            tasks: Some(2),
            io_read_bytes: Some(secs),
            ..Usage::default()
        };
        open.add(at(secs), &usage, Some(5));
    }
    open.close(run_id(n)).unwrap()
}

fn kept(dir: &std::path::Path, runs: u32, minutes: u64) -> Connection {
    write(dir, (0..runs).flat_map(|n| [write_live(n), event(n)]));
    let mut conn = open(dir).into_connection();
    let all: Vec<_> = (0..minutes).flat_map(|m| (0..runs).map(move |n| minute(n, m))).collect();
    keep(&mut conn, all.iter()).unwrap();
    conn
}

fn all_done(conn: &mut Connection, retention: Retention, now: Wall) {
    let mut shrinking = false;
    for _ in 0..10_000 {
        if matches!(retention::step(conn, &retention, now, &mut shrinking).unwrap(), Pruned::Nothing) {
            return;
        }
    }
    panic!("retention never ends");
}

fn levels(conn: &Connection) -> Vec<(i64, i64)> {
    let mut statement = conn.prepare("SELECT level, count(*) FROM samples GROUP BY level ORDER BY level").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

const FOR_EVER: Retention = Retention { max_age: None, max_bytes: None };

#[test]
fn the_last_hour_is_in_readings_and_what_came_before_in_minutes_and_hours() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = kept(dir.path(), 2, 180);
    let before = read(&conn, run_id(1), Wall(0)).unwrap();
    assert_eq!((before.len(), before[0].at, before[0].span), (180 * 12, at(0), Duration::ZERO));
    // An hour after the last of the first two hours: their readings have become minutes.
    all_done(&mut conn, FOR_EVER, at(3 * 3600));
    let now = read(&conn, run_id(1), Wall(0)).unwrap();
    assert_eq!(now.iter().map(|s| s.span).filter(|s| *s == MINUTE).count(), 120);
    assert_eq!(now.len(), 120 + 60 * 12);
    assert!(now.is_sorted_by_key(|s| s.at));
    // A day and an hour later the first hour is one row.
    all_done(&mut conn, FOR_EVER, at(25 * 3600));
    let now = read(&conn, run_id(1), Wall(0)).unwrap();
    let usage = Usage {
        cpu_usec: Some(3_595_000),
        memory_bytes: Some(105),
        memory_peak_bytes: Some(111),
        tasks: Some(2),
        io_read_bytes: Some(3595),
        ..Usage::default()
    };
    let hour = UsageSample { at: at(3595), span: HOUR, usage, memory_pressure_percent: Some(5) };
    assert_eq!((now[0], now.len()), (hour, 1 + 120), "counters at the end, mean and most");
    assert_eq!(levels(&conn), [(1, 240), (2, 2)]);
    all_done(&mut conn, FOR_EVER, at(40 * 24 * 3600));
    assert_eq!(levels(&conn), []);
}

#[test]
fn an_hour_that_is_not_over_for_a_day_stays_in_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = kept(dir.path(), 1, 60);
    all_done(&mut conn, FOR_EVER, at(24 * 3600 + 1800));
    assert_eq!(levels(&conn), [(1, 60)], "or a second row for the same hour would come");
}

#[test]
fn what_is_asked_for_since_a_time_begins_there() {
    let dir = tempfile::tempdir().unwrap();
    let conn = kept(dir.path(), 2, 3);
    let since = read(&conn, run_id(0), at(90)).unwrap();
    assert_eq!((since[0].at, since.len()), (at(90), 6 + 12));
    assert_eq!(read(&conn, run_id(7), Wall(0)).unwrap(), []);
}

#[test]
fn for_want_of_room_samples_go_before_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = kept(dir.path(), 30, 120);
    let count = |conn: &Connection, table: &str| -> i64 {
        conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    let used = retention::used_bytes(&conn).unwrap();
    all_done(&mut conn, Retention { max_age: None, max_bytes: Some(used / 2) }, at(7200));
    assert!(retention::used_bytes(&conn).unwrap() <= used / 2);
    assert_eq!((count(&conn, "runs"), count(&conn, "events")), (30, 30));
    let left = read(&conn, run_id(3), Wall(0)).unwrap();
    assert!(left.len() > 12 && left[0].at > at(600), "the oldest went: {} of {:?}", left.len(), left[0].at);
}

#[test]
fn samples_do_not_outlive_their_run() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [write_finished(1), event(1), write_live(2)]);
    let mut conn = open(dir.path()).into_connection();
    keep(&mut conn, [minute(1, 0), minute(2, 0)].iter()).unwrap();
    // The run was over in 1970, and its samples are as of now: as by a clock that was set.
    all_done(&mut conn, Retention { max_age: Some(Duration::from_secs(86_400)), max_bytes: None }, at(60));
    assert_eq!(read(&conn, run_id(1), Wall(0)).unwrap(), []);
    assert_eq!(read(&conn, run_id(2), Wall(0)).unwrap().len(), 12);
}

#[test]
fn what_follows_samples_is_synced_again() {
    let dir = tempfile::tempdir().unwrap();
    let conn = kept(dir.path(), 1, 1);
    assert_eq!(conn.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0)).unwrap(), 2, "FULL");
}

#[test]
fn a_database_from_before_there_were_samples_gets_them() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [write_live(1), event(1)]);
    let conn = open(dir.path()).into_connection();
    back_to_version_2(&conn);
    conn.execute_batch(
        "DROP TABLE samples; UPDATE meta SET value = '1' WHERE key = 'schema_version'; PRAGMA user_version = 1",
    )
    .unwrap();
    drop(conn);
    let store = open(dir.path());
    let reader = store.reader().unwrap();
    assert_eq!((reader.events(0, 10, None).unwrap().len(), reader.samples(run_id(1), Wall(0)).unwrap().len()), (1, 0));
}
