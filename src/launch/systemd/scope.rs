//! One scope: what is asked of the manager, and the proof that the process is in it.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use zbus::{Connection, OwnedObjectPath, Variant};

use super::bus::{self, Object, Place, SYSTEMD, THE_MANAGER, call};
use super::jobs::Line;
use super::names::{self, UnitKind};
use super::{Absent, Link, Started};
use crate::kernel::cgroup::{CgroupDir, parse_populated};
use crate::kernel::mount::Cgroup2Mount;
use crate::kernel::{KernelError, process};
use crate::launch::limits;
use crate::launch::mark::Owner;
use crate::model::{Resources, RunId};

/// The time that a start may take, all of it. A manager that starts a hundred units on a busy host takes seconds for each.
const START: Duration = Duration::from_secs(15);

/// The time that systemd is waited for until it can give up a scope. Nobody waits for that.
const COLLECT: Duration = Duration::from_secs(60);

/// `infinity` of a limit.
pub(super) const INFINITY: u64 = u64::MAX;

/// Up to here a scope had no `OOMPolicy`, and was left alone when one of its processes was killed for memory.
pub(super) const WITHOUT_OOM_POLICY: u32 = 251;

/// From here on a process may be given by a pidfd, which is nobody else's, as a number may be by then.
const WITH_PIDFDS: u32 = 255;

/// The longest description, in characters. systemd keeps it, and writes it on one line.
const DESCRIPTION_MAX: usize = 200;

/// The time until a manager is asked again that was away: it executes itself anew (`daemon-reexec`, with each update of
/// systemd), and drops the calls that it has not answered, and the connections to its own socket.
pub(super) const AWAY: Duration = Duration::from_millis(100);

/// How long a manager that cannot be connected to is taken to be away.
const UNREACHABLE: Duration = Duration::from_secs(3);

/// What a scope is made for.
pub(super) struct Wanted {
    pub run: RunId,
    pub workflow: String,
    pub description: String,
    pub pid: u32,
    pub pidfd: Option<OwnedFd>,
    pub resources: Resources,
    pub runtime_max: Option<Duration>,
}

impl Wanted {
    /// The properties of the unit: a fixed list, of which nothing but values comes from the caller.
    fn properties(&self, version: u32) -> Vec<(&'static str, Variant<'_>)> {
        let pidfd = self.pidfd.as_ref().filter(|_| version >= WITH_PIDFDS);
        let process = match pidfd {
            Some(pidfd) => ("PIDFDs", Variant::from(vec![zbus::Fd::from(pidfd)])),
            // By its number: whoever asks checks with the pidfd afterwards that it was alive all the time.
            None => ("PIDs", vec![self.pid].into()),
        };
        let mut all = vec![
            process,
            ("Slice", names::slice(&self.workflow).into()),
            ("Description", one_line(&self.description).into()),
            // A scope whose processes were killed is `failed` to some versions: nobody is to reset it.
            ("CollectMode", "inactive-or-failed".into()),
        ];
        all.extend(limited(&self.resources, self.runtime_max, version));
        all
    }
}

/// The properties of every unit that hold it to its limits.
pub(super) fn limited(
    resources: &Resources,
    runtime_max: Option<Duration>,
    version: u32,
) -> Vec<(&'static str, Variant<'static>)> {
    let mut all = vec![
        // Usage is read from the cgroup, so the controllers are wanted whatever the host's defaults are.
        ("MemoryAccounting", true.into()),
        ("TasksAccounting", true.into()),
        // No limit is no limit: the manager's default for units is meant for services, and a shell has none.
        ("TasksMax", resources.tasks_max.unwrap_or(INFINITY).into()),
    ];
    if let Some(limit) = runtime_max {
        // Should we be gone when our own limit is over.
        all.push(("RuntimeMaxUSec", u64::try_from(limit.as_micros()).unwrap_or(INFINITY).into()));
    }
    if version > WITHOUT_OOM_POLICY {
        // The default is `stop`: systemd would end the run when one of its processes is killed for memory.
        all.push(("OOMPolicy", "continue".into()));
    }
    if let Some(bytes) = resources.memory_max_bytes {
        all.push(("MemoryMax", bytes.into()));
    }
    if let Some(percent) = resources.cpu_max_percent {
        // Microseconds in each second.
        all.push(("CPUQuotaPerSecUSec", (u64::from(percent) * 10_000).into()));
    }
    all
}

