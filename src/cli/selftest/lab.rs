//! What the scenarios have in common: runs of workloads with a mark, a bystander, and the search for what is left.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::bus::client::{Client, Description, RunFilter};
use crate::cli::marked::{is_marked, marked};
use crate::cli::session::Session;
use crate::model::{Error, ErrorKind, KillMode, RunId, RunView};

/// The hidden verb that is a workload.
pub const WORKLOAD: &str = "selftest-workload";
/// In the environment of whatever a scenario starts, so that the search asks the kernel and not the instance.
const MARK: &str = "GUARDIAN_SELFTEST";
/// The time that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time of what takes no more than a second where all is well.
pub const SOON: Duration = Duration::from_secs(10);

/// The place of the scenarios.
pub struct Lab<'a> {
    pub session: &'a Session,
    pub about: Description,
    pub executable: PathBuf,
    mark: String,
    dir: Dir,
    bystander: Bystander,
    left_out: RefCell<Vec<String>>,
}

/// A directory that is removed in the end.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that is no run's and must not be touched.
struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A run of a workload, and its client.
pub struct Run {
    pub id: RunId,
    pub client: Child,
    /// Where the workload works.
    pub dir: PathBuf,
}

pub fn internal(what: &str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::internal(format!("cannot {what}: {e}"))
}

