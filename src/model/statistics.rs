//! What the runs that are over tell: how often, how long, how much, how they ended, and which limits would fit.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{Rule, Wall, human_duration};

/// Fewer runs say too little to suggest a limit.
const BASIS_MIN: usize = 20;
const DAY_USEC: u64 = 24 * 3600 * 1_000_000;

/// A run that is over, as far as statistics are concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PastRun {
    /// The workflow.
    pub workflow: String,
    /// When its command was executed; none if it never was.
    pub started_at: Option<Wall>,
    /// When it became ready.
    pub ready_at: Option<Wall>,
    /// When it was over.
    pub finished_at: Wall,
    /// How it ended, as [`super::Outcome::code`] says.
    pub outcome: String,
    /// The code that it exited with, if it did.
    pub exit_code: Option<i32>,
    /// Why Guardian ended it or what it left, as [`super::KillReason::code`] says.
    pub ended_by: Option<String>,
    /// CPU time in all, in microseconds.
    pub cpu_usec: Option<u64>,
    /// The most memory.
    pub memory_peak_bytes: Option<u64>,
}

/// How many ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// Exited with 0.
    pub succeeded: u64,
    /// Exited with another code.
    pub failed: u64,
    /// By a signal that was not Guardian's.
    pub signaled: u64,
    /// By Guardian.
    pub killed: u64,
    /// For want of memory.
    pub oom: u64,
    /// Nobody knows how.
    pub lost: u64,
}

impl Outcomes {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("succeeded", self.succeeded),
            ("failed", self.failed),
            ("signaled", self.signaled),
            ("killed", self.killed),
            ("oom", self.oom),
            ("lost", self.lost),
        ]
    }

    /// The one of this name.
    pub fn by_name(&mut self, name: &str) -> Option<&mut u64> {
        match name {
            "succeeded" => Some(&mut self.succeeded),
            "failed" => Some(&mut self.failed),
            "signaled" => Some(&mut self.signaled),
            "killed" => Some(&mut self.killed),
            "oom" => Some(&mut self.oom),
            "lost" => Some(&mut self.lost),
            _ => None,
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.named().iter().map(|(_, n)| n).sum()
    }

    /// Those that neither succeeded nor were ended by Guardian.
    pub fn troubled(&self) -> u64 {
        self.failed + self.signaled + self.oom + self.lost
    }

    fn count(&mut self, run: &PastRun) {
        let name = match (run.outcome.as_str(), run.exit_code) {
            ("exited", Some(0)) => "succeeded",
            ("exited", _) => "failed",
            (other, _) => other,
        };
        match self.by_name(name) {
            Some(n) => *n += 1,
            None => self.lost += 1,
        }
    }
}

/// Values by rank: half of all are at most `p50`, and so on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: u64,
    /// 95 % are at most this.
    pub p95: u64,
    /// 99 % are at most this.
    pub p99: u64,
    /// The greatest.
    pub max: u64,
}

impl Quantiles {
    /// Of these values, in order; none of none. By the nearest rank, so that each is a value that there was.
    fn of(sorted: &[u64]) -> Option<Self> {
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { p50: rank(50)?, p95: rank(95)?, p99: rank(99)?, max: *sorted.last()? })
    }
}

/// A day of a workflow, from midnight to midnight UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Day {
    /// Its midnight.
    pub at: Wall,
    /// How many ended on it, and how.
    pub outcomes: Outcomes,
    /// The median time of those that ended by themselves.
    pub duration_p50_usec: Option<u64>,
    /// The most memory that one of them used.
    pub memory_peak_max_bytes: Option<u64>,
}

/// What a suggestion is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Suggested {
    /// [`Rule::InitTimeout`], in microseconds.
    InitTimeout,
    /// [`Rule::MaxRuntime`], in microseconds.
    MaxRuntime,
    /// `memory_max`, in bytes.
    MemoryMax,
}

impl Suggested {
    /// Every one.
    pub const ALL: [Suggested; 3] = [Suggested::InitTimeout, Suggested::MaxRuntime, Suggested::MemoryMax];

    /// The key of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Suggested::InitTimeout => Rule::InitTimeout.as_str(),
            Suggested::MaxRuntime => Rule::MaxRuntime.as_str(),
            Suggested::MemoryMax => "memory_max",
        }
    }
}

/// A limit that would fit a workflow, and what that is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suggestion {
    /// The limit.
    pub limit: Suggested,
    /// Its value: microseconds, or bytes.
    pub value: u64,
    /// The runs that it is based on.
    pub basis: u64,
    /// What 99 % of them kept to.
    pub p99: u64,
    /// How many of them it would have ended.
    pub exceeding: u64,
}

