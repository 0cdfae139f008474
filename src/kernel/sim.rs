//! A simulated kernel: cgroups, processes and clocks as values, behind the same trait as the real ones.
//!
//! It keeps what the rules are about: identity by inode, processes that ignore SIGTERM or cannot die, removal that is
//! refused for a while, a cgroup that somebody replaced. It writes down everything that is done to a cgroup, so that
//! a test can check each act against what was on record at that moment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::model::{
    CgroupIdentity, ContainerId, Escapee, EscapeeAct, EscapeeState, Evidence, ExitStatus, Fate, GitLocks, Mono,
    Notification, Now, ProcessId, ProcessSeen, Processes, RunId, RunSpec, Sample, Sought, Usage, Wall, Worktree,
};

use super::{Attached, Created, Exec, Finding, Heard, Kernel, KernelError, Notice, Role};

/// Something that was done to a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Whose cgroup it was meant to be.
    pub run: RunId,
    /// The inode of the cgroup that it was done to.
    pub inode: u64,
    /// What.
    pub kind: ActKind,
    /// When.
    pub at: Mono,
}

/// What can be done to a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActKind {
    /// SIGTERM to all.
    Terminate,
    /// `cgroup.kill`.
    Kill,
    /// `rmdir`.
    Remove,
    /// A signal to an escapee of it, which has this pid. The inode is 0.
    Escapee(u32),
}

/// A simulated process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimProcess {
    /// The inode of its cgroup; none for one outside.
    pub cgroup: Option<u64>,
    /// How it ended; none while it lives.
    pub ended: Option<ExitStatus>,
    /// SIGTERM does nothing to it.
    pub ignores_term: bool,
    /// SIGKILL does nothing to it yet: D state.
    pub stuck: bool,
    /// It waits behind a gate.
    pub gated: bool,
    /// The instance is its parent.
    pub ours: bool,
}

/// The simulated host.
#[derive(Debug)]
pub struct World {
    /// Both clocks.
    pub now: Now,
    /// The boot id.
    pub boot: u32,
    /// Processes by pid. Pids are not reused.
    pub processes: BTreeMap<u32, SimProcess>,
    /// The cgroup at each run's path.
    pub cgroups: BTreeMap<RunId, u64>,
    /// What was said at each run's notify socket, and not taken in yet.
    pub said: BTreeMap<RunId, Vec<Notification>>,
    /// Runs that have written output.
    pub output: BTreeSet<RunId>,
    /// Runs whose container does not hold them together any more.
    pub scattered: BTreeSet<RunId>,
    /// Processes that carry a run's mark and have left its cgroup.
    pub escaped: BTreeMap<u32, RunId>,
    /// The looks for escapees and locks give no answer.
    pub seeker_stuck: bool,
    /// Runs that somebody else had stopped.
    pub stopped: BTreeSet<RunId>,
    /// What a look at a run shows; its processes are those that there are.
    pub samples: BTreeMap<RunId, Sample>,
    /// How long it takes to look at what the processes of a run wait for.
    pub evidence_takes: Duration,
    /// How often a removal will still be refused with EBUSY.
    pub busy: u32,
    /// Everything that was done to a cgroup.
    pub acts: Vec<Act>,
    notices: Vec<Notice>,
    findings: Vec<Finding>,
    watched: BTreeMap<(RunId, bool), u32>,
    watched_cgroups: BTreeMap<RunId, u64>,
    last_pid: u32,
    last_inode: u64,
    /// The runs whose cgroups were made here, by inode: those that carry our mark.
    pub made: BTreeMap<u64, RunId>,
    /// The runs whose command was executed here: what is kept of their launch is emptied.
    pub emptied: BTreeSet<RunId>,
}