/// systemd writes the description into a unit file as it is, where a line feed would begin another setting.
pub(super) fn one_line(text: &str) -> String {
    text.chars().take(DESCRIPTION_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a start needs of its surroundings.
pub(super) struct Surroundings<'a> {
    pub place: &'a Place,
    pub mount: &'a Cgroup2Mount,
    pub owner: &'a Owner,
}

impl Surroundings<'_> {
    /// Where the cgroup of a unit is, as systemd nests slices.
    fn usual(&self, workflow: &str, unit: &str) -> PathBuf {
        let (above, slice) = ("guardian.slice", names::slice(workflow));
        let slice = if slice == above { "" } else { slice.as_str() };
        self.place.dir.join(above).join(slice).join(unit)
    }

    /// The cgroup of a unit that was just started, with the process in it. The kernel is asked; systemd only where the
    /// process is not where it ought to be.
    pub(super) async fn cgroup_of(
        &self,
        bus: &Connection,
        unit: &str,
        kind: UnitKind,
        workflow: &str,
        pid: u32,
    ) -> zbus::Result<Result<CgroupDir, KernelError>> {
        if let Ok(found) = process::cgroup(pid)
            && self.mount.directory_of(&found) == Some(self.usual(workflow, unit))
        {
            return Ok(prove(&found, pid, self.mount));
        }
        let told = property_of(bus, unit, kind, "ControlGroup").await?;
        Ok(prove(Path::new(&told), pid, self.mount))
    }
}

/// Starts a scope with the process in it, or says why not, within the deadline.
pub(super) async fn start(link: &Link, wanted: &Wanted, around: Surroundings<'_>) -> Result<Started, KernelError> {
    let unit = names::unit(wanted.run, UnitKind::Scope);
    let step = Step::default();
    let steps = async {
        let Asked { job, is_done } = start_unit(link, &unit, wanted.properties(around.place.version), &step).await?;
        loop {
            if let Some(Line { bus, .. }) = link.line_again(&unit).await? {
                match around.cgroup_of(&bus, &unit, UnitKind::Scope, &wanted.workflow, wanted.pid).await {
                    Err(e) if is_away(&e, &bus) => {}
                    // Nobody told that its job is done, so nobody tells when it has a cgroup.
                    Ok(Err(_)) if !is_done && !has_ended(wanted.pid) => {}
                    found => return Ok((found.map_err(|e| from_bus(&unit, &e))??, job)),
                }
            }
            tokio::time::sleep(AWAY).await;
        }
    };
    let started = in_time(&unit, &step, steps);
    // A process that has ended is what matters, whatever else went wrong because of it.
    let (cgroup, job) = started.await.map_err(|e| if has_ended(wanted.pid) { gone(wanted.pid) } else { e })?;
    around.owner.mark(wanted.run, &cgroup);
    let notices = limits::unmet(&cgroup, &wanted.resources, |controller| unavailable(&cgroup, controller));
    Ok(Started { cgroup, job: job.map(|j| j.as_str().to_owned()), main: None, notices })
}

