//! A JSON object a line, of which the configuration says what it means.

use super::matcher::{Matcher, Matchers};
use super::pick::{Found, Path, pick};
use super::reader::Reader;
use super::report::{Repeats, Report};

/// The reader.
pub struct Jsonl {
    matchers: Matchers,
    /// Where they point to, in the order of [`all`].
    paths: Vec<Path>,
    repeats: Repeats,
    /// A tool was called since the last failure.
    called: bool,
}

/// The matchers in a fixed order, those of tokens last.
fn all(m: &Matchers) -> impl Iterator<Item = Option<&Matcher>> {
    let single = [
        &m.ready,
        &m.session,
        &m.model,
        &m.turn,
        &m.tool,
        &m.tool_input,
        &m.cost_usd,
        &m.waiting,
        &m.error,
        &m.done,
        &m.success,
        &m.result,
    ];
    single.into_iter().map(Option::as_ref).chain(m.tokens.iter().map(Some))
}

impl Jsonl {
    /// A reader by these matchers.
    pub fn new(matchers: Matchers) -> Self {
        let paths = all(&matchers).flatten().map(|matcher| matcher.path().to_vec()).collect();
        Self { matchers, paths, repeats: Repeats::default(), called: false }
    }
}

impl Reader for Jsonl {
    fn line(&mut self, line: &[u8], report: &mut Report) -> bool {
        let Ok(found) = pick(line, &self.paths) else { return false };
        let mut found = found.into_iter();
        // What each matcher matches, in its place.
        let mut matched = all(&self.matchers).map(|matcher| {
            let found = found.by_ref().take(usize::from(matcher.is_some())).next().flatten();
            found.filter(|found| matcher.is_some_and(|matcher| matcher.matches(Some(found))))
        });
        let mut next = || matched.next().flatten();
        let (ready, session, model, turn) = (next(), next(), next(), next());
        let (tool, input, cost, waiting) = (next(), next(), next(), next());
        let (error, done, success, result) = (next(), next(), next(), next());
        let tokens = matched.flatten().filter_map(|found| found.count()).fold(0, u64::saturating_add);

        report.ready |= ready.is_some() || self.matchers.ready.is_none();
        report.session = session.map(|found| found.text).or(report.session.take());
        report.model = model.map(|found| found.text).or(report.model.take());
        if turn.is_some() || tool.is_some() || error.is_some() || done.is_some() {
            report.goes_on();
        }
        if turn.is_some() {
            report.turns = report.turns.saturating_add(1);
            (report.tool, report.result) = (None, None);
        }
        if let Some(tool) = tool {
            // No failure between two calls: the first has done what it was to do, and a row of failures is over.
            if std::mem::replace(&mut self.called, true) {
                self.repeats.error(None);
            }
            self.repeats.call(&tool.text, input.as_ref());
            report.tool = Some(tool.text);
        }
        if let Some(error) = &error {
            self.called = false;
            self.repeats.error(Some(error));
        }
        self.repeats.tell(report);
        report.tokens =
            if self.matchers.totals { report.tokens.max(tokens) } else { report.tokens.saturating_add(tokens) };
        if let Some(usd) = cost.and_then(|cost| cost.number) {
            let before = report.cost_micro_usd.filter(|_| !self.matchers.totals).unwrap_or(0);
            report.cost(usd);
            report.cost_micro_usd = report.cost_micro_usd.map(|cost| cost.saturating_add(before));
        }
        if let Some(waiting) = waiting {
            report.waiting = Some(said(&waiting, "input"));
        }
        if done.is_some() {
            let good = if self.matchers.success.is_some() { success.is_some() } else { error.is_none() };
            let text = result.as_ref().or(error.as_ref()).map(|found| found.text.clone());
            report.result = Some((good, text.unwrap_or_default()));
        }
        true
    }
}

