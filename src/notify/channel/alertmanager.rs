//! Alertmanager: what is on and what is over, by its API (v2). It forgets what it is not told again, so that what is on is told
//! each minute; if this process is gone, it is over there five minutes later.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Failure, json_body};
use crate::json::utc_time;
use crate::model::Wall;
use crate::notify::config::Channel;
use crate::notify::event::{Event, Notice};
use crate::notify::http;
use crate::notify::secret::Secret;

/// How often what is on is told again.
pub const AGAIN: Duration = Duration::from_secs(60);

/// How long what was told is on, in microseconds, if it is not told again; and for how long what is over at once is shown.
const LASTS: u64 = 300 * 1_000_000;

/// An alert that is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Alert {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    starts_at: Wall,
}

impl Alert {
    fn of(notice: &Notice) -> Self {
        let name = match notice.event {
            Event::Warning => "GuardianRunWarning",
            Event::Critical => "GuardianRunCritical",
            Event::Unkillable => "GuardianRunUnkillable",
            Event::Killed => "GuardianRunKilled",
            Event::Failed => "GuardianRunFailed",
            Event::Recovered | Event::Finished => "GuardianRunFinished",
            Event::Trouble => "GuardianTrouble",
            Event::Test => "GuardianTest",
        };
        let mut labels: BTreeMap<_, _> = [
            ("alertname", name.to_owned()),
            ("severity", notice.severity.as_str().to_owned()),
            ("host", notice.host.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        match &notice.about {
            Some(about) => {
                labels.insert("run_id".to_owned(), about.run.clone());
                labels.insert("workflow".to_owned(), about.workflow.clone());
            }
            None => drop(labels.insert("topic".to_owned(), notice.topic.clone())),
        }
        let annotations = [("summary".to_owned(), notice.sentence.clone())].into();
        Self { labels, annotations, starts_at: notice.at }
    }

    fn until(&self, ends_at: Wall) -> Value {
        // An end that is not after the beginning is refused.
        let ends_at = Wall(ends_at.0.max(self.starts_at.0.saturating_add(1000)));
        json!({
            "labels": self.labels,
            "annotations": self.annotations,
            "startsAt": utc_time(self.starts_at),
            "endsAt": utc_time(ends_at),
        })
    }
}

/// What a notice changes.
#[derive(Debug, Default, PartialEq)]
pub struct Change {
    /// What is to be told.
    pub posts: Vec<Value>,
    /// What is on afterwards, by run and name.
    pub on: BTreeMap<String, String>,
}

/// What a notice changes of what is on.
pub fn change(mut on: BTreeMap<String, String>, notice: &Notice, only_ends: bool, now: Wall) -> Change {
    let mut posts = Vec::new();
    let mut end = |on: &mut BTreeMap<String, String>, is_over: &dyn Fn(&str) -> bool| {
        let prefix = format!("{}/", notice.run());
        on.retain(|key, body| {
            let over = key.strip_prefix(&prefix).is_some_and(is_over);
            if over && let Ok(alert) = serde_json::from_str::<Alert>(body) {
                posts.push(alert.until(notice.at));
            }
            !over
        });
    };
    let key = format!("{}/{}", notice.run(), notice.event.as_str());
    match notice.event {
        event if event.ends_trouble() => end(&mut on, &|_| true),
        // It is better or worse, and not both.
        Event::Warning => end(&mut on, &|event| event == "critical"),
        Event::Critical => end(&mut on, &|event| event == "warning"),
        _ => {}
    }
    if only_ends || matches!(notice.event, Event::Recovered | Event::Finished) {
        return Change { posts, on };
    }
    let alert = Alert::of(notice);
    // What the audit says of the instance has happened; what the instance says of its health goes on.
    let goes_on = matches!(notice.event, Event::Warning | Event::Critical | Event::Unkillable)
        || (notice.event == Event::Trouble && notice.audit.is_null());
    match on.get(&key).and_then(|body| serde_json::from_str::<Alert>(body).ok()) {
        // The same goes on, with other words.
        Some(old) if goes_on => {
            let alert = Alert { starts_at: old.starts_at, ..alert };
            posts.push(alert.until(Wall(now.0.saturating_add(LASTS))));
            on.insert(key, serde_json::to_string(&alert).unwrap_or_default());
        }
        _ => {
            posts.push(alert.until(Wall(now.0.saturating_add(LASTS))));
            if goes_on {
                on.insert(key, serde_json::to_string(&alert).unwrap_or_default());
            }
        }
    }
    Change { posts, on }
}

/// What is on, to be told again.
pub fn again(on: &BTreeMap<String, String>, now: Wall) -> Vec<Value> {
    let alerts = on.values().filter_map(|body| serde_json::from_str::<Alert>(body).ok());
    alerts.map(|alert| alert.until(Wall(now.0.saturating_add(LASTS)))).collect()
}

/// Tells these.
pub fn post(channel: &Channel, url: &Secret, token: Option<&Secret>, alerts: &[Value]) -> Result<(), Failure> {
    if alerts.is_empty() {
        return Ok(());
    }
    let mut headers = vec![("Content-Type", "application/json")];
    let authorization;
    if let Some(token) = token {
        authorization = format!("Bearer {}", token.read().map_err(Failure::of_channel)?);
        headers.push(("Authorization", &authorization));
    }
    http::post(channel, url, "/api/v2/alerts", &headers, &json_body(&Value::Array(alerts.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EventKind;
    use crate::notify::event::{notice, tests::row};

    fn health(seq: u64, to: &str) -> Notice {
        notice(&row(seq, EventKind::HealthChanged, json!({ "to": to })), None, "h").unwrap()
    }

    fn told(change: &Change) -> Vec<(String, bool)> {
        let now = utc_time(Wall(1_000_000_000));
        let one =
            |v: &Value| (v["labels"]["alertname"].as_str().unwrap().to_owned(), v["endsAt"].as_str().unwrap() > &*now);
        change.posts.iter().map(one).collect()
    }

    #[test]
    fn an_alert_goes_on_until_the_run_is_well_or_over() {
        let now = Wall(1_000_000_000);
        let warned = change(BTreeMap::new(), &health(1, "warning"), false, now);
        assert_eq!(told(&warned), [("GuardianRunWarning".to_owned(), true)]);
        let critical = change(warned.on, &health(2, "critical"), false, now);
        assert_eq!(told(&critical), [("GuardianRunWarning".into(), false), ("GuardianRunCritical".to_owned(), true)]);
        assert_eq!(again(&critical.on, now).len(), 1);
        let details = json!({ "outcome": { "kind": "killed", "reason": { "kind": "limit" } } });
        let killed = notice(&row(3, EventKind::RunFinished, details), None, "h").unwrap();
        let over = change(critical.on.clone(), &killed, false, now);
        assert_eq!(told(&over), [("GuardianRunCritical".into(), false), ("GuardianRunKilled".to_owned(), true)]);
        assert!(over.on.is_empty());
        let only = change(critical.on, &killed, true, now);
        assert_eq!(told(&only), [("GuardianRunCritical".to_owned(), false)]);
    }

    #[test]
    fn what_is_told_again_began_when_it_was_told_first() {
        let first = change(BTreeMap::new(), &health(1, "critical"), false, Wall(5));
        let second = change(first.on, &health(9, "critical"), false, Wall(5));
        assert_eq!(second.posts[0]["startsAt"], utc_time(Wall(1_000_000)));
    }
}
