//! Runs that are started, queued, listed a page at a time and ended over HTTP.

use std::process::Command;

use guardian::bus;
use guardian::model::{EventKind, Phase};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::*;
use crate::rig::*;

const START: &str = "/api/v1/workflows/local/run/builder";

fn sleeps() -> String {
    json!({"command": ["sleep", "1000"], "limits": {"max_runtime_usec": 60_000_000_u64}}).to_string()
}

#[test]
fn a_run_is_started_over_http_by_a_starter_and_by_nobody_else() {
    let web = Web::new();
    for token in [&web.viewer, &web.operator] {
        let refused = web.post(START, &sleeps()).bearer(token).send().is(403).json();
        assert!(refused["message"].as_str().unwrap().contains("this needs the role starter"), "{refused}");
    }
    web.post(START, &sleeps()).send().is(401);
    let cookie = web.cookie();
    web.post(START, &sleeps()).cookie(&cookie).header("Origin", &web.origin()).send().is(403);
    assert!(web.world.runs().is_empty());

    let made = web.world.path("made");
    let body = json!({
        "command": ["sh", "-c", "echo \"$A $PWD ${DIR-none}\" > \"$0\"; sleep 1000", made.to_str().unwrap()],
        "cwd": "/tmp", "env": {"A": "b c"}, "name": "nightly", "reason": "a test",
    });
    let reply = web.post(START, &body.to_string()).bearer(&web.starter).send();
    let started = reply.is(202).json();
    let run = started["run_id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&started["success"], &started["workflow_name"], &started["executor"], &started["status"], &started["queue"]),
        (&true.into(), &"builder".into(), &"local".into(), &"starting".into(), &Value::Null),
        "{started}"
    );
    let wrote = eventually("the command has written", || std::fs::read_to_string(&made).ok().filter(|s| !s.is_empty()));
    assert_eq!(wrote, "b c /tmp none\n");
    let shown = web.get(started["links"]["run"].as_str().unwrap()).bearer(&web.viewer).json();
    assert_eq!(
        (&shown["name"], &shown["detached"], &shown["executor"]),
        (&"nightly".into(), &true.into(), &"local".into())
    );
    let accepted = web.world.audit().into_iter().find(|row| row.kind == EventKind::RunAccepted).unwrap();
    assert_eq!(accepted.reason, "a test (token ci, guardian-web)");
    let status = web.get(started["links"]["status"].as_str().unwrap()).bearer(&web.viewer).json();
    assert_eq!((&status["status"], &status["run_id"]), (&"running".into(), &run.as_str().into()));
    let kill = web.post(started["links"]["kill"].as_str().unwrap(), "{}").bearer(&web.starter).json();
    assert_eq!(kill["receipt"]["survivors"], 0, "{kill}");
    web.world.assert_nothing_left();
}

#[test]
fn what_cannot_be_started_is_refused_with_what_to_do() {
    let web = Web::new();
    let file = web.world.path("file");
    std::fs::write(&file, "").unwrap();
    let at = |executor: &str, workflow: &str| format!("/api/v1/workflows/{executor}/run/{workflow}");
    for (path, body, status, said) in [
        (START.to_owned(), json!({}), 422, "command is missing"),
        (START.to_owned(), json!({"command": []}), 422, "a list of texts"),
        (START.to_owned(), json!({"command": "sleep"}), 422, "a list of texts"),
        (START.to_owned(), json!({"command": [""]}), 422, "empty"),
        (START.to_owned(), json!({"prompt": "fix it"}), 422, "a prompt alone is for claude-cli"),
        (START.to_owned(), json!({"command": ["true"], "cwd": "here"}), 422, "absolute"),
        (START.to_owned(), json!({"command": ["true"], "cwd": "/", "workspace_path": "/"}), 422, "leave out one"),
        (START.to_owned(), json!({"command": ["true"], "limits": {"max_runtime": "1h"}}), 422, "is not known here"),
        (START.to_owned(), json!({"command": ["true"], "env": {"A=B": "c"}}), 422, "by names without"),
        (START.to_owned(), json!({"command": ["true"], "uid": 0}), 422, "a number from 1"),
        (START.to_owned(), json!({"command": [file.to_str().unwrap()]}), 422, "could not be started"),
        (at("claude-cly", "builder"), json!({"command": ["true"]}), 422, "did you mean claude-cli?"),
        (at("local", ".hidden"), json!({"command": ["true"]}), 422, "is not a workflow name"),
    ] {
        let reply = web.post(&path, &body.to_string()).bearer(&web.starter).send();
        assert_eq!(reply.status, status, "{path} {body}: {reply:?}");
        let message = reply.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(said), "{path} {body}: {message}");
    }
    web.world.finished();
}

