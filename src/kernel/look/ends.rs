//! Who is at the other end: of sockets by the tables of the network, of pipes, unix sockets and locks by who has them open.
//!
//! What is shared is read once, and only if a process needs it: the tables once for each network namespace, the open files
//! of the run's processes once, those of all others only if nobody in the run is at the other end. On a large host that
//! takes longer than there is time for: what was found before is told before.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use super::files;
use super::peers::Asking;
use super::sockets;
use super::tasks::Looked;
use crate::kernel::process;
use crate::model::{Access, File, Holder, Object, UnixPeer, Wait};

/// As many holders of one thing as are named.
const MAX_HOLDERS: usize = 8;
/// What part of the time that is left when others than the run's are looked at is kept for telling what was found.
const KEPT: u32 = 8;

/// Completes what each process waits for, and tells of it before it looks at the processes of others.
pub(super) fn look(looked: &mut [Looked], until: Instant, tell: impl Fn(&[Looked])) {
    let sockets = find_sockets(looked, until);
    let mut ends = Ends::wanted(looked, &sockets);
    let of_the_run: Vec<u32> = looked.iter().map(|l| l.seen.pid).collect();
    let all = ends.search(of_the_run.iter().copied(), until);
    complete(looked, &sockets, &ends);
    if ends.is_missing() {
        tell(looked);
        let until = until.checked_sub(until.saturating_duration_since(Instant::now()) / KEPT).unwrap_or(until);
        ends.all_seen = ends.search_everywhere(&of_the_run, until) && all;
        complete(looked, &sockets, &ends);
    }
}

fn complete(looked: &mut [Looked], sockets: &Sockets, ends: &Ends) {
    for one in looked.iter_mut() {
        let pid = one.seen.pid;
        each_file(one, |fd, access, file| {
            let Some(text) = files::text(pid, fd) else { return };
            match file {
                File::Socket | File::Unix { .. } => {
                    let Some(known) = sockets.of(pid, &text) else { return };
                    file.clone_from(&known.file);
                    if let (File::Unix { peer: Some(peer), .. }, Some(other)) = (file, &known.other_end) {
                        peer.holders = ends.of(other, End::other(access));
                    }
                }
                File::Pipe { other_end, all_seen, .. } => {
                    (*other_end, *all_seen) = (ends.of(&text, End::other(access)), ends.all_seen);
                }
                _ => {}
            }
        });
        each_lock(one, |_, path, holders| {
            *holders = ends.of(path, End::Lock);
            holders.retain(|h| h.pid != pid);
            if holders.is_empty() {
                holders.extend(ends.takers.get(&pid).map(|taker| Holder { pid: *taker, name: name(*taker) }));
            }
        });
    }
}

/// Every file that a thread of the process waits for.
fn each_file(one: &mut Looked, mut then: impl FnMut(i32, Access, &mut File)) {
    for thread in &mut one.seen.threads {
        match &mut thread.wait {
            Wait::Call { on: Object::File { fd, access, file }, .. } => then(*fd, *access, file),
            Wait::Call { on: Object::Several { some, .. }, .. } => {
                some.iter_mut().for_each(|p| then(p.fd, Access::Read, &mut p.file));
            }
            _ => {}
        }
    }
}

fn each_lock(one: &mut Looked, mut then: impl FnMut(i32, &str, &mut Vec<Holder>)) {
    for thread in &mut one.seen.threads {
        if let Wait::Call { on: Object::Lock { fd, path, holders }, .. } = &mut thread.wait {
            then(*fd, path, holders);
        }
    }
}

/// The network namespace of a process, by its inode; 0 where that may not be seen, which is taken for one.
fn namespace(pid: u32) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |m| m.ino())
}

/// The sockets that processes wait for, by the inodes of their network namespaces and their own.
#[derive(Debug, Default)]
struct Sockets(HashMap<(u64, u64), Socket>);

#[derive(Debug)]
struct Socket {
    file: File,
    /// The text of the link of its peer, a unix socket.
    other_end: Option<String>,
}

impl Sockets {
    /// That of which a process has a descriptor with a link of this text.
    fn of(&self, pid: u32, text: &str) -> Option<&Socket> {
        self.0.get(&(namespace(pid), files::inode(text)?))
    }
}

