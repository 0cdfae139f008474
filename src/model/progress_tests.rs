use proptest::prelude::*;

use super::*;
use crate::model::Notification;

fn said(message: &[u8]) -> Option<ProgressUpdate> {
    Notification::parse(message).progress
}

#[test]
fn a_message_tells_how_far_an_agent_has_come() {
    let message = b"WATCHDOG=1\nX_GUARDIAN_SESSION=abc\nX_GUARDIAN_MODEL=opus\nX_GUARDIAN_TURNS=7\nX_GUARDIAN_TURNS_MAX=30\n\
        X_GUARDIAN_TOKENS=1200\nX_GUARDIAN_COST_MICRO_USD=1250000\nX_GUARDIAN_TOOL=Bash\nX_GUARDIAN_REPEATS=2\n\
        X_GUARDIAN_REPEATED=npm test\nX_GUARDIAN_WAITING=\nX_GUARDIAN_RESULT=success\nX_GUARDIAN_RESULT_TEXT=all is well";
    let text = |text: &str| Some(text.to_owned());
    let expected = ProgressUpdate {
        session: text("abc"),
        model: text("opus"),
        turns: Some(7),
        turns_max: Some(30),
        tokens: Some(1200),
        cost_micro_usd: Some(1_250_000),
        tool: text("Bash"),
        repeats: Some(2),
        repeated: text("npm test"),
        waiting: text(""),
        success: Some(true),
        report: text("all is well"),
    };
    assert_eq!(said(message), Some(expected));
    assert_eq!(said(b"WATCHDOG=1\nSTATUS=x"), None, "who says nothing of it is no agent");
}

#[test]
fn what_makes_no_sense_is_passed_over_and_what_is_too_much_is_cut() {
    for nonsense in ["-1", "+1", "1.5", "", "x", "1x", "0x10", "\u{661}"] {
        let message = format!("X_GUARDIAN_TURNS=3\nX_GUARDIAN_TURNS={nonsense}\nX_GUARDIAN_RESULT={nonsense}");
        let expected = ProgressUpdate { turns: Some(3), ..ProgressUpdate::default() };
        assert_eq!(said(message.as_bytes()), Some(expected), "{nonsense:?}");
    }
    let most = said(b"X_GUARDIAN_TOKENS=99999999999999999999999999\nX_GUARDIAN_TURNS= 7 ").unwrap();
    assert_eq!((most.tokens, most.turns), (Some(i64::MAX.unsigned_abs()), Some(7)));
    let long =
        [b"X_GUARDIAN_TOOL=\x1b".as_slice(), &[b'x'; 5000], b"\nX_GUARDIAN_RESULT_TEXT=", &[b'y'; 5000]].concat();
    let long = said(&long).unwrap();
    let tool = long.tool.unwrap();
    assert!(tool.starts_with("\u{fffd}x") && tool.chars().count() == STATUS_MAX);
    assert_eq!(long.report.unwrap().len(), REPORT_MAX);
}

#[test]
fn totals_never_go_back() {
    let mut progress = Progress::default();
    let update = |turns, tokens, cost| ProgressUpdate {
        turns: Some(turns),
        tokens: Some(tokens),
        cost_micro_usd: Some(cost),
        ..ProgressUpdate::default()
    };
    progress.update(&update(5, 100, 9));
    progress.update(&update(4, 200, 8));
    progress.update(&ProgressUpdate { tool: Some("Read".into()), ..ProgressUpdate::default() });
    assert_eq!((progress.turns, progress.tokens, progress.cost_micro_usd), (5, 200, Some(9)));
}

#[test]
fn the_empty_text_takes_back_and_another_turn_takes_back_that_it_was_done() {
    let mut progress = Progress::default();
    let waits = |text: &str| ProgressUpdate { waiting: Some(text.into()), ..ProgressUpdate::default() };
    progress.update(&waits("Bash"));
    assert_eq!(progress.waiting.as_deref(), Some("Bash"));
    progress.update(&waits(""));
    assert_eq!(progress.waiting, None);
    progress.update(&ProgressUpdate { repeats: Some(3), repeated: Some("ls".into()), ..ProgressUpdate::default() });
    assert_eq!((progress.repeats, progress.repeated.as_deref()), (3, Some("ls")));
    progress.update(&ProgressUpdate { repeats: Some(1), ..ProgressUpdate::default() });
    assert_eq!((progress.repeats, progress.repeated.as_deref()), (1, None));
    progress.update(&waits("an answer"));
    progress.update(&ProgressUpdate { success: Some(true), ..ProgressUpdate::default() });
    progress.update(&ProgressUpdate { report: Some("fine".into()), ..ProgressUpdate::default() });
    assert_eq!(
        (&progress.result, &progress.waiting),
        (&Some(AgentResult { success: true, text: "fine".into() }), &None)
    );
    progress.update(&ProgressUpdate { turns: Some(1), ..ProgressUpdate::default() });
    assert_eq!(progress.result, None);
}

