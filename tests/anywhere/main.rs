//! Where no cgroup can be had: as a user without rights, in a container whose cgroup2 is read-only, where /proc shows
//! nobody else. The same promises are kept there, by a shim for each run, and everything says so.
//!
//! The tests below `cgroupfs` are of places where a cgroup can be had, beside which the others are seen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod isolated;
mod places;
mod runs;
mod scattered;
mod stuck;
