//! `heartbeat`: what a run says of itself, from a shell script. Speaks sd_notify(3) to the run's own socket, and returns when
//! the instance has taken it in.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::Done;
use super::args::HeartbeatArgs;
use crate::launch::environment::RUN_ID;
use crate::model::{Error, ErrorKind};

/// How long the instance may take. A restart of it takes a second.
const TAKEN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Says it, and waits until it is taken in.
pub fn main(args: &HeartbeatArgs) -> Done {
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let outside = "this is not inside a run: `guardian run` starts one, and `guardian heartbeat` is for its command";
    let run = set(RUN_ID).ok_or_else(|| Error::invalid(outside))?;
    let socket = set("NOTIFY_SOCKET").ok_or_else(|| {
        Error::invalid(format!(
            "{0} has no NOTIFY_SOCKET in its environment: `guardian show {0}` may say why",
            run.to_string_lossy()
        ))
    })?;
    let failed = |e: io::Error| {
        let at = socket.to_string_lossy();
        Error::new(ErrorKind::Unavailable, format!("the heartbeat was not sent: {at}: {e}"))
    };
    let address = SocketAddrUnix::new(socket.as_os_str()).map_err(|e| failed(e.into()))?;
    let to = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let to = to.map_err(|e| failed(e.into()))?;
    connect(&to, &address).map_err(|e| failed(e.into()))?;
    send(&to, message(args).as_bytes(), None).map_err(failed)?;
    if barrier(&to).map_err(failed)? {
        return Ok(0);
    }
    let seconds = TAKEN.tv_sec;
    Err(Error::new(
        ErrorKind::TimedOut,
        format!(
            "the heartbeat was sent, but no instance has taken it in after {seconds} s: `guardian doctor` says more"
        ),
    )
    .into())
}

fn message(args: &HeartbeatArgs) -> String {
    let mut lines = Vec::new();
    if args.ready {
        lines.push("READY=1".to_owned());
    }
    if let Some(status) = &args.status {
        lines.push(format!("STATUS={}", status.replace('\n', " ")));
    }
    let usec = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    lines.extend(args.extend.map(|by| format!("EXTEND_TIMEOUT_USEC={}", usec(by))));
    lines.push(if args.stopping { "STOPPING=1" } else { "WATCHDOG=1" }.to_owned());
    lines.join("\n")
}

fn send(to: &OwnedFd, message: &[u8], with: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = with.into_iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(to, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits until everything sent so far is taken in: then the receiver closes its end of the pipe. False: not in time.
fn barrier(to: &OwnedFd) -> io::Result<bool> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    send(to, b"BARRIER=1", Some(&theirs))?;
    drop(theirs);
    let mut fds = [PollFd::new(&ours, PollFlags::empty())];
    loop {
        match poll(&mut fds, Some(&TAKEN)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_sd_notifys() {
        let args = |ready, status: Option<&str>, extend, stopping| HeartbeatArgs {
            ready,
            status: status.map(str::to_owned),
            extend,
            stopping,
        };
        assert_eq!(message(&args(false, None, None, false)), "WATCHDOG=1");
        let all = args(true, Some("a\nREADY=0"), Some(Duration::from_secs(2)), true);
        assert_eq!(message(&all), "READY=1\nSTATUS=a READY=0\nEXTEND_TIMEOUT_USEC=2000000\nSTOPPING=1");
    }
}
