//! What a poll, a select or an epoll waits for: which descriptors, and what of them.

use std::os::unix::fs::FileExt;

use nix::libc;

/// One descriptor of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polled {
    /// The descriptor.
    pub fd: i32,
    /// It is waited for until it can be read, and for nothing but that.
    pub is_read: bool,
    /// The device and the inode of the file; of an epoll alone, which goes on with a file whose descriptor was closed, and
    /// has another file by now.
    pub file: Option<(u64, u64)>,
}

/// What tells that the other end is gone comes without being asked for; how it is told, and what wakes of several that wait,
/// changes nothing.
const MEANT: u32 = !(libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP | libc::EPOLLET | EPOLL_BITS) as u32;
const EPOLL_BITS: i32 = libc::EPOLLONESHOT | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE;
/// Input, by whatever name; urgent data comes with it.
const INPUT: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM | libc::EPOLLRDBAND | libc::EPOLLPRI) as u32;

/// The numbers of the events of poll and epoll are the same.
fn is_read(events: u32) -> bool {
    events & libc::EPOLLIN as u32 != 0 && events & MEANT & !INPUT == 0
}

/// An array of `struct pollfd { int fd; short events; short revents; }`; a negative descriptor is left out, as the kernel does.
pub fn of_poll(array: &[u8]) -> Vec<Polled> {
    let one = |entry: &[u8]| {
        let fd = entry.get(..4)?.try_into().ok().map(i32::from_ne_bytes)?;
        let events = entry.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
        (fd >= 0).then(|| Polled { fd, is_read: is_read(events.into()), file: None })
    };
    array.chunks_exact(8).filter_map(one).collect()
}

/// The sets of descriptors that are to be read, to be written, and of which exceptions are waited for.
pub fn of_select(read: &[u8], write: &[u8], except: &[u8]) -> Vec<Polled> {
    let is_in = |set: &[u8], bit: usize| set.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
    let longest = [read, write, except].map(<[u8]>::len).into_iter().max().unwrap_or(0);
    let one = |bit: usize| {
        let [read, other] = [is_in(read, bit), is_in(write, bit) || is_in(except, bit)];
        (read || other).then(|| Some(Polled { fd: i32::try_from(bit).ok()?, is_read: read && !other, file: None }))?
    };
    (0..longest * 8).filter_map(one).collect()
}

/// `tfd:        5 events:       19 data:                5  pos:0 ino:3a sdev:8`, a line for each in the fdinfo of an epoll.
pub fn of_epoll(fdinfo: &str) -> Vec<Polled> {
    let one = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
        let fd = words.next()?.parse().ok()?;
        let rest: Vec<&str> = words.collect();
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let after = |key: &str| hex(rest.iter().skip_while(|word| **word != key).nth(1)?);
        let is = |key: &str| hex(rest.iter().find_map(|word| word.strip_prefix(key))?);
        let events = after("events:").and_then(|events| u32::try_from(events).ok());
        Some(Polled { fd, is_read: events.is_some_and(is_read), file: is("sdev:").zip(is("ino:")) })
    };
    fdinfo.lines().filter_map(one).collect()
}

/// Reads the sets of a select from the memory of a process: `(n, read, write, except, …)`.
pub fn read_sets(memory: &std::fs::File, args: &[u64; 6]) -> Option<[Vec<u8>; 3]> {
    let [n, sets @ .., _, _] = *args;
    let bytes = usize::try_from(n.min(1024).div_ceil(64) * 8).ok()?;
    let read = |address: u64| {
        let mut set = vec![0; if address == 0 { 0 } else { bytes }];
        memory.read_exact_at(&mut set, address).ok().map(|()| set)
    };
    let [a, b, c] = sets.map(read);
    Some([a?, b?, c?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fd: i32) -> Polled {
        Polled { fd, is_read: true, file: None }
    }

    fn other(fd: i32) -> Polled {
        Polled { fd, is_read: false, file: None }
    }

    #[test]
    fn the_descriptors_of_poll_and_select_are_read() {
        let entry = |fd: i32, events: i16| [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0, 0]].concat();
        let array = [entry(3, 1), entry(-1, 1), entry(7, 5), entry(8, 3), entry(9, 0), vec![1, 2]].concat();
        assert_eq!(of_poll(&array), [read(3), other(7), read(8), other(9)]);
        assert_eq!(of_select(&[0b1001, 0], &[0b1, 0b10], &[]), [other(0), read(3), other(9)]);
        assert_eq!(of_select(&[], &[], &[0b1]), [other(0)]);
        assert_eq!(of_select(&[], &[], &[]), []);
    }

    #[test]
    fn the_files_of_an_epoll_are_listed() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\n\
                    tfd:        5 events:       19 data:                5  pos:0 ino:3a sdev:8\n\
                    tfd:        6 events: 4000201b data: 0  pos:0 ino:3b sdev:9\n\
                    tfd:        7 events: 1d data: 0  pos:0 ino:3b sdev:9\n\
                    tfd:       12 events: 1\ntfd: 13\ntfd: x\n";
        let file = |fd, inode| Polled { file: Some((8 + u64::from(inode > 0x3a), inode)), ..read(fd) };
        let listed = [file(5, 0x3a), file(6, 0x3b), Polled { is_read: false, ..file(7, 0x3b) }, read(12), other(13)];
        assert_eq!(of_epoll(text), listed);
        assert_eq!(of_epoll("pos:\t0\n"), []);
    }

    #[test]
    fn sets_are_read_from_memory_or_not_at_all() {
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let set: [u64; 2] = [0b101, 1];
        let args = |n, address| [n, address, 0, 0, 0, 0];
        let [reads, writes, excepts] = read_sets(&memory, &args(65, set.as_ptr() as u64)).unwrap();
        assert_eq!((of_select(&reads, &writes, &excepts).len(), reads.len(), writes.len()), (3, 16, 0));
        assert_eq!(read_sets(&memory, &args(65, 8)), None);
    }
}
