//! Resource limits of a run: enabling the controllers they need, setting them, and saying which nothing can enforce.

use std::path::{Path, PathBuf};

use cgroups_rs::cpu::CpuController;
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use cgroups_rs::{Cgroup, Hierarchy, MaxValue, Subsystem};
use std::os::fd::{AsFd, AsRawFd};

use crate::kernel::KernelError;
use crate::kernel::cgroup::CgroupDir;
use crate::model::Resources;

/// The period of `cpu.max` in microseconds: the kernel's own default.
const CPU_PERIOD_USEC: u64 = 100_000;

/// How often processes are moved out of the way of one controller: they may fork while they are moved.
const ROOM_ATTEMPTS: usize = 8;

/// Moves the processes that are in a cgroup itself into one below it; gives false where that is not ours to do.
pub(super) type MakeRoom<'a> = &'a dyn Fn(&Path) -> Result<bool, KernelError>;

/// One limit: the controller that enforces it and in which file, its name in the configuration, and its value for a
/// person.
struct Wanted {
    controller: &'static str,
    file: &'static str,
    limit: &'static str,
    value: String,
}

impl Wanted {
    fn notice(&self, why: &str) -> String {
        format!("{} of {} cannot be enforced: {why}", self.limit, self.value)
    }
}

fn wanted(resources: &Resources) -> Vec<Wanted> {
    let mut all = Vec::new();
    let mut want = |controller, file, limit, value| all.push(Wanted { controller, file, limit, value });
    if let Some(bytes) = resources.memory_max_bytes {
        want("memory", "memory.max", "memory_max", format!("{bytes} bytes"));
    }
    if let Some(tasks) = resources.tasks_max {
        want("pids", "pids.max", "tasks_max", format!("{tasks} tasks"));
    }
    if let Some(percent) = resources.cpu_max_percent {
        want("cpu", "cpu.max", "cpu_max", format!("{percent} % of a core"));
    }
    all
}

/// Enables the controllers that the limits need along `chain`, the cgroups from the highest that we may change down to
/// the run's parent, and sets the limits on the run's cgroup. Gives a sentence for each that cannot be enforced.
pub(super) fn apply(chain: &[PathBuf], run: &CgroupDir, resources: &Resources, make_room: MakeRoom<'_>) -> Vec<String> {
    let mut notices = Vec::new();
    for want in wanted(resources) {
        let done = enable(chain, want.controller, make_room).and_then(|()| set(run, resources, want.controller));
        if let Err(why) = done {
            notices.push(want.notice(&why));
        }
    }
    notices
}

/// Gives a sentence for each limit that is not in force on a run's cgroup, which somebody else has set; `why` says what
/// keeps the controller from it.
pub(super) fn unmet(run: &CgroupDir, resources: &Resources, why: impl Fn(&str) -> String) -> Vec<String> {
    let in_force = |want: &Wanted| run.read(want.file).is_ok_and(|text| !text.starts_with("max"));
    let unmet = wanted(resources).into_iter().filter(|want| !in_force(want));
    unmet.map(|want| want.notice(&why(want.controller))).collect()
}

/// A controller reaches a cgroup only if every cgroup above enables it for its children.
fn enable(chain: &[PathBuf], controller: &str, make_room: MakeRoom<'_>) -> Result<(), String> {
    for path in chain {
        let dir = CgroupDir::open_unchecked(path).map_err(|e| e.to_string())?;
        let lists = |file| dir.read(file).is_ok_and(|text| text.split_ascii_whitespace().any(|c| c == controller));
        if lists("cgroup.subtree_control") {
            continue;
        }
        if !lists("cgroup.controllers") {
            return Err(unavailable(path, controller));
        }
        let write = || dir.write("cgroup.subtree_control", &format!("+{controller}"));
        let mut written = write();
        for _ in 0..ROOM_ATTEMPTS {
            let is_busy = matches!(written, Err(KernelError::Busy { .. }));
            if !is_busy || !make_room(path).map_err(|e| refused(path, controller, &e))? {
                break;
            }
            written = write();
        }
        written.map_err(|e| refused(path, controller, &e))?;
    }
    Ok(())
}

fn unavailable(path: &Path, controller: &str) -> String {
    format!(
        "the {controller} controller is not available in {}; on a host that gives it to cgroup v1, boot with \
         systemd.unified_cgroup_hierarchy=1 or cgroup_no_v1={controller}; below systemd, set Delegate=yes on the unit",
        path.display()
    )
}

/// EBUSY is the rule that a cgroup with processes of its own hands no controller to its children.
fn refused(path: &Path, controller: &str, error: &KernelError) -> String {
    match error {
        KernelError::Busy { .. } => format!(
            "the {controller} controller cannot be enabled in {} because processes are in that cgroup itself; \
             move them into a cgroup below it",
            path.display()
        ),
        other => format!("the {controller} controller cannot be enabled in {}: {other}", path.display()),
    }
}

fn set(run: &CgroupDir, resources: &Resources, controller: &str) -> Result<(), String> {
    let cgroup = Cgroup::load(Box::new(Held::of(run)), "");
    let done = match controller {
        "memory" => set_with(cgroup.controller_of::<MemController>(), resources.memory_max_bytes, |c, bytes| {
            c.set_limit(clamp(bytes))
        }),
        "pids" => set_with(cgroup.controller_of::<PidController>(), resources.tasks_max, |c, tasks| {
            c.set_pid_max(MaxValue::Value(clamp(tasks)))
        }),
        _ => set_with(cgroup.controller_of::<CpuController>(), resources.cpu_max_percent, |c, percent| {
            let quota = u64::from(percent).saturating_mul(CPU_PERIOD_USEC) / 100;
            c.set_cfs_quota_and_period(Some(clamp(quota)), Some(CPU_PERIOD_USEC))
        }),
    };
    done.map_err(|e| match std::error::Error::source(&e) {
        Some(cause) => format!("{e}: {cause}"),
        None => e.to_string(),
    })
}

