//! What a run says of itself: when it is published, and when it is put on record.

use super::*;
use crate::model::{Notification, Refused, Sample};

/// Held to a heartbeat every ten seconds, once it has sent one.
fn beating() -> Steps {
    let mut spec = spec(ONE);
    spec.limits.watch.heartbeat_timeout = Some(10 * SECOND);
    spec.limits.max_runtime = Some(100 * SECOND);
    Steps::live(spec)
}

impl Steps {
    pub(super) fn said(&mut self, said: Notification) -> Vec<Effect> {
        self.step(Event::Heard { run: ONE, messages: vec![said], refused: Refused::default(), reply: None })
    }
}

fn heartbeat() -> Notification {
    Notification { heartbeat: true, ..Notification::default() }
}

fn status(text: &str) -> Notification {
    Notification { status: Some(text.into()), ..Notification::default() }
}

pub(super) fn is_published(effects: &[Effect]) -> bool {
    has(effects, |e| matches!(e, Effect::Publish(ONE)))
}

pub(super) fn is_saved(effects: &[Effect]) -> bool {
    has(effects, |e| matches!(e, Effect::Record(_)))
}

#[test]
fn the_first_heartbeat_is_put_on_record_so_that_the_next_instance_waits_for_more_and_others_are_told_alone() {
    let mut b = beating();
    assert!(is_saved(&b.said(heartbeat())));
    b.pass(2 * SECOND);
    let second = b.said(heartbeat());
    assert!(is_published(&second) && !is_saved(&second), "{second:?}");
}

#[test]
fn what_is_said_is_published_at_once_and_then_once_a_second() {
    let mut b = beating();
    assert!(!b.engine.is_untold(ONE));
    assert!(is_published(&b.said(status("one"))));
    b.pass(SECOND - MS);
    assert!(!is_published(&b.said(status("two"))) && b.engine.is_untold(ONE));
    let later: Vec<_> = b.pass(2 * SECOND).into_iter().filter(|(_, e)| matches!(e, Effect::Publish(ONE))).collect();
    assert_eq!(later.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [MS]);
    assert!(!b.engine.is_untold(ONE));
    b.said(status("three"));
    b.pass(SECOND);
    assert!(is_published(&b.said(status("four"))));
    b.said(status("five"));
    assert!(b.engine.is_untold(ONE), "that is to come, and nothing else of this run");
}

#[test]
fn that_something_was_refused_is_told_and_that_nothing_was_said_is_not() {
    let mut b = beating();
    let heard = |b: &mut Steps, refused| b.step(Event::Heard { run: ONE, messages: vec![], refused, reply: None });
    assert!(heard(&mut b, Refused::default()).is_empty());
    assert!(is_published(&heard(&mut b, Refused { flooded: 1, ..Refused::default() })));
    assert_eq!(b.run().heartbeats.refused.flooded, 1);
}

#[test]
fn a_run_that_asks_for_no_more_time_than_it_has_is_given_none() {
    let mut b = beating();
    let left = b.run().timers[&Rule::MaxRuntime].ends.since(b.now.mono);
    let asks = |extend| Notification { extend: Some(extend), ..Notification::default() };
    let heard = b.said(asks(left));
    assert!(!audit(&heard).iter().any(|e| e.kind == EventKind::LimitExtended), "{heard:?}");
    let heard = b.said(asks(left + SECOND));
    let extended = audit(&heard)[0];
    assert_eq!((extended.kind, &extended.details["by_usec"]), (EventKind::LimitExtended, &json!(1_000_000)));
}

#[test]
fn the_next_instance_waits_for_a_heartbeat_anew_and_takes_back_that_it_was_nearly_late() {
    let mut b = beating();
    b.said(heartbeat());
    b.pass(9 * SECOND);
    b.step(Event::OomKilled { run: ONE, kills: 1 });
    let rules = |b: &Steps| b.run().reasons.iter().map(|r| r.rule).collect::<Vec<_>>();
    assert_eq!(rules(&b), [Rule::HeartbeatTimeout, Rule::Oom]);
    let (mut adopted, _) = next(&b, there());
    assert_eq!(rules(&adopted), [Rule::Oom]);
    adopted.pass(8 * SECOND - MS);
    assert_eq!(rules(&adopted), [Rule::Oom]);
    adopted.pass(MS);
    assert_eq!(rules(&adopted), [Rule::Oom, Rule::HeartbeatTimeout]);
}

#[test]
fn that_memory_is_short_is_put_on_record_when_it_begins_and_when_it_ends() {
    let mut short = spec(ONE);
    short.limits.watch.pressure_max_percent = Some(40);
    let mut b = Steps::live(short);
    let mut saved = |percent| {
        let sample = Sample { memory_pressure: Some(percent), ..Sample::default() };
        is_saved(&b.step(Event::Sampled { run: ONE, sample }))
    };
    assert_eq!([3, 50, 60, 3, 3].map(&mut saved), [false, true, false, true, false]);
}
