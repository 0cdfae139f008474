//! What each channel makes of a notice, whatever is in it.

use super::chat::{discord_body, slack_body, teams_body};
use super::email::compose;
use super::{TEXT_MAX, Words, clip, ntfy};
use crate::notify::config::{Email, MailTls};
use crate::notify::event::Notice;
use crate::notify::template::Template;

/// What a mail has that nobody from outside has put there.
const HEADERS: [&str; 8] =
    ["From", "To", "Subject", "Message-ID", "Date", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"];

/// Holds what a notice becomes to what its channel takes.
pub fn check(notice: &Notice) {
    let fill = |template: &str| Template::parse(template, |_, _| String::new()).map(|t| t.fill(notice));
    let (Ok(title), Ok(text)) = (fill("{event} {name} on {host}"), fill("{workflow}: {sentence}")) else { return };
    let words = Words { title, text: clip(&text), severity: notice.severity };
    assert!(words.text.chars().count() <= TEXT_MAX + 1);
    assert!(ntfy::encoded(&words.title).bytes().all(|b| (b' '..=b'~').contains(&b)));
    let longest = |body: &serde_json::Value, path: &str| {
        body.pointer(path).and_then(|text| text.as_str()).map(|text| text.chars().count())
    };
    assert!(longest(&slack_body(&words), "/blocks/0/text/text").is_some_and(|n| (1..=150).contains(&n)));
    assert!(longest(&discord_body(&words), "/embeds/0/description").is_some_and(|n| n <= 4096));
    assert!(teams_body(&words).pointer("/attachments/0/content/body/0").is_some());
    check_mail(&words, notice);
}

/// It has the headers that it is to have, once each.
fn check_mail(words: &Words, notice: &Notice) {
    let (Ok(from), Ok(to)) = ("guardian@example.org".parse(), "ann@example.org".parse()) else { return };
    let mail =
        Email { server: "mail.example.org".to_owned(), port: 25, tls: MailTls::None, from, to: vec![to], login: None };
    let Ok(message) = compose(&mail, words, std::slice::from_ref(notice)) else { return };
    let text = String::from_utf8_lossy(&message.formatted()).into_owned();
    let head = text.split_once("\r\n\r\n").map_or(&*text, |(head, _)| head);
    let mut seen: Vec<&str> = Vec::new();
    for line in head.split("\r\n").filter(|line| !line.starts_with([' ', '\t'])) {
        let name = line.split_once(':').map_or(line, |(name, _)| name);
        assert!(HEADERS.contains(&name) && !seen.contains(&name), "{head}");
        seen.push(name);
    }
}
