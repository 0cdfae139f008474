//! What follows from how far a run says that it has come: the rules for agents.
//!
//! ```text
//!  turn_timeout         ready, and reporting           another turn              final report
//!                       ────────▶ in a turn ─────────────▶ in a turn ─ … ───────────▶ done
//!                                     │ 80 %: warned, all of the time: its action
//!  permission_timeout   X_GUARDIAN_WAITING=what ─▶ waits ─▶ X_GUARDIAN_WAITING= or the final report
//!  loop, max_turns, max_tokens, max_cost: judged with each report
//! ```
//!
//! A run that reports nothing is held to none of them. Clocks stand still while a run is frozen; after a restart of the
//! instance the whole of a time passes, since nobody listened meanwhile. What an agent costs is often known with its final
//! report alone: one that is done is ended for nothing that it has used, and that is said.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::{
    Actor, AuditEvent, Dollars, EventKind, Health, KillMode, KillReason, Now, Progress, ProgressUpdate, Rule, RunId,
    human_duration,
};

use super::deadlines::Due;
use super::detect::Standing;
use super::run::Timer;
use super::watch::is_harmless;
use super::{Engine, Run, State, WARN_PERCENT};

/// The rules with a clock.
const CLOCKS: [Rule; 2] = [Rule::TurnTimeout, Rule::PermissionTimeout];

/// What is kept of an agent beside what people are shown.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Agent {
    /// The clocks of a frozen run: what is left, and what is allowed.
    paused: BTreeMap<Rule, (Duration, Duration)>,
    /// How far the rules had come whose limit is a number, when that was last told.
    told: BTreeMap<Rule, Standing>,
}

impl Engine {
    /// A run tells how far it has come.
    pub(super) fn progressed(&mut self, id: RunId, said: &ProgressUpdate, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let before = run.progress.clone();
        let progress = run.progress.get_or_insert_default();
        progress.update(said);
        let progress = progress.clone();
        run.pulse.unsaved |= before.as_ref() != Some(&progress);
        let State::Live { ready } = run.state else { return };
        let is_first = before.is_none();
        let before = before.unwrap_or_default();
        if progress.result.is_some() {
            self.stop_clock(id, Rule::TurnTimeout);
        } else if ready && (is_first || progress.turns > before.turns) {
            self.start_clock(id, Rule::TurnTimeout, now);
        }
        match &progress.waiting {
            None => self.stop_clock(id, Rule::PermissionTimeout),
            waiting if *waiting != before.waiting => self.start_clock(id, Rule::PermissionTimeout, now),
            Some(_) => {}
        }
        self.count(id, &progress, now);
    }

    /// It is ready: an agent begins its first turn.
    pub(super) fn begin_first_turn(&mut self, id: RunId, now: Now) {
        let is_agent = |run: &Run| run.progress.as_ref().is_some_and(|progress| progress.result.is_none());
        if self.runs.get(&id).is_some_and(is_agent) {
            self.start_clock(id, Rule::TurnTimeout, now);
        }
    }

    fn start_clock(&mut self, id: RunId, rule: Rule, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let Some(allowed) = run.spec.limits.allowed(rule) else { return };
        run.near.remove(&rule);
        run.reasons.retain(|r| r.rule != rule);
        if run.frozen {
            // It was said before that.
            run.agent.paused.insert(rule, (allowed, allowed));
            return;
        }
        self.set_timer(id, rule, Timer { ends: now.mono + allowed, allowed });
    }

    fn stop_clock(&mut self, id: RunId, rule: Rule) {
        self.stop_timer(id, rule);
        if let Some(run) = self.runs.get_mut(&id) {
            run.agent.paused.remove(&rule);
        }
    }

