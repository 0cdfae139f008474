//! What is fuzzed here: the arguments of our methods as they come over D-Bus, and the answers as a client reads them.
//!
//! The wire format of D-Bus is zbus's; what is done with what was read is ours. What is taken is sent again and taken as the
//! same; what is refused, is so in a sentence.

use std::collections::HashMap;
use std::fmt::Debug;

use zbus::wire::serialized::{Context, Data};
use zbus::wire::{NATIVE_ENDIAN, to_bytes};
use zbus::{OwnedVariant, Type};

use super::client::{Explained, row_from};
use super::explain::ExplanationDict;
use super::filter::{self, FilterDict};
use super::heartbeat::heartbeat;
use super::launch::{self, LaunchDict, ReservedDict};
use super::manager::{self, WireEvent};
use super::statistics::{StatisticsDict, past_filter};
use super::view::{self, KillDict, RunDict};
use super::wire::{self, Marshalled};
use crate::model::fuzz::{Target, check_notification, check_sentence};
use crate::model::{Error, KillAnswer, RunId, RunView, Statistics};

pub const TARGETS: &[Target] = &[("dbus_arguments", arguments), ("dbus_answers", answers)];

type Options = HashMap<String, OwnedVariant>;

/// The body of a message, or nothing where zbus refuses it.
fn read<T: serde::de::DeserializeOwned + Type>(body: &[u8]) -> Option<T> {
    Data::new(body, Context::new(NATIVE_ENDIAN, 0)).deserialize().ok().map(|(value, _)| value)
}

/// What one end sends and the other reads.
fn sent<T: serde::de::DeserializeOwned + Type>(value: &(impl serde::Serialize + Type)) -> Option<T> {
    read(&to_bytes(Context::new(NATIVE_ENDIAN, 0), value).ok()?)
}

/// Gives what was taken; what is refused, is so in a sentence.
fn taken<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(|e| check_sentence(&e.message)).ok()
}

/// A letter for the method, then the body of the call.
fn arguments(data: &[u8]) {
    let Some((method, body)) = data.split_first() else { return };
    match method {
        b'S' => {
            let Some(request) = read(body).and_then(|options: Options| taken(launch::parse(&options))) else { return };
            let again = sent(&LaunchDict::from(&request)).map(|options: Options| launch::parse(&options));
            assert_eq!(format!("{again:?}"), format!("{:?}", Some(Ok::<_, Error>(request))));
        }
        b'L' => {
            let Some(filter) = read(body).and_then(|options: Options| taken(filter::filter(&options))) else { return };
            let again = sent(&FilterDict::from(&filter)).map(|options: Options| filter::filter(&options));
            assert_eq!(again, Some(Ok(filter)));
        }
        b'T' => {
            let Some(filter) = read(body).and_then(|options: Options| taken(past_filter(&options))) else { return };
            assert_eq!(
                sent(&FilterDict::from(&filter)).map(|options: Options| filter::filter(&options)),
                Some(Ok(filter))
            );
        }
        b'H' => {
            let said = read(body).and_then(|options: Options| taken(heartbeat(&options)));
            said.iter().for_each(check_notification);
        }
        b'K' => {
            let Some((run, mode, reason)) = read::<(String, String, String)>(body) else { return };
            let _ = run.parse::<RunId>().inspect_err(|e| check_sentence(&e.to_string()));
            if let Some((_, text)) = taken(manager::kill_arguments(&mode, reason.clone())) {
                assert!(text == reason && text.len() <= 4096);
            }
        }
        b'E' => {
            let Some((_, limit, by_usec)) = read::<(String, String, u64)>(body) else { return };
            taken(manager::timer(&limit)).iter().for_each(|rule| assert_eq!(rule.as_str(), limit));
            let by = taken(launch::duration("the extension", by_usec));
            assert!(by.is_none_or(|by| by.as_micros() == u128::from(by_usec)));
        }
        b'X' => {
            let Some((_, kind, value)) = read::<(String, String, i32)>(body) else { return };
            if let Some(status) = taken(view::exit_status_from(&kind, value)) {
                assert_eq!(view::exit_status(status), (kind.as_str(), value));
            }
        }
        _ => {}
    }
}

/// A letter for the method, then the body of its answer.
fn answers(data: &[u8]) {
    let Some((method, body)) = data.split_first() else { return };
    match method {
        b'L' => {
            let by_hand = wire::list::<RunDict>(body);
            if let Some(dicts) = &by_hand {
                let again = to_bytes(Context::new(NATIVE_ENDIAN, 0), &Marshalled::of(dicts.clone()));
                assert_eq!(again.ok().and_then(|again| wire::list::<RunDict>(&again)), by_hand);
            }
            by_hand.or_else(|| read(body)).unwrap_or_default().into_iter().for_each(run);
        }
        b'R' => {
            let reserved = |dict: ReservedDict| taken(dict.reserved(RunId::from_bytes([1; 6])));
            let Some(reserved) = read(body).and_then(reserved) else { return };
            let again = sent(&ReservedDict::from(&reserved)).map(|dict: ReservedDict| dict.reserved(reserved.run));
            same(again, reserved);
        }
        b'K' => {
            let Some(answer) = read(body).and_then(|dict: KillDict| taken(KillAnswer::try_from(dict))) else { return };
            same(sent(&KillDict::from(&answer)).map(|dict: KillDict| KillAnswer::try_from(dict)), answer);
        }
        b'X' => {
            let explained = read(body).and_then(|dict: ExplanationDict| taken(Explained::try_from(dict)));
            assert!(explained.is_none_or(|e| RunId::is_prefix(&e.run.to_string())));
        }
        b'T' => {
            for dict in read::<Vec<StatisticsDict>>(body).unwrap_or_default() {
                let Some(told) = taken(Statistics::try_from(dict)) else { continue };
                told.suggestions.iter().for_each(|s| check_sentence(&s.to_string()));
                let again = sent(&StatisticsDict::from(&told)).map(|dict: StatisticsDict| Statistics::try_from(dict));
                // Nanoseconds have come back as microseconds.
                same(again, told);
            }
        }
        b'A' => {
            for row in read::<Vec<WireEvent>>(body).unwrap_or_default() {
                let Some(row) = taken(row_from(row)) else { continue };
                assert_eq!(row_from(manager::event(row.clone())), Ok(row));
            }
        }
        _ => {}
    }
}

fn run(dict: RunDict) {
    let Some(view) = taken(RunView::try_from(dict)) else { return };
    same(sent(&RunDict::from(&view)).map(|dict: RunDict| RunView::try_from(dict)), view);
}

fn same<T: Debug + PartialEq>(again: Option<Result<T, Error>>, first: T) {
    assert_eq!(again, Some(Ok(first)));
}
