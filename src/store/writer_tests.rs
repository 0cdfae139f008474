use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use super::*;
use crate::store::testing::{FOR_EVER, batch, event, intent, open, run_id, write_finished, write_live};
use crate::store::{Reader, Store, Verification, Write};

fn ticketed(n: u32) -> Batch {
    Batch { writes: vec![event(n), Write::KillIntent(intent(n))], ticket: Some(u64::from(n)), is_provisional: false }
}

fn start(dir: &Path) -> (Writer, Reader, Receiver<Notice>) {
    let store = open(dir);
    let reader = store.reader().unwrap();
    let (sender, notices) = mpsc::channel();
    let sink = Box::new(move |notice| drop(sender.send(notice)));
    (store.into_writer(FOR_EVER, sink, None).unwrap(), reader, notices)
}

fn next(notices: &Receiver<Notice>) -> Notice {
    notices.recv_timeout(Duration::from_secs(20)).unwrap()
}

fn rows(reader: &Reader) -> u64 {
    match reader.verify().unwrap() {
        Verification::Intact { rows, .. } => rows,
        broken => panic!("{broken:?}"),
    }
}

/// A worker without its thread, and what it told.
fn worker(dir: &Path) -> (Worker, Arc<Mutex<Vec<Notice>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    let notices = Box::new(move |notice| sink.lock().unwrap().push(notice));
    let suspect = dir.join("guardian.db-suspect");
    (Worker::new(open(dir).into_connection(), suspect, FOR_EVER, Arc::default(), notices, None).unwrap(), told)
}

#[test]
fn a_ticket_is_answered_when_its_batch_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader, notices) = start(dir.path());
    for n in 1..=3 {
        writer.submit(ticketed(n)).unwrap();
        assert_eq!(next(&notices), Notice::Recorded(u64::from(n)));
        assert_eq!(rows(&reader), u64::from(n));
    }
    writer.stop().unwrap();
}

#[test]
fn a_clean_stop_writes_everything_and_leaves_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader, _notices) = start(dir.path());
    drop(reader);
    for n in 0..500 {
        writer.submit(batch([event(n), write_live(n)])).unwrap();
    }
    writer.stop().unwrap();
    assert!(!dir.path().join("guardian.db-wal").exists(), "the next open would take this for a crash");
    assert_eq!(rows(&open(dir.path()).reader().unwrap()), 500);
}

#[test]
fn committed_rows_go_to_the_journal_in_order_as_they_are_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let reader = store.reader().unwrap();
    let (sender, journal) = mpsc::channel();
    let sink = Box::new(move |row: &AuditRow| drop(sender.send(row.clone())));
    let writer = store.into_writer(FOR_EVER, Box::new(|_| {}), Some(sink)).unwrap();
    for n in 1..=20 {
        writer.submit(batch([event(n)])).unwrap();
    }
    writer.stop().unwrap();
    assert_eq!(journal.iter().collect::<Vec<_>>(), reader.events(0, 100, None).unwrap());
}

#[test]
fn what_is_provisional_is_told_once_what_came_after_it_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (mut worker, told) = worker(dir.path());
    let (sender, journal) = mpsc::channel();
    worker.journal = Some(Box::new(move |row: &AuditRow| sender.send(row.seq).unwrap()));
    let reader = Reader::open(&dir.path().join("guardian.db"), worker.synced.clone()).unwrap();
    let mut turn = |batch: Batch| {
        worker.unwritten.fetch_add(1, Ordering::Relaxed);
        worker.pending.push_back(batch);
        worker.turn(Instant::now());
        let synchronous: i64 = worker.conn.query_row("PRAGMA synchronous", [], |r| r.get(0)).unwrap();
        assert_eq!(synchronous, 2, "FULL for whatever comes next");
        let seen: i64 = schema_reader(dir.path()).query_row("SELECT max(seq) FROM events", [], |r| r.get(0)).unwrap();
        let readable = reader.events(0, 10, None).unwrap().last().map(|row| row.seq);
        let ours = reader.events(0, 10, Some(run_id(2))).unwrap().len();
        assert_eq!(readable, Some(reader.last_seq().unwrap()));
        (seen, readable.unwrap(), ours, journal.try_iter().collect::<Vec<_>>())
    };
    assert_eq!(turn(batch([event(1)])), (1, 1, 0, vec![1]));
    assert_eq!(turn(Batch { is_provisional: true, ..ticketed(2) }), (2, 1, 0, vec![]));
    assert_eq!(*told.lock().unwrap(), [Notice::Recorded(2)], "on record, for the next instance if this one dies");
    assert_eq!(turn(batch([event(3)])), (3, 3, 1, vec![2, 3]));
}

