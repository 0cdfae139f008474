//! What was seen of the processes of a run at one moment: what each of them waits for, and what that is.
//!
//! What could not be read (a right that is missing, a process that went away, no time left) is `Unreadable` or none, and
//! never a reason to have no evidence. Every name, path and command is as the process chose it: whoever shows it escapes it.

use serde::{Deserialize, Serialize};

use super::{OpenFiles, Wall};

/// The processes of a run, as they were at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// At most 64 of them, lowest pid first.
    pub processes: Vec<ProcessSeen>,
    /// How many there were.
    pub total: u32,
    /// Their cgroup is frozen, and that is why none of them goes on.
    #[serde(default)]
    pub frozen: bool,
    /// What the run as a whole used lately, where it was sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<Growth>,
    /// What they had open for writing, where there was time to look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenFiles>,
    /// What it wrote last, where it has a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<LastOutput>,
    /// When they were looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Wall>,
}

impl Evidence {
    /// What the audit keeps of the processes, as JSON: pid, ppid, name, state and wchan of each. The receipt has the rest.
    pub fn brief(&self) -> serde_json::Value {
        let one = |p: &ProcessSeen| {
            serde_json::json!({
                "pid": p.pid, "ppid": p.ppid, "name": p.name, "state": p.state, "wchan": p.wchan,
            })
        };
        self.processes.iter().map(one).collect()
    }
}

/// What a run wrote last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastOutput {
    /// When.
    pub at: Wall,
    /// How much it has written in all, in bytes.
    pub bytes: u64,
    /// The last line that has something in it, of at most 200 characters; empty if there is none.
    pub line: String,
}

/// By how much the counters of a run grew since the sample before. `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// The time in which they did, in microseconds.
    pub over_usec: u64,
    /// CPU time, in microseconds.
    pub cpu_usec: Option<u64>,
    /// Memory, in bytes; less than nothing where it gave some back.
    pub memory_bytes: Option<i64>,
    /// Bytes read from storage and written to it.
    pub io_bytes: Option<u64>,
    /// Bytes through any read or write call.
    pub activity_bytes: Option<u64>,
}

/// The name of the process that executes a run's command and reads its progress.
pub const RELAY_NAME: &std::ffi::CStr = c"guardian-relay";

/// A process as it was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSeen {
    /// Its pid in the instance's PID namespace.
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// Its name (`comm`), escaped for a terminal by whoever shows it.
    pub name: String,
    /// Its state letter as in `/proc/PID/stat`: R, S, D, T, Z, …: that of its main thread.
    pub state: char,
    /// The kernel function that its main thread waits in, where the kernel tells.
    pub wchan: Option<String>,
    /// The beginning of its command line, of at most 200 characters; empty where that is not to be had.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// CPU time of all its threads since its start, in microseconds.
    #[serde(default)]
    pub cpu_usec: u64,
    /// The time since its start, in microseconds.
    #[serde(default)]
    pub age_usec: u64,
    /// What it used of the CPU in a short time after it was seen, where it was looked at twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<RecentCpu>,
    /// At most 32 of its threads, the main one first. None where there was no time to look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<ThreadSeen>,
    /// How many threads it has.
    #[serde(default)]
    pub threads_total: u32,
}

/// CPU time in a short time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentCpu {
    /// The time, in microseconds.
    pub over_usec: u64,
    /// CPU time of all threads in it, in microseconds.
    pub cpu_usec: u64,
}

/// A thread as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSeen {
    /// Its id; that of the main thread is the pid.
    pub tid: u32,
    /// Its name, which the program may have given it.
    pub name: String,
    /// Its state letter.
    pub state: char,
    /// The kernel function that it waits in, where the kernel tells.
    pub wchan: Option<String>,
    /// What it does.
    pub wait: Wait,
}

