//! Processes, held by pidfd: opening, identifying, signalling and reaping them, and what /proc says about them.
//!
//! Owns every pidfd operation and the parsers of `/proc/PID/*`. No signal is sent by a bare number anywhere: a pid is
//! first turned into a pidfd, then checked, then signalled through the pidfd, so that a reused pid is never hit.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{KernelError, pidfd_info};
use crate::model::{ExitStatus, ProcessId};

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its pid.
    pub pid: u32,
    /// Its name, at most 15 bytes, chosen by the process itself.
    pub comm: String,
    /// R, S, D, T, Z, …: that of its main thread.
    pub state: char,
    /// Its parent; 0 if that is outside our PID namespace, or if it has none.
    pub ppid: u32,
    /// Threads, the main one among them even after it ended.
    pub threads: u32,
    /// Clock ticks of CPU time of all its threads, ended ones too: utime and stime.
    pub cpu_ticks: u64,
    /// The same of the children that it has waited for, and of theirs: cutime and cstime.
    pub waited_cpu_ticks: u64,
    /// Clock ticks from boot to its start.
    pub start_ticks: u64,
    /// Pages of resident memory.
    pub rss_pages: u64,
}

impl Stat {
    /// What tells it from a later process of the same pid.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_ticks: self.start_ticks }
    }

    /// True for one that only waits to be reaped. A process whose main thread ended before its others has the state of
    /// a zombie too, and runs on.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') && self.threads <= 1
    }
}

/// The bytes that a process and the children it has waited for have moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Io {
    /// Read from storage.
    pub read_bytes: u64,
    /// Written to storage, or to be.
    pub write_bytes: u64,
    /// Passed through `read(2)`, `write(2)` and their like, from and to anything: rchar and wchar. What `send(2)` and
    /// `recv(2)` move is not in it.
    pub characters: u64,
}

fn name(pid: u32) -> String {
    format!("process {pid}")
}

/// Opens a pidfd. A pid that is a thread but no process is `Gone`: EINVAL, or ENOENT since Linux 6.9.
pub fn open(pid: u32) -> Result<OwnedFd, KernelError> {
    let gone = || KernelError::Gone { what: name(pid) };
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => Ok(fd),
        Err(Errno::INVAL) => Err(gone()),
        Err(errno) => Err(KernelError::from_errno("open a pidfd of", name(pid), errno)),
    }
}

/// Opens the process that was known by this id; `Gone` if the pid is free or was given to another process.
pub fn open_known(id: ProcessId) -> Result<OwnedFd, KernelError> {
    let fd = open(id.pid)?;
    // The pidfd pins the process it was opened for, so a start time read now and equal is of that very process, or of
    // one that came after its end; the latter has a later start time.
    match stat(id.pid)?.start_ticks == id.start_ticks {
        true => Ok(fd),
        false => Err(KernelError::Gone { what: name(id.pid) }),
    }
}

/// Which process a pidfd from elsewhere is of. `Gone` once it was reaped, or if it is outside our PID namespace.
pub fn identify(pidfd: impl AsFd) -> Result<ProcessId, KernelError> {
    let raw = pidfd.as_fd().as_raw_fd();
    let path = format!("/proc/self/fdinfo/{raw}");
    let text = read_text(&path)?;
    let pid = parse_fdinfo_pid(&text).ok_or_else(|| KernelError::malformed(&path, &text))?;
    let pid = u32::try_from(pid).ok().filter(|p| *p > 0).ok_or(KernelError::Gone { what: "the process".into() })?;
    let start_ticks = stat(pid)?.start_ticks;
    // While the descriptor still names the pid, the process was not reaped, so the start time was its own.
    match parse_fdinfo_pid(&read_text(&path)?) == Some(i64::from(pid)) {
        true => Ok(ProcessId { pid, start_ticks }),
        false => Err(KernelError::Gone { what: name(pid) }),
    }
}

/// Sends a signal. `Gone` if the process was reaped.
pub fn signal(pidfd: impl AsFd, signal: Signal) -> Result<(), KernelError> {
    pidfd_send_signal(pidfd.as_fd(), signal).map_err(|e| KernelError::from_errno("signal", "the process", e))
}

