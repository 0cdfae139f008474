//! The record of a subtree: a small file that its shim keeps, by which the run is found again and its end is known.
//!
//! ```text
//!  0  mark    KEY RUN BOOT PIDNS written by the instance: whose it is
//!  1  shim    PID START          written by the shim, as all that follow
//!  2  main    PID START          behind its gate
//!  3  init    PID START          of its PID namespace, if it has one
//!  4  status  exited CODE | signaled SIGNAL
//!  5  empty   CPU_USEC           the shim has no child left (ECHILD), and exits
//! ```
//!
//! Each line has its place and its length from the beginning, so that a full disk cannot keep the end of a run from being
//! written. A line counts once it is whole: it ends in `;`, spaces and a newline.

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, pread, pwrite};

use crate::kernel::KernelError;
use crate::model::{ExitStatus, ProcessId, RunId};

/// The length of a line. The longest is the mark: 64 bytes of key, a run id, a boot id and an inode.
const LINE: usize = 192;

/// The lines, by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Mark,
    Shim,
    Main,
    Init,
    Status,
    Empty,
}

impl Line {
    const ALL: [Line; 6] = [Line::Mark, Line::Shim, Line::Main, Line::Init, Line::Status, Line::Empty];

    const fn name(self) -> &'static str {
        match self {
            Line::Mark => "mark",
            Line::Shim => "shim",
            Line::Main => "main",
            Line::Init => "init",
            Line::Status => "status",
            Line::Empty => "empty",
        }
    }

    fn of(self, value: impl Display) -> Vec<u8> {
        let text = format!("{} {value};", self.name());
        format!("{text:<width$}\n", width = LINE - 1).into_bytes()
    }

    fn offset(self) -> u64 {
        self as u64 * LINE as u64
    }
}

/// What a record says. A line that is not whole says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// Whose it is.
    pub mark: Option<String>,
    /// The shim.
    pub shim: Option<ProcessId>,
    /// The process that executes the command.
    pub main: Option<ProcessId>,
    /// The first process of the run's PID namespace. It is the shim's, and executes nothing of the run's.
    pub init: Option<ProcessId>,
    /// How the main process ended.
    pub status: Option<ExitStatus>,
    /// The shim had no child left; the CPU time of all that it had, in microseconds.
    pub empty: Option<u64>,
}

/// A record, held open.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: OwnedFd,
}

impl Record {
    /// Makes the record of a run in a directory. `Busy` if there is one.
    pub fn create(directory: &Path, run: RunId, mark: &str) -> Result<Self, KernelError> {
        let path = directory.join(run.to_string());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| match e {
            Errno::EXIST => KernelError::Busy { what: path.display().to_string() },
            e => KernelError::from_errno("create", path.display().to_string(), e),
        })?;
        let record = Self { path, file };
        let mut whole = Line::Mark.of(mark);
        // The places of the other lines, taken now: what is written later overwrites, and needs no space.
        let empty = format!("{:width$}\n", "", width = LINE - 1);
        whole.extend(empty.repeat(Line::ALL.len() - 1).bytes());
        match pwrite(&record.file, &whole, 0) {
            Ok(n) if n == whole.len() => Ok(record),
            failed => {
                let errno = failed.err().unwrap_or(Errno::NOSPC);
                let _ = rustix::fs::unlink(&record.path);
                Err(KernelError::from_errno("write", record.path.display().to_string(), errno))
            }
        }
    }

    /// Opens a record; `Gone` if there is none.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => Ok(Self { path: path.to_owned(), file }),
            Err(e) => Err(KernelError::from_errno("open", path.display().to_string(), e)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says now.
    pub fn read(&self) -> Result<Entries, KernelError> {
        read(&self.file).map_err(|e| KernelError::from_errno("read", self.path.display().to_string(), e))
    }

    /// Removes it.
    pub fn remove(&self) -> Result<(), KernelError> {
        rustix::fs::unlink(&self.path)
            .map_err(|e| KernelError::from_errno("remove", self.path.display().to_string(), e))
    }
}

impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads a record by its descriptor.
pub fn read(file: impl AsFd) -> Result<Entries, Errno> {
    let mut text = [0; LINE * Line::ALL.len()];
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match pread(&file, rest, length as u64)? {
            0 => break,
            n => length += n,
        }
    }
    Ok(parse(text.get(..length).unwrap_or_default()))
}

