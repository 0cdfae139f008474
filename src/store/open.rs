//! Opening the store: the lock on the state directory, modes of files, and what is done with a corrupt database.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, ErrorCode};

use super::schema::{self, meta};
use super::writer::{JournalSink, NoticeSink, Writer};
use super::{Reader, StoreError};
use crate::model::Retention;

/// The database, in the state directory.
const FILE: &str = "guardian.db";
/// Held locked as long as the store is open.
const LOCK: &str = "guardian.lock";
/// What SQLite keeps beside a database, by suffix.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Left by a writer that met damage, for the next open.
const SUSPECT: &str = "-suspect";

/// A child that was forked just before the last instance was killed holds its lock until it sees the gate closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Below this size a database is checked whole at every open: some 10 ms.
const CHEAP_BYTES: u64 = 8 << 20;
/// How long live runs may wait, unwatched, for the check after an unclean stop (about 1 GB).
const CHECK_PATIENCE: Duration = Duration::from_secs(2);

/// The open store: what the writer is made of, and where readers are had from.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    conn: Connection,
    lock: File,
    instance_id: String,
    /// The number of the last audit row that a power cut leaves.
    synced: Arc<AtomicU64>,
}

/// What opening gave.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// The database that was found corrupt, if one was: worth an alert and an audit event.
    pub set_aside: Option<SetAside>,
}

/// A corrupt database that was moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now, with what belongs to it beside it.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// Why a database could not be opened.
enum Fault {
    /// The file's content is no database of ours.
    Corrupt(String),
    /// Anything else: the content may be good.
    Refused(StoreError),
}

impl Store {
    /// Opens the database in `state_dir`, or begins one; both directory and file if need be. A corrupt one is set aside.
    pub fn open(state_dir: &Path) -> Result<Opened, StoreError> {
        if !state_dir.is_dir() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
            made.map_err(StoreError::io("create the state directory", state_dir))?;
        }
        let lock = lock(&state_dir.join(LOCK))?;
        let path = state_dir.join(FILE);
        let opened = |conn: Connection, path: PathBuf, set_aside| {
            let instance_id =
                schema::read_meta(&conn, meta::INSTANCE).map_err(StoreError::sqlite("read the instance id"))?;
            let head = schema::read_link(&conn, meta::HEAD).map_err(StoreError::sqlite("read the audit log's end"))?;
            let synced = Arc::new(AtomicU64::new(u64::try_from(head.seq).unwrap_or(0)));
            Ok(Opened { store: Store { path, conn, lock, instance_id, synced }, set_aside })
        };
        match try_open(&path) {
            Ok(conn) => opened(conn, path, None),
            Err(Fault::Refused(e)) => Err(e),
            Err(Fault::Corrupt(why)) => {
                let aside = set_aside(&path)?;
                match try_open(&path) {
                    Ok(conn) => opened(conn, path, Some(SetAside { path: aside, why })),
                    Err(Fault::Refused(e)) => Err(e),
                    Err(Fault::Corrupt(why)) => Err(StoreError::Unusable { path, why }),
                }
            }
        }
    }

    /// 32 hexadecimal digits that are this database's own, drawn when it was begun.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }

    /// A reader with a connection of its own, for another thread. It may outlive the store.
    pub fn reader(&self) -> Result<Reader, StoreError> {
        Reader::open(&self.path, self.synced.clone())
    }

    /// Starts the writer thread. `notices` and `journal` are called on it and must not block.
    pub fn into_writer(
        self,
        retention: Retention,
        notices: NoticeSink,
        journal: Option<JournalSink>,
    ) -> Result<Writer, StoreError> {
        let suspect = with_suffix(&self.path, SUSPECT);
        Writer::start(self.conn, self.lock, suspect, retention, self.synced, notices, journal)
    }

    #[cfg(test)]
    pub(super) fn into_connection(self) -> Connection {
        self.conn
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(StoreError::io("open", path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", path)(e)),
        }
    }
}

fn try_open(path: &Path) -> Result<Connection, Fault> {
    let bytes = prepare_file(path).map_err(Fault::Refused)?;
    let suspect = with_suffix(path, SUSPECT);
    // A clean close removes the -wal: one that is there means that the last instance was killed, or the power cut.
    let wal = with_suffix(path, "-wal");
    let unclean = wal.exists() || suspect.exists();
    // What a killed instance has committed last may be in memory only, and is told to others from now on.
    if let Err(e) = File::open(&wal).and_then(|wal| wal.sync_data())
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot sync {}: {e}: a power cut now may lose the last of the audit", wal.display());
    }
    let mut conn = schema::connect(path).map_err(|e| fault("open the database", e))?;
    if bytes == 0 && schema::empty(&conn).map_err(|e| fault("read the database", e))? {
        schema::begin(&mut conn, &random_id()?).map_err(|e| fault("begin the database", e))?;
        return Ok(conn);
    }
    check_version(&conn, path)?;
    schema::use_wal(&conn).map_err(|e| fault("use write-ahead logging for the database", e))?;
    if unclean || bytes < CHEAP_BYTES {
        quick_check(&conn)?;
    }
    if schema::version(&conn).map_err(|e| fault("read the schema version", e))? < schema::VERSION {
        schema::migrate(&mut conn).map_err(|e| fault("migrate the database", e))?;
    }
    probe(&conn).map_err(|e| fault("read the database", e))?;
    // Gone already in nearly every case; if it stays, the next open checks once more.
    let _ = fs::remove_file(suspect);
    Ok(conn)
}

