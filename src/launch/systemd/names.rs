//! The names of units: a scope or a service for each run, in a slice for each workflow.
//!
//! ```text
//!   guardian.slice/
//!     guardian-builder.slice/
//!       guardian-run_0123456789ab.scope
//! ```

use crate::model::RunId;

const PREFIX: &str = "guardian";

/// systemd refuses longer names, and so does the file system that the cgroup's directory is in.
const NAME_MAX: usize = 255;

/// What a run's unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitKind {
    /// Around a process that somebody else started: a foreground run.
    Scope,
    /// Started by systemd, which keeps how it ended: a detached run.
    Service,
}

impl UnitKind {
    fn suffix(self) -> &'static str {
        match self {
            Self::Scope => ".scope",
            Self::Service => ".service",
        }
    }
}

/// The unit of a run.
pub fn unit(run: RunId, kind: UnitKind) -> String {
    format!("{PREFIX}-{run}{}", kind.suffix())
}

/// A pattern that every unit of this kind matches.
pub fn every(kind: UnitKind) -> String {
    format!("{PREFIX}-run_*{}", kind.suffix())
}

/// The run whose unit has this name, and what it is.
pub fn run_of(unit: &str) -> Option<(RunId, UnitKind)> {
    let name = unit.strip_prefix(PREFIX)?.strip_prefix('-')?;
    let kinds = [UnitKind::Scope, UnitKind::Service].into_iter();
    let (name, kind) = kinds.filter_map(|kind| Some((name.strip_suffix(kind.suffix())?, kind))).next()?;
    Some((name.parse().ok()?, kind))
}

/// The slice of a workflow. systemd nests slices at each `-`, so the workflow's own are escaped: `a-b` is no part of `a`.
pub fn slice(workflow: &str) -> String {
    let name = format!("{PREFIX}-{}.slice", escape(workflow));
    // A workflow's name of 64 characters, nearly all of them escaped, is too long; its runs are in the slice above.
    if name.len() <= NAME_MAX { name } else { format!("{PREFIX}.slice") }
}

/// The object of a unit on the bus. Asked for a unit that it does not know systemd answers of an empty one.
pub fn object(unit: &str) -> String {
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (i, byte) in unit.bytes().enumerate() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' => path.push(char::from(byte)),
            b'0'..=b'9' if i > 0 => path.push(char::from(byte)),
            _ => path.push_str(&format!("_{byte:02x}")),
        }
    }
    path
}

/// As systemd-escape(1) does it, for names without a slash.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b'.' if i == 0 => escaped.push_str("\\x2e"),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b':' | b'_' | b'.' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunId {
        "run_0123456789ab".parse().unwrap()
    }

    #[test]
    fn a_unit_is_named_by_its_run_and_read_back_strictly() {
        for (kind, name) in [
            (UnitKind::Scope, "guardian-run_0123456789ab.scope"),
            (UnitKind::Service, "guardian-run_0123456789ab.service"),
        ] {
            assert_eq!(unit(run(), kind), name);
            assert_eq!(run_of(name), Some((run(), kind)));
        }
        for other in [
            "guardian-run_0123456789ab.slice",
            "guardian-run_0123456789AB.scope",
            "guardian-run_0123456789a.scope",
            "guardian-run_0123456789abc.scope",
            "guardian-run_0123456789ab.scope.scope",
            "guardian-run_0123456789ab.scope.service",
            "guardian-guardian-run_0123456789ab.scope",
            "guardianrun_0123456789ab.scope",
            "run_0123456789ab.scope",
            "guardian-.scope",
            "",
        ] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_unit_has_the_object_that_systemd_gives_it() {
        assert_eq!(
            object(&unit(run(), UnitKind::Service)),
            "/org/freedesktop/systemd1/unit/guardian_2drun_5f0123456789ab_2eservice"
        );
    }

    #[test]
    fn a_workflow_is_one_level_of_slices_whatever_its_name() {
        let cases = [
            ("builder", "guardian-builder.slice"),
            ("a-b", "guardian-a\\x2db.slice"),
            ("a.b_c", "guardian-a.b_c.slice"),
            (".hidden", "guardian-\\x2ehidden.slice"),
            ("é/@", "guardian-\\xc3\\xa9\\x2f\\x40.slice"),
            ("a\\b", "guardian-a\\x5cb.slice"),
        ];
        for (workflow, name) in cases {
            assert_eq!(slice(workflow), name, "{workflow}");
        }
    }

    #[test]
    fn a_name_that_systemd_would_refuse_as_too_long_is_not_made() {
        assert_eq!(slice(&"a".repeat(64)).len(), 9 + 64 + 6);
        assert_eq!(slice(&format!("a{}", "-".repeat(63))), "guardian.slice");
    }
}
