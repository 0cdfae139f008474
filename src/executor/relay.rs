//! The relay: the main process of a run whose executor reads its progress.
//!
//! ```text
//!   gate ── execve ─▶ relay SPEC -- CMD …
//!                       │ fork, execve ─▶ CMD: standard input and error are the run's, standard output is a pipe
//!                       │ the report of the gate ends, or has the errno: as if CMD itself had been behind it
//!                       ├─ copier: pipe ─▶ standard output ─▶ reader ─▶ report
//!                       └─ signals, the end of CMD, messages to the instance
//! ```
//!
//! Signals to it are passed on to CMD, but for those that CMD gets as well: what is typed on the terminal goes to the whole
//! process group, and an instance or systemd that ends the run signals every process of it. None of them ends the relay
//! before CMD has ended. When CMD has, what is in the pipe by then is passed on, and nothing more is waited for: a server that
//! CMD has left behind keeps the pipe open. Then the relay ends as CMD did.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, write};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use super::passing::{Flag, pass_on};
use super::reader::Stream;
use super::sender::Sender;
use super::{Executor, command, handed, signals};
use crate::model::RELAY_NAME;

/// The hidden verb of the executables.
pub const VERB: &str = "relay";
/// What is executed for it: this very executable, whatever is at its path by now.
pub const PROGRAM: &str = "/proc/self/exe";
/// The variable that names the descriptor of the gate's report.
pub const REPORT: &str = "GUARDIAN_REPORT_FD";

/// What the relay exits with when it was not started as one.
const NOT_STARTED: u8 = 125;
/// What comes before the command among the arguments.
const BEFORE: usize = 4;

/// The signals that are passed on. Those that stop and continue are not taken: they go to the process group.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// `si_code` of a signal that the kernel sent.
const SI_KERNEL: i32 = 0x80;

/// The command line of the relay for this command.
pub fn command_line(spec: &str, command: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let before = [PROGRAM, VERB, spec, "--"].map(|word| word.as_bytes().to_vec());
    before.into_iter().chain(command).collect()
}

/// The command of a relay's command line; of any other the whole.
pub fn command_of(argv: &[Vec<u8>]) -> &[Vec<u8>] {
    let is_relay = is_relay(argv.iter().map(Vec::as_slice));
    argv.get(BEFORE..).filter(|_| is_relay).unwrap_or(argv)
}

/// Whether these words are the command line of a relay.
pub fn is_relay<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> bool {
    let begins = words.next() == Some(PROGRAM.as_bytes()) && words.next() == Some(VERB.as_bytes());
    begins && words.nth(1) == Some(b"--") && words.next().is_some()
}

/// Serves as the relay if the arguments say so. None: this is another verb.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.nth(1).is_none_or(|verb| verb != VERB) {
        return None;
    }
    let spec = arguments.next().unwrap_or_default();
    let argv: Vec<OsString> = arguments.skip_while(|word| word == "--").collect();
    // Started by way of /proc/self/exe, it would be `exe` to ps and pgrep.
    let _ = rustix::thread::set_name(RELAY_NAME);
    Some(serve(&spec.to_string_lossy(), &argv).unwrap_or_else(|e| {
        eprintln!("guardian: the relay: {e}");
        ExitCode::from(NOT_STARTED)
    }))
}

fn serve(spec: &str, argv: &[OsString]) -> Result<ExitCode, String> {
    let report = taken_report();
    let executor = Executor::from_spec(spec)?;
    let Some((program, rest)) = argv.split_first() else { return Err("it is given no command".to_owned()) };
    let mut stream = Stream::of(executor).ok_or("the executor has nothing to read")?;
    stream.report.turns_max = command::turns_max(argv);
    let failed = |what: &'static str| move |e: io::Error| format!("cannot {what}: {e}");
    let taken = take_signals().map_err(failed("take signals"))?;
    let (reading, writing) = io::pipe().map_err(failed("make a pipe"))?;
    let reading = OwnedFd::from(reading);
    let nonblocking = fcntl_getfl(&reading).and_then(|flags| fcntl_setfl(&reading, flags | OFlags::NONBLOCK));
    nonblocking.map_err(|e| failed("set up a pipe")(e.into()))?;
    let mut child = Command::new(program);
    child.args(rest).stdout(writing).stdin(Stdio::inherit()).stderr(Stdio::inherit()).env_remove(REPORT);
    signals::none_blocked(&mut child);
    let spawned = child.spawn();
    // It holds the pipe's other end.
    drop(child);
    match spawned {
        Ok(child) => {
            drop(report);
            relay(child, reading, stream, &taken).map_err(failed("watch the command"))
        }
        Err(e) => Ok(refuse(report, program, &e)),
    }
}

/// The gate's report, which was handed on to us and to nobody else.
fn taken_report() -> Option<OwnedFd> {
    handed::descriptor(std::env::var(REPORT).ok()?.parse().ok()?)
}

/// Says why nothing was executed: to the gate, whose keeper tells it in its own words; else on the standard error. Exits with
/// the status that a shell would have.
fn refuse(report: Option<OwnedFd>, program: &OsStr, error: &io::Error) -> ExitCode {
    let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
    let told = report.is_some_and(|report| write(&report, &errno.to_ne_bytes()).is_ok());
    if !told {
        eprintln!("guardian: cannot execute {}: {error}", program.to_string_lossy());
    }
    ExitCode::from(if errno == nix::libc::ENOENT { 127 } else { 126 })
}

