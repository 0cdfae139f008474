//! One state directory with its private instance.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use guardian::model::{EventKind, Phase};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::host::*;
use super::place::*;
use super::view::{Row, Run};

/// The executable under test.
pub const GUARDIAN: &str = env!("CARGO_BIN_EXE_guardian");

/// How a command ended, and what it said.
#[derive(Debug, Clone)]
pub struct Done {
    /// Its exit status; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Done {
    /// Fails with everything it said unless it ended with this status.
    #[track_caller]
    pub fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The standard output as JSON: one document, or one a line.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.exits(0);
        serde_json::from_str(&self.stdout).unwrap_or_else(|first| {
            let lines = self.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
            Value::Array(lines.unwrap_or_else(|_| panic!("not JSON ({first}): {}", self.stdout)))
        })
    }

    /// The standard output as a list: an array, or one document a line.
    #[track_caller]
    pub fn list<T: DeserializeOwned>(&self) -> Vec<T> {
        match self.json() {
            Value::Array(items) => items,
            one => vec![one],
        }
        .into_iter()
        .map(|v| serde_json::from_value(v.clone()).unwrap_or_else(|e| panic!("{e}: {v}")))
        .collect()
    }
}

/// A command that was started and not yet waited for.
pub struct Started {
    what: String,
    child: Child,
    since: Instant,
    output: mpsc::Receiver<(bool, Vec<u8>)>,
}

impl Started {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, and for its output to be closed: who keeps it open hangs `$(guardian …)` in a script.
    #[track_caller]
    pub fn wait(mut self) -> Done {
        let deadline = self.since + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    let _ = self.child.kill();
                    panic!("{} did not end within {PATIENCE:?}", self.what);
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let took = self.since.elapsed();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        for _ in 0..2 {
            match self.output.recv_timeout(Duration::from_secs(10)) {
                Ok((true, bytes)) => stdout = String::from_utf8_lossy(&bytes).into_owned(),
                Ok((false, bytes)) => stderr = String::from_utf8_lossy(&bytes).into_owned(),
                Err(_) => panic!("{} ended, and something still holds its output open", self.what),
            }
        }
        Done { code: status.code(), stdout, stderr, took }
    }
}

/// Starts a command with its output kept, and standard input closed unless the caller set it.
pub fn start(command: &mut Command) -> Started {
    let what = format!("{command:?}");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (sender, output) = mpsc::channel();
    let read = |is_stdout: bool, mut stream: Box<dyn Read + Send>| {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            let _ = sender.send((is_stdout, bytes));
        });
    };
    read(true, Box::new(child.stdout.take().unwrap()));
    read(false, Box::new(child.stderr.take().unwrap()));
    Started { what, child, since: Instant::now(), output }
}

/// One state directory with its private instance.
pub struct World {
    pub(super) dir: tempfile::TempDir,
    mark: String,
    place: Place,
    uid: Option<u32>,
    /// The executable under test.
    pub(super) guardian: PathBuf,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An empty one, with the rights of whoever runs the tests. The instance is started by the first command that needs it.
    pub fn new() -> Self {
        Self::new_in(Place::Root)
    }

