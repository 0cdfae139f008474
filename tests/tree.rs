//! Runs below a subreaper, on the real kernel. Needs python3 and no right at all. In a process of its own, since an instance,
//! which other tests have in theirs, reaps every child.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use guardian::kernel::tree::{Entry, Lost, Members, Table, Tree, descendants};
use guardian::kernel::{KernelError, process};
use guardian::model::{ProcessId, RunId};
use rustix::process::Signal;

use common::{PATIENCE, eventually};

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Contains its command, and exits when its last descendant has: with the proof of emptiness.
const SUBREAPER: &str = "
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
if os.fork() == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    try:
        os.wait()
    except ChildProcessError:
        os._exit(0)
";

/// A subreaper with a command below it, in a directory of their own.
struct Contained {
    run: RunId,
    root: Child,
    pidfd: OwnedFd,
    tmp: tempfile::TempDir,
    excluded: Vec<u32>,
}

impl Contained {
    fn new(command: &[&str]) -> Self {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        let (run, tmp) = (RunId::from_bytes(bytes), tempfile::tempdir().unwrap());
        let mut python = Command::new("python3");
        python
            .args(["-c", SUBREAPER])
            .args(command)
            .env("SUBREAPER", SUBREAPER)
            .env("GUARDIAN_RUN_ID", run.to_string());
        let root = python.current_dir(&tmp).stdin(Stdio::null()).process_group(0).spawn().unwrap();
        let pidfd = process::open(root.id()).unwrap();
        Self { run, root, pidfd, tmp, excluded: Vec::new() }
    }

    /// Below it, once a file `ready` is there and so many processes are.
    fn ready(command: &[&str], processes: usize) -> Self {
        let contained = Self::new(command);
        until("ready", || contained.path("ready").exists() && contained.pids().len() == processes);
        contained
    }

    fn sh(script: &str, processes: usize) -> Self {
        Self::ready(&["sh", "-c", &format!("{script}\n: >ready; while :; do sleep 600; done")], processes)
    }

    fn python(script: &str, processes: usize) -> Self {
        Self::ready(&["python3", "-c", script], processes)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.tmp.path().join(name)
    }

    fn number(&self, name: &str) -> u32 {
        let text = || fs::read_to_string(self.path(name)).unwrap_or_default();
        until(name, || text().ends_with('\n'));
        text().trim().parse().unwrap()
    }

    fn id(&self) -> ProcessId {
        process::stat(self.root.id()).unwrap().id()
    }

    fn tree(&self) -> Tree<'_> {
        Tree { root: self.id(), pidfd: self.pidfd.as_fd(), excluded: &self.excluded }
    }

    /// By both ways to find them, which agree as soon as nothing changes.
    fn pids(&self) -> BTreeSet<u32> {
        let live = |entries: &[Entry]| entries.iter().filter(|e| !e.has_ended()).map(|e| e.pid).collect();
        let mut pids = BTreeSet::new();
        until("walk and table agree", || {
            pids = live(&descendants(self.root.id()).unwrap().entries);
            let table = Table::read().unwrap();
            pids == live(&table.below(self.root.id()).into_iter().cloned().collect::<Vec<_>>())
        });
        pids
    }

    fn is_empty(&mut self) -> bool {
        self.root.try_wait().unwrap().is_some_and(|status| status.success())
    }

    /// Kills every 10 ms until the root says that it has no child; gives the number of calls that had something new to
    /// kill. (What was sent SIGKILL is there until it had its turn of the processor.)
    fn kill(&mut self) -> u32 {
        let (deadline, mut calls, mut seen) = (Instant::now() + PATIENCE, 0, HashSet::new());
        while !self.is_empty() {
            assert!(Instant::now() < deadline, "left: {:?}", self.tree().evidence(PATIENCE));
            let present = descendants(self.root.id()).map(|reading| reading.entries).unwrap_or_default();
            calls += u32::from(any_is_new(&present, &mut seen));
            self.tree().kill().map_or_else(|e| assert!(e.is_gone(), "{e}"), drop);
            let next = Instant::now() + Duration::from_millis(10);
            until("it is empty, or time for the next call", || self.is_empty() || Instant::now() > next);
        }
        calls
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.root.try_wait(), Ok(None)) && Instant::now() < deadline {
            let _ = self.tree().kill();
        }
        end(&marked(self.run));
    }
}

fn marked(run: RunId) -> Vec<ProcessId> {
    let mark = run.to_string().into_bytes();
    let table = Table::read().unwrap();
    let is_marked = |e: &&Entry| process::variable(e.pid, "GUARDIAN_RUN_ID").as_ref() == Some(&mark);
    table.entries().iter().filter(is_marked).map(Entry::id).collect()
}

