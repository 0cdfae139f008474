//! guardian-notify against servers that fail, hang, lead elsewhere and recover, beside a real instance with real runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod channels;
#[path = "../common/mod.rs"]
mod common;
mod encrypted;
mod rig;

use std::collections::HashMap;

use common::*;
use guardian::model::{EventKind, Health};
use rig::*;

/// A webhook's table.
fn hook(name: &str, server: &Server, more: &str) -> String {
    let url = server.url(&format!("/{name}"));
    format!("[channel.{name}]\ntype = \"webhook\"\nurl = \"{url}\"\nallow_private = true\ntimeout = \"2s\"\n{more}\n")
}

fn id_in(body: &str) -> serde_json::Value {
    serde_json::from_str::<serde_json::Value>(body).unwrap()["events"][0]["id"].clone()
}

const FAST: &str = "[delivery]\nretry_max = \"1s\"\n";

/// The whole of it: nothing is lost and nothing is told twice over kill -9, in order for each run, whatever other channels do.
#[test]
fn each_event_is_told_in_order_over_crashes_whatever_other_channels_do() {
    let world = world();
    let (good, flaky, stuck) =
        (Server::start(Mode::Status(200)), Server::start(Mode::Status(500)), Server::start(Mode::Hang));
    let elsewhere = Server::start(Mode::Status(200));
    let leads = Server::start(Mode::Redirect(elsewhere.url("/")));
    let route = "[[route]]\nevents = [\"warning\", \"critical\", \"killed\"]\nchannels = [\"good\", \"flaky\", \"stuck\", \
                 \"leads\"]\ndedup_window = \"1h\"\n";
    let channels: String = [("good", &good), ("flaky", &flaky), ("stuck", &stuck), ("leads", &leads)]
        .map(|(name, server)| hook(name, server, ""))
        .concat();
    let mut notify = Notify::of(&world, &format!("{FAST}{channels}{route}"));
    notify.start();
    let mut runs: Vec<String> = (0..4).map(|_| troubled(&world)).collect();
    // Killed in the middle: after the first message, and while one is under way.
    eventually("the first message", || (!good.taken().is_empty()).then_some(()));
    notify.crash();
    good.now(Mode::Hang);
    // All that there was may have been told by then.
    runs.push(troubled(&world));
    notify.start();
    let hung = |server: &Server| server.requests().iter().filter(|r| !r.taken).count();
    eventually("a message is under way", || (hung(&good) > 0).then_some(()));
    notify.crash();
    let before = good.requests().len();
    let under_way = good.requests().iter().rfind(|r| !r.taken).unwrap().body.clone();
    good.now(Mode::Status(200));
    // What happens while nobody reads is read later.
    eventually("the run is critical", || (world.show(&runs[0]).health == Health::Critical).then_some(()));
    world.guardian(["kill", "--force", &runs[0]]).exits(0);
    notify.start();
    for run in &runs[1..] {
        eventually("the run is critical", || (good.story(run).len() == 2).then_some(()));
        world.guardian(["kill", "--force", run]).exits(0);
    }
    let story = ["warning", "critical", "killed"];
    for run in &runs {
        eventually("everything is told", || (good.story(run) == story).then_some(()));
    }
    let sent_again = |r: &Request| r.taken && r.json()["events"][0]["id"] == id_in(&under_way);
    assert!(good.requests()[before..].iter().any(sent_again), "what was under way is sent again, with its id");
    // A server that recovers gets all of it.
    assert!(flaky.taken().is_empty() && !flaky.sent().is_empty());
    flaky.now(Mode::Status(200));
    for run in &runs {
        eventually("everything is told there, too", || (flaky.story(run) == story).then_some(()));
    }
    for server in [&good, &flaky] {
        let mut ids: HashMap<(String, String), Vec<String>> = HashMap::new();
        server.taken().into_iter().for_each(|t| ids.entry((t.run, t.event)).or_default().push(t.id));
        for (what, mut all) in ids {
            all.dedup();
            assert_eq!(all.len(), 1, "{what:?} was told more than once in its window");
        }
    }
    assert!(elsewhere.requests().is_empty(), "a redirect was followed");
    assert!(notify.said().contains("a redirect, which is not followed"), "{}", notify.said());
    assert!(!stuck.sent().is_empty() && stuck.taken().is_empty());
    notify.stop();
}

