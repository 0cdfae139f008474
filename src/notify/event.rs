//! What people are told of: an event of the audit, or trouble of the instance, as a notice.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::json;
use crate::model::{AuditRow, EventKind, RunView, Wall};

/// What has happened, in the words of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A run's health is `warning`, or a limit of it is near.
    Warning,
    /// A run's health is `critical`.
    Critical,
    /// A run is healthy again, or the instance is.
    Recovered,
    /// A run was ended by Guardian, and that is proved.
    Killed,
    /// A run was not launched, or ended for memory, or nobody knows how.
    Failed,
    /// A run is not empty 60 s after SIGKILL.
    Unkillable,
    /// A run has ended by itself.
    Finished,
    /// Guardian itself is in trouble.
    Trouble,
    /// Somebody wants to know whether messages arrive.
    Test,
}

impl Event {
    /// Those that a route can name.
    pub const ALL: [Event; 8] = [
        Event::Warning,
        Event::Critical,
        Event::Recovered,
        Event::Killed,
        Event::Failed,
        Event::Unkillable,
        Event::Finished,
        Event::Trouble,
    ];

    /// The name in the configuration and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Event::Warning => "warning",
            Event::Critical => "critical",
            Event::Recovered => "recovered",
            Event::Killed => "killed",
            Event::Failed => "failed",
            Event::Unkillable => "unkillable",
            Event::Finished => "finished",
            Event::Trouble => "trouble",
            Event::Test => "test",
        }
    }

    /// Whether a route that names no events wants it: a run that ended by itself is no news.
    pub fn is_news(self) -> bool {
        self != Event::Finished
    }

    /// Whether a run's troubles are over with it.
    pub fn ends_trouble(self) -> bool {
        matches!(self, Event::Recovered | Event::Finished | Event::Killed | Event::Failed)
    }
}

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look.
    Warning,
    /// Somebody has to look now.
    Critical,
}

impl Severity {
    /// Each, from the least.
    pub const ALL: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Critical];

    /// The name in the configuration and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// The run that a notice is about, as it was when the audit was read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Its id.
    pub run: String,
    /// Its workflow.
    pub workflow: String,
    /// Its name, if it has one.
    pub name: String,
    /// Its owner; empty where the run is not known any more.
    pub user: String,
    /// The run as JSON, as `guardian show --json` has it but for its arguments; null where it is not known any more.
    pub view: Value,
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Of the same event always the same: by it receivers know what they have got already.
    pub id: String,
    /// What.
    pub event: Event,
    /// How much it matters.
    pub severity: Severity,
    /// When.
    pub at: Wall,
    /// The run; none if it is about the instance.
    pub about: Option<About>,
    /// What it is about where it is no run: `guardiand`, or the kind of the audit's event.
    pub topic: String,
    /// In a sentence.
    pub sentence: String,
    /// The host.
    pub host: String,
    /// The row of the audit as JSON, without evidence and command lines; null if it was not the audit that said so.
    pub audit: Value,
}

impl Notice {
    /// The run's id, or nothing: what order is kept for.
    pub fn run(&self) -> &str {
        self.about.as_ref().map_or("", |about| &about.run)
    }

    /// What a window of deduplication is for, beside route and run.
    pub fn key(&self) -> String {
        match self.about {
            Some(_) => self.event.as_str().to_owned(),
            None => format!("{}:{}", self.event.as_str(), self.topic),
        }
    }

    /// About the instance itself.
    pub fn of_instance(event: Event, at: Wall, sentence: String, host: &str) -> Self {
        let severity = if event == Event::Trouble { Severity::Critical } else { Severity::Info };
        Self {
            id: format!("{}-{}", event.as_str(), at.0),
            event,
            severity,
            at,
            about: None,
            topic: "guardiand".to_owned(),
            sentence,
            host: host.to_owned(),
            audit: Value::Null,
        }
    }
}

