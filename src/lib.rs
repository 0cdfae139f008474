//! Guardian runs workflows on Linux and never lets one get stuck or leave anything behind.
//!
//! ```text
//!  guardian (cli) ──▶ bus::client ═ unix socket, D-Bus ═ bus ── Command ──▶ daemon ──▶ engine (pure: step)
//!                                                         ▲                  │  ▲
//!                                                         └─── Published ◀───┤  └── events
//!                                                                            ▼
//!                                              kernel, launch (cgroup2, /proc, pidfds) · store (SQLite) · journal
//! ```
//!
//! Three threads in an instance: the engine's (the loop of `daemon::instance`, which owns all state), the bus's (tokio)
//! and the store's (SQLite); the journal has a fourth, because its socket can block.
//!
//! Imports point one way: `model ← engine ← daemon → kernel, launch, store`; `bus` sees `model` and the command channel;
//! `executor`, how an agent's command is built and its progress read, sees `model` alone and is seen by `config`, `launch`,
//! `daemon` and `cli`;
//! `stream`, the halves of a socket for zbus, is seen by `bus` and `launch`;
//! `json`, the shapes of runs as JSON, is for all clients of the bus; `cli` sees `model`, the bus's client, `json`, `config`,
//! the file of tokens, the channels of `notify`, and the launch of a foreground run; `web` sees `model`, the bus's client and
//! `json`; `notify` those and how `config` tells a mistake. A test holds this.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod bus;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod executor;
pub mod failpoint;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod json;
pub mod kernel;
pub mod launch;
pub mod model;
pub mod notify;
pub mod store;
pub mod stream;
pub mod web;
