//! A host with a subtree of its own for each test, and waiting with a deadline.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use guardian::config::Config;
use guardian::daemon::host::{Host, HostContainer, HostOptions, HostProcess};
use guardian::kernel::{Exec, Kernel, KernelError, Role, mount};
use guardian::model::{Containment, ExitStatus, Resources, RunId, RunSpec};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// A host with a subtree of its own, which is emptied and removed at the end.
pub struct Rig {
    pub host: Host,
    pub tmp: tempfile::TempDir,
    mark: String,
}

impl Rig {
    pub fn new(force_kill_fallback: bool) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let key = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let base = mount::find().map(|m| m.mount_point.join("guardian-tests"));
        let made = base.and_then(|base| {
            let options = HostOptions {
                backend: Some(Containment::Cgroupfs),
                base: Some(base),
                force_kill_fallback,
                move_instance: false,
                ..HostOptions::new(key.clone(), Path::new("/nonexistent"))
            };
            Host::new(options)
        });
        match made {
            Ok((host, _)) => {
                Some(Self { host, tmp: tempfile::tempdir().unwrap(), mark: format!("GUARDIAN_TEST={key}") })
            }
            Err(why) => {
                // Not by a macro, whose output the test harness keeps to itself when a test passes.
                let loud = format!("\n**** NOT TESTED: the real kernel cannot be tested here: {why} ****\n");
                std::io::stderr().write_all(loud.as_bytes()).unwrap();
                assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "CI must test the real kernel");
                None
            }
        }
    }

    pub fn cgroup(&mut self) -> (RunId, HostContainer) {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        let run = RunId::from_bytes(bytes);
        (run, self.host.create(&spec(run, Resources::default())).unwrap().container)
    }

    pub fn exec(&self, argv: &[&str], cgroup: &HostContainer) -> Exec {
        Exec {
            argv: argv.iter().map(|a| a.as_bytes().to_vec()).collect(),
            env: vec![
                b"PATH=/usr/bin:/bin".to_vec(),
                self.mark.clone().into_bytes(),
                format!("CG={}", self.path(cgroup).display()).into_bytes(),
            ],
            cwd: self.tmp.path().as_os_str().as_bytes().to_vec(),
            notify: None,
            log: self.tmp.path().join("log"),
            input: None,
            kept: None,
        }
    }

    /// Launches a shell script as the engine does.
    pub fn launch(&mut self, script: &str) -> (RunId, HostContainer, HostProcess) {
        let (run, mut cgroup) = self.cgroup();
        let exec = self.exec(&["sh", "-c", script], &cgroup);
        let mut main = self.host.spawn(&exec, &mut cgroup).unwrap().unwrap();
        self.host.attach(&mut cgroup, &mut main).unwrap();
        self.host.watch_process(run, Role::Main, &main).unwrap();
        self.host.watch_container(run, &cgroup).unwrap();
        self.host.open_gate(&mut main).unwrap();
        (run, cgroup, main)
    }

    /// The directory of a cgroup.
    pub fn path(&self, cgroup: &HostContainer) -> PathBuf {
        self.host.identity(cgroup).unwrap().path().to_owned()
    }

    pub fn status(&mut self, process: &HostProcess) -> Option<ExitStatus> {
        self.host.exit_status(None, Some(process))
    }

    pub fn pids(&mut self, cgroup: &HostContainer) -> u32 {
        self.host.evidence(cgroup, Duration::ZERO).total
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.tmp.path().join("log")).unwrap_or_default()
    }

    /// Sleeps in the poller until the cgroup is empty.
    pub fn until_empty(&mut self, cgroup: &HostContainer, mut meanwhile: impl FnMut(&mut Host, &HostContainer)) {
        let deadline = Instant::now() + PATIENCE;
        while self.host.populated(cgroup).unwrap() {
            let left = self.host.evidence(cgroup, Duration::from_millis(100));
            assert!(Instant::now() < deadline, "not empty: {left:?}");
            self.host.wait(Some(Duration::from_millis(100))).unwrap();
            meanwhile(&mut self.host, cgroup);
        }
    }

    pub fn remove(&mut self, cgroup: &HostContainer) {
        // For some milliseconds after `populated 0`, rmdir can give EBUSY.
        until("the cgroup can be removed", || match self.host.remove(cgroup) {
            Ok(()) => true,
            Err(KernelError::Busy { .. }) => false,
            Err(e) => panic!("{e}"),
        });
        assert!(!self.path(cgroup).exists());
    }

    /// Every live process that carries our mark in its environment, wherever it is.
    pub fn marked(&self) -> Vec<String> {
        let mark = self.mark.as_bytes();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let has_mark =
            |path: &PathBuf| fs::read(path.join("environ")).is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == mark));
        entries.map(|e| e.path()).filter(has_mark).map(|p| p.display().to_string()).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let subtree = self.host.control_group().unwrap().to_owned();
        let _ = fs::write(subtree.join("cgroup.kill"), "1");
        let deadline = Instant::now() + PATIENCE;
        while remove_tree(&subtree).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        // Others may be using it.
        let _ = subtree.parent().map(fs::remove_dir);
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// A detached run with these resource limits, of which a container wants to know no more.
pub fn spec(id: RunId, resources: Resources) -> RunSpec {
    let mut limits = Config::built_in().unwrap().defaults;
    limits.resources = resources;
    RunSpec {
        id,
        workflow: "test".into(),
        executor: "local".into(),
        name: None,
        command: Vec::new(),
        cwd: "/".into(),
        uid: 0,
        user: "root".into(),
        main: None,
        client: None,
        containment: Containment::Cgroupfs,
        limits,
        log: None,
    }
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
