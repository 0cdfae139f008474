//! The sending end of sd_notify(3), and how reports reach the instance by it: datagrams to `NOTIFY_SOCKET`, none of which is ever
//! waited for. A socket that is missing, full or gone is no failure: the next message has the same and more.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg_addr, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};

/// The least time from one message to the next: an instance takes 50 of a run in a second, and the run has its own.
pub const GAP: Duration = Duration::from_millis(100);
/// The time until a message is tried again that was not taken.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the last message is tried at the end.
const LAST: Duration = Duration::from_secs(1);
/// The pause between tries at the end.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the instance may take until all that was sent is taken in: longer than its store is ever waited for.
const BARRIER: Duration = Duration::from_secs(1);

/// A socket that messages go to, as `NOTIFY_SOCKET` names it.
pub struct Socket {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

impl Socket {
    /// To this one: a path, or a name behind `@`. With `NONBLOCK` a message that cannot be taken at once is an error.
    pub fn to(name: &OsStr, flags: SocketFlags) -> Result<Self, Errno> {
        let bytes = name.as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name),
            None if bytes.starts_with(b"/") => SocketAddrUnix::new(bytes),
            None => Err(Errno::INVAL),
        }?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags | SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, address })
    }

    /// Sends a message.
    pub fn send(&self, message: &str) -> Result<(), Errno> {
        self.put(message.as_bytes(), None)
    }

    /// Waits until everything sent so far is taken in: then the receiver closes its end of a pipe. False: not in time.
    pub fn barrier(&self, patience: Duration) -> Result<bool, Errno> {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
        self.put(b"BARRIER=1", Some(&writing))?;
        // Only the receiver has the other end now.
        drop(writing);
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&reading, PollFlags::empty())], Some(&timeout)) {
                Ok(ended) => return Ok(ended > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn put(&self, message: &[u8], descriptor: Option<&OwnedFd>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().map(AsFd::as_fd).collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        sendmsg_addr(&self.socket, &self.address, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)
            .map(drop)
    }
}

/// The way of reports to the instance.
pub struct Sender {
    socket: Socket,
    /// When the next message may be sent.
    next: Instant,
}

impl Sender {
    /// To this socket; none if there is no way to one.
    pub fn to(name: &OsStr) -> Option<Self> {
        Some(Self { socket: Socket::to(name, SocketFlags::NONBLOCK).ok()?, next: Instant::now() })
    }

    /// How long until a message may be sent.
    pub fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Sends a message. False if it was not taken, and is to be tried again after [`Sender::wait`].
    pub fn send(&mut self, message: &str) -> bool {
        let taken = self.socket.send(message).is_ok();
        self.next = Instant::now() + if taken { GAP } else { AGAIN };
        taken
    }

    /// Sends the last message, and waits until it is taken in, for a second at most.
    pub fn finish(&mut self, message: Option<&str>) {
        if let Some(message) = message {
            let until = Instant::now() + LAST;
            while let Err(Errno::AGAIN | Errno::NOBUFS) = self.socket.send(message) {
                if Instant::now() > until {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
        }
        let _ = self.socket.barrier(BARRIER);
    }
}
