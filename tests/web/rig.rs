//! guardian-web on a port of its own before a private instance, and an HTTP client that sends exactly what a test says.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::*;

pub const GUARDIAN_WEB: &str = env!("CARGO_BIN_EXE_guardian-web");

/// A world with a private instance, guardian-web before it, and a token of each role.
pub struct Web {
    _process: Process,
    pub world: World,
    /// Where it finds the state directory under a name without the world's mark: it is no workload of it.
    _link: tempfile::TempDir,
    pub at: SocketAddr,
    pub code: String,
    pub viewer: String,
    pub operator: String,
    pub starter: String,
}

/// A process, ended by its pid.
pub struct Process(pub Child);

impl Process {
    pub fn end(&mut self, with: Signal) -> Option<i32> {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal(self.0.id(), with);
        }
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // What a test has started to look at; a run that should have ended is looked for by the test itself.
        let live = self.world.guardian(["ps", "--quiet"]).stdout;
        let live: Vec<&str> = live.lines().collect();
        if !live.is_empty() && !std::thread::panicking() {
            self.world.guardian([&["kill", "--force"], &*live].concat());
        }
    }
}

impl Web {
    pub fn new() -> Self {
        Self::with(&[])
    }

    pub fn with(options: &[&str]) -> Self {
        Self::of(World::new_in(Place::Subtree), options, None)
    }

    /// Before an instance with this configuration.
    pub fn configured(config: &str) -> Self {
        Self::of(World::new_in(Place::Subtree), &[], Some(config))
    }

    fn of(world: World, options: &[&str], config: Option<&str>) -> Self {
        let mut first = world.command(["ps"]);
        if let Some(config) = config {
            std::fs::write(world.path("config.toml"), config).unwrap();
            first.env("GUARDIAN_CONFIG", world.path("config.toml"));
        }
        start(&mut first).wait().exits(0);
        let token = |role: &str, name: &str| {
            world.guardian(["token", "new", "--role", role, name]).exits(0).stdout.trim().to_owned()
        };
        let (viewer, operator, starter) = (token("viewer", "ann"), token("operator", "ops"), token("starter", "ci"));
        let dir = tempfile::Builder::new().prefix("gw-").tempdir_in("/tmp").unwrap();
        std::os::unix::fs::symlink(world.state(), dir.path().join("state")).unwrap();
        let mut command = Command::new(GUARDIAN_WEB);
        command
            .args(["--private", "--listen", "127.0.0.1:0", "--print-link", "--state-dir"])
            .arg(dir.path().join("state"));
        command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).env_remove("NOTIFY_SOCKET").current_dir("/");
        let mut process = Process(command.spawn().unwrap());
        let (at, code) = link(&mut process.0);
        Self { _process: process, world, _link: dir, at, code, viewer, operator, starter }
    }

    pub fn get(&self, path: &str) -> Ask {
        Ask::new(self.at, "GET", path)
    }

    pub fn post(&self, path: &str, body: &str) -> Ask {
        let mut ask = Ask::new(self.at, "POST", path).header("Content-Type", "application/json");
        ask.body = Some(body.to_owned());
        ask
    }

    /// A detached run that sleeps.
    pub fn sleeper(&self, workflow: &str) -> String {
        self.world.detach(&["--workflow", workflow, "--readiness", "exec"], &["sleep", "1000"])
    }

    pub fn kill_path(&self, run: &str) -> String {
        format!("/api/v1/workflows/local/run/{run}/kill")
    }

    /// A session for the one-time code: its cookie.
    pub fn cookie(&self) -> String {
        let reply = self.post("/api/v1/login", &format!(r#"{{"code": "{}"}}"#, self.code)).send();
        reply.is(200);
        reply.cookie()
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.at)
    }

    pub fn events(&self, query: &str, last: Option<u64>) -> Listener {
        let mut ask = self.get(&format!("/api/v1/events{query}")).bearer(&self.viewer);
        if let Some(last) = last {
            ask = ask.header("Last-Event-ID", &last.to_string());
        }
        Listener::new(ask)
    }
}

