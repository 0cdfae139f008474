//! The receiving end of sd_notify(3): a datagram socket, and who has sent what to it.
//!
//! Owns bind, recvmsg and its control messages: nix gives an error for a truncated list of them, and would leave the
//! descriptors open that came with it. Whether a sender may say anything is for the caller to decide.
#![allow(unsafe_code)]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::fs::{Mode, XattrFlags, chmod, setxattr};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use super::{KernelError, clock, process};
use crate::model::ProcessId;

/// The longest message that is taken.
pub const MESSAGE_MAX: usize = 8192;

/// `SO_PASSPIDFD` of asm-generic/socket.h, and `SCM_PIDFD` of linux/socket.h: Linux 6.5.
const SO_PASSPIDFD: libc::c_int = 76;
const SCM_PIDFD: libc::c_int = 4;

/// Room for credentials, a time, a pidfd, and as many descriptors as the kernel lets anyone send (`SCM_MAX_FD`, 253). The
/// pidfd comes after the sender's descriptors, so that with less room they could keep it out.
const CONTROL: usize = 2048;

/// How much later than its message a process may seem to have been started: start times are in clock ticks.
const TICK_NSEC: u64 = 20_000_000;

/// A run's notify socket.
#[derive(Debug, Clone)]
pub struct NotifySocket(Arc<OwnedFd>);

/// A message.
#[derive(Debug)]
pub struct Datagram {
    /// How many bytes of the buffer it has; none if it was longer than that.
    pub length: Option<usize>,
    /// Who sent it, if the kernel has told.
    pub sender: Option<Sender>,
    /// Descriptors that came along.
    pub descriptors: Vec<OwnedFd>,
}

/// Who sent a message: its process, as the kernel saw it.
#[derive(Debug)]
pub struct Sender {
    pid: u32,
    pidfd: Option<OwnedFd>,
    /// CLOCK_REALTIME in nanoseconds.
    sent_nsec: Option<u64>,
}

impl NotifySocket {
    /// Makes the socket at this path, in the place of what an earlier instance left there, for us, for root, and for this
    /// user.
    pub fn bind(path: &Path, user: u32) -> Result<Self, KernelError> {
        let failed = |op| move |e: Errno| KernelError::from_errno(op, path.display().to_string(), e);
        let address = SocketAddrUnix::new(path).map_err(failed("name a socket"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).map_err(failed("make"))?;
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed("replace")(e)),
        }
        bind(&socket, &address).map_err(failed("bind"))?;
        let private = chmod(path, Mode::RUSR | Mode::WUSR);
        private.map_err(failed("set the mode of"))?;
        if user != rustix::process::geteuid().as_raw() && setxattr(path, ACL, &acl(user), XattrFlags::empty()).is_err()
        {
            // A file system without access control lists. Whoever sends is checked in any case.
            let all = Mode::RUSR | Mode::WUSR | Mode::WGRP | Mode::WOTH;
            chmod(path, all).map_err(failed("set the mode of"))?;
        }
        Self::over(socket)
    }

    /// Takes over a socket that was bound before.
    pub fn over(socket: OwnedFd) -> Result<Self, KernelError> {
        let failed = |e: nix::errno::Errno| KernelError::Io {
            op: "set up",
            what: "a notify socket".to_owned(),
            source: e.into(),
        };
        setsockopt(&socket, sockopt::PassCred, &true).map_err(failed)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(failed)?;
        // Before Linux 6.5 the process is opened by its number, and its start is held against the time of the message.
        pass_pidfd(socket.as_fd());
        Ok(Self(Arc::new(socket)))
    }

    /// Its descriptor.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.0
    }

    /// Takes the next message, if there is one.
    pub fn receive(&self, buffer: &mut [u8; MESSAGE_MAX]) -> Result<Option<Datagram>, KernelError> {
        let mut control = Control([0; CONTROL]);
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: a msghdr is plain numbers and pointers, for which all zero is a value: no name, no parts, no control.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: every pointer in the header is to a live buffer of the length beside it, none of which is touched by
        // anything else during the call.
        let got = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut header, flags) };
        let Ok(length) = usize::try_from(got) else {
            let error = std::io::Error::last_os_error();
            return match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(None),
                _ => Err(KernelError::Io { op: "read", what: "a notify socket".to_owned(), source: error }),
            };
        };
        let whole = header.msg_flags & libc::MSG_TRUNC == 0;
        let (sender, descriptors) = read_control(&header);
        Ok(Some(Datagram { length: whole.then_some(length), sender, descriptors }))
    }
}

