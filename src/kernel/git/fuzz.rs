//! What is fuzzed here: a directory of the user's with anything in it, in which locks are looked for and removed.
//!
//! An input is a line for each thing that is there: `d PATH`, `f PATH TEXT` and `l PATH TARGET`, where `@` stands for the
//! directory and `^` for the one beside it, which is another's: with all that they lead to, nothing happens there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::look;
use crate::kernel::clock;
use crate::model::fuzz::Target;
use crate::model::{LockFate, RunId, Wall, Worktree};

pub const TARGETS: &[Target] = &[("git_directory", directory)];

/// As many things as are made of an input.
const MOST: usize = 40;

/// Two directories in one that is nobody's repository but its own, so that nothing above it is looked at.
struct Place(PathBuf);

impl Place {
    fn new() -> std::io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("guardian-fuzz-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let place = Self(std::env::temp_dir().canonicalize()?.join(name));
        fs::create_dir(&place.0)?;
        for dir in [".git", "ours", "theirs/.git/refs", "theirs/.git/worktrees/w", "theirs/.git/modules/m"] {
            fs::create_dir_all(place.0.join(dir))?;
        }
        for file in THEIRS {
            fs::write(place.0.join(file), "../..\n")?;
        }
        Ok(place)
    }

    fn ours(&self) -> PathBuf {
        self.0.join("ours")
    }

    /// Text with the paths in it.
    fn filled(&self, text: &[u8]) -> Vec<u8> {
        let theirs = self.0.join("theirs");
        let mut filled = Vec::new();
        for byte in text {
            match byte {
                b'@' => filled.extend_from_slice(self.ours().as_os_str().as_bytes()),
                b'^' => filled.extend_from_slice(theirs.as_os_str().as_bytes()),
                byte => filled.push(*byte),
            }
        }
        filled
    }

    /// Makes what a line says, if it is in our directory.
    fn make(&self, line: &[u8]) -> Option<()> {
        let mut words = line.splitn(3, |b| *b == b' ');
        let (kind, path, rest) = (words.next()?, words.next()?, words.next().unwrap_or_default());
        let path = Path::new(OsStr::from_bytes(path));
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || path.components().next().is_none() {
            return None;
        }
        let path = self.ours().join(path);
        // Nothing is made by way of a link that was made before.
        let mut above = path.ancestors().skip(1).take_while(|above| above.starts_with(self.ours()));
        if path.symlink_metadata().is_ok() || above.any(Path::is_symlink) {
            return None;
        }
        fs::create_dir_all(path.parent()?).ok()?;
        match kind {
            b"d" => fs::create_dir(&path).ok(),
            b"f" => fs::write(&path, self.filled(rest)).ok(),
            b"l" => symlink(OsStr::from_bytes(&self.filled(rest)), &path).ok(),
            _ => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is another's, and stays.
const THEIRS: [&str; 6] = [
    "theirs/.git/index.lock",
    "theirs/.git/refs/a.lock",
    "theirs/.git/worktrees/w/index.lock",
    "theirs/.git/worktrees/w/commondir",
    "theirs/.git/modules/m/HEAD.lock",
    "theirs/x.lock",
];

fn directory(data: &[u8]) {
    let Ok(place) = Place::new() else { return };
    let since = clock::now().wall;
    for line in data.split(|b| *b == b'\n').take(MOST) {
        let _ = place.make(line);
    }
    let of = Worktree {
        run: RunId::from_bytes([1; 6]),
        number: 1,
        dir: place.ours(),
        uid: rustix::process::geteuid().as_raw(),
        since: Some(Wall(since.0.saturating_sub(1_000_000))),
        until: Wall(since.0.saturating_add(60_000_000)),
        removes: true,
    };
    let found = look(&of, Instant::now());
    assert!(found.locks.len() <= usize::try_from(found.total).unwrap_or(0));
    for lock in &found.locks {
        let path = Path::new(&lock.path);
        assert!(path.starts_with(place.ours()) || path.starts_with(place.0.join(".git")), "{path:?}");
        // A name that is no text is not told as it is.
        let is_told = !lock.path.contains(char::REPLACEMENT_CHARACTER);
        assert!(!is_told || path.symlink_metadata().is_ok() == (lock.fate != LockFate::Removed), "{lock:?}");
    }
    for file in THEIRS {
        assert!(place.0.join(file).exists(), "{file} is another's");
    }
}
