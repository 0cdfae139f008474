//! The scenario of what of a run is not in it: asked for elsewhere, moved elsewhere, and kept from that by a strict service.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kills::received;
use super::lab::{Lab, Run, SOON, WORKLOAD, came, eventually, internal, is_alive, ups, within};
use super::{Tried, Verdict};
use crate::launch::environment::RUN_ID;
use crate::model::{ContainerId, Error, Escapee, Fate, KillMode, RunView};

/// The processes of the workload: the first one, one in a session of its own, and a daemon.
const PROCESSES: usize = 3;

pub async fn from_a_run(lab: &Lab<'_>) -> Tried {
    let mut seen = Vec::new();
    for action in ["warn", "kill"] {
        let options = ["--escapees", action, "--grace", "300ms", "--readiness", "exec"];
        let mut run = lab.start("escapes", &options, PROCESSES).await?;
        let mut asked = asked_for(lab, &run).await?;
        // Not shown before they are there: that is when they are looked for, and then not again for some seconds.
        let moved = moved(&run, &lab.listed(&run).await?);
        let mut outside = vec![asked.id()];
        outside.extend(moved.as_ref().ok());
        let tried = match action {
            "warn" => named(lab, &mut run, &outside).await,
            _ => ended_too(lab, &mut run, &outside).await,
        };
        outside.iter().for_each(|pid| lab.end(*pid));
        asked.wait().map_err(internal("wait for a process"))?;
        let text = match tried? {
            Verdict::Holds(text) => text,
            other => return Ok(other),
        };
        lab.clean_up().await.map_err(Error::internal)?;
        let how = match moved {
            Ok(_) => "one that somebody outside started for it and one that was moved to another cgroup".to_owned(),
            Err(why) => format!("one that somebody outside started for it ({why})"),
        };
        seen.push(format!("{action}: of {how}, {text}"));
    }
    // Root has ways out of everything, and the other instances have no service that shuts them.
    if lab.about.instance == "system" && !rustix::process::geteuid().is_root() {
        let (here, there) = (open_ways().len(), ways_of_a_service(lab).await?);
        seen.push(format!(
            "A strict service: of {here} ways to a manager or a bus that this user has, it has {} {there:?}",
            there.len()
        ));
        if !there.is_empty() {
            return Ok(Verdict::Fails(seen.join(". ")));
        }
    }
    Ok(Verdict::Holds(seen.join(". ")))
}

