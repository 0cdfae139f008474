//! What is fuzzed here: an agent's stream, in any pieces, and the pointers of a configuration.

use super::lines::{Line, Lines};
use super::reader::Stream;
use super::{Executor, Matcher, Matchers};
use crate::model::fuzz::Target;

pub const TARGETS: &[Target] = &[("agent_stream", stream), ("matchers", matchers)];

/// The first byte is the size of the pieces, the second the format. What is read is the same whatever the pieces; a message
/// is not too long, and no line of it is another's.
fn stream(data: &[u8]) {
    let [size, format, text @ ..] = data else { return };
    let executor = match format % 2 {
        0 => Executor::claude_cli(),
        _ => Executor::Jsonl(Box::new(some_matchers())),
    };
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut stream = Stream::of(executor.clone())?;
        for piece in pieces {
            stream.feed(piece);
        }
        stream.end();
        Some(stream.report)
    };
    let whole = read(&mut std::iter::once(text));
    assert_eq!(read(&mut text.chunks(usize::from(*size).max(1))), whole);
    let message = whole.map(|report| report.message()).unwrap_or_default();
    assert!(message.len() < crate::executor::report::MESSAGE_MAX, "{}", message.len());
    let known =
        |line: &str| ["READY=1", "WATCHDOG=1", "STATUS=", "X_GUARDIAN_"].iter().any(|name| line.starts_with(name));
    assert!(message.lines().all(known), "{message}");
    let mut lines = Lines::default();
    let mut told = 0;
    let mut each = |line: Line<'_>| match line {
        Line::Whole(line) => told += line.len(),
        Line::TooLong => {}
    };
    lines.feed(text, &mut each);
    lines.end(&mut each);
    assert!(told <= text.len());
}

fn some_matchers() -> Matchers {
    let m = |text: &str| text.parse().ok();
    Matchers {
        session: m("/id"),
        turn: m("/type=turn"),
        tool: m("/tool/0/name"),
        tool_input: m("/tool/0/input"),
        tokens: m("/tokens").into_iter().collect(),
        cost_usd: m("/cost"),
        waiting: m("/waiting"),
        error: m("/error"),
        done: m("/type=done"),
        ..Matchers::default()
    }
}

/// A matcher is written as what reads to the same.
fn matchers(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    match text.parse::<Matcher>() {
        Ok(matcher) => assert_eq!(matcher.to_string().parse(), Ok(matcher)),
        Err(told) => crate::model::fuzz::check_sentence(&told),
    }
}
