//! Processes that carry a run's mark and are outside of what contains it: finding them among all of the host, and ending
//! them one by one.
//!
//! A mark is a claim: whoever starts a process chooses its environment, and a process may write over its own. So a process
//! is a run's escapee only if all its uids are the run's, it is not older than the run, carries the id of just this run,
//! which was drawn at random and is never used again, and is in no live run; all of that read while a pidfd holds it. The main
//! process is on record and needs no mark. What cannot be read is not known, and is nobody's.
//!
//! Decides nothing: when to look and what to do is the caller's. To read the environment of a process that is stuck in the
//! kernel can take for ever, so this is for a thread that nobody waits for.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Finding;
use super::process::{self, Stat};
use crate::failpoint;
use crate::model::{Escapee, EscapeeAct, EscapeeState, Fate, ProcessId, RunId, Sought};

/// The most that a look tells of one run.
const MOST: usize = 64;

/// How many parents of a process are looked at.
const DEEPEST: usize = 1024;

/// What contains a live run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// The cgroup of this name, as in `/proc/PID/cgroup`.
    Cgroup(PathBuf),
    /// A cgroup that is about to be made, whose last part has this name.
    Named(OsString),
    /// What is below this shim.
    Shim(ProcessId),
}

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a live run.
    Inside,
    Outside,
    Unknown,
}

/// The live runs, and what contains each.
#[derive(Debug, Clone, Default)]
pub struct Live(pub BTreeMap<RunId, Inside>);

/// The same by place: a look asks it of each process, and there can be thousands of either.
struct Places<'a> {
    live: &'a Live,
    cgroups: HashSet<&'a Path>,
    names: HashSet<&'a OsStr>,
    shims: HashSet<u32>,
}

impl<'a> Places<'a> {
    fn of(live: &'a Live) -> Self {
        let mut places = Places { live, cgroups: HashSet::new(), names: HashSet::new(), shims: HashSet::new() };
        for inside in live.0.values() {
            match inside {
                Inside::Cgroup(name) => _ = places.cgroups.insert(name),
                Inside::Named(name) => _ = places.names.insert(name),
                Inside::Shim(shim) => _ = places.shims.insert(shim.pid),
            }
        }
        places
    }

    /// Where a process is, which is in this cgroup.
    fn place(&self, pid: u32, cgroup: Option<&Path>) -> Place {
        if cgroup.is_some_and(|cgroup| self.has(cgroup)) {
            return Place::Inside;
        }
        let has_cgroups = !self.cgroups.is_empty() || !self.names.is_empty();
        match self.is_below_a_shim(pid) {
            Some(true) => Place::Inside,
            Some(false) if cgroup.is_some() || !has_cgroups => Place::Outside,
            _ => Place::Unknown,
        }
    }

    /// Whether a cgroup is a run's, or below one.
    fn has(&self, cgroup: &Path) -> bool {
        cgroup.ancestors().any(|of| self.cgroups.contains(of))
            || !self.names.is_empty() && cgroup.iter().any(|part| self.names.contains(part))
    }

    /// None if a parent ended while it was looked at: then the process has another one by now.
    fn is_below_a_shim(&self, pid: u32) -> Option<bool> {
        if self.shims.is_empty() {
            return Some(false);
        }
        let mut at = pid;
        for _ in 0..DEEPEST {
            if self.shims.contains(&at) {
                return Some(true);
            }
            match process::stat(at).ok()?.ppid {
                0 => return Some(false),
                parent => at = parent,
            }
        }
        None
    }

    /// Whether it can be told what is outside of the run. Not so just after its shim was killed: then what was below it may
    /// be anywhere.
    fn can_tell(&self, sought: &Sought) -> bool {
        match self.live.0.get(&sought.run) {
            _ if sought.is_empty => true,
            Some(Inside::Shim(shim)) => process::open_known(*shim).is_ok_and(|pidfd| !process::has_exited(pidfd)),
            Some(Inside::Cgroup(_)) => true,
            Some(Inside::Named(_)) | None => false,
        }
    }
}

