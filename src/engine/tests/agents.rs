//! The rules for agents, each as it is warned of, killed for, off, extended, frozen and taken up by the next instance.

use super::*;
use crate::model::{Action, AgentResult, AgentWatch, Notification, Progress, ProgressUpdate};

const MIN: Duration = Duration::from_secs(60);

fn agent(watch: AgentWatch) -> Steps {
    let mut spec = spec(ONE);
    spec.limits.watch.agent = watch;
    Steps::live(spec)
}

fn turn(n: u64) -> ProgressUpdate {
    ProgressUpdate { turns: Some(n), ..ProgressUpdate::default() }
}

fn tool(name: &str) -> ProgressUpdate {
    ProgressUpdate { tool: Some(name.into()), ..ProgressUpdate::default() }
}

fn done() -> ProgressUpdate {
    ProgressUpdate { success: Some(true), report: Some("all is well".into()), ..ProgressUpdate::default() }
}

fn cost(micro: u64) -> ProgressUpdate {
    ProgressUpdate { cost_micro_usd: Some(micro), ..ProgressUpdate::default() }
}

fn waits(text: &str) -> ProgressUpdate {
    ProgressUpdate { waiting: Some(text.into()), ..ProgressUpdate::default() }
}

fn repeats(n: u64, what: &str) -> ProgressUpdate {
    ProgressUpdate { repeats: Some(n), repeated: Some(what.into()), ..ProgressUpdate::default() }
}

/// What is on record, of what follows from rules.
fn told(effects: &[Effect]) -> Vec<(&'static str, String)> {
    let of_rules = [EventKind::LimitWarning, EventKind::Verdict, EventKind::KillIntent];
    let events = audit(effects).into_iter().filter(|e| of_rules.contains(&e.kind));
    events.map(|e| (e.kind.as_str(), e.reason.clone())).collect()
}

impl Steps {
    fn reports(&mut self, progress: ProgressUpdate) -> Vec<(&'static str, String)> {
        told(&self.said(Notification { progress: Some(progress), ..Notification::default() }))
    }

    /// Lets time pass, while whoever wants to know what the run waits for is told.
    fn lives(&mut self, d: Duration) -> Vec<(&'static str, String)> {
        let end = self.now.mono + d;
        let mut all = Vec::new();
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.at(at);
            let mut effects = self.step(Event::Tick);
            if has(&effects, |e| matches!(e, Effect::Explain(ONE))) {
                let process = ProcessSeen { pid: 7, name: "claude".into(), state: 'S', ..ProcessSeen::default() };
                let evidence = Evidence { processes: vec![process], total: 1, ..Evidence::default() };
                effects.extend(self.step(Event::Inspected { run: ONE, evidence }));
            }
            all.extend(told(&effects));
        }
        self.at(end);
        all
    }

    fn is_live(&self) -> bool {
        self.phase() == Some(Phase::Running)
    }

    fn health(&self) -> Health {
        self.run().health()
    }

    fn freeze(&mut self, frozen: bool) {
        self.step(Event::FreezeDone { run: ONE, frozen, result: Ok(()), actor: me(), reply: ReplyTo(3) });
    }

    fn extend(&mut self, rule: Rule, by: Duration) -> bool {
        let effects = self.step(Event::Extend { run: ONE, rule, by, actor: me(), reply: ReplyTo(3) });
        answers(&effects).iter().all(|answer| answer.is_ok())
    }
}

fn ten_minutes() -> AgentWatch {
    AgentWatch { turn_timeout: Some(10 * MIN), ..AgentWatch::default() }
}

