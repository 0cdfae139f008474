use std::time::Duration;

use super::*;
use crate::model::{KillReason, Outcome};
use crate::store::testing::{batch, event, finished, intent, open, write, write_finished, write_live};
use crate::store::{Verification, Write, audit, record};

const DAY: u64 = 86_400;

fn at(secs: u64) -> Wall {
    Wall(secs * 1_000_000)
}

/// Steps until there is nothing left to do, and verifies the log at every step.
fn prune(conn: &mut Connection, retention: Retention, now: Wall) -> usize {
    let mut shrinking = false;
    let mut steps = 0;
    loop {
        let done = step(conn, &retention, now, &mut shrinking).unwrap();
        assert!(matches!(audit::verify(conn).unwrap(), Verification::Intact { .. }));
        if matches!(done, Pruned::Nothing) {
            give_back(conn).unwrap();
            return steps;
        }
        steps += 1;
        assert!(steps < 1000, "retention never ends");
    }
}

fn count(conn: &Connection, table: &str) -> i64 {
    conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

fn aged(secs: u64) -> Retention {
    Retention { max_age: Some(Duration::from_secs(secs)), max_bytes: None }
}

#[test]
fn what_is_too_old_goes_and_the_log_still_verifies() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), (1..=1200).flat_map(|n| [write_finished(n), event(n)]));
    let mut conn = open(dir.path()).into_connection();
    // The run accepted at second 1000 was over at 1001.
    prune(&mut conn, aged(DAY), at(DAY + 1001));
    let first: u32 = conn.query_row("SELECT min(finished_at) / 1000000 FROM runs", [], |r| r.get(0)).unwrap();
    assert_eq!((first, count(&conn, "runs")), (1001, 201));
    let rows = conn.query_row("SELECT count(*) FROM events WHERE kind = 'run_started'", [], |r| r.get::<_, i64>(0));
    assert_eq!(rows.unwrap(), 200);
    let (reason, details): (String, String) = conn
        .query_row(
            "SELECT reason, details FROM events WHERE kind = 'audit_pruned' ORDER BY seq DESC LIMIT 1",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap();
    assert_eq!(reason, "retention removed the audit log up to row 1000");
    assert!(details.contains("\"last_seq\":1000"), "{details}");
}

#[test]
fn live_runs_and_their_kills_stay_whatever_their_age() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [write_live(1), Write::KillIntent(intent(1)), write_finished(2), Write::KillIntent(intent(2))]);
    let mut conn = open(dir.path()).into_connection();
    prune(&mut conn, Retention { max_age: Some(Duration::from_secs(1)), max_bytes: Some(0) }, at(400 * DAY));
    let left = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!((count(&conn, "runs"), count(&conn, "kills")), (1, 1));
    assert_eq!(left("SELECT id FROM runs"), left("SELECT run_id FROM kills"));
}

#[test]
fn a_kill_whose_run_is_not_known_goes_with_its_age() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [Write::KillIntent(intent(1)), Write::KillIntent(intent(90))]);
    let mut conn = open(dir.path()).into_connection();
    prune(&mut conn, aged(DAY), at(DAY + 50));
    assert_eq!(count(&conn, "kills"), 1);
}

#[test]
fn nothing_is_removed_while_all_is_young_or_kept_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), (1..=50).flat_map(|n| [write_finished(n), event(n)]));
    let mut conn = open(dir.path()).into_connection();
    // Also with a clock that stands near 1970.
    for (retention, now) in [
        (aged(DAY), at(DAY)),
        (aged(DAY), at(10)),
        (Retention { max_age: None, max_bytes: None }, at(1000 * DAY)),
        (Retention { max_age: None, max_bytes: Some(1 << 30) }, at(1000 * DAY)),
    ] {
        assert_eq!(prune(&mut conn, retention, now), 0);
    }
    assert_eq!((count(&conn, "runs"), count(&conn, "events")), (50, 50));
}

#[test]
fn notes_about_removals_alone_do_not_make_a_new_note() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), (1..=3).map(event));
    let mut conn = open(dir.path()).into_connection();
    assert_eq!(prune(&mut conn, aged(DAY), at(10 * DAY)), 1);
    assert_eq!(prune(&mut conn, aged(DAY), at(20 * DAY)), 0);
    assert_eq!(count(&conn, "events"), 1);
}

#[test]
fn many_notes_in_a_row_do_not_shield_what_comes_after_them() {
    let dir = tempfile::tempdir().unwrap();
    let note = |n| match event(n) {
        Write::Audit(event) => Write::Audit(AuditEvent { kind: EventKind::AuditPruned, ..event }),
        other => other,
    };
    write(dir.path(), (1..=1100).map(note).chain((1101..=1200).map(event)));
    let mut conn = open(dir.path()).into_connection();
    prune(&mut conn, aged(DAY), at(10 * DAY));
    assert!(count(&conn, "events") <= 3);
}

#[test]
fn what_takes_too_much_room_goes_oldest_first_and_the_file_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let killed = |n| Outcome::Killed { reason: KillReason::Requested { text: "x".repeat(n as usize % 100) } };
    write(
        dir.path(),
        (1..=4000).flat_map(|n| [Write::Run { view: Box::new(finished(n, killed(n))), state: None }, event(n)]),
    );
    let mut conn = open(dir.path()).into_connection();
    let before = used_bytes(&conn).unwrap();
    let max = before / 2;
    prune(&mut conn, Retention { max_age: None, max_bytes: Some(max) }, at(5000));
    let after = used_bytes(&conn).unwrap();
    assert!(after <= max / 10 * 9 && after > max / 2, "{before} became {after}, with {max} allowed");
    let newest: u32 = conn.query_row("SELECT max(created_at) / 1000000 FROM runs", [], |r| r.get(0)).unwrap();
    assert_eq!(newest, 4000);
    // Runs and log cover about the same time.
    let first_run: i64 = conn.query_row("SELECT min(created_at) / 1000000 FROM runs", [], |r| r.get(0)).unwrap();
    let first_event: i64 = conn.query_row("SELECT min(time_usec) / 1000000 FROM events", [], |r| r.get(0)).unwrap();
    assert!((first_run - first_event).abs() <= 2 * STEP, "runs from {first_run}, log from {first_event}");

    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let file = std::fs::metadata(dir.path().join("guardian.db")).unwrap().len();
    assert!(file <= max, "the file still has {file} bytes");
}

#[test]
fn the_log_goes_on_from_where_it_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), (1..=5).map(event));
    let mut conn = open(dir.path()).into_connection();
    prune(&mut conn, aged(1), at(10 * DAY));
    let rows = record::commit(&mut conn, std::iter::once(&batch([event(6)]))).unwrap();
    assert_eq!(rows[0].seq, 7, "6 is the note about the removal");
    match audit::verify(&conn).unwrap() {
        Verification::Intact { rows: 2, first_seq: 6, last_seq: 7, .. } => {}
        other => panic!("{other:?}"),
    }
    // A row removed by hand at the cut is not mistaken for retention.
    conn.execute("DELETE FROM events WHERE seq = 6", []).unwrap();
    assert!(matches!(audit::verify(&conn).unwrap(), Verification::Broken { seq: 6, good_rows: 0, .. }));
}
