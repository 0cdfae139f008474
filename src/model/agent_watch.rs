//! What an agent is watched for: the limits of its turns, tokens and cost, and its ways of being stuck that no counter of the
//! kernel shows. They are judged on what the run reports ([`super::Progress`]); one that reports nothing is not held to them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Action, Limits, Rule};

/// The limits of an agent, and what the rules do. What is `None` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentWatch {
    /// How long a turn may take, from its beginning to the next or to the final report.
    pub turn_timeout: Option<Duration>,
    /// What is done then.
    pub turn_action: Action,
    /// How often in a row the same may happen: a tool called with the same arguments, or an error.
    pub loop_max: Option<u64>,
    /// What is done when it has.
    pub loop_action: Action,
    /// How many turns it may take.
    pub max_turns: Option<u64>,
    /// What is done when it begins one more.
    pub max_turns_action: Action,
    /// How many tokens it may use, input and output together.
    pub max_tokens: Option<u64>,
    /// What is done when it has.
    pub max_tokens_action: Action,
    /// What it may cost, in millionths of a US dollar.
    pub max_cost_micro_usd: Option<u64>,
    /// What is done when it has.
    pub max_cost_action: Action,
    /// How long it may wait for a permission, or for input that it asks for.
    pub permission_timeout: Option<Duration>,
    /// What is done then.
    pub permission_action: Action,
}

/// What holds for a run that was recorded before there were these rules.
impl Default for AgentWatch {
    fn default() -> Self {
        Self {
            turn_timeout: None,
            turn_action: Action::Kill,
            loop_max: None,
            loop_action: Action::Warn,
            max_turns: None,
            max_turns_action: Action::Kill,
            max_tokens: None,
            max_tokens_action: Action::Kill,
            max_cost_micro_usd: None,
            max_cost_action: Action::Kill,
            permission_timeout: None,
            permission_action: Action::Warn,
        }
    }
}

/// What a caller named of [`AgentWatch`]; what is `None` comes from the workflow. `Some(None)` is `off`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentWatchUpdate {
    /// See [`AgentWatch::turn_timeout`].
    pub turn_timeout: Option<Option<Duration>>,
    /// See [`AgentWatch::turn_action`].
    pub turn_action: Option<Action>,
    /// See [`AgentWatch::loop_max`].
    pub loop_max: Option<Option<u64>>,
    /// See [`AgentWatch::loop_action`].
    pub loop_action: Option<Action>,
    /// See [`AgentWatch::max_turns`].
    pub max_turns: Option<Option<u64>>,
    /// See [`AgentWatch::max_turns_action`].
    pub max_turns_action: Option<Action>,
    /// See [`AgentWatch::max_tokens`].
    pub max_tokens: Option<Option<u64>>,
    /// See [`AgentWatch::max_tokens_action`].
    pub max_tokens_action: Option<Action>,
    /// See [`AgentWatch::max_cost_micro_usd`].
    pub max_cost_micro_usd: Option<Option<u64>>,
    /// See [`AgentWatch::max_cost_action`].
    pub max_cost_action: Option<Action>,
    /// See [`AgentWatch::permission_timeout`].
    pub permission_timeout: Option<Option<Duration>>,
    /// See [`AgentWatch::permission_action`].
    pub permission_action: Option<Action>,
}

impl AgentWatch {
    /// These with what the update names put in their place.
    pub fn with(self, update: &AgentWatchUpdate) -> Self {
        Self {
            turn_timeout: update.turn_timeout.unwrap_or(self.turn_timeout),
            turn_action: update.turn_action.unwrap_or(self.turn_action),
            loop_max: update.loop_max.unwrap_or(self.loop_max),
            loop_action: update.loop_action.unwrap_or(self.loop_action),
            max_turns: update.max_turns.unwrap_or(self.max_turns),
            max_turns_action: update.max_turns_action.unwrap_or(self.max_turns_action),
            max_tokens: update.max_tokens.unwrap_or(self.max_tokens),
            max_tokens_action: update.max_tokens_action.unwrap_or(self.max_tokens_action),
            max_cost_micro_usd: update.max_cost_micro_usd.unwrap_or(self.max_cost_micro_usd),
            max_cost_action: update.max_cost_action.unwrap_or(self.max_cost_action),
            permission_timeout: update.permission_timeout.unwrap_or(self.permission_timeout),
            permission_action: update.permission_action.unwrap_or(self.permission_action),
        }
    }
}

impl From<AgentWatch> for AgentWatchUpdate {
    fn from(w: AgentWatch) -> Self {
        Self {
            turn_timeout: Some(w.turn_timeout),
            turn_action: Some(w.turn_action),
            loop_max: Some(w.loop_max),
            loop_action: Some(w.loop_action),
            max_turns: Some(w.max_turns),
            max_turns_action: Some(w.max_turns_action),
            max_tokens: Some(w.max_tokens),
            max_tokens_action: Some(w.max_tokens_action),
            max_cost_micro_usd: Some(w.max_cost_micro_usd),
            max_cost_action: Some(w.max_cost_action),
            permission_timeout: Some(w.permission_timeout),
            permission_action: Some(w.permission_action),
        }
    }
}

impl Rule {
    /// The rules whose limit is a number, and no time: what is counted is what the run reports.
    pub const COUNTED: [Rule; 4] = [Rule::Loop, Rule::MaxTurns, Rule::MaxTokens, Rule::MaxCost];
}

impl Limits {
    /// The number that a rule allows, of millionths of a US dollar for `max_cost`; none for a rule without one, or without a
    /// limit.
    pub fn number(&self, rule: Rule) -> Option<u64> {
        let agent = &self.watch.agent;
        match rule {
            Rule::Loop => agent.loop_max,
            Rule::MaxTurns => agent.max_turns,
            Rule::MaxTokens => agent.max_tokens,
            Rule::MaxCost => agent.max_cost_micro_usd,
            _ => None,
        }
    }

    /// The same, unless the rule is off.
    pub fn most(&self, rule: Rule) -> Option<u64> {
        self.rule(rule).filter(|(action, _)| *action != Action::Off)?;
        self.number(rule)
    }
}