impl Suggestion {
    /// Of these values, in order: room above the 99th percentile, rounded up to what a person would write.
    fn of(limit: Suggested, sorted: &[u64]) -> Option<Self> {
        let p99 = Quantiles::of(sorted).filter(|_| sorted.len() >= BASIS_MIN)?.p99;
        let value = match limit {
            // How long until something is ready varies more than how long it takes in all.
            Suggested::InitTimeout => rounded_time(p99.saturating_mul(3).max(10_000_000)),
            Suggested::MaxRuntime => rounded_time(p99.saturating_add(p99 / 2).max(1_000_000)),
            Suggested::MemoryMax => rounded_size(p99.saturating_add(p99 / 4)),
        };
        let exceeding = sorted.len() - sorted.partition_point(|v| *v <= value);
        Some(Self { limit, value, basis: sorted.len() as u64, p99, exceeding: exceeding as u64 })
    }

    /// The line of the configuration.
    pub fn setting(&self) -> String {
        match self.limit {
            Suggested::MemoryMax => format!("{} = \"{}M\"", self.limit.as_str(), self.value >> 20),
            _ => {
                let secs = self.value / 1_000_000;
                let value = match secs {
                    s if s % 3600 == 0 => format!("{}h", s / 3600),
                    s if s % 60 == 0 => format!("{}m", s / 60),
                    s => format!("{s}s"),
                };
                format!("{} = \"{value}\"", self.limit.as_str())
            }
        }
    }
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p99 = match self.limit {
            Suggested::MemoryMax => format!("{} MiB", self.p99.div_ceil(1 << 20)),
            _ => human_duration(Duration::from_micros(self.p99)),
        };
        let percent = self.exceeding as f64 * 100.0 / self.basis.max(1) as f64;
        let (setting, basis) = (self.setting(), self.basis);
        write!(f, "{setting} (p99 of {basis} runs is {p99}; {} of them, {percent:.1} %, took more)", self.exceeding)
    }
}

/// The next time that a person would write.
fn rounded_time(usec: u64) -> u64 {
    const STEPS: [u64; 25] = [
        1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 2700, 3600, 5400, 7200, 10_800, 14_400,
        21_600, 28_800, 43_200, 86_400,
    ];
    let secs = usec.div_ceil(1_000_000);
    let step = STEPS.into_iter().find(|step| secs <= *step);
    step.unwrap_or_else(|| secs.div_ceil(86_400).saturating_mul(86_400)).saturating_mul(1_000_000)
}

/// The next size in quarters of a power of two, of 16 MiB at least.
fn rounded_size(bytes: u64) -> u64 {
    let bytes = bytes.max(16 << 20);
    let quarter = 1 << bytes.ilog2().saturating_sub(2);
    bytes.checked_next_multiple_of(quarter).unwrap_or(u64::MAX)
}

/// What there is to say about the runs of a workflow that are over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The workflow.
    pub workflow: String,
    /// When the first of them was over.
    pub first_at: Wall,
    /// When the last of them was over.
    pub last_at: Wall,
    /// How many, and how they ended.
    pub outcomes: Outcomes,
    /// How many Guardian ended, or what they left, for which reason.
    pub kills: BTreeMap<String, u64>,
    /// Time from start to end of those that exited by themselves, in microseconds.
    pub duration_usec: Option<Quantiles>,
    /// CPU time, in microseconds, where it is known.
    pub cpu_usec: Option<Quantiles>,
    /// The most memory of each, where it is known.
    pub memory_peak_bytes: Option<Quantiles>,
    /// The days on which some were over, in order.
    pub days: Vec<Day>,
    /// Limits that would fit.
    pub suggestions: Vec<Suggestion>,
}

/// Takes runs in, and gives what there is to say about each workflow.
#[derive(Debug, Default)]
pub struct Collector {
    workflows: BTreeMap<String, Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    first_at: Option<Wall>,
    last_at: Wall,
    outcomes: Outcomes,
    kills: BTreeMap<String, u64>,
    durations: Vec<u64>,
    inits: Vec<u64>,
    cpu: Vec<u64>,
    memory: Vec<u64>,
    days: BTreeMap<u64, DayTally>,
}

#[derive(Debug, Default)]
struct DayTally {
    outcomes: Outcomes,
    durations: Vec<u64>,
    memory: Option<u64>,
}

