//! What a run used over its life, as it is sent: the stored samples, and those of the minute that is under way.

use std::time::Duration;

use super::access::Request;
use super::view::usec;
use crate::model::{Error, RunId, Usage, UsageSample, Wall};

/// `(at, span, CPU in ns, memory, most memory, tasks, bytes read, bytes written, activity in bytes, memory pressure in %)`:
/// a [`UsageSample`], times in µs. The greatest number for what is not known.
pub type WireSample = (u64, u64, u64, u64, u64, u64, u64, u64, u64, u32);

/// The samples of a run that the caller may see, in order.
pub async fn samples(request: &Request<'_>, run: RunId, since: Wall) -> Result<Vec<WireSample>, Error> {
    // Taken first: a minute that is stored meanwhile is in both then. One that is just being written is missing for a moment.
    let latest = request.services.published.latest_samples(run);
    let mut samples = request.read(move |h| h.samples(run, since)).await?;
    let stored = samples.last().map(|last| last.at);
    samples.extend(latest.into_iter().filter(|s| s.at >= since && stored.is_none_or(|at| s.at > at)));
    Ok(samples.iter().map(to_wire).collect())
}

fn to_wire(sample: &UsageSample) -> WireSample {
    let known = |value: Option<u64>| value.unwrap_or(u64::MAX);
    let u = &sample.usage;
    (
        sample.at.0,
        usec(sample.span),
        known(u.cpu_usec.map(|usec| usec.saturating_mul(1000))),
        known(u.memory_bytes),
        known(u.memory_peak_bytes),
        known(u.tasks),
        known(u.io_read_bytes),
        known(u.io_write_bytes),
        known(u.activity_bytes),
        sample.memory_pressure_percent.unwrap_or(u32::MAX),
    )
}

/// Reads the wire form of a sample.
pub fn sample_from(wire: WireSample) -> UsageSample {
    let (at, span, cpu_nsec, memory, memory_peak, tasks, read, written, activity, pressure) = wire;
    let known = |value: u64| (value != u64::MAX).then_some(value);
    UsageSample {
        at: Wall(at),
        span: Duration::from_micros(span),
        usage: Usage {
            cpu_usec: known(cpu_nsec).map(|nsec| nsec / 1000),
            memory_bytes: known(memory),
            memory_peak_bytes: known(memory_peak),
            tasks: known(tasks),
            io_read_bytes: known(read),
            io_write_bytes: known(written),
            activity_bytes: known(activity),
        },
        memory_pressure_percent: (pressure != u32::MAX).then_some(pressure),
    }
}
