//! `heartbeat`: what a run says of itself, from a shell script. Speaks sd_notify(3) to the run's own socket, and returns when
//! the instance has taken it in.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use rustix::net::SocketFlags;

use super::Done;
use super::args::HeartbeatArgs;
use crate::executor::sender::Socket;
use crate::launch::environment::RUN_ID;
use crate::model::{Error, ErrorKind};

/// How long the instance may take. A restart of it takes a second.
const TAKEN: Duration = Duration::from_secs(10);

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
    let to = Socket::to(&socket, SocketFlags::empty()).map_err(|e| failed(e.into()))?;
    to.send(&message(args)).map_err(|e| failed(e.into()))?;
    if to.barrier(TAKEN).map_err(|e| failed(e.into()))? {
        return Ok(0);
    }
    let seconds = TAKEN.as_secs();
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
    lines.extend(args.progress.update().lines());
    lines.extend(args.extend.map(|by| format!("EXTEND_TIMEOUT_USEC={}", usec(by))));
    lines.push(if args.stopping { "STOPPING=1" } else { "WATCHDOG=1" }.to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::agent::ProgressArgs;

    #[test]
    fn what_is_said_is_sd_notifys() {
        let args = |ready, status: Option<&str>, extend, stopping| HeartbeatArgs {
            ready,
            status: status.map(str::to_owned),
            extend,
            stopping,
            ..HeartbeatArgs::default()
        };
        assert_eq!(message(&args(false, None, None, false)), "WATCHDOG=1");
        let all = args(true, Some("a\nREADY=0"), Some(Duration::from_secs(2)), true);
        assert_eq!(message(&all), "READY=1\nSTATUS=a READY=0\nEXTEND_TIMEOUT_USEC=2000000\nSTOPPING=1");
        let tool = Some("Bash\nREADY=1".to_owned());
        let progress = ProgressArgs { turn: Some(7), cost: Some(1_250_000), tool, ..ProgressArgs::default() };
        let agent = HeartbeatArgs { progress, ..args(false, None, None, false) };
        let expected =
            "X_GUARDIAN_TURNS=7\nX_GUARDIAN_COST_MICRO_USD=1250000\nX_GUARDIAN_TOOL=Bash READY=1\nWATCHDOG=1";
        assert_eq!(message(&agent), expected);
    }
}
