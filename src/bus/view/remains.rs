//! The wire form of what a run leaves.

use zbus::{DeserializeDict, SerializeDict, Type};

use super::super::wire::{self, Entry};
use super::read::unknown;
use crate::model::{Error, GitLock, GitLocks, LockFate, OpenFile, Remains};

/// `(path, size, pid, name)`: an [`OpenFile`]; [`u64::MAX`] for a size that is not known.
pub type WireFile = (String, u64, u32, String);
/// `(path, what became of it, why)`: a [`GitLock`].
pub type WireLock = (String, String, String);

dict! {
    /// What a run leaves, as `a{sv}`. What there is nothing of is absent.
    RemainsDict {
        "Others" others: [Option<String>],
        "Files" files: [Option<Vec<WireFile>>],
        "FilesTotal" files_total: [Option<u32>],
        "GitLocks" git_locks: [Option<Vec<WireLock>>],
        "GitLocksTotal" git_locks_total: [Option<u32>],
        "NotLookedAt" not_looked_at: [Option<Vec<String>>],
    }
}

within!(RemainsDict);

impl From<&Remains> for RemainsDict {
    fn from(r: &Remains) -> Self {
        let file = |f: &OpenFile| (f.path.clone(), f.size_bytes.unwrap_or(u64::MAX), f.pid, f.name.clone());
        let lock = |l: &GitLock| (l.path.clone(), l.fate.as_str().to_owned(), l.fate.why().to_owned());
        Self {
            others: (!r.others.is_empty()).then(|| r.others.clone()),
            files: super::some(r.files.iter().map(file).collect()),
            // There always, so that nothing that is left is not the same as nothing that is known.
            files_total: Some(r.files_total),
            git_locks: super::some(r.git.locks.iter().map(lock).collect()),
            git_locks_total: Some(r.git.total),
            not_looked_at: super::some(r.unseen().cloned().collect()),
        }
    }
}

impl RemainsDict {
    /// What it stands for; none if nobody looked.
    pub(super) fn read(self) -> Result<Option<Remains>, Error> {
        let (Some(files_total), Some(total)) = (self.files_total, self.git_locks_total) else { return Ok(None) };
        let file = |(path, size, pid, name): WireFile| OpenFile {
            path,
            size_bytes: (size != u64::MAX).then_some(size),
            pid,
            name,
        };
        let lock = |(path, fate, why): WireLock| {
            let fate = match fate.as_str() {
                "removed" => LockFate::Removed,
                "stale" => LockFate::Stale,
                "left_alone" => LockFate::LeftAlone { why },
                other => return Err(unknown("fate of a lock", other)),
            };
            Ok(GitLock { path, fate })
        };
        Ok(Some(Remains {
            others: self.others.unwrap_or_default(),
            files: self.files.unwrap_or_default().into_iter().map(file).collect(),
            files_total,
            git: GitLocks {
                locks: self.git_locks.unwrap_or_default().into_iter().map(lock).collect::<Result<_, _>>()?,
                total,
                not_looked_at: Vec::new(),
            },
            not_looked_at: self.not_looked_at.unwrap_or_default(),
        }))
    }
}
