//! Every step of an instance that fails once, takes long, panics or is the last thing that the instance does: for each of
//! these the promises hold. What was executed is accounted for and gone, what was refused was not executed, nothing is done
//! twice, and the audit verifies. Each cell of the table is a world of its own.
//!
//! `FAULTS=all` tries the whole table; without it the cells are left out that come to the same as another one: a panic, which is
//! the end of the instance as SIGKILL is, and for a subtree what does not depend on what contains the run.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Place, Run, World, all_hold, eventually, is_alive, lines, start};
use guardian::failpoint;
use guardian::model::{EventKind, Phase};

/// A tree that ignores SIGTERM, so that a kill of it goes through all steps.
const STUBBORN: [&str; 3] =
    ["sh", "-c", "echo $$ >> executed; trap '' TERM; setsid sleep 1000 & sleep 1000 & : > up; wait"];
const LIMITS: [&str; 9] =
    ["--detach", "--max-runtime", "1500ms", "--grace", "300ms", "--init-timeout", "off", "--idle-timeout", "3s"];
/// Each run is looked at and sampled once before its limit.
const CONFIG: &str = "[instance]\nsample_interval = \"1s\"\n";

/// What happens at a failpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// It fails, the first time.
    Fails,
    /// It takes 300 ms, each time.
    TakesLong,
    Panics,
    /// SIGKILL.
    Dies,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Fails, Self::TakesLong, Self::Panics, Self::Dies];

    /// How a failpoint is set. What an instance passes already when it starts happens later.
    fn action(self, name: &str) -> String {
        let earlier = match name {
            "journal.entry" | "store.commit" | "store.committed" => "2*off->",
            _ => "",
        };
        let action = match self {
            Self::Fails => "1*return(fails)",
            Self::TakesLong => "sleep(300)",
            Self::Panics => "panic",
            Self::Dies => "return(kill)",
        };
        format!("{name}={earlier}{action}")
    }

    /// Whether the instance lives on.
    fn is_survived(self) -> bool {
        matches!(self, Self::Fails | Self::TakesLong)
    }
}