/// True once the process has exited, reaped or not.
pub fn has_exited(pidfd: impl AsFd) -> bool {
    wait_for(pidfd, PollFlags::IN, Duration::ZERO)
}

fn wait_for(pidfd: impl AsFd, flags: PollFlags, timeout: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), flags)];
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
    poll(&mut fds, Some(&timeout)).is_ok() && fds[0].revents().contains(flags)
}

/// How a process that is not our child ended, where the kernel tells: Linux 6.15, and only once its parent has reaped it.
pub fn foreign_exit_status(pidfd: impl AsFd) -> Option<ExitStatus> {
    pidfd_info::wait_status(pidfd.as_fd()).map(decode_wait_status)
}

/// Reads a wait status: the low 7 bits are the signal, the second byte the exit code.
fn decode_wait_status(status: i32) -> ExitStatus {
    match status & 0x7f {
        0 => ExitStatus::Exited(status >> 8 & 0xff),
        signal => ExitStatus::Signaled(signal),
    }
}

/// `/proc/PID/stat`.
pub fn stat(pid: u32) -> Result<Stat, KernelError> {
    let path = format!("/proc/{pid}/stat");
    let text = read_bytes(&path)?;
    parse_stat(&text).ok_or_else(|| KernelError::malformed(path, &String::from_utf8_lossy(&text)))
}

/// The uids of a process: real, effective, saved and of its file accesses.
pub fn uids(pid: u32) -> Result<[u32; 4], KernelError> {
    let path = format!("/proc/{pid}/status");
    let text = read_text(&path)?;
    parse_uids(&text).ok_or_else(|| KernelError::malformed(path, &text))
}

pub(super) fn parse_uids(status: &str) -> Option<[u32; 4]> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uids: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    uids.try_into().ok()
}

/// `/proc/PID/io`; the kernel shows it to root and to the process's own user.
pub fn io(pid: u32) -> Result<Io, KernelError> {
    let path = format!("/proc/{pid}/io");
    let text = read_text(&path)?;
    parse_io(&text).ok_or_else(|| KernelError::malformed(path, &text))
}

/// The value of a variable in the environment that the process executed its program with; the first, if there are more.
/// None where there is none to be seen: another user's, or a process that emptied it.
pub fn variable(pid: u32, name: &str) -> Option<Vec<u8>> {
    value_in(&read_bytes(&format!("/proc/{pid}/environ")).ok()?, name).map(<[u8]>::to_vec)
}

pub(super) fn value_in<'a>(environ: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environ.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The inode of our PID namespace, which pids belong to.
pub fn pid_namespace() -> Result<u64, KernelError> {
    const FILE: &str = "/proc/self/ns/pid";
    let of_pids = rustix::fs::stat(FILE).map_err(|e| KernelError::from_errno("look at", FILE, e))?;
    Ok(of_pids.st_ino)
}

/// The cgroup2 cgroup of a process, as its cgroup namespace root sees it.
pub fn cgroup(pid: u32) -> Result<PathBuf, KernelError> {
    let path = format!("/proc/{pid}/cgroup");
    let text = read_bytes(&path)?;
    parse_cgroup(&text).ok_or_else(|| KernelError::malformed(path, &String::from_utf8_lossy(&text)))
}

/// The process that a thread belongs to.
pub fn thread_group(tid: u32) -> Result<u32, KernelError> {
    let path = format!("/proc/{tid}/status");
    let text = read_text(&path)?;
    parse_colon(&text, "Tgid").ok_or_else(|| KernelError::malformed(path, &text))
}

/// The kernel function that the process waits in; none where it runs, or where we may not see it.
pub fn wchan(pid: u32) -> Option<String> {
    parse_wchan(&read_text(&format!("/proc/{pid}/wchan")).ok()?)
}

