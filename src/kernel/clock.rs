//! The clocks. The one place where time is read; everything else is given it.

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::KernelError;
use crate::model::{Mono, Now, Wall};

/// Both clocks. CLOCK_MONOTONIC stands still while the machine is suspended, so a suspend never makes a run time out.
pub fn now() -> Now {
    let mono = Mono(nanoseconds(clock_gettime(ClockId::Monotonic)));
    let wall = Wall(nanoseconds(clock_gettime(ClockId::Realtime)) / 1000);
    Now { mono, wall }
}

/// Nanoseconds since boot, suspends included: what start times of processes count.
pub fn since_boot_nsec() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// Neither clock is ever before its epoch on Linux, but the type can say so: then it is zero.
fn nanoseconds(t: Timespec) -> u64 {
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// How long the machine has been suspended since its boot, in microseconds: CLOCK_BOOTTIME goes on meanwhile.
pub fn suspended_usec() -> u64 {
    let mono = nanoseconds(clock_gettime(ClockId::Monotonic));
    nanoseconds(clock_gettime(ClockId::Boottime)).saturating_sub(mono) / 1000
}

/// The boot id: a random UUID that the kernel draws at boot.
pub fn boot_id() -> Result<String, KernelError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|source| KernelError::Io {
        op: "read",
        what: PATH.to_owned(),
        source,
    })?;
    let id = text.trim();
    match id.is_empty() {
        true => Err(KernelError::malformed(PATH, &text)),
        false => Ok(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_does_not_go_back_and_wall_time_is_of_this_century() {
        let (a, b) = (now(), now());
        assert!(b.mono >= a.mono);
        assert!(suspended_usec().abs_diff(suspended_usec()) < 1_000_000, "nobody suspends it within a test");
        assert!(a.wall.0 > 1_600_000_000_000_000);
    }

    #[test]
    fn the_boot_id_is_the_same_twice() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
