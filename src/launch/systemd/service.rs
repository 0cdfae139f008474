//! One service: what is asked of the manager, the proof that its main process is in it, and what systemd keeps of its end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use zbus::{Connection, OwnedObjectPath, Variant};

use super::bus::{self, Object, SYSTEMD, THE_MANAGER, call};
use super::jobs::Line;
use super::names::{self, UnitKind};
use super::scope::{self, Asked, Step, Surroundings};
use super::{Link, Main, Started};
use crate::kernel::{KernelError, process};
use crate::launch::{limits, wrapper};
use crate::model::{ExitStatus, Resources, RunId, Sandbox};

/// What an ordinary process could ask for a process elsewhere, or use to change cgroups: out of a strict run's sight.
const OUT_OF_SIGHT: [&str; 15] = [
    // The buses and the managers.
    "-/run/user",
    "-/run/dbus/system_bus_socket",
    "-/run/systemd/private",
    // The socket of the host's instance, which is made anew with each.
    "-/var/lib/guardian",
    // at(1) and cron(8).
    "-/var/spool/cron",
    "-/run/atd.pid",
    // Container engines and hypervisors, for those whom a group lets in.
    "-/run/docker.sock",
    "-/run/containerd",
    "-/run/podman",
    "-/run/crio",
    "-/run/buildkit",
    "-/run/libvirt",
    "-/run/incus",
    "-/var/lib/incus/unix.socket",
    "-/var/snap/lxd/common/lxd/unix.socket",
];

const INTERFACE: &str = "org.freedesktop.systemd1.Service";

/// What a service is made for.
#[derive(Debug)]
pub struct Wanted {
    /// The run.
    pub run: RunId,
    /// Its workflow, a valid name.
    pub workflow: String,
    /// What a person reads in `systemctl status`.
    pub description: String,
    /// Our own executable, which the unit executes as the wrapper.
    pub executable: PathBuf,
    /// What is to be its standard input: the gate.
    pub gate: OwnedFd,
    /// Whose it is; none: the manager's own user.
    pub user: Option<String>,
    /// The name that its output has in the journal of the host's manager.
    pub identifier: String,
    /// Its limits.
    pub resources: Resources,
    /// When systemd ends it by itself.
    pub runtime_max: Option<Duration>,
    /// What it may do outside of its cgroup.
    pub sandbox: Sandbox,
    /// Secrets, as name and path: `LoadCredential=`.
    pub credentials: Vec<(String, String)>,
    /// It was queued: an earlier instance may have started the unit, and has executed nothing in it.
    pub was_queued: bool,
}

impl Wanted {
    /// The properties of the unit: a fixed list, of which nothing but values comes from the caller. `whole` is the host's
    /// manager; a user's cannot restrict what a unit sees without a user namespace.
    fn properties(&self, version: u32, whole: bool) -> Vec<(&'static str, Variant<'_>)> {
        let executable = self.executable.to_string_lossy().into_owned();
        let argv = vec![executable.clone(), wrapper::VERB.to_owned(), self.run.to_string()];
        let fields = [format!("GUARDIAN_RUN_ID={}", self.run), format!("GUARDIAN_WORKFLOW={}", self.workflow)];
        let every_status: Vec<i32> = (1..=255).collect();
        let every_signal: Vec<i32> = (1..=31).collect();
        let mut all: Vec<(&'static str, Variant<'_>)> = vec![
            ("Type", "exec".into()),
            ("ExecStart", vec![(executable, argv, false)].into()),
            ("Slice", names::slice(&self.workflow).into()),
            ("Description", scope::one_line(&self.description).into()),
            ("CollectMode", "inactive-or-failed".into()),
            // The unit stays when its main process has exited, with how that ended, until we have read it; and systemd
            // leaves what the process left behind to us.
            ("RemainAfterExit", true.into()),
            ("SuccessExitStatus", (every_status, every_signal).into()),
            ("StandardInputFileDescriptor", zbus::Fd::from(&self.gate).into()),
            ("StandardOutput", "journal".into()),
            ("StandardError", "journal".into()),
            ("SyslogIdentifier", self.identified(whole).into()),
            ("LogExtraFields", fields.map(String::into_bytes).to_vec().into()),
            // A command expects it as a shell has it.
            ("IgnoreSIGPIPE", false.into()),
        ];
        if let Some(user) = &self.user {
            all.push(("User", user.clone().into()));
        }
        if !self.credentials.is_empty() {
            all.push(("LoadCredential", self.credentials.clone().into()));
        }
        if self.sandbox == Sandbox::Strict {
            all.push(("NoNewPrivileges", true.into()));
            if whole {
                all.push(("ProtectControlGroups", true.into()));
                all.push(("InaccessiblePaths", OUT_OF_SIGHT.map(str::to_owned).to_vec().into()));
            }
        }
        all.extend(scope::limited(&self.resources, self.runtime_max, version));
        all
    }

