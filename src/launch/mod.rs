//! How a command is started behind a closed gate, and what contains it.
//!
//! Owns the gated launch (`gate`, with the fork itself in `fork`), the backends `systemd`, `cgroupfs` and `subtree`, and the
//! mark that proves a cgroup to be a run's. A launch decides nothing: who opens the gate, and when, is the engine's.

pub mod cgroupfs;
pub mod environment;
pub mod foreground;
mod fork;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod gate;
mod limits;
pub mod mark;
pub mod orphans;
pub mod subtree;
pub mod systemd;
pub mod wrapper;

/// Serves as the shim, the wrapper or the relay of a run, if the arguments say so: both executables are all of them. None:
/// another verb.
pub fn hidden<A: Iterator<Item = std::ffi::OsString>>(arguments: impl Fn() -> A) -> Option<std::process::ExitCode> {
    let relay = || crate::executor::relay::main(arguments());
    subtree::main(arguments()).or_else(|| wrapper::main(arguments())).or_else(relay)
}
