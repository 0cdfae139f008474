//! The processes that carry a mark in their environment, so that a search for what is left asks the kernel and not the instance.

use std::io;

/// The processes whose environment holds this entry (`NAME=VALUE`). What has ended has none.
pub fn marked(mark: &str) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if is_marked(pid, mark) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Whether a process is one of these. Gone meanwhile, or another user's: it is not.
pub fn is_marked(pid: u32, mark: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|b| *b == 0).any(|entry| entry == mark.as_bytes())
}