type Cell = (&'static str, Fault);

fn crossed(names: &[&'static str], faults: &[Fault]) -> Vec<Cell> {
    names.iter().flat_map(|name| faults.iter().map(|fault| (*name, *fault))).collect()
}

fn world(place: Place) -> World {
    let world = World::new_in(place);
    std::fs::write(world.path("config.toml"), CONFIG).unwrap();
    world
}

/// Starts an instance that passes failpoints, and gives its pid. Only this one does: what a client starts later lives.
fn instance_with(world: &World, name: &str, fault: Fault) -> u32 {
    start(
        world.command(["ps"]).env("GUARDIAN_CONFIG", world.path("config.toml")).env("FAILPOINTS", fault.action(name)),
    )
    .wait()
    .exits(0);
    world.running_instance()
}

/// A run is launched, watched and ended by its limit, while something is wrong.
fn a_run_is_accounted_for(place: Place, name: &str, fault: Fault) {
    let world = world(place);
    let first = instance_with(&world, name, fault);
    let done = start(&mut world.run_command(&LIMITS, &STUBBORN)).wait();
    let mut runs = world.finished();
    if !fault.is_survived() {
        eventually("the instance dies at the failpoint", || (!is_alive(first)).then_some(()));
        // The question starts the next one, also where the first had died after its last answer.
        runs = world.finished();
        assert_ne!(world.running_instance(), first);
    }
    let executed = lines(world.path("executed")).len();
    assert!(executed <= 1, "one launch, executed {executed} times, as {runs:#?}");
    if fault.is_survived() {
        assert_eq!(world.instance(), Some(first), "the instance lives on");
        // It is refused whole, or all of it is done.
        match done.code {
            Some(0) => {
                assert_eq!((executed, runs.len()), (1, 1), "{runs:#?}");
                world.assert_killed(&runs[0], "max_runtime");
            }
            _ => assert_eq!((done.code, executed), (Some(125), 0), "{done:?}, {runs:#?}"),
        }
    } else {
        // A launch that the dead instance had only recorded may be asked for again.
        assert!(runs.len() <= 2, "one launch, {} runs", runs.len());
    }
    if done.code == Some(0) {
        assert!(runs.iter().any(|run| run.run_id == done.stdout.trim()), "it was acknowledged: {done:?}, {runs:#?}");
    }
    is_in_order(&world, &runs);
}

/// Two runs are taken up by an instance while something is wrong, and by the next one if that one dies.
fn runs_are_taken_up(place: Place, name: &str, fault: Fault) {
    let world = world(place);
    let ids: Vec<String> = (0..2).map(|_| world.detach(&LIMITS[1..], &STUBBORN)).collect();
    eventually("both are up", || (lines(world.path("executed")).len() == 2).then_some(()));
    world.crash_instance();
    // It may die of this before it answers.
    let told = start(world.command(["instance", "--detach"]).env("FAILPOINTS", fault.action(name)));
    told.wait();
    eventually("the next instance is there or has died", || match fault.is_survived() {
        true => world.instance().map(drop),
        false => world.written_instance().filter(|&pid| !is_alive(pid)).map(drop),
    });
    let runs = world.finished();
    assert_eq!(runs.len(), 2, "{runs:#?}");
    for id in &ids {
        let run = runs.iter().find(|run| run.run_id == *id).unwrap_or_else(|| panic!("{id} is known: {runs:#?}"));
        world.assert_killed(run, "max_runtime");
    }
    is_in_order(&world, &runs);
}

/// What holds whatever happened: an end, a receipt for each intent, nothing left, and an audit that verifies.
fn is_in_order(world: &World, runs: &[Run]) {
    eventually("nothing is left", || world.workload().is_empty().then_some(()));
    // What the store could not write at first it writes a second later.
    let ends = || world.audited(EventKind::RunFinished) >= runs.len();
    eventually("each end is on record", || ends().then_some(()));
    let audit = world.audit();
    for run in runs {
        assert_eq!(run.phase, Phase::Finished, "{run:?}");
        let outcome = run.outcome.as_ref().expect("an outcome");
        assert!(["killed", "lost", "launch_failed"].contains(&outcome.kind.as_str()), "{run:?}");
        let of = |kind| audit.iter().filter(|row| row.run_id.as_ref() == Some(&run.run_id) && row.kind == kind).count();
        assert_eq!(of(EventKind::KillIntent), usize::from(run.receipt.is_some()), "a receipt for each intent: {run:?}");
        assert_eq!(of(EventKind::RunFinished), 1, "one end: {audit:#?}");
        if let Some(receipt) = &run.receipt {
            assert_eq!(receipt.survivors, 0, "{receipt:?}");
        }
    }
    world.assert_audit_holds();
    world.assert_nothing_left();
}

/// The cells that are tried here.
fn chosen(place: Place, cells: Vec<Cell>) -> Vec<Cell> {
    let all = std::env::var_os("FAULTS").is_some_and(|v| v == "all");
    let same = |(name, fault): &Cell| match fault {
        Fault::Panics => !failpoint::THREADS.contains(name) && *name != "kill.recorded",
        Fault::TakesLong => place != Place::Root,
        Fault::Fails | Fault::Dies => place != Place::Root && failpoint::THREADS.contains(name),
    };
    cells.into_iter().filter(|cell| all || !same(cell)).collect()
}

macro_rules! everywhere {
    ($place:expr) => {
        use super::*;

        #[test]
        fn what_fails_takes_long_or_panics_in_a_step_of_a_run_costs_no_promise() {
            needs_place!($place);
            // That an instance dies at these is in failpoints.rs, for both ways of a launch; an error there is nobody's.
            let mut cells = crossed(failpoint::ALL, &[Fault::TakesLong, Fault::Panics]);
            cells.extend(crossed(failpoint::ASKED, &Fault::ALL));
            cells.extend(crossed(failpoint::THREADS, &[Fault::TakesLong, Fault::Panics, Fault::Dies]));
            all_hold(chosen($place, cells), |(name, fault)| a_run_is_accounted_for($place, name, *fault));
        }

        #[test]
        fn what_fails_takes_long_or_panics_while_runs_are_taken_up_costs_no_promise() {
            needs_place!($place);
            let cells = chosen($place, crossed(failpoint::RECOVERY, &Fault::ALL));
            all_hold(cells, |(name, fault)| runs_are_taken_up($place, name, *fault));
        }
    };
}

mod cgroupfs {
    everywhere!(Place::Root);
}

mod subtree {
    everywhere!(Place::User);
}
