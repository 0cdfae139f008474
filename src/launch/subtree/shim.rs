//! The shim: the parent of a run's command and the subreaper of everything below it. One for each run, and it stays small.
//!
//! Lets nothing in: every signal is blocked, and it reads nothing but the ends of its children.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, getpid, pidfd_send_signal};

use super::init::{self, Init};
use super::orders::Orders;
use super::record::{Line, put};
use super::{READY, VERB};
use crate::failpoint;
use crate::kernel::footprint::FilePages;
use crate::kernel::process;
use crate::launch::fork::{Detached, Plan, close_all_but, fork_gated};
use crate::launch::gate::Files;
use crate::launch::orphans;
use crate::model::RunId;

/// How long what only the start needed is kept while the gate is closed.
const SETTLED: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The descriptors of a shim: of the run's record, the gate and its report, and of what is waiting for it to be ready.
pub(super) struct Handed {
    pub record: OwnedFd,
    pub gate: OwnedFd,
    pub report: OwnedFd,
    pub ready: OwnedFd,
    /// For a detached run.
    pub files: Option<Files>,
}

/// Serves as a shim if the arguments say so. None: this is another verb.
pub fn main(arguments: impl Iterator<Item = std::ffi::OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.skip(1).map(|a| a.into_string().unwrap_or_default());
    if arguments.next().as_deref() != Some(VERB) {
        return None;
    }
    let done = if arguments.next().as_deref() == Some(init::PROBE) {
        init::probe()
    } else {
        match take(arguments) {
            // Its starter is told by the pipe, and tells the user. Our standard error is the command's, or nobody's.
            Some((orders, handed)) => {
                let orders = Orders::read(orders).ok_or("its orders make no sense");
                return Some(serve(orders, handed).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS));
            }
            None => Err("it is started by guardian alone".to_owned()),
        }
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("guardian: the shim: {e}");
            ExitCode::FAILURE
        }
    })
}

/// Takes over the descriptors that the arguments name. None of them is handed on when something is executed.
fn take(arguments: impl Iterator<Item = String>) -> Option<(OwnedFd, Handed)> {
    let mut fds = arguments.map(|a| {
        let number = a.parse::<i32>().ok().filter(|n| *n > 2)?;
        // SAFETY: the number is of a descriptor that the starter handed to this process for this use alone, or of none,
        // which the call that follows finds; nothing else here knows it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
        // SAFETY: as above; it is open, and each number is taken once.
        Some(unsafe { OwnedFd::from_raw_fd(number) })
    });
    let mut next = || fds.next().flatten();
    let (orders, record, gate, report, ready) = (next()?, next()?, next()?, next()?, next()?);
    let files = match (next(), next(), next()) {
        (Some(stdin), Some(output), Some(cwd)) => Some(Files { stdin, output, cwd, kept: next() }),
        _ => None,
    };
    Some((orders, Handed { record, gate, report, ready, files }))
}

/// Goes on as a shim in a fork of this process, which must have one thread. Gives its pid.
///
/// What an execve would do is done by hand, and what it would cost is saved: it is half of what a shim takes to start.
pub(super) fn fork(run: RunId, orders: Orders, handed: Handed) -> Result<u32, Errno> {
    // SAFETY: no other thread holds anything, so that the child may go on as any program. It never returns from here.
    match unsafe { libc::fork() } {
        0 => {
            // Nothing of what the starter was in the middle of must go on here, not even if this panics.
            let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                close_on_exec(&handed);
                show_as(&format!("guardian {VERB} {run}"));
                serve(Ok(orders), handed)
            }));
            // SAFETY: runs no handler and flushes no buffer; those belong to the starter.
            unsafe { libc::_exit(i32::from(!matches!(served, Ok(Ok(()))))) }
        }
        pid => u32::try_from(pid)
            .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
    }
}

