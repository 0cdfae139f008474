//! guardian-web over real sockets, before a real private instance with real runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod document;
mod doors;
mod limits;
mod lives;
mod reads;
mod rig;
mod scrapes;
mod starts;
