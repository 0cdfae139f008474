//! `/metrics`: what Prometheus scrapes. Counts by workflow and no more: no command, no argument, no name of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::header;

use super::reply::with_type;
use super::routes::{Answer, Call};
use super::{App, serve};
use crate::bus::client::{Description, RunFilter};
use crate::model::{Error, Health, RunView};

/// OpenMetrics 1.0, and the older text for who asks for plain text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long an answer of the instance is good for: anybody may scrape, as often as they like.
const KEPT: Duration = Duration::from_secs(1);
/// How long the instance may take: one that does not answer is down.
const ANSWER: Duration = Duration::from_secs(5);
/// Workflows that are told apart; the names come from whoever starts runs, and each is kept for ever by who scrapes.
const WORKFLOWS_MAX: usize = 200;

/// What guardian-web counts itself.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answers, by status.
    answers: Mutex<BTreeMap<u16, u64>>,
    /// Connections that were refused because there were too many.
    pub refused: AtomicU64,
    /// What the instance said last.
    kept: tokio::sync::Mutex<Option<(Instant, String, String)>>,
}

impl Counters {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
    }
}

/// A kind of metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Info,
}

/// The text in the making.
struct Text {
    text: String,
    is_open: bool,
}

impl Text {
    fn new(is_open: bool) -> Self {
        Self { text: String::new(), is_open }
    }

    /// A family: its name without the ending that its samples have.
    fn family(&mut self, name: &str, kind: Kind, unit: &str, help: &str, samples: &[(Vec<(&str, &str)>, f64)]) {
        let ending = match kind {
            Kind::Gauge => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        };
        // The older text knows neither endings nor infos: there the name of a family is that of its samples.
        let of = match (self.is_open, kind) {
            (true, Kind::Info) => "info",
            (_, Kind::Gauge | Kind::Info) => "gauge",
            (_, Kind::Counter) => "counter",
        };
        let family = format!("{name}{}", if self.is_open { "" } else { ending });
        let _ = writeln!(self.text, "# TYPE {family} {of}");
        if self.is_open && !unit.is_empty() {
            let _ = writeln!(self.text, "# UNIT {family} {unit}");
        }
        let _ = writeln!(self.text, "# HELP {family} {help}");
        for (labels, value) in samples {
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.text, "{name}{ending}{labels} {value}");
        }
    }

    fn one(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, "", help, &[(Vec::new(), value)]);
    }
}

/// A label's value as both texts want it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All of it.
pub async fn metrics(call: Call) -> Answer {
    let accept = call.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_open = accept.contains("openmetrics") || !accept.contains("text/plain");
    let mut text = instance(&call.app, is_open).await;
    own(&call.app, is_open, &mut text);
    if is_open {
        text.push_str("# EOF\n");
    }
    Ok(with_type(if is_open { OPEN_METRICS } else { PLAIN }, text))
}

/// What the instance says, or said a moment ago.
async fn instance(app: &App, is_open: bool) -> String {
    // Held while asking: many who scrape at once ask once.
    let mut kept = app.counters.kept.lock().await;
    let now = Instant::now();
    if let Some((at, open, plain)) = &*kept
        && now.saturating_duration_since(*at) < KEPT
    {
        return if is_open { open.clone() } else { plain.clone() };
    }
    let asked = async {
        let described = app.instance.ask(|c| async move { c.describe().await }).await?;
        Ok::<_, Error>((described, app.instance.list(RunFilter::default()).await?))
    };
    let answer = match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => answer.ok(),
        Err(_) => None,
    };
    let of = |is_open| {
        let mut text = Text::new(is_open);
        let up = f64::from(u8::from(answer.is_some()));
        text.one("guardian_up", Kind::Gauge, "Whether the instance answers.", up);
        if let Some((described, runs)) = &answer {
            of_instance(&mut text, described);
            of_runs(&mut text, runs);
        }
        text.text
    };
    let (open, plain) = (of(true), of(false));
    let text = if is_open { open.clone() } else { plain.clone() };
    // From its end: what takes long must not be asked for again at once.
    *kept = Some((Instant::now(), open, plain));
    text
}

