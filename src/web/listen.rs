//! Where requests come in: sockets of systemd, an address, or a path.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcp};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdUnix;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::door::Hosts;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port; 0 takes a free one.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                true => Err("unix: is followed by a path".to_owned()),
                false => Ok(Self::Unix(path.into())),
            };
        }
        // A name could be another address tomorrow.
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| "use an IP address with a port, 127.0.0.1:8642, or unix:PATH".to_owned())
    }
}

/// Something that takes connections.
pub enum Listener {
    /// On an IP address.
    Tcp(TcpListener),
    /// On a path; one that was bound here is removed at the end.
    Unix(UnixListener, Option<PathBuf>),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, Some(path)) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    /// Binds an address. One that others than this host can reach is refused unless that is allowed.
    pub fn bind(address: &Address, allow_remote: bool) -> anyhow::Result<Self> {
        match address {
            Address::Tcp(at) => {
                may_serve(*at, allow_remote)?;
                let socket = StdTcp::bind(at).with_context(|| format!("cannot listen on {at}"))?;
                Self::tcp(socket).with_context(|| format!("cannot listen on {at}"))
            }
            Address::Unix(path) => {
                let failed = || format!("cannot listen on {}", path.display());
                // What a dead one left; a live one answers.
                let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
                if is_socket {
                    if std::os::unix::net::UnixStream::connect(path).is_ok() {
                        bail!("{}: another process listens there", failed());
                    }
                    std::fs::remove_file(path).with_context(failed)?;
                }
                let socket = StdUnix::bind(path).with_context(failed)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).with_context(failed)?;
                Self::unix(socket, Some(path.clone())).with_context(failed)
            }
        }
    }

    /// Takes over a socket of systemd.
    pub fn activated(socket: OwnedFd, allow_remote: bool) -> anyhow::Result<Self> {
        let is_listening = sockopt::socket_acceptconn(&socket).context("a descriptor of systemd is no socket")?;
        if !is_listening || sockopt::socket_type(&socket).ok() != Some(SocketType::STREAM) {
            bail!("a socket of systemd takes no connections: use ListenStream= and Accept=no");
        }
        match sockopt::socket_domain(&socket)? {
            AddressFamily::UNIX => Ok(Self::unix(socket.into(), None)?),
            AddressFamily::INET | AddressFamily::INET6 => {
                let socket = StdTcp::from(socket);
                may_serve(socket.local_addr()?, allow_remote)?;
                Ok(Self::tcp(socket)?)
            }
            family => bail!("a socket of systemd has the family {family:?}, and not AF_UNIX, AF_INET or AF_INET6"),
        }
    }

    fn tcp(socket: StdTcp) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket).map(Self::Tcp)
    }

    fn unix(socket: StdUnix, path: Option<PathBuf>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket).map(|socket| Self::Unix(socket, path))
    }

    /// The address, if it is an IP address.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Under which names it is asked.
    pub fn hosts(&self, named: &[String]) -> Hosts {
        self.address().map_or_else(|| Hosts::of_socket(named), |at| Hosts::of_address(at, named))
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(socket) => {
                let (stream, _) = socket.accept().await?;
                // Events are small and wanted at once.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(socket, _) => Ok(Stream::Unix(socket.accept().await?.0)),
        }
    }
}

fn may_serve(at: SocketAddr, allow_remote: bool) -> anyhow::Result<()> {
    if at.ip().is_loopback() || allow_remote {
        return Ok(());
    }
    bail!(
        "{at} can be reached from other hosts, and there is no TLS here: tokens would cross the network as they are. Listen on \
         127.0.0.1 and put a proxy with TLS before it (then with --host NAME), or use --allow-remote if something else protects \
         that network"
    );
}

/// A connection.
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Writes what can be written at once.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }
}

macro_rules! pass_on {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        pass_on!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        pass_on!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        pass_on!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pass_on!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pass_on!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// The sockets that systemd has opened for this process.
pub fn of_systemd() -> Vec<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let Ok(all) = sd_notify::listen_fds() else { return Vec::new() };
    let own = |fd: i32| {
        // SAFETY: the service manager has opened it for this process under this number; nothing else takes it over.
        #[allow(unsafe_code)]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        fd
    };
    all.map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_this_host_unless_that_is_allowed() {
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for bad in ["", "unix:", "localhost:80", "127.0.0.1", "8642", ":8642", "/run/x"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        for (at, local) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("127.9.9.9:1", true),
            ("0.0.0.0:1", false),
            ("192.0.2.1:1", false),
            ("[::]:1", false),
        ] {
            let at = at.parse().unwrap();
            assert_eq!(may_serve(at, false).is_ok(), local, "{at}");
            assert!(may_serve(at, true).is_ok());
        }
        assert!(may_serve("0.0.0.0:1".parse().unwrap(), false).unwrap_err().to_string().contains("no TLS"));
    }
}
