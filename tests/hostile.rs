//! Names, arguments, statuses and reasons that are made to steer a terminal, fake a line or fill a memory: refused in a
//! sentence, or shown so that a person can see them, in every view of a real instance, on a terminal and as JSON.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::process::Command;
use std::time::Duration;

use common::{Done, Place, World, eventually, python, start};
use guardian::bus::client::Client;
use guardian::model::{ErrorKind, KillMode, LaunchRequest, LimitUpdate, RunId, is_unsafe};
use serde_json::Value;

/// Clears the screen, sets the title, begins a line that looks like one of ours, with controls of 8 bits and text that
/// runs backwards.
const HOSTILE: &str = "\x1b[2J\x1b]0;owned\x07\nrun_0 finished\r\u{9b}31m\u{202e}x\u{7f}";
/// The beginning of it as a person is shown it.
const SHOWN: &str = r"\u{1b}[2J\u{1b}]0;owned\u{7}\nrun_0 finished\r\u{9b}31m\u{202e}x\u{7f}";
/// The longest string that the kernel lets a process be started with is an eighth of this.
const LONG: usize = 1 << 20;

fn bytes(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Text in lines that neither steer a terminal nor pass for lines of others. Those of one message are indented.
#[track_caller]
fn is_safe(text: &str) {
    assert!(!text.chars().any(|c| c != '\n' && is_unsafe(c)), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("run_0 finished")), "{text}");
}

#[track_caller]
fn told(done: &Done) -> String {
    is_safe(&done.stdout);
    is_safe(&done.stderr);
    format!("{}{}", done.stdout, done.stderr)
}

