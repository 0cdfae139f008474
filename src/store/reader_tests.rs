use std::time::Duration;

use super::*;
use crate::model::{KillReason, Outcome, Rule};
use crate::store::testing::{event, finished, intent, live, open, receipt, run_id, write, write_finished, write_live};
use crate::store::{Reader, Write};

fn reader_of(writes: impl IntoIterator<Item = Write>) -> (tempfile::TempDir, Reader) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), writes);
    let reader = open(dir.path()).reader().unwrap();
    (dir, reader)
}

fn plan(reader: &Reader, sql: &str) -> String {
    let mut statement = reader.conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    // The numbers do not matter to the plan, but each must be bound.
    for i in 1..=statement.parameter_count() {
        statement.raw_bind_parameter(i, 1).unwrap();
    }
    let mut rows = statement.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        lines.push(row.get::<_, String>(3).unwrap());
    }
    lines.join("; ")
}

#[test]
fn a_run_reads_back_as_it_was_last_written() {
    let over = finished(1, Outcome::Exited { code: 3 });
    let (_dir, reader) =
        reader_of([write_live(1), Write::Run { view: Box::new(over.clone()), state: None }, write_live(2)]);
    assert_eq!(reader.run(run_id(1)).unwrap(), Some(over));
    assert_eq!(reader.run(run_id(3)).unwrap(), None);
    assert!(reader.exists(run_id(2)).unwrap() && !reader.exists(run_id(3)).unwrap());
    assert_eq!([1, 2, 3].map(|n| reader.is_over(run_id(n)).unwrap()), [true, false, false]);
}

#[test]
fn only_live_runs_have_a_state_to_recover() {
    let (_dir, reader) = reader_of([write_live(2), write_live(1), write_live(3), write_finished(3)]);
    let live_runs = reader.live_states().unwrap();
    assert_eq!(live_runs.runs, [(live(1), "state of 1".to_owned()), (live(2), "state of 2".to_owned())]);
    assert!(live_runs.unreadable.is_empty());
}

#[test]
fn one_unreadable_run_does_not_keep_the_others_from_being_recovered() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [write_live(1), write_live(2)]);
    let store = open(dir.path());
    let reader = store.reader().unwrap();
    let sql = "UPDATE runs SET view = '{\"of\": \"another version\"}' WHERE id = ?1";
    store.into_connection().execute(sql, [run_id(1).to_string()]).unwrap();
    let live_runs = reader.live_states().unwrap();
    assert_eq!(live_runs.runs.len(), 1);
    assert_eq!(live_runs.unreadable[0].0, run_id(1));
    let error = reader.run(run_id(1)).unwrap_err().to_string();
    assert!(error.contains(&run_id(1).to_string()), "{error}");
}

#[test]
fn nor_does_one_whose_text_is_damaged() {
    for column in ["view", "state"] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), [write_live(1), write_live(2)]);
        let store = open(dir.path());
        let reader = store.reader().unwrap();
        let sql = format!("UPDATE runs SET {column} = CAST(x'7bff1b' AS TEXT) WHERE id = ?1");
        store.into_connection().execute(&sql, [run_id(1).to_string()]).unwrap();
        let live_runs = reader.live_states().unwrap();
        assert_eq!((live_runs.runs.len(), live_runs.unreadable[0].0), (1, run_id(1)));
        let why = &live_runs.unreadable[0].1;
        assert!(why.starts_with(&format!("its {column}: ")) && !why.contains('\x1b'), "{why}");
    }
}

#[test]
fn a_path_that_is_not_utf8_does_not_stop_the_store() {
    use std::os::unix::ffi::OsStringExt;
    let log = std::ffi::OsString::from_vec(b"/home/\xff/log".to_vec());
    let mut view = live(1);
    view.spec.log = Some(log.into());
    let (_dir, reader) = reader_of([Write::Run { view: Box::new(view), state: None }]);
    let view = reader.run(run_id(1)).unwrap().unwrap();
    assert_eq!(view.spec.log.unwrap().to_str(), Some("/home/\u{fffd}/log"));
}