    /// A frozen run does nothing: its time stands still.
    pub(super) fn clocks_stand_still(&mut self, id: RunId, frozen: bool, now: Now) {
        for rule in CLOCKS {
            let Some(run) = self.runs.get_mut(&id) else { return };
            if frozen {
                if let Some(timer) = run.timers.remove(&rule) {
                    run.agent.paused.insert(rule, (timer.ends.since(now.mono), timer.allowed));
                    self.forget_clock(id, rule);
                }
            } else if let Some((left, allowed)) = run.agent.paused.remove(&rule) {
                self.set_timer(id, rule, Timer { ends: now.mono + left, allowed });
            }
        }
    }

    /// The time is over, and nothing follows from that any more. What was said of it stands.
    pub(super) fn forget_clock(&mut self, id: RunId, rule: Rule) {
        if !CLOCKS.contains(&rule) {
            return;
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.timers.remove(&rule);
        }
        self.deadlines.clear(id, Due::Timer(rule));
        self.deadlines.clear(id, Due::Warn(rule));
    }

    /// Says and does what follows where something that is counted stands otherwise than was told.
    fn count(&mut self, id: RunId, progress: &Progress, now: Now) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (mut audit, mut ending, mut is_changed) = (Vec::new(), None, false);
        for rule in Rule::COUNTED {
            let Some(most) = run.spec.limits.most(rule) else { continue };
            let kills = run.kills(rule) && progress.result.is_none();
            let standing = standing(rule, counted(rule, progress), most, kills);
            let told = run.agent.told.insert(rule, standing).unwrap_or(Standing::Clear);
            let ends = standing == Standing::Over && kills;
            // One that was done, and goes on, was warned of already.
            if standing == told && !ends {
                continue;
            }
            is_changed = true;
            let seen = sentence(rule, progress, most);
            match standing {
                Standing::Clear => run.reasons.retain(|r| r.rule != rule),
                Standing::Near => {
                    let text = if kills { format!("{seen}, and is killed after that") } else { seen };
                    audit.push(said(run, rule, EventKind::LimitWarning, most, text, now));
                }
                Standing::Over if ends => ending = ending.or(Some((rule, seen))),
                Standing::Over => {
                    let is_dry = run.spec.limits.watch.dry_run && run.kills_but_for_dry_run(rule);
                    let dry = if is_dry { "; it would be killed, but for dry_run" } else { "" };
                    audit.push(said(run, rule, EventKind::Verdict, most, format!("{seen}{dry}"), now));
                }
            }
        }
        if is_changed {
            self.save(id, audit, now);
        }
        if let Some((rule, seen)) = ending {
            let reason = KillReason::Limit { rule, allowed: Duration::ZERO, seen };
            self.start_kill(id, KillMode::Graceful, reason, Actor::Guardian, Vec::new(), now);
        }
    }
}

impl Run {
    /// Nobody has listened for a while.
    pub(super) fn clocks_begin_anew(&mut self, now: Now) {
        for rule in CLOCKS {
            if let Some(timer) = self.timers.get_mut(&rule) {
                timer.ends = now.mono + timer.allowed;
                self.reasons.retain(|r| r.rule != rule);
            }
        }
        self.agent.paused.values_mut().for_each(|(left, allowed)| *left = *allowed);
    }

    /// What was seen when the time of a rule is over, in a sentence; none for a rule of which its time says all.
    pub(super) fn seen(&self, rule: Rule, taken: Duration) -> Option<String> {
        let (progress, taken) = (self.progress.as_ref()?, human_duration(taken));
        match rule {
            Rule::TurnTimeout => {
                Some(format!("{} has taken {taken}, its turn_timeout: {}", turn(progress), doing(progress)))
            }
            Rule::PermissionTimeout => {
                Some(format!("it has waited {taken} for {}, its permission_timeout", waited_for(progress)))
            }
            _ => None,
        }
    }

    /// How far a timer has come, when the larger part of its time has passed.
    pub(super) fn passed(&self, rule: Rule, timer: Timer, now: Now) -> String {
        let taken = human_duration(timer.allowed.saturating_sub(timer.ends.since(now.mono)));
        let allowed = human_duration(timer.allowed);
        match (rule, &self.progress) {
            (Rule::TurnTimeout, Some(progress)) => {
                let (turn, doing) = (turn(progress), doing(progress));
                format!("{turn} has taken {taken} of the {allowed} that turn_timeout allows, {doing}")
            }
            (Rule::PermissionTimeout, Some(progress)) => {
                let what = waited_for(progress);
                format!("it has waited {taken} for {what}, of the {allowed} that permission_timeout allows")
            }
            _ => format!("{WARN_PERCENT} % of {rule} ({allowed}) has passed"),
        }
    }
}