impl World {
    /// A host without runs.
    pub fn new() -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            now: Now { mono: Mono(1_000_000_000), wall: Wall(1_700_000_000_000_000) },
            boot: 0,
            processes: BTreeMap::new(),
            cgroups: BTreeMap::new(),
            said: BTreeMap::new(),
            output: BTreeSet::new(),
            scattered: BTreeSet::new(),
            escaped: BTreeMap::new(),
            seeker_stuck: false,
            stopped: BTreeSet::new(),
            samples: BTreeMap::new(),
            evidence_takes: Duration::ZERO,
            busy: 0,
            acts: Vec::new(),
            notices: Vec::new(),
            findings: Vec::new(),
            watched: BTreeMap::new(),
            watched_cgroups: BTreeMap::new(),
            last_pid: 100,
            last_inode: 1000,
            made: BTreeMap::new(),
            emptied: BTreeSet::new(),
        }))
    }

    /// Lets time pass.
    pub fn pass(&mut self, d: Duration) {
        self.now.mono = self.now.mono + d;
        self.now.wall = Wall(self.now.wall.0 + u64::try_from(d.as_micros()).unwrap_or(0));
    }

    /// Starts a process.
    pub fn start(&mut self, process: SimProcess) -> u32 {
        self.last_pid += 1;
        self.processes.insert(self.last_pid, process);
        self.last_pid
    }

    /// Ends a process, unless it has ended.
    pub fn end(&mut self, pid: u32, status: ExitStatus) {
        let Some(process) = self.processes.get_mut(&pid).filter(|p| p.ended.is_none()) else { return };
        process.ended = Some(status);
        let cgroup = process.cgroup;
        for ((run, client), watched) in &self.watched {
            if *watched == pid {
                self.notices.push(Notice::ProcessExited(*run, if *client { Role::Client } else { Role::Main }));
            }
        }
        for (run, inode) in &self.watched_cgroups {
            if cgroup == Some(*inode) {
                self.notices.push(Notice::ContainerChanged(*run));
            }
        }
    }

    /// Puts another cgroup with a process of its own at the run's path, as somebody with the right to do so could once
    /// the run's is removed. Gives that process.
    pub fn replace(&mut self, run: RunId) -> Option<u32> {
        let inode = *self.cgroups.get(&run)?;
        if self.living(inode).next().is_some() {
            return None;
        }
        self.last_inode += 1;
        self.cgroups.insert(run, self.last_inode);
        let cgroup = Some(self.last_inode);
        Some(self.start(SimProcess {
            cgroup,
            ended: None,
            ignores_term: false,
            stuck: false,
            gated: false,
            ours: false,
        }))
    }

    /// The living processes of a cgroup.
    pub fn living(&self, inode: u64) -> impl Iterator<Item = u32> + '_ {
        self.processes.iter().filter(move |(_, p)| p.cgroup == Some(inode) && p.ended.is_none()).map(|(pid, _)| *pid)
    }

    /// A process of the run says something, which is noticed.
    pub fn say(&mut self, run: RunId, said: Notification) {
        self.said.entry(run).or_default().push(said);
        self.notices.push(Notice::Spoke(run));
    }

    /// Kills the shim of a run, so to say: it is still there, but nothing holds it together.
    pub fn scatter(&mut self, run: RunId) {
        if self.watched_cgroups.contains_key(&run) && self.scattered.insert(run) {
            self.notices.push(Notice::ContainerChanged(run));
        }
    }

    /// A process of a run leaves its cgroup, as root can do it or who can ask others to start one.
    pub fn escape(&mut self, run: RunId, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid).filter(|p| p.ended.is_none()) else { return };
        if process.cgroup.take().is_some() {
            self.escaped.insert(pid, run);
            self.notices.push(Notice::ContainerChanged(run));
        }
    }

    /// The living escapees of a run.
    pub fn escapees(&self, run: RunId) -> Vec<u32> {
        let living = |pid: &u32| self.processes.get(pid).is_some_and(|p| p.ended.is_none());
        self.escaped.iter().filter(|(pid, of)| **of == run && living(pid)).map(|(pid, _)| *pid).collect()
    }

    fn answer(&mut self, finding: Finding) {
        if !self.seeker_stuck {
            self.findings.push(finding);
            self.notices.push(Notice::Found);
        }
    }

    /// Somebody else has a run stopped, with all that is in it.
    pub fn stop(&mut self, run: RunId) {
        let Some(inode) = self.watched_cgroups.get(&run).copied() else { return };
        self.stopped.insert(run);
        let living: Vec<u32> = self.living(inode).filter(|pid| !self.processes[pid].stuck).collect();
        living.into_iter().for_each(|pid| self.end(pid, ExitStatus::Signaled(15)));
    }

    /// Nothing is left to be noticed.
    pub fn is_quiet(&self) -> bool {
        self.notices.is_empty()
    }

    /// The shim of the run was killed while somebody watched it, and they were told.
    pub fn has_noticed_scattering(&self, run: RunId) -> bool {
        let told = !self.notices.contains(&Notice::ContainerChanged(run));
        told && self.watched_cgroups.contains_key(&run) && self.scattered.contains(&run)
    }

    /// Forgets all watches: the instance died.
    pub fn forget_watches(&mut self) {
        self.watched.clear();
        self.watched_cgroups.clear();
        self.notices.clear();
        self.findings.clear();
    }

    fn act(&mut self, cgroup: &SimCgroup, kind: ActKind) {
        let at = self.now.mono;
        self.acts.push(Act { run: cgroup.run, inode: cgroup.inode, kind, at });
    }

    fn exists(&self, cgroup: &SimCgroup) -> Result<(), KernelError> {
        if self.cgroups.values().any(|inode| *inode == cgroup.inode) {
            Ok(())
        } else {
            Err(KernelError::Gone { what: cgroup.run.to_string() })
        }
    }
}

