//! What a run is watched for, and what is done about it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AgentWatch, AgentWatchUpdate, Limits, Rule};

/// What a rule does when its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing: the rule is not applied.
    Off,
    /// It says so: health, audit and journal.
    #[default]
    Warn,
    /// It ends the run.
    Kill,
    /// It says so, and ends the run where `idle_timeout` has warned of it too. For heartbeats alone: that they stop may be a fault
    /// of their sender, and that nothing at all is done what the run does; both together are neither.
    KillIfIdle,
}

impl Action {
    /// The name in configuration, D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Off => "off",
            Action::Warn => "warn",
            Action::Kill => "kill",
            Action::KillIfIdle => "kill_if_idle",
        }
    }

    /// Reads the action of a rule that never kills.
    pub fn parse_harmless(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Action::Kill => Err("\"kill\" is not done to a run that waits for a person: use off or warn".to_owned()),
            action => Ok(action),
        }
    }

    /// Reads the action of `heartbeat_timeout`.
    pub fn parse_of_heartbeats(text: &str) -> Result<Self, String> {
        match text {
            "kill_if_idle" => Ok(Action::KillIfIdle),
            _ => text.parse().map_err(|e| format!("{e}, or kill_if_idle")),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Action::Off),
            "warn" => Ok(Action::Warn),
            "kill" => Ok(Action::Kill),
            "kill_if_idle" => Err("\"kill_if_idle\" is for heartbeat_action alone: use off, warn or kill".to_owned()),
            _ => {
                Err(format!("{:?} is not an action: use off, warn or kill", text.chars().take(40).collect::<String>()))
            }
        }
    }
}

/// What a run is watched for beside its timers, and what all rules do. A timeout that is `None` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// What `init_timeout` does.
    pub init_action: Action,
    /// What `max_runtime` does.
    pub max_runtime_action: Action,
    /// Time from one heartbeat to the next, once there was one.
    #[serde(default)]
    pub heartbeat_timeout: Option<Duration>,
    /// What is done when heartbeats stop.
    #[serde(default)]
    pub heartbeat_action: Action,
    /// How long a run may do nothing at all.
    pub idle_timeout: Option<Duration>,
    /// What is done then.
    pub idle_action: Action,
    /// How long a run may compute without reading, writing or starting anything.
    pub spin_timeout: Option<Duration>,
    /// What is done then.
    pub spin_action: Action,
    /// How long a run may wait for somebody to type, or for its standard input.
    pub input_timeout: Option<Duration>,
    /// What is done then: off or warn.
    pub input_action: Action,
    /// What is done about processes that carry the run's mark and are found outside of what contains it: they, and not the
    /// run, are ended.
    #[serde(default)]
    pub escapees: Action,
    /// From which percent of the last minute on it is said that all processes waited for memory.
    #[serde(default)]
    pub pressure_max_percent: Option<u32>,
    /// Every rule decides and records what it would do, and no rule kills. What people ask for is still done.
    pub dry_run: bool,
    /// What an agent is watched for.
    #[serde(default)]
    pub agent: AgentWatch,
}

/// What holds for a run that was recorded before there were these rules.
impl Default for Watch {
    fn default() -> Self {
        Self {
            init_action: Action::Kill,
            max_runtime_action: Action::Kill,
            heartbeat_timeout: None,
            heartbeat_action: Action::Warn,
            idle_timeout: None,
            idle_action: Action::Warn,
            spin_timeout: None,
            spin_action: Action::Warn,
            input_timeout: None,
            input_action: Action::Warn,
            escapees: Action::Warn,
            pressure_max_percent: None,
            dry_run: false,
            agent: AgentWatch::default(),
        }
    }
}

/// What a caller named of [`Watch`]; what is `None` comes from the workflow. `Some(None)` is `off`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchUpdate {
    /// See [`Watch::init_action`].
    pub init_action: Option<Action>,
    /// See [`Watch::max_runtime_action`].
    pub max_runtime_action: Option<Action>,
    /// See [`Watch::heartbeat_timeout`].
    pub heartbeat_timeout: Option<Option<Duration>>,
    /// See [`Watch::heartbeat_action`].
    pub heartbeat_action: Option<Action>,
    /// See [`Watch::idle_timeout`].
    pub idle_timeout: Option<Option<Duration>>,
    /// See [`Watch::idle_action`].
    pub idle_action: Option<Action>,
    /// See [`Watch::spin_timeout`].
    pub spin_timeout: Option<Option<Duration>>,
    /// See [`Watch::spin_action`].
    pub spin_action: Option<Action>,
    /// See [`Watch::input_timeout`].
    pub input_timeout: Option<Option<Duration>>,
    /// See [`Watch::input_action`].
    pub input_action: Option<Action>,
    /// See [`Watch::escapees`].
    pub escapees: Option<Action>,
    /// See [`Watch::pressure_max_percent`]. For the configuration alone.
    pub pressure_max_percent: Option<Option<u32>>,
    /// See [`Watch::dry_run`]. For the configuration alone.
    pub dry_run: Option<bool>,
    /// See [`Watch::agent`].
    pub agent: AgentWatchUpdate,
}