fn end(processes: &[ProcessId]) {
    processes.iter().flat_map(|id| process::open_known(*id)).for_each(|fd| drop(process::signal(fd, Signal::KILL)));
}

fn any_is_new(present: &[Entry], seen: &mut HashSet<ProcessId>) -> bool {
    present.iter().filter(|e| !e.has_ended() && seen.insert(e.id())).count() > 0
}

fn alive(pid: u32) -> bool {
    process::stat(pid).is_ok_and(|stat| !stat.has_ended())
}

#[test]
fn daemons_of_two_forks_and_setsid_are_found_and_killed() {
    let mut contained = Contained::sh("for i in 1 2 3; do setsid sh -c '(setsid sleep 600 &)' & done; wait", 5);
    assert_eq!(contained.tree().kill().unwrap(), 5);
    contained.kill();
}

#[test]
fn a_child_that_another_thread_made_is_found() {
    let script = "import subprocess, threading
def work():
    subprocess.Popen(['sleep', '600'])
    open('ready', 'w')
    threading.Event().wait()
threading.Thread(target=work).start()";
    let mut contained = Contained::python(script, 2);
    assert_eq!(contained.tree().sample(&Table::read().unwrap()).unwrap().tasks, Some(3));
    assert_eq!(contained.tree().terminate().unwrap(), 2);
    until("it ends", || contained.is_empty());
}

#[test]
fn a_process_whose_main_thread_ended_is_none_that_ended() {
    let script = "import ctypes, platform, subprocess, threading
def work():
    subprocess.Popen(['sleep', '600'])
    open('ready', 'w')
    threading.Event().wait()
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({'x86_64': 60}.get(platform.machine(), 93), 0)";
    let mut contained = Contained::python(script, 2);
    until("its main thread ends", || contained.tree().evidence(PATIENCE).processes.iter().any(|p| p.state == 'Z'));
    assert_eq!(contained.tree().kill().unwrap(), 2);
    contained.kill();
}

#[test]
fn what_is_below_a_nested_subreaper_is_found() {
    let nested = "exec python3 -c \"$SUBREAPER\" sh -c '(setsid sleep 600 &); : >ready; exec sleep 600'";
    let mut contained = Contained::ready(&["sh", "-c", nested], 3);
    assert_eq!(contained.tree().kill().unwrap(), 3);
    contained.kill();
}

/// One at a time is enough for a host.
static BOMBS: Mutex<()> = Mutex::new(());

/// As many as the busiest host has needed, and some. An idle one needs one or two.
const FEW: u32 = 10;

/// Grows to 500 processes. The last ones go on changing: each forks and ends at once, so that the child is the root's.
const BOMB: &str = "
import mmap, os, signal, struct, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
shared = mmap.mmap(-1, 4)
def count():
    return struct.unpack('i', shared[:4])[0]
while count() < 500:
    shared[:4] = struct.pack('i', count() + 1)
    os.fork()
    if count() == 250:
        open('half', 'w')
open('ready', 'w')
if os.getpid() % 100 == 0:
    while os.fork() == 0:
        pass
    os._exit(0)
time.sleep(600)
";

#[test]
fn a_fork_bomb_that_ignores_sigterm_ends_in_a_few_calls() {
    let _alone = BOMBS.lock();
    for moment in ["half", "ready"] {
        let mut contained = Contained::new(&["python3", "-c", BOMB]);
        until(moment, || contained.path(moment).exists());
        contained.tree().terminate().unwrap();
        assert!(contained.tree().populated().unwrap());
        let started = Instant::now();
        let calls = contained.kill();
        println!("fork bomb, {moment}: {calls} calls, {:?}", started.elapsed());
        assert!(calls <= FEW, "{calls} calls");
    }
}

#[test]
fn what_never_stays_in_one_process_is_not_lost() {
    let script = "import os
open('ready', 'w')
for i in range(3):
    os.fork()
while True:
    if os.fork():
        os._exit(0)";
    let mut contained = Contained::new(&["python3", "-c", script]);
    until("ready", || contained.path("ready").exists());
    let calls = contained.kill();
    assert!(calls <= FEW, "{calls} calls");
}

#[test]
fn a_stopped_process_acts_on_sigterm() {
    let mut contained = Contained::sh("sleep 600 & kill -STOP $!", 3);
    until("one is stopped", || contained.tree().evidence(PATIENCE).processes.iter().any(|p| p.state == 'T'));
    assert_eq!(contained.tree().terminate().unwrap(), 3);
    until("it ends", || contained.is_empty());
}

