//! What a descriptor is, by its link in /proc.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use crate::kernel::{polled, process};
use crate::model::{File, Polled};

/// As many files of one poll as are kept.
const MAX_POLLED: usize = 16;
/// As many as are looked at for those.
const MAX_LOOKED: usize = 128;

/// The text of a descriptor's link: a path, `pipe:[INODE]`, `socket:[INODE]` or `anon_inode:NAME`.
pub(super) fn text(pid: u32, fd: i32) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(String::from_utf8_lossy(link.as_os_str().as_bytes()).into_owned())
}

/// The path of a descriptor, or what stands for it; empty if that cannot be read.
pub(super) fn path(pid: u32, fd: i32) -> String {
    text(pid, fd).unwrap_or_default()
}

/// What a descriptor is, as far as the link tells. Sockets and the other ends of pipes come later.
pub(super) fn link(pid: u32, fd: i32) -> File {
    match text(pid, fd) {
        Some(text) => match of_link(&text) {
            File::Path { path } if is_fifo(pid, fd) => pipe(Some(path)),
            file => file,
        },
        None => File::Unreadable,
    }
}

pub(super) fn of_link(text: &str) -> File {
    if text.starts_with("pipe:[") {
        return pipe(None);
    }
    if text.starts_with("socket:[") {
        return File::Socket;
    }
    if let Some(name) = text.strip_prefix("anon_inode:") {
        return File::Anonymous { name: name.trim_matches(['[', ']']).to_owned() };
    }
    let terminals = ["/dev/pts/", "/dev/tty", "/dev/console", "/dev/hvc"];
    match terminals.iter().any(|t| text.starts_with(t)) {
        true => File::Terminal { path: text.to_owned() },
        false => File::Path { path: text.to_owned() },
    }
}

fn pipe(path: Option<String>) -> File {
    File::Pipe { path, other_end: Vec::new(), all_seen: false }
}

/// Asks no server: what is not known without is no FIFO.
fn is_fifo(pid: u32, fd: i32) -> bool {
    let path = format!("/proc/{pid}/fd/{fd}");
    let stat = statx(CWD, Path::new(&path), AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    stat.is_ok_and(|s| FileType::from_raw_mode(s.stx_mode.into()) == FileType::Fifo)
}

/// The number of the inode in `pipe:[INODE]` or `socket:[INODE]`.
pub(super) fn inode(text: &str) -> Option<u64> {
    text.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// The files of an epoll instance: how many, and those that tell most.
pub(super) fn watched(pid: u32, epoll: i32) -> (u32, Vec<Polled>) {
    let all = process::fdinfo(pid, epoll).map(|text| polled::of_epoll(&text)).unwrap_or_default();
    (u32::try_from(all.len()).unwrap_or(u32::MAX), telling(pid, &all))
}

/// Those that tell most of these.
pub(super) fn telling(pid: u32, all: &[polled::Polled]) -> Vec<Polled> {
    let file = |p: &polled::Polled| Polled { fd: p.fd, file: link(pid, p.fd) };
    let mut all: Vec<Polled> = all.iter().take(MAX_LOOKED).map(file).collect();
    all.sort_by_key(|p| match p.file {
        File::Terminal { .. } => 0,
        File::Socket => 1,
        File::Pipe { .. } => 2,
        File::Path { .. } => 3,
        _ => 4,
    });
    all.truncate(MAX_POLLED);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_tells_what_a_descriptor_is() {
        assert_eq!(of_link("pipe:[12]"), pipe(None));
        assert_eq!(of_link("socket:[13]"), File::Socket);
        assert_eq!(of_link("anon_inode:[eventfd]"), File::Anonymous { name: "eventfd".into() });
        assert_eq!(of_link("anon_inode:inotify"), File::Anonymous { name: "inotify".into() });
        assert_eq!(of_link("/dev/pts/3"), File::Terminal { path: "/dev/pts/3".into() });
        assert_eq!(of_link("/a b (deleted)"), File::Path { path: "/a b (deleted)".into() });
        assert_eq!((inode("pipe:[12]"), inode("socket:[x]"), inode("/a:[1]b")), (Some(12), None, None));
        assert_eq!(link(std::process::id(), 9999), File::Unreadable);
    }
}
