//! What is asked and answered over HTTP, held to the OpenAPI document that is served with it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::*;
use crate::rig::*;

const START: &str = "post /api/v1/workflows/{executor}/run/{workflow}";
const KILL: &str = "post /api/v1/workflows/{executor}/run/{id}/kill";

/// Every question and answer, as document.py reads them.
struct Record<'a> {
    web: &'a Web,
    replies: Vec<Value>,
    bodies: Vec<Value>,
}

impl Record<'_> {
    /// Asks by the name that the document has for it, as a starter, about this run.
    fn ask(&mut self, operation: &str, run: &str, query: &str, body: Option<Value>) -> Reply {
        let ask = self.request(operation, run, query, body.as_ref()).bearer(&self.web.starter);
        let reply = ask.send();
        self.keep(operation, &reply, body);
        reply
    }

    fn request(&self, operation: &str, run: &str, query: &str, body: Option<&Value>) -> Ask {
        let (verb, path) = operation.split_once(' ').unwrap();
        let path = path.replace("{executor}", "local").replace("{workflow}", "builder").replace("{name}", "app.js");
        let path = format!("{}{query}", path.replace("{id}", run));
        match verb {
            "post" => self.web.post(&path, &body.map_or_else(String::new, Value::to_string)),
            _ => self.web.get(&path),
        }
    }

    fn keep(&mut self, operation: &str, reply: &Reply, body: Option<Value>) {
        // What was refused for any other reason may have had the right form.
        if let Some(body) = body.filter(|_| matches!(reply.status, 200 | 202 | 422)) {
            self.bodies.push(json!({"operation": operation, "body": body, "taken": reply.status < 300}));
        }
        let media = reply.header("content-type").unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default();
        self.replies.push(json!({"operation": operation, "status": reply.status, "media": media, "body": reply.body}));
    }

    /// The beginning of an answer that does not end.
    fn ask_for_events(&mut self) {
        let operation = "get /api/v1/events";
        let mut stream = connect(self.web.at);
        let ask = self.request(operation, "", "", None).bearer(&self.web.starter);
        stream.write_all(ask.text().as_bytes()).unwrap();
        let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let head: String = lines.map(|line| line + "\r\n").collect();
        self.keep(operation, &Reply::parse(format!("{head}\r\n").as_bytes()).unwrap(), None);
    }

    /// What is not as the document says, a line each.
    fn complaints(self, document: &Value) -> String {
        let record = json!({"document": document, "replies": self.replies, "bodies": self.bodies}).to_string();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/web/document.py");
        let mut command = Command::new(python());
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(record.as_bytes()).unwrap();
        let said = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).trim().to_owned()
    }
}

/// Runs in every state that has a shape of its own: queued, running with all that an agent reports, stuck, over, killed.
fn runs(record: &mut Record<'_>) -> Vec<String> {
    let web = record.web;
    let started = |record: &mut Record<'_>, body: Value| {
        let reply = record.ask(START, "", "", Some(body)).is(202).json();
        reply["run_id"].as_str().unwrap().to_owned()
    };
    let long = json!({"command": ["sleep", "1000"], "limits": {"max_runtime_usec": 60_000_000_u64}, "name": "one"});
    let running = started(record, long);
    let queued = started(record, json!({"command": ["true"], "cwd": "/", "env": {"A": "b=c"}, "reason": "a test"}));
    let script = "\"$0\" heartbeat --ready --turn 1 --turns-max 3 --tokens 5 --cost 0.5 --session s --result error \
        --result-text 'no key'; exec sleep 1000";
    let agent = web.world.detach(&[], &["sh", "-c", script, web.world.executable().to_str().unwrap()]);
    let warned = ["--readiness", "notify", "--init-timeout", "1s", "--init-action", "warn"];
    let stuck = web.world.detach(&warned, &["sleep", "1000"]);
    let over = web.world.detach(&["--readiness", "exec"], &["sh", "-c", "exit 3"]);
    let killed = web.sleeper("lina");
    eventually("they are as they are to be", || {
        let is = |run: &str, key: &str, value: &str| {
            let shown = web.get(&format!("/api/v1/runs/{run}")).bearer(&web.viewer).json();
            shown.pointer(key).is_some_and(|found| found == value)
        };
        let all = is(&agent, "/progress/result/text", "no key")
            && is(&stuck, "/health", "critical")
            && is(&over, "/phase", "finished");
        all.then_some(())
    });
    record.ask(KILL, &killed, "?force=true", Some(json!({"reason": "enough"}))).is(200);
    vec![running, queued, agent, stuck, over, killed]
}

