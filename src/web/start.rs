//! Starting runs over HTTP.
//!
//! Who may do so has commands executed: it takes a token of a role of its own. On a user's instance the runs are that user's.
//! On the host's they would be those of the user guardian-web, who keeps the tokens: there the request has to name another
//! user, never root, and polkit has to grant guardian-web the right to start runs for others.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::act::on_record;
use super::arguments::{Arguments, Field, Kind, NUMBER_MAX};
use super::reply::{Problem, json_with};
use super::routes::{Answer, Call};
use crate::model::{CLAUDE, CLAUDE_CLI, Error, ErrorKind, LaunchRequest, LimitUpdate, Phase, RunId, RunView, escape};

/// What a run can be held to by who starts it.
pub const LIMITS: &[Field] = &[
    Field::may("queue_timeout_usec", Kind::Number(1, NUMBER_MAX), "How long it may be queued, in µs"),
    Field::may("init_timeout_usec", Kind::Number(1, NUMBER_MAX), "How long until it is ready, in µs"),
    Field::may("max_runtime_usec", Kind::Number(1, NUMBER_MAX), "How long in all, in µs"),
    Field::may("idle_timeout_usec", Kind::Number(1, NUMBER_MAX), "How long it may do nothing, in µs"),
    Field::may("heartbeat_timeout_usec", Kind::Number(1, NUMBER_MAX), "From one heartbeat to the next, in µs"),
    Field::may("grace_usec", Kind::Number(0, 86_400_000_000), "From SIGTERM to SIGKILL, in µs"),
    Field::may("memory_max_bytes", Kind::Number(1, NUMBER_MAX), "Memory, in bytes"),
    Field::may("tasks_max", Kind::Number(1, NUMBER_MAX), "Tasks"),
    Field::may("cpu_max_percent", Kind::Number(1, 100_000), "CPU, in percent of one core"),
];

/// What a command finds of our own environment, and no more: the rest of it is ours.
const PASSED_ON: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "XDG_RUNTIME_DIR"];
/// Where there is none of these.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts a run.
pub async fn start(call: Call) -> Answer {
    let token = call.who()?.name.clone();
    let request = request(&call.arguments, &token, call.app.instance.is_everybodys())?;
    let asked = &request;
    // Not asked twice: a lost answer would start it twice.
    let run = call.app.instance.once(|c| async move { c.start(asked).await }).await.map_err(explained)?;
    tracing::info!("token {token} has started {run}");
    let id = run.to_string();
    let shown = id.as_str();
    // It is started, whether it can be shown or not.
    let view = call.app.instance.ask(|c| async move { c.show(shown).await }).await.ok();
    Ok(started(&call.arguments, run, view.as_ref()))
}

fn started(arguments: &Arguments, run: RunId, view: Option<&RunView>) -> axum::response::Response {
    let (executor, workflow) = (arguments.text("executor"), arguments.text("workflow"));
    let queued = view.filter(|view| view.phase == Phase::Queued).and_then(|view| view.queued.as_ref());
    let of = format!("/api/v1/workflows/{executor}/run/{run}");
    let message = match queued {
        Some(queued) => format!("{run} is {}: {}", queued.describe(workflow), queued.why),
        None => format!("{run} is started"),
    };
    let mut reply = json_with(
        StatusCode::ACCEPTED,
        &json!({
            "success": true,
            "run_id": run,
            "workflow_name": workflow,
            "executor": executor,
            "status": if queued.is_some() { "queued" } else { "starting" },
            "queue": queued.map(|q| json!({"position": q.position, "length": q.of, "reason": q.why})),
            "message": message,
            "links": {
                "run": format!("/api/v1/runs/{run}"), "status": format!("{of}/status"), "kill": format!("{of}/kill"),
            },
        }),
    );
    if let Ok(value) = HeaderValue::from_str(&format!("{of}/status")) {
        reply.headers_mut().insert(header::LOCATION, value);
    }
    reply
}

