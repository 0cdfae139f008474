//! Run ids: `run_` and 12 lower-case hexadecimal digits, never reused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The id of one run. 48 random bits: the store refuses the one that was used before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId([u8; 6]);

/// Why a text is not a run id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a run id: a run id is `run_` and 12 lower-case hexadecimal digits")]
pub struct InvalidRunId(String);

impl RunId {
    /// What every run id starts with.
    pub const PREFIX: &'static str = "run_";

    /// Makes an id of six bytes, which the caller drew at random.
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its last byte: what is done for many runs can be spread by it.
    pub const fn last_byte(self) -> u8 {
        self.0[5]
    }

    /// True for a text that a run id could start with: `run_` and up to 12 digits, or up to 12 digits alone.
    pub fn is_prefix(text: &str) -> bool {
        let digits = text.strip_prefix(Self::PREFIX).unwrap_or(text);
        !digits.is_empty() && digits.len() <= 12 && digits.bytes().all(is_lower_hex)
    }
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

impl FromStr for RunId {
    type Err = InvalidRunId;

    fn from_str(text: &str) -> Result<Self, InvalidRunId> {
        // The text may be a megabyte of anything: keep what a person needs to recognise it.
        let refuse = || InvalidRunId(text.chars().take(40).collect());
        let digits = text.strip_prefix(Self::PREFIX).ok_or_else(refuse)?;
        if digits.len() != 12 || !digits.bytes().all(is_lower_hex) {
            return Err(refuse());
        }
        let mut bytes = [0; 6];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| refuse())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = RunId::from_bytes([0, 1, 0xab, 0xcd, 0xef, 0xff]);
        assert_eq!(id.to_string(), "run_0001abcdefff");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in
            ["", "run_", "run_0001ABCDEFFF", "run_0001abcdeff", "run_0001abcdefff0", "0001abcdefff", "run_0001abcdéf"]
        {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
        let long = "run_".repeat(1 << 18);
        assert!(long.parse::<RunId>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn a_prefix_may_leave_out_what_all_ids_share() {
        assert!(RunId::is_prefix("run_0a") && RunId::is_prefix("0a") && RunId::is_prefix("run_0001abcdefff"));
        assert!(
            !RunId::is_prefix("run_")
                && !RunId::is_prefix("")
                && !RunId::is_prefix("../x")
                && !RunId::is_prefix("0001abcdefff0")
        );
    }
}
