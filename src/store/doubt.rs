//! Whether the wall clock is believed so far that what is old by it is removed.
//!
//! A clock that is years ahead for some minutes, after a flat battery or by a wrong time server, makes everything too old. So
//! one that jumped is watched for an hour, and nothing is removed by age meanwhile.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::record;
use crate::model::{Wall, human_duration};

/// No clock is corrected by more than this without a reason to doubt it. A suspended host's is, and that costs an hour.
const JUMP: Duration = Duration::from_secs(3600);
/// How long a database may have had no row before the clock is doubted that tells so.
const ABSENCE: Duration = Duration::from_secs(7 * 86_400);
/// The most rows that are asked: some milliseconds.
const MOST: usize = 20_000;
/// For how long.
const DOUBT: Duration = Duration::from_secs(3600);

/// What the clock told last, and until when it is doubted.
#[derive(Debug)]
pub(super) struct Doubt {
    last: (Wall, Instant),
    until: Option<Instant>,
}

impl Doubt {
    /// Of a clock that tells this now, beside rows of the log, the newest first.
    pub(super) fn new(rows: impl Iterator<Item = Wall>, wall: Wall, now: Instant) -> Self {
        // Those of the last hour may be from after a jump. What the clock has told since, if it was set back, is no witness.
        let recent = u64::try_from(DOUBT.as_micros()).unwrap_or(u64::MAX);
        let witness = rows.take(MOST).find(|row| row.0 <= wall.0.saturating_sub(recent));
        let away = witness.map_or(0, |witness| wall.0.saturating_sub(witness.0));
        let mut doubt = Self { last: (wall, now), until: None };
        doubt.jumped(Duration::from_micros(away), ABSENCE, now);
        doubt
    }

    /// The same, with what the database and the clock say.
    pub(super) fn open(conn: &Connection) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare("SELECT time_usec FROM events ORDER BY seq DESC")?;
        let rows = statement.query_map([], |row| row.get::<_, i64>(0))?;
        let mut failed = None;
        let times = rows.map_while(|row| row.map_err(|e| failed = Some(e)).ok());
        let doubt = Self::new(times.map(|usec| Wall(usec.max(0).unsigned_abs())), record::now(), Instant::now());
        failed.map_or(Ok(doubt), Err)
    }

    /// True while the clock that tells this now is not to be believed.
    pub(super) fn doubts(&mut self, wall: Wall, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.last.1);
        let expected = self.last.0.0.saturating_add(u64::try_from(passed.as_micros()).unwrap_or(u64::MAX));
        self.last = (wall, now);
        self.jumped(Duration::from_micros(wall.0.abs_diff(expected)), JUMP, now);
        self.until.is_some_and(|until| now < until)
    }

    fn jumped(&mut self, by: Duration, most: Duration, now: Instant) {
        if by > most {
            self.until = Some(now + DOUBT);
            tracing::warn!(
                "the clock has jumped by {}: for {}, nothing is removed from the database by its age",
                human_duration(Duration::from_secs(by.as_secs())),
                human_duration(DOUBT)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: u64 = 86_400_000_000;

    fn after(wall: Wall, passed: Duration) -> Wall {
        Wall(wall.0 + u64::try_from(passed.as_micros()).unwrap())
    }

    #[test]
    fn a_clock_that_jumps_is_doubted_for_an_hour_in_both_directions() {
        let (wall, start) = (Wall(20_000 * DAY), Instant::now());
        let mut doubt = Doubt::new([Wall(wall.0 - DAY)].into_iter(), wall, start);
        assert!(!doubt.doubts(after(wall, 10 * MINUTE), start + 10 * MINUTE), "as time goes");
        let ahead = Wall(wall.0 + 400 * DAY);
        assert!(doubt.doubts(after(ahead, 20 * MINUTE), start + 20 * MINUTE));
        assert!(doubt.doubts(after(ahead, 79 * MINUTE), start + 79 * MINUTE));
        assert!(!doubt.doubts(after(ahead, 80 * MINUTE), start + 80 * MINUTE), "it has held for an hour");
        assert!(doubt.doubts(after(wall, 90 * MINUTE), start + 90 * MINUTE), "and back");
        assert!(!doubt.doubts(after(wall, 151 * MINUTE), start + 151 * MINUTE));
        assert!(!doubt.doubts(after(wall, 190 * MINUTE), start + 155 * MINUTE), "35 minutes are a correction");
    }

    #[test]
    fn a_database_that_nobody_has_written_to_for_long_is_no_witness_of_the_time() {
        let (wall, start) = (Wall(20_000 * DAY), Instant::now());
        let doubts = |rows: &[u64]| Doubt::new(rows.iter().copied().map(Wall), wall, start).doubts(wall, start);
        assert!(!doubts(&[]), "a new one has nothing to lose");
        assert!(!doubts(&[wall.0 - 7 * DAY]));
        assert!(doubts(&[wall.0 - 8 * DAY]));
        let minutes_ago = wall.0 - DAY / 1440;
        assert!(doubts(&[minutes_ago, wall.0 - 8 * DAY]), "what was written after the jump");
        assert!(!doubts(&[minutes_ago, wall.0 - DAY / 24, wall.0 - 8 * DAY]), "it has held for an hour");
        assert!(!doubts(&[wall.0 + DAY]), "the clock was set back: less is too old by it than was");
    }
}
