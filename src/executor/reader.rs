//! A stream's lines, read into a report.

use super::jsonl::Jsonl;
use super::lines::{Line, Lines};
use super::stream_json::StreamJson;
use super::{Executor, Report};

/// Reads the lines of one format.
pub trait Reader: Send {
    /// Reads a line, which may hold anything. True if it is one of the format, which is a sign of life.
    fn line(&mut self, line: &[u8], report: &mut Report) -> bool;
}

/// A stream on its way into a report.
pub struct Stream {
    lines: Lines,
    reader: Box<dyn Reader>,
    /// What is known so far.
    pub report: Report,
}

impl Stream {
    /// The stream of an executor's command; none if nothing is read.
    pub fn of(executor: Executor) -> Option<Self> {
        let reader: Box<dyn Reader> = match executor {
            Executor::Local => return None,
            Executor::StreamJson { .. } => Box::new(StreamJson::default()),
            Executor::Jsonl(matchers) => Box::new(Jsonl::new(*matchers)),
        };
        Some(Self { lines: Lines::default(), reader, report: Report::default() })
    }

    /// Takes in the next piece. True if there is something to tell.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        self.read(|lines, each| lines.feed(piece, each))
    }

    /// The stream has ended. True if there is something to tell.
    pub fn end(&mut self) -> bool {
        self.read(|lines, each| lines.end(each))
    }

    fn read(&mut self, read: impl FnOnce(&mut Lines, &mut dyn FnMut(Line<'_>))) -> bool {
        let Self { lines, reader, report } = self;
        let mut alive = false;
        read(lines, &mut |line| {
            alive |= match line {
                Line::Whole(line) if line.first().is_some_and(|b| matches!(b, b'{' | b' ' | b'\t')) => {
                    reader.line(line, report)
                }
                Line::Whole(_) => false,
                // It says something, whatever it is.
                Line::TooLong => true,
            };
        });
        alive
    }
}