fn counted(rule: Rule, progress: &Progress) -> u64 {
    match rule {
        Rule::Loop => progress.repeats,
        Rule::MaxTurns => progress.turns,
        Rule::MaxTokens => progress.tokens,
        _ => progress.cost_micro_usd.unwrap_or_default(),
    }
}

/// Turns may be as many as are allowed, and the last of them is let come to its end; of the rest all is used up. A loop that
/// ends nothing is warned of once.
fn standing(rule: Rule, value: u64, most: u64, kills: bool) -> Standing {
    let is_over = if rule == Rule::MaxTurns { value > most } else { value >= most };
    let is_near = u128::from(value) * 100 >= u128::from(most) * u128::from(WARN_PERCENT);
    match (is_over, is_near) {
        (true, _) => Standing::Over,
        (false, true) if kills || rule != Rule::Loop => Standing::Near,
        (false, _) => Standing::Clear,
    }
}

fn sentence(rule: Rule, progress: &Progress, most: u64) -> String {
    let value = counted(rule, progress);
    match rule {
        Rule::Loop => repetition(progress),
        Rule::MaxTurns => format!("it has begun turn {value} of the {most} that max_turns allows"),
        Rule::MaxTokens => format!("it has used {value} of the {most} tokens that max_tokens allows"),
        _ => format!("it has cost {} of the {} that max_cost allows", Dollars(value), Dollars(most)),
    }
}

/// What it does again and again. Errors are reported as that, calls with the arguments alone or after the name of the tool.
fn repetition(progress: &Progress) -> String {
    let (times, what) = (progress.repeats, progress.repeated.as_deref().unwrap_or_default());
    if let Some(error) = what.strip_prefix("error: ") {
        return format!("the same error came {times} times in a row: {error}");
    }
    let tool = progress.tool.as_deref().unwrap_or("the same tool");
    let arguments = what.strip_prefix(tool).map_or(what, |rest| rest.trim_start_matches([':', ' ']));
    let arguments = if arguments.is_empty() { String::new() } else { format!(": {arguments}") };
    format!("{tool} was called {times} times in a row with the same arguments{arguments}")
}

fn turn(progress: &Progress) -> String {
    progress.turn().unwrap_or_else(|| "its first turn".to_owned())
}

fn waited_for(progress: &Progress) -> &str {
    progress.waiting.as_deref().unwrap_or("an answer")
}

fn doing(progress: &Progress) -> String {
    let called =
        progress.tool.as_ref().map_or("no tool was called".to_owned(), |tool| format!("{tool} was called last"));
    match &progress.waiting {
        Some(waiting) => format!("{called}, and it waits for {waiting}"),
        None => called,
    }
}

/// What is so from now on, as a reason of the run's health and for the record.
fn said(run: &mut Run, rule: Rule, kind: EventKind, most: u64, text: String, now: Now) -> AuditEvent {
    let is_mild = kind == EventKind::LimitWarning || is_harmless(rule) && !run.kills_but_for_dry_run(rule);
    run.warn(rule, if is_mild { Health::Warning } else { Health::Critical }, text.clone(), now);
    let limits = &run.spec.limits;
    let mut details = json!({ "allowed": most, "counted": run.progress.as_ref().map(|p| counted(rule, p)) });
    match kind {
        EventKind::LimitWarning => details["limit"] = json!(rule),
        _ => {
            details["rule"] = json!(rule);
            details["action"] = json!(limits.rule(rule).map(|(action, _)| action));
            details["dry_run"] = json!(limits.watch.dry_run);
        }
    }
    run.event(kind, Actor::Guardian, text, details, now)
}
