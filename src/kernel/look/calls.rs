//! System calls that can block: their names, and what their arguments are. The numbers are those that this was built for.

use nix::libc as sys;

use crate::model::Access;

/// What the arguments of a call are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The first is a descriptor.
    File(Access),
    /// The second is: sendfile, splice and their like wait for either, mostly for where they write to.
    Lock,
    /// `(fd, cmd, …)`: a lock, if the command says so.
    Fcntl,
    /// `(fds, n, timeout, …)`; true if the timeout is a pointer.
    Poll(bool),
    /// `(n, read, write, except, timeout, …)`.
    Select,
    /// `(epfd, events, n, timeout, …)`; true if the timeout is a pointer.
    Epoll(bool),
    /// `(address, operation, value, timeout, …)`.
    Futex,
    /// `(pid, …)`.
    Wait4,
    /// `(id type, id, …)`.
    WaitId,
    /// `(request, …)`.
    Nanosleep,
    /// `(clock, flags, request, …)`.
    ClockNanosleep,
    /// A signal.
    Signal,
    /// A child that was made by vfork, until it executes or ends.
    Vfork,
    /// Nothing of interest.
    Opaque,
}

use Access::{Accept, Connect, Other, Read, Write};
use Shape::*;

macro_rules! table {
    ($($name:ident $shape:expr,)*) => {
        &[$((concat!(stringify!($name)), Numbers::$name, $shape),)*]
    };
}

/// The numbers, by name.
#[allow(non_upper_case_globals)]
struct Numbers;

macro_rules! numbers {
    ($($name:ident $number:ident,)*) => {
        #[allow(non_upper_case_globals)]
        impl Numbers { $(const $name: i64 = sys::$number;)* }
    };
}

numbers! {
    read SYS_read, readv SYS_readv, pread64 SYS_pread64, preadv SYS_preadv, preadv2 SYS_preadv2,
    write SYS_write, writev SYS_writev, pwrite64 SYS_pwrite64, pwritev SYS_pwritev, pwritev2 SYS_pwritev2,
    recvfrom SYS_recvfrom, recvmsg SYS_recvmsg, recvmmsg SYS_recvmmsg,
    sendto SYS_sendto, sendmsg SYS_sendmsg, sendmmsg SYS_sendmmsg,
    accept SYS_accept, accept4 SYS_accept4, connect SYS_connect,
    flock SYS_flock, fcntl SYS_fcntl, ioctl SYS_ioctl,
    fsync SYS_fsync, fdatasync SYS_fdatasync, sync SYS_sync, syncfs SYS_syncfs, close SYS_close, fstat SYS_fstat,
    getdents64 SYS_getdents64, ftruncate SYS_ftruncate, fallocate SYS_fallocate, splice SYS_splice, sendfile SYS_sendfile,
    tee SYS_tee, vmsplice SYS_vmsplice, copy_file_range SYS_copy_file_range, io_uring_enter SYS_io_uring_enter,
    ppoll SYS_ppoll, pselect6 SYS_pselect6, epoll_pwait SYS_epoll_pwait, epoll_pwait2 SYS_epoll_pwait2,
    futex SYS_futex, wait4 SYS_wait4, waitid SYS_waitid, nanosleep SYS_nanosleep, clock_nanosleep SYS_clock_nanosleep,
    rt_sigsuspend SYS_rt_sigsuspend, rt_sigtimedwait SYS_rt_sigtimedwait, clone SYS_clone, clone3 SYS_clone3,
    openat SYS_openat, openat2 SYS_openat2, mmap SYS_mmap, munmap SYS_munmap, mprotect SYS_mprotect, madvise SYS_madvise,
    mremap SYS_mremap, brk SYS_brk, execve SYS_execve, execveat SYS_execveat, exit SYS_exit, exit_group SYS_exit_group,
    faccessat SYS_faccessat, faccessat2 SYS_faccessat2, newfstatat SYS_newfstatat, statx SYS_statx, statfs SYS_statfs,
    mkdirat SYS_mkdirat, unlinkat SYS_unlinkat, renameat2 SYS_renameat2, linkat SYS_linkat, readlinkat SYS_readlinkat,
    umount2 SYS_umount2, mount SYS_mount, semop SYS_semop, semtimedop SYS_semtimedop, msgrcv SYS_msgrcv, msgsnd SYS_msgsnd,
    mq_timedreceive SYS_mq_timedreceive, mq_timedsend SYS_mq_timedsend, io_getevents SYS_io_getevents,
    restart_syscall SYS_restart_syscall, sched_yield SYS_sched_yield, getrandom SYS_getrandom, ptrace SYS_ptrace,
    process_vm_readv SYS_process_vm_readv, bpf SYS_bpf, finit_module SYS_finit_module, shutdown SYS_shutdown,
}

