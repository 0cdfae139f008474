//! Events: soon, in order, and with nothing lost between two connections.

use std::time::{Duration, Instant};

use crate::common::*;
use crate::rig::*;

#[test]
fn a_run_is_told_of_within_a_second_of_its_start() {
    let web = Web::new();
    let listener = web.events("", None);
    for _ in 0..3 {
        let run = web.sleeper("builder");
        let begin = Instant::now();
        let told = listener.until("the run is told", |told| told.kind == "run" && told.data["run_id"] == run.as_str());
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(told.data["workflow"], "builder");
    }
}

#[test]
fn who_comes_back_has_missed_nothing() {
    let web = Web::new();
    let first = web.events("", None);
    let run = web.sleeper("builder");
    let mut rows = first.rows_until("run_started");
    drop(first);
    // While nobody listens.
    web.post(&web.kill_path(&run), "{}").bearer(&web.operator).send().is(200);
    for _ in 0..5 {
        web.world.run(&[], &["true"]).exits(0);
    }
    let second = web.events("", rows.last().copied());
    rows.extend(second.rows_until("kill_intent"));
    let other = web.sleeper("lina");
    let last = second.until("it goes on", |told| told.kind == "audit" && told.data["run_id"] == other.as_str());
    drop(second);
    let third = web.events(&format!("?after={}", rows.last().unwrap()), None);
    let more = loop {
        let told = third.until("the rest", |told| told.kind == "audit");
        rows.extend(told.id);
        if told.id == last.id {
            break rows.clone();
        }
    };
    assert!(more.windows(2).all(|w| w[1] == w[0] + 1), "{more:?}");
    assert_eq!(web.world.audit().iter().filter(|row| more.contains(&row.seq)).count(), more.len());
}

#[test]
fn many_listeners_are_all_told_and_the_end_of_a_run_too() {
    let web = Web::new();
    let listeners: Vec<Listener> = (0..20).map(|_| web.events("", None)).collect();
    let done = web.world.run(&["--detach", "--workflow", "lina"], &["sh", "-c", "sleep 0.3; exit 3"]);
    let run = done.stdout.trim().to_owned();
    for listener in &listeners {
        let over = listener.until("it is over", |told| told.kind == "run" && told.data["phase"] == "finished");
        assert_eq!((over.data["run_id"].as_str(), over.data["exit_status"].as_i64()), (Some(&*run), Some(3)));
    }
    eventually("they are counted", || {
        web.get("/metrics").send().body.contains("guardian_web_sse_clients 20\n").then_some(())
    });
    drop(listeners);
    eventually("and are gone", || {
        web.get("/metrics").send().body.contains("guardian_web_sse_clients 0\n").then_some(())
    });
}

#[test]
fn who_does_not_read_is_cut_off_and_nothing_is_kept_for_them() {
    let web = Web::new();
    // Their connection is open, and they take nothing of it.
    let ask = web.get("/api/v1/events?after=0").bearer(&web.viewer);
    let stalled: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = connect(web.at);
            std::io::Write::write_all(&mut stream, ask.text().as_bytes()).unwrap();
            stream
        })
        .collect();
    let reader = web.events("", None);
    let run = web.sleeper("builder");
    reader.until("others are told", |told| told.kind == "run" && told.data["run_id"] == run.as_str());
    drop(stalled);
    eventually("they are forgotten", || {
        web.get("/metrics").send().body.contains("guardian_web_sse_clients 1\n").then_some(())
    });
}
