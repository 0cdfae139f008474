//! The bus over a real socket, with a scripted engine on the other end of the command channel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod fake;

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::process::Command as Process;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guardian::bus::client::Client;
use guardian::bus::{self, RunFilter, Signal};
use guardian::daemon::command::{Answer, Command, LaunchRequest};
use guardian::model::*;
use zbus::export::futures_core::Stream;

use fake::{Instance, RESERVED, Show, finished, id, instance, live};

fn quiet() -> Instance {
    instance(Box::new(|_, _| Ok(Answer::Done)))
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s") })
}

fn row(seq: u64, run: Option<RunId>) -> AuditRow {
    let event = AuditEvent {
        at: Wall(seq),
        kind: EventKind::KillIntent,
        run,
        workflow: run.map(|_| "builder".into()),
        actor: Actor::User { uid: 5, name: "ann".into() },
        reason: "because".into(),
        details: serde_json::json!({"mode": "graceful"}),
    };
    AuditRow { seq, event, hash: format!("{seq:064x}") }
}

#[test]
fn a_view_arrives_as_it_was_published() {
    let i = quiet();
    let (a, b) = (live(1, i.uid), finished(2, i.uid));
    i.published.show(a.clone());
    i.shelf.runs.lock().unwrap().push(b.clone());
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        assert_eq!(client.show(&id(1).to_string()).await, Ok(a.clone()));
        assert_eq!(client.show(&id(2).to_string()).await, Ok(b.clone()));
        assert_eq!(client.list(&RunFilter::default()).await, Ok(vec![a.clone()]));
        let all = RunFilter { finished: true, ..RunFilter::default() };
        assert_eq!(client.list(&all).await, Ok(vec![a.clone(), b.clone()]));
        let none = RunFilter { workflow: Some("lina".into()), ..all };
        assert_eq!(client.list(&none).await, Ok(vec![]));
    });
}

#[test]
fn statistics_are_asked_for_by_workflow_and_time_and_nothing_else() {
    let i = quiet();
    i.shelf.runs.lock().unwrap().extend([finished(2, i.uid), finished(3, i.uid)]);
    let over = finished(2, i.uid).finished_at.unwrap();
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        let told = |filter: RunFilter| {
            let client = client.clone();
            async move { client.statistics(&filter).await.map(|all| all.iter().map(|s| s.outcomes.total()).sum::<u64>()) }
        };
        assert_eq!(told(RunFilter::default()).await, Ok(2));
        assert_eq!(told(RunFilter { since: Some(over), ..RunFilter::default() }).await, Ok(2));
        assert_eq!(told(RunFilter { since: Some(Wall(over.0 + 1)), ..RunFilter::default() }).await, Ok(0));
        assert_eq!(told(RunFilter { workflow: Some("no".into()), ..RunFilter::default() }).await, Ok(0));
        // What means nothing here is not sent.
        assert_eq!(told(RunFilter { phase: Some(Phase::Running), limit: 1, ..RunFilter::default() }).await, Ok(2));
    });
    let Some(text) = busctl(
        &i,
        &[
            "call",
            bus::BUS_NAME,
            bus::MANAGER_PATH,
            bus::MANAGER_INTERFACE,
            "Statistics",
            "a{sv}",
            "1",
            "Limit",
            "u",
            "5",
        ],
    ) else {
        return;
    };
    assert!(text.contains("\"Limit\" is not a filter of statistics"), "{text}");
}

