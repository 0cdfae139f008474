//! The gated launch of a service: systemd executes this executable with a hidden verb, in the run's own unit, and it waits
//! on its standard input for what to execute.
//!
//! ```text
//!   instance                              systemd                      wrapper, in the unit
//!   socket pair ── one end as stdin ────▶ fork, cgroup, user, execve ▶ waits at the gate: its stdin
//!   MainPID seen in the unit's cgroup
//!   open(): a byte, the orders (a sealed memfd), the report's end ──▶  reads, changes directory, execve
//!   the report ends: it runs; an errno: it does not ◀──────────────────
//! ```
//!
//! So neither arguments nor environment are properties of the unit, which every user of the host may read, and nothing is
//! executed before the run is on record. When the instance dies, the socket ends, and nothing is executed at all.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::environment;
use super::gate::{Gate, command_text, exit_status_of, in_memory, open_kept};
use crate::executor::relay;
use crate::kernel::{Exec, KernelError};
use crate::model::{Notify, RunId};

/// The hidden verb of the executables.
pub const VERB: &str = "launch";

/// What the wrapper exits with when it executed nothing.
const NOTHING_EXECUTED: u8 = 125;

/// Variables that systemd sets for the unit, and that the run gets whatever its environment is.
const OF_THE_UNIT: [&str; 2] = ["CREDENTIALS_DIRECTORY", "INVOCATION_ID"];

/// The gate of a service's command, and what is to be the wrapper's standard input.
pub fn gate(run: RunId, exec: &Exec) -> Result<(Gate, OwnedFd), KernelError> {
    let failed =
        |op| move |e: rustix::io::Errno| KernelError::Io { op, what: format!("the gate of {run}"), source: e.into() };
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed("make"))?;
    let (report, reporting) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make"))?;
    let input = exec.input.as_ref().map(|input| in_memory("guardian-input", input)).transpose()?;
    let handed = Handed { orders: orders(run, exec)?, reporting, input, kept: open_kept(exec)? };
    Ok((Gate::of_service(command_text(&exec.argv), ours, handed, report), theirs))
}

/// What the wrapper is handed when the gate opens.
#[derive(Debug)]
pub(super) struct Handed {
    orders: OwnedFd,
    reporting: OwnedFd,
    /// The command's standard input, if it has one.
    input: Option<OwnedFd>,
    /// The file in which the launch is kept, to be emptied.
    kept: Option<OwnedFd>,
}

/// Said with what is handed over: that it is, and which of what need not be there.
const OPEN: u8 = 1;
const WITH_INPUT: u8 = 2;
const WITH_KEPT: u8 = 4;

/// What is to be executed, as a file that nobody can change: fields that end with NUL, the directory, the notify socket and
/// the window of heartbeats in microseconds (empty for none), the number of arguments, the arguments, the environment.
fn orders(run: RunId, exec: &Exec) -> Result<OwnedFd, KernelError> {
    let number = exec.argv.len().to_string();
    let socket = exec.notify.as_ref().map_or(&[][..], |n| n.socket.as_os_str().as_bytes());
    let window = exec.notify.as_ref().and_then(|n| n.window).map(|w| w.as_micros().to_string()).unwrap_or_default();
    let fields = [&exec.cwd[..], socket, window.as_bytes(), number.as_bytes()].into_iter();
    let fields = fields.chain(exec.argv.iter().chain(&exec.env).map(Vec::as_slice));
    let bytes: Vec<u8> = fields.flat_map(|field| field.iter().copied().chain([0])).collect();
    in_memory(&format!("guardian-{run}"), &bytes)
}

/// Opens the gate: hands over what the wrapper needs. EPIPE says that it has exited, which is seen anyway.
pub(super) fn open(entrance: BorrowedFd<'_>, handed: &Handed) {
    let Handed { orders, reporting, input, kept } = handed;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = [orders, reporting].into_iter().chain(input).chain(kept).map(AsFd::as_fd).collect();
    let with = |flag, is_there| if is_there { flag } else { 0 };
    let word = OPEN | with(WITH_INPUT, input.is_some()) | with(WITH_KEPT, kept.is_some());
    if ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        let _ = sendmsg(entrance, &[IoSlice::new(&[word])], &mut ancillary, SendFlags::NOSIGNAL);
    }
}

/// Serves as the wrapper if the arguments say so. None: this is another verb.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.nth(1).is_none_or(|verb| verb != VERB) {
        return None;
    }
    let run = arguments.next().unwrap_or_default();
    Some(match take() {
        Ok(Some(taken)) => execute(&run, &taken),
        // The instance kept the gate closed, or died.
        Ok(None) => ExitCode::from(NOTHING_EXECUTED),
        Err(e) => {
            eprintln!("guardian: {}: the launch: {e}", run.to_string_lossy());
            ExitCode::from(NOTHING_EXECUTED)
        }
    })
}

/// What the wrapper was handed.
struct Taken {
    orders: Vec<u8>,
    report: OwnedFd,
    kept: Option<OwnedFd>,
}

