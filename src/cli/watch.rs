//! A foreground run under way: its client between the command, the instance, the terminal and whoever sends signals.
//!
//! ```text
//!      ┌── the command exits: reap, ReportExit ◀────────┐
//!      │── a signal to us: KillRun, or pass it on       ├── until WaitRun answers: the run is over, its cgroup empty
//!      │── the command stops: stop too, for the shell   │
//!      └── no answer: the next instance, and tell it all┘── or the command is over, and nobody answers
//! ```
//!
//! An instance that cannot be reached is no reason to leave: the command runs, and whoever waits for us waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getppid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::output::{escape, note};
use super::session::Session;
use super::terminal::{Terminal, not_ignored};
use crate::bus::client::Client;
use crate::launch::foreground::Child;
use crate::model::{Error, ErrorKind, ExitStatus, KillMode, Phase, RunId, RunView};

/// `si_code` of a signal that the kernel sent: ^C typed on the terminal, not kill(2).
const SI_KERNEL: i32 = 0x80;
/// How long a command has to act on a ^C that was typed, before it becomes a graceful kill.
const MOMENT: Duration = Duration::from_secs(1);
/// How long a command that is stopped is left to what stopped it, before it is taken to have stopped itself.
const STOPPED: Duration = Duration::from_millis(100);
/// So many failures in a row, some 3 s, and the command is said to be unwatched.
const FAILURES: u32 = 6;
/// How long an instance may take to hear of an exit or a kill: it answers in milliseconds, or a second for its record.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a foreground run came to its end.
#[derive(Debug)]
pub enum Ended {
    /// By a signal before its command was contained. Nothing was executed.
    BeforeItBegan(Signal),
    /// As the instance says.
    Over(Box<RunView>),
    /// Its command exited so, and no instance answered, for this reason.
    Unwatched(ExitStatus, String),
}

/// A run under way.
pub struct Watch<'a> {
    session: &'a Session,
    run: RunId,
    child: &'a Child,
    terminal: Option<&'a Terminal>,
    signals: Signals,
    readable: AsyncFd<OwnedFd>,
    exited: Option<ExitStatus>,
    /// How the run is to be ended, once anyone wants that, and why.
    wanted: Option<(KillMode, String)>,
    /// When a ^C that was left to the command becomes a kill.
    patience_ends: Option<tokio::time::Instant>,
    /// When to look whether the command, which was seen to be stopped, has stopped itself.
    stop_seen: Option<tokio::time::Instant>,
    failures: u32,
}

/// What came of the signals that were there to be read.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    exited: bool,
    wanted: bool,
}

impl<'a> Watch<'a> {
    /// The run of this contained child.
    pub fn new(
        session: &'a Session,
        run: RunId,
        child: &'a Child,
        signals: Signals,
        terminal: Option<&'a Terminal>,
    ) -> Result<Self, Error> {
        let readable = signals.readable().map_err(cannot_wait)?;
        Ok(Self {
            session,
            run,
            child,
            terminal,
            signals,
            readable,
            exited: None,
            wanted: None,
            patience_ends: None,
            stop_seen: None,
            failures: 0,
        })
    }

    /// Watches until the run is over.
    pub async fn until_over(mut self, client: Client) -> Result<Ended, Error> {
        let mut client = Ok(client);
        loop {
            let begun = Instant::now();
            let trouble = match client {
                Ok(client) => match self.with(&client).await {
                    Ok(view) => return Ok(Ended::Over(Box::new(view))),
                    Err(e) => e,
                },
                Err(e) => e,
            };
            self.failures = match trouble.kind {
                // One that hangs is not going to be followed by another.
                ErrorKind::TimedOut => self.failures.max(FAILURES),
                _ if begun.elapsed() > LONGEST_PAUSE * 2 => 1,
                _ => self.failures + 1,
            };
            match (self.exited, self.failures) {
                (Some(status), FAILURES..) => return Ok(Ended::Unwatched(status, trouble.message)),
                (_, 1) => note(format!("{}: looking for the next instance", escape(&trouble.message))),
                (_, FAILURES) => {
                    note(format!("{} is watched by no instance: {}", self.run, escape(&trouble.message)));
                    self.end_unwatched();
                }
                _ => {}
            }
            client = self.next_instance().await?;
        }
    }

