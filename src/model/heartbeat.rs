//! What a run says of itself: the messages of sd_notify(3), and what is kept of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ProgressUpdate, Wall};

/// The most characters of a status that are kept.
pub(super) const STATUS_MAX: usize = 256;
/// The most time that a message can ask for, as anywhere: 100 years.
const USEC_MAX: u64 = 100 * 365 * 24 * 3600 * 1_000_000;

/// One message of a run, as far as it means something here. What else is in it is passed over, as systemd does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notification {
    /// `READY=1`: it is initialized.
    pub ready: bool,
    /// `WATCHDOG=1`: a heartbeat.
    pub heartbeat: bool,
    /// `WATCHDOG=trigger`: it knows itself that it is stuck.
    pub stuck: bool,
    /// `STATUS=`: how it is, in its own words, without control characters and not long; the empty text takes it back.
    pub status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=`: it needs at least this long from now.
    pub extend: Option<Duration>,
    /// `WATCHDOG_USEC=`: the longest time from now on from one heartbeat to the next.
    pub window: Option<Duration>,
    /// `STOPPING=1`: it is about to end.
    pub stopping: bool,
    /// `ERRNO=`: what failed.
    pub errno: Option<i32>,
    /// `MAINPID=` or `MAINPIDFD=1`: it wants another main process, which nobody can have here.
    pub main_pid: bool,
    /// `X_GUARDIAN_…=`: how far an agent has come; none if it says nothing of that.
    pub progress: Option<ProgressUpdate>,
}

impl Notification {
    /// Reads a message: lines of `NAME=VALUE`, of which the last of a name counts. Any bytes are a message.
    pub fn parse(message: &[u8]) -> Self {
        let mut said = Self::default();
        let mut progress = ProgressUpdate::default();
        for line in message.split(|b| *b == b'\n') {
            let Some(at) = line.iter().position(|b| *b == b'=') else { continue };
            let value = line.get(at + 1..).unwrap_or_default();
            let name = line.get(..at).unwrap_or_default();
            match name {
                b"READY" => said.ready |= value == b"1",
                b"WATCHDOG" => {
                    said.heartbeat |= value == b"1";
                    said.stuck |= value == b"trigger";
                }
                b"STATUS" => said.status = Some(plain(value, STATUS_MAX)),
                b"EXTEND_TIMEOUT_USEC" => said.extend = time(value).or(said.extend),
                b"WATCHDOG_USEC" => said.window = time(value).or(said.window),
                b"STOPPING" => said.stopping |= value == b"1",
                b"ERRNO" => said.errno = number(value).filter(|n| (0..=4095).contains(n)).or(said.errno),
                b"MAINPID" | b"MAINPIDFD" => said.main_pid = true,
                _ => progress.take(name, value),
            }
        }
        said.progress = (progress != ProgressUpdate::default()).then_some(progress);
        said
    }

    /// A status as it is kept.
    pub fn status_of(text: &str) -> String {
        plain(text.as_bytes(), STATUS_MAX)
    }
}

/// The text, with a mark in the place of what a terminal or D-Bus would not take as text, and so many characters of it.
pub(super) fn plain(bytes: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let marked = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let cut: String = text.trim().chars().map(marked).take(most).collect();
    // Cut at a space, it is the same as without.
    cut.trim_end().to_owned()
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// A time that is not zero, cut to the longest there is.
fn time(value: &[u8]) -> Option<Duration> {
    number::<u64>(value).filter(|usec| *usec > 0).map(|usec| Duration::from_micros(usec.min(USEC_MAX)))
}

/// Messages that were not taken, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Their sender was not of the run, or could not be told any more.
    pub foreign: u64,
    /// There were too many, of the run or of all.
    pub flooded: u64,
    /// They were longer than any may be.
    pub too_long: u64,
}

impl Refused {
    /// Adds more of them.
    pub fn add(&mut self, more: Refused) {
        self.foreign = self.foreign.saturating_add(more.foreign);
        self.flooded = self.flooded.saturating_add(more.flooded);
        self.too_long = self.too_long.saturating_add(more.too_long);
    }
}

/// What a run has said of itself so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeats {
    /// How many heartbeats came.
    pub total: u64,
    /// When the last one came.
    pub last_at: Option<Wall>,
    /// Its status, in its own words; empty if it has said none.
    pub status: String,
    /// It says that it is about to end.
    pub stopping: bool,
    /// The last errno that it told, as of errno(3).
    pub errno: Option<i32>,
    /// What was not taken.
    pub refused: Refused,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_mean_what_sd_notify_says() {
        let usec = Duration::from_micros;
        let cases: [(&[u8], Notification); 14] = [
            (b"READY=1", Notification { ready: true, ..Default::default() }),
            (b"READY=1\n", Notification { ready: true, ..Default::default() }),
            (b"READY=0\nREADY=yes\nready=1\nREADY", Notification::default()),
            (b"WATCHDOG=1", Notification { heartbeat: true, ..Default::default() }),
            (b"WATCHDOG=trigger", Notification { stuck: true, ..Default::default() }),
            (b"STATUS=a=b", Notification { status: Some("a=b".into()), ..Default::default() }),
            (b"STATUS=x\nSTATUS=", Notification { status: Some(String::new()), ..Default::default() }),
            (b"EXTEND_TIMEOUT_USEC=5", Notification { extend: Some(usec(5)), ..Default::default() }),
            (b"EXTEND_TIMEOUT_USEC=-5\nWATCHDOG_USEC=0\nERRNO=x", Notification::default()),
            (b"WATCHDOG_USEC=7", Notification { window: Some(usec(7)), ..Default::default() }),
            (b"STOPPING=1\nERRNO=2", Notification { stopping: true, errno: Some(2), ..Default::default() }),
            (b"MAINPID=1", Notification { main_pid: true, ..Default::default() }),
            (b"FDSTORE=1\nX_OWN=1\n\n=\n==\nBARRIER=1", Notification::default()),
            (b"", Notification::default()),
        ];
        for (message, expected) in cases {
            assert_eq!(Notification::parse(message), expected, "{:?}", String::from_utf8_lossy(message));
        }
        let longest = Notification::parse(b"EXTEND_TIMEOUT_USEC=18446744073709551615").extend;
        assert_eq!(longest, Some(usec(USEC_MAX)), "infinity is a hundred years");
    }

    #[test]
    fn a_status_is_text_that_a_terminal_and_d_bus_can_take() {
        let status = |bytes: &[u8]| Notification::parse(bytes).status.unwrap();
        assert_eq!(status(b"STATUS=\x1b[2Jred\0\xff "), "\u{fffd}[2Jred\u{fffd}\u{fffd}");
        assert_eq!(status(&[b"STATUS=".as_slice(), &[b'x'; 5000]].concat()).len(), STATUS_MAX);
        assert_eq!(status(&[b"STATUS=".as_slice(), &[b'x'; 250], b"      y"].concat()).len(), 250);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let said = Notification::parse(&bytes);
            prop_assert!(said.status.is_none_or(|s| s.chars().count() <= STATUS_MAX && !s.chars().any(char::is_control)));
        }

        #[test]
        fn what_is_between_known_lines_changes_nothing(noise in prop::collection::vec("[A-Z_]{0,12}=?[ -~]{0,20}", 0..8)) {
            let known = ["READY", "WATCHDOG", "STATUS", "EXTEND_TIMEOUT_USEC", "WATCHDOG_USEC", "STOPPING", "ERRNO", "MAINPID", "MAINPIDFD"];
            let noise: Vec<String> = noise.into_iter().filter(|l| !known.iter().any(|k| l.starts_with(&format!("{k}=")))).collect();
            let message = format!("READY=1\n{}\nSTATUS=up", noise.join("\n"));
            let expected = Notification { ready: true, status: Some("up".into()), ..Default::default() };
            prop_assert_eq!(Notification::parse(message.as_bytes()), expected);
        }
    }
}
