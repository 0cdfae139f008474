//! Which runs a caller asks for: filters, on the wire and back.

use std::collections::HashMap;

use zbus::{DeserializeDict, OwnedVariant, SerializeDict, Type};

use super::{RunFilter, view};
use crate::model::{Error, Wall};

/// A filter as `a{sv}`.
#[derive(Debug, Clone, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct FilterDict {
    workflow: Option<String>,
    phase: Option<String>,
    health: Option<String>,
    #[zbus(rename = "UID")]
    uid: Option<u32>,
    #[zbus(rename = "SinceUSec")]
    since_usec: Option<u64>,
    #[zbus(rename = "BeforeUSec")]
    before_usec: Option<u64>,
    finished: Option<bool>,
    all_users: Option<bool>,
    limit: Option<u32>,
}

impl From<&RunFilter> for FilterDict {
    fn from(f: &RunFilter) -> Self {
        Self {
            workflow: f.workflow.clone(),
            phase: f.phase.map(|p| p.as_str().into()),
            health: f.health.map(|h| h.as_str().into()),
            uid: f.uid,
            since_usec: f.since.map(|s| s.0),
            before_usec: f.before.map(|b| b.0),
            finished: f.finished.then_some(true),
            all_users: f.all_users.then_some(true),
            limit: (f.limit != 0).then_some(f.limit),
        }
    }
}

/// Reads a filter. Unknown keys are refused: a filter that is silently not applied shows what nobody asked for.
pub fn filter(dict: &HashMap<String, OwnedVariant>) -> Result<RunFilter, Error> {
    let mut filter = RunFilter { limit: RunFilter::DEFAULT_LIMIT, ..RunFilter::default() };
    let bad = |key: &str, wanted: &str| Error::invalid(format!("the filter {key} has the D-Bus type {wanted}"));
    let text = |key: &str, v: &OwnedVariant| <&str>::try_from(v).map(str::to_owned).map_err(|_| bad(key, "s"));
    for (key, value) in dict {
        match key.as_str() {
            "Workflow" => filter.workflow = Some(text(key, value)?),
            "Phase" => {
                filter.phase =
                    Some(view::phase_from(&text(key, value)?).map_err(|_| {
                        one_of(key, "queued, starting, initializing, running, stopping, killing, finished")
                    })?)
            }
            "Health" => {
                filter.health =
                    Some(view::health_from(&text(key, value)?).map_err(|_| one_of(key, "healthy, warning, critical"))?)
            }
            "UID" => filter.uid = Some(u32::try_from(value).map_err(|_| bad(key, "u"))?),
            "SinceUSec" => filter.since = Some(Wall(u64::try_from(value).map_err(|_| bad(key, "t"))?)),
            "BeforeUSec" => filter.before = Some(Wall(u64::try_from(value).map_err(|_| bad(key, "t"))?)),
            "Finished" => filter.finished = bool::try_from(value).map_err(|_| bad(key, "b"))?,
            "AllUsers" => filter.all_users = bool::try_from(value).map_err(|_| bad(key, "b"))?,
            "Limit" => filter.limit = u32::try_from(value).map_err(|_| bad(key, "u"))?.clamp(1, RunFilter::MAX_LIMIT),
            other => {
                return Err(Error::invalid(format!(
                    "{:?} is not a filter: use Workflow, Phase, Health, UID, SinceUSec, BeforeUSec, Finished, AllUsers or Limit",
                    other.chars().take(40).collect::<String>()
                )));
            }
        }
    }
    Ok(filter)
}

fn one_of(key: &str, names: &str) -> Error {
    Error::invalid(format!("the filter {key} is one of {names}"))
}
