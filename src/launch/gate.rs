//! The gated launch: a child that exists, and can be contained, before it executes anything of the run's.
//!
//! ```text
//!   parent                                child
//!   fork ───────────────────────────────▶ waits at the gate: a pipe
//!   pidfd, start time
//!   … the child is moved into the run's cgroup, and seen there …
//!   open(): one byte ───────────────────▶ execve
//!   reads the report: its end means that ◀─ the report's descriptor is close-on-exec
//!   the command runs, an errno that not
//! ```
//!
//! The client of a foreground run uses [`foreground`] and the instance [`detached`]; both give a [`Gated`]. Dropped
//! unopened, or with the parent dead, the gate's pipe ends and the child exits without executing anything.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::fork::{Detached, Plan, fork_gated};
use super::wrapper;
use crate::executor::relay;
use crate::kernel::{Exec, KernelError, process};
use crate::model::ProcessId;

/// Where commands are looked for when the environment has no PATH: the default of the C library's execvp.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// Why a command was not executed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No such command.
    #[error("command not found: {0}")]
    NotFound(String),
    /// There is one, and the kernel refused it.
    #[error("cannot execute {command}: {source}")]
    Refused {
        /// The command.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The working directory cannot be entered.
    #[error("cannot change to the working directory: {0}")]
    Directory(io::Error),
}

impl ExecError {
    /// The exit status that a shell gives: 127 for a command that is not found, 126 for one that is refused.
    pub fn exit_status(&self) -> i32 {
        match self {
            ExecError::NotFound(_) => exit_status_of(Errno::NOENT.raw_os_error()),
            ExecError::Refused { source, .. } => exit_status_of(source.raw_os_error().unwrap_or_default()),
            ExecError::Directory(_) => exit_status_of(Errno::ACCESS.raw_os_error()),
        }
    }
}

impl From<ExecError> for KernelError {
    fn from(error: ExecError) -> Self {
        let (what, source) = match error {
            ExecError::NotFound(command) => (command, io::Error::new(io::ErrorKind::NotFound, "command not found")),
            ExecError::Refused { command, source } => (command, source),
            ExecError::Directory(source) => {
                return KernelError::Io { op: "enter", what: "the working directory".to_owned(), source };
            }
        };
        KernelError::Io { op: "execute", what, source }
    }
}

pub(super) const fn exit_status_of(errno: i32) -> i32 {
    if errno == nix::libc::ENOENT { 127 } else { 126 }
}

/// A child behind its gate, or past it.
#[derive(Debug)]
pub struct Gated {
    pidfd: OwnedFd,
    id: ProcessId,
    command: String,
    gate: Option<Gate>,
}

/// A closed gate, and where the child reports that it could not execute its command.
#[derive(Debug)]
pub struct Gate {
    command: String,
    entrance: Entrance,
    report: OwnedFd,
}

/// What is behind a gate.
#[derive(Debug)]
enum Entrance {
    /// A child of ours, which waits for a byte and knows the rest.
    Child(OwnedFd),
    /// The wrapper of a service, which has to be told what to execute and where to report.
    Service { socket: OwnedFd, handed: wrapper::Handed },
}

impl Gate {
    /// The gate of this command: the pipe's end to write to, and the report's end to read from.
    pub(super) fn new(command: String, entrance: OwnedFd, report: OwnedFd) -> Self {
        Self { command, entrance: Entrance::Child(entrance), report }
    }

    /// The gate of a service's command.
    pub(super) fn of_service(command: String, socket: OwnedFd, handed: wrapper::Handed, report: OwnedFd) -> Self {
        Self { command, entrance: Entrance::Service { socket, handed }, report }
    }

    /// Lets the child execute its command, and waits until it has, or could not. With a timeout, a child that takes
    /// longer (its cgroup is frozen, its file on a network that hangs) is taken to run: its exit will tell.
    pub fn open(self, timeout: Option<Duration>) -> Result<(), ExecError> {
        match self.entrance {
            // EPIPE says that the child was killed at the gate, which its exit tells too.
            Entrance::Child(entrance) => drop(rustix::io::write(&entrance, &[1])),
            Entrance::Service { socket, handed } => wrapper::open(socket.as_fd(), &handed),
        }
        let mut fds = [PollFd::new(&self.report, PollFlags::IN)];
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        while let Err(Errno::INTR) = poll(&mut fds, timeout.as_ref()) {}
        if fds[0].revents().is_empty() {
            return Ok(());
        }
        let mut words = [0; 8];
        let got = rustix::io::read(&self.report, &mut words);
        let errno = [words[0], words[1], words[2], words[3]];
        match got {
            Ok(8) => Err(ExecError::Directory(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))),
            Ok(4) => Err(match i32::from_ne_bytes(errno) {
                nix::libc::ENOENT => ExecError::NotFound(self.command),
                errno => ExecError::Refused { command: self.command, source: io::Error::from_raw_os_error(errno) },
            }),
            // The end of the pipe: execve closed it.
            _ => Ok(()),
        }
    }
}