/// What a thread does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Wait {
    /// Nobody tells: another user's process, ptrace restricted by Yama, gone meanwhile.
    #[default]
    Unreadable,
    /// It executes, or would if a CPU were free.
    Running,
    /// It waits in the kernel, in no system call (a page fault) or in one that has no name here.
    Unnamed,
    /// It waits in a system call.
    Call {
        /// Its name: `read`, `futex`, …
        name: String,
        /// What it waits for.
        on: Object,
    },
}

/// What a system call waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Object {
    /// Nothing that is known.
    #[default]
    Unknown,
    /// One open file.
    File {
        /// Its descriptor.
        fd: i32,
        /// What is done with it.
        access: Access,
        /// What it is.
        file: File,
    },
    /// A lock on a file (flock, fcntl).
    Lock {
        /// Its descriptor.
        fd: i32,
        /// Its path.
        path: String,
        /// Who holds a lock on it: found by open files, or told by `/proc/locks`.
        holders: Vec<Holder>,
    },
    /// Any of several files (poll, select, epoll).
    Several {
        /// How many.
        total: u32,
        /// At most 16 of them, those that tell most first.
        some: Vec<Polled>,
        /// It returns by itself after some time.
        timed: bool,
    },
    /// A futex: a lock, a condition or the end of a thread.
    Futex {
        /// Threads of this process alone can wake it.
        private: bool,
        /// It returns by itself after some time.
        timed: bool,
        /// The thread that holds the lock, or that is to end.
        by: Option<FutexBy>,
    },
    /// A child's end or change of state.
    Child {
        /// Which, in the PID namespace of the waiter; any child if none.
        pid: Option<u32>,
    },
    /// Time to pass.
    Sleep {
        /// How much, in microseconds.
        usec: Option<u64>,
        /// That is what is left of it.
        left: bool,
    },
    /// A signal.
    Signal,
}

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read, or receive.
    Read,
    /// Write, or send.
    Write,
    /// Accept a connection.
    Accept,
    /// Connect.
    Connect,
    /// Anything else.
    Other,
}

/// The thread that a futex waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "tid")]
pub enum FutexBy {
    /// It holds the mutex.
    Holder(u32),
    /// It is to end (pthread_join).
    End(u32),
}

/// One of several files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Polled {
    /// Its descriptor.
    pub fd: i32,
    /// What it is.
    pub file: File,
}

/// An open file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum File {
    /// Nobody tells.
    #[default]
    Unreadable,
    /// A terminal.
    Terminal {
        /// Its path.
        path: String,
    },
    /// A pipe, or a FIFO.
    Pipe {
        /// The path of a FIFO.
        path: Option<String>,
        /// Who has the other end open, the waiting process itself too.
        other_end: Vec<Holder>,
        /// Every process that could have it was looked at.
        #[serde(default)]
        all_seen: bool,
    },
    /// A TCP socket.
    Tcp {
        /// Its own address and port.
        local: String,
        /// The address and port of its peer, where it has one.
        peer: Option<String>,
        /// Its state, as ss and netstat write it: `ESTABLISHED`, `SYN_SENT`, …
        state: String,
    },
    /// A UDP socket.
    Udp {
        /// Its own address and port.
        local: String,
        /// The address and port that it is connected to.
        peer: Option<String>,
    },
    /// A unix socket.
    Unix {
        /// The path that it, or the socket that accepted it, is bound to.
        path: Option<String>,
        /// What it is connected to, where that can be known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<UnixPeer>,
    },
    /// A socket of another family, or one of which nothing is told.
    Socket,
    /// What the kernel makes without a path: `eventfd`, `timerfd`, `signalfd`, `inotify`, `pidfd`, `eventpoll`, …
    Anonymous {
        /// Its name.
        name: String,
    },
    /// Anything that has a path.
    Path {
        /// The path.
        path: String,
    },
}

/// The other end of a unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixPeer {
    /// The path that it, or the socket that accepted it, is bound to; an abstract name begins with `@`.
    pub path: Option<String>,
    /// Who has it open, the waiting process itself too.
    pub holders: Vec<Holder>,
}

/// A process that holds something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its pid.
    pub pid: u32,
    /// Its name; empty if it is gone.
    pub name: String,
}
