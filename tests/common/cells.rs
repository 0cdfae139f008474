//! Tables of cases, each in a world of its own: several are tried at a time, since most of their time is waiting.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// Cases at a time.
const AT_A_TIME: usize = 6;

/// Tries every case, and names all that failed.
#[track_caller]
pub fn all_hold<C: Debug + Send>(cases: Vec<C>, holds: impl Fn(&C) + Sync) {
    let count = cases.len();
    let (left, failed) = (Mutex::new(cases), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(case) = { left.lock().unwrap().pop() } {
                    if catch_unwind(AssertUnwindSafe(|| holds(&case))).is_err() {
                        failed.lock().unwrap().push(format!("{case:?}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {count} fail: {failed:#?}", failed.len());
    println!("{count} cases hold");
}
