//! The README's main job in each place, and what is said of the place.

use guardian::model::{Containment, EventKind};
use serde_json::Value;

use crate::common::{Place, World};
use crate::needs_place;

/// A run that would never end, with a child that has left its session.
const MAIN_JOB: [&str; 3] = ["sh", "-c", "setsid sleep 1000 & sleep 1000"];

fn the_main_job_leaves_nothing(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let done = world.run(&["--max-runtime", "3s"], &MAIN_JOB);
    assert!(done.exits(124).stderr.contains("0 survivors"), "{done:?}");
    world.assert_nothing_left();
    let run = world.only_run();
    world.assert_killed(&run, "max_runtime");
    assert_eq!(run.containment != Containment::Subtree, place.has_cgroups(), "{run:?}");
    assert_eq!((run.cgroup.is_some(), run.shim.is_some()), (place.has_cgroups(), !place.has_cgroups()), "{run:?}");
    let receipt = run.receipt();
    // A shell that executes its last command in its own place is one process less.
    assert!(matches!(receipt.processes_total, 2 | 3), "the shell and two sleeps: {receipt:?}");
    assert_eq!((receipt.terminated, receipt.killed), (receipt.processes_total, 0), "{receipt:?}");
    assert_eq!(world.audited(EventKind::KillIntent), 1);
    world.assert_audit_holds();
    // It says how it ends what is left over, and a shim has no cgroup.kill.
    let kills_with = if place.has_cgroups() { "no cgroup.kill needed" } else { "no SIGKILL needed" };
    assert!(done.stderr.contains(kills_with), "{done:?}");
}

/// What `doctor` says of a backend: whether it was taken, and why.
fn considered(doctor: &Value, backend: &str) -> (bool, String) {
    let backends = doctor["instance"]["backends"].as_array().unwrap();
    let of = backends.iter().find(|b| b["backend"] == backend).unwrap_or_else(|| panic!("{backend}: {backends:?}"));
    (of["chosen"].as_bool().unwrap(), of["why"].as_str().unwrap().to_owned())
}

fn doctor_says_why(place: Place, why_no_cgroup: Option<&str>) {
    needs_place!(place);
    let world = World::new_in(place);
    let doctor = world.guardian(["doctor", "--json"]).json();
    let backend = doctor["instance"]["backend"].as_str().unwrap().to_owned();
    assert_eq!(backend != "subtree", place.has_cgroups(), "{doctor:#}");
    let (chosen, why) = considered(&doctor, &backend);
    assert!(chosen && !why.is_empty(), "{doctor:#}");
    let text = world.guardian(["doctor"]).exits(0).stdout.clone();
    assert!(text.contains(&format!("taken, {backend}: {why}")), "{text}");
    let Some(reason) = why_no_cgroup else { return };
    for stronger in ["systemd", "cgroupfs"] {
        let (chosen, why) = considered(&doctor, stronger);
        assert!(!chosen && !why.is_empty(), "{doctor:#}");
        assert!(text.contains(&format!("not {stronger}: {why}")), "{text}");
    }
    // A host without cgroup2 has another reason.
    let (_, why) = considered(&doctor, "cgroupfs");
    assert!(crate::common::cgroup2_mount().is_none() || why.contains(reason), "{why}");
    for row in
        ["      kill  by SIGKILL to each process below the shim", "    limits  memory_max for each process alone"]
    {
        assert!(text.lines().any(|line| line.starts_with(row)), "no cgroup contains a run here: {text}");
    }
}

mod cgroupfs {
    use super::*;

    #[test]
    fn the_main_job_leaves_nothing_as_root() {
        the_main_job_leaves_nothing(Place::Root);
    }

    #[test]
    fn the_main_job_leaves_nothing_as_root_where_proc_is_hidden() {
        the_main_job_leaves_nothing(Place::HidePidRoot);
    }

    #[test]
    fn doctor_names_what_contains_runs() {
        doctor_says_why(Place::Root, None);
    }

    #[test]
    fn who_insists_on_subtree_is_told_that_the_instance_has_cgroups() {
        needs_place!(Place::Root);
        let world = World::new();
        world.guardian(["ps"]).exits(0);
        let refused = world.guardian(["--backend", "subtree", "ps"]);
        let told = ", not by subtree: leave out --backend, or stop the instance";
        assert!(refused.exits(2).stderr.contains(told), "{refused:?}");
        let refused = world.run(&["--backend", "subtree"], &["touch", "executed"]);
        assert!(refused.exits(125).stderr.contains(told), "{refused:?}");
        assert!(!world.path("executed").exists());
        assert_eq!(world.runs(), []);
    }
}

mod subtree {
    use super::*;

    #[test]
    fn the_main_job_leaves_nothing_where_it_is_insisted_on() {
        the_main_job_leaves_nothing(Place::Subtree);
    }

    #[test]
    fn the_main_job_leaves_nothing_as_an_ordinary_user() {
        the_main_job_leaves_nothing(Place::User);
    }

    #[test]
    fn the_main_job_leaves_nothing_where_cgroups_are_read_only() {
        the_main_job_leaves_nothing(Place::ReadOnlyCgroup);
    }

    #[test]
    fn the_main_job_leaves_nothing_as_a_user_who_sees_nobody_else_in_proc() {
        the_main_job_leaves_nothing(Place::HidePidUser);
    }

    #[test]
    fn the_main_job_leaves_nothing_where_no_namespace_can_be_made() {
        the_main_job_leaves_nothing(Place::NoNamespaces);
    }

    #[test]
    fn doctor_tells_an_ordinary_user_why_no_cgroup_can_be_had() {
        doctor_says_why(Place::User, Some("we may not write there"));
    }

    #[test]
    fn doctor_tells_that_cgroups_are_read_only() {
        doctor_says_why(Place::ReadOnlyCgroup, Some("cgroup2 is mounted read-only"));
    }

    #[test]
    fn who_insists_on_a_cgroup_that_cannot_be_had_is_told_why_and_nothing_is_executed() {
        needs_place!(Place::User);
        let world = World::new_in(Place::User);
        let refused = world.run(&["--backend", "cgroupfs"], &["touch", "executed"]);
        assert!(refused.exits(125).stderr.contains("the backend cgroupfs cannot be had here: "), "{refused:?}");
        assert_eq!(world.guardian(["--backend", "cgroupfs", "ps"]).exits(11).stdout, "");
        assert_eq!(world.instance(), None);
        // And with an instance that has what can be had.
        world.guardian(["ps"]).exits(0);
        let refused = world.guardian(["--backend", "cgroupfs", "ps"]);
        let told = "the instance contains runs by subtree, not by cgroupfs: leave out --backend, or stop the instance";
        assert!(refused.exits(2).stderr.contains(told), "{refused:?}");
        assert!(!world.path("executed").exists());
    }
}
