//! How each [`Write`] becomes rows. Every statement replaces what is there, so that writing a thing again is harmless.

use std::path::PathBuf;
use std::time::SystemTime;

use rusqlite::{Connection, TransactionBehavior, params};

use super::audit::{Appender, int};
use super::{Batch, Write};
use crate::failpoint;
use crate::model::{AuditRow, CgroupIdentity, ContainerId, KillAnswer, Outcome, Receipt, RunView, Wall};

/// Writes batches in one transaction, and gives the audit rows as they were numbered and chained.
pub(super) fn commit<'a>(
    conn: &mut Connection,
    batches: impl Iterator<Item = &'a Batch> + Clone,
) -> rusqlite::Result<Vec<AuditRow>> {
    failpoint::hit("store.commit").map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    if !are_provisional(batches.clone()) {
        return commit_as_set(conn, batches);
    }
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    let committed = commit_as_set(conn, batches);
    conn.pragma_update(None, "synchronous", "FULL")?;
    committed
}

/// Whether none of the batches has to be synced.
pub(super) fn are_provisional<'a>(mut batches: impl Iterator<Item = &'a Batch>) -> bool {
    batches.all(|batch| batch.is_provisional)
}

fn commit_as_set<'a>(
    conn: &mut Connection,
    batches: impl Iterator<Item = &'a Batch>,
) -> rusqlite::Result<Vec<AuditRow>> {
    // Immediate: a deferred one would meet another writer in the middle, where waiting is not possible.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let now = now();
    let mut rows = Vec::new();
    let mut log = Appender::new(&tx)?;
    for write in batches.flat_map(|batch| &batch.writes) {
        match write {
            Write::Run { view, state } => run(&tx, view, state.as_deref(), now)?,
            Write::Audit(event) => rows.push(log.append(event)?),
            Write::KillIntent(answer) => kill_intent(&tx, answer)?,
            Write::KillDone(receipt) => kill_done(&tx, receipt)?,
            // Files, which the writer keeps.
            Write::KeepLaunch(_) | Write::ForgetLaunch(_) => {}
        }
    }
    log.finish()?;
    tx.commit()?;
    Ok(rows)
}

/// The wall clock.
pub(super) fn now() -> Wall {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

fn run(tx: &Connection, view: &RunView, state: Option<&str>, now: Wall) -> rusqlite::Result<()> {
    let spec = &view.spec;
    let exit_code = match &view.outcome {
        Some(Outcome::Exited { code }) => Some(*code),
        _ => None,
    };
    let kill_reason = match &view.outcome {
        Some(Outcome::Killed { reason }) => Some(reason.code()),
        _ => None,
    };
    tx.prepare_cached(
        "INSERT INTO runs (id, workflow, name, uid, user, command, cwd, phase, health, created_at, started_at,
             finished_at, updated_at, outcome, exit_code, kill_reason, main_pid, view, state, ready_at, cpu_usec,
             memory_peak_bytes, ended_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22,
             ?23)
         ON CONFLICT (id) DO UPDATE SET workflow = excluded.workflow, name = excluded.name, uid = excluded.uid,
             user = excluded.user, command = excluded.command, cwd = excluded.cwd, phase = excluded.phase,
             health = excluded.health, created_at = excluded.created_at, started_at = excluded.started_at,
             finished_at = excluded.finished_at, updated_at = excluded.updated_at, outcome = excluded.outcome,
             exit_code = excluded.exit_code, kill_reason = excluded.kill_reason, main_pid = excluded.main_pid,
             view = excluded.view, state = excluded.state, ready_at = excluded.ready_at, cpu_usec = excluded.cpu_usec,
             memory_peak_bytes = excluded.memory_peak_bytes, ended_by = excluded.ended_by",
    )?
    .execute(params![
        spec.id.to_string(),
        spec.workflow,
        spec.name,
        spec.uid,
        spec.user,
        json(&spec.command)?,
        spec.cwd,
        view.phase.as_str(),
        view.health.as_str(),
        int(view.created_at.0),
        view.started_at.map(|at| int(at.0)),
        view.finished_at.map(|at| int(at.0)),
        int(now.0),
        view.outcome.as_ref().map(Outcome::code),
        exit_code,
        kill_reason,
        spec.main.map(|main| main.pid),
        view_json(view)?,
        state,
        view.ready_at.map(|at| int(at.0)),
        view.usage.cpu_usec.map(int),
        view.usage.memory_peak_bytes.map(int),
        view.receipt.as_ref().map(|receipt| receipt.reason.code()),
    ])?;
    Ok(())
}

fn kill_intent(tx: &Connection, answer: &KillAnswer) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO kills (run_id, mode, reason, reason_text, actor_uid, actor, requested_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (run_id) DO UPDATE SET mode = excluded.mode, reason = excluded.reason,
             reason_text = excluded.reason_text, actor_uid = excluded.actor_uid, actor = excluded.actor,
             requested_at = excluded.requested_at",
    )?
    .execute(params![
        answer.run.to_string(),
        answer.mode.as_str(),
        answer.reason.code(),
        answer.reason.to_string(),
        answer.actor.uid(),
        answer.actor.to_string(),
        int(answer.requested_at.0),
    ])?;
    Ok(())
}

fn kill_done(tx: &Connection, receipt: &Receipt) -> rusqlite::Result<()> {
    let answer = KillAnswer {
        run: receipt.run,
        mode: receipt.mode,
        reason: receipt.reason.clone(),
        actor: receipt.actor.clone(),
        requested_at: receipt.requested_at,
    };
    // The intent may be missing: with a database set aside in between, the proof is all there is.
    kill_intent(tx, &answer)?;
    tx.prepare_cached("UPDATE kills SET receipt = ?2, survivors = ?3, duration_usec = ?4 WHERE run_id = ?1")?
        .execute(params![receipt.run.to_string(), json(receipt)?, receipt.survivors, int(receipt.duration_usec),])?;
    Ok(())
}

/// The view as JSON. Serde refuses a path that is not UTF-8, and one such run must not hold up all that come after it:
/// its paths are written as a person would be shown them.
pub(super) fn view_json(view: &RunView) -> rusqlite::Result<String> {
    json(view).or_else(|_| {
        let readable = |path: &PathBuf| PathBuf::from(path.to_string_lossy().into_owned());
        let mut view = view.clone();
        view.spec.log = view.spec.log.as_ref().map(readable);
        if let Some(ContainerId::Cgroup(CgroupIdentity { path, .. }) | ContainerId::Subtree { record: path, .. }) =
            &mut view.container
        {
            *path = readable(path);
        }
        json(&view)
    })
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}
