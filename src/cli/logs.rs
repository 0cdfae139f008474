//! `logs`: the output of a detached run, from its log file or from the journal.
//!
//! To a pipe or a file it goes as it is. On a terminal, colours stay and every other control sequence is made visible:
//! what a half-trusted command writes must not set the title, move the cursor or type an answer.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

mod journal;

use super::Done;
use super::args::LogsArgs;
use super::session::Session;
use crate::bus::client::Client;
use crate::model::{Containment, Error, ErrorKind, Phase};

/// How often a follower looks for more.
const FOLLOW: Duration = Duration::from_millis(100);
/// Bytes read at once.
const BLOCK: usize = 64 << 10;

/// Shows the log, from its beginning or its last lines, and follows it until the run is over.
pub async fn main(args: &LogsArgs, session: &Session) -> Done {
    let view = session.ask(async |c: &Client| c.show(&args.run).await).await?;
    let id = view.spec.id;
    let Some(path) = &view.spec.log else {
        if view.spec.client.is_none() && view.spec.containment == Containment::Systemd {
            return journal::main(&view, args, session).await;
        }
        return Err(Error::invalid(format!("{id} has no log: its output went where `guardian run` was called")).into());
    };
    let mut file = File::open(path).map_err(|e| {
        if view.started_at.is_none() && e.kind() == io::ErrorKind::NotFound {
            return Error::invalid(format!(
                "{id} has no log: nothing of it was executed, and `guardian show {id}` says why"
            ));
        }
        Error::new(ErrorKind::Unavailable, format!("the log of {id} cannot be read: {}: {e}", path.display()))
    })?;
    let start = match args.lines {
        Some(lines) => last_lines(&file, lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(first_data(&file, start)))?;
    let mut screen = Screen::of_stdout();
    let id = id.to_string();
    let mut over = view.phase == Phase::Finished;
    loop {
        copy(&mut file, &mut screen)?;
        if over || !args.follow {
            return Ok(0);
        }
        // The end is asked for before the last read, so that nothing written before it is missed.
        over = match session.ask(async |c: &Client| c.wait(&id, Some(FOLLOW)).await).await {
            Err(e) if e.kind == ErrorKind::TimedOut => false,
            ended => ended.map(|_| true)?,
        };
    }
}

/// The oldest part of a log over its size is given back to the file system, and reads as a hole.
fn first_data(file: &File, from: u64) -> u64 {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)).unwrap_or(from)
}

/// Where the last lines begin.
fn last_lines(file: &File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let begin = first_data(file, 0);
    let mut block = vec![0; BLOCK];
    // The newline that ends the last line begins none.
    let mut wanted = lines.saturating_add(1);
    let mut last = true;
    while end > begin {
        let size = usize::try_from(end - begin).unwrap_or(BLOCK).min(BLOCK);
        let at = end - size as u64;
        file.read_exact_at(&mut block[..size], at)?;
        if last && block[size - 1] != b'\n' {
            wanted -= 1;
        }
        last = false;
        for (n, _) in block[..size].iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            wanted = wanted.saturating_sub(1);
            if wanted == 0 {
                return Ok(at + n as u64 + 1);
            }
        }
        end = at;
    }
    Ok(begin)
}

fn copy(file: &mut File, screen: &mut Screen) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut out = io::stdout().lock();
    loop {
        match file.read(&mut block)? {
            0 => return out.flush(),
            n if screen.inert => out.write_all(&screen.pass(&block[..n]))?,
            n => out.write_all(&block[..n])?,
        }
    }
}

/// Makes output harmless for a terminal; keeps its state from block to block.
pub(super) struct Screen {
    inert: bool,
    state: State,
}

enum State {
    Text,
    /// After the first byte of U+0080 to U+00BF: the lower half are control characters too, U+009B the same as ESC [.
    Lead,
    /// After ESC.
    Escape,
    /// After ESC [, with what came since.
    Sequence(Vec<u8>),
}

const LEAD: u8 = 0xc2;
/// The longest colour sequence that is let through.
const SEQUENCE_MAX: usize = 40;

impl Screen {
    /// For standard output.
    fn of_stdout() -> Self {
        Self { inert: io::stdout().is_terminal(), ..Self::inert() }
    }

    /// For a terminal.
    pub(super) fn inert() -> Self {
        Self { inert: true, state: State::Text }
    }

    pub(super) fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut safe = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.state = match (std::mem::replace(&mut self.state, State::Text), byte) {
                (State::Text, b) => plain(b, &mut safe),
                (State::Lead, b @ 0x80..0xa0) => {
                    safe.extend_from_slice(&[b'^', b'[', b - 0x40]);
                    State::Text
                }
                (State::Lead, b) => {
                    safe.push(LEAD);
                    plain(b, &mut safe)
                }
                (State::Escape, b'[') => State::Sequence(Vec::new()),
                (State::Escape, b) => {
                    safe.extend_from_slice(b"^[");
                    plain(b, &mut safe)
                }
                (State::Sequence(parameters), b'm') => {
                    safe.extend_from_slice(b"\x1b[");
                    safe.extend_from_slice(&parameters);
                    safe.push(b'm');
                    State::Text
                }
                (State::Sequence(mut parameters), b'0'..=b'9' | b';' | b':') if parameters.len() < SEQUENCE_MAX => {
                    parameters.push(byte);
                    State::Sequence(parameters)
                }
                (State::Sequence(parameters), b) => {
                    safe.extend_from_slice(b"^[[");
                    safe.extend_from_slice(&parameters);
                    plain(b, &mut safe)
                }
            };
        }
        safe
    }
}

fn plain(byte: u8, safe: &mut Vec<u8>) -> State {
    match byte {
        0x1b => return State::Escape,
        LEAD => return State::Lead,
        b'\n' | b'\t' | b'\r' => safe.push(byte),
        0..0x20 => safe.extend_from_slice(&[b'^', byte + 0x40]),
        0x7f => safe.extend_from_slice(b"^?"),
        _ => safe.push(byte),
    }
    State::Text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_stay_and_other_sequences_are_made_visible() {
        let mut screen = Screen::inert();
        let mut safe = screen.pass(b"a\x1b[1;31mred\x1b[0m\x1b]0;title\x07\x1b[2J\x1b");
        safe.extend(screen.pass(b"[32mgreen\n\x1b[99;"));
        safe.extend(screen.pass("H\0\u{9b}5n½é".as_bytes()));
        let expected = "a\x1b[1;31mred\x1b[0m^[]0;title^G^[[2J\x1b[32mgreen\n^[[99;H^@^[[5n½é";
        assert_eq!(String::from_utf8_lossy(&safe), expected);
    }

    #[test]
    fn the_last_lines_are_found() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one\ntwo\nthree\n").unwrap();
        assert_eq!([0, 1, 2, 3, 9].map(|n| last_lines(&file, n).unwrap()), [14, 8, 4, 0, 0]);
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"four").unwrap();
        assert_eq!([1, 2].map(|n| last_lines(&file, n).unwrap()), [14, 8]);
    }
}
