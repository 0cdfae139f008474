//! `guardian selftest`: each scenario holds in each place, and is red where the protection that it is about is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::*;
use serde_json::Value;

/// How many scenarios there are.
const ALL: usize = 15;

/// One at a time, as a user would: they sync files as fast as they can.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What each scenario came to.
fn verdicts(report: &Value) -> BTreeMap<String, String> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_else(|| panic!("no {key}: {row}")).to_owned();
    let rows = report.as_array().unwrap().iter();
    rows.map(|row| {
        assert!(
            row["duration_usec"].is_u64() && row["not_tried"].is_array() && !text(row, "tried").is_empty(),
            "{row}"
        );
        assert!(row["verdict"] == "not_tried" || !text(row, "observed").is_empty(), "{row}");
        (text(row, "scenario"), text(row, "verdict"))
    })
    .collect()
}

fn every_scenario_holds(place: Place) {
    needs_place!(place);
    let _alone = alone();
    let world = World::new_in(place);
    let done = world.guardian(["--json", "selftest"]);
    done.exits(0);
    let report = done.json();
    let seen = verdicts(&report);
    assert_eq!(seen.len(), ALL, "{report}");
    for (scenario, verdict) in &seen {
        // An ordinary user cannot be another.
        let may_be_left_out =
            scenario == "kill_permission_validation" && place != Place::Root && place != Place::Subtree;
        assert!(verdict == "holds" || (may_be_left_out && verdict == "not_tried"), "{report}");
    }
    world.assert_nothing_left();
}

mod cgroupfs {
    use super::*;

    #[test]
    fn every_scenario_holds() {
        super::every_scenario_holds(Place::Root);
    }

    /// Each scenario, and the failpoint that takes away what it is about.
    #[cfg(feature = "failpoints")]
    const RED: [(&str, &str); 17] = [
        ("kill_during_file_operations", "guard.kill=return(files-worker)"),
        ("kill_during_database_writes", "guard.kill=return(database-worker)"),
        ("kill_with_multiple_processes", "guard.kill=return(session many-graceful)"),
        ("kill_with_multiple_processes", "guard.kill=return(stopped many-force)"),
        ("kill_non_existent_workflow", "guard.refusal=return(NoSuchRun)"),
        ("kill_already_completed_workflow", "guard.refusal=return(AlreadyFinished)"),
        ("concurrent_kill_requests", "guard.one_kill=return"),
        ("kill_permission_validation", "guard.rights=return"),
        ("resource_cleanup_verification", "guard.descriptors=return"),
        ("resource_cleanup_verification", "guard.removal=return"),
        ("stuck_in_initialization", "guard.rule=return(init_timeout)"),
        ("heartbeat_lost", "guard.rule=return(heartbeat_timeout)"),
        ("leftovers", "guard.leftovers=return"),
        ("escapes", "guard.escapees=return"),
        ("client_killed", "guard.client=return"),
        ("daemon_killed", "guard.recovery=return"),
        ("full_state_directory", "guard.record=return"),
    ];

    /// The quick ones, which are tried with each.
    #[cfg(feature = "failpoints")]
    const BESIDE: [&str; 6] = [
        "kill_with_multiple_processes",
        "kill_non_existent_workflow",
        "kill_already_completed_workflow",
        "concurrent_kill_requests",
        "kill_permission_validation",
        "leftovers",
    ];

    #[cfg(feature = "failpoints")]
    #[test]
    fn a_protection_that_is_taken_away_makes_its_own_scenario_red_and_no_other() {
        needs_place!(Place::Root);
        let _alone = alone();
        all_hold(RED.to_vec(), |&(scenario, failpoint)| {
            let world = World::new_in(Place::Root);
            // Of a hundred that kill at once some come when the run is over, and are refused as any who then comes.
            let stands_on_the_same =
                |beside: &&str| scenario == "kill_already_completed_workflow" && *beside == "concurrent_kill_requests";
            let beside = BESIDE.into_iter().filter(|beside| !stands_on_the_same(beside));
            let tried: Vec<_> = ["--json", "selftest", scenario].into_iter().chain(beside).collect();
            let done = start(world.command(tried).env("FAILPOINTS", failpoint)).wait();
            let report = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
            let red: Vec<String> =
                verdicts(&report).into_iter().filter(|(_, verdict)| verdict == "fails").map(|(name, _)| name).collect();
            assert_eq!((red, done.code), (vec![scenario.to_owned()], Some(1)), "{report:#}");
        });
        let is_named = |guard: &str| RED.iter().any(|(_, failpoint)| failpoint.split('=').next() == Some(guard));
        let untried: Vec<_> = guardian::failpoint::GUARDS.iter().filter(|guard| !is_named(guard)).collect();
        assert!(untried.is_empty(), "{untried:?}");
    }
}

#[test]
fn every_scenario_holds_below_a_shim() {
    every_scenario_holds(Place::Subtree);
}

#[test]
fn every_scenario_holds_for_an_ordinary_user() {
    every_scenario_holds(Place::User);
}

#[test]
fn what_is_not_tried_is_told_and_fails_only_where_that_is_asked_for() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let told = world.guardian(["selftest", "kill_permission_validation"]);
    assert!(told.exits(0).stdout.contains("not tried: only root can be another user"), "{told:?}");
    let strict = world.guardian(["selftest", "--strict", "kill_permission_validation"]);
    assert!(strict.exits(1).stderr.contains("1 things were not tried"), "{strict:?}");
}

#[test]
fn a_scenario_that_there_is_not_is_refused_with_the_names_of_all() {
    let world = World::new_in(Place::Subtree);
    let done = world.guardian(["selftest", "kill_everything"]);
    done.exits(2);
    assert!(done.stderr.contains("kill_everything") && done.stderr.contains("daemon_killed"), "{done:?}");
}