    /// Waits for the end with this instance. An error is one of the instance: another may do better.
    async fn with(&mut self, client: &Client) -> Result<RunView, Error> {
        let id = self.run.to_string();
        // The news of an exit may have been read by who waited for the launch.
        self.reap();
        // What this instance has not heard yet: an earlier one may have died before it acted on it.
        let mut news = News { exited: self.exited.is_some(), wanted: self.wanted.is_some() };
        let mut over = std::pin::pin!(client.wait(&id, None));
        loop {
            if let Some(status) = self.exited.filter(|_| news.exited) {
                // The end may come with the answer, and is asked for meanwhile.
                let told = Self::heard(client.report_exit(self.run, status));
                tokio::select! {
                    biased;
                    told = told => told?,
                    ended = &mut over => return ended,
                }
            }
            if let Some((mode, reason)) = self.wanted.clone().filter(|_| news.wanted) {
                Self::heard(client.kill(&id, mode, &reason)).await?;
            }
            let at = |time: Option<tokio::time::Instant>| time.unwrap_or_else(tokio::time::Instant::now);
            let (patience, stop) = (at(self.patience_ends), at(self.stop_seen));
            news = tokio::select! {
                ended = &mut over => return ended,
                () = tokio::time::sleep_until(patience), if self.patience_ends.is_some() => self.out_of_patience(),
                () = tokio::time::sleep_until(stop), if self.stop_seen.is_some() => {
                    self.stop_seen = None;
                    if !Self::is_held(client, &id).await? {
                        self.stop_with_the_command();
                    }
                    News::default()
                }
                ready = self.readable.readable() => {
                    ready.map_err(cannot_wait)?.clear_ready();
                    self.news()
                }
            };
        }
    }

    /// Whether it is the instance that has stopped the processes: to freeze them, or to end them. In a subtree it does that
    /// by SIGSTOP, which looks like a command that stops itself.
    async fn is_held(client: &Client, id: &str) -> Result<bool, Error> {
        match tokio::time::timeout(PATIENCE, client.show(id)).await {
            Ok(Ok(view)) => Ok(view.frozen || view.phase >= Phase::Stopping),
            Ok(Err(e)) => Err(e),
            Err(_) => Ok(false),
        }
    }

    /// Tells the instance something, and passes over that the run is over already. An instance that is there and does not
    /// answer (stopped, or its thread in a call that hangs) would be waited for without end: it is as good as none.
    async fn heard<T>(told: impl Future<Output = Result<T, Error>>) -> Result<(), Error> {
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Err(e)) if !matches!(e.kind, ErrorKind::AlreadyFinished | ErrorKind::NoSuchRun) => Err(e),
            Ok(_) => Ok(()),
            Err(_) => {
                Err(Error::new(ErrorKind::TimedOut, format!("the instance did not answer in {} s", PATIENCE.as_secs())))
            }
        }
    }

    /// Connects to the next instance after a pause, which is longer each time. Meanwhile signals are for the command.
    async fn next_instance(&mut self) -> Result<Result<Client, Error>, Error> {
        let pause = Duration::from_millis(50 << self.failures.min(7)).min(LONGEST_PAUSE);
        let session = self.session;
        let connect = async {
            tokio::time::sleep(pause).await;
            session.connect().await
        };
        let mut connect = std::pin::pin!(connect);
        loop {
            tokio::select! {
                client = &mut connect => return Ok(client),
                ready = self.readable.readable() => {
                    ready.map_err(cannot_wait)?.clear_ready();
                    let news = self.news();
                    if news.wanted {
                        self.end_unwatched();
                    }
                    if news.exited && self.failures >= FAILURES {
                        return Ok(Err(Error::new(ErrorKind::Unavailable, "no instance could be started")));
                    }
                }
            }
        }
    }

    /// Ends the command as well as we can without an instance, which reaches the rest of the run.
    fn end_unwatched(&self) {
        match &self.wanted {
            Some((KillMode::Graceful, _)) if self.failures >= FAILURES => self.child.signal(Signal::SIGTERM),
            Some((KillMode::Force, _)) if self.failures >= FAILURES => self.child.signal(Signal::SIGKILL),
            _ => {}
        }
    }

    fn reap(&mut self) {
        self.exited = self.exited.or_else(|| self.child.reap());
    }

    /// Takes in every signal that came.
    fn news(&mut self) -> News {
        let mut news = News::default();
        let (mut children, mut continued) = (false, false);
        while let Some((signal, code)) = self.signals.next() {
            match signal {
                Signal::SIGCHLD => children = true,
                Signal::SIGCONT => continued = true,
                Signal::SIGUSR1 | Signal::SIGUSR2 => self.child.signal(signal),
                signal if self.is_the_commands(signal, code) => {}
                signal => {
                    // Whoever asks again has lost patience.
                    let mode = if self.wanted.is_some() { KillMode::Force } else { KillMode::Graceful };
                    let typed = signal == Signal::SIGINT && code == SI_KERNEL;
                    let reason =
                        if typed { "^C on the terminal".to_owned() } else { format!("{signal} to the client") };
                    self.wanted = Some((mode, reason));
                    news.wanted = true;
                }
            }
        }
        if children {
            let before = self.exited;
            self.reap();
            news.exited = before != self.exited;
        }
        self.stop_or_continue(children, continued);
        news
    }

    /// Whether a signal went to the command as well, which is to act on it: what is typed goes to the whole foreground
    /// process group. A program may catch ^C to tidy up, and terraform takes a SIGTERM that comes with it for a second ^C
    /// and gives up its state. So it has a moment first; a second ^C ends that.
    fn is_the_commands(&mut self, signal: Signal, code: i32) -> bool {
        if code != SI_KERNEL || self.wanted.is_some() || !self.command_is_in_our_group() {
            return false;
        }
        match signal {
            Signal::SIGQUIT => true,
            Signal::SIGINT if self.handles_keys() => true,
            Signal::SIGINT => {
                let again = self.patience_ends.is_some();
                self.patience_ends = (!again).then(|| tokio::time::Instant::now() + MOMENT);
                !again
            }
            _ => false,
        }
    }

    /// A full-screen program or a prompt reads keys as they come, and ^C is one of its own.
    fn handles_keys(&self) -> bool {
        self.terminal.is_some_and(Terminal::command_handles_keys)
    }

    /// The command is still there some time after ^C. One that has gone back to its prompt has acted on it.
    fn out_of_patience(&mut self) -> News {
        self.patience_ends = None;
        let wanted = self.wanted.is_none() && self.exited.is_none() && !self.handles_keys();
        if wanted {
            self.wanted = Some((KillMode::Graceful, "^C on the terminal".to_owned()));
        }
        News { wanted, ..News::default() }
    }

    fn command_is_in_our_group(&self) -> bool {
        self.exited.is_none() && getpgid(Some(self.main())) == Ok(getpgrp())
    }

    /// A command that stops itself alone (`suspend` of a shell, `~^Z` of ssh) stops the job: a shell with job control sees
    /// it by our stopping. SIGTSTP does nothing where no such shell is our parent. And whoever continues us means the
    /// command, which may be in a process group of its own.
    fn stop_or_continue(&mut self, children: bool, continued: bool) {
        if !(children || continued) || self.exited.is_some() || !self.child.is_stopped() {
            return;
        }
        if continued {
            self.child.signal(Signal::SIGCONT);
        } else if self.stop_seen.is_none() {
            self.stop_seen = Some(tokio::time::Instant::now() + STOPPED);
        }
    }

    fn stop_with_the_command(&self) {
        let is_job = self.terminal.is_some() && getpgid(Some(getppid())) != Ok(getpgrp());
        if is_job && self.exited.is_none() && self.child.is_stopped() {
            let _ = nix::sys::signal::kill(getpid(), Signal::SIGTSTP);
        }
    }

    fn main(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.pid()).unwrap_or(0))
    }
}

