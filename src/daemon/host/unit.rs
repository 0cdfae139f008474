//! A run in a transient unit: the backend `systemd`. Once the unit has the process it is a cgroup as any other, but for its
//! end, which is systemd's.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};

use super::HostProcess;
use super::cgroup::HostCgroup;
use crate::kernel::mount::Cgroup2Mount;
use crate::kernel::{Exec, KernelError, process};
use crate::launch::gate::Gate;
use crate::launch::systemd::{Manager, ScopeRequest, ServiceWanted, Started, UnitKind};
use crate::launch::wrapper;
use crate::model::{ContainerId, ExitStatus, RunId, RunSpec};

/// How often an empty scope is found still there before systemd is asked to give it up. It does so by itself within
/// milliseconds, unless it missed the moment.
const PATIENCE: u32 = 6;

/// How often it is found so before it is left to systemd, which removes it when it can: it may be stopped, and the run is
/// over all the same. Together not quite a second.
const LEFT: u32 = PATIENCE + 8;

/// The runs of whose units something is known by now: that they were started, or could not be, or what they came to.
pub(super) type Ready = Arc<Mutex<Vec<RunId>>>;

/// A cell that another thread fills.
type Slot<T> = Arc<Mutex<Option<T>>>;

fn take<T>(slot: &Slot<T>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A run's unit.
#[derive(Debug)]
pub struct HostUnit {
    run: RunId,
    kind: UnitKind,
    /// What it is to be started with; taken when it is asked for.
    wanted: Option<RunSpec>,
    started: Slot<Result<Started, KernelError>>,
    /// The gate of a service, until its process is there.
    gate: Option<Gate>,
    cgroup: Option<HostCgroup>,
    /// The cgroup that it had, if systemd has removed it: a service that ended while no instance was there.
    was: Option<ContainerId>,
    /// Something was done to its processes by us: nobody else has to be suspected.
    acted: Cell<bool>,
    asked: Cell<bool>,
    /// What systemd said when it was asked last.
    told: Slot<Option<ExitStatus>>,
    status: RefCell<Option<ExitStatus>>,
    found_empty: Cell<u32>,
}

impl HostUnit {
    /// A unit that is still to be started: a scope around a client's process, or a service.
    pub(super) fn wanted(spec: &RunSpec) -> Self {
        let kind = if spec.client.is_some() { UnitKind::Scope } else { UnitKind::Service };
        Self { wanted: Some(spec.clone()), ..Self::of(spec.id, kind, None) }
    }

    /// One of an earlier instance.
    pub(super) fn of(run: RunId, kind: UnitKind, cgroup: Option<HostCgroup>) -> Self {
        Self {
            run,
            kind,
            wanted: None,
            started: Arc::default(),
            gate: None,
            cgroup,
            was: None,
            acted: Cell::default(),
            asked: Cell::default(),
            told: Arc::default(),
            status: RefCell::default(),
            found_empty: Cell::default(),
        }
    }

    /// A service of an earlier instance that has ended. systemd keeps how.
    pub(super) fn ended(run: RunId, was: ContainerId) -> Self {
        Self { was: Some(was), ..Self::of(run, UnitKind::Service, None) }
    }

    /// What its cgroup is known by, if that is not there any more.
    pub(super) fn was(&self) -> Option<&ContainerId> {
        self.was.as_ref()
    }

    /// What it is.
    pub(super) fn kind(&self) -> UnitKind {
        self.kind
    }

    /// Its cgroup, once it has one.
    pub(super) fn cgroup(&self) -> Option<&HostCgroup> {
        self.cgroup.as_ref()
    }

    fn gone(&self) -> KernelError {
        KernelError::Gone { what: format!("the unit of {}", self.run) }
    }

    /// Tells of what was started, from another thread.
    fn done(&self, ready: &Ready) -> crate::launch::systemd::Done {
        let (run, started, ready) = (self.run, self.started.clone(), ready.clone());
        Box::new(move |result| {
            *started.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            ready.lock().unwrap_or_else(PoisonError::into_inner).push(run);
        })
    }

    /// Asks for a scope around this process.
    pub(super) fn start_scope(
        &mut self,
        manager: &Manager,
        process: &HostProcess,
        ready: &Ready,
    ) -> Result<(), KernelError> {
        let spec = self.wanted.take().ok_or_else(|| self.gone())?;
        manager.start_scope(ScopeRequest {
            run: self.run,
            description: description(&spec),
            workflow: spec.workflow,
            pid: process.id.pid,
            pidfd: process.pidfd.try_clone().ok(),
            resources: spec.limits.resources.clone(),
            runtime_max: spec.limits.backstop(),
            done: self.done(ready),
        });
        Ok(())
    }

    /// Asks for a service that executes this behind its gate. Its process comes with it.
    pub(super) fn start_service(&mut self, manager: &Manager, exec: &Exec, ready: &Ready) -> Result<(), KernelError> {
        let spec = self.wanted.take().ok_or_else(|| self.gone())?;
        let executable = std::env::current_exe().map_err(|source| KernelError::Io {
            op: "find",
            what: "our own executable".to_owned(),
            source,
        })?;
        let (gate, theirs) = wrapper::gate(self.run, exec)?;
        self.gate = Some(gate);
        let own = nix::unistd::geteuid().as_raw();
        let wanted = ServiceWanted {
            run: self.run,
            description: description(&spec),
            executable,
            gate: theirs,
            user: (spec.uid != own).then(|| spec.user.clone()),
            identifier: identifier(&spec),
            resources: spec.limits.resources.clone(),
            runtime_max: spec.limits.backstop(),
            sandbox: spec.limits.sandbox,
            credentials: spec.limits.credentials.iter().map(|c| (c.name.clone(), c.path.clone())).collect(),
            workflow: spec.workflow,
            was_queued: exec.kept.is_some(),
        };
        manager.start_service(wanted, self.done(ready));
        Ok(())
    }

    /// Takes in the unit, if the process is in it; that of a service comes with it. If it is not, nothing is done to the
    /// unit: it may be that systemd took another one, to which the number was given meanwhile.
    pub(super) fn complete(
        &mut self,
        process: &mut Option<HostProcess>,
        mount: &Cgroup2Mount,
    ) -> Result<Vec<String>, KernelError> {
        let Started { cgroup, main, notices, .. } = take(&self.started).ok_or_else(|| self.gone())??;
        if let Some(main) = main {
            *process = Some(HostProcess::started_elsewhere(main.pidfd, main.id, self.gate.take()));
        }
        let process = process.as_ref().ok_or_else(|| self.gone())?;
        let cgroup = HostCgroup::new(cgroup, mount)?;
        if process::cgroup(process.id.pid)? != cgroup.name() {
            let why = format!("it is not in cgroup {}", cgroup.name().display());
            return Err(KernelError::NotOurs { what: format!("process {}", process.id.pid), why });
        }
        cgroup.attach(process)?;
        if self.kind == UnitKind::Service {
            cgroup.forget_writes();
        }
        self.cgroup = Some(cgroup);
        Ok(notices)
    }

    /// Notes that we ended its processes, or began to.
    pub(super) fn acted(&self) {
        self.acted.set(true);
    }

    /// Whether a process is in it.
    pub(super) fn populated(&self) -> Result<bool, KernelError> {
        self.cgroup.as_ref().map_or(Ok(false), HostCgroup::populated)
    }

    /// Asks systemd, once; true when it has answered.
    fn is_told(&self, manager: &Manager, ready: &Ready) -> bool {
        if !self.asked.replace(true) {
            let (run, told, ready) = (self.run, self.told.clone(), ready.clone());
            let looked = move |found| {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                ready.lock().unwrap_or_else(PoisonError::into_inner).push(run);
            };
            manager.look(self.run, self.kind, Box::new(looked));
            return false;
        }
        self.take_told();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn take_told(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(status)) = *told {
            self.status.replace(Some(status));
        }
    }

    /// Whether somebody else had systemd stop it. What became empty without us is asked about: that is known once systemd has
    /// answered, as its messages keep their order. None until then; [`Notice::Told`](crate::kernel::Notice) follows.
    pub(super) fn was_stopped(&self, manager: &Manager, ready: &Ready) -> Option<bool> {
        if self.acted.get() {
            return Some(false);
        }
        self.is_told(manager, ready).then(|| manager.was_stopped(self.run))
    }

    /// How the main process ended, if systemd keeps it and has told so. It is asked if it has not been, and once more if it
    /// did not know.
    pub(super) fn exit_status(&self, manager: Option<&Manager>, ready: &Ready) -> Option<ExitStatus> {
        if self.kind != UnitKind::Service {
            return None;
        }
        self.take_told();
        let known = *self.status.borrow();
        if let (None, Some(manager)) = (known, manager) {
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
                self.asked.set(false);
            }
            self.is_told(manager, ready);
        }
        known
    }

    /// A service stays, without a cgroup, until systemd is told that nobody needs what it knows of it.
    fn give_up(&self, manager: Option<&Manager>) {
        if let (UnitKind::Service, Some(manager)) = (self.kind, manager) {
            manager.collect(self.run, self.kind);
        }
    }

    /// Sees whether systemd has removed it.
    pub(super) fn remove(&self, manager: Option<&Manager>) -> Result<(), KernelError> {
        let Some(cgroup) = &self.cgroup else {
            self.give_up(manager);
            return Ok(());
        };
        let busy = || Err(KernelError::Busy { what: cgroup.dir().path().display().to_string() });
        if let Some(manager) = manager {
            manager.forget(self.run);
        }
        match cgroup.populated() {
            Err(e) if e.is_gone() => {
                self.give_up(manager);
                Ok(())
            }
            Err(e) => Err(e),
            Ok(true) => busy(),
            Ok(false) => {
                self.found_empty.set(self.found_empty.get() + 1);
                match (wait_for(self.kind, self.found_empty.get()), manager) {
                    (Wait::Leave, _) => Ok(()),
                    (Wait::Ask, Some(manager)) => {
                        manager.collect(self.run, self.kind);
                        busy()
                    }
                    (Wait::Ask | Wait::On, _) => busy(),
                }
            }
        }
    }
}