    /// An empty one in that place.
    pub fn new_in(place: Place) -> Self {
        // Short, because the path of a unix socket has 107 bytes; the directory's name is the mark.
        let dir = tempfile::Builder::new().prefix("gt-").rand_bytes(10).tempdir_in("/tmp").unwrap();
        let mark = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        // A workload may give up its rights and still keep notes in its working directory.
        rustix::fs::chmod(dir.path(), rustix::fs::Mode::from_raw_mode(0o711)).unwrap();
        rustix::fs::chmod(dir.path().join("work"), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
        let uid = place.is_a_users().then(spare_uid);
        let mut guardian = PathBuf::from(GUARDIAN);
        if uid.is_some() {
            [dir.path().to_owned(), dir.path().join("work")]
                .iter()
                .for_each(|d| std::os::unix::fs::chown(d, uid, uid).unwrap());
            if !can_be_reached(&guardian) {
                guardian = dir.path().join("guardian");
                // A link costs nothing, and cannot be made from another file system.
                std::fs::hard_link(GUARDIAN, &guardian)
                    .or_else(|_| std::fs::copy(GUARDIAN, &guardian).map(drop))
                    .unwrap();
            }
        }
        Self { dir, mark, place, uid, guardian }
    }

    /// The executable, where this world can execute it.
    pub fn executable(&self) -> &Path {
        &self.guardian
    }

    /// The place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The uid that its processes have and no other, if it is an ordinary user's.
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// A script of tests/workloads, where this world can read it.
    pub fn script(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workloads").join(name), &path).unwrap();
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A path in the working directory of the workloads.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    /// What every process of the workloads carries: the directory's name is in `GUARDIAN_STATE_DIR`, which they inherit.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// `guardian` with these arguments, ready to be started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let args: Vec<S> = args.into_iter().collect();
        let backend: &[&str] = if self.place == Place::Subtree { &["--backend", "subtree"] } else { &[] };
        let args: Vec<&OsStr> = backend.iter().map(OsStr::new).chain(args.iter().map(AsRef::as_ref)).collect();
        let mut command = self.place.enter(self.uid, &self.guardian, &args);
        if self.uid.is_some() {
            // The PATH of whoever runs the tests may lead where another user may not look.
            command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
            command.env("HOME", self.dir.path()).env_remove("XDG_RUNTIME_DIR").env_remove("DBUS_SESSION_BUS_ADDRESS");
        }
        command
            .env("GUARDIAN_STATE_DIR", self.state())
            .env("NO_COLOR", "1")
            .env_remove("FAILPOINTS")
            .env_remove("GUARDIAN_CONFIG")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// `guardian run OPTIONS -- COMMAND` in the working directory, ready to be started.
    pub fn run_command(&self, options: &[&str], command: &[&str]) -> Command {
        let args = [&["run"], options, &["--"], command].concat();
        let mut command = self.command(args);
        command.current_dir(self.dir.path().join("work"));
        command
    }

    /// Runs `guardian` with these arguments to its end.
    #[track_caller]
    pub fn guardian<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        start(&mut self.command(args)).wait()
    }

    /// Runs a workload to its end.
    #[track_caller]
    pub fn run(&self, options: &[&str], command: &[&str]) -> Done {
        start(&mut self.run_command(options, command)).wait()
    }

    /// Starts a detached run and gives its id.
    #[track_caller]
    pub fn detach(&self, options: &[&str], command: &[&str]) -> String {
        let done = self.run(&[&["--detach"], options].concat(), command);
        done.exits(0);
        let id = done.stdout.trim().to_owned();
        assert!(is_run_id(&id), "`run --detach` prints the run's id alone: {done:?}");
        id
    }

    /// Every run, live and finished.
    #[track_caller]
    pub fn runs(&self) -> Vec<Run> {
        self.guardian(["ps", "--all", "--json"]).list()
    }

    /// The only run that was ever started here.
    #[track_caller]
    pub fn only_run(&self) -> Run {
        let mut runs = self.runs();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    /// One run.
    #[track_caller]
    pub fn show(&self, run: &str) -> Run {
        let mut runs = self.guardian(["show", "--json", run]).list();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    /// Waits until every run is finished, and gives them.
    #[track_caller]
    pub fn finished(&self) -> Vec<Run> {
        eventually("every run is finished", || {
            let runs = self.runs();
            runs.iter().all(|r| r.phase == Phase::Finished).then_some(runs)
        })
    }

    /// The audit log.
    #[track_caller]
    pub fn audit(&self) -> Vec<Row> {
        self.guardian(["audit", "--json"]).list()
    }

    /// How often something is in the audit log.
    #[track_caller]
    pub fn audited(&self, kind: EventKind) -> usize {
        self.audit().iter().filter(|row| row.kind == kind).count()
    }

    /// Waits until something is in the audit log so often: a change of a run's health is shown before it is on disk.
    #[track_caller]
    pub fn assert_audited(&self, kind: EventKind, times: usize) {
        eventually(kind.as_str(), || (self.audited(kind) >= times).then_some(()));
        assert_eq!(self.audited(kind), times, "{kind:?}");
    }

    /// The audit chain holds, and its numbers have no gap.
    #[track_caller]
    pub fn assert_audit_holds(&self) {
        self.guardian(["audit", "verify"]).exits(0);
        let seqs: Vec<u64> = self.audit().iter().map(|row| row.seq).collect();
        assert!(seqs.windows(2).all(|w| w[1] == w[0] + 1), "{seqs:?}");
    }

    /// Rows of a table of the database, for what no command shows.
    pub fn count_rows(&self, table: &str) -> i64 {
        let database = self.database();
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = rusqlite::Connection::open_with_flags(database, flags).unwrap();
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap()
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        let files = std::fs::read_dir(self.state()).unwrap().flatten().map(|e| e.path());
        let is_database = |p: &PathBuf| p.extension().is_some_and(|e| e == "db" || e == "sqlite" || e == "sqlite3");
        files.filter(is_database).min().expect("a database in the state directory")
    }

    /// The pid of the instance that runs or ran last.
    pub fn written_instance(&self) -> Option<u32> {
        std::fs::read_to_string(self.state().join("instance.lock")).ok()?.trim().parse().ok()
    }

    /// The instance's pid, if one runs.
    pub fn instance(&self) -> Option<u32> {
        self.written_instance().filter(|&pid| is_alive(pid) && self.is_guardian(pid))
    }

    /// Waits for the instance, which the first command started.
    #[track_caller]
    pub fn running_instance(&self) -> u32 {
        eventually("the instance runs and has written instance.lock", || self.instance())
    }

    /// Ends the instance with SIGKILL, as a crash would.
    #[track_caller]
    pub fn crash_instance(&self) {
        let pid = self.running_instance();
        signal(pid, Signal::KILL);
        eventually("the instance is gone", || (!is_alive(pid)).then_some(()));
    }

    /// The run was ended by this limit or kill, and its receipt proves it.
    #[track_caller]
    pub fn assert_killed(&self, run: &Run, code: &str) {
        let outcome = run.outcome.as_ref().map(|o| (o.kind.as_str(), o.reason.as_deref()));
        assert_eq!(outcome, Some(("killed", Some(code))), "{run:?}");
        assert_eq!(run.receipt().survivors, 0, "{run:?}");
    }
}