#[test]
fn a_launch_arrives_whole_and_is_checked_before_the_engine_sees_it() {
    let seen = Arc::new(Mutex::new(None));
    let saw = seen.clone();
    let i = instance(Box::new(move |command, _| match command {
        Command::Start { request } | Command::Attach { request, .. } => {
            *saw.lock().unwrap() = Some(request.clone());
            Ok(Answer::Run(id(5)))
        }
        _ => Ok(Answer::Done),
    }));
    let request = LaunchRequest {
        workflow: Some("lina".into()),
        argv: vec![b"a".to_vec(), b"\xff".to_vec()],
        env: vec![b"K=V".to_vec()],
        cwd: b"/".to_vec(),
        ..LaunchRequest::default()
    };
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        assert_eq!(client.start(&request).await, Ok(id(5)));
        assert_eq!(seen.lock().unwrap().take().unwrap().argv, request.argv);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(client.attach(&request, file.as_fd()).await, Ok(id(5)));
        assert!(seen.lock().unwrap().take().is_some());
        let bad = LaunchRequest { cwd: b"relative".to_vec(), ..request.clone() };
        assert_eq!(client.start(&bad).await.unwrap_err().kind, ErrorKind::InvalidArgument);
        assert!(seen.lock().unwrap().is_none(), "the engine was not asked");
        let large = LaunchRequest { argv: vec![vec![b'x'; 2 << 20]], ..request.clone() };
        assert_eq!(client.start(&large).await.unwrap_err().kind, ErrorKind::InvalidArgument);
        assert_eq!(client.start(&request).await, Ok(id(5)), "the connection outlives a refusal");
    });
}

#[test]
fn a_reserved_run_comes_with_its_cgroup_where_the_engine_has_one() {
    let i = quiet();
    let request = LaunchRequest { argv: vec![b"true".to_vec()], cwd: b"/".to_vec(), ..LaunchRequest::default() };
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        let (reserved, cgroup) = client.reserve(&request).await.unwrap();
        assert_eq!((reserved, cgroup.is_none()), (RESERVED, true));
        let dir = i.socket.with_file_name("cgroup");
        std::fs::create_dir(&dir).unwrap();
        let (_, cgroup) = client.reserve(&request).await.unwrap();
        let (given, expected) = (rustix::fs::fstat(cgroup.unwrap()).unwrap(), rustix::fs::stat(&dir).unwrap());
        assert_eq!((given.st_dev, given.st_ino), (expected.st_dev, expected.st_ino));
    });
}

#[test]
fn a_hundred_simultaneous_kills_get_a_hundred_equal_answers() {
    let uid = rustix::process::getuid().as_raw();
    let answer = KillAnswer {
        run: id(1),
        mode: KillMode::Graceful,
        reason: KillReason::Requested { text: "enough".into() },
        actor: Actor::User { uid, name: "root".into() },
        requested_at: Wall(17),
    };
    let given = answer.clone();
    let i = instance(Box::new(move |_, _| {
        std::thread::sleep(Duration::from_micros(300));
        Ok(Answer::Kill(given.clone()))
    }));
    i.published.show(live(1, i.uid));
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let client = client.clone();
            calls.spawn(async move { client.kill(&id(1).to_string(), KillMode::Graceful, "enough").await });
        }
        let answers = calls.join_all().await;
        assert_eq!(answers.len(), 100);
        assert!(answers.iter().all(|a| a.as_ref() == Ok(&answer)), "{answers:?}");
    });
}

#[test]
fn a_run_is_found_by_a_unique_beginning_only_by_who_may_see_it() {
    let i = quiet();
    i.published.show(live(0x1111_0000_0001, i.uid));
    i.published.show(live(0x1111_0000_0002, i.uid));
    i.shelf.runs.lock().unwrap().push(finished(0x2222_0000_0000, i.uid));
    i.shelf.runs.lock().unwrap().push(finished(0x3333_0000_0000, i.uid + 1));
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        let kind = async |text: &str| client.show(text).await.map(|v| v.spec.id).map_err(|e| e.kind);
        assert_eq!(kind("run_111100000001").await, Ok(id(0x1111_0000_0001)));
        assert_eq!(kind("22").await, Ok(id(0x2222_0000_0000)));
        assert_eq!(kind("run_22").await, Ok(id(0x2222_0000_0000)));
        assert_eq!(kind("1").await, Err(ErrorKind::AmbiguousRunId));
        assert_eq!(kind("4").await, Err(ErrorKind::NoSuchRun));
        assert_eq!(kind("RUN_22").await, Err(ErrorKind::InvalidRunId));
        assert_eq!(kind("").await, Err(ErrorKind::InvalidRunId));
        if i.uid != 0 {
            assert_eq!(kind("run_333300000000").await, Err(ErrorKind::NoSuchRun));
        }
        let over = client.kill("22", KillMode::Force, "").await.unwrap_err();
        assert_eq!(over.kind, ErrorKind::AlreadyFinished);
    });
}

