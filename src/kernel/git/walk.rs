//! Going through a directory of git in search of locks: for a bounded time, and no further than there can be any.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::Instant;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::dir::Dir;
use super::repository::{Repository, cannot};
use crate::model::REMAINS_NAMED;

/// As many names as are read in all. To read one costs less than 1 µs, to look at a directory 10.
const MOST_NAMES: usize = 50_000;
/// As deep as names of branches go, and submodules are nested.
const DEEPEST: usize = 12;
const DEEPEST_MODULE: usize = 6;
/// As many sentences as say what was not looked at.
const MOST_UNSEEN: usize = 4;

/// A lock.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) dir: Rc<Dir>,
    pub(super) name: OsString,
    pub(super) seen: Statx,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Walk {
    until: Instant,
    names: usize,
    pub(super) locks: Vec<Lock>,
    pub(super) total: u32,
    pub(super) unseen: Vec<String>,
    is_cut: bool,
}

impl Walk {
    /// Goes through all of a repository.
    pub(super) fn through(repository: Repository, until: Instant) -> Self {
        let (locks, unseen) = (Vec::new(), Vec::new());
        let mut walk = Self { until, names: MOST_NAMES, locks, total: 0, unseen, is_cut: false };
        walk.git_dir(Rc::new(repository.git), DEEPEST_MODULE);
        if let Some(common) = repository.common {
            walk.git_dir(Rc::new(common), DEEPEST_MODULE);
        }
        walk
    }

    /// Where git has its locks, in the order of how much stands still for one.
    fn git_dir(&mut self, git: Rc<Dir>, modules: usize) {
        self.locks_in(&git);
        self.below(&git, "refs", |walk, refs| walk.tree(refs, DEEPEST));
        for flat in ["reftable", "objects/info", "objects/info/commit-graphs", "objects/pack"] {
            self.below(&git, flat, |walk, dir| walk.locks_in(&dir));
        }
        self.below(&git, "logs", |walk, logs| walk.tree(logs, DEEPEST));
        self.below(&git, "modules", |walk, dir| walk.modules(dir, modules));
    }

    fn below(&mut self, git: &Dir, path: &str, then: impl FnOnce(&mut Self, Rc<Dir>)) {
        match git.at(path.as_ref()) {
            Ok(dir) => then(self, Rc::new(dir)),
            Err(Errno::NOENT) => {}
            Err(e) => self.not_seen(cannot(&git.path.join(path), e)),
        }
    }

    /// The directories of submodules: their names can be paths.
    fn modules(&mut self, at: Rc<Dir>, depth: usize) {
        self.each_dir(&at, depth, |walk, dir, depth| match dir.look_at(OsStr::new("HEAD")) {
            Ok(_) => walk.git_dir(dir, depth),
            Err(_) => walk.modules(dir, depth),
        });
    }

    fn tree(&mut self, at: Rc<Dir>, depth: usize) {
        self.each_dir(&at, depth, Self::tree);
    }

    fn locks_in(&mut self, at: &Rc<Dir>) {
        self.entries(at);
    }

    /// Takes in the locks of a directory, and goes on to the directories in it, with one less to go.
    fn each_dir(&mut self, at: &Rc<Dir>, depth: usize, then: impl Fn(&mut Self, Rc<Dir>, usize)) {
        for name in self.entries(at) {
            if Instant::now() >= self.until {
                return self.cut(at, "to look there takes too long");
            }
            let Ok(below) = at.child(&name) else { continue };
            match depth.checked_sub(1) {
                Some(depth) => then(self, Rc::new(below), depth),
                None => return self.cut(at, "it goes too deep"),
            }
        }
    }

    fn found(&mut self, at: &Rc<Dir>, name: OsString) {
        // It may be gone by now.
        let Ok(seen) = at.look_at(&name) else { return };
        self.total = self.total.saturating_add(1);
        if self.locks.len() < REMAINS_NAMED {
            self.locks.push(Lock { dir: at.clone(), name, seen });
        }
    }

    /// Takes in the locks of a directory. Gives what else is there and may be a directory.
    fn entries(&mut self, at: &Rc<Dir>) -> Vec<OsString> {
        let mut others = Vec::new();
        let listed = match at.entries() {
            Ok(listed) => listed,
            Err(e) => {
                self.not_seen(cannot(&at.path, e));
                return others;
            }
        };
        for entry in listed {
            if self.names == 0 {
                self.cut(at, "there is too much in it");
                break;
            }
            if Instant::now() >= self.until {
                self.cut(at, "to look there takes too long");
                break;
            }
            self.names -= 1;
            let Ok((name, file_type)) = entry else { break };
            if name.as_bytes().ends_with(b".lock") {
                self.found(at, name);
            } else if matches!(file_type, FileType::Directory | FileType::Unknown) {
                others.push(name);
            }
        }
        others
    }

    /// Said once: what follows from it is more of the same.
    fn cut(&mut self, at: &Dir, why: &str) {
        if !std::mem::replace(&mut self.is_cut, true) {
            self.not_seen(format!("all of {}: {why}", at.path.display()));
        }
    }

    fn not_seen(&mut self, what: String) {
        if self.unseen.len() < MOST_UNSEEN {
            self.unseen.push(what);
        }
    }
}
