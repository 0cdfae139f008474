//! `notify test`: executes guardian-notify, which has the channels. What they need, TLS above all, is none of what each `guardian
//! run` should have to load.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use super::Done;
use super::args::{Global, NotifyVerb};

const NAME: &str = "guardian-notify";

/// Tries the channels, and has the exit status of whoever did.
pub fn main(verb: &NotifyVerb, global: &Global) -> Done {
    let NotifyVerb::Test { channel } = verb;
    let program = beside_us().unwrap_or_else(|| PathBuf::from(NAME));
    let mut command = Command::new(&program);
    // Before the optional value of --test, which would take what follows.
    if let Some(config) = &global.config {
        command.arg("--config").arg(config);
    }
    let is_root = rustix::process::geteuid().is_root();
    if global.user || global.private || !(global.system || is_root) {
        command.arg("--user");
    }
    match channel {
        Some(channel) => command.arg(format!("--test={channel}")),
        None => command.arg("--test"),
    };
    let status = command.status().with_context(|| format!("cannot execute {}", program.display()))?;
    Ok(status.code().unwrap_or(1))
}

/// The one that was built or installed with this executable.
fn beside_us() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(NAME);
    path.is_file().then_some(path)
}
