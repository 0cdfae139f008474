//! What the engine publishes: a view of every live run and of the ones that finished lately, and the instance's own
//! state. The engine writes, the bus reads; nobody waits for the other longer than it takes to copy a pointer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use tokio::sync::oneshot;

use crate::model::{Growth, Health, Mono, Now, OpenMinute, Queued, RunId, RunView, Usage, UsageMinute, UsageSample};

/// How many finished runs are kept at hand for waiters; older ones are in the store.
const RECENT: usize = 256;

/// The instance's own state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceView {
    /// Critical while the audit cannot be written.
    pub health: Health,
    /// Why it is not healthy.
    pub reasons: Vec<String>,
    /// Kills begun since this instance started.
    pub kills_total: u64,
    /// Runs accepted since this instance started.
    pub runs_total: u64,
    /// Where the cgroups of runs are made; empty where there are none.
    pub control_group: String,
}

/// What a run uses, written at every sample without a lock and without copying the run's view.
#[derive(Debug)]
pub struct UsageCell {
    cpu_usec: AtomicU64,
    memory_bytes: AtomicU64,
    memory_peak_bytes: AtomicU64,
    tasks: AtomicU64,
    io_read_bytes: AtomicU64,
    io_write_bytes: AtomicU64,
    activity_bytes: AtomicU64,
    memory_pressure: AtomicU64,
    sampled: Mutex<Sampled>,
}

/// The last sample, by how much it was more than the one before, and the minute that is under way.
#[derive(Debug, Default)]
struct Sampled {
    last: Option<(Mono, Usage)>,
    growth: Option<Growth>,
    minute: OpenMinute,
}

/// Stands for "the kernel does not tell" in a cell.
const UNKNOWN: u64 = u64::MAX;

impl Default for UsageCell {
    fn default() -> Self {
        let unknown = || AtomicU64::new(UNKNOWN);
        Self {
            cpu_usec: unknown(),
            memory_bytes: unknown(),
            memory_peak_bytes: unknown(),
            tasks: unknown(),
            io_read_bytes: unknown(),
            io_write_bytes: unknown(),
            activity_bytes: unknown(),
            memory_pressure: unknown(),
            sampled: Mutex::default(),
        }
    }
}

impl UsageCell {
    /// Takes what was read; what was not read stays as it was.
    pub fn update(&self, usage: Usage) {
        let cells = [
            (&self.cpu_usec, usage.cpu_usec),
            (&self.memory_bytes, usage.memory_bytes),
            (&self.tasks, usage.tasks),
            (&self.io_read_bytes, usage.io_read_bytes),
            (&self.io_write_bytes, usage.io_write_bytes),
            (&self.activity_bytes, usage.activity_bytes),
        ];
        for (cell, value) in cells {
            if let Some(value) = value {
                cell.store(value, Ordering::Relaxed);
            }
        }
        // The engine's thread alone writes.
        if let Some(most) = known(&self.memory_peak_bytes).max(usage.memory_bytes).max(usage.memory_peak_bytes) {
            self.memory_peak_bytes.store(most, Ordering::Relaxed);
        }
    }

    /// Takes what was read of how its processes wait for memory.
    pub fn pressed(&self, percent: Option<u32>) {
        if let Some(percent) = percent {
            self.memory_pressure.store(percent.into(), Ordering::Relaxed);
        }
    }

    /// Takes a sample of a run, which is one of many at about the same distance; gives a minute that is over by now.
    pub fn sampled(&self, run: RunId, usage: Usage, now: Now) -> Option<UsageMinute> {
        self.update(usage);
        // With what was read since the last sample, and is not in every one.
        let usage = self.get();
        let mut sampled = lock(&self.sampled);
        let over = if sampled.minute.is_over(now.wall) { sampled.minute.close(run) } else { None };
        sampled.minute.add(now.wall, &usage, self.pressure());
        if let Some((at, before)) = sampled.last.replace((now.mono, usage)) {
            let over_usec = u64::try_from(now.mono.since(at).as_micros()).unwrap_or(u64::MAX);
            let grew = |after: Option<u64>, before: Option<u64>| after?.checked_sub(before?);
            let memory = |bytes: Option<u64>| i64::try_from(bytes?).ok();
            let bytes = |u: Usage| Some(u.io_read_bytes?.saturating_add(u.io_write_bytes?));
            sampled.growth = Some(Growth {
                over_usec,
                cpu_usec: grew(usage.cpu_usec, before.cpu_usec),
                memory_bytes: memory(usage.memory_bytes).and_then(|m| Some(m - memory(before.memory_bytes)?)),
                io_bytes: grew(bytes(usage), bytes(before)),
                activity_bytes: grew(usage.activity_bytes, before.activity_bytes),
            });
        }
        over
    }

