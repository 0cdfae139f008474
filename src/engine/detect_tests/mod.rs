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

/// A look at a run that has computed for so long and done nothing else.
fn computed(cpu: Duration, suspended_usec: u64) -> Sample {
    Sample {
        cpu_usec: Some(u64::try_from(cpu.as_micros()).unwrap()),
        cpu_wait_usec: Some(0),
        suspended_usec: Some(suspended_usec),
        io_bytes: Some(0),
        activity_bytes: Some(0),
        processes: Some(crate::model::Processes::NONE),
        waits_for_input: Some(false),
        frozen: Some(false),
        host_cpu_pressure: Some(0),
        memory_bytes: None,
        memory_pressure: None,
    }
}

const fn at(ms: u64) -> Mono {
    Mono(ms * 1_000_000)
}

/// Looked at for the first time, and then after each of so many whole windows with so much of a core in use.
fn track(rule: Rule, secs: u64, windows: u32, percent: u32) -> Track {
    let mut track = Track::new(rule, Duration::from_secs(secs), at(0));
    for n in 0..=windows {
        let now = track.window() * n;
        track.look(&computed(now / 100 * percent, 0), None, Mono(u64::try_from(now.as_nanos()).unwrap()));
    }
    track
}

#[test]
fn one_that_was_warned_of_is_looked_at_in_the_middle_of_a_window_and_that_is_no_window() {
    let warned = track(IDLE, 900, 2, 0);
    assert_eq!((warned.standing(), warned.next_look()), (Near, Some(at(750_000))));
    // Whichever half it computes in, over the whole window that is 1.5 % of a core, which is nothing.
    for (first, second) in [(4_500, 0), (0, 4_500), (2_250, 2_250)] {
        let mut track = warned.clone();
        track.look(&computed(Duration::from_millis(first), 0), None, at(750_000));
        assert_eq!((track.standing(), track.held), (Near, Duration::from_secs(600)), "{first}");
        track.look(&computed(Duration::from_millis(first + second), 0), None, at(900_000));
        assert_eq!((track.standing(), track.held), (Over, Duration::from_secs(900)), "{first} and {second}");
    }
}

#[test]
fn a_look_that_comes_too_late_or_after_the_host_slept_proves_nothing() {
    for (ms, slept_usec, counts) in [
        (300_000, 0, true),
        (300_000, 1_000_000, true),
        (300_000, 1_000_001, false),
        (451_000, 0, true),
        (451_001, 0, false),
    ] {
        let mut track = track(IDLE, 900, 0, 0);
        track.look(&computed(Duration::ZERO, slept_usec), None, at(ms));
        let held = if counts { Duration::from_millis(ms) } else { Duration::ZERO };
        assert_eq!(track.held, held, "{ms} ms, slept {slept_usec} us");
    }
}

#[test]
fn just_the_share_of_a_core_that_is_named_is_spinning_and_is_not_idle() {
    for (rule, secs, percent, holds) in
        [(SPIN, 1200, 90, true), (SPIN, 1200, 89, false), (IDLE, 900, 2, false), (IDLE, 900, 1, true)]
    {
        let held = track(rule, secs, 1, percent);
        assert_eq!(held.held == held.window(), holds, "{rule} at {percent} %");
        // The counters that are read in between say the same.
        let mut sampled = track(rule, secs, 1, percent);
        if holds {
            let (now, cpu) = (sampled.window() * 2, sampled.window() * 2 / 100 * percent);
            let now = Mono(u64::try_from(now.as_nanos()).unwrap());
            assert!(sampled.wants_look(&computed(cpu, 0), None, true, now), "{rule} at {percent} %");
            assert_eq!(sampled.held, sampled.window());
        }
    }
}
