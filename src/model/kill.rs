//! Kills and their proof.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Containment, Escapee, Growth, LockFate, ProcessSeen, Remains, Rule, RunId, Wall, human_duration};

/// How a run is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillMode {
    /// SIGTERM, the grace period, then `cgroup.kill` (in a subtree SIGKILL to each).
    Graceful,
    /// `cgroup.kill` (in a subtree SIGKILL to each) at once.
    Force,
}

impl KillMode {
    /// The name in D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            KillMode::Graceful => "graceful",
            KillMode::Force => "force",
        }
    }
}

impl fmt::Display for KillMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KillMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "graceful" => Ok(KillMode::Graceful),
            "force" => Ok(KillMode::Force),
            _ => Err(format!(
                "{:?} is not a kill mode: use graceful or force",
                text.chars().take(40).collect::<String>()
            )),
        }
    }
}

/// Why a run is ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum KillReason {
    /// A limit was reached.
    Limit {
        /// Which.
        rule: Rule,
        /// The time it allowed, extensions included; none where it is a number that is limited.
        allowed: Duration,
        /// What was seen, in a sentence; empty for a rule of which its time says all.
        #[serde(default)]
        seen: String,
    },
    /// Somebody asked for it.
    Requested {
        /// In their words; may be empty.
        text: String,
    },
    /// The client of a foreground run is gone, and a cancelled job leaves nothing.
    ClientGone,
    /// The main process exited and left others behind.
    Leftovers,
    /// A launch that did not complete: its process never executed the command.
    LaunchIncomplete,
    /// What contained the run is gone (its shim was killed), so that it could scatter.
    ContainmentLost,
    /// Somebody had systemd stop its unit: not a kill of ours, and there is no receipt.
    StoppedOutside,
}

impl KillReason {
    /// The time that a limit allowed is over.
    pub const fn over(rule: Rule, allowed: Duration) -> Self {
        KillReason::Limit { rule, allowed, seen: String::new() }
    }

    /// The short name in the database and for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            KillReason::Limit { rule, .. } => rule.as_str(),
            KillReason::Requested { .. } => "requested",
            KillReason::ClientGone => "client_gone",
            KillReason::Leftovers => "leftovers",
            KillReason::LaunchIncomplete => "launch_incomplete",
            KillReason::ContainmentLost => "containment_lost",
            KillReason::StoppedOutside => "stopped_outside",
        }
    }
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KillReason::Limit { seen, .. } if !seen.is_empty() => f.write_str(seen),
            KillReason::Limit { rule, allowed, .. } => write!(f, "{rule} of {} is over", human_duration(*allowed)),
            KillReason::Requested { text } if text.is_empty() => f.write_str("asked for, without a reason"),
            KillReason::Requested { text } => f.write_str(text),
            KillReason::ClientGone => f.write_str("its client is gone"),
            KillReason::Leftovers => f.write_str("its main process exited and left others behind"),
            KillReason::LaunchIncomplete => f.write_str("its launch did not complete"),
            KillReason::ContainmentLost => f.write_str("its shim was killed"),
            KillReason::StoppedOutside => f.write_str("systemd was asked to stop its unit, not by Guardian"),
        }
    }
}

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The instance itself, by rule.
    Guardian,
    /// A user of the host.
    User {
        /// Their uid, as the kernel gave it with the connection.
        uid: u32,
        /// Their name, or the uid again where it has none.
        name: String,
    },
}

impl Actor {
    /// The uid, where it is a user.
    pub fn uid(&self) -> Option<u32> {
        match self {
            Actor::Guardian => None,
            Actor::User { uid, .. } => Some(*uid),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Guardian => f.write_str("guardian"),
            Actor::User { name, .. } => f.write_str(name),
        }
    }
}

/// The answer to a kill request: the one kill that the run has, whoever asked first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillAnswer {
    /// The run.
    pub run: RunId,
    /// `force` once anyone has asked for it.
    pub mode: KillMode,
    /// The reason of the first request.
    pub reason: KillReason,
    /// Who asked first.
    pub actor: Actor,
    /// When the first request came.
    pub requested_at: Wall,
}

/// What was done in a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The intent is on durable record.
    IntentRecorded,
    /// The store did not answer in time: the intent went to the journal queue and the kill goes on.
    IntentNotRecorded,
    /// SIGTERM and SIGCONT were sent to every process.
    Terminated,
    /// A later request asked for force.
    Escalated,
    /// `cgroup.kill` was written; without it, every process was stopped and then sent SIGKILL.
    Killed,
    /// 60 s after that the run was not empty.
    Unkillable,
    /// The kernel says that the run is empty: `populated 0` of its cgroup; in a subtree ECHILD for its shim.
    Emptied,
    /// The instance was restarted during the kill and took it up again.
    Resumed,
}

