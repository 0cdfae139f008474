//! The driver and engine of an instance in a simulated world, with a store that can fail, and the invariants.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guardian::daemon::driver::{Driver, Held, Recorder};
use guardian::daemon::published::{Ending, Published};
use guardian::daemon::recovery::{Known, Memory, recover};
use guardian::engine::{Concurrency, Engine, Event, Run, Settings, State};
use guardian::kernel::sim::{ActKind, SimKernel, SimProcess, World};
use guardian::kernel::{Exec, Kernel};
use guardian::model::{
    Action, Actor, AgentWatch, Answer, AuditEvent, Containment, Error, EventKind, ExitStatus, HealthReason, KeptLaunch,
    KillAnswer, KillMode, KillReason, Limits, Mono, Notification, Phase, ProcessId, Progress, Readiness, Resources,
    Rule, RunId, RunSpec, RunView, Sample, UsageMinute, Watch,
};
use guardian::store::{Batch, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Well,
    Stuck,
    Failing,
    Full,
}

#[derive(Debug, Clone)]
pub enum Op {
    Launch {
        detached: bool,
        init_ms: u64,
        max_ms: u64,
        grace_ms: u64,
        watch: Watch,
    },
    Kill {
        run: usize,
        force: bool,
    },
    Fork {
        run: usize,
        ignores_term: bool,
        stuck: bool,
    },
    MainExits {
        run: usize,
        code: i32,
    },
    OthersExit {
        run: usize,
    },
    Report {
        run: usize,
    },
    ClientDies {
        run: usize,
    },
    Output {
        run: usize,
    },
    Extend {
        run: usize,
        rule: Rule,
        ms: u64,
    },
    Freeze {
        run: usize,
        frozen: bool,
    },
    Pass {
        ms: u64,
    },
    Store(Store),
    BusyRemovals {
        times: u32,
    },
    Replace {
        run: usize,
    },
    Unstick {
        run: usize,
    },
    Scatter {
        run: usize,
    },
    Escape {
        run: usize,
    },
    SeekerStuck {
        stuck: bool,
    },
    Stop {
        run: usize,
    },
    /// It computes for so long, and moves so many bytes.
    Does {
        run: usize,
        cpu_ms: u64,
        bytes: u64,
    },
    /// What a look at it cannot tell any more, or whether it waits for input.
    Shows {
        run: usize,
        activity: bool,
        input: bool,
    },
    Sample,
    Crash {
        rebooted: bool,
    },
    Say {
        run: usize,
        said: Notification,
    },
    /// The next runs are of this user and workflow.
    Of {
        uid: u32,
        workflow: &'static str,
    },
    /// So many may run at once from now on: in all, and of the workflow `test`.
    Limit {
        host: Option<u64>,
        test: Option<u64>,
    },
}

/// What is kept of queued runs.
struct Kept(BTreeMap<RunId, KeptLaunch>);

impl Memory<SimKernel> for Kept {
    fn rebuild(&mut self, _: &mut SimKernel, _: RunId) -> Option<Run> {
        None
    }

    fn launch(&mut self, kernel: &mut SimKernel, run: &Run) -> Result<Exec, String> {
        let kept = self.0.get(&run.spec.id).filter(|_| self.is_kept(kernel, run.spec.id));
        let KeptLaunch { argv, env, cwd, prompt, .. } = kept.cloned().ok_or("it is not kept")?;
        Ok(Exec { argv, env, cwd, notify: None, log: PathBuf::new(), input: prompt, kept: None })
    }

    fn is_kept(&self, kernel: &SimKernel, run: RunId) -> bool {
        self.0.contains_key(&run) && !kernel.0.borrow().emptied.contains(&run)
    }
}

/// What is on record, with the time of each commit.
#[derive(Default)]
pub struct Disk {
    /// What queued runs are to execute.
    pub launches: BTreeMap<RunId, KeptLaunch>,
    state: Option<Store>,
    pending: Vec<Batch>,
    notices: Vec<(u64, bool)>,
    runs: BTreeMap<RunId, (RunView, Option<String>)>,
    audit: Vec<(Mono, AuditEvent)>,
    intents: BTreeMap<RunId, (Mono, Vec<KillAnswer>)>,
    submitted_intents: BTreeMap<RunId, Mono>,
    receipts: BTreeMap<RunId, u32>,
    journal: Vec<AuditEvent>,
    minutes: Vec<UsageMinute>,
    now: Mono,
}

impl Disk {
    fn commit(&mut self, batch: Batch) {
        for write in batch.writes {
            match write {
                Write::Run { view, state } => {
                    let (old, _) = self.runs.get(&view.spec.id).cloned().unwrap_or(((*view).clone(), None));
                    assert!(old.outcome.is_none() || old.outcome == view.outcome, "one terminal outcome");
                    self.runs.insert(view.spec.id, (*view, state));
                }
                Write::Audit(event) => self.audit.push((self.now, event)),
                Write::KillIntent(answer) => {
                    let now = self.now;
                    self.intents.entry(answer.run).or_insert((now, Vec::new())).1.push(answer);
                }
                Write::KeepLaunch(launch) => drop(self.launches.insert(launch.run, *launch)),
                Write::ForgetLaunch(run) => drop(self.launches.remove(&run)),
                Write::KillDone(receipt) => *self.receipts.entry(receipt.run).or_default() += 1,
            }
        }
        if let Some(ticket) = batch.ticket {
            self.notices.push((ticket, true));
        }
    }

