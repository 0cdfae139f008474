//! Sockets by inode, from the tables of a network namespace: `/proc/PID/net/{tcp,tcp6,udp,udp6,unix}`.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use crate::model::File;

/// The longest line of a table: a path of a unix socket, and what is before it.
const MAX_LINE: u64 = 1024;

/// Finds these in the namespace of a process. A table is read until all are found, each at most once, and at most
/// until then.
pub(super) fn find(pid: u32, wanted: &HashSet<u64>, until: Instant) -> HashMap<u64, File> {
    let tables: [(&str, Parse); 5] = [("tcp", tcp), ("tcp6", tcp), ("udp", udp), ("udp6", udp), ("unix", unix)];
    let mut found = HashMap::new();
    for (table, parse) in tables {
        if found.len() == wanted.len() {
            break;
        }
        let Ok(file) = std::fs::File::open(format!("/proc/{pid}/net/{table}")) else { continue };
        find_in(BufReader::with_capacity(16 << 10, file), parse, wanted, until, &mut found);
    }
    found
}

/// Reads a line of a table: the inode, and what the socket is.
pub(super) type Parse = fn(&str) -> Option<(u64, File)>;

pub(super) fn find_in(
    mut table: impl BufRead,
    parse: Parse,
    wanted: &HashSet<u64>,
    until: Instant,
    found: &mut HashMap<u64, File>,
) {
    let mut line = Vec::new();
    while Instant::now() < until && found.len() < wanted.len() {
        line.clear();
        match std::io::Read::take(&mut table, MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                found.extend(parse(&String::from_utf8_lossy(&line)).filter(|(inode, _)| wanted.contains(inode)));
            }
        }
    }
}

pub(super) fn tcp(line: &str) -> Option<(u64, File)> {
    let (inode, local, peer, state) = internet(line)?;
    let file =
        File::Tcp { local: local.to_string(), peer: peer.map(|p| p.to_string()), state: state_name(state).into() };
    Some((inode, file))
}

pub(super) fn udp(line: &str) -> Option<(u64, File)> {
    let (inode, local, peer, _) = internet(line)?;
    Some((inode, File::Udp { local: local.to_string(), peer: peer.map(|p| p.to_string()) }))
}

/// `SL: LOCAL REMOTE STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE …`
fn internet(line: &str) -> Option<(u64, SocketAddr, Option<SocketAddr>, u8)> {
    let mut fields = line.split_ascii_whitespace();
    fields.next()?.strip_suffix(':')?;
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some((inode, local, Some(remote).filter(|r| r.port() != 0), state))
}

/// An address as the kernel prints it: each 32 bits of it as a number of this machine's byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let bytes: [u8; 16] = [word(0)?, word(8)?, word(16)?, word(24)?].concat().try_into().ok()?;
            // A connection over IPv4 of a socket for both is shown as what it is.
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The states of the kernel's `enum` of them in tcp_states.h.
fn state_name(state: u8) -> &'static str {
    match state {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 | 12 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        6 => "TIME_WAIT",
        7 => "CLOSE",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        _ => "UNKNOWN",
    }
}

/// `ADDRESS: REFERENCES PROTOCOL FLAGS TYPE STATE INODE[ PATH]`; an abstract one begins with `@`.
pub(super) fn unix(line: &str) -> Option<(u64, File)> {
    let mut fields = line.split_ascii_whitespace();
    fields.next()?.strip_suffix(':')?;
    let inode: u64 = fields.nth(5)?.parse().ok()?;
    // A path may hold spaces.
    let path = line.split_once(&format!(" {inode} ")).map(|(_, path)| path.trim_end_matches('\n').to_owned());
    Some((inode, File::Unix { path: path.filter(|p| !p.is_empty()), peer: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_connection_is_read_with_its_peer() {
        let line = "   0: 0100007F:1F90 0771 00CB:01BB 01 ";
        assert_eq!(tcp(line), None);
        let line =
            "  12: 0100007F:9C4A 077100CB:01BB 01 00000000:00000000 00:00000000 00000000  1000        0 4711 2 0";
        let file = File::Tcp {
            local: "127.0.0.1:40010".into(),
            peer: Some("203.0.113.7:443".into()),
            state: "ESTABLISHED".into(),
        };
        assert_eq!(tcp(line), Some((4711, file)));
        let listens =
            "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1 0";
        assert!(matches!(tcp(listens), Some((9, File::Tcp { peer: None, state, .. })) if state == "LISTEN"));
        let six = "0000000000000000FFFF00000100007F:0050";
        assert_eq!(address(six).unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(address("B80D0120000000000000000001000000:0050").unwrap().to_string(), "[2001:db8::1]:80");
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        for bad in [
            "",
            "  sl  local_address rem_address   st",
            "0: x:1 y:2 01",
            "0: 0100007F 0100007F:1 01",
            "1: 00:1 00:1 01 0 0 0 0 0 7",
        ] {
            assert_eq!(tcp(bad), None, "{bad}");
        }
        assert_eq!(unix("Num       RefCount Protocol Flags    Type St Inode Path"), None);
        assert_eq!(unix("0: 1 2"), None);
    }

    #[test]
    fn a_unix_socket_has_its_path_or_none() {
        let line = "ffff9: 00000002 00000000 00010000 0001 01 20505 /run/a b.sock\n";
        assert_eq!(unix(line), Some((20505, File::Unix { path: Some("/run/a b.sock".into()), peer: None })));
        let line = "ffff9: 00000003 00000000 00000000 0001 03 20506\n";
        assert_eq!(unix(line), Some((20506, File::Unix { path: None, peer: None })));
    }
}