impl StepKind {
    /// The name in D-Bus and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            StepKind::IntentRecorded => "intent_recorded",
            StepKind::IntentNotRecorded => "intent_not_recorded",
            StepKind::Terminated => "terminated",
            StepKind::Escalated => "escalated",
            StepKind::Killed => "killed",
            StepKind::Unkillable => "unkillable",
            StepKind::Emptied => "emptied",
            StepKind::Resumed => "resumed",
        }
    }
}

/// One step of a kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub kind: StepKind,
    /// When, for people.
    pub at: Wall,
    /// When, in microseconds since the kill was requested.
    pub elapsed_usec: u64,
    /// Processes concerned: signalled, or present when `cgroup.kill` was written.
    pub processes: u32,
}

/// The proof of a kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The run.
    pub run: RunId,
    /// How it was ended.
    pub mode: KillMode,
    /// Why.
    pub reason: KillReason,
    /// Who asked.
    pub actor: Actor,
    /// When the kill was requested.
    pub requested_at: Wall,
    /// From request to empty, in microseconds.
    pub duration_usec: u64,
    /// Every step, in order.
    pub steps: Vec<Step>,
    /// Processes that were sent SIGTERM.
    pub terminated: u32,
    /// Processes still there when `cgroup.kill` was written, or SIGKILL sent.
    pub killed: u32,
    /// What contained the run.
    #[serde(default)]
    pub containment: Containment,
    /// The kernel has said that nothing is left. Not so where a shim was killed: then nothing more was found.
    #[serde(default = "proved")]
    pub proved: bool,
    /// Processes left in the run. A receipt is written when the kernel says that it is empty, so this is 0;
    /// for a run whose cgroup was lost it says what was last known.
    pub survivors: u32,
    /// The processes as they were just before the first signal; at most 64. The record has all that was seen of them; what is
    /// kept at hand of a finished run, see [`Receipt::shorten`].
    pub processes: Vec<ProcessSeen>,
    /// How many there were in all at that moment.
    pub processes_total: u32,
    /// What the run used before that, where it was sampled.
    #[serde(default)]
    pub growth: Option<Growth>,
    /// Processes that carried the run's mark and were found outside of it, and what became of each. They are no survivors:
    /// what contains the run is empty.
    #[serde(default)]
    pub escapees: Vec<Escapee>,
    /// What the run leaves, and who was ended with it. None where nothing was executed, and of before this was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remains: Option<Remains>,
    /// What they waited for then, in a sentence; empty for a run without processes, and for kills of before it was said.
    #[serde(default)]
    pub explanation: String,
}

impl Receipt {
    /// Lets go of what only `explain` shows, which takes it from the record: threads and command lines.
    pub fn shorten(&mut self) {
        for process in &mut self.processes {
            (process.threads, process.command) = (Vec::new(), String::new());
        }
    }
}

/// Receipts of before this was asked are of cgroups.
fn proved() -> bool {
    true
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            KillMode::Graceful => write!(f, "SIGTERM to {}, ", processes(self.terminated))?,
            KillMode::Force if self.terminated > 0 => write!(f, "SIGTERM to {}, forced, ", processes(self.terminated))?,
            KillMode::Force => {}
        }
        let (kill, of) = match self.containment {
            Containment::Systemd | Containment::Cgroupfs => ("cgroup.kill", "of"),
            Containment::Subtree => ("SIGKILL", "to"),
        };
        match self.steps.iter().any(|s| s.kind == StepKind::Killed) {
            true => write!(f, "{kill} {of} {}, ", processes(self.killed))?,
            false => write!(f, "no {kill} needed, ")?,
        }
        let survivors = if self.survivors == 1 { "survivor" } else { "survivors" };
        let proof = if self.proved { "" } else { " found" };
        write!(
            f,
            "{} {survivors}{proof}, {}",
            self.survivors,
            human_duration(Duration::from_micros(self.duration_usec))
        )?;
        match self.escapees.len() {
            0 => {}
            1 => f.write_str(", 1 escapee")?,
            n => write!(f, ", {n} escapees")?,
        }
        let locks = self.remains.iter().flat_map(|remains| &remains.git.locks);
        let (removed, left): (Vec<_>, Vec<_>) = locks.partition(|lock| lock.fate == LockFate::Removed);
        for (n, what) in [(left.len(), "left"), (removed.len(), "removed")] {
            match n {
                0 => {}
                1 => write!(f, ", 1 git lock {what}")?,
                n => write!(f, ", {n} git locks {what}")?,
            }
        }
        Ok(())
    }
}