    /// What journald can always tell of a line: which unit it is of it looks up at the sender, who may be gone by then, and
    /// takes no user's manager's word for it. `guardian logs` asks for this.
    fn identified(&self, whole: bool) -> String {
        if whole { self.identifier.clone() } else { self.run.to_string() }
    }
}

/// Starts a service, whose wrapper then waits at the gate, or says why not, within the deadline.
pub(super) async fn start(
    link: &Link,
    wanted: &Wanted,
    around: Surroundings<'_>,
    whole: bool,
) -> Result<Started, KernelError> {
    let unit = names::unit(wanted.run, UnitKind::Service);
    let step = Step::default();
    let steps = async {
        let Asked { job, is_done } = loop {
            let properties = wanted.properties(around.place.version, whole);
            match scope::start_unit(link, &unit, properties, &step).await {
                // Its gate was closed with that instance, and it is given up as soon as its wrapper has exited.
                Err(KernelError::Busy { .. }) if wanted.was_queued => {
                    link.make_room(wanted.run, UnitKind::Service).await;
                    tokio::time::sleep(scope::AWAY).await;
                }
                asked => break asked?,
            }
        };
        loop {
            if let Some(Line { bus, .. }) = link.line_again(&unit).await? {
                let asked = async {
                    let pid = main_pid(&bus, &unit).await?;
                    let main = open(pid);
                    let cgroup = around.cgroup_of(&bus, &unit, UnitKind::Service, &wanted.workflow, pid).await?;
                    zbus::Result::Ok((cgroup, main))
                };
                match asked.await {
                    Err(e) if scope::is_away(&e, &bus) => {}
                    // Nobody told that its job is done, so nobody tells when it has a process.
                    Ok((Err(_), _) | (_, Err(_))) if !is_done => {}
                    told => {
                        let (cgroup, main) = told.map_err(|e| scope::from_bus(&unit, &e))?;
                        return Ok((cgroup?, main?, job));
                    }
                }
            }
            tokio::time::sleep(scope::AWAY).await;
        }
    };
    let (cgroup, main, job) = scope::in_time(&unit, &step, steps).await?;
    around.owner.mark(wanted.run, &cgroup);
    let mut notices = limits::unmet(&cgroup, &wanted.resources, |controller| scope::unavailable(&cgroup, controller));
    if wanted.sandbox == Sandbox::Strict && !whole {
        notices.push(
            "the sandbox is not strict: a user's systemd manager cannot hide the session bus from a run, so it can ask \
             for processes outside of its cgroup"
                .to_owned(),
        );
    }
    Ok(Started { cgroup, job: job.map(|j| j.as_str().to_owned()), main: Some(main), notices })
}

/// The main process of a service that is there.
async fn main_pid(bus: &Connection, unit: &str) -> zbus::Result<u32> {
    let at = Object { name: SYSTEMD, path: &names::object(unit), interface: INTERFACE };
    bus::property(bus, at, "MainPID").await
}

/// Asks systemd how the main process of a service ended, if it has. An error: it knows no such unit.
pub(super) async fn status(bus: &Connection, unit: &str) -> zbus::Result<Option<ExitStatus>> {
    let path: OwnedObjectPath = call(bus, THE_MANAGER, "GetUnit", &(unit,)).await?;
    let at = Object { name: SYSTEMD, path: path.as_str(), interface: INTERFACE };
    // CLD_EXITED, CLD_KILLED and CLD_DUMPED of waitid(2); 0 while it runs.
    Ok(match bus::property(bus, at, "ExecMainCode").await? {
        nix::libc::CLD_EXITED => Some(ExitStatus::Exited(bus::property(bus, at, "ExecMainStatus").await?)),
        nix::libc::CLD_KILLED | nix::libc::CLD_DUMPED => {
            Some(ExitStatus::Signaled(bus::property(bus, at, "ExecMainStatus").await?))
        }
        _ => None,
    })
}

/// A unit as systemd lists it: its name, description, states of load, of activity and of its own kind, the unit it follows, its
/// object, and its job's number, type and object.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// The runs whose services have ended, and that systemd keeps.
pub(super) async fn ended(bus: &Connection) -> zbus::Result<Vec<RunId>> {
    let asked = (vec!["active"], vec![names::every(UnitKind::Service)]);
    let units: Vec<Listed> = call(bus, THE_MANAGER, "ListUnitsByPatterns", &asked).await?;
    let ended = units.into_iter().filter(|(.., state, _, _, _, _, _)| state == "exited");
    Ok(ended.filter_map(|(name, ..)| names::run_of(&name)).map(|(run, _)| run).collect())
}

/// The main process, held. That it is in the unit's cgroup is checked afterwards, when its number is its own.
fn open(pid: u32) -> Result<Main, KernelError> {
    let gone = || KernelError::Gone { what: "the service's main process".to_owned() };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|_| gone())?;
    let id = process::identify(&pidfd)?;
    Ok(Main { pidfd, id })
}