/// What a terminal is sent, by a pty of script(1), which ends lines for it.
fn on_a_terminal(world: &World, args: &[&str]) -> String {
    let words: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let line = format!("{} {}", world.executable().display(), words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    script.env("GUARDIAN_STATE_DIR", world.state()).env("NO_COLOR", "1").env_remove("GUARDIAN_CONFIG");
    script.stdin(std::process::Stdio::null());
    start(&mut script).wait().stdout.replace("\r\n", "\n")
}

fn end(world: &World, run: &str) {
    world.guardian(["kill", "--force", run]).exits(0);
}

/// A run with hostile text in all that it may choose: name, arguments, directory, status, output.
fn hostile_run(world: &World) -> String {
    let directory = world.path(HOSTILE);
    std::fs::create_dir(&directory).unwrap();
    let script = "printf '%b' \"$1\"; \"$GUARDIAN\" heartbeat --status \"$0\"; touch said; exec sleep 1000";
    let mut command = world.command(["run", "--detach", "--readiness", "exec", "--name"]);
    command.arg(HOSTILE).arg("--cwd").arg(&directory);
    command.args(["-e", &format!("GUARDIAN={}", world.executable().display())]);
    command.args(["--", "sh", "-c", script, HOSTILE, r"\033[2J\033]0;owned\007\033[31mred\033[0m\n\0302\023331m"]);
    command.arg(bytes(b"\xff\xfe")).arg("x".repeat(LONG / 10));
    let done = start(&mut command).wait();
    let run = done.exits(0).stdout.trim().to_owned();
    eventually("it has said what it has to say", || directory.join("said").exists().then_some(()));
    run
}

#[test]
fn every_view_shows_what_a_run_has_chosen_and_none_is_steered() {
    let world = World::new_in(Place::Subtree);
    let run = hostile_run(&world);
    let live: [&[&str]; 4] = [&["ps"], &["show", &run], &["audit"], &["explain", &run]];
    for verb in live {
        let text = told(world.guardian(verb).exits(0));
        assert!(text.contains(r"\u{1b}[2J") || verb[0] != "show", "{verb:?}: {text}");
        is_safe(&on_a_terminal(&world, verb));
    }
    let shown = told(world.guardian(["show", &run]).exits(0));
    for line in [&format!("({SHOWN})"), &format!("directory  {}", world.path(SHOWN).display()), "\u{fffd}\u{fffd}"] {
        assert!(shown.contains(line), "no {line} in {shown}");
    }
    // A status is kept without what a terminal would act on, and without what D-Bus would not take.
    assert!(shown.contains("status  \u{fffd}[2J\u{fffd}]0;owned\u{fffd} run_0 finished"), "{shown}");

    let mut kill = world.command(["kill", &run, "--reason", HOSTILE]);
    assert!(told(start(&mut kill).wait().exits(0)).contains(SHOWN));
    let over: [&[&str]; 7] = [
        &["ps", "--all"],
        &["history"],
        &["show", &run],
        &["show", &run, "--samples"],
        &["explain", &run],
        &["audit"],
        &["audit", &run],
    ];
    for verb in over {
        told(&world.guardian(verb));
        is_safe(&on_a_terminal(&world, verb));
        let json = world.guardian([verb, &["--json"]].concat());
        told(&json);
        json.json();
    }
    let wait = world.guardian(["wait", &run]);
    assert!(told(wait.exits(137)).contains(SHOWN));
    assert!(told(&world.guardian(["audit", &run])).contains(SHOWN));
    world.assert_audit_holds();
}

#[test]
fn programs_get_the_same_text_that_a_run_has_chosen() {
    let world = World::new_in(Place::Subtree);
    let run = hostile_run(&world);
    let mut kill = world.command(["kill", &run, "--json", "--reason", HOSTILE]);
    assert_eq!(start(&mut kill).wait().json()[0]["receipt"]["reason_text"], HOSTILE);
    let view = &world.guardian(["show", &run, "--json"]).json()[0];
    assert_eq!((&view["name"], &view["command"][3]), (&Value::from(HOSTILE), &Value::from(HOSTILE)));
    assert_eq!(view["working_directory"], world.path(HOSTILE).to_str().unwrap());
    let rows = world.guardian(["audit", "--json"]).json();
    assert!(rows.as_array().unwrap().iter().any(|row| row["kind"] == "kill_intent" && row["reason"] == HOSTILE));
}

#[test]
fn output_moves_no_cursor_of_a_terminal_and_goes_to_a_file_as_it_is() {
    let world = World::new_in(Place::Subtree);
    let run = hostile_run(&world);
    end(&world, &run);
    let file = world.guardian(["logs", &run]);
    assert!(file.exits(0).stdout.starts_with("\x1b[2J\x1b]0;owned\x07\x1b[31mred"), "{file:?}");
    let seen = on_a_terminal(&world, &["logs", &run]);
    assert!(seen.contains("^[[2J^[]0;owned^G\x1b[31mred\x1b[0m\n^[[31m"), "{seen:?}");
}

/// journalctl(1) shows some fields as they are, and explains events with them.
#[test]
fn the_journal_and_who_watches_a_service_get_a_line_for_each_event() {
    if !rustix::process::geteuid().is_root() {
        return common::cannot_run("only root can put a journald in its place");
    }
    let world = World::new_in(Place::Subtree);
    let kept = world.path("journal");
    let mut service = Command::new("unshare");
    service.args(["--mount", "--propagation", "private", "sh", "-c", "mount -t tmpfs none /run && exec \"$@\"", "sh"]);
    service.args([python(), &world.script("journald.py"), "/run/systemd/journal/socket"]).arg(&kept);
    service
        .args([env!("CARGO_BIN_EXE_guardiand"), "--private", "--backend", "subtree", "--state-dir"])
        .arg(world.state());
    service.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET").stdin(std::process::Stdio::null());
    let service = start(&mut service);
    eventually("it serves", || world.state().join("bus.sock").exists().then_some(()));
    let pid = world.written_instance().unwrap();
    let run = hostile_run(&world);
    start(world.command(["kill", "--force", &run, "--reason"]).arg(HOSTILE)).wait().exits(0);
    common::signal(pid, rustix::process::Signal::TERM);
    let stderr = service.wait().stderr;
    is_safe(&stderr);
    assert!(stderr.lines().any(|line| line.contains(&format!("{run}: kill intent: {SHOWN}"))), "{stderr}");
    let entries = std::fs::read_to_string(&kept).unwrap();
    let entries: Vec<Value> = entries.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (field, value) in entries.iter().flat_map(|entry| entry.as_object().unwrap()) {
        let value = value.as_str().unwrap();
        assert!(!value.chars().any(is_unsafe), "{field}={value:?}");
    }
    let intent = entries.iter().find(|entry| entry["GUARDIAN_EVENT"] == "kill_intent").unwrap();
    assert_eq!((&intent["GUARDIAN_REASON"], &intent["GUARDIAN_RUN_ID"]), (&SHOWN.into(), &Value::from(run)));
}

#[test]
fn what_is_refused_is_told_in_a_short_line() {
    let world = World::new_in(Place::Subtree);
    let hostile = OsStr::new(HOSTILE);
    let (not_utf8, long) = (bytes(b"\x1b]0;owned\x07\xff"), OsString::from("9".repeat(LONG / 10)));
    let config = world.path("config.toml");
    std::fs::write(
        &config,
        "[workflow.\"\\u001b[2J\"]\n[\"\\nrun_0 finished\"]\n\"\u{202e}\" = \"\u{7f}\n[instance]\nx = \"\x1b\"\n",
    )
    .unwrap();
    for bad in [hostile, &not_utf8, &long] {
        let words: [&[&OsStr]; 14] = [
            &[bad],
            &["show".as_ref(), bad],
            &["explain".as_ref(), bad],
            &["logs".as_ref(), bad],
            &["kill".as_ref(), bad],
            &["wait".as_ref(), bad, "--timeout".as_ref(), "1s".as_ref()],
            &["ps".as_ref(), "--since".as_ref(), bad],
            &["ps".as_ref(), "--workflow".as_ref(), bad, "--phase".as_ref(), bad],
            &["audit".as_ref(), bad],
            &["extend".as_ref(), "run_0".as_ref(), bad, "1s".as_ref()],
            &["run".as_ref(), "--workflow".as_ref(), bad, "true".as_ref()],
            &["run".as_ref(), "--max-runtime".as_ref(), bad, "true".as_ref()],
            &["run".as_ref(), "--cwd".as_ref(), bad, "true".as_ref()],
            &["run".as_ref(), bad],
        ];
        for arguments in words {
            let done = world.guardian(arguments);
            assert!(done.code.is_some_and(|code| code != 0), "{arguments:?}: {done:?}");
            assert!(!told(&done).is_empty() && !done.stderr.contains("panicked"), "{arguments:?}: {done:?}");
        }
    }
    let mut check = world.command(["config", "check"]);
    let mistakes = start(check.arg(&config)).wait();
    assert!(told(mistakes.exits(2)).lines().count() > 2, "{mistakes:?}");
    let mut elsewhere = world.command(["--config", "/"]);
    told(&start(elsewhere.arg("--state-dir").arg(world.path(HOSTILE)).arg("ps")).wait());
}

#[tokio::test]
async fn a_megabyte_in_an_argument_of_a_call_is_refused_and_holds_up_nobody() {
    let world = World::new_in(Place::Subtree);
    let run = world.detach(&["--readiness", "exec"], &["sleep", "1000"]);
    let client = Client::connect(&world.state().join("bus.sock")).await.unwrap();
    let long = "x".repeat(LONG);
    let request = || LaunchRequest { argv: vec![b"true".to_vec()], cwd: b"/".to_vec(), ..LaunchRequest::default() };
    let refused = [
        LaunchRequest { argv: vec![long.clone().into_bytes()], ..request() },
        LaunchRequest { env: vec![[b"A=".to_vec(), long.clone().into_bytes()].concat()], ..request() },
        LaunchRequest { cwd: [b"/".to_vec(), long.clone().into_bytes()].concat(), ..request() },
        LaunchRequest { name: Some(long.clone()), ..request() },
        LaunchRequest { workflow: Some(long.clone()), ..request() },
        LaunchRequest { argv: vec![b"a\0b".to_vec()], ..request() },
        LaunchRequest {
            limits: LimitUpdate { grace: Some(Duration::from_secs(u64::MAX / 1_000_000)), ..LimitUpdate::default() },
            ..request()
        },
    ];
    for request in refused {
        let error = client.start(&request).await.unwrap_err();
        assert!(error.kind == ErrorKind::InvalidArgument && error.message.len() < 300, "{error:?}");
        is_safe(&error.message);
    }
    for id in [long.as_str(), HOSTILE, "\u{202e}"] {
        let errors = [
            client.show(id).await.map(drop).unwrap_err(),
            client.kill(id, KillMode::Force, "").await.map(drop).unwrap_err(),
            client.extend(id, "max_runtime", Duration::from_secs(1)).await.map(drop).unwrap_err(),
            client.events(0, 9, Some(id)).await.map(drop).unwrap_err(),
            client.extend(&run, id, Duration::from_secs(1)).await.map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(error.message.len() < 500, "{} bytes", error.message.len());
            is_safe(&error.message);
        }
    }
    let error = client.kill(&run, KillMode::Force, &long).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::InvalidArgument, "a reason has at most 4096 bytes"));
    assert!(client.show(&run).await.unwrap().receipt.is_none(), "nobody was ended");
    // As much as may be given, in strings that the kernel will not take: the launch fails, and says so.
    let most = LaunchRequest { argv: vec![b"true".to_vec(), vec![b'\x1b'; LONG - 100]], ..request() };
    let error = client.start(&most).await.unwrap_err();
    assert!(error.kind == ErrorKind::LaunchFailed && error.message.len() < 500, "{error:?}");
    is_safe(&error.message);
    assert_eq!(client.show(&run).await.unwrap().spec.id.to_string().parse::<RunId>().unwrap().to_string(), run);
    end(&world, &run);
}