impl Gated {
    pub(super) fn new(pidfd: OwnedFd, id: ProcessId, gate: Gate) -> Self {
        Self { pidfd, id, command: gate.command.clone(), gate: Some(gate) }
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its pid and start time.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Lets it execute its command; see [`Gate::open`]. Opened before: nothing.
    pub fn open(&mut self, timeout: Option<Duration>) -> Result<(), ExecError> {
        self.gate.take().map_or(Ok(()), |gate| gate.open(timeout))
    }

    /// Its parts: the pidfd, the id, and the gate if it is still closed.
    pub fn into_parts(self) -> (OwnedFd, ProcessId, Option<Gate>) {
        (self.pidfd, self.id, self.gate)
    }

    /// The command, as text for people.
    pub fn command(&self) -> &str {
        &self.command
    }
}

/// Starts a command behind a gate for the client of a foreground run, with this environment: same terminal, process
/// group, directory and descriptors, so that job control and pipes work as if the client were not there. Where the kernel
/// can do so, it begins in `cgroup`.
pub fn foreground(argv: &[Vec<u8>], env: Vec<Vec<u8>>, cgroup: Option<BorrowedFd<'_>>) -> Result<Gated, KernelError> {
    launch(argv, env, None, cgroup)
}

/// Starts a command behind a gate for a detached run: a session of its own, nothing of the caller's but the umask.
/// `nofile` are the limits of open descriptors to give it. Where the kernel can do so, it begins in `cgroup`.
pub fn detached(exec: &Exec, nofile: Option<(u64, u64)>, cgroup: Option<BorrowedFd<'_>>) -> Result<Gated, KernelError> {
    let detached = Detached { files: Files::of(exec)?, nofile };
    launch(&exec.argv, exec.env.clone(), Some(detached), cgroup)
}

/// Where a detached child's standard streams and directory come from.
#[derive(Debug)]
pub(super) struct Files {
    /// What there is to read, or /dev/null.
    pub stdin: OwnedFd,
    /// The log.
    pub output: OwnedFd,
    /// The working directory.
    pub cwd: OwnedFd,
    /// The file in which the launch is kept, to be emptied.
    pub kept: Option<OwnedFd>,
}

/// Opens a file that the child is to have.
fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, KernelError> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).map_err(|e| KernelError::Io {
        op: "open",
        what: path.display().to_string(),
        source: e.into(),
    })
}

/// Opens the file in which a launch is kept.
pub(super) fn open_kept(exec: &Exec) -> Result<Option<OwnedFd>, KernelError> {
    exec.kept.as_ref().map(|path| open(path, OFlags::WRONLY | OFlags::NOFOLLOW)).transpose()
}

impl Files {
    /// Opens them.
    pub fn of(exec: &Exec) -> Result<Self, KernelError> {
        let stdin = match &exec.input {
            Some(input) => in_memory("guardian-input", input)?,
            None => open(Path::new("/dev/null"), OFlags::RDONLY)?,
        };
        Ok(Self {
            stdin,
            // Appended to, so that the log can be capped from its beginning while it is written.
            output: open(&exec.log, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW)?,
            cwd: open(Path::new(OsStr::from_bytes(&exec.cwd)), OFlags::PATH | OFlags::DIRECTORY)?,
            kept: open_kept(exec)?,
        })
    }
}

/// A file in memory that nobody can change, to be read from its beginning.
pub(super) fn in_memory(name: &str, bytes: &[u8]) -> Result<OwnedFd, KernelError> {
    let made = || -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.write_all(bytes)?;
        file.rewind()?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file.into())
    };
    made().map_err(|source| KernelError::Io { op: "write", what: format!("{name}, a file in memory"), source })
}

