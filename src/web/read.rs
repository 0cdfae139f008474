//! What is read: runs, their processes, samples and explanations, the audit, and how the instance is.

use std::time::Duration;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::reply::{Problem, json as reply, with_type};
use super::routes::{Answer, Call};
use crate::bus::client::{Description, RunFilter};
use crate::json as shapes;
use crate::model::{Error, ErrorKind, Health, KillReason, Outcome, Phase, ProcessSeen, Progress, RunId, RunView, Wall};

/// How long anything that is read may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Runs of one page, if nothing is said.
const PAGE_OF_RUNS: u32 = 100;
/// Rows of the audit in one question.
const PAGE: u32 = 1000;
/// Rows of the audit that are looked through for one answer. Who filters rows gets `next_after`, to go on from there.
const LOOKED_THROUGH: usize = 20_000;

/// Who asks, and what they look at.
pub async fn whoami(call: Call) -> Answer {
    let who = call.who()?;
    let instance = describe(&call).await?;
    Ok(reply(&json!({"token": who.name, "role": who.role.as_str(), "instance": shapes::instance(&instance)})))
}

/// What the instance says of itself.
pub async fn describe(call: &Call) -> Result<Description, Error> {
    call.app.instance.ask(|c| async move { c.describe().await }).await
}

/// Runs, newest first.
pub async fn runs(call: Call) -> Answer {
    let limit = call.arguments.count("limit", RunFilter::DEFAULT_LIMIT);
    let phase = call.arguments.phase();
    let filter = RunFilter {
        workflow: call.arguments.some_text("workflow").map(str::to_owned),
        phase,
        health: call.arguments.health(),
        since: call.arguments.time("since_usec"),
        finished: call.arguments.flag("finished") || phase == Some(Phase::Finished),
        limit,
        ..RunFilter::default()
    };
    let runs = call.app.instance.list(filter).await?;
    // Of live runs the instance lists all.
    let most = call.arguments.number("limit").and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    Ok(reply(&json!({"runs": runs.iter().take(most).map(shapes::run).collect::<Vec<_>>()})))
}

/// Where the next page begins: after the run that was created then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor(Wall, RunId);

impl Cursor {
    fn of(view: &RunView) -> Self {
        Self(view.created_at, view.spec.id)
    }

    fn read(text: &str) -> Result<Self, Error> {
        let read = || {
            let (at, run) = text.split_once('-')?;
            Some(Self(Wall(at.parse().ok()?), run.parse().ok()?))
        };
        read().ok_or_else(|| Error::invalid("this is no cursor: take next_cursor of the page before, as it is"))
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0.0, self.1)
    }
}

/// Runs of an executor, a page of them, newest first.
pub async fn page(call: Call) -> Answer {
    let (executor, phase) = (call.arguments.text("executor"), call.arguments.phase());
    let most = usize::try_from(call.arguments.count("limit", PAGE_OF_RUNS)).unwrap_or(usize::MAX);
    let mut after = call.arguments.some_text("cursor").map(Cursor::read).transpose()?;
    let mut filter = RunFilter {
        workflow: call.arguments.some_text("workflow").map(str::to_owned),
        phase,
        health: call.arguments.health(),
        since: call.arguments.time("since_usec"),
        finished: call.arguments.flag("finished") || phase == Some(Phase::Finished),
        limit: RunFilter::DEFAULT_LIMIT,
        ..RunFilter::default()
    };
    let mut page = Vec::new();
    loop {
        filter.before = after.map(|cursor| cursor.0);
        let mut views = call.app.instance.list(filter.clone()).await?;
        let is_last = views.iter().filter(|view| view.phase == Phase::Finished).count() < filter.limit as usize;
        views.sort_by_key(|view| std::cmp::Reverse(Cursor::of(view)));
        let oldest = views.last().map(Cursor::of);
        let next = views.into_iter().filter(|view| after.is_none_or(|after| Cursor::of(view) < after));
        page.extend(next.filter(|view| view.spec.executor == executor));
        let is_stuck = oldest == after && filter.limit == RunFilter::MAX_LIMIT;
        if is_last || is_stuck || page.len() > most {
            break;
        }
        // All of them were created in the same microsecond: the next page has to reach further.
        if oldest == after || oldest.is_none() {
            filter.limit = filter.limit.saturating_mul(2).min(RunFilter::MAX_LIMIT);
        }
        after = oldest.or(after);
    }
    let has_more = page.len() > most;
    page.truncate(most);
    let next = page.last().filter(|_| has_more).map(|view| Cursor::of(view).to_string());
    Ok(reply(&json!({"runs": page.iter().map(shapes::run).collect::<Vec<_>>(), "next_cursor": next})))
}