/// What a start is waiting for.
pub(super) struct Step(Mutex<&'static str>);

impl Default for Step {
    fn default() -> Self {
        Self(Mutex::new("take the unit"))
    }
}

impl Step {
    fn is(&self, step: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }
}

/// Does the steps of a start within the deadline, or says at which one it stuck.
pub(super) async fn in_time<T>(
    unit: &str,
    step: &Step,
    steps: impl Future<Output = Result<T, KernelError>>,
) -> Result<T, KernelError> {
    tokio::time::timeout(START, steps).await.unwrap_or_else(|_| {
        let step = *step.0.lock().unwrap_or_else(PoisonError::into_inner);
        let why = format!("the systemd manager did not {step} within {} s", START.as_secs());
        Err(failed(unit, io::Error::new(io::ErrorKind::TimedOut, why)))
    })
}

/// A unit that the manager has.
pub(super) struct Asked {
    /// The job that starts it; none if the manager went away before it told that.
    pub job: Option<OwnedObjectPath>,
    /// Whether the job is known to be done: it is not if the manager went away meanwhile.
    pub is_done: bool,
}

/// Starts a transient unit and waits for the end of its job.
pub(super) async fn start_unit(
    link: &Link,
    unit: &str,
    properties: Vec<(&'static str, Variant<'_>)>,
    step: &Step,
) -> Result<Asked, KernelError> {
    let begun = Instant::now();
    let refused = |e: zbus::Error| from_bus(unit, &e);
    let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let body = (unit, "fail", properties, auxiliary);
    let mut is_asked_again = false;
    let (job, mut ends) = loop {
        let line = match link.line().await {
            Ok(line) => line,
            Err(absent) if link.is_by_bus() || begun.elapsed() > UNREACHABLE => return Err(unreachable(unit, &absent)),
            Err(_) => {
                tokio::time::sleep(AWAY).await;
                continue;
            }
        };
        // Before the call, so that the end of its job is not missed.
        let ends = line.ends_of(unit);
        // Each time: a manager that was restarted meanwhile knows nothing of those who had subscribed.
        let asked = async {
            line.subscribe().await?;
            call::<_, OwnedObjectPath>(&line.bus, THE_MANAGER, "StartTransientUnit", &body).await
        };
        match asked.await {
            Ok(job) => break (job, ends),
            Err(e) if is_away(&e, &line.bus) => {
                is_asked_again = true;
                tokio::time::sleep(AWAY).await;
            }
            // What was not answered had arrived. That it is ours is proved below.
            Err(e) if is_asked_again && is_of_systemd(&e, "UnitExists") => {
                return Ok(Asked { job: None, is_done: false });
            }
            Err(e) => return Err(refused(e)),
        }
    };

    step.is("start the unit");
    let is_done = match ends.of(&job).await.as_deref() {
        Ok("done") => true,
        Ok(result) => {
            let why = format!("systemd could not start it (result: {result})");
            return Err(failed(unit, io::Error::other(why)));
        }
        // It has the unit, and may tell nobody any more how the job went.
        Err(_) => false,
    };
    step.is("tell the unit's cgroup");
    Ok(Asked { job: Some(job), is_done })
}

/// Gives up a unit in which no process is. systemd collects a scope when it sees the cgroup become empty; it never sees
/// that of one which never held a process (it was a zombie by then; M with 252 and 257), or whose directory somebody else
/// removed. It is not stopped if anything is in it: a stop is a kill, and what is in it may not be ours. Gives the job.
pub(super) async fn collect(bus: &Connection, unit: &str, kind: UnitKind, mount: &Cgroup2Mount) -> Option<String> {
    let collect = async {
        // systemd answers in the order it was asked: a start that was given up is over by then, or it is a job that has
        // not begun, which the stop cancels.
        let cgroup = property_of(bus, unit, kind, "ControlGroup").await?;
        let dir = mount.directory_of(Path::new(&cgroup)).filter(|_| !cgroup.is_empty()).map(CgroupDir::open);
        let is_empty = match dir {
            Some(Ok(dir)) => dir.parsed("cgroup.events", parse_populated).map_or_else(|e| e.is_gone(), |p| !p),
            Some(Err(e)) => e.is_gone(),
            None => true,
        };
        if !is_empty {
            return zbus::Result::Ok(None);
        }
        let job: OwnedObjectPath = call(bus, THE_MANAGER, "StopUnit", &(unit, "replace")).await?;
        Ok(Some(job.as_str().to_owned()))
    };
    // Nothing is lost with an error: the unit is gone already, or systemd is, or it will be listed at the next start.
    tokio::time::timeout(COLLECT, collect).await.ok()?.ok()?
}

/// A text property that units of this kind have.
pub(super) async fn property_of(bus: &Connection, unit: &str, kind: UnitKind, name: &str) -> zbus::Result<String> {
    let path: OwnedObjectPath = call(bus, THE_MANAGER, "GetUnit", &(unit,)).await?;
    let interface = match kind {
        UnitKind::Scope => "org.freedesktop.systemd1.Scope",
        UnitKind::Service => "org.freedesktop.systemd1.Service",
    };
    bus::property(bus, Object { name: SYSTEMD, path: path.as_str(), interface }, name).await
}

/// Opens the scope's cgroup, and checks that the process is in it: another start with the same process would have taken
/// it away without a word (systemd #26925).
pub(super) fn prove(cgroup: &Path, pid: u32, mount: &Cgroup2Mount) -> Result<CgroupDir, KernelError> {
    let directory = mount.directory_of(cgroup).filter(|_| !cgroup.as_os_str().is_empty());
    // No cgroup any more: the process has ended, and its scope with it.
    let dir = CgroupDir::open(directory.ok_or_else(|| gone(pid))?)?;
    let found = process::cgroup(pid)?;
    dir.verify()?;
    match found == cgroup {
        true => Ok(dir),
        false => Err(KernelError::NotOurs {
            what: format!("process {pid}"),
            why: format!("it is in cgroup {}, not {}", found.display(), cgroup.display()),
        }),
    }
}

pub(super) fn unavailable(cgroup: &CgroupDir, controller: &str) -> String {
    format!(
        "the {controller} controller is not available in {}; let root type `systemctl edit user@.service`, write \
         [Service] and Delegate=cpu cpuset io memory pids, and log in again; on a host that gives it to cgroup v1, boot \
         with systemd.unified_cgroup_hierarchy=1",
        cgroup.path().display()
    )
}

/// A zombie has ended as well: it cannot be moved, and systemd starts a scope for it all the same.
fn has_ended(pid: u32) -> bool {
    match process::stat(pid) {
        Ok(stat) => matches!(stat.state, 'Z' | 'X'),
        Err(e) => e.is_gone(),
    }
}

pub(super) fn gone(pid: u32) -> KernelError {
    KernelError::Gone { what: format!("process {pid}") }
}

/// A start that failed, with its cause.
pub(super) fn failed(unit: &str, source: io::Error) -> KernelError {
    KernelError::Io { op: "start", what: unit.to_owned(), source }
}

pub(super) fn is_of_systemd(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(n, ..) if n.as_str().strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

/// Whether the manager left without an answer, or is not there, as the bus says; or as the lost connection to its own socket
/// does. A bus that is lost is none that comes back.
pub(super) fn is_away(error: &zbus::Error, asked: &Connection) -> bool {
    is_said_to_be_away(error, asked.is_bus())
}

fn is_said_to_be_away(error: &zbus::Error, by_bus: bool) -> bool {
    use zbus::fdo::Error as E;
    match error {
        zbus::Error::InputOutput(_) => !by_bus,
        zbus::Error::FDO(error) => {
            matches!(**error, E::NoReply(_) | E::ServiceUnknown(_) | E::NameHasNoOwner(_) | E::Disconnected(_))
        }
        _ => false,
    }
}

/// The failure of who cannot connect to the manager any more.
pub(super) fn unreachable(unit: &str, absent: &Absent) -> KernelError {
    failed(unit, io::Error::other(absent.to_string()))
}

pub(super) fn from_bus(unit: &str, error: &zbus::Error) -> KernelError {
    if is_of_systemd(error, "UnitExists") {
        return KernelError::Busy { what: unit.to_owned() };
    }
    // The scope was there and is not: all that was in it has ended.
    if is_of_systemd(error, "NoSuchUnit") {
        return KernelError::Gone { what: unit.to_owned() };
    }
    failed(unit, io::Error::other(format!("the systemd manager: {}", bus::reason(error))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(resources: Resources) -> Wanted {
        Wanted {
            run: "run_0123456789ab".parse().unwrap(),
            workflow: "a-b".to_owned(),
            description: "Run run_0123456789ab of a-b".to_owned(),
            pid: 4711,
            pidfd: None,
            resources,
            runtime_max: None,
        }
    }

    fn texts(resources: Resources, version: u32) -> Vec<String> {
        let wanted = wanted(resources);
        let properties = wanted.properties(version);
        properties.iter().map(|(name, value)| format!("{name} {} {value}", value.value_signature())).collect()
    }

    const ALWAYS: [&str; 6] = [
        "PIDs au [uint32 4711]",
        "Slice s \"guardian-a\\\\x2db.slice\"",
        "Description s \"Run run_0123456789ab of a-b\"",
        "CollectMode s \"inactive-or-failed\"",
        "MemoryAccounting b true",
        "TasksAccounting b true",
    ];

    #[test]
    fn the_process_is_given_by_a_pidfd_to_versions_that_take_one() {
        let me = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap();
        let wanted = Wanted { pidfd: Some(me), ..wanted(Resources::default()) };
        let given = |version| wanted.properties(version)[0].0;
        assert_eq!([given(252), given(254), given(255), given(257)], ["PIDs", "PIDs", "PIDFDs", "PIDFDs"]);
    }

    #[test]
    fn a_scope_without_limits_has_none() {
        let rest = ["TasksMax t uint64 18446744073709551615", "OOMPolicy s \"continue\""];
        assert_eq!(texts(Resources::default(), 257), [&ALWAYS[..], &rest[..]].concat());
    }

    #[test]
    fn limits_become_properties_in_the_units_of_systemd() {
        let all = Resources { memory_max_bytes: Some(2 << 30), tasks_max: Some(50), cpu_max_percent: Some(150) };
        let rest = ["TasksMax t uint64 50", "MemoryMax t uint64 2147483648", "CPUQuotaPerSecUSec t uint64 1500000"];
        // Versions that have no OOM policy for scopes refuse it.
        assert_eq!(texts(all, 249), [&ALWAYS[..], &rest[..]].concat());
    }

    #[test]
    fn a_description_cannot_write_settings() {
        assert_eq!(one_line("a\n[Scope]\nRuntimeMaxSec=1\u{7}"), "a [Scope] RuntimeMaxSec=1 ");
        assert_eq!(one_line(&"é".repeat(1000)).chars().count(), DESCRIPTION_MAX);
    }

    #[test]
    fn a_process_that_is_elsewhere_is_not_taken_for_contained() {
        let Ok(mount) = crate::kernel::mount::find() else { return eprintln!("SKIPPED: cgroup2 is not mounted") };
        let own = process::cgroup(std::process::id()).unwrap();
        if mount.directory_of(&own).is_some_and(|dir| dir.exists()) {
            prove(&own, std::process::id(), &mount).unwrap();
        }
        let error = prove(Path::new("/no/such.scope"), std::process::id(), &mount).unwrap_err();
        assert!(error.is_gone(), "{error}");
        assert!(prove(Path::new(""), std::process::id(), &mount).unwrap_err().is_gone());
        // Of two cgroups the process is in one.
        if own != Path::new("/") {
            let error = prove(Path::new("/"), std::process::id(), &mount).unwrap_err();
            assert!(matches!(error, KernelError::NotOurs { .. }), "{error}");
        }
    }
    #[test]
    fn a_manager_that_left_without_an_answer_is_asked_again_and_one_that_refuses_is_not() {
        use zbus::fdo::Error as E;
        let away = [E::NoReply(String::new()), E::ServiceUnknown(String::new()), E::NameHasNoOwner(String::new())];
        away.into_iter().for_each(|e| assert!(is_said_to_be_away(&e.into(), true)));
        let refused = [E::AccessDenied(String::new()), E::InvalidArgs(String::new()), E::TimedOut(String::new())];
        refused.into_iter().for_each(|e| assert!(!is_said_to_be_away(&e.into(), true)));
    }
}
