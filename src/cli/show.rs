//! `show`: everything about runs.

use std::time::Duration;

use super::args::ShowArgs;
use super::output::{Output, Tone, command_line, escape, health_tone, human_size, local_time};
use super::session::Session;
use super::{Done, list, samples};
use crate::bus::client::Client;
use crate::json;
use crate::model::{
    Action, ContainerId, Dollars, Heartbeats, KillReason, LOCAL, Phase, ProcessSeen, Progress, Receipt, Refused, Rule,
    RunView, Wall, human_duration,
};

/// Shows runs, each read anew, live ones with their processes.
pub async fn main(args: &ShowArgs, session: &Session, out: &Output) -> Done {
    let mut shown = Vec::new();
    let runs = &args.runs.runs;
    for run in runs {
        let read = async |c: &Client| {
            let view = c.show(run).await?;
            // A run can end between the two questions: then it has no processes.
            let processes = if view.phase == Phase::Finished { Vec::new() } else { c.processes(view.spec.id).await? };
            let samples = if args.samples { c.samples(view.spec.id, Wall(0)).await? } else { Vec::new() };
            Ok((view, processes, samples))
        };
        let (view, processes, samples) = session.ask(read).await?;
        if out.json {
            let mut value = json::run(&view);
            value["processes"] = json::processes(&processes);
            if args.samples {
                value["samples"] = json::samples(&samples);
            }
            shown.push(value);
        } else {
            if run != &runs[0] {
                out.line("")?;
            }
            lines(&view, &processes, out).iter().try_for_each(|line| out.line(line))?;
            if args.samples {
                samples::table(&samples, out)?;
            }
        }
    }
    if out.json {
        out.json(&shown.into())?;
    }
    Ok(0)
}

