//! The shim: the parent of a run's command and the subreaper of everything below it. One for each run, and it stays small.
//!
//! Lets nothing in: every signal is blocked, and it reads nothing but the ends of its children.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::io::{Errno, FdFlags, fcntl_setfd, write};
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

/// What the arguments name: descriptors, by their number.
struct Handed {
    orders: OwnedFd,
    record: OwnedFd,
    gate: OwnedFd,
    report: OwnedFd,
    ready: OwnedFd,
    files: Option<Files>,
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
            Some(handed) => return Some(serve(handed).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)),
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
fn take(arguments: impl Iterator<Item = String>) -> Option<Handed> {
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
        (Some(stdin), Some(output), Some(cwd)) => Some(Files { stdin, output, cwd }),
        _ => None,
    };
    Some(Handed { orders, record, gate, report, ready, files })
}

fn serve(handed: Handed) -> Result<(), String> {
    let Handed { orders, record, gate, report, ready, files } = handed;
    let begun = begin(&orders, &record, gate, report, files);
    let said = begun.as_ref().err().map_or(READY, String::as_str);
    let _ = write(&ready, format!("{said}\n").as_bytes());
    drop((orders, ready));
    let shim = begun?;
    let _ = failpoint::hit("shim.ready");
    let pipe = shim.init.as_ref().map(|init| init.pipe.as_raw_fd());
    let_go(&[Some(record.as_raw_fd()), shim.client.as_ref().map(AsRawFd::as_raw_fd), pipe]);
    shim.reap(&record);
    Ok(())
}

/// A shim whose command is behind its gate.
struct Shim {
    main: u32,
    init: Option<Init>,
    /// The client of a foreground run, which is told of what its command does.
    client: Option<OwnedFd>,
    /// What only the start needed; found before /proc shows another PID namespace, or to be found.
    pages: Option<FilePages>,
}

fn begin(
    orders: &OwnedFd,
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
    let orders = Orders::read(orders).ok_or("its orders make no sense")?;
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
        // The starter's ends are not ours: they close when something is executed.
        parents_ends: [-1, -1],
        detached: files.map(|files| Detached { files, nofile: orders.nofile }),
        cgroup: None,
        limits: limits.into_iter().filter_map(|(resource, value)| Some((resource, value?))).collect(),
    };
    let main = fork_gated(&plan).map_err(|e| format!("cannot fork: {e}"))?;
    let _ = failpoint::hit("shim.forked");
    note(record, Line::Main, main)?;
    let mut pages = None;
    if let Some(init) = &init {
        // Last: from then on /proc shows the new PID namespace, in which we are not.
        pages = Some(FilePages::find());
        init.mount_proc()?;
    }
    Ok(Shim { main, init, client, pages })
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
