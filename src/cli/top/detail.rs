//! The selected run: how it is and why, what it waits for, what it is held to, what it used, and its processes as a tree.

use std::collections::HashSet;
use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::app::{App, Seen};
use super::order::Row;
use super::paint::{Paint, bold, fit, spark, symbol, width, wrap, write};
use crate::cli::list::unknown;
use crate::cli::output::{Tone, command_line, health_tone, human_size};
use crate::cli::show::amount;
use crate::model::{
    Action, ContainerId, Dollars, ProcessSeen, Progress, Rule, RunView, UsageSample, Wall, escape, human_duration,
};

/// The columns of what the lines are about.
const LABEL: usize = 9;
/// From this width on there are two columns.
const TWO_COLUMNS: u16 = 70;
/// How many lines a text has at most, where there is not room for all.
const FEW: usize = 3;

/// Draws as much of it as has room.
pub fn draw(app: &App, paint: Paint, area: Rect, buffer: &mut Buffer) {
    let Some(row) = app.row() else { return };
    write(buffer, area, &[title(&row.view, area.width)]);
    let area = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    if area.width < TWO_COLUMNS {
        let lines = [about(row, app, paint, area.width, FEW), used(row, &app.seen, paint, area.width)].concat();
        return write(buffer, area, &shortened(lines, area.height));
    }
    let left = area.width / 5 * 3;
    let right = Rect { x: area.x + left + 2, width: area.width - left - 2, ..area };
    let left = Rect { width: left, ..area };
    write(buffer, left, &shortened(about(row, app, paint, left.width, FEW), left.height));
    write(buffer, right, &shortened(used(row, &app.seen, paint, right.width), right.height));
}

/// Draws all of it, from a line on; gives that line, which is not behind the last.
pub fn draw_whole(app: &App, paint: Paint, area: Rect, from: usize, buffer: &mut Buffer) {
    let Some(row) = app.row() else { return };
    write(buffer, area, &[title(&row.view, area.width)]);
    let area = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    let lines = [about(row, app, paint, area.width, usize::MAX), used(row, &app.seen, paint, area.width)].concat();
    let last = lines.len().saturating_sub(area.height.into());
    write(buffer, area, lines.get(from.min(last)..).unwrap_or_default());
}

fn title(view: &RunView, columns: u16) -> Line<'static> {
    let name = view.spec.name.as_ref().map(|name| format!(" ({})", escape(name))).unwrap_or_default();
    let columns = usize::from(columns);
    let text = fit(&format!("─ {}{name} ", view.spec.id), columns);
    let rest = columns.saturating_sub(width(&text));
    Line::from(vec![bold(text), Span::raw("─".repeat(rest))])
}

/// As many lines as have room; the last tells that there are more.
fn shortened(mut lines: Vec<Line<'static>>, height: u16) -> Vec<Line<'static>> {
    let height = usize::from(height);
    if lines.len() > height && height > 0 {
        let more = lines.len() - height + 1;
        lines.truncate(height - 1);
        lines.push(Line::raw(format!("… {more} more: Enter")));
    }
    lines
}

/// A text and what it is about, in at most so many lines.
fn labelled(label: &str, text: &str, tone: Tone, paint: Paint, columns: u16, most: usize) -> Vec<Line<'static>> {
    let room = usize::from(columns).saturating_sub(LABEL);
    let mut lines = wrap(text, room);
    if lines.len() > most {
        let rest = lines.split_off(most - 1).join(" ");
        lines.push(fit(&rest, room));
    }
    let line = |(n, text): (usize, String)| {
        let label = if n == 0 { label } else { "" };
        Line::from(vec![paint.span(Tone::Dim, format!("{label:<LABEL$}")), paint.span(tone, text)])
    };
    lines.into_iter().enumerate().map(line).collect()
}

