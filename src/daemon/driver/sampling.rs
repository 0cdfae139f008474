//! The sampler: one pass over all runs at each interval, and what it costs too much to read of every run, in turn.

use crate::engine::Event;
use crate::kernel::Kernel;
use crate::model::{RunId, Sample};

use super::{Driver, Recorder};

/// How many runs are read in full at each sample, in turn. Reading /proc for all of 1,000 would cost 2 % of a core.
const TURN: usize = 16;

impl<K: Kernel, R: Recorder> Driver<K, R> {
    /// Reads the counters of all runs, some of them in full, and keeps some logs to their size.
    pub fn sample(&mut self, log_max_bytes: u64) {
        self.kernel.begin_samples();
        let now = self.kernel.now();
        let host_pressure = self.kernel.host_memory_pressure();
        let mut minutes = Vec::new();
        for (run, held) in &self.held {
            if let Some(container) = &held.container
                && let Ok(usage) = self.kernel.sample(container)
            {
                minutes.extend(held.usage.sampled(*run, usage, now));
                // What was read is read on until it is nothing: no old number stands.
                let was_pressed = held.usage.pressure().is_some_and(|percent| percent > 0);
                let wanted = was_pressed || self.engine.wants_pressure(*run, host_pressure);
                let memory_pressure = if wanted { self.kernel.memory_pressure(container) } else { None };
                held.usage.pressed(memory_pressure);
                self.queue.push_back(Event::Sampled { run: *run, sample: Sample { memory_pressure, ..usage.into() } });
            }
        }
        self.kernel.end_samples();
        if !minutes.is_empty() {
            self.recorder.keep_samples(minutes);
        }
        self.drain();
        self.childless = !self.kernel.reap();
        let (turn, next) = self.turn(self.next_full_read);
        self.next_full_read = next;
        turn.into_iter().for_each(|id| self.refresh(id));
        let (turn, next) = self.turn(self.next_capped);
        self.next_capped = next;
        for id in turn {
            if let Some(log) = self.engine.run(id).and_then(|r| r.spec.log.as_deref()) {
                // A log that cannot be cut stays too large; `doctor` and the disk's own alarms tell.
                let _ = self.kernel.cap_log(log, log_max_bytes);
            }
        }
    }

    /// Gives the store what was sampled and is not yet a minute: the next instance begins anew.
    pub fn keep_open_minutes(&mut self) {
        let now = self.kernel.now();
        let minutes = self.held.iter().filter_map(|(run, held)| held.usage.close_minute(*run, now)).collect();
        self.recorder.keep_samples(minutes);
    }

    /// The next few runs after this one, round and round, and where the following turn begins.
    fn turn(&self, from: Option<RunId>) -> (Vec<RunId>, Option<RunId>) {
        let from = from.unwrap_or(RunId::from_bytes([0; 6]));
        let around = self.held.range(from..).chain(self.held.range(..from));
        let mut turn: Vec<RunId> = around.map(|(id, _)| *id).take(TURN + 1).collect();
        let next = turn.get(TURN).copied();
        turn.truncate(TURN);
        (turn, next)
    }

    /// Reads one run in full, and publishes what was left for later.
    pub fn refresh(&mut self, run: RunId) {
        // Only then: who is told of a change may ask anew.
        if self.engine.is_untold(run) {
            self.publish(run);
        }
        if let Some(held) = self.held.get(&run)
            && let Some(container) = &held.container
            && let Ok(usage) = self.kernel.usage(container)
        {
            held.usage.update(usage);
        }
    }
}
