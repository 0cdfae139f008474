//! Runs that wait for their turn: none lost, none twice, no more at once than may, and nobody passed over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Done, PATIENCE, Place, World, eventually, signal, start};
use guardian::model::{EventKind, Phase};
use rustix::process::Signal;

/// A world with this configuration.
struct Queue {
    world: World,
}

impl Queue {
    fn new(place: Place, config: &str) -> Self {
        let queue = Self { world: World::new_in(place) };
        queue.configure(config);
        queue
    }

    fn configure(&self, config: &str) {
        std::fs::write(self.world.path("config.toml"), config).unwrap();
    }

    fn with(&self, mut command: Command) -> Command {
        command.env("GUARDIAN_CONFIG", self.world.path("config.toml"));
        command
    }

    /// Runs `guardian` with these arguments to its end.
    #[track_caller]
    fn guardian(&self, args: &[&str]) -> Done {
        start(&mut self.with(self.world.command(args))).wait()
    }

    /// Starts a detached run; gives its id.
    #[track_caller]
    fn detach(&self, options: &[&str], command: &[&str]) -> String {
        let options = [&["--detach", "--readiness", "exec"], options].concat();
        let done = start(&mut self.with(self.world.run_command(&options, command))).wait();
        done.exits(0).stdout.trim().to_owned()
    }

    fn foreground(&self, options: &[&str], command: &[&str]) -> common::Started {
        start(&mut self.with(self.world.run_command(options, command)))
    }

    fn phase(&self, run: &str) -> Phase {
        self.world.show(run).phase
    }

    fn queued(&self) -> Vec<String> {
        self.guardian(&["ps", "--quiet", "--phase", "queued"]).stdout.lines().map(str::to_owned).collect()
    }

    fn launches_kept(&self) -> usize {
        std::fs::read_dir(self.world.state().join("queue")).map_or(0, |entries| entries.flatten().count())
    }
}

const ONE: &str = "[instance]\nmax_running = 1\n";

