//! The manager's own socket. It names itself in each message as it is called on a bus, which zbus takes from no peer; and it
//! sends every signal, of which ours are few: so messages are looked at before zbus has them.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::net::UnixStream;
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Split, WriteHalf};
use zbus::{Connection, Message};

use super::bus::{MANAGER, MANAGER_PATH};
use crate::stream::{self, Boxed, Reading};

/// What is read at once: the signals of a launch come together.
const CHUNK: usize = 16 << 10;
/// The longest message that D-Bus knows.
const MESSAGE_MAX: usize = 128 << 20;
/// The part of a header that is the same in every message.
const FIXED: usize = 16;

/// Connects to the manager's own socket. Gives the manager's pid too, which the kernel knows.
pub(super) async fn connect(path: &Path) -> Option<(Connection, u32)> {
    let stream = UnixStream::connect(path).await.ok()?;
    let manager = stream.peer_cred().ok()?;
    let pid = u32::try_from(manager.pid()?).ok().filter(|_| manager.uid() == 0)?;
    let connection = Builder::socket(halves(stream, manager.uid())).p2p().build().await.ok()?;
    Some((connection, pid))
}

fn halves(stream: UnixStream, uid: u32) -> Split<Box<dyn ReadHalf>, Box<dyn WriteHalf>> {
    let (plain, writing) = stream::halves(stream, uid);
    Split::new(Box::new(Selecting { plain, read: Vec::new() }), Box::new(writing))
}

/// The messages that concern us.
#[derive(Debug)]
struct Selecting {
    plain: Reading,
    /// What was read and not given yet.
    read: Vec<u8>,
}

impl Selecting {
    /// The next message that concerns us, its sender named as zbus wants it.
    async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            while let Some(length) = length(&self.read)?.filter(|length| *length <= self.read.len()) {
                let mut message: Vec<u8> = self.read.drain(..length).collect();
                if prepare(&mut message) {
                    return Ok(message);
                }
            }
            let had = self.read.len();
            self.read.resize(had + CHUNK, 0);
            // No descriptors come: nothing is asked for that is answered with one.
            let read = self.plain.recvmsg(&mut self.read[had..]).await;
            self.read.truncate(had + read.as_ref().map_or(0, |(length, _)| *length));
            read?;
        }
    }
}

impl ReadHalf for Selecting {
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
            // What came with the end of the handshake.
            self.read.append(bytes);
            let mut message = self.next().await.map_err(|e| zbus::Error::InputOutput(e.into()))?;
            // It finds the whole message, and reads nothing.
            self.plain.receive_message(seq, &mut message, fds).await
        })
    }

    fn recvmsg<'a, 'b, 'c>(&'a mut self, buffer: &'b mut [u8]) -> Boxed<'c, io::Result<(usize, Vec<OwnedFd>)>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.plain.recvmsg(buffer)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// A number of a message, in the message's byte order.
fn number(message: &[u8], at: usize) -> Option<usize> {
    let bytes = message.get(at..)?.first_chunk()?;
    let number = if message.first() == Some(&b'B') { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) };
    usize::try_from(number).ok()
}

