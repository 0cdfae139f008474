//! What an agent is known to have done, and how the instance is told: lines of sd_notify(3), all numbers absolute, so that
//! a message that is lost does not matter.

use super::pick::{Found, beginning};
use crate::model::{Notification, ProgressUpdate};

/// A message that is longer than this is not taken.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) const MESSAGE_MAX: usize = 8192;

/// The most bytes of a short text in a message, and of what a final report says; together they fit in a message.
const SHORT: usize = 256;
const LONG: usize = 2048;

/// What is known of an agent's progress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// It is initialized.
    pub ready: bool,
    /// Its session.
    pub session: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// Turns that it has begun.
    pub turns: u64,
    /// How many it may have.
    pub turns_max: Option<u64>,
    /// Tokens, input and output together.
    pub tokens: u64,
    /// What it has cost, in millionths of a US dollar.
    pub cost_micro_usd: Option<u64>,
    /// The tool that it called last.
    pub tool: Option<String>,
    /// How often it has done the same in a row, and what.
    pub repeats: u64,
    /// What that is.
    pub repeated: Option<String>,
    /// What it waits for; the empty text is for nothing any more.
    pub waiting: Option<String>,
    /// Its final report: whether it is a success, and what it says.
    pub result: Option<(bool, String)>,
    /// What it is doing, where that is not what the fields above say.
    pub doing: Option<String>,
}

impl Report {
    /// The message, with its newest state.
    pub fn message(&self) -> String {
        let text = |text: &Option<String>| text.as_deref().map(|text| beginning(text.trim(), SHORT).to_owned());
        let said = ProgressUpdate {
            session: text(&self.session),
            model: text(&self.model),
            turns: Some(self.turns),
            turns_max: self.turns_max,
            tokens: Some(self.tokens),
            cost_micro_usd: self.cost_micro_usd,
            // Of a turn before this one it may have been told.
            tool: Some(text(&self.tool).unwrap_or_default()),
            repeats: Some(self.repeats),
            repeated: text(&self.repeated),
            waiting: text(&self.waiting),
            success: self.result.as_ref().map(|(success, _)| *success),
            report: self.result.as_ref().map(|(_, text)| beginning(text.trim(), LONG).to_owned()),
        };
        let status = format!("STATUS={}", Notification::status_of(&self.status()));
        let ready = self.ready.then(|| "READY=1".to_owned());
        let lines = ready.into_iter().chain(["WATCHDOG=1".to_owned(), status]).chain(said.lines());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What it is doing, in a few words.
    fn status(&self) -> String {
        let turn = match (self.turns, self.turns_max) {
            (0, _) if self.ready => "initialized".to_owned(),
            (0, _) => "starting".to_owned(),
            (n, Some(max)) => format!("turn {n} of {max}"),
            (n, None) => format!("turn {n}"),
        };
        match (&self.result, &self.waiting, &self.doing, &self.tool) {
            (Some((true, _)), ..) => "finished with success".to_owned(),
            (Some((false, _)), ..) => "finished with an error".to_owned(),
            (_, Some(what), ..) if !what.is_empty() => format!("{turn}: waits for {what}"),
            (_, _, Some(what), _) | (_, _, None, Some(what)) => format!("{turn}: {what}"),
            _ => turn,
        }
    }

    /// It waits for nothing any more.
    pub fn goes_on(&mut self) {
        self.waiting = self.waiting.is_some().then(String::new);
        self.doing = None;
    }

    /// A cost in US dollars is known.
    pub fn cost(&mut self, usd: f64) {
        self.cost_micro_usd = Some((usd.max(0.0) * 1e6).round().min(1e18) as u64);
    }
}

/// The same in a row: calls of a tool with the same input, or failures with the same words.
#[derive(Debug, Default)]
pub struct Repeats {
    call: Row,
    error: Row,
}

#[derive(Debug, Default)]
struct Row {
    digest: u64,
    times: u64,
    what: String,
}

impl Row {
    fn add(&mut self, digest: u64, what: String) {
        self.times = if self.digest == digest && self.times > 0 { self.times + 1 } else { 1 };
        (self.digest, self.what) = (digest, what);
    }
}

impl Repeats {
    /// A tool was called.
    pub fn call(&mut self, tool: &str, input: Option<&Found>) {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        std::hash::Hash::hash(&(tool, input.map(|i| i.digest)), &mut hasher);
        let with = input.map(|i| i.text.as_str()).filter(|text| !text.is_empty());
        let what = with.map_or_else(|| tool.to_owned(), |text| format!("{tool}: {text}"));
        self.call.add(std::hash::Hasher::finish(&hasher), what);
    }