#[test]
fn the_same_is_told_once_in_its_window_and_groups_are_one_message() {
    let world = world();
    let (every, once, grouped) =
        (Server::start(Mode::Status(200)), Server::start(Mode::Status(200)), Server::start(Mode::Status(200)));
    let config = [
        FAST,
        &hook("every", &every, ""),
        &hook("once", &once, ""),
        &hook("grouped", &grouped, ""),
        "[[route]]\nname = \"e\"\nchannels = [\"every\"]\ndedup_window = \"0s\"\n",
        "[[route]]\nname = \"o\"\nchannels = [\"once\"]\ndedup_window = \"1h\"\n",
        "[[route]]\nname = \"g\"\nevents = [\"killed\"]\nchannels = [\"grouped\"]\ngroup_window = \"5s\"\n",
        "[[route]]\nname = \"n\"\nworkflow = \"nobody*\"\nchannels = [\"every\"]\n",
    ]
    .concat();
    let mut notify = Notify::of(&world, &config);
    notify.start();
    let run = troubled(&world);
    let criticals = |server: &Server| server.taken().iter().filter(|t| t.run == run && t.event == "critical").count();
    eventually("it is critical", || (criticals(&every) == 1).then_some(()));
    // More time takes it back, and then it is so again.
    world.guardian(["extend", &run, "max_runtime", "4s"]).exits(0);
    eventually("it is critical again", || (criticals(&every) == 2).then_some(()));
    let others: Vec<String> = (0..3).map(|_| troubled(&world)).collect();
    for run in others.iter().chain([&run]) {
        world.guardian(["kill", "--force", run]).exits(0);
    }
    for run in others.iter().chain([&run]) {
        eventually("each kill is told", || grouped.story(run).contains(&"killed".to_owned()).then_some(()));
        eventually("and of each run the end", || once.story(run).contains(&"killed".to_owned()).then_some(()));
    }
    assert_eq!(criticals(&once), 1, "{:?}", once.taken());
    assert!(once.story(&run).iter().filter(|event| *event == "warning").count() <= 1);
    assert_eq!(grouped.taken().len(), 4);
    assert!(grouped.requests().len() < 4, "{} messages", grouped.requests().len());
    notify.stop();
}

#[test]
fn a_secret_is_in_no_log_and_in_no_database() {
    let world = world();
    let server = Server::start(Mode::Status(200));
    let dir = tempfile::tempdir().unwrap();
    let key = secret(dir.path(), "key", "the-signing-key\n");
    let url = secret(dir.path(), "url", &server.url("/services/T0/the-secret-path"));
    let chat = format!("[channel.chat]\ntype = \"slack\"\nurl_file = \"{}\"\nallow_private = true\n", url.display());
    let hook = hook("hook", &server, &format!("secret_file = \"{}\"", key.display()));
    let route = "[[route]]\nevents = [\"warning\"]\nchannels = [\"hook\", \"chat\"]\n";
    let mut notify = Notify::of(&world, &format!("{FAST}{hook}{chat}{route}"));
    server.now(Mode::Status(503));
    notify.start();
    let limits = ["--readiness", "exec", "--max-runtime", "2s", "--max-runtime-action", "warn"];
    let run = world.detach(&limits, &["sh", "-c", "sleep 1000; :", "--argument-of-it"]);
    eventually("both fail", || {
        let paths: Vec<String> = server.requests().into_iter().map(|r| r.path).collect();
        (paths.iter().any(|p| p == "/hook") && paths.iter().any(|p| p.ends_with("the-secret-path"))).then_some(())
    });
    eventually("it is said", || (notify.said().matches("answers 503").count() >= 2).then_some(()));
    notify.assert_nowhere("the-signing-key");
    notify.assert_nowhere("the-secret-path");
    server.now(Mode::Status(200));
    let signed = eventually("it is taken", || server.requests().into_iter().find(|r| r.taken && r.path == "/hook"));
    channels::assert_signed(&signed, "the-signing-key");
    assert!(!signed.body.contains("--argument-of-it"), "{}", signed.body);
    assert_eq!(signed.json()["events"][0]["run"]["run_id"], run.as_str());
    notify.stop();
    notify.assert_nowhere("the-signing-key");
    world.guardian(["kill", "--force", &run]).exits(0);
}

#[test]
fn a_database_that_was_set_aside_is_trouble_and_the_new_audit_is_read_from_its_beginning() {
    let world = world();
    let server = Server::start(Mode::Status(200));
    let route = "[[route]]\nevents = [\"trouble\", \"killed\"]\nchannels = [\"hook\"]\n";
    let mut notify = Notify::of(&world, &format!("{FAST}{}{route}", hook("hook", &server, "")));
    notify.start();
    let run = world.detach(&["--readiness", "exec"], &["sleep", "1000"]);
    world.guardian(["kill", "--force", &run]).exits(0);
    eventually("the kill is told", || (!server.taken().is_empty()).then_some(()));
    world.crash_instance();
    let database = world.database();
    std::fs::write(&database, vec![b'x'; 16384]).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", database.display()));
    }
    world.guardian(["ps"]).exits(0);
    world.assert_audited(EventKind::StoreSetAside, 1);
    eventually("it is told", || server.taken().iter().any(|t| t.event == "trouble" && t.run.is_empty()).then_some(()));
    assert!(notify.said().contains("the audit has begun anew"), "{}", notify.said());
    notify.stop();
}

#[test]
fn a_message_is_given_up_when_its_time_is_over_and_that_is_said() {
    let world = world();
    let server = Server::start(Mode::Status(500));
    let delivery = "[delivery]\nretry_max = \"2s\"\ngive_up_after = \"10s\"\n";
    let route = "[[route]]\nevents = [\"killed\"]\nchannels = [\"hook\"]\n";
    let mut notify = Notify::of(&world, &format!("{delivery}{}{route}", hook("hook", &server, "")));
    notify.start();
    let run = world.detach(&["--readiness", "exec"], &["sleep", "1000"]);
    world.guardian(["kill", "--force", &run]).exits(0);
    let said = format!("1 messages were given up after 10s, about {run}");
    eventually("it is given up", || notify.said().contains(&said).then_some(()));
    let tries = server.requests().len();
    assert!((3..=15).contains(&tries), "{tries} tries in ten seconds, with backoff");
    notify.stop();
}
