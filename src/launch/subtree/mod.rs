//! The backend `subtree`: a shim for each run, where no cgroup can be had.
//!
//! ```text
//!   starter (the client, or the instance)        shim                                command
//!   record, pipes, orders ──── fork, or execute ▶ child subreaper
//!                                                fork ──────────────────────────────▶ waits at the gate
//!   main's pidfd, checked ◀─── ready ─────────── record: shim, main
//!   gate: one byte ────────────────────────────────────────────────────────────────▶ execve
//!                                                leaves the group, lets go of all
//!                                                reaps: record: status               exits
//!                                                ECHILD: record: empty; exits
//! ```
//!
//! A subreaper (Linux 3.4) becomes the parent of every descendant that is orphaned, so that whatever a run starts stays
//! below its shim, however it forks, changes session or daemonizes. The instance finds the run's processes as descendants
//! of the shim and signals them through pidfds (`kernel::tree`); that the shim has no child left (ECHILD) is the proof of
//! emptiness. The shim knows no rule and takes no request: whoever is killed, instance or client, it stays and keeps how
//! the command ended, in the run's record.
//!
//! With a PID namespace of its own, the run cannot see its shim, and the kernel ends all of it with the shim.

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod init;
mod orders;
pub mod record;
mod shim;
mod shims;
mod start;

pub use init::PROBE;
pub use shim::main;
pub use shims::{ShimLimits, Shims, notices};
pub use start::{Options, Started, foreground};

/// The hidden verb of the executables.
pub const VERB: &str = "shim";

/// What a shim says once its command is behind its gate.
const READY: &str = "ready";