const EVERYWHERE: &[(&str, i64, Shape)] = table! {
    read File(Read), readv File(Read), pread64 File(Read), preadv File(Read), preadv2 File(Read),
    write File(Write), writev File(Write), pwrite64 File(Write), pwritev File(Write), pwritev2 File(Write),
    recvfrom File(Read), recvmsg File(Read), recvmmsg File(Read),
    sendto File(Write), sendmsg File(Write), sendmmsg File(Write),
    accept File(Accept), accept4 File(Accept), connect File(Connect),
    flock Lock, fcntl Fcntl, ioctl File(Other),
    fsync File(Other), fdatasync File(Other), sync Opaque, syncfs File(Other), close Opaque, fstat File(Other),
    getdents64 File(Other), ftruncate File(Other), fallocate File(Other), splice File(Other), sendfile File(Write),
    tee File(Other), vmsplice File(Other), copy_file_range File(Other), io_uring_enter File(Other),
    ppoll Poll(true), pselect6 Select, epoll_pwait Epoll(false), epoll_pwait2 Epoll(true),
    futex Futex, wait4 Wait4, waitid WaitId, nanosleep Nanosleep, clock_nanosleep ClockNanosleep,
    rt_sigsuspend Signal, rt_sigtimedwait Signal, clone Vfork, clone3 Vfork,
    openat Opaque, openat2 Opaque, mmap Opaque, munmap Opaque, mprotect Opaque, madvise Opaque,
    mremap Opaque, brk Opaque, execve Opaque, execveat Opaque, exit Opaque, exit_group Opaque,
    faccessat Opaque, faccessat2 Opaque, newfstatat Opaque, statx Opaque, statfs Opaque,
    mkdirat Opaque, unlinkat Opaque, renameat2 Opaque, linkat Opaque, readlinkat Opaque,
    umount2 Opaque, mount Opaque, semop Opaque, semtimedop Opaque, msgrcv Opaque, msgsnd Opaque,
    mq_timedreceive File(Read), mq_timedsend File(Write), io_getevents Opaque,
    restart_syscall Opaque, sched_yield Opaque, getrandom Opaque, ptrace Opaque,
    process_vm_readv Opaque, bpf Opaque, finit_module File(Other), shutdown File(Other),
};

/// Calls that newer architectures have no more.
#[cfg(target_arch = "x86_64")]
const HERE: &[(&str, i64, Shape)] = &[
    ("poll", sys::SYS_poll, Poll(false)),
    ("select", sys::SYS_select, Select),
    ("epoll_wait", sys::SYS_epoll_wait, Epoll(false)),
    ("pause", sys::SYS_pause, Signal),
    ("vfork", sys::SYS_vfork, Vfork),
    ("fork", sys::SYS_fork, Opaque),
    ("open", sys::SYS_open, Opaque),
    ("creat", sys::SYS_creat, Opaque),
    ("stat", sys::SYS_stat, Opaque),
    ("lstat", sys::SYS_lstat, Opaque),
    ("access", sys::SYS_access, Opaque),
    ("mkdir", sys::SYS_mkdir, Opaque),
    ("rmdir", sys::SYS_rmdir, Opaque),
    ("unlink", sys::SYS_unlink, Opaque),
    ("rename", sys::SYS_rename, Opaque),
    ("readlink", sys::SYS_readlink, Opaque),
    ("getdents", sys::SYS_getdents, File(Other)),
];
#[cfg(not(target_arch = "x86_64"))]
const HERE: &[(&str, i64, Shape)] = &[];

/// The name and shape of a call; none for one that is not known here.
pub(super) fn named(number: i64) -> Option<(&'static str, Shape)> {
    let all = EVERYWHERE.iter().chain(HERE);
    all.filter(|(_, n, _)| *n == number).map(|(name, _, shape)| (*name, *shape)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_by_the_numbers_of_this_machine() {
        assert_eq!(named(sys::SYS_futex), Some(("futex", Futex)));
        assert_eq!(named(sys::SYS_recvfrom), Some(("recvfrom", File(Read))));
        assert_eq!(named(100_000), None);
        let mut numbers: Vec<i64> = EVERYWHERE.iter().chain(HERE).map(|(_, n, _)| *n).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), EVERYWHERE.len() + HERE.len());
    }
}