/// What a person wants to know of it first.
fn about(row: &Row, app: &App, paint: Paint, columns: u16, most: usize) -> Vec<Line<'static>> {
    let (view, now) = (&row.view, app.now);
    let mut lines = Vec::new();
    let mut add = |label: &str, text: &str, tone: Tone| {
        lines.extend(labelled(label, text, tone, paint, columns, most));
    };
    let frozen = if view.frozen { ", frozen" } else { "" };
    let begun = view.started_at.unwrap_or(view.created_at);
    let (user, time) = (escape(&view.spec.user), human_duration(since(begun, now)));
    let workflow = escape(&view.spec.workflow);
    add(&workflow, &format!("{}{frozen}, for {time}, of {user}", view.phase), Tone::Plain);
    if let Some(queued) = &view.queued {
        add("queue", &format!("{}: {}", queued.turn(), escape(&queued.why)), Tone::Plain);
    }
    if view.reasons.is_empty() {
        add("health", &format!("{} {}", symbol(view.health), view.health), health_tone(view.health));
    }
    for (n, reason) in view.reasons.iter().enumerate() {
        let text = format!("{} {}: {}", symbol(reason.level), reason.level, escape(&reason.text));
        add(if n == 0 { "health" } else { "" }, &text, health_tone(reason.level));
    }
    if let Some(explanation) = &app.seen.explanation {
        add("explain", &escape(explanation), Tone::Plain);
    }
    let heard = &view.heartbeats;
    if let Some(at) = heard.last_at {
        let text = format!("{}, the last {} ago", heard.total, human_duration(since(at, now)));
        add("beats", &text, Tone::Plain);
    }
    if !heard.status.is_empty() {
        add("status", &escape(&heard.status), Tone::Plain);
    }
    if let Some(agent) = view.progress.as_ref().map(agent).filter(|text| !text.is_empty()) {
        add("agent", &agent, Tone::Plain);
    }
    for (n, text) in limits(view, now, most == usize::MAX).iter().enumerate() {
        add(if n == 0 { "limits" } else { "" }, text, Tone::Plain);
    }
    add("command", &command_line(&view.spec.command), Tone::Plain);
    add("in", &escape(&view.spec.cwd), Tone::Plain);
    add("held by", &held_by(view), Tone::Plain);
    for notice in &view.notices {
        add("notice", &escape(notice), Tone::Plain);
    }
    for escapee in &view.escapees {
        add("escapee", &escape(&escapee.to_string()), Tone::Plain);
    }
    lines
}

/// How far an agent has come, and what that has cost.
fn agent(p: &Progress) -> String {
    let tokens = (p.tokens > 0).then(|| format!("{} tokens", p.tokens));
    let cost = p.cost_micro_usd.map(|cost| Dollars(cost).to_string());
    let summary = Some(escape(&p.summary())).filter(|text| !text.is_empty());
    [summary, tokens, cost, p.model.as_deref().map(escape)].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Its limits, those with a deadline first, the nearest of these first; or these alone.
fn limits(view: &RunView, now: Wall, all: bool) -> Vec<String> {
    let limits = &view.spec.limits;
    let deadline = |rule: Rule| view.deadlines.iter().find(|(of, _)| *of == rule).map(|(_, at)| *at);
    let in_time = |at: Wall, then: &str| match at.0.checked_sub(now.0) {
        Some(left) => format!(", {then} in {}", human_duration(Duration::from_secs(left / 1_000_000))),
        None => ", is over".to_owned(),
    };
    let mut rules: Vec<(Wall, String)> = Vec::new();
    if let Some((time, at)) = limits.queue_timeout.zip(deadline(Rule::QueueTimeout)) {
        rules.push((at, format!("{} {}{}", Rule::QueueTimeout, human_duration(time), in_time(at, "gives it up"))));
    }
    for rule in Rule::TIMED {
        let Some((action, Some(time))) = limits.rule(rule) else { continue };
        let at = deadline(rule);
        if action == Action::Off || (at.is_none() && (rule == Rule::InitTimeout || !all)) {
            continue;
        }
        let then = if action == Action::Kill && !limits.watch.dry_run { "ends it" } else { "is over" };
        let then = at.map(|at| in_time(at, then)).unwrap_or_default();
        rules.push((at.unwrap_or(Wall(u64::MAX)), format!("{rule} {}, {action}{then}", human_duration(time))));
    }
    rules.sort_by_key(|(at, _)| *at);
    let mut texts: Vec<String> = rules.into_iter().map(|(_, text)| text).collect();
    if !all {
        return texts;
    }
    let counted = |rule: Rule| Some((rule, limits.most(rule)?, limits.rule(rule)?.0));
    let counted = Rule::COUNTED.into_iter().filter_map(counted);
    texts.extend(counted.map(|(rule, most, action)| format!("{rule} {}, {action}", amount(rule, most))));
    let resources = &limits.resources;
    texts.extend(resources.memory_max_bytes.map(|bytes| format!("memory_max {}", human_size(bytes))));
    texts.extend(resources.tasks_max.map(|tasks| format!("tasks_max {tasks}")));
    texts.extend(resources.cpu_max_percent.map(|percent| format!("cpu_max {percent} %")));
    texts
}

fn held_by(view: &RunView) -> String {
    match &view.container {
        Some(ContainerId::Cgroup(cgroup)) => {
            format!("{} {}", view.spec.containment, escape(&cgroup.path.to_string_lossy()))
        }
        Some(ContainerId::Subtree { shim: Some(shim), .. }) => format!("{}, shim {}", view.spec.containment, shim.pid),
        _ => view.spec.containment.to_string(),
    }
}

/// What it uses, now and before, and its processes.
fn used(row: &Row, seen: &Seen, paint: Paint, columns: u16) -> Vec<Line<'static>> {
    let usage = &row.view.usage;
    let graph = usize::from(columns).saturating_sub(LABEL + 7);
    let (cpu, memory) = (cpu_of(&seen.samples), seen.samples.iter().map(|s| s.usage.memory_bytes).collect::<Vec<_>>());
    let line = |label: &str, value: String, values: &[Option<u64>], least: u64| {
        let most = values.iter().flatten().copied().max().unwrap_or(0).max(least);
        let spans = vec![
            paint.span(Tone::Dim, format!("{label:<LABEL$}")),
            Span::raw(format!("{value:>6} ")),
            Span::raw(spark(values, graph, most)),
        ];
        Line::from(spans)
    };
    let percent = row.cpu_percent.map_or_else(unknown, |percent| format!("{percent} %"));
    let mut lines = vec![
        // A core that is used whole is as high as it gets, unless more are.
        line("CPU", percent, &cpu, 100),
        line("memory", usage.memory_bytes.map_or_else(unknown, human_size), &memory, 1),
    ];
    let most = usage.memory_peak_bytes.map(|bytes| format!(", {} at most", human_size(bytes))).unwrap_or_default();
    let tasks = format!("{:>6}{most}", usage.tasks.map_or_else(unknown, |tasks| tasks.to_string()));
    lines.push(Line::from(vec![paint.span(Tone::Dim, format!("{:<LABEL$}", "tasks")), Span::raw(tasks)]));
    lines.extend(tree(&seen.processes).iter().map(|line| Line::raw(fit(line, columns.into()))));
    lines
}

