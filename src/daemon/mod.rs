//! The instance: wiring of engine, kernel, store and bus.
//!
//! Owns what is open (descriptors, threads, the lock) and the loop that turns what happens into events for the engine
//! and its effects into calls of kernel and store. Holds no rule about runs.

mod bus_thread;
pub mod command;
pub mod driver;
mod history;
pub mod host;
pub mod instance;
pub mod journal;
mod launcher;
mod panics;
pub mod published;
pub mod recovery;
mod reservations;
mod service;
pub mod state_dir;
mod takeover;
