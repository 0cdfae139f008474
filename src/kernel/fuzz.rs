//! What is fuzzed here: every reader of a file of the kernel, and the socket that takes heartbeats.
//!
//! A number that is told is in the text, sums do not wrap, and what was read can be written and read again.

use std::os::unix::net::UnixDatagram;

use super::notify::{MESSAGE_MAX, NotifySocket};
use super::tree::parse_children;
use super::{cgroup, examine, footprint, git, look, mount, output, polled, process, syscall};
use crate::model::Notification;
use crate::model::fuzz::{Target, check_notification, check_told};

pub const TARGETS: &[Target] = &[
    ("proc_stat", stat),
    ("proc_files", files),
    ("cgroup_files", cgroup_files),
    ("mountinfo", mountinfo),
    ("smaps", smaps),
    ("polled", polled_files),
    ("notify", notify),
];

/// The targets of what looks at processes.
pub const LOOK: &[Target] = look::fuzz::TARGETS;
/// The targets of what looks for locks of git.
pub const GIT: &[Target] = git::fuzz::TARGETS;

fn stat(data: &[u8]) {
    let Some(read) = process::parse_stat(data) else { return };
    [u64::from(read.pid), read.ppid.into(), read.threads.into(), read.start_ticks, read.rss_pages]
        .into_iter()
        .for_each(|number| check_told(number, data));
    let process::Stat { pid, comm, state, ppid, threads, cpu_ticks, waited_cpu_ticks, start_ticks, rss_pages } = &read;
    let again = format!(
        "{pid} ({comm}) {state} {ppid} 1 1 0 -1 0 0 0 0 0 {cpu_ticks} 0 {waited_cpu_ticks} 0 20 0 {threads} 0 \
         {start_ticks} 0 {rss_pages} 0\n"
    );
    assert_eq!(process::parse_stat(again.as_bytes()), Some(read));
}

/// The other files of /proc/PID: whatever the text, each of their readers is given it.
fn files(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    if let Some(uids) = process::parse_uids(text) {
        uids.into_iter().for_each(|uid| check_told(uid, data));
    }
    let tgid = process::parse_colon::<u32>(text, "Tgid");
    let pid = process::parse_fdinfo_pid(text);
    tgid.map(i64::from).into_iter().chain(pid).for_each(|pid| check_told(pid, data));
    parse_children(data).for_each(|pid| check_told(pid, data));
    if let Some(io) = process::parse_io(text) {
        check_told(io.read_bytes, data);
        check_told(io.write_bytes, data);
    }
    if let Some(counted) = process::parse_schedstat(text) {
        check_told(counted.on_cpu_nsec, data);
        check_told(counted.waited_nsec, data);
    }
    process::parse_statm(text).into_iter().for_each(|pages| check_told(pages, data));
    if let Some(function) = process::parse_wchan(text) {
        assert!(function == function.trim() && text.contains(&function));
    }
    if let Some(cgroup) = process::parse_cgroup(data) {
        let again = [&b"0::"[..], cgroup.as_os_str().as_encoded_bytes(), b"\n"].concat();
        assert!(cgroup.is_absolute() && process::parse_cgroup(&again) == Some(cgroup));
    }
    if let Some(value) = process::value_in(data, "GUARDIAN_RUN_ID") {
        assert!(!value.contains(&0) && value.len() + 16 <= data.len());
    }
    for line in [process::line_of(data, 200), output::last_line(data)] {
        assert!(line.chars().count() <= 200 && !line.contains('\0'));
    }
    assert!(!output::last_line(data).contains(['\n', '\r']));
    if let Some(syscall::Current::Call(call)) = syscall::parse(text) {
        let [a, b, c, d, e, f] = call.args;
        let again = format!("{} {a:#x} {b:#x} {c:#x} {d:#x} {e:#x} {f:#x} 0x7ffd00000000 0x0\n", call.number);
        assert_eq!(syscall::parse(&again), Some(syscall::Current::Call(call)));
    }
}

