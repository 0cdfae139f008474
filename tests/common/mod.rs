//! Runs the real `guardian` in a state directory of its own, and proves that nothing of it is left.
//!
//! A [`World`] is one state directory with its private instance, a working directory, and a mark by which every process
//! of its workloads is known. It is in a [`Place`]: with all rights, or where no cgroup can be had. Dropping it stops the
//! instance and removes everything, and fails the test if a workload is still there.
#![allow(dead_code, unused_imports)]

mod cells;
mod host;
mod left;
mod place;
mod terminal;
mod view;
mod world;

pub use cells::*;
pub use host::*;
pub use place::*;
pub use terminal::*;
pub use view::*;
pub use world::*;

/// Ends the test early where no cgroup can be made: loudly, and as a failure in CI.
#[macro_export]
macro_rules! needs_cgroup {
    () => {
        if let Err(why) = $crate::common::cgroup_can_be_made() {
            $crate::common::cannot_run(&why);
            return;
        }
    };
}

/// Ends the test early where a [`Place`] cannot be made: loudly, and as a failure in CI.
#[macro_export]
macro_rules! needs_place {
    ($place:expr $(, $instead:expr)?) => {
        if let Err(why) = $crate::common::Place::can_be_made($place) {
            $crate::common::cannot_run(&why);
            return $($instead)?;
        }
    };
}

/// Ends the test early where a program is missing: loudly, and as a failure in CI.
#[macro_export]
macro_rules! needs_program {
    ($program:expr $(, $instead:expr)?) => {
        if $crate::common::find_program($program).is_none() {
            $crate::common::cannot_run(&format!("{} is not installed: as root, tests/run installs it", $program));
            return $($instead)?;
        }
    };
}
