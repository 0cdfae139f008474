//! What there is to say about the runs that are over, as it is asked for and sent.

use std::collections::{BTreeMap, HashMap};

use zbus::{DeserializeDict, OwnedVariant, SerializeDict, Type};

use super::RunFilter;
use super::access::Request;
use super::filter::filter;
use crate::model::{Day, Error, Outcomes, Quantiles, Statistics, Suggested, Suggestion, Wall};

/// `(p50, p95, p99, greatest)`.
type WireQuantiles = (u64, u64, u64, u64);
/// `(midnight, outcomes, p50 of the durations, most memory)`: a [`Day`], times in µs. The greatest number for what is unknown.
type WireDay = (u64, BTreeMap<String, u64>, u64, u64);
/// `(limit, value, runs, p99, runs that exceed it)`: a [`Suggestion`].
type WireSuggestion = (String, u64, u64, u64, u64);

/// The statistics of a workflow as `a{sv}`.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct StatisticsDict {
    workflow: String,
    #[zbus(rename = "FirstTimestampUSec")]
    first_timestamp_usec: u64,
    #[zbus(rename = "LastTimestampUSec")]
    last_timestamp_usec: u64,
    outcomes: BTreeMap<String, u64>,
    kills: BTreeMap<String, u64>,
    #[zbus(rename = "DurationUSec")]
    duration_usec: Option<WireQuantiles>,
    #[zbus(rename = "CPUUsageNSec")]
    cpu_usage_nsec: Option<WireQuantiles>,
    memory_peak_bytes: Option<WireQuantiles>,
    days: Vec<WireDay>,
    suggestions: Vec<WireSuggestion>,
}

/// The keys of a filter that mean something here.
const KEYS: [&str; 4] = ["Workflow", "UID", "SinceUSec", "AllUsers"];

/// Reads a filter of runs that are over.
pub fn past_filter(dict: &HashMap<String, OwnedVariant>) -> Result<RunFilter, Error> {
    match dict.keys().find(|key| !KEYS.contains(&key.as_str())) {
        None => filter(dict),
        Some(other) => Err(Error::invalid(format!(
            "{:?} is not a filter of statistics: use Workflow, UID, SinceUSec or AllUsers",
            other.chars().take(40).collect::<String>()
        ))),
    }
}

/// The statistics of the runs that the caller may see.
pub async fn statistics(
    request: &Request<'_>,
    dict: &HashMap<String, OwnedVariant>,
) -> Result<Vec<StatisticsDict>, Error> {
    let filter = past_filter(dict)?;
    let own = request.peer.caller.uid;
    let see_all = request.sees_all(&filter).await?;
    // Runs of somebody else are, for who may not see them, not there.
    if !see_all && filter.uid.is_some_and(|wanted| wanted != own) {
        return Ok(Vec::new());
    }
    let uid = if see_all { filter.uid } else { Some(own) };
    let told = request.read(move |h| h.statistics(filter.workflow.as_deref(), uid, filter.since)).await?;
    Ok(told.iter().map(StatisticsDict::from).collect())
}

fn outcomes(of: &Outcomes) -> BTreeMap<String, u64> {
    of.named().into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
}

fn outcomes_from(wire: BTreeMap<String, u64>) -> Result<Outcomes, Error> {
    let mut outcomes = Outcomes::default();
    for (name, n) in wire {
        *outcomes.by_name(&name).ok_or_else(|| unreadable("outcome", &name))? = n;
    }
    Ok(outcomes)
}

fn unreadable(what: &str, name: &str) -> Error {
    let name: String = name.chars().take(40).collect();
    Error::internal(format!("the instance's statistics name the {what} {name:?}, which this version does not know"))
}

fn quantiles(of: Quantiles, times: u64) -> WireQuantiles {
    let [p50, p95, p99, max] = [of.p50, of.p95, of.p99, of.max].map(|value| value.saturating_mul(times));
    (p50, p95, p99, max)
}

fn quantiles_from((p50, p95, p99, max): WireQuantiles, divided: u64) -> Quantiles {
    Quantiles { p50: p50 / divided, p95: p95 / divided, p99: p99 / divided, max: max / divided }
}

