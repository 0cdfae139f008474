//! The runs of the view: which are shown, in which order, how fast they compute, how near their end is. Pure.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::model::{Action, Health, Rule, RunId, RunView, Wall};

/// CPU use is the mean over so much time, or over one step of the readings where these are longer.
const WINDOW: Duration = Duration::from_secs(10);
/// A run whose CPU time has not grown for so long does not compute. The instance reads it each 5 s as a rule.
const STILL: Duration = Duration::from_secs(12);

/// A run of the list.
#[derive(Debug, Clone)]
pub struct Row {
    /// The run.
    pub view: RunView,
    /// What it uses of the CPU, in percent of one core, once that is known.
    pub cpu_percent: Option<u64>,
    /// The deadline that will end it first, if one will.
    pub used: Option<Used>,
}

/// How much of the time until a deadline is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Used {
    /// In percent, at most 100.
    pub percent: u64,
    /// The rule that ends the run then.
    pub rule: Rule,
}

/// What the list is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// The worst health first, and of one health the oldest.
    #[default]
    Health,
    /// The oldest first.
    Time,
    /// Who is nearest to a deadline first.
    Deadline,
    /// Whose last heartbeat is longest ago first.
    Heartbeat,
    /// Who computes most first.
    Cpu,
    /// Who uses most memory first.
    Memory,
    /// Who has most tasks first.
    Tasks,
    /// By name.
    Workflow,
}

impl Sort {
    const ALL: [Sort; 8] = [
        Sort::Health,
        Sort::Time,
        Sort::Deadline,
        Sort::Heartbeat,
        Sort::Cpu,
        Sort::Memory,
        Sort::Tasks,
        Sort::Workflow,
    ];

    /// The name on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Sort::Health => "health",
            Sort::Time => "time",
            Sort::Deadline => "deadline",
            Sort::Heartbeat => "heartbeat",
            Sort::Cpu => "CPU",
            Sort::Memory => "memory",
            Sort::Tasks => "tasks",
            Sort::Workflow => "workflow",
        }
    }

    /// The one after it, or before it; after the last comes the first.
    pub fn neighbour(self, forward: bool) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        let step = if forward { 1 } else { Self::ALL.len() - 1 };
        Self::ALL[(at + step) % Self::ALL.len()]
    }

    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let by = match self {
            Sort::Health => b.view.health.cmp(&a.view.health),
            Sort::Time => Ordering::Equal,
            Sort::Deadline => b.used.cmp(&a.used),
            Sort::Heartbeat => {
                let at = |row: &Row| row.view.heartbeats.last_at.unwrap_or(Wall(u64::MAX));
                at(a).cmp(&at(b))
            }
            Sort::Cpu => b.cpu_percent.cmp(&a.cpu_percent),
            Sort::Memory => b.view.usage.memory_bytes.cmp(&a.view.usage.memory_bytes),
            Sort::Tasks => b.view.usage.tasks.cmp(&a.view.usage.tasks),
            Sort::Workflow => a.view.spec.workflow.cmp(&b.view.spec.workflow),
        };
        let age = |row: &Row| (row.view.created_at, row.view.spec.id);
        by.then_with(|| age(a).cmp(&age(b)))
    }
}

/// The runs, as the instance told them last.
#[derive(Debug, Default)]
pub struct List {
    /// What they are sorted by.
    pub sort: Sort,
    /// The other way round.
    pub reversed: bool,
    /// What a run has to have somewhere in its text, or nothing.
    pub filter: String,
    rows: Vec<Row>,
    shown: Vec<usize>,
    meters: HashMap<RunId, Meter>,
}

impl List {
    /// Takes what was told at a time, of the clock and since the view began.
    pub fn take(&mut self, views: Vec<RunView>, now: Wall, at: Duration) {
        let mut before = std::mem::take(&mut self.meters);
        let row = |view: RunView| {
            let mut meter = before.remove(&view.spec.id).unwrap_or_default();
            let cpu_percent = view.usage.cpu_usec.and_then(|usec| meter.read(at, usec));
            self.meters.insert(view.spec.id, meter);
            Row { used: used(&view, now), cpu_percent, view }
        };
        self.rows = views.into_iter().map(row).collect();
        self.arrange();
    }

    /// Looks anew for what is shown, and in which order.
    pub fn arrange(&mut self) {
        let wanted = self.filter.to_lowercase();
        let is_wanted = |row: &Row| wanted.is_empty() || text(&row.view).contains(&wanted);
        let mut shown: Vec<(usize, &Row)> = self.rows.iter().enumerate().filter(|(_, row)| is_wanted(row)).collect();
        shown.sort_by(|(_, a), (_, b)| self.sort.compare(a, b));
        self.shown = shown.into_iter().map(|(n, _)| n).collect();
        if self.reversed {
            self.shown.reverse();
        }
    }

    /// How many are shown.
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.rows.len()
    }

    /// How many of them wait for their turn.
    pub fn queued(&self) -> usize {
        self.rows.iter().filter(|row| row.view.queued.is_some()).count()
    }

    /// How many of them have this health.
    pub fn count(&self, health: Health) -> usize {
        self.rows.iter().filter(|row| row.view.health == health).count()
    }

    /// The one that is shown in this place.
    pub fn get(&self, place: usize) -> Option<&Row> {
        self.rows.get(*self.shown.get(place)?)
    }

    /// The place of a run, if it is shown.
    pub fn place(&self, run: RunId) -> Option<usize> {
        (0..self.len()).find(|place| self.get(*place).is_some_and(|row| row.view.spec.id == run))
    }
}

