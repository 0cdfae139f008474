//! Directories that somebody else owns, held open: no path is resolved through a symbolic link, and nothing that is not a
//! directory is opened but by `O_PATH`, which neither waits for a FIFO nor wakes who does.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Statx, StatxFlags, fstat, fstatfs, openat, openat2,
    statx, unlinkat,
};
use rustix::io::Errno;

/// What a directory is opened with: to go on from there. To list one that may not be read is refused later.
const TO_STAND_IN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const TO_LOOK_AT: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The file systems that other hosts may have mounted too, by the magic numbers of statfs(2): NFS, SMB (three), FUSE and virtiofs,
/// 9P, Ceph, AFS, GFS2, OCFS2, Lustre, GPFS and BeeGFS. What is done to a file there can be done by a process of another host.
const SHARED: [u64; 13] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x0116_1970,
    0x7461_636f,
    0x0bd0_0bd0,
    0x4750_4653,
    0x1983_0326,
];

/// The longest path, `PATH_MAX`.
const LONGEST_PATH: usize = 4096;

/// A directory that is held open.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    /// Its path, for people.
    pub(super) path: PathBuf,
}

/// What tells a file from all others while it is there.
pub(super) type Identity = (u32, u32, u64);

impl Dir {
    /// Opens a directory by its absolute path.
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        let fd = openat2(CWD, path, TO_STAND_IN, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens a directory by a path that is absolute, or begins here.
    pub(super) fn at(&self, path: &Path) -> Result<Self, Errno> {
        let fd = openat2(&self.fd, path, TO_STAND_IN, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        Ok(Self { fd, path: tidy(&self.path.join(path)) })
    }

    /// Opens a directory in this one.
    pub(super) fn child(&self, name: &OsStr) -> Result<Self, Errno> {
        let fd = openat(&self.fd, name, TO_STAND_IN | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// The one that it is in; none for the root, and where another file system begins.
    pub(super) fn parent(&self) -> Result<Option<Self>, Errno> {
        let up = Self { fd: openat(&self.fd, "..", TO_STAND_IN, Mode::empty())?, path: tidy(&self.path.join("..")) };
        let (here, there) = (self.stat()?, up.stat()?);
        let goes_on = here.st_dev == there.st_dev && here.st_ino != there.st_ino;
        Ok(goes_on.then_some(up))
    }

    pub(super) fn stat(&self) -> Result<Stat, Errno> {
        fstat(&self.fd)
    }

    pub(super) fn identity(&self) -> Result<Identity, Errno> {
        statx(&self.fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(|seen| identity(&seen))
    }

    /// What is there by this name. A link is looked at itself.
    pub(super) fn look_at(&self, name: &OsStr) -> Result<Statx, Errno> {
        statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
    }

    /// What is at a path that is absolute, or begins here, if no link is on the way.
    pub(super) fn look_along(&self, path: &Path) -> Result<Identity, Errno> {
        let fd = openat2(&self.fd, path, TO_LOOK_AT, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(|seen| identity(&seen))
    }

    /// Holds a file of this directory, without opening it.
    pub(super) fn hold(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        openat(&self.fd, name, TO_LOOK_AT, Mode::empty())
    }

    /// What is in a regular file that has at most so many bytes.
    pub(super) fn read(&self, name: &str, most: usize) -> Result<Vec<u8>, Errno> {
        let held = self.hold(OsStr::new(name))?;
        let seen = fstat(&held)?;
        let is_small = u64::try_from(seen.st_size).is_ok_and(|size| size <= most as u64);
        if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile || !is_small {
            return Err(Errno::INVAL);
        }
        // By what is held, so that it is this file, which is a regular one, and no other that has come in its place.
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        let file = openat(CWD, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = Vec::new();
        let failed = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
        File::from(file).take(most as u64).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// The path that is in a file of a line, such as `commondir`.
    pub(super) fn read_path(&self, name: &str, before: &str) -> Result<PathBuf, Errno> {
        let text = self.read(name, LONGEST_PATH)?;
        let line = text.strip_prefix(before.as_bytes()).ok_or(Errno::INVAL)?;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        Ok(PathBuf::from(OsStr::from_bytes(line)))
    }

    /// The names in it, as they come, each with what it is as far as that is told.
    pub(super) fn entries(&self) -> Result<impl Iterator<Item = Result<(OsString, FileType), Errno>> + use<>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let listed = rustix::fs::Dir::new(openat(&self.fd, ".", flags, Mode::empty())?)?;
        let entry = |entry: Result<rustix::fs::DirEntry, Errno>| {
            entry.map(|e| (OsStr::from_bytes(e.file_name().to_bytes()).to_owned(), e.file_type()))
        };
        let is_name = |entry: &Result<(OsString, FileType), Errno>| {
            entry.as_ref().is_ok_and(|(name, _)| name == "." || name == "..")
        };
        Ok(listed.map(entry).filter(move |entry| !is_name(entry)))
    }

    /// Whether other hosts may have it too.
    pub(super) fn is_shared(&self) -> Result<bool, Errno> {
        let magic = fstatfs(&self.fd)?.f_type;
        // It has 32 bits, whatever the type that it is told in.
        Ok(SHARED.contains(&(magic as u64 & 0xffff_ffff)))
    }

    pub(super) fn unlink(&self, name: &OsStr) -> Result<(), Errno> {
        unlinkat(&self.fd, name, AtFlags::empty())
    }
}

pub(super) fn identity(seen: &Statx) -> Identity {
    (seen.stx_dev_major, seen.stx_dev_minor, seen.stx_ino)
}

/// A path without `.` and `..`, which means the same where no part of it is a link.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = tidy.pop(),
            Component::CurDir => {}
            part => tidy.push(part),
        }
    }
    tidy
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn no_link_is_followed_wherever_it_is_in_a_path() {
        let top = tempfile::tempdir().unwrap();
        let real = top.path().join("real");
        std::fs::create_dir_all(real.join("below")).unwrap();
        symlink(&real, top.path().join("link")).unwrap();
        let refused = |path: &str| Dir::open(&top.path().join(path)).map(|d| d.path).unwrap_err();
        assert_eq!([refused("link/below"), refused("link")], [Errno::LOOP, Errno::LOOP]);
        let dir = Dir::open(top.path()).unwrap();
        assert_eq!(dir.at(Path::new("link/below")).map(|d| d.path).unwrap_err(), Errno::LOOP);
        assert!(dir.child(OsStr::new("link")).is_err());
        let below = dir.at(Path::new("real/../real/./below")).unwrap();
        assert_eq!(below.path, real.join("below"));
        assert_eq!(below.parent().unwrap().unwrap().path, real);
    }

    #[test]
    fn only_a_small_regular_file_is_read_and_a_fifo_holds_up_nobody() {
        let top = tempfile::tempdir().unwrap();
        let dir = Dir::open(top.path()).unwrap();
        std::fs::write(top.path().join("small"), "gitdir: /a b\n").unwrap();
        std::fs::write(top.path().join("large"), "x".repeat(5000)).unwrap();
        symlink("small", top.path().join("link")).unwrap();
        assert!(Command::new("mkfifo").arg(top.path().join("fifo")).status().unwrap().success());
        assert_eq!(dir.read_path("small", "gitdir: ").unwrap(), Path::new("/a b"));
        for name in ["large", "link", "fifo"] {
            assert_eq!(dir.read_path(name, "").unwrap_err(), Errno::INVAL, "{name}");
        }
        assert_eq!(dir.read_path("small", "other: ").unwrap_err(), Errno::INVAL);
        let mut names: Vec<_> = dir.entries().unwrap().map(|entry| entry.unwrap().0).collect();
        names.sort();
        assert_eq!(names, ["fifo", "large", "link", "small"]);
        assert!(!dir.is_shared().unwrap());
    }
}
