//! The stream of `claude -p --output-format stream-json --verbose`, as its public description has it.
//!
//! | line | what it means |
//! | --- | --- |
//! | `system`, `init` | ready; session, model |
//! | `system`, `api_retry` | its service is asked again |
//! | `assistant` | a turn, if the message's id is new and it is no subagent's; its `tool_use` parts are calls; its tokens |
//! | `user` | its `tool_result` parts: what failed, if it did |
//! | `control_request`, `can_use_tool` | it waits for permission |
//! | `result` | success or not, turns, cost, tokens; what was denied |
//!
//! Any other line of JSON with a `type` is a sign of life and nothing more.

use std::collections::VecDeque;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::pick::Found;
use super::reader::Reader;
use super::report::{Repeats, Report};

/// How many messages are remembered, each of which may have several lines. Those of subagents come in between.
const MESSAGES: usize = 64;

/// The reader.
#[derive(Debug, Default)]
pub struct StreamJson {
    /// The digest of each message's id, and its tokens.
    messages: VecDeque<(u64, u64)>,
    repeats: Repeats,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: Found,
    #[serde(default)]
    subtype: Found,
    session_id: Option<Found>,
    model: Option<Found>,
    message: Option<Message>,
    parent_tool_use_id: Option<Found>,
    is_error: Option<Found>,
    num_turns: Option<Found>,
    total_cost_usd: Option<Found>,
    usage: Option<Usage>,
    result: Option<Found>,
    errors: Option<Found>,
    #[serde(default)]
    permission_denials: Parts,
    request: Option<Request>,
    attempt: Option<Found>,
    max_retries: Option<Found>,
}

#[derive(Deserialize)]
struct Message {
    id: Option<Found>,
    #[serde(default)]
    content: Parts,
    usage: Option<Usage>,
}

/// The list of a message's parts. Its content may be a text as well, which says nothing here.
#[derive(Default)]
struct Parts(Vec<Part>);

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type", default)]
    kind: Found,
    name: Option<Found>,
    input: Option<Found>,
    is_error: Option<Found>,
    content: Option<Found>,
    /// Of a denial.
    tool_name: Option<Found>,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<Found>,
    output_tokens: Option<Found>,
    cache_creation_input_tokens: Option<Found>,
    cache_read_input_tokens: Option<Found>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    subtype: Found,
    tool_name: Option<Found>,
}

impl Usage {
    fn tokens(&self) -> u64 {
        let all =
            [&self.input_tokens, &self.output_tokens, &self.cache_creation_input_tokens, &self.cache_read_input_tokens];
        all.into_iter().flatten().filter_map(Found::count).sum()
    }
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Parts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of parts, or a text")
            }

            fn visit_str<E>(self, _: &str) -> Result<Parts, E> {
                Ok(Parts::default())
            }

            fn visit_unit<E>(self) -> Result<Parts, E> {
                Ok(Parts::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Parts, A::Error> {
                let mut parts = Vec::new();
                while parts.len() < PARTS {
                    match items.next_element()? {
                        Some(part) => parts.push(part),
                        None => return Ok(Parts(parts)),
                    }
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Parts(parts))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The most parts of a message that are looked at.
const PARTS: usize = 256;

impl Reader for StreamJson {
    fn line(&mut self, line: &[u8], report: &mut Report) -> bool {
        let Ok(line) = serde_json::from_slice::<Line>(line) else { return false };
        let text = |found: &Option<Found>| found.as_ref().filter(|f| !f.null).map(|f| f.text.clone());
        match (line.kind.text.as_str(), line.subtype.text.as_str()) {
            ("", _) => return false,
            ("system", "init") => {
                report.ready = true;
                report.session = text(&line.session_id).or(report.session.take());
                report.model = text(&line.model).or(report.model.take());
            }
            ("system", "api_retry") => {
                let number = |found: &Option<Found>| found.as_ref().and_then(Found::count);
                let attempt = number(&line.attempt).map_or_else(String::new, |n| format!(", attempt {n}"));
                let most = number(&line.max_retries).map_or_else(String::new, |n| format!(" of {n}"));
                report.doing = Some(format!("its service is asked again{attempt}{most}"));
            }
            ("assistant", _) => self.assistant(&line, report),
            ("user", _) => {
                report.goes_on();
                for part in line.message.iter().flat_map(|m| &m.content.0).filter(|p| p.kind.text == "tool_result") {
                    let failed = part.is_error.as_ref().is_some_and(Found::is_true);
                    self.repeats.error(part.content.as_ref().filter(|_| failed));
                }
                self.repeats.tell(report);
            }
            ("control_request", _) => {
                if let Some(request) = line.request.filter(|r| r.subtype.text == "can_use_tool") {
                    let tool = request.tool_name.map_or_else(|| "a tool".to_owned(), |name| name.text);
                    report.waiting = Some(format!("permission to use {tool}"));
                }
            }
            ("control_cancel_request" | "control_response", _) => report.goes_on(),
            ("result", subtype) => {
                report.goes_on();
                let success = subtype == "success" && !line.is_error.as_ref().is_some_and(Found::is_true);
                let said = text(&line.result).or_else(|| text(&line.errors)).filter(|said| !said.is_empty());
                let mut said = said.unwrap_or_else(|| subtype.replace('_', " "));
                let denied = &line.permission_denials.0;
                let mut names: Vec<&str> =
                    denied.iter().filter_map(|p| Some(p.tool_name.as_ref()?.text.as_str())).collect();
                names.dedup();
                if !denied.is_empty() {
                    said = format!("(permission was denied {} times: {}) {said}", denied.len(), names.join(", "));
                }
                report.result = Some((success, said));
                report.turns = line.num_turns.as_ref().and_then(Found::count).unwrap_or(report.turns);
                // Those of subagents are in the messages, and not in all versions of the sum.
                report.tokens = report.tokens.max(line.usage.as_ref().map_or(0, Usage::tokens));
                if let Some(usd) = line.total_cost_usd.and_then(|cost| cost.number) {
                    report.cost(usd);
                }
            }
            _ => {}
        }
        true
    }
}

impl StreamJson {
    fn assistant(&mut self, line: &Line, report: &mut Report) {
        report.goes_on();
        let Some(message) = &line.message else { return };
        let is_subagents = line.parent_tool_use_id.as_ref().is_some_and(|id| !id.null);
        let tokens = message.usage.as_ref().map_or(0, Usage::tokens);
        let id = message.id.as_ref().map(|id| id.digest);
        let known = self.messages.iter_mut().find(|(known, _)| Some(*known) == id);
        let more = match known {
            // Each line of a message tells its tokens so far.
            Some((_, counted)) => {
                let more = tokens.saturating_sub(*counted);
                *counted = tokens.max(*counted);
                more
            }
            None => {
                self.messages.extend(id.map(|id| (id, tokens)));
                if self.messages.len() > MESSAGES {
                    self.messages.pop_front();
                }
                if !is_subagents {
                    report.turns = report.turns.saturating_add(1);
                    report.tool = None;
                }
                tokens
            }
        };
        report.tokens = report.tokens.saturating_add(more);
        // An answer after the final report is one to another prompt.
        report.result = None;
        for part in message.content.0.iter().filter(|part| part.kind.text == "tool_use") {
            let name = part.name.as_ref().map_or("a tool", |name| name.text.as_str());
            report.tool = Some(name.to_owned());
            self.repeats.call(name, part.input.as_ref());
        }
        self.repeats.tell(report);
    }
}

#[cfg(test)]
#[path = "stream_json_tests.rs"]
mod tests;
