//! Telling people: what the audit says is put into a durable outbox, and from there through channels.
//!
//! Owns the routes, the outbox (`notify.db`) and the channels. Sees the model, the shapes of JSON, the client of the bus, and of
//! the configuration's room what tells a mistake with its place. An unprivileged client of the bus like any other: it can crash
//! alone.
//!
//! ```text
//!  audit ═ D-Bus ═ reader ── event ── route ──▶ outbox (SQLite) ──▶ batch ── worker, a thread a channel ──▶ the world
//!                    ▲                             │
//!                    └────────── cursor ───────────┘   the cursor and what is to be told of it are one transaction
//! ```
//!
//! `event`, `route`, `batch`, `template`, `quiet` and `address` are functions of values; what does something is in `reader`,
//! `outbox`, `worker`, `http` and `channel`.
//!
//! A message leaves the outbox after it was taken, so that none is lost when this process is killed; one that was under way then
//! is sent again, with the same ids.

mod address;
mod batch;
mod channel;
mod config;
mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod http;
mod log;
mod outbox;
#[cfg(test)]
mod outbox_tests;
mod quiet;
mod reader;
mod route;
mod secret;
mod serve;
mod template;
mod worker;

pub use address::is_public;
pub use config::{Config, usual_file};
pub use reader::Source;
pub use serve::{Options, serve, test};
