//! Routes: which channels are told of a notice, when, and what is not told again.

use std::time::Duration;

use jiff::ZonedDateTime;

use super::config::{Config, Route};
use super::event::{Notice, Severity};
use crate::model::Wall;

/// One way that a notice goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned<'a> {
    /// The channel.
    pub channel: &'a str,
    /// The route's name.
    pub route: &'a str,
    /// For how long the same is not told again; zero: it is told each time.
    pub dedup_window: Duration,
    /// How long others are waited for.
    pub group_window: Duration,
    /// When quiet hours are over for it.
    pub held_until: Option<Wall>,
    /// Nothing is to be told, but that what was told of the run is over.
    pub only_ends: bool,
}

/// The ways that a notice goes: at most one to each channel, by the first route that wants it there.
pub fn plan<'a>(config: &'a Config, notice: &Notice, now: &ZonedDateTime) -> Vec<Planned<'a>> {
    let mut all: Vec<Planned<'_>> = Vec::new();
    for route in &config.routes {
        let concerns = route.concerns(notice);
        let wants = concerns && route.wants(notice);
        for name in &route.channels {
            let is_stateful = config.channels.get(name).is_some_and(|c| c.target.is_stateful());
            let only_ends = !wants && concerns && is_stateful && notice.event.ends_trouble();
            if !wants && !only_ends {
                continue;
            }
            let planned = match is_stateful {
                // It groups, silences and repeats by rules of its own, for which it has to know everything.
                true => Planned {
                    channel: name,
                    route: &route.name,
                    dedup_window: Duration::ZERO,
                    group_window: Duration::ZERO,
                    held_until: None,
                    only_ends,
                },
                false => Planned {
                    channel: name,
                    route: &route.name,
                    dedup_window: route.dedup_window,
                    group_window: route.group_window,
                    held_until: route.quiet.filter(|_| notice.severity < Severity::Critical).and_then(|q| q.until(now)),
                    only_ends,
                },
            };
            match all.iter_mut().find(|p| p.channel == name) {
                Some(first) if first.only_ends && wants => *first = planned,
                Some(_) => {}
                None => all.push(planned),
            }
        }
    }
    all
}

impl Route {
    /// Whether it is about this workflow, or about the instance and for all.
    fn concerns(&self, notice: &Notice) -> bool {
        let workflow = notice.about.as_ref().map(|about| about.workflow.as_str());
        self.workflows.is_empty()
            || self.workflows.iter().any(|glob| match workflow {
                Some(workflow) => matches(glob, workflow),
                None => glob == "*",
            })
    }

    fn wants(&self, notice: &Notice) -> bool {
        let is_event = match &self.events {
            Some(events) => events.contains(&notice.event),
            None => notice.event.is_news(),
        };
        // That it is well again is for whoever was told that it was not.
        is_event && (notice.severity >= self.severity || notice.event == super::event::Event::Recovered)
    }
}

/// Whether a glob matches: `*` is any text, `?` any one character.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    // Where the last star was, and how much of the text it takes: on a mismatch it takes one more.
    let (mut g, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (g, t) = (g + 1, t + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (g, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use serde_json::Value;

    use super::*;
    use crate::notify::event::{About, Event};

    fn config(routes: &str) -> Config {
        let channels = "[channel.a]\ntype = \"exec\"\ncommand = [\"/x\"]\n[channel.b]\ntype = \"exec\"\ncommand = [\"/x\"]\n\
            [channel.am]\ntype = \"alertmanager\"\nurl = \"https://e.org\"\n";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("n.toml");
        std::fs::write(&file, format!("{channels}{routes}")).unwrap();
        Config::load(&file).unwrap()
    }

    fn notice(event: Event, severity: Severity, workflow: Option<&str>) -> Notice {
        let about = workflow.map(|w| About { run: "run_1".into(), workflow: w.into(), ..About::default() });
        let (topic, sentence, host) = (String::new(), String::new(), String::new());
        Notice { id: "1".into(), event, severity, at: Wall(5), about, topic, sentence, host, audit: Value::Null }
    }

    fn noon() -> ZonedDateTime {
        jiff::civil::date(2026, 3, 10).at(12, 0, 0, 0).to_zoned_datetime(TimeZone::UTC).unwrap()
    }

    fn ways(config: &Config, notice: &Notice) -> Vec<(String, String, bool)> {
        let all = plan(config, notice, &noon());
        all.iter().map(|p| (p.channel.to_owned(), p.route.to_owned(), p.only_ends)).collect()
    }

    fn way(channel: &str, route: &str, only_ends: bool) -> (String, String, bool) {
        (channel.to_owned(), route.to_owned(), only_ends)
    }

    #[test]
    fn the_first_route_that_wants_a_notice_takes_it_to_a_channel() {
        let config = config(
            "[[route]]\nname = \"x\"\nworkflow = \"build*\"\nseverity = \"critical\"\nchannels = [\"a\"]\n\
             [[route]]\nname = \"y\"\nchannels = [\"a\", \"b\"]\n",
        );
        let critical = notice(Event::Critical, Severity::Critical, Some("builder"));
        assert_eq!(ways(&config, &critical), [way("a", "x", false), way("b", "y", false)]);
        let warning = notice(Event::Warning, Severity::Warning, Some("builder"));
        assert_eq!(ways(&config, &warning), [way("a", "y", false), way("b", "y", false)]);
        assert_eq!(ways(&config, &notice(Event::Finished, Severity::Info, Some("builder"))), []);
        let trouble = notice(Event::Trouble, Severity::Critical, None);
        assert_eq!(ways(&config, &trouble), [way("a", "y", false), way("b", "y", false)]);
    }

    #[test]
    fn alertmanager_hears_that_it_is_over_whatever_the_route_wants() {
        let config =
            config("[[route]]\nseverity = \"critical\"\nevents = [\"critical\"]\nchannels = [\"am\", \"a\"]\n");
        let finished = notice(Event::Finished, Severity::Info, Some("x"));
        assert_eq!(ways(&config, &finished), [way("am", "route 1", true)]);
        assert_eq!(ways(&config, &notice(Event::Warning, Severity::Warning, Some("x"))), []);
    }

    #[test]
    fn in_quiet_hours_only_what_is_critical_is_told() {
        let config = config("[[route]]\nquiet_hours = \"11:00-13:00\"\nchannels = [\"a\", \"am\"]\n");
        let held = |event, severity| -> Vec<bool> {
            plan(&config, &notice(event, severity, Some("x")), &noon()).iter().map(|p| p.held_until.is_some()).collect()
        };
        assert_eq!(held(Event::Warning, Severity::Warning), [true, false]);
        assert_eq!(held(Event::Critical, Severity::Critical), [false, false]);
    }

    #[test]
    fn globs_match_as_those_of_a_shell() {
        for (glob, text, is_match) in [
            ("*", "", true),
            ("builder", "builder", true),
            ("build", "builder", false),
            ("b*r", "builder", true),
            ("*ld*", "builder", true),
            ("b?ilder", "builder", true),
            ("b?", "b", false),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbxc", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(glob, text), is_match, "{glob} {text}");
        }
    }
}