/// A held cgroup.
#[derive(Debug, Clone, Copy)]
pub struct SimCgroup {
    run: RunId,
    inode: u64,
}

/// The simulated kernel: a hand on the world.
#[derive(Debug, Clone)]
pub struct SimKernel(pub Rc<RefCell<World>>);

impl Kernel for SimKernel {
    type Container = SimCgroup;
    type Process = u32;

    fn now(&self) -> Now {
        self.0.borrow().now
    }

    fn boot_id(&self) -> String {
        self.0.borrow().boot.to_string()
    }

    fn create(&mut self, spec: &RunSpec) -> Result<Created<SimCgroup>, KernelError> {
        let run = spec.id;
        let mut world = self.0.borrow_mut();
        if world.cgroups.contains_key(&run) {
            return Err(KernelError::Busy { what: run.to_string() });
        }
        world.last_inode += 1;
        let inode = world.last_inode;
        world.cgroups.insert(run, inode);
        world.made.insert(inode, run);
        Ok(Created { container: SimCgroup { run, inode }, notices: Vec::new() })
    }

    fn reopen(&mut self, run: RunId, known: Option<&ContainerId>) -> Result<SimCgroup, KernelError> {
        let world = self.0.borrow();
        match (world.cgroups.get(&run), known.and_then(ContainerId::cgroup).map(|k| k.inode)) {
            (None, _) => Err(KernelError::Gone { what: run.to_string() }),
            (Some(inode), Some(known)) if *inode != known => {
                Err(KernelError::NotOurs { what: run.to_string(), why: format!("inode {inode}, not {known}") })
            }
            (Some(inode), None) if world.made.get(inode) != Some(&run) => {
                Err(KernelError::NotOurs { what: run.to_string(), why: "it does not carry our mark".to_owned() })
            }
            (Some(inode), _) => Ok(SimCgroup { run, inode: *inode }),
        }
    }

    fn list(&mut self) -> Result<Vec<RunId>, KernelError> {
        Ok(self.0.borrow().cgroups.keys().copied().collect())
    }

    fn identity(&self, cgroup: &SimCgroup) -> Option<ContainerId> {
        Some(ContainerId::Cgroup(CgroupIdentity {
            path: PathBuf::from(format!("/sim/{}", cgroup.run)),
            inode: cgroup.inode,
        }))
    }

    fn spawn(&mut self, _: &Exec, cgroup: &mut SimCgroup) -> Result<Option<u32>, KernelError> {
        Ok(Some(self.0.borrow_mut().start(SimProcess {
            cgroup: Some(cgroup.inode),
            ended: None,
            ignores_term: false,
            stuck: false,
            gated: true,
            ours: true,
        })))
    }

    fn was_stopped(&mut self, cgroup: &SimCgroup) -> Option<bool> {
        Some(self.0.borrow().stopped.contains(&cgroup.run))
    }

    fn open_process(&mut self, id: ProcessId) -> Result<u32, KernelError> {
        match self.0.borrow().processes.get(&id.pid) {
            Some(process) if process.ended.is_none() => Ok(id.pid),
            _ => Err(KernelError::Gone { what: format!("process {}", id.pid) }),
        }
    }

    fn process_id(&self, process: &u32) -> ProcessId {
        ProcessId { pid: *process, start_ticks: u64::from(*process) }
    }

    fn open_gate(&mut self, process: &mut u32) -> Result<(), KernelError> {
        let world = &mut *self.0.borrow_mut();
        if let Some(process) = world.processes.get_mut(process) {
            process.gated = false;
            world.emptied.extend(process.cgroup.and_then(|inode| world.made.get(&inode)));
        }
        Ok(())
    }

