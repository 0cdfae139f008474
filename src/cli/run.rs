//! `run`: a command as if guardian were not there, but contained, watched, and ended whole.
//!
//! ```text
//!  connect (start the instance) ─▶ ReserveRun ─▶ fork the gated child into its cgroup ─▶ AttachRun ─▶ open the gate
//!                                                               │ refused: the gate closes, nothing was executed
//!                                                               ▼
//!      ┌── the child exits: reap, ReportExit ◀──┐
//!      │── a signal to us: KillRun              ├── until WaitRun answers: the run is over, its cgroup empty
//!      └── the connection is lost: the next instance, wait again ┘
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::signal::{SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::args::RunArgs;
use super::output::{Output, escape, hint, note};
use super::session::Session;
use super::terminal::{Terminal, not_ignored};
use super::{OWN_FAILURE, ending, exit_code, launch, runtime};
use crate::bus::client::Client;
use crate::launch::gate::{self, Gated};
use crate::launch::orphans;
use crate::model::LaunchRequest;
use crate::model::{Error, ErrorKind, ExitStatus, KillMode, RunId, RunView};

/// `si_code` of a signal that the kernel sent: ^C typed on the terminal, not kill(2).
const SI_KERNEL: i32 = 0x80;
/// As often the next instance is looked for when the connection is lost.
const RECONNECTS: u32 = 5;

/// Runs the verb; its failures are 125, so that they are not taken for the command's.
pub fn main(args: &RunArgs, session: &Session, out: &Output) -> ExitCode {
    match run(args, session, out) {
        Ok(status) => exit_code(status),
        Err(e) => {
            note(escape(&e.message));
            if e.kind == ErrorKind::NotDelegated || e.kind == ErrorKind::Unavailable {
                hint("`guardian doctor` says what is missing");
            }
            exit_code(OWN_FAILURE)
        }
    }
}

fn run(args: &RunArgs, session: &Session, out: &Output) -> Result<i32, Error> {
    if let Some(cwd) = &args.cwd {
        std::env::set_current_dir(cwd)
            .map_err(|e| Error::invalid(format!("cannot change to the directory {}: {e}", cwd.display())))?;
    }
    let mut request = launch::request(args)?;
    let env = launch::environment(args)?;
    if args.detach {
        request.env = env;
        let run = runtime()?.block_on(session.ask(async |c: &Client| c.start(&request).await))?;
        out.line(run.to_string()).map_err(|e| Error::internal(e.to_string()))?;
        return Ok(0);
    }
    let terminal = Terminal::save();
    let signals = Signals::block()?;
    orphans::adopt().map_err(|e| Error::internal(format!("cannot adopt orphans: {e}")))?;
    let status = runtime()?.block_on(foreground(session, request, env, signals, terminal.as_ref()));
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    status
}

async fn foreground(
    session: &Session,
    request: LaunchRequest,
    env: Vec<Vec<u8>>,
    signals: Signals,
    terminal: Option<&Terminal>,
) -> Result<i32, Error> {
    let attach = async {
        let (client, run, cgroup) = reserve(session).await?;
        let child = gated(&request, env, run, cgroup.as_ref().map(AsFd::as_fd))?;
        let request = LaunchRequest { reserved: Some(run), ..request };
        client.attach(&request, child.pidfd().as_fd()).await?;
        Ok::<_, Error>((client, run, child))
    };
    let (client, run, mut child) = tokio::select! {
        attached = attach => attached?,
        // An instance that does not answer must not hold up ^C. The gate closes; an attached run ends with its process.
        signal = signals.first() => {
            let signal = signal?;
            note(format!("{signal} before the command was contained: it is not executed"));
            return Ok(128 + signal as i32);
        }
    };
    // The gate is a blocking read of a few microseconds; nothing else is going on in this thread yet.
    let executed = child.open(None);
    let main = child.id().pid;
    let view = Watch { session, run, main, signals, terminal }.until_over(client).await?;
    reap_all().await;
    if let Err(e) = executed {
        note(escape(&e.to_string()));
        return Ok(e.exit_status());
    }
    for notice in &view.notices {
        note(escape(notice));
    }
    ending::sentences(&view).iter().for_each(note);
    view.outcome
        .as_ref()
        .map(|o| o.exit_status())
        .ok_or_else(|| Error::internal(format!("{run} is over without outcome")))
}

/// Reaps what was orphaned and killed. The cgroup is empty a moment before its last processes are zombies; children that
/// we were started with, if any, live on.
async fn reap_all() {
    for _ in 0..20 {
        if !orphans::reap(|_, _| ()) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Connects and reserves the run. An idle instance may exit just then: the next one is asked.
async fn reserve(session: &Session) -> Result<(Client, RunId, Option<OwnedFd>), Error> {
    let reserve = async |client: Client| client.reserve().await.map(|(run, cgroup)| (client, run, cgroup));
    match reserve(session.connect().await?).await {
        Err(e) if e.kind == ErrorKind::Unavailable => reserve(session.connect().await?).await,
        reserved => reserved,
    }
}

/// The command behind its gate, with the run's id in its environment: the mark by which it is known.
fn gated(
    request: &LaunchRequest,
    mut env: Vec<Vec<u8>>,
    run: RunId,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Gated, Error> {
    env.retain(|e| !e.starts_with(b"GUARDIAN_RUN_ID="));
    env.push(format!("GUARDIAN_RUN_ID={run}").into_bytes());
    gate::foreground(&request.argv, env, cgroup)
        .map_err(|e| Error::new(ErrorKind::LaunchFailed, format!("cannot start a process: {e}")))
}

/// A run under way.
struct Watch<'a> {
    session: &'a Session,
    run: RunId,
    main: u32,
    signals: Signals,
    terminal: Option<&'a Terminal>,
}

impl Watch<'_> {
    async fn until_over(self, mut client: Client) -> Result<RunView, Error> {
        let internal = |e: io::Error| Error::internal(format!("cannot wait for the command: {e}"));
        let signals = readable(self.signals.0.as_fd()).map_err(internal)?;
        let id = self.run.to_string();
        let mut exited: Option<ExitStatus> = None;
        let mut wanted: Option<(KillMode, String)> = None;
        loop {
            // The news of an exit may have been read by who waited for the launch.
            orphans::reap(|pid, status| exited = exited.or((pid == self.main).then_some(status)));
            // What this instance has not heard yet: an earlier one may have died before it acted on it.
            if let Some(status) = exited {
                heard(client.report_exit(self.run, status).await)?;
            }
            if let Some((mode, reason)) = &wanted {
                heard(client.kill(&id, *mode, reason).await.map(drop))?;
            }
            let waiting = client.clone();
            let mut over = std::pin::pin!(waiting.wait(&id, None));
            let ended = loop {
                tokio::select! {
                    ended = &mut over => break ended,
                    ready = signals.readable() => {
                        ready.map_err(internal)?.clear_ready();
                        while let Some((signal, code)) = self.signals.next() {
                            if signal == Signal::SIGCHLD {
                                let before = exited;
                                orphans::reap(|pid, status| exited = exited.or((pid == self.main).then_some(status)));
                                if let Some(status) = exited.filter(|_| before.is_none()) {
                                    heard(client.report_exit(self.run, status).await)?;
                                }
                                continue;
                            }
                            let typed = signal == Signal::SIGINT && code == SI_KERNEL;
                            if typed && self.terminal.is_some_and(Terminal::command_handles_keys) {
                                continue;
                            }
                            // Whoever asks again has lost patience.
                            let mode = if wanted.is_some() { KillMode::Force } else { KillMode::Graceful };
                            let reason = if typed { "^C on the terminal".to_owned() } else { format!("{signal} to the client") };
                            heard(client.kill(&id, mode, &reason).await.map(drop))?;
                            wanted = Some((mode, reason));
                        }
                    }
                }
            };
            match ended {
                Ok(view) => return Ok(view),
                Err(e) if e.kind == ErrorKind::Unavailable => {
                    note(format!("{}: looking for the next instance", escape(&e.message)));
                    client = self.next_instance().await?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn next_instance(&self) -> Result<Client, Error> {
        let mut last = None;
        for attempt in 0..RECONNECTS {
            match self.session.connect().await {
                Ok(client) => return Ok(client),
                Err(e) => last = Some(e),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100 << attempt)).await;
        }
        let last = last.map(|e| e.message).unwrap_or_default();
        Err(Error::new(ErrorKind::Unavailable, format!("{} is no longer watched by anyone: {last}", self.run)))
    }
}

/// Passes over what cannot matter: a run that is over already, and an instance that is gone, which the wait notices.
fn heard(answer: Result<(), Error>) -> Result<(), Error> {
    match answer {
        Err(e) if !matches!(e.kind, ErrorKind::AlreadyFinished | ErrorKind::NoSuchRun | ErrorKind::Unavailable) => {
            Err(e)
        }
        _ => Ok(()),
    }
}

/// A descriptor of its own to wait for input on.
fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    // Deprecated because a type could close its descriptor early; its unsafe successor asks for a promise that an
    // OwnedFd keeps by itself.
    #[allow(deprecated)]
    AsyncFd::with_interest(fd.try_clone_to_owned()?, Interest::READABLE)
}

/// The signals that mean: end the run.
struct Signals(SignalFd);

impl Signals {
    fn block() -> Result<Self, Error> {
        let mut set = not_ignored(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        set.add(Signal::SIGCHLD);
        let failed = |e: nix::Error| Error::internal(format!("cannot take signals: {e}"));
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Self).map_err(failed)
    }

    /// The first signal that comes.
    async fn first(&self) -> Result<Signal, Error> {
        let failed = |e: io::Error| Error::internal(format!("cannot take signals: {e}"));
        let ready = readable(self.0.as_fd()).map_err(failed)?;
        loop {
            match self.next() {
                // The gated child cannot execute anything yet: whoever opens its gate will see that it is gone.
                Some((Signal::SIGCHLD, _)) => {}
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
}