/// What the row says to people, if anything: event, how much it matters, sentence.
fn meaning(row: &AuditRow) -> Option<(Event, Severity, String)> {
    let event = &row.event;
    let text = |path: &str| event.details.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (what, severity) = match event.kind {
        EventKind::HealthChanged => match text("/to") {
            "warning" => (Event::Warning, Severity::Warning),
            "critical" => (Event::Critical, Severity::Critical),
            _ => (Event::Recovered, Severity::Info),
        },
        EventKind::LimitWarning | EventKind::HeartbeatLate => (Event::Warning, Severity::Warning),
        EventKind::Verdict
            if matches!(text("/rule"), "spin_timeout" | "input_timeout" | "permission_timeout" | "loop") =>
        {
            (Event::Warning, Severity::Warning)
        }
        EventKind::Verdict => (Event::Critical, Severity::Critical),
        EventKind::Unkillable => (Event::Unkillable, Severity::Critical),
        EventKind::LaunchFailed => (Event::Failed, Severity::Warning),
        EventKind::RunFinished => match (text("/outcome/kind"), text("/outcome/reason/kind")) {
            // Whoever asked for it knows; the others may want to.
            ("killed", "requested") => (Event::Killed, Severity::Info),
            ("killed", _) => (Event::Killed, Severity::Warning),
            ("oom" | "lost", _) => (Event::Failed, Severity::Warning),
            _ => (Event::Finished, Severity::Info),
        },
        EventKind::StoreSetAside | EventKind::ContainmentLost => (Event::Trouble, Severity::Critical),
        EventKind::ForeignCgroup => (Event::Trouble, Severity::Warning),
        _ => return None,
    };
    let why = text("/receipt/explanation");
    let sentence = match (event.reason.as_str(), why) {
        ("", _) => event.kind.as_str().to_owned(),
        (reason, "") => reason.to_owned(),
        (reason, why) => format!("{reason}; before that, {why}"),
    };
    Some((what, severity, sentence))
}

/// The rows of the audit that people are told of. What a change of health says, on record with it, is said once.
pub fn worth_telling(rows: &[AuditRow]) -> Vec<&AuditRow> {
    let told_with_health: HashSet<_> = rows
        .iter()
        .filter(|row| row.event.kind == EventKind::HealthChanged)
        .map(|row| (row.event.run, row.event.at))
        .collect();
    let is_told = |row: &&AuditRow| match row.event.kind {
        EventKind::LimitWarning | EventKind::HeartbeatLate | EventKind::Verdict => {
            !told_with_health.contains(&(row.event.run, row.event.at))
        }
        _ => true,
    };
    rows.iter().filter(is_told).filter(|row| meaning(row).is_some()).collect()
}

/// The notice of a row, with the run as it is now, if it is known.
pub fn notice(row: &AuditRow, run: Option<&RunView>, host: &str) -> Option<Notice> {
    let (event, severity, sentence) = meaning(row)?;
    let about = row.event.run.map(|id| About {
        run: id.to_string(),
        workflow: row.event.workflow.clone().unwrap_or_default(),
        name: run.and_then(|r| r.spec.name.clone()).unwrap_or_default(),
        user: run.map(|r| r.spec.user.clone()).unwrap_or_default(),
        view: run.map_or(Value::Null, |r| without_arguments(json::run(r))),
    });
    let mut audit = json::row(row);
    strip(&mut audit);
    Some(Notice {
        id: format!("audit-{}-{}", row.seq, row.hash.get(..12).unwrap_or(&row.hash)),
        event,
        severity,
        at: row.event.at,
        about,
        topic: row.event.kind.as_str().to_owned(),
        sentence,
        host: host.to_owned(),
        audit,
    })
}

/// Arguments are for the owner and root: what they say does not leave the host. The program's name does.
fn without_arguments(mut run: Value) -> Value {
    let program = run.pointer("/command/0").cloned();
    if let Some(command) = run.get_mut("command") {
        *command = Value::Array(program.into_iter().collect());
    }
    run
}

/// Takes out what may hold command lines, and what is long.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !matches!(key.as_str(), "evidence" | "processes" | "command"));
            map.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// What a webhook and a program get: every notice, with its run.
