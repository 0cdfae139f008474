//! What is left of a world: processes of its workloads, its shims, its cgroups; and how all of it is removed at the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::host::*;
use super::world::World;

impl World {
    /// The processes of the workloads: marked, or of the uid that nobody else has.
    pub fn workload(&self) -> Vec<u32> {
        let is_ours = |p: u32| is_marked(p, self.mark()) || self.is_its_users(p);
        pids().into_iter().filter(|&p| is_alive(p) && is_ours(p) && !self.is_guardian(p) && !self.is_shim(p)).collect()
    }

    /// True for a process of the executable under test that uses this state directory.
    pub(super) fn is_guardian(&self, pid: u32) -> bool {
        self.is_executable(pid) && contains(&proc_file(pid, "environ"), self.state().as_os_str().as_encoded_bytes())
    }

    /// True if this world has a uid of its own, and the process has it.
    fn is_its_users(&self, pid: u32) -> bool {
        self.uid().is_some() && uid_of(pid) == self.uid()
    }

    fn is_executable(&self, pid: u32) -> bool {
        // A replaced executable reads as "… (deleted)".
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        exe.as_os_str().to_string_lossy().starts_with(self.guardian.to_str().unwrap())
    }

    /// True for a shim of this state directory, whose record it holds open, and for the first process of the PID namespace
    /// below it. They have no environment.
    fn is_shim(&self, pid: u32) -> bool {
        let holds_record = |pid: u32| {
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|file| file.starts_with(self.shims_directory()))
        };
        let name = String::from_utf8_lossy(&proc_file(pid, "comm")).into_owned();
        match name.trim_end() {
            "guardian-shim" => self.is_executable(pid) && holds_record(pid),
            "guardian-init" => self.is_executable(pid) && parent_of(pid).is_some_and(holds_record),
            _ => false,
        }
    }

    /// The shims of this state directory.
    pub fn shims(&self) -> Vec<u32> {
        pids().into_iter().filter(|&p| is_alive(p) && self.is_shim(p)).collect()
    }

    /// Where the shims' records are.
    pub fn shims_directory(&self) -> PathBuf {
        self.state().join("shims")
    }

    /// Ended processes of this world that nobody has waited for. Those that init has got are its own business.
    fn zombies(&self) -> Vec<u32> {
        let is_zombie = |pid: u32| proc_stat(pid).is_some_and(|f| f[0] == "Z");
        let is_ours = |pid: u32| match parent_of(pid) {
            Some(1) | None => false,
            parent => parent == self.instance() || self.is_its_users(pid),
        };
        pids().into_iter().filter(|&pid| is_zombie(pid) && is_ours(pid)).collect()
    }

    /// Every process of `guardian` with this state directory: the instance, clients, children behind a gate.
    pub fn guardians(&self) -> Vec<u32> {
        pids().into_iter().filter(|&p| is_alive(p) && self.is_guardian(p)).collect()
    }

    /// Nothing is left of any run: no process of a workload, no child behind a gate, no cgroup, no shim and no record of
    /// one, no entry in the process table.
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
        let guardians = self.guardians().into_iter().filter(|&p| Some(p) != instance);
        let strays: Vec<u32> = guardians.chain(self.shims()).collect();
        assert!(strays.is_empty(), "left behind: {:?}", strays.iter().map(|&p| describe(p)).collect::<Vec<_>>());
        let records: Vec<_> = std::fs::read_dir(self.shims_directory()).into_iter().flatten().flatten().collect();
        assert!(records.is_empty(), "records left behind: {records:?}");
        // Whoever waits for them has to have its turn of the processor first.
        eventually("every ended process is waited for", || self.zombies().is_empty().then_some(()));
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
        // What is exiting has no executable any more by which it would be known as an instance.
        let mut left = self.workload();
        let deadline = Instant::now() + Duration::from_secs(1);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            let there = self.workload();
            left.retain(|pid| there.contains(pid));
        }
        let told: Vec<String> = left.iter().map(|&pid| describe(pid)).collect();
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
            panic!("the test ended, and of its workload were left:\n{}", told.join("\n"));
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