#[test]
fn a_turn_that_takes_too_long_is_warned_of_at_80_percent_and_ended_with_what_was_called_last() {
    let mut b = agent(ten_minutes());
    b.reports(turn(6));
    b.lives(9 * MIN);
    b.reports(turn(7));
    assert_eq!((b.health(), b.run().reasons.len()), (Health::Healthy, 0), "each turn has all of its time");
    b.lives(MIN);
    b.reports(tool("Bash"));
    assert_eq!(b.lives(7 * MIN - MS), []);
    let warning = b.lives(MS);
    let (kind, text) = &warning[0];
    assert_eq!((warning.len(), *kind, b.health()), (1, "limit_warning", Health::Warning));
    let expected =
        "turn 7 has taken 8 min of the 10 min that turn_timeout allows, Bash was called last: it is killed in 2 min; ";
    assert!(text.starts_with(expected) && text.contains("claude (pid 7)"), "{text}");
    let intent = b.lives(2 * MIN);
    assert_eq!(intent, [("kill_intent", "turn 7 has taken 10 min, its turn_timeout: Bash was called last".to_owned())]);
    let State::Stopping(kill, _) = &b.run().state else { panic!("{:?}", b.run().state) };
    assert_eq!(kill.answer.reason.code(), "turn_timeout");
    assert_eq!(Outcome::Killed { reason: kill.answer.reason.clone() }.exit_status(), 124);
}

#[test]
fn what_is_on_record_names_the_limit_that_was_warned_of_and_the_rule_that_was_broken() {
    let mut b = agent(AgentWatch { max_turns: Some(30), max_turns_action: Action::Warn, ..AgentWatch::default() });
    let mut details = |n, kind| {
        let effects = b.said(Notification { progress: Some(turn(n)), ..Notification::default() });
        audit(&effects).into_iter().find(|event| event.kind == kind).map(|event| event.details.clone())
    };
    let warning = json!({ "allowed": 30, "counted": 24, "limit": "max_turns" });
    assert_eq!(details(24, EventKind::LimitWarning), Some(warning));
    let verdict = json!({ "allowed": 30, "counted": 31, "rule": "max_turns", "action": "warn", "dry_run": false });
    assert_eq!(details(31, EventKind::Verdict), Some(verdict));
}

#[test]
fn a_turn_that_is_given_more_time_while_it_is_looked_at_is_not_warned_of() {
    let mut b = agent(ten_minutes());
    b.reports(turn(1));
    b.at(b.now.mono + 8 * MIN);
    let effects = b.step(Event::Tick);
    assert!(has(&effects, |e| matches!(e, Effect::Explain(ONE))), "it is looked at before it is warned of");
    assert!(b.extend(Rule::TurnTimeout, 10 * MIN));
    assert_eq!(told(&b.step(Event::Inspected { run: ONE, evidence: Evidence::default() })), []);
}

#[test]
fn the_first_turn_begins_when_an_agent_is_ready_and_who_reports_nothing_has_none() {
    let mut spec = spec(ONE);
    spec.limits.watch.agent = ten_minutes();
    spec.limits.readiness = Readiness::Notify;
    let mut b = Steps::live(spec);
    b.reports(ProgressUpdate { session: Some("abc".into()), ..ProgressUpdate::default() });
    b.lives(60 * MIN);
    assert_eq!(b.phase(), Some(Phase::Initializing), "it is not ready");
    b.said(Notification { ready: true, ..Notification::default() });
    let intents: Vec<_> = b.lives(10 * MIN).into_iter().filter(|(kind, _)| *kind == "kill_intent").collect();
    assert_eq!(intents[0].1, "its first turn has taken 10 min, its turn_timeout: no tool was called");
    let mut b = agent(ten_minutes());
    b.said(Notification { heartbeat: true, ..Notification::default() });
    assert_eq!(b.lives(24 * 60 * MIN), []);
    assert!(b.is_live());
}

#[test]
fn with_its_final_report_the_last_turn_is_over() {
    let mut b = agent(ten_minutes());
    b.reports(turn(7));
    b.reports(done());
    assert_eq!(b.lives(24 * 60 * MIN), []);
    assert!(b.is_live());
    b.reports(turn(8));
    assert!(!b.lives(10 * MIN).is_empty(), "it goes on");
}