    /// Something failed with these words, or nothing did.
    pub fn error(&mut self, error: Option<&Found>) {
        match error {
            Some(error) => self.error.add(error.digest, format!("error: {}", error.text)),
            None => self.error = Row::default(),
        }
    }

    /// Tells of what is the longest row.
    pub fn tell(&self, report: &mut Report) {
        let longest = if self.error.times > self.call.times { &self.error } else { &self.call };
        report.repeats = longest.times;
        report.repeated = (longest.times > 0).then(|| longest.what.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Progress;

    #[test]
    fn a_message_has_a_line_for_all_that_is_known() {
        let report = Report {
            ready: true,
            session: Some("s-1".into()),
            model: Some("m".into()),
            turns: 7,
            turns_max: Some(30),
            tokens: 1234,
            cost_micro_usd: Some(500),
            tool: Some("Bash".into()),
            repeats: 2,
            repeated: Some("Bash: ls\n-l".into()),
            ..Report::default()
        };
        let expected = "READY=1\nWATCHDOG=1\nSTATUS=turn 7 of 30: Bash\nX_GUARDIAN_SESSION=s-1\nX_GUARDIAN_MODEL=m\n\
                        X_GUARDIAN_TURNS=7\nX_GUARDIAN_TURNS_MAX=30\nX_GUARDIAN_TOKENS=1234\nX_GUARDIAN_COST_MICRO_USD=500\n\
                        X_GUARDIAN_TOOL=Bash\nX_GUARDIAN_REPEATS=2\nX_GUARDIAN_REPEATED=Bash: ls -l";
        assert_eq!(report.message(), expected);
    }

    #[test]
    fn a_tool_of_the_turn_before_is_none_of_this_one() {
        let mut progress = Progress::default();
        let report = Report { turns: 1, tool: Some("Bash".into()), ..Report::default() };
        let next = Report { turns: 2, tool: None, ..report.clone() };
        for (report, tool) in [(report, Some("Bash")), (next, None)] {
            progress.update(&Notification::parse(report.message().as_bytes()).progress.unwrap());
            assert_eq!(progress.tool.as_deref(), tool);
        }
    }

    #[test]
    fn a_message_is_never_longer_than_one_that_is_taken() {
        let long = || Some("é\n".repeat(5000));
        let report = Report {
            ready: true,
            session: long(),
            model: long(),
            tool: long(),
            repeated: long(),
            waiting: long(),
            result: Some((false, "x".repeat(10_000))),
            ..Report::default()
        };
        assert!(report.message().len() < MESSAGE_MAX, "{}", report.message().len());
    }

    #[test]
    fn what_is_done_is_told_in_a_few_words() {
        let mut report = Report::default();
        assert_eq!(report.status(), "starting");
        report.ready = true;
        assert_eq!(report.status(), "initialized");
        (report.turns, report.waiting) = (2, Some("permission to use Bash".into()));
        assert_eq!(report.status(), "turn 2: waits for permission to use Bash");
        report.goes_on();
        assert_eq!((report.status().as_str(), report.waiting.as_deref()), ("turn 2", Some("")));
        report.result = Some((true, String::new()));
        assert_eq!(report.status(), "finished with success");
    }

    #[test]
    fn a_row_ends_with_something_else() {
        let (mut repeats, mut report) = (Repeats::default(), Report::default());
        let found = |digest, text: &str| Found { digest, text: text.into(), ..Found::default() };
        let mut row = |repeats: &Repeats| {
            repeats.tell(&mut report);
            (report.repeats, report.repeated.clone().unwrap_or_default())
        };
        assert_eq!(row(&repeats), (0, String::new()));
        repeats.call("Bash", Some(&found(1, "ls")));
        repeats.call("Bash", Some(&found(1, "ls")));
        assert_eq!(row(&repeats), (2, "Bash: ls".into()));
        repeats.call("Read", Some(&found(1, "ls")));
        assert_eq!(row(&repeats), (1, "Read: ls".into()));
        (0..3).for_each(|_| repeats.error(Some(&found(7, "no such file"))));
        assert_eq!(row(&repeats), (3, "error: no such file".into()));
        repeats.error(None);
        assert_eq!(row(&repeats), (1, "Read: ls".into()));
    }
}