    fn close_gate(&mut self, process: &mut u32) {
        let mut world = self.0.borrow_mut();
        if world.processes.get(process).is_some_and(|p| p.gated && p.ours) {
            world.end(*process, ExitStatus::Exited(125));
        }
    }

    fn attach(&mut self, cgroup: &mut SimCgroup, process: &mut u32) -> Result<Attached, KernelError> {
        match self.0.borrow_mut().processes.get_mut(process) {
            Some(process) if process.ended.is_none() => {
                process.cgroup = Some(cgroup.inode);
                Ok(Attached::Now)
            }
            _ => Err(KernelError::Gone { what: format!("process {process}") }),
        }
    }

    fn complete(&mut self, _: &mut SimCgroup, _: &mut Option<u32>) -> Result<Vec<String>, KernelError> {
        Ok(Vec::new())
    }

    fn exit_status(&mut self, _: Option<&SimCgroup>, process: Option<&u32>) -> Option<ExitStatus> {
        self.0.borrow().processes.get(process?).filter(|p| p.ours).and_then(|p| p.ended)
    }

    fn reap(&mut self) -> bool {
        false
    }

    fn watch_process(&mut self, run: RunId, role: Role, process: &u32) -> Result<(), KernelError> {
        let mut world = self.0.borrow_mut();
        world.watched.insert((run, role == Role::Client), *process);
        if world.processes.get(process).is_none_or(|p| p.ended.is_some()) {
            world.notices.push(Notice::ProcessExited(run, role));
        }
        Ok(())
    }

    fn watch_container(&mut self, run: RunId, cgroup: &SimCgroup) -> Result<(), KernelError> {
        self.0.borrow_mut().watched_cgroups.insert(run, cgroup.inode);
        Ok(())
    }

    fn wait(&mut self, _: Option<Duration>) -> Result<Vec<Notice>, KernelError> {
        Ok(std::mem::take(&mut self.0.borrow_mut().notices))
    }

    fn populated(&mut self, cgroup: &SimCgroup) -> Result<bool, KernelError> {
        let world = self.0.borrow();
        world.exists(cgroup)?;
        Ok(world.living(cgroup.inode).next().is_some())
    }

    fn is_intact(&mut self, cgroup: &SimCgroup) -> bool {
        !self.0.borrow().scattered.contains(&cgroup.run)
    }

    fn terminate(&mut self, cgroup: &SimCgroup) -> Result<u32, KernelError> {
        let mut world = self.0.borrow_mut();
        world.exists(cgroup)?;
        world.act(cgroup, ActKind::Terminate);
        let living: Vec<u32> = world.living(cgroup.inode).collect();
        for pid in &living {
            if world.processes.get(pid).is_some_and(|p| !p.ignores_term && !p.stuck) {
                world.end(*pid, ExitStatus::Signaled(15));
            }
        }
        Ok(u32::try_from(living.len()).unwrap_or(u32::MAX))
    }

    fn kill(&mut self, cgroup: &SimCgroup) -> Result<u32, KernelError> {
        let mut world = self.0.borrow_mut();
        world.exists(cgroup)?;
        world.act(cgroup, ActKind::Kill);
        let living: Vec<u32> = world.living(cgroup.inode).collect();
        for pid in &living {
            if world.processes.get(pid).is_some_and(|p| !p.stuck) {
                world.end(*pid, ExitStatus::Signaled(9));
            }
        }
        Ok(u32::try_from(living.len()).unwrap_or(u32::MAX))
    }

    fn freeze(&mut self, cgroup: &SimCgroup, _: bool) -> Result<(), KernelError> {
        self.0.borrow().exists(cgroup)
    }

    fn evidence(&mut self, cgroup: &SimCgroup, budget: Duration) -> Evidence {
        let takes = self.0.borrow().evidence_takes.min(budget);
        self.0.borrow_mut().pass(takes);
        let world = self.0.borrow();
        let seen = |pid| ProcessSeen { pid, ppid: 1, name: "sim".to_owned(), state: 'S', ..ProcessSeen::default() };
        let processes: Vec<ProcessSeen> = world.living(cgroup.inode).map(seen).collect();
        Evidence { total: u32::try_from(processes.len()).unwrap_or(u32::MAX), processes, ..Evidence::default() }
    }

