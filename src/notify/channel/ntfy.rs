//! ntfy: the text as the body, the rest in headers.

use super::{Failure, Words};
use crate::notify::config::Channel;
use crate::notify::event::{Event, Notice, Severity};
use crate::notify::http::post;
use crate::notify::secret::Secret;

pub(super) fn deliver(
    channel: &Channel,
    url: &Secret,
    token: Option<&Secret>,
    words: &Words,
    notices: &[Notice],
) -> Result<(), Failure> {
    let priority = match words.severity {
        Severity::Info => "3",
        Severity::Warning => "4",
        Severity::Critical => "5",
    };
    let tags = match notices {
        [one] => tag(one.event),
        _ => "package",
    };
    let title = encoded(&words.title);
    let mut headers = vec![("Title", &*title), ("Priority", priority), ("Tags", tags)];
    let authorization;
    if let Some(token) = token {
        authorization = format!("Bearer {}", token.read().map_err(Failure::of_channel)?);
        headers.push(("Authorization", &authorization));
    }
    let text = if words.text.is_empty() { &words.title } else { &words.text };
    post(channel, url, "", &headers, text.as_bytes())
}

fn tag(event: Event) -> &'static str {
    match event {
        Event::Warning => "warning",
        Event::Critical | Event::Trouble | Event::Unkillable => "rotating_light",
        Event::Killed => "skull",
        Event::Failed => "x",
        Event::Recovered | Event::Finished => "white_check_mark",
        Event::Test => "wave",
    }
}

/// A header holds ASCII: the rest is written as RFC 2047 has it, which ntfy reads.
pub(super) fn encoded(text: &str) -> String {
    if text.bytes().all(|b| (b' '..=b'~').contains(&b)) && !text.contains("=?") {
        return text.to_owned();
    }
    let one = |b: u8| match b {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(b).to_string(),
        _ => format!("={b:02X}"),
    };
    // A word has at most 75 characters, and ends between characters.
    let mut words = vec![String::new()];
    for c in text.chars() {
        let mut bytes = [0; 4];
        let code: String = c.encode_utf8(&mut bytes).bytes().map(one).collect();
        match words.last_mut() {
            Some(last) if last.len() + code.len() <= 63 => last.push_str(&code),
            _ => words.push(code),
        }
    }
    words.iter().map(|word| format!("=?UTF-8?Q?{word}?=")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_ascii() {
        assert_eq!(encoded("killed: builder run_1"), "killed: builder run_1");
        assert_eq!(encoded("é x"), "=?UTF-8?Q?=C3=A9=20x?=");
        assert_eq!(encoded("a\nb"), "=?UTF-8?Q?a=0Ab?=");
        assert!(encoded(&"漢".repeat(50)).split(' ').all(|word| word.len() <= 75));
    }
}
