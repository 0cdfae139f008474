//! Text from outside, made harmless for people.

/// Text from outside as one harmless line: control characters, what reorders text and line separators are written as
/// escapes. What was escaped stays as it is.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\t' => safe.push_str("\\t"),
            '\r' => safe.push_str("\\r"),
            c if is_unsafe(c) => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}

/// A message of several lines, each of them escaped, so that none can steer a terminal. Empty ones are left out.
pub fn escape_lines(message: &str) -> Vec<String> {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).map(escape).collect()
}

/// Whether a character can steer a terminal, begin a line or reorder text.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_steer_a_terminal() {
        let nasty = "a\x1b[2Jb\nrun_0 finished\r\t\u{9b}31m\u{202e}c\u{7f}\0é漢";
        let safe = escape(nasty);
        assert_eq!(safe, "a\\u{1b}[2Jb\\nrun_0 finished\\r\\t\\u{9b}31m\\u{202e}c\\u{7f}\\u{0}é漢");
        assert!(!safe.chars().any(|c| c.is_control()));
        assert_eq!(escape(&safe), safe);
    }
}
