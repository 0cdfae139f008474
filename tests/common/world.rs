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
    dir: tempfile::TempDir,
    mark: String,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An empty one. The instance is started by the first command that needs it.
    pub fn new() -> Self {
        // Short, because the path of a unix socket has 107 bytes; the directory's name is the mark.
        let dir = tempfile::Builder::new().prefix("gt-").rand_bytes(10).tempdir_in("/tmp").unwrap();
        let mark = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        // A workload may give up its rights and still keep notes in its working directory.
        rustix::fs::chmod(dir.path(), rustix::fs::Mode::from_raw_mode(0o711)).unwrap();
        rustix::fs::chmod(dir.path().join("work"), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
        Self { dir, mark }
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
        let mut command = Command::new(GUARDIAN);
        command
            .args(args)
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

    /// The processes of the workloads.
    pub fn workload(&self) -> Vec<u32> {
        pids().into_iter().filter(|&p| is_alive(p) && is_marked(p, &self.mark) && !self.is_guardian(p)).collect()
    }

    /// True for a process of the executable under test that uses this state directory.
    fn is_guardian(&self, pid: u32) -> bool {
        // A replaced executable reads as "… (deleted)".
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        exe.as_os_str().to_string_lossy().starts_with(GUARDIAN)
            && contains(&proc_file(pid, "environ"), self.state().as_os_str().as_encoded_bytes())
    }

    /// Every process of `guardian` with this state directory: the instance, clients, children behind a gate.
    pub fn guardians(&self) -> Vec<u32> {
        pids().into_iter().filter(|&p| is_alive(p) && self.is_guardian(p)).collect()
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

    /// Nothing is left of any run: no process of a workload, no child behind a gate, no cgroup.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left = self.workload();
        assert!(left.is_empty(), "left behind:\n{}", left.iter().map(|&p| describe(p)).collect::<Vec<_>>().join("\n"));
        for run in self.runs() {
            let cgroups = cgroups_named(&run.run_id);
            assert!(cgroups.is_empty(), "cgroups left behind: {cgroups:?}");
            if let Some(cgroup) = run.cgroup {
                assert!(!cgroup.path.exists(), "{} is left behind", cgroup.path.display());
            }
        }
        let instance = self.instance();
        let strays: Vec<u32> = self.guardians().into_iter().filter(|&p| Some(p) != instance).collect();
        assert!(strays.is_empty(), "left behind: {:?}", strays.iter().map(|&p| describe(p)).collect::<Vec<_>>());
    }

    /// The run was ended by this limit or kill, and its receipt proves it.
    #[track_caller]
    pub fn assert_killed(&self, run: &Run, code: &str) {
        let outcome = run.outcome.as_ref().map(|o| (o.kind.as_str(), o.reason.as_deref()));
        assert_eq!(outcome, Some(("killed", Some(code))), "{run:?}");
        assert_eq!(run.receipt().survivors, 0, "{run:?}");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

impl Drop for World {
    fn drop(&mut self) {
        // First the instance, by SIGTERM and then for sure; then whatever a failed test left.
        for how in [Signal::TERM, Signal::KILL] {
            self.guardians().into_iter().for_each(|pid| signal(pid, how));
            let deadline = Instant::now() + Duration::from_secs(5);
            while !self.guardians().is_empty() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let left = self.workload();
        for _ in 0..50 {
            for pid in self.workload() {
                if let Some(frozen) = frozen_cgroup(pid) {
                    let _ = std::fs::write(frozen.join("cgroup.freeze"), "0");
                }
                signal(pid, Signal::KILL);
            }
            if self.workload().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The instance's own subtree, which stays for the next instance of this state directory.
        let key = std::fs::read_to_string(self.state().join("instance-key")).unwrap_or_default();
        if key.len() == 8 {
            // A process that has just ended keeps its cgroup busy for a moment.
            for _ in 0..100 {
                cgroups_named(&key).iter().for_each(|cgroup| remove_below(cgroup));
                if cgroups_named(&key).is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if !left.is_empty() && !std::thread::panicking() {
            panic!("the test ended and {} processes of its workload were left", left.len());
        }
    }
}

/// The cgroup of a process, to thaw it before it is killed.
fn frozen_cgroup(pid: u32) -> Option<PathBuf> {
    let cgroup = String::from_utf8_lossy(&proc_file(pid, "cgroup")).into_owned();
    let path = cgroup.lines().find_map(|l| l.strip_prefix("0::/").map(str::to_owned))?;
    (!path.is_empty()).then(|| cgroup2_mount().map(|m| m.join(path)))?
}

/// Removes a cgroup and those below it, as far as they are empty.
fn remove_below(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_below(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}
