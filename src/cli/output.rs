//! What people and programs are shown: data on standard output, the rest on standard error. Everything that came from
//! outside is escaped, so that no name, command or reason can steer a terminal or fake a line.

use std::io::{self, IsTerminal, Write};

use comfy_table::Table;
use serde_json::Value;

use super::args::ColorWhen;
pub use crate::json::inert;
pub use crate::model::escape;
use crate::model::{Health, Wall, escape_lines};

/// How output is written.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// JSON was asked for.
    pub json: bool,
    color: bool,
}

/// A colour for a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Good.
    Good,
    /// Look here.
    Warning,
    /// Bad.
    Bad,
    /// Less important.
    Dim,
}

impl Output {
    /// Output as the options and the environment say.
    pub fn new(json: bool, when: ColorWhen) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let color = match when {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => io::stdout().is_terminal() && !no_color,
        };
        Self { json, color }
    }

    /// Whether there is colour.
    pub fn color(&self) -> bool {
        self.color
    }

    /// The word in this tone.
    pub fn tone(&self, tone: Tone, text: impl Into<String>) -> String {
        let text = text.into();
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
            Tone::Plain => return text,
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
    }

    /// A line of data.
    pub fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{}", text.as_ref())
    }

    /// A JSON document of data.
    pub fn json(&self, value: &Value) -> io::Result<()> {
        self.line(inert(&format!("{value:#}")))
    }

    /// The same in one line.
    pub fn json_line(&self, value: &Value) -> io::Result<()> {
        self.line(inert(&value.to_string()))
    }

    /// Rows under headings, aligned by spaces.
    pub fn table<const N: usize>(&self, headings: [&str; N], rows: Vec<[String; N]>) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{}", table(headings, rows))
    }
}

/// Rows under headings, aligned by spaces.
pub fn table<const N: usize>(headings: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(headings);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The tone of a health.
pub fn health_tone(health: Health) -> Tone {
    match health {
        Health::Healthy => Tone::Good,
        Health::Warning => Tone::Warning,
        Health::Critical => Tone::Bad,
    }
}

/// A message about the command itself.
pub fn note(text: impl AsRef<str>) {
    // Where standard error is gone there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "guardian: {}", text.as_ref());
}

/// A message from elsewhere: an error, or a list of them. Its lines after the first are indented, so that none is taken
/// for a message of its own.
pub fn complain(message: &str) {
    note(indented(message));
}

fn indented(message: &str) -> String {
    escape_lines(message).join("\n          ")
}

/// What to type next.
pub fn hint(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "hint: {}", text.as_ref());
}

/// A command as one line that a shell would read back the same way, as far as it is text.
pub fn command_line(command: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./=:,@%+".contains(c);
    let quoted = command.iter().map(|word| match escape(word) {
        word if !word.is_empty() && word.chars().all(plain) => word,
        word => format!("'{}'", word.replace('\'', "'\\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// At most so many characters, with an ellipsis where some are left out.
pub fn clip(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// The text in lines of at most so many characters, broken between words. A longer word has a line of its own.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The columns of the terminal that standard output is; none where it is no terminal.
pub fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// A time for people, in their time zone.
pub fn local_time(at: Wall) -> String {
    let timestamp = i64::try_from(at.0).ok().and_then(|usec| jiff::Timestamp::from_microsecond(usec).ok());
    let Some(time) = timestamp else { return format!("{} µs", at.0) };
    time.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A size for people.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 || size >= 100.0 { format!("{size:.0}{}", UNITS[unit]) } else { format!("{size:.1}{}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::is_unsafe;

    #[test]
    fn a_list_of_mistakes_is_a_line_each_and_none_can_pass_for_a_message() {
        let list = "it is refused: a.toml:1:2: no\n\n   a.toml:3:4: \x1b[2J\nguardian: run_1 finished\r\n";
        let shown = indented(list);
        let lines: Vec<&str> = shown.split('\n').collect();
        let rest = ["          a.toml:3:4: \\u{1b}[2J", "          guardian: run_1 finished"];
        assert_eq!(lines, [&["it is refused: a.toml:1:2: no"][..], &rest[..]].concat());
    }

    #[test]
    fn json_has_the_same_values_and_nothing_that_steers_a_terminal() {
        let value = serde_json::json!({"a\u{9b}31m": ["\x1b[2J\n\u{7f}\u{202e}é漢\\", 7]});
        for text in [format!("{value:#}"), value.to_string()] {
            let safe = inert(&text);
            assert!(!safe.replace('\n', "").chars().any(is_unsafe) && safe.contains("é漢"), "{safe}");
            assert_eq!(serde_json::from_str::<Value>(&safe).unwrap(), value);
        }
    }

    #[test]
    fn sentences_are_broken_between_words() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("unbreakable a", 4), ["unbreakable", "a"]);
        assert!(wrapped("", 9).is_empty());
    }

    #[test]
    fn a_command_line_is_quoted_where_a_shell_needs_it() {
        let command = ["sh", "-c", "echo 'a b'", ""].map(str::to_owned);
        assert_eq!(command_line(&command), "sh -c 'echo '\\''a b'\\''' ''");
    }

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_space() {
        let text = table(["RUN", "PHASE"], vec![["run_1".into(), "running".into()], ["r".into(), "x".into()]]);
        assert_eq!(text, "RUN    PHASE\nrun_1  running\nr      x");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!([512, 1536, 1 << 30, 300 << 20].map(human_size), ["512B", "1.5K", "1.0G", "300M"]);
    }
}
