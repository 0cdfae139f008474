use zbus::wire::{LE, serialized::Context, to_bytes};

use super::*;
use crate::model::{AgentWatchUpdate, LimitUpdate, WatchUpdate};

fn request() -> LaunchRequest {
    LaunchRequest { argv: vec![b"sh".to_vec(), b"-c".to_vec()], cwd: b"/tmp".to_vec(), ..LaunchRequest::default() }
}

fn over_the_wire(request: &LaunchRequest) -> Result<LaunchRequest, Error> {
    let encoded = to_bytes(Context::new(LE, 0), &LaunchDict::from(request)).unwrap();
    parse(&encoded.deserialize::<HashMap<String, OwnedVariant>>().unwrap().0)
}

fn with(key: &str, value: Variant<'_>) -> Result<LaunchRequest, Error> {
    let encoded = to_bytes(Context::new(LE, 0), &LaunchDict::from(&request())).unwrap();
    let mut dict = encoded.deserialize::<HashMap<String, OwnedVariant>>().unwrap().0;
    dict.insert(key.into(), OwnedVariant::try_from(value).unwrap());
    parse(&dict)
}

fn refused(key: &str, value: Variant<'_>) -> String {
    with(key, value).unwrap_err().message
}

#[test]
fn a_launch_comes_back_as_it_went() {
    let limits = LimitUpdate {
        max_running: None,
        queue_timeout: Some(Some(Duration::from_secs(30))),
        init_timeout: Some(None),
        max_runtime: Some(Some(Duration::from_secs(3))),
        watch: WatchUpdate {
            init_action: Some(Action::Warn),
            max_runtime_action: Some(Action::Off),
            heartbeat_timeout: Some(Some(Duration::from_secs(9))),
            heartbeat_action: Some(Action::KillIfIdle),
            idle_timeout: Some(None),
            idle_action: Some(Action::Kill),
            spin_timeout: Some(Some(Duration::from_secs(9))),
            spin_action: Some(Action::Off),
            input_timeout: Some(Some(Duration::from_secs(8))),
            input_action: Some(Action::Warn),
            escapees: Some(Action::Kill),
            pressure_max_percent: None,
            dry_run: None,
            agent: AgentWatchUpdate {
                turn_timeout: Some(Some(Duration::from_secs(7))),
                turn_action: Some(Action::Warn),
                loop_max: Some(Some(12)),
                loop_action: Some(Action::Kill),
                max_turns: Some(None),
                max_turns_action: Some(Action::Off),
                max_tokens: Some(Some(1)),
                max_tokens_action: Some(Action::Kill),
                max_cost_micro_usd: Some(Some(5_000_000)),
                max_cost_action: Some(Action::Warn),
                permission_timeout: Some(None),
                permission_action: Some(Action::Kill),
            },
        },
        grace: Some(Duration::from_millis(5)),
        readiness: Some(Readiness::Exec),
        memory_max_bytes: Some(Some(1 << 30)),
        tasks_max: Some(None),
        cpu_max_percent: Some(Some(150)),
        isolate_pids: Some(true),
        cleanup_git_locks: Some(true),
        sandbox: None,
        credentials: None,
        executor: Some("codex".into()),
    };
    let full = LaunchRequest {
        reason: "a test".into(),
        prompt: Some(b"tell me\0".to_vec()),
        uid: Some(7),
        reserved: Some(RunId::from_bytes([1; 6])),
        workflow: Some("builder".into()),
        name: Some("näme".into()),
        argv: vec![b"printf".to_vec(), b"\xff\xfe".to_vec(), b"".to_vec()],
        env: vec![b"A=".to_vec(), b"B=\xff".to_vec()],
        cwd: b"/d\xff".to_vec(),
        limits,
    };
    for request in [request(), full] {
        let back = over_the_wire(&request).unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
    }
}

#[test]
fn strings_do_for_bytes() {
    assert_eq!(with("Command", vec!["ls", "-l"].into()).unwrap().argv, [b"ls".to_vec(), b"-l".to_vec()]);
    assert_eq!(with("WorkingDirectory", "/srv".into()).unwrap().cwd, b"/srv");
}

#[test]
fn what_makes_no_sense_is_refused_in_a_sentence() {
    assert!(refused("MaxRuntimeUsec", 1u64.into()).contains("do you mean MaxRuntimeUSec?"));
    assert_eq!(refused("Colour", 1u64.into()), "\"Colour\" is not a key of a launch");
    assert_eq!(refused("MaxRuntimeUSec", 1u32.into()), "MaxRuntimeUSec has the D-Bus type t, not u");
    assert_eq!(refused("GraceUSec", u64::MAX.into()), "GraceUSec cannot be off");
    assert!(refused("InitTimeoutUSec", (u64::MAX - 1).into()).contains("100 years"));
    assert!(refused("Workflow", "a b".into()).contains("not a workflow name"));
    assert!(refused("Name", "x".repeat(129).into()).contains("1 to 128"));
    assert!(refused("Command", Vec::<&str>::new().into()).contains("Command is missing"));
    assert!(refused("Command", vec![""].into()).contains("empty"));
    assert!(refused("Command", vec![1u32].into()).contains("as or aay"));
    assert!(refused("Command", vec!["x".repeat(COMMAND_MAX)].into()).contains("larger than 1024 KiB"));
    assert_eq!(refused("Command", vec![vec![b'a', 0]].into()), "Command holds a NUL byte");
    assert!(refused("WorkingDirectory", "tmp".into()).contains("absolute"));
    assert_eq!(refused("Environment", vec!["OK=1", "SECRET"].into()), "entry 1 of Environment is not KEY=VALUE");
    assert!(refused("Environment", vec!["=x"].into()).contains("entry 0"));
    assert!(refused("TasksMax", 0u64.into()).contains("1 or more"));
    assert!(refused("LoopMax", 1u64.into()).contains("2 or more"));
    assert!(refused("IdleAction", "stop".into()).contains("off, warn or kill"));
    assert!(refused("InputAction", "kill".into()).contains("off or warn"));
    assert!(refused("Readiness", "maybe".into()).contains("output, exec or notify"));
}