impl Sender {
    /// Whether the sender passes a check by pid. Held by pidfd over the check, so that it is of that very process; one that
    /// is gone passes none.
    pub fn passes(self, check: impl FnOnce(u32) -> bool) -> bool {
        let held = match self.pidfd {
            Some(pidfd) => Ok(pidfd),
            None => process::open(self.pid),
        };
        let Ok(pidfd) = held else { return false };
        let by_number = self.sent_nsec;
        let Ok(id) = process::identify(&pidfd) else { return false };
        if by_number.is_some_and(|sent| !is_old_enough(id, sent)) {
            return false;
        }
        check(id.pid) && process::identify(&pidfd).is_ok_and(|now| now == id)
    }
}

/// Whether a process was there when its message was sent: it is not a later one with the same number.
fn is_old_enough(id: ProcessId, sent_nsec: u64) -> bool {
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let started = id.start_ticks.saturating_mul(1_000_000_000 / ticks);
    let ago = clock::now().wall.0.saturating_mul(1000).saturating_sub(sent_nsec);
    started <= clock::since_boot_nsec().saturating_sub(ago).saturating_add(TICK_NSEC)
}

/// Aligned as control messages have to be.
#[repr(align(8))]
struct Control([u8; CONTROL]);

fn pass_pidfd(socket: BorrowedFd<'_>) {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value is a live int of the length given. ENOPROTOOPT is what old kernels say.
    unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSPIDFD, (&raw const on).cast(), length) };
}

/// Takes over every descriptor that came with a message, and reads who sent it.
fn read_control(header: &libc::msghdr) -> (Option<Sender>, Vec<OwnedFd>) {
    let (mut pid, mut pidfd, mut sent_nsec, mut descriptors) = (None, None, None, Vec::new());
    // SAFETY: the header is as recvmsg filled it in, with its control buffer alive in the caller; CMSG_FIRSTHDR and
    // CMSG_NXTHDR give pointers to whole headers in it, or null.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so a whole header within the buffer, which is aligned for it.
        let (level, kind, length) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, (*next).cmsg_len as usize) };
        // SAFETY: as above; the data follow the header.
        let data = unsafe { libc::CMSG_DATA(next) };
        // SAFETY: computes a number.
        let length = length.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        // SAFETY: the kernel has put `length` bytes there; read byte by byte, they need no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(data, length) };
        let numbers = || bytes.chunks_exact(4).filter_map(|n| Some(RawFd::from_ne_bytes(n.try_into().ok()?)));
        // SAFETY: each number is of a descriptor that this call of recvmsg has opened for us, and is taken once.
        let own = |fd: RawFd| (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => descriptors.extend(numbers().filter_map(own)),
            (libc::SOL_SOCKET, SCM_PIDFD) => pidfd = numbers().next().and_then(own),
            // A ucred: pid, uid, gid. The pid is 0 for a process that our PID namespace does not have.
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                pid = numbers().next().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
                // A timespec of 64 bits. Without it, a sender without pidfd could be another process by now.
                sent_nsec = word(0).zip(word(8)).map(|(s, n)| s.saturating_mul(1_000_000_000).saturating_add(n));
            }
            _ => {}
        }
        // SAFETY: as CMSG_FIRSTHDR.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    let sent_nsec = if pidfd.is_some() { None } else { sent_nsec.or(Some(0)) };
    (pid.map(|pid| Sender { pid, pidfd, sent_nsec }), descriptors)
}

