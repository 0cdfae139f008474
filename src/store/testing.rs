//! What the tests of this room build on.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::json;

use super::{Batch, Store, Write, record};
use crate::model::Retention;
use crate::model::{
    Actor, AuditEvent, Containment, EventKind, Health, KillAnswer, KillMode, KillReason, Limits, Outcome, Phase,
    ProcessId, Readiness, Receipt, Resources, RunId, RunSpec, RunView, Usage, Wall,
};

/// Keeps everything.
pub(super) const FOR_EVER: Retention = Retention { max_age: None, max_bytes: None };

pub(super) fn run_id(n: u32) -> RunId {
    let [a, b, c, d] = n.to_be_bytes();
    RunId::from_bytes([a, b, c, d, 0, 1])
}

/// A live run, accepted `n` seconds after 1970.
pub(super) fn live(n: u32) -> RunView {
    let limits = Limits {
        max_running: None,
        queue_timeout: None,
        init_timeout: Some(Duration::from_secs(60)),
        max_runtime: None,
        watch: crate::model::Watch::default(),
        grace: Duration::from_secs(10),
        readiness: Readiness::Output,
        resources: Resources::default(),
        isolate_pids: false,
        cleanup: crate::model::Cleanup::default(),
        sandbox: crate::model::Sandbox::default(),
        credentials: Vec::new(),
    };
    RunView {
        spec: RunSpec {
            id: run_id(n),
            workflow: "builder".into(),
            executor: "local".into(),
            name: None,
            command: vec!["make".into(), "all the \"things\"".into()],
            cwd: "/src".into(),
            uid: 1000,
            user: "ada".into(),
            main: Some(ProcessId { pid: 811, start_ticks: 5 }),
            client: None,
            containment: Containment::Cgroupfs,
            limits,
            log: None,
        },
        phase: Phase::Running,
        health: Health::Healthy,
        reasons: vec![],
        container: None,
        frozen: false,
        created_at: Wall(u64::from(n) * 1_000_000),
        started_at: Some(Wall(u64::from(n) * 1_000_000 + 5)),
        ready_at: None,
        finished_at: None,
        deadlines: vec![],
        outcome: None,
        receipt: None,
        queued: None,
        usage: Usage::default(),
        heartbeats: Default::default(),
        progress: None,
        escapees: vec![],
        notices: vec![],
    }
}

/// The same run, over a second later.
pub(super) fn finished(n: u32, outcome: Outcome) -> RunView {
    let live = live(n);
    let finished_at = Some(Wall(live.created_at.0 + 1_000_000));
    RunView { phase: Phase::Finished, finished_at, outcome: Some(outcome), ..live }
}

pub(super) fn write_live(n: u32) -> Write {
    Write::Run { view: Box::new(live(n)), state: Some(format!("state of {n}")) }
}

pub(super) fn write_finished(n: u32) -> Write {
    Write::Run { view: Box::new(finished(n, Outcome::Exited { code: 0 })), state: None }
}

/// An event about run `n`, `n` seconds after 1970.
pub(super) fn event(n: u32) -> Write {
    Write::Audit(AuditEvent {
        at: Wall(u64::from(n) * 1_000_000),
        kind: EventKind::RunStarted,
        run: Some(run_id(n)),
        workflow: Some("builder".into()),
        actor: Actor::User { uid: 1000, name: "ada".into() },
        reason: format!("event {n}"),
        details: json!({ "n": n, "text": "“quoted”" }),
    })
}

pub(super) fn intent(n: u32) -> KillAnswer {
    KillAnswer {
        run: run_id(n),
        mode: KillMode::Graceful,
        reason: KillReason::Requested { text: "enough".into() },
        actor: Actor::User { uid: 0, name: "root".into() },
        requested_at: Wall(u64::from(n) * 1_000_000),
    }
}

pub(super) fn receipt(n: u32) -> Receipt {
    let KillAnswer { run, mode, reason, actor, requested_at } = intent(n);
    Receipt {
        run,
        mode,
        reason,
        actor,
        requested_at,
        duration_usec: 1234,
        steps: vec![],
        terminated: 3,
        killed: 1,
        survivors: 0,
        proved: true,
        containment: Containment::Cgroupfs,
        processes: vec![],
        processes_total: 3,
        growth: None,
        escapees: vec![],
        remains: None,
        explanation: String::new(),
    }
}

pub(super) fn batch(writes: impl IntoIterator<Item = Write>) -> Batch {
    Batch { writes: writes.into_iter().collect(), ticket: None, is_provisional: false }
}

pub(super) fn open(dir: &Path) -> Store {
    let opened = Store::open(dir).unwrap();
    assert_eq!(opened.set_aside, None);
    opened.store
}

/// Opens the store, writes without a thread, and closes it again.
pub(super) fn write(dir: &Path, writes: impl IntoIterator<Item = Write>) {
    let mut conn = open(dir).into_connection();
    record::commit(&mut conn, std::iter::once(&batch(writes))).unwrap();
}

/// Makes the database what the version before there were statistics made of it.
pub(super) fn back_to_version_2(conn: &Connection) {
    conn.execute_batch(
        "DROP INDEX runs_past;
         ALTER TABLE runs DROP COLUMN ready_at;
         ALTER TABLE runs DROP COLUMN cpu_usec;
         ALTER TABLE runs DROP COLUMN memory_peak_bytes;
         ALTER TABLE runs DROP COLUMN ended_by;
         UPDATE meta SET value = '2' WHERE key = 'schema_version';
         PRAGMA user_version = 2;",
    )
    .unwrap();
}
