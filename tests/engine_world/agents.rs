//! Agents in the simulated world: what they are held to, and what they report.

use std::time::Duration;

use guardian::model::{Action, AgentWatch, EventKind, Notification, Phase, ProgressUpdate, Rule};
use proptest::prelude::*;

use crate::engine_world::{Bench, Op};

/// Any limits of an agent, near what is reported.
pub fn watch() -> impl Strategy<Value = AgentWatch> {
    let action = || prop_oneof![1 => Just(Action::Off), 1 => Just(Action::Warn), 2 => Just(Action::Kill)];
    let time = || prop::option::of((1000u64..30_000).prop_map(Duration::from_millis));
    let number = || prop::option::of(2u64..20);
    let times = (time(), action(), time(), action());
    let counts = (number(), action(), number(), action(), number(), action(), number(), action());
    (times, counts).prop_map(
        |(
            (turn_timeout, turn_action, permission_timeout, permission_action),
            (
                loop_max,
                loop_action,
                max_turns,
                max_turns_action,
                max_tokens,
                max_tokens_action,
                max_cost_micro_usd,
                max_cost_action,
            ),
        )| AgentWatch {
            turn_timeout,
            turn_action,
            loop_max,
            loop_action,
            max_turns,
            max_turns_action,
            max_tokens,
            max_tokens_action,
            max_cost_micro_usd,
            max_cost_action,
            permission_timeout,
            permission_action,
        },
    )
}

/// Any report.
pub fn progress() -> impl Strategy<Value = Option<ProgressUpdate>> {
    let number = || prop::option::weighted(0.4, 0u64..24);
    let text = || prop::option::weighted(0.4, prop::sample::select(vec!["", "a", "b"]).prop_map(str::to_owned));
    let success = prop::option::weighted(0.1, any::<bool>());
    let update = (number(), number(), number(), number(), text(), text(), success).prop_map(
        |(turns, tokens, cost_micro_usd, repeats, tool, waiting, success)| ProgressUpdate {
            turns,
            tokens,
            cost_micro_usd,
            repeats,
            tool,
            waiting,
            success,
            ..ProgressUpdate::default()
        },
    );
    prop::option::weighted(0.6, update)
}

#[test]
fn an_agent_is_held_to_its_turns_over_a_crash_of_the_instance() {
    let mut b = Bench::new();
    b.watch.agent = AgentWatch { max_turns: Some(3), ..AgentWatch::default() };
    let run = b.launch(true, 0, 0, 100);
    let turn = |b: &mut Bench, n| {
        let progress = Some(ProgressUpdate { turns: Some(n), ..ProgressUpdate::default() });
        b.apply(Op::Say { run: 0, said: Notification { progress, ..Notification::default() } });
    };
    turn(&mut b, 1);
    turn(&mut b, 3);
    b.pass_ms(1_100);
    b.apply(Op::Crash { rebooted: false });
    assert_eq!(b.phase(run), Some(Phase::Initializing));
    turn(&mut b, 4);
    b.pass_ms(10);
    let view = b.finished(run).expect("finished");
    let outcome = view.outcome.expect("an outcome");
    assert_eq!(outcome.to_string(), "killed(it has begun turn 4 of the 3 that max_turns allows)");
    assert_eq!((outcome.exit_status(), view.progress.map(|p| p.turns)), (124, Some(4)));
    assert_eq!(b.audited(run, EventKind::LimitWarning), 1, "of its third turn, once");
    assert_eq!(view.receipt.map(|r| r.reason.code()), Some(Rule::MaxTurns.as_str()));
}

#[test]
fn what_an_agent_reports_last_is_kept_though_it_ends_at_once() {
    let mut b = Bench::new();
    let run = b.launch(true, 0, 0, 100);
    let progress = Some(ProgressUpdate { success: Some(true), ..ProgressUpdate::default() });
    b.say_and_end(0, Notification { progress, ..Notification::default() });
    b.pass_ms(10);
    let view = b.finished(run).expect("finished");
    assert_eq!(view.progress.and_then(|p| p.result).map(|r| r.success), Some(true));
}
