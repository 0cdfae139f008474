//! What a run used over its life: single readings for an hour, then minutes, then hours.

use std::fmt::Write as _;
use std::time::Duration;

use super::{RunId, Usage, Wall};

/// The time that readings are kept together for, and the first step of what becomes of them.
pub const MINUTE: Duration = Duration::from_secs(60);
/// The second step.
pub const HOUR: Duration = Duration::from_secs(3600);
/// Readings that come more often than this are not kept: a run costs the disk no more when it is read each second.
const CLOSEST_USEC: u64 = 4_500_000;
/// What a reading has, beside its time.
const VALUES: usize = 7;

/// What a run used, at a time or over a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageSample {
    /// When it was read; when it was last read in that time.
    pub at: Wall,
    /// Zero for a reading, a minute, or an hour: in how much time the readings fell that this was made of.
    pub span: Duration,
    /// Counters as they were at that moment. Over a time, memory is the mean of what was read, and tasks are the most.
    pub usage: Usage,
    /// Percent of a minute in which all processes waited for memory, the most that was read; none if it was not read.
    pub memory_pressure_percent: Option<u32>,
}

/// What is stored of a run at once: the readings of a minute, and what they come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageMinute {
    /// Of which run.
    pub run: RunId,
    /// What the readings come to.
    pub summary: UsageSample,
    /// The readings, as [`readings`] reads them.
    pub readings: String,
}

/// A minute under way. It takes some 300 bytes a run, as text: as values the readings of 1,000 runs would be 2 MB.
#[derive(Debug, Clone, Default)]
pub struct OpenMinute {
    first: Wall,
    last: Wall,
    values: [Option<u64>; VALUES],
    memory_sum: u128,
    memory_count: u32,
    memory_peak: Option<u64>,
    tasks: Option<u64>,
    pressure: Option<u32>,
    text: String,
}

impl OpenMinute {
    /// Takes a reading.
    pub fn add(&mut self, at: Wall, usage: &Usage, pressure: Option<u32>) {
        self.memory_peak = self.memory_peak.max(usage.memory_bytes);
        self.tasks = self.tasks.max(usage.tasks);
        self.pressure = self.pressure.max(pressure);
        if !self.text.is_empty() && at.0.abs_diff(self.last.0) < CLOSEST_USEC {
            return;
        }
        if self.text.is_empty() {
            self.first = at;
        }
        if let Some(bytes) = usage.memory_bytes {
            self.memory_sum += u128::from(bytes);
            self.memory_count += 1;
        }
        let values = values_of(usage, pressure);
        self.write(at, &values);
        (self.last, self.values) = (at, values);
    }

    /// Each value as what it is more than in the reading before; nothing for one that is the same.
    fn write(&mut self, at: Wall, values: &[Option<u64>; VALUES]) {
        // Writing into a string cannot fail.
        let _ = write!(self.text, "{}", at.0.wrapping_sub(self.last.0).cast_signed());
        for (now, before) in values.iter().zip(self.values) {
            self.text.push(',');
            if *now != before
                && let Some(now) = now
            {
                let _ = write!(self.text, "{}", now.wrapping_sub(before.unwrap_or(0)).cast_signed());
            }
        }
        self.text.push(';');
    }

    /// Whether a reading at this time belongs to another minute.
    pub fn is_over(&self, at: Wall) -> bool {
        let minute = |at: Wall| u128::from(at.0) / MINUTE.as_micros();
        !self.text.is_empty() && minute(self.first) != minute(at)
    }

    /// The readings so far.
    pub fn readings(&self) -> Vec<UsageSample> {
        readings(&self.text)
    }

    /// Ends it, and begins the next. None if there was no reading.
    pub fn close(&mut self, run: RunId) -> Option<UsageMinute> {
        let Self { last, values, memory_sum, memory_count, memory_peak, tasks, pressure, text, .. } =
            std::mem::take(self);
        if text.is_empty() {
            return None;
        }
        let mean = memory_sum.checked_div(u128::from(memory_count)).and_then(|mean| u64::try_from(mean).ok());
        let usage = Usage { memory_bytes: mean, memory_peak_bytes: memory_peak, tasks, ..usage_of(&values) };
        let summary = UsageSample { at: last, span: MINUTE, usage, memory_pressure_percent: pressure };
        Some(UsageMinute { run, summary, readings: text })
    }
}