impl Collector {
    /// Takes a run in.
    pub fn add(&mut self, run: PastRun) {
        let lasted = |from: Option<Wall>, to: Option<Wall>| to?.0.checked_sub(from?.0);
        // How long one would have taken that was ended, nobody knows.
        let ended_itself = run.outcome == "exited";
        let duration = lasted(run.started_at, Some(run.finished_at)).filter(|_| ended_itself);
        let init = lasted(run.started_at, run.ready_at);
        let day = run.finished_at.0 / DAY_USEC;

        let tally = match self.workflows.get_mut(&run.workflow) {
            Some(tally) => tally,
            None => self.workflows.entry(run.workflow.clone()).or_default(),
        };
        let first = tally.first_at.get_or_insert(run.finished_at);
        *first = run.finished_at.min(*first);
        tally.last_at = tally.last_at.max(run.finished_at);
        tally.outcomes.count(&run);
        tally.durations.extend(duration);
        tally.inits.extend(init);
        tally.cpu.extend(run.cpu_usec);
        tally.memory.extend(run.memory_peak_bytes);
        let of_day = tally.days.entry(day).or_default();
        of_day.outcomes.count(&run);
        of_day.durations.extend(duration);
        of_day.memory = of_day.memory.max(run.memory_peak_bytes);
        if let Some(reason) = run.ended_by {
            *tally.kills.entry(reason).or_default() += 1;
        }
    }

    /// What there is to say about each workflow, by name.
    pub fn finish(self) -> Vec<Statistics> {
        self.workflows.into_iter().map(|(workflow, tally)| tally.finish(workflow)).collect()
    }
}

