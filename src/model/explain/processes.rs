//! Which process of a run matters.

use std::collections::BTreeMap;
use std::time::Duration;

use super::phrase::{clipped, listed, named};
use super::threads::{self, Doing, Rank};
use crate::model::{Access, File, Holder, Object, ProcessSeen, RELAY_NAME, ThreadSeen, Wait, human_duration};

/// A process that has used this much of a core computes, whatever it does at the moment of the look.
const BUSY_PERCENT: u64 = 50;

/// CPU time in percent of a core, and in which time: of a second look if there was one, else since its start.
fn share(process: &ProcessSeen) -> Option<(u64, u64)> {
    let (cpu, over) = match process.recent {
        Some(recent) => (recent.cpu_usec, recent.over_usec),
        None => (process.cpu_usec, process.age_usec),
    };
    // A process is not judged by its first moments.
    (over >= 50_000).then(|| (cpu.saturating_mul(100) / over, over))
}

/// True for one that computes. Without a second look it also has to be seen doing so.
pub(super) fn computes(process: &ProcessSeen) -> bool {
    let busy = share(process).is_some_and(|(percent, _)| percent >= BUSY_PERCENT);
    busy && (process.recent.is_some() || threads::runs(process))
}

/// A process with what it does, and the processes of the run that it waits for.
struct Node<'a> {
    process: &'a ProcessSeen,
    doing: Doing<'a>,
    waits_for: Vec<u32>,
}

impl Node<'_> {
    /// The file whose lock it waits for.
    fn lock(&self) -> Option<&str> {
        match self.doing.thread.map(|t| &t.wait) {
            Some(Wait::Call { on: Object::Lock { path, .. }, .. }) => Some(path),
            _ => None,
        }
    }
}

/// A clause about the process that matters.
pub(super) fn what_matters(seen: &[ProcessSeen]) -> String {
    if let Some(busiest) = seen.iter().filter(|p| computes(p)).max_by_key(|p| share(p)) {
        return burns(busiest, seen);
    }
    let nodes: BTreeMap<u32, Node<'_>> = seen.iter().map(|p| (p.pid, node(p, seen))).collect();
    let is_waited_for = |pid: u32| nodes.values().any(|n| n.waits_for.contains(&pid));
    let ends = nodes.values().filter(|n| n.waits_for.is_empty());
    let told = ends.min_by_key(|n| (n.doing.rank, !is_waited_for(n.process.pid), n.process.pid));
    match told {
        Some(node) => {
            let waiting: Vec<&Node<'_>> = nodes.values().filter(|n| n.waits_for.contains(&node.process.pid)).collect();
            // Who waits for a lock says more than who waits for a child.
            let lock = waiting.iter().find_map(|n| n.lock());
            // That the relay waits for its command says nothing.
            let told = waiting.iter().filter(|n| n.lock() == lock && !is_relay(n.process));
            let names = told.map(|n| named(n.process.pid, &n.process.name)).collect::<Vec<_>>();
            let verb = if names.len() == 1 { "waits" } else { "wait" };
            let for_it = match (names.is_empty(), lock) {
                (true, _) => String::new(),
                (_, Some(path)) => format!(", whose lock on {} {} {verb} for,", clipped(path), listed(&names)),
                (_, None) => format!(", for which {} {verb},", listed(&names)),
            };
            format!("{}{for_it} {}", named(node.process.pid, &node.process.name), node.doing.text)
        }
        None => circle(&nodes),
    }
}

fn burns(process: &ProcessSeen, seen: &[ProcessSeen]) -> String {
    let (percent, over) = share(process).unwrap_or_default();
    let time = human_duration(Duration::from_micros(over));
    let when = if process.recent.is_some() { format!("over {time}") } else { format!("since its start {time} ago") };
    let others = seen.iter().filter(|p| computes(p)).count() - 1;
    let others = match others {
        0 => String::new(),
        1 => ", and another process does so too".to_owned(),
        n => format!(", and {n} other processes do so too"),
    };
    format!("{} computes: {percent} % of a core {when}{others}", named(process.pid, &process.name))
}