/// A run, a line for each thing.
pub fn lines(view: &RunView, processes: &[ProcessSeen], out: &Output) -> Vec<String> {
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:>17}  {value}"));
    let off = || "off".to_owned();
    let spec = &view.spec;
    let name = spec.name.as_ref().map(|n| format!(" ({})", escape(n))).unwrap_or_default();
    row("run", format!("{}{name}", spec.id));
    row("workflow", escape(&spec.workflow));
    if spec.executor != LOCAL {
        row("executor", escape(&spec.executor));
    }
    row("command", command_line(&spec.command));
    row("directory", escape(&spec.cwd));
    row("user", format!("{} ({})", escape(&spec.user), spec.uid));
    let frozen = if view.frozen { ", frozen" } else { "" };
    let outcome = view.outcome.as_ref().map(|o| format!(", {}", escape(&o.to_string()))).unwrap_or_default();
    row("phase", format!("{}{frozen}{outcome}", view.phase));
    if let Some(queued) = &view.queued {
        row("queue", escape(&format!("{}: {}", queued.describe(&spec.workflow), queued.why)));
    }
    row("health", out.tone(health_tone(view.health), view.health.as_str()));
    for reason in &view.reasons {
        row("", escape(&reason.text));
    }
    row("created", local_time(view.created_at));
    for (name, at) in [("started", view.started_at), ("ready", view.ready_at), ("finished", view.finished_at)] {
        if let Some(at) = at {
            row(name, format!("{}, after {}", local_time(at), since(view.created_at.0, at.0)));
        }
    }
    let limits = &spec.limits;
    if let Some(limit) = limits.queue_timeout.filter(|_| view.started_at.is_none()) {
        row(Rule::QueueTimeout.as_str(), human_duration(limit));
    }
    for rule in Rule::TIMED {
        let Some((action, limit)) = limits.rule(rule) else { continue };
        let deadline = view.deadlines.iter().find(|(of, _)| *of == rule);
        let then = if action == Action::Kill && !limits.watch.dry_run { "ends it" } else { "is over" };
        let ends = deadline.map(|(_, at)| format!(", {then} at {}", local_time(*at))).unwrap_or_default();
        let limit = limit.filter(|_| action != Action::Off);
        row(rule.as_str(), limit.map_or_else(off, |limit| format!("{}, {action}{ends}", human_duration(limit))));
    }
    for rule in Rule::COUNTED {
        if let (Some(most), Some((action, _))) = (limits.most(rule), limits.rule(rule)) {
            row(rule.as_str(), format!("{}, {action}", amount(rule, most)));
        }
    }
    row(Rule::Escapees.as_str(), limits.watch.escapees.to_string());
    for escapee in &view.escapees {
        row("", escape(&escapee.to_string()));
    }
    if limits.watch.dry_run {
        row("dry_run", "yes: no rule ends it".to_owned());
    }
    row("grace", human_duration(limits.grace));
    row("readiness", limits.readiness.as_str().to_owned());
    row("memory_max", limits.resources.memory_max_bytes.map_or_else(off, human_size));
    row("tasks_max", limits.resources.tasks_max.map_or_else(off, |n| n.to_string()));
    row("cpu_max", limits.resources.cpu_max_percent.map_or_else(off, |p| format!("{p} %")));
    heartbeats(&view.heartbeats).into_iter().for_each(|(name, text)| row(name, text));
    view.progress.iter().flat_map(progress).for_each(|(name, text)| row(name, text));
    if limits.cleanup.git_locks {
        row("cleanup.git_locks", "yes: those that are proved to be its own".to_owned());
    }
    row("containment", contained_by(view));
    if limits.isolate_pids {
        row("isolate_pids", "yes".to_owned());
    }
    if let Some(client) = spec.client {
        row("client", format!("pid {}", client.pid));
    }
    if let Some(main) = spec.main {
        row("main process", format!("pid {}", main.pid));
    }
    if let Some(log) = &spec.log {
        row("log", escape(&log.to_string_lossy()));
    }
    row("cpu", view.usage.cpu_usec.map_or_else(list::unknown, |u| human_duration(Duration::from_micros(u))));
    let most = view.usage.memory_peak_bytes.map(|peak| format!(", {} at most", human_size(peak))).unwrap_or_default();
    row("memory", format!("{}{most}", view.usage.memory_bytes.map_or_else(list::unknown, human_size)));
    row("tasks", view.usage.tasks.map_or_else(list::unknown, |n| n.to_string()));
    let size = |bytes: Option<u64>| bytes.map_or_else(list::unknown, human_size);
    row("storage", format!("{} read, {} written", size(view.usage.io_read_bytes), size(view.usage.io_write_bytes)));
    row("activity", format!("{} through read and write calls", size(view.usage.activity_bytes)));
    for notice in &view.notices {
        row("notice", escape(notice));
    }
    for (n, process) in processes.iter().enumerate() {
        row(if n == 0 { "processes" } else { "" }, process_line(process));
    }
    if let Some(receipt) = &view.receipt {
        for (n, line) in receipt_lines(receipt).into_iter().enumerate() {
            row(if n == 0 { "receipt" } else { "" }, out.tone(if n == 0 { Tone::Plain } else { Tone::Dim }, line));
        }
    }
    lines
}

/// What it says of itself, if it says anything.
fn heartbeats(said: &Heartbeats) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(at) = said.last_at {
        rows.push(("heartbeats", format!("{}, the last at {}", said.total, local_time(at))));
    }
    if !said.status.is_empty() {
        rows.push(("status", escape(&said.status)));
    }
    if said.stopping {
        rows.push(("says", "it is about to end".to_owned()));
    }
    if let Some(errno) = said.errno {
        rows.push(("errno", escape(&std::io::Error::from_raw_os_error(errno).to_string())));
    }
    let Refused { foreign, flooded, too_long } = said.refused;
    let why = [(foreign, "from outside of the run"), (flooded, "too many in a second"), (too_long, "too long")];
    let why: Vec<String> = why.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}")).collect();
    if !why.is_empty() {
        rows.push(("refused", format!("messages: {}", why.join(", "))));
    }
    rows
}

