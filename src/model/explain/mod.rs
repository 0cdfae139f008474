//! From evidence to one sentence that names what a run waits for, and the details.
//!
//! Of many processes most wait for others of the run: a shell for its child, a reader for the writer of its pipe. These
//! are edges of a graph; what matters is at the end of them. Of several ends the one that tells most is named, and a
//! process that computes before all. A circle is a deadlock.

mod phrase;
mod processes;
mod threads;

use std::time::Duration;

use self::phrase::{clipped, counted, named, size};
use super::{Evidence, Growth, Heartbeats, LastOutput, ProcessSeen, Wall, escape, human_duration};

/// What a run waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// In one sentence, without a full stop: `all 3 processes sleep; claude (pid 811) waits on a TCP read from
    /// 203.0.113.7:443 (fd 5)`. Harmless for a terminal.
    pub sentence: String,
    /// A line for each process and for each of its other threads. Harmless for a terminal.
    pub details: Vec<String>,
}

/// Explains what the processes were doing.
pub fn explain(evidence: &Evidence) -> Explanation {
    Explanation { sentence: sentence(evidence), details: details(evidence) }
}

fn sentence(evidence: &Evidence) -> String {
    let seen = &evidence.processes;
    match (evidence.total, seen.is_empty()) {
        (0, _) => "no process is in it".to_owned(),
        (total, true) => {
            format!("{} in it, and nothing could be read of any", counted(total, "process is", "processes are"))
        }
        _ if evidence.frozen => {
            let all =
                if evidence.total == 1 { "its only process is".to_owned() } else { both(evidence.total) + " are" };
            format!("{all} frozen until the run is thawed; {}", processes::what_matters(seen))
        }
        (1, false) => processes::what_matters(seen),
        (total, false) => format!("{}; {}", overview(seen, total), processes::what_matters(seen)),
    }
}

/// How many of them run, sleep or are stopped.
fn overview(seen: &[ProcessSeen], total: u32) -> String {
    let count = |of: fn(&ProcessSeen) -> bool| seen.iter().filter(|p| of(p)).count();
    let all = usize::try_from(total).unwrap_or(usize::MAX);
    let runs = count(|p| threads::runs(p) || processes::computes(p));
    let stopped = count(|p| matches!(p.state, 'T' | 't'));
    match total {
        _ if stopped == all => format!("{} are stopped", both(total)),
        _ if runs > 0 => format!("{runs} of {total} processes {}", if runs == 1 { "runs" } else { "run" }),
        _ if stopped > 0 => {
            format!("{stopped} of {total} processes {} stopped", if stopped == 1 { "is" } else { "are" })
        }
        _ if seen.len() < all => format!("the {} of {total} processes that were looked at sleep", seen.len()),
        _ => format!("{} sleep", both(total)),
    }
}

fn both(total: u32) -> String {
    if total == 2 { "both processes".to_owned() } else { format!("all {total} processes") }
}

fn details(evidence: &Evidence) -> Vec<String> {
    let mut lines = Vec::new();
    for process in &evidence.processes {
        let does = threads::what_matters(process).text;
        let cpu = human_duration(Duration::from_micros(process.cpu_usec));
        let age = human_duration(Duration::from_micros(process.age_usec));
        let command = match process.command.is_empty() {
            true => String::new(),
            false => format!(": {}", clipped(&process.command)),
        };
        lines.push(format!(
            "{} (parent {}, state {}) {does}; {cpu} of CPU in {age}{command}",
            named(process.pid, &process.name),
            process.ppid,
            escape(&process.state.to_string())
        ));
        for thread in process.threads.iter().filter(|_| process.threads.len() > 1) {
            let does = threads::does(thread);
            lines.push(format!("  thread {} {} (state {}) {does}", thread.tid, escape(&thread.name), thread.state));
        }
        let unseen = process.threads_total.saturating_sub(u32::try_from(process.threads.len()).unwrap_or(u32::MAX));
        if unseen > 0 && !process.threads.is_empty() {
            lines.push(format!("  and {}", counted(unseen, "thread more", "threads more")));
        }
    }
    let unseen = evidence.total.saturating_sub(u32::try_from(evidence.processes.len()).unwrap_or(u32::MAX));
    if unseen > 0 {
        lines.push(format!("and {}", counted(unseen, "process more", "processes more")));
    }
    lines.extend(evidence.growth.as_ref().map(grown));
    lines
}

/// The last heartbeat and the last output, as seen at a time: a line for each that there was. Harmless for a terminal.
pub fn signs_of_life(said: &Heartbeats, output: Option<&LastOutput>, at: Wall) -> Vec<String> {
    let ago = |then: Wall| human_duration(Duration::from_secs(at.0.saturating_sub(then.0) / 1_000_000));
    let status = match said.status.is_empty() {
        true => String::new(),
        false => format!(", status: {}", clipped(&said.status)),
    };
    // What came after that time says nothing of it.
    let heartbeat =
        said.last_at.filter(|last| *last <= at).map(|last| format!("last heartbeat {} ago{status}", ago(last)));
    let output = output.map(|o| match (o.bytes, o.line.is_empty()) {
        (0, _) => "no output so far".to_owned(),
        (_, true) => format!("last output {} ago: empty lines", ago(o.at)),
        (_, false) => format!("last output {} ago: {}", ago(o.at), clipped(&o.line)),
    });
    heartbeat.into_iter().chain(output).collect()
}

/// By how much the counters grew.
fn grown(growth: &Growth) -> String {
    let mut parts = Vec::new();
    parts.extend(growth.cpu_usec.map(|u| format!("{} of CPU", human_duration(Duration::from_micros(u)))));
    parts.extend(growth.memory_bytes.map(|b| {
        let sign = if b < 0 { "less" } else { "more" };
        format!("{} {sign} memory", size(b.unsigned_abs()))
    }));
    parts.extend(growth.io_bytes.map(|b| format!("{} from and to storage", size(b))));
    parts.extend(growth.activity_bytes.map(|b| format!("{} read and written in all", size(b))));
    let over = human_duration(Duration::from_micros(growth.over_usec));
    match parts.is_empty() {
        true => format!("in the last {over}: no counter could be read"),
        false => format!("in the last {over}: {}", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests;