/// What is asked of the instance.
fn request(arguments: &Arguments, token: &str, is_everybodys: bool) -> Result<LaunchRequest, Problem> {
    let (executor, prompt) = (arguments.text("executor"), arguments.some_text("prompt"));
    let command = match arguments.texts("command") {
        Some(command) => command.to_vec(),
        // A prompt alone is for the agent as it is.
        None if prompt.is_some() && executor == CLAUDE_CLI => vec![CLAUDE.to_owned()],
        None => {
            return Err(Error::invalid(
                "command is missing: [\"program\", \"argument\"]; a prompt alone is for claude-cli",
            )
            .into());
        }
    };
    let cwd = match (arguments.some_text("cwd"), arguments.some_text("workspace_path")) {
        (Some(_), Some(_)) => return Err(Error::invalid("cwd and workspace_path are the same: leave out one").into()),
        (cwd, workspace) => cwd.or(workspace).unwrap_or_default(),
    };
    let name = arguments.some_text("name");
    if cwd.contains('\0') || name.is_some_and(|name| name.contains('\0')) {
        return Err(Error::invalid("a name and a directory have no NUL").into());
    }
    let uid = arguments.number("uid").and_then(|uid| u32::try_from(uid).ok());
    if is_everybodys && uid.is_none_or(|uid| uid == rustix::process::geteuid().as_raw()) {
        return Err(Problem::forbidden(
            "on the host's instance a run is some user's, and not guardian-web's own: name the user with `uid`, and have \
             polkit grant org.guardian.Guardian1.start-run to the user guardian-web (guardian-web(8) tells how)",
        ));
    }
    Ok(LaunchRequest {
        workflow: Some(arguments.text("workflow").to_owned()),
        reason: on_record(arguments.text("reason"), token),
        name: name.map(str::to_owned),
        argv: command.iter().map(|text| text.as_bytes().to_vec()).collect(),
        env: environment(arguments.pairs("env"), is_everybodys),
        cwd: cwd.as_bytes().to_vec(),
        limits: LimitUpdate { executor: Some(executor.to_owned()), ..limits(&arguments.object("limits")) },
        reserved: None,
        uid,
        prompt: prompt.map(|prompt| prompt.as_bytes().to_vec()),
    })
}

/// The environment of a command: what was named, over a few variables of ours where it is our user's.
fn environment(named: &[(String, String)], is_everybodys: bool) -> Vec<Vec<u8>> {
    let is_named = |name: &str| named.iter().any(|(known, _)| known == name);
    let own = PASSED_ON.into_iter().filter(|name| !is_everybodys && !is_named(name)).filter_map(|name| {
        let value = std::env::var(name).ok().or_else(|| (name == "PATH").then(|| PATH.to_owned()))?;
        Some(format!("{name}={value}"))
    });
    let named = named.iter().map(|(name, value)| format!("{name}={value}"));
    own.chain(named).map(String::into_bytes).collect()
}

fn limits(named: &Arguments) -> LimitUpdate {
    let time = |name: &str| named.number(name).map(Duration::from_micros);
    let mut limits = LimitUpdate {
        queue_timeout: time("queue_timeout_usec").map(Some),
        init_timeout: time("init_timeout_usec").map(Some),
        max_runtime: time("max_runtime_usec").map(Some),
        grace: time("grace_usec"),
        memory_max_bytes: named.number("memory_max_bytes").map(Some),
        tasks_max: named.number("tasks_max").map(Some),
        cpu_max_percent: named.number("cpu_max_percent").map(|percent| u32::try_from(percent).ok()),
        ..LimitUpdate::default()
    };
    limits.watch.idle_timeout = time("idle_timeout_usec").map(Some);
    limits.watch.heartbeat_timeout = time("heartbeat_timeout_usec").map(Some);
    limits
}

