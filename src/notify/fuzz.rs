//! What is fuzzed here: the configuration, and notices as the outbox has kept them, in the words of each channel.

use std::path::Path;

use super::channel::{alertmanager, fuzz as channels};
use super::config::Config;
use super::event::{Notice, body};
use super::template::Template;
use crate::model::fuzz::{Target, check_sentence};
use crate::model::is_unsafe;

pub const TARGETS: &[Target] = &[("notify_config", config), ("notices", notices)];

/// It is taken, with a channel for each route; or each mistake is told in a line.
fn config(data: &[u8]) {
    match Config::parse(Path::new("notify.toml"), &String::from_utf8_lossy(data)) {
        Ok(config) => {
            assert!(
                config.routes.iter().flat_map(|route| &route.channels).all(|name| config.channels.contains_key(name))
            );
        }
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty());
            mistakes.0.iter().for_each(|mistake| check_sentence(&mistake.to_string()));
        }
    }
}

/// A template, ended by a NUL, and a notice: what comes of a notice begins no line and steers no terminal, in no channel.
fn notices(data: &[u8]) {
    let (template, notice) = data.split_at(data.iter().position(|byte| *byte == 0).unwrap_or(0));
    let Ok(notice) = serde_json::from_slice::<Notice>(notice.strip_prefix(&[0]).unwrap_or(notice)) else { return };
    let template = Template::parse(&String::from_utf8_lossy(template), |_, _| "there is no such one".to_owned());
    match template {
        Ok(template) => {
            let lines = |text: &str| text.chars().filter(|c| is_unsafe(*c)).count();
            let nothing = Notice::of_instance(notice.event, notice.at, String::new(), "");
            assert_eq!(lines(&template.fill(&notice)), lines(&template.fill(&nothing)), "{:?}", template.fill(&notice));
        }
        Err(told) => check_sentence(&told),
    }
    let told = body(std::slice::from_ref(&notice));
    assert_eq!(told.pointer("/events/0/id").and_then(|id| id.as_str()), Some(&*notice.id));
    channels::check(&notice);
    let on = alertmanager::change(Default::default(), &notice, false, notice.at).on;
    assert!(on.len() <= 1 && alertmanager::again(&on, notice.at).len() == on.len());
}
