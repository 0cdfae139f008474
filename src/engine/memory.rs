//! Memory: near its limit, under pressure, or so short that the kernel has ended something of the run. That is said, and
//! nothing is done: the kernel holds the limit.

use serde_json::json;

use crate::model::{Actor, Containment, EventKind, Health, Now, Rule, RunId, Sample};

use super::{Engine, State};

/// From this much of the limit on there is a warning, which is taken back below the other: usage that goes up and down by
/// a little is said once.
const NEAR_PERCENT: u64 = 90;
const FAR_PERCENT: u64 = 85;

impl Engine {
    /// `memory.current` was read.
    pub(super) fn memory_read(&mut self, id: RunId, sample: &Sample, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        // Without a cgroup the limit is that of each process.
        let limit = run.spec.limits.resources.memory_max_bytes.filter(|_| run.spec.containment != Containment::Subtree);
        let (Some(used), Some(limit)) = (sample.memory_bytes, limit) else { return };
        let warned = run.reasons.iter().any(|r| r.rule == Rule::Memory);
        let percent = used.saturating_mul(100) / limit.max(1);
        let said = percent >= if warned { FAR_PERCENT } else { NEAR_PERCENT };
        let text = format!("its memory is at {percent} % of memory_max: at 100 % the kernel ends processes of it");
        self.say(id, Rule::Memory, said.then_some(text), now);
    }

    /// Whether the `memory.pressure` of a run is to be read, when some process of the host waited for memory in so much of the
    /// last minute. All processes of one run cannot have waited longer: one reading for the host tells that there is nothing to
    /// be read of a thousand runs. Half is taken, because the kernel brings the averages up to date at moments of their own.
    pub fn wants_pressure(&self, id: RunId, host_percent: Option<u32>) -> bool {
        let Some(run) = self.runs.get(&id) else { return false };
        let Some(threshold) = run.spec.limits.watch.pressure_max_percent else { return false };
        let was_said = run.reasons.iter().any(|r| r.rule == Rule::Pressure);
        was_said || host_percent.is_some_and(|percent| percent >= threshold / 2)
    }

    /// `memory.pressure` was read.
    pub(super) fn pressure_read(&mut self, id: RunId, look: &Sample, now: Now) {
        let threshold = self.runs.get(&id).and_then(|run| run.spec.limits.watch.pressure_max_percent);
        let (Some(percent), Some(threshold)) = (look.memory_pressure, threshold) else { return };
        let text = format!(
            "all its processes waited for memory in {percent} % of the last minute: it needs more, or a smaller load"
        );
        self.say(id, Rule::Pressure, (percent >= threshold).then_some(text), now);
    }

    /// `memory.events` was read: the OOM killer has struck so often in all.
    pub(super) fn oom_killed(&mut self, id: RunId, kills: u64, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if kills <= run.oom_kills || !matches!(run.state, State::Live { .. }) {
            return;
        }
        let new = kills - std::mem::replace(&mut run.oom_kills, kills);
        let whom = if new == 1 { "a process of it".to_owned() } else { format!("{new} processes of it") };
        let text = format!("the kernel has ended {whom} for want of memory: raise memory_max, or look for a leak");
        run.warn(Rule::Oom, Health::Warning, text.clone(), now);
        let event =
            run.event(EventKind::Verdict, Actor::Guardian, text, json!({ "rule": Rule::Oom, "kills": kills }), now);
        self.save(id, vec![event], now);
    }

    /// Says what is so from now on, or takes it back.
    fn say(&mut self, id: RunId, rule: Rule, text: Option<String>, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let was_said = run.reasons.iter().any(|r| r.rule == rule);
        match text {
            Some(text) if !was_said => run.warn(rule, Health::Warning, text, now),
            None if was_said => run.reasons.retain(|r| r.rule != rule),
            _ => return,
        }
        self.save(id, Vec::new(), now);
    }
}
