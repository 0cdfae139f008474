//! What a run used over time, as a table.

use std::io;

use super::list::unknown;
use super::output::{Output, human_size, local_time};
use crate::model::{UsageSample, human_duration};

const HEADINGS: [&str; 9] = ["TIME", "OF", "CPU", "MEMORY", "AT MOST", "TASKS", "READ", "WRITTEN", "PRESSURE"];

/// Writes the samples, oldest first. CPU, READ and WRITTEN are what came since the line before.
pub fn table(samples: &[UsageSample], out: &Output) -> io::Result<()> {
    out.line("")?;
    if samples.is_empty() {
        return out.line("no samples: it was over before the first one was due, or they were removed with age");
    }
    let before = std::iter::once(None).chain(samples.iter().map(Some));
    out.table(HEADINGS, before.zip(samples).map(|(before, sample)| row(before, sample)).collect())
}

fn row(before: Option<&UsageSample>, sample: &UsageSample) -> [String; 9] {
    let size = |bytes: Option<u64>| bytes.map_or_else(unknown, human_size);
    let more = |of: fn(&UsageSample) -> Option<u64>| of(sample)?.checked_sub(of(before?)?);
    let over = before.map_or(0, |before| sample.at.0.saturating_sub(before.at.0));
    let cpu = more(|s| s.usage.cpu_usec).and_then(|usec| usec.saturating_mul(100).checked_div(over));
    [
        local_time(sample.at),
        if sample.span.is_zero() { String::new() } else { human_duration(sample.span) },
        cpu.map_or_else(unknown, |percent| format!("{percent} %")),
        size(sample.usage.memory_bytes),
        size(sample.usage.memory_peak_bytes),
        sample.usage.tasks.map_or_else(unknown, |tasks| tasks.to_string()),
        size(more(|s| s.usage.io_read_bytes)),
        size(more(|s| s.usage.io_write_bytes)),
        sample.memory_pressure_percent.map_or_else(unknown, |percent| format!("{percent} %")),
    ]
}