/// A process that a server starts because a run asked for it: outside of the run, and with its mark.
async fn asked_for(lab: &Lab<'_>, run: &Run) -> Result<std::process::Child, Error> {
    let dir = lab.place(&format!("asked-{}", run.id))?;
    let mut command = Command::new(&lab.executable);
    command.args([WORKLOAD, "session"]).arg(&dir).env(RUN_ID, run.id.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = lab.marked(command).spawn().map_err(internal("start a process"))?;
    match eventually(async || Ok(!ups(&dir).is_empty())).await? {
        true => Ok(child),
        false => {
            let (_, _) = (child.kill(), child.wait());
            Err(Error::internal("a process beside the run did not come up"))
        }
    }
}

/// Moves one of the run's processes to our own cgroup. Gives its pid, or why not.
fn moved(run: &Run, view: &RunView) -> Result<u32, String> {
    let Some(ContainerId::Cgroup(cgroup)) = &view.container else {
        return Err("in a subtree there is no cgroup to be moved out of".to_owned());
    };
    let main = view.spec.main.map(|main| main.pid);
    let pid = ups(&run.dir).into_iter().find(|pid| Some(*pid) != main).ok_or("there is no other process")?;
    let elsewhere = own_cgroup(&cgroup.path, pid)?;
    let procs = elsewhere.join("cgroup.procs");
    std::fs::write(procs, pid.to_string()).map(|()| pid).map_err(|e| format!("the kernel let none be moved: {e}"))
}

/// Where our own cgroup is, by what the run's is called and where it is.
fn own_cgroup(container: &Path, pid: u32) -> Result<PathBuf, String> {
    let unknown = || "where cgroup2 is mounted cannot be told".to_owned();
    let of = |process: &str| {
        let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::/").map(str::to_owned))
    };
    let inside = of(&pid.to_string()).ok_or_else(unknown)?;
    let depth = Path::new(&inside).components().count();
    let mount = container.ancestors().nth(depth).filter(|mount| mount.join(&inside) == container);
    Ok(mount.ok_or_else(unknown)?.join(of("self").ok_or_else(unknown)?))
}

/// What is told of these.
fn fates(told: &[Escapee], of: &[u32]) -> Vec<Fate> {
    told.iter().filter(|escapee| of.contains(&escapee.process.pid)).map(|escapee| escapee.fate).collect()
}

fn of_the_receipt(view: &RunView) -> &[Escapee] {
    view.receipt.as_ref().map(|receipt| receipt.escapees.as_slice()).unwrap_or_default()
}

/// They are named while the run lives and in its receipt, and nobody touches them.
async fn named(lab: &Lab<'_>, run: &mut Run, outside: &[u32]) -> Tried {
    let mut shown = Vec::new();
    within(SOON, async || {
        shown = fates(&lab.show(run).await?.escapees, outside);
        Ok(shown.len() == outside.len())
    })
    .await?;
    let view = lab.kill(run, KillMode::Graceful).await?;
    let (receipt, told) = (received(&view)?, fates(of_the_receipt(&view), outside));
    let alive = outside.iter().filter(|pid| is_alive(**pid)).count();
    let text = format!(
        "{} were named while it lived, {} in its receipt, {alive} left alone as asked; of the run: {receipt}",
        shown.len(),
        told.len()
    );
    let all =
        [shown, told].iter().all(|told| told.len() == outside.len() && told.iter().all(|f| *f == Fate::LeftAlone));
    Ok(if all && alive == outside.len() { Verdict::Holds(text) } else { Verdict::Fails(text) })
}

/// They are ended before the run is over, and its receipt tells so.
async fn ended_too(lab: &Lab<'_>, run: &mut Run, outside: &[u32]) -> Tried {
    let view = lab.kill(run, KillMode::Graceful).await?;
    let alive = outside.iter().filter(|pid| is_alive(**pid)).count();
    let (receipt, told) = (received(&view)?, fates(of_the_receipt(&view), outside));
    let ended = told.iter().filter(|fate| matches!(fate, Fate::Terminated | Fate::Killed)).count();
    let text = format!("{ended} were ended by its receipt, {alive} are left; of the run: {receipt}");
    Ok(if ended == outside.len() && alive == 0 { Verdict::Holds(text) } else { Verdict::Fails(text) })
}

/// The ways out that a detached run finds, which is a strict service.
async fn ways_of_a_service(lab: &Lab<'_>) -> Result<Vec<String>, Error> {
    let dir = lab.place("ways")?;
    let mut command = lab.guardian(&["run", "--detach", "--workflow", "selftest", "--max-runtime", "60s", "--"]);
    command.arg(&lab.executable).args([WORKLOAD, "ways"]).arg(&dir);
    let started = came(lab.marked(command)).await?;
    if !started.status.success() {
        return Err(Error::internal(format!("a detached run: {}", started.stderr)));
    }
    let over = came(lab.guardian(&["wait", started.stdout.trim()])).await?;
    let found = std::fs::read_to_string(dir.join("ways"));
    let found = found.map_err(|e| Error::internal(format!("the detached run told nothing ({e}): {}", over.stderr)))?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// The sockets at which this process could ask for another elsewhere.
pub fn open_ways() -> Vec<String> {
    let uid = rustix::process::geteuid().as_raw();
    let of_the_user = ["systemd/private", "bus"].map(|name| format!("/run/user/{uid}/{name}"));
    let of_the_host = ["/run/dbus/system_bus_socket", "/run/systemd/private", "/var/lib/guardian/bus.sock"];
    let sockets = of_the_user.into_iter().chain(of_the_host.map(str::to_owned));
    sockets.filter(|path| std::os::unix::net::UnixStream::connect(path).is_ok()).collect()
}