/// Writes a line.
pub(super) fn put(file: impl AsFd, line: Line, value: impl Display) -> Result<(), Errno> {
    let text = line.of(value);
    match pwrite(file, &text, line.offset())? {
        n if n == text.len() => Ok(()),
        _ => Err(Errno::NOSPC),
    }
}

pub(super) fn parse(text: &[u8]) -> Entries {
    let line = |line: Line| {
        let at = line as usize * LINE;
        let text = std::str::from_utf8(text.get(at..at + LINE)?).ok()?;
        let (said, padding) = text.split_once(';')?;
        let whole = padding.ends_with('\n') && padding.trim().is_empty();
        said.strip_prefix(line.name())?.strip_prefix(' ').filter(|_| whole)
    };
    let process = |of: Line| {
        let (pid, start_ticks) = line(of)?.split_once(' ')?;
        Some(ProcessId { pid: pid.parse().ok()?, start_ticks: start_ticks.parse().ok()? })
    };
    let status = || match line(Line::Status)?.split_once(' ')? {
        ("exited", code) => Some(ExitStatus::Exited(code.parse().ok()?)),
        ("signaled", signal) => Some(ExitStatus::Signaled(signal.parse().ok()?)),
        _ => None,
    };
    Entries {
        mark: line(Line::Mark).map(str::to_owned),
        shim: process(Line::Shim),
        main: process(Line::Main),
        init: process(Line::Init),
        status: status(),
        empty: line(Line::Empty).and_then(|usec| usec.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId::from_bytes([7; 6]);

    #[test]
    fn what_is_written_is_read_and_the_rest_is_not_known() {
        let tmp = tempfile::tempdir().unwrap();
        let record = Record::create(tmp.path(), RUN, "key run_070707070707 boot").unwrap();
        let fresh = Entries { mark: Some("key run_070707070707 boot".into()), ..Entries::default() };
        assert_eq!(record.read().unwrap(), fresh);
        let size = std::fs::metadata(record.path()).unwrap().len();
        put(&record, Line::Shim, "12 34").unwrap();
        put(&record, Line::Main, "13 35").unwrap();
        put(&record, Line::Status, "signaled 9").unwrap();
        put(&record, Line::Empty, 1_234_567).unwrap();
        let said = Record::open(record.path()).unwrap().read().unwrap();
        let expected = Entries {
            shim: Some(ProcessId { pid: 12, start_ticks: 34 }),
            main: Some(ProcessId { pid: 13, start_ticks: 35 }),
            status: Some(ExitStatus::Signaled(9)),
            empty: Some(1_234_567),
            ..fresh
        };
        assert_eq!(said, expected);
        assert_eq!(std::fs::metadata(record.path()).unwrap().len(), size, "it grew: a full disk could refuse that");
    }

    #[test]
    fn a_record_is_made_once() {
        let tmp = tempfile::tempdir().unwrap();
        let record = Record::create(tmp.path(), RUN, "m").unwrap();
        assert!(matches!(Record::create(tmp.path(), RUN, "m"), Err(KernelError::Busy { .. })));
        record.remove().unwrap();
        assert!(Record::open(&tmp.path().join(RUN.to_string())).unwrap_err().is_gone());
    }

    #[test]
    fn a_line_that_is_not_whole_or_makes_no_sense_says_nothing() {
        let whole = |line: Line, value: &str| {
            let mut text = vec![b' '; LINE * 6];
            text[line as usize * LINE..][..LINE].copy_from_slice(&line.of(value));
            parse(&text)
        };
        assert_eq!(whole(Line::Status, "exited 3").status, Some(ExitStatus::Exited(3)));
        for bad in ["exited", "exited x", "left 3", "", "exited 3;;"] {
            assert_eq!(whole(Line::Status, bad).status, None, "{bad}");
        }
        let mut torn = Line::Mark.of("k r b");
        torn.truncate(20);
        assert_eq!(parse(&torn), Entries::default());
        for garbage in [&b"\xff\xfe"[..], b"", &[0; 2000]] {
            assert_eq!(parse(garbage), Entries::default());
        }
    }
}
