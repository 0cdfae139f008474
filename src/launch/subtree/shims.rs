//! The shims of one instance: where their records are, and what each is to hold its run to.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::record::Record;
use super::start::{Options, Started, detached};
use crate::kernel::process::{self, Stat};
use crate::kernel::{Exec, KernelError};
use crate::launch::mark::Owner;
use crate::model::{Limits, RunId};

/// `RLIMIT_NPROC` is counted for each user namespace since this version of Linux, before for the user on the whole host.
const COUNTED_BY_NAMESPACE: (u32, u32) = (5, 14);
/// The shim and the first process of the PID namespace are counted with the run's.
const OWN_TASKS: u64 = 2;

/// More ancestors than any process has.
const DEEP: usize = 4096;

/// What holds a run's processes where no cgroup does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShimLimits {
    /// A PID namespace of its own.
    pub isolated: bool,
    /// `RLIMIT_DATA` of each process, in bytes: private writable memory. (`RLIMIT_AS` would count what a program has only
    /// set aside, as Go, Java and Node.js do by the terabyte.)
    pub data_bytes: Option<u64>,
    /// `RLIMIT_NPROC`, in tasks, where it counts for the run alone.
    pub tasks: Option<u64>,
}

impl ShimLimits {
    /// Those limits of a run that something can enforce.
    pub fn of(limits: &Limits) -> Self {
        let tasks = limits.resources.tasks_max.filter(|_| limits.isolate_pids && tasks_can_be_limited());
        Self {
            isolated: limits.isolate_pids,
            data_bytes: limits.resources.memory_max_bytes,
            tasks: tasks.map(|tasks| tasks.saturating_add(OWN_TASKS)),
        }
    }
}

/// Root gets no user namespace with its PID namespace, and is held by no `RLIMIT_NPROC`.
fn tasks_can_be_limited() -> bool {
    let release = rustix::system::uname();
    let mut numbers = release.release().to_str().unwrap_or_default().split(['.', '-']).map(str::parse::<u32>);
    let version = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    let new = matches!(version, (Some(major), Some(minor)) if (major, minor) >= COUNTED_BY_NAMESPACE);
    new && !rustix::process::geteuid().is_root()
}

/// What of a run's limits cannot be enforced as asked, in sentences.
pub fn notices(limits: &Limits) -> Vec<String> {
    let mut notices = Vec::new();
    let resources = &limits.resources;
    if let Some(bytes) = resources.memory_max_bytes {
        notices.push(format!(
            "memory_max of {bytes} bytes holds each process of the run alone (RLIMIT_DATA), not all of them together: no \
             cgroup contains the run"
        ));
    }
    if let Some(tasks) = resources.tasks_max.filter(|_| ShimLimits::of(limits).tasks.is_none()) {
        let way = if limits.isolate_pids { "" } else { "; isolate_pids makes it possible for an ordinary user" };
        notices.push(format!("tasks_max of {tasks} tasks cannot be enforced: no cgroup contains the run{way}"));
    }
    if let Some(percent) = resources.cpu_max_percent {
        notices.push(format!("cpu_max of {percent} % of a core cannot be enforced: no cgroup contains the run"));
    }
    notices
}

/// The shims of one instance.
#[derive(Debug)]
pub struct Shims {
    directory: PathBuf,
    owner: Owner,
    /// The inode of our PID namespace.
    namespace: u64,
}

impl Shims {
    /// Those with records in this directory, of an instance in this PID namespace.
    pub fn new(directory: PathBuf, owner: Owner, namespace: u64) -> Self {
        Self { directory, owner, namespace }
    }

