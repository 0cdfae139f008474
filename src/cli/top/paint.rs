//! Text on the screen: colours where they are wanted, and what has to fit.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::cli::output::{Tone, health_tone};
use crate::model::Health;

/// How text is painted.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    /// In colours. What they say is said by words or symbols as well.
    pub color: bool,
}

impl Paint {
    /// The style of a tone.
    pub fn style(self, tone: Tone) -> Style {
        match tone {
            _ if !self.color => Style::new(),
            Tone::Plain => Style::new(),
            Tone::Good => Style::new().fg(Color::Green),
            Tone::Warning => Style::new().fg(Color::Yellow),
            Tone::Bad => Style::new().fg(Color::Red),
            Tone::Dim => Style::new().add_modifier(Modifier::DIM),
        }
    }

    /// A text in a tone.
    pub fn span(self, tone: Tone, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.style(tone))
    }

    /// A health by its symbol and its word.
    pub fn health(self, health: Health) -> Span<'static> {
        self.span(health_tone(health), format!("{} {health}", symbol(health)))
    }
}

/// What stands for a health.
pub const fn symbol(health: Health) -> &'static str {
    match health {
        Health::Healthy => "✓",
        Health::Warning => "!",
        Health::Critical => "✗",
    }
}

/// Bold, which is no colour.
pub fn bold(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::BOLD))
}

/// Writes lines into an area, from its top, as far as they fit.
pub fn write(buffer: &mut Buffer, area: Rect, lines: &[Line<'_>]) {
    let area = area.intersection(buffer.area);
    for (line, y) in lines.iter().zip(area.top()..area.bottom()) {
        buffer.set_line(area.x, y, line, area.width);
    }
}

/// The columns that a text takes on the screen.
pub fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { Span::raw(text).width() }
}

/// As much of a text as fits, with an ellipsis where something is left out.
pub fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut fitting = String::new();
    let mut left = columns.saturating_sub(1);
    for c in text.chars() {
        let wide = width(c.encode_utf8(&mut [0; 4]));
        let Some(rest) = left.checked_sub(wide) else { break };
        left = rest;
        fitting.push(c);
    }
    if columns > 0 {
        fitting.push('…');
    }
    fitting
}

/// A text in a column: cut and filled to its width, to the right for numbers.
pub fn cell(text: &str, columns: usize, right: bool) -> String {
    let text = fit(text, columns);
    let space = " ".repeat(columns.saturating_sub(width(&text)));
    if right { format!("{space}{text}") } else { format!("{text}{space}") }
}

/// Lines of at most so many columns: broken between words, and within what is longer than a line.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut word = word;
        while let Some(line) = lines.last_mut() {
            let space = usize::from(!line.is_empty());
            if width(line) + space + width(word) <= columns {
                line.push_str(&" "[..space]);
                line.push_str(word);
                break;
            }
            if line.is_empty() {
                let at = break_of(word, columns);
                line.push_str(&word[..at]);
                word = &word[at..];
            }
            lines.push(String::new());
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// Where a word is broken that is longer than a line: behind one character at least.
fn break_of(word: &str, columns: usize) -> usize {
    let mut at = 0;
    for (n, c) in word.char_indices() {
        let end = n + c.len_utf8();
        if at > 0 && width(&word[..end]) > columns {
            break;
        }
        at = end;
    }
    at
}

/// A duration in a column, at most six characters: `12m3s`, as durations are typed.
pub fn brief(time: Duration) -> String {
    let secs = time.as_secs();
    match secs {
        ..60 => format!("{secs}s"),
        60..3600 => format!("{}m{}s", secs / 60, secs % 60),
        3600..86400 => format!("{}h{}m", secs / 3600, secs % 3600 / 60),
        _ if secs < 100 * 86400 => format!("{}d{}h", secs / 86400, secs % 86400 / 3600),
        _ => format!("{}d", secs / 86400),
    }
}

/// The same by its greatest unit, at most three characters.
pub fn briefest(time: Duration) -> String {
    let text = brief(time);
    let unit = text.find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |at| at + 1);
    text[..unit].to_owned()
}

/// A share as a bar of so many cells.
pub fn bar(percent: u64, cells: usize) -> String {
    let full = usize::try_from(percent).unwrap_or(100).min(100) * cells / 100;
    // Of what has begun something is seen, and what is not over is not full.
    let full = if percent > 0 { full.max(1).min(cells) } else { full };
    format!("{}{}", "▓".repeat(full), "░".repeat(cells - full))
}

/// The last values as a line of blocks, the greatest as the highest; what is not known is a space.
pub fn spark(values: &[Option<u64>], cells: usize, most: u64) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let last = values.iter().skip(values.len().saturating_sub(cells));
    let block = |value: &Option<u64>| {
        let Some(value) = value else { return ' ' };
        let height = u128::from(*value) * 8 / u128::from(most.max(1));
        BLOCKS[usize::try_from(height).unwrap_or(7).min(7)]
    };
    last.map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_fits_its_column_whatever_it_is_made_of() {
        assert_eq!([cell("ab", 4, false), cell("ab", 4, true), cell("abcde", 4, false)], ["ab  ", "  ab", "abc…"]);
        assert_eq!(
            [cell("漢字漢字", 4, false), cell("漢字漢字", 5, false), cell("a", 0, false)],
            ["漢… ", "漢字…", ""]
        );
        for columns in 0..9 {
            assert_eq!(width(&cell("漢e\u{301}x字", columns, true)), columns);
        }
    }

    #[test]
    fn lines_are_broken_between_words_and_within_long_ones() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("a unbreakable b", 4), ["a", "unbr", "eaka", "ble", "b"]);
        assert_eq!(wrap("漢字漢", 3), ["漢", "字", "漢"]);
        assert_eq!(wrap("漢", 0), ["漢"]);
        assert!(wrap("  ", 4).is_empty());
    }

    #[test]
    fn durations_are_brief() {
        let cases =
            [(0, "0s", "0s"), (59, "59s", "59s"), (723, "12m3s", "12m"), (3720, "1h2m", "1h"), (90_000, "1d1h", "1d")];
        for (secs, two, one) in cases {
            assert_eq!(
                (brief(Duration::from_secs(secs)).as_str(), briefest(Duration::from_secs(secs)).as_str()),
                (two, one)
            );
        }
        assert_eq!(brief(Duration::from_secs(99 * 86400 + 86399)), "99d23h");
        assert_eq!(brief(Duration::from_secs(365 * 86400)), "365d");
    }

    #[test]
    fn a_bar_is_full_when_the_time_is_over_and_not_before() {
        assert_eq!([0, 1, 62, 99, 100].map(|percent| bar(percent, 5)), ["░░░░░", "▓░░░░", "▓▓▓░░", "▓▓▓▓░", "▓▓▓▓▓"]);
    }

    #[test]
    fn the_last_values_are_drawn() {
        assert_eq!(spark(&[Some(9), Some(0), None, Some(50), Some(100)], 4, 100), "▁ ▅█");
        assert_eq!(spark(&[Some(0)], 4, 0), "▁");
    }
}