#[test]
fn filters_choose_and_the_newest_come_first() {
    let mut odd = live(4);
    odd.spec.workflow = "lina".into();
    odd.spec.uid = 7;
    odd.health = Health::Critical;
    odd.phase = Phase::Killing;
    let (_dir, reader) = reader_of([
        write_live(3),
        write_finished(1),
        write_finished(2),
        Write::Run { view: Box::new(odd), state: None },
    ]);
    let ids =
        |filter: Filter| -> Vec<RunId> { reader.runs(&filter).unwrap().into_iter().map(|view| view.spec.id).collect() };
    let some = |numbers: &[u32]| numbers.iter().copied().map(run_id).collect::<Vec<_>>();
    assert_eq!(ids(Filter::default()), some(&[4, 3, 2, 1]));
    assert_eq!(ids(Filter { limit: Some(2), ..Filter::default() }), some(&[4, 3]));
    assert_eq!(ids(Filter::live()), some(&[4, 3]));
    assert_eq!(ids(Filter::finished()), some(&[2, 1]));
    assert_eq!(ids(Filter { phases: vec![Phase::Killing, Phase::Finished], ..Filter::default() }), some(&[4, 2, 1]));
    assert_eq!(ids(Filter { workflow: Some("lina".into()), ..Filter::default() }), some(&[4]));
    assert_eq!(ids(Filter { workflow: Some("'; DROP TABLE runs; --".into()), ..Filter::default() }), some(&[]));
    assert_eq!(ids(Filter { uid: Some(1000), ..Filter::live() }), some(&[3]));
    assert_eq!(ids(Filter { health: Some(Health::Critical), ..Filter::default() }), some(&[4]));
    assert_eq!(ids(Filter { since: Some(Wall(2_000_000)), ..Filter::finished() }), some(&[2]));
}

#[test]
fn a_prefix_names_the_runs_that_begin_with_it() {
    let (_dir, reader) = reader_of([write_live(0x12), write_live(0x13), write_live(0xff00_0000)]);
    let resolve = |prefix: &str| reader.resolve(prefix).unwrap();
    assert_eq!(resolve("run_0000001"), [run_id(0x12), run_id(0x13)]);
    assert_eq!(resolve("00000012"), [run_id(0x12)]);
    assert_eq!(resolve("f"), [run_id(0xff00_0000)]);
    assert_eq!(resolve(&run_id(0x13).to_string()), [run_id(0x13)]);
    for none in ["", "run_", "e", "%", "run_0000001%"] {
        assert!(resolve(none).is_empty(), "{none}");
    }
}

#[test]
fn the_log_is_read_by_cursor_of_all_runs_or_one() {
    let (_dir, reader) = reader_of([event(1), event(2), event(1), event(2), event(1)]);
    let seqs =
        |after, max, run| -> Vec<u64> { reader.events(after, max, run).unwrap().iter().map(|row| row.seq).collect() };
    assert_eq!(seqs(0, 100, None), [1, 2, 3, 4, 5]);
    assert_eq!(seqs(2, 2, None), [3, 4]);
    assert_eq!(seqs(1, 100, Some(run_id(1))), [3, 5]);
    assert_eq!(seqs(5, 100, None), [] as [u64; 0]);
    assert_eq!(seqs(u64::MAX, usize::MAX, None), [] as [u64; 0]);
    let Write::Audit(written) = event(2) else { panic!() };
    assert_eq!(reader.events(1, 1, None).unwrap()[0].event, written);
    assert_eq!(reader.last_seq().unwrap(), 5);
}

#[test]
fn a_kill_is_recorded_at_its_intent_and_again_when_it_is_done() {
    let (dir, reader) =
        reader_of([Write::KillIntent(intent(1)), Write::KillDone(Box::new(receipt(1))), Write::KillIntent(intent(2))]);
    type Kill = (String, Option<u32>, Option<i64>, Option<String>);
    let kills: Vec<Kill> = reader
        .conn
        .prepare("SELECT actor, survivors, duration_usec, receipt FROM kills ORDER BY run_id")
        .unwrap()
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!((kills[0].0.as_str(), kills[0].1, kills[0].2), ("root", Some(0), Some(1234)));
    assert_eq!(serde_json::from_str::<crate::model::Receipt>(kills[0].3.as_ref().unwrap()).unwrap(), receipt(1));
    assert_eq!((kills[1].1, &kills[1].3), (None, &None));
    drop(dir);
}