    fn set(&mut self, state: Store) {
        self.state = Some(state);
        if state == Store::Well {
            for batch in std::mem::take(&mut self.pending) {
                self.commit(batch);
            }
        }
    }
}

#[derive(Clone, Default)]
pub struct FakeStore(Rc<RefCell<Disk>>);

impl Recorder for FakeStore {
    fn submit(&mut self, batch: Batch) -> Result<(), Batch> {
        let mut disk = self.0.borrow_mut();
        let now = disk.now;
        for write in &batch.writes {
            if let Write::KillIntent(answer) = write {
                disk.submitted_intents.entry(answer.run).or_insert(now);
            }
        }
        match disk.state.unwrap_or(Store::Well) {
            Store::Well => disk.commit(batch),
            Store::Stuck => disk.pending.push(batch),
            Store::Failing => {
                if let Some(ticket) = batch.ticket {
                    disk.notices.push((ticket, false));
                }
                disk.pending.push(Batch { ticket: None, ..batch });
            }
            Store::Full => return Err(batch),
        }
        Ok(())
    }

    fn journal(&mut self, event: AuditEvent) {
        self.0.borrow_mut().journal.push(event);
    }

    fn keep_samples(&mut self, minutes: Vec<UsageMinute>) {
        self.0.borrow_mut().minutes.extend(minutes);
    }

    fn launch_file(&self, run: RunId) -> Option<PathBuf> {
        Some(PathBuf::from(run.to_string()))
    }
}

struct Known_ {
    id: RunId,
    main: Option<u32>,
    client: Option<u32>,
    grace: Duration,
    inode: Option<u64>,
    /// The time after which it is idle.
    idle: Option<Duration>,
    /// It only records what its rules would do.
    dry_run: bool,
    /// Its escapees are to be ended.
    ends_escapees: bool,
    /// When it last did something that an idle run does not.
    moved: Mono,
    beat: Option<Mono>,
    /// What it is held to as an agent, and what it has reported of that.
    agent: AgentWatch,
    progress: Progress,
    most_repeats: u64,
    /// When its turn began, and when it began to wait.
    turned: Mono,
    waited: Mono,
}

type Answers = Arc<Mutex<Vec<Result<Answer, Error>>>>;

pub struct Bench {
    world: Rc<RefCell<World>>,
    store: FakeStore,
    driver: Driver<SimKernel, FakeStore>,
    published: Arc<Published>,
    runs: Vec<Known_>,
    bystanders: BTreeSet<u32>,
    ends: BTreeMap<RunId, RunView>,
    checked_acts: usize,
    stuck_intents: BTreeSet<RunId>,
    asked: Vec<Answers>,
    last_id: u16,
    /// What contains the runs that are launched.
    pub containment: Containment,
    /// What they are watched for.
    pub watch: Watch,
    /// What becomes of them when their heartbeats stop, which are waited for so long.
    pub heartbeat_action: Action,
    pub heartbeat_timeout: Duration,
    /// The shortest that any of them asks for.
    pub shortest_window: Duration,
    /// What makes them ready.
    pub readiness: Readiness,
    /// Whose they are, and of which workflow.
    pub uid: u32,
    pub workflow: &'static str,
    /// How many may run at once, and how many of each workflow have run since that is so.
    concurrency: Concurrency,
    running: BTreeMap<String, u64>,
}

/// A run that does nothing.
const STILL: Sample = Sample {
    cpu_usec: Some(0),
    cpu_wait_usec: Some(0),
    memory_bytes: None,
    memory_pressure: None,
    io_bytes: Some(0),
    activity_bytes: Some(0),
    processes: None,
    waits_for_input: Some(false),
    frozen: Some(false),
    suspended_usec: Some(0),
    host_cpu_pressure: Some(0),
};

fn driver(
    world: &Rc<RefCell<World>>,
    store: &FakeStore,
    published: &Arc<Published>,
    concurrency: Concurrency,
) -> Driver<SimKernel, FakeStore> {
    let engine = Engine::new(Settings { max_runs: 1000, concurrency });
    Driver::new(SimKernel(world.clone()), store.clone(), engine, published.clone())
}

fn me() -> Actor {
    Actor::User { uid: 7, name: "me".into() }
}

impl Bench {
    pub fn new() -> Self {
        let (world, store, published) = (World::new(), FakeStore::default(), Arc::new(Published::default()));
        Self {
            driver: driver(&world, &store, &published, Concurrency::default()),
            world,
            store,
            published,
            runs: Vec::new(),
            bystanders: BTreeSet::new(),
            ends: BTreeMap::new(),
            checked_acts: 0,
            stuck_intents: BTreeSet::new(),
            asked: Vec::new(),
            last_id: 0,
            containment: Containment::Cgroupfs,
            watch: Watch::default(),
            heartbeat_action: Action::Warn,
            heartbeat_timeout: Duration::from_secs(10),
            shortest_window: Duration::from_secs(10),
            readiness: Readiness::Output,
            uid: 7,
            workflow: "test",
            concurrency: Concurrency::default(),
            running: BTreeMap::new(),
        }
    }

