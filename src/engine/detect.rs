//! When a run is stuck, from looks at it: idle, spinning, or waiting for input. Values in, values out.
//!
//! ```text
//!        window         window         window
//!  ├──────────────┼──────────────┼──────────────┤         time held, for idle_timeout = 15 min:
//!  look         look           look           look          10 min: near, a warning    15 min: over, its action
//! ```
//!
//! A rule's time is cut into whole windows. Each begins and ends with a look, and counts if the two looks prove that the
//! rule held from the one to the other. A window in which it did not, or may not have, takes the run back to none. A window
//! that proves nothing, because the host slept or we were late, is not counted, and what was counted stays.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Mono, Rule, Sample};

/// Below this much of a core a run computes nothing: a hung agent was seen to burn 1.4 % for seven hours.
const IDLE_PERCENT: u32 = 2;
/// Above this much of one it does nothing else.
const SPIN_PERCENT: u32 = 90;
/// What waits for a CPU that often on a host may be what does not compute. For a run of which it is not known.
const PRESSURE_PERCENT: u32 = 60;
/// Counters are read no more often than this.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);
/// Clocks that are read one after the other differ by some microseconds.
const SLEPT_USEC: u64 = 1_000_000;
/// How much later than its window's end a look may come, beside half a window.
const LATE: Duration = Duration::from_secs(1);

/// How far a rule has come with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Standing {
    /// It has nothing to say.
    Clear,
    /// The larger part of its time has passed.
    Near,
    /// Its time is over.
    Over,
}

/// One rule, applied to one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// The rule.
    pub rule: Rule,
    /// How long it has to hold, extensions included.
    pub allowed: Duration,
    /// How long it has held in the windows that counted.
    pub held: Duration,
    window: Duration,
    /// How many windows counted.
    windows: u32,
    /// The window under way.
    open: Open,
    /// When the run was last looked at, or its window was made void.
    looked: Mono,
    /// The clock stands still.
    paused: bool,
}

/// A window under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    at: Mono,
    /// What the run was like then, as far as it was looked at.
    sample: Sample,
    /// What it began with is still to be looked at, or was long ago: it can prove no more than that the rule did not hold.
    void: bool,
}

/// What a window has shown.
enum Shown {
    Held,
    Broken,
    Nothing,
}

impl Track {
    /// Begins to apply a rule.
    pub fn new(rule: Rule, allowed: Duration, now: Mono) -> Self {
        let window = (allowed / Self::parts(rule)).max(SHORTEST_WINDOW);
        let open = Open { at: now, sample: Sample::default(), void: true };
        Self { rule, allowed, held: Duration::ZERO, window, windows: 0, open, looked: now, paused: false }
    }

    /// Into how many windows the time of a rule is cut, all of which have to count.
    const fn parts(rule: Rule) -> u32 {
        match rule {
            Rule::IdleTimeout => 3,
            _ => 5,
        }
    }

    /// After how many of them a rule stands near: four of five are 80 % of the time. Three windows have no end there, and more
    /// of them would cost more looks and prove less each; so that is at two thirds, 10 of 15 min.
    const fn near(rule: Rule) -> u32 {
        Self::parts(rule) - 1
    }

    /// How far the rule has come.
    pub fn standing(&self) -> Standing {
        let parts = Self::parts(self.rule);
        let near = Self::near(self.rule);
        if self.held >= self.allowed && self.windows >= parts {
            Standing::Over
        } else if self.held.saturating_mul(parts) >= self.allowed.saturating_mul(near) && self.windows >= near {
            Standing::Near
        } else {
            Standing::Clear
        }
    }

    /// The length of a window.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// When the run is next to be looked at; never while the clock stands still. One of which something was said is looked
    /// at more often, so that it is taken back soon.
    pub fn next_look(&self) -> Option<Mono> {
        let end = self.open.at + self.window;
        let next = match self.standing() {
            _ if self.open.void => self.looked + SHORTEST_WINDOW,
            Standing::Clear => end,
            Standing::Near | Standing::Over => end.min(self.looked + (self.window / 2).max(SHORTEST_WINDOW)),
        };
        (!self.paused).then_some(next)
    }

