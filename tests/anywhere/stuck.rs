//! Stuck runs, noticed and ended by rule: with times of a few seconds, in a cgroup and below a shim.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use guardian::model::{EventKind, Health, Phase};

use crate::common::{PATIENCE, Place, Row, World, eventually, lines, python, start, within};
use crate::{needs_place, needs_program};

const PLACES: [Place; 2] = [Place::Root, Place::Subtree];

fn worlds() -> impl Iterator<Item = World> {
    PLACES.into_iter().filter(|place| place.can_be_made().is_ok()).map(World::new_in)
}

/// At the same time: most of a test is waiting.
fn in_each(test: impl Fn(World) + Sync) {
    std::thread::scope(|scope| worlds().for_each(|world| drop(scope.spawn(|| test(world)))));
}

/// Waits until a rule says this of a run.
#[track_caller]
fn says(world: &World, run: &str, health: Health, rule: &str) -> String {
    eventually(&format!("{rule} makes {run} {health}"), || {
        let shown = world.show(run);
        assert_ne!(shown.phase, Phase::Finished, "{shown:?}");
        assert_eq!(shown.health, shown.health_reasons.iter().map(|reason| reason.level).max().unwrap_or_default());
        let said = shown.health_reasons.into_iter().find(|reason| reason.rule == rule && reason.level == health);
        said.map(|reason| reason.text)
    })
}

fn rows(world: &World, kind: EventKind) -> Vec<Row> {
    world.audit().into_iter().filter(|row| row.kind == kind).collect()
}

#[test]
fn a_run_that_does_nothing_is_warned_of_and_then_ended_by_its_rule() {
    needs_place!(Place::Root);
    in_each(|world| {
        let began = Instant::now();
        let run = world.detach(&["--idle-timeout", "6s", "--idle-action", "kill"], &["sh", "-c", "sleep 1000; true"]);
        let text = says(&world, &run, Health::Warning, "idle_timeout");
        assert!(
            text.starts_with("idle for 4 s: both processes sleep; sleep (pid ") && text.contains("it is killed in"),
            "{text}"
        );
        world.guardian(["wait", &run]).exits(124);
        assert!(began.elapsed() >= Duration::from_secs(6), "{:?}", began.elapsed());
        let ended = world.show(&run);
        world.assert_killed(&ended, "idle_timeout");
        assert_eq!(ended.ended(), "killed(idle_timeout of 6 s is over)");
        assert_eq!(ended.receipt().terminated, 2);
        assert_eq!(rows(&world, EventKind::LimitWarning).len(), 1);
        world.assert_nothing_left();
    });
}

#[test]
fn a_run_that_moves_again_is_healthy_again() {
    needs_place!(Place::Root);
    needs_program!("python3");
    let waits = "import os, time
while not os.path.exists('go'): time.sleep(0.05)
while True:
    open('out', 'a').write('x')
    time.sleep(0.2)";
    in_each(|world| {
        let run = world.detach(&["--idle-timeout", "6s"], &[python(), "-c", waits]);
        says(&world, &run, Health::Critical, "idle_timeout");
        std::fs::write(world.path("go"), "").unwrap();
        eventually("it is healthy", || (world.show(&run).health == Health::Healthy).then_some(()));
        world.assert_audited(EventKind::HealthChanged, 3);
        let changes: Vec<String> = rows(&world, EventKind::HealthChanged).into_iter().map(|row| row.reason).collect();
        assert!(changes[0].starts_with("warning: idle for 4 s") && changes[1].starts_with("critical: "), "{changes:?}");
        assert_eq!(changes[2], "healthy");
        assert_eq!(rows(&world, EventKind::Verdict).len(), 1);
        world.guardian(["kill", "--force", &run]).exits(0);
        world.assert_nothing_left();
    });
}

#[test]
fn a_busy_loop_is_ended_by_its_rule_and_is_not_idle() {
    needs_place!(Place::Root);
    for world in worlds() {
        // Other tests want the processors too, and what gets less than its core does not spin. To the kernel a session counts
        // as one that wants them, however nice each in it is.
        let spin = "echo -20 > /proc/self/autogroup; exec nice -n -20 sh -c 'while :; do :; done'";
        let command = ["sh", "-c", spin];
        let options =
            ["--spin-timeout", "5s", "--spin-action", "kill", "--idle-timeout", "3s", "--idle-action", "kill"];
        let run = world.detach(&options, &command);
        // A host that takes the processor away, as virtual ones do, begins each window anew.
        within(4 * PATIENCE, "it is ended", || (world.show(&run).phase == Phase::Finished).then_some(()));
        world.guardian(["wait", &run]).exits(124);
        world.assert_killed(&world.show(&run), "spin_timeout");
        world.assert_nothing_left();
    }
}