#[test]
fn where_it_is_is_told_in_a_few_words() {
    let mut progress = Progress::default();
    assert_eq!(progress.summary(), "");
    progress.update(&ProgressUpdate { turns: Some(7), tool: Some("Bash".into()), ..ProgressUpdate::default() });
    assert_eq!(progress.summary(), "turn 7: Bash");
    progress.update(&ProgressUpdate {
        turns_max: Some(30),
        waiting: Some("a key".into()),
        ..ProgressUpdate::default()
    });
    assert_eq!(progress.summary(), "turn 7 of 30: waits for a key");
    progress.update(&ProgressUpdate { success: Some(false), ..ProgressUpdate::default() });
    assert_eq!(progress.summary(), "turn 7 of 30: failed");
}

#[test]
fn money_is_told_to_the_cent_and_what_is_less_than_a_dollar_as_it_is() {
    for (micro, told) in [
        (0, "$0.00"),
        (5_020_000, "$5.02"),
        (5_000_000, "$5.00"),
        (5_029_999, "$5.02"),
        (1_234_567_890, "$1234.56"),
        (10_000, "$0.01"),
        (1_200, "$0.0012"),
        (123_456, "$0.123456"),
        (u64::MAX, "$18446744073709.55"),
    ] {
        assert_eq!(Dollars(micro).to_string(), told);
    }
    assert_eq!([5_000_000, 5_100_001, 0].map(|micro| Dollars(micro).exact()), ["5.00", "5.100001", "0.00"]);
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[ -~\u{0}-\u{a0}é]{0,300}")
}

fn update() -> impl Strategy<Value = ProgressUpdate> {
    let n = || prop::option::of(any::<u64>());
    let texts = (text(), text(), text(), text(), text(), text());
    (texts, (n(), n(), n(), n(), n()), prop::option::of(any::<bool>())).prop_map(
        |((session, model, tool, repeated, waiting, report), (turns, turns_max, tokens, cost, repeats), success)| {
            ProgressUpdate {
                session,
                model,
                turns,
                turns_max,
                tokens,
                cost_micro_usd: cost,
                tool,
                repeats,
                repeated,
                waiting,
                success,
                report,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_it_is_kept(said in update()) {
        let read = Notification::parse(said.lines().join("\n").as_bytes()).progress.unwrap_or_default();
        prop_assert_eq!(&read, &said.kept());
        prop_assert_eq!(read.clone().kept(), read);
    }

    #[test]
    fn no_message_takes_a_total_back(all in prop::collection::vec(update(), 1..12)) {
        let mut progress = Progress::default();
        for said in all {
            let before = progress.clone();
            progress.update(&said);
            prop_assert!(progress.turns >= before.turns && progress.tokens >= before.tokens);
            prop_assert!(progress.cost_micro_usd >= before.cost_micro_usd);
            prop_assert!(progress.repeated.is_none() || progress.repeats > 1);
        }
    }

    #[test]
    fn any_bytes_after_a_name_are_bounded_text_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        for name in ["SESSION", "MODEL", "TOOL", "REPEATED", "WAITING", "RESULT_TEXT", "TURNS", "COST_MICRO_USD"] {
            let read = said(&[format!("X_GUARDIAN_{name}=").as_bytes(), &bytes].concat()).unwrap_or_default();
            for text in [read.session, read.model, read.tool, read.repeated, read.waiting].into_iter().flatten() {
                prop_assert!(text.chars().count() <= STATUS_MAX && !text.chars().any(char::is_control));
            }
            prop_assert!(read.report.is_none_or(|t| t.chars().count() <= REPORT_MAX && !t.chars().any(char::is_control)));
        }
    }
}