#[allow(clippy::cast_precision_loss)] // A counter above 2^53 is not seen to grow by one. So be it.
fn of_instance(text: &mut Text, d: &Description) {
    let labels = vec![("version", &*d.version), ("kind", &*d.instance), ("backend", &*d.backend)];
    text.family("guardian_instance", Kind::Info, "", "What the instance is.", &[(labels, 1.0)]);
    let health = [Health::Healthy, Health::Warning, Health::Critical].map(Health::as_str);
    let health = health.map(|h| (vec![("health", h)], f64::from(u8::from(d.health == h))));
    text.family("guardian_instance_health", Kind::Gauge, "", "1 for how the instance itself is.", &health);
    let started = "Runs accepted since the instance started.";
    text.one("guardian_runs_started", Kind::Counter, started, d.runs_total as f64);
    text.one("guardian_kills", Kind::Counter, "Kills begun since the instance started.", d.kills_total as f64);
    text.one("guardian_audit_sequence", Kind::Gauge, "Number of the last row of the audit.", d.last_sequence as f64);
    let since = d.start_timestamp_usec as f64 / 1e6;
    let help = "When the instance began to serve.";
    text.family("guardian_instance_start_time_seconds", Kind::Gauge, "seconds", help, &[(Vec::new(), since)]);
}

#[derive(Debug, Default)]
struct Sum {
    cpu_seconds: f64,
    memory_bytes: f64,
    tasks: f64,
    by: BTreeMap<(&'static str, &'static str), f64>,
}

#[allow(clippy::cast_precision_loss)] // Sums of what is measured.
fn of_runs(text: &mut Text, runs: &[RunView]) {
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for view in runs {
        let mut workflow = view.spec.workflow.as_str();
        if sums.len() >= WORKFLOWS_MAX && !sums.contains_key(workflow) {
            workflow = "other";
        }
        let sum = sums.entry(workflow).or_default();
        sum.cpu_seconds += view.usage.cpu_usec.unwrap_or(0) as f64 / 1e6;
        sum.memory_bytes += view.usage.memory_bytes.unwrap_or(0) as f64;
        sum.tasks += view.usage.tasks.unwrap_or(0) as f64;
        *sum.by.entry((view.phase.as_str(), view.health.as_str())).or_default() += 1.0;
    }
    let mut live = Vec::new();
    for (workflow, sum) in &sums {
        for ((phase, health), n) in &sum.by {
            live.push((vec![("workflow", *workflow), ("phase", *phase), ("health", *health)], *n));
        }
    }
    text.family("guardian_runs", Kind::Gauge, "", "Live runs.", &live);
    let each = |value: fn(&Sum) -> f64| -> Vec<_> {
        sums.iter().map(|(workflow, sum)| (vec![("workflow", *workflow)], value(sum))).collect()
    };
    let mut of = |name: &str, unit: &str, help: &str, value: fn(&Sum) -> f64| {
        text.family(name, Kind::Gauge, unit, help, &each(value));
    };
    of("guardian_run_cpu_seconds", "seconds", "CPU time that live runs have used so far.", |sum| sum.cpu_seconds);
    of("guardian_run_memory_bytes", "bytes", "Memory that live runs use.", |sum| sum.memory_bytes);
    of("guardian_run_tasks", "", "Tasks (threads) of live runs.", |sum| sum.tasks);
}

#[allow(clippy::cast_precision_loss)] // As above.
fn own(app: &App, is_open: bool, into: &mut String) {
    let mut text = Text::new(is_open);
    let answers = app.counters.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answers: Vec<_> = answers.iter().map(|(status, n)| (status.to_string(), *n as f64)).collect();
    let answers: Vec<_> = answers.iter().map(|(status, n)| (vec![("status", status.as_str())], *n)).collect();
    text.family("guardian_web_http_requests", Kind::Counter, "", "Requests that were answered.", &answers);
    let listeners = super::LISTENERS_MAX - app.listeners.available_permits();
    text.one("guardian_web_sse_clients", Kind::Gauge, "Who listens to events.", listeners as f64);
    let open = serve::CONNECTIONS_MAX - app.connections.available_permits();
    text.one("guardian_web_connections", Kind::Gauge, "Open connections.", open as f64);
    let refused = app.counters.refused.load(Ordering::Relaxed) as f64;
    let help = "Connections refused because there were too many.";
    text.one("guardian_web_connections_refused", Kind::Counter, help, refused);
    into.push_str(&text.text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_texts_have_their_names_and_escapes() {
        let of = |is_open| {
            let mut text = Text::new(is_open);
            text.family("a", Kind::Counter, "", "Help.", &[(vec![("l", "x\"\\\ny")], 2.0)]);
            text.family("b_seconds", Kind::Gauge, "seconds", "Help.", &[]);
            text.text
        };
        let sample = "a_total{l=\"x\\\"\\\\\\ny\"} 2\n";
        assert_eq!(
            of(true),
            format!(
                "# TYPE a counter\n# HELP a Help.\n{sample}# TYPE b_seconds gauge\n# UNIT b_seconds seconds\n# HELP b_seconds Help.\n"
            )
        );
        assert_eq!(
            of(false),
            format!(
                "# TYPE a_total counter\n# HELP a_total Help.\n{sample}# TYPE b_seconds gauge\n# HELP b_seconds Help.\n"
            )
        );
    }
}
