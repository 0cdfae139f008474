//! Views for tests.

use std::time::Duration;

use crate::model::*;

/// A run that is over.
pub fn finished(outcome: Outcome) -> RunView {
    RunView {
        spec: RunSpec {
            id: RunId::from_bytes([0, 0, 0, 0, 0, 1]),
            workflow: "default".into(),
            executor: "local".into(),
            name: None,
            command: vec!["sh".into()],
            cwd: "/".into(),
            uid: 0,
            user: "root".into(),
            main: None,
            client: None,
            containment: Containment::Cgroupfs,
            limits: Limits {
                max_running: None,
                queue_timeout: None,
                init_timeout: None,
                max_runtime: None,
                watch: Watch::default(),
                grace: Duration::from_secs(10),
                readiness: Readiness::Output,
                resources: Resources::default(),
                isolate_pids: false,
                cleanup: crate::model::Cleanup::default(),
                sandbox: crate::model::Sandbox::default(),
                credentials: Vec::new(),
            },
            log: None,
        },
        phase: Phase::Finished,
        health: Health::Healthy,
        reasons: vec![],
        container: None,
        frozen: false,
        created_at: Wall(1),
        started_at: None,
        ready_at: None,
        finished_at: Some(Wall(2)),
        deadlines: vec![],
        outcome: Some(outcome),
        receipt: None,
        queued: None,
        usage: Usage::default(),
        heartbeats: Default::default(),
        progress: None,
        escapees: vec![],
        notices: vec![],
    }
}

/// A run that was ended by `max_runtime`.
pub fn killed() -> RunView {
    let reason = KillReason::over(Rule::MaxRuntime, Duration::from_secs(3));
    let mut view = finished(Outcome::Killed { reason: reason.clone() });
    view.receipt = Some(Receipt {
        run: view.spec.id,
        mode: KillMode::Graceful,
        reason,
        actor: Actor::Guardian,
        requested_at: Wall(1),
        duration_usec: 4200,
        steps: vec![],
        terminated: 2,
        killed: 0,
        survivors: 0,
        proved: true,
        containment: Containment::Cgroupfs,
        processes: vec![],
        processes_total: 2,
        growth: None,
        escapees: vec![],
        remains: None,
        explanation: String::new(),
    });
    view
}
