//! Options of what agents are held to, and of what a run says of itself.

use std::time::Duration;

use clap::Args;

use super::{NumberLimit, TimeLimit, time_limit};
use crate::config::{parse_cost, parse_cost_or_off, parse_number_or_off, parse_repeats_or_off};
use crate::model::{Action, AgentWatchUpdate, ProgressUpdate, parse_duration};

// Options of `run` for agents that report how far they have come.
#[derive(Debug, Args)]
#[command(next_help_heading = "Agents, by what they report")]
pub struct AgentArgs {
    /// The longest time of one turn, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub turn_timeout: Option<TimeLimit>,
    /// What is done then: kill, warn or off
    #[arg(long, value_name = "ACTION")]
    pub turn_action: Option<Action>,
    /// How often in a row the same may happen (a tool called with the same arguments, or an error), or off
    #[arg(long, value_name = "NUMBER", value_parser = repeats_limit)]
    pub loop_max: Option<NumberLimit>,
    /// What is done when it has: warn, kill or off
    #[arg(long, value_name = "ACTION")]
    pub loop_action: Option<Action>,
    /// The most turns, or off
    #[arg(long, value_name = "NUMBER", value_parser = count_limit)]
    pub max_turns: Option<NumberLimit>,
    /// What is done when it begins one more: kill, warn or off
    #[arg(long, value_name = "ACTION")]
    pub max_turns_action: Option<Action>,
    /// The most tokens, input and output together, or off
    #[arg(long, value_name = "NUMBER", value_parser = count_limit)]
    pub max_tokens: Option<NumberLimit>,
    /// What is done when it has used them: kill, warn or off
    #[arg(long, value_name = "ACTION")]
    pub max_tokens_action: Option<Action>,
    /// What it may cost in US dollars (5.00), or off
    #[arg(long, value_name = "DOLLARS", value_parser = cost_limit)]
    pub max_cost: Option<NumberLimit>,
    /// What is done when it has cost that: kill, warn or off
    #[arg(long, value_name = "ACTION")]
    pub max_cost_action: Option<Action>,
    /// The longest time in which it waits for a permission, or for input that it asks for, or off
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub permission_timeout: Option<TimeLimit>,
    /// What is done then: warn, kill or off
    #[arg(long, value_name = "ACTION")]
    pub permission_action: Option<Action>,
}

impl AgentArgs {
    /// What was named.
    pub fn update(&self) -> AgentWatchUpdate {
        AgentWatchUpdate {
            turn_timeout: self.turn_timeout.map(|l| l.0),
            turn_action: self.turn_action,
            loop_max: self.loop_max.map(|l| l.0),
            loop_action: self.loop_action,
            max_turns: self.max_turns.map(|l| l.0),
            max_turns_action: self.max_turns_action,
            max_tokens: self.max_tokens.map(|l| l.0),
            max_tokens_action: self.max_tokens_action,
            max_cost_micro_usd: self.max_cost.map(|l| l.0),
            max_cost_action: self.max_cost_action,
            permission_timeout: self.permission_timeout.map(|l| l.0),
            permission_action: self.permission_action,
        }
    }
}

// Arguments of `heartbeat`.
#[derive(Debug, Default, Args)]
pub struct HeartbeatArgs {
    /// It is initialized
    #[arg(long)]
    pub ready: bool,
    /// How it is, in a few words, which `guardian show` and `guardian ps` tell; the empty text takes them back
    #[arg(long, value_name = "TEXT")]
    pub status: Option<String>,
    /// It needs at least this long from now: init_timeout (until it is ready) or max_runtime (afterwards) leave it that much
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub extend: Option<Duration>,
    /// It is about to end, and sends no heartbeat any more
    #[arg(long)]
    pub stopping: bool,
    #[command(flatten)]
    pub progress: ProgressArgs,
}

// How far an agent has come.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "How far an agent has come (numbers are totals, the empty text takes a text back)")]
pub struct ProgressArgs {
    /// Its own name of its session
    #[arg(long, value_name = "TEXT")]
    pub session: Option<String>,
    /// The model that it uses
    #[arg(long, value_name = "TEXT")]
    pub model: Option<String>,
    /// The turn that it is in: 1 is the first
    #[arg(long, value_name = "NUMBER")]
    pub turn: Option<u64>,
    /// How many turns it is limited to by itself
    #[arg(long, value_name = "NUMBER")]
    pub turns_max: Option<u64>,
    /// The tokens that it has used, input and output together
    #[arg(long, value_name = "NUMBER")]
    pub tokens: Option<u64>,
    /// What it has cost in US dollars: 1.25
    #[arg(long, value_name = "DOLLARS", value_parser = parse_cost)]
    pub cost: Option<u64>,
    /// The last tool that it has called
    #[arg(long, value_name = "TEXT")]
    pub tool: Option<String>,
    /// How often in a row the same has happened: a tool called with the same arguments, or an error
    #[arg(long, value_name = "NUMBER")]
    pub repeats: Option<u64>,
    /// What that is: the arguments, or `error: ` and the error
    #[arg(long, value_name = "TEXT", requires = "repeats")]
    pub repeated: Option<String>,
    /// What it waits for: a permission, or input
    #[arg(long, value_name = "TEXT")]
    pub waiting: Option<String>,
    /// What came of it: success or error
    #[arg(long, value_name = "RESULT", value_parser = result)]
    pub result: Option<bool>,
    /// Its final report
    #[arg(long, value_name = "TEXT", requires = "result")]
    pub result_text: Option<String>,
}

impl ProgressArgs {
    /// What was named.
    pub fn update(&self) -> ProgressUpdate {
        ProgressUpdate {
            session: self.session.clone(),
            model: self.model.clone(),
            turns: self.turn,
            turns_max: self.turns_max,
            tokens: self.tokens,
            cost_micro_usd: self.cost,
            tool: self.tool.clone(),
            repeats: self.repeats,
            repeated: self.repeated.clone(),
            waiting: self.waiting.clone(),
            success: self.result,
            report: self.result_text.clone(),
        }
    }
}

fn result(text: &str) -> Result<bool, String> {
    match text {
        "success" => Ok(true),
        "error" => Ok(false),
        _ => Err("use success or error".to_owned()),
    }
}

fn count_limit(text: &str) -> Result<NumberLimit, String> {
    parse_number_or_off(text).map(NumberLimit)
}

fn repeats_limit(text: &str) -> Result<NumberLimit, String> {
    parse_repeats_or_off(text).map(NumberLimit)
}

fn cost_limit(text: &str) -> Result<NumberLimit, String> {
    parse_cost_or_off(text).map(NumberLimit)
}
