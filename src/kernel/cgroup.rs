//! A cgroup held by a directory descriptor, and the parsers of its files.
//!
//! Owns reading and writing cgroup2 files, always relative to the descriptor: a directory that was removed and made
//! anew under the same name is another cgroup, and is never read, written or removed in place of the one held.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, fstatfs, openat, statat, unlinkat};
use rustix::io::{Errno, pread, read, write};

use super::{KernelError, process};
use crate::model::CgroupIdentity;

/// Statfs magic of cgroup2, from linux/magic.h.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// How deep sub-cgroups are followed. A run that nests deeper than this is still killed whole, by `cgroup.kill`.
const MAX_DEPTH: usize = 64;

/// A cgroup's directory, held open.
#[derive(Debug)]
pub struct CgroupDir {
    fd: OwnedFd,
    path: PathBuf,
    inode: u64,
}

impl CgroupDir {
    /// Opens a cgroup; refuses a directory of another file system.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, KernelError> {
        let dir = Self::open_unchecked(path)?;
        let fs = fstatfs(&dir.fd).map_err(|e| dir.error("look at", "", e))?;
        match fs.f_type as u64 == CGROUP2_SUPER_MAGIC {
            true => Ok(dir),
            false => Err(KernelError::NotDelegated {
                path: dir.path,
                why: "it is not in a cgroup2 file system: name a directory below the mount of cgroup2".into(),
            }),
        }
    }

    /// Opens a directory whatever its file system: a tempdir stands in for a cgroup in tests.
    pub fn open_unchecked(path: impl Into<PathBuf>) -> Result<Self, KernelError> {
        let path = path.into();
        let fd = open_directory(CWD, path.as_os_str(), &path)?;
        Self::held(fd, path)
    }

    fn held(fd: OwnedFd, path: PathBuf) -> Result<Self, KernelError> {
        let stat = fstat(&fd).map_err(|e| KernelError::from_errno("look at", path.display().to_string(), e))?;
        Ok(Self { fd, path, inode: stat.st_ino })
    }

    /// Opens a sub-cgroup.
    pub fn child(&self, name: &OsStr) -> Result<Self, KernelError> {
        let path = self.path.join(name);
        let fd = open_directory(self.fd.as_fd(), name, &path)?;
        Self::held(fd, path)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its inode, which is its cgroup id: 64 bits, not reused within a boot.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Path and inode.
    pub fn identity(&self) -> CgroupIdentity {
        CgroupIdentity { path: self.path.clone(), inode: self.inode }
    }

    /// Checks that the path still leads to this cgroup: `Gone` if it leads nowhere, `NotOurs` if to another one.
    pub fn verify(&self) -> Result<(), KernelError> {
        let now = statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| self.error("look at", "", e))?;
        match now.st_ino == self.inode {
            true => Ok(()),
            false => Err(KernelError::NotOurs {
                what: format!("cgroup {}", self.path.display()),
                why: format!("it was replaced by another of the same name (inode {}, was {})", now.st_ino, self.inode),
            }),
        }
    }

    fn error(&self, op: &'static str, file: &str, errno: Errno) -> KernelError {
        let path = if file.is_empty() { self.path.clone() } else { self.path.join(file) };
        KernelError::from_errno(op, path.display().to_string(), errno)
    }

    /// Opens a file of the cgroup for reading.
    pub fn open_file(&self, file: &str) -> Result<OwnedFd, KernelError> {
        openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| self.error("open", file, e))
    }

    /// Reads a file of the cgroup whole.
    pub fn read(&self, file: &str) -> Result<String, KernelError> {
        let fd = self.open_file(file)?;
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match read(&fd, &mut chunk) {
                Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
                Ok(n) => text.extend_from_slice(&chunk[..n]),
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.error("read", file, e)),
            }
        }
    }

    /// Reads a small file through a descriptor kept from [`CgroupDir::open_file`], from its beginning.
    pub fn read_kept(&self, fd: impl AsFd, file: &str) -> Result<String, KernelError> {
        let mut chunk = [0; 4096];
        let n = pread(fd, &mut chunk, 0).map_err(|e| self.error("read", file, e))?;
        Ok(String::from_utf8_lossy(&chunk[..n]).into_owned())
    }

    /// Writes a value to a file of the cgroup. One write: cgroup files take a value whole or not at all.
    pub fn write(&self, file: &str, value: &str) -> Result<(), KernelError> {
        let fd = openat(&self.fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| self.error("open for writing", file, e))?;
        write(&fd, value.as_bytes()).map(drop).map_err(|e| self.error("write to", file, e))
    }

    /// True if the cgroup has this file: a controller is enabled, or the kernel is new enough.
    pub fn has(&self, file: &str) -> bool {
        statat(&self.fd, file, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Reads one number, such as `memory.current`.
    pub fn number(&self, file: &str) -> Result<u64, KernelError> {
        self.parsed(file, parse_number)
    }

    /// Reads a file and understands it, or says which file could not be understood.
    pub fn parsed<T>(&self, file: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, KernelError> {
        let text = self.read(file)?;
        self.understand(file, &text, parse)
    }

    /// Understands the text of a file, or says which one could not be understood.
    pub fn understand<T>(&self, file: &str, text: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, KernelError> {
        parse(text).ok_or_else(|| KernelError::malformed(self.path.join(file).display().to_string(), text))
    }

    /// The names of the sub-cgroups.
    pub fn children(&self) -> Result<Vec<CString>, KernelError> {
        let dir = Dir::read_from(&self.fd).map_err(|e| self.error("list", "", e))?;
        let mut names = Vec::new();
        for entry in dir {
            let entry = entry.map_err(|e| self.error("list", "", e))?;
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Visits this cgroup and every one below it, depth first, a parent after its children. What goes away meanwhile
    /// is passed over.
    pub fn walk(&self, visit: &mut dyn FnMut(&CgroupDir) -> Result<(), KernelError>) -> Result<(), KernelError> {
        self.walk_to(MAX_DEPTH, visit)
    }

    fn walk_to(
        &self,
        depth: usize,
        visit: &mut dyn FnMut(&CgroupDir) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        if depth > 0 {
            for name in passing_over_gone(self.children())?.unwrap_or_default() {
                if let Some(child) = passing_over_gone(self.child(OsStr::from_bytes(name.to_bytes())))? {
                    passing_over_gone(child.walk_to(depth - 1, visit))?;
                }
            }
        }
        visit(self)
    }

    /// Every process in this cgroup and below, as pids of our PID namespace.
    pub fn pids(&self) -> Result<BTreeSet<u32>, KernelError> {
        let mut pids = BTreeSet::new();
        self.walk(&mut |dir| dir.own_pids(&mut pids))?;
        Ok(pids)
    }

    fn own_pids(&self, pids: &mut BTreeSet<u32>) -> Result<(), KernelError> {
        match self.parsed("cgroup.procs", parse_pids) {
            Ok(found) => pids.extend(found),
            // A threaded cgroup holds threads whose processes are listed in the domain above, but it gives their
            // thread ids. A run that makes its own root threaded is found out by them.
            Err(e) if e.errno() == Some(Errno::OPNOTSUPP) => {
                let threads = self.parsed("cgroup.threads", parse_pids)?;
                pids.extend(threads.into_iter().filter_map(|t| process::thread_group(t).ok()));
            }
            Err(e) if e.is_gone() => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Removes this cgroup and those below it, if no process is in them. Already removed is fine.
    pub fn remove(&self) -> Result<(), KernelError> {
        match self.verify() {
            Err(e) if e.is_gone() => return Ok(()),
            other => other?,
        }
        self.remove_below(MAX_DEPTH)?;
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("remove", "", e)),
        }
    }

    fn remove_below(&self, depth: usize) -> Result<(), KernelError> {
        if depth == 0 {
            return Ok(());
        }
        for name in passing_over_gone(self.children())?.unwrap_or_default() {
            if let Some(child) = passing_over_gone(self.child(OsStr::from_bytes(name.to_bytes())))? {
                child.remove_below(depth - 1)?;
                match unlinkat(&self.fd, name.as_c_str(), AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(child.error("remove", "", e)),
                }
            }
        }
        Ok(())
    }
}

impl AsFd for CgroupDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_directory(at: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd, KernelError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
        .map_err(|e| KernelError::from_errno("open", format!("cgroup {}", path.display()), e))
}

fn passing_over_gone<T>(result: Result<T, KernelError>) -> Result<Option<T>, KernelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_gone() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads a flat-keyed file (`KEY VALUE` a line), such as `cgroup.events`, `cpu.stat`, `memory.events`.
pub fn parse_key(text: &str, key: &str) -> Option<u64> {
    text.lines().filter_map(|l| l.split_once(' ')).find(|(k, _)| *k == key)?.1.trim().parse().ok()
}

/// `io.stat`: a line for each device, `MAJ:MIN rbytes=N wbytes=N …`. Gives the bytes read and written on all of them.
pub fn parse_io(text: &str) -> Option<(u64, u64)> {
    let sum = |key: &str| {
        let mut values = text.split_ascii_whitespace().filter_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        values.try_fold(0, |sum: u64, value| Some(sum.saturating_add(value.parse().ok()?)))
    };
    Some((sum("rbytes")?, sum("wbytes")?))
}

/// `populated` of `cgroup.events`: whether a live process is in the cgroup or below.
pub fn parse_populated(text: &str) -> Option<bool> {
    match parse_key(text, "populated")? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Reads one number. `max` is none of the counters' values: only limits have it.
pub fn parse_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Reads `cgroup.procs` or `cgroup.threads`. A process outside our PID namespace is listed as 0, and left out.
pub fn parse_pids(text: &str) -> Option<Vec<u32>> {
    let pids: Result<Vec<u32>, _> = text.lines().map(str::parse).collect();
    pids.ok().map(|pids| pids.into_iter().filter(|p| *p != 0).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree() -> (tempfile::TempDir, CgroupDir) {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("run");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("c")).unwrap();
        for (dir, pids) in [("", "1\n"), ("a", "2\n3\n"), ("a/b", ""), ("c", "4\n")] {
            fs::write(root.join(dir).join("cgroup.procs"), pids).unwrap();
        }
        (tmp, CgroupDir::open_unchecked(root).unwrap())
    }

    #[test]
    fn counters_are_read_or_refused() {
        let cpu = "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n";
        assert_eq!(parse_key(cpu, "usage_usec"), Some(1234));
        assert_eq!(parse_key(cpu, "usage"), None);
        assert_eq!(parse_key("usage_usec max\n", "usage_usec"), None);
        assert_eq!(parse_key("usage_usec\n", "usage_usec"), None);
        assert_eq!(parse_key("low 0\noom 1\noom_kill 2\n", "oom_kill"), Some(2));
        let io = "8:0 rbytes=1 wbytes=2\n8:16 rbytes=18446744073709551615 wbytes=3\n";
        assert_eq!(
            (parse_io(io), parse_io("8:0 rbytes=x wbytes=1\n"), parse_io("")),
            (Some((u64::MAX, 5)), None, Some((0, 0)))
        );
        assert_eq!(parse_number("4096\n"), Some(4096));
        for bad in ["max\n", "", "-1", "12 13"] {
            assert_eq!(parse_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn populated_is_zero_or_one_and_nothing_else() {
        assert_eq!(parse_populated("populated 1\nfrozen 0\n"), Some(true));
        assert_eq!(parse_populated("populated 0\nfrozen 1\n"), Some(false));
        for bad in ["populated 2\n", "frozen 0\n", "populated max\n", ""] {
            assert_eq!(parse_populated(bad), None, "{bad}");
        }
    }

    #[test]
    fn pids_of_other_namespaces_are_left_out() {
        assert_eq!(parse_pids("12\n0\n13\n"), Some(vec![12, 13]));
        assert_eq!(parse_pids(""), Some(vec![]));
        assert_eq!(parse_pids("12\nmax\n"), None);
    }

    #[test]
    fn children_are_visited_before_their_parents_and_all_processes_found() {
        let (_tmp, dir) = tree();
        let mut seen = Vec::new();
        dir.walk(&mut |d| {
            seen.push(d.path().file_name().unwrap().to_string_lossy().into_owned());
            Ok(())
        })
        .unwrap();
        let position = |name: &str| seen.iter().position(|s| s == name).unwrap();
        assert!(position("b") < position("a") && position("a") < position("run") && position("c") < position("run"));
        assert_eq!(dir.pids().unwrap(), BTreeSet::from([1, 2, 3, 4]));
    }

    #[test]
    fn a_directory_that_is_not_in_cgroup2_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let error = CgroupDir::open(tmp.path()).unwrap_err();
        assert!(matches!(error, KernelError::NotDelegated { .. }), "{error}");
    }

    #[test]
    fn another_directory_of_the_same_name_is_not_ours() {
        let (tmp, dir) = tree();
        dir.verify().unwrap();
        let path = tmp.path().join("run");
        fs::rename(&path, tmp.path().join("old")).unwrap();
        assert!(dir.verify().unwrap_err().is_gone());
        fs::create_dir(&path).unwrap();
        assert!(matches!(dir.verify().unwrap_err(), KernelError::NotOurs { .. }));
        assert!(matches!(dir.remove().unwrap_err(), KernelError::NotOurs { .. }));
        assert!(path.exists());
    }

    #[test]
    fn errors_name_the_file() {
        let (tmp, dir) = tree();
        fs::write(tmp.path().join("run/memory.current"), "lots\n").unwrap();
        let text = dir.number("memory.current").unwrap_err().to_string();
        assert!(text.contains("run/memory.current") && text.contains("lots"), "{text}");
        assert!(dir.number("cpu.stat").unwrap_err().is_gone());
    }

    #[test]
    fn what_is_not_empty_is_busy_and_what_is_removed_is_fine() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run");
        fs::create_dir_all(path.join("a/b")).unwrap();
        let dir = CgroupDir::open_unchecked(&path).unwrap();
        fs::write(path.join("a/file"), "").unwrap();
        assert!(matches!(dir.remove().unwrap_err(), KernelError::Busy { .. }));
        fs::remove_file(path.join("a/file")).unwrap();
        dir.remove().unwrap();
        assert!(!path.exists());
        dir.remove().unwrap();
    }
}
