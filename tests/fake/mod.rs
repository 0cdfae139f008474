//! An instance without an engine: the real bus on a real socket, a scripted engine, and a list for a store.
// Each test binary uses what it needs.
#![allow(dead_code)]

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use guardian::bus::{self, About, AuditReport, History, RunFilter, Services, Signal};
use guardian::daemon::command::{Answer, Command, Commands, Envelope};
use guardian::daemon::published::{InstanceView, Published, UsageCell};
use guardian::model::*;

/// What everybody is given who reserves a run.
pub const RESERVED: Reserved = Reserved {
    run: RunId::from_bytes([0, 0, 0, 0, 0, 1]),
    containment: Containment::Cgroupfs,
    limited: false,
    isolate_pids: true,
    data_max_bytes: Some(1 << 30),
    tasks_max: None,
    notify: None,
    command: None,
};

/// The store's readers, from a list.
#[derive(Default)]
pub struct Shelf {
    pub runs: Mutex<Vec<RunView>>,
    pub rows: Mutex<Vec<AuditRow>>,
    pub samples: Mutex<Vec<(RunId, UsageSample)>>,
}

impl History for Shelf {
    fn run(&self, id: RunId) -> Result<Option<RunView>, Error> {
        Ok(self.runs.lock().unwrap().iter().find(|v| v.spec.id == id).cloned())
    }

    fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, Error> {
        let runs = self.runs.lock().unwrap();
        Ok(runs.iter().filter(|v| filter.admits(v)).take(filter.limit as usize).cloned().collect())
    }

    fn resolve(&self, prefix: &str, owner: Option<u32>) -> Result<Vec<RunId>, Error> {
        let runs = self.runs.lock().unwrap();
        let fits = |v: &&RunView| v.spec.id.to_string().starts_with(prefix) && owner.is_none_or(|o| o == v.spec.uid);
        Ok(runs.iter().filter(fits).map(|v| v.spec.id).take(3).collect())
    }

    fn events(&self, after: u64, max: u32, run: Option<RunId>) -> Result<Vec<AuditRow>, Error> {
        let rows = self.rows.lock().unwrap();
        let wanted = |r: &&AuditRow| r.seq > after && run.is_none_or(|id| r.event.run == Some(id));
        Ok(rows.iter().filter(wanted).take(max as usize).cloned().collect())
    }

    fn verify(&self) -> Result<AuditReport, Error> {
        let rows = self.rows.lock().unwrap().len() as u64;
        Ok(AuditReport { rows, first_seq: 1, last_seq: rows, last_hash: "ab".into(), broken: Some((2, "hash".into())) })
    }

    fn statistics(&self, of: Option<&str>, uid: Option<u32>, since: Option<Wall>) -> Result<Vec<Statistics>, Error> {
        let mut collector = Collector::default();
        let runs = self.runs.lock().unwrap();
        for v in runs.iter().filter(|v| uid.is_none_or(|uid| uid == v.spec.uid) && v.finished_at >= since) {
            let workflow = v.spec.workflow.clone();
            if of.is_none_or(|wanted| wanted == workflow) {
                collector.add(PastRun { workflow, finished_at: v.finished_at.unwrap(), ..PastRun::default() });
            }
        }
        Ok(collector.finish())
    }

    fn samples(&self, run: RunId, since: Wall) -> Result<Vec<UsageSample>, Error> {
        let samples = self.samples.lock().unwrap();
        Ok(samples.iter().filter(|(id, s)| *id == run && s.at >= since).map(|(_, s)| *s).collect())
    }

    fn last_seq(&self) -> Result<u64, Error> {
        Ok(self.rows.lock().unwrap().len() as u64)
    }
}

pub struct Instance {
    _dir: Option<tempfile::TempDir>,
    pub socket: PathBuf,
    pub published: Arc<Published>,
    pub shelf: Arc<Shelf>,
    pub signals: tokio::sync::broadcast::Sender<Signal>,
    pub connections: bus::Connections,
    /// Sending ends it, with every connection.
    pub stop: Option<tokio::sync::oneshot::Sender<()>>,
    pub uid: u32,
}

/// Publishes a view with the usage that is in it.
pub trait Show {
    fn show(&self, view: RunView);
}

impl Show for Published {
    fn show(&self, view: RunView) {
        let usage = Arc::new(UsageCell::default());
        usage.update(view.usage);
        self.put(view, usage);
    }
}