/// The access control list of a file (acl(5)), as setxattr takes it.
const ACL: &str = "system.posix_acl_access";

/// Read and write for the owner and for one more user, nothing for anybody else.
fn acl(user: u32) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    // ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_MASK and ACL_OTHER of linux/posix_acl.h, in this order.
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, NOBODY), (2, 6, user), (4, 0, NOBODY), (0x10, 6, NOBODY), (0x20, 0, NOBODY)];
    // POSIX_ACL_XATTR_VERSION, and little endian everywhere.
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};

    use super::*;

    fn bound() -> (tempfile::TempDir, NotifySocket, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        chmod(dir.path(), Mode::from_raw_mode(0o711)).unwrap();
        let path = dir.path().join("run");
        let socket = NotifySocket::bind(&path, rustix::process::geteuid().as_raw()).unwrap();
        (dir, socket, path)
    }

    fn next(socket: &NotifySocket) -> Option<(Datagram, Vec<u8>)> {
        let mut buffer = [0; MESSAGE_MAX];
        let got = socket.receive(&mut buffer).unwrap()?;
        let bytes = buffer[..got.length.unwrap_or(0)].to_vec();
        Some((got, bytes))
    }

    #[test]
    fn a_message_comes_whole_with_its_sender() {
        let (_dir, socket, path) = bound();
        assert!(next(&socket).is_none(), "it does not wait");
        UnixDatagram::unbound().unwrap().send_to(b"READY=1", &path).unwrap();
        let (got, bytes) = next(&socket).unwrap();
        assert_eq!((bytes.as_slice(), got.length), (&b"READY=1"[..], Some(7)));
        let seen = std::cell::Cell::new(0);
        assert!(got.sender.unwrap().passes(|pid| {
            seen.set(pid);
            true
        }));
        assert_eq!(seen.get(), std::process::id());
    }

    #[test]
    fn what_is_too_long_is_known_as_that_and_taken_out() {
        let (_dir, socket, path) = bound();
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(&[b'x'; MESSAGE_MAX], &path).unwrap();
        sender.send_to(&[b'x'; MESSAGE_MAX + 1], &path).unwrap();
        assert_eq!([next(&socket).unwrap().0.length, next(&socket).unwrap().0.length], [Some(MESSAGE_MAX), None]);
        assert!(next(&socket).is_none());
    }

    #[test]
    fn a_sender_that_is_gone_passes_nothing() {
        let (_dir, socket, path) = bound();
        let script = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', sys.argv[1])";
        let done = Command::new("python3").args(["-c", script]).arg(&path).status().unwrap();
        assert!(done.success());
        assert!(!next(&socket).unwrap().0.sender.unwrap().passes(|_| true));
    }

    #[test]
    fn a_process_is_not_taken_for_an_earlier_one_with_its_number() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let at = |ago_nsec: u64| {
            let sent = clock::now().wall.0.saturating_mul(1000) - ago_nsec;
            Sender { pid, pidfd: None, sent_nsec: Some(sent) }.passes(|_| true)
        };
        assert!(at(0));
        assert!(!at(60_000_000_000), "it was started after that");
        assert!(!Sender { pid, pidfd: None, sent_nsec: Some(0) }.passes(|_| true), "no time is no proof");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!at(0));
    }

    #[test]
    fn only_the_runs_user_and_root_can_send() {
        use std::os::unix::process::CommandExt as _;
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can send as other users");
            return;
        }
        let (dir, _, _) = bound();
        let path = dir.path().join("other");
        let socket = NotifySocket::bind(&path, 64_001).unwrap();
        let send = |uid: u32| {
            let script =
                "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', sys.argv[1])";
            let mut python = Command::new("/usr/bin/python3");
            python.args(["-c", script]).arg(&path).uid(uid).gid(uid).current_dir("/").stderr(Stdio::null());
            python.status().unwrap().success()
        };
        assert_eq!([send(64_001), send(0), send(64_002)], [true, true, false]);
        assert!(next(&socket).is_some() && next(&socket).is_some() && next(&socket).is_none());
    }
}