/// What every user of the host can read says no more than what is known of any process.
fn description(spec: &RunSpec) -> String {
    format!("Guardian {}: {}", spec.id, spec.command.first().map_or("", String::as_str))
}

/// The name of a run's output in the journal: that of its command.
fn identifier(spec: &RunSpec) -> String {
    let command = spec.command.first().map_or("", String::as_str);
    let name = command.rsplit('/').next().unwrap_or_default();
    let plain: String = name.chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(64).collect();
    if plain.is_empty() { "guardian".to_owned() } else { plain }
}

/// What is done about an empty unit that is still there.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    On,
    Ask,
    Leave,
}

fn wait_for(kind: UnitKind, found_empty: u32) -> Wait {
    match (kind, found_empty) {
        (UnitKind::Scope, PATIENCE) => Wait::Ask,
        // It stays until it is told to go.
        (UnitKind::Service, 1) => Wait::Ask,
        (_, LEFT..) => Wait::Leave,
        _ => Wait::On,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_unit_that_systemd_does_not_remove_is_asked_for_once_and_left() {
        for kind in [UnitKind::Scope, UnitKind::Service] {
            let steps: Vec<Wait> = (1..=LEFT + 1).map(|n| wait_for(kind, n)).collect();
            assert_eq!(steps.iter().filter(|s| **s == Wait::Ask).count(), 1);
            assert_eq!(steps.iter().position(|s| *s == Wait::Leave), Some(LEFT as usize - 1));
            assert_eq!(steps.last(), Some(&Wait::Leave));
        }
    }
}