/// What was found, in words.
fn said(found: &Found, otherwise: &str) -> String {
    let plain = found.text.as_str();
    if plain.is_empty() || plain == "true" { otherwise.to_owned() } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Executor;
    use crate::executor::reader::Stream;

    /// As of an agent's own documentation: `codex exec --json`.
    fn agent() -> Matchers {
        let m = |text: &str| Some(text.parse().unwrap());
        Matchers {
            ready: m("/type=thread.started"),
            session: m("/thread_id"),
            turn: m("/type=turn.started"),
            tool: m("/item/type=command_execution"),
            tool_input: m("/item/command"),
            tokens: ["/usage/input_tokens", "/usage/output_tokens"].map(|p| p.parse().unwrap()).into(),
            cost_usd: m("/cost"),
            waiting: m("/approval/reason"),
            error: m("/error/message"),
            done: m("/type=turn.completed"),
            result: m("/last"),
            ..Matchers::default()
        }
    }

    fn read(matchers: Matchers, lines: &[&str]) -> Report {
        let mut stream = Stream::of(Executor::Jsonl(Box::new(matchers))).unwrap();
        stream.feed(lines.join("\n").as_bytes());
        stream.end();
        stream.report
    }

    #[test]
    fn an_agent_is_read_by_what_the_configuration_says_of_it() {
        let report = read(
            agent(),
            &[
                "some text before it",
                r#"{"type":"thread.started","thread_id":"t-1"}"#,
                r#"{"type":"turn.started"}"#,
                r#"{"type":"item.started","item":{"type":"command_execution","command":"ls"}}"#,
                r#"{"type":"item.started","item":{"type":"command_execution","command":"ls"}}"#,
                r#"{"type":"turn.completed","usage":{"input_tokens":10,"output_tokens":5},"cost":0.25,"last":"done"}"#,
                r#"{"type":"turn.started"}"#,
                r#"{"type":"turn.completed","usage":{"input_tokens":1,"output_tokens":1},"cost":0.5,"last":"all done"}"#,
            ],
        );
        assert!(report.ready);
        assert_eq!((report.session.as_deref(), report.turns, report.tokens), (Some("t-1"), 2, 17));
        assert_eq!((report.repeats, report.repeated.as_deref()), (2, Some("command_execution: ls")));
        assert_eq!((report.cost_micro_usd, report.result), (Some(750_000), Some((true, "all done".into()))));
    }

    #[test]
    fn totals_are_not_added_up() {
        let lines = [r#"{"usage":{"input_tokens":10},"cost":0.25}"#, r#"{"usage":{"input_tokens":30},"cost":0.5}"#];
        let report = read(Matchers { totals: true, ..agent() }, &lines);
        assert_eq!((report.tokens, report.cost_micro_usd), (30, Some(500_000)));
    }

    #[test]
    fn without_a_matcher_the_first_line_of_json_is_ready() {
        assert!(read(Matchers::default(), &["{}"]).ready);
        assert!(!read(Matchers::default(), &["starting", "{\"half\":"]).ready);
        assert!(!read(agent(), &["{}"]).ready);
    }

    #[test]
    fn it_waits_until_something_goes_on() {
        let asks = r#"{"approval":{"reason":"to run rm"}}"#;
        assert_eq!(read(agent(), &[asks, r#"{"ping":1}"#]).waiting.as_deref(), Some("to run rm"));
        assert_eq!(read(agent(), &[asks, r#"{"type":"turn.started"}"#]).waiting.as_deref(), Some(""));
    }

    #[test]
    fn an_error_is_counted_and_makes_the_final_report_one() {
        let failed = r#"{"error":{"message":"rate limit"}}"#;
        let report = read(agent(), &[failed, failed, failed]);
        assert_eq!((report.repeats, report.repeated.as_deref()), (3, Some("error: rate limit")));
        let last = r#"{"type":"turn.completed","error":{"message":"context too long"}}"#;
        assert_eq!(read(agent(), &[last]).result, Some((false, "context too long".into())));
        let success = Matchers { success: Some("/ok=true".parse().unwrap()), ..agent() };
        let line = |ok: &str| format!(r#"{{"type":"turn.completed","ok":{ok}}}"#);
        assert!(read(success.clone(), &[&line("true")]).result.unwrap().0);
        assert!(!read(success, &[&line("false")]).result.unwrap().0);
    }
}