    pub fn apply(&mut self, op: Op) {
        let pick = |runs: &[Known_], run: usize| (!runs.is_empty()).then(|| run % runs.len());
        match op {
            Op::Launch { detached, init_ms, max_ms, grace_ms, watch } => {
                self.watch = watch;
                self.start(detached, init_ms, max_ms, grace_ms);
                self.watch = Watch::default();
            }
            Op::Of { uid, workflow } => (self.uid, self.workflow) = (uid, workflow),
            Op::Limit { host, test } => self.limit(host, test),
            Op::Pass { ms } => self.pass_ms(ms),
            Op::Store(state) => {
                self.disk(|d| d.set(state));
                // The writer says so when it is in trouble, and when it is not any more.
                match state {
                    Store::Failing => self.driver.handle(Event::StoreTroubled("disk full".into())),
                    Store::Well => self.driver.handle(Event::StoreRecovered),
                    Store::Stuck | Store::Full => {}
                }
            }
            Op::BusyRemovals { times } => self.world.borrow_mut().busy = times,
            Op::Crash { rebooted } => self.crash(rebooted),
            Op::Say { run, said } => {
                if let Some(i) = pick(&self.runs, run) {
                    self.say(i, said);
                }
            }
            Op::Kill { run, force } => {
                if let Some(i) = pick(&self.runs, run) {
                    let mode = if force { KillMode::Force } else { KillMode::Graceful };
                    let _ = self.kill(self.runs[i].id, mode);
                }
            }
            Op::Fork { run, ignores_term, stuck } => {
                if let Some(i) = pick(&self.runs, run) {
                    self.fork(i, ignores_term, stuck);
                }
            }
            Op::MainExits { run, code } => {
                if let Some(main) = pick(&self.runs, run).and_then(|i| self.runs[i].main) {
                    self.world.borrow_mut().end(main, ExitStatus::Exited(code));
                }
            }
            Op::OthersExit { run } => {
                if let Some((inode, main)) =
                    pick(&self.runs, run).and_then(|i| Some((self.runs[i].inode?, self.runs[i].main?)))
                {
                    let others: Vec<u32> = self.world.borrow().living(inode).filter(|p| *p != main).collect();
                    others.into_iter().for_each(|p| self.world.borrow_mut().end(p, ExitStatus::Exited(0)));
                }
            }
            Op::Report { run } => {
                if let Some(i) = pick(&self.runs, run)
                    && let Some(status) = self.client_knows(i)
                {
                    self.report(self.runs[i].id, status);
                }
            }
            Op::ClientDies { run } => {
                if let Some(client) = pick(&self.runs, run).and_then(|i| self.runs[i].client) {
                    self.world.borrow_mut().end(client, ExitStatus::Signaled(9));
                }
            }
            Op::Output { run } => {
                if let Some(i) = pick(&self.runs, run) {
                    let id = self.runs[i].id;
                    self.world.borrow_mut().output.insert(id);
                }
            }
            Op::Extend { run, rule, ms } => {
                if let Some(i) = pick(&self.runs, run) {
                    let (reply, _) = self.reply();
                    let by = Duration::from_millis(ms);
                    self.driver.handle(Event::Extend { run: self.runs[i].id, rule, by, actor: me(), reply });
                }
            }
            Op::Freeze { run, frozen } => {
                if let Some(i) = pick(&self.runs, run) {
                    let (reply, _) = self.reply();
                    self.driver.handle(Event::Freeze { run: self.runs[i].id, frozen, actor: me(), reply });
                }
            }
            Op::Replace { run } => {
                if let Some(i) = pick(&self.runs, run) {
                    let bystander = self.world.borrow_mut().replace(self.runs[i].id);
                    self.bystanders.extend(bystander);
                }
            }
            Op::Stop { run } => {
                if let Some(i) = pick(&self.runs, run) {
                    self.world.borrow_mut().stop(self.runs[i].id);
                }
            }
            Op::Sample => self.driver.sample(u64::MAX),
            Op::Does { run, cpu_ms, bytes } => {
                if let Some(i) = pick(&self.runs, run) {
                    let mut world = self.world.borrow_mut();
                    let now = world.now.mono;
                    let sample = world.samples.entry(self.runs[i].id).or_default();
                    sample.cpu_usec = sample.cpu_usec.map(|cpu| cpu + 1000 * cpu_ms);
                    sample.activity_bytes = sample.activity_bytes.map(|sum| sum + bytes);
                    drop(world);
                    if bytes > 0 {
                        self.moved(i, now);
                    }
                }
            }
            Op::Shows { run, activity, input } => {
                if let Some(i) = pick(&self.runs, run) {
                    let mut world = self.world.borrow_mut();
                    let now = world.now.mono;
                    let sample = world.samples.entry(self.runs[i].id).or_default();
                    sample.activity_bytes = activity.then_some(sample.activity_bytes.unwrap_or(0) + 1);
                    sample.waits_for_input = Some(input);
                    drop(world);
                    self.moved(i, now);
                }
            }
            Op::Scatter { run } => {
                if let Some(i) = pick(&self.runs, run) {
                    self.world.borrow_mut().scatter(self.runs[i].id);
                }
            }
            Op::Escape { run } => {
                if let Some(i) = pick(&self.runs, run) {
                    self.escape(i);
                }
            }
            Op::SeekerStuck { stuck } => self.world.borrow_mut().seeker_stuck = stuck,
            Op::Unstick { run } => {
                if let Some(i) = pick(&self.runs, run) {
                    self.unstick(i);
                }
            }
        }
        self.turn();
    }

