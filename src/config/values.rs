//! The spelling of values, in files and on the command line: one wording for both.

use std::time::Duration;

use crate::model::{escape, parse_duration};

/// What turns a limit off.
pub(super) const OFF: &str = "off";

/// Reads a duration that is not zero, or `off`.
pub fn parse_duration_or_off(text: &str) -> Result<Option<Duration>, String> {
    or_off(text, |text| match parse_duration(text).map_err(|e| format!("{e}, or off"))? {
        Duration::ZERO => Err("zero leaves no time at all: write off to have no limit".to_owned()),
        d => Ok(d),
    })
}

/// Reads a size as systemd does: bytes, or with K, M, G, T as powers of 1024. Not zero.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let shown = clip(text);
    match bytes_of(text.trim()) {
        None => Err(format!("{shown:?} is not a size: write it as 512M or 2G (powers of 1024)")),
        Some(0) => Err(format!("a size of {shown:?} leaves nothing: write it as 512M or 2G")),
        // The kernel and the database count in signed numbers.
        Some(bytes) => match i64::try_from(bytes) {
            Ok(bytes) => Ok(bytes.unsigned_abs()),
            Err(_) => Err(format!("{shown:?} is more than any machine has")),
        },
    }
}

/// `DIGITS[.DIGITS][UNIT]`, with `K`, `KB` and `KiB` for the same unit; rounded down.
fn bytes_of(text: &str) -> Option<u128> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let unit = unit.to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if unit.is_empty() || unit == "b" => 0,
        prefix if [prefix, &format!("{prefix}b"), &format!("{prefix}ib")].contains(&unit.as_str()) => {
            1 + ["k", "m", "g", "t", "p", "e"].iter().position(|known| *known == prefix)?
        }
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    // What does not fit is too much with any unit. The fraction has more digits than an exbibyte has bytes.
    let whole = whole.parse::<u64>().unwrap_or(u64::MAX);
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let unit = 1u128 << (10 * power);
    Some(u128::from(whole) * unit + u128::from(fraction.parse::<u64>().ok()?) * unit / scale)
}

/// Reads a size, or `off`.
pub fn parse_size_or_off(text: &str) -> Result<Option<u64>, String> {
    or_off(text, |text| parse_size(text).map_err(|e| format!("{e}, or off")))
}

/// Reads a percentage of one core, 1 to 100,000: `150%` is one core and a half.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let shown = clip(text);
    let digits = text.trim().strip_suffix('%').map(str::trim_end);
    match digits.and_then(|d| d.parse().ok()) {
        Some(percent @ 1..=100_000) if digits.is_some_and(starts_with_digit) => Ok(percent),
        Some(_) => Err(format!("{shown:?} is out of range: write 1% to 100000%, where 100% is one core")),
        None => Err(format!("{shown:?} is not a percentage: write it as 50% or 150%, where 100% is one core")),
    }
}

/// Reads a percentage, or `off`.
pub fn parse_percent_or_off(text: &str) -> Result<Option<u32>, String> {
    or_off(text, |text| parse_percent(text).map_err(|e| format!("{e}, or off")))
}

/// Reads a whole number of tasks that is not zero, or `off`.
pub fn parse_count_or_off(text: &str) -> Result<Option<u64>, String> {
    or_off(text, |text| match text.trim().parse::<u64>() {
        Ok(n) if n > 0 && i64::try_from(n).is_ok() && starts_with_digit(text.trim()) => Ok(n),
        _ => Err(format!("{:?} is not a number of tasks: write a whole number from 1, or off", clip(text))),
    })
}

/// Reads a number of runs that is not zero, or `off`.
pub fn parse_runs_or_off(text: &str) -> Result<Option<u64>, String> {
    or_off(text, |text| match text.trim().parse::<u64>() {
        Ok(n) if (1..=1_000_000).contains(&n) && starts_with_digit(text.trim()) => Ok(n),
        _ => Err(format!("{:?} is not a number of runs: write a whole number from 1 to 1000000, or off", clip(text))),
    })
}

/// Reads a whole number that is not zero, or `off`.
pub fn parse_number_or_off(text: &str) -> Result<Option<u64>, String> {
    or_off(text, |text| {
        whole(text).filter(|n| *n > 0).ok_or_else(|| {
            format!("{:?} is not a number that can be counted to: write a whole number from 1, or off", clip(text))
        })
    })
}

/// Reads how often the same may happen in a row, or `off`: twice is the least that is a repetition.
pub fn parse_repeats_or_off(text: &str) -> Result<Option<u64>, String> {
    or_off(text, |text| {
        whole(text).filter(|n| *n > 1).ok_or_else(|| {
            format!("{:?} is not a number of repetitions: write a whole number from 2, or off", clip(text))
        })
    })
}

/// Reads an amount of US dollars as millionths of one, or `off`: `5`, `5.00`, `$0.25`.
pub fn parse_cost_or_off(text: &str) -> Result<Option<u64>, String> {
    or_off(text, parse_cost)
}

