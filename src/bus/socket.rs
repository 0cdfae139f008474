//! The unix socket: bound at paths of any length, and halves for zbus that let the server look at each message before it is dispatched. zbus has no fallback for
//! object paths, and a thousand objects on each connection would cost a megabyte: so the object of a run is made when a
//! message for it arrives.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;
use zbus::Message;
use zbus::connection::socket::{ReadHalf, Split, WriteHalf};
use zbus::fdo::ConnectionCredentials;

use super::client::{ADDRESS_MAX, short_path};
use crate::stream::{self, Boxed, Reading};

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

/// What is done with a message before it is dispatched.
pub type Look = Arc<dyn Fn(Message) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The two halves of a socket for zbus. `uid` is the peer's, which the handshake holds the peer to.
pub fn halves(stream: UnixStream, uid: u32, look: Look) -> Split<Box<dyn ReadHalf>, Box<dyn WriteHalf>> {
    let (inner, writing) = stream::halves(stream, uid);
    Split::new(Box::new(Looking { inner, look }), Box::new(writing))
}

struct Looking {
    inner: Reading,
    look: Look,
}

impl fmt::Debug for Looking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
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