#[test]
fn a_run_is_frozen_whole_and_goes_on_whole() {
    let mut contained = Contained::sh("sleep 600 & (setsid sleep 600 &)", 4);
    let states =
        |c: &Contained| -> BTreeSet<char> { c.tree().evidence(PATIENCE).processes.iter().map(|p| p.state).collect() };
    contained.tree().freeze(true).unwrap();
    let seen = states(&contained);
    // D is a shell in vfork(2) whose child was stopped before it executed anything.
    assert!(seen.contains(&'T') && seen.is_subset(&BTreeSet::from(['T', 'D'])), "{seen:?}");
    contained.tree().freeze(false).unwrap();
    until("all go on", || !states(&contained).contains(&'T'));
    contained.tree().freeze(true).unwrap();
    assert_eq!(contained.tree().kill().unwrap(), 4);
    contained.kill();
}

#[test]
fn an_excluded_process_is_neither_counted_nor_terminated_but_killed() {
    let mut contained = Contained::sh("sleep 600 & echo $! >excluded", 3);
    let excluded = contained.number("excluded");
    contained.excluded = vec![excluded];
    assert_eq!(contained.tree().evidence(PATIENCE).total, 2);
    assert_eq!(contained.tree().terminate().unwrap(), 2);
    until("the others end", || !contained.tree().populated().unwrap());
    assert!(alive(excluded));
    assert_eq!(contained.tree().sample(&Table::read().unwrap()).unwrap().tasks, Some(0));
    assert_eq!(contained.tree().kill().unwrap(), 0);
    until("it ends", || contained.is_empty());
}

#[test]
fn a_zombie_is_nobody() {
    let script = "import os, time
if os.fork() == 0:
    os._exit(0)
open('ready', 'w')
time.sleep(600)";
    let mut contained = Contained::python(script, 1);
    assert_eq!(descendants(contained.root.id()).unwrap().entries.len(), 2);
    let tree = contained.tree();
    assert_eq!((tree.evidence(PATIENCE).total, tree.terminate().unwrap()), (1, 1));
    until("it ends", || contained.is_empty());
}

#[test]
fn what_ended_processes_used_and_moved_stays_in_the_sums() {
    let script =
        "until [ -e go ]; do sleep 0.01; done; head -c 100000000 /dev/zero | tail -c 1 >/dev/null; : >ready; sleep 600";
    let mut contained = Contained::new(&["sh", "-c", script]);
    until("the command runs", || contained.tree().populated().unwrap());
    let (own, before) = (process::io(contained.root.id()).unwrap(), contained.tree().sample(&Table::read().unwrap()));
    fs::write(contained.path("go"), "").unwrap();
    until("ready", || contained.path("ready").exists() && contained.pids().len() == 2);
    let table = Table::read().unwrap();
    let (after, moved) = (contained.tree().sample(&table).unwrap(), contained.tree().io(&table, own).unwrap());
    assert!(after.cpu_usec > before.unwrap().cpu_usec, "{after:?}");
    assert!(after.memory_bytes.unwrap() > 100_000 && after.tasks == Some(2), "{after:?}");
    assert!((300_000_000..320_000_000).contains(&moved.characters), "{moved:?}");
    contained.tree().kill().unwrap();
    until("it ends", || contained.is_empty());
    assert!(contained.tree_is_gone(&table.get(contained.root.id()).unwrap().id()));
}

impl Contained {
    fn tree_is_gone(&self, root: &ProcessId) -> bool {
        let tree = Tree { root: *root, pidfd: self.pidfd.as_fd(), excluded: &[] };
        let gone = |result: Result<u32, KernelError>| result.is_err_and(|e| e.is_gone());
        gone(tree.terminate()) && gone(tree.kill()) && tree.sample(&Table::read().unwrap()).is_err_and(|e| e.is_gone())
    }
}

/// The members by name, of which there is one for each way to find them.
fn names(lost: &Lost) -> BTreeSet<String> {
    let members = lost.members(&Table::read().unwrap());
    members.iter().filter(|e| !e.has_ended()).map(|e| e.comm.clone()).collect()
}

/// A program under a name of its own.
fn named(dir: &Path, names: &[&str]) {
    let sleep = ["/usr/bin/sleep", "/bin/sleep"].into_iter().find(|p| Path::new(p).exists()).unwrap();
    names.iter().for_each(|name| std::os::unix::fs::symlink(sleep, dir.join(name)).unwrap());
}