    /// The directory of the records.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the record of a run that is about to be launched. `Busy` if there is one.
    pub fn record(&self, run: RunId) -> Result<Record, KernelError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| KernelError::Io { op: "create", what: self.directory.display().to_string(), source })?;
        Record::create(&self.directory, run, &self.mark(run))
    }

    /// Opens the record of a run from an earlier instance: `Gone` if there is none, `NotOurs` if it is another's.
    pub fn reopen(&self, run: RunId) -> Result<Record, KernelError> {
        let record = Record::open(&self.directory.join(run.to_string()))?;
        let found = record.read()?.mark.unwrap_or_default();
        match found == self.mark(run) {
            true => Ok(record),
            false => Err(KernelError::NotOurs {
                what: record.path().display().to_string(),
                why: format!("it is marked {found:?}"),
            }),
        }
    }

    /// Starts the shim of a detached run, with its command behind its gate.
    pub fn start(
        &self,
        run: RunId,
        exec: &Exec,
        nofile: Option<(u64, u64)>,
        record: &Record,
        limits: ShimLimits,
    ) -> Result<Started, KernelError> {
        detached(exec, nofile, &Options { run, record: record.as_fd(), limits })
    }

    /// The runs that have a record. Those of an earlier boot, of which nothing can be left, are removed.
    pub fn list(&self) -> Result<Vec<RunId>, KernelError> {
        let failed = |source| KernelError::Io { op: "list", what: self.directory.display().to_string(), source };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut runs = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(run) = name.to_str().and_then(|name| name.parse::<RunId>().ok()) else { continue };
            match Record::open(&self.directory.join(&name)) {
                // One that cannot be removed is met again.
                Ok(record) if self.is_of_another_boot(run, &record) => drop(record.remove()),
                Err(e) if e.is_gone() => {}
                // What is no record is found out, and told, when it is opened as one.
                Ok(_) | Err(_) => runs.push(run),
            }
        }
        runs.sort();
        Ok(runs)
    }

    /// The run, if any, that a process is inside of: one of its ancestors is the run's shim.
    pub fn run_around(&self, pid: u32) -> Result<Option<RunId>, KernelError> {
        let mut above = Vec::new();
        let mut next = process::stat(pid).ok();
        // Ends at the first process of the PID namespace; the bound is for parents that end while they are read.
        while let Some(stat) = next.filter(|stat| stat.ppid != 0 && above.len() < DEEP) {
            next = process::stat(stat.ppid).ok();
            above.extend(next.as_ref().map(Stat::id));
        }
        let is_around = |run: &RunId| {
            let shim = self.reopen(*run).ok().and_then(|record| record.read().ok()?.shim);
            shim.is_some_and(|shim| above.contains(&shim))
        };
        Ok(self.list()?.into_iter().find(is_around))
    }

    /// A pid of another PID namespace, as that of another container with the same state directory, says nothing here: what
    /// is not seen need not be gone.
    fn mark(&self, run: RunId) -> String {
        format!("{} {}", self.owner.text(run), self.namespace)
    }

    fn is_of_another_boot(&self, run: RunId, record: &Record) -> bool {
        let mark = record.read().ok().and_then(|entries| entries.mark).unwrap_or_default();
        let of_boot = mark.rsplit_once(' ').map_or("", |(of_boot, _)| of_boot);
        self.owner.is_of_another_boot(run, of_boot)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    use crate::model::{Readiness, Resources};

    const RUN: RunId = RunId::from_bytes([3; 6]);

    fn shims(directory: &Path, key: &str, boot: &str) -> Shims {
        Shims::new(directory.to_owned(), Owner::new(key, boot, true), 1)
    }

    #[test]
    fn a_record_is_opened_again_by_the_same_instance_in_the_same_boot_only() {
        let tmp = tempfile::tempdir().unwrap();
        let directory = tmp.path().join("shims");
        let ours = shims(&directory, "u0-1", "boot");
        assert_eq!(ours.list().unwrap(), []);
        ours.record(RUN).unwrap();
        assert_eq!(ours.list().unwrap(), [RUN]);
        assert!(ours.reopen(RUN).is_ok());
        assert!(ours.reopen(RunId::from_bytes([4; 6])).unwrap_err().is_gone());
        let other = shims(&directory, "u0-2", "boot");
        assert!(matches!(other.reopen(RUN), Err(KernelError::NotOurs { .. })));
        assert_eq!(other.list().unwrap(), [RUN], "another instance's record was removed");
        let elsewhere = Shims { namespace: 2, ..shims(&directory, "u0-1", "boot") };
        assert!(matches!(elsewhere.reopen(RUN), Err(KernelError::NotOurs { .. })));
        assert_eq!(elsewhere.list().unwrap(), [RUN], "the record of another PID namespace was removed");
        let later = shims(&directory, "u0-1", "later");
        assert!(matches!(later.reopen(RUN), Err(KernelError::NotOurs { .. })));
        assert_eq!(later.list().unwrap(), []);
        assert!(ours.reopen(RUN).unwrap_err().is_gone(), "the record of the earlier boot is still there");
    }

    #[test]
    fn what_is_no_record_is_listed_and_not_taken_for_one() {
        let tmp = tempfile::tempdir().unwrap();
        let path = |n: u8| tmp.path().join(RunId::from_bytes([n; 6]).to_string());
        fs::write(path(1), "junk").unwrap();
        fs::create_dir(path(2)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path(3)).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path(4), rustix::fs::Mode::RWXU).unwrap();
        fs::write(tmp.path().join("README"), "").unwrap();
        let shims = shims(tmp.path(), "u0-1", "boot");
        let listed = shims.list().unwrap();
        assert_eq!(listed.len(), 4);
        for run in listed {
            let error = shims.reopen(run).unwrap_err();
            assert!(!error.is_gone(), "{run}: {error}");
        }
        assert_eq!(shims.run_around(std::process::id()).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_enforced_is_told_with_its_value() {
        let mut limits = Limits {
            max_running: None,
            queue_timeout: None,
            init_timeout: None,
            max_runtime: None,
            watch: crate::model::Watch::default(),
            grace: Duration::ZERO,
            readiness: Readiness::Exec,
            resources: Resources::default(),
            isolate_pids: false,
            cleanup: crate::model::Cleanup::default(),
            sandbox: crate::model::Sandbox::default(),
            credentials: Vec::new(),
        };
        assert_eq!((notices(&limits), ShimLimits::of(&limits)), (Vec::new(), ShimLimits::default()));
        limits.resources =
            Resources { memory_max_bytes: Some(1 << 30), tasks_max: Some(50), cpu_max_percent: Some(150) };
        let told = notices(&limits);
        assert_eq!(told.len(), 3);
        assert!(told[0].starts_with("memory_max of 1073741824 bytes holds each process"), "{}", told[0]);
        assert!(told[1].contains("isolate_pids makes it possible"), "{}", told[1]);
        assert!(told[2].starts_with("cpu_max of 150 % of a core cannot be enforced"), "{}", told[2]);
        assert_eq!(ShimLimits::of(&limits), ShimLimits { data_bytes: Some(1 << 30), ..ShimLimits::default() });
    }
}
