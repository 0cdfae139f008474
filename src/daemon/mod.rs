//! The instance: wiring of engine, kernel, store and bus.

pub mod command;
pub mod driver;
pub mod host;
pub mod journal;
pub mod published;
pub mod recovery;
