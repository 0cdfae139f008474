//! Quiet hours: a part of the day, in local time, that may pass midnight.

use jiff::ZonedDateTime;
use jiff::civil::Time;

use crate::model::Wall;

/// A part of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    from: Time,
    to: Time,
}

impl Quiet {
    /// Reads `22:00-07:00`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || {
            let text: String = text.chars().take(40).collect();
            format!("{text:?} is not a part of the day: write it as \"22:00-07:00\", in local time")
        };
        let time = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let number = |digits: &str| {
                let is_number = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
                is_number.then(|| digits.parse::<i8>().ok()).flatten()
            };
            Time::new(number(hour)?, number(minute)?, 0, 0).ok()
        };
        let (from, to) = text.split_once('-').ok_or_else(refuse)?;
        let (from, to) = (time(from).ok_or_else(refuse)?, time(to).ok_or_else(refuse)?);
        if from == to {
            return Err("leaves no time, or all of the day: write two different times".to_owned());
        }
        Ok(Self { from, to })
    }

    /// When they are over, if it is quiet now.
    pub fn until(self, now: &ZonedDateTime) -> Option<Wall> {
        let time = now.time();
        let is_quiet = match self.from < self.to {
            true => (self.from..self.to).contains(&time),
            false => time >= self.from || time < self.to,
        };
        if !is_quiet {
            return None;
        }
        let day = if time < self.to { now.date() } else { now.date().tomorrow().ok()? };
        let end = day.to_datetime(self.to).to_zoned_datetime(now.time_zone().clone()).ok()?;
        u64::try_from(end.timestamp().as_microsecond()).ok().map(Wall)
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn at(hour: i8, minute: i8) -> ZonedDateTime {
        jiff::civil::date(2026, 3, 10).at(hour, minute, 30, 0).to_zoned_datetime(TimeZone::UTC).unwrap()
    }

    #[test]
    fn quiet_hours_end_at_their_end_on_this_day_or_the_next() {
        let night = Quiet::parse("22:00-07:00").unwrap();
        let end = |now: &ZonedDateTime| night.until(now).map(crate::json::utc_time);
        assert_eq!(end(&at(23, 5)).as_deref(), Some("2026-03-11T07:00:00Z"));
        assert_eq!(end(&at(6, 59)).as_deref(), Some("2026-03-10T07:00:00Z"));
        assert_eq!((end(&at(7, 0)), end(&at(21, 59))), (None, None));
        let noon = Quiet::parse("12:00-13:30").unwrap();
        assert!(noon.until(&at(12, 0)).is_some() && noon.until(&at(13, 30)).is_none());
    }

    #[test]
    fn what_is_no_part_of_the_day_is_refused() {
        for bad in ["", "22:00", "22-07", "24:00-07:00", "22:00-07:60", "22:00-22:00", "-1:00-2:00", "1:0000-2:00"] {
            assert!(Quiet::parse(bad).is_err(), "{bad}");
        }
    }
}
