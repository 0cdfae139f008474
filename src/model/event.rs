//! Audit events: what is kept for ever, or as long as retention says.

use serde::{Deserialize, Serialize};

use super::{Actor, RunId, Wall};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $id:literal;)*) => {
        /// What happened. Each kind has its own journal MESSAGE_ID, so that `journalctl MESSAGE_ID=…` finds all of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum EventKind { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [EventKind] = &[$(EventKind::$name),*];

            /// The name in the database, on D-Bus and in the journal.
            pub const fn as_str(self) -> &'static str {
                match self { $(EventKind::$name => $text,)* }
            }

            /// The journal's MESSAGE_ID: 32 hexadecimal digits.
            pub const fn message_id(self) -> &'static str {
                match self { $(EventKind::$name => $id,)* }
            }
        }
    };
}

kinds! {
    /// An instance began to serve.
    InstanceStarted = "instance_started", "5be7a1f0c1d04c1e8f3c6d0b6c0a1001";
    /// An instance stopped by request or because it was idle.
    InstanceStopped = "instance_stopped", "5be7a1f0c1d04c1e8f3c6d0b6c0a1002";
    /// The database was unreadable and was set aside; a new one was begun.
    StoreSetAside = "store_set_aside", "5be7a1f0c1d04c1e8f3c6d0b6c0a1003";
    /// Old rows were removed by retention; the chain goes on from the hash given.
    AuditPruned = "audit_pruned", "5be7a1f0c1d04c1e8f3c6d0b6c0a1004";
    /// The configuration was read anew.
    ConfigReloaded = "config_reloaded", "5be7a1f0c1d04c1e8f3c6d0b6c0a1005";
    /// A cgroup where ours are, or a shim on record, that cannot be proved ours: left alone.
    ForeignCgroup = "foreign_cgroup", "5be7a1f0c1d04c1e8f3c6d0b6c0a1006";
    /// A launch was accepted.
    RunAccepted = "run_accepted", "5be7a1f0c1d04c1e8f3c6d0b6c0a2001";
    /// As many runs as may run at once do so: the run waits for its turn.
    RunQueued = "run_queued", "5be7a1f0c1d04c1e8f3c6d0b6c0a2013";
    /// The process was seen in the run's cgroup and its gate may open.
    RunStarted = "run_started", "5be7a1f0c1d04c1e8f3c6d0b6c0a2002";
    /// The run is ready.
    RunReady = "run_ready", "5be7a1f0c1d04c1e8f3c6d0b6c0a2003";
    /// The launch failed; nothing was executed.
    LaunchFailed = "launch_failed", "5be7a1f0c1d04c1e8f3c6d0b6c0a2004";
    /// A restarted instance found the run and took it up again.
    RunAdopted = "run_adopted", "5be7a1f0c1d04c1e8f3c6d0b6c0a2005";
    /// The main process exited.
    MainExited = "main_exited", "5be7a1f0c1d04c1e8f3c6d0b6c0a2006";
    /// 80 % of a limit's time has passed.
    LimitWarning = "limit_warning", "5be7a1f0c1d04c1e8f3c6d0b6c0a2007";
    /// A limit was extended.
    LimitExtended = "limit_extended", "5be7a1f0c1d04c1e8f3c6d0b6c0a2008";
    /// The time of a rule is over, and the rule does not end the run: it warns, or would end it but for `dry_run`.
    Verdict = "verdict", "5be7a1f0c1d04c1e8f3c6d0b6c0a2010";
    /// The run became healthy, or is not so any more, or is worse or better than it was.
    HealthChanged = "health_changed", "5be7a1f0c1d04c1e8f3c6d0b6c0a2011";
    /// A process that carries the run's mark was found outside of what contains the run.
    EscapeeFound = "escapee_found", "5be7a1f0c1d04c1e8f3c6d0b6c0a2012";
    /// A run that has sent heartbeats sends none any more.
    HeartbeatLate = "heartbeat_late", "5be7a1f0c1d04c1e8f3c6d0b6c0a200b";
    /// The run was frozen.
    RunFrozen = "run_frozen", "5be7a1f0c1d04c1e8f3c6d0b6c0a2009";
    /// The run was thawed.
    RunThawed = "run_thawed", "5be7a1f0c1d04c1e8f3c6d0b6c0a200a";
    /// The intent of a kill; on record before the first signal.
    KillIntent = "kill_intent", "5be7a1f0c1d04c1e8f3c6d0b6c0a3001";
    /// SIGTERM and SIGCONT were sent.
    KillTerminated = "kill_terminated", "5be7a1f0c1d04c1e8f3c6d0b6c0a3002";
    /// A graceful kill became a forced one.
    KillEscalated = "kill_escalated", "5be7a1f0c1d04c1e8f3c6d0b6c0a3003";
    /// Everything in the run was sent SIGKILL, by `cgroup.kill` or one by one.
    RunKilled = "run_killed", "5be7a1f0c1d04c1e8f3c6d0b6c0a3004";
    /// The run is still not empty 60 s after that.
    Unkillable = "unkillable", "5be7a1f0c1d04c1e8f3c6d0b6c0a3005";
    /// The shim of a run was killed: what is left of the run is found by its mark, and ended.
    ContainmentLost = "containment_lost", "5be7a1f0c1d04c1e8f3c6d0b6c0a3006";
    /// Systemd was asked by somebody else to stop the unit of a run.
    StoppedOutside = "stopped_outside", "5be7a1f0c1d04c1e8f3c6d0b6c0a3007";
    /// An escapee was to be ended: what became of it.
    EscapeeEnded = "escapee_ended", "5be7a1f0c1d04c1e8f3c6d0b6c0a3008";
    /// The run is over; with its outcome and, after a kill, its receipt.
    RunFinished = "run_finished", "5be7a1f0c1d04c1e8f3c6d0b6c0a2fff";
}

/// One entry of the audit log, before the store has numbered and chained it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When.
    pub at: Wall,
    /// What.
    pub kind: EventKind,
    /// Which run, if it is about one.
    pub run: Option<RunId>,
    /// That run's workflow.
    pub workflow: Option<String>,
    /// Who.
    pub actor: Actor,
    /// Why, in a sentence; empty where the kind says it all.
    pub reason: String,
    /// The rest, as a JSON object. Never environment variables.
    pub details: serde_json::Value,
}

/// One entry of the audit log as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Its number: 1, 2, 3, … without a gap.
    pub seq: u64,
    /// What was recorded.
    #[serde(flatten)]
    pub event: AuditEvent,
    /// SHA-256 over the previous row's hash and this row's content, in hexadecimal.
    pub hash: String,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_a_name_and_a_message_id_of_its_own() {
        let ids: HashSet<_> = EventKind::ALL.iter().map(|k| k.message_id()).collect();
        let names: HashSet<_> = EventKind::ALL.iter().map(|k| k.as_str()).collect();
        assert_eq!((ids.len(), names.len()), (EventKind::ALL.len(), EventKind::ALL.len()));
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