    /// So many may run at once.
    pub fn limit(&mut self, host: Option<u64>, test: Option<u64>) {
        let workflows = BTreeMap::from([("test".to_owned(), test)]);
        self.concurrency = Concurrency { host, workflows, others: None };
        let concurrency = self.concurrency.clone();
        self.driver.handle(Event::Configured(Settings { max_runs: 1000, concurrency }));
    }

    /// No more run than may, but for those that ran already when fewer could.
    fn check_concurrency(&mut self) {
        let mut running: BTreeMap<String, u64> = BTreeMap::new();
        for run in self.driver.engine().runs().filter(|r| !matches!(r.state, State::Queued { .. } | State::Closing(_)))
        {
            *running.entry(run.spec.workflow.clone()).or_default() += 1;
        }
        let all = |of: &BTreeMap<String, u64>| of.values().sum::<u64>();
        let allowed = self.concurrency.host.unwrap_or(u64::MAX).max(all(&self.running));
        assert!(all(&running) <= allowed, "{running:?} run, and {allowed} may");
        for (workflow, n) in &running {
            let allowed = self.concurrency.workflows.get(workflow).copied().flatten().unwrap_or(u64::MAX);
            let allowed = allowed.max(self.running.get(workflow).copied().unwrap_or_default());
            assert!(*n <= allowed, "{n} of {workflow} run, and {allowed} may");
        }
        self.running = running;
    }

    /// The runs that wait for their turn.
    pub fn queued(&self) -> usize {
        self.driver.engine().runs().filter(|run| matches!(run.state, State::Queued { .. })).count()
    }

    /// What a run does while it is ended is of no account.
    fn moved(&mut self, i: usize, now: Mono) {
        if self.driver.engine().run(self.runs[i].id).is_some_and(|run| matches!(run.state, State::Live { .. })) {
            self.runs[i].moved = now;
        }
    }

    fn say(&mut self, i: usize, said: Notification) {
        let living = self.runs[i].inode.is_some_and(|inode| self.world.borrow().living(inode).next().is_some());
        if living {
            let now = self.world.borrow().now.mono;
            let run = self.driver.engine().run(self.runs[i].id);
            let is_live = run.is_some_and(|r| matches!(r.state, State::Live { .. }));
            self.runs[i].beat = if said.heartbeat && is_live { Some(now) } else { self.runs[i].beat };
            self.reported(i, &said, now, is_live);
            self.world.borrow_mut().say(self.runs[i].id, said);
        }
    }

    fn reported(&mut self, i: usize, said: &Notification, now: Mono, is_live: bool) {
        let Some(update) = &said.progress else { return };
        let known = &mut self.runs[i];
        let before = known.progress.clone();
        known.progress.update(update);
        known.most_repeats = known.most_repeats.max(known.progress.repeats);
        // What it says while it is ended was not waited for any more.
        known.turned = if is_live && known.progress.turns > before.turns { now } else { known.turned };
        known.waited = if is_live && known.progress.waiting != before.waiting { now } else { known.waited };
    }

    /// The last words of a run: before they are heard, all of its processes are gone.
    pub fn say_and_end(&mut self, i: usize, said: Notification) {
        self.say(i, said);
        let inode = self.runs[i].inode.expect("it is contained");
        let living: Vec<u32> = self.world.borrow().living(inode).collect();
        living.into_iter().for_each(|pid| self.world.borrow_mut().end(pid, ExitStatus::Exited(0)));
        self.turn();
    }

    fn client_knows(&self, i: usize) -> Option<ExitStatus> {
        let world = self.world.borrow();
        let client = self.runs[i].client.filter(|c| world.processes[c].ended.is_none());
        client.and(world.processes[&self.runs[i].main?].ended)
    }

    fn unstick(&mut self, i: usize) {
        let Some(inode) = self.runs[i].inode else { return };
        for process in self.world.borrow_mut().processes.values_mut().filter(|p| p.cgroup == Some(inode)) {
            process.stuck = false;
        }
    }

    fn fork(&mut self, i: usize, ignores_term: bool, stuck: bool) {
        let Some(inode) = self.runs[i].inode else { return };
        let mut world = self.world.borrow_mut();
        // What waits at its gate starts nothing; that of a client is opened by the client, and nobody here is told.
        let may_be_open = |pid| world.processes.get(&pid).is_some_and(|p| !p.gated) || self.runs[i].client.is_some();
        if world.living(inode).any(may_be_open) {
            let cgroup = Some(inode);
            world.start(SimProcess { cgroup, ended: None, ignores_term, stuck, gated: false, ours: false });
        }
    }

    /// A person looks at the run.
    pub fn show(&mut self, run: RunId) {
        self.driver.shown(run);
        self.turn();
    }

    /// The newest process of the run leaves it.
    pub fn escape(&mut self, i: usize) -> Option<u32> {
        let inode = self.runs[i].inode?;
        let pid = self.world.borrow().living(inode).last()?;
        self.world.borrow_mut().escape(self.runs[i].id, pid);
        Some(pid)
    }

    pub fn is_alive(&self, pid: u32) -> bool {
        self.world.borrow().processes[&pid].ended.is_none()
    }

    pub fn end(&mut self, pid: u32) {
        self.world.borrow_mut().end(pid, ExitStatus::Exited(0));
        self.turn();
    }

    /// The run as it is on record.
    pub fn on_record(&self, run: RunId) -> Option<RunView> {
        self.disk(|d| d.runs.get(&run).map(|(view, _)| view.clone()))
    }