    /// Gives the minute that is under way, as far as it has come: the run is over, or the instance stops.
    pub fn close_minute(&self, run: RunId, now: Now) -> Option<UsageMinute> {
        let mut sampled = lock(&self.sampled);
        // Of a run that was never sampled, what it used in all is on its record.
        sampled.last?;
        sampled.minute.add(now.wall, &self.get(), self.pressure());
        sampled.minute.close(run)
    }

    /// What was read last of that, in percent.
    pub fn pressure(&self) -> Option<u32> {
        known(&self.memory_pressure).and_then(|percent| u32::try_from(percent).ok())
    }

    /// By how much the last sample was more than the one before.
    pub fn growth(&self) -> Option<Growth> {
        lock(&self.sampled).growth
    }

    /// What was last read.
    pub fn get(&self) -> Usage {
        Usage {
            cpu_usec: known(&self.cpu_usec),
            memory_bytes: known(&self.memory_bytes),
            memory_peak_bytes: known(&self.memory_peak_bytes),
            tasks: known(&self.tasks),
            io_read_bytes: known(&self.io_read_bytes),
            io_write_bytes: known(&self.io_write_bytes),
            activity_bytes: known(&self.activity_bytes),
        }
    }
}

fn known(cell: &AtomicU64) -> Option<u64> {
    Some(cell.load(Ordering::Relaxed)).filter(|value| *value != UNKNOWN)
}

/// A live run: its view, and its usage beside it.
#[derive(Debug, Clone)]
pub struct Live {
    /// The run when it last changed; without usage.
    pub view: Arc<RunView>,
    /// What it uses.
    pub usage: Arc<UsageCell>,
}

/// The published state.
#[derive(Default)]
pub struct Published {
    live: RwLock<BTreeMap<RunId, Live>>,
    recent: RwLock<VecDeque<Arc<RunView>>>,
    waiting: Mutex<HashMap<RunId, Vec<oneshot::Sender<Arc<RunView>>>>>,
    instance: RwLock<InstanceView>,
    on_change: OnceLock<ChangeHook>,
}

/// What has changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A run began, or something about it is another than before.
    Run(Arc<RunView>),
    /// A run is over.
    Finished(Arc<RunView>),
    /// The instance's own state.
    Instance,
}

/// Is told of every change, on the engine's thread: it must not block.
pub type ChangeHook = Box<dyn Fn(Change) + Send + Sync>;

/// What is known of a run's end.
pub enum Ending {
    /// It is over.
    Finished(Arc<RunView>),
    /// It is live; this will tell.
    Pending(oneshot::Receiver<Arc<RunView>>),
    /// It is neither live nor lately finished: ask the store.
    Unknown,
}

impl Published {
    /// Every live run, by id.
    pub fn live(&self) -> Vec<Live> {
        let live = read(&self.live);
        let lines = lines(&live);
        let placed = |one: &Live| Live { view: placed(&lines, &one.view), usage: one.usage.clone() };
        live.values().map(placed).collect()
    }

    /// The runs that finished lately: of the last of them the store may not know yet.
    pub fn recent(&self) -> Vec<Arc<RunView>> {
        read(&self.recent).iter().cloned().collect()
    }

    /// The number of live runs.
    pub fn active(&self) -> usize {
        read(&self.live).len()
    }

    /// A run that is live or finished lately, with its usage.
    pub fn run(&self, id: RunId) -> Option<Arc<RunView>> {
        let live = {
            let all = read(&self.live);
            all.get(&id).map(|one| match &one.view.queued {
                Some(_) => Live { view: placed(&lines(&all), &one.view), usage: one.usage.clone() },
                None => one.clone(),
            })
        };
        live.map(|l| Arc::new(RunView { usage: l.usage.get(), ..(*l.view).clone() }))
            .or_else(|| read(&self.recent).iter().find(|v| v.spec.id == id).cloned())
    }