    fn sample(&mut self, cgroup: &SimCgroup) -> Result<Usage, KernelError> {
        let cpu_usec = self.0.borrow().samples.get(&cgroup.run).and_then(|sample| sample.cpu_usec);
        Ok(Usage { cpu_usec, ..Usage::default() })
    }

    fn usage(&mut self, _: &SimCgroup) -> Result<Usage, KernelError> {
        Ok(Usage::default())
    }

    fn examine(&mut self, cgroup: &SimCgroup, _: Option<&u32>, _: Option<&Sample>) -> Result<Sample, KernelError> {
        let world = self.0.borrow();
        world.exists(cgroup)?;
        let mut processes = Processes::NONE;
        world.living(cgroup.inode).for_each(|pid| processes.add(pid, u64::from(pid), 1));
        let sample = world.samples.get(&cgroup.run).copied().unwrap_or_default();
        Ok(Sample { processes: Some(processes), ..sample })
    }

    fn has_output(&mut self, cgroup: &SimCgroup, _: Option<&Path>) -> bool {
        self.0.borrow().output.contains(&cgroup.run)
    }

    fn listen(&mut self, _: RunId, _: u32) {}

    fn hear(&mut self, run: RunId, _: Option<&SimCgroup>) -> Heard {
        Heard { messages: self.0.borrow_mut().said.remove(&run).unwrap_or_default(), ..Heard::default() }
    }

    fn seek(&mut self, runs: Vec<Sought>) {
        let mut world = self.0.borrow_mut();
        for Sought { run, number, .. } in runs {
            let escapee = |pid| {
                let process = ProcessId { pid, start_ticks: u64::from(pid) };
                Escapee { process, name: "sim".to_owned(), cgroup: "/elsewhere".to_owned(), fate: Fate::LeftAlone }
            };
            let found = world.escapees(run).into_iter().map(escapee).collect();
            world.answer(Finding::Sought { run, number, found });
        }
    }

    fn act_on_escapees(&mut self, of: Sought, act: EscapeeAct) {
        let mut world = self.0.borrow_mut();
        let mut states = Vec::new();
        for id in of.known {
            let process = world.processes.get(&id.pid).copied().filter(|p| p.ended.is_none());
            let Some(process) = process else {
                states.push((id, EscapeeState::Gone));
                continue;
            };
            states.push((id, EscapeeState::There));
            let at = world.now.mono;
            if act != EscapeeAct::Look {
                world.acts.push(Act { run: of.run, inode: 0, kind: ActKind::Escapee(id.pid), at });
            }
            match act {
                EscapeeAct::Terminate if !process.ignores_term && !process.stuck => {
                    world.end(id.pid, ExitStatus::Signaled(15));
                }
                EscapeeAct::Kill if !process.stuck => world.end(id.pid, ExitStatus::Signaled(9)),
                _ => {}
            }
        }
        world.answer(Finding::Acted { run: of.run, number: of.number, act, states });
    }

    fn look_for_locks(&mut self, of: Worktree) {
        let finding = Finding::Locks { run: of.run, number: of.number, found: GitLocks::default() };
        self.0.borrow_mut().answer(finding);
    }

    fn findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.0.borrow_mut().findings)
    }

    fn oom_kills(&mut self, _: &SimCgroup) -> u64 {
        0
    }

    fn cap_log(&mut self, _: &Path, _: u64) -> Result<(), KernelError> {
        Ok(())
    }

    fn unreserve(&mut self, _run: RunId) -> Option<SimCgroup> {
        None
    }

    fn remove(&mut self, cgroup: &SimCgroup) -> Result<(), KernelError> {
        let mut world = self.0.borrow_mut();
        match world.cgroups.get(&cgroup.run) {
            None => return Err(KernelError::Gone { what: cgroup.run.to_string() }),
            Some(inode) if *inode != cgroup.inode => {
                let why = "another directory is at its path".to_owned();
                return Err(KernelError::NotOurs { what: cgroup.run.to_string(), why });
            }
            Some(_) => {}
        }
        if world.busy > 0 || world.living(cgroup.inode).next().is_some() {
            world.busy = world.busy.saturating_sub(1);
            return Err(KernelError::Busy { what: cgroup.run.to_string() });
        }
        world.act(cgroup, ActKind::Remove);
        world.cgroups.remove(&cgroup.run);
        Ok(())
    }
}
