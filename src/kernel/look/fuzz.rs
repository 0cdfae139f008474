//! What is fuzzed here: the tables of sockets and of locks, answers of sock_diag(7), links, and what is in the memory of a
//! process.

use std::collections::{HashMap, HashSet};
use std::io::BufReader;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::memory::{futex_by, usec_of};
use super::peers::{NAME, PEER, attribute, attributes, path};
use super::sockets::{Parse, find_in, tcp, udp, unix};
use super::{calls, ends, files, open};
use crate::kernel::syscall::{self, Current};
use crate::model::fuzz::{Target, check_told};
use crate::model::{File, FutexBy};

pub const TARGETS: &[Target] = &[("sockets", sockets), ("sock_diag", answer), ("memory", memory), ("links", links)];

/// `/proc/PID/mountinfo`: the ids of mounts that answer by themselves.
pub fn mounts(data: &[u8]) {
    open::local_mounts(&String::from_utf8_lossy(data)).into_iter().for_each(|mount| check_told(mount, data));
}

/// `/proc/PID/net/{tcp,udp,unix}` and `/proc/locks`: what is found is in the table, and each once.
fn sockets(data: &[u8]) {
    let table = String::from_utf8_lossy(data);
    for parse in [tcp, udp, unix] as [Parse; 3] {
        let told: Vec<(u64, File)> = table.lines().filter_map(parse).collect();
        for (inode, file) in &told {
            check_told(inode, data);
            check_file(file, &table);
        }
        let wanted: HashSet<u64> = told.iter().map(|(inode, _)| *inode).chain([1, 20505]).take(8).collect();
        let (mut found, until) = (HashMap::new(), Instant::now() + Duration::from_secs(60));
        find_in(BufReader::new(data), parse, &wanted, until, &mut found);
        assert!(found.keys().all(|inode| wanted.contains(inode)));
    }
    for waits in [200, u32::MAX] {
        if let Some(holder) = ends::holder_in(&table, waits) {
            check_told(holder, data);
            check_told(waits, data);
        }
    }
}

fn check_file(file: &File, table: &str) {
    let is_address = |text: &String| text.parse::<SocketAddr>().is_ok();
    match file {
        File::Tcp { local, peer, state } => {
            assert!(is_address(local) && peer.iter().all(is_address) && !state.is_empty());
        }
        File::Udp { local, peer } => assert!(is_address(local) && peer.iter().all(is_address)),
        File::Unix { path, peer: None } => assert!(path.iter().all(|path| !path.is_empty() && table.contains(path))),
        other => assert_eq!(*other, File::Socket, "no socket"),
    }
}

/// A message of the kernel about a unix socket, which may be cut, or hold another length than it says.
fn answer(data: &[u8]) {
    let about = data.get(20..24).and_then(|inode| inode.try_into().ok()).map_or(7, u32::from_ne_bytes);
    if let Some(all) = attributes(data, about) {
        assert!(all.len() + 32 <= data.len());
        for kind in [NAME, PEER, 7, u16::MAX] {
            let value = attribute(all, kind).unwrap_or_default();
            assert!(value.is_empty() || all.windows(value.len()).any(|part| part == value));
        }
        let name = attribute(all, NAME).and_then(path);
        assert!(name.is_none_or(|name| !name.contains('\0')));
    }
    assert!(path(data).is_none_or(|name| !name.contains('\0')));
}

/// The words of a futex and a time, and a call with its arguments. A thread that is named is one of the process.
fn memory(data: &[u8]) {
    let word = |at: usize| data.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let word = |at: usize| word(at).unwrap_or_default();
    let tids = [word(16), word(20), 1000];
    match futex_by(word(0).into(), word(4), word(8), word(12), &tids) {
        Some(FutexBy::Holder(tid) | FutexBy::End(tid)) => assert!(tids.contains(&tid)),
        None => {}
    }
    let time = data.get(..16).and_then(usec_of);
    assert!(time.is_none() || data.get(7).is_some_and(|high| *high < 0x80), "a time before its beginning");
    if let Some(Current::Call(call)) = syscall::parse(&String::from_utf8_lossy(data)) {
        check_told(call.number, data);
        assert!(calls::named(call.number).is_none_or(|(name, _)| !name.is_empty()));
    }
}

fn links(data: &[u8]) {
    let link = &*String::from_utf8_lossy(data);
    match files::of_link(link) {
        File::Path { path } | File::Terminal { path } => assert_eq!(path, link),
        File::Anonymous { name } => assert!(link.contains(&name)),
        file => assert!(matches!(file, File::Socket | File::Pipe { path: None, .. }), "{file:?}"),
    }
    if let Some(inode) = files::inode(link) {
        check_told(inode, data);
    }
}
