//! The descriptor that is handed to the relay by its number.
//!
//! Owns taking it over, which only the number's meaning makes right.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};

/// Takes over the pipe of this number, which is not handed on any further. None: it is of no pipe.
pub fn descriptor(number: RawFd) -> Option<OwnedFd> {
    if number <= 2 {
        return None;
    }
    // SAFETY: the number is of a descriptor that was handed to this process for this use alone, or of none, which the
    // calls that follow find. Nothing else here has opened any yet.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let is_pipe = fstat(borrowed).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok().filter(|()| is_pipe)?;
    // SAFETY: as above; it is open, and taken once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