fn find_sockets(looked: &mut [Looked], until: Instant) -> Sockets {
    let mut wanted: HashMap<u64, (u32, HashSet<u64>)> = HashMap::new();
    for one in looked.iter_mut() {
        let pid = one.seen.pid;
        let mut inodes = Vec::new();
        each_file(one, |fd, _, file| {
            if *file == File::Socket {
                inodes.extend(files::text(pid, fd).and_then(|text| files::inode(&text)));
            }
        });
        if !inodes.is_empty() {
            wanted.entry(namespace(pid)).or_insert_with(|| (pid, HashSet::new())).1.extend(inodes);
        }
    }
    let mut found = Sockets::default();
    for (of, (pid, inodes)) in wanted {
        let files = sockets::find(pid, &inodes, until);
        let has_unix = files.values().any(|file| matches!(file, File::Unix { .. }));
        let asking = (has_unix && of == namespace(std::process::id())).then(Asking::new).flatten();
        for (inode, mut file) in files {
            let mut other_end = None;
            if let (File::Unix { peer, .. }, Some(asking)) = (&mut file, &asking)
                && Instant::now() < until
                && let Some(known) = asking.peer_of(inode)
            {
                *peer = Some(UnixPeer { path: known.path, holders: Vec::new() });
                other_end = Some(format!("socket:[{}]", known.inode));
            }
            found.0.insert((of, inode), Socket { file, other_end });
        }
    }
    found
}

/// What of something open a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Reader,
    Writer,
    Lock,
}

impl End {
    /// The end that somebody else has to do something at.
    fn other(access: Access) -> Self {
        if access == Access::Write { End::Reader } else { End::Writer }
    }
}

/// Who has what open, by the text of its link.
#[derive(Debug, Default)]
struct Ends {
    /// Who waits, for whom.
    wanted: Vec<(u32, String, End)>,
    texts: HashSet<String>,
    holders: HashMap<(String, End), Vec<Holder>>,
    /// Who took the lock that a process waits for.
    takers: HashMap<u32, u32>,
    /// Every process was looked at, and might be.
    all_seen: bool,
}

impl Ends {
    fn wanted(looked: &mut [Looked], sockets: &Sockets) -> Self {
        let mut ends = Self::default();
        for one in looked.iter_mut() {
            let pid = one.seen.pid;
            each_file(one, |fd, access, file| {
                let Some(text) = files::text(pid, fd) else { return };
                let other_end = match file {
                    File::Pipe { .. } => Some(text),
                    File::Socket => sockets.of(pid, &text).and_then(|socket| socket.other_end.clone()),
                    _ => None,
                };
                ends.wanted.extend(other_end.map(|text| (pid, text, End::other(access))));
            });
            each_lock(one, |fd, path, _| {
                ends.wanted.push((pid, path.to_owned(), End::Lock));
                ends.takers.extend(told_by_the_kernel(pid, fd).map(|taker| (pid, taker)));
            });
        }
        ends.texts = ends.wanted.iter().map(|(_, text, _)| text.clone()).collect();
        ends
    }

    fn of(&self, text: &str, end: End) -> Vec<Holder> {
        self.holders.get(&(text.to_owned(), end)).cloned().unwrap_or_default()
    }

    /// Somebody waits for what nobody but itself is known to have open.
    fn is_missing(&self) -> bool {
        self.wanted.iter().any(|(waits, text, end)| self.of(text, *end).iter().all(|holder| holder.pid == *waits))
    }

    /// Looks through the open files of these. False if there was no time, or some may not be seen.
    fn search(&mut self, pids: impl Iterator<Item = u32>, until: Instant) -> bool {
        let mut all = true;
        if !self.wanted.is_empty() {
            for pid in pids {
                if Instant::now() >= until {
                    return false;
                }
                all &= self.look_through(pid, until);
            }
        }
        all
    }

    /// Looks through those of all others: who is known to have taken a lock first. True if all of them were looked at.
    fn search_everywhere(&mut self, but: &[u32], until: Instant) -> bool {
        let takers: Vec<u32> = self.takers.values().copied().filter(|pid| !but.contains(pid)).collect();
        let all = self.search(takers.iter().copied(), until);
        if !self.is_missing() {
            return false;
        }
        let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let mut sees_the_first = false;
        let others = pids.inspect(|pid| sees_the_first |= *pid == 1);
        let others = others.filter(|pid| !but.contains(pid) && !takers.contains(pid));
        // With hidepid, /proc lists no process that may not be looked at, and so not the first.
        self.search(others, until) && all && sees_the_first
    }

    fn look_through(&mut self, pid: u32, until: Instant) -> bool {
        let open = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(open) => open,
            Err(e) => return e.kind() == std::io::ErrorKind::NotFound,
        };
        for fd in open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            if Instant::now() >= until {
                return false;
            }
            if let Some(text) = files::text(pid, fd).filter(|text| self.texts.contains(text)) {
                for end in ends_of(pid, fd) {
                    let holders = self.holders.entry((text.clone(), end)).or_default();
                    if holders.len() < MAX_HOLDERS && holders.last().is_none_or(|h| h.pid != pid) {
                        holders.push(Holder { pid, name: name(pid) });
                    }
                }
            }
        }
        true
    }
}

