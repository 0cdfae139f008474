//! What is fuzzed here: the names of units, and what shims keep and are told.

use super::subtree::fuzz;
use super::systemd::{UnitKind, object_of, run_of, slice_of, unit_of};
use crate::model::fuzz::{Target, check_told};
use crate::model::valid_workflow_name;

pub const TARGETS: &[Target] = &[("unit_names", names), ("shim_record", record), ("shim_orders", fuzz::orders)];

/// A unit is that of just one run, and no name of a workflow makes another slice than its own.
fn names(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    if let Some((run, kind)) = run_of(text) {
        assert_eq!(unit_of(run, kind), text);
    }
    if let Ok(run) = text.parse() {
        for kind in [UnitKind::Scope, UnitKind::Service] {
            assert_eq!(run_of(&unit_of(run, kind)), Some((run, kind)));
        }
    }
    let slice = slice_of(text);
    let own = slice.strip_prefix("guardian").and_then(|rest| rest.strip_suffix(".slice"));
    assert!(slice.len() <= 255 && own.is_some_and(|own| !own.trim_start_matches('-').contains(['-', '/'])), "{slice}");
    if valid_workflow_name(text).is_ok() && !text.contains('-') {
        assert_eq!(own.and_then(|own| own.strip_prefix('-')), Some(text));
    }
    let object = object_of(text);
    assert!(object.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'/'), "{object}");
}

/// A record says what is in it, or nothing.
fn record(data: &[u8]) {
    let said = fuzz::entries(data);
    for process in [said.shim, said.main, said.init].into_iter().flatten() {
        check_told(process.pid, data);
        check_told(process.start_ticks, data);
    }
    said.empty.into_iter().for_each(|usec| check_told(usec, data));
    assert!(said.mark.is_none_or(|mark| !mark.contains(';') && data.len() >= mark.len()));
}
