//! The output of a run that systemd started: journalctl(1) reads it, with the rights of who asks.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::args::LogsArgs;
use super::super::session::Session;
use super::{BLOCK, Done, FOLLOW, Screen};
use crate::bus::client::Client;
use crate::model::{Error, ErrorKind, Phase, RunView};

/// The time that the last lines of a run may take to arrive once it is over: journald writes them as it comes to it.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Shows what the journal has of a run, and follows it until the run is over.
pub async fn main(view: &RunView, args: &LogsArgs, session: &Session) -> Done {
    let unit = format!("guardian-{}.service", view.spec.id);
    let follow = args.follow && view.phase != Phase::Finished;
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--all", "--output=cat"]);
    command.arg(args.lines.map_or_else(|| "--lines=all".to_owned(), |n| format!("--lines={n}")));
    if follow {
        command.arg("--follow");
    }
    // Of the host's manager, whose word journald takes for the unit; or of the user's, where its name in the journal tells.
    command.args([&format!("_SYSTEMD_UNIT={unit}"), "_TRANSPORT=stdout", "+"]);
    let (id, uid) = (view.spec.id, view.spec.uid);
    command.args([&format!("SYSLOG_IDENTIFIER={id}"), &format!("_UID={uid}"), "_TRANSPORT=stdout"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|e| {
        Error::new(
            ErrorKind::Unavailable,
            format!("the output is in the journal, and journalctl cannot be executed: {e}"),
        )
    })?;
    if !follow {
        let (status, shown) = pass_on(child, &AtomicBool::new(false))?;
        if !shown && status == 0 && !nix::unistd::geteuid().is_root() {
            super::super::output::hint(
                "nothing of it can be seen: it wrote nothing, or only root and the groups adm and systemd-journal may read it",
            );
        }
        return Ok(status);
    }
    let (id, over) = (view.spec.id.to_string(), Arc::new(AtomicBool::new(false)));
    let seen = over.clone();
    let reading = tokio::task::spawn_blocking(move || pass_on(child, &seen));
    loop {
        match session.ask(async |c: &Client| c.wait(&id, Some(FOLLOW)).await).await {
            Err(e) if e.kind == ErrorKind::TimedOut && !reading.is_finished() => {}
            Err(e) if e.kind != ErrorKind::TimedOut => return Err(e.into()),
            _ => break,
        }
    }
    over.store(true, Ordering::Relaxed);
    let (status, _) = reading.await.map_err(|e| Error::internal(e.to_string()))??;
    Ok(status)
}

/// Passes on what journalctl writes, until it ends, or until nothing has come for a while after the run was over. Gives its
/// exit status, and whether there was anything.
fn pass_on(mut child: Child, over: &AtomicBool) -> io::Result<(i32, bool)> {
    let Some(mut from) = child.stdout.take() else { return Ok((1, false)) };
    let mut screen = Screen::of_stdout();
    let mut block = vec![0; BLOCK];
    let (mut last, mut shown) = (Instant::now(), false);
    loop {
        let mut fds = [rustix::event::PollFd::new(&from, rustix::event::PollFlags::IN)];
        let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        if rustix::event::poll(&mut fds, Some(&tick)).is_ok_and(|ready| ready > 0) {
            let n = from.read(&mut block)?;
            if n == 0 {
                return Ok((child.wait()?.code().unwrap_or(1), shown));
            }
            let mut out = io::stdout().lock();
            let written =
                if screen.inert { out.write_all(&screen.pass(&block[..n])) } else { out.write_all(&block[..n]) };
            if let Err(e) = written.and_then(|()| out.flush()) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
            (last, shown) = (Instant::now(), true);
        } else if over.load(Ordering::Relaxed) && last.elapsed() > LAST_LINES {
            child.kill()?;
            child.wait()?;
            return Ok((0, shown));
        }
    }
}
