//! The command line as its users call it, against an instance without an engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod fake;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command as Process, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{Instance, Show, finished, id, instance, live};
use guardian::daemon::command::{Answer, Command};
use guardian::model::*;

/// What the engine was asked.
type Asked = Arc<Mutex<Vec<String>>>;

/// An instance whose engine contains a run by doing nothing, and ends it as it really is ended.
fn guarding() -> (Instance, Asked) {
    let asked = Asked::default();
    let log = asked.clone();
    let mut child: Option<OwnedFd> = None;
    let mut reason: Option<KillReason> = None;
    let uid = rustix::process::getuid().as_raw();
    let script = move |command: &Command, published: &guardian::daemon::published::Published| match command {
        Command::Attach { request, child: pidfd } => {
            log.lock().unwrap().push(format!("attach {}", String::from_utf8_lossy(&request.argv[0])));
            child = Some(pidfd.try_clone().unwrap());
            published.show(live(1, uid));
            Ok(Answer::Run(id(1)))
        }
        Command::Start { request } => {
            log.lock().unwrap().push(format!("start {}", request.env.len()));
            published.show(live(2, uid));
            Ok(Answer::Run(id(2)))
        }
        Command::Kill { run, mode, text } => {
            log.lock().unwrap().push(format!("kill {mode} {text}"));
            let why = KillReason::Requested { text: text.clone() };
            if let (Some(pidfd), None) = (&child, &reason) {
                rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::TERM).unwrap();
            } else if child.is_none() {
                published.finish(finished(2, uid));
            }
            reason = Some(why.clone());
            let actor = Actor::User { uid, name: "me".into() };
            Ok(Answer::Kill(KillAnswer { run: *run, mode: *mode, reason: why, actor, requested_at: Wall(1) }))
        }
        Command::ReportExit { status, .. } => {
            log.lock().unwrap().push(format!("{status:?}"));
            let mut view = finished(1, uid);
            view.notices.clear();
            match (&reason, status) {
                (Some(reason), _) => {
                    view.outcome = Some(Outcome::Killed { reason: reason.clone() });
                    view.receipt.as_mut().unwrap().reason = reason.clone();
                }
                (None, ExitStatus::Exited(code)) => {
                    view.outcome = Some(Outcome::Exited { code: *code });
                    view.receipt = None;
                }
                (None, ExitStatus::Signaled(signal)) => {
                    view.outcome = Some(Outcome::Signaled { signal: *signal });
                    view.receipt = None;
                }
            }
            published.finish(view);
            Ok(Answer::Done)
        }
        _ => Ok(Answer::Done),
    };
    (instance(Box::new(script)), asked)
}

fn guardian(i: &Instance) -> Process {
    let mut process = Process::new(env!("CARGO_BIN_EXE_guardian"));
    process.arg("--state-dir").arg(i.socket.parent().unwrap()).stdin(Stdio::null());
    process
}

fn output(i: &Instance, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = guardian(i).args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_run_is_transparent_when_nothing_happens() {
    let (i, asked) = guarding();
    let script = "read x; echo \"$x $GUARDIAN_RUN_ID $K\"; echo err >&2; pwd; exit 7";
    let mut process = guardian(&i);
    process.args(["run", "-e", "K=v", "-C", "/usr", "--", "sh", "-c", script]);
    let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "in run_000000000001 v\n/usr\n");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "err\n");
    assert_eq!(*asked.lock().unwrap(), ["attach sh", "Exited(7)"]);
}

#[test]
fn a_signal_of_the_command_is_128_and_its_number() {
    let (i, _) = guarding();
    assert_eq!(output(&i, &["run", "sh", "-c", "kill -SEGV $$"]).0, Some(139));
}

/// A client whose command is executed. That the instance was asked for it is not enough: what befalls the instance or the
/// client before the answer is a launch that does not happen.
fn running(i: &Instance, script: &str) -> std::process::Child {
    let mut process = guardian(i);
    process.args(["run", "sh", "-c", &format!("echo up; {script}")]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    child
}

#[test]
fn a_signal_to_the_client_is_a_graceful_kill_and_explained() {
    let (i, asked) = guarding();
    let child = running(&i, "exec sleep 1000");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let out = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(137), "{told}");
    assert_eq!(asked.lock().unwrap()[1], "kill graceful SIGTERM to the client");
    assert!(told.contains("guardian: run_000000000001 was ended: SIGTERM to the client\n"), "{told}");
    assert!(told.contains("SIGTERM to 2 processes, no cgroup.kill needed, 0 survivors, 4 ms"), "{told}");
}

#[test]
fn a_run_outlives_its_instance() {
    let (mut first, _) = guarding();
    let (second, _) = guarding();
    let child = running(&first, "sleep 1; exit 5");
    second.published.show(live(1, second.uid));
    std::fs::rename(&second.socket, &first.socket).unwrap();
    first.stop.take().unwrap().send(()).unwrap();
    let out = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(5), "{told}");
    assert!(told.contains("looking for the next instance"), "{told}");
}

