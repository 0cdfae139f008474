//! `run`: a command as if guardian were not there, but contained, watched, and ended whole.
//!
//! ```text
//!  connect (start the instance) ─▶ ReserveRun ─▶ fork the gated child into its cgroup ─▶ AttachRun ─▶ open the gate
//!                                                               │ refused: the gate closes, nothing was executed
//!                                                               ▼
//!                                          watch, until the run is over and its cgroup empty
//! ```

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use super::args::RunArgs;
use super::output::{Output, complain, escape, hint, note};
use super::session::Session;
use super::terminal::Terminal;
use super::watch::{Ended, Signals, Watch};
use super::{OWN_FAILURE, ending, exit_code, launch, runtime};
use crate::bus::client::Client;
use crate::launch::foreground::Child;
use crate::launch::gate::ExecError;
use crate::launch::orphans;
use crate::model::{Error, ErrorKind, ExitStatus, LaunchRequest, Outcome, Reserved, RunId, RunView};

/// How long to wait until the command is executed. A file on a network that hangs, or a run that is frozen at once, must
/// not keep us from hearing ^C; how it ends tells whether it was executed.
const EXEC_WAIT: Duration = Duration::from_secs(1);

/// How long a command may take to be contained before it is said that it is queued.
const QUEUE_NOTE: Duration = Duration::from_millis(300);

/// How long a run that was not contained may take to be over.
const END: Duration = Duration::from_secs(5);

/// How often a detached run is launched whose instance dies before it has begun it.
const LAUNCHES: u32 = 3;

/// Runs the verb; its failures are 125, so that they are not taken for the command's.
pub fn main(args: &RunArgs, session: &Session, out: &Output) -> ExitCode {
    match run(args, session, out) {
        Ok(status) => exit_code(status),
        Err(e) => {
            complain(&e.message);
            if e.kind == ErrorKind::NotDelegated || e.kind == ErrorKind::Unavailable {
                hint("`guardian doctor` says what is missing");
            }
            exit_code(OWN_FAILURE)
        }
    }
}

fn run(args: &RunArgs, session: &Session, out: &Output) -> Result<i32, Error> {
    let prompt = match &args.executor.prompt_file {
        Some(file) if args.detach => Some(launch::prompt(file)?),
        Some(file) => launch::prompt_as_input(file).map(|()| None)?,
        None => None,
    };
    if let Some(cwd) = &args.cwd {
        std::env::set_current_dir(cwd)
            .map_err(|e| Error::invalid(format!("cannot change to the directory {}: {e}", cwd.display())))?;
    }
    let request = launch::request(args)?;
    let env = launch::environment(args)?;
    if args.detach {
        let run = runtime()?.block_on(detached(session, LaunchRequest { env, prompt, ..request }))?;
        out.line(run.to_string()).map_err(|e| Error::internal(e.to_string()))?;
        return Ok(0);
    }
    let terminal = Terminal::save();
    let signals = Signals::block()?;
    orphans::adopt().map_err(|e| Error::internal(format!("cannot adopt orphans: {e}")))?;
    let ended = runtime()?.block_on(foreground(session, request, env, signals, terminal.as_ref()));
    // Before anything is said: what is written to a terminal in raw mode cannot be read.
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    tell(ended?)
}

/// What a foreground run came to.
struct Came {
    run: Option<RunId>,
    /// Whether its command was executed.
    executed: Result<(), ExecError>,
    ended: Ended,
    /// How many of its notices were told when it began.
    told: usize,
}

/// Says how the run ended, if there is something to say, and gives its exit status.
fn tell(Came { run, executed, ended, told }: Came) -> Result<i32, Error> {
    if let Err(e) = executed {
        complain(&e.to_string());
        return Ok(e.exit_status());
    }
    let run = run.map(|run| run.to_string()).unwrap_or_default();
    match ended {
        Ended::BeforeItBegan(signal) => {
            note(format!("{signal} before the command was contained: it is not executed"));
            Ok(128 + signal as i32)
        }
        Ended::Over(view) => {
            tell_notices(&view, told);
            ending::sentences(&view).iter().for_each(note);
            let outcome = view.outcome.as_ref();
            outcome.map(|o| o.exit_status()).ok_or_else(|| Error::internal(format!("{run} is over without outcome")))
        }
        Ended::Unwatched(status, why) => {
            note(format!("the command of {run} ended while no instance watched it: {}", escape(&why)));
            hint("processes that it left behind, if any, are ended by the next instance: `guardian ps` starts it");
            Ok(match status {
                ExitStatus::Exited(code) => code,
                ExitStatus::Signaled(signal) => 128 + signal,
            })
        }
    }
}

/// Tells what could not be done as asked, but for what was told before. Gives how many there are.
fn tell_notices(view: &RunView, told: usize) -> usize {
    for notice in view.notices.iter().skip(told) {
        note(escape(notice));
    }
    view.notices.len()
}

/// Tells of limits that are not in force, if there are any limits: before the command is executed, or just after that.
async fn tell_limits(client: &Client, reserved: &Reserved) -> Result<usize, Error> {
    match reserved.limited {
        true => client.show(&reserved.run.to_string()).await.map(|view| tell_notices(&view, 0)),
        false => Ok(0),
    }
}

