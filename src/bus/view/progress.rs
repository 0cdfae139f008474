//! The wire form of how far an agent has come.

use zbus::{DeserializeDict, SerializeDict, Type};

use super::super::wire::{self, Entry};
use crate::model::{AgentResult, Progress};

dict! {
    /// How far an agent has come, as `a{sv}`. What it has not reported is absent.
    ProgressDict {
        "Session" session: [Option<String>],
        "Model" model: [Option<String>],
        "Turns" turns: [Option<u64>],
        "TurnsMax" turns_max: [Option<u64>],
        "Tokens" tokens: [Option<u64>],
        "CostMicroUSD" cost_micro_usd: [Option<u64>],
        "Tool" tool: [Option<String>],
        "Repeats" repeats: [Option<u64>],
        "Repeated" repeated: [Option<String>],
        "Waiting" waiting: [Option<String>],
        "Success" success: [Option<bool>],
        "Report" report: [Option<String>],
    }
}

within!(ProgressDict);

impl From<&Progress> for ProgressDict {
    fn from(p: &Progress) -> Self {
        let positive = |n: u64| (n > 0).then_some(n);
        Self {
            session: p.session.clone(),
            model: p.model.clone(),
            turns: Some(p.turns),
            turns_max: p.turns_max,
            tokens: positive(p.tokens),
            cost_micro_usd: p.cost_micro_usd,
            tool: p.tool.clone(),
            repeats: positive(p.repeats),
            repeated: p.repeated.clone(),
            waiting: p.waiting.clone(),
            success: p.result.as_ref().map(|r| r.success),
            report: p.result.as_ref().map(|r| r.text.clone()),
        }
    }
}

impl From<ProgressDict> for Progress {
    fn from(d: ProgressDict) -> Self {
        let result = d.success.map(|success| AgentResult { success, text: d.report.unwrap_or_default() });
        Self {
            session: d.session,
            model: d.model,
            turns: d.turns.unwrap_or_default(),
            turns_max: d.turns_max,
            tokens: d.tokens.unwrap_or_default(),
            cost_micro_usd: d.cost_micro_usd,
            tool: d.tool,
            repeats: d.repeats.unwrap_or_default(),
            repeated: d.repeated,
            waiting: d.waiting,
            result,
        }
    }
}