fn name(pid: u32) -> String {
    process::stat(pid).map(|s| s.comm).unwrap_or_default()
}

/// The mode of the link tells how the file was opened; the locks of the open file are listed in its fdinfo.
fn ends_of(pid: u32, fd: i32) -> Vec<End> {
    let mode = fs::symlink_metadata(format!("/proc/{pid}/fd/{fd}")).map_or(0, |m| m.permissions().mode());
    let locked = process::fdinfo(pid, fd).is_some_and(|text| text.lines().any(|line| line.starts_with("lock:")));
    [(mode & 0o400 != 0, End::Reader), (mode & 0o200 != 0, End::Writer), (locked, End::Lock)]
        .into_iter()
        .filter_map(|(is, end)| is.then_some(end))
        .collect()
}

/// Who took the lock: `/proc/locks` names it to everybody. It may be gone, while one that inherited the file holds the lock.
fn told_by_the_kernel(waits: u32, fd: i32) -> Option<u32> {
    process::fdinfo(waits, fd)?;
    holder_in(&fs::read_to_string("/proc/locks").ok()?, waits)
}

/// `ID: FLOCK ADVISORY WRITE PID DEVICE:INODE START END`; those that wait for it have the same id, and `->` behind it.
pub(super) fn holder_in(locks: &str, waits: u32) -> Option<u32> {
    let mut holders: HashMap<&str, u32> = HashMap::new();
    for line in locks.lines() {
        let mut fields = line.split_ascii_whitespace();
        let id = fields.next()?;
        let fields: Vec<&str> = fields.collect();
        match fields.as_slice() {
            ["->", _, _, _, pid, ..] if pid.parse() == Ok(waits) => return holders.get(id).copied(),
            ["->", ..] => {}
            [_, _, _, pid, ..] => drop(pid.parse().map(|pid| holders.insert(id, pid))),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::kernel::look::tasks;

    /// On a host with many processes there is not the time to look at all.
    #[test]
    fn what_the_processes_of_the_run_tell_is_told_before_all_others_are_looked_at() {
        let tmp = tempfile::tempdir().unwrap();
        let script = "mkfifo f && exec 3<>f && read x <&3";
        let mut reader =
            Command::new("sh").args(["-c", script]).current_dir(&tmp).stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut looked = loop {
            let mut looked = vec![Looked::at(reader.id(), 0).unwrap()];
            tasks::look(&mut looked, deadline);
            if format!("{looked:?}").contains("/f") {
                break looked;
            }
            assert!(Instant::now() < deadline, "{looked:?}");
        };
        let pipe = |looked: &[Looked]| match &looked[0].seen.threads[0].wait {
            Wait::Call { on: Object::File { file: File::Pipe { other_end, all_seen, .. }, .. }, .. } => {
                (other_end.iter().map(|h| h.pid).collect::<Vec<_>>(), *all_seen)
            }
            wait => panic!("{wait:?}"),
        };
        let told = RefCell::new(Vec::new());
        look(&mut looked, deadline, |looked| told.borrow_mut().push(pipe(looked)));
        reader.kill().unwrap();
        reader.wait().unwrap();
        assert_eq!(told.into_inner(), [(vec![reader.id()], false)]);
        assert_eq!(pipe(&looked), (vec![reader.id()], nix::unistd::geteuid().is_root()));
    }

    #[test]
    fn the_holder_of_a_lock_is_that_of_the_same_id() {
        let locks = "1: FLOCK  ADVISORY  WRITE 100 fe:00:7 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 200 fe:00:7 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 101 fe:00:8 0 EOF\n2: -> POSIX  ADVISORY  WRITE 201 fe:00:8 0 EOF\n\
                     3: OFDLCK ADVISORY  READ -1 fe:00:9 0 EOF\n3: -> OFDLCK ADVISORY  WRITE 202 fe:00:9 0 EOF\n";
        assert_eq!((holder_in(locks, 200), holder_in(locks, 201)), (Some(100), Some(101)));
        assert_eq!((holder_in(locks, 202), holder_in(locks, 100)), (None, None));
        for bad in ["", "1:", "1: x\n", "\n\n"] {
            assert_eq!(holder_in(bad, 200), None, "{bad:?}");
        }
    }
}