    pub fn launch(&mut self, detached: bool, init_ms: u64, max_ms: u64, grace_ms: u64) -> RunId {
        let (id, answer) = self.start(detached, init_ms, max_ms, grace_ms);
        assert_eq!(answer, Some(Ok(Answer::Run(id))));
        id
    }

    pub fn try_launch(&mut self, detached: bool) -> Result<Answer, Error> {
        self.start(detached, 0, 0, 0).1.expect("an answer")
    }

    fn start(
        &mut self,
        detached: bool,
        init_ms: u64,
        max_ms: u64,
        grace_ms: u64,
    ) -> (RunId, Option<Result<Answer, Error>>) {
        self.last_id += 1;
        let [high, low] = self.last_id.to_be_bytes();
        let id = RunId::from_bytes([0, 0, 0, 0, high, low]);
        let some = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        let outside =
            SimProcess { cgroup: None, ended: None, ignores_term: false, stuck: false, gated: true, ours: false };
        let exec = Exec {
            argv: vec![],
            env: vec![],
            cwd: vec![],
            notify: None,
            log: "/sim/log".into(),
            input: None,
            kept: None,
        };
        let (main, client) = if detached {
            (None, None)
        } else {
            let mut world = self.world.borrow_mut();
            (Some(world.start(outside)), Some(world.start(SimProcess { gated: false, ..outside })))
        };
        let process = |pid: u32| ProcessId { pid, start_ticks: u64::from(pid) };
        let grace = Duration::from_millis(grace_ms);
        let spec = RunSpec {
            id,
            workflow: self.workflow.into(),
            executor: "local".into(),
            name: None,
            command: vec!["sim".into()],
            cwd: "/".into(),
            uid: self.uid,
            user: "me".into(),
            main: main.map(process),
            client: client.map(process),
            containment: self.containment,
            limits: Limits {
                max_running: None,
                queue_timeout: None,
                init_timeout: some(init_ms),
                max_runtime: some(max_ms),
                watch: Watch {
                    heartbeat_timeout: Some(self.heartbeat_timeout),
                    heartbeat_action: self.heartbeat_action,
                    ..self.watch
                },
                grace,
                readiness: self.readiness,
                resources: Resources::default(),
                isolate_pids: false,
                cleanup: guardian::model::Cleanup::default(),
                sandbox: guardian::model::Sandbox::default(),
                credentials: Vec::new(),
            },
            log: None,
        };
        self.driver.hold(id, if detached { Held::detached(exec) } else { Held::new(main, client) });
        let moved = self.world.borrow().now.mono;
        self.world.borrow_mut().samples.insert(id, STILL);
        let dry_run = self.watch.dry_run;
        let ends_escapees = self.watch.escapees == Action::Kill && !dry_run;
        self.runs.push(Known_ {
            id,
            main,
            client,
            grace,
            inode: None,
            idle: self.watch.idle_timeout,
            dry_run,
            ends_escapees,
            moved,
            beat: None,
            agent: self.watch.agent,
            progress: Progress::default(),
            most_repeats: 0,
            turned: moved,
            waited: moved,
        });
        let (reply, answers) = self.reply();
        self.driver.handle(Event::Launch { spec: Box::new(spec), reply, actor: me(), reason: String::new() });
        self.turn();
        let answer = answers.lock().unwrap().first().cloned();
        (id, answer)
    }

    fn reply(&mut self) -> (guardian::engine::ReplyTo, Answers) {
        let answers: Answers = Arc::default();
        let kept = answers.clone();
        (self.driver.expect_reply(Box::new(move |a| kept.lock().unwrap().push(a))), answers)
    }

    pub fn extend(&mut self, run: RunId, rule: Rule, by: Duration) -> Result<Answer, Error> {
        let (reply, answers) = self.reply();
        self.driver.handle(Event::Extend { run, rule, by, actor: me(), reply });
        answers.lock().unwrap().first().cloned().expect("answered at once")
    }

    pub fn kill(&mut self, run: RunId, mode: KillMode) -> Result<Answer, Error> {
        let (reply, answers) = self.reply();
        self.driver.handle(Event::Kill { run, mode, text: "because".into(), actor: me(), reply });
        self.turn();
        let answer = answers.lock().unwrap().first().cloned();
        self.asked.push(answers);
        answer.unwrap_or_else(|| Err(Error::internal("not answered yet")))
    }

    pub fn report(&mut self, run: RunId, status: ExitStatus) {
        let (reply, _) = self.reply();
        self.driver.handle(Event::Reported { run, status, reply });
        self.turn();
    }

    pub fn pass_ms(&mut self, ms: u64) {
        self.pass(Duration::from_millis(ms));
    }

    /// Lets time pass from deadline to deadline, as the loop of the instance does.
    pub fn pass(&mut self, d: Duration) {
        let end = self.world.borrow().now.mono + d;
        for _ in 0..100_000 {
            let now = self.world.borrow().now.mono;
            let next = self.driver.engine().next_deadline().unwrap_or(end).min(end).max(now);
            self.world.borrow_mut().pass(next.since(now));
            self.turn();
            if next >= end {
                return;
            }
        }
        panic!("the deadlines never rest");
    }

