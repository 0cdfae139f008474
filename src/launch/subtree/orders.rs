//! What a shim is told by whoever starts it: in a file in memory, because commands and environments are too large for a
//! pipe, and because what is on a command line is shown to everyone.
//!
//! A list of strings, each ended by a NUL byte, which none of them holds: the numbers in their order, then the candidates,
//! the arguments and the environment.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, pread, write};

/// How a shim starts its command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// In a session of its own, with a log, as no client is there to hand its terminal on.
    pub detached: bool,
    /// In a PID namespace of its own.
    pub isolated: bool,
    /// The limits of open descriptors that a detached command gets: soft and hard.
    pub nofile: Option<(u64, u64)>,
    /// `RLIMIT_DATA` of each process, in bytes.
    pub data_bytes: Option<u64>,
    /// `RLIMIT_NPROC` in the run's user namespace, in tasks.
    pub tasks: Option<u64>,
    /// What to try to execute, in order.
    pub candidates: Vec<CString>,
    /// The command and its arguments.
    pub argv: Vec<CString>,
    /// The environment.
    pub env: Vec<CString>,
}

/// Stands for a limit that there is not.
const NONE: u64 = u64::MAX;
/// How many numbers there are.
const NUMBERS: usize = 9;

impl Orders {
    /// Puts them into a file in memory.
    pub fn write(&self) -> Result<OwnedFd, Errno> {
        let file = memfd_create("guardian-orders", MemfdFlags::CLOEXEC)?;
        let (soft, hard) = self.nofile.unwrap_or((NONE, NONE));
        let lists = [&self.candidates, &self.argv, &self.env];
        let numbers = [
            u64::from(self.detached),
            u64::from(self.isolated),
            soft,
            hard,
            self.data_bytes.unwrap_or(NONE),
            self.tasks.unwrap_or(NONE),
        ];
        let counts = lists.map(|list| list.len() as u64);
        let mut text = Vec::new();
        for number in numbers.into_iter().chain(counts) {
            text.extend(number.to_string().bytes().chain([0]));
        }
        for string in lists.into_iter().flatten() {
            text.extend(string.as_bytes_with_nul());
        }
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            let written = write(&file, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(file)
    }

    /// Reads them; none if they make no sense.
    pub fn read(file: impl AsFd) -> Option<Self> {
        let mut text = Vec::new();
        let mut part = [0; 1 << 16];
        loop {
            match pread(&file, &mut part, text.len() as u64).ok()? {
                0 => break,
                n => text.extend(part.get(..n)?),
            }
        }
        Self::parse(&text)
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut strings = text.split_inclusive(|b| *b == 0).map(|s| CString::from_vec_with_nul(s.to_vec()).ok());
        let mut numbers = [0; NUMBERS];
        for number in &mut numbers {
            *number = strings.next()??.to_str().ok()?.parse().ok()?;
        }
        let [detached, isolated, soft, hard, data, tasks, candidates, argv, env] = numbers;
        let mut list = |count: u64| (0..count).map(|_| strings.next()?).collect::<Option<Vec<CString>>>();
        let some = |n: u64| (n != NONE).then_some(n);
        Some(Self {
            detached: detached != 0,
            isolated: isolated != 0,
            nofile: some(soft).zip(some(hard)),
            data_bytes: some(data),
            tasks: some(tasks),
            candidates: list(candidates)?,
            argv: list(argv)?,
            env: list(env)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&[u8]]) -> Vec<CString> {
        list.iter().map(|s| CString::new(*s).unwrap()).collect()
    }

    #[test]
    fn orders_arrive_as_they_were_given() {
        let plain = Orders { candidates: strings(&[b"/bin/sh"]), argv: strings(&[b"sh"]), ..Orders::default() };
        let full = Orders {
            detached: true,
            isolated: true,
            nofile: Some((1024, 4096)),
            data_bytes: Some(1 << 30),
            tasks: Some(50),
            candidates: strings(&[b"/bin/x", b"./x"]),
            argv: strings(&[b"x", b"", b"\xff two", &[b'y'; 200_000]]),
            env: strings(&[b"A=1", b"B="]),
        };
        for orders in [plain, full] {
            assert_eq!(Orders::read(orders.write().unwrap()).unwrap(), orders);
        }
    }

    #[test]
    fn what_is_cut_short_or_is_something_else_is_refused() {
        let orders = Orders { argv: strings(&[b"sh", b"-c"]), ..Orders::default() };
        let file = orders.write().unwrap();
        let length = rustix::fs::fstat(&file).unwrap().st_size as u64;
        for shorter in [0, 1, length - 1, length - 4] {
            rustix::fs::ftruncate(&file, shorter).unwrap();
            assert_eq!(Orders::read(&file), None, "{shorter}");
        }
        let garbage = memfd_create("garbage", MemfdFlags::CLOEXEC).unwrap();
        write(&garbage, b"1\0x\0").unwrap();
        assert_eq!(Orders::read(garbage), None);
    }
}
