//! The output of a run, as much of it as was read, and which part of that is on the screen. Pure.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent};

use crate::model::{RunId, escape};

/// The lines that are kept, the last ones.
const LINES: usize = 10_000;
/// A longer line is broken: what never ends a line must not fill the memory.
const LONGEST: usize = 16 << 10;
/// Columns from one stop of the tabulator to the next, and that the view is moved to the side by.
const STEP: usize = 8;

/// The output of a run.
#[derive(Debug)]
pub struct Log {
    /// Of which run.
    pub run: RunId,
    /// Why nothing more comes, once nothing does.
    pub over: Option<String>,
    lines: VecDeque<String>,
    open: Vec<u8>,
    /// The first line on the screen; none at the end, where new lines are seen as they come.
    from: Option<usize>,
    column: usize,
}

impl Log {
    /// An empty one.
    pub fn of(run: RunId) -> Self {
        Self { run, over: None, lines: VecDeque::new(), open: Vec::new(), from: None, column: 0 }
    }

    /// Takes a part of the output, or why there is no more.
    pub fn take(&mut self, part: Result<Vec<u8>, String>) {
        let bytes = match part {
            Ok(bytes) => bytes,
            Err(why) => {
                self.over = Some(why);
                return;
            }
        };
        for byte in bytes {
            if byte != b'\n' {
                self.open.push(byte);
            }
            if byte == b'\n' || self.open.len() >= LONGEST {
                self.lines.push_back(plain(&std::mem::take(&mut self.open)));
            }
        }
        let removed = self.lines.len().saturating_sub(LINES);
        self.lines.drain(..removed);
        self.from = self.from.map(|from| from.saturating_sub(removed));
    }

    /// Takes a key, where so many lines have room; false if it is none of these.
    pub fn key(&mut self, key: KeyEvent, room: usize) -> bool {
        let last = self.len().saturating_sub(room);
        let from = self.from.unwrap_or(last);
        let to = match key.code {
            KeyCode::Up => from.saturating_sub(1),
            KeyCode::Down => from + 1,
            KeyCode::PageUp => from.saturating_sub(room),
            KeyCode::PageDown | KeyCode::Char(' ') => from + room,
            KeyCode::Home => 0,
            KeyCode::End => last,
            KeyCode::Left => {
                self.column = self.column.saturating_sub(STEP);
                return true;
            }
            KeyCode::Right => {
                self.column = (self.column + STEP).min(LONGEST);
                return true;
            }
            _ => return false,
        };
        self.from = (to < last).then_some(to);
        true
    }

    /// Whether new lines are seen as they come.
    pub fn is_at_its_end(&self) -> bool {
        self.from.is_none()
    }

    /// What is on the screen where so many lines have room.
    pub fn shown(&self, room: usize) -> Vec<String> {
        let from = self.from.unwrap_or(usize::MAX).min(self.len().saturating_sub(room));
        let open = (!self.open.is_empty()).then(|| plain(&self.open));
        let lines = self.lines.iter().cloned().chain(open).skip(from).take(room);
        lines.map(|line| line.chars().skip(self.column).collect()).collect()
    }

    fn len(&self) -> usize {
        self.lines.len() + usize::from(!self.open.is_empty())
    }
}

/// A line of output as it is shown: without its colours, tabulators as spaces, what was written over gone, and everything else
/// that could steer a terminal made visible.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches('\r');
    let mut rest = text.rsplit('\r').next().unwrap_or_default();
    let mut shown = String::new();
    while let Some(c) = rest.chars().next() {
        if let Some(after) = after_colour(rest) {
            rest = after;
            continue;
        }
        match c {
            '\t' => {
                let column = shown.chars().count();
                shown.extend(std::iter::repeat_n(' ', STEP - column % STEP));
            }
            c => shown.push(c),
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    escape(&shown)
}

/// What follows a colour sequence, if the text begins with one.
fn after_colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    parameters.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';' || c == ':').strip_prefix('m')
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyModifiers;

    use super::*;
    use crate::model::is_unsafe;

    fn press(log: &mut Log, code: KeyCode) {
        assert!(log.key(KeyEvent::new(code, KeyModifiers::NONE), 3));
    }

    #[test]
    fn output_is_shown_without_what_steers_a_terminal() {
        let cases: [(&[u8], &str); 6] = [
            (b"\x1b[1;31mred\x1b[0m and \x1b[2Jmore", "red and \\u{1b}[2Jmore"),
            (b"10 %\r20 %\r30 %\r", "30 %"),
            (b"a\tb\t\tc", "a       b               c"),
            (b"\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            (b"\xff\x9b", "\u{fffd}\u{fffd}"),
            ("né 漢 \u{202e}".as_bytes(), "né 漢 \\u{202e}"),
        ];
        for (bytes, text) in cases {
            let shown = plain(bytes);
            assert_eq!(shown, text);
            assert!(!shown.chars().any(is_unsafe));
        }
    }

    #[test]
    fn the_end_is_followed_until_somebody_goes_up() {
        let mut log = Log::of(RunId::from_bytes([1; 6]));
        log.take(Ok(b"1\n2\n3\n4\n5".to_vec()));
        assert_eq!(log.shown(3), ["3", "4", "5"]);
        log.take(Ok(b"\n6".to_vec()));
        assert_eq!(log.shown(3), ["4", "5", "6"]);
        press(&mut log, KeyCode::Up);
        log.take(Ok(b"\n7\n".to_vec()));
        assert_eq!((log.shown(3), log.is_at_its_end()), (vec!["3".into(), "4".into(), "5".into()], false));
        press(&mut log, KeyCode::End);
        assert_eq!((log.shown(3), log.is_at_its_end()), (vec!["5".into(), "6".into(), "7".into()], true));
        press(&mut log, KeyCode::Home);
        assert_eq!(log.shown(9).len(), 7);
        assert!(log.shown(0).is_empty());
    }

    #[test]
    fn a_log_without_end_is_kept_in_part() {
        let mut log = Log::of(RunId::from_bytes([1; 6]));
        log.take(Ok(vec![b'x'; LONGEST * 3 + 5]));
        assert_eq!((log.len(), log.open.len()), (4, 5));
        for _ in 0..3 {
            log.take(Ok(b"\n".repeat(LINES)));
            assert_eq!(log.len(), LINES);
        }
    }
}