#[test]
fn runs_are_listed_a_page_at_a_time_and_none_twice() {
    let web = Web::new();
    let script = "exit 0";
    let mut all: Vec<String> =
        (0..7).map(|_| web.world.detach(&["--readiness", "exec"], &["sh", "-c", script])).collect();
    web.world.finished();
    all.push(web.sleeper("builder"));
    all.reverse();
    let mut seen = Vec::new();
    let mut cursor = String::new();
    for pages in 1.. {
        let page = web.get(&format!("/api/v1/workflows/local/runs?finished=true&limit=3{cursor}"));
        let page = page.bearer(&web.viewer).json();
        let runs = page["runs"].as_array().unwrap();
        seen.extend(runs.iter().map(|run| run["run_id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => {
                assert_eq!((pages, runs.len()), (3, 2));
                break;
            }
        }
    }
    assert_eq!(seen, all);
    let get = |query: &str| web.get(&format!("/api/v1/workflows/{query}")).bearer(&web.viewer);
    assert_eq!(get("local/runs?workflow=builder").json()["runs"].as_array().unwrap().len(), 1);
    assert_eq!(get("other/runs?finished=true").json()["runs"], Value::Array(Vec::new()));
    get("local/runs?cursor=nonsense").send().is(422);
}

/// What clients of the original send and read, by a program of their kind.
#[test]
fn the_calls_of_the_originals_clients_work() {
    crate::needs_program!("python3");
    let config = "[workflow.builder]\nmax_running = 1\n";
    let web = Web::configured(config);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/web/starts.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(format!("http://{}", web.at)).arg(&web.starter).arg(&web.viewer);
    let done = start(&mut python).wait();
    assert_eq!(done.code, Some(0), "{}\n{}", done.stdout, done.stderr);
    web.world.assert_nothing_left();
}

/// What people do to end a run.
#[derive(Debug, Clone, Copy)]
enum Door {
    Cli,
    Bus,
    Http,
    /// Its client is killed, as a closed terminal or a cancelled job does.
    Client,
}

/// A plain command and an agent with their servers, ended by each: the same end and proof, and the same on record.
#[test]
fn a_run_ends_alike_through_each_door_whatever_executes_it() {
    crate::needs_program!("python3");
    crate::needs_program!("busctl");
    let claude = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agents/claude");
    let web = Web::configured(&format!(
        "[workflow.local]\nexecutor = \"local\"\n[workflow.claude-cli]\nexecutor = \"claude-cli\"\n\
         [executor.claude-cli]\ncommand = {claude:?}\n"
    ));
    let world = &web.world;
    let prompt = world.path("prompt");
    std::fs::write(&prompt, "in_turn").unwrap();
    let agent = ["--prompt-file", prompt.to_str().unwrap(), "--", "claude"];
    let plain = ["--", "sh", "-c", "setsid sleep 1000 & echo up; exec sleep 1000"];
    let mut records = Vec::new();
    for (executor, words) in [("local", &plain[..]), ("claude-cli", &agent[..])] {
        for door in [Door::Cli, Door::Bus, Door::Http, Door::Client] {
            let options = ["run", "--workflow", executor, "--grace", "2s"];
            let client = start(&mut world.command([&options[..], words].concat()));
            let run = eventually("it is at work", || {
                let runs = world.runs().into_iter().find(|run| run.phase == Phase::Running);
                runs.filter(|run| executor == "local" || run.heartbeats.status == "turn 1: Bash")
            });
            match door {
                Door::Cli => drop(world.guardian(["kill", "--reason", "a test", &run.run_id]).exits(0)),
                Door::Bus => {
                    let manager = [bus::BUS_NAME, bus::MANAGER_PATH, bus::MANAGER_INTERFACE, "KillRun"];
                    let mut busctl = Command::new("busctl");
                    busctl.arg(format!("--address=unix:path={}", world.state().join("bus.sock").display()));
                    busctl.arg("call").args(manager).args(["sss", &run.run_id, "graceful", "a test"]);
                    start(&mut busctl).wait().exits(0);
                }
                Door::Http => {
                    let path = format!("/api/v1/workflows/{executor}/run/{}/kill", run.run_id);
                    web.post(&path, r#"{"reason": "a test"}"#).bearer(&web.operator).send().is(200);
                }
                Door::Client => signal(client.pid(), Signal::KILL),
            }
            let told = client.wait().code;
            let ended =
                eventually("it is over", || Some(world.show(&run.run_id)).filter(|r| r.phase == Phase::Finished));
            let by_client = matches!(door, Door::Client);
            assert_eq!(told, (!by_client).then_some(137), "{door:?}");
            world.assert_killed(&ended, if by_client { "client_gone" } else { "requested" });
            assert!(ended.receipt().terminated >= 2, "{door:?}: {ended:?}");
            let audit = world.audit();
            let rows: Vec<EventKind> =
                audit.iter().filter(|row| row.run_id.as_ref() == Some(&run.run_id)).map(|row| row.kind).collect();
            records.push((executor, door, rows));
        }
    }
    for (executor, door, rows) in &records {
        assert_eq!(rows, &records[0].2, "{executor}, {door:?}");
    }
    world.assert_audit_holds();
    world.assert_nothing_left();
}
