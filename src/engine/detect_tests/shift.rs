//! A shift of eight hours: 1,000 healthy runs of many kinds, and not one false alarm.

use super::life::*;
use super::*;
use Step::{Do, Freeze, Restart, Suspend};

const RUNS: u64 = 1000;
const SHIFT: u64 = 8 * 3600;

/// A generator that gives every run a life of its own, the same in each test (splitmix64).
struct Dice(u64);

impl Dice {
    fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        least + (x ^ (x >> 31)) % (most - least + 1)
    }
}

/// The next piece of such a life.
fn piece(kind: u64, dice: &mut Dice) -> Vec<Step> {
    let mut some = |least, most| dice.between(least, most);
    match kind {
        // An agent: bursts of work, and answers that take up to 9 min.
        0 => {
            vec![Do(some(5, 300), Doing { cpu: some(50, 900), moves: some(1, 20), ..SLEEP }), Do(some(10, 540), SLEEP)]
        }
        // A build: processes come and go, and some compute for long.
        1 => vec![
            Do(
                some(60, 900),
                Doing { cpu: some(300, 4000), stores: some(1, 60), moves: some(1, 60), forks: some(1, 30), ..SLEEP },
            ),
            Do(some(10, 700), Doing { cpu: some(900, 1000), ..SLEEP }),
        ],
        // A download, at any speed.
        2 => vec![Do(some(60, 3000), Doing { cpu: some(0, 200), stores: some(1, 120), moves: some(1, 250), ..SLEEP })],
        // A loop that polls, with heartbeats.
        3 => vec![Do(some(60, 3000), Doing { cpu: some(0, 15), beats: some(10, 280), ..SLEEP })],
        // Jobs at intervals.
        4 => vec![
            Do(some(60, 540), SLEEP),
            Do(some(1, 120), Doing { cpu: some(100, 1000), moves: 1, forks: 1, ..SLEEP }),
        ],
        // Computing, with a word now and then.
        5 => vec![Do(some(300, 1100), Doing { cpu: 1000, moves: some(60, 900), ..SLEEP }), Do(1, WORK)],
        // A person at a terminal, who thinks for long and goes to lunch.
        6 => vec![Do(some(1, 4000), PROMPT), Do(some(1, 60), WORK)],
        // A test suite that says little.
        7 => vec![Do(some(30, 600), Doing { cpu: some(30, 880), moves: some(60, 480), ..SLEEP })],
        // A service that answers a request now and then.
        8 => vec![Do(some(10, 590), SLEEP), Do(1, Doing { cpu: 20, moves: 1, ..SLEEP })],
        // A starved one on a loaded host.
        _ => vec![
            Do(some(60, 3000), Doing { cpu: some(0, 15), starved: some(100, 900), host: 95, ..SLEEP }),
            Do(some(1, 60), WORK),
        ],
    }
}

/// What befalls any run from time to time.
fn event(dice: &mut Dice) -> Option<Step> {
    match dice.between(0, 60) {
        0 => Some(Suspend(dice.between(60, 7200))),
        1 => Some(Restart(dice.between(0, 30), SLEEP)),
        2 => Some(Freeze(dice.between(10, 1800))),
        _ => None,
    }
}

fn shift(run: u64) -> Life {
    let (mut life, mut dice) = (Life::usual(), Dice(run));
    let mut steps = Vec::new();
    let mut length = 0;
    while length < SHIFT {
        let next: Vec<Step> = piece(run % 10, &mut dice).into_iter().chain(event(&mut dice)).collect();
        length += next
            .iter()
            .map(|s| if let Do(secs, _) | Freeze(secs) | Restart(secs, _) = s { *secs } else { 0 })
            .sum::<u64>();
        steps.extend(next);
    }
    life.live(&steps);
    life
}

#[test]
fn no_healthy_run_is_ended_or_called_critical_in_eight_hours() {
    let mut looks = 0;
    for run in 0..RUNS {
        let life = shift(run);
        looks += life.looks;
        // Over is what ends a run, or makes it critical; a prompt may be warned of.
        let wrong: Vec<&Heard> = life.heard.iter().filter(|h| h.rule != INPUT && h.standing == Over).collect();
        assert!(wrong.is_empty(), "run {run} of kind {}: {wrong:?}", run % 10);
    }
    // At 50 to 100 µs each, for what a look costs: well below a tenth of a core's percent.
    let per_second = looks as f64 / SHIFT as f64;
    assert!(per_second < 40.0, "{per_second} looks a second at 1,000 runs");
}

#[test]
fn a_run_that_hangs_in_the_middle_of_a_shift_is_found_within_a_window() {
    for run in (0..RUNS).filter(|run| run % 10 != 6) {
        let mut life = shift(run);
        let (from, said) = (life.now_second(), life.heard.len());
        life.live(&[Do(1, WORK), Do(900 + IDLE_WINDOW + SLACK, SLEEP)]);
        let over = life.heard[said..].iter().find(|h| h.rule == IDLE && h.standing == Over);
        assert!(over.is_some_and(|h| h.second >= from + 900), "run {run}: {:?}", &life.heard[said..]);
    }
}
