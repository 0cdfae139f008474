//! Starting a shim with its gated command: what the client of a foreground run does, and the instance for a detached one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use super::VERB;
use super::orders::Orders;
use super::record;
use super::shim::{self, Handed};
use super::shims::ShimLimits;
use crate::kernel::{Exec, KernelError, process};
use crate::launch::gate::{self, Gate, Gated};
use crate::model::{ProcessId, RunId};

/// How long a shim may take until its command is behind its gate: it takes a millisecond or two. A client waits.
const READY: Duration = Duration::from_secs(10);
/// The engine must not be held up for longer.
const READY_FOR_THE_ENGINE: Duration = Duration::from_secs(2);

/// What a shim is started with, beside the command.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// The run.
    pub run: RunId,
    /// The run's record.
    pub record: BorrowedFd<'a>,
    /// What it is to hold the run to.
    pub limits: ShimLimits,
}

/// A shim, and the command behind its gate.
#[derive(Debug)]
pub struct Started {
    /// The shim, a child of ours.
    pub shim: ProcessId,
    /// The command, a child of the shim's.
    pub gated: Gated,
}

/// Starts a shim for the client of a foreground run, whose terminal, directory and descriptors its command inherits: a fork
/// of the client, which has one thread.
pub fn foreground(argv: &[Vec<u8>], env: Vec<Vec<u8>>, options: &Options<'_>) -> Result<Started, KernelError> {
    let (orders, name) = orders(argv, env, options)?;
    let pipes = Pipes::new()?;
    let handed = Handed {
        record: duplicate(options.record)?,
        gate: pipes.gate,
        report: pipes.reports,
        ready: pipes.readies,
        files: None,
    };
    let shim = shim::fork(options.run, orders, handed).map_err(failed("fork"))?;
    started(shim, &pipes.ready, Gate::new(name, pipes.entrance, pipes.report), READY, options)
}

/// Starts a shim for a detached run: the instance has more than one thread, and executes it. `nofile` are the limits of
/// open descriptors to give its command.
pub fn detached(exec: &Exec, nofile: Option<(u64, u64)>, options: &Options<'_>) -> Result<Started, KernelError> {
    let files = gate::Files::of(exec)?;
    let (orders, name) = orders(&exec.argv, exec.env.clone(), options)?;
    let orders = Orders { detached: true, nofile, ..orders }.write().map_err(failed("write the orders for"))?;
    let pipes = Pipes::new()?;
    let record = duplicate(options.record)?;
    let handed =
        [&orders, &record, &pipes.gate, &pipes.reports, &pipes.readies, &files.stdin, &files.output, &files.cwd];
    let handed: Vec<_> = handed.into_iter().chain(&files.kept).map(AsFd::as_fd).collect();
    let shim = spawn(options, &handed)?;
    drop((pipes.gate, pipes.reports, pipes.readies));
    started(shim, &pipes.ready, Gate::new(name, pipes.entrance, pipes.report), READY_FOR_THE_ENGINE, options)
}

fn failed(op: &'static str) -> impl Fn(Errno) -> KernelError {
    move |e| KernelError::Io { op, what: "the shim".into(), source: e.into() }
}

/// What the command is, and what it is called.
fn orders(argv: &[Vec<u8>], env: Vec<Vec<u8>>, options: &Options<'_>) -> Result<(Orders, String), KernelError> {
    let name = gate::command_text(argv);
    let (candidates, argv, env) = gate::c_strings_of(argv, env)?;
    let ShimLimits { isolated, data_bytes, tasks } = options.limits;
    Ok((Orders { detached: false, isolated, nofile: None, data_bytes, tasks, candidates, argv, env }, name))
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, KernelError> {
    fd.try_clone_to_owned().map_err(|source| KernelError::Io { op: "hand on", what: "the record".into(), source })
}

/// What a shim and its starter speak through.
struct Pipes {
    gate: OwnedFd,
    entrance: OwnedFd,
    report: OwnedFd,
    reports: OwnedFd,
    ready: OwnedFd,
    readies: OwnedFd,
}

impl Pipes {
    fn new() -> Result<Self, KernelError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe for"));
        let ((gate, entrance), (report, reports), (ready, readies)) = (pipe()?, pipe()?, pipe()?);
        Ok(Self { gate, entrance, report, reports, ready, readies })
    }
}