fn node<'a>(process: &'a ProcessSeen, seen: &[ProcessSeen]) -> Node<'a> {
    let doing = threads::what_matters(process);
    // A stopped or ended process waits for nobody, whatever call it is in.
    let on = match doing.rank {
        Rank::Stopped | Rank::Ended | Rank::Running => None,
        _ => doing.thread.and_then(|t| match &t.wait {
            Wait::Call { on, .. } => Some(on),
            _ => None,
        }),
    };
    let is_other =
        |pid: &u32| *pid != process.pid && seen.iter().any(|p| p.pid == *pid && !matches!(p.state, 'Z' | 'X'));
    let mut waits_for: Vec<u32> = match is_relay(process) && is_waiting_relay(process) {
        true => objects(&Object::Child { pid: None }, process, seen),
        false => on.map(|on| objects(on, process, seen)).unwrap_or_default(),
    };
    waits_for.retain(is_other);
    waits_for.sort_unstable();
    waits_for.dedup();
    Node { process, doing, waits_for }
}

fn is_relay(process: &ProcessSeen) -> bool {
    process.name.as_bytes() == RELAY_NAME.to_bytes()
}

/// Whether a relay waits for what its command does next. If not, it passes something on, and its output is what matters.
fn is_waiting_relay(process: &ProcessSeen) -> bool {
    let polls = |thread: &ThreadSeen| matches!(thread.wait, Wait::Call { on: Object::Several { .. }, .. });
    process.threads.iter().all(polls)
}

fn objects(on: &Object, process: &ProcessSeen, seen: &[ProcessSeen]) -> Vec<u32> {
    let pids = |holders: &[Holder]| holders.iter().map(|h| h.pid).collect::<Vec<_>>();
    let other_end = |file: &File| match file {
        File::Pipe { other_end, .. } => Some(pids(other_end)),
        File::Unix { peer: Some(peer), .. } => Some(pids(&peer.holders)),
        _ => None,
    };
    match on {
        Object::Child { pid } => {
            let children = || seen.iter().filter(|p| p.ppid == process.pid).map(|p| p.pid);
            // The pid is that of the waiter's namespace: one that is no child here says nothing.
            match pid.filter(|pid| children().any(|c| c == *pid)) {
                Some(pid) => vec![pid],
                None => children().collect(),
            }
        }
        Object::File { file, access: Access::Read | Access::Write, .. } => other_end(file).unwrap_or_default(),
        Object::Lock { holders, .. } => pids(holders),
        // It waits for others of the run only if there is nothing else that could wake it.
        Object::Several { total, some, timed: false } if some.len() as u64 == u64::from(*total) => {
            let other_ends: Option<Vec<Vec<u32>>> = some.iter().map(|p| other_end(&p.file)).collect();
            other_ends.unwrap_or_default().concat()
        }
        _ => Vec::new(),
    }
}

/// All of them wait for others of them: the circle that the first one leads to.
fn circle(nodes: &BTreeMap<u32, Node<'_>>) -> String {
    let mut path: Vec<u32> = Vec::new();
    let mut at = nodes.keys().next().copied();
    while let Some(pid) = at {
        if let Some(begin) = path.iter().position(|p| *p == pid) {
            path.drain(..begin);
            break;
        }
        path.push(pid);
        at = nodes.get(&pid).and_then(|n| n.waits_for.first().copied());
    }
    let name = |pid: &u32| nodes.get(pid).map_or_else(|| format!("pid {pid}"), |n| named(*pid, &n.process.name));
    let names: Vec<String> = path.iter().map(name).collect();
    let first = path.first().and_then(|pid| nodes.get(pid)).map(|n| n.doing.text.as_str()).unwrap_or_default();
    format!("{} wait for each other: the first {first}", listed(&names))
}
