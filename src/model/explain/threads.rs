//! Which thread of a process matters.

use super::phrase::{self, counted};
use crate::model::{File, FutexBy, Object, ProcessSeen, ThreadSeen, Wait};

/// How much a wait tells, the most first. What others wait for comes before what waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It executes.
    Running,
    /// Stopped by a signal or a debugger.
    Stopped,
    /// In a sleep that no signal ends (state D).
    Uninterruptible,
    /// Threads that wait for each other.
    Deadlock,
    /// A lock on a file.
    FileLock,
    /// A terminal.
    Terminal,
    /// The network.
    Network,
    /// A pipe.
    Pipe,
    /// Another file or socket.
    File,
    /// Any of several files.
    Several,
    /// Time.
    Sleep,
    /// Another thread.
    Futex,
    /// A child.
    Child,
    /// A signal.
    Signal,
    /// Unknown.
    Unknown,
    /// Ended, not yet reaped.
    Ended,
}

/// What a process does, by the thread that tells most.
#[derive(Debug)]
pub(super) struct Doing<'a> {
    pub(super) rank: Rank,
    /// A verb and what belongs to it.
    pub(super) text: String,
    /// The thread, where it is one.
    pub(super) thread: Option<&'a ThreadSeen>,
}

/// True if any of its threads executes, or would if a CPU were free.
pub(super) fn runs(process: &ProcessSeen) -> bool {
    process.state == 'R' || process.threads.iter().any(|t| t.state == 'R')
}

/// What a thread does.
pub(super) fn does(thread: &ThreadSeen) -> String {
    said(thread, 0)
}

fn said(thread: &ThreadSeen, pid: u32) -> String {
    let wchan = thread.wchan.as_deref();
    match thread.state {
        'T' => "is stopped by a signal (SIGSTOP or alike) until it is sent SIGCONT".to_owned(),
        't' => "is stopped by a debugger".to_owned(),
        'Z' | 'X' => "has ended and is not yet reaped by its parent".to_owned(),
        'R' => "runs".to_owned(),
        'D' => format!("is in a sleep that no signal ends (state D): {}", phrase::wait(&thread.wait, wchan, pid)),
        _ => phrase::wait(&thread.wait, wchan, pid),
    }
}

fn rank(thread: &ThreadSeen) -> Rank {
    match thread.state {
        'T' | 't' => return Rank::Stopped,
        'Z' | 'X' => return Rank::Ended,
        'R' => return Rank::Running,
        'D' => return Rank::Uninterruptible,
        _ => {}
    }
    let of_file = |file: &File| match file {
        File::Terminal { .. } => Rank::Terminal,
        File::Tcp { .. } | File::Udp { .. } => Rank::Network,
        File::Pipe { .. } => Rank::Pipe,
        _ => Rank::File,
    };
    match &thread.wait {
        Wait::Running => Rank::Running,
        Wait::Unnamed | Wait::Unreadable => Rank::Unknown,
        Wait::Call { on, .. } => match on {
            Object::Unknown => Rank::Unknown,
            Object::File { file, .. } => of_file(file),
            Object::Lock { .. } => Rank::FileLock,
            Object::Several { some, .. } => match some.iter().map(|p| of_file(&p.file)).min() {
                Some(Rank::Network) => Rank::Network,
                Some(Rank::Terminal) => Rank::Terminal,
                _ => Rank::Several,
            },
            Object::Futex { .. } => Rank::Futex,
            Object::Child { .. } => Rank::Child,
            Object::Sleep { .. } => Rank::Sleep,
            Object::Signal => Rank::Signal,
        },
    }
}

/// The thread that another waits for.
fn waits_for(thread: &ThreadSeen) -> Option<u32> {
    match &thread.wait {
        Wait::Call { on: Object::Futex { by: Some(FutexBy::Holder(tid) | FutexBy::End(tid)), .. }, .. } => Some(*tid),
        _ => None,
    }
}

/// It waits until another thread of its process wakes it, however long that takes.
fn only_a_sibling_wakes(thread: &ThreadSeen) -> bool {
    matches!(&thread.wait, Wait::Call { on: Object::Futex { private: true, timed: false, .. }, .. })
}

/// What the process does: by the thread that tells most, the main one of equals.
pub(super) fn what_matters(process: &ProcessSeen) -> Doing<'_> {
    if let Some(text) = deadlock(process) {
        return Doing { rank: Rank::Deadlock, text, thread: None };
    }
    let Some(thread) = process.threads.iter().min_by_key(|t| rank(t)) else {
        // There was no time for more than the first look.
        let wait = if process.state == 'R' { Wait::Running } else { Wait::Unreadable };
        let main = ThreadSeen {
            tid: process.pid,
            name: process.name.clone(),
            state: process.state,
            wchan: process.wchan.clone(),
            wait,
        };
        return Doing { rank: rank(&main), text: said(&main, process.pid), thread: None };
    };
    let mut text = said(thread, process.pid);
    let waiting: Vec<String> = process
        .threads
        .iter()
        .filter(|t| waits_for(t) == Some(thread.tid))
        .map(|t| if t.tid == process.pid { "its main thread".to_owned() } else { format!("thread {}", t.tid) })
        .collect();
    if thread.tid != process.pid {
        text = format!("{text} in its thread {}", thread.tid);
    }
    if !waiting.is_empty() {
        text = format!("{text}, for which {} {}", phrase::listed(&waiting), verb(waiting.len(), "waits", "wait"));
    }
    Doing { rank: rank(thread), text, thread: Some(thread) }
}

fn verb(n: usize, one: &'static str, more: &'static str) -> &'static str {
    if n == 1 { one } else { more }
}

/// Threads that wait for each other: a circle of holders, or all of them on futexes that nobody else can wake.
fn deadlock(process: &ProcessSeen) -> Option<String> {
    let threads = &process.threads;
    let by_id = |tid: u32| threads.iter().find(|t| t.tid == tid);
    for start in threads {
        let mut circle = vec![start.tid];
        let mut next = waits_for(start);
        while let Some(thread) = next.and_then(by_id) {
            if thread.tid == start.tid {
                return Some(around(&circle));
            }
            if circle.contains(&thread.tid) {
                break;
            }
            circle.push(thread.tid);
            next = waits_for(thread);
        }
    }
    let all_seen = u32::try_from(threads.len()).is_ok_and(|n| n == process.threads_total) && !threads.is_empty();
    if !(all_seen && threads.iter().all(only_a_sibling_wakes)) {
        return None;
    }
    Some(match threads.len() {
        1 => "is deadlocked: its only thread waits on a futex that no other process can wake".to_owned(),
        n => format!(
            "is deadlocked: all its {} wait on futexes that no other process can wake",
            counted(u32::try_from(n).unwrap_or(u32::MAX), "thread", "threads")
        ),
    })
}

fn around(circle: &[u32]) -> String {
    match circle {
        [one] => format!("is deadlocked: thread {one} waits for a lock that it holds itself (futex)"),
        [a, b] => format!(
            "is deadlocked: thread {a} waits for a lock that thread {b} holds, and thread {b} for one that thread {a} \
             holds (futex)"
        ),
        _ => {
            let names: Vec<String> = circle.iter().map(u32::to_string).collect();
            format!(
                "is deadlocked: each of the threads {} waits for a lock that the next holds (futex)",
                names.join(", ")
            )
        }
    }
}
