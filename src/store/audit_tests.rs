use tempfile::TempDir;

use super::*;
use crate::store::testing::{batch, event, open, write};
use crate::store::{Store, record};

fn log_of(rows: u32) -> (TempDir, Connection) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), (1..=rows).map(event));
    let conn = open(dir.path()).into_connection();
    (dir, conn)
}

fn intact(conn: &Connection) -> (u64, u64, u64) {
    match verify(conn).unwrap() {
        Verification::Intact { rows, first_seq, last_seq, .. } => (rows, first_seq, last_seq),
        broken => panic!("{broken:?}"),
    }
}

fn broken_at(conn: &Connection, context: &str) -> u64 {
    match verify(conn).unwrap() {
        Verification::Broken { seq, .. } => seq,
        intact => panic!("{context} went unnoticed: {intact:?}"),
    }
}

/// Runs a change, verifies, and takes the change back.
fn broken_by(conn: &mut Connection, sql: &str) -> u64 {
    let tx = conn.transaction().unwrap();
    assert!(tx.execute(sql, []).unwrap() > 0, "{sql} changed nothing");
    broken_at(&tx, sql)
}

#[test]
fn an_untouched_log_verifies_empty_or_not() {
    let (_dir, conn) = log_of(0);
    assert_eq!(intact(&conn), (0, 0, 0));
    let (_dir, conn) = log_of(50);
    assert_eq!(intact(&conn), (50, 1, 50));
}

#[test]
fn a_change_of_any_column_of_any_row_is_found_at_that_row() {
    let (_dir, mut conn) = log_of(6);
    for seq in 1..=6 {
        for change in [
            "time_usec = time_usec + 1",
            "kind = 'run_ready'",
            "run = 'run_ffffffffffff'",
            "run = NULL",
            "workflow = NULL",
            "workflow = ''",
            "actor_uid = 0",
            "actor_uid = NULL",
            "actor = 'eve'",
            "reason = reason || ' '",
            "details = '{}'",
            "prev_hash = zeroblob(32)",
            "hash = zeroblob(32)",
            "hash = x'00'",
        ] {
            if seq == 1 && change.starts_with("prev_hash") {
                continue; // That is what the first row's previous hash is.
            }
            let at = broken_by(&mut conn, &format!("UPDATE events SET {change} WHERE seq = {seq}"));
            assert_eq!(at, seq, "{change}");
        }
    }
    assert_eq!(intact(&conn), (6, 1, 6));
}

#[test]
fn a_missing_row_is_found_wherever_it_was() {
    let (_dir, mut conn) = log_of(6);
    for seq in 1..=6 {
        assert_eq!(broken_by(&mut conn, &format!("DELETE FROM events WHERE seq = {seq}")), seq);
    }
    assert_eq!(broken_by(&mut conn, "DELETE FROM events"), 1);
}

#[test]
fn an_added_row_is_found() {
    let (_dir, mut conn) = log_of(3);
    let copy = |seq: i64| {
        format!(
            "INSERT INTO events SELECT {seq}, time_usec, kind, run, workflow, actor_uid, actor, reason, details, \
             prev_hash, hash FROM events WHERE seq = 3"
        )
    };
    assert_eq!(broken_by(&mut conn, &copy(4)), 4);
    assert_eq!(broken_by(&mut conn, &copy(0)), 0);
}

#[test]
fn reordered_rows_are_found() {
    let (_dir, conn) = log_of(6);
    conn.execute_batch(
        "UPDATE events SET seq = -1 WHERE seq = 3; UPDATE events SET seq = 3 WHERE seq = 4;
         UPDATE events SET seq = 4 WHERE seq = -1;",
    )
    .unwrap();
    assert_eq!(broken_at(&conn, "swapping rows 3 and 4"), 3);
}

#[test]
fn a_forged_row_with_a_hash_that_fits_breaks_the_next_one() {
    let (_dir, conn) = log_of(4);
    let forge = |seq: i64| {
        let sql = format!("SELECT {COLUMNS} FROM events WHERE seq = {seq}");
        let mut row = conn.query_row(&sql, [], StoredRow::read).unwrap();
        row.reason = "nothing to see".into();
        let hash = row.compute(&row.prev_hash);
        conn.execute("UPDATE events SET reason = ?1, hash = ?2 WHERE seq = ?3", params![row.reason, hash, seq])
            .unwrap();
    };
    forge(4);
    assert_eq!(broken_at(&conn, "forging the last row"), 4);
    forge(2);
    assert_eq!(broken_at(&conn, "forging row 2"), 3);
}

#[test]
fn what_follows_a_tampered_log_is_recorded_and_the_place_stays_visible() {
    let (_dir, mut conn) = log_of(5);
    conn.execute("DELETE FROM events WHERE seq = 5", []).unwrap();
    record::commit(&mut conn, std::iter::once(&batch([event(6)]))).unwrap();
    assert_eq!(broken_at(&conn, "removing the last row before more came"), 5);

    let (_dir, mut conn) = log_of(5);
    conn.execute("UPDATE events SET seq = 9 WHERE seq = 5", []).unwrap();
    let rows = record::commit(&mut conn, std::iter::once(&batch([event(6)]))).unwrap();
    assert_eq!(rows[0].seq, 10);
    assert_eq!(broken_at(&conn, "moving the last row"), 5);
}

#[test]
fn fields_cannot_run_into_one_another() {
    let row = |actor: &str, reason: &str, run: Option<&str>, workflow: Option<&str>| StoredRow {
        seq: 1,
        time_usec: 2,
        kind: "run_ready".into(),
        run: run.map(str::to_owned),
        workflow: workflow.map(str::to_owned),
        actor_uid: None,
        actor: actor.into(),
        reason: reason.into(),
        details: "{}".into(),
        prev_hash: [0; 32],
        hash: [0; 32],
    };
    let hashes = [
        row("ab", "c", None, None),
        row("a", "bc", None, None),
        row("ab", "c", Some(""), None),
        row("ab", "c", None, Some("")),
        row("ab", "c", Some("x"), None),
        row("ab", "c", None, Some("x")),
    ]
    .map(|row| row.compute(&[0; 32]));
    let distinct: std::collections::HashSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), hashes.len());
}

#[test]
fn the_chain_goes_on_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=3 {
        write(dir.path(), [event(n)]);
    }
    let reader = Store::open(dir.path()).unwrap().store.reader().unwrap();
    assert!(matches!(reader.verify().unwrap(), Verification::Intact { rows: 3, first_seq: 1, last_seq: 3, .. }));
    assert_eq!(reader.last_seq().unwrap(), 3);
}