#[test]
fn a_run_that_reads_a_terminal_waits_for_input_and_is_never_ended_for_it() {
    needs_place!(Place::Root);
    needs_program!("python3");
    let reads = "import os, pty
pid, terminal = pty.fork()
if pid == 0: os.execvp('sh', ['sh', '-c', 'read line'])
os.waitpid(pid, 0)";
    in_each(|world| {
        let options = ["--input-timeout", "3s", "--idle-timeout", "3s", "--idle-action", "kill"];
        let run = world.detach(&options, &[python(), "-c", reads]);
        let text = says(&world, &run, Health::Warning, "input_timeout");
        assert!(
            text.starts_with("waiting for input for ") && text.contains("sh (pid ") && text.contains("terminal"),
            "{text}"
        );
        // Twice the time after which an idle run is ended.
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(world.show(&run).health, Health::Warning);
        world.guardian(["kill", &run]).exits(0);
        world.assert_killed(&world.show(&run), "requested");
        world.assert_nothing_left();
    });
}

#[test]
fn a_run_that_reads_its_standard_input_waits_for_input_and_goes_on_with_it() {
    needs_place!(Place::Root);
    in_each(|world| {
        let command = ["sh", "-c", "read line; echo got $line; read line"];
        let mut guardian = world.run_command(&["--input-timeout", "3s", "--idle-timeout", "off"], &command);
        let (ours, theirs) = std::io::pipe().map(|(read, write)| (write, read)).unwrap();
        let mut ours = Some(ours);
        let started = start(guardian.stdin(Stdio::from(theirs)));
        drop(guardian);
        let run = eventually("the run is there", || world.runs().first().map(|run| run.run_id.clone()));
        says(&world, &run, Health::Warning, "input_timeout");
        ours.as_mut().unwrap().write_all(b"it\n").unwrap();
        eventually("it is healthy", || (world.show(&run).health == Health::Healthy).then_some(()));
        drop(ours.take());
        assert_eq!(started.wait().stdout, "got it\n");
        world.assert_nothing_left();
    });
}

#[test]
fn a_dry_run_records_what_it_would_do_and_ends_nothing() {
    needs_place!(Place::Root);
    in_each(|world| {
        let config = world.path("config.toml");
        std::fs::write(&config, "[workflow.careful]\ndry_run = true\nidle_timeout = \"3s\"\nidle_action = \"kill\"\n")
            .unwrap();
        let options = ["--config", config.to_str().unwrap(), "--workflow", "careful", "--max-runtime", "2s"];
        let run = world.detach(&options, &["sleep", "1000"]);
        for rule in ["idle_timeout", "max_runtime"] {
            let text = says(&world, &run, Health::Critical, rule);
            assert!(text.ends_with("it would be killed, but for dry_run"), "{text}");
        }
        world.assert_audited(EventKind::Verdict, 2);
        assert_eq!(world.audited(EventKind::KillIntent), 0);
        assert!(world.guardian(["show", &run]).exits(0).stdout.contains("no rule ends it"));
        // A person still does.
        world.guardian(["kill", "--force", &run]).exits(0);
        world.assert_killed(&world.show(&run), "requested");
        world.assert_nothing_left();
    });
}

#[test]
fn more_time_takes_a_warning_back_and_a_frozen_run_has_all_the_time() {
    needs_place!(Place::Root);
    in_each(|world| {
        let options = ["--idle-timeout", "6s", "--idle-action", "kill"];
        let (extended, frozen) =
            (world.detach(&options, &["sleep", "1000"]), world.detach(&options, &["sleep", "1001"]));
        world.guardian(["freeze", &frozen]).exits(0);
        says(&world, &extended, Health::Warning, "idle_timeout");
        world.guardian(["extend", &extended, "idle_timeout", "1h"]).exits(0);
        assert_eq!(world.show(&extended).health, Health::Healthy);
        // More than all of the time that they had, and a window.
        std::thread::sleep(Duration::from_secs(9));
        for run in [&extended, &frozen] {
            assert_eq!(world.show(run).health, Health::Healthy, "{run}");
        }
        world.guardian(["thaw", &frozen]).exits(0);
        world.guardian(["wait", &frozen]).exits(124);
        world.assert_killed(&world.show(&frozen), "idle_timeout");
        world.guardian(["kill", &extended]).exits(0);
        world.assert_nothing_left();
    });
}

#[test]
fn the_next_instance_goes_on_to_watch() {
    needs_place!(Place::Root);
    in_each(|world| {
        let run = world
            .detach(&["--idle-timeout", "6s", "--idle-action", "kill"], &["sh", "-c", "echo > up; exec sleep 1000"]);
        eventually("it is up", || (!lines(world.path("up")).is_empty()).then_some(()));
        says(&world, &run, Health::Warning, "idle_timeout");
        world.crash_instance();
        // What was said stands, until it has been looked at for a window.
        assert_eq!(world.show(&run).health, Health::Warning);
        world.guardian(["wait", &run]).exits(124);
        world.assert_killed(&world.show(&run), "idle_timeout");
        world.assert_nothing_left();
    });
}
