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

/// Starts a shim for the client of a foreground run, whose terminal, directory and descriptors its command inherits.
pub fn foreground(argv: &[Vec<u8>], env: Vec<Vec<u8>>, options: &Options<'_>) -> Result<Started, KernelError> {
    start(argv, env, None, None, options)
}

/// Starts a shim for a detached run. `nofile` are the limits of open descriptors to give its command.
pub fn detached(exec: &Exec, nofile: Option<(u64, u64)>, options: &Options<'_>) -> Result<Started, KernelError> {
    let files = gate::Files::of(exec)?;
    start(&exec.argv, exec.env.clone(), Some(&files), nofile, options)
}

fn start(
    argv: &[Vec<u8>],
    env: Vec<Vec<u8>>,
    files: Option<&gate::Files>,
    nofile: Option<(u64, u64)>,
    options: &Options<'_>,
) -> Result<Started, KernelError> {
    let failed = |op: &'static str| move |e: Errno| KernelError::Io { op, what: "the shim".into(), source: e.into() };
    let name = gate::command_text(argv);
    let (candidates, argv, env) = gate::c_strings_of(argv, env)?;
    let orders = Orders {
        detached: files.is_some(),
        isolated: options.limits.isolated,
        nofile,
        data_bytes: options.limits.data_bytes,
        tasks: options.limits.tasks,
        candidates,
        argv,
        env,
    };
    let orders = orders.write().map_err(failed("write the orders for"))?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe for"));
    let ((gate, entrance), (report, reports), (ready, readies)) = (pipe()?, pipe()?, pipe()?);
    let record = options.record.try_clone_to_owned().map_err(|source| KernelError::Io {
        op: "hand on",
        what: "the record".into(),
        source,
    })?;
    let mut handed: Vec<BorrowedFd<'_>> =
        vec![orders.as_fd(), record.as_fd(), gate.as_fd(), reports.as_fd(), readies.as_fd()];
    if let Some(files) = files {
        handed.extend([files.stdin.as_fd(), files.output.as_fd(), files.cwd.as_fd()]);
    }
    let shim = spawn(options, files.is_some(), &handed)?;
    drop((orders, record, gate, reports, readies));
    let within = if files.is_some() { READY_FOR_THE_ENGINE } else { READY };
    let started = await_ready(&ready, within).and_then(|()| look(shim, options)).map(|(id, pidfd, main)| Started {
        shim: id,
        gated: Gated::new(pidfd, main, Gate::new(name, entrance, report)),
    });
    if started.is_err() {
        // Ours until we reap it. Its command, if there is one, sees its gate closed.
        let _ = process::open(shim).and_then(|pidfd| process::signal(pidfd, Signal::KILL));
    }
    started
}

/// Checks that the shim and its command are what the record says. Gives the shim, and the command.
fn look(shim: u32, options: &Options<'_>) -> Result<(ProcessId, OwnedFd, ProcessId), KernelError> {
    let failed = |op: &'static str| move |e: Errno| KernelError::Io { op, what: "the shim".into(), source: e.into() };
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
fn spawn(options: &Options<'_>, detached: bool, handed: &[BorrowedFd<'_>]) -> Result<u32, KernelError> {
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
    if detached {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    }
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
