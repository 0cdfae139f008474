//! What a run waits for: of a live one as it is now, of one that was killed as it was just before the first signal.

use std::time::Duration;

use zbus::{DeserializeDict, SerializeDict, Type};

use super::access::{Request, blocking};
use super::view;
use crate::model::{Error, Evidence, KillReason, Phase, RunId, RunView, Wall, explain, signs_of_life};

/// How long a live run's use of the CPU is watched. A thread is on a CPU for some milliseconds at a time.
const WATCH: Duration = Duration::from_millis(100);

/// An explanation, as a client has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Of which run.
    pub run: RunId,
    /// In one sentence.
    pub sentence: String,
    /// A line for each process, and more.
    pub details: Vec<String>,
    /// What it is made of.
    pub evidence: Evidence,
    /// When that was seen.
    pub seen_at: Wall,
    /// It was kept with a kill, and the run is finished.
    pub is_kept: bool,
}

/// The same as `a{sv}`. The evidence is a JSON object.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct ExplanationDict {
    #[zbus(rename = "RunID")]
    run_id: String,
    sentence: String,
    details: Vec<String>,
    evidence: String,
    #[zbus(rename = "SeenTimestampUSec")]
    seen_timestamp_usec: u64,
    kept: bool,
}

/// Explains a run that the caller may see.
pub async fn explanation(request: &Request<'_>, run: &RunView) -> Result<ExplanationDict, Error> {
    let id = run.spec.id;
    if run.phase != Phase::Finished {
        let (look, view) = (request.services.evidence.clone(), run.clone());
        let evidence = blocking(move || look(&view, WATCH)).await?;
        // It may have ended, or be ended, meanwhile: what there is of it now is what counts.
        if evidence.total > 0 || request.services.published.run(id).is_some_and(|v| v.phase != Phase::Finished) {
            let growth = request.services.published.growth(id);
            let at = evidence.seen_at.unwrap_or(run.created_at);
            return dict(run, None, Evidence { growth, ..evidence }, at);
        }
    }
    // The record has more of it than what is kept at hand.
    let recorded = request.read(move |h| h.run(id)).await?;
    let receipt = recorded.and_then(|v| v.receipt).or_else(|| run.receipt.clone());
    let receipt = receipt.filter(|r| !r.explanation.is_empty()).ok_or_else(|| nothing_kept(id))?;
    let (processes, total, growth) = (receipt.processes, receipt.processes_total, receipt.growth);
    let evidence = Evidence { processes, total, growth, seen_at: Some(receipt.requested_at), ..Evidence::default() };
    let left_behind = receipt.reason == KillReason::Leftovers;
    let left = receipt.remains.map(|remains| remains.lines(left_behind)).unwrap_or_default();
    let mut explained = dict(run, Some(receipt.explanation), evidence, receipt.requested_at)?;
    explained.details.extend(left);
    Ok(explained)
}

fn nothing_kept(id: RunId) -> Error {
    let mut error = Error::already_finished(id);
    error.message = format!(
        "{id} is finished and was not killed, so nobody looked at what it waited for: `guardian show {id}` says how it ended"
    );
    error
}

fn dict(view: &RunView, kept: Option<String>, evidence: Evidence, at: Wall) -> Result<ExplanationDict, Error> {
    let (run, now) = (view.spec.id, explain(&evidence));
    let signs = signs_of_life(&view.heartbeats, evidence.output.as_ref(), at);
    let outside = view.escapees.iter().map(|escapee| format!("outside of the run: {escapee}"));
    let json = serde_json::to_string(&evidence).map_err(|e| Error::internal(format!("the evidence of {run}: {e}")))?;
    Ok(ExplanationDict {
        run_id: run.to_string(),
        kept: kept.is_some(),
        sentence: kept.unwrap_or(now.sentence),
        details: now.details.into_iter().chain(signs).chain(outside).collect(),
        evidence: json,
        seen_timestamp_usec: at.0,
    })
}

impl TryFrom<ExplanationDict> for Explained {
    type Error = Error;

    fn try_from(d: ExplanationDict) -> Result<Self, Error> {
        let unreadable = |e: serde_json::Error| {
            Error::internal(format!(
                "the instance's evidence cannot be read: {e}; `guardian doctor` tells both versions"
            ))
        };
        Ok(Self {
            run: view::parsed(&d.run_id)?,
            sentence: d.sentence,
            details: d.details,
            evidence: serde_json::from_str(&d.evidence).map_err(unreadable)?,
            seen_at: Wall(d.seen_timestamp_usec),
            is_kept: d.kept,
        })
    }
}
