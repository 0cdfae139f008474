//! The fork of a gated child, and all that happens in the child until it executes its command.
//!
//! Owns fork(2) and the code between it and execve(2). An instance has several threads, so the child of its fork may
//! only do what is async-signal-safe: another thread may have held the allocator's lock, or any other, at that moment.
//! Hence everything is prepared before (`Plan`), and the child does system calls alone, without allocating, without
//! unwinding, and without touching anything that is dropped.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};

use nix::libc::{self, c_char, c_int};
use rustix::io::Errno;

use super::gate::Files;
use crate::executor::relay;

/// The status of a child whose gate was closed unopened. Nobody sees it but who reaps the child.
const NOTHING_EXECUTED: c_int = 125;

/// Descriptors looked at one by one where the kernel has no close_range (Linux before 5.9).
const MANY_DESCRIPTORS: c_int = 65_536;

/// What a detached child has of its own.
#[derive(Debug)]
pub(super) struct Detached {
    /// Its standard streams and directory.
    pub files: Files,
    /// The limits of open descriptors that the instance itself was started with.
    pub nofile: Option<(u64, u64)>,
}

/// Everything that the child needs, made before the fork.
#[derive(Debug)]
pub(super) struct Plan {
    /// What to try to execute, in order.
    pub candidates: Vec<CString>,
    /// The command and its arguments.
    pub argv: Vec<CString>,
    /// The environment.
    pub env: Vec<CString>,
    /// The read end of the gate.
    pub gate: OwnedFd,
    /// The write end of the report of a failed execve.
    pub report: OwnedFd,
    /// The parent's ends of both, which the child must not keep open: with its own copy of the gate's write end it
    /// would never see the parent die.
    pub parents_ends: [RawFd; 2],
    /// For a detached run.
    pub detached: Option<Detached>,
    /// The cgroup to begin in, where the kernel can do that.
    pub cgroup: Option<RawFd>,
    /// Limits of each process, soft and hard alike: `RLIMIT_…` and its value.
    pub limits: Vec<(libc::__rlimit_resource_t, u64)>,
}

/// Pointers to a plan's strings, as execve wants them. Filled before the fork, since it allocates.
struct Pointers {
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    /// `sh`, the script, its arguments: for a file that execve refuses with ENOEXEC. The second is set by the child.
    shell: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// The variable that tells a relay of the report, to which `env` points, too: the relay reports for its command.
    report: Option<CString>,
}

impl Pointers {
    fn to(plan: &Plan) -> Self {
        let list = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let ended = |mut list: Vec<*const c_char>| {
            list.push(null());
            list
        };
        let argv = list(&plan.argv);
        let mut shell = vec![SHELL.as_ptr(), null()];
        shell.extend(argv.iter().skip(1));
        let is_relay = relay::is_relay(plan.argv.iter().map(|word| word.to_bytes()));
        let report = format!("{}={}", relay::REPORT, plan.report.as_raw_fd());
        let report = CString::new(report).ok().filter(|_| is_relay);
        let mut env = list(&plan.env);
        env.extend(report.iter().map(|entry| entry.as_ptr()));
        Self { candidates: list(&plan.candidates), argv: ended(argv), shell: ended(shell), env: ended(env), report }
    }
}

/// What execvp gives a script without `#!`.
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// Forks a child that waits at the gate. Gives its pid.
pub(super) fn fork_gated(plan: &Plan) -> Result<u32, Errno> {
    let mut pointers = Pointers::to(plan);
    let mut all = empty_set();
    let mut before = empty_set();
    // SAFETY: both are live, initialised sets. With every signal blocked, no handler of ours runs in the child: one of
    // tokio's would write to a socket that parent and child share.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let into = plan.cgroup.and_then(fork_into);
    // SAFETY: the child calls `child`, which does nothing but async-signal-safe system calls and never returns.
    let pid = into.unwrap_or_else(|| unsafe { libc::fork() });
    if pid == 0 {
        child(plan, &mut pointers);
    }
    let failed = std::io::Error::last_os_error();
    // SAFETY: `before` was filled in by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut()) };
    match u32::try_from(pid) {
        Ok(pid) => Ok(pid),
        Err(_) => Err(Errno::from_io_error(&failed).unwrap_or(Errno::AGAIN)),
    }
}