impl Tally {
    fn finish(mut self, workflow: String) -> Statistics {
        for values in [&mut self.durations, &mut self.inits, &mut self.cpu, &mut self.memory] {
            values.sort_unstable();
        }
        let days = self.days.into_iter().map(|(day, mut tally)| {
            tally.durations.sort_unstable();
            Day {
                at: Wall(day * DAY_USEC),
                outcomes: tally.outcomes,
                duration_p50_usec: Quantiles::of(&tally.durations).map(|q| q.p50),
                memory_peak_max_bytes: tally.memory,
            }
        });
        let suggestions = [
            Suggestion::of(Suggested::InitTimeout, &self.inits),
            Suggestion::of(Suggested::MaxRuntime, &self.durations),
            Suggestion::of(Suggested::MemoryMax, &self.memory),
        ];
        Statistics {
            workflow,
            first_at: self.first_at.unwrap_or_default(),
            last_at: self.last_at,
            outcomes: self.outcomes,
            kills: self.kills,
            duration_usec: Quantiles::of(&self.durations),
            cpu_usec: Quantiles::of(&self.cpu),
            memory_peak_bytes: Quantiles::of(&self.memory),
            days: days.collect(),
            suggestions: suggestions.into_iter().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000;

    /// A run of a workflow that exited by itself after so many minutes, on the first day of 1970.
    fn exited(workflow: &str, minutes: u64) -> PastRun {
        PastRun {
            workflow: workflow.into(),
            started_at: Some(Wall(0)),
            ready_at: Some(Wall(1_000_000)),
            finished_at: Wall(minutes * MINUTE),
            outcome: "exited".into(),
            exit_code: Some(0),
            ended_by: None,
            cpu_usec: Some(minutes),
            memory_peak_bytes: Some(minutes << 20),
        }
    }

    fn of(runs: impl IntoIterator<Item = PastRun>) -> Vec<Statistics> {
        let mut collector = Collector::default();
        runs.into_iter().for_each(|run| collector.add(run));
        collector.finish()
    }

    #[test]
    fn quantiles_are_values_that_there_were() {
        assert_eq!(Quantiles::of(&[]), None);
        assert_eq!(Quantiles::of(&[7]), Some(Quantiles { p50: 7, p95: 7, p99: 7, max: 7 }));
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(Quantiles::of(&hundred), Some(Quantiles { p50: 50, p95: 95, p99: 99, max: 100 }));
        assert_eq!(Quantiles::of(&[1, 2, 3]).map(|q| (q.p50, q.p95)), Some((2, 3)));
    }

    #[test]
    fn each_workflow_is_told_by_itself_and_in_the_order_of_names() {
        let all = of([exited("b", 1), exited("a", 2), exited("b", 3)]);
        let told: Vec<_> = all.iter().map(|s| (s.workflow.as_str(), s.outcomes.total())).collect();
        assert_eq!(told, [("a", 1), ("b", 2)]);
        assert_eq!((all[1].first_at, all[1].last_at), (Wall(MINUTE), Wall(3 * MINUTE)));
        assert_eq!(of([]), []);
    }

    #[test]
    fn how_a_run_ended_is_counted_once_and_why_by_its_rule() {
        let with = |outcome: &str, exit_code, ended_by: Option<&str>| PastRun {
            outcome: outcome.into(),
            exit_code,
            ended_by: ended_by.map(Into::into),
            ..exited("a", 10)
        };
        let all = of([
            exited("a", 1),
            with("exited", Some(3), Some("leftovers")),
            with("signaled", None, None),
            with("killed", None, Some("max_runtime")),
            with("killed", None, Some("max_runtime")),
            with("oom", None, None),
            with("lost", None, None),
        ]);
        let expected = Outcomes { succeeded: 1, failed: 1, signaled: 1, killed: 2, oom: 1, lost: 1 };
        assert_eq!((all[0].outcomes, all[0].outcomes.total(), all[0].outcomes.troubled()), (expected, 7, 4));
        assert_eq!(all[0].kills, BTreeMap::from([("leftovers".to_owned(), 1), ("max_runtime".to_owned(), 2)]));
        // Only two of them say how long it takes.
        assert_eq!(all[0].duration_usec.map(|q| (q.p50, q.max)), Some((MINUTE, 10 * MINUTE)));
    }

    #[test]
    fn a_run_that_never_started_or_whose_clock_was_set_back_has_no_duration() {
        let never = PastRun { started_at: None, ..exited("a", 1) };
        let back = PastRun { started_at: Some(Wall(5 * MINUTE)), ..exited("a", 1) };
        let all = of([never, back]);
        assert_eq!((all[0].duration_usec, all[0].outcomes.total()), (None, 2));
    }

    #[test]
    fn days_are_those_of_utc_with_their_own_median() {
        let next = |minutes| PastRun {
            started_at: Some(Wall(DAY_USEC)),
            finished_at: Wall(DAY_USEC + minutes * MINUTE),
            ..exited("a", minutes)
        };
        let days = &of([exited("a", 1), next(4), next(6), next(8)])[0].days;
        let told: Vec<_> =
            days.iter().map(|d| (d.at.0, d.outcomes.total(), d.duration_p50_usec, d.memory_peak_max_bytes)).collect();
        assert_eq!(told, [(0, 1, Some(MINUTE), Some(1 << 20)), (DAY_USEC, 3, Some(6 * MINUTE), Some(8 << 20))]);
    }

    #[test]
    fn a_limit_is_suggested_with_its_basis_and_never_of_few_runs() {
        // 411 runs of up to 38 minutes, and one of 90.
        let runs = (0..411).map(|n| exited("builder", 1 + n % 38)).chain([exited("builder", 90)]);
        let all = of(runs);
        let told: Vec<String> = all[0].suggestions.iter().map(Suggestion::to_string).collect();
        assert_eq!(
            told,
            [
                "init_timeout = \"10s\" (p99 of 412 runs is 1 s; 0 of them, 0.0 %, took more)",
                "max_runtime = \"1h\" (p99 of 412 runs is 38 min; 1 of them, 0.2 %, took more)",
                "memory_max = \"48M\" (p99 of 412 runs is 38 MiB; 1 of them, 0.2 %, took more)",
            ]
        );
        assert!(of((0..19).map(|_| exited("few", 1)))[0].suggestions.is_empty());
    }

    #[test]
    fn suggestions_are_rounded_up_to_what_a_person_would_write() {
        for (secs, rounded) in [(0, 1), (1, 1), (31, 60), (3599, 3600), (3601, 5400), (90_000, 172_800)] {
            assert_eq!(rounded_time(secs * 1_000_000), rounded * 1_000_000, "{secs}");
        }
        for (mib, rounded) in [(0, 16), (16, 16), (17, 20), (100, 112), (1000, 1024), (1025, 1280)] {
            assert_eq!(rounded_size(mib << 20), rounded << 20, "{mib}");
        }
        assert!(rounded_time(u64::MAX) >= u64::MAX / 2 && rounded_size(u64::MAX) == u64::MAX);
    }

    #[test]
    fn a_suggestion_is_a_line_that_the_configuration_takes() {
        let setting = |limit, value| Suggestion { limit, value, basis: 1, p99: 1, exceeding: 0 }.setting();
        assert_eq!(setting(Suggested::MaxRuntime, 5400 * 1_000_000), "max_runtime = \"90m\"");
        assert_eq!(setting(Suggested::InitTimeout, 45 * 1_000_000), "init_timeout = \"45s\"");
        assert_eq!(setting(Suggested::MemoryMax, 1 << 30), "memory_max = \"1024M\"");
    }
}
