//! What is fuzzed here: run ids, names, times, and what a run was seen to do. And what the targets of all rooms share.

use super::{
    Evidence, Notification, Progress, RunId, escape, explain, human_duration, is_unsafe, parse_duration,
    valid_workflow_name,
};

/// A target: its name, which is that of its corpus, and what is done with the bytes.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("names", names), ("evidence", evidence)];

/// The longest sentence that may come of what is refused, in characters.
const SENTENCE_MAX: usize = 1000;

/// What is told of bad input is one short line that cannot steer a terminal, whatever the input is.
pub fn check_sentence(told: &str) {
    assert!(!told.is_empty() && told.chars().count() <= SENTENCE_MAX, "{} characters", told.chars().count());
    assert!(!told.chars().any(is_unsafe), "{told:?}");
}

/// A number that a file is said to hold is in it. Between its sign and its digits there may be zeros.
pub fn check_told(number: impl ToString, by: &[u8]) {
    let number = number.to_string();
    let number = number.trim_start_matches('-');
    assert!(by.windows(number.len()).any(|part| part == number.as_bytes()), "{number} is not in the text");
}

/// The parts of an input of several texts, of which those that are not UTF-8 are read as far as they are.
pub fn texts(data: &[u8]) -> impl Iterator<Item = String> {
    data.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned())
}

fn names(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    match text.parse::<RunId>() {
        Ok(run) => assert!(run.to_string() == text && RunId::is_prefix(text)),
        Err(e) => check_sentence(&e.to_string()),
    }
    if RunId::is_prefix(text) {
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    }
    match valid_workflow_name(text) {
        Ok(()) => assert!(!text.contains(['/', ' ', '\\', '\'', '"']) && !text.chars().any(is_unsafe)),
        Err(e) => check_sentence(&e),
    }
    match parse_duration(text) {
        Ok(time) => check_sentence(&human_duration(time)),
        Err(e) => check_sentence(&e),
    }
    let safe = escape(text);
    assert!(!safe.chars().any(is_unsafe) && escape(&safe) == safe);
    assert!(Notification::status_of(text).chars().count() <= 256);
}

/// What a message says, written again, is read as the same.
pub fn check_notification(said: &Notification) {
    let usec = |time: Option<std::time::Duration>| time.map(|time| time.as_micros().to_string());
    let flag = |is: bool, value: &str| is.then(|| value.to_owned());
    let lines = [
        ("READY", flag(said.ready, "1")),
        ("WATCHDOG", flag(said.heartbeat, "1")),
        ("WATCHDOG", flag(said.stuck, "trigger")),
        ("STATUS", said.status.clone()),
        ("EXTEND_TIMEOUT_USEC", usec(said.extend)),
        ("WATCHDOG_USEC", usec(said.window)),
        ("STOPPING", flag(said.stopping, "1")),
        ("ERRNO", said.errno.map(|errno| errno.to_string())),
        ("MAINPID", flag(said.main_pid, "1")),
    ];
    let lines = lines.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    let lines = lines.chain(said.progress.iter().flat_map(|progress| progress.lines()));
    assert_eq!(Notification::parse(lines.collect::<Vec<_>>().join("\n").as_bytes()), *said);
    check_progress(said);
    let status = said.status.as_deref().unwrap_or_default();
    assert!(status.chars().count() <= 256 && !status.chars().any(char::is_control), "{status:?}");
}

/// However often it is said, an agent has come as far as it says, and what is told of that can steer no terminal.
fn check_progress(said: &Notification) {
    let Some(update) = &said.progress else { return };
    assert_eq!(update.clone().kept(), *update);
    let mut progress = Progress::default();
    progress.update(update);
    let once = progress.clone();
    progress.update(update);
    assert_eq!(progress.turns, once.turns);
    assert!(!progress.summary().chars().any(char::is_control), "{progress:?}");
}

/// What the store has kept of a look at processes is explained in a sentence, and kept again as the same.
fn evidence(data: &[u8]) {
    let Ok(evidence) = serde_json::from_slice::<Evidence>(data) else { return };
    assert!(!explain(&evidence).sentence.is_empty());
    let again = serde_json::to_string(&evidence).ok().and_then(|text| serde_json::from_str(&text).ok());
    assert_eq!(again, Some(evidence));
}
