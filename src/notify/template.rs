//! Templates: text with placeholders, and nothing else.

use super::event::Notice;
use crate::json;
use crate::model::escape;

/// The placeholders.
const NAMES: [&str; 10] =
    ["event", "severity", "run", "name", "workflow", "user", "sentence", "host", "time", "outcome"];

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(&'static str),
}

impl Template {
    /// Reads a text. `{{` and `}}` stand for the braces themselves; a name that is no placeholder is refused.
    pub fn parse(text: &str, suggest: impl Fn(&str, &[&'static str]) -> String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            let brace = &from[..1];
            if from[1..].starts_with(brace) {
                plain.push_str(brace);
                rest = &from[2..];
                continue;
            }
            let Some(end) = from.find('}').filter(|_| brace == "{") else {
                return Err(format!(
                    "has a {brace} that belongs to no placeholder: write {brace}{brace} for the brace itself"
                ));
            };
            let name = &from[1..end];
            let Some(known) = NAMES.iter().find(|known| **known == name) else {
                let shown: String = name.chars().take(40).collect();
                return Err(format!("has {{{}}}, which is no placeholder: {}", escape(&shown), suggest(name, &NAMES)));
            };
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(Part::Place(known));
            rest = &from[end + 1..];
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }

    /// The text for a notice. What comes from outside is escaped, so that it cannot begin a line or steer a terminal.
    pub fn fill(&self, notice: &Notice) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Place(name) => text.push_str(&escape(&value(name, notice))),
            }
        }
        text
    }
}

fn value(name: &str, notice: &Notice) -> String {
    let about = notice.about.as_ref();
    let of_run = |of: fn(&super::event::About) -> &String, otherwise: &str| {
        about.map(of).filter(|text| !text.is_empty()).cloned().unwrap_or_else(|| otherwise.to_owned())
    };
    match name {
        "event" => notice.event.as_str().to_owned(),
        "severity" => notice.severity.as_str().to_owned(),
        "run" => of_run(|a| &a.run, &notice.topic),
        "name" => of_run(|a| &a.name, "-"),
        "workflow" => of_run(|a| &a.workflow, "guardian"),
        "user" => of_run(|a| &a.user, "-"),
        "sentence" => notice.sentence.clone(),
        "host" => notice.host.clone(),
        "time" => json::utc_time(notice.at),
        "outcome" => {
            let text = about.and_then(|a| a.view.pointer("/outcome/text")).and_then(serde_json::Value::as_str);
            text.unwrap_or("-").to_owned()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Event, Notice};
    use super::*;
    use crate::model::Wall;

    fn parse(text: &str) -> Result<Template, String> {
        Template::parse(text, |_, _| "did you mean run?".to_owned())
    }

    #[test]
    fn placeholders_are_filled_and_braces_can_be_written() {
        let notice = Notice::of_instance(Event::Trouble, Wall(1_700_000_000_000_000), "a\nb".to_owned(), "h1");
        let filled = |text: &str| parse(text).unwrap().fill(&notice);
        assert_eq!(
            filled("{event} {severity} {run}/{workflow} {time}"),
            "trouble critical guardiand/guardian 2023-11-14T22:13:20Z"
        );
        assert_eq!(filled("{{{sentence}}} on {host}"), "{a\\nb} on h1");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn what_is_no_placeholder_is_refused() {
        assert_eq!(parse("{rum}").unwrap_err(), "has {rum}, which is no placeholder: did you mean run?");
        for bad in ["{", "}", "a {run", "run}", "{}", "{ run }", "{run:>8}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
