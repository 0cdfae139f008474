//! The few things that the benchmarks ask of Guardian, through its public interfaces: the command starts the instance,
//! D-Bus does the rest.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guardian::bus::RunFilter;
use guardian::bus::client::Client;
use guardian::daemon::command::LaunchRequest;
use guardian::model::{AuditEvent, KillMode, LimitUpdate, RunId, RunView};

use super::host;

const GUARDIAN: &str = env!("CARGO_BIN_EXE_guardian");
const SOCKET: &str = "bus.sock";
const LOCK: &str = "instance.lock";

/// What the instance is configured with: samples each second, room for the largest scale, no exit while it idles.
const CONFIG: &str = "[instance]\nsample_interval = \"1s\"\nidle_exit = \"1h\"\nmax_runs = 10000\n";

/// A private instance in a state directory of its own, and a connection to it.
pub struct Instance {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Instance {
    /// Starts one on an empty state directory.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("gb-").tempdir_in("/tmp").unwrap();
        Self::start_in(dir, CONFIG)
    }

    /// Starts one that samples as often as it does if nothing is configured.
    pub fn start_as_usual() -> Self {
        let dir = tempfile::Builder::new().prefix("gb-").tempdir_in("/tmp").unwrap();
        Self::start_in(dir, "[instance]\nidle_exit = \"1h\"\nmax_runs = 10000\n")
    }

    /// Starts one that contains runs in this way.
    pub fn start_with_backend(backend: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("gb-").tempdir_in("/tmp").unwrap();
        Self::start_in(dir, &format!("{CONFIG}backend = \"{backend}\"\n"))
    }

    /// Starts one whose database already holds so many events.
    pub fn start_with_history(events: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("gb-").tempdir_in("/tmp").unwrap();
        write_history(&dir.path().join("state"), events);
        Self::start_in(dir, CONFIG)
    }

    fn start_in(dir: tempfile::TempDir, config: &str) -> Self {
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let status = command(&dir, &["ps"]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "guardian ps: {status}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(Client::connect(&dir.path().join("state").join(SOCKET))).unwrap();
        Self { dir, runtime, client }
    }

    /// `guardian` with these arguments, for what is measured through the command line.
    pub fn command(&self, args: &[&str]) -> Command {
        command(&self.dir, args)
    }

    /// The instance's pid.
    pub fn pid(&self) -> u32 {
        std::fs::read_to_string(self.dir.path().join("state").join(LOCK)).unwrap().trim().parse().unwrap()
    }

    /// A path on the filesystem of the state directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// StartRun: a detached run of this command.
    pub fn run(&self, command: &[&str]) -> RunId {
        let request = request(command);
        self.runtime.block_on(self.client.start(&request)).unwrap()
    }

    /// The same with a `max_runtime`.
    pub fn run_for(&self, command: &[&str], max_runtime: Duration) -> RunId {
        let limits = LimitUpdate { max_runtime: Some(Some(max_runtime)), ..request(command).limits };
        self.runtime.block_on(self.client.start(&LaunchRequest { limits, ..request(command) })).unwrap()
    }

    /// AttachRun: a process of ours, already started, as a foreground run.
    pub fn attach(&self, child: &Child, command: &[&str]) -> RunId {
        let pid = rustix::process::Pid::from_child(child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        self.runtime.block_on(self.client.attach(&request(command), pidfd.as_fd())).unwrap()
    }

    /// KillRun.
    pub fn kill(&self, run: RunId) {
        self.runtime.block_on(self.client.kill(&run.to_string(), KillMode::Force, "measured")).unwrap();
    }

    /// WaitRun.
    pub fn wait(&self, run: RunId) -> RunView {
        self.runtime.block_on(self.client.wait(&run.to_string(), Some(Duration::from_secs(120)))).unwrap()
    }

    /// Ends all runs.
    pub fn kill_all(&self, runs: &[RunId]) {
        runs.iter().for_each(|run| self.kill(*run));
        runs.iter().for_each(|run| drop(self.wait(*run)));
    }

    /// One run.
    pub fn show(&self, run: RunId) -> RunView {
        self.runtime.block_on(self.client.show(&run.to_string())).unwrap()
    }

    /// ListRuns: the live ones.
    pub fn list(&self) -> Vec<RunView> {
        self.runtime.block_on(self.client.list(&RunFilter::default())).unwrap()
    }

    /// The shortest call there is.
    pub fn describe(&self) {
        self.runtime.block_on(self.client.describe()).unwrap();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let pid = self.pid();
        // Whatever went wrong before: no run of it stays.
        let runs = self.runtime.block_on(self.client.list(&RunFilter::default())).unwrap_or_default();
        let runs: Vec<String> = runs.iter().map(|run| run.spec.id.to_string()).collect();
        let end = |run| self.runtime.block_on(self.client.kill(run, KillMode::Force, "measured"));
        runs.iter().for_each(|run| drop(end(run)));
        let patience = Some(Duration::from_secs(120));
        runs.iter().for_each(|run| drop(self.runtime.block_on(self.client.wait(run, patience))));
        let subtree = std::fs::read_to_string(self.dir.path().join("state/instance-key")).unwrap_or_default();
        // It may have ended before it could answer.
        let _ = self.runtime.block_on(self.client.stop());
        host::until("the instance stops", || {
            (!std::path::Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(())
        });
        host::remove_subtree(&subtree);
    }
}

fn command(dir: &tempfile::TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(GUARDIAN);
    command.args(args).env("GUARDIAN_STATE_DIR", dir.path().join("state")).stdin(Stdio::null());
    command.env("GUARDIAN_CONFIG", dir.path().join("config.toml"));
    command
}

fn request(command: &[&str]) -> LaunchRequest {
    LaunchRequest {
        argv: command.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/local/bin:/usr/bin:/bin".to_vec()],
        cwd: b"/".to_vec(),
        limits: LimitUpdate { init_timeout: Some(None), ..LimitUpdate::default() },
        ..LaunchRequest::default()
    }
}

/// Fills the database of a state directory as an instance would have.
fn write_history(state: &std::path::Path, events: u64) {
    use guardian::model::Retention;
    use guardian::model::{Actor, EventKind, Wall};
    use guardian::store::{Batch, Store, Write};

    let store = Store::open(state).unwrap().store;
    let keep = Retention { max_age: None, max_bytes: None };
    let writer = store.into_writer(keep, Box::new(|_| {}), None).unwrap();
    // As long ago as retention lets them be.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    for start in (0..events).step_by(1000) {
        let event = |i: u64| AuditEvent {
            at: Wall(now - (events - i) * 1000),
            kind: EventKind::ALL[i as usize % EventKind::ALL.len()],
            run: Some(RunId::from_bytes((i / 10).to_be_bytes()[2..].try_into().unwrap())),
            workflow: Some("default".to_owned()),
            actor: Actor::Guardian,
            reason: "the past".to_owned(),
            details: serde_json::json!({ "number": i }),
        };
        let writes = (start..(start + 1000).min(events)).map(|i| Write::Audit(event(i))).collect();
        let mut batch = Batch { writes, ticket: None, is_provisional: false };
        while let Err(back) = writer.submit(batch) {
            batch = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    writer.stop().unwrap();
}
