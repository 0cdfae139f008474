//! Reading the wire form: what a client makes of the answers of an instance, which may be of another version.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{
    RemainsDict, RunDict, WireEscapee, WireHealth, WireReason, WireRule, WireStep, actor_from, processes_from,
};
use crate::model::{
    Action, CgroupIdentity, Cleanup, ContainerId, Containment, Error, Escapee, Fate, Health, HealthReason, Heartbeats,
    KillReason, LOCAL, Limits, Outcome, Phase, ProcessId, Progress, Queued, Readiness, Receipt, Refused, Resources,
    Rule, RunId, RunSpec, RunView, Sandbox, Step, StepKind, Usage, Wall, Watch,
};

/// Finds the value that is spelt like this.
fn named<T: Copy>(what: &str, text: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<T, Error> {
    all.iter().copied().find(|v| name(*v) == text).ok_or_else(|| unknown(what, text))
}

pub(super) fn unknown(what: &str, text: &str) -> Error {
    let text: String = text.chars().take(40).collect();
    Error::internal(format!(
        "the instance answered with the {what} {text:?}, which this version does not know: `guardian doctor` tells \
         both versions"
    ))
}

/// Reads a rule by any of its names.
fn rule_from(text: &str) -> Result<Rule, Error> {
    named("rule", text, &Rule::ALL, Rule::as_str)
}

/// Reads a containment by name.
pub fn containment_from(text: &str) -> Result<Containment, Error> {
    named("containment", text, &Containment::ALL, Containment::as_str)
}

/// Reads a phase by name.
pub fn phase_from(text: &str) -> Result<Phase, Error> {
    named("phase", text, &Phase::ALL, Phase::as_str)
}

/// Reads a health by name.
pub fn health_from(text: &str) -> Result<Health, Error> {
    named("health", text, &[Health::Healthy, Health::Warning, Health::Critical], Health::as_str)
}

fn step_from((kind, at, elapsed_usec, processes): WireStep) -> Result<Step, Error> {
    use StepKind::*;
    const KINDS: [StepKind; 8] =
        [IntentRecorded, IntentNotRecorded, Terminated, Escalated, Killed, Unkillable, Emptied, Resumed];
    let kind = named("step", &kind, &KINDS, StepKind::as_str)?;
    Ok(Step { kind, at: Wall(at), elapsed_usec, processes })
}

fn escapee_from((pid, start_ticks, name, cgroup, fate): WireEscapee) -> Result<Escapee, Error> {
    let fate = named("fate", &fate, &Fate::ALL, Fate::as_str)?;
    Ok(Escapee { process: ProcessId { pid, start_ticks }, name, cgroup, fate })
}

/// Reads the wire form of the reason of a kill.
pub fn reason_from((code, rule, allowed, text): WireReason) -> Result<KillReason, Error> {
    Ok(match code.as_str() {
        "limit" => KillReason::Limit { rule: rule_from(&rule)?, allowed: Duration::from_micros(allowed), seen: text },
        "requested" => KillReason::Requested { text },
        "client_gone" => KillReason::ClientGone,
        "containment_lost" => KillReason::ContainmentLost,
        "stopped_outside" => KillReason::StoppedOutside,
        "leftovers" => KillReason::Leftovers,
        "launch_incomplete" => KillReason::LaunchIncomplete,
        other => return Err(unknown("reason", other)),
    })
}

/// What an instance of an earlier version does not say is not applied by it.
fn watch_from(rules: Vec<WireRule>, dry_run: bool) -> Result<Watch, Error> {
    let mut watch = Watch { dry_run, ..Watch::default() };
    let agent = &mut watch.agent;
    for (rule, action, number) in rules {
        let action = Action::parse_of_heartbeats(&action).map_err(|_| unknown("action", &action))?;
        let number = (number != u64::MAX).then_some(number);
        let timeout = number.map(Duration::from_micros);
        match rule_from(&rule)? {
            Rule::InitTimeout => watch.init_action = action,
            Rule::MaxRuntime => watch.max_runtime_action = action,
            Rule::HeartbeatTimeout => (watch.heartbeat_action, watch.heartbeat_timeout) = (action, timeout),
            Rule::IdleTimeout => (watch.idle_action, watch.idle_timeout) = (action, timeout),
            Rule::SpinTimeout => (watch.spin_action, watch.spin_timeout) = (action, timeout),
            Rule::InputTimeout => (watch.input_action, watch.input_timeout) = (action, timeout),
            Rule::Escapees => watch.escapees = action,
            Rule::QueueTimeout => {}
            Rule::TurnTimeout => (agent.turn_action, agent.turn_timeout) = (action, timeout),
            Rule::Loop => (agent.loop_action, agent.loop_max) = (action, number),
            Rule::MaxTurns => (agent.max_turns_action, agent.max_turns) = (action, number),
            Rule::MaxTokens => (agent.max_tokens_action, agent.max_tokens) = (action, number),
            Rule::MaxCost => (agent.max_cost_action, agent.max_cost_micro_usd) = (action, number),
            Rule::PermissionTimeout => (agent.permission_action, agent.permission_timeout) = (action, timeout),
            Rule::Memory | Rule::Oom | Rule::Pressure | Rule::Leftovers | Rule::Unkillable => {}
        }
    }
    Ok(watch)
}

pub(in crate::bus) fn parsed<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Error> {
    text.parse().map_err(|e: T::Err| Error::internal(format!("the instance's answer cannot be read: {e}")))
}

impl RunDict {
    fn outcome(&mut self) -> Result<Option<Outcome>, Error> {
        let Some((kind, value, text)) = self.outcome.take().filter(|o| !o.0.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(match kind.as_str() {
            "exited" => Outcome::Exited { code: value },
            "signaled" => Outcome::Signaled { signal: value },
            "oom" => Outcome::Oom,
            "lost" => Outcome::Lost { why: text },
            "killed" => Outcome::Killed { reason: reason_from(self.outcome_reason.take().unwrap_or_default())? },
            other => return Err(unknown("outcome", other)),
        }))
    }

    fn receipt(&mut self, run: RunId, escapees: &[Escapee]) -> Result<Option<Receipt>, Error> {
        let Some(mode) = self.kill_mode.take().filter(|m| !m.is_empty()) else {
            return Ok(None);
        };
        let steps = self.kill_steps.take().unwrap_or_default();
        Ok(Some(Receipt {
            run,
            mode: parsed(&mode)?,
            reason: reason_from(self.kill_reason.take().unwrap_or_default())?,
            actor: actor_from(self.kill_actor.take().unwrap_or_default()),
            requested_at: Wall(self.kill_timestamp_usec.unwrap_or_default()),
            duration_usec: self.kill_duration_usec.unwrap_or_default(),
            steps: steps.into_iter().map(step_from).collect::<Result<_, _>>()?,
            terminated: self.kill_terminated.unwrap_or_default(),
            killed: self.kill_killed.unwrap_or_default(),
            containment: containment_from(&self.containment)?,
            proved: self.kill_proved.unwrap_or_default(),
            survivors: self.kill_survivors.unwrap_or_default(),
            processes: processes_from(self.kill_processes.take().unwrap_or_default()),
            processes_total: self.kill_processes_total.unwrap_or_default(),
            escapees: escapees.to_vec(),
            growth: None,
            remains: self.kill_remains.take().map_or(Ok(None), RemainsDict::read)?,
            explanation: self.kill_explanation.take().unwrap_or_default(),
        }))
    }
}

impl TryFrom<RunDict> for RunView {
    type Error = Error;

    fn try_from(mut d: RunDict) -> Result<Self, Error> {
        let id: RunId = parsed(&d.run_id)?;
        let escapees = d.escapees.take().unwrap_or_default();
        let escapees = escapees.into_iter().map(escapee_from).collect::<Result<Vec<_>, Error>>()?;
        let (outcome, receipt) = (d.outcome()?, d.receipt(id, &escapees)?);
        let process = |p: Option<(u32, u64)>| p.map(|(pid, start_ticks)| ProcessId { pid, start_ticks });
        let duration = |u: Option<u64>| u.filter(|u| *u != u64::MAX).map(Duration::from_micros);
        let wall = |u: Option<u64>| u.filter(|u| *u != 0).map(Wall);
        let reason = |(rule, level, text, since): WireHealth| {
            Ok(HealthReason { rule: rule_from(&rule)?, level: health_from(&level)?, text, since: Wall(since) })
        };
        let cgroup =
            d.control_group.filter(|p| !p.is_empty()).map(PathBuf::from).map(|path| {
                ContainerId::Cgroup(CgroupIdentity { path, inode: d.control_group_inode.unwrap_or_default() })
            });
        let shim = process(d.shim_process);
        let subtree = d.shim_record.filter(|p| !p.is_empty()).map(PathBuf::from);
        let container =
            cgroup.or_else(|| subtree.map(|record| ContainerId::Subtree { shim, record, foster_parent: None }));
        Ok(RunView {
            spec: RunSpec {
                id,
                workflow: d.workflow,
                executor: d.executor.filter(|name| !name.is_empty()).unwrap_or_else(|| LOCAL.to_owned()),
                name: d.name.filter(|n| !n.is_empty()),
                command: d.command,
                cwd: d.working_directory,
                uid: d.uid,
                user: d.user,
                main: process(d.main_process),
                client: process(d.client_process),
                containment: containment_from(&d.containment)?,
                limits: Limits {
                    max_running: None,
                    queue_timeout: duration(d.queue_timeout_usec),
                    init_timeout: duration(d.init_timeout_usec),
                    max_runtime: duration(d.max_runtime_usec),
                    watch: watch_from(d.rules.unwrap_or_default(), d.dry_run.unwrap_or_default())?,
                    grace: Duration::from_micros(d.grace_usec),
                    readiness: parsed::<Readiness>(&d.readiness)?,
                    resources: Resources {
                        memory_max_bytes: d.memory_max_bytes,
                        tasks_max: d.tasks_max,
                        cpu_max_percent: d.cpu_max_percent,
                    },
                    isolate_pids: d.isolate_pids.unwrap_or_default(),
                    cleanup: Cleanup { git_locks: d.cleanup_git_locks.unwrap_or_default() },
                    sandbox: d.sandbox.as_deref().map_or(Ok(Sandbox::default()), parsed::<Sandbox>)?,
                    credentials: Vec::new(),
                },
                log: d.log_path.filter(|p| !p.is_empty()).map(PathBuf::from),
            },
            phase: phase_from(&d.phase)?,
            health: health_from(&d.health)?,
            reasons: d.health_reasons.unwrap_or_default().into_iter().map(reason).collect::<Result<_, Error>>()?,
            container,
            frozen: d.frozen.unwrap_or_default(),
            created_at: Wall(d.create_timestamp_usec),
            started_at: wall(d.start_timestamp_usec),
            ready_at: wall(d.ready_timestamp_usec),
            finished_at: wall(d.finish_timestamp_usec),
            deadlines: (d.deadlines.unwrap_or_default().into_iter())
                .map(|(rule, at)| Ok((rule_from(&rule)?, Wall(at))))
                .collect::<Result<_, Error>>()?,
            outcome,
            receipt,
            queued: d.queue_position.filter(|n| *n > 0).map(|position| Queued {
                place: 0,
                position,
                of: d.queue_length.unwrap_or_default(),
                why: d.queue_reason.unwrap_or_default(),
            }),
            usage: Usage {
                cpu_usec: d.cpu_usage_nsec.map(|n| n / 1000),
                memory_bytes: d.memory_current_bytes,
                memory_peak_bytes: d.memory_peak_bytes,
                tasks: d.tasks_current,
                io_read_bytes: d.io_read_bytes,
                io_write_bytes: d.io_write_bytes,
                activity_bytes: d.activity_bytes,
            },
            heartbeats: Heartbeats {
                total: d.heartbeats_total.unwrap_or_default(),
                last_at: wall(d.last_heartbeat_timestamp_usec),
                status: d.status_text.unwrap_or_default(),
                stopping: d.says_stopping.unwrap_or_default(),
                errno: d.status_errno.filter(|e| *e != 0),
                refused: Refused {
                    foreign: d.notify_foreign.unwrap_or_default(),
                    flooded: d.notify_flooded.unwrap_or_default(),
                    too_long: d.notify_too_long.unwrap_or_default(),
                },
            },
            progress: d.progress.map(Progress::from),
            escapees,
            notices: d.notices.unwrap_or_default(),
        })
    }
}
