//! What the tests read from the host by themselves, without asking Guardian: processes, cgroups, programs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything may take before a test calls it stuck. Far longer than it takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until the condition gives something; says what did not happen if it never does.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

/// [`eventually`] with its own patience.
pub fn within<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says past the test harness's capture that a test cannot run here, and fails it in CI.
pub fn cannot_run(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // The raw handle: what goes through eprintln! is captured and shown for failed tests only.
    let _ = writeln!(std::io::stderr(), "\n!!! {test} DID NOT RUN: {why}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} did not run, and in CI it must: {why}");
}

/// Why no cgroup can be made here, if none can.
pub fn cgroup_can_be_made() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("it needs root".to_owned());
    }
    let mount = cgroup2_mount().ok_or("no cgroup2 is mounted")?;
    let probe = mount.join(format!("guardian-test-{}", std::process::id()));
    match std::fs::create_dir(&probe) {
        Ok(()) => {
            let _ = std::fs::remove_dir(&probe);
            Ok(())
        }
        // Another test of this process is probing at this moment.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(format!("no cgroup can be made in {}: {e}", mount.display())),
    }
}

/// Where cgroup2 is mounted, wherever that is.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup2 ").then(|| PathBuf::from(mount.split(' ').nth(4).unwrap()))
    })
}

/// Every cgroup below the cgroup2 mount whose own name contains the text.
pub fn cgroups_named(text: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, text: &str, found: &mut Vec<PathBuf>) {
        // A cgroup may go away while we look.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(text) {
                found.push(entry.path());
            }
            walk(&entry.path(), text, found);
        }
    }
    let mut found = Vec::new();
    if let Some(mount) = cgroup2_mount() {
        walk(&mount, text, &mut found);
    }
    found
}

/// The first program of that name in PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// Every pid.
pub fn pids() -> Vec<u32> {
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// A file of a process, or nothing if it is gone.
pub fn proc_file(pid: u32, file: &str) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// State letter and fields after the name in /proc/PID/stat.
pub fn proc_stat(pid: u32) -> Option<Vec<String>> {
    let stat = String::from_utf8_lossy(&proc_file(pid, "stat")).into_owned();
    let (_, rest) = stat.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// True for a process that exists and is not a zombie. One whose first thread has ended before the others, as SIGKILL does
/// it, still has its files open: a socket that still takes connections, for one.
pub fn is_alive(pid: u32) -> bool {
    let has_ended = |f: &[String]| f[0] == "Z" || f[0] == "X";
    let has_threads = || std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1);
    proc_stat(pid).is_some_and(|f| !has_ended(&f) || has_threads())
}

/// The effective uid of a process, ended ones too.
pub fn uid_of(pid: u32) -> Option<u32> {
    let status = String::from_utf8_lossy(&proc_file(pid, "status")).into_owned();
    status.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())
}

/// The parent of a process.
pub fn parent_of(pid: u32) -> Option<u32> {
    proc_stat(pid)?.get(1)?.parse().ok()
}

/// True if the process belongs to a workload with that mark: in its environment, its arguments or its working
/// directory. One is not enough: redis-server and others write over their environment.
pub fn is_marked(pid: u32, mark: &str) -> bool {
    let contains = |bytes: &[u8]| bytes.windows(mark.len()).any(|w| w == mark.as_bytes());
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    contains(&proc_file(pid, "environ")) || contains(&proc_file(pid, "cmdline")) || contains(cwd.as_os_str().as_bytes())
}

/// A live process in one line, for a failed assertion.
pub fn describe(pid: u32) -> String {
    let cmdline = proc_file(pid, "cmdline").iter().map(|&b| if b == 0 { b' ' } else { b }).collect::<Vec<_>>();
    let state = proc_stat(pid).map_or("gone".to_owned(), |f| f[0].clone());
    let cgroup = String::from_utf8_lossy(&proc_file(pid, "cgroup")).into_owned();
    let cgroup = cgroup.lines().find(|l| l.starts_with("0::")).unwrap_or("").to_owned();
    format!("{pid} {state} {cgroup} {}", String::from_utf8_lossy(&cmdline).chars().take(120).collect::<String>())
}

/// Every process below this one.
pub fn descendants(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        for pid in pids() {
            let parent = parent_of(pid).unwrap_or(0);
            if found.contains(&parent) {
                found.insert(pid);
            }
        }
        if found.len() == before {
            found.remove(&root);
            return found;
        }
    }
}

/// Sends a signal to a process that this test started.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether a text is a run id.
pub fn is_run_id(text: &str) -> bool {
    text.parse::<guardian::model::RunId>().is_ok()
}

/// The lines of a file, or none if it does not exist.
pub fn lines(path: impl AsRef<Path>) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Shows bytes of a path-like argument.
pub fn shown(arg: &OsStr) -> String {
    arg.to_string_lossy().into_owned()
}

/// The Python that a distribution installs: a version manager's shim would be processes of its own.
pub fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}