#[test]
fn a_command_outlives_the_last_instance_and_its_status_is_given() {
    let (mut first, _) = guarding();
    let witness = first.socket.with_file_name("witness");
    let child = running(&first, &format!("sleep 1; echo > {}; exit 5", witness.display()));
    // No instance can be started with this: there is a directory where its lock would be.
    std::fs::create_dir(first.socket.with_file_name("instance.lock")).unwrap();
    std::fs::remove_file(&first.socket).unwrap();
    first.stop.take().unwrap().send(()).unwrap();
    let out = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(5), "{told}");
    assert!(witness.exists());
    assert!(told.contains("ended while no instance watched it"), "{told}");
}

#[test]
fn a_signal_that_a_program_may_use_is_passed_on() {
    let (i, asked) = guarding();
    let mut process = guardian(&i);
    let script = "trap 'echo heard; exit 4' USR1; echo ready; while :; do sleep 0.01; done";
    let mut child = process.args(["run", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "heard");
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert_eq!(*asked.lock().unwrap(), ["attach sh", "Exited(4)"]);
}

#[test]
fn the_exit_is_known_even_to_a_client_that_was_told_to_ignore_sigchld() {
    let (i, asked) = guarding();
    let out = Process::new("env")
        .args(["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_guardian"), "--state-dir"])
        .arg(i.socket.parent().unwrap())
        .args(["run", "sh", "-c", "exit 6"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(6), "{out:?}");
    assert_eq!(*asked.lock().unwrap(), ["attach sh", "Exited(6)"]);
}

#[test]
fn an_instance_that_does_not_answer_does_not_hold_up_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let witness = dir.path().join("witness");
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("bus.sock")).unwrap();
    let mut process = Process::new(env!("CARGO_BIN_EXE_guardian"));
    process.arg("--state-dir").arg(dir.path()).args(["run", "touch"]).arg(&witness).stderr(Stdio::null());
    let mut child = process.spawn().unwrap();
    let _silent = listener.accept().unwrap();
    // The signals are blocked before it connects.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!witness.exists());
}

#[test]
fn a_refused_run_executes_nothing() {
    let refused = |_: &Command, _: &guardian::daemon::published::Published| {
        Err(Error::new(ErrorKind::NotDelegated, "no writable cgroup2 subtree"))
    };
    let i = instance(Box::new(refused));
    let witness = i.socket.with_file_name("witness");
    let (status, out, err) = output(&i, &["run", "touch", &witness.to_string_lossy()]);
    assert_eq!((status, out.as_str()), (Some(125), ""));
    assert!(err.starts_with("guardian: no writable cgroup2 subtree\nhint: "), "{err}");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!witness.exists());
}

#[test]
fn a_detached_run_prints_its_id_and_gets_the_environment() {
    let (i, asked) = guarding();
    let (status, out, err) = output(&i, &["run", "-d", "-e", "A=b", "--", "sleep", "9"]);
    assert_eq!((status, out.as_str(), err.as_str()), (Some(0), "run_000000000002\n", ""));
    assert!(asked.lock().unwrap()[0].starts_with("start "));
    assert_eq!(output(&i, &["run", "-d", "-e", "NOT_THERE_AT_ALL", "x"]).0, Some(125));
}

#[test]
fn kill_shows_the_receipt() {
    let (i, _) = guarding();
    i.published.show(live(2, i.uid));
    let (status, out, err) = output(&i, &["kill", "run_000000000002", "--reason", "enough"]);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("SIGTERM to 2 processes, no cgroup.kill needed, 0 survivors, 4 ms"), "{out}");
    assert!(out.contains("intent_recorded"), "{out}");
}

#[test]
fn refusals_have_their_exit_statuses() {
    let (i, _) = guarding();
    i.published.show(live(0x1111_0000_0001, i.uid));
    i.published.show(live(0x1111_0000_0002, i.uid));
    i.shelf.runs.lock().unwrap().push(finished(3, i.uid));
    let status = |arguments: &[&str]| output(&i, arguments).0.unwrap();
    assert_eq!(status(&["show", "run_999999999999"]), 3);
    assert_eq!(status(&["show", "nonsense"]), 2);
    assert_eq!(status(&["kill", "1111"]), 2);
    assert_eq!(status(&["kill", "run_000000000003"]), 4);
    assert_eq!(status(&["wait", "run_111100000001", "--timeout", "20ms"]), 10);
    assert_eq!(status(&["wait", "run_000000000003"]), 124);
    assert_eq!(status(&["extend", "1", "grace", "1s"]), 2);
}

