//! `ps` and `history`: runs, a line each.

use std::time::Duration;

use super::args::{FilterArgs, HistoryArgs, PsArgs};
use super::output::{Output, clip, command_line, escape, health_tone, human_size, local_time};
use super::session::Session;
use super::{Done, json, now};
use crate::bus::client::Client;
use crate::bus::client::RunFilter;
use crate::model::{Health, Phase, RunView, Wall, human_duration};

/// The widest command in a table.
const COMMAND_WIDTH: usize = 60;
/// The widest status, as the run tells it.
const STATUS_WIDTH: usize = 30;

fn filter(args: &FilterArgs) -> RunFilter {
    let health = match args.health.as_deref() {
        Some("healthy") => Some(Health::Healthy),
        Some("warning") => Some(Health::Warning),
        Some("critical") => Some(Health::Critical),
        _ => None,
    };
    let since = args.since.map(|d| Wall(now().0.saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX))));
    RunFilter { workflow: args.workflow.clone(), health, since, all_users: args.all_users, ..RunFilter::default() }
}

/// Lists live runs, with `--all` finished ones too.
pub async fn ps(args: &PsArgs, session: &Session, out: &Output) -> Done {
    let phase = args.phase.as_deref().and_then(|p| Phase::ALL.into_iter().find(|phase| phase.as_str() == p));
    let finished = args.all || phase == Some(Phase::Finished);
    let filter = RunFilter { phase, finished, ..filter(&args.filter) };
    let views = session.ask(async |c: &Client| c.list(&filter).await).await?;
    if args.quiet {
        views.iter().try_for_each(|v| out.line(v.spec.id.to_string()))?;
    } else if out.json {
        out.json(&views.iter().map(json::run).collect())?;
    } else {
        out.table(HEADINGS, views.iter().map(|v| row(v, now(), out)).collect())?;
    }
    Ok(0)
}

/// Lists finished runs, newest first.
pub async fn history(args: &HistoryArgs, session: &Session, out: &Output) -> Done {
    let phase = Some(Phase::Finished);
    let filter = RunFilter { phase, finished: true, limit: args.limit, ..filter(&args.filter) };
    let views = session.ask(async |c: &Client| c.list(&filter).await).await?;
    if out.json {
        out.json(&views.iter().map(json::run).collect())?;
        return Ok(0);
    }
    let headings = ["RUN", "WORKFLOW", "CREATED", "TIME", "OUTCOME", "KILL", "COMMAND"];
    out.table(headings, views.iter().map(|v| finished_row(v, now())).collect())?;
    Ok(0)
}

/// A run that is over as a row of a table.
pub fn finished_row(v: &RunView, now: Wall) -> [String; 7] {
    [
        v.spec.id.to_string(),
        escape(&v.spec.workflow),
        local_time(v.created_at),
        lasted(v, now),
        v.outcome.as_ref().map(|o| clip(&escape(&o.to_string()), COMMAND_WIDTH)).unwrap_or_default(),
        v.receipt.as_ref().map(|r| r.to_string()).unwrap_or_default(),
        clip(&command_line(&v.spec.command), COMMAND_WIDTH),
    ]
}

/// The headings of [`row`].
pub const HEADINGS: [&str; 9] = ["RUN", "WORKFLOW", "PHASE", "HEALTH", "TIME", "CPU", "MEMORY", "STATUS", "COMMAND"];

/// A run as a row of a table.
pub fn row(v: &RunView, now: Wall, out: &Output) -> [String; 9] {
    let frozen = if v.frozen { " (frozen)" } else { "" };
    let phase = match &v.outcome {
        Some(outcome) => clip(&escape(&outcome.to_string()), COMMAND_WIDTH),
        None => format!("{}{frozen}", v.phase),
    };
    [
        v.spec.id.to_string(),
        escape(&v.spec.workflow),
        phase,
        out.tone(health_tone(v.health), v.health.as_str()),
        lasted(v, now),
        v.usage.cpu_usec.map_or_else(unknown, |u| human_duration(Duration::from_micros(u))),
        v.usage.memory_bytes.map_or_else(unknown, human_size),
        clip(&escape(&v.heartbeats.status), STATUS_WIDTH),
        clip(&command_line(&v.spec.command), COMMAND_WIDTH),
    ]
}

fn lasted(v: &RunView, now: Wall) -> String {
    let end = v.finished_at.unwrap_or(now);
    human_duration(Duration::from_micros(end.0.saturating_sub(v.created_at.0)))
}

/// What stands for a value that the kernel does not tell.
pub fn unknown() -> String {
    "-".to_owned()
}