    /// One turn of the loop: notices of kernel and store, then the deadlines, until nothing is left to do.
    fn turn(&mut self) {
        for _ in 0..1000 {
            let now = self.world.borrow().now.mono;
            self.disk(|d| d.now = now);
            let notices = self.driver.kernel.wait(None).unwrap();
            let recorded = self.disk(|d| std::mem::take(&mut d.notices));
            let rest = notices.is_empty() && recorded.is_empty();
            notices.into_iter().for_each(|n| self.driver.notice(n));
            recorded.into_iter().for_each(|(ticket, ok)| self.driver.recorded(ticket, ok));
            self.driver.catch_up();
            self.driver.handle(Event::Tick);
            self.check();
            let rest = rest && self.disk(|d| d.notices.is_empty()) && self.driver.behind() != Some(Duration::ZERO);
            let rest = rest && self.world.borrow().is_quiet();
            if rest && self.driver.engine().next_deadline().is_none_or(|at| at > now) {
                return;
            }
        }
        panic!("the instance never rests");
    }

    fn disk<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.store.0.borrow_mut())
    }

    /// The instance dies; what was not committed is gone with it. The next one takes up what is there.
    fn crash(&mut self, rebooted: bool) {
        self.disk(|d| {
            if d.state != Some(Store::Well) {
                d.pending.clear();
            }
            d.notices.clear();
        });
        // With a store that takes nothing, an end that was told is told anew by the next instance, as it finds it.
        let committed = self
            .disk(|d| d.runs.iter().filter(|(_, r)| r.0.outcome.is_some()).map(|(id, _)| *id).collect::<BTreeSet<_>>());
        self.ends.retain(|id, _| committed.contains(id));
        let mut world = self.world.borrow_mut();
        world.forget_watches();
        self.asked.clear();
        let dying: Vec<u32> =
            world.processes.iter().filter(|(_, p)| rebooted || (p.gated && p.ours)).map(|(pid, _)| *pid).collect();
        dying.into_iter().for_each(|pid| world.end(pid, ExitStatus::Signaled(9)));
        world.processes.values_mut().for_each(|p| p.ours = false);
        if rebooted {
            world.boot += 1;
            world.cgroups.clear();
            self.bystanders.clear();
        }
        drop(world);
        // What had its turn goes on too, if it cannot be taken back.
        let runs = self.driver.engine().runs();
        let begun = runs.filter(|r| !matches!(r.state, State::Queued { .. } | State::Closing(_)));
        let begun: Vec<RunSpec> = begun.map(|r| r.spec.clone()).collect();
        self.published = Arc::new(Published::default());
        self.driver = driver(&self.world, &self.store, &self.published, self.concurrency.clone());
        let known = self.disk(|d| {
            let live = d.runs.values().filter_map(|(view, state)| Some((view.clone(), state.clone()?)));
            live.map(|(view, state)| Known { view, state }).collect::<Vec<_>>()
        });
        // What ran goes on: an end that was not on record yet has not been.
        self.running.clear();
        let on_record = known.iter().filter(|k| k.view.phase != Phase::Queued).map(|k| &k.view.spec);
        let ran: BTreeMap<RunId, String> =
            on_record.chain(&begun).map(|spec| (spec.id, spec.workflow.clone())).collect();
        ran.into_values().for_each(|workflow| *self.running.entry(workflow).or_default() += 1);
        let waiting: Vec<RunId> = (self.runs.iter().map(|known| known.id))
            .filter(|id| known.iter().any(|k| k.view.spec.id == *id && k.view.phase == Phase::Queued))
            .filter(|id| known.iter().any(|k| k.view.spec.id == *id && k.view.spec.client.is_none()))
            .collect();
        let mut kept = Kept(self.disk(|d| d.launches.clone()));
        // What waits is begun anew when it has its turn, in another cgroup than it may have had.
        let kernel = SimKernel(self.world.clone());
        for run in self.runs.iter_mut().filter(|run| kept.is_kept(&kernel, run.id)) {
            run.inode = None;
        }
        recover(&mut self.driver, known, &mut kept);
        // What cannot be put on record is not started, and says so.
        let is_well = self.disk(|d| matches!(d.state, None | Some(Store::Well)));
        for id in waiting.into_iter().filter(|_| is_well) {
            let phase = self.driver.engine().run(id).map(Run::phase);
            assert!(phase.is_some_and(|phase| phase != Phase::Finished), "a queued run is lost: {id} is {phase:?}");
        }
    }

    fn check(&mut self) {
        for known in &mut self.runs {
            let run = self.driver.engine().run(known.id);
            known.main = run.and_then(|r| r.spec.main).map(|m| m.pid).or(known.main);
            known.inode = self
                .driver
                .engine()
                .run(known.id)
                .and_then(|r| r.container.as_ref()?.cgroup())
                .map(|c| c.inode)
                .or(known.inode);
            let live = self.driver.engine().run(known.id).is_some_and(|r| matches!(r.state, State::Live { .. }));
            assert!(!live || !self.world.borrow().has_noticed_scattering(known.id), "it may scatter, and lives on");
            if let Ending::Finished(view) = self.published.ending(known.id) {
                let old = self.ends.entry(known.id).or_insert_with(|| (*view).clone());
                assert_eq!(old.outcome, view.outcome, "one terminal outcome");
                assert!(self.driver.engine().run(known.id).is_none());
                // Finished only when empty: nothing lives in the cgroup that was the run's.
                if let Some(inode) = known.inode {
                    assert_eq!(self.world.borrow().living(inode).count(), 0, "finished, and something lives");
                }
            }
        }
        self.check_concurrency();
        self.check_heartbeats();
        self.check_agents();
        self.check_acts();
        for bystander in &self.bystanders {
            assert!(self.world.borrow().processes[bystander].ended.is_none(), "a foreign process was ended");
        }
        self.disk(|d| {
            assert!(d.intents.values().all(|(_, answers)| answers.len() == 1), "a second kill changes nothing");
            let by_rule = |answers: &[KillAnswer]| answers.iter().any(|a| matches!(a.reason, KillReason::Limit { .. }));
            let judged = d.intents.iter().filter(|(_, (_, answers))| by_rule(answers));
            for (id, (at, answers)) in judged {
                let known = self.runs.iter().find(|k| k.id == *id).expect("a run that was launched");
                assert!(!known.dry_run, "a rule has ended a dry run: {answers:?}");
                if let KillReason::Limit { rule: Rule::IdleTimeout, allowed, .. } = answers[0].reason {
                    assert!(
                        at.since(known.moved) >= allowed,
                        "it moved {:?} before it was called idle",
                        at.since(known.moved)
                    );
                }
            }
            assert!(d.receipts.values().all(|n| *n == 1), "one receipt");
            let is_over = |id: &RunId| d.runs.get(id).is_some_and(|(view, _)| view.outcome.is_some());
            let left = d.launches.keys().find(|id| is_over(id));
            assert!(left.is_none(), "what {left:?} was to execute is kept, and it is over");
        });
    }

    /// Who is ended for a heartbeat that did not come has sent one, and then none for as long as it was given; and nobody is
    /// where that is not what the rule does.
    fn check_heartbeats(&self) {
        let d = self.store.0.borrow();
        for (id, (at, answers)) in &d.intents {
            for answer in answers {
                if let KillReason::Limit { rule: Rule::HeartbeatTimeout, .. } = answer.reason {
                    let known = self.runs.iter().find(|k| k.id == *id).expect("a run that was launched");
                    let beat = known.beat.expect("it has sent one");
                    assert!(at.since(beat) >= self.shortest_window, "killed {:?} after a heartbeat", at.since(beat));
                    let idle = known.idle.is_some_and(|idle| at.since(known.moved) >= idle / 3 * 2);
                    assert!(
                        self.heartbeat_action == Action::Kill || self.heartbeat_action == Action::KillIfIdle && idle
                    );
                }
            }
        }
    }

    /// Who is ended by a rule for agents has reported what that takes, and where that is what the rule does.
    fn check_agents(&self) {
        let d = self.store.0.borrow();
        for (id, (at, answers)) in &d.intents {
            for answer in answers {
                let KillReason::Limit { rule, allowed, seen } = &answer.reason else { continue };
                let known = self.runs.iter().find(|k| k.id == *id).expect("a run that was launched");
                let (agent, said) = (known.agent, &known.progress);
                let (action, is_so) = match rule {
                    Rule::TurnTimeout => (agent.turn_action, at.since(known.turned) >= *allowed),
                    Rule::PermissionTimeout => (agent.permission_action, at.since(known.waited) >= *allowed),
                    Rule::Loop => (agent.loop_action, agent.loop_max.is_some_and(|n| known.most_repeats >= n)),
                    Rule::MaxTurns => (agent.max_turns_action, agent.max_turns.is_some_and(|n| said.turns > n)),
                    Rule::MaxTokens => (agent.max_tokens_action, agent.max_tokens.is_some_and(|n| said.tokens >= n)),
                    Rule::MaxCost => (
                        agent.max_cost_action,
                        agent.max_cost_micro_usd.is_some_and(|n| said.cost_micro_usd >= Some(n)),
                    ),
                    _ => continue,
                };
                assert!(action == Action::Kill && is_so && !seen.is_empty(), "{answer:?}, and it said {said:?}");
            }
        }
    }

    fn check_acts(&mut self) {
        let acts = self.world.borrow().acts.clone();
        for (n, act) in acts.iter().enumerate().skip(self.checked_acts) {
            let known = self.runs.iter().find(|k| k.id == act.run).expect("a run that was launched");
            if act.kind == ActKind::Remove {
                continue;
            }
            if let ActKind::Escapee(pid) = act.kind {
                assert_eq!(self.world.borrow().escaped.get(&pid), Some(&act.run), "no escapee of this run");
                assert!(known.ends_escapees, "an escapee was signalled that was to be named only");
                let told = |e: &AuditEvent| e.run == Some(act.run) && e.kind == EventKind::EscapeeFound;
                let on_record =
                    self.disk(|d| d.audit.iter().any(|(at, e)| *at <= act.at && told(e)) || d.journal.iter().any(told));
                assert!(on_record, "an escapee was signalled without a recorded intent");
                continue;
            }
            let made = self.world.borrow().made.get(&act.inode).copied();
            assert_eq!(made, Some(act.run), "no action on a cgroup that is not the run's");
            // No signal without a recorded intent, or a store that had half a second for it.
            let (recorded, submitted) = self.disk(|d| {
                (
                    d.intents.get(&act.run).is_some_and(|(at, _)| *at <= act.at),
                    d.submitted_intents.get(&act.run).copied(),
                )
            });
            let waited = submitted.is_some_and(|at| act.at.since(at) >= Duration::from_millis(500));
            let refused = !matches!(self.disk(|d| d.state), None | Some(Store::Well | Store::Stuck));
            assert!(
                recorded || waited || refused || self.stuck_intents.contains(&act.run),
                "a signal without an intent"
            );
            if !recorded {
                self.stuck_intents.insert(act.run);
            }
            if act.kind == ActKind::Kill {
                let term = acts[..n].iter().rfind(|a| a.run == act.run && a.kind == ActKind::Terminate);
                let honoured = term.is_some_and(|t| act.at.since(t.at) >= known.grace);
                assert!(honoured || self.forced(act.run), "the grace period was not honoured");
            }
        }
        self.checked_acts = acts.len();
    }

    fn forced(&self, run: RunId) -> bool {
        let asked = |answer: &KillAnswer| answer.mode == KillMode::Force;
        let d = self.store.0.borrow();
        let escalated = |e: &AuditEvent| e.run == Some(run) && e.kind == EventKind::KillEscalated;
        let pending = d.pending.iter().flat_map(|b| &b.writes).any(|w| match w {
            Write::Audit(event) => escalated(event),
            Write::KillIntent(answer) => answer.run == run && asked(answer),
            _ => false,
        });
        pending
            || d.intents.get(&run).is_some_and(|(_, a)| a.iter().any(asked))
            || d.audit.iter().any(|(_, e)| escalated(e))
            || self.published.run(run).is_some_and(|v| v.receipt.as_ref().is_some_and(|r| r.mode == KillMode::Force))
            || self.force_in_engine(run)
    }

    fn force_in_engine(&self, run: RunId) -> bool {
        use guardian::engine::State::{Closing, Emptied, Killing, Stopping};
        self.driver.engine().run(run).is_some_and(|r| match &r.state {
            Closing(closing) => closing.receipt.as_ref().is_some_and(|r| r.mode == KillMode::Force),
            Stopping(kill, _) | Killing(kill, _) | Emptied(Some(kill), _) => kill.answer.mode == KillMode::Force,
            _ => false,
        })
    }

    /// Everything becomes well, and every run is killed: all of them must finish.
    pub fn settle(&mut self) {
        self.apply(Op::Store(Store::Well));
        (0..self.runs.len()).for_each(|i| self.unstick(i));
        for id in self.runs.iter().map(|k| k.id).collect::<Vec<_>>() {
            let _ = self.kill(id, KillMode::Graceful);
        }
        (0..200).for_each(|_| self.pass(Duration::from_secs(1)));
        assert_eq!(self.driver.engine().runs().count(), 0, "every run is accounted for");
        let finished =
            |id: RunId| self.disk(|d| d.runs.get(&id).map(|(view, state)| (view.outcome.is_some(), state.is_none())));
        for known in &self.runs {
            // A launch that was refused before it was on record left nothing; every other has its one outcome there.
            assert!(matches!(finished(known.id), None | Some((true, true))), "{:?} on record", finished(known.id));
        }
        let finishes = |id| {
            self.disk(|d| d.audit.iter().filter(|(_, e)| e.run == Some(id) && e.kind == EventKind::RunFinished).count())
        };
        assert!(self.runs.iter().all(|k| finishes(k.id) <= 1), "one terminal outcome in the audit");
        assert!(self.asked.iter().all(|a| a.lock().unwrap().len() == 1), "every request is answered, once");
        let world = self.world.borrow();
        // Refused for five seconds, a removal is given up, and the run says so.
        let given_up = |id: RunId| {
            self.disk(|d| d.audit.iter().any(|(_, e)| e.run == Some(id) && e.kind == EventKind::ForeignCgroup))
        };
        for known in self.runs.iter().filter(|k| k.inode.is_some() && !given_up(k.id)) {
            assert_ne!(world.cgroups.get(&known.id).copied(), known.inode, "the cgroup of a finished run is removed");
        }
        assert!(self.runs.iter().filter_map(|k| k.inode).all(|inode| world.living(inode).count() == 0), "no orphans");
    }

    pub fn phase(&self, run: RunId) -> Option<Phase> {
        self.published.run(run).map(|v| v.phase)
    }

    pub fn finished(&self, run: RunId) -> Option<RunView> {
        self.published.run(run).filter(|v| v.outcome.is_some()).map(|v| (*v).clone())
    }

    pub fn reasons(&self, run: RunId) -> Vec<HealthReason> {
        self.published.run(run).map(|v| v.reasons.clone()).unwrap_or_default()
    }

    /// The kinds of events on record about a run, in order.
    pub fn audit_of(&self, run: RunId) -> Vec<&'static str> {
        let of_run =
            |d: &mut Disk| d.audit.iter().filter(|(_, e)| e.run == Some(run)).map(|(_, e)| e.kind.as_str()).collect();
        self.disk(of_run)
    }

    pub fn audited(&self, run: RunId, kind: EventKind) -> usize {
        self.audit_of(run).iter().filter(|name| **name == kind.as_str()).count()
    }

    /// How long it takes to look at a run.
    pub fn evidence_takes(&mut self, ms: u64) {
        self.world.borrow_mut().evidence_takes = Duration::from_millis(ms);
    }

    pub fn now(&self) -> Mono {
        self.world.borrow().now.mono
    }

    /// When something was first done to a run.
    pub fn first_act(&self, run: RunId) -> Option<Mono> {
        self.world.borrow().acts.iter().find(|a| a.run == run).map(|a| a.at)
    }

    pub fn acts(&self, run: RunId) -> usize {
        self.world.borrow().acts.iter().filter(|a| a.run == run).count()
    }

    pub fn journalled(&self) -> usize {
        self.disk(|d| d.journal.len())
    }
}