/// Closes what an execve would have closed, but for what was handed to us.
fn close_on_exec(handed: &Handed) {
    let keep = [&handed.record, &handed.gate, &handed.report, &handed.ready].map(AsRawFd::as_raw_fd);
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| !keep.contains(number)) {
        // SAFETY: a number that is looked at, and that is found to be of a descriptor or of none.
        let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        if flags.is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC)) {
            // SAFETY: its owner is the starter's code, none of which runs in this process.
            unsafe { libc::close(number) };
        }
    }
}

/// Has people see this in place of the client's arguments, or as much of it as fits there: who ends all commands of that
/// kind by a pattern is not to end the shim with them.
fn show_as(text: &str) {
    unsafe extern "C" {
        /// The C library's, which is the first argument where the kernel has put it, and the others come after it.
        static program_invocation_name: *mut libc::c_char;
    }
    // SAFETY: set before main, and never written by anything here.
    let start = unsafe { program_invocation_name };
    let room: usize = std::env::args_os().map(|argument| argument.len() + 1).sum();
    if start.is_null() {
        return;
    }
    let text = &text.as_bytes()[..text.len().min(room.saturating_sub(1))];
    // SAFETY: `room` bytes from `start` are the arguments, on this process's own stack, with a NUL byte after each. They are
    // all read by now, and what reads them again finds strings that end as well.
    unsafe {
        std::ptr::write_bytes(start, 0, room);
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), start, text.len());
    }
}

fn serve(orders: Result<Orders, &'static str>, handed: Handed) -> Result<(), String> {
    let Handed { record, gate, report, ready, files } = handed;
    let begun = orders.map_err(str::to_owned).and_then(|orders| begin(orders, &record, gate, report, files));
    let said = begun.as_ref().err().map_or(READY, String::as_str);
    let _ = write(&ready, format!("{said}\n").as_bytes());
    drop(ready);
    let shim = begun?;
    let _ = failpoint::hit("shim.ready");
    let pipe = shim.init.as_ref().map(|init| init.pipe.as_raw_fd());
    let client = shim.client.as_ref().map(AsRawFd::as_raw_fd);
    let_go(&[Some(record.as_raw_fd()), client, pipe, Some(shim.executed.as_raw_fd())]);
    shim.reap(&record);
    Ok(())
}

/// A shim whose command is behind its gate.
struct Shim {
    main: u32,
    init: Option<Init>,
    /// The client of a foreground run, which is told of what its command does.
    client: Option<OwnedFd>,
    /// At its end when the command is executed, or is gone.
    executed: OwnedFd,
    /// What only the start needed; found before /proc shows another PID namespace, or to be found.
    pages: Option<FilePages>,
}

fn begin(
    orders: Orders,
    record: &OwnedFd,
    gate: OwnedFd,
    report: OwnedFd,
    files: Option<Files>,
) -> Result<Shim, String> {
    let _ = rustix::thread::set_name(c"guardian-shim");
    let signals = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    signals.map_err(|e| format!("cannot block signals: {e}"))?;
    // Ignored, as some supervisors leave it, the kernel would reap our children itself.
    // SAFETY: SIG_DFL runs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // The one that started us. If it is gone, so is its end of the gate's pipe: nothing is executed.
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    let client = if orders.detached { None } else { process::open(parent).ok() };
    orphans::adopt().map_err(|e| format!("cannot adopt orphans: {e}"))?;
    note(record, Line::Shim, getpid().as_raw_nonzero().get().unsigned_abs())?;
    let init = orders.isolated.then(init::start).transpose()?;
    if let Some(init) = &init {
        note(record, Line::Init, init.pid)?;
    }
    let _ = failpoint::hit("shim.begun");
    let limits = [(libc::RLIMIT_DATA, orders.data_bytes), (libc::RLIMIT_NPROC, orders.tasks)];
    let plan = Plan {
        candidates: orders.candidates,
        argv: orders.argv,
        env: orders.env,
        gate,
        report,
        // The starter's ends are closed.
        parents_ends: [-1, -1],
        detached: files.map(|files| Detached { files, nofile: orders.nofile }),
        cgroup: None,
        limits: limits.into_iter().filter_map(|(resource, value)| Some((resource, value?))).collect(),
    };
    let (executed, executes) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| format!("cannot make a pipe: {e}"))?;
    let main = fork_gated(&plan).map_err(|e| format!("cannot fork: {e}"))?;
    drop(executes);
    let _ = failpoint::hit("shim.forked");
    note(record, Line::Main, main)?;
    let mut pages = None;
    if let Some(init) = &init {
        // Last: from then on /proc shows the new PID namespace, in which we are not.
        pages = Some(FilePages::find());
        init.mount_proc()?;
    }
    Ok(Shim { main, init, client, executed, pages })
}