/// What it prints once it listens: its address, and the one-time code.
pub fn link(child: &mut Child) -> (SocketAddr, String) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let rest = line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("no link: {line:?}"));
    let (at, code) = rest.split_once("/#code=").unwrap();
    (at.parse().unwrap(), code.to_owned())
}

/// A request.
#[derive(Clone)]
pub struct Ask {
    pub at: SocketAddr,
    pub head: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
}

impl Ask {
    pub fn new(at: SocketAddr, method: &str, path: &str) -> Self {
        let headers = vec![("Host".to_owned(), at.to_string())];
        Self { at, head: format!("{method} {path} HTTP/1.1"), headers, body: None }
    }

    /// A header, in the place of one with this name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn cookie(self, cookie: &str) -> Self {
        self.header("Cookie", cookie)
    }

    pub fn text(&self) -> String {
        let mut text = format!("{}\r\n", self.head);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = &self.body {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        text + "Connection: close\r\n\r\n" + self.body.as_deref().unwrap_or_default()
    }

    pub fn send(&self) -> Reply {
        let mut stream = connect(self.at);
        // It may have answered, and stopped listening, before all is sent.
        let _ = stream.write_all(self.text().as_bytes());
        Reply::read(stream)
    }

    pub fn json(&self) -> Value {
        let reply = self.send();
        reply.is(200);
        reply.json()
    }
}

pub fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    /// Reads to the end of the connection.
    pub fn read(mut stream: impl std::io::Read) -> Self {
        let mut bytes = Vec::new();
        // One that is closed with something unread in it is reset, after what was said.
        let _ = stream.read_to_end(&mut bytes);
        Self::parse(&bytes).unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&bytes)))
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let pair = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()));
        let headers: Vec<_> = lines.filter_map(pair).collect();
        Some(Self { status, headers, body: body.to_owned() })
    }

    #[track_caller]
    pub fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn cookie(&self) -> String {
        self.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
    }
}

/// What a listener was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub kind: String,
    pub id: Option<u64>,
    pub data: Value,
}

/// Someone who listens to events.
pub struct Listener {
    told: mpsc::Receiver<Told>,
    stream: TcpStream,
}

impl Listener {
    pub fn new(ask: Ask) -> Self {
        let mut stream = connect(ask.at);
        stream.write_all(ask.text().as_bytes()).unwrap();
        let (sender, told) = mpsc::channel();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
        std::thread::spawn(move || {
            let (mut kind, mut id) = (String::new(), None);
            // Lines of the chunks' sizes are between them, and are neither.
            for line in lines.lines().map_while(Result::ok) {
                if let Some(name) = line.strip_prefix("event: ") {
                    (kind, id) = (name.to_owned(), None);
                } else if let Some(seq) = line.strip_prefix("id: ") {
                    id = Some(seq.parse().unwrap());
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let data = serde_json::from_str(data).unwrap();
                    let _ = sender.send(Told { kind: kind.clone(), id, data });
                }
            }
        });
        Self { told, stream }
    }

    /// The next that fits.
    #[track_caller]
    pub fn until(&self, what: &str, fits: impl Fn(&Told) -> bool) -> Told {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let told = self.told.recv_timeout(left).unwrap_or_else(|e| panic!("{what}: {e}"));
            if fits(&told) {
                return told;
            }
        }
    }

    /// The rows up to the first of this kind.
    #[track_caller]
    pub fn rows_until(&self, kind: &str) -> Vec<u64> {
        let mut rows = Vec::new();
        loop {
            let told = self.until(kind, |told| told.kind == "audit");
            assert_eq!(told.id, told.data["seq"].as_u64());
            rows.extend(told.id);
            if told.data["kind"] == kind {
                return rows;
            }
        }
    }

    /// Whether it is cut off.
    pub fn is_closed(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            match self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return true,
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Whatever a peer sends until it closes, resets included.
pub fn all_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut block) {
        bytes.extend_from_slice(&block[..n]);
    }
    bytes
}