#[test]
fn a_turn_is_only_warned_of_or_nothing_is_said_where_the_action_says_so() {
    let mut b = agent(AgentWatch { turn_action: Action::Warn, ..ten_minutes() });
    b.reports(turn(7));
    let told = b.lives(60 * MIN);
    assert_eq!(told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["limit_warning", "verdict"]);
    assert!(told[0].1.contains("that is too long in 2 min"), "{told:?}");
    assert_eq!(told[1].1, "turn 7 has taken 10 min, its turn_timeout: no tool was called");
    assert_eq!((b.health(), b.is_live()), (Health::Critical, true));
    assert!(!b.extend(Rule::TurnTimeout, 60 * MIN), "its time is over");
    b.reports(turn(8));
    assert_eq!(b.health(), Health::Healthy, "another turn takes it back");
    let mut off = agent(AgentWatch { turn_action: Action::Off, ..ten_minutes() });
    off.reports(turn(7));
    assert_eq!((off.lives(60 * MIN), off.health()), (vec![], Health::Healthy));
}

#[test]
fn a_turn_is_given_more_time_and_the_next_has_what_every_turn_has() {
    let mut b = agent(ten_minutes());
    assert!(!b.extend(Rule::TurnTimeout, MIN), "there is no turn yet");
    b.reports(turn(7));
    b.lives(9 * MIN);
    assert!(b.extend(Rule::TurnTimeout, 20 * MIN));
    assert_eq!(b.health(), Health::Healthy, "the warning is taken back");
    b.lives(20 * MIN);
    assert!(b.is_live());
    b.reports(turn(8));
    b.lives(10 * MIN - MS);
    assert!(b.is_live());
    b.lives(MS);
    assert!(!b.is_live());
}

#[test]
fn the_clocks_of_a_frozen_agent_stand_still() {
    let watch = AgentWatch { permission_timeout: Some(20 * MIN), permission_action: Action::Kill, ..ten_minutes() };
    let mut b = agent(watch);
    b.reports(turn(7));
    b.lives(6 * MIN);
    b.freeze(true);
    assert_eq!(b.lives(600 * MIN), []);
    b.freeze(false);
    b.lives(4 * MIN - MS);
    assert!(b.is_live());
    b.lives(MS);
    assert!(!b.is_live());
    // What it said just before it was frozen counts from when it goes on.
    let mut b = agent(watch);
    b.reports(turn(7));
    b.freeze(true);
    b.reports(turn(8));
    b.reports(waits("an answer"));
    b.lives(600 * MIN);
    b.freeze(false);
    b.lives(10 * MIN - MS);
    assert!(b.is_live());
    b.lives(MS);
    assert!(!b.is_live());
}

#[test]
fn after_a_restart_all_of_a_turns_time_passes_and_what_was_reported_is_known() {
    let mut b = agent(AgentWatch { loop_max: Some(3), max_turns: Some(8), ..ten_minutes() });
    b.reports(turn(7));
    b.reports(repeats(3, "ls"));
    b.lives(9 * MIN);
    assert_eq!(b.run().reasons.len(), 3);
    let (mut next, _) = next(&b, there());
    let progress = next.run().progress.clone().unwrap();
    assert_eq!((progress.turns, progress.repeats), (7, 3));
    let rules = |b: &Steps| b.run().reasons.iter().map(|r| r.rule).collect::<Vec<_>>();
    assert_eq!(rules(&next), [Rule::MaxTurns, Rule::Loop], "what was counted is as it was, the time is anew");
    assert_eq!(next.reports(repeats(4, "ls")), [], "it was told");
    next.lives(10 * MIN - MS);
    assert!(next.is_live());
    next.lives(MS);
    assert!(!next.is_live());
}

#[test]
fn a_run_that_was_kept_before_there_were_agents_is_read() {
    let b = agent(AgentWatch::default());
    let mut kept = serde_json::to_value(b.run()).unwrap();
    for key in ["progress", "agent"] {
        kept.as_object_mut().unwrap().remove(key).unwrap();
    }
    kept["spec"]["limits"]["watch"].as_object_mut().unwrap().remove("agent").unwrap();
    let run: Run = serde_json::from_value(kept).unwrap();
    assert_eq!((run.progress, run.spec.limits.watch.agent), (None, AgentWatch::default()));
}