fn processes(n: u32) -> String {
    if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_of_before_kills_were_explained_is_read() {
        let seen = r#"{"pid":7,"ppid":1,"name":"sleep","state":"S","wchan":"hrtimer_nanosleep"}"#;
        let old = format!(
            r#"{{"run":"run_000000000001","mode":"graceful","reason":{{"kind":"client_gone"}},"actor":"guardian",
            "requested_at":4,"duration_usec":5,"steps":[],"terminated":1,"killed":0,"survivors":0,"processes":[{seen}],
            "processes_total":1}}"#
        );
        let receipt: Receipt = serde_json::from_str(&old).unwrap();
        let process = &receipt.processes[0];
        assert_eq!((process.pid, process.state, process.threads.len()), (7, 'S', 0));
        assert_eq!((receipt.explanation.as_str(), receipt.growth), ("", None));
        assert_eq!(receipt.remains, None, "nobody looked then");
        assert!(receipt.proved, "its cgroup was empty: there was nothing else then");
        let evidence: crate::model::Evidence =
            serde_json::from_str(&format!(r#"{{"processes":[{seen}],"total":1}}"#)).unwrap();
        let told = crate::model::explain(&evidence).sentence;
        assert_eq!(told, "sleep (pid 7) sleeps (kernel function hrtimer_nanosleep)");
    }

    #[test]
    fn a_receipt_says_in_one_line_what_was_done_and_what_is_left() {
        let killed = Step { kind: StepKind::Killed, at: Wall(5), elapsed_usec: 9, processes: 3 };
        let process = super::super::ProcessId { pid: 77, start_ticks: 5 };
        let fate = super::super::Fate::Gone;
        let escapee = Escapee { process, name: "sh".into(), cgroup: "/x".into(), fate };
        let plain = Receipt {
            run: RunId::from_bytes([1; 6]),
            mode: KillMode::Graceful,
            reason: KillReason::ClientGone,
            actor: Actor::Guardian,
            requested_at: Wall(4),
            duration_usec: 2_000,
            steps: Vec::new(),
            terminated: 1,
            killed: 0,
            containment: Containment::Cgroupfs,
            proved: true,
            survivors: 0,
            processes: Vec::new(),
            processes_total: 1,
            growth: None,
            escapees: Vec::new(),
            remains: None,
            explanation: String::new(),
        };
        let lock = |fate| super::super::GitLock { path: "/w/.git/index.lock".into(), fate };
        let locks = vec![lock(LockFate::Removed), lock(LockFate::Stale), lock(LockFate::LeftAlone { why: "x".into() })];
        let git = super::super::GitLocks { total: 3, locks, ..super::super::GitLocks::default() };
        let remains = Some(Remains { git, ..Remains::default() });
        let forced = Receipt { mode: KillMode::Force, steps: vec![killed], terminated: 0, killed: 3, ..plain.clone() };
        for (receipt, line) in [
            (plain.clone(), "SIGTERM to 1 process, no cgroup.kill needed, 0 survivors, 2 ms"),
            (forced.clone(), "cgroup.kill of 3 processes, 0 survivors, 2 ms"),
            (
                Receipt { terminated: 2, escapees: vec![escapee.clone()], ..forced.clone() },
                "SIGTERM to 2 processes, forced, cgroup.kill of 3 processes, 0 survivors, 2 ms, 1 escapee",
            ),
            (
                Receipt {
                    containment: Containment::Subtree,
                    proved: false,
                    survivors: 1,
                    escapees: vec![escapee.clone(), escapee],
                    ..forced
                },
                "SIGKILL to 3 processes, 1 survivor found, 2 ms, 2 escapees",
            ),
            (
                Receipt { remains, ..plain.clone() },
                "SIGTERM to 1 process, no cgroup.kill needed, 0 survivors, 2 ms, 2 git locks left, 1 git lock removed",
            ),
        ] {
            assert_eq!(receipt.to_string(), line);
        }
        let seen = ProcessSeen { pid: 7, command: "sleep 9".into(), ..ProcessSeen::default() };
        let mut short = Receipt { processes: vec![seen], ..plain };
        short.shorten();
        assert_eq!((short.processes[0].pid, short.processes[0].command.as_str()), (7, ""));
    }

    #[test]
    fn a_kill_mode_is_said_as_it_is_read_and_an_actor_by_name() {
        for mode in [KillMode::Graceful, KillMode::Force] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!(KillMode::Force.as_str(), "force");
        let said = |text: &str| KillReason::Requested { text: text.into() }.to_string();
        assert_eq!([said("enough"), said("")], ["enough", "asked for, without a reason"]);
        let refused = "soft".parse::<KillMode>().unwrap_err();
        assert_eq!(refused, "\"soft\" is not a kill mode: use graceful or force");
        let ann = Actor::User { uid: 5, name: "ann".into() };
        assert_eq!((ann.to_string().as_str(), ann.uid()), ("ann", Some(5)));
        assert_eq!((Actor::Guardian.to_string().as_str(), Actor::Guardian.uid()), ("guardian", None));
    }
}
