//! What this process says of itself, on standard error: the journal takes the number in front of a line for its priority.

use std::io::Write as _;

use crate::model::escape;

/// What the service manager should show loudly.
pub fn error(text: &str) {
    say(3, text);
}

/// What somebody may have to look at.
pub fn warn(text: &str) {
    say(4, text);
}

/// What is good to know.
pub fn info(text: &str) {
    say(6, text);
}

fn say(priority: u8, text: &str) {
    let to_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let prefix = if to_journal { format!("<{priority}>") } else { "guardian-notify: ".to_owned() };
    // Where standard error is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{prefix}{}", escape(text));
}
