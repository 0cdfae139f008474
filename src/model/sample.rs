//! What a look at a run shows: the counters that detection compares.

use serde::{Deserialize, Serialize};

use super::Usage;

/// One look at a run. `None` is not known, which never counts as idle: either it was not looked at (a cheap sample reads
/// `cpu_usec` and `memory_bytes` alone), or the kernel does not tell us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// CPU time of all its processes, ended ones too, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_usec: Option<u64>,
    /// The time that they waited for a CPU, in microseconds: what they would have computed on a host with room for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_wait_usec: Option<u64>,
    /// Memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Percent of the last minute in which all its processes waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_pressure: Option<u32>,
    /// Bytes moved from and to storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_bytes: Option<u64>,
    /// Bytes moved by any read or write call, from and to anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity_bytes: Option<u64>,
    /// Which processes there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,
    /// Some process is blocked in reading a terminal, or the standard input that the run was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for_input: Option<bool>,
    /// It is frozen, by whomever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// How long the host has been suspended since its boot, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended_usec: Option<u64>,
    /// Percent of the last 10 s in which some process of the host waited for a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_cpu_pressure: Option<u32>,
}

/// The processes of a run at one moment, such that any fork or exit since another moment shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// A digest of pids and start times.
    pub digest: u64,
    /// How many tasks (threads) they have.
    pub tasks: u64,
}

impl Processes {
    /// No process.
    pub const NONE: Processes = Processes { digest: 0, tasks: 0 };

    /// Adds a process. The order does not matter.
    pub fn add(&mut self, pid: u32, start_ticks: u64, threads: u32) {
        // The finalizer of splitmix64: close pids and times must not cancel out in the sum.
        let mut x = start_ticks.rotate_left(32) ^ u64::from(pid) ^ 0x9e37_79b9_7f4a_7c15;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.digest = self.digest.wrapping_add(x ^ (x >> 31));
        self.tasks = self.tasks.saturating_add(u64::from(threads));
    }
}

/// The cheap sample.
impl From<Usage> for Sample {
    fn from(usage: Usage) -> Self {
        Self { cpu_usec: usage.cpu_usec, memory_bytes: usage.memory_bytes, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_an_exit_and_a_successor_with_the_same_pid_all_show() {
        let of = |all: &[(u32, u64, u32)]| {
            let mut seen = Processes::NONE;
            all.iter().for_each(|(pid, start, threads)| seen.add(*pid, *start, *threads));
            seen
        };
        let before = of(&[(10, 500, 1), (11, 501, 2)]);
        assert_eq!(before, of(&[(11, 501, 2), (10, 500, 1)]), "in any order");
        for after in [
            &[(10, 500, 1)][..],
            &[(10, 500, 1), (11, 501, 2), (12, 502, 1)],
            &[(10, 500, 1), (12, 501, 2)],
            &[(10, 500, 1), (11, 502, 2)],
            &[(10, 501, 1), (11, 500, 2)],
            &[(10, 500, 1), (11, 501, 3)],
        ] {
            assert_ne!(before, of(after), "{after:?}");
        }
    }
}
