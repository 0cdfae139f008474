//! The names of units: a scope for each run, in a slice for each workflow.
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

/// The scope of a run.
pub fn scope(run: RunId) -> String {
    format!("{PREFIX}-{run}.scope")
}

/// The run whose scope has this name.
pub fn run_of(unit: &str) -> Option<RunId> {
    unit.strip_prefix(PREFIX)?.strip_prefix('-')?.strip_suffix(".scope")?.parse().ok()
}

/// The slice of a workflow. systemd nests slices at each `-`, so the workflow's own are escaped: `a-b` is no part of `a`.
pub fn slice(workflow: &str) -> String {
    let name = format!("{PREFIX}-{}.slice", escape(workflow));
    // A workflow's name of 64 characters, nearly all of them escaped, is too long; its runs are in the slice above.
    if name.len() <= NAME_MAX { name } else { format!("{PREFIX}.slice") }
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
    fn a_scope_is_named_by_its_run_and_read_back_strictly() {
        assert_eq!(scope(run()), "guardian-run_0123456789ab.scope");
        assert_eq!(run_of(&scope(run())), Some(run()));
        for other in [
            "guardian-run_0123456789ab.service",
            "guardian-run_0123456789AB.scope",
            "guardian-run_0123456789a.scope",
            "guardian-run_0123456789abc.scope",
            "guardian-run_0123456789ab.scope.scope",
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