fn cannot_note(e: Errno) -> String {
    format!("cannot write the record: {e}")
}

/// Puts a process on record.
fn note(record: &OwnedFd, line: Line, pid: u32) -> Result<(), String> {
    let start_ticks = process::stat(pid).map_err(|e| e.to_string())?.start_ticks;
    put(record, line, format!("{pid} {start_ticks}")).map_err(cannot_note)
}

/// Lets go of everything that the command was to inherit, and of the process group: what ends the client's whole group
/// must not end us. Nothing that fails here would be worth not going on.
fn let_go(keep: &[Option<i32>]) {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    if let Ok(null) = null {
        for standard in 0..3 {
            // SAFETY: replaces our standard streams, which nothing here reads or writes any more.
            unsafe { libc::dup2(null.as_raw_fd(), standard) };
        }
    }
    let mut keep: Vec<i32> = keep.iter().flatten().copied().collect();
    keep.sort_unstable();
    close_all_but(&keep);
    let _ = std::env::set_current_dir("/");
    // In a group of its own, but in the session: a command that makes a process group of its own, as timeout(1) does, would
    // be an orphaned group without a parent there, and its reading from the terminal would fail instead of stopping it.
    let _ = rustix::process::setpgid(None, None);
}

impl Shim {
    /// Reaps until there is no child left.
    fn reap(mut self, record: &OwnedFd) {
        // The command is waited for, and whoever opens its gate needs the processor more.
        let _ = poll(&mut [PollFd::new(&self.executed, PollFlags::IN)], Some(&SETTLED));
        self.pages.take().unwrap_or_else(FilePages::find).drop_pages();
        loop {
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED) {
                Ok(WaitStatus::Exited(pid, code)) => self.reaped(record, pid.as_raw(), &format!("exited {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.reaped(record, pid.as_raw(), &format!("signaled {}", signal as i32));
                }
                Ok(WaitStatus::Stopped(pid, _)) if pid.as_raw().unsigned_abs() == self.main => self.tell_client(),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        let _ = failpoint::hit("shim.empty");
        let _ = put(record, Line::Empty, cpu_usec_of_children());
    }

    fn reaped(&mut self, record: &OwnedFd, pid: i32, status: &str) {
        if pid.unsigned_abs() != self.main {
            return;
        }
        let _ = failpoint::hit("shim.reaped");
        let _ = put(record, Line::Status, status);
        let _ = failpoint::hit("shim.noted");
        // No other process has this pid as far as we are concerned: it was the main one once.
        self.main = 0;
        if let Some(init) = self.init.take() {
            init.no_more();
        }
        self.tell_client();
    }

    /// What SIGCHLD would tell the client if the command were its child: to look at it.
    fn tell_client(&self) {
        if let Some(client) = &self.client {
            let _ = pidfd_send_signal(client.as_fd(), Signal::CHILD);
        }
    }
}

/// The CPU time of every child that was reaped, with that of the ones that they had reaped.
fn cpu_usec_of_children() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    let usec = |t: nix::sys::time::TimeVal| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_usec()).unwrap_or(0)
    };
    usage.map_or(0, |u| usec(u.user_time()) + usec(u.system_time()))
}
