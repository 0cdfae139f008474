//! Names of workflows.

/// The longest name, in bytes.
const LONGEST: usize = 64;

/// Refuses what is not the name of a workflow: 1 to 64 of `A-Z a-z 0-9 _ . -`, not starting with `.` or `-`, so that
/// it can be a directory, a table of the configuration and an argument without quoting.
pub fn valid_workflow_name(name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if !name.is_empty() && name.len() <= LONGEST && !name.starts_with(['.', '-']) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{:?} is not a workflow name: use 1 to {LONGEST} letters, digits, `_`, `.` or `-`, not starting with `.` or `-`",
        name.chars().take(40).collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_name_needs_no_quoting_anywhere() {
        for good in ["builder", "lina", "a.b_c-9", &"x".repeat(64)] {
            assert_eq!(valid_workflow_name(good), Ok(()));
        }
        for bad in ["", ".hidden", "-v", "a b", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert!(valid_workflow_name(bad).is_err(), "{bad:?}");
        }
    }
}