fn launch(
    argv: &[Vec<u8>],
    env: Vec<Vec<u8>>,
    detached: Option<Detached>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Gated, KernelError> {
    let failed = |op: &'static str| move |e: Errno| KernelError::Io { op, what: "a child".into(), source: e.into() };
    let command = command_text(argv);
    let (candidates, argv, env) = c_strings_of(argv, env)?;
    let (gate, entrance) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a gate for"))?;
    let (report, reports) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a report for"))?;
    let plan = Plan {
        candidates,
        argv,
        env,
        gate,
        report: reports,
        parents_ends: [entrance.as_raw_fd(), report.as_raw_fd()],
        detached,
        cgroup: cgroup.map(|fd| fd.as_raw_fd()),
        limits: Vec::new(),
    };
    let pid = fork_gated(&plan).map_err(failed("fork"))?;
    // Ours until we reap it: the pid cannot be another's. The plan is dropped with the child's ends.
    drop(plan);
    let pidfd = process::open(pid)?;
    let id = ProcessId { pid, start_ticks: process::stat(pid)?.start_ticks };
    Ok(Gated::new(pidfd, id, Gate::new(command, entrance, report)))
}

/// The command, as text for people: for a relay the one that it executes.
pub(super) fn command_text(argv: &[Vec<u8>]) -> String {
    relay::command_of(argv).first().map(|c| String::from_utf8_lossy(c).into_owned()).unwrap_or_default()
}

/// What execve takes: the candidates, the arguments, the environment.
pub(super) type CStrings = (Vec<CString>, Vec<CString>, Vec<CString>);

pub(super) fn c_strings_of(argv: &[Vec<u8>], env: Vec<Vec<u8>>) -> Result<CStrings, KernelError> {
    let path = env.iter().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let candidates = candidates(argv.first().map(Vec::as_slice).unwrap_or_default(), path);
    Ok((c_strings(candidates)?, c_strings(argv.to_vec())?, c_strings(env)?))
}

/// What execvp would try: the name itself if it has a slash, else that name in each directory of PATH, where an empty
/// one is the working directory.
fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let directories = path.split(|b| *b == b':').map(|d| if d.is_empty() { &b"."[..] } else { d });
    directories.map(|d| [d, b"/", name].concat()).collect()
}

