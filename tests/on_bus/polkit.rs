//! Polkit that is absent, that hangs, and that says yes: what is one's own is never asked about.

use std::process::Stdio;
use std::time::Duration;

use crate::common::*;
use crate::needs_bus;
use crate::rig::*;

/// Polkit's name on the bus, with a process behind it that answers this to every question, or nothing.
pub fn pretend(rig: &Rig, answer: &str) -> Ours {
    std::fs::write(rig.path("polkit.py"), include_str!("polkit.py")).unwrap();
    let mut command = rig.python(0, "polkit.py", &[answer]);
    let ours = Ours(command.stdin(Stdio::null()).spawn().unwrap());
    eventually("polkit's name is taken", || rig.has_owner("org.freedesktop.PolicyKit1").then_some(()));
    ours
}

const REFUSED_IN: Duration = Duration::from_millis(6500);

#[test]
fn without_polkit_others_are_refused_at_once() {
    needs_bus!();
    let rig = Rig::system();
    let ann = rig.attach(ANN);
    for call in [&["KillRun", "sss", &ann.run, "force", ""][..], &["Events", "tu", "0", "1"], &["Stop"]] {
        let (said, took) = rig.call(BEN, call);
        assert!(said.contains("there is no run") || said.contains("may do this"), "{said}");
        assert!(took < Duration::from_secs(4), "{call:?} took {took:?}");
    }
}

#[test]
fn a_polkit_that_hangs_refuses_in_five_seconds_and_holds_up_nobody_else() {
    needs_bus!();
    let rig = Rig::system();
    let ann = rig.attach(ANN);
    let _polkit = pretend(&rig, "hang");
    let calls: [&[&str]; 5] = [
        &["KillRun", "sss", &ann.run, "force", ""],
        &["KillRun", "sss", &ann.run[..12], "force", ""],
        &["ShowRun", "s", &ann.run],
        &["ListRuns", "a{sv}", "1", "AllUsers", "b", "true"],
        &["Reload"],
    ];
    std::thread::scope(|scope| {
        let rig = &rig;
        let refused = calls.map(|call| (call, scope.spawn(move || rig.call(BEN, call))));
        let object = scope.spawn(|| rig.busctl(BEN, &["get-property", NAME, &ann.path(), RUN, "Phase"]));
        std::thread::sleep(Duration::from_millis(300));
        // They are being asked about; nobody else waits.
        for uid in [ANN, 0] {
            for call in [&["ListRuns", "a{sv}", "0"][..], &["ShowRun", "s", &ann.run], &["FreezeRun", "s", &ann.run]] {
                let (said, took) = rig.call(uid, call);
                assert!(took < Duration::from_secs(3), "{call:?} of {uid} took {took:?}: {said}");
                assert!(!said.contains("rror") && !said.contains("failed"), "{said}");
            }
        }
        let own = rig.call(BEN, &["ListRuns", "a{sv}", "0"]);
        assert!(own.0 == "aa{sv} 0" && own.1 < Duration::from_secs(3), "{own:?}");
        for (call, refused) in refused {
            let (said, took) = refused.join().unwrap();
            assert!(said.contains("there is no run") || said.contains("may do this"), "{call:?}: {said}");
            assert!(took < REFUSED_IN, "{call:?} took {took:?}");
        }
        let (said, took) = object.join().unwrap();
        assert!(said.contains("Unknown object") && took < REFUSED_IN, "{took:?}: {said}");
    });
    let killed = rig.call(ANN, &["KillRun", "sss", &ann.run, "force", ""]);
    assert!(killed.0.contains(&ann.run) && killed.1 < Duration::from_secs(3), "{killed:?}");
}

#[test]
fn who_is_granted_one_right_has_that_one_alone() {
    needs_bus!();
    let rig = Rig::system();
    let ann = rig.attach(ANN);
    {
        let _polkit = pretend(&rig, "org.guardian.Guardian1.read-all");
        let all = rig.call(BEN, &["ListRuns", "a{sv}", "1", "AllUsers", "b", "true"]).0;
        assert!(all.contains(&ann.run), "{all}");
        assert_eq!(rig.busctl(BEN, &["get-property", NAME, &ann.path(), RUN, "Phase"]).0, "s \"running\"");
        // Who sees it is told why nothing is done.
        let refused = rig.call(BEN, &["KillRun", "sss", &ann.run, "force", ""]).0;
        assert!(refused.contains("kill-run"), "{refused}");
        let refused = rig.gdbus(BEN, &ann.path(), "org.guardian.Guardian1.Run.Kill", &["force", ""]).0;
        assert!(refused.contains("Error.NotAuthorized"), "{refused}");
    }
    eventually("polkit is gone", || (!rig.has_owner("org.freedesktop.PolicyKit1")).then_some(()));
    let _polkit = pretend(&rig, "org.guardian.Guardian1.kill-run");
    // How a run ended is its client's to say, whatever else one may do.
    let refused = rig.gdbus(BEN, MANAGER[1], &format!("{NAME}.Manager.ReportExit"), &[&ann.run, "exited", "0"]).0;
    assert!(refused.contains("Error.NoSuchRun"), "{refused}");
    let refused = rig.call(BEN, &["ShowRun", "s", &ann.run]).0;
    assert!(refused.contains("there is no run"), "{refused}");
    let killed = rig.call(BEN, &["KillRun", "sss", &ann.run, "force", "granted"]).0;
    assert!(killed.contains("granted") && killed.contains("\"nobody\""), "{killed}");
    assert!(rig.outcome(&ann.run).contains("\"killed\""));
}
