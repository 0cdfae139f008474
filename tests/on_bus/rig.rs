//! A message bus of the test's own, the real `guardiand` on it, and clients as different users.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::*;

pub const NAME: &str = "org.guardian.Guardian1";
pub const MANAGER: [&str; 3] = [NAME, "/org/guardian/Guardian1", "org.guardian.Guardian1.Manager"];
pub const RUN: &str = "org.guardian.Guardian1.Run";

/// dbus-daemon lets in only who is in /etc/passwd, so these are not spare uids: two accounts that every Debian has.
pub const ANN: u32 = 1;
pub const BEN: u32 = 65534;

/// A process of the test's, ended by its pid.
pub struct Ours(pub Child);

impl Ours {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits until it has.
    pub fn end(&mut self, with: Signal) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal(self.pid(), with);
        }
        let _ = self.0.wait();
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

/// The bus and the instance, in a directory that everybody may enter.
pub struct Rig {
    pub dir: tempfile::TempDir,
    kind: &'static str,
    daemon: Option<Ours>,
    pub guardiand: Option<Ours>,
}

impl Rig {
    /// A bus, and the host's instance on it.
    pub fn system() -> Self {
        let mut rig = Self::without_instance("SYSTEM");
        rig.start_instance();
        rig
    }

    /// A bus, and a user's instance on it: root's, who runs the tests.
    pub fn session() -> Self {
        let mut rig = Self::without_instance("SESSION");
        rig.start_instance();
        rig
    }

