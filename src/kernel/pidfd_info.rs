//! How a process that is not our child ended, asked of its pidfd: `PIDFD_GET_INFO`, which no crate covers yet.
//!
//! Owns this one ioctl. Linux 6.13 has it, 6.15 adds the exit status; older kernels say ENOTTY or leave it out.
#![allow(unsafe_code)]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// `PIDFD_INFO_EXIT` of linux/pidfd.h: asks for, and says that there is, an exit status.
const EXIT: u64 = 1 << 3;

/// `struct pidfd_info` of linux/pidfd.h as of Linux 6.13 (`PIDFD_INFO_SIZE_VER0`, 64 bytes). The size is part of the
/// request number, so later kernels fill in these fields and no more.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    credentials: [u32; 8],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

nix::ioctl_readwrite! {
    /// `PIDFD_GET_INFO` of linux/pidfd.h.
    pidfd_get_info, 0xFF, 11, PidfdInfo
}

/// The wait status (as of `wait(2)`) of a process that was reaped; none while it was not (a zombie has none yet), or
/// where the kernel does not tell.
pub fn wait_status(pidfd: impl AsFd) -> Option<i32> {
    let mut info = PidfdInfo { mask: EXIT, ..PidfdInfo::default() };
    loop {
        // SAFETY: the descriptor is open for the whole call, and `info` is a live, properly aligned structure of the
        // 64 bytes whose size the request number carries; the kernel writes no more than that.
        let asked = unsafe { pidfd_get_info(pidfd.as_fd().as_raw_fd(), &raw mut info) };
        match asked {
            Ok(_) => return (info.mask & EXIT != 0).then_some(info.exit_code),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}