#[test]
fn lists_are_for_people_and_for_programs() {
    let (i, _) = guarding();
    let mut view = live(1, i.uid);
    view.spec.command = vec!["printf".into(), "\x1b[2J\nrun_0 fake".into()];
    i.published.show(view);
    i.shelf.runs.lock().unwrap().push(finished(3, i.uid));
    let (status, out, err) = output(&i, &["ps"]);
    assert_eq!((status, err.as_str()), (Some(0), ""));
    assert_eq!(out.lines().count(), 2, "{out}");
    assert!(out.contains("printf '\\u{1b}[2J\\nrun_0 fake'"), "{out}");
    let json: serde_json::Value = serde_json::from_str(&output(&i, &["ps", "--all", "--json"]).1).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(json[0]["limits"]["init_timeout_usec"], 1_800_000_000u64);
    assert_eq!(json[0]["created_at"], "2023-11-14T22:13:20.000001Z");
    assert_eq!(json[1]["exit_status"], 124);
    assert_eq!(json[1]["receipt"]["survivors"], 0);
    assert!(output(&i, &["show", "run_000000000003"]).1.contains("memory_max cannot be enforced here"));
    assert!(output(&i, &["history"]).1.contains("killed(max_runtime of 3 s is over)"));
    let doctor = output(&i, &["doctor"]).1;
    for row in [
        "   backend  cgroupfs",
        "            not systemd: no bus",
        "   cgroup2  ",
        "    limits  ",
        "      kill  ",
        " isolation  ",
        "   journal  ",
        "   missing  too little",
    ] {
        assert!(doctor.lines().any(|l| l.starts_with(row)), "no {row:?} in\n{doctor}");
    }
    let json: serde_json::Value = serde_json::from_str(&output(&i, &["doctor", "--json"]).1).unwrap();
    assert_eq!(json["instance"]["notes"][1], "and then some");
    assert!(json["host"]["journal"].is_boolean());
    assert_eq!(output(&i, &["audit", "verify"]).0, Some(1));
}

#[test]
fn an_instance_that_cannot_start_is_reported_in_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let out =
        Process::new(env!("CARGO_BIN_EXE_guardian")).arg("ps").arg("--state-dir").arg(file.join("below")).output();
    let out = out.unwrap();
    assert_ne!(out.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("guardian: "), "{out:?}");
}

/// Ends the instance that a test started for real.
struct Started(std::path::PathBuf);

impl Started {
    fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.0.join("instance.lock")).ok()?.trim().parse().ok()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(pid) = self.pid().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

#[test]
fn an_instance_has_no_tie_to_whoever_happened_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let started = Started(dir.path().join("state"));
    // A lock that a script holds while it runs a command, and whose child the instance is.
    let script = "exec 9>lock; exec \"$0\" --state-dir state run -- sh -c 'cut -d\" \" -f4 \"/proc/$(cat state/instance.lock)/stat\"; echo $PPID'";
    let mut process = Process::new("sh");
    process.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_guardian")).current_dir(dir.path());
    let out = process.output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.code() == Some(125) && told.contains("cgroup") && std::env::var_os("CI").is_none() {
        eprintln!("SKIPPED: no instance can be started here: {told}");
        return;
    }
    assert_eq!(out.status.code(), Some(0), "{told}");
    let said = String::from_utf8(out.stdout).unwrap();
    let [parent, client] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert_ne!(parent, client, "the instance is a child of the client");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", started.pid().unwrap())).unwrap();
    let kept: Vec<_> = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(!kept.contains(&dir.path().canonicalize().unwrap().join("lock")), "{kept:?}");
}

#[test]
fn each_mistake_of_a_configuration_has_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[instance]\nmax_runs = -1\nno_such_key = 1\n").unwrap();
    for verb in [&["ps"][..], &["run", "true"]] {
        let mut process = Process::new(env!("CARGO_BIN_EXE_guardian"));
        process.arg("--state-dir").arg(dir.path().join("state")).arg("--config").arg(&config).args(verb);
        let out = process.output().unwrap();
        let told = String::from_utf8(out.stderr).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[0].starts_with("guardian: the instance could not be started: the configuration is"), "{told}");
        assert!(lines[1].starts_with("          /") && lines[1].contains("config.toml:3:"), "{told}");
        assert!(!told.contains("\\n"), "{told}");
    }
}

#[test]
fn pages_and_completions_are_made_of_the_definition() {
    let dir = tempfile::tempdir().unwrap();
    let guardian = || Process::new(env!("CARGO_BIN_EXE_guardian"));
    assert!(guardian().arg("man").arg(dir.path()).status().unwrap().success());
    for page in ["guardian.1", "guardian-run.1", "guardian-kill.1", "guardian-audit-verify.1"] {
        assert!(Path::new(&dir.path().join(page)).exists(), "{page}");
    }
    assert!(!dir.path().join("guardian-instance.1").exists());
    let out = guardian().args(["completions", "bash"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("_guardian"));
}
