//! The instance: wiring of engine, kernel, store and bus.

pub mod command;
pub mod host;
pub mod published;