impl From<&Statistics> for StatisticsDict {
    fn from(s: &Statistics) -> Self {
        let day = |d: &Day| {
            let known = |value: Option<u64>| value.unwrap_or(u64::MAX);
            (d.at.0, outcomes(&d.outcomes), known(d.duration_p50_usec), known(d.memory_peak_max_bytes))
        };
        let suggestion = |s: &Suggestion| (s.limit.as_str().to_owned(), s.value, s.basis, s.p99, s.exceeding);
        Self {
            workflow: s.workflow.clone(),
            first_timestamp_usec: s.first_at.0,
            last_timestamp_usec: s.last_at.0,
            outcomes: outcomes(&s.outcomes),
            kills: s.kills.clone(),
            duration_usec: s.duration_usec.map(|q| quantiles(q, 1)),
            cpu_usage_nsec: s.cpu_usec.map(|q| quantiles(q, 1000)),
            memory_peak_bytes: s.memory_peak_bytes.map(|q| quantiles(q, 1)),
            days: s.days.iter().map(day).collect(),
            suggestions: s.suggestions.iter().map(suggestion).collect(),
        }
    }
}

impl TryFrom<StatisticsDict> for Statistics {
    type Error = Error;

    fn try_from(d: StatisticsDict) -> Result<Self, Error> {
        let day = |(at, outcomes, duration, memory): WireDay| {
            let known = |value: u64| (value != u64::MAX).then_some(value);
            Ok(Day {
                at: Wall(at),
                outcomes: outcomes_from(outcomes)?,
                duration_p50_usec: known(duration),
                memory_peak_max_bytes: known(memory),
            })
        };
        let suggestion = |(limit, value, basis, p99, exceeding): WireSuggestion| {
            let limit =
                Suggested::ALL.into_iter().find(|l| l.as_str() == limit).ok_or_else(|| unreadable("limit", &limit));
            Ok(Suggestion { limit: limit?, value, basis, p99, exceeding })
        };
        Ok(Statistics {
            workflow: d.workflow,
            first_at: Wall(d.first_timestamp_usec),
            last_at: Wall(d.last_timestamp_usec),
            outcomes: outcomes_from(d.outcomes)?,
            kills: d.kills,
            duration_usec: d.duration_usec.map(|q| quantiles_from(q, 1)),
            cpu_usec: d.cpu_usage_nsec.map(|q| quantiles_from(q, 1000)),
            memory_peak_bytes: d.memory_peak_bytes.map(|q| quantiles_from(q, 1)),
            days: d.days.into_iter().map(day).collect::<Result<_, Error>>()?,
            suggestions: d.suggestions.into_iter().map(suggestion).collect::<Result<_, Error>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_come_back_as_they_were_sent() {
        let q = |n| Some(Quantiles { p50: n, p95: n + 1, p99: n + 2, max: n + 3 });
        let outcomes = Outcomes { succeeded: 7, killed: 2, ..Outcomes::default() };
        let day = Day { at: Wall(86_400_000_000), outcomes, duration_p50_usec: None, memory_peak_max_bytes: Some(5) };
        let suggestion = Suggestion { limit: Suggested::MemoryMax, value: 9, basis: 8, p99: 7, exceeding: 6 };
        let told = Statistics {
            workflow: "builder".into(),
            first_at: Wall(1),
            last_at: Wall(2),
            outcomes,
            kills: BTreeMap::from([("max_runtime".to_owned(), 2)]),
            duration_usec: q(10),
            cpu_usec: q(20),
            memory_peak_bytes: None,
            days: vec![day],
            suggestions: vec![suggestion],
        };
        assert_eq!(Statistics::try_from(StatisticsDict::from(&told)), Ok(told));
    }

    #[test]
    fn what_this_version_does_not_know_is_said_and_not_left_out() {
        let dict = StatisticsDict { outcomes: BTreeMap::from([("vanished".to_owned(), 1)]), ..Default::default() };
        let e = Statistics::try_from(dict).unwrap_err();
        assert!(e.message.contains("the outcome \"vanished\""), "{e}");
    }

    #[test]
    fn a_filter_that_means_nothing_here_is_refused() {
        let dict = HashMap::from([("Health".to_owned(), OwnedVariant::from(true))]);
        let e = past_filter(&dict).unwrap_err();
        assert!(e.message.contains("use Workflow, UID, SinceUSec or AllUsers"), "{e}");
    }
}