/// Everything of a run that a person may look for.
fn text(view: &RunView) -> String {
    let spec = &view.spec;
    let frozen = if view.frozen { "frozen" } else { "" };
    let words = [
        &spec.id.to_string(),
        &spec.workflow,
        spec.name.as_deref().unwrap_or_default(),
        &spec.user,
        view.phase.as_str(),
        frozen,
        view.health.as_str(),
        &view.heartbeats.status,
        &spec.command.join(" "),
    ];
    words.join("\n").to_lowercase()
}

/// The deadline that will end a run first, if one will: those that warn are no end.
pub fn used(view: &RunView, now: Wall) -> Option<Used> {
    let limits = &view.spec.limits;
    let ends = |rule: Rule| match limits.rule(rule) {
        Some((action, _)) => action == Action::Kill && !limits.watch.dry_run,
        // Nobody waits for a turn longer than that.
        None => rule == Rule::QueueTimeout,
    };
    let hard = view.deadlines.iter().filter(|(rule, _)| ends(*rule));
    let (rule, at) = *hard.min_by_key(|(_, at)| *at)?;
    let whole = match rule {
        // With what it was extended by.
        Rule::QueueTimeout | Rule::InitTimeout | Rule::MaxRuntime => {
            at.0.saturating_sub(view.started_at.unwrap_or(view.created_at).0)
        }
        _ => u64::try_from(limits.allowed(rule)?.as_micros()).unwrap_or(u64::MAX),
    };
    let left = at.0.saturating_sub(now.0).min(whole);
    let percent = u128::from(whole - left) * 100 / u128::from(whole.max(1));
    Some(Used { percent: u64::try_from(percent).unwrap_or(100).min(100), rule })
}

/// Tells the CPU use of a run from what is read of its CPU time. The instance reads that less often than it is asked, so a
/// step counts from one change to the next: when the reading before the first one was taken, nobody knows.
#[derive(Debug, Default)]
struct Meter {
    /// When it was seen first, or found to be still, and what it had used by then.
    since: Option<(Duration, u64)>,
    is_still: bool,
    changes: VecDeque<(Duration, u64)>,
}

impl Meter {
    fn read(&mut self, at: Duration, cpu_usec: u64) -> Option<u64> {
        let since = *self.since.get_or_insert((at, cpu_usec));
        let last = self.changes.back().copied().unwrap_or(since);
        if cpu_usec < last.1 {
            *self = Self { since: Some((at, cpu_usec)), ..Self::default() };
            return None;
        }
        if cpu_usec > last.1 {
            self.changes.push_back((at, cpu_usec));
        }
        while self.changes.len() > 2 && self.changes.front().is_some_and(|(first, _)| at - *first > WINDOW) {
            self.changes.pop_front();
        }
        let mut newest = self.changes.iter().rev();
        let (newest, before) = (newest.next().copied(), newest.next().copied());
        let step = newest.zip(before).map_or(Duration::ZERO, |(newest, before)| newest.0 - before.0);
        if at - newest.unwrap_or(since).0 > STILL.max(step * 2) {
            *self = Self { since: Some((at, cpu_usec)), is_still: true, ..Self::default() };
        }
        let (first, newest) = (self.changes.front().copied(), self.changes.back().copied());
        match first.zip(newest).filter(|(first, newest)| newest.0 > first.0) {
            Some((first, newest)) => {
                let over = u64::try_from((newest.0 - first.0).as_micros()).unwrap_or(u64::MAX);
                Some((newest.1 - first.1).saturating_mul(100) / over.max(1))
            }
            None => self.is_still.then_some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn cpu_use_is_told_from_one_change_to_the_next() {
        let mut meter = Meter::default();
        // Read each 5 s, asked each second: 2 s of CPU time in 5 s.
        let asked: Vec<Option<u64>> = (0..17).map(|s| meter.read(seconds(s), (s + 3) / 5 * 2_000_000)).collect();
        assert_eq!(asked[..7], [None; 7], "when it was read before the first change is not known");
        assert_eq!(asked[7..], [Some(40); 10]);
        // And then nothing any more.
        assert_eq!(meter.read(seconds(24), 6_000_000), Some(40));
        assert_eq!(meter.read(seconds(25), 6_000_000), Some(0));
        assert_eq!(meter.read(seconds(31), 6_500_000), Some(0), "one change is no step");
        assert_eq!(meter.read(seconds(36), 11_500_000), Some(100));
        assert_eq!(meter.read(seconds(37), 5), None, "another counter");
    }

    #[test]
    fn a_run_that_is_read_as_often_as_it_is_asked_is_measured_over_ten_seconds() {
        let mut meter = Meter::default();
        let busy = |s: u64| if s < 10 { s * 1_000_000 } else { 10_000_000 + (s - 10) * 500_000 };
        let asked: Vec<Option<u64>> = (0..40).map(|s| meter.read(seconds(s), 1 + busy(s))).collect();
        assert_eq!((asked[5], asked[39]), (Some(100), Some(50)));
    }

    #[test]
    fn after_the_last_order_comes_the_first() {
        let mut sort = Sort::default();
        for _ in 0..Sort::ALL.len() {
            assert_eq!(sort.neighbour(true).neighbour(false), sort);
            sort = sort.neighbour(true);
        }
        assert_eq!(sort, Sort::Health);
    }
}