/// The ids of the threads of a process; none if it is gone.
pub fn threads(pid: u32) -> Vec<u32> {
    let Ok(listed) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// `/proc/PID/task/TID/stat`: as that of a process, but state and CPU time are the thread's own.
pub fn thread_stat(pid: u32, tid: u32) -> Result<Stat, KernelError> {
    let path = format!("/proc/{pid}/task/{tid}/stat");
    let text = read_bytes(&path)?;
    parse_stat(&text).ok_or_else(|| KernelError::malformed(path, &String::from_utf8_lossy(&text)))
}

/// The kernel function that a thread waits in.
pub fn thread_wchan(pid: u32, tid: u32) -> Option<String> {
    parse_wchan(&read_text(&format!("/proc/{pid}/task/{tid}/wchan")).ok()?)
}

/// The system call that a thread is in, with its arguments. The kernel shows it to who may trace the process.
pub fn thread_syscall(pid: u32, tid: u32) -> Result<String, KernelError> {
    read_text(&format!("/proc/{pid}/task/{tid}/syscall"))
}

/// What the scheduler has counted of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// The time that it has spent on a CPU.
    pub on_cpu_nsec: u64,
    /// The time that it has waited for one.
    pub waited_nsec: u64,
}

/// `/proc/PID/task/TID/schedstat`. None where the kernel does not count (CONFIG_SCHED_INFO).
pub fn scheduled(pid: u32, tid: u32) -> Result<Option<Scheduled>, KernelError> {
    Ok(parse_schedstat(&read_text(&format!("/proc/{pid}/task/{tid}/schedstat"))?))
}

/// What the kernel says of an open file.
pub fn fdinfo(pid: u32, fd: i32) -> Option<String> {
    read_text(&format!("/proc/{pid}/fdinfo/{fd}")).ok()
}

/// The beginning of the command line, its words joined by spaces. Waits for the lock of the process's memory.
pub fn command_line(pid: u32, max_chars: usize) -> Option<String> {
    let mut text = Vec::with_capacity(256);
    let file = fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
    file.take(4 * max_chars as u64).read_to_end(&mut text).ok()?;
    Some(line_of(&text, max_chars))
}

pub(super) fn line_of(cmdline: &[u8], max_chars: usize) -> String {
    let words = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    let line = words.iter().map(|b| if *b == 0 { b' ' } else { *b }).collect::<Vec<u8>>();
    String::from_utf8_lossy(&line).chars().take(max_chars).collect()
}

