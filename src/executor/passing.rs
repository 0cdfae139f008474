//! The copier: every byte that the command writes goes to the run's standard output as it came, and to the reader after it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, ioctl_fionread, read, write};

/// The most that is read at once.
const PIECE: usize = 256 << 10;

/// A flag that can be waited for.
pub struct Flag {
    set: AtomicBool,
    event: OwnedFd,
}

impl Flag {
    /// A flag that is not set.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { set: AtomicBool::new(false), event })
    }

    /// Sets it.
    pub fn set(&self) {
        if !self.set.swap(true, Ordering::SeqCst) {
            let _ = write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Takes it back. True if it was set.
    pub fn take(&self) -> bool {
        let mut count = [0; 8];
        let _ = read(&self.event, &mut count);
        self.set.swap(false, Ordering::SeqCst)
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// What is readable while it is set.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Copies until the pipe ends, or until `ended` is set and what was in the pipe by then is passed on: a process that the
/// command left behind may keep the pipe open for ever. `pipe` does not block. An error is of the output: nobody reads it,
/// or it is full; then the pipe is closed, which the command sees as it would see its output closed.
pub fn pass_on(pipe: OwnedFd, output: BorrowedFd<'_>, ended: &Flag, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    // How much is still to be passed on after the command has ended.
    let mut left = None;
    loop {
        if left.is_none() && ended.is_set() {
            left = Some(ioctl_fionread(&pipe)?);
        }
        let most = left.map_or(PIECE as u64, |left| left.min(PIECE as u64)) as usize;
        if most == 0 {
            return Ok(());
        }
        match read(&pipe, &mut piece[..most]) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                let got = &piece[..n];
                write_all(output, got)?;
                left = left.map(|left| left - n as u64);
                each(got);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if left.is_some() => return Ok(()),
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(&pipe, PollFlags::IN), PollFd::from_borrowed_fd(ended.fd(), PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Writes all of it, whether the output blocks or not: it is shared with others, who decided that.
fn write_all(output: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(output, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(output, PollFlags::OUT)], None);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipes() -> (OwnedFd, OwnedFd) {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setfl(&reading, fcntl_getfl(&reading).unwrap() | OFlags::NONBLOCK).unwrap();
        (reading, writing)
    }

    #[test]
    fn what_was_in_the_pipe_is_passed_on_and_an_open_pipe_is_not_waited_for() {
        let (reading, writing) = pipes();
        let (out, output) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        write(&writing, b"the last words").unwrap();
        let ended = Flag::new().unwrap();
        ended.set();
        let mut seen = Vec::new();
        pass_on(reading, output.as_fd(), &ended, |piece| seen.extend_from_slice(piece)).unwrap();
        assert_eq!(seen, b"the last words");
        let mut got = [0; 64];
        assert_eq!(read(&out, &mut got), Ok(14));
    }

    #[test]
    fn an_output_that_does_not_block_is_waited_for() {
        let (reading, writing) = pipes();
        let (out, output) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        fcntl_setfl(&out, OFlags::empty()).unwrap();
        let text: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let got = std::thread::scope(|threads| {
            threads.spawn(|| {
                write_all(writing.as_fd(), &text).unwrap();
                drop(writing);
            });
            threads.spawn(|| {
                pass_on(reading, output.as_fd(), &Flag::new().unwrap(), |_| ()).unwrap();
                drop(output);
            });
            let mut got = Vec::new();
            io::Read::read_to_end(&mut std::fs::File::from(out), &mut got).unwrap();
            got
        });
        assert!(got == text);
    }

    #[test]
    fn a_closed_output_is_an_error_and_closes_the_pipe() {
        let (reading, writing) = pipes();
        let (out, output) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(out);
        write(&writing, b"x").unwrap();
        let error = pass_on(reading, output.as_fd(), &Flag::new().unwrap(), |_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(write(&writing, b"x"), Err(Errno::PIPE));
    }
}
