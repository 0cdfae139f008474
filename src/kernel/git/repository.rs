//! The repository that a directory is in, found as git finds it, and believed only where it is the user's own and leads back.
//!
//! A `.git` that is a file names any directory it likes. That is believed of a worktree that was added to a repository, whose
//! directory there names this file, and of a submodule, whose directory is inside of the repository that it is in.

use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::dir::{Dir, Identity, identity};

/// As many directories as are gone up.
const HIGHEST: usize = 64;
/// As deep as submodules are nested.
const NESTED: usize = 4;
const GIT: &str = ".git";

/// The directories of a repository in which git puts locks.
#[derive(Debug)]
pub(super) struct Repository {
    /// That of the worktree.
    pub(super) git: Dir,
    /// That of all worktrees, if it is another one.
    pub(super) common: Option<Dir>,
}

/// Finds the repository. None where there is none; an error says why it is not looked at.
pub(super) fn find(dir: &Path, uid: u32) -> Result<Option<Repository>, String> {
    if !dir.is_absolute() {
        return Err(format!("locks of git: {} is no absolute path", dir.display()));
    }
    let start = Dir::open(dir).map_err(|e| unseen(dir, e))?;
    above(start, uid, NESTED)
}

fn above(mut at: Dir, uid: u32, nested: usize) -> Result<Option<Repository>, String> {
    for _ in 0..HIGHEST {
        let git = at.path.join(GIT);
        match at.look_at(OsStr::new(GIT)) {
            Ok(seen) => {
                let file_type = FileType::from_raw_mode(seen.stx_mode.into());
                check_owner(&at, uid)?;
                return match file_type {
                    FileType::Directory => {
                        let git = at.child(OsStr::new(GIT)).map_err(|e| cannot(&git, e))?;
                        check_owner(&git, uid)?;
                        Ok(Some(Repository { git, common: None }))
                    }
                    FileType::RegularFile => linked(&at, identity(&seen), uid, nested).map(Some),
                    FileType::Symlink => Err(format!("{} is a symbolic link, which is not followed", git.display())),
                    _ => Err(format!("{} is neither a directory nor a file", git.display())),
                };
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(cannot(&git, e)),
        }
        match at.parent() {
            Ok(Some(parent)) => at = parent,
            Ok(None) => return Ok(None),
            Err(e) => return Err(cannot(&at.path.join(".."), e)),
        }
    }
    Ok(None)
}

/// The repository that a file `.git` names.
fn linked(top: &Dir, file: Identity, uid: u32, nested: usize) -> Result<Repository, String> {
    let told = top.path.join(GIT);
    let named = top.read_path(GIT, "gitdir: ").map_err(|e| cannot(&told, e))?;
    let git = top.at(&named).map_err(|e| cannot(&named, e))?;
    check_owner(&git, uid)?;
    let astray = |why: &str| format!("{} leads to {}, which {why}", told.display(), git.path.display());
    match git.read_path("commondir", "") {
        Ok(path) => {
            let common = git.at(&path).map_err(|e| cannot(&git.path.join(&path), e))?;
            check_owner(&common, uid)?;
            let up = git.at(Path::new("../..")).and_then(|up| up.identity()).ok();
            if up.is_none() || up != common.identity().ok() {
                return Err(astray("is not where worktrees of a repository are"));
            }
            let back = git.read_path("gitdir", "").and_then(|back| git.look_along(&back)).ok();
            if back != Some(file) {
                return Err(astray("does not lead back"));
            }
            Ok(Repository { git, common: Some(common) })
        }
        Err(Errno::NOENT) => {
            let around = match top.parent() {
                Ok(Some(parent)) if nested > 0 => above(parent, uid, nested - 1)?,
                _ => None,
            };
            let is_inside = around.is_some_and(|around| {
                is_below(&git, &around.git) || around.common.is_some_and(|common| is_below(&git, &common))
            });
            if is_inside { Ok(Repository { git, common: None }) } else { Err(astray("is in no repository around it")) }
        }
        Err(e) => Err(cannot(&git.path.join("commondir"), e)),
    }
}

fn is_below(dir: &Dir, of: &Dir) -> bool {
    let Ok(of) = of.identity() else { return false };
    let mut at = dir.parent();
    for _ in 0..HIGHEST {
        match at {
            Ok(Some(up)) if up.identity() == Ok(of) => return true,
            Ok(Some(up)) => at = up.parent(),
            Ok(None) | Err(_) => return false,
        }
    }
    false
}

/// What belongs to another user is not this one's to be told of, or to be changed for: git does not use it either. All is root's.
fn check_owner(dir: &Dir, uid: u32) -> Result<(), String> {
    let owner = dir.stat().map_err(|e| cannot(&dir.path, e))?.st_uid;
    match owner == uid || uid == 0 {
        true => Ok(()),
        false => Err(format!("{} belongs to uid {owner}, and not to the run's user", dir.path.display())),
    }
}

pub(super) fn cannot(path: &Path, e: Errno) -> String {
    format!("{}: {}", path.display(), reason(e))
}

pub(super) fn reason(e: Errno) -> String {
    match e {
        Errno::LOOP => "there is a symbolic link on the way, which is not followed".to_owned(),
        Errno::INVAL => "it is not what git writes there".to_owned(),
        e => std::io::Error::from(e).to_string(),
    }
}

/// Why the directory itself cannot be seen. A hardened service has a view of the file system of its own.
fn unseen(dir: &Path, e: Errno) -> String {
    let view = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let is_hidden = matches!(e, Errno::NOENT | Errno::ACCESS) && view("1").is_some() && view("1") != view("self");
    let hint = if is_hidden { ": it is hidden from this instance (ProtectHome=, PrivateTmp=), or gone" } else { "" };
    format!("locks of git in {}{hint}", cannot(dir, e))
}
