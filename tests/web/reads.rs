//! What is read and changed over HTTP, and that each status tells the truth.

use guardian::model::EventKind;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::*;
use crate::rig::*;

#[test]
fn an_operator_ends_a_run_and_is_given_the_proof() {
    let web = Web::new();
    let run = web.sleeper("builder");
    let path = web.kill_path(&run);
    let reply = web.post(&path, r#"{"reason": "it is <stuck>"}"#).bearer(&web.operator).send();
    let kill = reply.is(200).json();
    assert_eq!((&kill["success"], &kill["cleanup_status"]), (&true.into(), &"complete".into()), "{kill}");
    assert_eq!((kill["run_id"].as_str(), kill["workflow_name"].as_str()), (Some(&*run), Some("builder")));
    assert_eq!((kill["kill_method"].as_str(), kill["receipt"]["survivors"].as_u64()), (Some("graceful"), Some(0)));
    assert!(kill["kill_duration_ms"].is_u64() && kill["killed_at"].is_string());
    assert!(kill["message"].as_str().unwrap().contains("0 survivors"), "{kill}");
    assert_eq!(kill["receipt"]["reason_text"], "it is <stuck> (token ops, guardian-web)");
    // Over means over.
    assert!(web.world.workload().is_empty());
    let said = web.world.audit();
    let intent = said.iter().find(|row| row.kind == EventKind::KillIntent).unwrap();
    assert!(intent.reason.ends_with("(token ops, guardian-web)"), "{intent:?}");

    web.post(&path, "{}").bearer(&web.operator).send().is(409);
    let status = web.get(&path.replace("/kill", "/status")).bearer(&web.viewer).json();
    assert_eq!((&status["status"], &status["result"]["kind"]), (&"killed".into(), &"killed".into()), "{status}");
    let forced = web.sleeper("builder");
    let path = format!("{}?force=true", web.kill_path(&forced));
    assert_eq!(web.post(&path, "").bearer(&web.operator).send().is(200).json()["kill_method"], "force");
    web.world.assert_nothing_left();
}

#[test]
fn a_kill_that_takes_long_is_answered_as_one_that_goes_on() {
    let web = Web::with(&["--kill-wait", "300ms"]);
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let run = web.world.detach(&["--grace", "3s", "--readiness", "exec"], &["sh", "-c", script]);
    let kill = web.post(&web.kill_path(&run), "{}").bearer(&web.operator).send().is(202).json();
    assert_eq!((&kill["success"], &kill["cleanup_status"]), (&Value::Null, &"pending".into()), "{kill}");
    assert_eq!(
        (&kill["receipt"], &kill["killed_at"], &kill["kill_duration_ms"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let over = eventually("the kill is over", || {
        let run = web.get(&format!("/api/v1/runs/{run}")).bearer(&web.viewer).json();
        (run["phase"] == "finished").then_some(run)
    });
    assert_eq!(over["receipt"]["survivors"], 0);
}

#[test]
fn a_viewer_reads_everything_and_changes_nothing() {
    let web = Web::new();
    let run = web.sleeper("builder");
    let get = |path: &str| web.get(path).bearer(&web.viewer).json();
    let runs = get("/api/v1/runs");
    assert_eq!((runs["runs"].as_array().unwrap().len(), runs["runs"][0]["run_id"].as_str()), (1, Some(&*run)));
    assert_eq!(get("/api/v1/runs?workflow=other")["runs"], Value::Array(Vec::new()));
    assert_eq!(
        get("/api/v1/workflows/local/runs?workflow=builder&phase=running&health=healthy&limit=5")["runs"][0]["run_id"],
        run.as_str()
    );
    let shown = get(&format!("/api/v1/runs/{run}"));
    assert_eq!(shown["processes"][0]["name"], "sleep", "{shown}");
    assert!(get(&format!("/api/v1/runs/{run}/explain"))["explanation"].as_str().unwrap().contains("sleep"));
    assert!(get(&format!("/api/v1/runs/{run}/samples?since_usec=0"))["samples"].is_array());
    let audit = get(&format!("/api/v1/runs/{run}/audit"));
    assert!(audit["events"].as_array().unwrap().iter().any(|row| row["kind"] == "run_started"), "{audit}");
    let all = get("/api/v1/audit?kind=run_accepted&limit=1");
    assert_eq!((all["events"].as_array().unwrap().len(), all["events"][0]["run_id"].as_str()), (1, Some(&*run)));
    assert_eq!(get(&format!("/api/v1/workflows/local/run/{run}/status"))["status"], "running");
    let health = get("/api/v1/monitoring/health");
    assert_eq!((&health["status"], &health["runs_active"]), (&health["instance"]["health"], &1.into()), "{health}");
    let who = get("/api/v1/whoami");
    assert_eq!(
        (&who["token"], &who["role"], &who["instance"]["instance"]),
        (&"ann".into(), &"viewer".into(), &"private".into())
    );

    let id = format!("/api/v1/runs/{run}");
    for (path, body) in [
        (web.kill_path(&run), "{}"),
        (format!("{id}/extend"), r#"{"limit": "max_runtime", "by_usec": 1000000}"#),
        (format!("{id}/freeze"), "{}"),
        (format!("{id}/thaw"), "{}"),
    ] {
        assert_eq!(web.post(&path, body).bearer(&web.viewer).send().is(403).json()["error"], "Forbidden", "{path}");
    }
    let extended = web.post(&format!("{id}/extend"), r#"{"limit": "init_timeout", "by_usec": 60000000}"#);
    let refused = extended.clone().bearer(&web.operator).send();
    assert!(matches!(refused.status, 200 | 422), "{refused:?}");
    assert_eq!(web.world.show(&run).phase, guardian::model::Phase::Running);
    web.post(&format!("{id}/freeze"), r#"{"reason": "to look"}"#).bearer(&web.operator).send().is(200);
    assert!(web.world.show(&run).frozen);
    web.post(&format!("{id}/thaw"), "{}").bearer(&web.operator).send().is(200);
    assert!(!web.world.show(&run).frozen);
}

#[test]
fn a_limit_that_is_extended_ends_the_run_later() {
    let web = Web::new();
    let run = web.world.detach(&["--max-runtime", "10m", "--readiness", "exec"], &["sleep", "1000"]);
    let path = format!("/api/v1/runs/{run}/extend");
    let shown = web.get(&format!("/api/v1/runs/{run}")).bearer(&web.viewer).json();
    let deadlines = shown["deadlines"].as_array().unwrap();
    let before = deadlines.iter().find(|d| d["rule"] == "max_runtime").unwrap()["at_usec"].as_u64();
    let body = r#"{"limit": "max_runtime", "by_usec": 60000000, "reason": "it is nearly done"}"#;
    let said = web.post(&path, body).bearer(&web.operator).send().is(200).json();
    assert_eq!(said["limit"], "max_runtime");
    // The wall clock is slewed meanwhile, so that it is not the same to the microsecond.
    let (at, expected) = (said["deadline_usec"].as_u64().unwrap(), before.unwrap() + 60_000_000);
    assert!(at.abs_diff(expected) < 1_000_000, "{said}");
    for (body, status) in [
        (r#"{"limit": "grace", "by_usec": 1}"#, 422),
        (r#"{"limit": "max_runtime"}"#, 422),
        (r#"{"limit": "max_runtime", "by_usec": 0}"#, 422),
        (r#"{"limit": "max_runtime", "by_usec": -1}"#, 422),
        (r#"{"limit": "max_runtime", "by_usec": "1"}"#, 422),
        ("{", 400),
        ("[]", 400),
    ] {
        web.post(&path, body).bearer(&web.operator).send().is(status);
    }
}

/// What the document says is taken is taken, in the longest letters that there are.
#[test]
fn the_longest_reason_has_room_for_the_token_on_record() {
    let web = Web::new();
    let run = web.sleeper("builder");
    let reason = "\u{13403}".repeat(1000);
    let body = serde_json::json!({ "reason": reason }).to_string();
    let reply = web.post(&web.kill_path(&run), &body).bearer(&web.operator).send();
    assert_eq!(reply.is(200).json()["receipt"]["reason_text"], format!("{reason} (token ops, guardian-web)"));
}

#[test]
fn what_does_not_exist_or_makes_no_sense_is_said_to_be_so() {
    let web = Web::new();
    let run = web.sleeper("builder");
    let unknown = "run_0123456789ab";
    let long = format!(r#"{{"reason": "{}"}}"#, "x".repeat(5000));
    let gets = [
        ("/api/v1/runs/nonsense", 422),
        ("/api/v1/runs/run_", 422),
        ("/api/v1/runs/..%2f..%2fetc", 422),
        ("/api/v1/runs?health=dead", 422),
        ("/api/v1/runs?limit=0", 422),
        ("/api/v1/runs?nonsense=1", 422),
        ("/api/v1/audit?kind=nonsense", 422),
        ("/api/v1/events?after=x", 422),
        ("/api/v1/workflows/.hidden/runs", 422),
        ("/api/v1/nonsense", 404),
        ("/nonsense", 404),
        ("/assets/nonsense.js", 404),
        ("/assets/..%2fmod.rs", 404),
        ("/api/v1/runs/%ff", 400),
        ("/api/v1/login", 405),
    ];
    for (path, status) in gets {
        let reply = web.get(path).bearer(&web.viewer).send();
        assert_eq!(reply.status, status, "{path}: {reply:?}");
        let said = reply.json();
        assert!(said["error"].is_string() && said["message"].is_string(), "{path}: {said}");
    }
    for (path, body, status) in [
        (web.kill_path(unknown), "{}", 404),
        (web.kill_path(&run).replace("/local/", "/other/"), "{}", 404),
        (web.kill_path("run_1"), "{}", 422),
        (web.kill_path(&run), &*long, 422),
        (web.kill_path(&run), r#"{"reason": 1}"#, 422),
        (web.kill_path(&run), r#"{"why": "x"}"#, 422),
        (format!("{}?force=yes", web.kill_path(&run)), "{}", 422),
        (format!("/api/v1/runs/{unknown}/freeze"), "{}", 404),
        ("/api/v1/whoami".to_owned(), "{}", 405),
    ] {
        let reply = web.post(&path, body).bearer(&web.operator).send();
        assert_eq!(reply.status, status, "{path}: {reply:?}");
    }
    assert_eq!(web.world.show(&run).phase, guardian::model::Phase::Running, "none of these ended it");
    for path in ["explain", "samples", "audit", ""] {
        let path = format!("/api/v1/runs/{unknown}/{path}");
        web.get(path.trim_end_matches('/')).bearer(&web.viewer).send().is(404);
    }
}

#[test]
fn how_far_an_agent_has_come_is_in_its_status() {
    let web = Web::new();
    let script = "\"$0\" heartbeat --turn 7 --turns-max 30 --tokens 1200 --cost 1.25 --tool Bash --session abc; \
        : > said; while [ ! -e go ]; do sleep 0.02; done; \"$0\" heartbeat --result error --result-text 'no key'; exit 1";
    let executable = web.world.executable().to_str().unwrap().to_owned();
    let run = web.world.detach(&["--workflow", "builder"], &["sh", "-c", script, &executable]);
    let status = || web.get(&format!("/api/v1/workflows/local/run/{run}/status")).bearer(&web.viewer).json();
    let now = eventually("it has said it", || Some(status()).filter(|now| now["progress"] == "turn 7 of 30: Bash"));
    let metrics = &now["metrics"];
    assert_eq!((&metrics["turns"], &metrics["tokens"], &metrics["cost_usd"]), (&7.into(), &1200.into(), &1.25.into()));
    assert_eq!(
        (&now["session_id"], &now["agent"]["turns_max"], &now["result"]),
        (&"abc".into(), &30.into(), &Value::Null)
    );
    std::fs::write(web.world.path("go"), "").unwrap();
    web.world.guardian(["wait", &run]).exits(1);
    let end = status();
    assert_eq!((&end["status"], &end["progress"]), (&"failed".into(), &"turn 7 of 30: failed".into()), "{end}");
    let result = &end["result"];
    assert_eq!(
        (&result["kind"], &result["success"], &result["report"]),
        (&"exited".into(), &false.into(), &"no key".into())
    );
}

#[test]
fn nothing_that_a_run_says_is_live_in_any_answer() {
    let web = Web::new();
    let name = "<script>alert(1)</script>\u{1b}]0;x\u{7}\u{202e}";
    let script = "guardian=$1; shift; \"$guardian\" heartbeat --status '<img src=x onerror=alert(1)>'; exec sleep 1000";
    let executable = web.world.executable().to_str().unwrap().to_owned();
    let run = web.world.detach(&["--name", name], &["sh", "-c", script, "sh", &executable, "</script><script>"]);
    let path = format!("/api/v1/runs/{run}");
    let reply = eventually("the run has said how it is", || {
        let reply = web.get(&path).bearer(&web.viewer).send();
        (reply.json()["heartbeats"]["status"] != "").then_some(reply)
    });
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert!(!reply.body.contains(['<', '\u{1b}', '\u{7}', '\u{202e}']), "{}", reply.body);
    assert_eq!(reply.json()["name"], name);
    assert_eq!(reply.json()["heartbeats"]["status"], "<img src=x onerror=alert(1)>");
    let metrics = web.get("/metrics").send();
    assert!(!metrics.body.contains("script") && !metrics.body.contains("sleep"), "{}", metrics.body);
}

#[test]
fn metrics_are_openmetrics_and_tell_of_runs_and_kills() {
    let web = Web::new();
    let run = web.sleeper("builder");
    web.sleeper("lina");
    web.post(&web.kill_path(&run), "{}").bearer(&web.operator).send().is(200);
    let reply = eventually("what was kept a moment ago is asked anew", || {
        let reply = web.get("/metrics").send();
        (reply.body.contains("guardian_kills_total 1\n") && !reply.body.contains("workflow=\"builder\""))
            .then_some(reply)
    });
    assert_eq!(reply.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = reply.body.as_str();
    for line in [
        "guardian_up 1",
        "guardian_runs{workflow=\"lina\",phase=\"running\",health=\"healthy\"} 1",
        "guardian_runs_started_total 2",
        "guardian_instance_health{health=\"critical\"} 0",
        "guardian_web_http_requests_total{status=\"200\"}",
        "guardian_web_sse_clients 0",
        "guardian_run_memory_bytes{workflow=\"lina\"}",
        "guardian_audit_sequence ",
    ] {
        assert!(text.lines().any(|l| l.starts_with(line)), "no {line} in\n{text}");
    }
    assert!(text.ends_with("\n# EOF\n"));
    assert_is_openmetrics(text);
    let plain = web.get("/metrics").header("Accept", "text/plain").send();
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(plain.body.contains("# TYPE guardian_kills_total counter\n") && !plain.body.contains("# EOF"));
    let Some(promtool) = find_program("promtool") else {
        println!("promtool is not installed: the text is checked by this test alone");
        return;
    };
    let mut child = std::process::Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), plain.body.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// What OpenMetrics demands of a text like ours: a TYPE before its samples, each family once and in one piece, and names that
/// end as their type says.
fn assert_is_openmetrics(text: &str) {
    let mut families: Vec<(&str, &str)> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.iter().all(|(known, _)| *known != name), "{name} is there twice");
            families.push((name, kind));
        } else if let Some(rest) = line.strip_prefix("# HELP ").or(line.strip_prefix("# UNIT ")) {
            assert_eq!(rest.split(' ').next(), families.last().map(|(name, _)| *name), "{line}");
        } else if line != "# EOF" {
            let (name, kind) = families.last().unwrap();
            let ending = match *kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let of = sample.split('{').next().unwrap();
            assert_eq!(of, format!("{name}{ending}"), "{line}");
            value.parse::<f64>().unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}

#[test]
fn the_document_describes_what_is_served() {
    let web = Web::new();
    let document = web.get("/api/v1/openapi.json").bearer(&web.viewer).json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, verbs) in document["paths"].as_object().unwrap() {
        let asked =
            path.replace("{id}", "run_0123456789ab").replace("{executor}", "builder").replace("{name}", "index.html");
        for (verb, operation) in verbs.as_object().unwrap() {
            // Answered with what is described, by a handler and not for want of one.
            let reply = match verb.as_str() {
                "post" => web.post(&asked, "{}").bearer(&web.operator).send(),
                _ if asked.ends_with("/events") => web.get(&format!("{asked}?after=x")).bearer(&web.viewer).send(),
                _ => web.get(&asked).bearer(&web.viewer).send(),
            };
            let known = &operation["responses"][reply.status.to_string()];
            assert!(known.is_object(), "{verb} {path}: {} is not described: {}", reply.status, reply.body);
            assert!(reply.status != 405 && !reply.body.contains("nothing at this path"), "{verb} {path}: {reply:?}");
        }
        let other = if verbs.get("post").is_some() { web.get(&asked) } else { web.post(&asked, "{}") };
        other.bearer(&web.operator).send().is(405);
    }
    let properties = document["components"]["schemas"]["Run"]["required"].as_array().unwrap();
    let run = web.sleeper("builder");
    let shown = web.get(&format!("/api/v1/runs/{run}")).bearer(&web.viewer).json();
    for name in properties {
        assert!(shown.get(name.as_str().unwrap()).is_some(), "a run lacks {name}");
    }
}

#[test]
fn the_page_is_served_with_a_strict_policy_and_kept_by_its_tag() {
    let web = Web::new();
    let page = web.get("/").send();
    page.is(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    for part in
        ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "connect-src 'self'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"));
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let tag = page.header("etag").unwrap();
    web.get("/").header("If-None-Match", tag).send().is(304);
    let refused = web.get("/api/v1/runs").send();
    assert_eq!(
        (refused.header("cache-control"), refused.header("www-authenticate")),
        (Some("no-store"), Some("Bearer"))
    );
    assert_eq!(web.get("/healthz").send().is(200).body, "ok\n");
}

#[test]
fn while_the_instance_is_away_that_is_said_and_then_it_goes_on() {
    let web = Web::new();
    let run = web.sleeper("builder");
    web.get("/api/v1/runs").bearer(&web.viewer).send().is(200);
    let listener = web.events("", None);
    web.world.crash_instance();
    let away = web.get("/api/v1/runs").bearer(&web.viewer).send();
    assert_eq!(away.is(503).json()["error"], "Unavailable");
    assert!(away.header("retry-after").is_some());
    web.get("/healthz").send().is(503);
    web.post(&web.kill_path(&run), "{}").bearer(&web.operator).send().is(503);
    eventually("metrics say that it is down", || {
        web.get("/metrics").send().is(200).body.contains("guardian_up 0\n").then_some(())
    });
    web.get("/").send().is(200);
    listener.until("who listens is told", |told| told.kind == "unavailable");

    // The next command starts the next instance, which takes the run up.
    web.world.guardian(["ps"]).exits(0);
    web.get("/healthz").send().is(200);
    listener.until("who listens is told of the next one", |told| told.kind == "instance");
    web.post(&web.kill_path(&run), "{}").bearer(&web.operator).send().is(200);
    let over = listener.until("the run is over", |told| told.kind == "run" && told.data["phase"] == "finished");
    assert_eq!(over.data["run_id"], run.as_str());
}

#[test]
fn a_stopped_instance_does_not_hold_a_request_for_ever() {
    let web = Web::new();
    web.get("/healthz").send().is(200);
    let instance = web.world.running_instance();
    signal(instance, Signal::STOP);
    let reply = web.get("/api/v1/runs").bearer(&web.viewer).send();
    signal(instance, Signal::CONT);
    reply.is(503);
    web.get("/api/v1/runs").bearer(&web.viewer).send().is(200);
}
