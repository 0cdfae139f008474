//! `ps` and `history`: runs, a line each.

use std::time::Duration;

use super::args::{FilterArgs, HistoryArgs, PsArgs};
use super::output::{Output, clip, command_line, escape, health_tone, human_size, local_time};
use super::session::Session;
use super::{Done, csv, now};
use crate::bus::client::Client;
use crate::bus::client::RunFilter;
use crate::json;
use crate::model::{Dollars, Health, Phase, RunView, Wall, human_duration};

/// The widest command in a table.
const COMMAND_WIDTH: usize = 60;
/// The widest status, as the run tells it.
const STATUS_WIDTH: usize = 30;

/// The runs that the options name.
pub fn filter(args: &FilterArgs) -> RunFilter {
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
    let mut views = session.ask(async |c: &Client| c.list(&filter).await).await?;
    // Those that are queued in the order of their places, behind the others.
    views.sort_by_key(|view| view.queued.as_ref().map_or(0, |queued| queued.position));
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
    if args.csv {
        csv::write(CSV_HEADINGS, views.iter().map(csv_row))?;
        return Ok(0);
    }
    if views.iter().any(|v| v.progress.is_some()) {
        let headings = ["RUN", "WORKFLOW", "CREATED", "TIME", "OUTCOME", "KILL", "TURNS", "COST", "COMMAND"];
        out.table(headings, views.iter().map(|v| finished_agent_row(v, now())).collect())?;
        return Ok(0);
    }
    let headings = ["RUN", "WORKFLOW", "CREATED", "TIME", "OUTCOME", "KILL", "COMMAND"];
    out.table(headings, views.iter().map(|v| finished_row(v, now())).collect())?;
    Ok(0)
}

/// The same of runs of which some are agents.
fn finished_agent_row(v: &RunView, now: Wall) -> [String; 9] {
    let [run, workflow, created, time, outcome, kill, command] = finished_row(v, now);
    let progress = v.progress.as_ref();
    let turns = progress.map_or_else(unknown, |p| p.turns.to_string());
    let cost = progress.and_then(|p| p.cost_micro_usd).map_or_else(unknown, |cost| Dollars(cost).to_string());
    [run, workflow, created, time, outcome, kill, turns, cost, command]
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

const CSV_HEADINGS: [&str; 25] = [
    "run_id",
    "workflow",
    "name",
    "uid",
    "user",
    "created_at",
    "started_at",
    "ready_at",
    "finished_at",
    "duration_usec",
    "outcome",
    "exit_status",
    "kill_mode",
    "kill_reason",
    "kill_actor",
    "survivors",
    "cpu_usec",
    "memory_peak_bytes",
    "health",
    "command",
    "session_id",
    "turns",
    "tokens",
    "cost_micro_usd",
    "success",
];

fn csv_row(v: &RunView) -> [String; 25] {
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let time = |at: Option<Wall>| at.map(json::utc_time).unwrap_or_default();
    let receipt = v.receipt.as_ref();
    let progress = v.progress.as_ref();
    [
        v.spec.id.to_string(),
        csv::text(&v.spec.workflow),
        csv::text(v.spec.name.as_deref().unwrap_or_default()),
        v.spec.uid.to_string(),
        csv::text(&v.spec.user),
        time(Some(v.created_at)),
        time(v.started_at),
        time(v.ready_at),
        time(v.finished_at),
        number(v.started_at.and_then(|start| v.finished_at?.0.checked_sub(start.0))),
        v.outcome.as_ref().map(|o| o.code().to_owned()).unwrap_or_default(),
        v.outcome.as_ref().map(|o| o.exit_status().to_string()).unwrap_or_default(),
        receipt.map(|r| r.mode.as_str().to_owned()).unwrap_or_default(),
        receipt.map(|r| csv::text(&r.reason.to_string())).unwrap_or_default(),
        receipt.map(|r| csv::text(&r.actor.to_string())).unwrap_or_default(),
        receipt.map(|r| r.survivors.to_string()).unwrap_or_default(),
        number(v.usage.cpu_usec),
        number(v.usage.memory_peak_bytes),
        v.health.to_string(),
        csv::text(&command_line(&v.spec.command)),
        csv::text(progress.and_then(|p| p.session.as_deref()).unwrap_or_default()),
        number(progress.map(|p| p.turns)),
        number(progress.map(|p| p.tokens)),
        number(progress.and_then(|p| p.cost_micro_usd)),
        progress.and_then(|p| p.result.as_ref()).map(|r| r.success.to_string()).unwrap_or_default(),
    ]
}

/// The headings of [`row`].
pub const HEADINGS: [&str; 9] = ["RUN", "WORKFLOW", "PHASE", "HEALTH", "TIME", "CPU", "MEMORY", "STATUS", "COMMAND"];

/// A run as a row of a table.
pub fn row(v: &RunView, now: Wall, out: &Output) -> [String; 9] {
    let frozen = if v.frozen { " (frozen)" } else { "" };
    let phase = match &v.outcome {
        Some(outcome) => clip(&escape(&outcome.to_string()), COMMAND_WIDTH),
        None => match &v.queued {
            Some(queued) => format!("{} {}/{}", v.phase, queued.position, queued.of),
            None => format!("{}{frozen}", v.phase),
        },
    };
    [
        v.spec.id.to_string(),
        escape(&v.spec.workflow),
        phase,
        out.tone(health_tone(v.health), v.health.as_str()),
        lasted(v, now),
        v.usage.cpu_usec.map_or_else(unknown, |u| human_duration(Duration::from_micros(u))),
        v.usage.memory_bytes.map_or_else(unknown, human_size),
        clip(&escape(&status(v)), STATUS_WIDTH),
        clip(&command_line(&v.spec.command), COMMAND_WIDTH),
    ]
}

/// How it is, in its own words, or else how far it has come.
fn status(v: &RunView) -> String {
    match &v.progress {
        Some(progress) if v.heartbeats.status.is_empty() => progress.summary(),
        _ => v.heartbeats.status.clone(),
    }
}

fn lasted(v: &RunView, now: Wall) -> String {
    let end = v.finished_at.unwrap_or(now);
    // What was queued has not run for so long.
    let begin = v.started_at.unwrap_or(v.created_at);
    human_duration(Duration::from_micros(end.0.saturating_sub(begin.0)))
}

/// What stands for a value that the kernel does not tell.
pub fn unknown() -> String {
    "-".to_owned()
}
