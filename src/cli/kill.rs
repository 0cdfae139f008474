//! `kill`: ends runs, and shows the receipts.

use super::args::KillArgs;
use super::output::{Output, escape, note};
use super::session::Session;
use super::{Done, show};
use crate::bus::client::Client;
use crate::json;
use crate::model::{Error, ErrorKind, KillAnswer, KillMode, Phase, RunView};

/// Ends the runs, all at once, and waits for each unless told not to. The exit status is that of the first that failed.
pub async fn main(args: &KillArgs, session: &Session, out: &Output) -> Done {
    let mode = if args.force { KillMode::Force } else { KillMode::Graceful };
    let mut failures = Vec::new();
    let mut kills = Vec::new();
    for run in &args.runs.runs {
        match session.ask(async |c: &Client| c.kill(run, mode, &args.reason).await).await {
            Ok(answer) => kills.push(answer),
            Err(e) => failures.push(e),
        }
    }
    let mut shown = Vec::new();
    for answer in &kills {
        if args.no_wait {
            match out.json {
                true => shown.push(json::kill(answer)),
                false => out.line(accepted(answer))?,
            }
            continue;
        }
        match over(answer, session).await {
            Ok(view) if out.json => shown.push(json::run(&view)),
            Ok(view) => text(&view, out)?,
            Err(e) => failures.push(e),
        }
    }
    if out.json {
        out.json(&shown.into())?;
    }
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return Ok(0) };
    failures.for_each(|e| note(escape(&e.message)));
    Err(first.into())
}

fn accepted(answer: &KillAnswer) -> String {
    let (actor, reason) = (escape(&answer.actor.to_string()), escape(&answer.reason.to_string()));
    format!("{}  {} kill by {actor} is on record: {reason}", answer.run, answer.mode)
}

/// The end of a run that is being killed; the instance may be restarted meanwhile.
async fn over(answer: &KillAnswer, session: &Session) -> Result<RunView, Error> {
    let id = answer.run.to_string();
    let view = session.ask(async |c: &Client| c.wait(&id, None).await).await?;
    if view.phase != Phase::Finished {
        return Err(Error::new(ErrorKind::Internal, format!("{id} is still {} after its end was awaited", view.phase)));
    }
    Ok(view)
}

fn text(view: &RunView, out: &Output) -> std::io::Result<()> {
    let outcome = view.outcome.as_ref().map(|o| escape(&o.to_string())).unwrap_or_default();
    out.line(format!("{}  {outcome}", view.spec.id))?;
    let lines = view.receipt.as_ref().map(show::receipt_lines).unwrap_or_default();
    lines.iter().try_for_each(|line| out.line(format!("  {line}")))
}