/// One run, read anew, with its processes.
pub async fn run(call: Call) -> Answer {
    let view = show(&call).await?;
    let mut value = shapes::run(&view);
    let processes = if view.phase == Phase::Finished { Vec::new() } else { processes(&call, &view).await? };
    value["processes"] = shapes::processes(&processes);
    Ok(reply(&value))
}

/// The run of the path; where it names an executor, of that one only.
pub async fn show(call: &Call) -> Result<RunView, Problem> {
    let id = call.arguments.run()?.to_string();
    let run = id.as_str();
    let view = call.app.instance.ask(|c| async move { c.show(run).await }).await?;
    match call.arguments.some_text("executor") {
        Some(executor) if executor != view.spec.executor => Err(Error::no_such_run(id).into()),
        _ => Ok(view),
    }
}

async fn processes(call: &Call, view: &RunView) -> Result<Vec<ProcessSeen>, Error> {
    let id = view.spec.id;
    match call.app.instance.ask(|c| async move { c.processes(id).await }).await {
        // It ended between the two questions: then it has none.
        Err(e) if matches!(e.kind, ErrorKind::NoSuchRun | ErrorKind::AlreadyFinished) => Ok(Vec::new()),
        seen => seen,
    }
}

/// What a run waits for, or waited for when it was ended.
pub async fn explain(call: Call) -> Answer {
    let id = call.arguments.run()?.to_string();
    let run = id.as_str();
    let explained = call.app.instance.ask(|c| async move { c.explain(run).await }).await?;
    Ok(reply(&shapes::explained(&explained)))
}

/// What a run used over time.
pub async fn samples(call: Call) -> Answer {
    let (id, since) = (call.arguments.run()?, call.arguments.time("since_usec").unwrap_or(Wall(0)));
    let samples = call.app.instance.ask(|c| async move { c.samples(id, since).await }).await?;
    Ok(reply(&json!({"samples": shapes::samples(&samples)})))
}

/// The audit of one run.
pub async fn audit_of(call: Call) -> Answer {
    let id = call.arguments.run()?.to_string();
    let mut rows = Vec::new();
    let mut after = 0;
    loop {
        let run = Some(id.as_str());
        let page = call.app.instance.ask(|c| async move { c.events(after, PAGE, run).await }).await?;
        after = page.last().map_or(after, |row| row.seq);
        let is_last = page.len() < PAGE as usize;
        rows.extend(page.iter().map(shapes::row));
        if is_last || rows.len() >= LOOKED_THROUGH {
            return Ok(reply(&json!({"events": rows})));
        }
    }
}

/// The audit after a row.
pub async fn audit(call: Call) -> Answer {
    let limit = call.arguments.count("limit", PAGE) as usize;
    let kind = call.arguments.some_text("kind");
    let mut after = call.arguments.number("after").unwrap_or(0);
    let (mut rows, mut looked) = (Vec::new(), 0);
    loop {
        let page = call.app.instance.ask(|c| async move { c.events(after, PAGE, None).await }).await?;
        let is_last = page.len() < PAGE as usize;
        looked += page.len();
        for row in page {
            if rows.len() == limit {
                break;
            }
            after = row.seq;
            if kind.is_none_or(|kind| kind == row.event.kind.as_str()) {
                rows.push(shapes::row(&row));
            }
        }
        if is_last || rows.len() == limit || looked >= LOOKED_THROUGH {
            return Ok(reply(&json!({"events": rows, "next_after": after})));
        }
    }
}

