//! Escapees: processes that carry a run's mark, its id in their environment, and are outside of what contains it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ProcessId, RunId};

/// How many are named in a sentence.
const NAMED: usize = 3;

/// A process that carries a run's mark and was found outside of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escapee {
    /// Which.
    pub process: ProcessId,
    /// Its name (`comm`), as it chose it: escaped for a terminal by whoever shows it.
    pub name: String,
    /// The cgroup that it was found in, as in `/proc/PID/cgroup`; empty where the kernel does not tell.
    pub cgroup: String,
    /// What became of it.
    pub fate: Fate,
}

/// What became of an escapee.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Nothing was done to it.
    #[default]
    LeftAlone,
    /// It is to be ended, or is being ended.
    Ending,
    /// It ended, and nothing had been done to it.
    Gone,
    /// It ended after SIGTERM.
    Terminated,
    /// It ended after SIGKILL.
    Killed,
    /// It was to be ended, and just before a signal it could not be proved to be the run's any more, or may not be
    /// signalled: left alone.
    NotProved,
    /// It was sent SIGKILL and is still there.
    Survives,
}

impl Fate {
    /// Every fate.
    pub const ALL: [Fate; 7] =
        [Fate::LeftAlone, Fate::Ending, Fate::Gone, Fate::Terminated, Fate::Killed, Fate::NotProved, Fate::Survives];

    /// The name in D-Bus and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Fate::LeftAlone => "left_alone",
            Fate::Ending => "ending",
            Fate::Gone => "gone",
            Fate::Terminated => "terminated",
            Fate::Killed => "killed",
            Fate::NotProved => "not_proved",
            Fate::Survives => "survives",
        }
    }

    /// Whether it was there when it was last looked at.
    pub const fn is_there(self) -> bool {
        matches!(self, Fate::LeftAlone | Fate::Ending | Fate::NotProved | Fate::Survives)
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::LeftAlone => "left alone",
            Fate::Ending => "is being ended",
            Fate::Gone => "ended by itself",
            Fate::Terminated => "ended by SIGTERM",
            Fate::Killed => "ended by SIGKILL",
            Fate::NotProved => "left alone: it cannot be proved to be the run's any more, or may not be signalled",
            Fate::Survives => "still there after SIGKILL",
        })
    }
}

impl Escapee {
    /// Which it is and where it was found: `sleep (pid 7) in cgroup /x`.
    pub fn place(&self) -> String {
        let cgroup = if self.cgroup.is_empty() { String::new() } else { format!(" in cgroup {}", self.cgroup) };
        format!("{} (pid {}){cgroup}", self.name, self.process.pid)
    }

    /// What is wrong about these, in half a sentence: some are named. Empty if there are none.
    pub fn sentence<'a>(all: impl Iterator<Item = &'a Escapee>) -> String {
        let places: Vec<String> = all.map(Escapee::place).collect();
        match &places[..] {
            [] => String::new(),
            [one] => format!("{one} is the run's and outside of what contains it"),
            many => {
                let more = many.len().saturating_sub(NAMED);
                let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
                let named: Vec<&str> = many.iter().take(NAMED).map(String::as_str).collect();
                format!(
                    "{} processes are the run's and outside of what contains it: {}{rest}",
                    many.len(),
                    named.join(", ")
                )
            }
        }
    }
}

impl fmt::Display for Escapee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.fate)
    }
}

/// A run whose escapees are looked for, or ended: all that a process is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// The run.
    pub run: RunId,
    /// Which of the looks for it this is, so that an answer is known by it.
    pub number: u64,
    /// The run's user: the real, effective, saved and file system uid of what is its.
    pub uid: u32,
    /// Its main process, which is its own wherever it is; nothing of the run is older.
    pub main: ProcessId,
    /// It is known to be empty: whatever carries its mark is outside.
    pub is_empty: bool,
    /// Those that are known already, or those that are meant.
    pub known: Vec<ProcessId>,
}

/// What is done to escapees that are known. Before a signal each is proved anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapeeAct {
    /// See whether they are there.
    Look,
    /// SIGTERM, then SIGCONT.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// What came of it for one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapeeState {
    /// It is gone.
    Gone,
    /// It is there; it was sent the signal, if there was one to send.
    There,
    /// It is there, and was sent nothing: it cannot be proved to be the run's any more, or may not be signalled.
    NotProved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_named_and_of_many_some() {
        let one = |pid| Escapee {
            process: ProcessId { pid, start_ticks: 1 },
            name: "sleep".into(),
            cgroup: if pid == 1 { "/x".into() } else { String::new() },
            fate: Fate::Killed,
        };
        assert_eq!(one(1).to_string(), "sleep (pid 1) in cgroup /x: ended by SIGKILL");
        let sentence = |n| Escapee::sentence((1..=n).map(one).collect::<Vec<_>>().iter());
        assert_eq!(sentence(0), "");
        assert_eq!(sentence(1), "sleep (pid 1) in cgroup /x is the run's and outside of what contains it");
        let many = "5 processes are the run's and outside of what contains it: sleep (pid 1) in cgroup /x, sleep (pid 2), \
                    sleep (pid 3) and 2 more";
        assert_eq!(sentence(5), many);
    }
}
