//! Why the store would not do something.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Why the store would not do something. Corruption found at open is none of these: the database is set aside.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the store could not be used.
    #[error("cannot {op} {}: {source}: the state directory and what is in it must belong to, and be writable by, \
             the user that guardiand runs as", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another instance has the same state directory.
    #[error("{} is in use by another instance: stop it, or give this one another state directory", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The database was written by a later Guardian. It is left as it is.
    #[error("{} has schema version {found} and this guardiand knows versions up to {known}: install the newer \
             Guardian again, or move the file away to begin a new audit log", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The highest that we know.
        known: i64,
    },
    /// The new database, begun in the place of a corrupt one, cannot be used either.
    #[error("{} was begun anew and cannot be used: {why}: check the filesystem and the memory of this host",
            path.display())]
    Unusable {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// SQLite would not.
    #[error("cannot {op}: {source}{}", hint(source))]
    Sqlite {
        /// What was tried.
        op: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A row cannot be understood.
    #[error("{what} in the database cannot be read: {why}: `guardian audit verify` says whether the log was changed")]
    Unreadable {
        /// Which row.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The writer was stopped while it could not write.
    #[error("the store was stopped with {0} batches unwritten, because writing fails: see the journal for the reason")]
    Unwritten(usize),
    /// The writer did not end in time.
    #[error("the store's writer did not end within {0} s: its disk does not answer, and what it held may be lost")]
    Stuck(u64),
}

impl StoreError {
    pub(super) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| StoreError::Io { op, path, source }
    }

    pub(super) fn sqlite(op: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| StoreError::Sqlite { op, source }
    }
}

/// What a person can do about an error of SQLite, as the end of a sentence.
pub(super) fn hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => ": free space on the filesystem of the state directory",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            ": another program holds the database; end it (`fuser` names it)"
        }
        Some(ErrorCode::SystemIoFailure) => ": look at the kernel log for errors of the disk",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            ": the state directory must be writable by the user that guardiand runs as"
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            ": the database is damaged; it is set aside when guardiand is started again"
        }
        _ => "",
    }
}
