//! What follows from looks at a run: which rules apply, when it is looked at, and what is said and done.
//!
//! A rule acts once. It is not heard again of the same run before it was taken back and its whole time has passed anew,
//! which is its cool-down: a run that is warned of, or would be ended but for `dry_run`, fills no log.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::{
    Action, Actor, AuditEvent, Containment, EventKind, Evidence, Health, KillMode, KillReason, Mono, Now, Rule, RunId,
    Sample, explain, human_duration,
};

use super::deadlines::Due;
use super::detect::{Standing, Track};
use super::{Effect, Engine, Run, State};

/// The rules that judge by looks.
const RULES: [Rule; 3] = [Rule::IdleTimeout, Rule::SpinTimeout, Rule::InputTimeout];
/// Looks at many runs that fall together are spread over so long a time, so that no deadline waits for all of them.
const SPREAD: Duration = Duration::from_secs(1);

/// A rule that is applied to a run, and what was said of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tracked {
    /// How far it has come.
    pub track: Track,
    /// How far that was when it was last told.
    pub told: Standing,
}

impl Engine {
    /// Begins to watch a run that was contained just now.
    pub(super) fn begin_watching(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let limits = &run.spec.limits;
        let track = |rule| Some(Track::new(rule, limits.allowed(rule)?, now.mono));
        run.tracks =
            RULES.into_iter().filter_map(track).map(|track| Tracked { track, told: Standing::Clear }).collect();
        self.set_look(id);
    }

    /// Goes on to watch a run of an earlier instance.
    pub(super) fn watch_again(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.tracks.iter_mut().for_each(|t| t.track.resume(now.mono));
        self.set_look(id);
    }

    /// The clocks of these rules stand still while a run is frozen.
    pub(super) fn watch_frozen(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let frozen = run.frozen;
        run.tracks.iter_mut().for_each(|t| if frozen { t.track.pause() } else { t.track.go_on(now.mono) });
        self.set_look(id);
    }

    fn set_look(&mut self, id: RunId) {
        let Some(run) = self.runs.get(&id) else { return };
        match run.tracks.iter().filter_map(|t| t.track.deadline()).min() {
            Some(at) => self.deadlines.set(id, Due::Watch, at + spread(id, &run.tracks)),
            None => self.deadlines.clear(id, Due::Watch),
        }
    }

    /// A look may be due: the counters that cost little tell.
    pub(super) fn look_due(&mut self, id: RunId) {
        if self.runs.get(&id).is_some_and(|run| matches!(run.state, State::Live { .. })) {
            self.effects.push(Effect::Sample(id));
        }
    }

    pub(super) fn sampled(&mut self, id: RunId, sample: Sample, now: Now) {
        if !self.runs.get(&id).is_some_and(|run| matches!(run.state, State::Live { .. })) {
            return;
        }
        self.memory_read(id, &sample, now);
        self.pressure_read(id, &sample, now);
        let Some(run) = self.runs.get_mut(&id).filter(|run| !run.tracks.is_empty()) else { return };
        let recent = run.sampled.replace((now.mono, sample));
        // Without a cgroup CPU time is told in clock ticks.
        let exact = run.spec.containment != Containment::Subtree;
        let mut wanted = false;
        for t in &mut run.tracks {
            wanted |= t.track.wants_look(&sample, recent, exact, now.mono);
        }
        match wanted {
            true => self.effects.push(Effect::Examine(id)),
            false => self.conclude(id, now),
        }
    }

    pub(super) fn examined(&mut self, id: RunId, look: Sample, now: Now) {
        if !self.runs.get(&id).is_some_and(|run| matches!(run.state, State::Live { .. })) {
            return;
        }
        self.pressure_read(id, &look, now);
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.looked = Some(look);
        let last_heartbeat = run.pulse.last;
        run.tracks.iter_mut().for_each(|t| t.track.look(&look, last_heartbeat, now.mono));
        self.conclude(id, now);
    }

    /// Says and does what follows where a rule stands otherwise than was told. What is worse is said with what the run waits
    /// for, which is looked at first; a kill looks for itself.
    fn conclude(&mut self, id: RunId, now: Now) {
        self.set_look(id);
        let Some(run) = self.runs.get(&id) else { return };
        let worse = |t: &Tracked| {
            let standing = t.track.standing();
            standing > t.told && !(standing == Standing::Over && run.kills(t.track.rule))
        };
        match run.tracks.iter().any(worse) {
            true => self.effects.push(Effect::Explain(id)),
            false => self.tell_standing(id, "", now),
        }
    }

    /// What a run waits for, just before that is said.
    pub(super) fn explained(&mut self, id: RunId, evidence: &Evidence, now: Now) {
        let why = explain(evidence).sentence;
        self.timers_near(id, &why, now);
        self.late_because(id, &why, now);
        self.tell_standing(id, &why, now);
    }

    fn tell_standing(&mut self, id: RunId, why: &str, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let mut audit = Vec::new();
        let mut changed = false;
        let mut ending = None;
        let mut tracks = std::mem::take(&mut run.tracks);
        for Tracked { track, told } in &mut tracks {
            let standing = track.standing();
            if standing == *told {
                continue;
            }
            (*told, changed) = (standing, true);
            match standing {
                Standing::Clear => run.reasons.retain(|r| r.rule != track.rule),
                Standing::Near => audit.push(near(run, track, why, now)),
                Standing::Over if run.kills(track.rule) => ending = ending.or(Some((track.rule, track.allowed))),
                Standing::Over => {
                    audit.push(over(run, track.rule, track.allowed, sentence(track, why), now));
                }
            }
        }
        run.tracks = tracks;
        if changed {
            self.save(id, audit, now);
        }
        if let Some((rule, allowed)) = ending {
            let reason = KillReason::over(rule, allowed);
            self.start_kill(id, KillMode::Graceful, reason, Actor::Guardian, Vec::new(), now);
        }
        self.end_if_idle(id, now);
    }

