//! Every deadline of every run, soonest first.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Mono, Rule, RunId};

/// What falls due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Due {
    /// The store has not confirmed in time what must be on record before the run goes on.
    Record,
    /// Look whether the run is ready.
    Probe,
    /// 80 % of a timer's time.
    Warn(Rule),
    /// A timer.
    Timer(Rule),
    /// A rule wants the run to be looked at.
    Watch,
    /// Look for escapees, or an answer to that is overdue.
    Seek,
    /// An answer about locks of git is overdue.
    Locks,
    /// The next step in ending escapees.
    Hunt,
    /// The main process exited a moment ago, and others are still there.
    Settle,
    /// Publish what a run said of itself.
    Tell,
    /// The grace period is over.
    Grace,
    /// The cgroup was killed and is not empty yet: kill again.
    KillAgain,
    /// The cgroup was killed and has not been empty for long.
    Unkillable,
    /// The cgroup is empty and nobody has said how the main process ended.
    Status,
    /// The cgroup was still in use when it was to be removed.
    RemoveAgain,
}

/// The deadlines. Each run has at most one of each kind: setting it again moves it.
#[derive(Debug, Default)]
pub struct Deadlines {
    order: BTreeSet<(Mono, RunId, Due)>,
    at: BTreeMap<(RunId, Due), Mono>,
}

impl Deadlines {
    /// Sets or moves a deadline.
    pub fn set(&mut self, run: RunId, due: Due, at: Mono) {
        if self.at.get(&(run, due)) == Some(&at) {
            return;
        }
        self.clear(run, due);
        self.at.insert((run, due), at);
        self.order.insert((at, run, due));
    }

    /// Removes a deadline, if there is one.
    pub fn clear(&mut self, run: RunId, due: Due) {
        if let Some(at) = self.at.remove(&(run, due)) {
            self.order.remove(&(at, run, due));
        }
    }

    /// Removes every deadline of a run.
    pub fn clear_run(&mut self, run: RunId) {
        let all: Vec<Due> = self.of(run).map(|(due, _)| due).collect();
        all.into_iter().for_each(|due| self.clear(run, due));
    }

    /// The deadlines of a run.
    pub fn of(&self, run: RunId) -> impl Iterator<Item = (Due, Mono)> + '_ {
        self.at.range((run, Due::Record)..).take_while(move |((r, _), _)| *r == run).map(|((_, due), at)| (*due, *at))
    }

    /// When the next one falls due.
    pub fn next(&self) -> Option<Mono> {
        self.order.first().map(|(at, _, _)| *at)
    }

    /// Takes out the next one that is due.
    pub fn pop(&mut self, now: Mono) -> Option<(RunId, Due)> {
        let (at, run, due) = *self.order.first().filter(|(at, _, _)| *at <= now)?;
        self.order.remove(&(at, run, due));
        self.at.remove(&(run, due));
        Some((run, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_soonest_first_and_each_once() {
        let (a, b) = (RunId::from_bytes([0; 6]), RunId::from_bytes([1; 6]));
        let mut d = Deadlines::default();
        d.set(a, Due::Grace, Mono(30));
        d.set(b, Due::Timer(Rule::MaxRuntime), Mono(20));
        d.set(a, Due::Grace, Mono(10));
        d.set(a, Due::Unkillable, Mono(50));
        d.clear(a, Due::Settle);
        assert_eq!(d.of(a).count(), 2);
        assert_eq!((d.next(), d.pop(Mono(9))), (Some(Mono(10)), None));
        assert_eq!(d.pop(Mono(25)), Some((a, Due::Grace)));
        assert_eq!(d.pop(Mono(25)), Some((b, Due::Timer(Rule::MaxRuntime))));
        assert_eq!(d.pop(Mono(25)), None);
        d.clear_run(a);
        assert_eq!(d.next(), None);
    }
}
