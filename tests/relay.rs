//! The relay by itself: what goes through it, how it ends, and what it says. No instance is there; its messages are read by the
//! test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{GUARDIAN, PATIENCE, descendants, eventually, is_alive, python};

const CLAUDE: &str = r#"{"progress":"stream-json","command":"claude"}"#;
const JSONL: &str = r#"{"progress":"jsonl","session":"/id","turn":"/type=turn","tool":"/tool","done":"/type=done"}"#;

fn agent() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agents/claude")
}

/// A relay for this command. A signal that whoever runs the tests ignores would be ignored by both.
fn relay(spec: &str, command: &[&str]) -> Command {
    let mut relay = Command::new("env");
    relay
        .args(["--default-signal", GUARDIAN, "relay", spec, "--"])
        .args(command)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null());
    relay
}

fn output(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let mut words = Vec::new();
    stderr.read_to_end(&mut words).unwrap();
    Output { status: ended(&mut child), stdout: read.join().unwrap(), stderr: words }
}

/// How it ended, in time.
fn ended(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("the relay does not end");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Who listens in the place of an instance.
struct Ear {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
    fields: BTreeMap<String, String>,
    messages: Vec<String>,
}

impl Ear {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Self { socket, dir, fields: BTreeMap::new(), messages: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// Takes in what was said. A descriptor that comes with it is closed at once, since nothing is there to take it.
    fn listen(&mut self) {
        let mut buffer = [0; 16384];
        while let Ok(n) = self.socket.recv(&mut buffer) {
            let message = String::from_utf8(buffer[..n].to_vec()).unwrap();
            for line in message.lines() {
                let (name, value) = line.split_once('=').unwrap();
                self.fields.insert(name.to_owned(), value.to_owned());
            }
            self.messages.push(message);
        }
    }

    #[track_caller]
    fn hears(&mut self, name: &str, value: &str) {
        eventually(&format!("{name}={value}"), || {
            self.listen();
            (self.fields.get(name).map(String::as_str) == Some(value)).then_some(())
        });
    }

    fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// A relay for the stand-in of `claude`, with someone who listens.
fn agent_of(mode: &str, ear: &Ear) -> Command {
    let agent = agent();
    let words =
        [python(), agent.to_str().unwrap(), "-p", "--output-format", "stream-json", "--verbose", "--max-turns=30"];
    let mut command = relay(CLAUDE, &words);
    command.env("NOTIFY_SOCKET", ear.path()).env("AGENT_MODE", mode).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn every_byte_goes_through_unchanged_whatever_the_pieces() {
    // Lines and none, JSON and none, any byte, in pieces of any size, and a line of 50 MB.
    let script = "
import os, random, sys
random.seed(int(sys.argv[1]))
def put(data):
    while data:
        n = random.choice([1, 7, 4096, 65536, 1 << 20])
        sent = os.write(1, data[:n])
        data = data[sent:]
parts = [b'{\"type\":\"turn\"}\\n', bytes(range(256)) * 100, b'\\n' * 1000, b'{\"type\":\"x\",\"v\":\"' + b'y' * 300000 + b'\"}\\n']
for _ in range(60):
    data = random.choice(parts) if random.random() < 0.9 else random.randbytes(200000)
    put(data) if len(data) < 5000 or random.random() < 0.1 else os.write(1, data) == len(data) or sys.exit(9)
if sys.argv[1] == '1':
    data = b'{\"type\":\"user\",\"v\":\"' + b'z' * (50 << 20) + b'\"}\\nend'
    while data:
        data = data[os.write(1, data[:1 << 20]):]
";
    for seed in ["1", "2", "3"] {
        let command = [python(), "-c", script, seed];
        let direct = Command::new(command[0]).args(&command[1..]).output().unwrap();
        assert!(direct.status.success(), "{}", String::from_utf8_lossy(&direct.stderr));
        let through = output(&mut relay(JSONL, &command));
        assert!(through.status.success() && through.stdout == direct.stdout, "seed {seed}: not the same bytes");
    }
}

#[test]
fn it_ends_as_the_command_ends() {
    for (script, code, signal) in [
        ("exit 0", Some(0), None),
        ("exit 7", Some(7), None),
        ("kill -TERM $$", None, Some(15)),
        ("kill -KILL $$", None, Some(9)),
        ("kill -PIPE $$", None, Some(13)),
        ("kill -SEGV $$", None, Some(11)),
    ] {
        let status = output(&mut relay(JSONL, &["sh", "-c", script])).status;
        assert_eq!((status.code(), status.signal()), (code, signal), "{script}");
        assert!(!status.core_dumped(), "{script}");
    }
}

#[test]
fn a_command_that_cannot_be_executed_has_the_status_that_a_shell_gives() {
    for (command, code) in [("no-such-command", 127), ("/etc", 126)] {
        let output = output(&mut relay(JSONL, &[command]));
        assert_eq!(output.status.code(), Some(code));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("cannot execute {command}")), "{said}");
    }
}

#[test]
fn who_keeps_the_pipe_open_is_not_waited_for_and_the_last_words_are_passed_on() {
    let script = "setsid sleep 1000 2>/dev/null & echo $! >&2; echo last; exec 1>&-; exit 3";
    let begun = Instant::now();
    let output = output(&mut relay(JSONL, &["sh", "-c", script]));
    let left: u32 = String::from_utf8(output.stderr).unwrap().trim().parse().unwrap_or(0);
    let lived = left > 0 && is_alive(left);
    if let Some(pid) = rustix::process::Pid::from_raw(left as i32).filter(|_| lived) {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    assert!(lived, "the server it left behind is no business of the relay");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"last\n"[..]));
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn a_slow_reader_loses_nothing_and_a_missing_one_is_the_commands_to_notice() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo \"{\\\"line\\\":$i}\"; i=$((i+1)); done; echo done >&2";
    let mut child = relay(JSONL, &["sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let (mut got, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let n = out.read(&mut piece).unwrap();
        got.extend_from_slice(&piece[..n]);
        if n == 0 {
            break;
        }
        if got.len() < 20_000 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert_eq!(got.iter().filter(|b| **b == b'\n').count(), 20_000);
    assert!(ended(&mut child).success());
    let mut child = relay(JSONL, &["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(ended(&mut child).signal(), Some(13), "as without the relay");
}

#[test]
fn signals_are_passed_on_and_the_relay_outlives_them() {
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let script = format!(
        "for s in HUP INT QUIT TERM USR1 USR2; do trap \"echo $s >> {0}\" $s; done; echo ready >> {0}; while :; do sleep 0.01; done",
        told.display()
    );
    let mut child = relay(JSONL, &["bash", "-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    let lines = || std::fs::read_to_string(&told).unwrap_or_default();
    eventually("the command is ready", || lines().contains("ready").then_some(()));
    let pid = rustix::process::Pid::from_child(&child);
    use rustix::process::Signal;
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::TERM, "TERM"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
    ] {
        rustix::process::kill_process(pid, signal).unwrap();
        eventually(name, || lines().contains(name).then_some(()));
    }
    assert!(child.try_wait().unwrap().is_none());
    let command = *descendants(child.id()).first().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(command as i32).unwrap(), Signal::KILL).unwrap();
    assert_eq!(ended(&mut child).signal(), Some(9));
}

#[test]
fn nothing_of_the_relay_is_open_in_the_command() {
    let output = output(&mut relay(JSONL, &["ls", "/proc/self/fd"]));
    // Whoever started the tests may have left some open.
    let direct = Command::new("ls").arg("/proc/self/fd").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), String::from_utf8(direct.stdout).unwrap());
    let script = "cat; echo $NOTIFY_SOCKET; grep -E '^SigBlk' /proc/self/status";
    let mut child = relay(JSONL, &["sh", "-c", script])
        .env("NOTIFY_SOCKET", "/nowhere")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a prompt\n").unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(ended(&mut child).success());
    assert!(said.starts_with("a prompt\n/nowhere\nSigBlk:\t0000000000000000\n"), "{said}");
}

#[test]
fn a_healthy_agent_tells_of_its_session_turns_tools_and_costs_and_the_last_report_is_never_lost() {
    let mut ear = Ear::new();
    let mut child = agent_of("healthy 5", &ear).spawn().unwrap();
    ear.hears("X_GUARDIAN_RESULT", "success");
    assert!(ended(&mut child).success());
    ear.listen();
    let expected = [
        ("READY", "1"),
        ("STATUS", "finished with success"),
        ("X_GUARDIAN_SESSION", "5f0c2a9e-0000-4000-8000-000000000001"),
        ("X_GUARDIAN_MODEL", "claude-stand-in"),
        ("X_GUARDIAN_TURNS", "5"),
        ("X_GUARDIAN_TURNS_MAX", "30"),
        ("X_GUARDIAN_TOKENS", "5600"),
        ("X_GUARDIAN_COST_MICRO_USD", "62500"),
        ("X_GUARDIAN_REPEATS", "1"),
        ("X_GUARDIAN_RESULT_TEXT", "All is done."),
        ("BARRIER", "1"),
    ];
    for (name, value) in expected {
        assert_eq!(ear.get(name), value, "{name}");
    }
    assert_eq!(ear.messages.last().map(String::as_str), Some("BARRIER=1"));
}

#[test]
fn an_agent_that_is_stuck_tells_so_far_and_no_further() {
    let mut ear = Ear::new();
    let mut silent = agent_of("before_init", &ear).spawn().unwrap();
    let mut other = Ear::new();
    let mut waiting = agent_of("permission", &other).spawn().unwrap();
    other.hears("X_GUARDIAN_WAITING", "permission to use Bash");
    assert_eq!(other.get("STATUS"), "turn 1 of 30: waits for permission to use Bash");
    let mut looping = Ear::new();
    let mut loops = agent_of("looping 20", &looping).spawn().unwrap();
    looping.hears("X_GUARDIAN_REPEATS", "20");
    assert_eq!((looping.get("X_GUARDIAN_REPEATED"), looping.get("X_GUARDIAN_TURNS")), ("Bash: npm test", "20"));
    let mut failing = Ear::new();
    let mut fails = agent_of("failing 6", &failing).spawn().unwrap();
    failing.hears("X_GUARDIAN_REPEATS", "6");
    assert_eq!(failing.get("X_GUARDIAN_REPEATED"), "error: No such file or directory");
    ear.listen();
    assert!(ear.messages.is_empty(), "nothing was said before init: {:?}", ear.messages);
    for child in [&mut silent, &mut waiting, &mut loops, &mut fails] {
        rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM).unwrap();
        assert_eq!(ended(child).signal(), Some(15), "as the agent ends by it");
    }
}

#[test]
fn an_agent_that_writes_much_is_told_of_seldom_and_one_that_nobody_hears_goes_on() {
    let mut ear = Ear::new();
    let script =
        "i=0; while [ $i -lt 3000 ]; do echo '{\"type\":\"turn\"}'; i=$((i+1)); done; echo '{\"type\":\"done\"}'";
    let begun = Instant::now();
    let mut child =
        relay(JSONL, &["sh", "-c", script]).env("NOTIFY_SOCKET", ear.path()).stdout(Stdio::null()).spawn().unwrap();
    ear.hears("X_GUARDIAN_RESULT", "success");
    assert_eq!(ear.get("X_GUARDIAN_TURNS"), "3000");
    assert!(ended(&mut child).success());
    let most = 5 + begun.elapsed().as_millis() / 90;
    assert!((ear.messages.len() as u128) < most, "{} messages in {:?}", ear.messages.len(), begun.elapsed());
    // A socket that nobody reads is full after some messages; one that is gone takes none.
    let full = Ear::new();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"x", full.path()).is_ok() {}
    for path in [full.path(), PathBuf::from("/no/such/socket"), PathBuf::from("relative")] {
        let output = output(relay(JSONL, &["sh", "-c", script]).env("NOTIFY_SOCKET", path));
        assert!(output.status.success() && output.stdout.iter().filter(|b| **b == b'\n').count() == 3001);
    }
}

#[test]
fn a_line_of_50_mb_is_passed_on_and_the_next_ones_are_read() {
    let mut ear = Ear::new();
    let mut child = agent_of("long_line", &ear).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let copied = std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()).unwrap());
    // What the relay itself holds is bounded.
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let anonymous =
            status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
        most = most.max(anonymous.unwrap_or(0_u64));
        ear.listen();
    }
    ear.listen();
    assert!(copied.join().unwrap() > 50 << 20);
    assert_eq!((ear.get("X_GUARDIAN_RESULT"), ear.get("X_GUARDIAN_TURNS")), ("success", "2"));
    assert!(most < 24 << 10, "{most} kB");
}
