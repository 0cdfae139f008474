//! Failpoints: named places where a test can make an instance die, fail or wait. Without the feature `failpoints`
//! they are nothing. Set by the environment of the process: `FAILPOINTS="kill.intent=return(kill)"`.

use std::io;

/// The failpoints of a launch, a kill and a recovery, in the order in which they are passed. Tests go through all.
pub const ALL: &[&str] = &[
    "launch.accepted",
    "launch.recorded",
    "launch.created",
    "launch.attached",
    "launch.contained",
    "launch.started",
    "launch.answered",
    "kill.requested",
    "kill.recorded",
    "kill.evidence",
    "kill.terminated",
    "kill.killed",
    "finish.empty",
    "finish.recorded",
    "finish.removed",
];

/// The failpoints of a shim, in the order in which it passes them. It has the environment's of who started it: of the client
/// of a foreground run, or of the instance.
pub const SHIM: &[&str] = &["shim.begun", "shim.forked", "shim.ready", "shim.reaped", "shim.noted", "shim.empty"];

/// Passes a failpoint. `return(kill)` ends the process with SIGKILL; `return` gives an error; `sleep(ms)` and `panic`
/// do as they say.
pub fn hit(name: &str) -> io::Result<()> {
    let _ = name;
    fail::fail_point!(name, |action| {
        if action.as_deref() == Some("kill") {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        Err(io::Error::other(format!("failpoint {name}")))
    });
    Ok(())
}

/// Reads the failpoints of the environment. Called once, before any thread is started.
pub fn setup() {
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
}
