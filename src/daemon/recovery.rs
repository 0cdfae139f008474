//! Taking up what an earlier instance left: runs on record, and directories in our subtree that nobody knows.
//!
//! Finds out what is there and whether it is what it was (boot id, inode, start time); the engine decides what follows.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::{Event, Found, Run};
use crate::failpoint;
use crate::kernel::{Exec, Kernel, KernelError, Role};
use crate::model::{ProcessId, RunId, RunView, Usage};

use super::driver::{Driver, Held, Recorder};

/// How long all recovery together waits for a kernel that cannot do what it is asked, and how long each time.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);

/// A run on record as live.
pub struct Known {
    /// The view that the earlier instance recorded.
    pub view: RunView,
    /// The engine's state at that moment.
    pub state: String,
}

/// What is asked for that is not the kernel's to tell.
pub trait Memory<K> {
    /// Makes a run of a directory that carries our mark and has no record, or none if the record says that the run is over.
    fn rebuild(&mut self, kernel: &mut K, run: RunId) -> Option<Run>;
    /// What a run is to execute that is queued, or why that is not known.
    fn launch(&mut self, kernel: &mut K, run: &Run) -> Result<Exec, String>;
    /// Whether what a run is to execute is kept whole: nothing of it was executed.
    fn is_kept(&self, kernel: &K, run: RunId) -> bool;
}

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Runs taken up, or closed because nothing is left of them.
    pub adopted: Vec<RunId>,
    /// Directories in our subtree that are empty and of runs that are over: removed, or about to be.
    pub removed: Vec<RunId>,
    /// What could not be understood or proved to be ours, in sentences: left alone.
    pub left_alone: Vec<String>,
}

/// The engine's state of a run as it is kept: with the boot that its pids, inodes and monotonic times belong to.
#[derive(Debug, serde::Deserialize)]
pub struct Saved {
    boot: String,
    run: Run,
}

impl Saved {
    /// The text that is kept; `run` is JSON already.
    pub fn text(boot: &str, run: &str) -> String {
        format!("{{\"boot\":{},\"run\":{run}}}", serde_json::Value::from(boot))
    }
}

/// Takes up every run.
pub fn recover<K: Kernel, R: Recorder>(
    driver: &mut Driver<K, R>,
    known: Vec<Known>,
    memory: &mut dyn Memory<K>,
) -> Recovered {
    let mut result = Recovered::default();
    if failpoint::without("guard.recovery").is_some() {
        return result;
    }
    let _ = failpoint::hit("recovery.begun");
    let patience = Instant::now() + PATIENCE;
    let directories = persistently(patience, || driver.kernel.list()).unwrap_or_else(|e| {
        result.left_alone.push(format!("the cgroups of earlier runs could not be listed: {e}"));
        Vec::new()
    });
    let mut unknown: BTreeMap<RunId, ()> = directories.into_iter().map(|id| (id, ())).collect();
    for Known { view, state } in known {
        let id = view.spec.id;
        unknown.remove(&id);
        // Until more is known: who asks or waits now must not take it for a run that nobody watches.
        driver.publish_as_recorded(view.clone());
        let peak = view.usage.memory_peak_bytes;
        // A record that this version cannot read still says that the container is ours.
        let (mut run, same_boot) = match serde_json::from_str::<Saved>(&state) {
            Ok(saved) => (saved.run, saved.boot == driver.kernel.boot_id()),
            Err(_) => (Run::unrecorded(view.spec, driver.kernel.now()), true),
        };
        // After a power cut what was emptied may be whole again, and tells nothing.
        let may_be_unopened = same_boot && run.may_be_unopened();
        let is_unopened = may_be_unopened && is_unopened(driver, &run, memory, patience);
        run.executing |= may_be_unopened && !is_unopened;
        match run.is_waiting() || is_unopened {
            true => queue(driver, run, memory, patience),
            false => adopt(driver, run, same_boot, patience),
        }
        let _ = failpoint::hit("recovery.adopted");
        if let Some(held) = driver.held(id) {
            // The counters are read anew, and this one is ours.
            held.usage.update(Usage { memory_peak_bytes: peak, ..Usage::default() });
        }
        result.adopted.push(id);
    }
    for (id, ()) in unknown {
        adopt_directory(driver, id, memory, patience, &mut result);
    }
    driver.handle(Event::Recovered);
    result
}

/// Asks the kernel until it answers. What it cannot do at the moment (no descriptor, no memory) is no reason to give up runs
/// that may be alive.
fn persistently<T>(until: Instant, mut ask: impl FnMut() -> Result<T, KernelError>) -> Result<T, KernelError> {
    loop {
        match ask() {
            Err(KernelError::Io { .. }) if Instant::now() < until => thread::sleep(AGAIN),
            answer => return answer,
        }
    }
}

/// Whether nothing of a run was executed whose gate may have been opened. What is behind the gate goes when that is closed, or
/// empties what is kept of its launch: until one of these is seen, nobody can tell.
fn is_unopened<K: Kernel, R: Recorder>(
    driver: &mut Driver<K, R>,
    run: &Run,
    memory: &mut dyn Memory<K>,
    patience: Instant,
) -> bool {
    let id = run.spec.id;
    loop {
        // First: what is gone has emptied it before, if ever.
        let is_there = match driver.kernel.reopen(id, run.container.as_ref()) {
            Ok(container) => driver.kernel.populated(&container).unwrap_or(false),
            Err(_) => false,
        };
        let is_kept = memory.is_kept(&driver.kernel, id);
        // What hangs there is ended before the run is queued, and looked at once more.
        if !is_there || !is_kept || Instant::now() >= patience {
            return is_kept;
        }
        thread::sleep(AGAIN);
    }
}

