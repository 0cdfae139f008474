//! Slack, Discord and Teams: in each what comes from a run is text, and neither a mention nor a link nor markup.

use serde_json::{Value, json};

use super::{Failure, Words, json_body};
use crate::notify::config::Channel;
use crate::notify::event::Severity;
use crate::notify::http::post;
use crate::notify::secret::Secret;

pub(super) fn slack(channel: &Channel, url: &Secret, words: &Words) -> Result<(), Failure> {
    send(channel, url, &slack_body(words))
}

pub(super) fn discord(channel: &Channel, url: &Secret, words: &Words) -> Result<(), Failure> {
    send(channel, url, &discord_body(words))
}

pub(super) fn teams(channel: &Channel, url: &Secret, words: &Words) -> Result<(), Failure> {
    send(channel, url, &teams_body(words))
}

fn send(channel: &Channel, url: &Secret, body: &Value) -> Result<(), Failure> {
    post(channel, url, "", &[("Content-Type", "application/json")], &json_body(body))
}

pub(super) fn slack_body(words: &Words) -> Value {
    let plain = |text: &str, most: usize| -> Value {
        let text: String = text.chars().take(most).collect();
        json!({ "type": "plain_text", "text": if text.is_empty() { "-".to_owned() } else { text }, "emoji": false })
    };
    // What notifications show; the three characters are all that its markup begins with.
    let fallback = words.title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    json!({
        "text": fallback,
        "blocks": [
            { "type": "header", "text": plain(&words.title, 150) },
            { "type": "section", "text": plain(&words.text, 3000) },
        ],
    })
}

pub(super) fn discord_body(words: &Words) -> Value {
    let colour = match words.severity {
        Severity::Info => 0x002e_cc71,
        Severity::Warning => 0x00f1_c40f,
        Severity::Critical => 0x00e7_4c3c,
    };
    let title: String = escape_markdown(&words.title).chars().take(256).collect();
    let text: String = escape_markdown(&words.text).chars().take(4096).collect();
    json!({
        "embeds": [{ "title": title, "description": text, "color": colour }],
        "allowed_mentions": { "parse": [] },
    })
}

fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\*_~`|>[]()#<@:".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// An adaptive card, as a workflow of Teams takes it. A text run knows no markup.
pub(super) fn teams_body(words: &Words) -> Value {
    let colour = match words.severity {
        Severity::Info => "Good",
        Severity::Warning => "Warning",
        Severity::Critical => "Attention",
    };
    let run = |text: &str, more: Value| {
        let mut run = json!({ "type": "TextRun", "text": text });
        if let (Some(run), Value::Object(more)) = (run.as_object_mut(), more) {
            run.extend(more);
        }
        json!({ "type": "RichTextBlock", "inlines": [run] })
    };
    let mut body = vec![run(&words.title, json!({ "weight": "Bolder", "size": "Medium", "color": colour }))];
    body.extend(words.text.lines().map(|line| run(line, json!({}))));
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": body,
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_says_is_neither_mention_nor_markup() {
        let words = Words {
            title: "<!channel> a&b".into(),
            text: "[x](https://e.org) @everyone **b**\nsecond".into(),
            severity: Severity::Critical,
        };
        let slack = slack_body(&words);
        assert_eq!(slack["text"], "&lt;!channel&gt; a&amp;b");
        assert_eq!(slack["blocks"][1]["text"]["type"], "plain_text");
        let discord = discord_body(&words);
        let text = discord["embeds"][0]["description"].as_str().unwrap();
        assert!(text.starts_with("\\[x\\]\\(https\\://e.org\\) \\@everyone \\*\\*b"), "{text}");
        assert_eq!(discord["allowed_mentions"]["parse"], json!([]));
        let card = &teams_body(&words)["attachments"][0]["content"];
        assert_eq!(card["body"].as_array().unwrap().len(), 3);
        assert_eq!(card["body"][0]["inlines"][0]["color"], "Attention");
    }
}