/// What is wrong with the command itself is the caller's to correct.
fn explained(e: Error) -> Problem {
    match e.kind {
        ErrorKind::LaunchFailed => {
            Error::invalid(format!("the run could not be started: {}", escape(&e.message))).into()
        }
        _ => e.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[Field] = &[
        Field::may("command", Kind::Texts, ""),
        Field::may("cwd", Kind::Text(4096), ""),
        Field::may("workspace_path", Kind::Text(4096), ""),
        Field::may("env", Kind::Variables, ""),
        Field::may("limits", Kind::Object(LIMITS), ""),
        Field::may("uid", Kind::Number(1, 1 << 31), ""),
        Field::may("prompt", Kind::Text(10), ""),
    ];

    fn asked(body: &str, is_everybodys: bool) -> Result<LaunchRequest, u16> {
        let mut arguments = Arguments::default();
        let taken = arguments.take_body(BODY, body.as_bytes());
        taken.and_then(|()| request(&arguments, "ann", is_everybodys)).map_err(|p| p.status.as_u16())
    }

    #[test]
    fn a_request_is_taken_whole_or_refused() {
        let body = r#"{"command": ["sh", "-c", "x"], "workspace_path": "/w", "env": {"A": "b=c"}, "uid": 1000,
            "limits": {"max_runtime_usec": 5000000, "tasks_max": 7}}"#;
        let request = asked(body, true).unwrap();
        assert_eq!((request.argv.len(), request.cwd.as_slice(), request.uid), (3, &b"/w"[..], Some(1000)));
        assert_eq!((request.env, request.limits.tasks_max), (vec![b"A=b=c".to_vec()], Some(Some(7))));
        assert_eq!(request.limits.max_runtime, Some(Some(Duration::from_secs(5))));
        assert_eq!(request.reason, "(token ann, guardian-web)");
        for bad in [
            "{}",
            r#"{"command": []}"#,
            r#"{"command": "sh"}"#,
            r#"{"command": ["a", 1]}"#,
            r#"{"command": ["a\u0000"]}"#,
            r#"{"command": ["a"], "env": {"A=": "b"}}"#,
            r#"{"command": ["a"], "env": {"A": 1}}"#,
            r#"{"command": ["a"], "env": ["A=b"]}"#,
            r#"{"command": ["a"], "limits": {"max_runtime_usec": 0}}"#,
            r#"{"command": ["a"], "limits": {"other": 1}}"#,
            r#"{"command": ["a"], "cwd": "/a", "workspace_path": "/a"}"#,
            r#"{"command": ["a"], "uid": 0}"#,
            r#"{"prompt": "do it"}"#,
        ] {
            assert_eq!(asked(bad, false).map(drop), Err(422), "{bad}");
        }
    }

    #[test]
    fn a_command_gets_a_path_and_nothing_of_ours_that_is_not_listed() {
        let own = asked(r#"{"command": ["a"]}"#, false).unwrap();
        assert!(own.env.iter().any(|entry| entry.starts_with(b"PATH=")));
        let listed = |entry: &Vec<u8>| PASSED_ON.iter().any(|name| entry.starts_with(format!("{name}=").as_bytes()));
        assert!(own.env.iter().all(listed));
        let named = asked(r#"{"command": ["a"], "env": {"PATH": "/x"}}"#, false).unwrap();
        assert_eq!(named.env.iter().filter(|entry| entry.starts_with(b"PATH=")).count(), 1);
    }

    #[test]
    fn a_run_on_the_hosts_instance_is_never_guardian_webs_own() {
        assert_eq!(asked(r#"{"command": ["a"]}"#, true).map(drop), Err(403));
        let own = rustix::process::geteuid().as_raw();
        if own > 0 {
            let body = format!(r#"{{"command": ["a"], "uid": {own}}}"#);
            assert_eq!(asked(&body, true).map(drop), Err(403));
        }
    }
}
