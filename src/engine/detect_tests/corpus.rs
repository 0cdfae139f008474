//! The corpus: lives of runs, and what has to be said of each. The false alarms of others are among them.

use super::life::*;
use super::*;
use Step::{Do, Freeze, Restart, Suspend, Unseen};

const HOUR: u64 = 3600;

/// A life with the usual rules: idle 15 min, spin 20 min, input 2 min.
type Case = (&'static str, Vec<Step>, Vec<Expected>);

fn nothing(name: &'static str, steps: Vec<Step>) -> Case {
    (name, steps, Vec::new())
}

/// Nothing may be said of these.
fn healthy() -> Vec<Case> {
    let doing = |cpu, stores, moves, forks, beats| Doing { cpu, stores, moves, forks, beats, ..SLEEP };
    vec![
        nothing("a headless agent, silent for 405 s, then alive", vec![Do(60, WORK), Do(405, SLEEP), Do(600, WORK)]),
        nothing("silent for 9 min again and again", [Do(60, WORK), Do(540, SLEEP)].repeat(10)),
        nothing("a compile whose output is buffered", vec![Do(HOUR, doing(950, 20, 20, 10, 0))]),
        nothing("one large file that the compiler reads once", vec![Do(60, WORK), Do(900, SPIN_LOOP), Do(60, WORK)]),
        nothing("a test suite that writes 4 KB at a time", vec![Do(2 * HOUR, doing(600, 0, 480, 0, 0))]),
        nothing("a long download", vec![Do(2 * HOUR, doing(10, 1, 1, 0, 0))]),
        nothing("a download of a byte every 4 min", vec![Do(2 * HOUR, doing(0, 0, 240, 0, 0))]),
        nothing("an upload that only storage shows", vec![Do(2 * HOUR, doing(5, 60, 0, 0, 0))]),
        nothing("a loop that sleeps and polls, with heartbeats", vec![Do(3 * HOUR, doing(1, 0, 0, 0, 60))]),
        nothing("heartbeats that are few", vec![Do(3 * HOUR, doing(0, 0, 0, 0, 290))]),
        nothing("a shell loop around sleep", vec![Do(2 * HOUR, doing(2, 0, 0, 30, 0))]),
        nothing("a job every 4 min", [Do(240, SLEEP), Do(10, doing(900, 1, 1, 5, 0))].repeat(20)),
        nothing("a child is busy while its parent sleeps", vec![Do(HOUR, doing(1000, 5, 5, 0, 0))]),
        nothing("a parent that starts children that compute", vec![Do(HOUR, doing(1900, 0, 0, 45, 0))]),
        nothing("mathematics on a bit more than half a core", vec![Do(4 * HOUR, doing(600, 0, 0, 0, 0))]),
        nothing("mathematics that tells its progress", vec![Do(4 * HOUR, doing(1000, 0, 180, 0, 0))]),
        nothing("mathematics with heartbeats", vec![Do(4 * HOUR, doing(1000, 0, 0, 0, 120))]),
        nothing("mathematics on eight cores that saves its state", vec![Do(4 * HOUR, doing(8000, 200, 0, 0, 0))]),
        nothing("mathematics that is throttled to 85 %", vec![Do(2 * HOUR, doing(850, 0, 0, 0, 0))]),
        nothing("a spinner that is repainted while the network is awaited", vec![Do(2 * HOUR, doing(10, 0, 1, 0, 0))]),
        nothing("a process that waits for a slow disk", vec![Do(HOUR, doing(8, 30, 0, 0, 0))]),
        nothing("a run that swaps", vec![Do(HOUR, doing(15, 1, 0, 0, 0))]),
        nothing("an event loop at 3 %", vec![Do(2 * HOUR, doing(30, 0, 0, 0, 0))]),
        nothing("a pool that ends threads and makes them anew", vec![Do(2 * HOUR, doing(2, 0, 0, 100, 0))]),
        nothing("a run of a moment", vec![Do(1, WORK)]),
        nothing("somebody thinks for 90 s and types", [Do(90, PROMPT), Do(3, WORK)].repeat(30)),
        nothing("a prompt while a job computes behind it", vec![Do(HOUR, Doing { cpu: 500, ..PROMPT })]),
        nothing("a prompt that is repainted", vec![Do(HOUR, Doing { moves: 2, ..PROMPT })]),
        nothing("a job reads a terminal and has heartbeats", vec![Do(HOUR, Doing { beats: 30, ..PROMPT })]),
    ]
}

/// The host is to blame, or we are.
fn merciful() -> Vec<Case> {
    let starved = Doing { cpu: 10, starved: 500, ..SLEEP };
    let loaded = Doing { cpu: 10, host: 90, hides: Hides::Wait, ..SLEEP };
    let frozen = Doing { frozen: true, ..SLEEP };
    let near = |second| within(IDLE, Near, second, 600);
    vec![
        nothing(
            "the host sleeps for two hours",
            vec![Do(60, WORK), Do(480, SLEEP), Suspend(7200), Do(60, SLEEP), Do(60, WORK)],
        ),
        (
            "it sleeps when a verdict is near: a whole window has to pass",
            vec![Do(660, SLEEP), Suspend(7200), Do(530, SLEEP), Do(60, WORK)],
            vec![near(0), cleared(IDLE, 1190)],
        ),
        (
            "a stuck run on a host that slept is found all the same",
            vec![Do(660, SLEEP), Suspend(7200), Do(1200, SLEEP)],
            vec![near(0), (IDLE, Over, 900 + 241, 900 + 2 * IDLE_WINDOW + SLACK)],
        ),
        ("it sleeps every few minutes, and nothing can be proved", [Do(200, SLEEP), Suspend(60)].repeat(30), vec![]),
        nothing("a run that gets no CPU", vec![Do(2 * HOUR, starved)]),
        nothing("a loaded host where a run's own share is not known", vec![Do(2 * HOUR, loaded)]),
        ("stuck from when the host has room again", vec![Do(1800, starved), Do(1300, SLEEP)], idle_since(1800)),
        (
            "a loaded host for a while in between",
            vec![Do(400, SLEEP), Do(300, starved), Do(1100, SLEEP)],
            vec![(IDLE, Near, 900, 900 + 2 * IDLE_WINDOW + SLACK), (IDLE, Over, 1200, 1200 + 2 * IDLE_WINDOW + SLACK)],
        ),
        (
            "the instance is restarted before anything was said",
            vec![Do(480, SLEEP), Restart(2, SLEEP), Do(1300, SLEEP)],
            idle_since(482),
        ),
        (
            "the instance is restarted after the warning: a whole window",
            vec![Do(700, SLEEP), Restart(2, SLEEP), Do(700, SLEEP)],
            vec![near(0), within(IDLE, Over, 702, 300)],
        ),
        nothing("the instance is restarted while a run works", vec![Do(700, WORK), Restart(5, WORK), Do(300, WORK)]),
        (
            "a run that worked while no instance was there",
            vec![Do(700, SLEEP), Restart(900, WORK), Do(1300, SLEEP)],
            vec![near(0), cleared(IDLE, 1600), near(1600), within(IDLE, Over, 1600, 900)],
        ),
        nothing("the instance is restarted every five minutes", [Do(300, SLEEP), Restart(1, SLEEP)].repeat(20)),
        nothing("the instance was stopped for an hour", vec![Do(200, SLEEP), Unseen(HOUR, SLEEP), Do(500, SLEEP)]),
        (
            "a sample that is late by little proves as much",
            vec![Do(295, SLEEP), Unseen(20, SLEEP), Do(900, SLEEP)],
            vec![(IDLE, Near, 600, 640), (IDLE, Over, 900, 940)],
        ),
        nothing("frozen for two hours", vec![Do(300, SLEEP), Freeze(2 * HOUR), Do(200, SLEEP)]),
        (
            "frozen after the warning: the clock stands still",
            vec![Do(700, SLEEP), Freeze(2 * HOUR), Do(400, SLEEP)],
            vec![near(0), within(IDLE, Over, 7900, 200)],
        ),
        nothing("frozen by somebody else", vec![Do(2 * HOUR, frozen)]),
        ("frozen by somebody else and let go on", vec![Do(2 * HOUR, frozen), Do(1300, SLEEP)], idle_since(7200)),
        nothing("frozen while it spins", vec![Do(600, SPIN_LOOP), Freeze(HOUR), Do(300, SPIN_LOOP)]),
        (
            "spinning through a suspend",
            vec![Do(600, SPIN_LOOP), Suspend(7200), Do(1000, SPIN_LOOP)],
            vec![(SPIN, Near, 960, 960 + 2 * SPIN_WINDOW + SLACK), (SPIN, Over, 1200, 1200 + 2 * SPIN_WINDOW + SLACK)],
        ),
    ]
}

/// What is not known is not idle.
fn unknown() -> Vec<Case> {
    let hiding = |hides| Doing { hides, ..SLEEP };
    vec![
        nothing("the CPU time is not known", vec![Do(HOUR, hiding(Hides::Cpu))]),
        nothing("the bytes of another user's processes are not known", vec![Do(HOUR, hiding(Hides::Bytes))]),
        nothing("the bytes of storage are not known", vec![Do(HOUR, hiding(Hides::Storage))]),
        nothing("the processes are hidden", vec![Do(HOUR, hiding(Hides::Processes))]),
        nothing("whether it waits for input is not known", vec![Do(HOUR, Doing { input: None, ..SLEEP })]),
        nothing(
            "a spinner of which the bytes are not known",
            vec![Do(HOUR, Doing { hides: Hides::Bytes, ..SPIN_LOOP })],
        ),
        ("known from some moment on", vec![Do(HOUR, hiding(Hides::Bytes)), Do(1300, SLEEP)], idle_since(HOUR)),
        (
            "not known for a moment after the warning",
            vec![Do(650, SLEEP), Do(300, hiding(Hides::Bytes)), Do(1300, SLEEP)],
            vec![
                within(IDLE, Near, 0, 600),
                (IDLE, Clear, 650, 950),
                within(IDLE, Near, 950, 600),
                within(IDLE, Over, 950, 900),
            ],
        ),
        (
            "its share of a quiet host is not known",
            vec![Do(1300, Doing { host: 20, hides: Hides::Wait, ..SLEEP })],
            idle_since(0),
        ),
    ]
}

/// These are stuck.
fn stuck() -> Vec<Case> {
    let near = |second| within(IDLE, Near, second, 600);
    let over = |second| within(IDLE, Over, second, 900);
    let agent = Doing { cpu: 14, ..SLEEP };
    let collects = [Do(290, SLEEP), Do(10, Doing { cpu: 400, ..SLEEP })];
    vec![
        ("it sleeps from the beginning", vec![Do(1300, SLEEP)], idle_since(0)),
        ("it works, and waits for a lock for ever", vec![Do(500, WORK), Do(1300, SLEEP)], idle_since(500)),
        (
            "it works for two hours, and waits for an answer for ever",
            vec![Do(2 * HOUR, WORK), Do(1300, SLEEP)],
            idle_since(2 * HOUR),
        ),
        ("a hung agent that burns 1.4 % for seven hours", vec![Do(60, WORK), Do(7 * HOUR, agent)], idle_since(60)),
        (
            "one that collects garbage every five minutes",
            [&[Do(60, WORK)][..], &collects.repeat(5)].concat(),
            vec![(IDLE, Near, 660, 1300), (IDLE, Over, 960, 1600)],
        ),
        (
            "a loop that sleeps and polls, without a sign of life",
            vec![Do(1300, Doing { cpu: 1, ..SLEEP })],
            idle_since(0),
        ),
        ("the heartbeats stop", vec![Do(HOUR, Doing { beats: 60, ..SLEEP }), Do(1300, SLEEP)], idle_since(HOUR)),
        ("a file server that is gone", vec![Do(300, Doing { stores: 1, ..SLEEP }), Do(1300, SLEEP)], idle_since(300)),
        ("stopped by SIGSTOP", vec![Do(300, SPIN_LOOP), Do(1300, SLEEP)], idle_since(300)),
        ("alive again after the warning", vec![Do(840, SLEEP), Do(600, WORK)], vec![near(0), cleared(IDLE, 840)]),
        (
            "alive again, and by CPU time alone",
            vec![Do(840, SLEEP), Do(300, Doing { cpu: 300, ..SLEEP })],
            vec![near(0), cleared(IDLE, 840)],
        ),
        (
            "alive again after the verdict",
            vec![Do(1000, SLEEP), Do(600, WORK)],
            vec![near(0), over(0), cleared(IDLE, 1000)],
        ),
        (
            "silent for 12 min, and once more",
            [Do(720, SLEEP), Do(60, WORK)].repeat(2),
            vec![near(0), cleared(IDLE, 720), within(IDLE, Near, 780, 600), cleared(IDLE, 1500)],
        ),
        (
            "one byte every 14 min",
            vec![Do(1840, Doing { moves: 840, ..SLEEP })],
            vec![near(0), cleared(IDLE, 840), near(840), cleared(IDLE, 1680)],
        ),
        ("a busy loop", vec![Do(1500, SPIN_LOOP)], spinning_since(0)),
        ("a busy loop on four cores", vec![Do(1500, Doing { cpu: 4000, ..SLEEP })], spinning_since(0)),
        ("a busy loop that shares its core", vec![Do(1500, Doing { cpu: 930, ..SLEEP })], spinning_since(0)),
        ("it works, and then spins", vec![Do(900, WORK), Do(1500, SPIN_LOOP)], spinning_since(900)),
        (
            "a linker that computes for 18 min",
            vec![Do(1080, SPIN_LOOP), Do(300, WORK)],
            vec![within(SPIN, Near, 0, 960), cleared(SPIN, 1080)],
        ),
        (
            "it spins, and then hangs",
            vec![Do(1500, SPIN_LOOP), Do(1300, SLEEP)],
            [spinning_since(0), vec![cleared(SPIN, 1500)], idle_since(1500)].concat(),
        ),
        ("nobody answers a prompt", vec![Do(3 * HOUR, PROMPT)], asking_since(0)),
        ("it works, and asks", vec![Do(500, WORK), Do(HOUR, PROMPT)], asking_since(500)),
        (
            "a prompt is answered after 5 min",
            vec![Do(300, PROMPT), Do(300, WORK)],
            [asking_since(0), vec![cleared(INPUT, 300)]].concat(),
        ),
        (
            "a prompt is answered, and then it hangs",
            vec![Do(600, PROMPT), Do(1, WORK), Do(1300, SLEEP)],
            [asking_since(0), vec![cleared(INPUT, 600)], idle_since(601)].concat(),
        ),
    ]
}

#[test]
fn each_life_is_judged_as_it_deserves() {
    let all = [healthy(), merciful(), unknown(), stuck()].concat();
    assert!(all.len() >= 60, "{}", all.len());
    for (name, steps, expected) in all {
        let mut life = Life::usual();
        life.live(&steps);
        expect(name, &life.heard, &expected);
    }
}

#[test]
fn a_rule_that_is_off_says_nothing_and_others_do_not_speak_for_it() {
    type Case = (&'static str, &'static [(Rule, u64)], Doing, Vec<Expected>);
    let cases: [Case; 7] = [
        ("a database server that is idle by design", &[(SPIN, 1200), (INPUT, 120)], SLEEP, vec![]),
        ("a shell where nobody types, and nobody cares", &[(IDLE, 900), (SPIN, 1200)], PROMPT, vec![]),
        ("a miner", &[(IDLE, 900), (INPUT, 120)], SPIN_LOOP, vec![]),
        ("idle for 6 s", &[(IDLE, 6)], SLEEP, vec![(IDLE, Near, 4, 8), (IDLE, Over, 6, 10)]),
        (
            "a second, which still takes three windows",
            &[(IDLE, 1)],
            SLEEP,
            vec![(IDLE, Near, 3, 3), (IDLE, Over, 4, 4)],
        ),
        ("spinning for 10 s", &[(SPIN, 10)], SPIN_LOOP, vec![(SPIN, Near, 8, 12), (SPIN, Over, 10, 14)]),
        ("waiting for 3 s", &[(INPUT, 3)], PROMPT, vec![(INPUT, Near, 4, 7), (INPUT, Over, 5, 8)]),
    ];
    for (name, rules, doing, expected) in cases {
        let mut life = Life::of(rules);
        life.live(&[Do(8 * HOUR, doing)]);
        expect(name, &life.heard, &expected);
    }
}