    /// A timer is over that does not end its run. That is said once; more time takes it back.
    pub(super) fn timer_over(&mut self, id: RunId, rule: Rule, allowed: Duration, seen: Option<String>, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if run.reasons.iter().any(|r| r.rule == rule && r.level == Health::Critical) {
            return;
        }
        let text = seen.unwrap_or_else(|| KillReason::over(rule, allowed).to_string());
        let event = over(run, rule, allowed, text, now);
        self.forget_clock(id, rule);
        self.save(id, vec![event], now);
    }

    /// Gives a rule that judges by looks more time. None if it is not applied to the run.
    pub(super) fn extend_track(&mut self, id: RunId, rule: Rule, by: Duration) -> Option<Mono> {
        let run = self.runs.get_mut(&id)?;
        let tracked = run.tracks.iter_mut().find(|t| t.track.rule == rule)?;
        tracked.track.extend(by);
        // What was said is taken back now, and is said again if it still holds.
        tracked.told = Standing::Clear;
        let ends = tracked.track.ends();
        self.set_look(id);
        Some(ends)
    }

    /// The event of a change of health since the last one, if it changed.
    pub(super) fn health_change(&mut self, id: RunId, now: Now) -> Option<AuditEvent> {
        // Nothing changes any more for one that is over.
        let run = self.runs.get_mut(&id).filter(|run| !matches!(run.state, State::Closing(_)))?;
        let health = run.health();
        let before = std::mem::replace(&mut run.told_health, health);
        if before == health {
            return None;
        }
        let rules: Vec<Rule> = run.reasons.iter().map(|r| r.rule).collect();
        let why =
            run.reasons.iter().filter(|r| r.level == health).map(|r| r.text.as_str()).collect::<Vec<_>>().join("; ");
        let text = if why.is_empty() { health.to_string() } else { format!("{health}: {why}") };
        let details = json!({ "from": before, "to": health, "rules": rules });
        Some(run.event(EventKind::HealthChanged, Actor::Guardian, text, details, now))
    }
}

impl Run {
    /// The last look, if the next one may take over what cannot have changed since. A run that was warned of is looked at
    /// anew, so that none is ended by what was taken over.
    pub fn known_look(&self) -> Option<&Sample> {
        let clear = self.tracks.iter().all(|t| t.track.standing() == Standing::Clear);
        self.looked.as_ref().filter(|_| clear)
    }

    /// Whether a rule ends this run, and does not only say so.
    pub fn kills(&self, rule: Rule) -> bool {
        self.kills_but_for_dry_run(rule) && !self.spec.limits.watch.dry_run
    }

    pub(super) fn kills_but_for_dry_run(&self, rule: Rule) -> bool {
        self.spec.limits.rule(rule).is_some_and(|(action, _)| action == Action::Kill)
    }
}

/// The larger part of a rule's time has passed.
fn near(run: &mut Run, track: &Track, why: &str, now: Now) -> AuditEvent {
    let what = if run.kills(track.rule) { "it is killed" } else { "that is too long" };
    // Rounded up: no less is left than is said.
    let left = human_duration(whole(track.ends().since(now.mono) + Duration::from_millis(999)));
    let text = format!("{}; {what} in {left}, by {}", sentence(track, why), track.rule);
    run.warn(track.rule, Health::Warning, text.clone(), now);
    let details = json!({ "limit": track.rule, "allowed_usec": super::usec(track.allowed), "held_usec": super::usec(track.held) });
    run.event(EventKind::LimitWarning, Actor::Guardian, text, details, now)
}

/// A rule's time is over, and the run is not ended.
fn over(run: &mut Run, rule: Rule, allowed: Duration, text: String, now: Now) -> AuditEvent {
    let action = run.spec.limits.rule(rule).map_or(Action::Warn, |(action, _)| action);
    let would = action == Action::Kill;
    let text = if would { format!("{text}; it would be killed, but for dry_run") } else { text };
    run.warn(rule, if is_harmless(rule) && !would { Health::Warning } else { Health::Critical }, text.clone(), now);
    let details = json!({ "rule": rule, "action": action, "dry_run": run.spec.limits.watch.dry_run, "allowed_usec": super::usec(allowed) });
    run.event(EventKind::Verdict, Actor::Guardian, text, details, now)
}

/// To compute, to wait for somebody, or to try again is what many runs are for: it is warned of, and is never critical.
pub(super) fn is_harmless(rule: Rule) -> bool {
    matches!(rule, Rule::SpinTimeout | Rule::InputTimeout | Rule::PermissionTimeout | Rule::Loop)
}

/// What the run does not do, and what it waits for.
fn sentence(track: &Track, why: &str) -> String {
    let held = human_duration(whole(track.held));
    let what = match track.rule {
        Rule::SpinTimeout => "spinning",
        Rule::InputTimeout => "waiting for input",
        _ => "idle",
    };
    format!("{what} for {held}: {why}")
}

fn whole(d: Duration) -> Duration {
    Duration::from_secs(d.as_secs())
}

/// A moment of its own for each run, short beside its windows.
fn spread(id: RunId, tracks: &[Tracked]) -> Duration {
    let most = tracks.iter().map(|t| t.track.window() / 20).min().unwrap_or_default().min(SPREAD);
    most / 256 * u32::from(id.last_byte())
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
