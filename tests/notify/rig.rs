//! A server that does as it is told, and a guardian-notify beside a world.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::common::*;

pub const NOTIFY: &str = env!("CARGO_BIN_EXE_guardian-notify");

/// What a server does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    /// It answers with this status.
    Status(u16),
    /// It reads it and never answers.
    Hang,
    /// It leads elsewhere.
    Redirect(String),
    /// It closes the connection.
    Drop,
}

/// A request, and whether it was answered as taken.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub taken: bool,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// One event as a webhook gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub id: String,
    pub event: String,
    pub run: String,
}

/// A server on this host.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            mode: Arc::new(Mutex::new(mode)),
            requests: Arc::default(),
        };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        server
    }

    fn serve(&self, mut stream: TcpStream) {
        let Some(mut request) = read_request(&mut stream) else { return };
        let mode = self.mode.lock().unwrap().clone();
        request.taken = mode == Mode::Status(200);
        self.requests.lock().unwrap().push(request);
        let answer = match mode {
            Mode::Status(status) => format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            Mode::Redirect(to) => {
                format!("HTTP/1.1 302 X\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            }
            Mode::Drop => return,
            Mode::Hang => {
                // Until the other side has given up.
                let _ = stream.read(&mut [0; 1]);
                return;
            }
        };
        let _ = stream.write_all(answer.as_bytes());
    }

    pub fn now(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Every event that was taken, in order, again where it was sent again.
    pub fn taken(&self) -> Vec<Told> {
        events(self.requests().iter().filter(|r| r.taken))
    }

    /// Every event that was sent, taken or not.
    pub fn sent(&self) -> Vec<Told> {
        events(self.requests().iter())
    }

    /// What was told of a run, each id once, in the order of the first time.
    pub fn story(&self, run: &str) -> Vec<String> {
        let mut seen = Vec::new();
        let of_run = self.taken().into_iter().filter(|told| told.run == run);
        of_run
            .filter(|told| {
                !seen.contains(&told.id) && {
                    seen.push(told.id.clone());
                    true
                }
            })
            .map(|told| told.event)
            .collect()
    }
}

fn events<'a>(requests: impl Iterator<Item = &'a Request>) -> Vec<Told> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = requests.flat_map(|r| r.json()["events"].as_array().unwrap().clone());
    all.map(|e| Told { id: text(&e["id"]), event: text(&e["event"]), run: text(&e["run_id"]) }).collect()
}

fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let (head, length) = loop {
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&chunk[..n]);
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let find = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok();
            let length = head.lines().find_map(find).unwrap_or(0);
            break (head, end + 4 + length);
        }
    };
    while bytes.len() < length {
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&chunk[..n]);
    }
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let at = head.len() + 4;
    Some(Request { path, headers, body: String::from_utf8_lossy(&bytes[at..length]).into_owned(), taken: false })
}

/// A configuration, an outbox and what was said, in a directory of their own.
pub struct Notify {
    dir: tempfile::TempDir,
    socket: PathBuf,
    child: Option<Child>,
}

impl Notify {
    /// For the instance of a world, which is started if it is not there.
    pub fn of(world: &World, config: &str) -> Self {
        world.guardian(["ps"]).exits(0);
        let mut notify = Self::alone(config);
        notify.socket = world.state().join("bus.sock");
        notify
    }

    /// For none.
    pub fn alone(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("gn-").tempdir().unwrap();
        std::fs::write(dir.path().join("notify.toml"), config).unwrap();
        Self { dir, socket: PathBuf::new(), child: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command with the configuration.
    pub fn command(&self) -> Command {
        let mut command = Command::new(NOTIFY);
        command.arg("--config").arg(self.path("notify.toml")).arg("--state-dir").arg(self.path("state"));
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").stdin(Stdio::null());
        command
    }

    /// Starts it, and waits until it has found its place in the audit.
    pub fn start(&mut self) {
        let before = self.said().matches("tells of what the audit has").count();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command();
        command.arg("--socket").arg(&self.socket).stderr(log).stdout(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        eventually("guardian-notify reads the audit", || {
            (self.said().matches("tells of what the audit has").count() > before).then_some(())
        });
    }

    /// Ends it as a crash would.
    pub fn crash(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends it as the service manager does; it ends well.
    pub fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        signal(child.id(), rustix::process::Signal::TERM);
        let status = eventually("guardian-notify ends", || child.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", self.said());
    }

    /// What it said on standard error, in all its lives.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// `--test`, with its exit status and what it said.
    pub fn test(&self, channel: &str) -> (Option<i32>, String) {
        let mut command = self.command();
        if channel.is_empty() {
            command.arg("--test")
        } else {
            command.arg(format!("--test={channel}"))
        };
        let done = command.output().unwrap();
        let all = [done.stdout, done.stderr].concat();
        (done.status.code(), String::from_utf8_lossy(&all).into_owned())
    }

    /// No file of it and nothing that it said has this.
    pub fn assert_nowhere(&self, secret: &str) {
        let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
        for file in std::fs::read_dir(self.path("state")).unwrap().flatten().map(|e| e.path()).chain([self.path("log")])
        {
            assert!(!holds(&std::fs::read(&file).unwrap()), "{} has the secret", file.display());
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("guardian-notify said:\n{}", self.said());
        }
    }
}

/// A run that is warned of and then critical, and goes on.
pub fn troubled(world: &World) -> String {
    let limits = ["--readiness", "exec", "--max-runtime", "2s", "--max-runtime-action", "warn"];
    world.detach(&[&["--workflow", "builder"], &limits[..]].concat(), &["sleep", "1000"])
}

/// A world that any user can have.
pub fn world() -> World {
    World::new_in(Place::Subtree)
}

/// A file with a secret.
pub fn secret(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
