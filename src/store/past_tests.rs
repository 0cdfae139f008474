use super::*;
use crate::model::{KillReason, Outcome, RunView, Usage};
use crate::store::testing::{back_to_version_2, finished, intent, live, open, receipt, run_id, write, write_live};
use crate::store::{Reader, Write};

/// A run that was killed, with what statistics look at.
fn killed(n: u32) -> RunView {
    let reason = KillReason::ClientGone;
    let mut view = finished(n, Outcome::Killed { reason: reason.clone() });
    view.ready_at = Some(Wall(view.created_at.0 + 10));
    view.usage = Usage { cpu_usec: Some(70), memory_peak_bytes: Some(4096), ..Usage::default() };
    view.receipt = Some(crate::model::Receipt { reason, ..receipt(n) });
    view
}

fn of(n: u32) -> PastRun {
    let from = u64::from(n) * 1_000_000;
    PastRun {
        workflow: "builder".into(),
        started_at: Some(Wall(from + 5)),
        ready_at: Some(Wall(from + 10)),
        finished_at: Wall(from + 1_000_000),
        outcome: "killed".into(),
        exit_code: None,
        ended_by: Some("client_gone".into()),
        cpu_usec: Some(70),
        memory_peak_bytes: Some(4096),
    }
}

fn write_over(view: RunView) -> Write {
    Write::Run { view: Box::new(view), state: None }
}

fn past(reader: &Reader, filter: &Filter) -> Vec<PastRun> {
    let mut runs = Vec::new();
    reader.past(filter, &mut |run| runs.push(run)).unwrap();
    runs.sort_by_key(|run| run.finished_at);
    runs
}

#[test]
fn a_run_that_is_over_is_among_them_and_one_that_is_live_is_not() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [write_over(killed(1)), write_live(2), write_live(3), write_over(killed(3))]);
    assert_eq!(past(&open(dir.path()).reader().unwrap(), &Filter::default()), [of(1), of(3)]);
}

#[test]
fn of_a_workflow_an_owner_or_a_time_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut others = killed(1);
    others.spec.workflow = "lina".into();
    others.spec.uid = 7;
    let mut failed = finished(2, Outcome::Exited { code: 3 });
    failed.started_at = None;
    write(dir.path(), [write_over(others), write_over(failed), write_over(killed(3))]);
    let reader = open(dir.path()).reader().unwrap();
    let exit_codes = |filter: Filter| past(&reader, &filter).iter().map(|r| r.exit_code).collect::<Vec<_>>();
    assert_eq!(exit_codes(Filter { workflow: Some("builder".into()), ..Filter::default() }), [Some(3), None]);
    assert_eq!(exit_codes(Filter { uid: Some(7), ..Filter::default() }), [None]);
    assert_eq!(exit_codes(Filter { since: Some(Wall(3_000_000)), ..Filter::default() }), [Some(3), None]);
    assert_eq!(exit_codes(Filter { since: Some(Wall(u64::MAX)), ..Filter::default() }), []);
}

#[test]
fn the_index_answers_alone() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [write_over(killed(1))]);
    let conn = open(dir.path()).into_connection();
    for filter in [
        Filter::default(),
        Filter { workflow: Some("builder".into()), uid: Some(1000), since: Some(Wall(1)), ..Filter::default() },
    ] {
        let (sql, values) = query(&filter);
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let plan: String = statement.query_row(params_from_iter(values), |row| row.get(3)).unwrap();
        assert!(plan.contains("COVERING INDEX runs_past"), "{plan}");
    }
}

#[test]
fn runs_of_before_are_taken_over_by_the_migration() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [write_over(killed(1)), Write::KillIntent(intent(1)), write_over(killed(2)), write_live(3)]);
    // The database as the version before made it, one of its rows damaged.
    let conn = open(dir.path()).into_connection();
    back_to_version_2(&conn);
    conn.execute_batch("UPDATE runs SET view = 'damaged' WHERE created_at = 2000000").unwrap();
    drop(conn);
    let store = open(dir.path());
    let reader = store.reader().unwrap();
    let asked_for = PastRun { ended_by: Some("requested".into()), ..of(1) };
    let unknown = PastRun { ready_at: None, ended_by: None, cpu_usec: None, memory_peak_bytes: None, ..of(2) };
    assert_eq!(past(&reader, &Filter::default()), [asked_for, unknown]);
    assert_eq!(reader.run(run_id(3)).unwrap(), Some(live(3)));
}
