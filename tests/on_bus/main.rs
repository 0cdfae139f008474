//! The instances on message buses, as their users meet them: a real dbus-daemon, the real `guardiand`, and busctl, gdbus
//! and python3-dbus as root and as two ordinary users.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod notify;
mod polkit;
mod rig;

use std::future::poll_fn;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use common::*;
use rig::*;
use rustix::process::Signal;
use zbus::export::futures_core::Stream as _;

/// Ends the test early where what it needs is missing: loudly, and as a failure in CI.
#[macro_export]
macro_rules! needs_bus {
    () => {
        $crate::needs_cgroup!();
        $crate::needs_program!("dbus-daemon");
        $crate::needs_program!("busctl");
        $crate::needs_program!("gdbus");
        let has_module = std::process::Command::new($crate::common::python()).args(["-c", "import dbus"]).output();
        if !has_module.is_ok_and(|o| o.status.success()) {
            $crate::common::cannot_run("python3-dbus is not installed: as root, tests/run installs it");
            return;
        }
    };
}

/// Not a test: what [`Rig::listen`] starts as another user.
#[test]
#[ignore = "a listener for the other tests"]
fn listener() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bus = zbus::connection::Builder::system().build().await.unwrap();
        let mut heard = zbus::MessageStream::from(&bus);
        let driver = Some("org.freedesktop.DBus");
        let rule = "type='signal',sender='org.guardian.Guardian1'";
        bus.call_method(driver, "/org/freedesktop/DBus", driver, "AddMatch", &rule).await.unwrap();
        let objects = Some("org.freedesktop.DBus.ObjectManager");
        let path = "/org/guardian/Guardian1/run";
        bus.call_method(Some(NAME), path, objects, "GetManagedObjects", &()).await.unwrap();
        println!("\nlistening");
        while let Some(Ok(message)) = poll_fn(|cx| Pin::new(&mut heard).poll_next(cx)).await {
            let header = message.header();
            if let (Some(path), Some(member)) = (header.path(), header.member()) {
                let body = String::from_utf8_lossy(message.body().data()).into_owned();
                println!("{path} {member} {}", body.escape_debug());
            }
        }
    });
}