/// The root of the run is itself below a subreaper, which gets the orphans.
#[test]
fn what_a_killed_root_leaves_is_found_by_record_mark_foster_parent_and_descent() {
    const SCRIPT: &str = "until [ -e named ]; do sleep 0.01; done
        ./known 600 & echo $! >known.pid
        GUARDIAN_RUN_ID=run_0123456789ab0 ./similar 600 & echo $! >similar.pid
        XGUARDIAN_RUN_ID=run_0123456789ab ./prefixed 600 & echo $! >prefixed.pid
        GUARDIAN_RUN_ID=run_0123456789ab python3 -c \"$SUBREAPER\" sh main & echo $! >root.pid
        wait";
    const MAIN: &str = "echo $$ >main.pid
        ./marked 600 & echo $! >marked.pid
        env -i ./recorded 600 & echo $! >recorded.pid
        env -i ./fostered 600 & echo $! >fostered.pid
        env -i sh -c 'echo $$ >between.pid; ./descended 600 & echo $! >descended.pid; wait' &
        wait";
    const STRANGERS: [&str; 3] = ["known", "similar", "prefixed"];
    const MEMBERS: [&str; 4] = ["marked", "recorded", "fostered", "descended"];
    let mut foster = Contained::new(&["sh", "-c", SCRIPT]);
    fs::write(foster.path("main"), MAIN).unwrap();
    named(foster.tmp.path(), &[&STRANGERS[..], &MEMBERS].concat());
    fs::write(foster.path("named"), "").unwrap();
    let stat = |name: &str| process::stat(foster.number(&format!("{name}.pid"))).unwrap();
    for name in STRANGERS.iter().chain(&MEMBERS) {
        until(name, || stat(name).comm == *name);
    }
    let (root, main, between) = (stat("root"), stat("main").id(), stat("between").id());
    let (fostered, shell, strangers) = (stat("fostered").pid, root.ppid, STRANGERS.map(|name| stat(name).pid));
    let recorded = BTreeMap::from([(stat("recorded").pid, stat("recorded").start_ticks), (fostered, 1)]);
    let spared = [shell];
    let lost = |foster_parent| Lost {
        run: "run_0123456789ab".parse().unwrap(),
        root_start_ticks: root.start_ticks,
        recorded: &recorded,
        foster_parent,
        spared: &spared,
        excluded: &[],
    };
    let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<String>>();
    end(&[root.id()]);
    until("the main process is an orphan", || process::stat(main.pid).unwrap().ppid == foster.root.id());
    // The main process carries the mark, and the others are below it.
    assert_eq!(names(&lost(None)), of(&["sh", "marked", "recorded", "fostered", "descended"]));
    end(&[main]);
    until("all are orphans", || process::stat(fostered).unwrap().ppid == foster.root.id());
    assert_eq!(names(&lost(None)), of(&["marked", "recorded"]));
    let lost = lost(Some(foster.id()));
    assert_eq!(names(&lost), of(&["sh", "marked", "recorded", "fostered", "descended"]));

    assert!(lost.populated().unwrap());
    let table = Table::read().unwrap();
    let usage = lost.sample(&table);
    assert!(usage.tasks == Some(5) && usage.memory_bytes.unwrap() > 0, "{usage:?}");
    assert!(lost.io(&table).characters > 0);
    let seen = lost.evidence(PATIENCE);
    assert_eq!((seen.total, seen.processes.len()), (5, 5));
    lost.freeze(true).unwrap();
    assert_eq!(lost.terminate().unwrap(), 5);
    until("it is empty", || !lost.populated().unwrap());
    assert!(!alive(between.pid));
    assert!(strangers.into_iter().all(alive) && alive(shell) && alive(foster.root.id()));
    foster.kill();
}

#[test]
fn a_lost_run_that_ignores_sigterm_is_killed() {
    const SCRIPT: &str =
        "GUARDIAN_RUN_ID=run_ba9876543210 python3 -c \"$SUBREAPER\" python3 bomb & echo $! >root.pid; wait";
    let mut foster = Contained::new(&["sh", "-c", &format!("until [ -e bomb ]; do sleep 0.01; done; {SCRIPT}")]);
    fs::write(foster.path("bomb.py"), BOMB).unwrap();
    fs::rename(foster.path("bomb.py"), foster.path("bomb")).unwrap();
    until("ready", || foster.path("ready").exists());
    let root = process::stat(foster.number("root.pid")).unwrap();
    let (recorded, spared) = (BTreeMap::new(), [root.ppid]);
    end(&[root.id()]);
    let lost = Lost {
        run: "run_ba9876543210".parse().unwrap(),
        root_start_ticks: root.start_ticks,
        recorded: &recorded,
        foster_parent: Some(foster.id()),
        spared: &spared,
        excluded: &[],
    };
    let terminated = lost.terminate().unwrap();
    assert!(terminated >= 400, "{terminated}");
    assert!(lost.populated().unwrap());
    let (mut calls, mut seen, started) = (0, HashSet::new(), Instant::now());
    until("it is empty", || {
        calls += u32::from(any_is_new(&lost.members(&Table::read().unwrap()), &mut seen));
        lost.kill().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        !lost.populated().unwrap()
    });
    println!("lost fork bomb: {calls} calls, {:?}", started.elapsed());
    assert!(calls <= FEW, "{calls} calls");
    foster.kill();
}