#[test]
fn the_same_call_again_and_again_is_warned_of_and_taken_back_with_another() {
    let mut b = agent(AgentWatch { loop_max: Some(10), ..AgentWatch::default() });
    b.reports(tool("Bash"));
    for n in 2..10 {
        assert_eq!(b.reports(repeats(n, "npm test")), [], "{n}");
    }
    let text = "Bash was called 10 times in a row with the same arguments: npm test";
    assert_eq!(b.reports(repeats(10, "npm test")), [("verdict", text.to_owned())]);
    assert_eq!((b.health(), b.reports(repeats(11, "npm test"))), (Health::Warning, vec![]));
    b.reports(repeats(1, ""));
    assert_eq!(b.health(), Health::Healthy);
    assert_eq!(b.reports(repeats(10, "Bash: ls")).len(), 1, "it is another loop");
    assert_eq!(b.run().reasons[0].text, "Bash was called 10 times in a row with the same arguments: ls");
    b.reports(repeats(1, ""));
    b.reports(repeats(12, "error: no such file"));
    assert_eq!(b.run().reasons[0].text, "the same error came 12 times in a row: no such file");
}

#[test]
fn a_loop_is_ended_where_the_action_says_so_after_a_warning() {
    let watch = AgentWatch { loop_max: Some(10), loop_action: Action::Kill, ..AgentWatch::default() };
    let mut b = agent(watch);
    b.reports(tool("Bash"));
    assert_eq!(b.reports(repeats(7, "npm test")), []);
    let (kind, text) = b.reports(repeats(8, "npm test")).remove(0);
    assert_eq!((kind, text.ends_with("npm test, and is killed after that")), ("limit_warning", true), "{text}");
    let text = "Bash was called 10 times in a row with the same arguments: npm test".to_owned();
    assert_eq!(b.reports(repeats(10, "npm test")), [("kill_intent", text)]);
    let mut off = agent(AgentWatch { loop_action: Action::Off, ..watch });
    assert_eq!((off.reports(repeats(100, "ls")), off.is_live()), (vec![], true));
}

#[test]
fn an_agent_may_come_to_the_end_of_its_last_turn_and_begins_no_more() {
    let mut b = agent(AgentWatch { max_turns: Some(30), ..AgentWatch::default() });
    assert_eq!(b.reports(turn(23)), []);
    let text = "it has begun turn 24 of the 30 that max_turns allows, and is killed after that".to_owned();
    assert_eq!(b.reports(turn(24)), [("limit_warning", text)]);
    assert_eq!((b.reports(turn(30)), b.is_live()), (vec![], true));
    let text = "it has begun turn 31 of the 30 that max_turns allows".to_owned();
    assert_eq!(b.reports(turn(31)), [("kill_intent", text)]);
}

#[test]
fn an_agent_that_has_used_its_tokens_or_its_money_is_ended() {
    let watch = AgentWatch { max_tokens: Some(1000), max_cost_micro_usd: Some(5_000_000), ..AgentWatch::default() };
    let mut b = agent(watch);
    assert_eq!(b.reports(cost(3_999_999)), []);
    let text = "it has cost $4.02 of the $5.00 that max_cost allows, and is killed after that".to_owned();
    assert_eq!(b.reports(cost(4_020_000)), [("limit_warning", text)]);
    assert_eq!(b.health(), Health::Warning);
    assert_eq!(b.reports(cost(1)), [], "totals do not go back");
    let text = "it has cost $5.02 of the $5.00 that max_cost allows".to_owned();
    assert_eq!(b.reports(cost(5_020_000)), [("kill_intent", text)]);
    let mut b = agent(watch);
    let text = "it has used 1000 of the 1000 tokens that max_tokens allows".to_owned();
    let tokens = ProgressUpdate { tokens: Some(1000), ..ProgressUpdate::default() };
    assert_eq!(b.reports(tokens), [("kill_intent", text)]);
}

#[test]
fn what_is_used_is_only_warned_of_where_the_action_or_dry_run_says_so() {
    let watch = AgentWatch { max_cost_micro_usd: Some(5_000_000), ..AgentWatch::default() };
    let mut b = agent(AgentWatch { max_cost_action: Action::Warn, ..watch });
    let text = "it has cost $6.00 of the $5.00 that max_cost allows".to_owned();
    assert_eq!(b.reports(cost(6_000_000)), [("verdict", text)]);
    assert_eq!((b.health(), b.is_live()), (Health::Critical, true));
    assert_eq!(b.reports(cost(7_000_000)), [], "it is said once");
    let mut off = agent(AgentWatch { max_cost_action: Action::Off, ..watch });
    assert_eq!((off.reports(cost(6_000_000)), off.health()), (vec![], Health::Healthy));
    let mut dry = spec(ONE);
    (dry.limits.watch.agent, dry.limits.watch.dry_run) = (watch, true);
    let mut dry = Steps::live(dry);
    let (kind, text) = dry.reports(cost(6_000_000)).remove(0);
    assert_eq!((kind, text.ends_with("; it would be killed, but for dry_run")), ("verdict", true), "{text}");
    assert!(dry.is_live());
}