fn set_with<C, V>(
    controller: Option<&C>,
    value: Option<V>,
    set: impl FnOnce(&C, V) -> Result<(), cgroups_rs::error::Error>,
) -> Result<(), cgroups_rs::error::Error> {
    match (controller, value) {
        (Some(controller), Some(value)) => set(controller, value),
        _ => Ok(()),
    }
}

/// The crate takes signed numbers; a limit beyond them is no limit to any machine.
fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The one cgroup that we hold open, as a hierarchy of cgroups-rs. Its own v2 hierarchy has /sys/fs/cgroup built in and
/// goes by path; this one goes through our descriptor, so that it is the held cgroup whatever the path leads to.
#[derive(Debug)]
struct Held {
    root: PathBuf,
}

impl Held {
    fn of(dir: &CgroupDir) -> Self {
        Self { root: PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())) }
    }
}

impl Hierarchy for Held {
    fn subsystems(&self) -> Vec<Subsystem> {
        vec![
            Subsystem::Mem(MemController::new(self.root.clone(), true)),
            Subsystem::Pid(PidController::new(self.root.clone(), true)),
            Subsystem::Cpu(CpuController::new(self.root.clone(), true)),
        ]
    }

    fn root(&self) -> PathBuf {
        self.root.clone()
    }

    fn root_control_group(&self) -> Cgroup {
        Cgroup::load(Box::new(Held { root: self.root.clone() }), "")
    }

    fn parent_control_group(&self, _path: &str) -> Cgroup {
        self.root_control_group()
    }

    fn v2(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Directories with the files of a cgroup2 that has these controllers.
    fn host(controllers: &str) -> (tempfile::TempDir, Vec<PathBuf>, CgroupDir) {
        let tmp = tempfile::tempdir().unwrap();
        let chain = vec![tmp.path().join("base"), tmp.path().join("base/key")];
        let run = tmp.path().join("base/key/run");
        fs::create_dir_all(&run).unwrap();
        for dir in &chain {
            fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
            fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
        }
        for (file, text) in [("memory.max", "max\n"), ("pids.max", "max\n"), ("cpu.max", "max 100000\n")] {
            fs::write(run.join(file), text).unwrap();
        }
        let run = CgroupDir::open_unchecked(run).unwrap();
        (tmp, chain, run)
    }

    fn nowhere(_: &Path) -> Result<bool, KernelError> {
        Ok(false)
    }

    const ALL: Resources =
        Resources { memory_max_bytes: Some(2 << 30), tasks_max: Some(50), cpu_max_percent: Some(150) };

    #[test]
    fn limits_are_written_and_only_needed_controllers_enabled() {
        let (_tmp, chain, run) = host("cpu memory pids io\n");
        assert_eq!(apply(&chain, &run, &ALL, &nowhere), Vec::<String>::new());
        assert_eq!(run.read("memory.max").unwrap().trim(), "2147483648");
        assert_eq!(run.read("pids.max").unwrap().trim(), "50");
        assert_eq!(run.read("cpu.max").unwrap().trim(), "150000 100000");

        let (_tmp, chain, run) = host("cpu memory pids io\n");
        assert!(apply(&chain, &run, &Resources { tasks_max: Some(5), ..Resources::default() }, &nowhere).is_empty());
        let control = fs::read_to_string(chain[1].join("cgroup.subtree_control")).unwrap();
        assert_eq!(control, "+pids");
    }

    #[test]
    fn without_limits_nothing_is_enabled() {
        let (_tmp, chain, run) = host("memory\n");
        assert!(apply(&chain, &run, &Resources::default(), &nowhere).is_empty());
        assert_eq!(fs::read_to_string(chain[0].join("cgroup.subtree_control")).unwrap(), "");
    }

    #[test]
    fn a_limit_that_cannot_be_enforced_is_told_with_its_value_and_a_way_out() {
        let (_tmp, chain, run) = host("hugetlb\n");
        let notices = apply(&chain, &run, &ALL, &nowhere);
        assert_eq!(notices.len(), 3);
        assert!(notices[0].starts_with("memory_max of 2147483648 bytes cannot be enforced: the memory controller is"));
        assert!(notices[0].contains("cgroup_no_v1=memory"), "{}", notices[0]);
        assert_eq!(run.read("memory.max").unwrap().trim(), "max");
    }

    #[test]
    fn what_somebody_else_set_is_looked_at_and_not_believed() {
        let (_tmp, _chain, run) = host("");
        let why = |controller: &str| format!("there is no {controller}");
        let told = unmet(&run, &ALL, why);
        assert_eq!(told.len(), 3);
        assert_eq!(told[1], "tasks_max of 50 tasks cannot be enforced: there is no pids");
        for (file, text) in [("memory.max", "2147483648\n"), ("pids.max", "50\n"), ("cpu.max", "150000 100000\n")] {
            fs::write(run.path().join(file), text).unwrap();
        }
        assert_eq!(unmet(&run, &ALL, why), Vec::<String>::new());
        fs::remove_file(run.path().join("cpu.max")).unwrap();
        assert_eq!(unmet(&run, &ALL, why).len(), 1);
        assert!(unmet(&run, &Resources::default(), why).is_empty());
    }
}
