//! What goes through a channel next: in order for each run, several together where a route groups, nothing twice.

use std::collections::HashSet;
use std::time::Duration;

use crate::model::Wall;

/// At most so many in one message: people read no more.
const TOGETHER: usize = 20;

/// What waits in the outbox for a channel, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its number, in the order of the audit.
    pub id: i64,
    /// The route that wanted it.
    pub route: String,
    /// The run; empty for what is about the instance.
    pub run: String,
    /// When its group is complete.
    pub due: Wall,
    /// When quiet hours are over for it; 0 if they do not concern it.
    pub held_until: Wall,
    /// When it is tried again; 0 before the first try.
    pub not_before: Wall,
    /// How often it was tried.
    pub attempts: u32,
    /// Since when it waits to be taken; quiet hours do not count.
    pub since: Wall,
    /// Whether others of the route may go with it.
    pub grouped: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// These go, in one message.
    Send(Vec<Waiting>),
    /// Nothing before this time; none: nothing waits.
    Wait(Option<Wall>),
}

/// What is to be done, of what waits in order.
pub fn next(waiting: &[Waiting], now: Wall) -> Next {
    let is_free = |w: &Waiting| w.held_until <= now && w.not_before <= now;
    let mut blocked = HashSet::new();
    let mut batch: Vec<Waiting> = Vec::new();
    for w in waiting {
        let fits = match batch.first() {
            None => w.due <= now,
            // It came after the one that is due, and would be told later: it is told now.
            Some(first) => first.grouped && first.route == w.route && batch.len() < TOGETHER,
        };
        if fits && is_free(w) && !blocked.contains(&w.run) {
            batch.push(w.clone());
            if !w.grouped {
                break;
            }
        } else {
            // What comes later of this run waits for it.
            blocked.insert(&w.run);
        }
    }
    if !batch.is_empty() {
        return Next::Send(batch);
    }
    let mut seen = HashSet::new();
    let firsts = waiting.iter().filter(|w| seen.insert(&w.run));
    Next::Wait(firsts.map(|w| w.due.max(w.held_until).max(w.not_before)).min())
}

/// How long to wait after the try of this number failed: twice as long each time up to a cap, and a quarter more or less, so that
/// what failed together does not come back together. `chance` is any number.
pub fn backoff(attempts: u32, cap: Duration, chance: u32) -> Duration {
    let whole = Duration::from_secs(1 << attempts.saturating_sub(1).min(20)).min(cap);
    let percent = 75 + chance % 51;
    whole * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(id: i64, run: &str) -> Waiting {
        Waiting {
            id,
            route: "r".to_owned(),
            run: run.to_owned(),
            due: Wall(0),
            held_until: Wall(0),
            not_before: Wall(0),
            attempts: 0,
            since: Wall(0),
            grouped: false,
        }
    }

    fn sent(waiting: &[Waiting], now: u64) -> Vec<i64> {
        match next(waiting, Wall(now)) {
            Next::Send(batch) => batch.iter().map(|w| w.id).collect(),
            Next::Wait(_) => Vec::new(),
        }
    }

    #[test]
    fn a_run_waits_for_its_own_earlier_message_and_for_no_other() {
        let failed = Waiting { not_before: Wall(50), ..waiting(1, "a") };
        let all = [failed, waiting(2, "a"), waiting(3, "b")];
        assert_eq!(sent(&all, 10), [3]);
        assert_eq!(sent(&all[..2], 10), [] as [i64; 0]);
        assert_eq!(next(&all[..2], Wall(10)), Next::Wait(Some(Wall(50))));
        assert_eq!(sent(&all, 50), [1]);
        assert_eq!(next(&[], Wall(10)), Next::Wait(None));
    }

    #[test]
    fn what_comes_within_the_window_of_a_group_goes_with_it() {
        let grouped = |id, run, due| Waiting { due: Wall(due), grouped: true, ..waiting(id, run) };
        let all = [grouped(1, "a", 30), grouped(2, "b", 35), grouped(3, "a", 40)];
        assert_eq!(sent(&all, 29), [] as [i64; 0]);
        assert_eq!(sent(&all, 30), [1, 2, 3]);
        // Of another route, which does not group: it goes by itself, and what comes after it of its run waits for it.
        let between = Waiting { route: "other".into(), ..waiting(2, "a") };
        assert_eq!(sent(&[grouped(1, "a", 30), between, grouped(3, "a", 40), grouped(4, "b", 45)], 30), [1, 4]);
        let many: Vec<_> = (0..50).map(|i| grouped(i, "a", 0)).collect();
        assert_eq!(sent(&many, 1).len(), TOGETHER);
    }

    #[test]
    fn quiet_hours_hold_back_without_turning_the_order_of_a_run() {
        let held = Waiting { held_until: Wall(100), ..waiting(1, "a") };
        let all = [held, waiting(2, "a"), waiting(3, "b")];
        assert_eq!(sent(&all, 10), [3]);
        assert_eq!(sent(&all, 100), [1]);
    }

    #[test]
    fn backoff_doubles_to_its_cap_and_spreads() {
        let cap = Duration::from_secs(300);
        let middle = |attempts| backoff(attempts, cap, 25).as_secs();
        assert_eq!([1, 2, 3, 4, 9, 10, 60].map(middle), [1, 2, 4, 8, 256, 300, 300]);
        assert_eq!((backoff(9, cap, 0).as_secs(), backoff(9, cap, 50).as_secs()), (192, 320));
    }
}
