//! The scenarios that harm an instance. It is one of their own, private, with a state directory of its own, so that nothing of
//! the user's is at risk; and when they are through nothing of it is left.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, prlimit};
use serde_json::Value;

use super::lab::{Came, Lab, Run, SOON, WORKLOAD, came, ended, eventually, internal, ups, within};
use super::workload::processes_of_a_tree;
use super::{Tried, Verdict};
use crate::model::Error;

/// A private instance.
struct Own<'a> {
    lab: &'a Lab<'a>,
    state: PathBuf,
}

impl<'a> Own<'a> {
    /// Starts it, without the mark of what is searched for.
    async fn new(lab: &'a Lab<'a>, name: &str) -> Result<Self, Error> {
        let own = Self { lab, state: lab.place(name)?.join("state") };
        match came(own.guardian(&["ps"])).await? {
            ps if ps.status.success() => Ok(own),
            ps => Err(Error::internal(format!("a private instance: {}", ps.stderr))),
        }
    }

    fn guardian(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.lab.executable);
        command.arg("--state-dir").arg(&self.state).args(arguments).stdin(Stdio::null());
        command
    }

    /// A workload as a foreground run of this instance.
    fn run(&self, options: &[&str], kind: &str, dir: &Path) -> Command {
        let mut command = self.guardian(&["run"]);
        command.args(options).arg("--").arg(&self.lab.executable).args([WORKLOAD, kind]).arg(dir);
        command
    }

    async fn start_a_tree(&self, grace: &str) -> Result<Run, Error> {
        let dir = self.lab.place(&format!("tree-{}", crate::cli::now().0))?;
        let command = self.run(&["--grace", grace], "tree", &dir);
        self.lab.started(command, dir, processes_of_a_tree()).await
    }

    /// What `guardian` says in JSON; null if that is none.
    async fn json(&self, arguments: &[&str]) -> Result<Value, Error> {
        let came = came(self.guardian(&[&["--json"], arguments].concat())).await?;
        let value: Value = serde_json::from_str(&came.stdout).unwrap_or_default();
        Ok(value.get(0).cloned().unwrap_or(value))
    }

    async fn audit_is_intact(&self) -> Result<bool, Error> {
        Ok(came(self.guardian(&["audit", "verify"])).await?.status.success())
    }

    /// The process, held. It names its state directory, which is ours alone.
    fn process(&self) -> Result<(Pid, OwnedFd), Error> {
        let failed = |what: String| Error::internal(format!("the instance of the scenario cannot be found: {what}"));
        let text = std::fs::read_to_string(self.state.join("instance.lock")).map_err(|e| failed(e.to_string()))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(format!("its lock says {text:?}")))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.to_string()))?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        match command.split(|b| *b == 0).any(|word| word == self.state.as_os_str().as_bytes()) {
            true => Ok((pid, pidfd)),
            false => Err(failed(format!("process {pid} is not it"))),
        }
    }

    /// SIGKILL to the instance.
    fn kill(&self) -> Result<Pid, Error> {
        let (pid, pidfd) = self.process()?;
        let sent = pidfd_send_signal(&pidfd, Signal::KILL);
        sent.map_err(|e| Error::internal(format!("the instance of the scenario cannot be killed: {e}")))?;
        Ok(pid)
    }

    /// Lets no file grow that the instance writes to (`RLIMIT_FSIZE`), which to the store is what a full disk is; or lifts that.
    fn fill(&self, full: bool) -> Result<(), Error> {
        let ours = getrlimit(Resource::Fsize);
        let limit = if full { Rlimit { current: Some(0), ..ours } } else { ours };
        let (pid, _pidfd) = self.process()?;
        let set = prlimit(Some(pid), Resource::Fsize, limit);
        set.map(drop).map_err(|e| Error::internal(format!("the instance of the scenario cannot be limited: {e}")))
    }

    /// Ends the instance, says what is left of its run, and removes its cgroup, which else stays for the next instance of the
    /// state directory.
    async fn end(&self, run: &Value) -> Result<Result<(), String>, Error> {
        self.kill()?;
        let left = self.lab.clean_up().await;
        let key =
            std::fs::read_to_string(self.state.join("instance-key")).map_err(internal("read the instance's key"))?;
        let Some(cgroup) = run["cgroup"]["path"].as_str() else { return Ok(left) };
        let named = |dir: &&Path| dir.file_name().is_some_and(|name| name.as_bytes() == key.as_bytes());
        let Some(cgroup) = Path::new(cgroup).ancestors().find(named) else { return Ok(left) };
        let removed = eventually(async || {
            remove_empty(cgroup);
            Ok(!cgroup.exists())
        });
        match removed.await? {
            true => Ok(left),
            false => Err(Error::internal(format!("the cgroup {} is left behind", cgroup.display()))),
        }
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Removes a cgroup and those below it, as far as they are empty.
fn remove_empty(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}

fn holds(what: &str, so: bool) -> String {
    if so { what.to_owned() } else { format!("NOT {what}") }
}

pub async fn killed(lab: &Lab<'_>) -> Tried {
    let own = Own::new(lab, "killed").await?;
    let mut run = own.start_a_tree("20s").await?;
    let id = run.id.to_string();
    // In the middle of the kill: the first signal was sent, and the grace is long.
    let asked = came(own.guardian(&["kill", "--no-wait", &id])).await?.status.success();
    let pid = own.kill()?;
    // The next one is started by whoever asks, and goes on with the kill.
    let forced = came(own.guardian(&["kill", "--no-wait", "--force", &id])).await?;
    let mut shown = Value::Null;
    within(SOON, async || {
        shown = own.json(&["show", &id]).await?;
        Ok(shown["phase"] == "finished")
    })
    .await?;
    let audit = own.audit_is_intact().await?;
    if shown["phase"] != "finished" {
        let _ = run.client.kill();
    }
    ended(&mut run.client).await?;
    let left = own.end(&shown).await?;
    let survivors = shown["receipt"]["survivors"].as_u64();
    let text = format!(
        "instance {pid} killed after it had {}; the next one: {}, {} survivors by its receipt; {}",
        holds("accepted a kill", asked),
        if forced.status.success() {
            format!("the run is {}", shown["phase"].as_str().unwrap_or("unknown"))
        } else {
            forced.stderr
        },
        survivors.map_or("an unknown number of".to_owned(), |n| n.to_string()),
        holds("the audit is intact", audit),
    );
    Ok(match left {
        Err(left) => Verdict::Fails(format!("{text}; {left}")),
        Ok(()) if asked && survivors == Some(0) && audit && shown["phase"] == "finished" => Verdict::Holds(text),
        Ok(()) => Verdict::Fails(text),
    })
}

pub async fn without_room(lab: &Lab<'_>) -> Tried {
    let own = Own::new(lab, "full").await?;
    let mut run = own.start_a_tree("300ms").await?;
    let id = run.id.to_string();
    own.fill(true)?;
    let killed = came(own.guardian(&["kill", "--force", &id])).await?;
    ended(&mut run.client).await?;
    let left = lab.clean_up().await;
    let health = own.json(&["doctor"]).await?["instance"]["health"].clone();
    let dir = lab.place("refused")?;
    let refused = came(lab.marked(own.run(&[], "exit", &dir))).await?;
    let executed = !ups(&dir).is_empty();
    own.fill(false)?;
    let catches_up = eventually(async || Ok(own.json(&["doctor"]).await?["instance"]["health"] == "healthy")).await?;
    let later = came(lab.marked(own.run(&[], "exit", &lab.place("later")?))).await?;
    let shown = own.json(&["show", &id]).await?;
    let on_record = came(own.guardian(&["--json", "audit", &id])).await?.stdout.contains("\"run_finished\"");
    let audit = own.audit_is_intact().await?;
    own.end(&shown).await?.map_err(Error::internal)?;
    let told = |came: &Came| came.stderr.contains("audit cannot be written");
    let survivors = shown["receipt"]["survivors"].as_u64();
    let parts = [
        holds("a kill ends the run and all of it", killed.status.success() && left.is_ok()),
        holds("the instance is critical", health == "critical"),
        holds("a launch is refused because the audit cannot be written", told(&refused) && !refused.status.success()),
        holds("it executes nothing", !executed),
        holds("with room again it is healthy and launches", catches_up && later.status.success()),
        holds("the receipt is on record", survivors == Some(0) && on_record),
        holds("the audit is intact", audit),
    ];
    let text = parts.join("; ");
    Ok(match parts.iter().any(|part| part.starts_with("NOT")) {
        false => Verdict::Holds(text),
        true => Verdict::Fails(format!(
            "{text} (the launch: {} {}; the kill: {})",
            refused.status, refused.stderr, killed.stderr
        )),
    })
}