    pub fn without_instance(kind: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("gb-").tempdir_in("/tmp").unwrap();
        rustix::fs::chmod(dir.path(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        for script in ["attach.py", "client.py"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/on_bus").join(script);
            std::fs::copy(from, dir.path().join(script)).unwrap();
        }
        let config = format!(
            "<busconfig><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy>\
             <policy user=\"root\"><allow eavesdrop=\"true\"/></policy></busconfig>",
            dir.path().display()
        );
        std::fs::write(dir.path().join("bus.conf"), config).unwrap();
        let mut rig = Self { dir, kind, daemon: None, guardiand: None };
        rig.start_bus();
        rig
    }

    pub fn start_bus(&mut self) {
        let _ = std::fs::remove_file(self.path("bus"));
        let config = format!("--config-file={}", self.path("bus.conf").display());
        let mut daemon = Command::new("dbus-daemon");
        daemon.args([&config, "--nofork", "--nopidfile", "--nosyslog"]).stderr(Stdio::null());
        self.daemon = Some(Ours(daemon.spawn().unwrap()));
        eventually("the bus answers", || std::os::unix::net::UnixStream::connect(self.path("bus")).ok().map(drop));
    }

    pub fn stop_bus(&mut self) {
        drop(self.daemon.take());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An instance that is not waited for, with its own state directory.
    pub fn instance(&self, state: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guardiand"));
        if self.kind == "SESSION" {
            command.arg("--user");
        }
        command.args(["--backend", "cgroupfs", "--state-dir"]).arg(self.path(state)).stdin(Stdio::null());
        command.env_remove("FAILPOINTS").env_remove("GUARDIAN_CONFIG").env_remove("NOTIFY_SOCKET");
        self.on(&mut command);
        command
    }

    pub fn start_instance(&mut self) {
        let log = std::fs::File::create(self.path("guardiand.log")).unwrap();
        self.guardiand = Some(Ours(self.instance("state").stderr(log).spawn().unwrap()));
        eventually("the instance has its name on the bus", || self.has_owner(NAME).then_some(()));
    }

    pub fn has_owner(&self, name: &str) -> bool {
        let ask =
            ["call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner", "s"];
        self.busctl(0, &[&ask[..], &[name]].concat()).0 == "b true"
    }

    /// The command finds the buses where they are, and no other.
    fn on<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let (own, other) = match self.kind {
            "SYSTEM" => ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS"),
            _ => ("DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS"),
        };
        command.env(own, format!("unix:path={}", self.path("bus").display()));
        command.env(other, "unix:path=/nonexistent").env_remove("XDG_RUNTIME_DIR").current_dir("/")
    }

    /// A program as this user, on the bus.
    pub fn as_user(&self, uid: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        let uid = uid.to_string();
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"]).arg(program);
        self.on(&mut command);
        command
    }

    /// What a program says to this user: its output, or its error; and the time it took.
    pub fn says(&self, uid: u32, program: &str, arguments: &[&str]) -> (String, Duration) {
        let begun = Instant::now();
        let Output { stdout, stderr, .. } = self.as_user(uid, program).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(if stdout.is_empty() { &stderr } else { &stdout }).trim().to_owned();
        (said, begun.elapsed())
    }

    pub fn busctl(&self, uid: u32, arguments: &[&str]) -> (String, Duration) {
        let bus = if self.kind == "SYSTEM" { "--system" } else { "--user" };
        self.says(uid, "busctl", &[&[bus, "--no-pager"], arguments].concat())
    }

    /// `busctl call` of a method of the manager.
    pub fn call(&self, uid: u32, arguments: &[&str]) -> (String, Duration) {
        self.busctl(uid, &[&["call"], &MANAGER[..], arguments].concat())
    }

    /// The same with gdbus, which says the name of an error too.
    pub fn gdbus(&self, uid: u32, path: &str, method: &str, arguments: &[&str]) -> (String, Duration) {
        let bus = if self.kind == "SYSTEM" { "--system" } else { "--session" };
        let head = ["call", bus, "--dest", NAME, "--object-path", path, "--method", method, "--"];
        self.says(uid, "gdbus", &[&head[..], arguments].concat())
    }

    pub fn python(&self, uid: u32, script: &str, arguments: &[&str]) -> Command {
        let mut command = self.as_user(uid, python());
        command.arg(self.path(script)).args(arguments);
        command
    }

    /// A foreground run of this user's, by a client that lives as long as this does.
    pub fn attach(&self, uid: u32) -> Attached {
        let session: &[&str] = if self.kind == "SESSION" { &["--session"] } else { &[] };
        let mut command = self.python(uid, "attach.py", session);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let run = line.trim().to_owned();
        assert!(is_run_id(&run), "{run}: {}", std::fs::read_to_string(self.path("guardiand.log")).unwrap_or_default());
        Attached { client: Ours(client), run }
    }

    /// The signals of the instance that this user's connection is sent, which has called it once.
    pub fn listen(&self, uid: u32) -> Listener {
        let here = self.path("listener");
        if !here.exists() {
            std::fs::copy(std::env::current_exe().unwrap(), &here).unwrap();
        }
        let mut command = self.as_user(uid, &here);
        command.args(["--ignored", "--exact", "--nocapture", "listener"]).stdout(Stdio::piped());
        let mut client = command.spawn().unwrap();
        let output = BufReader::new(client.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let listener = Listener { _client: Ours(client), lines };
        listener.until("the listener is ready", |line| line == "listening");
        listener
    }

    /// The outcome of a run, once it is over.
    pub fn outcome(&self, run: &str) -> String {
        self.call(0, &["WaitRun", "st", run, "20000000"]).0
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It takes its cgroup away when no run is left.
        if let Some(mut guardiand) = self.guardiand.take() {
            guardiand.end(Signal::TERM);
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("guardiand.log")).unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "guardiand said:\n{log}");
        }
    }
}

/// A foreground run and its client.
pub struct Attached {
    pub client: Ours,
    pub run: String,
}

impl Attached {
    pub fn path(&self) -> String {
        format!("/org/guardian/Guardian1/run/{}", self.run)
    }
}

pub struct Listener {
    _client: Ours,
    lines: mpsc::Receiver<String>,
}

impl Listener {
    /// Everything up to the line that is looked for.
    #[track_caller]
    pub fn until(&self, what: &str, is: impl Fn(&str) -> bool) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let found = is(&line);
                    heard.push(line);
                    if found {
                        return heard;
                    }
                }
                Err(e) => panic!("{what}: {e} after {heard:?}"),
            }
        }
    }
}
