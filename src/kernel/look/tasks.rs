//! The processes and threads: their states, their system calls, and the descriptors that those have.

use std::time::Instant;

use super::calls::{self, Shape};
use super::files;
use crate::kernel::process;
use crate::kernel::syscall::{self, Call, Current};
use crate::model::{Access, Object, ProcessSeen, ThreadSeen, Wait};

/// As many threads of a process as are looked at.
const MAX_THREADS: usize = 32;

/// A process with what is known of it so far.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) seen: ProcessSeen,
    /// The call of each of `seen.threads`, if it is in one that is known.
    pub(super) calls: Vec<Option<(Call, Shape)>>,
    start_ticks: u64,
}

impl Looked {
    /// The first look: only files that answer at once, whatever the process does.
    pub(super) fn at(pid: u32, uptime_usec: u64) -> Option<Self> {
        let stat = process::stat(pid).ok()?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        let usec = |ticks: u64| ticks.saturating_mul(1_000_000) / per_second;
        let seen = ProcessSeen {
            pid,
            ppid: stat.ppid,
            name: stat.comm,
            state: stat.state,
            wchan: process::wchan(pid),
            cpu_usec: usec(stat.cpu_ticks),
            age_usec: uptime_usec.saturating_sub(usec(stat.start_ticks)),
            threads_total: stat.threads,
            ..ProcessSeen::default()
        };
        Some(Self { seen, calls: Vec::new(), start_ticks: stat.start_ticks })
    }

    /// True as long as the pid is that process's still.
    pub(super) fn is_same(&self) -> bool {
        process::stat(self.seen.pid).is_ok_and(|stat| stat.start_ticks == self.start_ticks)
    }

    /// Nothing that waits for its memory may be asked of a process with a thread in an uninterruptible sleep: that may
    /// hold the lock of the memory.
    pub(super) fn may_be_asked_for_memory(&self) -> bool {
        self.seen.state != 'D' && self.seen.threads.iter().all(|t| t.state != 'D' && t.state != 'Z')
    }
}

/// Looks at the threads of each.
pub(super) fn look(looked: &mut [Looked], until: Instant) {
    for one in looked.iter_mut().take_while(|_| Instant::now() < until) {
        let pid = one.seen.pid;
        let (threads, calls) = tids(&one.seen)
            .into_iter()
            .take_while(|_| Instant::now() < until)
            .filter_map(|tid| thread(&one.seen, pid, tid))
            .unzip();
        (one.seen.threads, one.calls) = (threads, calls);
    }
}

/// The main thread first.
fn tids(seen: &ProcessSeen) -> Vec<u32> {
    if seen.threads_total <= 1 {
        return vec![seen.pid];
    }
    let mut others = process::threads(seen.pid);
    others.retain(|tid| *tid != seen.pid);
    others.truncate(MAX_THREADS - 1);
    others.insert(0, seen.pid);
    others
}

fn thread(seen: &ProcessSeen, pid: u32, tid: u32) -> Option<(ThreadSeen, Option<(Call, Shape)>)> {
    let (name, state, wchan) = match tid == pid {
        true => (seen.name.clone(), seen.state, seen.wchan.clone()),
        false => {
            let stat = process::thread_stat(pid, tid).ok()?;
            (stat.comm, stat.state, process::thread_wchan(pid, tid))
        }
    };
    let (wait, call) = match process::thread_syscall(pid, tid).ok().as_deref().and_then(syscall::parse) {
        None if state == 'R' => (Wait::Running, None),
        None => (Wait::Unreadable, None),
        Some(Current::Running) => (Wait::Running, None),
        Some(Current::None | Current::Foreign) => (Wait::Unnamed, None),
        Some(Current::Call(call)) => match calls::named(call.number) {
            Some((name, shape)) => {
                let on = object(pid, call, shape);
                (Wait::Call { name: name.to_owned(), on }, Some((call, shape)))
            }
            None => (Wait::Unnamed, None),
        },
    };
    Some((ThreadSeen { tid, name, state, wchan, wait }, call))
}

/// What its arguments alone tell, and the links of its descriptors.
fn object(pid: u32, call: Call, shape: Shape) -> Object {
    let [a, b, c, d, ..] = call.args;
    // Arguments that are an int are the low half of the register.
    let fd = low(a);
    match shape {
        Shape::File(access) => Object::File { fd, access, file: files::link(pid, fd) },
        Shape::Lock => Object::Lock { fd, path: files::path(pid, fd), holders: Vec::new() },
        Shape::Fcntl if matches!(low(b), 7 | 38) => {
            // F_SETLKW and F_OFD_SETLKW.
            Object::Lock { fd, path: files::path(pid, fd), holders: Vec::new() }
        }
        Shape::Fcntl => Object::File { fd, access: Access::Other, file: files::link(pid, fd) },
        Shape::Poll(pointer) => {
            let timed = if pointer { c != 0 } else { low(c) >= 0 };
            Object::Several { total: u32::try_from(b).unwrap_or(0), some: Vec::new(), timed }
        }
        Shape::Select => Object::Several { total: 0, some: Vec::new(), timed: call.args[4] != 0 },
        Shape::Epoll(pointer) => {
            let timed = if pointer { d != 0 } else { low(d) >= 0 };
            let (total, some) = files::watched(pid, fd);
            Object::Several { total, some, timed }
        }
        Shape::Futex => Object::Futex { private: b & 128 != 0, timed: d != 0, by: None },
        Shape::Wait4 => Object::Child { pid: u32::try_from(low(a)).ok().filter(|pid| *pid > 0) },
        // P_PID is 1.
        Shape::WaitId => Object::Child { pid: u32::try_from(low(b)).ok().filter(|pid| low(a) == 1 && *pid > 0) },
        Shape::Vfork => Object::Child { pid: None },
        Shape::Nanosleep | Shape::ClockNanosleep => Object::Sleep { usec: None, left: false },
        Shape::Signal => Object::Signal,
        Shape::Opaque => Object::Unknown,
    }
}

fn low(register: u64) -> i32 {
    register as u32 as i32
}
