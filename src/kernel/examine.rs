//! A look at all processes of a run for detection: what stands still in one that is idle, and whether it waits for input.
//!
//! About 30 µs a process (M), so it is done when a rule asks for it and not at every sample.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use nix::libc;
use rustix::fs::stat;

use super::polled::{self, Polled};
use super::process::{self, Stat};
use super::syscall::{self, Call, Current};
use crate::model::{Processes, Sample};

/// How many threads of a process are looked at. One that has more is not known in full.
const MAX_THREADS: usize = 64;
/// Who waits for more descriptors than this waits for more than input: a terminal is open a few times at most.
const MAX_POLLED: u64 = 8;
/// Character devices of these majors are terminals: of the console and of serial lines, /dev/tty and /dev/console, and
/// pseudo-terminals (linux/major.h).
const TERMINALS: [u32; 3] = [4, 5, 204];
const PSEUDO_TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// Looks at these processes, which are all of a run, and fills in what they show. `main` is the first one of it, whose
/// standard input is the run's.
pub fn processes(pids: impl Iterator<Item = u32>, main: Option<u32>, sample: &mut Sample) {
    let mut all = Sum { input: main.and_then(input_of), ..Sum::default() };
    pids.for_each(|pid| all.add(pid));
    sample.io_bytes = sample.io_bytes.or((!all.unreadable).then_some(all.io_bytes));
    sample.activity_bytes = (!all.unreadable).then_some(all.activity_bytes);
    sample.processes = (!all.hidden).then_some(all.processes);
    sample.cpu_wait_usec = sample.cpu_wait_usec.or((!all.wait_unknown).then_some(all.wait_nsec / 1000));
    sample.waits_for_input = all.waits.or((!all.call_unknown && !all.hidden).then_some(false));
    if sample.cpu_wait_usec.is_none() {
        sample.host_cpu_pressure = process::read_text("/proc/pressure/cpu").ok().and_then(|text| parse_pressure(&text));
    }
}

struct Sum {
    /// Where the run's standard input leads, if that is a pipe or a socket.
    input: Option<PathBuf>,
    io_bytes: u64,
    activity_bytes: u64,
    processes: Processes,
    wait_nsec: u64,
    waits: Option<bool>,
    /// What could not be read of some process that is there.
    unreadable: bool,
    hidden: bool,
    wait_unknown: bool,
    call_unknown: bool,
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            input: None,
            io_bytes: 0,
            activity_bytes: 0,
            processes: Processes::NONE,
            wait_nsec: 0,
            waits: None,
            unreadable: false,
            hidden: false,
            wait_unknown: false,
            call_unknown: false,
        }
    }
}

impl Sum {
    fn add(&mut self, pid: u32) {
        let seen = match process::stat(pid) {
            Ok(seen) => seen,
            // What went away is missing in the digest, and so is what hidepid hides: that is not known.
            Err(_) => {
                self.hidden |= process::open(pid).is_ok_and(|pidfd| !process::has_exited(pidfd));
                return;
            }
        };
        self.processes.add(seen.pid, seen.start_ticks, seen.threads);
        match process::io(pid) {
            Ok(io) => {
                self.io_bytes = self.io_bytes.saturating_add(io.read_bytes).saturating_add(io.write_bytes);
                self.activity_bytes = self.activity_bytes.saturating_add(io.characters);
            }
            Err(e) => self.unreadable |= !e.is_gone(),
        }
        let threads = threads(&seen);
        self.wait_unknown |= threads.is_none();
        for tid in threads.as_deref().unwrap_or(&[pid]) {
            self.add_thread(pid, *tid, threads.as_deref());
        }
    }