/// Looks at all processes of the host for no longer than the budget, from this pid on, and begins where the last look came to
/// when that was over. Those that are known are looked at first, and are there as long as they live. Says nothing of a run of
/// which it cannot be told.
pub fn look(all: &[Sought], live: &Live, from: &mut u32, budget: Duration) -> Vec<Finding> {
    let started = Instant::now();
    let mut found: BTreeMap<RunId, Vec<Escapee>> = BTreeMap::new();
    let places = Places::of(live);
    let told: Vec<&Sought> = all.iter().filter(|sought| places.can_tell(sought)).collect();
    // Most processes of most hosts with many runs: each is asked for its cgroup once.
    let mut inside = HashSet::new();
    for sought in &told {
        let there = |id: &ProcessId| {
            let (_pidfd, stat) = holding(*id)?;
            let cgroup = process::cgroup(id.pid).ok();
            // It may have gone back into the run.
            let is_outside = places.place(id.pid, cgroup.as_deref()) != Place::Inside;
            is_outside.then(|| escapee(*id, stat.comm, cgroup.as_deref()))
        };
        let mut there: Vec<Escapee> = sought.known.iter().filter_map(there).collect();
        let pid = sought.main.pid;
        let is_inside = process::cgroup(pid).is_ok_and(|cgroup| places.has(&cgroup));
        if is_inside {
            inside.insert(pid);
        } else if !sought.known.contains(&sought.main)
            && let Some((_, main)) = prove(pid, sought, &places).filter(|(_, e)| e.process == sought.main)
        {
            there.push(main);
        }
        found.insert(sought.run, there);
    }
    let by_mark: BTreeMap<Vec<u8>, &Sought> =
        told.iter().map(|sought| (sought.run.to_string().into_bytes(), *sought)).collect();
    let mut pids = if by_mark.is_empty() { Vec::new() } else { pids() };
    let first = pids.partition_point(|pid| *pid < *from);
    pids.rotate_left(first);
    *from = 0;
    for pid in pids {
        if started.elapsed() > budget {
            *from = pid;
            break;
        }
        if inside.contains(&pid) {
            continue;
        }
        // The cgroup first: who is in a run's is known by that, without a look at the environment.
        let cgroup = process::cgroup(pid).ok();
        if cgroup.as_deref().is_some_and(|cgroup| places.has(cgroup)) {
            continue;
        }
        let Some(sought) = process::variable(pid, MARK).and_then(|mark| by_mark.get(&mark).copied()) else { continue };
        let known = found.entry(sought.run).or_default();
        if known.len() < MOST
            && !known.iter().any(|e| e.process.pid == pid)
            && let Some((_, escapee)) = prove(pid, sought, &places)
        {
            known.push(escapee);
        }
    }
    let finding = |sought: &Sought| {
        let found = found.remove(&sought.run).unwrap_or_default();
        Finding::Sought { run: sought.run, number: sought.number, found }
    };
    told.into_iter().map(finding).collect()
}

/// The mark of a run in the environment of its processes.
const MARK: &str = "GUARDIAN_RUN_ID";

/// Does something to those that are meant. Each is proved anew before it is signalled.
pub fn act(of: &Sought, live: &Live, act: EscapeeAct) -> Finding {
    let signals: &[Signal] = match act {
        EscapeeAct::Look => &[],
        EscapeeAct::Terminate => &[Signal::TERM, Signal::CONT],
        EscapeeAct::Kill => &[Signal::KILL],
    };
    let places = Places::of(live);
    let states = of.known.iter().map(|id| (*id, state(*id, of, &places, signals))).collect();
    Finding::Acted { run: of.run, number: of.number, act, states }
}

fn state(id: ProcessId, of: &Sought, places: &Places, signals: &[Signal]) -> EscapeeState {
    if holding(id).is_none() {
        return EscapeeState::Gone;
    }
    let Some(first) = signals.first() else { return EscapeeState::There };
    let proved = if places.can_tell(of) { prove(id.pid, of, places) } else { None };
    let Some((pidfd, _)) = proved.filter(|(_, found)| found.process == id) else {
        return if holding(id).is_none() { EscapeeState::Gone } else { EscapeeState::NotProved };
    };
    match process::signal(&pidfd, *first) {
        Ok(()) => {
            // The first one may have ended it: then there is nobody for the next.
            signals.iter().skip(1).for_each(|signal| drop(process::signal(&pidfd, *signal)));
            EscapeeState::There
        }
        Err(e) if e.is_gone() => EscapeeState::Gone,
        Err(_) => EscapeeState::NotProved,
    }
}

