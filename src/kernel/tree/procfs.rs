//! /proc, held open: its numbers, and `stat` and `children` of a process, read with as few system calls as there can
//! be.

use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::Errno;

use super::super::process::{Stat, parse_stat};
use super::super::{KernelError, process};

/// What a first read of a file asks for: more than any `stat` has.
const USUAL_SIZE: usize = 2048;

/// Room for the entries of a directory: more than any one of them takes.
const DIRECTORY_SIZE: usize = 16 << 10;

/// When a file was read whole.
#[derive(PartialEq, Eq)]
enum Whole {
    /// The kernel makes all of it for the first read.
    InOneRead,
    /// It comes in pieces of a page.
    AtTheEnd,
}

/// /proc, and the buffers that every read uses again.
#[derive(Debug)]
pub struct Proc {
    dir: OwnedFd,
    path: String,
    text: Vec<u8>,
}

impl Proc {
    /// Opens it.
    pub fn open() -> Result<Self, KernelError> {
        let dir = openat(CWD, "/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| KernelError::from_errno("open", "/proc", e))?;
        Ok(Self { dir, path: String::new(), text: vec![0; USUAL_SIZE] })
    }

    /// `stat` of a process; none of one that was reaped, or that /proc hides from us.
    pub fn stat(&mut self, pid: u32) -> Result<Option<Stat>, KernelError> {
        match self.read(format_args!("{pid}/stat"), Whole::InOneRead)? {
            // It is cut short only in a process that ends while it is read.
            Some(text) => Ok(parse_stat(text)),
            None => Ok(None),
        }
    }

    /// The pids of all processes that /proc shows, in ascending order.
    pub(super) fn pids(&self) -> Result<Vec<u32>, KernelError> {
        numbers(&self.dir).map_err(|e| KernelError::from_errno("read", "/proc", e))
    }

    /// Adds the children of a process of so many threads; each is the child of one of these. False if it is gone or
    /// hidden, or if the kernel was built without CONFIG_PROC_CHILDREN.
    pub(super) fn children(&mut self, pid: u32, threads: u32, into: &mut Vec<u32>) -> Result<bool, KernelError> {
        if threads <= 1 {
            return self.children_of_thread(pid, pid, into);
        }
        let tids = match self.open_at(format_args!("{pid}/task"), OFlags::DIRECTORY)? {
            Some(dir) => numbers(dir).or_else(|e| gone(e).map(|()| Vec::new()).ok_or(e)),
            None => return Ok(false),
        };
        for tid in tids.map_err(|e| self.failed(e))? {
            // That of a thread that ended went to another one: the next reading meets it.
            self.children_of_thread(pid, tid, into)?;
        }
        Ok(true)
    }

    fn children_of_thread(&mut self, pid: u32, tid: u32, into: &mut Vec<u32>) -> Result<bool, KernelError> {
        let Some(text) = self.read(format_args!("{pid}/task/{tid}/children"), Whole::AtTheEnd)? else {
            return Ok(false);
        };
        into.extend(parse_children(text));
        Ok(true)
    }

    /// True where the kernel lists the children of a thread.
    pub(super) fn has_children_files(&mut self) -> Result<bool, KernelError> {
        Ok(self.open_at(format_args!("thread-self/children"), OFlags::empty())?.is_some())
    }

    fn read(&mut self, path: std::fmt::Arguments, whole: Whole) -> Result<Option<&[u8]>, KernelError> {
        let Some(file) = self.open_at(path, OFlags::empty())? else { return Ok(None) };
        let mut length = 0;
        loop {
            if length == self.text.len() {
                self.text.resize(2 * length, 0);
            }
            match rustix::io::read(&file, &mut self.text[length..]) {
                Ok(0) => return Ok(Some(&self.text[..length])),
                Ok(count) if whole == Whole::InOneRead && length + count < self.text.len() => {
                    return Ok(Some(&self.text[..length + count]));
                }
                Ok(count) => length += count,
                Err(Errno::INTR) => {}
                Err(errno) => return gone(errno).map(|()| None).ok_or_else(|| self.failed(errno)),
            }
        }
    }

    fn open_at(&mut self, path: std::fmt::Arguments, flags: OFlags) -> Result<Option<OwnedFd>, KernelError> {
        self.path.clear();
        // A string takes any text.
        let _ = self.path.write_fmt(path);
        match openat(&self.dir, self.path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(errno) => gone(errno).map(|()| None).ok_or_else(|| self.failed(errno)),
        }
    }

    fn failed(&self, errno: Errno) -> KernelError {
        KernelError::from_errno("read", format!("/proc/{}", self.path), errno)
    }
}

/// True for a process that exists though /proc does not show it: hidepid=2 says that another user's is not there.
pub(super) fn is_hidden(pid: u32) -> bool {
    process::open(pid).is_ok_and(|pidfd| !process::has_exited(pidfd))
}

/// Some for what says that the process went away, or is not for us to see. ESRCH comes from a file that was opened just
/// before.
fn gone(errno: Errno) -> Option<()> {
    matches!(errno, Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM).then_some(())
}

fn numbers(dir: impl AsFd) -> Result<Vec<u32>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); DIRECTORY_SIZE];
    let mut entries = RawDir::new(dir.as_fd(), &mut buffer);
    let mut numbers = Vec::new();
    while let Some(entry) = entries.next() {
        numbers.extend(number(entry?.file_name().to_bytes()));
    }
    Ok(numbers)
}

/// `PID PID … `: the children of a thread.
pub(in crate::kernel) fn parse_children(text: &[u8]) -> impl Iterator<Item = u32> {
    text.split(|b| *b == b' ').filter_map(number)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
