//! A run that does as it is told, second by second, sampled and looked at as an instance does it.

use super::*;
use crate::model::Processes;

/// What a run does. Rates in thousandths of a core; intervals in seconds, 0 for never.
#[derive(Debug, Clone, Copy)]
pub struct Doing {
    pub cpu: u64,
    /// It waits for a CPU.
    pub starved: u64,
    /// It moves bytes from or to storage.
    pub stores: u64,
    /// It reads or writes anything.
    pub moves: u64,
    /// A process begins or ends.
    pub forks: u64,
    /// It sends a heartbeat.
    pub beats: u64,
    pub input: Option<bool>,
    pub frozen: bool,
    /// How busy the host is, in percent.
    pub host: u32,
    /// What cannot be read of it.
    pub hides: Hides,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hides {
    Nothing,
    Cpu,
    Wait,
    Bytes,
    Storage,
    Processes,
}

pub const SLEEP: Doing = Doing {
    cpu: 0,
    starved: 0,
    stores: 0,
    moves: 0,
    forks: 0,
    beats: 0,
    input: Some(false),
    frozen: false,
    host: 0,
    hides: Hides::Nothing,
};
/// It computes, reads and writes.
pub const WORK: Doing = Doing { cpu: 700, stores: 7, moves: 1, ..SLEEP };
/// It computes and does nothing else.
pub const SPIN_LOOP: Doing = Doing { cpu: 1000, ..SLEEP };
/// It waits for somebody to type.
pub const PROMPT: Doing = Doing { input: Some(true), ..SLEEP };

/// What comes over a run, for so many seconds.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Do(u64, Doing),
    /// The host sleeps: the monotonic clock stands still.
    Suspend(u64),
    /// The instance does not look: it is stopped, or stuck.
    Unseen(u64, Doing),
    /// The instance is dead for so long, and the next one takes up what was kept.
    Restart(u64, Doing),
    /// We freeze it.
    Freeze(u64),
}

/// What was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    pub second: u64,
    pub rule: Rule,
    pub standing: Standing,
}

pub struct Life {
    pub tracks: Vec<Track>,
    told: Vec<Standing>,
    pub heard: Vec<Heard>,
    /// How often it was looked at.
    pub looks: u64,
    second: u64,
    cpu_usec: u64,
    wait_usec: u64,
    stored: u64,
    moved: u64,
    forked: u64,
    suspended_usec: u64,
    last_heartbeat: Option<Mono>,
    recent: Option<(Mono, Sample)>,
}

impl Life {
    pub fn usual() -> Self {
        Self::of(&[(IDLE, 900), (SPIN, 1200), (INPUT, 120)])
    }

    pub fn of(rules: &[(Rule, u64)]) -> Self {
        let tracks = rules.iter().map(|(rule, secs)| Track::new(*rule, Duration::from_secs(*secs), Mono(0))).collect();
        Self {
            tracks,
            told: vec![Clear; rules.len()],
            heard: Vec::new(),
            looks: 0,
            second: 0,
            cpu_usec: 0,
            wait_usec: 0,
            stored: 0,
            moved: 0,
            forked: 0,
            suspended_usec: 0,
            last_heartbeat: None,
            recent: None,
        }
    }

    pub fn live(&mut self, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Do(secs, doing) => (0..secs).for_each(|_| self.pass(&doing, true)),
                Step::Unseen(secs, doing) => (0..secs).for_each(|_| self.pass(&doing, false)),
                Step::Suspend(secs) => self.suspended_usec += secs * 1_000_000,
                Step::Freeze(secs) => {
                    self.tracks.iter_mut().for_each(Track::pause);
                    (0..secs).for_each(|_| self.pass(&SLEEP, true));
                    let now = self.now();
                    self.tracks.iter_mut().for_each(|t| t.go_on(now));
                }
                Step::Restart(secs, doing) => {
                    (0..secs).for_each(|_| self.pass(&doing, false));
                    self.recent = None;
                    let now = self.now();
                    self.tracks.iter_mut().for_each(|t| t.resume(now));
                }
            }
        }
    }

    pub fn now_second(&self) -> u64 {
        self.second
    }

    fn now(&self) -> Mono {
        Mono(self.second * 1_000_000_000)
    }

    fn pass(&mut self, doing: &Doing, seen: bool) {
        self.second += 1;
        let falls = |every: u64| every > 0 && self.second.is_multiple_of(every);
        self.stored += u64::from(falls(doing.stores)) * 4096;
        self.moved += u64::from(falls(doing.moves));
        self.forked += u64::from(falls(doing.forks));
        if falls(doing.beats) {
            self.last_heartbeat = Some(self.now());
        }
        self.cpu_usec += doing.cpu * 1000;
        self.wait_usec += doing.starved * 1000;
        let now = self.now();
        let due = self.tracks.iter().filter_map(Track::deadline).min().is_some_and(|at| at <= now);
        if seen && (due || self.second.is_multiple_of(5)) {
            self.sample(doing);
        }
    }

    fn sample(&mut self, doing: &Doing) {
        let now = self.now();
        let shown = |what: Hides, value: u64| Some(value).filter(|_| doing.hides != what);
        let sample = Sample { cpu_usec: shown(Hides::Cpu, self.cpu_usec), ..Sample::default() };
        let recent = self.recent.replace((now, sample));
        let mut wanted = false;
        for track in &mut self.tracks {
            wanted |= track.wants_look(&sample, recent, true, now);
        }
        if wanted {
            self.looks += 1;
            let look = Sample {
                cpu_wait_usec: shown(Hides::Wait, self.wait_usec),
                memory_bytes: None,
                memory_pressure: None,
                io_bytes: shown(Hides::Storage, self.stored),
                activity_bytes: shown(Hides::Bytes, self.moved),
                processes: Some(Processes { digest: self.forked, tasks: 3 })
                    .filter(|_| doing.hides != Hides::Processes),
                waits_for_input: doing.input,
                frozen: Some(doing.frozen),
                suspended_usec: Some(self.suspended_usec),
                host_cpu_pressure: Some(doing.host),
                ..sample
            };
            self.tracks.iter_mut().for_each(|t| t.look(&look, self.last_heartbeat, now));
        }
        for (track, told) in self.tracks.iter().zip(&mut self.told) {
            let standing = track.standing();
            if standing != *told {
                *told = standing;
                self.heard.push(Heard { second: self.second, rule: track.rule, standing });
            }
        }
    }
}