/// What the engine answers.
pub type Script = Box<dyn FnMut(&Command, &Published) -> Result<Answer, Error> + Send>;

/// An instance on a thread of its own, with an engine that answers as the script says.
pub fn instance(script: Script) -> Instance {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    Instance { _dir: Some(dir), ..instance_in(&path, script) }
}

/// The same in a directory that stays. Where that has a directory `cgroup`, ReserveRun gives it; the script is not asked.
pub fn instance_in(dir: &Path, mut script: Script) -> Instance {
    let socket = dir.join("bus.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let published = Arc::new(Published::default());
    published.put_instance(InstanceView { kills_total: 3, runs_total: 9, ..InstanceView::default() });
    let shelf = Arc::new(Shelf::default());
    let (commands, inbox): (Commands, mpsc::Receiver<Box<Envelope>>) = Commands::new(Arc::new(|| {}));
    let views = published.clone();
    let reserved = dir.join("cgroup");
    std::thread::spawn(move || {
        while let Ok(envelope) = inbox.recv() {
            let answer = match envelope.command {
                Command::Reserve { container, .. } => {
                    if let Ok(dir) = std::fs::File::open(&reserved) {
                        container.send(dir.into()).unwrap();
                    }
                    Ok(Answer::Reserved(RESERVED))
                }
                command => script(&command, &views),
            };
            let _ = envelope.reply.send(answer);
        }
    });
    let signals = bus::signals();
    let uid = rustix::process::getuid().as_raw();
    let about = About {
        version: "1.2.3".into(),
        pid: 77,
        uid,
        backend: Containment::Cgroupfs,
        considered: vec![
            Considered { backend: Containment::Systemd, chosen: false, why: "no bus".into() },
            Considered { backend: Containment::Cgroupfs, chosen: true, why: "cgroups can be made".into() },
        ],
        notes: vec!["too little".into(), "and then some".into()],
        ..About::default()
    };
    let evidence = Arc::new(|v: &RunView, _: Duration| {
        let pid = v.spec.main.unwrap().pid;
        let sh = ProcessSeen { pid, ppid: 1, name: "sh".into(), state: 'S', ..ProcessSeen::default() };
        Ok(Evidence { processes: vec![sh], total: 1, seen_at: Some(Wall(6)), ..Evidence::default() })
    });
    let services = Services::new(commands, published.clone(), shelf.clone(), evidence, about, signals.clone());
    let (count, connections) = tokio::sync::watch::channel(0);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                served = bus::serve_private(listener, services, count) => served.unwrap(),
                Ok(()) = stopped => {}
            }
        });
    });
    Instance { _dir: None, socket, published, shelf, signals, connections, stop: Some(stop), uid }
}

fn remains() -> Remains {
    let lock = |name: &str, fate| GitLock { path: format!("/w/.git/{name}.lock"), fate };
    let locks = vec![
        lock("index", LockFate::Stale),
        lock("HEAD", LockFate::Removed),
        lock("config", LockFate::LeftAlone { why: "it is older than the run".into() }),
    ];
    let file = |path: &str, size_bytes| OpenFile { path: path.into(), size_bytes, pid: 7, name: "sl\\eep".into() };
    Remains {
        others: "sl\\eep 1000 (pid 8)".into(),
        files: vec![file("/w/h\u{e4}lf\nwritten", Some(4096)), file("/net/x", None)],
        files_total: 3,
        git: GitLocks { locks, total: 3, not_looked_at: Vec::new() },
        not_looked_at: vec!["what 1 process had open for writing".into()],
    }
}

pub fn id(n: u64) -> RunId {
    let [_, _, bytes @ ..] = n.to_be_bytes();
    RunId::from_bytes(bytes)
}

