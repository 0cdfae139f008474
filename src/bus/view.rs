//! The wire form of a run's view, `a{sv}`, both ways: what ListRuns, ShowRun and WaitRun answer with, and the names of
//! the properties of `org.guardian.Guardian1.Run`.
//!
//! A key that is absent and a key with the empty value say the same: 0 for a time that has not come, the empty string
//! for a text there is not, the greatest number for a limit that is off and for a counter the kernel does not tell.
//! Times are microseconds since 1970-01-01 UTC. Struct-shaped values:
//! rules `(rule, action, timeout_usec or number)`, reasons `(rule, level, text, since)`, deadlines `(rule, at)`, why `(code, rule, allowed_usec, text)`,
//! outcome `(kind, exit code or signal, text)`, actor `(uid, name)` with the greatest uid for the instance itself,
//! escapees `(pid, start_ticks, name, cgroup, fate)`, steps `(kind, at, elapsed_usec, processes)`, processes `(pid, ppid, name, state, wchan)`.

use std::time::Duration;

use zbus::{DeserializeDict, SerializeDict, Type};

mod read;

pub(super) use read::parsed;
pub use read::{containment_from, health_from, phase_from, reason_from};

use super::wire::{self, Entry};
use crate::model::{
    Actor, CgroupIdentity, ContainerId, Error, Escapee, ExitStatus, HealthReason, KillAnswer, KillReason, Outcome,
    ProcessSeen, Receipt, Rule, RunSpec, RunView, Usage, Wall,
};

/// `(code, rule, allowed_usec, text)`: a [`KillReason`].
pub type WireReason = (String, String, u64, String);
/// `(kind, value, text)`: an [`Outcome`]. The reason of a kill is in `KillReason`.
pub type WireOutcome = (String, i32, String);
/// `(uid, name)`: an [`Actor`]; [`u32::MAX`] is the instance itself.
pub type WireActor = (u32, String);
/// `(kind, at, elapsed_usec, processes)`: a [`Step`].
pub type WireStep = (String, u64, u64, u32);
/// `(pid, ppid, name, state, wchan)`: a [`ProcessSeen`].
pub type WireProcess = (u32, u32, String, String, String);
/// `(rule, action, timeout in µs)`: a rule whose action can be chosen; for one that counts, its number in the place of a time; the
/// greatest number for one that is off or has neither.
pub type WireRule = (String, String, u64);
/// `(pid, start, name, cgroup, what became of it)`: an [`Escapee`].
pub type WireEscapee = (u32, u64, String, String, String);
/// `(rule, level, text, since)`: a [`HealthReason`].
pub type WireHealth = (String, String, String, u64);

