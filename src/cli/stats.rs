//! `stats`: what the runs that are over tell of their workflows.

use std::io;
use std::time::Duration;

use super::args::StatsArgs;
use super::list::unknown;
use super::output::{Output, escape, human_size};
use super::session::Session;
use super::{Done, csv, now};
use crate::bus::client::{Client, RunFilter};
use crate::json;
use crate::model::{Quantiles, Statistics, Wall, human_duration};

/// Shows how long and how much workflows take, how their runs end, and which limits would fit.
pub async fn main(args: &StatsArgs, session: &Session, out: &Output) -> Done {
    let ago = |d: Duration| now().0.saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
    let filter = RunFilter {
        workflow: args.workflow.clone(),
        since: args.since.map(|d| Wall(ago(d))),
        all_users: args.all_users,
        ..RunFilter::default()
    };
    let all = session.ask(async |c: &Client| c.statistics(&filter).await).await?;
    match (args.csv, args.days) {
        _ if out.json => out.json(&all.iter().map(json::statistics).collect())?,
        (true, false) => csv::write(CSV_HEADINGS, all.iter().map(csv_row))?,
        (true, true) => csv::write(CSV_DAY_HEADINGS, all.iter().flat_map(csv_days))?,
        (false, true) => out.table(DAY_HEADINGS, all.iter().flat_map(days).collect())?,
        (false, false) => tell(&all, out)?,
    }
    Ok(0)
}

fn tell(all: &[Statistics], out: &Output) -> io::Result<()> {
    out.table(HEADINGS, all.iter().map(row).collect())?;
    for s in all.iter().filter(|s| !s.kills.is_empty() || !s.suggestions.is_empty()) {
        out.line("")?;
        out.line(escape(&s.workflow))?;
        if !s.kills.is_empty() {
            let kills: Vec<String> = s.kills.iter().map(|(reason, n)| format!("{} {n}", escape(reason))).collect();
            out.line(format!("  killed for: {}", kills.join(", ")))?;
        }
        for suggestion in &s.suggestions {
            out.line(format!("  suggested: {suggestion}"))?;
        }
    }
    Ok(())
}

const HEADINGS: [&str; 11] =
    ["WORKFLOW", "RUNS", "OK", "FAILED", "KILLED", "P50", "P95", "P99", "LONGEST", "CPU", "MEMORY"];

fn row(s: &Statistics) -> [String; 11] {
    let lasted = |of: fn(&Quantiles) -> u64| s.duration_usec.as_ref().map_or_else(unknown, |q| time(of(q)));
    [
        escape(&s.workflow),
        s.outcomes.total().to_string(),
        s.outcomes.succeeded.to_string(),
        s.outcomes.troubled().to_string(),
        s.outcomes.killed.to_string(),
        lasted(|q| q.p50),
        lasted(|q| q.p95),
        lasted(|q| q.p99),
        lasted(|q| q.max),
        s.cpu_usec.map_or_else(unknown, |q| time(q.p95)),
        s.memory_peak_bytes.map_or_else(unknown, |q| human_size(q.p95)),
    ]
}

const DAY_HEADINGS: [&str; 8] = ["WORKFLOW", "DAY", "RUNS", "OK", "FAILED", "KILLED", "P50", "MEMORY AT MOST"];

fn days(s: &Statistics) -> impl Iterator<Item = [String; 8]> {
    s.days.iter().map(|d| {
        [
            escape(&s.workflow),
            json::day(d.at),
            d.outcomes.total().to_string(),
            d.outcomes.succeeded.to_string(),
            d.outcomes.troubled().to_string(),
            d.outcomes.killed.to_string(),
            d.duration_p50_usec.map_or_else(unknown, time),
            d.memory_peak_max_bytes.map_or_else(unknown, human_size),
        ]
    })
}

fn time(usec: u64) -> String {
    human_duration(Duration::from_micros(usec))
}

const CSV_HEADINGS: [&str; 20] = [
    "workflow",
    "runs",
    "succeeded",
    "failed",
    "signaled",
    "killed",
    "oom",
    "lost",
    "duration_p50_usec",
    "duration_p95_usec",
    "duration_p99_usec",
    "duration_max_usec",
    "cpu_p50_usec",
    "cpu_p95_usec",
    "cpu_p99_usec",
    "cpu_max_usec",
    "memory_peak_p50_bytes",
    "memory_peak_p95_bytes",
    "memory_peak_p99_bytes",
    "memory_peak_max_bytes",
];

fn csv_row(s: &Statistics) -> [String; 20] {
    let quantiles = |q: Option<Quantiles>| match q {
        Some(q) => [q.p50, q.p95, q.p99, q.max].map(|value| value.to_string()),
        None => Default::default(),
    };
    let outcomes = s.outcomes.named().map(|(_, n)| n.to_string());
    let cells = [csv::text(&s.workflow), s.outcomes.total().to_string()].into_iter().chain(outcomes);
    let measured = [s.duration_usec, s.cpu_usec, s.memory_peak_bytes].into_iter().flat_map(quantiles);
    let mut row = <[String; 20]>::default();
    row.iter_mut().zip(cells.chain(measured)).for_each(|(cell, value)| *cell = value);
    row
}

const CSV_DAY_HEADINGS: [&str; 11] = [
    "workflow",
    "day",
    "runs",
    "succeeded",
    "failed",
    "signaled",
    "killed",
    "oom",
    "lost",
    "duration_p50_usec",
    "memory_peak_max_bytes",
];

fn csv_days(s: &Statistics) -> impl Iterator<Item = [String; 11]> {
    s.days.iter().map(|d| {
        let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        let [succeeded, failed, signaled, killed, oom, lost] = d.outcomes.named().map(|(_, n)| n.to_string());
        let runs = d.outcomes.total().to_string();
        let (duration, memory) = (number(d.duration_p50_usec), number(d.memory_peak_max_bytes));
        let (workflow, day) = (csv::text(&s.workflow), json::day(d.at));
        [workflow, day, runs, succeeded, failed, signaled, killed, oom, lost, duration, memory]
    })
}