/// Reads an amount of US dollars as millionths of one. Not zero.
pub fn parse_cost(text: &str) -> Result<u64, String> {
    let refuse = || format!("{:?} is not an amount of US dollars: write it as 5.00 or 0.25", clip(text));
    let amount = text.trim();
    let number = amount.strip_prefix('$').unwrap_or(amount);
    let (dollars, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(dollars) || !is_number(fraction) || fraction.len() > 6 {
        return Err(refuse());
    }
    let cost = format!("{dollars}{fraction:0<6}").parse::<u64>().ok();
    match cost.filter(|cost| i64::try_from(*cost).is_ok()) {
        Some(0) => Err("nothing at all pays for nothing: write off to have no limit".to_owned()),
        Some(cost) => Ok(cost),
        None => Err(format!("{:?} is more than anybody has", clip(text))),
    }
}

/// A whole number without a sign, as the database can count.
fn whole(text: &str) -> Option<u64> {
    let text = text.trim();
    text.parse::<u64>().ok().filter(|n| i64::try_from(*n).is_ok() && starts_with_digit(text))
}

/// Checks the name of a workflow. It becomes part of paths, unit names and metrics.
pub fn check_workflow(name: &str) -> Result<(), String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(fine) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    Err(format!(
        "{:?} cannot name a workflow: use 1 to 64 letters, digits, `_`, `.` and `-`, the first not `.` or `-`",
        clip(name)
    ))
}

fn or_off<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text.trim() == OFF { Ok(None) } else { parse(text).map(Some) }
}

/// Rust's own parser takes a sign.
fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// As much of a text as a person needs to recognise it.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The same of a name, which is shown without quotes.
pub(super) fn shown(name: &str) -> String {
    escape(&clip(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_as_in_systemd() {
        for (text, bytes) in [
            ("1", 1),
            ("4096", 4096),
            ("1K", 1024),
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
            ("1.5G", 3 << 29),
            (" 1T ", 1 << 40),
            ("1kb", 1024),
            ("0.5k", 512),
            ("1.9999999999999999999999999K", 2047),
            ("10b", 10),
            ("7E", 7 << 60),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "0G",
            "-1",
            "-1G",
            "2X",
            "G",
            "1 G",
            "1_000",
            "1e3",
            "1e3K",
            "8E",
            "99999999999999999999",
            "1..5G",
            "inf",
            "0x10",
            "18446744073709551615.5B",
            "1.",
            ".5G",
            "1bb",
            "1i",
            "1kbi",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_size_or_off("off"), Ok(None));
    }

    #[test]
    fn percentages_are_of_one_core_and_need_their_sign() {
        assert_eq!(
            (parse_percent("1%"), parse_percent("150 %"), parse_percent("100000%")),
            (Ok(1), Ok(150), Ok(100_000))
        );
        for bad in ["", "%", "0%", "100001%", "150", "-5%", "+5%", "1.5%", "99999999999%"] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_percent_or_off("off"), Ok(None));
    }

    #[test]
    fn durations_and_counts_are_not_zero_but_may_be_off() {
        assert_eq!(parse_duration_or_off("90s"), Ok(Some(Duration::from_secs(90))));
        assert_eq!(parse_duration_or_off("off"), Ok(None));
        assert_eq!(parse_count_or_off("12"), Ok(Some(12)));
        assert_eq!(parse_count_or_off("off"), Ok(None));
        assert_eq!((parse_runs_or_off("2"), parse_runs_or_off("off")), (Ok(Some(2)), Ok(None)));
        for bad in ["0", "-1", "+1", "1.5", "", "1000001", "two"] {
            assert!(parse_runs_or_off(bad).is_err(), "{bad}");
        }
        for bad in ["0s", "5", "", "OFF", "never"] {
            assert!(parse_duration_or_off(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "+1", "1.5", "", "18446744073709551615"] {
            assert!(parse_count_or_off(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn money_is_in_dollars_and_exact_to_a_millionth() {
        for (text, micro) in [
            ("5", 5_000_000),
            ("5.00", 5_000_000),
            ("$0.25", 250_000),
            ("0.000001", 1),
            (" 12.5 ", 12_500_000),
            ("$9223372036854", 9_223_372_036_854_000_000),
        ] {
            assert_eq!(parse_cost_or_off(text), Ok(Some(micro)), "{text}");
        }
        assert_eq!(parse_cost_or_off("off"), Ok(None));
        for bad in [
            "",
            "0",
            "0.00",
            "-1",
            "+1",
            "5.",
            ".5",
            "5.0000001",
            "5,00",
            "1e3",
            "$",
            "$$5",
            "5$",
            "5 USD",
            "9223372036855",
            "1.+5",
        ] {
            assert!(parse_cost_or_off(bad).is_err(), "{bad}");
        }
        assert!(parse_cost_or_off("x").unwrap_err().contains("write it as 5.00"));
    }

    #[test]
    fn numbers_to_count_to_are_whole_and_the_same_is_the_same_from_two_on() {
        assert_eq!((parse_number_or_off("30"), parse_number_or_off("off")), (Ok(Some(30)), Ok(None)));
        assert_eq!((parse_repeats_or_off("2"), parse_repeats_or_off("off")), (Ok(Some(2)), Ok(None)));
        for bad in ["0", "-1", "+1", "1.5", "", "18446744073709551615", "x"] {
            assert!(parse_number_or_off(bad).is_err() && parse_repeats_or_off(bad).is_err(), "{bad}");
        }
        assert!(parse_repeats_or_off("1").unwrap_err().contains("from 2"));
    }

    #[test]
    fn workflow_names_are_safe_everywhere() {
        for good in ["a", "builder", "a.b-c_D9", &"x".repeat(64)] {
            assert_eq!(check_workflow(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "-x", ".x", "a/b", "a b", "é", "a\0", &"x".repeat(65)] {
            assert!(check_workflow(bad).is_err(), "{bad}");
        }
    }
}
