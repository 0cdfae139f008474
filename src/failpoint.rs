//! Failpoints: named places where a test can make an instance die, fail or wait, or take a protection away. Without the
//! feature `failpoints` they are nothing. Set by the environment of the process: `FAILPOINTS="kill.intent=return(kill)"`.

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

/// The failpoints where an instance asks the kernel, or the store the disk. An error there is an answer that they could give.
pub const ASKED: &[&str] = &[
    "kernel.reserve",
    "kernel.create",
    "kernel.spawn",
    "kernel.attach",
    "kernel.watch_container",
    "kernel.watch_process",
    "kernel.open_gate",
    "kernel.sample",
    "kernel.examine",
    "kernel.evidence",
    "kernel.terminate",
    "kernel.kill",
    "kernel.populated",
    "kernel.remove",
    "store.commit",
];

/// The failpoints that a queued run passes when it has its turn, in order.
pub const TURN: &[&str] =
    &["launch.created", "launch.attached", "launch.contained", "launch.started", "kernel.open_gate", "queue.opened"];

/// The failpoints of the other threads of an instance: the store's when a batch is on disk, the bus's when a launch is asked
/// for, that of the journal, and those which look for escapees and for what a run leaves.
pub const THREADS: &[&str] = &["store.committed", "bus.launch", "journal.entry", "escapees.look", "locks.look"];

/// The failpoints of a client, which nothing depends on but what a person sees.
pub const CLIENT: &[&str] = &["top.draw"];

/// The failpoints of an instance that takes up the runs of the one before it.
pub const RECOVERY: &[&str] = &["recovery.begun", "kernel.list", "kernel.reopen", "recovery.adopted"];

/// The failpoints of a shim, in the order in which it passes them. It has the environment's of who started it: of the client
/// of a foreground run, or of the instance.
pub const SHIM: &[&str] = &["shim.begun", "shim.forked", "shim.ready", "shim.reaped", "shim.noted", "shim.empty"];

/// The protections that can be taken away, to see that `guardian selftest` notices: `return`, or `return(OF WHAT)`.
pub const GUARDS: &[&str] = &[
    // A kill leaves out the processes with all of these words in their command line, and they do not count as being there.
    "guard.kill",
    // A kill that is to be refused as this kind of error is answered with success.
    "guard.refusal",
    // Who asks for a kill by force is told of another kill than the others.
    "guard.one_kill",
    // Whoever knows the socket may connect and do everything.
    "guard.rights",
    // What was held open for a run stays open.
    "guard.descriptors",
    // The container of a run stays.
    "guard.removal",
    // This rule watches no run.
    "guard.rule",
    // A run is over when its main process is.
    "guard.leftovers",
    // Nobody notices that a client is gone.
    "guard.client",
    // The runs of an earlier instance are forgotten.
    "guard.recovery",
    // Nobody looks for escapees.
    "guard.escapees",
    // What cannot be written counts as written.
    "guard.record",
];

/// Of what a protection is taken away; none: it is there, as it always is without the feature `failpoints`.
pub fn without(name: &str) -> Option<String> {
    let _ = name;
    fail::fail_point!(name, |of| Some(of.unwrap_or_default()));
    None
}

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