#[test]
fn the_own_run_is_seen_and_ended_by_every_client() {
    needs_bus!();
    let rig = Rig::system();

    let by_busctl = rig.attach(ANN);
    let path = by_busctl.path();
    assert_eq!(rig.busctl(ANN, &["get-property", NAME, &path, RUN, "Phase"]).0, "s \"running\"");
    assert_eq!(rig.busctl(ANN, &["get-property", NAME, &path, RUN, "UID"]).0, format!("u {ANN}"));
    let tree = rig.busctl(ANN, &["tree", NAME]).0;
    assert!(tree.contains(&path), "{tree}");
    let introspected = rig.busctl(ANN, &["introspect", NAME, &path]).0;
    assert!(introspected.contains(".Freeze") && introspected.contains("emits-change"), "{introspected}");
    let killed = rig.call(ANN, &["KillRun", "sss", &by_busctl.run, "graceful", "why"]).0;
    assert!(killed.starts_with("a{sv}") && killed.contains(&by_busctl.run), "{killed}");
    assert!(rig.outcome(&by_busctl.run).contains("\"killed\""));

    let by_gdbus = rig.attach(ANN);
    let phase = rig.gdbus(ANN, &by_gdbus.path(), "org.freedesktop.DBus.Properties.Get", &[RUN, "Phase"]).0;
    assert_eq!(phase, "(<'running'>,)");
    let xml = rig.says(ANN, "gdbus", &["introspect", "--system", "--dest", NAME, "--object-path", &by_gdbus.path()]).0;
    assert!(xml.contains("interface org.guardian.Guardian1.Run"), "{xml}");
    let killed = rig.gdbus(ANN, &by_gdbus.path(), "org.guardian.Guardian1.Run.Kill", &["force", "why"]).0;
    assert!(killed.contains("'KillMode': <'force'>"), "{killed}");
    assert!(rig.outcome(&by_gdbus.run).contains("\"killed\""));

    let by_python = rig.attach(ANN);
    let done = rig.python(ANN, "client.py", &[&by_python.run]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(said, "phase running\nlisted True\nmanaged True\nmode force\noutcome killed\n", "{done:?}");
}

#[test]
fn a_child_that_has_become_somebody_else_is_not_taken_over() {
    needs_bus!();
    let rig = Rig::system();
    let program = rig.path("sleep-as-root");
    std::fs::copy("/bin/sleep", &program).unwrap();
    rustix::fs::chmod(&program, rustix::fs::Mode::from_raw_mode(0o4755)).unwrap();
    let said = |program: &str| {
        let done = rig.python(ANN, "attach.py", &["--executed", program]).stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    let own = said("/bin/sleep");
    assert!(is_run_id(&own), "as ANN it is taken: {own}");
    let refused = said(program.to_str().unwrap());
    assert!(refused.starts_with("org.guardian.Guardian1.Error.NotAuthorized process "), "{refused}");
    assert!(refused.contains("does not run as uid 1 in every respect"), "{refused}");
}

#[test]
fn root_sees_and_ends_everybodys_runs() {
    needs_bus!();
    let rig = Rig::system();
    let (ann, ben) = (rig.attach(ANN), rig.attach(BEN));
    let all = rig.call(0, &["ListRuns", "a{sv}", "0"]).0;
    assert!(all.starts_with("aa{sv} 2") && all.contains(&ann.run) && all.contains(&ben.run), "{all}");
    let of_ben = rig.call(0, &["ListRuns", "a{sv}", "1", "UID", "u", &BEN.to_string()]).0;
    assert!(of_ben.starts_with("aa{sv} 1") && of_ben.contains(&ben.run), "{of_ben}");
    for run in [&ann, &ben] {
        let killed = rig.call(0, &["KillRun", "sss", &run.run, "force", ""]).0;
        assert!(killed.contains("\"root\""), "{killed}");
        assert!(rig.outcome(&run.run).contains("\"killed\""));
    }
}

#[test]
fn somebody_elses_run_and_none_give_the_same_answer() {
    needs_bus!();
    let rig = Rig::system();
    let live = rig.attach(ANN);
    let over = rig.attach(ANN);
    rig.call(ANN, &["KillRun", "sss", &over.run, "force", ""]);
    rig.outcome(&over.run);
    let unknown = "run_ffffffffff00";
    let methods: [(&str, &[&str]); 9] = [
        ("KillRun", &["force", ""]),
        ("ReportExit", &["exited", "0"]),
        ("WaitRun", &["0"]),
        ("ExtendRun", &["max_runtime", "1"]),
        ("FreezeRun", &[]),
        ("ThawRun", &[]),
        ("GetRun", &[]),
        ("ShowRun", &[]),
        ("RunEvents", &["0", "1"]),
    ];
    let of_object = [
        ("org.freedesktop.DBus.Properties.Get", &[RUN, "Phase"][..]),
        ("org.freedesktop.DBus.Properties.GetAll", &[RUN]),
        ("org.freedesktop.DBus.Introspectable.Introspect", &[]),
        ("org.guardian.Guardian1.Run.Kill", &["force", ""]),
        ("org.guardian.Guardian1.Run.Freeze", &[]),
        ("org.guardian.Guardian1.Run.Processes", &[]),
        ("org.guardian.Guardian1.Run.NoSuchMethod", &[]),
    ];
    let beginning = |run: &str| run[..12].to_owned();
    for foreign in [&live.run, &over.run] {
        for (method, arguments) in methods {
            for shorten in [str::to_owned, beginning] {
                let ask = |run: &str| {
                    let run = shorten(run);
                    let method = format!("{NAME}.Manager.{method}");
                    let said = rig.gdbus(BEN, MANAGER[1], &method, &[&[&*run], arguments].concat()).0;
                    said.replace(&run, "RUN")
                };
                let said = ask(foreign);
                assert!(said.contains("org.guardian.Guardian1.Error.NoSuchRun"), "{method}: {said}");
                assert_eq!(said, ask(unknown), "{method}");
            }
        }
        for (method, arguments) in of_object {
            let ask = |run: &str| {
                let said = rig.gdbus(BEN, &format!("/org/guardian/Guardian1/run/{run}"), method, arguments).0;
                said.replace(run, "RUN")
            };
            let said = ask(foreign);
            assert!(said.contains("rror"), "{method}: {said}");
            assert_eq!(said, ask(unknown), "{method}");
        }
    }
    let tree = rig.busctl(BEN, &["tree", NAME]).0;
    assert!(!tree.contains("run_"), "{tree}");
    let objects =
        rig.gdbus(BEN, "/org/guardian/Guardian1/run", "org.freedesktop.DBus.ObjectManager.GetManagedObjects", &[]);
    assert!(!objects.0.contains("run_"), "{objects:?}");
    // It was not touched by all this.
    assert_eq!(rig.busctl(ANN, &["get-property", NAME, &live.path(), RUN, "Phase"]).0, "s \"running\"");
    for refused in [&["Events", "tu", "0", "9"][..], &["AuditVerify"], &["Reload"], &["Stop"]] {
        let said = rig.call(BEN, refused).0;
        assert!(said.contains("polkit may do this"), "{refused:?}: {said}");
    }
}

#[test]
fn a_list_has_ones_own_runs_and_others_only_for_who_may_see_them() {
    needs_bus!();
    let rig = Rig::system();
    let (ann, ben) = (rig.attach(ANN), rig.attach(BEN));
    let list = |filter: &[&str]| rig.call(BEN, &[&["ListRuns", "a{sv}"], filter].concat()).0;
    let own = list(&["0"]);
    assert!(own.starts_with("aa{sv} 1") && own.contains(&ben.run) && !own.contains(&ann.run), "{own}");
    assert_eq!(list(&["1", "UID", "u", &ANN.to_string()]), "aa{sv} 0");
    assert_eq!(list(&["2", "UID", "u", &ANN.to_string(), "Finished", "b", "true"]), "aa{sv} 0");
    let all = list(&["1", "AllUsers", "b", "true"]);
    assert!(all.contains("read-all"), "{all}");
}

#[test]
fn a_run_ends_with_its_client() {
    needs_bus!();
    let rig = Rig::system();
    let mut attached = rig.attach(ANN);
    attached.client.end(Signal::KILL);
    let outcome = rig.outcome(&attached.run);
    assert!(outcome.contains("client_gone"), "{outcome}");
}

#[test]
fn who_may_see_a_run_is_told_of_it_and_nobody_else() {
    needs_bus!();
    let rig = Rig::system();
    let listeners = [0, ANN, BEN].map(|uid| rig.listen(uid));
    let bens = rig.attach(BEN);
    let anns = rig.attach(ANN);
    rig.call(ANN, &["FreezeRun", "s", &anns.run]);
    rig.call(ANN, &["KillRun", "sss", &anns.run, "force", "enough"]);
    rig.outcome(&anns.run);
    rig.call(BEN, &["KillRun", "sss", &bens.run, "force", "enough"]);
    rig.outcome(&bens.run);
    let last = |run: &str| {
        let run = run.to_owned();
        move |line: &str| line.contains("RunFinished") && line.contains(&run)
    };
    let [root, ann, ben] = [(0, &bens), (1, &anns), (2, &bens)]
        .map(|(n, run)| listeners[n].until("the run's end is told", last(&run.run)).join("\n"));
    let tells_all = |heard: &str, run: &str| {
        let about: Vec<&str> = heard.lines().filter(|l| l.contains(run)).collect();
        let has = |member: &str| about.iter().any(|l| l.contains(member));
        has("InterfacesAdded") && has("PropertiesChanged") && has("InterfacesRemoved") && has("RunFinished")
    };
    assert!(tells_all(&root, &anns.run) && tells_all(&root, &bens.run), "{root}");
    assert!(tells_all(&ann, &anns.run) && !ann.contains(&bens.run), "{ann}");
    assert!(tells_all(&ben, &bens.run) && !ben.contains(&anns.run), "{ben}");
    for heard in [&root, &ann, &ben] {
        assert!(heard.contains("/org/guardian/Guardian1 EventAppended"), "{heard}");
        assert!(heard.contains("RunsActive") && heard.contains("RunsTotal"), "{heard}");
    }
}

#[test]
fn a_bus_that_is_restarted_is_served_again_and_runs_go_on() {
    needs_bus!();
    let mut rig = Rig::system();
    let pid = rig.guardiand.as_ref().unwrap().pid();
    let ann = rig.attach(ANN);
    for _ in 0..2 {
        rig.stop_bus();
        std::thread::sleep(Duration::from_millis(300));
        rig.start_bus();
        eventually("the name is taken again", || rig.has_owner(NAME).then_some(()));
        assert!(is_alive(pid), "it is the same instance");
        let phase = rig.busctl(ANN, &["get-property", NAME, &ann.path(), RUN, "Phase"]).0;
        // libdbus ends a client whose bus is gone, unless it says otherwise: then the run ends with it.
        assert!(phase == "s \"running\"" || !is_alive(ann.client.pid()), "{phase}");
    }
    let killed = rig.call(ANN, &["KillRun", "sss", &ann.run, "force", ""]).0;
    assert!(killed.contains(&ann.run), "{killed}");
}

#[test]
fn a_name_that_is_taken_is_an_error_that_says_by_whom() {
    needs_bus!();
    let rig = Rig::system();
    let second = rig.instance("second").output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    let pid = rig.guardiand.as_ref().unwrap().pid();
    assert!(said.contains(NAME) && said.contains(&format!("pid {pid}, guardiand")), "{said}");
}

#[test]
fn a_users_instance_serves_its_user_and_root_alone() {
    needs_bus!();
    let rig = Rig::session();
    let own = rig.attach(0);
    let described = rig.call(0, &["Describe"]).0;
    assert!(described.contains("\"Instance\" s \"user\""), "{described}");
    let refused = rig.call(ANN, &["GetRun", "s", &own.run]).0;
    assert!(refused.contains("does not serve"), "{refused}");
    let killed = rig.call(0, &["KillRun", "sss", &own.run, "graceful", ""]).0;
    assert!(killed.contains(&own.run), "{killed}");
    assert!(rig.outcome(&own.run).contains("\"killed\""));
}

#[test]
fn a_run_is_started_by_hand_with_the_command_alone() {
    needs_bus!();
    let rig = Rig::system();
    let start = |uid: u32, options: &[&str]| rig.call(uid, &[&["StartRun", "a{sv}"], options].concat()).0;
    let said = start(0, &["1", "Command", "as", "2", "sleep", "1000"]);
    let run = said.split('"').nth(1).unwrap_or_default().to_owned();
    assert!(is_run_id(&run), "{said}");
    rig.call(0, &["KillRun", "sss", &run, "force", ""]);
    assert!(rig.outcome(&run).contains("\"killed\""));
    let there = start(0, &["2", "Command", "as", "2", "sleep", "0", "WorkingDirectory", "s", "/tmp"]);
    assert!(there.contains("run_"), "{there}");
    // A child of root's instance would have root's rights.
    let refused = start(ANN, &["2", "Command", "as", "2", "sleep", "1000", "WorkingDirectory", "s", "/"]);
    assert!(refused.contains("cannot start a run of uid"), "{refused}");
    let as_root = start(ANN, &["2", "Command", "as", "1", "id", "UID", "u", "0"]);
    assert!(as_root.contains("start-run"), "{as_root}");
}

#[test]
fn what_is_far_too_large_is_refused_and_the_bus_goes_on() {
    needs_bus!();
    let rig = Rig::system();
    let ann = rig.attach(ANN);
    let reason = "x".repeat(100_000);
    let said = rig.call(ANN, &["KillRun", "sss", &ann.run, "force", &reason]).0;
    assert!(said.contains("larger than"), "{said}");
    assert_eq!(rig.busctl(ANN, &["get-property", NAME, &ann.path(), RUN, "Phase"]).0, "s \"running\"");
}