    /// When a look is to be taken at the latest. Whether one that was not seen to wait for input has run since, the samples tell
    /// that are taken anyway: a timer of its own for each such run would wake us 40 times a second at 1,000 runs.
    pub fn deadline(&self) -> Option<Mono> {
        let unhurried = self.rule == Rule::InputTimeout && self.open.sample.waits_for_input == Some(false);
        let later = if unhurried { self.window } else { Duration::ZERO };
        self.next_look().map(|at| at + later)
    }

    /// When the time will be over, if the rule goes on holding.
    pub fn ends(&self) -> Mono {
        self.open.at + self.allowed.saturating_sub(self.held)
    }

    /// Gives it more time.
    pub fn extend(&mut self, by: Duration) {
        self.allowed = self.allowed.saturating_add(by);
    }

    /// The clock stands still: a frozen run can do nothing.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// The clock goes on, with a window that begins at the next look. What the run did before it was frozen still counts
    /// against the rule.
    pub fn go_on(&mut self, now: Mono) {
        if std::mem::take(&mut self.paused) {
            self.open.void = true;
            self.looked = now;
        }
    }

    /// Nobody has looked for a while: what was said of the run stands until the next look, which may break the rule and
    /// proves nothing else. What was not said is not on record in full.
    pub fn resume(&mut self, now: Mono) {
        if self.standing() == Standing::Clear {
            (self.held, self.windows) = (Duration::ZERO, 0);
        }
        self.open.void = true;
        self.looked = now;
    }

    fn begin(&mut self, sample: Sample, now: Mono) {
        self.open = Open { at: now, sample, void: false };
        self.looked = now;
    }

    fn break_off(&mut self, sample: Sample, now: Mono) {
        (self.held, self.windows) = (Duration::ZERO, 0);
        self.begin(sample, now);
    }

    /// Takes in a sample that knows CPU time alone. True if a look is wanted: one is due, and could end or begin a window
    /// that counts. `recent` is the sample before it; `exact` if its CPU time shows whatever has run, however shortly.
    pub fn wants_look(&mut self, sample: &Sample, recent: Option<(Mono, Sample)>, exact: bool, now: Mono) -> bool {
        if self.paused {
            return false;
        }
        let elapsed = now.since(self.open.at);
        let broken = self.computed_otherwise(&self.open.sample, sample, elapsed, self.window);
        if broken && self.windows > 0 {
            self.break_off(*sample, now);
            return true;
        }
        if self.next_look().is_none_or(|at| at > now) {
            return false;
        }
        // Where nothing has run since it was seen not to wait for input, it does not wait for any now.
        let then = &self.open.sample;
        let answered = self.rule == Rule::InputTimeout && then.waits_for_input == Some(false);
        if answered && exact && then.cpu_usec.is_some() && then.cpu_usec == sample.cpu_usec {
            self.begin(*then, now);
            return false;
        }
        // A window that cannot count is ended without a look, unless the run has changed its ways by now: then the look
        // begins the next window, which may.
        let as_before = recent.is_none_or(|(at, before)| {
            let lately = now.since(at);
            self.computed_otherwise(&before, sample, lately, lately)
        });
        if broken && as_before {
            self.break_off(*sample, now);
            return false;
        }
        true
    }

    /// Whether CPU time alone shows that the rule cannot hold over the window, whatever comes in the rest of it.
    fn computed_otherwise(&self, before: &Sample, after: &Sample, elapsed: Duration, window: Duration) -> bool {
        let Some(cpu) = grown(before.cpu_usec, after.cpu_usec) else { return false };
        let whole = elapsed.max(window);
        match self.rule {
            Rule::SpinTimeout => {
                let rested = elapsed.saturating_sub(Duration::from_micros(cpu));
                rested.as_micros() * 100 > whole.as_micros() * u128::from(100 - SPIN_PERCENT)
            }
            _ => is_share(cpu, IDLE_PERCENT, whole),
        }
    }