#[test]
fn a_live_run_is_explained_as_it_is_and_a_killed_one_as_it_was() {
    let i = quiet();
    let killed = finished(2, i.uid);
    let receipt = killed.receipt.clone().unwrap();
    i.published.show(live(1, i.uid));
    i.shelf.runs.lock().unwrap().extend([killed, RunView { receipt: None, ..finished(3, i.uid) }]);
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        let now = client.explain("run_000000000001").await.unwrap();
        let pid = live(1, i.uid).spec.main.unwrap().pid;
        assert_eq!(now.sentence, format!("sh (pid {pid}) waits for something that cannot be read here"));
        assert_eq!((now.run, now.is_kept, now.seen_at, now.evidence.total), (id(1), false, Wall(6), 1));
        assert_eq!(now.details.len(), 1);
        let kept = client.explain("run_000000000002").await.unwrap();
        assert_eq!((kept.sentence, kept.is_kept, kept.seen_at), (receipt.explanation, true, receipt.requested_at));
        assert_eq!(kept.evidence.processes, receipt.processes);
        let kind = async |text: &str| client.explain(text).await.unwrap_err().kind;
        assert_eq!(kind("run_000000000003").await, ErrorKind::AlreadyFinished);
        assert_eq!(kind("run_000000000004").await, ErrorKind::NoSuchRun);
        assert_eq!(kind("run_0").await, ErrorKind::AmbiguousRunId);
    });
}

#[test]
fn a_wait_ends_with_the_run_or_with_its_time() {
    let i = quiet();
    i.published.show(live(1, i.uid));
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        let early = client.wait("run_000000000001", Some(Duration::from_millis(30))).await.unwrap_err();
        assert_eq!(early.kind, ErrorKind::TimedOut);
        let end = finished(1, i.uid);
        let (published, given) = (i.published.clone(), end.clone());
        let waiting = client.wait("0", None);
        let ending = async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            published.finish(given);
        };
        let (view, ()) = tokio::join!(waiting, ending);
        assert_eq!(view, Ok(end.clone()));
        assert_eq!(client.wait("run_000000000001", None).await, Ok(end));
    });
}

#[test]
fn the_audit_is_read_by_cursor_and_by_run() {
    let i = quiet();
    i.published.show(live(1, i.uid));
    let rows: Vec<_> = (1..=5).map(|n| row(n, (n % 2 == 0).then(|| id(1)))).collect();
    *i.shelf.rows.lock().unwrap() = rows.clone();
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        assert_eq!(client.events(2, 2, None).await, Ok(rows[2..4].to_vec()));
        assert_eq!(client.events(0, 9, Some("0")).await, Ok(vec![rows[1].clone(), rows[3].clone()]));
        let report = client.verify().await.unwrap();
        assert_eq!((report.rows, report.broken), (5, Some((2, "hash".into()))));
        assert_eq!(client.describe().await.unwrap().last_sequence, 5);
    });
}

#[test]
fn an_instance_that_goes_away_is_unavailable() {
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(there);
    assert_eq!(wait(Client::over(here)).unwrap_err().kind, ErrorKind::Unavailable);
    let missing = wait(Client::connect(Path::new("/nowhere/bus.sock"))).unwrap_err();
    assert_eq!(missing.kind, ErrorKind::Unavailable);
}

#[test]
fn open_connections_are_counted() {
    let mut i = quiet();
    wait(async {
        let client = Client::connect(&i.socket).await.unwrap();
        i.connections.wait_for(|n| *n == 1).await.unwrap();
        drop(client);
        i.connections.wait_for(|n| *n == 0).await.unwrap();
    });
}

