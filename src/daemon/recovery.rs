//! Taking up what an earlier instance left: runs on record, and directories in our subtree that nobody knows.
//!
//! Finds out what is there and whether it is what it was (boot id, inode, start time); the engine decides what follows.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::{Event, Found, Run};
use crate::failpoint;
use crate::kernel::{Kernel, KernelError, Role};
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

/// Takes up every run. `rebuild` makes a run of a directory that carries our mark and has no record, or none if the
/// record says that the run is over.
pub fn recover<K: Kernel, R: Recorder>(
    driver: &mut Driver<K, R>,
    known: Vec<Known>,
    rebuild: &mut dyn FnMut(&mut K, RunId) -> Option<Run>,
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
        let (run, same_boot) = match serde_json::from_str::<Saved>(&state) {
            Ok(saved) => (saved.run, saved.boot == driver.kernel.boot_id()),
            Err(_) => (Run::unrecorded(view.spec, driver.kernel.now()), true),
        };
        adopt(driver, run, same_boot, patience);
        let _ = failpoint::hit("recovery.adopted");
        if let Some(held) = driver.held(id) {
            // The counters are read anew, and this one is ours.
            held.usage.update(Usage { memory_peak_bytes: peak, ..Usage::default() });
        }
        result.adopted.push(id);
    }
    for (id, ()) in unknown {
        adopt_directory(driver, id, rebuild, patience, &mut result);
    }
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
    rebuild: &mut dyn FnMut(&mut K, RunId) -> Option<Run>,
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
        Ok(true) => match rebuild(&mut driver.kernel, id) {
            Some(run) => {
                adopt(driver, run, true, patience);
                result.adopted.push(id);
            }
            None => result.left_alone.push(format!("{id} is over, and something is in its container now")),
        },
        Err(e) => result.left_alone.push(e.to_string()),
    }
}
