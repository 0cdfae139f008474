//! Channels: how a message looks to each, and how it gets there. One try; whether there is another is decided elsewhere.

pub mod alertmanager;
mod chat;
mod email;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod ntfy;
mod webhook;

use super::config::{Channel, Target};
use super::event::{Notice, Severity};
pub use super::http::Failure;

/// The longest text of a message, in characters; what is longer ends with an ellipsis.
const TEXT_MAX: usize = 3000;

/// What people read.
#[derive(Debug)]
struct Words {
    title: String,
    text: String,
    severity: Severity,
}

/// Tells these together.
pub fn deliver(channel: &Channel, notices: &[Notice]) -> Result<(), Failure> {
    let words = || words(channel, notices);
    match &channel.target {
        Target::Webhook { url, secret } => webhook::deliver(channel, url, secret.as_ref(), notices),
        Target::Slack { url } => chat::slack(channel, url, &words()),
        Target::Discord { url } => chat::discord(channel, url, &words()),
        Target::Teams { url } => chat::teams(channel, url, &words()),
        Target::Ntfy { url, token } => ntfy::deliver(channel, url, token.as_ref(), &words(), notices),
        Target::Alertmanager { url, token } => {
            let mut posts = Vec::new();
            for notice in notices {
                posts.extend(alertmanager::change(Default::default(), notice, false, notice.at).posts);
            }
            alertmanager::post(channel, url, token.as_ref(), &posts)
        }
        Target::Email(mail) => email::deliver(channel, mail, &words(), notices),
        Target::Exec { command } => exec::deliver(channel, command, notices),
    }
}

fn words(channel: &Channel, notices: &[Notice]) -> Words {
    let severity = notices.iter().map(|n| n.severity).max().unwrap_or(Severity::Info);
    if let [one] = notices {
        return Words { title: channel.title.fill(one), text: clip(&channel.text.fill(one)), severity };
    }
    let mut kinds: Vec<&str> = Vec::new();
    for notice in notices {
        if !kinds.contains(&notice.event.as_str()) {
            kinds.push(notice.event.as_str());
        }
    }
    let host = notices.first().map_or("", |n| &n.host);
    let title = format!("{} events on {host}: {}", notices.len(), kinds.join(", "));
    let lines = notices.iter().map(|n| format!("- {}: {}", channel.title.fill(n), channel.text.fill(n)));
    Words { title, text: clip(&lines.collect::<Vec<_>>().join("\n")), severity }
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn json_body(value: &serde_json::Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Wall;
    use crate::notify::event::Event;

    #[test]
    fn several_events_are_one_message_with_a_line_for_each() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("n.toml");
        std::fs::write(&file, "[channel.a]\ntype = \"exec\"\ncommand = [\"/x\"]\n[[route]]\nchannels = [\"a\"]\n")
            .unwrap();
        let config = crate::notify::config::Config::load(&file).unwrap();
        let of = |event, text: &str| Notice::of_instance(event, Wall(5), text.to_owned(), "h");
        let words = words(&config.channels["a"], &[of(Event::Trouble, "bad\nnews"), of(Event::Recovered, "good")]);
        assert_eq!(words.title, "2 events on h: trouble, recovered");
        let expected = "- trouble: guardian guardiand on h: bad\\nnews\n- recovered: guardian guardiand on h: good";
        assert_eq!((words.text.as_str(), words.severity), (expected, Severity::Critical));
        assert_eq!(clip(&"é".repeat(TEXT_MAX + 1)).chars().count(), TEXT_MAX + 1);
    }
}