/// The process that was known by this id, if it is there and has not ended.
fn holding(id: ProcessId) -> Option<(OwnedFd, Stat)> {
    let pidfd = process::open_known(id).ok()?;
    let stat = process::stat(id.pid).ok()?;
    (!stat.has_ended() && !process::has_exited(&pidfd)).then_some((pidfd, stat))
}

/// A process that is proved to be an escapee of the run, as far as that can be proved, and what holds it.
fn prove(pid: u32, of: &Sought, places: &Places) -> Option<(OwnedFd, Escapee)> {
    if pid == std::process::id() || failpoint::without("guard.escapees").is_some() {
        return None;
    }
    let pidfd = process::open(pid).ok()?;
    let stat = process::stat(pid).ok()?;
    if stat.has_ended() || stat.start_ticks < of.main.start_ticks || process::uids(pid).ok()? != [of.uid; 4] {
        return None;
    }
    // The main process is known without a mark, which it may have lost.
    if stat.id() != of.main && process::variable(pid, MARK)? != of.run.to_string().as_bytes() {
        return None;
    }
    let cgroup = match process::cgroup(pid) {
        Ok(cgroup) => Some(cgroup),
        Err(e) if e.is_gone() => return None,
        // Where there is no cgroup2, or it is not readable.
        Err(_) => None,
    };
    if places.place(pid, cgroup.as_deref()) != Place::Outside {
        return None;
    }
    // It lives, so the number was its own all the time.
    (!process::has_exited(&pidfd)).then(|| (pidfd, escapee(stat.id(), stat.comm, cgroup.as_deref())))
}

fn escapee(process: ProcessId, name: String, cgroup: Option<&Path>) -> Escapee {
    let cgroup = cgroup.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    Escapee { process, name, cgroup, fate: Fate::LeftAlone }
}