/// The length of the message that begins here, once so much is known of it.
fn length(read: &[u8]) -> io::Result<Option<usize>> {
    let (Some(body), Some(fields)) = (number(read, 4), number(read, 12)) else { return Ok(None) };
    match FIXED.saturating_add(fields).checked_next_multiple_of(8).and_then(|header| header.checked_add(body)) {
        Some(length) if length <= MESSAGE_MAX => Ok(Some(length)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a message of the manager is too long")),
    }
}

/// Gives the sender a name that zbus takes from a peer, and says whether the message concerns us.
fn prepare(message: &mut [u8]) -> bool {
    const SIGNAL: u8 = 4;
    const PATH: u8 = 1;
    const INTERFACE: u8 = 2;
    const SENDER: u8 = 7;
    let fields = texts(message);
    let of = |code: u8| fields.iter().find(|(c, _)| *c == code).map(|(_, range)| range.clone());
    let is = |code, text: &str| of(code).is_some_and(|range| message.get(range) == Some(text.as_bytes()));
    let concerns = message.get(1) != Some(&SIGNAL) || (is(PATH, MANAGER_PATH) && is(INTERFACE, MANAGER));
    if let Some(sender) = of(SENDER).and_then(|range| message.get_mut(range)).filter(|sender| sender.len() > 3) {
        // As long as it was, so that nothing moves.
        sender.fill(b'0');
        sender[..3].copy_from_slice(b":1.");
    }
    concerns
}

/// The header's fields that are texts: their codes, and where the texts are.
fn texts(message: &[u8]) -> Vec<(u8, Range<usize>)> {
    let mut found = Vec::new();
    let end = FIXED + number(message, 12).unwrap_or(0);
    let mut at = FIXED;
    while at < end {
        // A code, and a variant: the length of its signature, that, and a zero.
        let Some([code, 1, kind, 0]) = message.get(at..).and_then(|rest| rest.first_chunk()) else { break };
        let value = at + 4;
        let next = match kind {
            b's' | b'o' => {
                let Some(length) = number(message, value) else { break };
                let begin = value + 4;
                found.push((*code, begin..begin.saturating_add(length)));
                begin.saturating_add(length + 1)
            }
            b'g' => value + usize::from(message.get(value).copied().unwrap_or_default()) + 2,
            b'u' => value + 4,
            _ => break,
        };
        at = next.next_multiple_of(8);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIQUE: &str = ":1.000000000000000000000";
    const NAMED: &str = "org.freedesktop.systemd1";

    /// What the manager sends: its name in the place of a unique one.
    fn from_manager(message: &Message) -> Vec<u8> {
        let mut bytes = message.data().to_vec();
        let at = bytes.windows(UNIQUE.len()).position(|w| w == UNIQUE.as_bytes()).unwrap();
        bytes[at..at + NAMED.len()].copy_from_slice(NAMED.as_bytes());
        bytes
    }

    fn signal(path: &str, interface: &str, member: &str) -> Vec<u8> {
        let signal = Message::signal(path, interface, member).sender(UNIQUE);
        from_manager(&signal.build(&(7_u32, "a unit")).unwrap())
    }

    #[tokio::test]
    async fn what_the_manager_says_of_itself_arrives_and_what_it_says_of_units_does_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut read, _write) = halves(ours, 0).take();
        let of_unit =
            signal("/org/freedesktop/systemd1/unit/a", "org.freedesktop.DBus.Properties", "PropertiesChanged");
        let call = Message::method_call(MANAGER_PATH, "GetUnit").build(&()).unwrap();
        let reply = Message::method_return(&call.header()).sender(UNIQUE).build(&"x").unwrap();
        let sent = [of_unit.clone(), signal(MANAGER_PATH, MANAGER, "JobNew"), of_unit, from_manager(&reply)].concat();
        // However it is cut: the first bytes may have come with the end of the handshake.
        let (mut early, late) = (sent[..5].to_vec(), &sent[5..]);
        for part in late.chunks(late.len() / 7) {
            theirs.writable().await.unwrap();
            assert_eq!(theirs.try_write(part).unwrap(), part.len());
        }
        let mut fds = Vec::new();
        let first = read.receive_message(1, &mut early, &mut fds).await.unwrap();
        assert_eq!(first.header().member().unwrap().as_str(), "JobNew");
        assert_eq!(first.header().sender().unwrap().as_str(), UNIQUE);
        assert_eq!(first.body().deserialize::<(u32, &str)>().unwrap(), (7, "a unit"));
        let second = read.receive_message(2, &mut early, &mut fds).await.unwrap();
        assert_eq!(second.message_type(), zbus::message::Type::MethodReturn);
        assert_eq!(second.body().deserialize::<&str>().unwrap(), "x");
        drop(theirs);
        assert!(read.receive_message(3, &mut early, &mut fds).await.is_err(), "the manager is gone");
    }

    #[test]
    fn what_is_no_message_is_refused_or_let_through_as_it_is() {
        assert_eq!(length(&[b'l'; 15]).unwrap(), None);
        assert!(length(&[0xff; 16]).is_err());
        for broken in [vec![], vec![b'l'; 3], [vec![b'l', 4, 0, 1], vec![0xff; 40]].concat()] {
            prepare(&mut broken.clone());
        }
    }
}