/// What the runs that are over say of their workflows.
pub async fn statistics(call: Call) -> Answer {
    let filter = RunFilter {
        workflow: call.arguments.some_text("workflow").map(str::to_owned),
        since: call.arguments.time("since_usec"),
        ..RunFilter::default()
    };
    let workflows = call.app.instance.statistics(filter).await?;
    Ok(reply(&json!({"workflows": workflows.iter().map(shapes::statistics).collect::<Vec<_>>()})))
}

/// A run in the words of the first version of this interface.
pub async fn status(call: Call) -> Answer {
    let view = show(&call).await?;
    let run = shapes::run(&view);
    let progress = view.progress.as_ref();
    let said = Some(view.heartbeats.status.clone()).filter(|status| !status.is_empty());
    let said = said.or_else(|| progress.map(Progress::summary).filter(|summary| !summary.is_empty()));
    let mut value = Map::new();
    for (name, of) in [
        ("run_id", "run_id"),
        ("workflow_name", "workflow"),
        ("executor", "executor"),
        ("queue", "queue"),
        ("phase", "phase"),
        ("health", "health"),
        ("started_at", "started_at"),
        ("finished_at", "finished_at"),
        ("metrics", "usage"),
        ("result", "outcome"),
    ] {
        value.insert(name.to_owned(), run[of].clone());
    }
    value.insert("status".to_owned(), word(&view).into());
    value.insert("progress".to_owned(), said.into());
    value.insert("agent".to_owned(), run["progress"].clone());
    value.insert("session_id".to_owned(), progress.and_then(|p| p.session.as_deref()).into());
    if let Some(metrics) = value.get_mut("metrics").and_then(Value::as_object_mut) {
        metrics.insert("turns".to_owned(), progress.map(|p| p.turns).into());
        metrics.insert("tokens".to_owned(), progress.map(|p| p.tokens).into());
        metrics.insert("cost_usd".to_owned(), progress.and_then(|p| p.cost_micro_usd).map(|n| n as f64 / 1e6).into());
    }
    if let Some(result) = value.get_mut("result").and_then(Value::as_object_mut) {
        let report = progress.and_then(|p| p.result.as_ref());
        let succeeded = report.is_none_or(|r| r.success) && view.outcome == Some(Outcome::Exited { code: 0 });
        result.insert("success".to_owned(), succeeded.into());
        result.insert("report".to_owned(), report.map(|r| r.text.as_str()).into());
    }
    Ok(reply(&Value::Object(value)))
}

/// How a run is, in one of six words.
fn word(view: &RunView) -> &'static str {
    match &view.outcome {
        None if view.phase == Phase::Queued => "queued",
        None => "running",
        Some(Outcome::Exited { code: 0 }) => "completed",
        Some(Outcome::Exited { .. } | Outcome::Signaled { .. } | Outcome::Oom | Outcome::Lost { .. }) => "failed",
        Some(Outcome::Killed { reason: KillReason::Limit { .. } }) => "timeout",
        Some(Outcome::Killed { .. }) => "killed",
    }
}

/// How everything is: as bad as the worst of it.
pub async fn health(call: Call) -> Answer {
    let instance = describe(&call).await?;
    let runs = call.app.instance.list(RunFilter::default()).await?;
    let unhealthy: Vec<&RunView> = runs.iter().filter(|view| view.health != Health::Healthy).collect();
    let own = [Health::Warning, Health::Critical].into_iter().find(|h| h.as_str() == instance.health);
    let worst = unhealthy.iter().map(|view| view.health).chain(own).max().unwrap_or_default();
    Ok(reply(&json!({
        "status": worst.as_str(),
        "instance": shapes::instance(&instance),
        "runs_active": instance.runs_active,
        "unhealthy_runs": unhealthy.into_iter().map(shapes::run).collect::<Vec<_>>(),
    })))
}

/// Whether the instance answers.
pub async fn healthz(call: Call) -> Answer {
    describe(&call).await?;
    Ok(plain("ok\n"))
}

fn plain(text: &'static str) -> Response {
    with_type("text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}