/// The bytes of resident memory.
pub fn resident_bytes(pid: u32) -> Result<u64, KernelError> {
    let path = format!("/proc/{pid}/statm");
    let text = read_text(&path)?;
    let pages = parse_statm(&text).ok_or_else(|| KernelError::malformed(path, &text))?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// The bytes that the process has written with any system call, to anything.
pub fn written_bytes(pid: u32) -> Result<u64, KernelError> {
    let path = format!("/proc/{pid}/io");
    let text = read_text(&path)?;
    parse_colon(&text, "wchar").ok_or_else(|| KernelError::malformed(path, &text))
}

/// `PID (COMM) STATE PPID …`. The comm may hold any byte, spaces, newlines and parentheses among them, so it ends at
/// the last parenthesis.
pub(in crate::kernel) fn parse_stat(text: &[u8]) -> Option<Stat> {
    let (open, close) = (text.iter().position(|b| *b == b'(')?, text.iter().rposition(|b| *b == b')')?);
    let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
    let pid = std::str::from_utf8(&text[..open]).ok()?.trim().parse().ok()?;
    // Fields are numbered from 1, as in proc_pid_stat(5), and state is the third.
    let mut fields = std::str::from_utf8(&text[close + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let ppid = fields.next()?.parse().ok()?;
    let mut number = |skipped: usize| fields.nth(skipped)?.parse::<u64>().ok();
    let (utime, stime, cutime, cstime) = (number(9)?, number(0)?, number(0)?, number(0)?);
    let threads = u32::try_from(number(2)?).ok()?;
    let (start_ticks, rss_pages) = (number(1)?, number(1)?);
    Some(Stat {
        pid,
        comm,
        state,
        ppid,
        threads,
        cpu_ticks: utime.saturating_add(stime),
        waited_cpu_ticks: cutime.saturating_add(cstime),
        start_ticks,
        rss_pages,
    })
}

pub(super) fn parse_io(text: &str) -> Option<Io> {
    let number = |key| parse_colon::<u64>(text, key);
    Some(Io {
        read_bytes: number("read_bytes")?,
        write_bytes: number("write_bytes")?,
        characters: number("rchar")?.saturating_add(number("wchar")?),
    })
}

/// The line of cgroup2 is `0::PATH`. A removed cgroup's path ends in ` (deleted)`, which then equals nothing of ours.
pub(super) fn parse_cgroup(text: &[u8]) -> Option<PathBuf> {
    let line = text.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(b"0::"))?;
    line.starts_with(b"/").then(|| Path::new(OsStr::from_bytes(line)).to_owned())
}

/// 0 where the process is in another PID namespace, -1 where it was reaped.
pub(super) fn parse_fdinfo_pid(text: &str) -> Option<i64> {
    text.lines().find_map(|l| l.strip_prefix("Pid:"))?.trim().parse().ok()
}

pub(super) fn parse_colon<T: std::str::FromStr>(text: &str, key: &str) -> Option<T> {
    text.lines().filter_map(|l| l.split_once(':')).find(|(k, _)| *k == key)?.1.trim().parse().ok()
}

/// `ON_CPU_NSEC WAITED_NSEC TIMESLICES`. Where nothing is counted all are 0, which no thread has that ever ran.
pub(super) fn parse_schedstat(text: &str) -> Option<Scheduled> {
    let numbers: Vec<u64> = text.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    match numbers[..] {
        [_, _, 0] => None,
        [on_cpu_nsec, waited_nsec, _] => Some(Scheduled { on_cpu_nsec, waited_nsec }),
        _ => None,
    }
}

/// `0` stands for a process that does not wait, and for one that we may not look at.
pub(super) fn parse_wchan(text: &str) -> Option<String> {
    let function = text.trim();
    (!function.is_empty() && function != "0").then(|| function.to_owned())
}

/// The second field is the resident set in pages.
pub(super) fn parse_statm(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn read_bytes(path: &str) -> Result<Vec<u8>, KernelError> {
    let mut out = Vec::with_capacity(1024);
    // ESRCH comes from the read of a file that was opened just before the process was reaped.
    fs::File::open(path).and_then(|mut f| f.read_to_end(&mut out)).map_err(|source| {
        match source.kind() == ErrorKind::NotFound || source.raw_os_error() == Some(Errno::SRCH.raw_os_error()) {
            true => KernelError::Gone { what: path.to_owned() },
            false => KernelError::Io { op: "read", what: path.to_owned(), source },
        }
    })?;
    Ok(out)
}

/// A process chooses its name, so text from /proc need not be UTF-8.
pub(super) fn read_text(path: &str) -> Result<String, KernelError> {
    read_bytes(path).map(|b| String::from_utf8_lossy(&b).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_read_or_the_file_is_not_understood() {
        assert_eq!(parse_uids("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n"), Some([1, 2, 3, 4]));
        for bad in ["", "Uid:\t1\t2\t3\n", "Uid:\t1\t2\t3\t-4\n", "Uid:\t1\t2\t3\t4\t5\n"] {
            assert_eq!(parse_uids(bad), None, "{bad:?}");
        }
        assert_eq!(uids(std::process::id()).unwrap()[0], nix::unistd::getuid().as_raw());
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_move_the_fields() {
        let tail = "S 17 1 1 0 -1 4194560 1 0 0 0 5 6 70 80 20 0 3 0 987654 1000 250 3";
        for comm in ["cat", "a) S 1 (b", "tmux: server", ") R 0 (", "new\nline", ""] {
            let stat = parse_stat(format!("42 ({comm}) {tail}\n").as_bytes()).unwrap();
            let expected = Stat {
                pid: 42,
                comm: comm.into(),
                state: 'S',
                ppid: 17,
                threads: 3,
                cpu_ticks: 11,
                waited_cpu_ticks: 150,
                start_ticks: 987_654,
                rss_pages: 250,
            };
            assert_eq!(stat, expected);
        }
        assert!(parse_stat(&[b"42 (\xff) ", tail.as_bytes()].concat()).is_some());
    }

    #[test]
    fn a_malformed_stat_is_refused() {
        for bad in
            ["", "42", "42 (cat", "42 )cat( S 1", "x (cat) S 1", "42 (cat) S", "42 (cat) S x 1", "42 (cat) S 1 1 1 0"]
        {
            assert_eq!(parse_stat(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_zombie_has_ended_but_not_one_that_lost_its_main_thread_only() {
        let stat = |state, threads| {
            let text = format!("4 (x) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 1 0 0");
            parse_stat(text.as_bytes()).unwrap()
        };
        assert!(stat('Z', 1).has_ended() && stat('X', 0).has_ended());
        assert!(!stat('Z', 2).has_ended() && !stat('S', 1).has_ended() && !stat('T', 1).has_ended());
    }

    #[test]
    fn a_variable_of_the_environment_is_found_whole_or_not_at_all() {
        let mut child = std::process::Command::new("sleep").arg("600").env_clear().env("A", "bc").spawn().unwrap();
        // The environment is that of the test until it has executed its program.
        while stat(child.id()).unwrap().comm != "sleep" {
            std::thread::yield_now();
        }
        assert_eq!(variable(child.id(), "A").as_deref(), Some(&b"bc"[..]));
        assert_eq!(
            (variable(child.id(), "AB"), variable(child.id(), ""), variable(child.id(), "A=b")),
            (None, None, None)
        );
        assert!(io(child.id()).unwrap().characters > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(variable(child.id(), "A"), None);
        assert!(io(child.id()).unwrap_err().is_gone());
    }

    #[test]
    fn the_cgroup2_line_is_found_among_those_of_v1() {
        let hybrid = b"9:name=systemd:/x\n4:memory:/y\n0::/guardian/a b\n";
        assert_eq!(parse_cgroup(hybrid).unwrap(), Path::new("/guardian/a b"));
        assert_eq!(parse_cgroup(b"0::/\n").unwrap(), Path::new("/"));
        for bad in [&b""[..], b"4:memory:/y\n", b"0::\n", b"10::/x\n"] {
            assert_eq!(parse_cgroup(bad), None);
        }
    }

    #[test]
    fn small_files_are_read_or_refused() {
        assert_eq!(parse_fdinfo_pid("pos:\t0\nPid:\t77\nNSpid:\t77\n"), Some(77));
        assert_eq!(parse_fdinfo_pid("Pid:\t-1\n"), Some(-1));
        assert_eq!(parse_fdinfo_pid("pos:\t0\n"), None);
        assert_eq!(parse_colon::<u64>("rchar: 1\nwchar: 22\nsyscw: 3\n", "wchar"), Some(22));
        let io = "rchar: 1\nwchar: 20\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n";
        assert_eq!(parse_io(io), Some(Io { read_bytes: 5, write_bytes: 6, characters: 21 }));
        assert_eq!(parse_io("rchar: 1\nwchar: 2\n"), None);
        assert_eq!(parse_colon::<u64>("wchar: max\n", "wchar"), None);
        assert_eq!(parse_statm("100 50 3 1 0 2 0\n"), Some(50));
        assert_eq!(parse_statm("100"), None);
        assert_eq!(parse_wchan("do_wait"), Some("do_wait".into()));
        assert_eq!(parse_wchan("0"), None);
        assert_eq!(parse_wchan(""), None);
    }

    #[test]
    fn a_wait_status_is_an_exit_or_a_signal() {
        assert_eq!(decode_wait_status(7 << 8), ExitStatus::Exited(7));
        assert_eq!(decode_wait_status(9), ExitStatus::Signaled(9));
        assert_eq!(decode_wait_status(0x80 | 11), ExitStatus::Signaled(11));
    }

    #[test]
    fn a_process_is_the_same_by_pid_by_id_and_by_descriptor() {
        let me = std::process::id();
        let id = ProcessId { pid: me, start_ticks: stat(me).unwrap().start_ticks };
        let fd = open_known(id).unwrap();
        assert_eq!(identify(&fd).unwrap(), id);
        assert!(!has_exited(&fd));
        let later = ProcessId { start_ticks: id.start_ticks + 1, ..id };
        assert!(open_known(later).unwrap_err().is_gone());
    }

    #[test]
    fn what_the_scheduler_counts_is_read_or_not_known() {
        let counted = Scheduled { on_cpu_nsec: 152_131, waited_nsec: 2_129_691 };
        assert_eq!(parse_schedstat("152131 2129691 2\n"), Some(counted));
        for unknown in ["0 0 0\n", "1 2", "a b c", ""] {
            assert_eq!(parse_schedstat(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_reaped_process_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let fd = open(child.id()).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(identify(&fd).unwrap_err().is_gone());
        assert!(signal(&fd, Signal::TERM).unwrap_err().is_gone());
    }
}