/// Reads what an [`OpenMinute`] wrote, as far as it can be read.
pub fn readings(text: &str) -> Vec<UsageSample> {
    let mut found = Vec::new();
    let (mut at, mut values) = (0, [None::<u64>; VALUES]);
    for reading in text.split_terminator(';') {
        let mut fields = reading.split(',');
        let number = |field: Option<&str>| field.and_then(|text| text.parse::<i64>().ok());
        let Some(later) = number(fields.next()) else { break };
        at = later.cast_unsigned().wrapping_add(at);
        for value in &mut values {
            if let Some(more) = number(fields.next()) {
                *value = Some(value.unwrap_or(0).wrapping_add(more.cast_unsigned()));
            }
        }
        let pressure = values[VALUES - 1].and_then(|percent| u32::try_from(percent).ok());
        let usage = usage_of(&values);
        let usage = Usage { memory_peak_bytes: usage.memory_bytes, ..usage };
        found.push(UsageSample { at: Wall(at), span: Duration::ZERO, usage, memory_pressure_percent: pressure });
    }
    found
}

fn values_of(usage: &Usage, pressure: Option<u32>) -> [Option<u64>; VALUES] {
    [
        usage.cpu_usec,
        usage.memory_bytes,
        usage.tasks,
        usage.io_read_bytes,
        usage.io_write_bytes,
        usage.activity_bytes,
        pressure.map(u64::from),
    ]
}

fn usage_of(values: &[Option<u64>; VALUES]) -> Usage {
    let [cpu_usec, memory_bytes, tasks, io_read_bytes, io_write_bytes, activity_bytes, _] = *values;
    Usage { cpu_usec, memory_bytes, tasks, io_read_bytes, io_write_bytes, activity_bytes, memory_peak_bytes: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId::from_bytes([1; 6]);

    fn at(secs: u64) -> Wall {
        Wall(1_700_000_040_000_000 + secs * 1_000_000)
    }

    fn used(cpu_usec: u64, memory_bytes: u64) -> Usage {
        Usage { cpu_usec: Some(cpu_usec), memory_bytes: Some(memory_bytes), ..Usage::default() }
    }

    #[test]
    fn readings_are_read_as_they_were_taken() {
        let mut minute = OpenMinute::default();
        let taken = [
            (at(0), Usage::default(), None),
            (at(5), used(7, 5000), None),
            (at(10), Usage { tasks: Some(3), io_read_bytes: Some(9), ..used(7, 4000) }, Some(12)),
            (at(15), Usage { tasks: Some(3), io_read_bytes: Some(9), ..used(u64::MAX - 1, 0) }, Some(0)),
        ];
        for (at, usage, pressure) in &taken {
            minute.add(*at, usage, *pressure);
        }
        let expected = taken.map(|(at, usage, memory_pressure_percent)| UsageSample {
            at,
            span: Duration::ZERO,
            usage: Usage { memory_peak_bytes: usage.memory_bytes, ..usage },
            memory_pressure_percent,
        });
        assert_eq!(minute.readings(), expected);
        assert_eq!(readings("nonsense;"), []);
        assert_eq!(readings("5,1;x,1;7,2").len(), 1, "as far as it can be read");
    }

    #[test]
    fn a_minute_comes_to_the_last_counters_the_mean_memory_and_the_most_that_was_seen() {
        let mut minute = OpenMinute::default();
        assert_eq!(minute.close(RUN), None);
        minute.add(at(1), &used(10, 100), None);
        // Too close to be kept, and still the most.
        minute.add(at(2), &Usage { tasks: Some(9), ..used(11, 900) }, Some(40));
        minute.add(at(6), &used(20, 300), Some(3));
        assert_eq!((minute.readings().len(), minute.is_over(at(19)), minute.is_over(at(60))), (2, false, true));
        let closed = minute.close(RUN).unwrap();
        let usage = Usage { memory_peak_bytes: Some(900), tasks: Some(9), ..used(20, 200) };
        let summary = UsageSample { at: at(6), span: MINUTE, usage, memory_pressure_percent: Some(40) };
        assert_eq!((closed.run, closed.summary), (RUN, summary));
        assert_eq!(readings(&closed.readings).len(), 2);
        assert_eq!(minute.readings(), []);
    }

    #[test]
    fn a_minute_of_an_idle_run_is_small() {
        let mut minute = OpenMinute::default();
        let usage = Usage { tasks: Some(3), io_read_bytes: Some(123_456), ..used(123_456_789, 12_345_678) };
        (0..60).for_each(|second| minute.add(at(second), &usage, None));
        let closed = minute.close(RUN).unwrap();
        assert!(closed.readings.len() < 250, "{} bytes", closed.readings.len());
    }
}
