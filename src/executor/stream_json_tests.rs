use super::*;
use crate::executor::Executor;
use crate::executor::reader::Stream;

fn read(lines: &[&str]) -> Report {
    let mut stream = Stream::of(Executor::claude_cli()).unwrap();
    stream.feed((lines.join("\n") + "\n").as_bytes());
    stream.report
}

const INIT: &str = r#"{"type":"system","subtype":"init","cwd":"/w","session_id":"5f0c","tools":["Bash","Read"],"mcp_servers":[{"name":"files","status":"connected"}],"model":"claude-opus","permissionMode":"default"}"#;

fn assistant(id: &str, content: &str, tokens: (u64, u64)) -> String {
    format!(
        r#"{{"type":"assistant","message":{{"id":"{id}","type":"message","role":"assistant","model":"claude-opus","content":[{content}],"usage":{{"input_tokens":{},"cache_read_input_tokens":10,"output_tokens":{}}}}},"parent_tool_use_id":null,"session_id":"5f0c"}}"#,
        tokens.0, tokens.1
    )
}

const BASH: &str = r#"{"type":"tool_use","id":"toolu_1","name":"Bash","input":{"command":"npm test","timeout":5}}"#;

#[test]
fn init_is_ready_and_tells_the_session_and_the_model() {
    let report = read(&[INIT]);
    assert!(report.ready);
    assert_eq!((report.session.as_deref(), report.model.as_deref()), (Some("5f0c"), Some("claude-opus")));
    assert_eq!(report.turns, 0);
}

#[test]
fn lines_of_one_message_are_one_turn_and_its_tokens_are_counted_once() {
    let text = assistant("msg_1", r#"{"type":"text","text":"let me see"}"#, (100, 1));
    let call = assistant("msg_1", BASH, (100, 20));
    let next = assistant("msg_2", r#"{"type":"text","text":"good"}"#, (200, 5));
    let report = read(&[INIT, &text, &call]);
    assert_eq!((report.turns, report.tokens, report.tool.as_deref()), (1, 130, Some("Bash")));
    let report = read(&[INIT, &text, &call, &next]);
    assert_eq!((report.turns, report.tokens, report.tool), (2, 345, None));
}

#[test]
fn a_subagents_message_is_no_turn_and_costs_all_the_same() {
    let own = assistant("msg_1", BASH, (100, 20));
    let sub =
        assistant("msg_s", BASH, (10, 2)).replace(r#""parent_tool_use_id":null"#, r#""parent_tool_use_id":"toolu_9""#);
    let report = read(&[INIT, &own, &sub, &own]);
    assert_eq!((report.turns, report.tokens), (1, 152));
}

#[test]
fn the_same_call_in_a_row_is_counted_and_another_ends_it() {
    let calls: Vec<String> = (0..3).map(|n| assistant(&format!("msg_{n}"), BASH, (1, 1))).collect();
    let mut lines: Vec<&str> = calls.iter().map(String::as_str).collect();
    let report = read(&lines);
    assert_eq!((report.repeats, report.repeated.as_deref()), (3, Some("Bash: npm test")));
    let other = assistant("msg_9", &BASH.replace("npm test", "npm run build"), (1, 1));
    lines.push(&other);
    assert_eq!(read(&lines).repeats, 1);
}

#[test]
fn the_same_failure_in_a_row_is_counted_and_a_success_ends_it() {
    let failed = r#"{"type":"user","message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","is_error":true,"content":"No such file"}]}}"#;
    let parts = failed.replace(r#""No such file""#, r#"[{"type":"text","text":"No such file"}]"#);
    let report = read(&[failed, failed, failed]);
    assert_eq!((report.repeats, report.repeated.as_deref()), (3, Some("error: No such file")));
    assert_eq!(read(&[&parts, &parts]).repeats, 2);
    let worked = failed.replace("true", "false");
    assert_eq!(read(&[failed, failed, &worked]).repeats, 0);
}

#[test]
fn who_asks_for_permission_waits_until_the_agent_goes_on() {
    let asks = r#"{"type":"control_request","request_id":"r1","request":{"subtype":"can_use_tool","tool_name":"Write","input":{"path":"/etc/passwd"}}}"#;
    assert_eq!(read(&[INIT, asks]).waiting.as_deref(), Some("permission to use Write"));
    let answer = assistant("msg_1", BASH, (1, 1));
    assert_eq!(read(&[INIT, asks, &answer]).waiting.as_deref(), Some(""));
    assert_eq!(read(&[INIT]).waiting, None);
    let other = asks.replace("can_use_tool", "hook_callback");
    assert_eq!(read(&[INIT, &other]).waiting, None);
}

#[test]
fn the_result_tells_success_turns_cost_and_what_was_denied() {
    let result = r#"{"type":"result","subtype":"success","is_error":false,"duration_ms":5120,"num_turns":4,"result":"All tests pass.","session_id":"5f0c","total_cost_usd":0.0348215,"usage":{"input_tokens":9,"output_tokens":3},"permission_denials":[]}"#;
    let report = read(&[INIT, result]);
    assert_eq!(report.result, Some((true, "All tests pass.".into())));
    assert_eq!((report.turns, report.cost_micro_usd, report.tokens), (4, Some(34_822), 12));
    let denied =
        result.replace("[]", r#"[{"tool_name":"Bash","tool_use_id":"t","tool_input":{}},{"tool_name":"Bash"}]"#);
    let (success, text) = read(&[&denied]).result.unwrap();
    assert_eq!((success, text.as_str()), (true, "(permission was denied 2 times: Bash) All tests pass."));
    let most = r#"{"type":"result","subtype":"error_max_turns","is_error":false,"num_turns":30}"#;
    assert_eq!(read(&[most]).result, Some((false, "error max turns".into())));
    let failed = result.replace(r#""is_error":false"#, r#""is_error":true"#);
    assert!(!read(&[&failed]).result.unwrap().0);
    let errors = r#"{"type":"result","subtype":"error_during_execution","errors":["No conversation found"]}"#;
    assert_eq!(read(&[errors]).result, Some((false, "No conversation found".into())));
}

#[test]
fn another_try_of_its_service_is_told() {
    let again = r#"{"type":"system","subtype":"api_retry","attempt":3,"max_retries":10,"retry_delay_ms":1000,"error":"rate_limit"}"#;
    assert!(
        read(&[INIT, again]).message().contains("STATUS=initialized: its service is asked again, attempt 3 of 10\n")
    );
}

#[test]
fn what_is_not_of_the_format_is_passed_over() {
    let mut reader = StreamJson::default();
    let mut report = Report::default();
    for line in ["", "text", "{", "[]", "{}", r#"{"type":null}"#, r#"{"type":""}"#, r#"{"message":1}"#, "\u{0}"] {
        assert!(!reader.line(line.as_bytes(), &mut report), "{line}");
    }
    assert_eq!(report, Report::default());
    for known in
        [r#"{"type":"stream_event","event":{}}"#, r#"{"type":"user","message":{"content":"text"}}"#, r#"{"type":7}"#]
    {
        assert!(reader.line(known.as_bytes(), &mut report), "{known}");
    }
}