/// `struct clone_args` of linux/sched.h as of Linux 5.7 (`CLONE_ARGS_SIZE_VER2`).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks a child that begins in a cgroup (Linux 5.7). None where that cannot be done: an older kernel, a container's
/// seccomp filter, a cgroup that takes no process; then an ordinary fork is followed by a move.
///
/// A move by cgroup.procs takes the kernel's threadgroup lock for writing, and on a host that has not done so lately
/// that waits for an RCU grace period: 8 to 20 ms measured, in the thread that decides. The child moving itself pays
/// the same; beginning there pays nothing. (The mount option `favordynmods` would avoid it too, for the whole host.)
fn fork_into(cgroup: RawFd) -> Option<c_int> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: u64::try_from(cgroup).ok()?,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is a fork: both return from here, each with memory of its own. The C library's
    // fork handlers do not run, and what they repair (locks, the cached thread id) the child never uses.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    c_int::try_from(pid).ok().filter(|pid| *pid >= 0)
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: a sigset_t is plain bits, for which all zero is a value; sigemptyset then makes it the documented one.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

/// The child's life before its command. Only system calls from here on.
fn child(plan: &Plan, pointers: &mut Pointers) -> ! {
    let set_up = match &plan.detached {
        Some(detached) => detach(plan, detached),
        None => {
            // The client has one thread and hands on what it was given: descriptors beyond the standard ones are kept
            // (a shell's `<(…)` is one), ours are close-on-exec.
            for fd in plan.parents_ends {
                // SAFETY: the numbers are of descriptors that the parent holds open, which this process owns copies of
                // that nothing else here uses.
                unsafe { libc::close(fd) };
            }
            Ok((plan.gate.as_raw_fd(), plan.report.as_raw_fd()))
        }
    };
    let kept = plan.detached.as_ref().and_then(|detached| detached.files.kept.as_ref());
    let (gate, report) = match set_up {
        Ok(fds) => fds,
        Err(errno) => fail(plan.report.as_raw_fd(), errno),
    };
    default_signals(plan.detached.is_some());
    for (resource, value) in &plan.limits {
        let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
        // SAFETY: takes numbers and a live structure.
        if let Err(errno) = check(unsafe { libc::setrlimit(*resource, &raw const limit) }) {
            fail(report, errno);
        }
    }
    if !gate_opens(gate) {
        exit(NOTHING_EXECUTED);
    }
    if let Some(kept) = kept {
        // SAFETY: takes numbers.
        if let Err(errno) = check(unsafe { libc::ftruncate(kept.as_raw_fd(), 0) }) {
            fail(report, errno);
        }
    }
    if pointers.report.is_some() {
        // SAFETY: takes a number and a plain value.
        unsafe { libc::fcntl(report, libc::F_SETFD, 0) };
    }
    fail(report, execute(pointers))
}