// The types are matched as tokens: the derive must see that an `Option` is one.
macro_rules! dict {
    ($(#[$doc:meta])* $name:ident { $($key:literal $field:ident: [$($type:tt)+],)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
        #[zbus(signature = "a{sv}")]
        pub struct $name {
            $(#[zbus(rename = $key)] $field: $($type)+,)*
        }

        impl wire::Listed for $name {
            fn put_entries(&self, w: &mut wire::Writer) {
                $(self.$field.put_entry($key, w);)*
            }

            fn take_entry(&mut self, key: &str, signature: &str, r: &mut wire::Reader<'_>) -> Option<()> {
                match key {
                    $($key => self.$field.take_value(signature, r),)*
                    _ => None,
                }
            }
        }
    };
}

/// Makes of a dictionary one that can be within another, and the value of a property.
macro_rules! within {
    ($name:ident) => {
        impl wire::Value for $name {
            const CODE: &'static str = "a{sv}";
            const ALIGN: usize = 4;

            fn put(&self, w: &mut wire::Writer) {
                w.array(8, |w| wire::Listed::put_entries(self, w));
            }

            fn take(r: &mut wire::Reader<'_>) -> Option<Self> {
                let mut dict = Self::default();
                r.array(8, |r| {
                    let (key, signature) = r.entry()?;
                    wire::Listed::take_entry(&mut dict, key, signature, r)
                })?;
                Some(dict)
            }
        }

        impl $name {
            /// The same as the value of a property.
            pub fn property(&self) -> std::collections::HashMap<String, zbus::OwnedVariant> {
                let context = zbus::wire::serialized::Context::new(zbus::wire::NATIVE_ENDIAN, 0);
                // Texts and numbers: what is written can be read.
                let read = zbus::wire::to_bytes(context, self).and_then(|bytes| bytes.deserialize());
                read.map(|(read, _)| read).unwrap_or_default()
            }
        }
    };
}

// After the macros that they use.
mod progress;
mod remains;

pub use progress::ProgressDict;
pub use remains::RemainsDict;

dict! {
    /// A run as `a{sv}`.
    RunDict {
        "RunID" run_id: [String],
        "Workflow" workflow: [String],
        "Executor" executor: [Option<String>],
        "Name" name: [Option<String>],
        "Command" command: [Vec<String>],
        "WorkingDirectory" working_directory: [String],
        "UID" uid: [u32],
        "User" user: [String],
        "MainProcess" main_process: [Option<(u32, u64)>],
        "ClientProcess" client_process: [Option<(u32, u64)>],
        "QueueTimeoutUSec" queue_timeout_usec: [Option<u64>],
        "InitTimeoutUSec" init_timeout_usec: [Option<u64>],
        "MaxRuntimeUSec" max_runtime_usec: [Option<u64>],
        "Rules" rules: [Option<Vec<WireRule>>],
        "DryRun" dry_run: [Option<bool>],
        "GraceUSec" grace_usec: [u64],
        "Readiness" readiness: [String],
        "MemoryMaxBytes" memory_max_bytes: [Option<u64>],
        "TasksMax" tasks_max: [Option<u64>],
        "CPUMaxPercent" cpu_max_percent: [Option<u32>],
        "IsolatePIDs" isolate_pids: [Option<bool>],
        "CleanupGitLocks" cleanup_git_locks: [Option<bool>],
        "Sandbox" sandbox: [Option<String>],
        "LogPath" log_path: [Option<String>],
        "Phase" phase: [String],
        "QueuePosition" queue_position: [Option<u32>],
        "QueueLength" queue_length: [Option<u32>],
        "QueueReason" queue_reason: [Option<String>],
        "Health" health: [String],
        "HealthReasons" health_reasons: [Option<Vec<WireHealth>>],
        "Containment" containment: [String],
        "ControlGroup" control_group: [Option<String>],
        "ControlGroupInode" control_group_inode: [Option<u64>],
        "ShimProcess" shim_process: [Option<(u32, u64)>],
        "ShimRecord" shim_record: [Option<String>],
        "Frozen" frozen: [Option<bool>],
        "CreateTimestampUSec" create_timestamp_usec: [u64],
        "StartTimestampUSec" start_timestamp_usec: [Option<u64>],
        "ReadyTimestampUSec" ready_timestamp_usec: [Option<u64>],
        "FinishTimestampUSec" finish_timestamp_usec: [Option<u64>],
        "Deadlines" deadlines: [Option<Vec<(String, u64)>>],
        "Outcome" outcome: [Option<WireOutcome>],
        "OutcomeReason" outcome_reason: [Option<WireReason>],
        "KillMode" kill_mode: [Option<String>],
        "KillReason" kill_reason: [Option<WireReason>],
        "KillActor" kill_actor: [Option<WireActor>],
        "KillTimestampUSec" kill_timestamp_usec: [Option<u64>],
        "KillDurationUSec" kill_duration_usec: [Option<u64>],
        "KillSteps" kill_steps: [Option<Vec<WireStep>>],
        "KillTerminated" kill_terminated: [Option<u32>],
        "KillKilled" kill_killed: [Option<u32>],
        "KillProved" kill_proved: [Option<bool>],
        "KillSurvivors" kill_survivors: [Option<u32>],
        "KillProcesses" kill_processes: [Option<Vec<WireProcess>>],
        "KillProcessesTotal" kill_processes_total: [Option<u32>],
        "KillExplanation" kill_explanation: [Option<String>],
        "KillRemains" kill_remains: [Option<RemainsDict>],
        "CPUUsageNSec" cpu_usage_nsec: [Option<u64>],
        "MemoryCurrentBytes" memory_current_bytes: [Option<u64>],
        "MemoryPeakBytes" memory_peak_bytes: [Option<u64>],
        "TasksCurrent" tasks_current: [Option<u64>],
        "IOReadBytes" io_read_bytes: [Option<u64>],
        "IOWriteBytes" io_write_bytes: [Option<u64>],
        "ActivityBytes" activity_bytes: [Option<u64>],
        "HeartbeatsTotal" heartbeats_total: [Option<u64>],
        "LastHeartbeatTimestampUSec" last_heartbeat_timestamp_usec: [Option<u64>],
        "StatusText" status_text: [Option<String>],
        "StatusErrno" status_errno: [Option<i32>],
        "SaysStopping" says_stopping: [Option<bool>],
        "NotifyForeign" notify_foreign: [Option<u64>],
        "NotifyFlooded" notify_flooded: [Option<u64>],
        "NotifyTooLong" notify_too_long: [Option<u64>],
        "Progress" progress: [Option<ProgressDict>],
        "Escapees" escapees: [Option<Vec<WireEscapee>>],
        "Notices" notices: [Option<Vec<String>>],
    }
}

/// Microseconds, for the wire.
pub fn usec(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX - 1)
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// The wire form of reasons why a run is not healthy.
pub fn health_reasons(view: &RunView) -> Vec<WireHealth> {
    let wire = |r: &HealthReason| (r.rule.as_str().into(), r.level.as_str().into(), r.text.clone(), r.since.0);
    view.reasons.iter().map(wire).collect()
}

/// The wire form of the rules whose action can be chosen.
pub fn rules(view: &RunView) -> Vec<WireRule> {
    let limits = &view.spec.limits;
    let wire = |rule: Rule| {
        let (action, timeout) = limits.rule(rule)?;
        let allowed = timeout.map(usec).or(limits.number(rule));
        Some((rule.as_str().into(), action.as_str().into(), allowed.unwrap_or(u64::MAX)))
    };
    Rule::ALL.into_iter().filter_map(wire).collect()
}

/// The wire form of escapees.
pub fn escapees(view: &RunView) -> Vec<WireEscapee> {
    let wire = |e: &Escapee| {
        (e.process.pid, e.process.start_ticks, e.name.clone(), e.cgroup.clone(), e.fate.as_str().to_owned())
    };
    view.escapees.iter().map(wire).collect()
}

/// The wire form of processes.
pub fn processes(seen: &[ProcessSeen]) -> Vec<WireProcess> {
    let wire = |p: &ProcessSeen| {
        (p.pid, p.ppid, p.name.clone(), p.state.to_string(), p.wchan.as_deref().unwrap_or_default().to_owned())
    };
    seen.iter().map(wire).collect()
}

/// Reads the wire form of processes.
pub fn processes_from(wire: Vec<WireProcess>) -> Vec<ProcessSeen> {
    let read = |(pid, ppid, name, state, wchan): WireProcess| ProcessSeen {
        pid,
        ppid,
        name,
        state: state.chars().next().unwrap_or('?'),
        wchan: (!wchan.is_empty()).then_some(wchan),
        ..ProcessSeen::default()
    };
    wire.into_iter().map(read).collect()
}

/// The cgroup of a run, if one contains it.
pub fn cgroup(view: &RunView) -> Option<&CgroupIdentity> {
    view.container.as_ref().and_then(ContainerId::cgroup)
}

/// The shim of a run, if one contains it: `(pid, start ticks)`.
pub fn shim(view: &RunView) -> Option<(u32, u64)> {
    view.container.as_ref().and_then(ContainerId::shim).map(|p| (p.pid, p.start_ticks))
}

/// The file that a run's shim keeps.
pub fn shim_record(view: &RunView) -> Option<String> {
    match &view.container {
        Some(ContainerId::Subtree { record, .. }) => Some(record.to_string_lossy().into_owned()),
        Some(ContainerId::Cgroup(_)) | None => None,
    }
}

/// The wire form of deadlines.
pub fn deadlines(view: &RunView) -> Vec<(String, u64)> {
    view.deadlines.iter().map(|(rule, at)| (rule.as_str().into(), at.0)).collect()
}

/// The wire form of an outcome.
pub fn outcome(outcome: &Outcome) -> WireOutcome {
    let (value, text) = match outcome {
        Outcome::Exited { code } => (*code, String::new()),
        Outcome::Signaled { signal } => (*signal, String::new()),
        Outcome::Killed { .. } | Outcome::Oom => (0, String::new()),
        Outcome::Lost { why } => (0, why.clone()),
    };
    (outcome.code().into(), value, text)
}

/// The wire form of the reason of a kill.
pub fn reason(reason: &KillReason) -> WireReason {
    let (rule, allowed, text) = match reason {
        KillReason::Limit { rule, allowed, seen } => (rule.as_str(), usec(*allowed), seen.as_str()),
        KillReason::Requested { text } => ("", 0, text.as_str()),
        KillReason::ClientGone
        | KillReason::Leftovers
        | KillReason::LaunchIncomplete
        | KillReason::ContainmentLost
        | KillReason::StoppedOutside => ("", 0, ""),
    };
    let code = if rule.is_empty() { reason.code() } else { "limit" };
    (code.into(), rule.into(), allowed, text.into())
}

/// The wire form of an actor.
pub fn actor(actor: &Actor) -> WireActor {
    match actor {
        Actor::Guardian => (u32::MAX, "guardian".into()),
        Actor::User { uid, name } => (*uid, name.clone()),
    }
}

/// Reads the wire form of an actor.
pub fn actor_from((uid, name): WireActor) -> Actor {
    if uid == u32::MAX { Actor::Guardian } else { Actor::User { uid, name } }
}

/// The wire form of the steps of a kill.
pub fn steps(receipt: &Receipt) -> Vec<WireStep> {
    receipt.steps.iter().map(|s| (s.kind.as_str().into(), s.at.0, s.elapsed_usec, s.processes)).collect()
}

impl From<&RunView> for RunDict {
    fn from(v: &RunView) -> Self {
        Self::with_usage(v, v.usage)
    }
}

impl RunDict {
    /// A run with what it uses now, which live views do not hold.
    pub fn with_usage(v: &RunView, usage: Usage) -> Self {
        let RunSpec { limits, .. } = &v.spec;
        let receipt = v.receipt.as_ref();
        let said = &v.heartbeats;
        let positive = |n: u64| (n > 0).then_some(n);
        Self {
            run_id: v.spec.id.to_string(),
            workflow: v.spec.workflow.clone(),
            executor: Some(v.spec.executor.clone()),
            name: v.spec.name.clone(),
            command: v.spec.command.clone(),
            working_directory: v.spec.cwd.clone(),
            uid: v.spec.uid,
            user: v.spec.user.clone(),
            main_process: v.spec.main.map(|p| (p.pid, p.start_ticks)),
            client_process: v.spec.client.map(|p| (p.pid, p.start_ticks)),
            queue_timeout_usec: limits.queue_timeout.map(usec),
            init_timeout_usec: limits.init_timeout.map(usec),
            max_runtime_usec: limits.max_runtime.map(usec),
            rules: some(rules(v)),
            dry_run: limits.watch.dry_run.then_some(true),
            grace_usec: usec(limits.grace),
            readiness: limits.readiness.as_str().into(),
            memory_max_bytes: limits.resources.memory_max_bytes,
            tasks_max: limits.resources.tasks_max,
            cpu_max_percent: limits.resources.cpu_max_percent,
            isolate_pids: limits.isolate_pids.then_some(true),
            cleanup_git_locks: limits.cleanup.git_locks.then_some(true),
            sandbox: Some(limits.sandbox.as_str().into()),
            log_path: v.spec.log.as_ref().map(|p| p.to_string_lossy().into_owned()),
            phase: v.phase.as_str().into(),
            queue_position: v.queued.as_ref().map(|q| q.position),
            queue_length: v.queued.as_ref().map(|q| q.of),
            queue_reason: v.queued.as_ref().map(|q| q.why.clone()),
            health: v.health.as_str().into(),
            health_reasons: some(health_reasons(v)),
            containment: v.spec.containment.as_str().into(),
            control_group: cgroup(v).map(|c| c.path.to_string_lossy().into_owned()),
            control_group_inode: cgroup(v).map(|c| c.inode),
            shim_process: shim(v),
            shim_record: shim_record(v),
            frozen: v.frozen.then_some(true),
            create_timestamp_usec: v.created_at.0,
            start_timestamp_usec: v.started_at.map(|w| w.0),
            ready_timestamp_usec: v.ready_at.map(|w| w.0),
            finish_timestamp_usec: v.finished_at.map(|w| w.0),
            deadlines: some(deadlines(v)),
            outcome: v.outcome.as_ref().map(outcome),
            outcome_reason: match &v.outcome {
                Some(Outcome::Killed { reason: why }) => Some(reason(why)),
                _ => None,
            },
            kill_mode: receipt.map(|r| r.mode.as_str().into()),
            kill_reason: receipt.map(|r| reason(&r.reason)),
            kill_actor: receipt.map(|r| actor(&r.actor)),
            kill_timestamp_usec: receipt.map(|r| r.requested_at.0),
            kill_duration_usec: receipt.map(|r| r.duration_usec),
            kill_steps: receipt.map(steps),
            kill_terminated: receipt.map(|r| r.terminated),
            kill_killed: receipt.map(|r| r.killed),
            kill_proved: receipt.map(|r| r.proved),
            kill_survivors: receipt.map(|r| r.survivors),
            kill_processes: receipt.map(|r| processes(&r.processes)),
            kill_processes_total: receipt.map(|r| r.processes_total),
            kill_explanation: receipt.map(|r| r.explanation.clone()).filter(|text| !text.is_empty()),
            kill_remains: receipt.and_then(|r| r.remains.as_ref()).map(RemainsDict::from),
            cpu_usage_nsec: usage.cpu_usec.map(|u| u.saturating_mul(1000)),
            memory_current_bytes: usage.memory_bytes,
            memory_peak_bytes: usage.memory_peak_bytes,
            tasks_current: usage.tasks,
            io_read_bytes: usage.io_read_bytes,
            io_write_bytes: usage.io_write_bytes,
            activity_bytes: usage.activity_bytes,
            heartbeats_total: positive(said.total),
            last_heartbeat_timestamp_usec: said.last_at.map(|w| w.0),
            status_text: (!said.status.is_empty()).then(|| said.status.clone()),
            status_errno: said.errno,
            says_stopping: said.stopping.then_some(true),
            notify_foreign: positive(said.refused.foreign),
            notify_flooded: positive(said.refused.flooded),
            notify_too_long: positive(said.refused.too_long),
            progress: v.progress.as_ref().map(ProgressDict::from),
            escapees: some(escapees(v)),
            notices: some(v.notices.clone()),
        }
    }
}

/// A kill's answer as `a{sv}`.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct KillDict {
    #[zbus(rename = "RunID")]
    run_id: String,
    kill_mode: String,
    kill_reason: WireReason,
    kill_actor: WireActor,
    #[zbus(rename = "KillTimestampUSec")]
    kill_timestamp_usec: u64,
}

impl From<&KillAnswer> for KillDict {
    fn from(a: &KillAnswer) -> Self {
        Self {
            run_id: a.run.to_string(),
            kill_mode: a.mode.as_str().into(),
            kill_reason: reason(&a.reason),
            kill_actor: actor(&a.actor),
            kill_timestamp_usec: a.requested_at.0,
        }
    }
}

impl TryFrom<KillDict> for KillAnswer {
    type Error = Error;

    fn try_from(d: KillDict) -> Result<Self, Error> {
        Ok(KillAnswer {
            run: parsed(&d.run_id)?,
            mode: parsed(&d.kill_mode)?,
            reason: reason_from(d.kill_reason)?,
            actor: actor_from(d.kill_actor),
            requested_at: Wall(d.kill_timestamp_usec),
        })
    }
}

/// The kind and value of ReportExit.
pub fn exit_status(status: ExitStatus) -> (&'static str, i32) {
    match status {
        ExitStatus::Exited(code) => ("exited", code),
        ExitStatus::Signaled(signal) => ("signaled", signal),
    }
}

/// Reads the kind and value of ReportExit.
pub fn exit_status_from(kind: &str, value: i32) -> Result<ExitStatus, Error> {
    match (kind, value) {
        ("exited", 0..=255) => Ok(ExitStatus::Exited(value)),
        ("signaled", 1..=64) => Ok(ExitStatus::Signaled(value)),
        _ => Err(Error::invalid(format!(
            "an exit is `exited` with a code of 0 to 255, or `signaled` with a signal of 1 to 64, not {:?} with {value}",
            kind.chars().take(20).collect::<String>()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use zbus::wire::{NATIVE_ENDIAN, serialized::Context, to_bytes};

    use super::*;
    use crate::model::{GitLocks, LockFate, OpenFile, Remains};

    fn remains_in_full() -> RemainsDict {
        let s = || "tëxt".to_owned();
        let lock = |fate| crate::model::GitLock { path: s(), fate };
        let locks = vec![lock(LockFate::Stale), lock(LockFate::Removed), lock(LockFate::LeftAlone { why: s() })];
        RemainsDict::from(&Remains {
            others: s(),
            files: vec![OpenFile { path: s(), size_bytes: None, pid: 7, name: s() }],
            files_total: 20,
            git: GitLocks { locks, total: 3, not_looked_at: Vec::new() },
            not_looked_at: vec![s()],
        })
    }

    fn full() -> RunDict {
        let s = || "tëxt".to_owned();
        RunDict {
            run_id: s(),
            command: vec![s(), String::new()],
            main_process: Some((1, 2)),
            rules: Some(vec![(s(), s(), 8), (s(), String::new(), u64::MAX)]),
            escapees: Some(vec![(7, 8, s(), String::new(), s())]),
            grace_usec: 7,
            health_reasons: Some(vec![(s(), s(), s(), 3), (s(), s(), String::new(), 4)]),
            frozen: Some(true),
            deadlines: Some(vec![(s(), 1)]),
            outcome: Some((s(), -1, s())),
            outcome_reason: Some((s(), s(), 9, s())),
            kill_actor: Some((u32::MAX, s())),
            kill_steps: Some(vec![(s(), 1, 2, 3)]),
            kill_processes: Some(vec![(1, 2, s(), s(), s())]),
            kill_killed: Some(5),
            kill_remains: Some(remains_in_full()),
            progress: Some(ProgressDict::from(&crate::model::Progress {
                session: Some(s()),
                turns: 7,
                cost_micro_usd: Some(9),
                ..crate::model::Progress::default()
            })),
            ..RunDict::default()
        }
    }

    #[test]
    fn a_list_marshalled_by_hand_has_the_bytes_that_zbus_gives() {
        let dicts = vec![RunDict::default(), full(), RunDict::default(), full()];
        let by_hand = to_bytes(Context::new(NATIVE_ENDIAN, 0), &wire::Marshalled::of(dicts.clone())).unwrap();
        let by_zbus = to_bytes(Context::new(NATIVE_ENDIAN, 0), &dicts).unwrap();
        assert_eq!(by_hand.bytes(), by_zbus.bytes());
        assert_eq!(wire::list::<RunDict>(by_zbus.bytes()), Some(dicts));
    }

    #[test]
    fn a_list_that_is_cut_or_changed_is_never_more_than_refused() {
        let good = to_bytes(Context::new(NATIVE_ENDIAN, 0), &vec![full(), full()]).unwrap();
        for cut in 0..good.bytes().len() {
            assert_eq!(wire::list::<RunDict>(&good.bytes()[..cut]), None);
        }
        for at in 0..good.bytes().len() {
            let mut bad = good.bytes().to_vec();
            bad[at] = 0xff;
            let _ = wire::list::<RunDict>(&bad);
            // Whatever is still a list is one that zbus would have sent.
            bad[at] = 0;
            let sent =
                wire::list::<RunDict>(&bad).map(|dicts| to_bytes(Context::new(NATIVE_ENDIAN, 0), &dicts).is_ok());
            assert_ne!(sent, Some(false), "a NUL at {at}");
        }
    }
}