/// All pids, in ascending order.
fn pids() -> Vec<u32> {
    let Ok(listed) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(inside: impl IntoIterator<Item = Inside>) -> Live {
        Live((1..).map(|n| RunId::from_bytes([n; 6])).zip(inside).collect())
    }

    #[test]
    fn a_process_is_inside_of_a_run_by_its_cgroup_or_by_its_shim_and_else_outside() {
        let me = std::process::id();
        let parent = process::stat(me).unwrap().ppid;
        let shim = |pid| Inside::Shim(ProcessId { pid, start_ticks: 1 });
        let unit = || Inside::Named("guardian-run_1.scope".into());
        let cgroup = || Inside::Cgroup("/a/run_1".into());
        let cases = [
            (live([cgroup()]), Some("/a/run_1"), Place::Inside),
            (live([cgroup()]), Some("/a/run_1/below"), Place::Inside),
            (live([cgroup()]), Some("/a/run_12"), Place::Outside),
            (live([cgroup()]), None, Place::Unknown),
            (live([unit()]), Some("/guardian.slice/guardian-run_1.scope"), Place::Inside),
            (live([unit()]), Some("/guardian.slice/guardian-run_2.scope"), Place::Outside),
            (live([shim(me)]), Some("/"), Place::Inside),
            (live([shim(parent)]), None, Place::Inside),
            (live([shim(u32::MAX)]), None, Place::Outside),
            (live([shim(u32::MAX), cgroup()]), None, Place::Unknown),
            (live([]), None, Place::Outside),
        ];
        for (live, cgroup, expected) in cases {
            assert_eq!(Places::of(&live).place(me, cgroup.map(Path::new)), expected, "{cgroup:?} {live:?}");
        }
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        assert_eq!(Places::of(&live([shim(me)])).place(gone.id(), Some(Path::new("/"))), Place::Unknown);
    }

    #[test]
    fn nothing_is_told_of_a_run_that_may_have_scattered() {
        let mut shim = std::process::Command::new("true").spawn().unwrap();
        let id = process::stat(shim.id()).unwrap().id();
        shim.wait().unwrap();
        let run = RunId::from_bytes([1; 6]);
        let sought = |is_empty| Sought { run, number: 7, uid: 0, main: id, is_empty, known: Vec::new() };
        let look = |is_empty| look(&[sought(is_empty)], &live([Inside::Shim(id)]), &mut 0, Duration::from_secs(9));
        assert_eq!(look(false), []);
        assert_eq!(look(true), [Finding::Sought { run, number: 7, found: Vec::new() }]);
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        let id = process::stat(dead.id()).unwrap().id();
        until(|| process::stat(dead.id()).unwrap().has_ended());
        let can_tell = |shim| Places::of(&live([Inside::Shim(shim)])).can_tell(&sought(false));
        assert!(!can_tell(id), "its parent has not been told yet, but it holds nobody any more");
        assert!(can_tell(process::stat(std::process::id()).unwrap().id()));
        dead.wait().unwrap();
    }

    /// A process of ours that sleeps, with this mark in its environment or none. Ended when it is dropped.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn new(mark: Option<RunId>) -> Self {
            let mut command = std::process::Command::new("sleep");
            command.arg("600").env_remove(MARK).envs(mark.map(|run| (MARK, run.to_string())));
            let sleeper = Self(command.spawn().unwrap());
            // Before that it has the name of its parent, and then for a moment no environment.
            let pid = sleeper.0.id();
            until(|| process::stat(pid).unwrap().comm == "sleep" && process::variable(pid, "PATH").is_some());
            sleeper
        }

        fn id(&self) -> ProcessId {
            process::stat(self.0.id()).unwrap().id()
        }

        fn ended_by(&mut self) -> Option<i32> {
            std::os::unix::process::ExitStatusExt::signal(&self.0.try_wait().unwrap()?)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn until(mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(20), "not within 20 s");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn some_run() -> RunId {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        RunId::from_bytes(bytes)
    }

    /// Of a run whose main process is this one, which is nobody's escapee.
    fn sought(run: RunId) -> Sought {
        let main = process::stat(std::process::id()).unwrap().id();
        let uid = rustix::process::geteuid().as_raw();
        Sought { run, number: 7, uid, main, is_empty: true, known: Vec::new() }
    }

    const LONG: Duration = Duration::from_secs(20);

    fn found(of: &Sought, live: &Live) -> Vec<ProcessId> {
        let findings = look(std::slice::from_ref(of), live, &mut 0, LONG);
        let [Finding::Sought { run, number: 7, found }] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!(*run, of.run);
        found.iter().map(|e| e.process).collect()
    }

    #[test]
    fn who_carries_a_runs_mark_is_its_escapee_if_it_is_its_users_not_older_and_outside() {
        let run = some_run();
        let (its, _none, _others) = (Sleeper::new(Some(run)), Sleeper::new(None), Sleeper::new(Some(some_run())));
        let (its, none, of) = (its.id(), live([]), sought(run));
        assert_eq!(found(&of, &none), [its]);
        let since = |start_ticks| Sought { main: ProcessId { start_ticks, ..of.main }, ..of.clone() };
        assert_eq!(found(&since(its.start_ticks), &none), [its]);
        assert_eq!(found(&since(its.start_ticks + 1), &none), [], "it is older than the run");
        assert_eq!(found(&Sought { uid: of.uid + 1, ..of.clone() }, &none), [], "another user's");
        let inside = live([Inside::Cgroup(process::cgroup(its.pid).unwrap_or_default())]);
        assert_eq!(found(&of, &inside), [], "it is in a run");
        let below = live([Inside::Shim(process::stat(std::process::id()).unwrap().id())]);
        assert_eq!(found(&of, &below), [], "it is below a shim");
        let known = Sought { known: vec![its], ..of };
        assert_eq!(found(&known, &none), [its], "it is told once");
    }

    #[test]
    fn the_main_process_needs_no_mark_and_has_to_be_just_that_process() {
        let main = Sleeper::new(None);
        let of = Sought { main: main.id(), ..sought(some_run()) };
        assert_eq!(found(&of, &live([])), [main.id()]);
        let earlier = ProcessId { start_ticks: main.id().start_ticks - 1, ..main.id() };
        assert_eq!(found(&Sought { main: earlier, ..of }, &live([])), [], "its number was another's before");
    }

    #[test]
    fn who_is_known_is_there_until_it_ends_or_is_back_in_the_run() {
        let mut known = Sleeper::new(None);
        let of = Sought { known: vec![known.id()], ..sought(some_run()) };
        assert_eq!(found(&of, &live([])), of.known, "whatever has become of its mark");
        let back = live([Inside::Shim(process::stat(std::process::id()).unwrap().id())]);
        assert_eq!(found(&of, &back), []);
        known.0.kill().unwrap();
        until(|| found(&of, &live([])).is_empty());
    }

    #[test]
    fn a_look_that_takes_too_long_goes_on_where_it_came_to() {
        let run = some_run();
        let its = Sleeper::new(Some(run));
        let (of, none) = ([sought(run)], live([]));
        let mut from = its.id().pid;
        look(&of, &none, &mut from, Duration::ZERO);
        assert_eq!(from, its.id().pid, "that one was to be the next");
        for mut from in [its.id().pid, its.id().pid + 1] {
            let Some(Finding::Sought { found, .. }) = look(&of, &none, &mut from, LONG).pop() else { panic!() };
            assert_eq!((found.len(), from), (1, 0), "all are looked at, and the next look begins anew");
        }
        assert_eq!(look(&[], &none, &mut from, Duration::ZERO), []);
        assert_eq!(from, 0, "where there is no run, nobody is looked at");
    }

    #[test]
    fn no_more_of_one_run_are_told_than_can_be_kept() {
        let run = some_run();
        let all: Vec<_> = (0..MOST + 2).map(|_| Sleeper::new(Some(run))).collect();
        let told = found(&sought(run), &live([]));
        assert_eq!(told.len(), MOST);
        assert!(told.iter().all(|id| all.iter().any(|its| its.id() == *id)));
    }

    #[test]
    fn only_who_is_proved_to_be_the_runs_is_signalled() {
        use EscapeeState::{Gone, NotProved, There};
        let run = some_run();
        let (mut its, mut claimed, mut gone) = (Sleeper::new(Some(run)), Sleeper::new(None), Sleeper::new(Some(run)));
        let known = vec![its.id(), claimed.id(), gone.id()];
        let of = Sought { known: known.clone(), ..sought(run) };
        let states = |acted: Finding| match acted {
            Finding::Acted { run: r, number: 7, states, .. } if r == run => states,
            other => panic!("{other:?}"),
        };
        gone.0.kill().unwrap();
        gone.0.wait().unwrap();
        let expected = |first, second| vec![(known[0], first), (known[1], second), (known[2], Gone)];
        assert_eq!(states(act(&of, &live([]), EscapeeAct::Look)), expected(There, There));
        // Of a run that may have scattered it is not known what is outside.
        let scattered = Live([(run, Inside::Named("run.scope".into()))].into());
        let not_empty = Sought { is_empty: false, ..of.clone() };
        assert_eq!(states(act(&not_empty, &scattered, EscapeeAct::Kill)), expected(NotProved, NotProved));
        assert_eq!((its.ended_by(), claimed.ended_by()), (None, None));
        // One that is stopped acts on SIGTERM all the same.
        rustix::process::kill_process(rustix::process::Pid::from_child(&its.0), Signal::STOP).unwrap();
        assert_eq!(states(act(&of, &live([]), EscapeeAct::Terminate)), expected(There, NotProved));
        until(|| its.ended_by() == Some(15));
        let mut other = Sleeper::new(Some(run));
        // Not the one that was known by this number, and not one that is not of the run.
        let earlier = ProcessId { start_ticks: other.id().start_ticks - 1, ..other.id() };
        act(&Sought { known: vec![earlier, claimed.id()], ..of.clone() }, &live([]), EscapeeAct::Kill);
        assert_eq!((other.ended_by(), claimed.ended_by()), (None, None));
        act(&Sought { known: vec![other.id(), claimed.id()], ..of }, &live([]), EscapeeAct::Kill);
        until(|| other.ended_by() == Some(9));
        assert_eq!(claimed.ended_by(), None);
    }
}