#[test]
fn what_waits_is_committed_together() {
    let dir = tempfile::tempdir().unwrap();
    let (mut worker, told) = worker(dir.path());
    worker.pending.extend((1..=10).map(ticketed));
    worker.unwritten.store(10, Ordering::Relaxed);
    let before: i64 = worker.conn.query_row("PRAGMA data_version", [], |r| r.get(0)).unwrap();
    let other = schema_reader(dir.path());
    let version = |c: &Connection| c.query_row("PRAGMA data_version", [], |r| r.get::<_, i64>(0)).unwrap();
    let seen = version(&other);
    worker.turn(Instant::now());
    assert_eq!(version(&other), seen + 1, "one commit seen from another connection");
    assert_eq!(before, version(&worker.conn));
    assert_eq!(*told.lock().unwrap(), (1..=10).map(Notice::Recorded).collect::<Vec<_>>());
    assert_eq!(worker.unwritten.load(Ordering::Relaxed), 0);
}

fn schema_reader(dir: &Path) -> Connection {
    Connection::open(dir.join("guardian.db")).unwrap()
}

#[test]
fn a_full_disk_loses_nothing_and_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut worker, told) = worker(dir.path());
    worker.turn(Instant::now());
    let pages: i64 = worker.conn.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
    let allow = |worker: &Worker, pages: i64| {
        worker.conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    };
    allow(&worker, pages);
    worker.pending.extend((1..=100).map(ticketed));
    worker.unwritten.store(100, Ordering::Relaxed);
    let begun = Instant::now();
    worker.turn(begun);
    let notices = std::mem::take(&mut *told.lock().unwrap());
    assert_eq!(notices.len(), 101, "{notices:?}");
    assert!(matches!(&notices[0], Notice::Troubled(_)));
    assert!(matches!(&notices[1], Notice::Failed(1, why) if why.contains("full") && why.contains("free space")));

    // Tried again when it is time, and told no more; a later batch is told at once.
    worker.turn(begun + RETRY);
    worker.pending.push_back(ticketed(101));
    worker.unwritten.store(101, Ordering::Relaxed);
    worker.turn(begun + RETRY);
    assert!(matches!(told.lock().unwrap()[..], [Notice::Failed(101, _)]));
    told.lock().unwrap().clear();

    allow(&worker, 1_000_000);
    worker.turn(begun + RETRY + RETRY / 2);
    assert!(told.lock().unwrap().is_empty(), "not before its time");
    worker.turn(begun + 2 * RETRY);
    let expected: Vec<_> = (1..=101).map(Notice::Recorded).chain([Notice::Recovered]).collect();
    assert_eq!(*told.lock().unwrap(), expected);
    drop(worker);
    let reader = open(dir.path()).reader().unwrap();
    let log: Vec<_> = reader.events(0, 1000, None).unwrap().into_iter().map(|row| row.event.run).collect();
    assert_eq!(log, (1..=101).map(|n| Some(run_id(n))).collect::<Vec<_>>(), "all of them, in order");
    assert_eq!(rows(&reader), 101);
}

