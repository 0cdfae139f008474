//! A program: its arguments as they are written, the events as JSON on its standard input. It is ended with all its group when
//! its time is over; whatever it prints on standard error is in the journal.

use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Failure, json_body};
use crate::notify::config::Channel;
use crate::notify::event::{Notice, body};

/// How often the program is looked at.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn deliver(channel: &Channel, command: &[String], notices: &[Notice]) -> Result<(), Failure> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::of_channel("there is no program"));
    };
    let failed = |what: String| Failure::of_channel(format!("{program}: {what}"));
    let mut child = Command::new(program)
        .args(arguments)
        // Nothing of ours: no socket of the service manager, no directory of credentials.
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|e| failed(format!("cannot be executed: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        let body = json_body(&body(notices));
        // It may not read all of it, or none, and end well all the same.
        std::thread::spawn(move || stdin.write_all(&body));
    }
    match wait(&mut child, channel.timeout) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(Failure { of_channel: false, ..failed(ended(status)) }),
        Ok(None) => {
            Err(failed(format!("did not end within {} and was killed", humantime::format_duration(channel.timeout))))
        }
        Err(e) => Err(failed(format!("cannot be waited for: {e}"))),
    }
}

/// Waits for its end, and ends what is left of its group; none: its time was over.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    // Not reaped before its group is ended: until then nobody else has its number.
    let is_over = loop {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { break false };
        let options = rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOHANG
            | rustix::process::WaitIdOptions::NOWAIT;
        if rustix::process::waitid(rustix::process::WaitId::Pid(pid), options)?.is_some() {
            break true;
        }
        if Instant::now() >= deadline {
            break false;
        }
        std::thread::sleep(LOOK);
    };
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It fails where nobody is left.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    Ok(is_over.then_some(status))
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    }
}