/// The CPU use from each reading to the next, in percent of one core.
fn cpu_of(samples: &[UsageSample]) -> Vec<Option<u64>> {
    let step = |pair: &[UsageSample]| {
        let [before, after] = pair else { return None };
        let used = after.usage.cpu_usec?.checked_sub(before.usage.cpu_usec?)?;
        used.saturating_mul(100).checked_div(after.at.0.saturating_sub(before.at.0))
    };
    samples.windows(2).map(step).collect()
}

fn since(at: Wall, now: Wall) -> Duration {
    Duration::from_secs(now.0.saturating_sub(at.0) / 1_000_000)
}

/// Processes below the ones that started them, a line each.
pub fn tree(processes: &[ProcessSeen]) -> Vec<String> {
    let pids: HashSet<u32> = processes.iter().map(|p| p.pid).collect();
    let is_root = |p: &&ProcessSeen| !pids.contains(&p.ppid) || p.ppid == p.pid;
    let mut lines = Vec::new();
    let mut told = HashSet::new();
    // Each with what is drawn before it, and before those below it. The last of this list is the next.
    let mut open: Vec<(&ProcessSeen, String, String)> = Vec::new();
    open.extend(processes.iter().rev().filter(is_root).map(|p| (p, String::new(), String::new())));
    while let Some((process, before, below)) = open.pop() {
        if !told.insert(process.pid) {
            continue;
        }
        lines.push(format!("{before}{}", told_of(process)));
        let children: Vec<&ProcessSeen> =
            processes.iter().filter(|p| p.ppid == process.pid && p.pid != process.pid).collect();
        for (n, child) in children.iter().enumerate().rev() {
            let is_last = n + 1 == children.len();
            let (edge, side) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            open.push((child, format!("{below}{edge}"), format!("{below}{side}")));
        }
    }
    // They are read one after the other, while pids are used again: two may claim to have started each other.
    lines.extend(processes.iter().filter(|p| !told.contains(&p.pid)).map(told_of));
    lines
}

fn told_of(process: &ProcessSeen) -> String {
    let wchan = process.wchan.as_ref().map(|wchan| format!(" {}", escape(wchan))).unwrap_or_default();
    format!("{} {} {}{wchan}", process.pid, escape(&process.name), escape(&process.state.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, ppid: u32) -> ProcessSeen {
        ProcessSeen { pid, ppid, name: format!("p{pid}"), state: 'S', ..ProcessSeen::default() }
    }

    #[test]
    fn processes_are_below_the_ones_that_started_them() {
        let processes =
            [(10, 1), (11, 10), (12, 11), (13, 10), (20, 1), (14, 13)].map(|(pid, ppid)| process(pid, ppid));
        let expected = ["10 p10 S", "├─ 11 p11 S", "│  └─ 12 p12 S", "└─ 13 p13 S", "   └─ 14 p14 S", "20 p20 S"];
        assert_eq!(tree(&processes), expected);
    }

    #[test]
    fn processes_that_claim_to_have_started_each_other_are_told_all_the_same() {
        assert_eq!(tree(&[process(10, 11), process(11, 10)]), ["10 p10 S", "11 p11 S"]);
        assert_eq!(tree(&[process(10, 10)]), ["10 p10 S"]);
        assert_eq!(tree(&[process(10, 1), process(11, 10), process(11, 10)]).len(), 2);
    }
}