/// A filesystem of 2 MiB, unmounted at the end.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(dir.path()).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(dir))
    }

    fn fill(&self) {
        let mut file = File::create(self.0.path().join("filler")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_filesystem_without_space_is_trouble_until_there_is_some() {
    let Some(disk) = Tmpfs::mount() else {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
        eprintln!("NOT RUN: a tmpfs cannot be mounted here");
        return;
    };
    let dir = disk.0.path().join("state");
    let (writer, reader, notices) = start(&dir);
    writer.submit(ticketed(1)).unwrap();
    assert_eq!(next(&notices), Notice::Recorded(1));
    disk.fill();
    for n in 2..=400 {
        writer.submit(ticketed(n)).unwrap();
    }
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(Notice::Troubled(_))) {
        seen.push(next(&notices));
    }
    seen.push(next(&notices));
    assert!(matches!(seen.last(), Some(Notice::Failed(_, why)) if why.contains("free space")), "{seen:?}");
    disk.free();
    while seen.last() != Some(&Notice::Recovered) {
        seen.push(next(&notices));
    }
    assert_eq!(seen.iter().filter(|notice| matches!(notice, Notice::Recorded(_))).count(), 399);
    assert_eq!(rows(&reader), 400);
    writer.stop().unwrap();
    drop(reader);

    // A database on a full disk may be refused. It is not damaged.
    disk.fill();
    if let Ok(opened) = Store::open(&dir) {
        assert_eq!(opened.set_aside, None);
    }
    disk.free();
    assert_eq!(rows(&open(&dir).reader().unwrap()), 400);
}

#[test]
fn a_held_database_is_trouble_until_it_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader, notices) = start(dir.path());
    let other = schema_reader(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    writer.submit(ticketed(1)).unwrap();
    assert!(matches!(next(&notices), Notice::Troubled(why) if why.contains("another program holds the database")));
    assert!(matches!(next(&notices), Notice::Failed(1, _)));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(next(&notices), Notice::Recorded(1));
    assert_eq!(next(&notices), Notice::Recovered);
    assert_eq!(rows(&reader), 1);
    writer.stop().unwrap();
}

#[test]
fn beyond_the_bound_batches_are_refused_and_those_accepted_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader, notices) = start(dir.path());
    let other = schema_reader(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut accepted = 0;
    let until = Instant::now() + Duration::from_secs(20);
    while accepted < MOST && Instant::now() < until {
        match writer.submit(batch([event(accepted as u32)])) {
            Ok(()) => accepted += 1,
            // The channel is full while the thread waits for the database.
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    assert_eq!(accepted, MOST);
    assert!(writer.submit(batch([event(0)])).is_err());
    other.execute_batch("ROLLBACK").unwrap();
    assert!(matches!(next(&notices), Notice::Troubled(_)));
    assert_eq!(next(&notices), Notice::Recovered);
    assert_eq!(rows(&reader), MOST as u64);
    writer.submit(batch([event(0)])).unwrap();
    writer.stop().unwrap();
}

#[test]
fn a_stop_while_writing_fails_ends_in_time_and_says_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _reader, notices) = start(dir.path());
    let other = schema_reader(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    writer.submit(ticketed(1)).unwrap();
    assert!(matches!(next(&notices), Notice::Troubled(_)));
    assert!(matches!(next(&notices), Notice::Failed(1, _)));
    let begun = Instant::now();
    assert!(matches!(writer.stop(), Err(StoreError::Unwritten(1))));
    assert!(begun.elapsed() < Duration::from_secs(6));
}

#[test]
fn retention_runs_at_the_start_and_tells_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let minutes_ago = u32::try_from(record::now().0 / 1_000_000).unwrap() - 300;
    let them = minutes_ago..minutes_ago + 3;
    crate::store::testing::write(dir.path(), them.flat_map(|n| [write_finished(n), event(n)]));
    let store = open(dir.path());
    let reader = store.reader().unwrap();
    let (sender, journal) = mpsc::channel();
    let sink = Box::new(move |row: &AuditRow| drop(sender.send(row.clone())));
    let retention = Retention { max_age: Some(Duration::from_secs(1)), max_bytes: None };
    let writer = store.into_writer(retention, Box::new(|_| {}), Some(sink)).unwrap();
    let row = journal.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!((row.seq, row.event.kind.as_str()), (4, "audit_pruned"));
    writer.stop().unwrap();
    assert!(!reader.exists(run_id(minutes_ago)).unwrap());
}

