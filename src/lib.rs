//! Guardian runs workflows on Linux and never lets one get stuck or leave anything behind.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod bus;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod failpoint;
pub mod kernel;
pub mod launch;
pub mod model;
pub mod store;