/// Blocks the signals that are passed on, before there is another thread or a child.
fn take_signals() -> io::Result<SignalFd> {
    let taken: SigSet = PASSED_ON.into_iter().collect();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&taken), None)?;
    Ok(SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// What the copier and the rest share.
struct Shared {
    stream: Mutex<Stream>,
    /// There is something to tell.
    news: Flag,
    /// The command has ended.
    ended: Flag,
    /// The copier has, too.
    passed_on: Flag,
}

fn relay(child: Child, pipe: OwnedFd, stream: Stream, taken: &SignalFd) -> io::Result<ExitCode> {
    let shared =
        Shared { stream: Mutex::new(stream), news: Flag::new()?, ended: Flag::new()?, passed_on: Flag::new()? };
    let shared = Arc::new(shared);
    let copier = shared.clone();
    std::thread::Builder::new().name("copier".to_owned()).spawn(move || copy(pipe, &copier))?;
    let pidfd =
        Pid::from_raw(child.id() as i32).ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))?;
    let sender = std::env::var_os("NOTIFY_SOCKET").and_then(|name| Sender::to(&name));
    Relay { child, pidfd, shared, sender, untold: false, told: false }.serve(taken)
}

/// The copier's life.
fn copy(pipe: OwnedFd, shared: &Shared) {
    let mut reads = true;
    let mut read = |read: &dyn Fn(&mut Stream) -> bool| {
        let stream = || read(&mut shared.stream.lock().unwrap_or_else(PoisonError::into_inner));
        // Whatever goes wrong in reading, the output is passed on.
        match reads.then(|| catch_unwind(AssertUnwindSafe(stream))) {
            Some(Ok(true)) => shared.news.set(),
            Some(Err(_)) => reads = false,
            Some(Ok(false)) | None => {}
        }
    };
    let output = io::stdout();
    let passed = pass_on(pipe, output.as_fd(), &shared.ended, |piece| read(&|stream| stream.feed(piece)));
    read(&Stream::end);
    match passed {
        // As the command would be, it is told by the pipe alone.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("guardian: the relay: cannot pass the output on: {e}")
        }
        _ => {}
    }
    shared.passed_on.set();
}

struct Relay {
    child: Child,
    pidfd: OwnedFd,
    shared: Arc<Shared>,
    sender: Option<Sender>,
    /// There is something that was not told yet.
    untold: bool,
    /// Something was.
    told: bool,
}

impl Relay {
    fn serve(mut self, taken: &SignalFd) -> io::Result<ExitCode> {
        let mut status = None;
        loop {
            self.tell();
            let timeout = self.sender.as_ref().filter(|_| self.untold).map(|sender| {
                let wait = sender.wait();
                Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() }
            });
            let shared = self.shared.clone();
            // An output that nobody reads any more is the command's to notice, so that the copier may have ended before it.
            let ending = if status.is_none() { self.pidfd.as_fd() } else { shared.passed_on.fd() };
            let awaited = [shared.news.fd(), taken.as_fd(), ending];
            let mut fds = awaited.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            while let Ok(Some(info)) = taken.read_signal() {
                match status {
                    None => self.pass_on(&info),
                    // The command is gone; nobody reads what it wrote last.
                    Some(status) if ends(&info) => return Ok(signals::as_the_command(status)),
                    Some(_) => {}
                }
            }
            if status.is_none() {
                status = self.child.try_wait()?;
                if status.is_some() {
                    shared.ended.set();
                }
            }
            if let Some(status) = status
                && shared.passed_on.is_set()
            {
                self.finish();
                return Ok(signals::as_the_command(status));
            }
        }
    }

    /// Tells what there is to tell, if it is time.
    fn tell(&mut self) {
        self.untold |= self.shared.news.take();
        let Some(sender) = self.sender.as_mut().filter(|sender| self.untold && sender.wait().is_zero()) else { return };
        let message = self.shared.stream.lock().unwrap_or_else(PoisonError::into_inner).report.message();
        self.untold = !sender.send(&message);
        self.told |= !self.untold;
    }

    fn finish(&mut self) {
        self.untold |= self.shared.news.take();
        let Some(sender) = self.sender.as_mut().filter(|_| self.told || self.untold) else { return };
        let message = self.shared.stream.lock().unwrap_or_else(PoisonError::into_inner).report.message();
        sender.finish(self.untold.then_some(message.as_str()));
    }

    fn pass_on(&self, info: &siginfo) {
        let signal = i32::try_from(info.ssi_signo).ok().and_then(rustix::process::Signal::from_named_raw);
        if let Some(signal) = signal.filter(|_| !is_everybodys(info)) {
            let _ = pidfd_send_signal(&self.pidfd, signal);
        }
    }
}

/// Whether the command gets the signal as well: it was typed, or comes from who signals every process of the run. That is an
/// instance or systemd, one that another PID namespace has (number 0) included. To be wrong is a signal too many.
fn is_everybodys(info: &siginfo) -> bool {
    let is_a_keeper = || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", info.ssi_pid)).unwrap_or_default();
        matches!(name.trim_end(), "guardiand" | "systemd")
    };
    info.ssi_code == SI_KERNEL || info.ssi_pid <= 1 || is_a_keeper()
}

/// Whether the signal ends a process that does nothing about it.
fn ends(info: &siginfo) -> bool {
    let ending = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
    ending.iter().any(|signal| i32::try_from(info.ssi_signo) == Ok(*signal as i32))
}