    /// By how much a live run's last sample was more than the one before.
    pub fn growth(&self, id: RunId) -> Option<Growth> {
        read(&self.live).get(&id).and_then(|l| l.usage.growth())
    }

    /// A live run's samples of the minute that is under way.
    pub fn latest_samples(&self, id: RunId) -> Vec<UsageSample> {
        let live = read(&self.live).get(&id).map(|live| live.usage.clone());
        live.map(|usage| lock(&usage.sampled).minute.readings()).unwrap_or_default()
    }

    /// The end of a run, now or later.
    pub fn ending(&self, id: RunId) -> Ending {
        // The lock on the waiters is held over the look at the runs: finish() takes it before it moves a run.
        let mut waiting = lock(&self.waiting);
        match self.run(id) {
            None => Ending::Unknown,
            Some(view) if view.outcome.is_some() => Ending::Finished(view),
            Some(_) => {
                let (sender, receiver) = oneshot::channel();
                let senders = waiting.entry(id).or_default();
                senders.retain(|s: &oneshot::Sender<_>| !s.is_closed());
                senders.push(sender);
                Ending::Pending(receiver)
            }
        }
    }

    /// Sets who is told of every change; the first one stays.
    pub fn on_change(&self, hook: ChangeHook) {
        let _ = self.on_change.set(hook);
    }

    fn changed(&self, change: Change) {
        if let Some(hook) = self.on_change.get() {
            hook(change);
        }
    }

    /// The instance's own state.
    pub fn instance(&self) -> InstanceView {
        read(&self.instance).clone()
    }

    /// Publishes a live run.
    pub fn put(&self, view: RunView, usage: Arc<UsageCell>) {
        let view = Arc::new(view);
        write(&self.live).insert(view.spec.id, Live { view: view.clone(), usage });
        self.changed(Change::Run(view));
    }

    /// Publishes the end of a run, and tells those who wait for it.
    pub fn finish(&self, view: RunView) {
        let id = view.spec.id;
        let view = Arc::new(view);
        let mut waiting = lock(&self.waiting);
        {
            let mut recent = write(&self.recent);
            recent.push_back(view.clone());
            if recent.len() > RECENT {
                recent.pop_front();
            }
        }
        write(&self.live).remove(&id);
        self.changed(Change::Finished(view.clone()));
        for sender in waiting.remove(&id).unwrap_or_default() {
            // A waiter that gave up is no concern of ours.
            let _ = sender.send(view.clone());
        }
    }

    /// Puts what was found out of a finished run in the place of what was published, if that is at hand still.
    pub fn amend(&self, view: RunView) {
        let mut recent = write(&self.recent);
        if let Some(known) = recent.iter_mut().find(|v| v.spec.id == view.spec.id) {
            *known = Arc::new(RunView { usage: known.usage, ..view });
        }
    }

    /// Publishes the instance's own state.
    pub fn put_instance(&self, view: InstanceView) {
        *write(&self.instance) = view;
        self.changed(Change::Instance);
    }
}

/// The places of the runs that are queued, in order, by workflow.
fn lines(live: &BTreeMap<RunId, Live>) -> HashMap<&str, Vec<u64>> {
    let mut lines: HashMap<&str, Vec<u64>> = HashMap::new();
    for view in live.values().map(|one| &one.view) {
        if let Some(queued) = &view.queued {
            lines.entry(&view.spec.workflow).or_default().push(queued.place);
        }
    }
    lines.values_mut().for_each(|places| places.sort_unstable());
    lines
}

/// The view with its place among the others.
fn placed(lines: &HashMap<&str, Vec<u64>>, view: &Arc<RunView>) -> Arc<RunView> {
    let (Some(queued), Some(line)) = (&view.queued, lines.get(view.spec.workflow.as_str())) else {
        return view.clone();
    };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let position = count(line.partition_point(|place| *place <= queued.place));
    let queued = Some(Queued { position, of: count(line.len()), ..queued.clone() });
    Arc::new(RunView { queued, ..(**view).clone() })
}

// A panic while a lock was held cannot leave these maps half-changed in a way that matters: they are views.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
