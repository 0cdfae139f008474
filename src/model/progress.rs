//! How far an agent has come, as it says itself: its turns, what they cost, what it calls and what it waits for.
//!
//! A message names totals and not steps, so that one that is lost is made good by the next.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::heartbeat::{STATUS_MAX, plain};

/// The most characters of a final report that are kept.
const REPORT_MAX: usize = 1024;
/// The greatest number that is taken, as databases count in signed ones: more is cut to it.
const NUMBER_MAX: u64 = i64::MAX.unsigned_abs();
/// Millionths of a US dollar in a cent.
const CENT: u64 = 10_000;

/// How far a run has come that has reported anything of this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// The agent's own name of its session, by which it can be resumed.
    pub session: Option<String>,
    /// The model that it uses.
    pub model: Option<String>,
    /// The turns that it has begun.
    pub turns: u64,
    /// How many it is limited to by itself, if that is known.
    pub turns_max: Option<u64>,
    /// Tokens, input and output together.
    pub tokens: u64,
    /// What it has cost, in millionths of a US dollar.
    pub cost_micro_usd: Option<u64>,
    /// The last tool that it has called.
    pub tool: Option<String>,
    /// How often in a row the same has happened: a tool called with the same arguments, or an error.
    pub repeats: u64,
    /// What that is.
    pub repeated: Option<String>,
    /// What it waits for: a permission, or input.
    pub waiting: Option<String>,
    /// What its final report says.
    pub result: Option<AgentResult>,
}

/// What an agent says of its work when that is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentResult {
    /// It has done what it was to do.
    pub success: bool,
    /// Its report.
    pub text: String,
}

/// What one message says of it; what is `None` is as before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressUpdate {
    /// `X_GUARDIAN_SESSION=`.
    pub session: Option<String>,
    /// `X_GUARDIAN_MODEL=`.
    pub model: Option<String>,
    /// `X_GUARDIAN_TURNS=`: in all.
    pub turns: Option<u64>,
    /// `X_GUARDIAN_TURNS_MAX=`.
    pub turns_max: Option<u64>,
    /// `X_GUARDIAN_TOKENS=`: in all.
    pub tokens: Option<u64>,
    /// `X_GUARDIAN_COST_MICRO_USD=`: in all.
    pub cost_micro_usd: Option<u64>,
    /// `X_GUARDIAN_TOOL=`: the empty text is for none in this turn.
    pub tool: Option<String>,
    /// `X_GUARDIAN_REPEATS=`: 0 or 1 when it is no longer so.
    pub repeats: Option<u64>,
    /// `X_GUARDIAN_REPEATED=`.
    pub repeated: Option<String>,
    /// `X_GUARDIAN_WAITING=`: the empty text ends it.
    pub waiting: Option<String>,
    /// `X_GUARDIAN_RESULT=`: `success` is true, `error` false.
    pub success: Option<bool>,
    /// `X_GUARDIAN_RESULT_TEXT=`.
    pub report: Option<String>,
}

impl ProgressUpdate {
    /// Takes in a line of a message. Values that make no sense are passed over, as those that are unknown.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        let text = || Some(plain(value, STATUS_MAX));
        match name {
            b"X_GUARDIAN_SESSION" => self.session = text(),
            b"X_GUARDIAN_MODEL" => self.model = text(),
            b"X_GUARDIAN_TURNS" => self.turns = number(value).or(self.turns),
            b"X_GUARDIAN_TURNS_MAX" => self.turns_max = number(value).or(self.turns_max),
            b"X_GUARDIAN_TOKENS" => self.tokens = number(value).or(self.tokens),
            b"X_GUARDIAN_COST_MICRO_USD" => self.cost_micro_usd = number(value).or(self.cost_micro_usd),
            b"X_GUARDIAN_TOOL" => self.tool = text(),
            b"X_GUARDIAN_REPEATS" => self.repeats = number(value).or(self.repeats),
            b"X_GUARDIAN_REPEATED" => self.repeated = text(),
            b"X_GUARDIAN_WAITING" => self.waiting = text(),
            b"X_GUARDIAN_RESULT" => {
                self.success = match value {
                    b"success" => Some(true),
                    b"error" => Some(false),
                    _ => self.success,
                }
            }
            b"X_GUARDIAN_RESULT_TEXT" => self.report = Some(plain(value, REPORT_MAX)),
            _ => {}
        }
    }

    /// The lines of a message that says this.
    pub fn lines(&self) -> Vec<String> {
        let number = |name: &str, n: Option<u64>| n.map(|n| format!("X_GUARDIAN_{name}={n}"));
        let text = |name: &str, text: &Option<String>| {
            text.as_ref().map(|text| format!("X_GUARDIAN_{name}={}", in_a_line(text)))
        };
        let result = self.success.map(|success| if success { "success" } else { "error" }.to_owned());
        let lines = [
            text("SESSION", &self.session),
            text("MODEL", &self.model),
            number("TURNS", self.turns),
            number("TURNS_MAX", self.turns_max),
            number("TOKENS", self.tokens),
            number("COST_MICRO_USD", self.cost_micro_usd),
            text("TOOL", &self.tool),
            number("REPEATS", self.repeats),
            text("REPEATED", &self.repeated),
            text("WAITING", &self.waiting),
            text("RESULT", &result),
            text("RESULT_TEXT", &self.report),
        ];
        lines.into_iter().flatten().collect()
    }

    /// The same with texts and numbers as they are kept.
    pub fn kept(mut self) -> Self {
        for text in [&mut self.session, &mut self.model, &mut self.tool, &mut self.repeated, &mut self.waiting]
            .into_iter()
            .flatten()
        {
            *text = plain(in_a_line(text).as_bytes(), STATUS_MAX);
        }
        for text in self.report.iter_mut() {
            *text = plain(in_a_line(text).as_bytes(), REPORT_MAX);
        }
        for n in [&mut self.turns, &mut self.turns_max, &mut self.tokens, &mut self.cost_micro_usd, &mut self.repeats]
            .into_iter()
            .flatten()
        {
            *n = (*n).min(NUMBER_MAX);
        }
        self
    }
}