impl<'a> Lab<'a> {
    pub async fn new(session: &'a Session) -> Result<Self, Error> {
        let about = session.ask(async |c: &Client| c.describe().await).await?;
        let mark = format!("{MARK}={}-{}", std::process::id(), crate::cli::now().0);
        let dir = std::env::temp_dir().join(format!("guardian-selftest-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(internal("make a directory for the scenarios"))?;
        let dir = Dir(dir);
        let executable = std::env::current_exe().map_err(internal("find the executable"))?;
        let mut bystander = Command::new(&executable);
        bystander.args([WORKLOAD, "sleep"]).arg(&dir.0).stdin(Stdio::null()).process_group(0);
        let bystander = Bystander(bystander.spawn().map_err(internal("start a bystander"))?);
        Ok(Self { session, about, executable, mark, dir, bystander, left_out: RefCell::default() })
    }

    /// Notes a part of the scenario that cannot be tried here, and why.
    pub fn leave_out(&self, why: impl Into<String>) {
        self.left_out.borrow_mut().push(why.into());
    }

    /// What was left out since the last call.
    pub fn left_out(&self) -> Vec<String> {
        self.left_out.take()
    }

    /// What is tested, in a line.
    pub fn described(&self) -> String {
        let Description { instance, version, backend, pid, .. } = &self.about;
        format!("The {instance} instance {version}, pid {pid}, with the backend {backend}.")
    }

    /// A new directory for a workload.
    pub fn place(&self, name: &str) -> Result<PathBuf, Error> {
        let dir = self.dir.0.join(name);
        std::fs::create_dir_all(&dir).map_err(internal("make a directory"))?;
        Ok(dir)
    }

    /// The options that lead to the same instance.
    pub fn options(&self) -> Vec<OsString> {
        match self.about.instance.as_str() {
            "system" => vec!["--system".into()],
            "user" => vec!["--user".into()],
            _ => vec!["--state-dir".into(), self.session.state_dir().into()],
        }
    }

    /// `guardian` with these arguments, against the same instance.
    pub fn guardian(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command.args(self.options()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Starts a workload as a foreground run, and waits until all of its processes are up.
    pub async fn start(&self, kind: &str, options: &[&str], processes: usize) -> Result<Run, Error> {
        self.start_in(kind, options, processes, self.place(&format!("{kind}-{}", crate::cli::now().0))?).await
    }

    /// The same in this directory.
    pub async fn start_in(&self, kind: &str, options: &[&str], processes: usize, dir: PathBuf) -> Result<Run, Error> {
        let mut command = self.guardian(&["run", "--workflow", "selftest"]);
        command.args(options).arg("--").arg(&self.executable).args([WORKLOAD, kind]).arg(&dir);
        self.started(command, dir, processes).await
    }

    /// A command that carries the mark, so that what is left of it is found.
    pub fn marked(&self, mut command: Command) -> Command {
        let (name, value) = self.mark.split_once('=').unwrap_or_default();
        command.env(name, value);
        command
    }

    /// Starts a client whose command says in the directory what its run is and which processes there are.
    pub async fn started(&self, command: Command, dir: PathBuf, processes: usize) -> Result<Run, Error> {
        let mut command = self.marked(command);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut client = command.spawn().map_err(internal("start a client"))?;
        let up = eventually(async || {
            // In this order: a short one may be up and over.
            let over = client.try_wait();
            if ups(&dir).len() >= processes {
                return Ok(true);
            }
            match over {
                Ok(Some(status)) => {
                    Err(Error::internal(format!("the client of a workload ended: {}", said(&mut client, status))))
                }
                _ => Ok(false),
            }
        });
        if !up.await? {
            let (_, _) = (client.kill(), client.wait());
            return Err(Error::internal(format!("{} of {processes} processes came up", ups(&dir).len())));
        }
        let id = std::fs::read_to_string(dir.join("run")).map_err(internal("read the run's id"))?;
        let id = id.parse().map_err(|_| Error::internal(format!("a workload says that it is the run {id:?}")))?;
        Ok(Run { id, client, dir })
    }

    /// A run as it is now.
    pub async fn show(&self, run: &Run) -> Result<RunView, Error> {
        let id = run.id.to_string();
        self.session.ask(async |c: &Client| c.show(&id).await).await
    }

    /// The same without being an occasion for anything.
    pub async fn listed(&self, run: &Run) -> Result<RunView, Error> {
        let listed = self.live().await?.into_iter().find(|view| view.spec.id == run.id);
        listed.ok_or_else(|| Error::internal(format!("{} is not listed", run.id)))
    }

    /// The live runs of scenarios.
    pub async fn live(&self) -> Result<Vec<RunView>, Error> {
        let workflow = Some("selftest".to_owned());
        let filter = RunFilter { workflow, limit: RunFilter::MAX_LIMIT, ..RunFilter::default() };
        self.session.ask(async |c: &Client| c.list(&filter).await).await
    }

    /// Ends a run, and waits until it is over.
    pub async fn kill(&self, run: &mut Run, mode: KillMode) -> Result<RunView, Error> {
        let id = run.id.to_string();
        self.session.ask(async |c: &Client| c.kill(&id, mode, "selftest").await).await?;
        self.over(run).await
    }

    /// Waits until a run is over, and its client.
    pub async fn over(&self, run: &mut Run) -> Result<RunView, Error> {
        let id = run.id.to_string();
        let view = self.session.ask(async |c: &Client| c.wait(&id, Some(PATIENCE)).await).await?;
        if view.outcome.is_none() {
            return Err(Error::new(ErrorKind::TimedOut, format!("{id} is not over after {} s", PATIENCE.as_secs())));
        }
        ended(&mut run.client).await?;
        Ok(view)
    }

    /// Waits until nothing is left of a scenario. Ends what is; and the bystander must be there.
    pub async fn clean_up(&self) -> Result<(), String> {
        let began = Instant::now();
        let left = || marked(&self.mark).map_err(|e| format!("what is left cannot be seen: /proc: {e}"));
        let mut there = left()?;
        while !there.is_empty() && began.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            there = left()?;
        }
        for pid in &there {
            self.end(*pid);
        }
        let bystander = self.bystander.0.id();
        let lives = std::fs::read_to_string(format!("/proc/{bystander}/stat"))
            .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')));
        match (there.is_empty(), lives) {
            (true, true) => Ok(()),
            (false, _) => Err(format!("{} processes were left behind: {there:?}", there.len())),
            (true, false) => Err("a process beside the run, which is none of it, was touched".to_owned()),
        }
    }

    /// Ends a process of a scenario, through a pidfd, and only if it is one still.
    pub fn end(&self, pid: u32) {
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
        let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(Ok(pidfd)) = known.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return };
        if is_marked(pid, &self.mark) {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}

/// The processes of a workload that have said that they are up.
pub fn ups(dir: &Path) -> Vec<u32> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.strip_prefix("up.")?.parse().ok()).collect()
}

/// Whether a process is there and has not ended.
pub fn is_alive(pid: u32) -> bool {
    let state = |stat: String| Some(stat.rsplit_once(") ")?.1.chars().next()? != 'Z');
    std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(state).unwrap_or(false)
}

/// What a command that ends soon came to.
pub struct Came {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end. It says less than a pipe holds.
pub async fn came(mut command: Command) -> Result<Came, Error> {
    use std::io::Read as _;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(internal("start a command"))?;
    let status = ended(&mut child).await?;
    let (mut stdout, mut stderr) = (String::new(), String::new());
    if let (Some(out), Some(err)) = (&mut child.stdout, &mut child.stderr) {
        out.read_to_string(&mut stdout).and_then(|_| err.read_to_string(&mut stderr)).map_err(internal("read"))?;
    }
    Ok(Came { status, stdout, stderr: stderr.trim().replace('\n', "; ") })
}

/// What a client said, and how it ended.
pub fn said(client: &mut Child, status: ExitStatus) -> String {
    use std::io::Read as _;
    let mut text = String::new();
    if let Some(stderr) = &mut client.stderr {
        let _ = stderr.take(4096).read_to_string(&mut text);
    }
    format!("{status}: {}", text.trim().replace('\n', "; "))
}

/// Polls until it is so; false if it is not within the time that anything may take.
pub async fn eventually(is: impl AsyncFnMut() -> Result<bool, Error>) -> Result<bool, Error> {
    within(PATIENCE, is).await
}

/// The same in a time of its own.
pub async fn within(patience: Duration, mut is: impl AsyncFnMut() -> Result<bool, Error>) -> Result<bool, Error> {
    let began = Instant::now();
    while !is().await? {
        if began.elapsed() > patience {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(true)
}

/// Waits for a client to end.
pub async fn ended(client: &mut Child) -> Result<ExitStatus, Error> {
    let mut status = None;
    eventually(async || {
        status = client.try_wait().map_err(internal("wait for a client"))?;
        Ok(status.is_some())
    })
    .await?;
    status.ok_or_else(|| {
        let (_, _) = (client.kill(), client.wait());
        Error::new(ErrorKind::TimedOut, "a client did not end with its run")
    })
}
