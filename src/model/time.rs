//! Time as the project uses it: monotonic for deadlines, wall-clock for people, never one for the other.

use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment of CLOCK_MONOTONIC, in nanoseconds since boot. It goes on over a restart of the instance, not over a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Mono(pub u64);

/// A moment of wall-clock time, in microseconds since 1970-01-01 UTC. For people only: no rule looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Wall(pub u64);

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Now {
    /// What deadlines are measured by.
    pub mono: Mono,
    /// What is shown to people.
    pub wall: Wall,
}

impl Mono {
    /// The next moment that is a multiple of this duration since boot.
    pub fn rounded_up(self, grid: Duration) -> Mono {
        let grid = u64::try_from(grid.as_nanos()).unwrap_or(u64::MAX).max(1);
        Mono(self.0.checked_next_multiple_of(grid).unwrap_or(u64::MAX))
    }

    /// Time since an earlier moment; zero if it was not earlier.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;

    fn add(self, d: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Now {
    /// The wall-clock time that a monotonic moment, past or future, has or will have.
    pub fn wall_of(&self, at: Mono) -> Wall {
        if at >= self.mono {
            Wall(self.wall.0.saturating_add((at.0 - self.mono.0) / 1000))
        } else {
            Wall(self.wall.0.saturating_sub((self.mono.0 - at.0) / 1000))
        }
    }
}

/// The longest duration that a limit may have. Longer ones are typing errors, and would overflow microseconds on D-Bus.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Reads `90s`, `30m`, `1h 30m`, `250ms`; a bare number is refused because nobody knows its unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let d = humantime::parse_duration(text.trim()).map_err(|e| {
        // Why not may repeat all of it.
        let why = if text.len() <= CLIP { format!(" ({e})") } else { String::new() };
        format!("{:?} is not a duration{why}: write it as 30s, 10m or 1h30m", clip(text))
    })?;
    if d > LONGEST {
        return Err(format!("{:?} is longer than 100 years", clip(text)));
    }
    Ok(d)
}

/// As much of a text as a person needs to recognise it.
const CLIP: usize = 40;

fn clip(text: &str) -> String {
    text.chars().take(CLIP).collect()
}

/// Writes a duration for a person: at most two units, no more digits than are worth reading.
pub fn human_duration(d: Duration) -> String {
    let ms = d.as_millis();
    if ms < 1 {
        return format!("{} µs", d.as_micros());
    }
    if ms < 1000 {
        return format!("{ms} ms");
    }
    let secs = d.as_secs();
    if secs < 60 {
        let tenths = d.subsec_millis() / 100;
        return if tenths == 0 { format!("{secs} s") } else { format!("{secs}.{tenths} s") };
    }
    let (big, big_unit, small, small_unit) = match secs {
        ..3600 => (secs / 60, "min", secs % 60, "s"),
        3600..86400 => (secs / 3600, "h", secs % 3600 / 60, "min"),
        _ => (secs / 86400, "d", secs % 86400 / 3600, "h"),
    };
    if small == 0 { format!("{big} {big_unit}") } else { format!("{big} {big_unit} {small} {small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit_only() {
        assert_eq!(parse_duration("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration(&format!("1{}", "x".repeat(1 << 20))).unwrap_err().len() < 200);
        for bad in ["", "30", "m", "-1s", "1y9999999999999y", "200years"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_written_with_two_units_at_most() {
        let cases = [
            (0, "0 µs"),
            (12_000, "12 ms"),
            (3_000_000, "3 s"),
            (3_250_000, "3.2 s"),
            (90_000_000, "1 min 30 s"),
            (7_200_000_000, "2 h"),
            (90_000_000_000, "1 d 1 h"),
        ];
        for (us, text) in cases {
            assert_eq!(human_duration(Duration::from_micros(us)), text);
        }
    }

    #[test]
    fn a_deadline_has_the_wall_time_it_will_fall_at() {
        let now = Now { mono: Mono(5_000_000_000), wall: Wall(1_000_000) };
        assert_eq!(now.wall_of(now.mono + Duration::from_secs(2)), Wall(3_000_000));
        assert_eq!(now.wall_of(Mono(4_500_000_000)), Wall(500_000));
    }
}
