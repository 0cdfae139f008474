//! A run whose shim is killed: what is ended is the run's and all of it, and the receipt says no more than is known.

use std::process::Command;

use rustix::process::Signal;

use crate::common::{Place, World, eventually, is_alive, lines, proc_stat, python, signal, start};
use crate::{needs_place, needs_program};

/// Writes over the last line of its own record that nothing is left, kills its shim and goes on.
const FORGES: &str = "
import os, signal, sys, time
record = os.path.join(os.environ['GUARDIAN_STATE_DIR'], 'shims', os.environ['GUARDIAN_RUN_ID'])
size = os.stat(record).st_size // 6
with open(record, 'r+') as file:
    file.seek(5 * size)
    file.write('empty 0;'.ljust(size - 1) + '\\n')
os.kill(os.getppid(), signal.SIGKILL)
open('forged', 'w').close()
time.sleep(1000)
";

#[test]
fn what_the_client_had_started_before_is_not_taken_for_an_orphan() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let run = world.run_command(
        &[],
        &["sh", "-c", ": > up; while [ ! -e orphaned ]; do sleep 0.01; done; kill -9 $PPID; sleep 1000"],
    );
    // A child that the shell had before it became the client, and that leaves one behind after the run began.
    let earlier = "(while [ ! -e up ]; do sleep 0.01; done; setsid sleep 1000 & echo $! > foreign) & exec \"$@\"";
    let mut shell = Command::new("bash");
    shell.args(["-c", earlier, "bash"]).arg(run.get_program()).args(run.get_args());
    shell.envs(run.get_envs().filter_map(|(key, value)| Some((key, value?)))).current_dir(world.path(""));
    let client = start(&mut shell);
    let number = || lines(world.path("foreign")).first().and_then(|line| line.parse::<u32>().ok());
    let foreign = eventually("there is another child", number);
    let parent = || proc_stat(foreign).is_some_and(|stat| stat[1] == client.pid().to_string());
    eventually("it has come to the client", || parent().then_some(()));
    std::fs::write(world.path("orphaned"), "").unwrap();
    let runs = world.finished();
    world.assert_killed(&runs[0], "containment_lost");
    assert!(is_alive(foreign), "it was not the run's");
    signal(foreign, Signal::KILL);
    client.wait().exits(137);
    world.assert_nothing_left();
}

#[test]
fn each_of_several_runs_whose_shims_are_killed_at_once_has_its_own_receipt() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let sleepers = |n: usize, up: &str| {
        world.detach(&[], &["sh", "-c", &format!("for i in $(seq {n}); do setsid sleep 1000 & done; : > {up}; wait")])
    };
    let runs = [(sleepers(3, "first"), 4), (sleepers(6, "second"), 7), (sleepers(1, "third"), 2)];
    for up in ["first", "second", "third"] {
        eventually("the workload is up", || world.path(up).exists().then_some(()));
    }
    let shims = runs.each_ref().map(|(run, _)| world.show(run).shim.unwrap().pid);
    let instance = world.running_instance();
    signal(instance, Signal::STOP);
    shims.iter().for_each(|shim| signal(*shim, Signal::KILL));
    signal(instance, Signal::CONT);
    world.finished();
    for (run, processes) in &runs {
        let run = world.show(run);
        world.assert_killed(&run, "containment_lost");
        assert_eq!(run.receipt().killed, *processes, "{run:?}");
    }
    world.assert_nothing_left();
}

#[test]
fn a_receipt_without_a_shim_claims_no_proof() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let run = world.detach(&[], &["sh", "-c", "kill -9 $PPID; sleep 1000"]);
    world.guardian(["wait", &run]).exits(137);
    let shown = world.guardian(["show", &run]);
    assert!(shown.exits(0).stdout.contains("0 survivors found, "), "{shown:?}");
    let kept = world.detach(&[], &["sleep", "1000"]);
    let killed = world.guardian(["kill", "--force", &kept]);
    assert!(killed.exits(0).stdout.contains("0 survivors, "), "{killed:?}");
    world.assert_nothing_left();
}

#[test]
fn a_forged_word_that_nothing_is_left_is_not_believed_of_a_command_that_lives() {
    needs_place!(Place::User);
    needs_program!("python3");
    let world = World::new_in(Place::User);
    world.detach(&[], &[python(), "-c", FORGES]);
    eventually("it has forged its record", || world.path("forged").exists().then_some(()));
    let runs = world.finished();
    world.assert_killed(&runs[0], "containment_lost");
    world.assert_nothing_left();
}

#[test]
fn the_next_instance_knows_who_gets_the_orphans() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    // An orphan without a mark, below the shim: only who gets it tells whose it is.
    let command = "(env -i setsid sleep 1000 & echo $! > orphan); while [ ! -e go ]; do sleep 0.01; done; kill -9 $PPID; sleep 1000";
    let client = start(&mut world.run_command(&[], &["sh", "-c", command]));
    let orphan = || lines(world.path("orphan")).first().and_then(|line| line.parse::<u32>().ok());
    let orphan = eventually("there is an orphan", orphan);
    let first = world.running_instance();
    signal(first, Signal::KILL);
    eventually("the client has started the next instance", || world.instance().filter(|next| *next != first));
    std::fs::write(world.path("go"), "").unwrap();
    client.wait().exits(137);
    eventually("the orphan is ended", || (!is_alive(orphan)).then_some(()));
    world.assert_nothing_left();
}