/// The files of a cgroup, and those of pressure.
fn cgroup_files(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    for key in ["populated", "frozen", "usage_usec", "oom_kill", ""] {
        cgroup::parse_key(text, key).into_iter().for_each(|value| check_told(value, data));
    }
    if let Some(populated) = cgroup::parse_populated(text) {
        check_told(u8::from(populated), data);
    }
    cgroup::parse_number(text).into_iter().for_each(|number| check_told(number, data));
    let pids = cgroup::parse_pids(text).unwrap_or_default();
    pids.iter().for_each(|pid| check_told(*pid, data));
    assert!(!pids.contains(&0), "a process of nobody");
    if let Some((read, written)) = cgroup::parse_io(text) {
        let again = format!("8:0 rbytes={read} wbytes={written}\n8:1 rbytes={} wbytes={}\n", u64::MAX, u64::MAX);
        assert_eq!(cgroup::parse_io(&again), Some((u64::MAX, u64::MAX)), "sums do not wrap");
    }
    examine::parse_pressure_total(text).into_iter().for_each(|usec| check_told(usec, data));
    for percent in [examine::parse_pressure(text), examine::parse_full_minute(text), examine::parse_some_minute(text)] {
        percent.into_iter().for_each(|percent| check_told(percent, data));
    }
}

fn mountinfo(data: &[u8]) {
    let mounts = mount::parse(data);
    let escaped = |path: &std::path::Path| {
        path.as_os_str().as_encoded_bytes().iter().flat_map(|b| format!("\\{b:03o}").into_bytes()).collect::<Vec<u8>>()
    };
    let line = |m: &mount::Cgroup2Mount| {
        let options: &[u8] = if m.read_only { b"ro" } else { b"rw" };
        let (root, point) = (escaped(&m.root), escaped(&m.mount_point));
        [&b"1 2 0:3 "[..], &root, b" ", &point, b" ", options, b" - cgroup2 none rw\n"].concat()
    };
    assert_eq!(mount::parse(&mounts.iter().flat_map(line).collect::<Vec<u8>>()), mounts);
    for mount in mounts {
        let Some(cgroup) = mount.cgroup_of(&mount.mount_point.join("a/b")) else { continue };
        if let Some(directory) = mount.directory_of(&cgroup) {
            assert!(directory.starts_with(&mount.mount_point) && directory.ends_with("a/b"));
        }
    }
    look::fuzz::mounts(data);
}

fn smaps(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    for (start, length) in footprint::unchanged(text) {
        assert!(start.checked_add(length).is_some());
    }
}

/// What a poll, a select and an epoll wait for.
fn polled_files(data: &[u8]) {
    let array = polled::of_poll(data);
    assert!(array.len() <= data.len() / 8 && array.iter().all(|p| p.fd >= 0));
    let (read, rest) = data.split_at(data.len() / 3);
    let (write, except) = rest.split_at(rest.len() / 2);
    let selected = polled::of_select(read, write, except);
    assert!(selected.windows(2).all(|two| two[0].fd < two[1].fd) && selected.iter().all(|p| p.fd >= 0));
    for polled in polled::of_epoll(&String::from_utf8_lossy(data)) {
        check_told(polled.fd, data);
    }
}

/// A datagram comes as it was sent, or is known to be too long; what it says, written again, says the same.
fn notify(data: &[u8]) {
    thread_local! {
        static ENDS: Option<(UnixDatagram, NotifySocket)> = UnixDatagram::pair()
            .ok()
            .and_then(|(ours, theirs)| Some((ours, NotifySocket::over(theirs.into()).ok()?)));
    }
    check_notification(&Notification::parse(data));
    ENDS.with(|ends| {
        let Some((sender, socket)) = ends else { return };
        // The kernel takes none that is longer than what the socket may have under way.
        if sender.send(data).is_err() {
            return assert!(data.len() > MESSAGE_MAX);
        }
        let mut buffer = [0; MESSAGE_MAX];
        let got = socket.receive(&mut buffer).ok().flatten();
        let length = got.as_ref().and_then(|datagram| datagram.length);
        assert_eq!(length, (data.len() <= MESSAGE_MAX).then_some(data.len()));
        assert_eq!(buffer.get(..length.unwrap_or(0)), data.get(..length.unwrap_or(0)));
        assert!(got.is_some_and(|datagram| datagram.descriptors.is_empty() && datagram.sender.is_some()));
    });
}
