//! How things are said.

use std::time::Duration;

use crate::model::{Access, File, Holder, Object, Polled, UnixPeer, Wait, escape, human_duration};

/// As much of a path or command as a person reads in a sentence.
const LONG: usize = 120;

/// `claude (pid 811)`.
pub(super) fn named(pid: u32, name: &str) -> String {
    match name.is_empty() {
        true => format!("pid {pid}"),
        false => format!("{} (pid {pid})", escape(name)),
    }
}

/// Text from a process, harmless and short.
pub(super) fn clipped(text: &str) -> String {
    match text.chars().count() > LONG {
        true => escape(&text.chars().take(LONG - 1).chain(['…']).collect::<String>()),
        false => escape(text),
    }
}

/// `1 process`, `3 processes`.
pub(super) fn counted(n: u32, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// `a, b and c`; at most three of them by name.
pub(super) fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if first.len() < 3 => format!("{} and {last}", first.join(", ")),
        [a, b, c, rest @ ..] => format!("{a}, {b}, {c} and {} more", rest.len()),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn holders(holders: &[Holder]) -> String {
    let named = |h: &Holder| match h.name.is_empty() {
        true => format!("pid {} (gone)", h.pid),
        false => named(h.pid, &h.name),
    };
    listed(&holders.iter().map(named).collect::<Vec<_>>())
}

/// What a thread does, as a verb and what belongs to it. `me` is the process it is of.
pub(super) fn wait(wait: &Wait, wchan: Option<&str>, me: u32) -> String {
    match wait {
        Wait::Running => "runs".to_owned(),
        Wait::Call { name, on } => call(name, on, wchan, me),
        Wait::Unnamed | Wait::Unreadable => by_wchan(wchan),
    }
}

fn call(name: &str, on: &Object, wchan: Option<&str>, me: u32) -> String {
    match on {
        Object::File { fd, access, file } => of_file(name, *fd, *access, file, me),
        Object::Lock { fd, path, holders: of } => {
            let of = match of.is_empty() {
                true => ", whose holder is not known".to_owned(),
                false => format!(" that {} {}", holders(of), if of.len() == 1 { "holds" } else { "hold" }),
            };
            format!("waits for a lock on {} (fd {fd}, {name}){of}", clipped(path))
        }
        Object::Several { total, some, timed } => several(name, *total, some, *timed, me),
        Object::Futex { by: None, timed, .. } => {
            format!("waits for another thread (futex{})", if *timed { ", for a limited time" } else { "" })
        }
        Object::Futex { by: Some(by), .. } => match by {
            super::super::FutexBy::Holder(tid) => format!("waits for a lock that thread {tid} holds (futex)"),
            super::super::FutexBy::End(tid) => format!("waits for thread {tid} to end (futex)"),
        },
        Object::Child { pid: Some(pid) } => format!("waits for its child of pid {pid} ({name})"),
        Object::Child { pid: None } => format!("waits for a child ({name})"),
        Object::Sleep { usec: None, .. } => format!("sleeps ({name})"),
        Object::Sleep { usec: Some(usec), left } => {
            let time = human_duration(Duration::from_micros(*usec));
            match left {
                true => format!("sleeps for another {time} ({name})"),
                false => format!("sleeps for {time} ({name})"),
            }
        }
        Object::Signal => format!("waits for a signal ({name})"),
        Object::Unknown => match wchan {
            Some(wchan) => format!("waits in the system call {name} (kernel function {})", escape(wchan)),
            None => format!("waits in the system call {name}"),
        },
    }
}

fn of_file(name: &str, fd: i32, access: Access, file: &File, me: u32) -> String {
    let call = format!("(fd {fd}, {name})");
    match (access, file) {
        (Access::Read, File::Tcp { peer: Some(peer), state, .. }) => {
            format!("waits on a TCP read from {}{} {call}", escape(peer), unless_established(state))
        }
        (Access::Write, File::Tcp { peer: Some(peer), state, .. }) => {
            format!("waits on a TCP write to {}{} {call}", escape(peer), unless_established(state))
        }
        (Access::Connect, File::Tcp { peer: Some(peer), state, .. }) => {
            format!("waits for {} to answer a TCP connect, in {} {call}", escape(peer), escape(state))
        }
        (Access::Accept, File::Tcp { local, .. }) => {
            format!("waits for somebody to connect to TCP {} {call}", escape(local))
        }
        (Access::Accept, file) => format!("waits for somebody to connect to {} {call}", noun(file, access, me)),
        (Access::Connect, file) => format!("waits to connect {} {call}", noun(file, access, me)),
        (Access::Read, file) => format!("waits to read from {} {call}", noun(file, access, me)),
        (Access::Write, file) => format!("waits to write to {} {call}", noun(file, access, me)),
        (Access::Other, file) => format!("waits in {name} on {} (fd {fd})", noun(file, access, me)),
    }
}

fn unless_established(state: &str) -> String {
    if state == "ESTABLISHED" { String::new() } else { format!(", in {}", escape(state)) }
}

fn noun(file: &File, access: Access, me: u32) -> String {
    match file {
        File::Unreadable => "a descriptor that cannot be read".to_owned(),
        File::Terminal { path } => format!("the terminal {}", clipped(path)),
        File::Pipe { path, other_end, all_seen } => {
            let what = path.as_ref().map_or_else(|| "a pipe".to_owned(), |p| format!("the FIFO {}", clipped(p)));
            format!("{what} {}", other_end_of(other_end, *all_seen, access, me))
        }
        File::Tcp { local, peer: None, state } => format!("a TCP socket at {} ({})", escape(local), escape(state)),
        File::Tcp { peer: Some(peer), state, .. } => {
            format!("a TCP connection to {}{}", escape(peer), unless_established(state))
        }
        File::Udp { peer: Some(peer), .. } => format!("a UDP socket connected to {}", escape(peer)),
        File::Udp { local, peer: None } => format!("a UDP socket at {}", escape(local)),
        File::Unix { path, peer } => unix(path.as_deref(), peer.as_ref(), me),
        File::Socket => "a socket".to_owned(),
        File::Anonymous { name } => match name.as_str() {
            "eventfd" | "eventpoll" => format!("an {name}"),
            _ => format!("a {}", escape(name)),
        },
        File::Path { path } => clipped(path),
    }
}

fn unix(path: Option<&str>, peer: Option<&UnixPeer>, me: u32) -> String {
    let this = match (path, peer) {
        (Some(path), _) => format!("the unix socket {}", clipped(path)),
        (None, None) => "a unix socket without a path".to_owned(),
        (None, Some(_)) => "a unix socket".to_owned(),
    };
    let Some(peer) = peer else { return this };
    let others: Vec<Holder> = peer.holders.iter().filter(|h| h.pid != me).cloned().collect();
    match (others.is_empty(), &peer.path) {
        (true, None) if !peer.holders.is_empty() => format!("{this} whose other end it has open itself"),
        (true, None) => this,
        (true, Some(path)) => format!("{this} to {}", clipped(path)),
        (false, None) => format!("{this} to {}", holders(&others)),
        (false, Some(path)) => format!("{this} to {} at {}", holders(&others), clipped(path)),
    }
}

/// Who has the other end of a pipe.
fn other_end_of(of: &[Holder], all_seen: bool, access: Access, me: u32) -> String {
    let does = if access == Access::Write { "reads" } else { "writes" };
    let could = if access == Access::Write { "read" } else { "write" };
    let others: Vec<Holder> = of.iter().filter(|h| h.pid != me).cloned().collect();
    match (others.is_empty(), others.len() == of.len()) {
        (true, true) => format!("that nobody {does} who could be found"),
        (true, false) if all_seen => format!("that nobody {does}: it has the other end open itself"),
        (true, false) => format!("that nobody else was found to {could}: it has the other end open itself"),
        (false, true) => format!("that {} could {could}", holders(&others)),
        (false, false) => format!("that {} and it itself could {could}", holders(&others)),
    }
}

fn several(name: &str, total: u32, some: &[Polled], timed: bool, me: u32) -> String {
    let time = if timed { ", for a limited time" } else { "" };
    let nouns: Vec<String> = some.iter().map(|p| noun(&p.file, Access::Read, me)).collect();
    match (total, nouns.as_slice()) {
        (0, _) => format!("waits for time to pass or a signal ({name}{time})"),
        (1, [one]) => format!("waits for {one} ({name}{time})"),
        (_, []) => format!("waits for one of {} ({name}{time})", counted(total, "descriptor", "descriptors")),
        (_, nouns) => {
            // Twins (ten connections to one server) are said once.
            let mut distinct: Vec<String> = Vec::new();
            nouns.iter().for_each(|n| {
                if !distinct.contains(n) {
                    distinct.push(n.clone());
                }
            });
            let all = distinct.len() == nouns.len() && nouns.len() as u64 == u64::from(total);
            format!(
                "waits for one of {}{} {} ({name}{time})",
                counted(total, "descriptor", "descriptors"),
                if all { ":" } else { ", among them" },
                listed(&distinct)
            )
        }
    }
}

/// Where the system call is not to be had, the kernel function still tells what kind of wait it is. Names of Linux 5.14
/// to 6.18; one that is not here is given as it is.
fn by_wchan(wchan: Option<&str>) -> String {
    let Some(wchan) = wchan else { return "waits for something that cannot be read here".to_owned() };
    let kinds: [(&[&str], &str); 13] = [
        (&["hrtimer_nanosleep", "do_nanosleep", "common_nsleep"], "sleeps"),
        (&["futex_"], "waits for another thread"),
        (&["do_wait", "kernel_wait4", "kernel_waitid"], "waits for a child"),
        (&["pipe_read", "anon_pipe_read"], "waits to read from a pipe"),
        (&["pipe_write", "anon_pipe_write"], "waits to write to a pipe"),
        (&["n_tty_read", "tty_", "wait_woken"], "waits for a terminal or a socket"),
        (&["inet_csk_accept", "inet_csk_wait_for_connect", "unix_accept"], "waits for somebody to connect"),
        (&["sk_wait_data", "tcp_recvmsg", "inet_wait_for_connect", "inet_stream_connect"], "waits for the network"),
        (&["unix_stream", "unix_wait_for_peer", "skb_wait_for_more"], "waits for a socket"),
        (&["locks_lock_inode_wait", "flock_lock_inode_wait", "posix_lock_inode_wait"], "waits for a lock on a file"),
        (&["ep_poll", "do_epoll_wait", "do_select", "do_poll", "poll_schedule"], "waits for one of its descriptors"),
        (&["do_sigtimedwait", "sigsuspend", "do_pause", "__do_sys_pause"], "waits for a signal"),
        (&["vfs_fsync", "io_schedule", "folio_wait", "wait_on_page", "nfs"], "waits for storage"),
    ];
    let kind = kinds.iter().find(|(names, _)| names.iter().any(|n| wchan.starts_with(n))).map(|(_, kind)| *kind);
    match kind {
        Some(kind) => format!("{kind} (kernel function {})", escape(wchan)),
        None => format!("waits in the kernel function {}", escape(wchan)),
    }
}
