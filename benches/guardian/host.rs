//! What the baselines use: bare cgroups, /proc, and the clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why nothing can be measured here, if so.
pub fn can_measure() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("it needs root".to_owned());
    }
    let cgroup = Cgroup::new("probe").map_err(|e| format!("no cgroup can be made: {e}"))?;
    drop(cgroup);
    Ok(())
}

/// Where cgroup2 is mounted.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup2 ").then(|| PathBuf::from(mount.split(' ').nth(4).unwrap_or_default()))
    })
}

/// A bare cgroup, without Guardian.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let mount = mount().ok_or_else(|| std::io::Error::other("no cgroup2 is mounted"))?;
        let path = mount.join(format!("guardian-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a command in it: the shell moves itself before it executes it.
    pub fn start(&self, command: &[&str]) -> Child {
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        Command::new("sh")
            .args(["-c", script])
            .arg(&self.path)
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Writes `cgroup.kill` and waits until it is empty, looking all the time.
    pub fn kill(&self) -> Duration {
        let began = Instant::now();
        fs::write(self.path.join("cgroup.kill"), "1").unwrap();
        while !fs::read_to_string(self.path.join("cgroup.events")).unwrap().contains("populated 0") {
            std::thread::sleep(Duration::from_micros(50));
        }
        began.elapsed()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        until("a bare cgroup is removed", || fs::remove_dir(&self.path).ok());
    }
}

/// The number of processes in a cgroup and below.
pub fn processes_in(cgroup: &Path) -> usize {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
    let here = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines().count();
    here + below.map(|e| processes_in(&e.path())).sum::<usize>()
}

/// A command with so many processes, which are there soon after it is started.
pub fn sleepers(processes: usize) -> [String; 3] {
    let more = processes - 1;
    let script = format!("i=0; while [ $i -lt {more} ]; do sleep 100000 & i=$((i+1)); done; exec sleep 100000");
    ["sh".to_owned(), "-c".to_owned(), script]
}

/// Polls until the condition gives something.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A number of a line like `VmRSS:  123 kB` in /proc/PID/status, summed over what it is asked of.
fn status_number(path: &Path, key: &str) -> u64 {
    let status = fs::read_to_string(path).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Resident memory of a process: a line of /proc/PID/status that is in kB.
pub fn resident_mib(pid: u32, line: &str) -> f64 {
    status_number(&PathBuf::from(format!("/proc/{pid}/status")), line) as f64 / 1024.0
}

fn threads(pid: u32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// How many descriptors a process has.
pub fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

/// CPU time of all threads of a process, with nanoseconds where the kernel counts them.
pub fn cpu_time(pid: u32) -> Duration {
    threads(pid).iter().map(|t| schedstat(&t.join("schedstat"))).sum()
}

/// CPU time of this thread.
pub fn own_cpu_time() -> Duration {
    schedstat(Path::new("/proc/thread-self/schedstat"))
}

fn schedstat(path: &Path) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default())
}

/// How often the threads of a process have gone to sleep: each time they were woken before.
pub fn wakeups(pid: u32) -> u64 {
    threads(pid).iter().map(|t| status_number(&t.join("status"), "voluntary_ctxt_switches")).sum()
}

/// Removes what an instance that has stopped left of its own cgroups.
pub fn remove_subtree(key: &str) {
    let Some(base) = mount().map(|m| m.join("guardian")).filter(|_| !key.is_empty()) else { return };
    // A process that has just ended keeps its cgroup busy for a moment.
    until("the instance's cgroups are removed", || {
        for entry in fs::read_dir(base.join(key)).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(base.join(key));
        (!base.join(key).exists()).then_some(())
    });
    let _ = fs::remove_dir(base);
}