/// Queues a run again. It may have had its turn just when the earlier instance died: then a process is behind a gate that
/// nobody opens any more, and is ended first.
fn queue<K: Kernel, R: Recorder>(
    driver: &mut Driver<K, R>,
    mut run: Run,
    memory: &mut dyn Memory<K>,
    patience: Instant,
) {
    let id = run.spec.id;
    let container = match persistently(patience, || driver.kernel.reopen(id, run.container.as_ref())) {
        Ok(container) => Some(container),
        Err(KernelError::Gone { .. }) => None,
        Err(e) => return driver.handle(Event::Adopt { run: Box::new(run), found: Found::Foreign(e.to_string()) }),
    };
    if let Some(container) = container {
        while !cleared(&mut driver.kernel, &container) {
            if Instant::now() >= patience {
                if matches!(driver.kernel.populated(&container), Ok(false)) {
                    // Whoever makes the next one finds out whether it is in the way.
                    break;
                }
                let why = "it had its turn when the instance stopped, and what was made for it cannot be removed";
                return driver.handle(Event::Adopt { run: Box::new(run), found: Found::Forgotten(why.to_owned()) });
            }
            thread::sleep(AGAIN);
        }
    }
    if run.may_be_unopened() && !memory.is_kept(&driver.kernel, id) {
        // It was executed after all, before it was ended.
        run.executing = true;
        return adopt(driver, run, true, patience);
    }
    let found = match memory.launch(&mut driver.kernel, &run) {
        Ok(exec) => {
            driver.hold(id, Held { is_kept: true, ..Held::detached(exec) });
            Found::Waiting
        }
        Err(why) => Found::Forgotten(format!("it was queued, and nothing of it was executed: {why}")),
    };
    driver.handle(Event::Adopt { run: Box::new(run), found });
}

/// Ends what is in a container of which nothing was executed, and removes it. False if that takes longer.
fn cleared<K: Kernel>(kernel: &mut K, container: &K::Container) -> bool {
    match kernel.populated(container) {
        Ok(false) => matches!(kernel.remove(container), Ok(()) | Err(KernelError::Gone { .. })),
        Ok(true) => {
            let _ = kernel.kill(container);
            false
        }
        Err(KernelError::Gone { .. }) => true,
        Err(_) => false,
    }
}

fn adopt<K: Kernel, R: Recorder>(driver: &mut Driver<K, R>, run: Run, same_boot: bool, patience: Instant) {
    let id = run.spec.id;
    if !same_boot {
        return driver.handle(Event::Adopt { run: Box::new(run), found: Found::Rebooted });
    }
    let container = match persistently(patience, || driver.kernel.reopen(id, run.container.as_ref())) {
        Ok(container) => container,
        Err(KernelError::Gone { .. }) => {
            return driver.handle(Event::Adopt { run: Box::new(run), found: Found::Gone });
        }
        Err(e) => return driver.handle(Event::Adopt { run: Box::new(run), found: Found::Foreign(e.to_string()) }),
    };
    let Some(identity) = driver.kernel.identity(&container) else {
        return driver.handle(Event::Adopt { run: Box::new(run), found: Found::Gone });
    };
    let open = |driver: &mut Driver<K, R>, id: Option<ProcessId>| id.and_then(|id| driver.kernel.open_process(id).ok());
    let main = open(driver, run.spec.main);
    let client = open(driver, run.spec.client);
    let found = Found::There {
        container: identity,
        main_alive: main.is_some(),
        client_alive: client.is_some() || run.spec.client.is_none(),
    };
    watch(driver, id, &container, main.as_ref(), client.as_ref());
    driver.kernel.listen(id, run.spec.uid);
    driver.hold(id, Held { container: Some(container), ..Held::new(main, client) });
    driver.handle(Event::Adopt { run: Box::new(run), found });
}

/// Watches what was opened. What cannot be watched is looked at by the deadlines of the run.
fn watch<K: Kernel, R: Recorder>(
    driver: &mut Driver<K, R>,
    id: RunId,
    container: &K::Container,
    main: Option<&K::Process>,
    client: Option<&K::Process>,
) {
    let _ = driver.kernel.watch_container(id, container);
    for (role, process) in [(Role::Main, main), (Role::Client, client)] {
        if let Some(process) = process {
            let _ = driver.kernel.watch_process(id, role, process);
        }
    }
}

fn adopt_directory<K: Kernel, R: Recorder>(
    driver: &mut Driver<K, R>,
    id: RunId,
    memory: &mut dyn Memory<K>,
    patience: Instant,
    result: &mut Recovered,
) {
    // Without a known inode, the mark on the directory decides whether it is ours.
    let container = match persistently(patience, || driver.kernel.reopen(id, None)) {
        Ok(container) => container,
        Err(KernelError::Gone { .. }) => return,
        Err(e) => return result.left_alone.push(e.to_string()),
    };
    match driver.kernel.populated(&container) {
        Ok(false) => {
            driver.discard(container);
            result.removed.push(id);
        }
        Ok(true) => match memory.rebuild(&mut driver.kernel, id) {
            Some(run) => {
                adopt(driver, run, true, patience);
                result.adopted.push(id);
            }
            None => result.left_alone.push(format!("{id} is over, and something is in its container now")),
        },
        Err(e) => result.left_alone.push(e.to_string()),
    }
}