#[test]
fn the_view_of_the_original_system_gives_its_words_for_every_end() {
    let limit = |rule| Outcome::Killed { reason: KillReason::over(rule, Duration::from_secs(1)) };
    let requested = KillReason::Requested { text: String::new() };
    let mut cases = vec![
        (Outcome::Exited { code: 0 }, "completed"),
        (Outcome::Exited { code: 1 }, "failed"),
        (Outcome::Signaled { signal: 11 }, "failed"),
        (Outcome::Oom, "failed"),
        (Outcome::Lost { why: "rebooted".into() }, "failed"),
        (Outcome::Killed { reason: KillReason::LaunchIncomplete }, "failed"),
        (Outcome::Killed { reason: requested }, "killed"),
        (Outcome::Killed { reason: KillReason::ClientGone }, "killed"),
        (Outcome::Killed { reason: KillReason::Leftovers }, "killed"),
    ];
    cases.extend(Rule::TIMED.into_iter().chain(Rule::COUNTED).map(|rule| (limit(rule), "timeout")));
    let ends = (1..)
        .zip(&cases)
        .map(|(n, (outcome, _))| Write::Run { view: Box::new(finished(n, outcome.clone())), state: None });
    let (_dir, reader) = reader_of(std::iter::once(write_live(0)).chain(ends));
    let statuses: Vec<String> = reader
        .conn
        .prepare("SELECT status FROM workflow_processes ORDER BY created_at")
        .unwrap()
        .query_map([], |r| r.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let expected: Vec<_> = std::iter::once("running").chain(cases.iter().map(|(_, status)| *status)).collect();
    assert_eq!(statuses, expected);

    let sql = "SELECT run_id, pid, workflow_name, session_id, user_id, started_at, workspace_path, last_heartbeat,
               json_extract(process_info, '$.command[0]'), created_at, updated_at FROM workflow_processes LIMIT 1";
    let row: Vec<Value> = reader.conn.query_row(sql, [], |row| (0..10).map(|i| row.get(i)).collect()).unwrap();
    let text = |t: &str| Value::from(t.to_owned());
    let expected = [
        text("run_000000000001"),
        Value::from(811),
        text("builder"),
        Value::Null,
        Value::from(1000),
        text("1970-01-01T00:00:00.000Z"),
        text("/src"),
        Value::Null,
        text("make"),
        text("1970-01-01T00:00:00.000Z"),
    ];
    assert_eq!(row, expected);
}

#[test]
fn the_view_of_the_original_system_has_the_session_and_the_last_heartbeat_also_of_an_older_database() {
    let mut view = live(1);
    view.heartbeats.last_at = Some(Wall(1_500_000));
    let session = Some("abc".to_owned());
    view.progress = Some(crate::model::Progress { session, turns: 7, ..crate::model::Progress::default() });
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [Write::Run { view: Box::new(view), state: None }]);
    let sql = "SELECT session_id, last_heartbeat, process_info ->> '$.progress.turns' FROM workflow_processes";
    let read = |conn: &Connection| {
        conn.query_row(sql, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?)))
    };
    let expected = ("abc".to_owned(), "1970-01-01T00:00:01.500Z".to_owned(), 7);
    let conn = open(dir.path()).into_connection();
    assert_eq!(read(&conn).unwrap(), expected);
    conn.execute_batch(
        "DROP VIEW workflow_processes;
         CREATE VIEW workflow_processes AS SELECT id AS run_id, NULL AS session_id FROM runs;
         UPDATE meta SET value = '3' WHERE key = 'schema_version';
         PRAGMA user_version = 3;",
    )
    .unwrap();
    drop(conn);
    assert_eq!(read(&open(dir.path()).into_connection()).unwrap(), expected);
}

#[test]
fn every_query_goes_by_an_index() {
    let (_dir, reader) = reader_of([]);
    let filters = [
        (Filter::default(), "runs_created"),
        (Filter::live(), "runs_live"),
        (Filter { since: Some(Wall(5)), ..Filter::default() }, "runs_created"),
        (Filter { workflow: Some("x".into()), ..Filter::default() }, "runs_workflow"),
        (Filter { uid: Some(1), ..Filter::default() }, "runs_uid"),
        (Filter { health: Some(Health::Critical), ..Filter::default() }, "runs_unhealthy"),
    ];
    for (filter, index) in filters {
        let plan = plan(&reader, &filter.query().0);
        assert!(plan.contains(index), "{filter:?}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{filter:?} is sorted: {plan}");
    }
    for (sql, index) in [
        ("SELECT id FROM runs WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT 2", "sqlite_autoindex_runs_1"),
        ("SELECT id, view, state FROM runs WHERE state IS NOT NULL ORDER BY created_at", "runs_state"),
        ("SELECT seq FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2", "INTEGER PRIMARY KEY"),
        ("SELECT seq FROM events WHERE run = ?3 AND seq > ?1 ORDER BY seq LIMIT ?2", "events_run"),
        (
            "SELECT id FROM runs WHERE phase = 'finished' AND finished_at < ?1 ORDER BY finished_at LIMIT ?2",
            "runs_finished",
        ),
    ] {
        let plan = plan(&reader, sql);
        assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
    }
}
