//! What this process inherited from whoever started it and must not keep as it is.
//!
//! Owns the two calls that no crate offers without `unsafe`: the action of a signal, and flags of descriptors that we did
//! not open.
#![allow(unsafe_code)]

use nix::libc::{self, c_int};

/// Where the C library's descriptors end and ours begin.
const FIRST: c_int = 3;

/// Gives SIGCHLD its default action. Where it is ignored, as some supervisors leave it, the kernel reaps our children
/// itself and nobody learns how they ended; timeout(1) does the same.
pub fn take_children_back() {
    // SAFETY: SIG_DFL runs no code, and no thread but this one exists yet.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Makes every descriptor but the standard ones close when something is executed. An instance that kept a descriptor of
/// the shell that happened to start it would hold its lock, or keep its pipe from ending, for as long as it lives.
pub fn hand_no_descriptor_on() {
    // SAFETY: flags are changed and nothing is closed, so that whoever owns a descriptor here still has it.
    let done = unsafe { libc::syscall(libc::SYS_close_range, FIRST, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int) };
    if done == 0 {
        return;
    }
    // Linux before 5.11.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<c_int> = open.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in numbers.into_iter().filter(|fd| *fd >= FIRST) {
        // SAFETY: as above. A number that is no descriptor any more gives EBADF.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
