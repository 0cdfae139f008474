//! What processes have open for writing: what is half written if they are ended now.
//!
//! Links in /proc tell what a descriptor is open for, and mountinfo what its file system is, without a question to that. Sizes
//! are asked of local ones alone: a server that is gone would hold up the looker for ever.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

use super::files;
use super::tasks::Looked;
use crate::kernel::process;
use crate::model::{OpenFile, OpenFiles};

/// As many files as are kept: those that are named, and some that whoever names them leaves out, such as the log of the run.
const MOST: usize = 24;
/// As many descriptors of a process as are looked at.
const MOST_DESCRIPTORS: usize = 1024;
/// As much of a path as is kept, in characters.
const PATH_CHARS: usize = 1024;
/// The part of the time that is left which this may take.
const SHARE: u32 = 4;
/// The bit of the mode of a link in /proc/PID/fd that says that the file is open for writing.
const WRITABLE: u32 = 0o200;
/// What is no file of a directory, whatever it is.
const NO_FILES: [&str; 3] = ["/proc/", "/sys/", "/dev/"];
/// The beginnings of the types of file systems that ask somebody else.
const REMOTE: [&str; 14] = [
    "nfs",
    "cifs",
    "smb",
    "fuse",
    "9p",
    "ceph",
    "afs",
    "virtiofs",
    "lustre",
    "gfs",
    "ocfs",
    "glusterfs",
    "beegfs",
    "autofs",
];

/// Looks at these processes of so many.
pub(super) fn look(looked: &[Looked], total: u32, until: Instant) -> OpenFiles {
    let until = Instant::now() + until.saturating_duration_since(Instant::now()) / SHARE;
    let mut open = OpenFiles::default();
    let mut known = HashSet::new();
    let mut mounts = HashMap::new();
    let mut seen = 0;
    for process in looked.iter().map(|l| &l.seen) {
        if Instant::now() >= until {
            break;
        }
        if add(process.pid, &process.name, &mut open, &mut known, &mut mounts) || process.state == 'Z' {
            seen += 1;
        }
    }
    open.unseen = total.saturating_sub(seen);
    open
}

/// False if its descriptors cannot be seen, or not all of them.
fn add(
    pid: u32,
    name: &str,
    open: &mut OpenFiles,
    known: &mut HashSet<String>,
    mounts: &mut HashMap<String, Option<HashSet<u64>>>,
) -> bool {
    // One that is gone meanwhile has closed what it had.
    let Ok(listed) = fs::read_dir(format!("/proc/{pid}/fd")) else { return process::stat(pid).is_err() };
    let fds = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for (n, fd) in fds.enumerate() {
        if n == MOST_DESCRIPTORS {
            return false;
        }
        let link = format!("/proc/{pid}/fd/{fd}");
        let is_writable = fs::symlink_metadata(&link).is_ok_and(|link| link.mode() & WRITABLE != 0);
        let Some(path) = files::text(pid, fd).filter(|_| is_writable) else { continue };
        if !path.starts_with('/') || NO_FILES.iter().any(|none| path.starts_with(none)) || known.contains(&path) {
            continue;
        }
        let size_bytes = match is_local(pid, fd, mounts) {
            true => match statx(CWD, &link, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS) {
                Ok(seen) if is_kept(&seen) => Some(seen.stx_size),
                Ok(_) | Err(_) => continue,
            },
            // What was deleted has no path any more but this.
            false if path.ends_with(" (deleted)") => continue,
            false => None,
        };
        known.insert(path.clone());
        open.total = open.total.saturating_add(1);
        if open.files.len() < MOST {
            let path = path.chars().take(PATH_CHARS).collect();
            open.files.push(OpenFile { path, size_bytes, pid, name: name.to_owned() });
        }
    }
    true
}

/// A regular file that is in a directory.
fn is_kept(seen: &Statx) -> bool {
    FileType::from_raw_mode(seen.stx_mode.into()) == FileType::RegularFile && seen.stx_nlink > 0
}

/// Whether an open file is on a file system that answers by itself.
fn is_local(pid: u32, fd: i32, mounts: &mut HashMap<String, Option<HashSet<u64>>>) -> bool {
    let Some(mount) = process::fdinfo(pid, fd).and_then(|text| process::parse_colon::<u64>(&text, "mnt_id")) else {
        return false;
    };
    let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt"));
    let namespace = namespace.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default();
    let local = mounts
        .entry(namespace)
        .or_insert_with(|| process::read_text(&format!("/proc/{pid}/mountinfo")).ok().map(|text| local_mounts(&text)));
    local.as_ref().is_some_and(|local| local.contains(&mount))
}

/// The ids of the mounts of `ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [OPTIONAL…] - TYPE SOURCE SUPEROPTIONS`.
pub(super) fn local_mounts(mountinfo: &str) -> HashSet<u64> {
    let local = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        let kind = source.split(' ').next()?;
        let is_remote = REMOTE.iter().any(|remote| kind.starts_with(remote));
        mount.split(' ').next()?.parse().ok().filter(|_| !is_remote)
    };
    mountinfo.lines().filter_map(local).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_somebody_else_is_told_from_local_ones() {
        let text = "30 23 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n31 30 0:40 / /home rw - nfs4 server:/home rw\n\
                    32 30 0:41 / /m rw shared:2 master:1 - fuse.sshfs x rw\n33 30 0:42 / /t rw - tmpfs tmpfs rw\nnonsense\n";
        assert_eq!(local_mounts(text), HashSet::from([30, 33]));
    }
}
