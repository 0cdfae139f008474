//! The halves of a unix stream for zbus, as both the service and whoever speaks to the manager use it: zbus has such halves
//! itself, and lets nobody put anything before them.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use zbus::connection::socket::{ReadHalf, WriteHalf};
use zbus::fdo::ConnectionCredentials;

/// As many descriptors as one message may carry. AttachRun carries one, a start of a unit a few.
const FDS_MAX: usize = 8;

/// The shape that `async_trait` gives the methods of zbus's traits, without depending on it.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What reads.
#[derive(Debug)]
pub struct Reading {
    stream: Arc<UnixStream>,
    uid: u32,
}

/// What writes.
#[derive(Debug)]
pub struct Writing {
    stream: Arc<UnixStream>,
    uid: u32,
}

/// Both. `uid` is the peer's, which the handshake holds the peer to.
pub fn halves(stream: UnixStream, uid: u32) -> (Reading, Writing) {
    let stream = Arc::new(stream);
    (Reading { stream: stream.clone(), uid }, Writing { stream, uid })
}

fn credentials(uid: u32) -> ConnectionCredentials {
    ConnectionCredentials::default().set_unix_user_id(uid)
}

impl ReadHalf for Reading {
    fn recvmsg<'a, 'b, 'c>(&'a mut self, buffer: &'b mut [u8]) -> Boxed<'c, io::Result<(usize, Vec<OwnedFd>)>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move { self.stream.async_io(Interest::READABLE, || receive(&self.stream, buffer)).await })
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }

    fn peer_credentials<'a, 'c>(&'a mut self) -> Boxed<'c, io::Result<ConnectionCredentials>>
    where
        'a: 'c,
        Self: 'c,
    {
        Box::pin(std::future::ready(Ok(credentials(self.uid))))
    }
}

impl WriteHalf for Writing {
    fn sendmsg<'a, 'b, 'd, 'e, 'c>(
        &'a mut self,
        buffer: &'b [u8],
        fds: &'d [BorrowedFd<'e>],
    ) -> Boxed<'c, io::Result<usize>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        'e: 'c,
        Self: 'c,
    {
        Box::pin(async move { self.stream.async_io(Interest::WRITABLE, || send(&self.stream, buffer, fds)).await })
    }

    fn close<'a, 'c>(&'a mut self) -> Boxed<'c, io::Result<()>>
    where
        'a: 'c,
        Self: 'c,
    {
        let done = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both).map_err(io::Error::from);
        Box::pin(std::future::ready(done))
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }

    fn peer_credentials<'a, 'c>(&'a mut self) -> Boxed<'c, io::Result<ConnectionCredentials>>
    where
        'a: 'c,
        Self: 'c,
    {
        Box::pin(std::future::ready(Ok(credentials(self.uid))))
    }
}

fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed the connection"));
    }
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    Ok((message.bytes, fds))
}

fn send(stream: &UnixStream, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors in one message"));
    }
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(buffer)], &mut ancillary, SendFlags::NOSIGNAL)?)
}