#[test]
fn an_agent_that_is_done_is_not_ended_for_what_that_has_cost_unless_it_goes_on() {
    let mut b = agent(AgentWatch { max_cost_micro_usd: Some(5_000_000), ..AgentWatch::default() });
    let last = ProgressUpdate { cost_micro_usd: Some(5_020_000), ..done() };
    let text = "it has cost $5.02 of the $5.00 that max_cost allows".to_owned();
    assert_eq!(b.reports(last), [("verdict", text)]);
    assert!(b.is_live());
    assert_eq!(b.reports(turn(9))[0].0, "kill_intent");
}

#[test]
fn who_waits_for_a_permission_is_warned_of_and_it_is_taken_back_with_the_answer() {
    let watch = AgentWatch { permission_timeout: Some(2 * MIN), ..AgentWatch::default() };
    let mut b = agent(watch);
    b.reports(waits("permission to run rm"));
    b.lives(MIN);
    b.reports(waits("permission to run rm"));
    let told = b.lives(60 * MIN);
    assert_eq!(told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["limit_warning", "verdict"]);
    let near = "it has waited 1 min 36 s for permission to run rm, of the 2 min that permission_timeout allows: that is too long in 24 s; ";
    assert!(told[0].1.starts_with(near), "{told:?}");
    assert_eq!(told[1].1, "it has waited 2 min for permission to run rm, its permission_timeout");
    assert_eq!((b.health(), b.is_live()), (Health::Warning, true));
    b.reports(waits(""));
    assert_eq!(b.health(), Health::Healthy);
    b.reports(waits("permission to run ls"));
    assert!(b.extend(Rule::PermissionTimeout, 60 * MIN));
    assert_eq!(b.lives(30 * MIN), []);
    let mut kill = agent(AgentWatch { permission_action: Action::Kill, ..watch });
    kill.reports(waits("an answer"));
    kill.lives(MIN);
    kill.reports(waits("another answer"));
    kill.lives(MIN);
    kill.reports(waits("another answer"));
    kill.lives(MIN - MS);
    assert!(kill.is_live(), "it waits for something else");
    let text = "it has waited 2 min for another answer, its permission_timeout".to_owned();
    assert_eq!(kill.lives(MS), [("kill_intent", text)]);
}

#[test]
fn what_is_reported_is_published_and_on_record_once_a_second_and_the_final_report_with_the_end() {
    use super::said::{is_published, is_saved};
    let mut b = agent(AgentWatch::default());
    let said = |b: &mut Steps, progress| b.said(Notification { progress: Some(progress), ..Notification::default() });
    assert!(is_saved(&said(&mut b, turn(1))));
    assert!(!is_published(&said(&mut b, turn(2))));
    let later = b.pass(SECOND);
    assert_eq!(later.iter().filter(|(_, e)| matches!(e, Effect::Record(_))).count(), 1);
    b.pass(SECOND);
    said(&mut b, turn(2));
    b.pass(SECOND);
    let same = said(&mut b, turn(2));
    assert!(is_published(&same) && !is_saved(&same), "nothing is new");
    said(&mut b, done());
    b.step(Event::MainExited { run: ONE, status: Some(ExitStatus::Exited(0)), oom: false });
    b.step(Event::Populated { run: ONE, populated: false });
    let view = b.engine.view(ONE, b.now).unwrap();
    let result = Some(AgentResult { success: true, text: "all is well".into() });
    assert_eq!(view.outcome, Some(Outcome::Exited { code: 0 }));
    assert_eq!(view.progress, Some(Progress { turns: 2, result, ..Progress::default() }));
}