/// A message has a line for each thing.
fn in_a_line(text: &str) -> String {
    text.replace('\n', " ")
}

/// A whole number; one that is too great is the greatest.
fn number(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |n: u64, digit: &u8| n.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(digits.iter().fold(0, add).min(NUMBER_MAX))
}

impl Progress {
    /// Takes in what a message says. Totals never go back; an agent that begins another turn is not done.
    pub fn update(&mut self, said: &ProgressUpdate) {
        fn put(field: &mut Option<String>, said: &Option<String>) {
            if let Some(text) = said {
                *field = (!text.is_empty()).then(|| text.clone());
            }
        }
        put(&mut self.session, &said.session);
        put(&mut self.model, &said.model);
        put(&mut self.tool, &said.tool);
        put(&mut self.repeated, &said.repeated);
        put(&mut self.waiting, &said.waiting);
        if said.turns.is_some_and(|turns| turns > self.turns) {
            self.result = None;
        }
        self.turns = self.turns.max(said.turns.unwrap_or_default());
        self.turns_max = said.turns_max.or(self.turns_max);
        self.tokens = self.tokens.max(said.tokens.unwrap_or_default());
        self.cost_micro_usd = self.cost_micro_usd.max(said.cost_micro_usd);
        self.repeats = said.repeats.unwrap_or(self.repeats);
        if self.repeats < 2 {
            self.repeated = None;
        }
        if said.success.is_some() || said.report.is_some() {
            let result = self.result.get_or_insert_default();
            result.success = said.success.unwrap_or(result.success);
            result.text = said.report.clone().unwrap_or_else(|| std::mem::take(&mut result.text));
            self.waiting = None;
        }
    }

    /// `turn 7 of 30`, `turn 7`, or nothing before the first.
    pub fn turn(&self) -> Option<String> {
        let of = self.turns_max.map(|most| format!(" of {most}")).unwrap_or_default();
        (self.turns > 0).then(|| format!("turn {}{of}", self.turns))
    }

    /// Where it is, in a few words; empty before the first turn.
    pub fn summary(&self) -> String {
        let turn = self.turn();
        let doing = match (&self.result, &self.waiting, &self.tool) {
            (Some(AgentResult { success: true, .. }), ..) => Some("done".to_owned()),
            (Some(AgentResult { success: false, .. }), ..) => Some("failed".to_owned()),
            (None, Some(waiting), _) => Some(format!("waits for {waiting}")),
            (None, None, tool) => tool.clone(),
        };
        turn.into_iter().chain(doing).collect::<Vec<_>>().join(": ")
    }
}

/// Millionths of a US dollar, as people write money: to the cent, and what is less than a dollar to the last millionth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dollars(pub u64);

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        match whole {
            0 => write!(f, "${}", self.exact()),
            _ => write!(f, "${whole}.{:02}", rest / CENT),
        }
    }
}

impl Dollars {
    /// The same to the last millionth, and without the sign.
    pub fn exact(self) -> String {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let digits = format!("{rest:06}");
        let shown = digits.trim_end_matches('0').len().max(2);
        format!("{whole}.{}", digits.get(..shown).unwrap_or_default())
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