/// Leaves the instance's session, its standard streams, its directory and every descriptor of it. A copy of another
/// run's gate, of a client's connection or of the database's lock would keep those alive. Gives the numbers of the gate
/// and the report.
fn detach(plan: &Plan, detached: &Detached) -> Result<(RawFd, RawFd), c_int> {
    // 0, 1 and 2 of an instance are open (Rust's runtime sees to it), so no descriptor of the plan is one of them, and
    // these do not overwrite each other.
    let files = &detached.files;
    for (from, to) in [(&files.stdin, 0), (&files.output, 1), (&files.output, 2)] {
        // SAFETY: dup2 and the calls below take numbers and plain values, and touch no memory of ours.
        check(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
    }
    // SAFETY: as above.
    unsafe {
        check(libc::setsid())?;
        check(libc::fchdir(files.cwd.as_raw_fd()))?;
        if let Some((soft, hard)) = detached.nofile {
            // The instance raises its own limit; programs that use select() break with more than 1024.
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
        }
    }
    let (gate, report) = (plan.gate.as_raw_fd(), plan.report.as_raw_fd());
    // A number that is there already stands for none.
    let mut keep = [gate, report, files.kept.as_ref().map_or(gate, AsRawFd::as_raw_fd)];
    keep.sort_unstable();
    close_all_but(&keep);
    Ok((gate, report))
}

fn check(result: c_int) -> Result<(), c_int> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

/// Closes every descriptor from 3 on but these, which are in order.
pub(super) fn close_all_but(keep: &[RawFd]) {
    let firsts = std::iter::once(3).chain(keep.iter().map(|fd| fd + 1));
    let lasts = keep.iter().map(|fd| fd - 1).chain(std::iter::once(c_int::MAX));
    for (first, last) in firsts.zip(lasts) {
        if first > last {
            continue;
        }
        // SAFETY: closing a child's copies, or a shim's. Whatever owns them in the parent is untouched, and here nothing is
        // dropped or used again but the descriptors left out.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if closed < 0 {
            for fd in first..=last.min(MANY_DESCRIPTORS) {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
        }
    }
}

/// Gives signals their default actions and unblocks them. Rust's runtime ignores SIGPIPE in every program, and the
/// parent may have handlers and a mask. What a foreground run was told to ignore (`nohup`, `cmd &` in a script) stays
/// ignored, as with any other command.
fn default_signals(ignored_too: bool) {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: a zeroed sigaction is SIG_DFL without flags; both structures are live. EINVAL for SIGKILL, SIGSTOP
        // and the two that the C library keeps is fine.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            let mut now: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, null(), &raw mut now) == 0;
            let inherited = now.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE && !ignored_too;
            if known && !inherited && now.sa_sigaction != libc::SIG_DFL {
                libc::sigaction(signal, &raw const default, null_mut());
            }
        }
    }
    let none = empty_set();
    // SAFETY: `none` is a live, initialised set.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut()) };
}

/// Waits for a byte. The end of the file says that the parent closed the gate, or died.
fn gate_opens(gate: RawFd) -> bool {
    let mut byte = [0u8; 1];
    loop {
        // SAFETY: the descriptor stays open until the process ends. rustix makes the system call itself and returns the
        // errno, so nothing of the C library is touched.
        match rustix::io::read(unsafe { BorrowedFd::borrow_raw(gate) }, &mut byte) {
            Ok(n) => return n == 1,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Tries the candidates as execvp does, and gives the errno that it would give.
fn execute(pointers: &mut Pointers) -> c_int {
    let mut found_but_refused = false;
    let mut last = libc::ENOENT;
    for candidate in &pointers.candidates {
        // SAFETY: every pointer is to a NUL-terminated string of the plan, which is alive until the process is
        // replaced or ends, and the arrays end with null.
        unsafe { libc::execve(*candidate, pointers.argv.as_ptr(), pointers.env.as_ptr()) };
        last = errno();
        match last {
            libc::ENOEXEC => {
                if let Some(script) = pointers.shell.get_mut(1) {
                    *script = *candidate;
                }
                // SAFETY: as above.
                unsafe { libc::execve(SHELL.as_ptr(), pointers.shell.as_ptr(), pointers.env.as_ptr()) };
                return errno();
            }
            libc::EACCES => found_but_refused = true,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            _ => return last,
        }
    }
    if found_but_refused { libc::EACCES } else { last }
}

fn errno() -> c_int {
    // SAFETY: the C library gives each thread a valid pointer to its errno.
    unsafe { *libc::__errno_location() }
}

/// Reports the errno and ends, with the status that a shell gives.
fn fail(report: RawFd, errno: c_int) -> ! {
    // SAFETY: the descriptor stays open until the process ends.
    let _ = rustix::io::write(unsafe { BorrowedFd::borrow_raw(report) }, &errno.to_ne_bytes());
    exit(super::gate::exit_status_of(errno))
}

fn exit(status: c_int) -> ! {
    // SAFETY: `_exit` runs no handler and flushes no buffer, which belong to the parent.
    unsafe { libc::_exit(status) }
}