impl Watch {
    /// These with what the update names put in their place.
    pub fn with(self, update: &WatchUpdate) -> Self {
        Self {
            init_action: update.init_action.unwrap_or(self.init_action),
            max_runtime_action: update.max_runtime_action.unwrap_or(self.max_runtime_action),
            heartbeat_timeout: update.heartbeat_timeout.unwrap_or(self.heartbeat_timeout),
            heartbeat_action: update.heartbeat_action.unwrap_or(self.heartbeat_action),
            idle_timeout: update.idle_timeout.unwrap_or(self.idle_timeout),
            idle_action: update.idle_action.unwrap_or(self.idle_action),
            spin_timeout: update.spin_timeout.unwrap_or(self.spin_timeout),
            spin_action: update.spin_action.unwrap_or(self.spin_action),
            input_timeout: update.input_timeout.unwrap_or(self.input_timeout),
            input_action: update.input_action.unwrap_or(self.input_action),
            escapees: update.escapees.unwrap_or(self.escapees),
            pressure_max_percent: update.pressure_max_percent.unwrap_or(self.pressure_max_percent),
            dry_run: update.dry_run.unwrap_or(self.dry_run),
            agent: self.agent.with(&update.agent),
        }
    }
}

impl From<Watch> for WatchUpdate {
    fn from(w: Watch) -> Self {
        Self {
            init_action: Some(w.init_action),
            max_runtime_action: Some(w.max_runtime_action),
            heartbeat_timeout: Some(w.heartbeat_timeout),
            heartbeat_action: Some(w.heartbeat_action),
            idle_timeout: Some(w.idle_timeout),
            idle_action: Some(w.idle_action),
            spin_timeout: Some(w.spin_timeout),
            spin_action: Some(w.spin_action),
            input_timeout: Some(w.input_timeout),
            input_action: Some(w.input_action),
            escapees: Some(w.escapees),
            pressure_max_percent: Some(w.pressure_max_percent),
            dry_run: Some(w.dry_run),
            agent: w.agent.into(),
        }
    }
}

impl Limits {
    /// What a rule does about this run, and its time, if it has one. None for a rule that has no action to choose.
    pub fn rule(&self, rule: Rule) -> Option<(Action, Option<Duration>)> {
        let w = &self.watch;
        match rule {
            // Who waits for ever is of no use to anybody: there is nothing to choose but the time.
            Rule::QueueTimeout => None,
            Rule::InitTimeout => Some((w.init_action, self.init_timeout)),
            Rule::MaxRuntime => Some((w.max_runtime_action, self.max_runtime)),
            Rule::HeartbeatTimeout => Some((w.heartbeat_action, w.heartbeat_timeout)),
            Rule::IdleTimeout => Some((w.idle_action, w.idle_timeout)),
            Rule::SpinTimeout => Some((w.spin_action, w.spin_timeout)),
            Rule::InputTimeout => Some((w.input_action, w.input_timeout)),
            Rule::Escapees => Some((w.escapees, None)),
            Rule::TurnTimeout => Some((w.agent.turn_action, w.agent.turn_timeout)),
            Rule::Loop => Some((w.agent.loop_action, None)),
            Rule::MaxTurns => Some((w.agent.max_turns_action, None)),
            Rule::MaxTokens => Some((w.agent.max_tokens_action, None)),
            Rule::MaxCost => Some((w.agent.max_cost_action, None)),
            Rule::PermissionTimeout => Some((w.agent.permission_action, w.agent.permission_timeout)),
            Rule::Memory | Rule::Oom | Rule::Pressure | Rule::Leftovers | Rule::Unkillable => None,
        }
    }

    /// The time that a rule allows, unless it is off.
    pub fn allowed(&self, rule: Rule) -> Option<Duration> {
        self.rule(rule).filter(|(action, _)| *action != Action::Off)?.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_read_by_its_name_and_a_person_is_never_killed_for_thinking() {
        for action in [Action::Off, Action::Warn, Action::Kill] {
            assert_eq!(action.as_str().parse(), Ok(action));
        }
        assert!("Kill".parse::<Action>().is_err());
        assert_eq!(Action::parse_harmless("warn"), Ok(Action::Warn));
        assert!(Action::parse_harmless("kill").unwrap_err().contains("off or warn"));
        for action in [Action::Off, Action::Warn, Action::Kill, Action::KillIfIdle] {
            assert_eq!(Action::parse_of_heartbeats(action.as_str()), Ok(action));
        }
        assert!("kill_if_idle".parse::<Action>().unwrap_err().contains("heartbeat_action alone"));
        assert!(Action::parse_of_heartbeats("end").unwrap_err().ends_with("kill, or kill_if_idle"));
    }
}