fn cannot_wait(e: io::Error) -> Error {
    Error::internal(format!("cannot wait for the command: {e}"))
}

/// The signals that we act on.
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks them, to be read from now on. Those that we were told to ignore stay ignored, by the command too.
    pub fn block() -> Result<Self, Error> {
        let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let passed_on = [Signal::SIGUSR1, Signal::SIGUSR2];
        let mut set = not_ignored(&[&ends[..], &passed_on[..]].concat());
        set.add(Signal::SIGCHLD);
        // Blocked, it still continues us.
        set.add(Signal::SIGCONT);
        let failed = |e: nix::Error| Error::internal(format!("cannot take signals: {e}"));
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Self).map_err(failed)
    }

    /// The first signal that means to end what has not begun.
    pub async fn first(&self) -> Result<Signal, Error> {
        let failed = |e: io::Error| Error::internal(format!("cannot take signals: {e}"));
        let ready = self.readable().map_err(failed)?;
        loop {
            match self.next() {
                // The gated child cannot execute anything yet: whoever opens its gate will see that it is gone.
                Some((Signal::SIGCHLD | Signal::SIGCONT, _)) => {}
                Some((signal, _)) => return Ok(signal),
                None => ready.readable().await.map_err(failed)?.clear_ready(),
            }
        }
    }

    /// The next signal that came, and its `si_code`.
    fn next(&self) -> Option<(Signal, i32)> {
        let info = self.0.read_signal().ok().flatten()?;
        let signal = Signal::try_from(info.ssi_signo as i32).ok()?;
        Some((signal, info.ssi_code))
    }

    /// A descriptor of its own to wait for signals on.
    fn readable(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let fd: BorrowedFd<'_> = self.0.as_fd();
        // Deprecated because a type could close its descriptor early; its unsafe successor asks for a promise that an
        // OwnedFd keeps by itself.
        #[allow(deprecated)]
        AsyncFd::with_interest(fd.try_clone_to_owned()?, Interest::READABLE)
    }
}