/// What a rule allows that counts something.
pub fn amount(rule: Rule, most: u64) -> String {
    if rule == Rule::MaxCost { Dollars(most).to_string() } else { most.to_string() }
}

/// How far an agent has come.
fn progress(p: &Progress) -> Vec<(&'static str, String)> {
    let text = |text: &Option<String>| text.as_deref().map(escape);
    let turn = p.turn().map(|turn| turn.trim_start_matches("turn ").to_owned());
    let repeats = p.repeated.as_ref().map(|what| format!("{} times in a row: {}", p.repeats, escape(what)));
    let result = p.result.as_ref().map(|r| {
        let colon = if r.text.is_empty() { "" } else { ": " };
        format!("{}{colon}{}", if r.success { "success" } else { "error" }, escape(&r.text))
    });
    let rows = [
        ("session", text(&p.session)),
        ("model", text(&p.model)),
        ("turn", turn),
        ("tokens", (p.tokens > 0).then(|| p.tokens.to_string())),
        ("cost", p.cost_micro_usd.map(|cost| Dollars(cost).to_string())),
        ("last tool", text(&p.tool)),
        ("repeats", repeats),
        ("waits for", text(&p.waiting)),
        ("result", result),
    ];
    rows.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()
}

fn contained_by(view: &RunView) -> String {
    let holder = match &view.container {
        Some(ContainerId::Cgroup(cgroup)) => format!(" {}", escape(&cgroup.path.to_string_lossy())),
        Some(ContainerId::Subtree { shim: Some(shim), .. }) => format!(", shim pid {}", shim.pid),
        Some(ContainerId::Subtree { shim: None, .. }) | None => String::new(),
    };
    format!("{}{holder}", view.spec.containment)
}

fn since(from: u64, to: u64) -> String {
    human_duration(Duration::from_micros(to.saturating_sub(from)))
}

/// A process as a line.
pub fn process_line(p: &ProcessSeen) -> String {
    let wchan = p.wchan.as_ref().map(|w| format!(" in {}", escape(w))).unwrap_or_default();
    let state = escape(&p.state.to_string());
    format!("{} {} (parent {}) {state}{wchan}", p.pid, escape(&p.name), p.ppid)
}

/// A receipt, a line for what, for who and why, and for each step.
pub fn receipt_lines(receipt: &Receipt) -> Vec<String> {
    let mut lines = vec![receipt.to_string()];
    lines.push(format!(
        "{} kill by {} at {}: {}",
        receipt.mode,
        escape(&receipt.actor.to_string()),
        local_time(receipt.requested_at),
        escape(&receipt.reason.to_string())
    ));
    for step in &receipt.steps {
        let at = format!("+{:.3} ms", step.elapsed_usec as f64 / 1000.0);
        let of = match step.processes {
            0 => String::new(),
            1 => " (1 process)".to_owned(),
            n => format!(" ({n} processes)"),
        };
        lines.push(format!("{at:>14}  {}{of}", step.kind.as_str()));
    }
    let seen = receipt.processes.iter().map(|p| format!("{} {}", p.pid, escape(&p.name))).collect::<Vec<_>>();
    if !seen.is_empty() {
        lines.push(format!("{} there: {}", receipt.processes_total, seen.join(", ")));
    }
    let left_behind = receipt.reason == KillReason::Leftovers;
    let left = receipt.remains.iter().flat_map(|remains| remains.lines(left_behind));
    lines.extend(left.map(|line| escape(&line)));
    lines.extend(receipt.escapees.iter().map(|e| format!("escapee: {}", escape(&e.to_string()))));
    if !receipt.explanation.is_empty() {
        lines.push(format!("explanation: {}", escape(&receipt.explanation)));
    }
    lines
}