#[test]
fn a_clock_that_is_years_ahead_costs_no_history() {
    let dir = tempfile::tempdir().unwrap();
    crate::store::testing::write(dir.path(), (1..=3).flat_map(|n| [write_finished(n), event(n)]));
    let (mut worker, _told) = worker(dir.path());
    worker.retention.max_age = Some(Duration::from_secs(1));
    worker.turn(Instant::now());
    let reader = Reader::open(&dir.path().join("guardian.db"), worker.synced.clone()).unwrap();
    assert!(worker.prune_at > Instant::now(), "retention has had its turn");
    assert!((1..=3).all(|n| reader.exists(run_id(n)).unwrap()));
    assert_eq!(rows(&reader), 3);
}

/// A minute of the last hours, with one reading.
fn minute(n: u32) -> UsageMinute {
    let mut open = crate::model::OpenMinute::default();
    let at = record::now().0 - u64::from(1000 - n) * 60_000_000;
    open.add(crate::model::Wall(at), &crate::model::Usage::default(), None);
    open.close(run_id(1)).unwrap()
}

fn samples(reader: &Reader) -> usize {
    reader.samples(run_id(1), crate::model::Wall(0)).unwrap().len()
}

#[test]
fn samples_are_written_in_steps_and_batches_that_come_meanwhile_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let (mut worker, told) = worker(dir.path());
    let reader = Reader::open(&dir.path().join("guardian.db"), worker.synced.clone()).unwrap();
    worker.prune_at = Instant::now() + PRUNE;
    worker.take(Order::Keep((0..500).map(minute).collect()));
    worker.turn(Instant::now());
    assert_eq!(samples(&reader), 200);
    worker.take(Order::Write(ticketed(1)));
    worker.turn(Instant::now());
    assert_eq!((samples(&reader), rows(&reader)), (400, 1));
    assert_eq!(*told.lock().unwrap(), [Notice::Recorded(1)]);
    worker.turn(Instant::now());
    assert_eq!((samples(&reader), worker.samples.len()), (500, 0));
}

#[test]
fn what_was_sampled_is_there_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader, _notices) = start(dir.path());
    writer.keep_samples((0..500).map(minute).collect());
    writer.stop().unwrap();
    assert_eq!(samples(&reader), 500);
}

#[test]
fn in_trouble_samples_are_dropped_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut worker, _) = worker(dir.path());
    worker.trouble = Some(Trouble { why: "no room".into(), retry_at: Instant::now() + RETRY });
    worker.unkept.store(3, Ordering::Relaxed);
    worker.take(Order::Keep((0..3).map(minute).collect()));
    worker.take(Order::Write(ticketed(1)));
    worker.turn(Instant::now());
    assert_eq!((worker.samples.len(), worker.unkept.load(Ordering::Relaxed), worker.pending.len()), (0, 0, 1));
}

#[test]
fn samples_that_the_disk_does_not_keep_up_with_are_not_collected_without_end() {
    let (sender, inbox) = mpsc::sync_channel(CHANNEL);
    let (_done, end) = mpsc::sync_channel(1);
    let writer = Writer { sender: Some(sender), unwritten: Arc::default(), unkept: Arc::default(), end };
    for _ in 0..100 {
        writer.keep_samples((0..1000).map(minute).collect());
    }
    let waiting = writer.unkept.load(Ordering::Relaxed);
    assert!((MOST_SAMPLES..MOST_SAMPLES + 1000).contains(&waiting), "{waiting}");
    writer.submit(ticketed(1)).unwrap();
    let batches = |inbox: &Receiver<Order>| inbox.try_iter().filter(|order| matches!(order, Order::Write(_))).count();
    assert_eq!(batches(&inbox), 1);
    // Nobody is there who would say that it is through.
    drop(inbox);
    std::mem::forget(writer);
}
