//! A PID namespace for a run, and its first process, which the kernel demands: it adopts what is orphaned in there, and
//! when it ends the kernel ends all that is left.
//!
//! An ordinary user gets one within a user namespace of their own, in which they keep their uid and have no other. There
//! `sudo` and other setuid programs have no effect, and processes outside are neither seen nor reached. /proc is mounted
//! anew, as it would show the processes outside.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, write};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::launch::fork::close_all_but;
use crate::launch::orphans;

/// The argument of the shim that tries whether a run could have a PID namespace here.
pub const PROBE: &str = "--probe";

/// Asked of it: mount /proc.
const MOUNT: u8 = b'm';
/// Told: the command has exited. It ends once it has no child left.
const NO_MORE: u8 = b'x';

/// The first process of a run's PID namespace, held by a socket. If that closes and nothing was said, it ends.
pub(super) struct Init {
    /// As it is seen from outside.
    pub pid: u32,
    /// The socket.
    pub pipe: OwnedFd,
}

/// Enters a new PID namespace with all children from now on, and starts its first process.
pub(super) fn start() -> Result<Init, String> {
    let failed = |what: &'static str| move |e: Errno| format!("{what}: {e}");
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|e| format!("no PID namespace can be made here: {}; {}", why(e), advice(uid.is_root())))?;
    if !uid.is_root() {
        let (uid, gid) = (uid.as_raw(), gid.as_raw());
        // Without it a group map is refused: a process could drop a group that keeps it out of somewhere.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{uid} {uid} 1")),
            ("gid_map", format!("{gid} {gid} 1")),
        ] {
            fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("cannot write {file}: {e}"))?;
        }
    }
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, its) = pair.map_err(failed("cannot make a socket"))?;
    // SAFETY: a shim has one thread, so nothing is held by another in the child, which never returns from `live`.
    match unsafe { libc::fork() } {
        0 => live(&its),
        pid if pid > 0 => Ok(Init { pid: pid.unsigned_abs(), pipe: ours }),
        _ => Err(format!("cannot fork: {}", std::io::Error::last_os_error())),
    }
}

/// What the kernel calls a full disk is the limit of namespaces.
fn why(e: nix::errno::Errno) -> String {
    match e {
        nix::errno::Errno::ENOSPC => "the limit of namespaces is reached (ENOSPC)".to_owned(),
        e => e.to_string(),
    }
}

fn advice(root: bool) -> &'static str {
    if root {
        "a container that is to have them needs CAP_SYS_ADMIN"
    } else {
        "user namespaces may be turned off (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns), or denied to a container by its seccomp filter"
    }
}

impl Init {
    /// Lets it mount /proc anew, for itself and for us.
    pub fn mount_proc(&self) -> Result<(), String> {
        let lost = |e: Errno| format!("the first process of the PID namespace is gone: {e}");
        write(&self.pipe, &[MOUNT]).map_err(lost)?;
        let mut errno = [0; 4];
        match read(&self.pipe, &mut errno).map_err(lost)? {
            4 => match i32::from_ne_bytes(errno) {
                0 => Ok(()),
                errno => Err(format!(
                    "/proc cannot be mounted for the PID namespace: {}; a container whose /proc is partly covered \
                     cannot (docker: --security-opt systempaths=unconfined)",
                    Errno::from_raw_os_error(errno)
                )),
            },
            _ => Err(lost(Errno::PIPE)),
        }
    }

    /// Tells it that the command has exited.
    pub fn no_more(self) {
        let _ = write(&self.pipe, &[NO_MORE]);
    }
}

/// Its life: it reaps, until it is told that the command has exited and it has no child left.
fn live(shim: &OwnedFd) -> ! {
    // Sent when the shim ends, however it does. If it ended before this line, the socket is at its end.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = rustix::thread::set_name(c"guardian-init");
    if let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for standard in 0..3 {
            // SAFETY: replaces the standard streams, which nothing in this process reads or writes.
            unsafe { libc::dup2(null.as_raw_fd(), standard) };
        }
    }
    close_all_but(&[shim.as_raw_fd()]);
    let _ = std::env::set_current_dir("/");
    let _ = rustix::process::setsid();
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let Ok(children) = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC) else { exit(1) };
    let mut no_more = false;
    loop {
        while let Ok(Some(_)) = children.read_signal() {}
        if !orphans::reap(|_, _| ()) && no_more {
            exit(0);
        }
        let mut fds = [PollFd::new(&children, PollFlags::IN), PollFd::new(shim, PollFlags::IN)];
        let watched = if no_more { 1 } else { 2 };
        match poll(&mut fds[..watched], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => exit(1),
        }
        if no_more || fds[1].revents().is_empty() {
            continue;
        }
        let mut byte = [0];
        match read(shim, &mut byte) {
            Ok(1) if byte == [MOUNT] => {
                let errno = mounted().err().map_or(0, Errno::raw_os_error);
                let _ = write(shim, &errno.to_ne_bytes());
            }
            Ok(1) if byte == [NO_MORE] => no_more = true,
            Err(Errno::INTR) => {}
            // The shim is gone. The kernel ends what is left with us.
            _ => exit(1),
        }
    }
}

fn mounted() -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount(
        c"proc",
        c"/proc",
        c"proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None::<&std::ffi::CStr>,
    )
}

fn exit(status: i32) -> ! {
    // SAFETY: runs no handler and flushes no buffer; those belong to the shim.
    unsafe { libc::_exit(status) }
}

/// Tries whether a run could have a PID namespace here.
pub fn probe() -> Result<(), String> {
    start()?.mount_proc()
}
