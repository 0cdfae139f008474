//! A run in a transient scope: the backend `systemd`. Once the scope has the process it is a cgroup as any other, but for
//! its end, which is systemd's.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use super::HostProcess;
use super::cgroup::HostCgroup;
use crate::kernel::mount::Cgroup2Mount;
use crate::kernel::{KernelError, process};
use crate::launch::systemd::{Manager, Scope, ScopeRequest};
use crate::model::{RunId, RunSpec};

/// How often an empty scope is found still there before systemd is asked to give it up. It does so by itself within
/// milliseconds, unless it missed the moment.
const PATIENCE: u32 = 6;

/// How often it is found so before it is left to systemd, which removes it when it can: it may be stopped, and the run is
/// over all the same. Together not quite a second.
const LEFT: u32 = PATIENCE + 8;

/// The runs whose scopes have been started, or could not be.
pub(super) type Ready = Arc<Mutex<Vec<RunId>>>;

/// A run's scope.
#[derive(Debug)]
pub struct HostScope {
    run: RunId,
    /// What it is to be started with; taken when it is asked for.
    wanted: Option<RunSpec>,
    started: Arc<Mutex<Option<Result<Scope, KernelError>>>>,
    cgroup: Option<HostCgroup>,
    found_empty: Cell<u32>,
}

impl HostScope {
    /// A scope that is still to be started.
    pub(super) fn wanted(spec: &RunSpec) -> Self {
        Self { wanted: Some(spec.clone()), ..Self::of(spec.id, None) }
    }

    /// One of an earlier instance.
    pub(super) fn of(run: RunId, cgroup: Option<HostCgroup>) -> Self {
        Self { run, wanted: None, started: Arc::default(), cgroup, found_empty: Cell::default() }
    }

    /// Its cgroup, once it has one.
    pub(super) fn cgroup(&self) -> Option<&HostCgroup> {
        self.cgroup.as_ref()
    }

    /// Asks for it, around this process.
    pub(super) fn start(&mut self, manager: &Manager, process: &HostProcess, ready: &Ready) -> Result<(), KernelError> {
        let gone = || KernelError::Gone { what: format!("the scope of {}", self.run) };
        let spec = self.wanted.take().ok_or_else(gone)?;
        let (run, started, ready) = (self.run, self.started.clone(), ready.clone());
        manager.start_scope(ScopeRequest {
            run,
            workflow: spec.workflow,
            // Other programs of the user read it, so it says no more than what is known of any process.
            description: format!("Guardian {run}: {}", spec.command.first().map_or("", String::as_str)),
            pid: process.id.pid,
            resources: spec.limits.resources,
            done: Box::new(move |result| {
                *started.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                ready.lock().unwrap_or_else(PoisonError::into_inner).push(run);
            }),
        });
        Ok(())
    }

    /// Takes in the scope, if the process is in it. If it is not, nothing is done to the scope: it may be that systemd took
    /// another one, to which the number was given meanwhile.
    pub(super) fn complete(&mut self, process: &HostProcess, mount: &Cgroup2Mount) -> Result<Vec<String>, KernelError> {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Scope { cgroup, notices, .. } =
            started.ok_or_else(|| KernelError::Gone { what: format!("the scope of {}", self.run) })??;
        let cgroup = HostCgroup::new(cgroup, mount)?;
        if process::cgroup(process.id.pid)? != cgroup.name() {
            let why = format!("it is not in cgroup {}", cgroup.name().display());
            return Err(KernelError::NotOurs { what: format!("process {}", process.id.pid), why });
        }
        cgroup.attach(process)?;
        self.cgroup = Some(cgroup);
        Ok(notices)
    }

    /// Sees whether systemd has removed it.
    pub(super) fn remove(&self, manager: Option<&Manager>) -> Result<(), KernelError> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        let busy = || Err(KernelError::Busy { what: cgroup.dir().path().display().to_string() });
        match cgroup.populated() {
            Err(e) if e.is_gone() => Ok(()),
            Err(e) => Err(e),
            Ok(true) => busy(),
            Ok(false) => {
                self.found_empty.set(self.found_empty.get() + 1);
                match (wait_for(self.found_empty.get()), manager) {
                    (Wait::Leave, _) => Ok(()),
                    (Wait::Ask, Some(manager)) => {
                        manager.collect(self.run);
                        busy()
                    }
                    (Wait::Ask | Wait::On, _) => busy(),
                }
            }
        }
    }
}

/// What is done about an empty scope that is still there.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    On,
    Ask,
    Leave,
}

fn wait_for(found_empty: u32) -> Wait {
    match found_empty {
        PATIENCE => Wait::Ask,
        LEFT.. => Wait::Leave,
        _ => Wait::On,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_scope_that_systemd_does_not_remove_is_asked_for_once_and_left() {
        let steps: Vec<Wait> = (1..=LEFT + 1).map(wait_for).collect();
        assert_eq!(steps.iter().filter(|s| **s == Wait::Ask).count(), 1);
        assert_eq!(steps.iter().position(|s| *s == Wait::Leave), Some(LEFT as usize - 1));
        assert_eq!(steps.last(), Some(&Wait::Leave));
    }
}
