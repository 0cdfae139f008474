//! What is fuzzed here: the command line, and all that a terminal is shown of what came from outside.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Parser;
use serde_json::{Value, json};

use super::args::{Cli, ColorWhen};
use super::logs::Screen;
use super::output::{Output, clip, command_line, escape, inert, table, wrapped};
use super::{csv, ending, list, refused, show};
use crate::json as shapes;
use crate::model::fuzz::{Target, texts};
use crate::model::{Evidence, RunView, Wall, explain, is_unsafe};

pub const TARGETS: &[Target] = &[("cli_arguments", arguments), ("terminal", terminal), ("shown_runs", runs)];

fn check_lines(told: &str) {
    assert!(!told.chars().any(|c| c != '\n' && is_unsafe(c)), "{told:?}");
}

/// Words, each ended by a NUL, as the kernel hands them over.
fn arguments(data: &[u8]) {
    let words = data.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let words: Vec<OsString> = std::iter::once("guardian".into()).chain(words).collect();
    if let Err(e) = Cli::try_parse_from(&words) {
        let told = refused::<Cli>(&words).unwrap_or_else(|| e.to_string());
        check_lines(&told);
        assert!(!told.is_empty());
    }
}

/// What came from outside is on one line, and the output of a run moves no cursor.
fn terminal(data: &[u8]) {
    let words: Vec<String> = texts(data).collect();
    let line = command_line(&words);
    for one in words.iter().map(|word| escape(word)).chain([line.clone(), clip(&line, 60)]) {
        assert!(!one.chars().any(is_unsafe), "{one:?}");
    }
    assert!(clip(&line, 60).chars().count() <= 60);
    // A cell of CSV is no formula either.
    let cells = words.iter().map(|word| csv::text(word));
    cells.for_each(|cell| assert!(!cell.chars().any(is_unsafe) && !cell.starts_with(['=', '+', '-', '@']), "{cell:?}"));
    let rows =
        words.iter().take(100).map(|word| [clip(&escape(word), 60), clip(&escape(word), 30)]).collect::<Vec<_>>();
    assert!(table(["ONE", "TWO"], rows.clone()).lines().count() <= 2 + 2 * rows.len());
    let unbroken = line.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0);
    assert!(wrapped(&line, 40).iter().all(|part| part.chars().count() <= unbroken.max(40)));

    let value = json!({ "words": words, line: [7, true, null] });
    for text in [format!("{value:#}"), value.to_string()].map(|text| inert(&text)) {
        check_lines(&text);
        assert_eq!(serde_json::from_str::<Value>(&text).ok().as_ref(), Some(&value));
    }

    let whole = Screen::inert().pass(data);
    let (first, second) = data.split_at(data.len() / 2);
    let mut screen = Screen::inert();
    assert_eq!([screen.pass(first), screen.pass(second)].concat(), whole, "it is the same in pieces");
    check_screen(&whole);
}

/// Control characters are those of lines, and the beginning of a colour.
fn check_screen(shown: &[u8]) {
    let text = String::from_utf8_lossy(shown);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            let sequence = rest.by_ref().find(|c| !c.is_ascii_digit() && !";:[".contains(*c));
            assert_eq!(sequence, Some('m'), "{text:?}");
        }
        assert!(!c.is_control() || "\n\t\r\x1b".contains(c), "{text:?}");
    }
}

/// Runs, whatever was recorded of them, in each of the ways in which they are shown.
fn runs(data: &[u8]) {
    let (out, now) = (Output::new(false, ColorWhen::Never), Wall(1_700_000_000_000_000));
    if let Ok(evidence) = serde_json::from_slice::<Evidence>(data) {
        check_lines(&inert(&shapes::processes(&evidence.processes).to_string()));
        evidence.processes.iter().for_each(|process| check_lines(&show::process_line(process)));
        check_lines(&escape(&explain(&evidence).sentence));
    }
    let Ok(view) = serde_json::from_slice::<RunView>(data) else { return };
    let receipt = view.receipt.as_ref().map(show::receipt_lines).unwrap_or_default();
    let rows = list::row(&view, now, &out).into_iter().chain(list::finished_row(&view, now));
    for line in rows.chain(receipt).chain(ending::sentences(&view)).chain(show::lines(&view, &[], &out)) {
        assert!(!line.chars().any(is_unsafe), "{line:?}");
    }
    let text = inert(&shapes::run(&view).to_string());
    check_lines(&text);
    assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(shapes::run(&view)));
}