    fn add_thread(&mut self, pid: u32, tid: u32, threads: Option<&[u32]>) {
        match process::scheduled(pid, tid) {
            Ok(Some(counted)) => self.wait_nsec = self.wait_nsec.saturating_add(counted.waited_nsec),
            Ok(None) => self.wait_unknown = true,
            Err(e) => self.wait_unknown |= !e.is_gone(),
        }
        if self.waits == Some(true) {
            return;
        }
        match process::thread_syscall(pid, tid).map(|text| syscall::parse(&text)) {
            Ok(Some(Current::Running | Current::None)) => {}
            Ok(Some(Current::Call(call))) => {
                if self.waits_for_input(pid, &call, threads) {
                    self.waits = Some(true);
                }
            }
            Err(e) if e.is_gone() => {}
            Ok(Some(Current::Foreign) | None) | Err(_) => self.add_wait(pid, tid),
        }
    }

    /// Yama hides the system call from all but ancestors and root, and not the kernel's function. That of a 32-bit program has
    /// another number.
    fn add_wait(&mut self, pid: u32, tid: u32) {
        let Some(function) = process::thread_wchan(pid, tid) else {
            self.call_unknown = true;
            return;
        };
        let may_read = ["read", "wait_woken", "poll", "select"].iter().any(|part| function.contains(part));
        if function.contains("tty") {
            self.waits = Some(true);
        } else if may_read && self.is_input(pid, 0, None) {
            self.call_unknown = true;
        }
    }

    /// Whether the call ends with input, and with nothing else.
    fn waits_for_input(&self, pid: u32, call: &Call, threads: Option<&[u32]>) -> bool {
        let [first, ..] = call.args;
        if matches!(call.number, libc::SYS_read | libc::SYS_readv) {
            return self.is_input(pid, first as i32, None);
        }
        let polled = polled_for_ever(pid, call, threads).unwrap_or_default();
        !polled.is_empty() && polled.iter().all(|p| p.is_read && self.is_input(pid, p.fd, p.file))
    }

    /// Whether a descriptor is a terminal, or what the run was given for its standard input; and that file still, if it is
    /// known.
    fn is_input(&self, pid: u32, fd: i32, file: Option<(u64, u64)>) -> bool {
        let path = format!("/proc/{pid}/fd/{fd}");
        let Ok(seen) = stat(&path) else { return false };
        // The kernel's own number of a device has 20 bits for the minor.
        let device = u64::from(rustix::fs::major(seen.st_dev)) << 20 | u64::from(rustix::fs::minor(seen.st_dev));
        if file.is_some_and(|file| file != (device, seen.st_ino)) {
            return false;
        }
        let major = rustix::fs::major(seen.st_rdev);
        let is_terminal = seen.st_mode & libc::S_IFMT == libc::S_IFCHR
            && (TERMINALS.contains(&major) || PSEUDO_TERMINALS.contains(&major));
        is_terminal || self.input.is_some() && fs::read_link(path).ok() == self.input
    }
}

fn input_of(main: u32) -> Option<PathBuf> {
    let target = fs::read_link(format!("/proc/{main}/fd/0")).ok()?;
    let text = target.to_str()?;
    (text.starts_with("pipe:") || text.starts_with("socket:")).then_some(target)
}

/// The threads of a process; none if there are too many.
fn threads(seen: &Stat) -> Option<Vec<u32>> {
    if seen.threads <= 1 {
        return Some(vec![seen.pid]);
    }
    let threads = process::threads(seen.pid);
    (1..=MAX_THREADS).contains(&threads.len()).then_some(threads)
}

