//! How often a run is looked at for its rules, and what is asked before something is said of it.

use super::*;
use crate::model::{Action, Processes, Sample};

fn still(waits_for_input: bool) -> Sample {
    Sample {
        cpu_usec: Some(1000),
        cpu_wait_usec: Some(0),
        io_bytes: Some(0),
        activity_bytes: Some(0),
        processes: Some(Processes::NONE),
        waits_for_input: Some(waits_for_input),
        frozen: Some(false),
        suspended_usec: Some(0),
        host_cpu_pressure: Some(0),
        ..Sample::default()
    }
}

impl Steps {
    /// Lets time pass with a run that shows this whenever it is looked at. Gives what is wanted beside looks.
    fn shows(&mut self, d: Duration, look: Sample) -> Vec<Effect> {
        let end = self.now.mono + d;
        let mut wanted = Vec::new();
        while self.engine.next_deadline().is_some_and(|at| at <= end) {
            let next = self.engine.next_deadline().unwrap();
            let mut effects: Vec<_> = self.pass(next.since(self.now.mono)).into_iter().map(|(_, e)| e).collect();
            while let Some(effect) = effects.pop() {
                match effect {
                    Effect::Sample(run) => {
                        let sample = Sample { cpu_usec: look.cpu_usec, ..Sample::default() };
                        effects.extend(self.step(Event::Sampled { run, sample }));
                    }
                    Effect::Examine(run) => {
                        wanted.push(Effect::Examine(run));
                        effects.extend(self.step(Event::Examined { run, look }));
                    }
                    other => wanted.push(other),
                }
            }
        }
        self.at(end);
        wanted
    }
}

fn idle(action: Action) -> Steps {
    let mut spec = spec(ONE);
    (spec.limits.watch.idle_timeout, spec.limits.watch.idle_action) = (Some(900 * SECOND), action);
    Steps::live(spec)
}

fn explains(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::Explain(ONE))).count()
}

#[test]
fn what_is_worse_is_said_with_what_the_run_waits_for_and_what_is_better_at_once() {
    let mut b = idle(Action::Warn);
    let quiet = b.shows(500 * SECOND, still(false));
    assert_eq!((explains(&quiet), audit(&quiet).len()), (0, 0));
    assert_eq!(b.run().known_look(), Some(&still(false)), "the next look may take over what has not changed");
    let mut near = Vec::new();
    while explains(&near) == 0 {
        near.extend(b.shows(SECOND, still(false)));
        assert!(b.now.mono.since(Mono(5_000_000_000)) < 700 * SECOND);
    }
    assert!(audit(&near).is_empty(), "that is asked first: {near:?}");
    let seen = ProcessSeen { pid: 8, name: "sh".into(), state: 'S', ..ProcessSeen::default() };
    let evidence = Evidence { processes: vec![seen], total: 1, ..Evidence::default() };
    let told = b.step(Event::Inspected { run: ONE, evidence });
    assert!(audit(&told)[0].reason.starts_with("idle for 10 min: sh (pid 8) waits for something"), "{told:?}");
    assert_eq!(b.run().known_look(), None, "none is ended by what was taken over");
    // It is asked once, and not at each look.
    let again = b.shows(120 * SECOND, still(false));
    assert_eq!(explains(&again), 0);
    let moved = b.shows(400 * SECOND, Sample { activity_bytes: Some(1), ..still(false) });
    assert_eq!((explains(&moved), b.run().health()), (0, Health::Healthy));
    assert_eq!(audit(&moved).iter().map(|e| e.kind).collect::<Vec<_>>(), [EventKind::HealthChanged]);
}

#[test]
fn a_kill_for_idleness_is_not_held_up_by_a_question() {
    let mut b = idle(Action::Kill);
    assert_eq!(explains(&b.shows(620 * SECOND, still(false))), 1, "that it is near is said with what it waits for");
    b.step(Event::Inspected { run: ONE, evidence: Evidence::default() });
    let over = b.shows(400 * SECOND, still(false));
    assert_eq!((explains(&over), b.phase()), (0, Some(Phase::Stopping)));
}

#[test]
fn one_in_which_nothing_has_run_is_looked_at_again_for_input_only_where_cpu_time_is_told_in_ticks() {
    for (containment, again) in [(Containment::Cgroupfs, false), (Containment::Subtree, true)] {
        let mut spec = RunSpec { containment, ..spec(ONE) };
        spec.limits.watch.input_timeout = Some(120 * SECOND);
        spec.limits.watch.idle_timeout = None;
        let mut b = Steps::live(spec);
        let looks =
            |b: &mut Steps, d| b.shows(d, still(false)).iter().filter(|e| matches!(e, Effect::Examine(ONE))).count();
        assert!(looks(&mut b, 60 * SECOND) > 0);
        assert_eq!(looks(&mut b, 3600 * SECOND) > 2, again, "{containment}");
    }
}

#[test]
fn looks_at_many_runs_that_were_started_at_once_do_not_fall_together() {
    let first_of = |last, idle: u32| {
        let mut spec = spec(RunId::from_bytes([0, 0, 0, 0, 0, last]));
        spec.limits.watch.idle_timeout = Some(idle * SECOND);
        Steps::live(spec).engine.next_deadline().unwrap()
    };
    let first = |last| first_of(last, 900);
    assert_eq!(first(128).since(first(0)), SECOND / 2);
    assert!(first_of(255, 6).since(first_of(0, 6)) < SECOND / 10, "short beside a window of 2 s");
    assert!(first(255) > first(254) && first(255).since(first(0)) < SECOND);
}