/// Starts a detached run, once: the id that was reserved tells whether an instance that died had begun it.
async fn detached(session: &Session, mut request: LaunchRequest) -> Result<RunId, Error> {
    let mut last = None;
    for _ in 0..LAUNCHES {
        let (client, reserved, _) = reserve(session, &request).await?;
        let run = reserved.run;
        request.reserved = Some(run);
        match client.start(&request).await {
            Err(e) if e.kind == ErrorKind::Unavailable => last = Some(e),
            Err(e) => return Err(e),
            Ok(run) => {
                // It runs, whether they can be told or not.
                let _ = tell_limits(&client, &reserved).await;
                return Ok(run);
            }
        }
        match session.connect().await?.show(&run.to_string()).await {
            Ok(view) => {
                return match view.outcome {
                    Some(Outcome::Lost { why }) => Err(Error::new(ErrorKind::LaunchFailed, format!("{run}: {why}"))),
                    _ => Ok(run),
                };
            }
            Err(e) if e.kind == ErrorKind::NoSuchRun => {}
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| Error::internal("nothing was launched")))
}

/// What came of having the command contained.
enum Attached {
    /// It is contained, and so many of its notices were told.
    Live(Client, RunId, Child, usize),
    /// It was ended while it was queued.
    GivenUp(Box<RunView>),
}

/// Whether a run was ended while it was queued.
fn was_given_up(view: &RunView) -> bool {
    matches!(view.outcome, Some(Outcome::Killed { .. })) && view.started_at.is_none() && view.receipt.is_none()
}

/// Contains, executes and watches the command.
async fn foreground(
    session: &Session,
    request: LaunchRequest,
    env: Vec<Vec<u8>>,
    signals: Signals,
    terminal: Option<&Terminal>,
) -> Result<Came, Error> {
    let attach = async {
        let mut lost = 0;
        loop {
            let (client, reserved, container) = reserve(session, &request).await?;
            let run = reserved.run;
            let child = Child::start(&request, env.clone(), &reserved, container)?;
            match wait_for_turn(&client, &LaunchRequest { reserved: Some(run), ..request.clone() }, &child).await {
                (Ok(()), _) => {
                    let told = tell_limits(&client, &reserved).await.unwrap_or(0);
                    return Ok::<_, Error>(Attached::Live(client, run, child, told));
                }
                // Ended while it was queued: that is how it ended, and no failure of ours.
                (Err(e), _) if e.kind == ErrorKind::LaunchFailed => {
                    match client.wait(&run.to_string(), Some(END)).await {
                        Ok(view) if was_given_up(&view) => return Ok(Attached::GivenUp(Box::new(view))),
                        _ => return Err(e),
                    }
                }
                // The gate closes. Nothing was executed, and it stands at the end of the next instance's queue.
                (Err(e), true) if e.kind == ErrorKind::Unavailable && lost < LAUNCHES => lost += 1,
                (Err(e), _) => return Err(e),
            }
        }
    };
    let (client, run, mut child, told) = tokio::select! {
        attached = attach => match attached? {
            Attached::Live(client, run, child, told) => (client, run, child, told),
            Attached::GivenUp(view) => {
                let (run, told) = (Some(view.spec.id), view.notices.len());
                return Ok(Came { run, executed: Ok(()), ended: Ended::Over(view), told });
            }
        },
        // An instance that does not answer must not hold up ^C. The gate closes; an attached run ends with its process.
        signal = signals.first() => {
            return Ok(Came { run: None, executed: Ok(()), ended: Ended::BeforeItBegan(signal?), told: 0 });
        }
    };
    let executed = child.open(Some(EXEC_WAIT));
    let ended = Watch::new(session, run, &child, signals, terminal)?.until_over(client).await?;
    if !reap_all().await {
        tell_of_escapees(run);
    }
    Ok(Came { run: Some(run), executed, ended, told })
}

/// Has the command contained, and waits for its turn where as many runs as may run at once do so. Whether it had to wait is
/// given too.
async fn wait_for_turn(client: &Client, request: &LaunchRequest, child: &Child) -> (Result<(), Error>, bool) {
    let attach = client.attach(request, child.pidfd());
    tokio::pin!(attach);
    tokio::select! {
        attached = &mut attach => return (attached.map(drop), false),
        () = tokio::time::sleep(QUEUE_NOTE) => {}
    }
    let run = request.reserved.map(|run| run.to_string()).unwrap_or_default();
    let is_queued = match client.show(&run).await {
        Ok(RunView { queued: Some(queued), .. }) => {
            note(format!("{run} is queued: {}", escape(&queued.why)));
            true
        }
        _ => false,
    };
    (attach.await.map(drop), is_queued)
}

/// Reaps what was orphaned and killed. The cgroup is empty a moment before its last processes are zombies; children that
/// we were started with, if any, live on, and then this is false.
async fn reap_all() -> bool {
    for _ in 0..20 {
        if !orphans::reap(|_, _| ()) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    false
}

/// The receipt speaks of the run's cgroup. What left it is not killed, but it is not passed over either.
fn tell_of_escapees(run: RunId) {
    for (pid, name) in orphans::marked(run) {
        note(format!("{} (pid {pid}) left the cgroup of {run} before that was ended, and lives on", escape(&name)));
        hint(format!("`kill {pid}` ends it; a run cannot be held by its cgroup where it may write to others"));
    }
}

/// Connects and reserves the run. An idle instance may exit just then: the next one is asked.
async fn reserve(session: &Session, request: &LaunchRequest) -> Result<(Client, Reserved, Option<OwnedFd>), Error> {
    let request = LaunchRequest { env: Vec::new(), reserved: None, prompt: None, ..request.clone() };
    let reserve = async |client: Client| {
        let reserved = client.reserve(&request).await;
        reserved.map(|(reserved, container)| (client, reserved, container))
    };
    match reserve(session.connect().await?).await {
        Err(e) if e.kind == ErrorKind::Unavailable => reserve(session.connect().await?).await,
        reserved => reserved,
    }
}
