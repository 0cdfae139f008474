//! The schema: connections as this store wants them, and numbered migrations on `PRAGMA user_version`.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use super::audit::{Link, senseless};

/// One script for each version, the first for version 1. A script that was released is never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
];

/// The version that this build writes and the highest that it reads.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// How long a statement waits for another program that holds the database.
const BUSY: Duration = Duration::from_millis(250);

/// The instance must stay under 8 MB in all: 256 KiB of page cache a connection, nothing mapped. WAL is checkpointed
/// every 256 pages (1 MiB), so that neither the file nor the pause of one checkpoint grows. `cell_size_check` finds
/// damage when a page is read instead of later; a schema that was tampered with can call no function of ours.
const SETTINGS: &str = "
    PRAGMA cache_size = -256;
    PRAGMA mmap_size = 0;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 256;
    PRAGMA journal_size_limit = 1048576;
    PRAGMA cell_size_check = ON;
    PRAGMA trusted_schema = OFF;
";

/// Keys of the table `meta`.
pub(super) mod meta {
    /// The schema version again: see [`super::consistent`].
    pub const SCHEMA_VERSION: &str = "schema_version";
    /// 32 hexadecimal digits, drawn when the database was begun.
    pub const INSTANCE: &str = "instance_id";
    /// The last link that was pruned: what the first row that is kept builds on.
    pub const ANCHOR: &str = "chain_anchor";
    /// The last link of the chain. Without it, removing the last rows would go unnoticed.
    pub const HEAD: &str = "chain_head";
}

/// Opens a database that exists.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // No mutex: each connection is used by one thread at a time, which rusqlite's missing Sync enforces.
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY)?;
    conn.execute_batch(SETTINGS)?;
    Ok(conn)
}

/// Switches to write-ahead logging, which a database remembers.
pub(super) fn use_wal(conn: &Connection) -> rusqlite::Result<()> {
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
}

/// The version that the file's header names; 0 for a new file.
pub(super) fn version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// True for a database that holds nothing at all.
pub(super) fn empty(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}

/// True if the version in the file's header is also in the table `meta`. One damaged byte in the header must not make
/// a database look as if it came from a later Guardian, so every version of the schema keeps both.
pub(super) fn consistent(conn: &Connection) -> rusqlite::Result<bool> {
    let known = read_meta(conn, meta::SCHEMA_VERSION)?;
    Ok(known == version(conn)?.to_string())
}

/// Begins a new database; it is still empty.
pub(super) fn begin(conn: &mut Connection, instance: &str) -> rusqlite::Result<()> {
    // Only before the first table: pruned pages are given back to the filesystem.
    conn.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
    use_wal(conn)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch("CREATE TABLE meta (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT, WITHOUT ROWID")?;
    write_meta(&tx, meta::INSTANCE, instance)?;
    write_meta(&tx, meta::ANCHOR, &Link::START.to_string())?;
    write_meta(&tx, meta::HEAD, &Link::START.to_string())?;
    migrate_in(&tx, 0)?;
    tx.commit()
}

/// Brings an older database to [`VERSION`]: all steps or none.
pub(super) fn migrate(conn: &mut Connection) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = version(&tx)?;
    migrate_in(&tx, from)?;
    tx.commit()
}

fn migrate_in(tx: &Connection, from: i64) -> rusqlite::Result<()> {
    for script in MIGRATIONS.iter().skip(usize::try_from(from).unwrap_or(0)) {
        tx.execute_batch(script)?;
    }
    write_meta(tx, meta::SCHEMA_VERSION, &VERSION.to_string())?;
    tx.pragma_update(None, "user_version", VERSION)
}

/// Reads a key of `meta` that every database has.
pub(super) fn read_meta(conn: &Connection, key: &str) -> rusqlite::Result<String> {
    conn.prepare_cached("SELECT value FROM meta WHERE key = ?1")?.query_row([key], |row| row.get(0))
}

/// Reads a link of the chain from `meta`.
pub(super) fn read_link(conn: &Connection, key: &str) -> rusqlite::Result<Link> {
    let text = read_meta(conn, key)?;
    text.parse().map_err(senseless)
}

/// Writes a key of `meta`.
pub(super) fn write_meta(conn: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")?
        .execute(params![key, value])?;
    Ok(())
}