pub fn body(notices: &[Notice]) -> Value {
    let one = |n: &Notice| {
        json!({
            "id": n.id,
            "event": n.event,
            "severity": n.severity,
            "at": json::utc_time(n.at),
            "at_usec": n.at.0,
            "sentence": n.sentence,
            "run_id": n.about.as_ref().map(|a| &a.run),
            "workflow": n.about.as_ref().map(|a| &a.workflow),
            "audit": n.audit,
            "run": n.about.as_ref().map(|a| &a.view),
        })
    };
    json!({
        "version": 1,
        "host": notices.first().map(|n| &n.host),
        "events": notices.iter().map(one).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Actor, AuditEvent, RunId};

    pub(in crate::notify) fn row(seq: u64, kind: EventKind, details: Value) -> AuditRow {
        let event = AuditEvent {
            at: Wall(seq * 1_000_000),
            kind,
            run: Some(RunId::from_bytes([7; 6])),
            workflow: Some("builder".to_owned()),
            actor: Actor::Guardian,
            reason: "it is so".to_owned(),
            details,
        };
        AuditRow { seq, event, hash: format!("{seq:064x}") }
    }

    #[test]
    fn each_event_of_the_audit_is_told_as_what_it_means_to_people() {
        let health = |to: &str| (EventKind::HealthChanged, json!({ "to": to }));
        let over = |outcome: Value| (EventKind::RunFinished, json!({ "outcome": outcome }));
        let killed = |kind: &str| over(json!({ "kind": "killed", "reason": { "kind": kind } }));
        for ((kind, details), expected) in [
            (health("warning"), Some((Event::Warning, Severity::Warning))),
            (health("critical"), Some((Event::Critical, Severity::Critical))),
            (health("healthy"), Some((Event::Recovered, Severity::Info))),
            (killed("limit"), Some((Event::Killed, Severity::Warning))),
            (killed("requested"), Some((Event::Killed, Severity::Info))),
            (over(json!({ "kind": "oom" })), Some((Event::Failed, Severity::Warning))),
            (over(json!({ "kind": "exited", "code": 1 })), Some((Event::Finished, Severity::Info))),
            ((EventKind::Unkillable, json!({})), Some((Event::Unkillable, Severity::Critical))),
            ((EventKind::StoreSetAside, json!({})), Some((Event::Trouble, Severity::Critical))),
            ((EventKind::Verdict, json!({ "rule": "idle_timeout" })), Some((Event::Critical, Severity::Critical))),
            ((EventKind::Verdict, json!({ "rule": "spin_timeout" })), Some((Event::Warning, Severity::Warning))),
            ((EventKind::Verdict, json!({ "rule": "loop" })), Some((Event::Warning, Severity::Warning))),
            ((EventKind::Verdict, json!({ "rule": "max_cost" })), Some((Event::Critical, Severity::Critical))),
            ((EventKind::RunStarted, json!({})), None),
            ((EventKind::KillIntent, json!({})), None),
        ] {
            let told = meaning(&row(1, kind, details.clone())).map(|(event, severity, _)| (event, severity));
            assert_eq!(told, expected, "{kind:?} {details}");
        }
    }

    #[test]
    fn what_a_change_of_health_says_is_said_once() {
        let mut rows = vec![
            row(1, EventKind::LimitWarning, json!({})),
            row(2, EventKind::HealthChanged, json!({ "to": "warning" })),
            row(3, EventKind::LimitWarning, json!({})),
        ];
        rows[1].event.at = rows[0].event.at;
        assert_eq!(worth_telling(&rows).iter().map(|r| r.seq).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn no_command_line_leaves_the_host() {
        let details = json!({ "outcome": { "kind": "oom" }, "receipt": { "processes": [{ "command": "x --secret" }],
            "explanation": "it slept" }, "evidence": { "command": "x --secret" } });
        let notice = notice(&row(4, EventKind::RunFinished, details), None, "h").unwrap();
        assert!(!body(std::slice::from_ref(&notice)).to_string().contains("secret"));
        assert_eq!(notice.sentence, "it is so; before that, it slept");
        let run = without_arguments(json!({ "command": ["curl", "--token", "secret"] }));
        assert_eq!(run, json!({ "command": ["curl"] }));
    }
}
