//! The shapes of JSON, of the command line's `--json` and of HTTP alike: snake_case keys, durations in `*_usec`, each time
//! both as `*_usec` and as RFC 3339. Keys are added, never renamed or removed.

use serde_json::{Map, Value, json};

use crate::bus::client::AuditReport;
use crate::bus::client::{Description, Explained};
use crate::model::{
    AgentWatch, AuditRow, Day, Escapee, GitLock, Heartbeats, KillAnswer, Limits, Outcome, ProcessId, ProcessSeen,
    Progress, Receipt, Remains, RunView, Statistics, Suggested, Suggestion, Usage, UsageSample, Wall, is_unsafe,
};

fn usec(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// A time: RFC 3339 in UTC.
pub fn utc_time(at: Wall) -> String {
    let timestamp = i64::try_from(at.0).ok().and_then(|usec| jiff::Timestamp::from_microsecond(usec).ok());
    timestamp.map_or_else(|| at.0.to_string(), |t| t.to_string())
}

/// A time as `NAME` in RFC 3339 and `NAME_usec`.
fn time(into: &mut Map<String, Value>, name: &str, at: Option<Wall>) {
    into.insert(name.to_owned(), at.map(utc_time).into());
    into.insert(format!("{name}_usec"), at.map(|w| w.0).into());
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// A run.
pub fn run(view: &RunView) -> Value {
    let process = |p: Option<ProcessId>| p.map(|p| json!({"pid": p.pid, "start_ticks": p.start_ticks}));
    let reasons = view.reasons.iter().map(|r| {
        let mut o = object(json!({"rule": r.rule, "level": r.level, "text": r.text}));
        time(&mut o, "since", Some(r.since));
        Value::Object(o)
    });
    let deadlines = view.deadlines.iter().map(|(rule, at)| {
        let mut o = object(json!({"rule": rule}));
        time(&mut o, "at", Some(*at));
        Value::Object(o)
    });
    let mut o = object(json!({
        "run_id": view.spec.id,
        "workflow": view.spec.workflow,
        "name": view.spec.name,
        "command": view.spec.command,
        "working_directory": view.spec.cwd,
        "uid": view.spec.uid,
        "user": view.spec.user,
        "main_process": process(view.spec.main),
        "client_process": process(view.spec.client),
        "detached": view.spec.client.is_none(),
        "log_path": view.spec.log,
        "phase": view.phase,
        "health": view.health,
        "health_reasons": reasons.collect::<Vec<_>>(),
        "containment": view.spec.containment,
        "cgroup": view.container.as_ref().and_then(|c| c.cgroup()).map(|c| json!({"path": c.path, "inode": c.inode})),
        "shim": process(view.container.as_ref().and_then(|c| c.shim())),
        "frozen": view.frozen,
        "limits": limits(&view.spec.limits),
        "deadlines": deadlines.collect::<Vec<_>>(),
        "usage": usage(&view.usage),
        "outcome": view.outcome.as_ref().map(outcome),
        "exit_status": view.outcome.as_ref().map(Outcome::exit_status),
        "receipt": view.receipt.as_ref().map(receipt),
        "heartbeats": heartbeats(&view.heartbeats),
        "progress": view.progress.as_ref().map(progress),
        "escapees": escapees(&view.escapees),
        "notices": view.notices,
    }));
    let queue = view.queued.as_ref().map(|q| json!({"position": q.position, "length": q.of, "reason": q.why}));
    o.extend([("executor".to_owned(), view.spec.executor.as_str().into()), ("queue".to_owned(), queue.into())]);
    time(&mut o, "created_at", Some(view.created_at));
    time(&mut o, "started_at", view.started_at);
    time(&mut o, "ready_at", view.ready_at);
    time(&mut o, "finished_at", view.finished_at);
    Value::Object(o)
}

/// What a run is held to.
fn limits(limits: &Limits) -> Value {
    let mut o = object(json!({
        "queue_timeout_usec": limits.queue_timeout.map(usec),
        "init_timeout_usec": limits.init_timeout.map(usec),
        "max_runtime_usec": limits.max_runtime.map(usec),
        "heartbeat_timeout_usec": limits.watch.heartbeat_timeout.map(usec),
        "heartbeat_action": limits.watch.heartbeat_action,
        "init_action": limits.watch.init_action,
        "max_runtime_action": limits.watch.max_runtime_action,
        "idle_timeout_usec": limits.watch.idle_timeout.map(usec),
        "idle_action": limits.watch.idle_action,
        "spin_timeout_usec": limits.watch.spin_timeout.map(usec),
        "spin_action": limits.watch.spin_action,
        "input_timeout_usec": limits.watch.input_timeout.map(usec),
        "input_action": limits.watch.input_action,
        "escapees": limits.watch.escapees,
        "pressure_max_percent": limits.watch.pressure_max_percent,
        "dry_run": limits.watch.dry_run,
        "grace_usec": usec(limits.grace),
        "readiness": limits.readiness,
        "memory_max_bytes": limits.resources.memory_max_bytes,
        "tasks_max": limits.resources.tasks_max,
        "cpu_max_percent": limits.resources.cpu_max_percent,
        "isolate_pids": limits.isolate_pids,
        "cleanup": {"git_locks": limits.cleanup.git_locks},
        "sandbox": limits.sandbox,
    }));
    o.extend(agent_limits(&limits.watch.agent));
    Value::Object(o)
}

/// What an agent is held to.
pub fn agent_limits(agent: &AgentWatch) -> Map<String, Value> {
    object(json!({
        "turn_timeout_usec": agent.turn_timeout.map(usec),
        "turn_action": agent.turn_action,
        "loop_max": agent.loop_max,
        "loop_action": agent.loop_action,
        "max_turns": agent.max_turns,
        "max_turns_action": agent.max_turns_action,
        "max_tokens": agent.max_tokens,
        "max_tokens_action": agent.max_tokens_action,
        "max_cost_micro_usd": agent.max_cost_micro_usd,
        "max_cost_action": agent.max_cost_action,
        "permission_timeout_usec": agent.permission_timeout.map(usec),
        "permission_action": agent.permission_action,
    }))
}

fn usage(usage: &Usage) -> Value {
    json!({
        "cpu_usec": usage.cpu_usec,
        "memory_bytes": usage.memory_bytes,
        "memory_peak_bytes": usage.memory_peak_bytes,
        "tasks": usage.tasks,
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
        "activity_bytes": usage.activity_bytes,
    })
}

/// What a run used over time.
pub fn samples(samples: &[UsageSample]) -> Value {
    let one = |s: &UsageSample| {
        let mut o = object(usage(&s.usage));
        o.insert("span_usec".into(), usec(s.span).into());
        o.insert("memory_pressure_percent".into(), s.memory_pressure_percent.into());
        time(&mut o, "at", Some(s.at));
        Value::Object(o)
    };
    samples.iter().map(one).collect()
}

fn heartbeats(said: &Heartbeats) -> Value {
    let refused = said.refused;
    let mut o = object(json!({
        "total": said.total,
        "status": said.status,
        "stopping": said.stopping,
        "errno": said.errno,
        "refused": {"foreign": refused.foreign, "flooded": refused.flooded, "too_long": refused.too_long},
    }));
    time(&mut o, "last_at", said.last_at);
    Value::Object(o)
}

/// How far an agent has come.
pub fn progress(p: &Progress) -> Value {
    json!({
        "session_id": p.session,
        "model": p.model,
        "turns": p.turns,
        "turns_max": p.turns_max,
        "tokens": p.tokens,
        "cost_micro_usd": p.cost_micro_usd,
        "tool": p.tool,
        "repeats": p.repeats,
        "repeated": p.repeated,
        "waiting": p.waiting,
        "result": p.result.as_ref().map(|r| json!({"success": r.success, "text": r.text})),
        "summary": p.summary(),
    })
}

fn outcome(outcome: &Outcome) -> Value {
    let mut o = object(json!({"kind": outcome.code(), "text": outcome.to_string()}));
    match outcome {
        Outcome::Exited { code } => drop(o.insert("code".into(), (*code).into())),
        Outcome::Signaled { signal } => drop(o.insert("signal".into(), (*signal).into())),
        Outcome::Killed { reason } => drop(o.insert("reason".into(), reason.code().into())),
        Outcome::Oom | Outcome::Lost { .. } => {}
    }
    Value::Object(o)
}

/// Processes.
pub fn processes(seen: &[ProcessSeen]) -> Value {
    let one = |p: &ProcessSeen| json!({"pid": p.pid, "ppid": p.ppid, "name": p.name, "state": p.state.to_string(), "wchan": p.wchan});
    seen.iter().map(one).collect()
}

fn escapees(all: &[Escapee]) -> Value {
    let one = |e: &Escapee| {
        let Escapee { process, name, cgroup, fate } = e;
        json!({"pid": process.pid, "start_ticks": process.start_ticks, "name": name, "cgroup": cgroup, "fate": fate})
    };
    all.iter().map(one).collect()
}

fn remains(r: &Remains) -> Value {
    let lock = |l: &GitLock| json!({"path": l.path, "fate": l.fate.as_str(), "why": Some(l.fate.why()).filter(|why| !why.is_empty())});
    json!({
        "others": r.others,
        "files": r.files,
        "files_total": r.files_total,
        "git_locks": r.git.locks.iter().map(lock).collect::<Vec<_>>(),
        "git_locks_total": r.git.total,
        "not_looked_at": r.unseen().collect::<Vec<_>>(),
    })
}

/// An explanation, with all that was seen.
pub fn explained(e: &Explained) -> Value {
    let mut o = object(json!({
        "run_id": e.run,
        "explanation": e.sentence,
        "details": e.details,
        "kept": e.is_kept,
        "evidence": e.evidence,
    }));
    time(&mut o, "seen_at", Some(e.seen_at));
    Value::Object(o)
}

/// A receipt.
pub fn receipt(r: &Receipt) -> Value {
    let steps = r.steps.iter().map(|s| {
        let mut o = object(json!({"kind": s.kind, "elapsed_usec": s.elapsed_usec, "processes": s.processes}));
        time(&mut o, "at", Some(s.at));
        Value::Object(o)
    });
    let mut o = object(json!({
        "run_id": r.run,
        "mode": r.mode,
        "reason": r.reason.code(),
        "reason_text": r.reason.to_string(),
        "actor": r.actor.to_string(),
        "actor_uid": r.actor.uid(),
        "duration_usec": r.duration_usec,
        "steps": steps.collect::<Vec<_>>(),
        "terminated": r.terminated,
        "killed": r.killed,
        "survivors": r.survivors,
        "proved": r.proved,
        "processes": processes(&r.processes),
        "processes_total": r.processes_total,
        "escapees": escapees(&r.escapees),
        "remains": r.remains.as_ref().map(remains),
        "explanation": (!r.explanation.is_empty()).then_some(&r.explanation),
    }));
    time(&mut o, "requested_at", Some(r.requested_at));
    Value::Object(o)
}

/// A kill that is on record.
pub fn kill(a: &KillAnswer) -> Value {
    let mut o = object(json!({
        "run_id": a.run,
        "mode": a.mode,
        "reason": a.reason.code(),
        "reason_text": a.reason.to_string(),
        "actor": a.actor.to_string(),
        "actor_uid": a.actor.uid(),
    }));
    time(&mut o, "requested_at", Some(a.requested_at));
    Value::Object(o)
}

/// A row of the audit.
pub fn row(row: &AuditRow) -> Value {
    let e = &row.event;
    let mut o = object(json!({
        "seq": row.seq,
        "kind": e.kind,
        "run_id": e.run,
        "workflow": e.workflow,
        "actor": e.actor.to_string(),
        "actor_uid": e.actor.uid(),
        "reason": e.reason,
        "details": e.details,
        "hash": row.hash,
    }));
    time(&mut o, "at", Some(e.at));
    Value::Object(o)
}

/// What there is to say about the runs of a workflow that are over.
pub fn statistics(s: &Statistics) -> Value {
    let day = |d: &Day| {
        json!({
            "day": day(d.at),
            "runs": d.outcomes.total(),
            "outcomes": d.outcomes,
            "duration_p50_usec": d.duration_p50_usec,
            "memory_peak_max_bytes": d.memory_peak_max_bytes,
        })
    };
    let suggestion = |s: &Suggestion| {
        json!({
            "limit": s.limit,
            "value": s.value,
            "unit": if s.limit == Suggested::MemoryMax { "bytes" } else { "usec" },
            "setting": s.setting(),
            "basis_runs": s.basis,
            "p99": s.p99,
            "exceeding_runs": s.exceeding,
            "sentence": s.to_string(),
        })
    };
    let mut o = object(json!({
        "workflow": s.workflow,
        "runs": s.outcomes.total(),
        "outcomes": s.outcomes,
        "kills": s.kills,
        "duration_usec": s.duration_usec,
        "cpu_usec": s.cpu_usec,
        "memory_peak_bytes": s.memory_peak_bytes,
        "days": s.days.iter().map(day).collect::<Vec<_>>(),
        "suggestions": s.suggestions.iter().map(suggestion).collect::<Vec<_>>(),
    }));
    time(&mut o, "first_finished_at", Some(s.first_at));
    time(&mut o, "last_finished_at", Some(s.last_at));
    Value::Object(o)
}

/// The day of a time in UTC, as 2026-11-29.
pub fn day(at: Wall) -> String {
    utc_time(at).chars().take_while(|c| *c != 'T').collect()
}

/// What came of checking the audit.
pub fn report(r: &AuditReport) -> Value {
    json!({
        "intact": r.broken.is_none(),
        "rows": r.rows,
        "first_seq": r.first_seq,
        "last_seq": r.last_seq,
        "last_hash": r.last_hash,
        "broken_seq": r.broken.as_ref().map(|b| b.0),
        "problem": r.broken.as_ref().map(|b| &b.1),
    })
}

/// An instance.
pub fn instance(d: &Description) -> Map<String, Value> {
    let backends = d.backends.iter().map(|(name, chosen, why)| json!({"backend": name, "chosen": chosen, "why": why}));
    let mut o = object(json!({
        "version": d.version,
        "pid": d.pid,
        "uid": d.uid,
        "instance": d.instance,
        "state_dir": d.state_directory,
        "config_file": d.config_file,
        "backend": d.backend,
        "backends": backends.collect::<Vec<_>>(),
        "cgroup": d.control_group,
        "health": d.health,
        "health_reasons": d.health_reasons,
        "runs_active": d.runs_active,
        "runs_total": d.runs_total,
        "kills_total": d.kills_total,
        "last_seq": d.last_sequence,
        "notes": d.notes,
    }));
    time(&mut o, "started_at", Some(Wall(d.start_timestamp_usec)));
    o
}

/// The same JSON with an escape for what serde_json leaves as it is and a terminal may take for a command: DEL, the control
/// characters above U+007F, and what reorders text. All of them are in strings, so that the values are the same.
pub fn inert(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => safe.push(c),
            c if is_unsafe(c) => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_utc() {
        assert_eq!(utc_time(Wall(1_700_000_000_000_000)), "2023-11-14T22:13:20Z");
        assert_eq!(day(Wall(1_700_000_000_000_000)), "2023-11-14");
    }
}