#[test]
fn a_long_state_directory_can_be_connected_to() {
    let i = quiet();
    let long = i.socket.parent().unwrap().join("d".repeat(100));
    std::os::unix::fs::symlink(i.socket.parent().unwrap(), &long).unwrap();
    wait(async {
        let client = Client::connect(&long.join("bus.sock")).await.unwrap();
        assert_eq!(client.describe().await.unwrap().version, "1.2.3");
    });
}

/// One interface of an introspection, without indentation and comments.
fn interface(xml: &str, name: &str) -> String {
    let start = xml.find(&format!("<interface name=\"{name}\">")).unwrap_or_else(|| panic!("no {name} in {xml}"));
    let end = xml[start..].find("</interface>").unwrap() + start;
    let mut text = xml[start..end].to_owned();
    while let Some(comment) = text.find("<!--") {
        let over = text[comment..].find("-->").unwrap() + comment + 3;
        text.replace_range(comment..over, "");
    }
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_service_is_what_the_introspection_file_says() {
    let i = quiet();
    i.published.show(live(1, i.uid));
    let file = std::fs::read_to_string("packaging/dbus/org.guardian.Guardian1.xml").unwrap();
    wait(async {
        let stream = std::os::unix::net::UnixStream::connect(&i.socket).unwrap();
        let bus = zbus::connection::Builder::unix_stream(stream).p2p().build().await.unwrap();
        for (path, name) in
            [(bus::MANAGER_PATH.to_owned(), bus::MANAGER_INTERFACE), (bus::run_path(id(1)), bus::RUN_INTERFACE)]
        {
            let introspectable = Some("org.freedesktop.DBus.Introspectable");
            let reply = bus.call_method(None::<&str>, path, introspectable, "Introspect", &()).await.unwrap();
            let xml: String = reply.body().deserialize().unwrap();
            assert_eq!(interface(&xml, name), interface(&file, name), "the live service gave\n{xml}");
        }
    });
}

#[test]
fn the_properties_of_a_run_are_the_keys_of_its_view() {
    let i = quiet();
    i.shelf.runs.lock().unwrap().push(finished(1, i.uid));
    wait(async {
        let stream = std::os::unix::net::UnixStream::connect(&i.socket).unwrap();
        let bus = zbus::connection::Builder::unix_stream(stream).p2p().build().await.unwrap();
        let properties = Some("org.freedesktop.DBus.Properties");
        let get_all = bus.call_method(None::<&str>, bus::run_path(id(1)), properties, "GetAll", &bus::RUN_INTERFACE);
        let of_object: HashMap<String, zbus::OwnedVariant> = get_all.await.unwrap().body().deserialize().unwrap();
        let manager = Some(bus::MANAGER_INTERFACE);
        let run = id(1).to_string();
        let show = bus.call_method(None::<&str>, bus::MANAGER_PATH, manager, "ShowRun", &run);
        let of_view: HashMap<String, zbus::OwnedVariant> = show.await.unwrap().body().deserialize().unwrap();
        for (key, value) in &of_view {
            assert_eq!(of_object.get(key), Some(value), "{key}");
        }
    });
}

fn busctl(i: &Instance, arguments: &[&str]) -> Option<String> {
    let address = format!("--address=unix:path={}", i.socket.display());
    match Process::new("busctl").arg(address).arg("--no-pager").args(arguments).output() {
        Ok(out) => {
            let err = String::from_utf8_lossy(&out.stderr);
            Some(format!("{}{err}", String::from_utf8_lossy(&out.stdout)))
        }
        Err(e) if std::env::var_os("CI").is_some() => panic!("busctl (package systemd) is needed: {e}"),
        Err(e) => {
            eprintln!("SKIPPED: busctl (package systemd) cannot be run: {e}");
            None
        }
    }
}

#[test]
fn busctl_works_on_the_private_socket() {
    let i = quiet();
    i.published.show(live(1, i.uid));
    let run = bus::run_path(id(1));
    let Some(text) =
        busctl(&i, &["call", bus::BUS_NAME, bus::MANAGER_PATH, bus::MANAGER_INTERFACE, "GetRun", "s", "0"])
    else {
        return;
    };
    assert_eq!(text.trim(), format!("o \"{run}\""));
    let get = |path: &str, interface: &str, name: &str| {
        busctl(&i, &["get-property", bus::BUS_NAME, path, interface, name]).unwrap().trim().to_owned()
    };
    assert_eq!(get(bus::MANAGER_PATH, bus::MANAGER_INTERFACE, "Version"), "s \"1.2.3\"");
    assert_eq!(get(bus::MANAGER_PATH, bus::MANAGER_INTERFACE, "RunsActive"), "t 1");
    assert_eq!(get(&run, bus::RUN_INTERFACE, "Phase"), "s \"running\"");
    assert_eq!(get(&run, bus::RUN_INTERFACE, "CPUUsageNSec"), "t 12345000");
    let text = busctl(&i, &["introspect", bus::BUS_NAME, &run]).unwrap();
    assert!(text.contains("MemoryCurrentBytes") && text.contains(".Freeze"), "{text}");
    let text = busctl(&i, &["call", bus::BUS_NAME, &run, bus::RUN_INTERFACE, "Processes"]).unwrap();
    assert!(text.contains("4242"), "{text}");
    let filter = ["ListRuns", "a{sv}", "1", "Phase", "s", "running"];
    let head = ["call", bus::BUS_NAME, bus::MANAGER_PATH, bus::MANAGER_INTERFACE];
    let text = busctl(&i, &[&head[..], &filter[..]].concat()).unwrap();
    assert!(text.starts_with("aa{sv} 1"), "{text}");
    let text = busctl(&i, &[&head[..], &["KillRun", "sss", "9", "graceful", ""][..]].concat()).unwrap();
    assert!(text.contains("there is no run 9"), "{text}");
    let unknown = bus::run_path(id(9));
    let text = busctl(&i, &["get-property", bus::BUS_NAME, &unknown, bus::RUN_INTERFACE, "Phase"]).unwrap();
    assert!(text.contains("Unknown object"), "{text}");
}

#[test]
fn who_listens_is_told() {
    let i = quiet();
    wait(async {
        let stream = std::os::unix::net::UnixStream::connect(&i.socket).unwrap();
        let bus = zbus::connection::Builder::unix_stream(stream).p2p().build().await.unwrap();
        let mut heard = zbus::MessageStream::from(&bus);
        let driver = Some("org.freedesktop.DBus");
        let add = bus.call_method(None::<&str>, "/org/freedesktop/DBus", driver, "AddMatch", &"type='signal'");
        add.await.unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        // The listener begins just after AddMatch is answered.
        while i.signals.receiver_count() < 2 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        i.signals.send(Signal::EventAppended(41)).unwrap();
        i.signals.send(Signal::RunChanged(Arc::new(live(1, i.uid)))).unwrap();
        // Somebody else's.
        i.signals.send(Signal::RunChanged(Arc::new(live(2, i.uid + 1)))).unwrap();
        i.signals.send(Signal::RunFinished(Arc::new(finished(2, i.uid + 1)))).unwrap();
        i.signals.send(Signal::RunFinished(Arc::new(finished(1, i.uid)))).unwrap();
        let mut got = Vec::new();
        // Root is told of everybody's runs.
        let wanted = if i.uid == 0 { 9 } else { 5 };
        while got.len() < wanted {
            let message = std::future::poll_fn(|cx| Pin::new(&mut heard).poll_next(cx)).await.unwrap().unwrap();
            if message.header().message_type() == zbus::message::Type::Signal {
                got.extend(message.header().member().map(|m| m.to_string()));
            }
        }
        // The audit and the runs are told of side by side, each in order.
        got.retain(|member| member != "EventAppended");
        assert_eq!(got.len(), wanted - 1);
        let own = if i.uid == 0 { [&got[..1], &got[5..]].concat() } else { got };
        assert_eq!(own, ["InterfacesAdded", "PropertiesChanged", "InterfacesRemoved", "RunFinished"]);
    });
}