fn c_strings(strings: Vec<Vec<u8>>) -> Result<Vec<CString>, KernelError> {
    let convert = |s: Vec<u8>| {
        CString::new(s).map_err(|e| KernelError::Io {
            op: "pass on",
            what: std::ffi::OsString::from_vec(e.clone().into_vec()).to_string_lossy().chars().take(40).collect(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "it holds a NUL byte"),
        })
    };
    strings.into_iter().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

    use super::*;
    use crate::model::ExitStatus;

    fn exec(dir: &Path, argv: &[&str]) -> Exec {
        Exec {
            argv: argv.iter().map(|a| a.as_bytes().to_vec()).collect(),
            env: vec![b"PATH=/usr/bin:/bin".to_vec(), b"MARK=here".to_vec()],
            cwd: dir.as_os_str().as_bytes().to_vec(),
            notify: None,
            log: dir.join("log"),
            input: None,
            kept: None,
        }
    }

    fn reaped(gated: &Gated) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match waitid(Id::PIDFd(gated.pidfd().as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).unwrap() {
                WaitStatus::Exited(_, code) => return ExitStatus::Exited(code),
                WaitStatus::Signaled(_, signal, _) => return ExitStatus::Signaled(signal as i32),
                _ => {}
            }
            assert!(Instant::now() < deadline, "the child does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn run(dir: &Path, argv: &[&str]) -> (ExitStatus, String) {
        let mut gated = detached(&exec(dir, argv), None, None).unwrap();
        gated.open(None).unwrap();
        (reaped(&gated), fs::read_to_string(dir.join("log")).unwrap())
    }

    #[test]
    fn the_command_has_its_directory_environment_and_log_and_a_session_of_its_own() {
        let tmp = tempfile::tempdir().unwrap();
        let script = "pwd; echo $MARK $HOME; cat; ps -o sid= -p $$ | tr -d ' '; echo $$; exit 3";
        let (status, log) = run(tmp.path(), &["sh", "-c", script]);
        assert_eq!(status, ExitStatus::Exited(3));
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines[0], tmp.path().canonicalize().unwrap().to_str().unwrap());
        assert_eq!(lines[1], "here");
        assert_eq!(lines[2], lines[3], "the session is not its own");
        assert_eq!(fs::metadata(tmp.path().join("log")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_of_ours_is_open_in_the_command_and_signals_are_default() {
        let tmp = tempfile::tempdir().unwrap();
        // Not close-on-exec: what a careless library might leave open.
        let leak = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty()).unwrap();
        let script = "ls /proc/self/fd; grep -E '^Sig(Blk|Ign)' /proc/self/status";
        let (_, log) = run(tmp.path(), &["sh", "-c", script]);
        drop(leak);
        let mut lines = log.lines();
        // The fourth is the directory that ls itself has open.
        assert_eq!(lines.by_ref().take(4).collect::<Vec<_>>(), ["0", "1", "2", "3"], "{log}");
        for line in lines {
            let mask = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
            // Signals 32 and 33 are the C library's own and stay as whoever started the tests left them.
            assert_eq!(mask & !(3 << 31), 0, "{line}");
        }
    }

    #[test]
    fn a_closed_gate_executes_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let gated = detached(&exec(tmp.path(), &["touch", "executed"]), None, None).unwrap();
        let (pidfd, id, gate) = gated.into_parts();
        drop(gate);
        let gated = Gated { pidfd, id, command: String::new(), gate: None };
        assert_eq!(reaped(&gated), ExitStatus::Exited(125));
        assert!(!tmp.path().join("executed").exists());
    }

    #[test]
    fn a_gate_is_not_kept_open_by_a_child_forked_later() {
        let tmp = tempfile::tempdir().unwrap();
        let first = detached(&exec(tmp.path(), &["true"]), None, None).unwrap();
        let mut second = detached(&exec(tmp.path(), &["true"]), None, None).unwrap();
        let (pidfd, id, gate) = first.into_parts();
        drop(gate);
        let first = Gated { pidfd, id, command: String::new(), gate: None };
        assert_eq!(reaped(&first), ExitStatus::Exited(125));
        second.open(None).unwrap();
        assert_eq!(reaped(&second), ExitStatus::Exited(0));
    }

    #[test]
    fn a_foreground_command_is_in_its_clients_process_group_and_session() {
        let script = b"[ $(ps -o pgid= -p $$) = $1 ] && exit 5".to_vec();
        let group = rustix::process::getpgrp().as_raw_nonzero().to_string();
        let argv = [b"sh".to_vec(), b"-c".to_vec(), script, b"sh".to_vec(), group.into_bytes()];
        let env = vec![b"PATH=/usr/bin:/bin".to_vec()];
        let mut gated = foreground(&argv, env, None).unwrap();
        assert_eq!(gated.command(), "sh");
        gated.open(None).unwrap();
        assert_eq!(reaped(&gated), ExitStatus::Exited(5));
        gated.open(None).unwrap();
    }

    #[test]
    fn a_missing_command_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        for (argv, expected, status) in [
            ("no-such-command", "command not found: no-such-command", 127),
            ("/etc", "cannot execute /etc: Permission denied (os error 13)", 126),
        ] {
            let mut gated = detached(&exec(tmp.path(), &[argv]), None, None).unwrap();
            let error = gated.open(None).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.exit_status()), (expected, status));
            assert_eq!(reaped(&gated), ExitStatus::Exited(status));
        }
    }

    #[test]
    fn a_file_without_an_interpreter_line_is_a_shell_script() {
        let tmp = tempfile::tempdir().unwrap();
        let script = tmp.path().join("script");
        fs::write(&script, "echo \"$0 $1\"\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let (status, log) = run(tmp.path(), &["./script", "argument"]);
        assert_eq!((status, log.as_str()), (ExitStatus::Exited(0), "./script argument\n"));
    }

    #[test]
    fn a_directory_that_does_not_exist_fails_before_anything_is_forked() {
        let tmp = tempfile::tempdir().unwrap();
        let exec = Exec { cwd: b"/no/such/directory".to_vec(), ..exec(tmp.path(), &["true"]) };
        let error = detached(&exec, None, None).unwrap_err().to_string();
        assert!(error.contains("/no/such/directory"), "{error}");
    }

    #[test]
    fn a_name_is_looked_for_as_execvp_does() {
        let text = |c: Vec<Vec<u8>>| c.into_iter().map(|c| String::from_utf8(c).unwrap()).collect::<Vec<_>>();
        assert_eq!(text(candidates(b"ls", b"/bin::/x")), ["/bin/ls", "./ls", "/x/ls"]);
        assert_eq!(text(candidates(b"./ls", b"/bin")), ["./ls"]);
        assert!(candidates(b"", b"/bin").is_empty());
    }
}
