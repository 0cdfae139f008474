//! The other ends of unix sockets, which no table in /proc tells: the kernel is asked by netlink, as ss(8) does (sock_diag(7)).
//!
//! It tells of the network namespace of who asks alone, and not where netlink is shut off, as for the system service: then
//! nothing is known. The answer is there when the question has been sent, so nothing is waited for.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// linux/sock_diag.h and linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SHOW_NAME: u32 = 1;
const SHOW_PEER: u32 = 4;
pub(super) const NAME: u16 = 0;
pub(super) const PEER: u16 = 2;
/// linux/netlink.h.
const REQUEST: u16 = 1;
/// Bytes of a message's header, of what is told of a socket in any case, and of an attribute's header.
const HEADER: usize = 16;
const ABOUT: usize = 16;
const ATTRIBUTE: usize = 4;

/// What a unix socket is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) inode: u64,
    /// The path that it, or the socket that accepted it, is bound to.
    pub(super) path: Option<String>,
}

/// Where the kernel is asked.
#[derive(Debug)]
pub(super) struct Asking(OwnedFd);

impl Asking {
    /// None where that is not allowed.
    pub(super) fn new() -> Option<Self> {
        let protocol = Some(netlink::SOCK_DIAG);
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).ok().map(Self)
    }

    /// What this socket is connected to; none if to nothing, or if that cannot be known.
    pub(super) fn peer_of(&self, inode: u64) -> Option<Peer> {
        let told = self.ask(inode, SHOW_PEER)?;
        let inode = attribute(&told, PEER)?.try_into().ok().map(u32::from_ne_bytes)?;
        // A connection that nobody has accepted has an end without a number.
        let inode = Some(u64::from(inode)).filter(|inode| *inode != 0)?;
        let path = self.ask(inode, SHOW_NAME).and_then(|told| path(attribute(&told, NAME)?));
        Some(Peer { inode, path })
    }

    /// The attributes that the kernel tells of a socket.
    fn ask(&self, inode: u64, show: u32) -> Option<Vec<u8>> {
        let inode = u32::try_from(inode).ok()?;
        send(&self.0, &request(inode, show), SendFlags::DONTWAIT).ok()?;
        let mut answer = vec![0; 1024];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::DONTWAIT).ok()?;
        attributes(answer.get(..length)?, inode).map(<[u8]>::to_vec)
    }
}

/// `struct nlmsghdr` and `struct unix_diag_req`: of this inode, whatever its state, and whichever of that number it is.
fn request(inode: u32, show: u32) -> Vec<u8> {
    const LENGTH: u32 = 40;
    const ANY: u32 = u32::MAX;
    let family = AddressFamily::UNIX.as_raw() as u8;
    let mut request = LENGTH.to_ne_bytes().to_vec();
    request.extend([SOCK_DIAG_BY_FAMILY, REQUEST].into_iter().flat_map(u16::to_ne_bytes));
    request.extend([0; 8]);
    request.extend([family, 0, 0, 0]);
    request.extend([ANY, inode, show, ANY, ANY].into_iter().flat_map(u32::to_ne_bytes));
    request
}

/// What follows `struct unix_diag_msg`, if the message is an answer about this inode and no error.
pub(super) fn attributes(message: &[u8], inode: u32) -> Option<&[u8]> {
    let length = usize::try_from(number(message, 0)?).ok()?;
    let message = message.get(..length)?;
    let kind = message.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    let is_about = number(message, HEADER + 4)? == inode;
    message.get(HEADER + ABOUT..).filter(|_| kind == SOCK_DIAG_BY_FAMILY && is_about)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The value of an attribute: `length, kind, value`, each at a multiple of four bytes.
pub(super) fn attribute(mut all: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let half = |at: usize| all.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = all.get(ATTRIBUTE..length)?;
        if kind == wanted {
            return Some(value);
        }
        all = all.get(length.next_multiple_of(4)..)?;
    }
}

/// A path ends with a NUL; an abstract name begins with one, which is written as `@`, as /proc/net/unix does.
pub(super) fn path(name: &[u8]) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match name {
        [] => None,
        [0, name @ ..] => Some(format!("@{}", text(name).replace('\0', "@"))),
        name => name.split(|b| *b == 0).next().map(text),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn inode(fd: RawFd) -> u64 {
        let text = crate::kernel::look::files::text(std::process::id(), fd).unwrap();
        crate::kernel::look::files::inode(&text).unwrap()
    }

    #[test]
    fn each_end_of_a_connection_is_told_of_the_other() {
        let Some(asking) = Asking::new() else { panic!("netlink is shut off") };
        let tmp = tempfile::tempdir().unwrap();
        let bound = tmp.path().join("a b.sock");
        let server = UnixListener::bind(&bound).unwrap();
        let client = UnixStream::connect(&bound).unwrap();
        let waiting = inode(client.as_raw_fd());
        assert_eq!(asking.peer_of(waiting), None, "nobody has accepted it");
        let (accepted, _) = server.accept().unwrap();
        let of_client = Peer { inode: inode(accepted.as_raw_fd()), path: Some(bound.to_str().unwrap().into()) };
        assert_eq!(asking.peer_of(waiting), Some(of_client));
        let of_server = Peer { inode: waiting, path: None };
        assert_eq!(asking.peer_of(inode(accepted.as_raw_fd())), Some(of_server));
        assert_eq!(asking.peer_of(inode(server.as_raw_fd())), None, "it listens");
        drop(accepted);
        assert_eq!(asking.peer_of(waiting), None, "the other end is gone");
        assert_eq!(asking.peer_of(u64::MAX), None);
    }

    #[test]
    fn what_is_no_answer_tells_nothing() {
        assert_eq!(path(b"\0bus\0x"), Some("@bus@x".into()));
        assert_eq!((path(b"/run/x\0\0"), path(b"")), (Some("/run/x".into()), None));
        let whole = [&48u32.to_ne_bytes()[..], &[20, 0, 0, 0], &[0; 8], &[1, 1, 1, 0], &7u32.to_ne_bytes(), &[0; 8]];
        let mut message = [&whole.concat()[..], &[5, 0, 0, 0, b'x', 0, 0, 0], &[8, 0, 2, 0, 9, 0, 0, 0]].concat();
        let told = attributes(&message, 7).unwrap();
        assert_eq!((attribute(told, NAME), attribute(told, PEER)), (Some(&b"x"[..]), Some(&[9, 0, 0, 0][..])));
        assert_eq!((attribute(told, 7), attribute(&[0; 64], PEER), attributes(&message, 8)), (None, None, None));
        assert_eq!((attributes(&message[..40], 7), attributes(&[], 7)), (None, None));
        message[4] = 2;
        assert_eq!(attributes(&message, 7), None, "an error");
    }
}
