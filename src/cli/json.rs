//! The shapes of `--json`: snake_case keys, durations in `*_usec`, each time both as `*_usec` and as RFC 3339. Keys are
//! added, never renamed or removed.

use serde_json::{Map, Value, json};

use super::output::utc_time;
use crate::bus::client::AuditReport;
use crate::bus::client::{Description, Explained};
use crate::model::{
    AuditRow, Escapee, Heartbeats, KillAnswer, Outcome, ProcessId, ProcessSeen, Receipt, RunView, Usage, UsageSample,
    Wall,
};

fn usec(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
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
    let limits = &view.spec.limits;
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
        "limits": {
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
            "sandbox": limits.sandbox,
        },
        "deadlines": deadlines.collect::<Vec<_>>(),
        "usage": usage(&view.usage),
        "outcome": view.outcome.as_ref().map(outcome),
        "exit_status": view.outcome.as_ref().map(Outcome::exit_status),
        "receipt": view.receipt.as_ref().map(receipt),
        "heartbeats": heartbeats(&view.heartbeats),
        "escapees": escapees(&view.escapees),
        "notices": view.notices,
    }));
    time(&mut o, "created_at", Some(view.created_at));
    time(&mut o, "started_at", view.started_at);
    time(&mut o, "ready_at", view.ready_at);
    time(&mut o, "finished_at", view.finished_at);
    Value::Object(o)
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
