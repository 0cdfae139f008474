//! What the environment of a run's command says of the run, whatever it was before.

use std::os::unix::ffi::OsStrExt as _;

use crate::model::{Notify, RunId};

/// What a service manager tells its own service alone: a run that inherited it would speak for that one.
pub const OF_A_SERVICE: [&str; 7] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "FDSTORE"];

/// The mark by which a run's processes are known.
pub const RUN_ID: &str = "GUARDIAN_RUN_ID";

/// The variables of a run.
pub fn of_run(run: &str, notify: Option<&Notify>) -> Vec<(&'static str, Vec<u8>)> {
    let mut own = vec![(RUN_ID, run.as_bytes().to_vec())];
    if let Some(notify) = notify {
        own.push(("NOTIFY_SOCKET", notify.socket.as_os_str().as_bytes().to_vec()));
        // Without WATCHDOG_PID it is for every process of the run.
        own.extend(notify.window.map(|w| ("WATCHDOG_USEC", w.as_micros().to_string().into_bytes())));
    }
    own
}

/// Puts them into an environment, in the place of what is there by their names.
pub fn put(env: &mut Vec<Vec<u8>>, run: RunId, notify: Option<&Notify>) {
    let is = |entry: &[u8], name: &str| entry.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    env.retain(|entry| !is(entry, RUN_ID) && !OF_A_SERVICE.iter().any(|name| is(entry, name)));
    let entry = |(name, value): (&str, Vec<u8>)| [name.as_bytes(), b"=", &value].concat();
    env.extend(of_run(&run.to_string(), notify).into_iter().map(entry));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_run_speaks_for_itself_and_never_for_the_service_that_started_it() {
        let run = RunId::from_bytes([1; 6]);
        let before =
            ["A=b", "NOTIFY_SOCKET=/run/systemd/notify", "WATCHDOG_USEC=5", "WATCHDOG_PID=7", "NOTIFY_SOCKETS=x"];
        let mut env: Vec<Vec<u8>> = before.iter().map(|e| e.as_bytes().to_vec()).collect();
        let notify = Notify { socket: "/run/guardian/x".into(), window: Some(Duration::from_secs(2)) };
        put(&mut env, run, Some(&notify));
        let text = |env: &[Vec<u8>]| env.iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect::<Vec<_>>();
        let mark = format!("GUARDIAN_RUN_ID={run}");
        let expected = ["A=b", "NOTIFY_SOCKETS=x", &mark, "NOTIFY_SOCKET=/run/guardian/x", "WATCHDOG_USEC=2000000"];
        assert_eq!(text(&env), expected);
        put(&mut env, run, None);
        assert_eq!(text(&env), ["A=b", "NOTIFY_SOCKETS=x", &mark]);
    }
}
