//! The unix socket: bound at paths of any length, and halves for zbus that let the server look at each message before it is dispatched. zbus has no fallback for
//! object paths, and a thousand objects on each connection would cost a megabyte: so the object of a run is made when a
//! message for it arrives.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use zbus::Message;
use zbus::connection::socket::{ReadHalf, Split, WriteHalf};
use zbus::fdo::ConnectionCredentials;

use super::client::{ADDRESS_MAX, short_path};

/// Binds a listener, however long the path is.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() <= ADDRESS_MAX {
        return UnixListener::bind(path);
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    UnixListener::bind(short_path(dir.as_fd(), Path::new(name)))
}

/// As many descriptors as one message may carry. AttachRun carries one.
const FDS_MAX: usize = 8;

/// What is done with a message before it is dispatched.
pub type Look = Arc<dyn Fn(Message) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The two halves of a socket for zbus. `uid` is the peer's, which the handshake holds the peer to.
pub fn halves(stream: UnixStream, uid: u32, look: Look) -> Split<Box<dyn ReadHalf>, Box<dyn WriteHalf>> {
    let stream = Arc::new(stream);
    let read = Looking { inner: Reading { stream: stream.clone(), uid }, look };
    Split::new(Box::new(read), Box::new(Writing { stream, uid }))
}

#[derive(Debug)]
struct Reading {
    stream: Arc<UnixStream>,
    uid: u32,
}

struct Looking {
    inner: Reading,
    look: Look,
}

#[derive(Debug)]
struct Writing {
    stream: Arc<UnixStream>,
    uid: u32,
}

impl fmt::Debug for Looking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

// The shape that `async_trait` gives the methods of zbus's traits, without depending on it.
pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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

impl ReadHalf for Looking {
    fn receive_message<'a, 'b, 'd, 'c>(
        &'a mut self,
        seq: u64,
        bytes: &'b mut Vec<u8>,
        fds: &'d mut Vec<OwnedFd>,
    ) -> Boxed<'c, zbus::Result<Message>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let message = self.inner.receive_message(seq, bytes, fds).await?;
            (self.look)(message.clone()).await;
            Ok(message)
        })
    }

    fn recvmsg<'a, 'b, 'c>(&'a mut self, buffer: &'b mut [u8]) -> Boxed<'c, io::Result<(usize, Vec<OwnedFd>)>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.inner.recvmsg(buffer)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }

    fn peer_credentials<'a, 'c>(&'a mut self) -> Boxed<'c, io::Result<ConnectionCredentials>>
    where
        'a: 'c,
        Self: 'c,
    {
        self.inner.peer_credentials()
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