/// Waits until the command is behind its gate, and checks that it is what it is said to be.
fn started(
    shim: u32,
    ready: &OwnedFd,
    gate: Gate,
    within: Duration,
    options: &Options<'_>,
) -> Result<Started, KernelError> {
    let started = await_ready(ready, within)
        .and_then(|()| look(shim, options))
        .map(|(id, pidfd, main)| Started { shim: id, gated: Gated::new(pidfd, main, gate) });
    if started.is_err() {
        // Ours until we reap it. Its command, if there is one, sees its gate closed.
        let _ = process::open(shim).and_then(|pidfd| process::signal(pidfd, Signal::KILL));
    }
    started
}

/// Checks that the shim and its command are what the record says. Gives the shim, and the command.
fn look(shim: u32, options: &Options<'_>) -> Result<(ProcessId, OwnedFd, ProcessId), KernelError> {
    let entries = record::read(options.record).map_err(failed("read the record of"))?;
    let (Some(id), Some(main)) = (entries.shim, entries.main) else {
        return Err(failed("understand the record of")(Errno::INVAL));
    };
    let what = || format!("process {}", main.pid);
    let pidfd = process::open_known(main)?;
    // Seen to be below the shim that we started, so that what the record says is not taken on trust.
    if id.pid != shim || process::stat(main.pid)?.ppid != shim {
        return Err(KernelError::NotOurs { what: what(), why: format!("it is not a child of the shim {shim}") });
    }
    Ok((id, pidfd, main))
}

/// Executes the shim with these descriptors, whose numbers are its arguments. Gives its pid.
fn spawn(options: &Options<'_>, handed: &[BorrowedFd<'_>]) -> Result<u32, KernelError> {
    let failed = |source| KernelError::Io { op: "start", what: "the shim".to_owned(), source };
    let mut command = Command::new("/proc/self/exe");
    // What people see of it; the executable is named as it is because its own path may have been replaced.
    command.arg0("guardian").arg(VERB).arg(options.run.to_string());
    for fd in handed {
        // No other thread of ours starts a process, so that nothing else inherits it in this moment.
        fcntl_setfd(fd, FdFlags::empty()).map_err(|e| failed(e.into()))?;
        command.arg(fd.as_raw_fd().to_string());
    }
    command.env_clear().envs(std::env::var_os("FAILPOINTS").map(|f| ("FAILPOINTS", f)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    let child = command.spawn();
    // What stays ours must not be inherited by the next one.
    for fd in handed {
        let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    Ok(child.map_err(failed)?.id())
}

/// Waits until the shim says that its command is behind its gate, or why not.
fn await_ready(ready: &OwnedFd, within: Duration) -> Result<(), KernelError> {
    let failed = |text: String| KernelError::Io {
        op: "start",
        what: "the shim".to_owned(),
        source: std::io::Error::other(text),
    };
    let deadline = Instant::now() + within;
    let mut said = Vec::new();
    let mut part = [0; 512];
    // A line: the end of the pipe comes only when the gated child executes its command.
    while !said.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(ready, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(failed(format!("it is not ready after {} s", within.as_secs()))),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e.to_string())),
        }
        match read(ready, &mut part) {
            Ok(0) => break,
            Ok(n) => said.extend_from_slice(part.get(..n).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e.to_string())),
        }
    }
    match String::from_utf8_lossy(&said).trim_end() {
        super::READY => Ok(()),
        "" => Err(failed("it ended before it was ready".to_owned())),
        why => Err(failed(why.to_owned())),
    }
}