/// Makes sure of an existing, writable file with mode 0600, and gives its size.
fn prepare_file(path: &Path) -> Result<u64, StoreError> {
    let existed = path.exists();
    // SQLite gives -wal and -shm the mode of the database.
    let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(StoreError::io("open", path))?;
    let stat = file.metadata().map_err(StoreError::io("stat", path))?;
    if stat.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(StoreError::io("chmod", path))?;
    }
    if !existed && let Some(dir) = path.parent() {
        File::open(dir).and_then(|d| d.sync_all()).map_err(StoreError::io("sync", dir))?;
    }
    Ok(stat.len())
}

fn check_version(conn: &Connection, path: &Path) -> Result<(), Fault> {
    let found = schema::version(conn).map_err(|e| fault("read the schema version", e))?;
    if !schema::consistent(conn).map_err(|e| fault("read the schema version", e))? {
        return Err(Fault::Corrupt(format!("its header names schema version {found} and its content another")));
    }
    if found > schema::VERSION {
        return Err(Fault::Refused(StoreError::Newer { path: path.to_owned(), found, known: schema::VERSION }));
    }
    Ok(())
}

/// Looks at every page, for at most [`CHECK_PATIENCE`]. What is not reached is believed: damage there is met later,
/// by the writer, which then leaves a mark for the next open.
fn quick_check(conn: &Connection) -> Result<(), Fault> {
    let interrupt = conn.get_interrupt_handle();
    let (done, wait) = mpsc::channel::<()>();
    let verdict = thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(CHECK_PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                interrupt.interrupt();
            }
        });
        let verdict = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        drop(done);
        verdict
    });
    match verdict {
        Ok(text) if text == "ok" => Ok(()),
        Ok(text) => Err(Fault::Corrupt(text)),
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(e) => Err(fault("check the database", e)),
    }
}

/// Reads what the writer and the recovery cannot do without.
fn probe(conn: &Connection) -> rusqlite::Result<()> {
    schema::read_meta(conn, meta::INSTANCE)?;
    schema::read_link(conn, meta::ANCHOR)?;
    schema::read_link(conn, meta::HEAD)?;
    for sql in [
        "SELECT * FROM runs WHERE state IS NOT NULL",
        "SELECT * FROM runs ORDER BY created_at DESC LIMIT 10",
        "SELECT * FROM kills ORDER BY requested_at DESC LIMIT 10",
        "SELECT * FROM events ORDER BY seq DESC LIMIT 10",
        "SELECT * FROM workflow_processes LIMIT 1",
    ] {
        let mut statement = conn.prepare(sql)?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

/// Tells damage from everything that may pass: only what says something about the content counts as damage.
fn fault(op: &'static str, error: rusqlite::Error) -> Fault {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::PermissionDenied
            | ErrorCode::CannotOpen
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::NoLargeFileSupport
            | ErrorCode::OutOfMemory,
        ) => Fault::Refused(StoreError::Sqlite { op, source: error }),
        // ReadOnly too: we have just opened the file for writing and made a lock beside it, so it is the header that
        // claims a format which may only be read.
        _ => Fault::Corrupt(format!("cannot {op}: {error}")),
    }
}

/// Renames the database and what belongs to it; the name tells the time, and no earlier one is overwritten.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let now = jiff::Timestamp::try_from(SystemTime::now()).unwrap_or_default();
    let stamp = now.strftime("%Y%m%dT%H%M%SZ");
    let mut aside = with_suffix(path, &format!(".corrupt-{stamp}"));
    let mut n = 1;
    while aside.exists() {
        n += 1;
        aside = with_suffix(path, &format!(".corrupt-{stamp}-{n}"));
    }
    // Companions first: a crash in between leaves a database without its -wal, which is still found corrupt or is
    // sound, never a new database beside an old -wal.
    for suffix in COMPANIONS {
        let companion = with_suffix(path, suffix);
        match fs::rename(&companion, with_suffix(&aside, suffix)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("set aside", companion)(e));
            }
            _ => {}
        }
    }
    fs::rename(path, &aside).map_err(StoreError::io("set aside", path))?;
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn random_id() -> Result<String, Fault> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Fault::Refused(StoreError::io("draw random bytes for", FILE)(e.into())))?;
    Ok(super::audit::hex(&bytes))
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
