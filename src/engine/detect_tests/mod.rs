//! Detection over recorded and made-up lives of runs: what is said of each, and when.

mod corpus;
mod life;
mod shift;

use life::{Heard, Life, Step};

use super::Standing::{Clear, Near, Over};
use super::*;

/// What has to be heard: a rule, how it stands, and the seconds from and until which that is first said.
type Expected = (Rule, Standing, u64, u64);

const IDLE: Rule = Rule::IdleTimeout;
const SPIN: Rule = Rule::SpinTimeout;
const INPUT: Rule = Rule::InputTimeout;

/// The windows of the usual times: 15, 20 and 2 min.
const IDLE_WINDOW: u64 = 300;
const SPIN_WINDOW: u64 = 240;
const INPUT_WINDOW: u64 = 24;
/// Looks fall on samples, which come every 5 s, and a first one has to be taken.
const SLACK: u64 = 6;

/// The promise: within one window of the moment when the rule has held for its time, and never before it.
fn within(rule: Rule, standing: Standing, since: u64, held: u64) -> Expected {
    let window = match rule {
        Rule::SpinTimeout => SPIN_WINDOW,
        Rule::InputTimeout => INPUT_WINDOW,
        _ => IDLE_WINDOW,
    };
    (rule, standing, since + held, since + held + window + SLACK)
}

/// Idle from this second on.
fn idle_since(second: u64) -> Vec<Expected> {
    vec![within(IDLE, Near, second, 600), within(IDLE, Over, second, 900)]
}

/// Spinning from this second on.
fn spinning_since(second: u64) -> Vec<Expected> {
    vec![within(SPIN, Near, second, 960), within(SPIN, Over, second, 1200)]
}

/// Waiting for input from this second on.
fn asking_since(second: u64) -> Vec<Expected> {
    vec![within(INPUT, Near, second, 96), within(INPUT, Over, second, 120)]
}

/// Taken back, once the run has moved at this second.
fn cleared(rule: Rule, second: u64) -> Expected {
    let half = match rule {
        Rule::SpinTimeout => SPIN_WINDOW / 2,
        Rule::InputTimeout => INPUT_WINDOW / 2,
        _ => IDLE_WINDOW / 2,
    };
    (rule, Clear, second, second + half + SLACK)
}

#[track_caller]
fn expect(name: &str, heard: &[Heard], expected: &[Expected]) {
    let fits = |(h, e): (&Heard, &Expected)| h.rule == e.0 && h.standing == e.1 && (e.2..=e.3).contains(&h.second);
    let right = heard.len() == expected.len() && heard.iter().zip(expected).all(fits);
    assert!(right, "{name}\n  heard    {heard:?}\n  expected {expected:?}");
}

#[test]
fn windows_of_short_times_are_short_and_never_below_a_second() {
    let track = |rule, secs| Track::new(rule, Duration::from_secs(secs), Mono(0)).window();
    assert_eq!(track(IDLE, 900), Duration::from_secs(300));
    assert_eq!(track(IDLE, 6), Duration::from_secs(2));
    assert_eq!(track(SPIN, 1200), Duration::from_secs(240));
    assert_eq!(track(INPUT, 1), Duration::from_secs(1));
}

#[test]
fn a_run_in_which_nothing_runs_is_not_looked_at_again_for_input() {
    let looks = |doing| {
        let mut life = Life::of(&[(INPUT, 120)]);
        life.live(&[Step::Do(3600, doing)]);
        life.looks
    };
    assert!(looks(life::SLEEP) <= 2, "{}", looks(life::SLEEP));
    assert!(looks(life::PROMPT) >= 3600 / INPUT_WINDOW, "{}", looks(life::PROMPT));
}

#[test]
fn more_time_is_more_windows_of_the_same_length() {
    let mut life = Life::of(&[(IDLE, 900)]);
    life.live(&[Step::Do(700, life::SLEEP)]);
    life.tracks[0].extend(Duration::from_secs(600));
    life.live(&[Step::Do(1300, life::SLEEP)]);
    // 1500 s are allowed now; two thirds of that are the larger part.
    let expected =
        [(IDLE, Near, 600, 610), (IDLE, Clear, 700, 760), (IDLE, Near, 1000, 1300), (IDLE, Over, 1500, 1810)];
    expect("extended", &life.heard, &expected);
}

#[test]
fn what_is_kept_of_a_track_is_read_again() {
    let mut life = Life::usual();
    life.live(&[Step::Do(700, life::SLEEP)]);
    for track in &life.tracks {
        let text = serde_json::to_string(track).unwrap();
        assert_eq!(&serde_json::from_str::<Track>(&text).unwrap(), track);
    }
}