#[test]
fn two_hundred_queued_runs_on_two_slots_are_each_executed_once_in_fair_order_over_two_deaths_of_the_instance() {
    needs_cgroup!();
    let queue = Queue::new(Place::Root, "[instance]\nmax_running = 2\n");
    let world = &queue.world;
    let blockers = [queue.detach(&[], &["sleep", "1000"]), queue.detach(&[], &["sleep", "1000"])];
    let log = world.path("log");
    let script = "echo begin $1 >> \"$2\"; sleep 0.02; echo end $1 >> \"$2\"";
    let mut workflow_of = BTreeMap::new();
    for n in 0..200 {
        // The longest line first: whoever comes late is not behind all of it.
        let workflow = match n {
            0..100 => "alpha",
            100..150 => "beta",
            _ => "gamma",
        };
        let (number, log) = (n.to_string(), log.to_str().unwrap());
        let run = queue.detach(&["--workflow", workflow], &["sh", "-c", script, "sh", &number, log]);
        workflow_of.insert(run, (n, workflow));
    }
    assert_eq!((queue.queued().len(), queue.launches_kept()), (200, 200));
    queue.guardian(&["kill", "--force", &blockers[0], &blockers[1]]).exits(0);
    let lines = |what: &str| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter(|line| line.starts_with(what)).count()
    };
    for after in [50, 120] {
        eventually("some of them are through", || (lines("end") >= after).then_some(()));
        world.crash_instance();
        queue.guardian(&["ps"]).exits(0);
    }
    // However slow the host is, it goes on.
    for through in (130..=200).step_by(10) {
        let deadline = Instant::now() + PATIENCE;
        while lines("end") < through {
            let stalled = || {
                let runs = world.runs();
                let odd: Vec<_> = runs.iter().filter(|run| run.ended() != "exited(0)").collect();
                let of_them = |row: &common::Row| odd.iter().any(|run| row.run_id.as_ref() == Some(&run.run_id));
                let audit: Vec<_> = world.audit().into_iter().filter(of_them).collect();
                format!("{odd:?}\n{audit:#?}\n{}", std::fs::read_to_string(&log).unwrap_or_default())
            };
            assert!(Instant::now() < deadline, "{} of {through} are through: {}", lines("end"), stalled());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    world.finished();

    let text = std::fs::read_to_string(&log).unwrap();
    let mut open = BTreeSet::new();
    let mut executed = BTreeSet::new();
    for line in text.lines() {
        let (what, n) = line.split_once(' ').unwrap();
        match what {
            "begin" => assert!(executed.insert(n) && open.insert(n), "{n} was executed twice"),
            _ => assert!(open.remove(n), "{n} ended twice"),
        }
        assert!(open.len() <= 2, "{} run at once", open.len());
    }
    assert_eq!(executed.len(), 200, "each was executed");
    let rows: Vec<(i32, &str)> = (world.audit().iter().filter(|row| row.kind == EventKind::RunStarted))
        .filter_map(|row| workflow_of.get(row.run_id.as_ref()?).copied())
        .collect();
    // One whose instance died before it opened the gate is begun anew: two slots, two deaths.
    assert!((200..=204).contains(&rows.len()), "{} starts", rows.len());
    let is_last = |at: usize| !rows[at + 1..].contains(&rows[at]);
    let started: Vec<(i32, &str)> = (0..rows.len()).filter(|at| is_last(*at)).map(|at| rows[at]).collect();
    assert_eq!(started.len(), 200, "each has started");
    for workflow in ["alpha", "beta", "gamma"] {
        let order: Vec<i32> = started.iter().filter(|(_, of)| *of == workflow).map(|(n, _)| *n).collect();
        assert!(order.is_sorted(), "{workflow}: {order:?}");
    }
    // As long as all wait, workflows have as many turns: but for the round that an instance broke off, and two at once.
    for seen in 1..=started.len() {
        let turns = |workflow| started[..seen].iter().filter(|(_, of)| *of == workflow).count();
        let (alpha, beta, gamma) = (turns("alpha"), turns("beta"), turns("gamma"));
        if beta < 50 && gamma < 50 {
            let (least, most) = (alpha.min(beta).min(gamma), alpha.max(beta).max(gamma));
            assert!(most - least <= 4, "after {seen} starts: alpha {alpha}, beta {beta}, gamma {gamma}");
        }
    }
    assert_eq!(queue.launches_kept(), 0, "what they were to execute is not kept any more");
    world.assert_audit_holds();
    world.assert_nothing_left();
}

#[test]
fn a_queued_run_is_listed_shown_waited_for_and_ended_and_executes_nothing() {
    needs_cgroup!();
    for place in [Place::Root, Place::Subtree] {
        let queue = Queue::new(place, "[workflow.builder]\nmax_running = 1\n");
        let world = &queue.world;
        let live = queue.detach(&["--workflow", "builder"], &["sleep", "1000"]);
        let secret = "not for the database";
        let made = world.path("made");
        let touch = ["touch", made.to_str().unwrap()];
        let env = format!("SECRET={secret}");
        let queued = queue.detach(&["--workflow", "builder", "--env", &env], &touch);
        let second = queue.detach(&["--workflow", "builder"], &touch);
        let other = queue.foreground(&[], &["true"]);
        other.wait().exits(0);
        assert_eq!(queue.queued(), [queued.clone(), second.clone()]);
        let shown = queue.guardian(&["show", &second]);
        let said = "queued, 2nd of 2 for workflow builder: 1 builder run is running of 1 allowed";
        assert!(shown.exits(0).stdout.contains(said), "{shown:?}");
        let ps = queue.guardian(&["ps"]);
        assert!(ps.stdout.contains("queued 1/2") && ps.stdout.contains("queued 2/2"), "{}", ps.stdout);
        let json = queue.guardian(&["ps", "--json", "--phase", "queued"]).json();
        assert_eq!(json[1]["queue"]["position"], 2, "{json}");
        let file = world.state().join("queue").join(&queued);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(String::from_utf8_lossy(&std::fs::read(&file).unwrap()).contains(secret));

        let waiter = start(&mut queue.with(world.command(["wait", &queued])));
        queue.guardian(&["kill", "--reason", "not needed", &queued]).exits(0);
        let waited = waiter.wait();
        assert!(waited.exits(137).stderr.contains("before its command was executed: not needed"), "{waited:?}");
        queue.guardian(&["kill", &queued]).exits(4);
        let run = world.show(&queued);
        assert_eq!((run.ended(), run.receipt.is_none()), ("killed(not needed)", true), "{run:?}");
        assert!(run.notices.iter().any(|n| n.contains("nothing of it was executed")), "{run:?}");
        assert_eq!(world.audited(EventKind::RunQueued), 2);
        let intent = world.audit().into_iter().find(|row| row.kind == EventKind::KillIntent).unwrap();
        assert_eq!((intent.run_id.as_deref(), intent.reason.as_str()), (Some(&*queued), "not needed"));
        assert!(!file.exists() && !made.exists());

        queue.guardian(&["kill", "--force", &live]).exits(0);
        eventually("the second has its turn", || made.exists().then_some(()));
        world.finished();
        for file in ["guardian.db", "guardian.db-wal"] {
            let bytes = std::fs::read(world.state().join(file)).unwrap_or_default();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{file} has the environment");
        }
        world.assert_audit_holds();
        world.assert_nothing_left();
    }
}

#[test]
fn a_foreground_run_waits_its_turn_says_so_and_exits_as_its_command() {
    needs_cgroup!();
    let queue = Queue::new(Place::Root, ONE);
    let world = &queue.world;
    let live = queue.detach(&[], &["sleep", "1000"]);
    let said = world.path("said");
    let mut waiting = queue.with(world.run_command(&[], &["sh", "-c", "exit 7"]));
    let mut waiting = waiting.stderr(std::fs::File::create(&said).unwrap()).spawn().unwrap();
    eventually("it says that it is queued", || {
        let said = std::fs::read_to_string(&said).unwrap();
        said.contains("is queued: 1 run is running of 1 allowed on this host").then_some(())
    });
    let id = eventually("it is queued", || queue.queued().first().cloned());
    let after = queue.detach(&[], &["true"]);
    // The instance dies: it stands at the end of the next one's queue.
    world.crash_instance();
    eventually("it is queued anew", || {
        let queued = queue.queued();
        (queued.len() == 2 && queued.contains(&after) && !queued.contains(&id)).then_some(())
    });
    queue.guardian(&["kill", "--force", &live]).exits(0);
    let code = eventually("it is over", || waiting.try_wait().unwrap());
    assert_eq!(code.code(), Some(7), "{}", std::fs::read_to_string(&said).unwrap());
    world.finished();
    world.assert_nothing_left();
}

#[test]
fn who_gives_up_or_dies_leaves_the_queue() {
    needs_cgroup!();
    let queue = Queue::new(Place::Root, ONE);
    let world = &queue.world;
    let live = queue.detach(&[], &["sleep", "1000"]);
    for (with, code) in [(Signal::TERM, Some(143)), (Signal::KILL, None)] {
        let made = world.path("made");
        let waiting = queue.foreground(&[], &["touch", made.to_str().unwrap()]);
        let id = eventually("it is queued", || queue.queued().first().cloned());
        signal(waiting.pid(), with);
        assert_eq!(waiting.wait().code, code);
        eventually("it is over", || (queue.phase(&id) == Phase::Finished).then_some(()));
        assert_eq!(world.show(&id).ended(), "killed(its client is gone)");
        assert!(!made.exists());
    }
    queue.guardian(&["kill", "--force", &live]).exits(0);
    world.finished();
    world.assert_nothing_left();
}

#[test]
fn a_run_that_waits_too_long_is_given_up_and_a_reload_lets_others_start_at_once() {
    needs_cgroup!();
    let queue = Queue::new(Place::Root, ONE);
    let world = &queue.world;
    let live = queue.detach(&[], &["sleep", "1000"]);
    let late = queue.foreground(&["--queue-timeout", "1s"], &["true"]).wait();
    assert!(late.exits(124).stderr.contains("queue_timeout of 1 s is over"), "{late:?}");
    let given_up = queue.detach(&["--queue-timeout", "1s"], &["true"]);
    queue.guardian(&["wait", &given_up]).exits(124);
    let waiting = queue.detach(&[], &["sleep", "1000"]);
    assert_eq!(queue.phase(&waiting), Phase::Queued);
    queue.configure("[instance]\nmax_running = 2\n");
    signal(world.running_instance(), Signal::HUP);
    eventually("it has its turn", || (queue.phase(&waiting) == Phase::Running).then_some(()));
    queue.guardian(&["kill", "--force", &live, &waiting]).exits(0);
    world.finished();
    world.assert_nothing_left();
}

#[test]
fn a_queued_run_whose_launch_was_tampered_with_is_not_executed() {
    needs_cgroup!();
    let queue = Queue::new(Place::Root, ONE);
    let world = &queue.world;
    let live = queue.detach(&[], &["sleep", "1000"]);
    let made = world.path("made");
    let runs: Vec<String> = (0..3).map(|_| queue.detach(&[], &["touch", made.to_str().unwrap()])).collect();
    world.crash_instance();
    let file = |run: &str| world.state().join("queue").join(run);
    std::fs::remove_file(file(&runs[0])).unwrap();
    std::fs::write(
        file(&runs[1]),
        std::fs::read_to_string(file(&runs[2])).unwrap().replace(&runs[2], &runs[1]).replace("touch", "false"),
    )
    .unwrap();
    std::fs::set_permissions(file(&runs[2]), std::fs::Permissions::from_mode(0o644)).unwrap();
    queue.guardian(&["ps"]).exits(0);
    for (run, why) in runs.iter().zip(["cannot be read", "another command", "alone"]) {
        let run = eventually("it is over", || Some(world.show(run)).filter(|run| run.phase == Phase::Finished));
        assert!(run.ended().starts_with("lost(it was queued") && run.ended().contains(why), "{run:?}");
    }
    assert!(!made.exists());
    queue.guardian(&["kill", "--force", &live]).exits(0);
    world.finished();
    world.assert_nothing_left();
}