#[test]
fn what_is_asked_and_answered_is_what_the_document_says() {
    let has_module = Command::new(python()).args(["-c", "import jsonschema"]).output();
    if !has_module.is_ok_and(|said| said.status.success()) {
        return cannot_run("python3-jsonschema is not installed: as root, tests/run installs it");
    }
    let web = Web::configured("[workflow.builder]\nmax_running = 1\n");
    let document = web.get("/api/v1/openapi.json").bearer(&web.viewer).json();
    let mut record = Record { web: &web, replies: Vec::new(), bodies: Vec::new() };
    let runs = runs(&mut record);
    let (running, unknown) = (runs[0].clone(), "run_0123456789ab");

    let paths = document["paths"].as_object().unwrap();
    let reads = paths.iter().filter(|(_, verbs)| verbs.get("get").is_some());
    for operation in reads.map(|(path, _)| format!("get {path}")).filter(|name| name != "get /api/v1/events") {
        if operation.contains("{id}") {
            runs.iter().map(String::as_str).chain([unknown, "nonsense"]).for_each(|run| {
                record.ask(&operation, run, "", None);
            });
        } else {
            record.ask(&operation, "", "", None).is(200);
        }
        if operation.contains("/api/") {
            record.ask(&operation, &running, "?nonsense=1", None).is(422);
            let reply = record.request(&operation, &running, "", None).send();
            record.keep(&operation, reply.is(401), None);
        }
    }
    record.ask("get /api/v1/workflows/{executor}/runs", "", "?finished=true&limit=2", None).is(200);
    record.ask_for_events();

    let extend = "post /api/v1/runs/{id}/extend";
    record.ask(extend, &running, "", Some(json!({"limit": "max_runtime", "by_usec": 60_000_000_u64}))).is(200);
    for (run, operation, body, status) in [
        (&*running, extend, json!({"limit": "max_runtime", "by_usec": 0}), 422),
        (&*running, extend, json!({"limit": "grace", "by_usec": 1}), 422),
        (&*running, extend, json!({"by_usec": 1}), 422),
        (unknown, extend, json!({"limit": "max_runtime", "by_usec": 1}), 404),
        (&*running, "post /api/v1/runs/{id}/freeze", json!({"reason": "to look"}), 200),
        (&*running, "post /api/v1/runs/{id}/thaw", json!({"reason": null}), 200),
        (&*running, "post /api/v1/runs/{id}/freeze", json!({"reason": 1}), 422),
        (unknown, "post /api/v1/runs/{id}/thaw", json!({}), 404),
        (&*runs[5], KILL, json!({}), 409),
        (&*running, KILL, json!({"why": "x"}), 422),
        ("", START, json!({"command": []}), 422),
        ("", START, json!({"command": "true"}), 422),
        ("", START, json!({"command": ["a\0"]}), 422),
        ("", START, json!({"command": ["true"], "env": {"A=": "b"}}), 422),
        ("", START, json!({"command": ["true"], "uid": 0}), 422),
        ("", "post /api/v1/logout", json!({}), 200),
        ("", "post /api/v1/login", json!({"token": web.viewer, "code": null}), 200),
        ("", "post /api/v1/login", json!({"code": web.code}), 200),
        ("", "post /api/v1/login", json!({"token": "a", "code": "b"}), 422),
        ("", "post /api/v1/login", json!({"token": null}), 422),
        ("", "post /api/v1/login", json!({}), 422),
        ("", "post /api/v1/login", json!({"token": "gdn_wrong"}), 401),
    ] {
        record.ask(operation, run, "", Some(body)).is(status);
    }
    let refused = record.request(KILL, &running, "", Some(&json!({}))).bearer(&web.viewer).send();
    record.keep(KILL, refused.is(403), None);
    assert_eq!(record.complaints(&document), "");
}