    /// Takes in a look.
    pub fn look(&mut self, look: &Sample, last_heartbeat: Option<Mono>, now: Mono) {
        if self.paused {
            return;
        }
        let is_end = now >= self.open.at + self.window;
        self.looked = now;
        match self.shown(look, last_heartbeat, now.since(self.open.at)) {
            Shown::Broken if is_end || self.open.void || self.moved(look, last_heartbeat) => self.break_off(*look, now),
            Shown::Nothing if is_end || self.open.void => self.begin(*look, now),
            Shown::Held if is_end => {
                self.held = self.held.saturating_add(now.since(self.open.at));
                self.windows = self.windows.saturating_add(1);
                self.begin(*look, now);
            }
            // A window cannot count that began without a look, so it begins with this one.
            _ if !is_look(&self.open.sample) => self.begin(*look, now),
            _ => {}
        }
    }

    /// What the time since the window began has shown.
    fn shown(&self, look: &Sample, last_heartbeat: Option<Mono>, elapsed: Duration) -> Shown {
        let then = &self.open.sample;
        if self.moved(look, last_heartbeat) {
            return Shown::Broken;
        }
        let cpu = grown(then.cpu_usec, look.cpu_usec);
        let computes = |cpu: u64, percent: u32| is_share(cpu, percent, elapsed);
        let holds = cpu.is_some_and(|cpu| match self.rule {
            Rule::SpinTimeout => computes(cpu, SPIN_PERCENT),
            _ => !computes(cpu, IDLE_PERCENT),
        });
        // Nobody looks at a frozen run when it goes on: only windows without it count.
        let frozen = then.frozen == Some(true) || look.frozen == Some(true);
        if frozen || self.open.void && (holds || then.cpu_usec.is_none()) {
            return Shown::Nothing;
        }
        if !holds || !is_look(then) || !is_look(look) {
            return Shown::Broken;
        }
        let slept = match (then.suspended_usec, look.suspended_usec) {
            (Some(before), Some(after)) => before.abs_diff(after) > SLEPT_USEC,
            (before, _) => before.is_some(),
        };
        if slept || elapsed > self.window + self.window / 2 + LATE {
            return Shown::Nothing;
        }
        match self.rule {
            Rule::SpinTimeout => return Shown::Held,
            Rule::InputTimeout if look.waits_for_input == Some(true) => {}
            // One that waits for a person has a rule of its own.
            Rule::IdleTimeout if look.waits_for_input == Some(false) => {}
            _ => return Shown::Broken,
        }
        let wanted =
            grown(then.cpu_wait_usec, look.cpu_wait_usec).map(|waited| waited.saturating_add(cpu.unwrap_or(0)));
        let starved = match wanted {
            Some(wanted) => computes(wanted, IDLE_PERCENT),
            None => look.host_cpu_pressure.is_some_and(|percent| percent >= PRESSURE_PERCENT),
        };
        if starved { Shown::Nothing } else { Shown::Held }
    }

    /// Whether the run has done something since the window began: moved bytes, started or ended anything, or said that it
    /// is alive.
    fn moved(&self, look: &Sample, last_heartbeat: Option<Mono>) -> bool {
        fn differ<T: PartialEq>(before: Option<T>, after: Option<T>) -> bool {
            before.zip(after).is_some_and(|(before, after)| before != after)
        }
        let then = &self.open.sample;
        differ(then.io_bytes, look.io_bytes)
            || differ(then.activity_bytes, look.activity_bytes)
            || differ(then.processes, look.processes)
            || last_heartbeat.is_some_and(|at| at >= self.open.at)
    }
}

/// Whether all is known that has to stand still.
fn is_look(sample: &Sample) -> bool {
    sample.io_bytes.is_some() && sample.activity_bytes.is_some() && sample.processes.is_some()
}

/// By how much a counter grew. One that fell was not what we took it for, and nothing is known.
fn grown(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    after?.checked_sub(before?)
}

/// Whether so much CPU time is at least this share of a core.
fn is_share(cpu_usec: u64, percent: u32, of: Duration) -> bool {
    u128::from(cpu_usec) * 100 >= of.as_micros() * u128::from(percent)
}

#[cfg(test)]
#[path = "detect_tests/mod.rs"]
mod tests;