/// Waits for the orders, and puts the standard input that the command is to have in place.
fn take() -> io::Result<Option<Taken>> {
    let gate = fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let got = recvmsg(&gate, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(|e| io::Error::other(format!("it is started by guardian alone ({e})")))?;
    let mut fds = ancillary.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let mut fds = fds.by_ref().flatten();
    match (got.bytes, fds.next(), fds.next()) {
        (1, Some(orders), Some(report)) => {
            let mut bytes = Vec::new();
            std::fs::File::from(orders).read_to_end(&mut bytes)?;
            if byte[0] & WITH_INPUT != 0
                && let Some(input) = fds.next()
            {
                nix::unistd::dup2_stdin(&input)?;
            }
            let kept = if byte[0] & WITH_KEPT != 0 { fds.next() } else { None };
            Ok(Some(Taken { orders: bytes, report, kept }))
        }
        _ => Ok(None),
    }
}

/// Becomes the command, or reports why not and exits as a shell would.
fn execute(run: &OsStr, taken: &Taken) -> ExitCode {
    let Taken { orders, report, kept } = taken;
    let mut fields = orders.split(|b| *b == 0).map(OsStr::from_bytes);
    let cwd = fields.next().unwrap_or_default();
    let socket = fields.next().filter(|socket| !socket.is_empty());
    let window = fields.next().and_then(|n| n.to_str()?.parse().ok()).map(Duration::from_micros);
    let notify = socket.map(|socket| Notify { socket: socket.into(), window });
    let count = fields.next().and_then(|n| n.to_str()?.parse().ok()).unwrap_or(0);
    let arguments: Vec<&OsStr> = fields.by_ref().take(count).collect();
    let Some((command, rest)) = arguments.split_first() else { return ExitCode::from(NOTHING_EXECUTED) };
    let entries: Vec<&OsStr> = fields.filter(|entry| !entry.is_empty()).collect();
    let own = |name: &&str| std::env::var_os(name).map(|value| (OsString::from(name), value));
    let mut child = Command::new(command);
    child.args(rest).arg0(command);
    // Without any, the environment is the one that systemd gives to the user's services.
    if !entries.is_empty() {
        let pairs = entries.iter().filter_map(|entry| {
            let at = entry.as_bytes().iter().skip(1).position(|b| *b == b'=')? + 1;
            let (key, value) = entry.as_bytes().split_at(at);
            Some((OsString::from_vec(key.to_vec()), OsString::from_vec(value[1..].to_vec())))
        });
        child.env_clear().envs(pairs).envs(OF_THE_UNIT.iter().filter_map(own));
    }
    for name in environment::OF_A_SERVICE {
        child.env_remove(name);
    }
    let own_variables = environment::of_run(&run.to_string_lossy(), notify.as_ref());
    child.envs(own_variables.into_iter().map(|(name, value)| (name, OsString::from_vec(value))));
    if !cwd.is_empty()
        && let Err(e) = std::env::set_current_dir(cwd)
    {
        return refuse(report, &e, true);
    }
    // The relay reports for the command that it executes.
    if relay::is_relay(arguments.iter().map(|word| word.as_bytes())) && fcntl_setfd(report, FdFlags::empty()).is_ok() {
        child.env(relay::REPORT, report.as_raw_fd().to_string());
    }
    // From here on it counts as executed.
    if let Some(Err(e)) = kept.as_ref().map(|kept| rustix::fs::ftruncate(kept, 0)) {
        return refuse(report, &e.into(), false);
    }
    refuse(report, &child.exec(), false)
}

/// Says why nothing was executed, and exits with the status that a shell would have.
fn refuse(report: &OwnedFd, error: &io::Error, directory: bool) -> ExitCode {
    let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
    let mut words = errno.to_ne_bytes().to_vec();
    // Longer: it is about the directory, and not about the command.
    words.extend(directory.then_some([0; 4]).into_iter().flatten());
    let _ = rustix::io::write(report.as_fd(), &words);
    let status = if directory { exit_status_of(nix::libc::EACCES) } else { exit_status_of(errno) };
    ExitCode::from(u8::try_from(status).unwrap_or(NOTHING_EXECUTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_back_as_they_were_given() {
        let exec = Exec {
            argv: vec![b"printf".to_vec(), b"\xff".to_vec(), Vec::new()],
            env: vec![b"A=".to_vec(), b"B=c=d".to_vec()],
            cwd: b"/tmp/\xfe".to_vec(),
            notify: Some(Notify { socket: "/n".into(), window: Some(Duration::from_secs(1)) }),
            log: Default::default(),
            input: None,
            kept: None,
        };
        let fd = orders(RunId::from_bytes([1; 6]), &exec).unwrap();
        let mut bytes = Vec::new();
        let mut file = std::fs::File::from(fd);
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"/tmp/\xfe\0/n\x001000000\x003\0printf\0\xff\0\0A=\0B=c=d\0");
        assert!(io::Write::write_all(&mut file, b"x").is_err(), "nobody can change it");
    }
}