pub fn live(n: u64, uid: u32) -> RunView {
    let limits = Limits {
        max_running: None,
        queue_timeout: None,
        init_timeout: Some(Duration::from_secs(1800)),
        max_runtime: None,
        watch: guardian::model::Watch::default(),
        grace: Duration::from_secs(10),
        readiness: Readiness::Output,
        resources: Resources { memory_max_bytes: Some(1 << 30), tasks_max: None, cpu_max_percent: None },
        isolate_pids: true,
        cleanup: Cleanup { git_locks: true },
        sandbox: Sandbox::Off,
        credentials: Vec::new(),
    };
    RunView {
        spec: RunSpec {
            id: id(n),
            workflow: "builder".into(),
            executor: "local".into(),
            name: None,
            command: vec!["sh".into(), "-c".into(), "sleep 1000".into()],
            cwd: "/root".into(),
            uid,
            user: "root".into(),
            main: Some(ProcessId { pid: 4242, start_ticks: 99 }),
            client: None,
            containment: Containment::Cgroupfs,
            limits,
            log: Some("/state/logs/x.log".into()),
        },
        phase: Phase::Running,
        health: Health::Healthy,
        reasons: vec![],
        container: Some(ContainerId::Cgroup(CgroupIdentity {
            path: format!("/sys/fs/cgroup/guardian/{}", id(n)).into(),
            inode: 1000 + n,
        })),
        frozen: false,
        created_at: Wall(1_700_000_000_000_000 + n),
        started_at: Some(Wall(1_700_000_000_000_100 + n)),
        ready_at: Some(Wall(1_700_000_000_000_200 + n)),
        finished_at: None,
        deadlines: vec![(Rule::InitTimeout, Wall(1_700_001_800_000_000))],
        outcome: None,
        receipt: None,
        queued: None,
        usage: Usage {
            cpu_usec: Some(12_345),
            memory_bytes: Some(1 << 20),
            memory_peak_bytes: Some(3 << 20),
            tasks: Some(3),
            io_read_bytes: Some(4096),
            io_write_bytes: Some(8192),
            activity_bytes: Some(1_000_000),
        },
        heartbeats: Default::default(),
        progress: None,
        escapees: vec![],
        notices: vec![],
    }
}

fn escapee() -> Escapee {
    let process = ProcessId { pid: 77, start_ticks: 5 };
    Escapee { process, name: "sl\neep".into(), cgroup: "/x".into(), fate: Fate::Terminated }
}

pub fn finished(n: u64, uid: u32) -> RunView {
    let reason = KillReason::over(Rule::MaxRuntime, Duration::from_secs(3));
    let step = |kind, elapsed_usec| Step { kind, at: Wall(5), elapsed_usec, processes: 2 };
    let wchan = || Some("hrtimer".into());
    let name = || "sl\neep".into();
    let seen = |pid| ProcessSeen { pid, ppid: 1, name: name(), state: 'S', wchan: wchan(), ..ProcessSeen::default() };
    let reasons = HealthReason { rule: Rule::MaxRuntime, level: Health::Warning, text: "80 %".into(), since: Wall(9) };
    RunView {
        phase: Phase::Finished,
        health: Health::Warning,
        reasons: vec![reasons],
        frozen: true,
        finished_at: Some(Wall(1_700_000_009_000_000)),
        outcome: Some(Outcome::Killed { reason: reason.clone() }),
        receipt: Some(Receipt {
            run: id(n),
            mode: KillMode::Graceful,
            reason,
            actor: Actor::Guardian,
            requested_at: Wall(4),
            duration_usec: 4321,
            steps: vec![step(StepKind::IntentRecorded, 1), step(StepKind::Terminated, 2), step(StepKind::Emptied, 3)],
            terminated: 2,
            killed: 0,
            survivors: 0,
            proved: true,
            containment: Containment::Cgroupfs,
            processes: vec![seen(7), seen(8)],
            processes_total: 2,
            growth: None,
            escapees: vec![escapee()],
            remains: Some(remains()),
            explanation: "both processes sleep; sl\\neep (pid 7) sleeps".into(),
        }),
        heartbeats: Heartbeats {
            total: 7,
            last_at: Some(Wall(1_700_000_008_000_000)),
            status: "nearly d\u{f6}ne".into(),
            stopping: true,
            errno: Some(2),
            refused: Refused { foreign: 1, flooded: 2, too_long: 3 },
        },
        progress: Some(Progress {
            session: Some("abc".into()),
            turns: 7,
            turns_max: Some(30),
            tokens: 1200,
            cost_micro_usd: Some(1_250_000),
            tool: Some("Bash".into()),
            repeats: 3,
            repeated: Some("npm test".into()),
            result: Some(AgentResult { success: false, text: "it f\u{e4}iled".into() }),
            ..Progress::default()
        }),
        escapees: vec![escapee()],
        notices: vec!["memory_max cannot be enforced here".into()],
        usage: Usage::default(),
        ..live(n, uid)
    }
}
