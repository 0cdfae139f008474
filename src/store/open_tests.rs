use std::os::unix::fs::MetadataExt;

use super::*;
use crate::store::testing::{event, intent, open, run_id, write, write_finished, write_live};
use crate::store::{Filter, Verification, Write};

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A database with all kinds of rows on many pages.
fn filled(dir: &Path) {
    let writes =
        (1..=120).flat_map(|n| [write_finished(n), event(n), Write::KillIntent(intent(n)), write_live(n + 500)]);
    write(dir, writes);
}

#[test]
fn everything_is_made_for_its_user_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let store = open(&state);
    let _reader = store.reader().unwrap();
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
    for name in files(&state) {
        assert_eq!(fs::metadata(state.join(&name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(store.instance_id().len(), 32);
    let id = store.instance_id().to_owned();
    drop(store);
    assert_eq!(open(&state).instance_id(), id);
}

#[test]
fn a_state_directory_serves_one_instance_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
    drop(first);
    open(dir.path());
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().join(FILE);
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    schema::write_meta(&conn, meta::SCHEMA_VERSION, &(schema::VERSION + 1).to_string()).unwrap();
    drop(conn);
    let before = fs::read(&path).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found, .. } if found == schema::VERSION + 1), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(files(dir.path()), [FILE, LOCK]);
}

#[test]
fn a_file_that_is_no_database_is_set_aside_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    for n in 1..=2 {
        fs::write(&path, format!("not a database {n}").repeat(1000)).unwrap();
        fs::write(with_suffix(&path, "-wal"), "nor a log").unwrap();
        let opened = Store::open(dir.path()).unwrap();
        let aside = opened.set_aside.unwrap();
        assert!(fs::read_to_string(&aside.path).unwrap().starts_with(&format!("not a database {n}")));
        assert!(!aside.why.is_empty());
        assert_eq!(opened.store.reader().unwrap().last_seq().unwrap(), 0);
    }
}

#[test]
fn another_programs_database_is_set_aside_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    Connection::open(dir.path().join(FILE)).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let aside = Store::open(dir.path()).unwrap().set_aside.unwrap();
    Connection::open(aside.path).unwrap().execute_batch("INSERT INTO theirs VALUES (1)").unwrap();
}

#[test]
fn a_held_database_is_an_error_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let conn = Connection::open(dir.path().join(FILE)).unwrap();
    conn.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Sqlite { .. }), "{error}");
    assert!(error.to_string().contains("another program holds the database"), "{error}");
    drop(conn);
    open(dir.path());
}

#[test]
fn what_the_last_instance_committed_before_it_was_killed_is_there() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let store = open(dir.path());
    let reader = store.reader().unwrap();
    // What a killed instance leaves: a -wal that nobody has checkpointed.
    let mut conn = store.into_connection();
    crate::store::record::commit(&mut conn, std::iter::once(&crate::store::testing::batch([event(9)]))).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for name in [FILE, "guardian.db-wal"] {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    assert_eq!(open(copy.path()).reader().unwrap().last_seq().unwrap(), 121);
    drop(reader);
}

#[test]
fn damage_that_a_writer_met_is_looked_for_at_the_next_open() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let suspect = dir.path().join("guardian.db-suspect");
    fs::write(&suspect, "").unwrap();
    open(dir.path());
    assert!(!suspect.exists(), "the mark goes when nothing was found");
}

/// Uses everything that an instance uses; whatever it says, it must not panic.
fn use_all(store: Store) {
    let reader = store.reader().unwrap();
    let _ = reader.verify();
    let _ = reader.runs(&Filter::default());
    let _ = reader.runs(&Filter::live());
    let _ = reader.live_states();
    let _ = reader.events(0, 1000, None);
    let _ = reader.events(0, 1000, Some(run_id(5)));
    let _ = reader.resolve("run_0");
    let mut conn = store.into_connection();
    let _ = crate::store::record::commit(&mut conn, std::iter::once(&crate::store::testing::batch([event(1)])));
}

#[test]
fn any_damage_to_the_file_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let sound = fs::read(dir.path().join(FILE)).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        // xorshift: the same damage at every run of the test.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(below).unwrap()).unwrap()
    };
    let mut set_aside = 0;
    for round in 0..400 {
        let mut bytes = sound.clone();
        match round {
            // Every byte of the header once, then bytes anywhere, runs of bytes, and cut files.
            0..100 => bytes[round] ^= 0xff,
            100..300 => (0..=next(4)).for_each(|_| bytes[next(sound.len())] = u8::try_from(next(256)).unwrap()),
            300..370 => {
                let from = next(sound.len() - 600);
                bytes[from..from + 512].fill(u8::try_from(next(256)).unwrap());
            }
            _ => bytes.truncate(1 + next(sound.len() - 1)),
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, &bytes).unwrap();
        let opened = Store::open(dir.path()).unwrap_or_else(|e| panic!("round {round}: {e}"));
        if let Some(aside) = opened.set_aside {
            set_aside += 1;
            assert_eq!(fs::read(aside.path).unwrap().len(), bytes.len(), "round {round}");
            assert!(matches!(opened.store.reader().unwrap().verify().unwrap(), Verification::Intact { rows: 0, .. }));
        }
        use_all(opened.store);
    }
    assert!((100..400).contains(&set_aside), "{set_aside} of 400 were set aside");
}

#[test]
fn any_damage_to_the_write_ahead_log_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut conn = store.into_connection();
    for n in 1..=40 {
        crate::store::record::commit(&mut conn, std::iter::once(&crate::store::testing::batch([event(n)]))).unwrap();
    }
    let files = [FILE, "guardian.db-wal"].map(|name| (name, fs::read(dir.path().join(name)).unwrap()));
    for round in 0..100_usize {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &files {
            let mut bytes = bytes.clone();
            if name.ends_with("-wal") {
                let at = round * 7919 % bytes.len();
                bytes[at] ^= 0x55;
            }
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let opened = Store::open(dir.path()).unwrap_or_else(|e| panic!("round {round}: {e}"));
        // SQLite takes the log up to the damage: fewer rows, and a chain that holds.
        assert!(matches!(opened.store.reader().unwrap().verify().unwrap(), Verification::Intact { .. }), "{round}");
        use_all(opened.store);
    }
}