/// What a poll, a select or an epoll without a timeout waits for, if that is not more than one who waits for input has. Of the
/// first two it is in the process's memory.
fn polled_for_ever(pid: u32, call: &Call, threads: Option<&[u32]>) -> Option<Vec<Polled>> {
    enum Kind {
        Poll,
        Select,
        Epoll,
    }
    let [first, second, third, fourth, fifth, _] = call.args;
    let (kind, for_ever) = match call.number {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => (Kind::Poll, (third as i32) < 0),
        libc::SYS_ppoll => (Kind::Poll, third == 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => (Kind::Select, fifth == 0),
        libc::SYS_pselect6 => (Kind::Select, fifth == 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => (Kind::Epoll, (fourth as i32) < 0),
        libc::SYS_epoll_pwait => (Kind::Epoll, (fourth as i32) < 0),
        libc::SYS_epoll_pwait2 => (Kind::Epoll, fourth == 0),
        _ => return None,
    };
    if !for_ever {
        return None;
    }
    let polled = match kind {
        Kind::Epoll => polled::of_epoll(&process::fdinfo(pid, first as i32)?),
        Kind::Poll if second > MAX_POLLED => return None,
        Kind::Poll => {
            let mut array = vec![0; usize::try_from(second).ok()? * 8];
            memory(pid, threads)?.read_exact_at(&mut array, first).ok()?;
            polled::of_poll(&array)
        }
        Kind::Select => {
            let [read, write, except] = polled::read_sets(&memory(pid, threads)?, &call.args)?;
            polled::of_select(&read, &write, &except)
        }
    };
    (polled.len() as u64 <= MAX_POLLED).then_some(polled)
}

/// Its memory; none while a thread of it is in an uninterruptible sleep, in which it may hold the lock of the memory, that
/// everybody waits for who reads there; or if not all of them are known.
fn memory(pid: u32, threads: Option<&[u32]>) -> Option<fs::File> {
    let is_free = |tid: &u32| process::thread_stat(pid, *tid).is_ok_and(|stat| stat.state != 'D');
    threads?.iter().all(is_free).then(|| fs::File::open(format!("/proc/{pid}/mem")).ok())?
}

/// The line `some avg10=PERCENT avg60=… avg300=… total=USEC`: whole percents of the last 10 s.
pub(super) fn parse_pressure(text: &str) -> Option<u32> {
    let whole = some(text, "avg10=")?.split('.').next()?;
    whole.parse().ok()
}

/// The same line: for how long some task waited, in microseconds.
pub fn parse_pressure_total(text: &str) -> Option<u64> {
    some(text, "total=")?.parse().ok()
}

/// The line `full avg10=PERCENT avg60=… …`: whole percents of the last minute in which all tasks waited.
pub fn parse_full_minute(text: &str) -> Option<u32> {
    value(text, "full ", "avg60=")?.split('.').next()?.parse().ok()
}

/// Percent of the last minute in which some process of the host waited for memory; none where the kernel does not tell.
pub fn host_memory_pressure() -> Option<u32> {
    process::read_text("/proc/pressure/memory").ok().and_then(|text| parse_some_minute(&text))
}

/// The line `some avg10=PERCENT avg60=… …`: whole percents of the last minute in which some task waited.
pub(super) fn parse_some_minute(text: &str) -> Option<u32> {
    some(text, "avg60=")?.split('.').next()?.parse().ok()
}

fn some<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    value(text, "some ", key)
}

fn value<'a>(text: &'a str, line: &str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|text| text.strip_prefix(line))?;
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn look(main: u32) -> Sample {
        let mut sample = Sample::default();
        processes([main].into_iter(), Some(main), &mut sample);
        sample
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn one_that_reads_its_standard_input_waits_for_it_and_one_that_sleeps_does_not() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut sleep = Command::new("sleep").arg("600").stdin(Stdio::piped()).spawn().unwrap();
        eventually("cat reads", || look(cat.id()).waits_for_input == Some(true));
        eventually("sleep sleeps", || look(sleep.id()).waits_for_input == Some(false));
        // The same pipe is the standard input of the run, or it is not.
        let mut other = Sample::default();
        processes([cat.id()].into_iter(), Some(sleep.id()), &mut other);
        assert_eq!(other.waits_for_input, Some(false), "a pipe within the run");

        let before = look(cat.id());
        assert_eq!((before.io_bytes, before.processes), (look(cat.id()).io_bytes, look(cat.id()).processes));
        cat.stdin.as_mut().unwrap().write_all(b"one line\n").unwrap();
        eventually("what it read shows", || look(cat.id()).activity_bytes > before.activity_bytes);
        let both = || {
            let mut sample = Sample::default();
            processes([cat.id(), sleep.id()].into_iter(), Some(cat.id()), &mut sample);
            sample
        };
        assert_ne!(both().processes, before.processes);
        assert_eq!((both().waits_for_input, both().cpu_wait_usec.is_some()), (Some(true), true));
        for child in [&mut cat, &mut sleep] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(look(cat.id()).processes, Some(Processes::NONE), "gone is not hidden");
    }

    /// Whether one waits for input that runs this, once it waits for something.
    fn python_waits(script: &str) -> Option<bool> {
        const CALLS: [i64; 4] = [libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];
        #[cfg(target_arch = "x86_64")]
        const OLD: [i64; 3] = [libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_wait];
        #[cfg(not(target_arch = "x86_64"))]
        const OLD: [i64; 0] = [];
        let script = format!("import os, select\n{script}");
        let mut child = Command::new("python3").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        eventually(&script, || {
            let call = process::thread_syscall(child.id(), child.id()).ok().and_then(|text| syscall::parse(&text));
            matches!(call, Some(Current::Call(Call { number, .. })) if CALLS.contains(&number) || OLD.contains(&number))
        });
        let waits = look(child.id()).waits_for_input;
        child.kill().unwrap();
        child.wait().unwrap();
        waits
    }

    #[test]
    fn one_that_waits_for_nothing_but_its_standard_input_waits_for_it_however_it_does() {
        let polls = |fds: &str, timeout: &str| {
            format!("p = select.poll(); [p.register(f, select.POLLIN) for f in {fds}]; p.poll({timeout})")
        };
        let selects = |sets: &str| format!("select.select({sets})");
        let epolls = |fds: &str, timeout: &str| {
            format!("p = select.epoll(); [p.register(f, select.EPOLLIN) for f in {fds}]; p.poll({timeout})")
        };
        for script in [polls("[0]", ""), selects("[0], [], []"), epolls("[0]", "")] {
            assert_eq!(python_waits(&script), Some(true), "{script}");
        }
        for script in [polls("[0]", "100000"), selects("[0], [], [], 100"), epolls("[0]", "100")] {
            assert_eq!(python_waits(&script), Some(false), "it does something else in the end: {script}");
        }
        let other = "os.pipe()[0]";
        for fds in [format!("[0, {other}]"), format!("[{other}]")] {
            for script in [polls(&fds, ""), selects(&format!("{fds}, [], []")), epolls(&fds, "")] {
                assert_eq!(python_waits(&script), Some(false), "it waits for something else: {script}");
            }
        }
        assert_eq!(python_waits(&selects("[], [], [0]")), Some(false), "it does not read");
        // The number is that of the standard input by now; what the epoll waits for is the pipe that had it.
        let replaced =
            "r, w = os.pipe(); p = select.epoll(); p.register(r, select.EPOLLIN); os.dup(r); os.dup2(0, r); p.poll()";
        assert_eq!(python_waits(replaced), Some(false), "it waits for what had the number before");
    }

    #[test]
    fn lines_of_proc_are_read_or_nothing_is_known() {
        let psi = "some avg10=84.78 avg60=12.23 avg300=25.45 total=171977170\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!((parse_pressure(psi), parse_pressure_total(psi)), (Some(84), Some(171_977_170)));
        assert_eq!(parse_some_minute(psi), Some(12));
        assert_eq!(
            (
                parse_full_minute("some avg60=1.00\nfull avg10=0.00 avg60=41.99 avg300=0.00 total=0\n"),
                parse_full_minute(psi)
            ),
            (Some(41), Some(0))
        );
        assert_eq!((parse_pressure("full avg10=1.00 total=5\n"), parse_pressure_total("some avg10=x")), (None, None));
    }
}
