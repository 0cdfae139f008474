//! The instance: wiring of engine, kernel, store and bus.

pub mod command;
pub mod instance;
pub mod published;
