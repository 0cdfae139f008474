use std::fs;
use std::path::Path;

use super::*;
use crate::model::{Action, AgentWatch};

fn load(text: &str) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, text).unwrap();
    Config::load(&[file])
}

/// `line:column key: message` of each mistake.
fn refused(text: &str) -> Vec<String> {
    let problems = load(text).unwrap_err().0;
    let line = |p: &Problem| {
        let (line, column) = p.place.unwrap();
        format!("{line}:{column} {}: {}", p.key.as_deref().unwrap_or("-"), p.message)
    };
    problems.iter().map(line).collect()
}

const fn mins(n: u64) -> Option<Duration> {
    Some(Duration::from_secs(60 * n))
}

#[test]
fn the_built_in_file_names_every_key_and_gives_the_documented_defaults() {
    let config = Config::built_in().unwrap();
    assert_eq!(config.limits("builder").init_timeout, mins(60));
    assert_eq!(config.limits("lina").init_timeout, mins(40));
    assert_eq!(config.limits("brain").init_timeout, mins(40));
    assert_eq!(config.limits("anything else").init_timeout, mins(30));
    assert_eq!(config.defaults.grace, Duration::from_secs(10));
    let watch = Watch {
        init_action: Action::Kill,
        max_runtime_action: Action::Kill,
        heartbeat_timeout: mins(5),
        heartbeat_action: Action::KillIfIdle,
        idle_timeout: mins(15),
        idle_action: Action::Warn,
        spin_timeout: mins(20),
        spin_action: Action::Warn,
        input_timeout: mins(2),
        input_action: Action::Warn,
        pressure_max_percent: Some(40),
        escapees: Action::Warn,
        dry_run: false,
        agent: AgentWatch {
            loop_max: Some(10),
            loop_action: Action::Warn,
            permission_timeout: mins(2),
            permission_action: Action::Warn,
            turn_timeout: None,
            turn_action: Action::Kill,
            max_turns: None,
            max_turns_action: Action::Kill,
            max_tokens: None,
            max_tokens_action: Action::Kill,
            max_cost_micro_usd: None,
            max_cost_action: Action::Kill,
        },
    };
    assert_eq!(config.defaults.watch, watch);
    let instance = InstanceSettings {
        max_running: None,
        sample_interval: Duration::from_secs(5),
        idle_exit: Some(Duration::from_secs(60)),
        log_max_bytes: 64 << 20,
        max_runs: 10_000,
        backend: None,
    };
    assert_eq!(config.instance, instance);
    assert_eq!(config.retention.max_age, Some(Duration::from_secs(90 * 86_400)));
    assert_eq!(config.retention.max_bytes, Some(1 << 30));
    assert_eq!(config.cgroup, None);

    let names = keys::LIMITS.iter().map(|k| k.0).chain(keys::INSTANCE.iter().map(|k| k.0));
    for name in names.chain(keys::RETENTION.iter().map(|k| k.0)) {
        let lines: Vec<_> = BUILT_IN.lines().collect();
        let at = lines
            .iter()
            .position(|line| line.starts_with(&format!("{name} = ")) || line.starts_with(&format!("{name}.")));
        assert!(at.is_some_and(|at| lines[at - 1].starts_with('#')), "{name} is missing, or has no comment");
    }
    for (name, _) in keys::EXECUTOR {
        let lines: Vec<_> = BUILT_IN.lines().map(|line| line.trim_start_matches("# ")).collect();
        let at = lines.iter().position(|line| line.starts_with(&format!("{name} = ")));
        assert!(at.is_some_and(|at| lines[at - 1].ends_with(['.', ';'])), "{name} is missing, or has no comment");
    }
    assert_eq!(config.executor_of("any", &LimitUpdate::default()), Ok(crate::executor::Executor::Local));
}

#[test]
fn every_key_takes_its_values() {
    let config = load(
        "[defaults]\ninit_timeout = \"off\"\nmax_runtime = \"2h\"\ngrace = \"0s\"\nreadiness = \"exec\"\n\
         memory_max = \"2G\"\ntasks_max = 512\ncpu_max = \"150%\"\nisolate_pids = true\ncleanup.git_locks = true\n\
         idle_timeout = \"off\"\nspin_action = \"kill\"\ndry_run = true\n\
         [workflow.x]\ncleanup = { git_locks = false }\nidle_timeout = \"1h\"\ninput_action = \"off\"\ndry_run = false\nmemory_max = 4096\ntasks_max = \"off\"\ncpu_max = \"off\"\n\
         [instance]\nsample_interval = \"60s\"\nidle_exit = \"off\"\nlog_max = \"64K\"\nmax_runs = 1\nbackend = \"subtree\"\n\
         cgroup = \"/sys/fs/cgroup/mine\"\n[retention]\nmax_age = \"off\"\nmax_size = \"off\"\n",
    )
    .unwrap();
    let limits = config.limits("other");
    assert_eq!((limits.init_timeout, limits.max_runtime, limits.grace), (None, mins(120), Duration::ZERO));
    assert_eq!(limits.readiness, Readiness::Exec);
    let (watch, of_x) = (limits.watch, config.limits("x").watch);
    assert_eq!((watch.idle_timeout, watch.spin_action, watch.dry_run), (None, Action::Kill, true));
    assert_eq!((of_x.idle_timeout, of_x.spin_action, of_x.dry_run), (mins(60), Action::Kill, false));
    assert_eq!((watch.input_action, of_x.input_action), (Action::Warn, Action::Off));
    let resources = Resources { memory_max_bytes: Some(2 << 30), tasks_max: Some(512), cpu_max_percent: Some(150) };
    assert_eq!(limits.resources, resources);
    let resources = Resources { memory_max_bytes: Some(4096), tasks_max: None, cpu_max_percent: None };
    assert_eq!(config.limits("x").resources, resources);
    assert_eq!((config.instance.idle_exit, config.instance.max_runs), (None, 1));
    assert_eq!((config.instance.backend, config.defaults.isolate_pids), (Some(Containment::Subtree), true));
    assert!(limits.cleanup.git_locks && !config.limits("x").cleanup.git_locks);
    assert_eq!(config.cgroup.as_deref(), Some(Path::new("/sys/fs/cgroup/mine")));
    assert_eq!(config.retention, Retention { max_age: None, max_bytes: None });
}

#[test]
fn every_mistake_is_named_with_its_place_and_a_way_out() {
    let text = "\
[defaults]
init_timout = \"5m\"
grace = 10
memory_max = \"-1\"

[workflow.builder]
max_runtime = \"0s\"
zzz = 1

[workflow.\"a/b\"]
[instanse]
";
    assert_eq!(
        refused(text),
        [
            "2:1 defaults.init_timout: is not a key of the configuration: did you mean init_timeout?",
            "3:9 defaults.grace: 10 has no unit: write a text in quotes, such as \"10s\" or \"10%\"",
            "4:14 defaults.memory_max: \"-1\" is not a size: write it as 512M or 2G (powers of 1024), or off",
            "7:15 workflow.builder.max_runtime: zero leaves no time at all: write off to have no limit",
            "8:1 workflow.builder.zzz: is not a key of the configuration: known here are max_running, queue_timeout, init_timeout, \
             max_runtime, init_action, max_runtime_action, heartbeat_timeout, heartbeat_action, idle_timeout, idle_action, spin_timeout, spin_action, input_timeout, \
             input_action, turn_timeout, turn_action, loop_max, loop_action, max_turns, max_turns_action, max_tokens, \
             max_tokens_action, max_cost, max_cost_action, permission_timeout, permission_action, escapees, pressure_max, dry_run, grace, readiness, memory_max, tasks_max, cpu_max, isolate_pids, cleanup, sandbox, credentials, executor",
            "10:11 workflow.a/b: \"a/b\" cannot name a workflow: use 1 to 64 letters, digits, `_`, `.` and `-`, the \
             first not `.` or `-`",
            "11:2 instanse: is not a table of the configuration: did you mean instance?",
        ]
    );
}

#[test]
fn what_is_out_of_range_or_of_another_kind_is_refused() {
    for bad in [
        "defaults = 1",
        "workflow = 1",
        "workflow.x = 1",
        "[defaults]\ninit_timeout = false",
        "[defaults]\nidle_action = \"stop\"",
        "[defaults]\ninput_action = \"kill\"",
        "[defaults]\ndry_run = \"yes\"",
        "[defaults]\npressure_max = 40",
        "[defaults]\ninit_timeout = [\"5m\"]",
        "[defaults]\ngrace = \"25h\"",
        "[defaults]\ngrace = \"off\"",
        "[defaults]\nreadiness = \"ready\"",
        "[defaults]\nheartbeat_action = \"stop\"",
        "[defaults]\nheartbeat_timeout = \"0s\"",
        "[defaults]\nmemory_max = 0",
        "[defaults]\nmemory_max = 1.5",
        "[defaults]\nmemory_max = 0x10",
        "[defaults]\ntasks_max = -1",
        "[defaults]\ntasks_max = 99999999999999999999",
        "[defaults]\ncpu_max = 150",
        "[instance]\nsample_interval = \"999ms\"",
        "[instance]\nsample_interval = \"61s\"",
        "[instance]\nlog_max = \"1K\"",
        "[instance]\nlog_max = \"off\"",
        "[instance]\nmax_runs = 0",
        "[instance]\nmax_runs = 1000001",
        "[instance]\nmax_runs = \"5\"",
        "[instance]\nbackend = \"cgroup\"",
        "[instance]\nbackend = 1",
        "[defaults]\nisolate_pids = \"true\"",
        "[defaults]\ncleanup = true",
        "[defaults]\ncleanup.git_locks = \"yes\"",
        "[defaults]\ncleanup.git_lock = true",
        "[instance]\ncgroup = \"relative\"",
        "[instance]\ncgroup = \"/sys/../etc\"",
        "[retention]\nmax_age = \"59m\"",
        "[retention]\nmax_size = \"15M\"",
    ] {
        assert_eq!(refused(bad).len(), 1, "{bad}");
    }
}

#[test]
fn broken_toml_is_refused_with_its_line() {
    for (bad, line) in
        [("[defaults\n", 1), ("\n\nx = = 1", 3), ("[defaults]\ngrace = \"1s\"\ngrace = \"2s\"", 3), ("\u{0}", 1)]
    {
        let first = refused(bad).remove(0);
        assert!(first.starts_with(&format!("{line}:")), "{bad:?}: {first}");
    }
}

#[test]
fn columns_are_counted_in_characters() {
    assert!(refused("[workflow.\"é\"]\n")[0].starts_with("1:11 "));
    assert!(refused("defaults = { init_timeout = \"é\", nix = 1 }")[1].starts_with("1:34 "));
}

#[test]
fn a_file_that_cannot_be_a_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let message = |file: &Path| Config::load(&[file.to_owned()]).unwrap_err().to_string();
    assert!(message(&file).contains("cannot be read"));
    assert!(message(dir.path()).contains("cannot be read"));
    fs::write(&file, "# ok\n# \u{e9}\n# ".as_bytes().iter().copied().chain([0xff]).collect::<Vec<_>>()).unwrap();
    assert!(message(&file).contains("config.toml:3:3: is not UTF-8"), "{}", message(&file));
    fs::write(&file, vec![b'#'; 1 << 20]).unwrap();
    assert!(Config::load(std::slice::from_ref(&file)).is_ok());
    fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(message(&file).contains("larger than 1 MiB"));
}

#[test]
fn later_files_change_the_keys_they_name_and_no_others() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("guardian");
    let origin = Origin::User(home.path().to_owned());
    assert_eq!(origin.sources(), Ok(vec![]), "nothing there is fine");
    fs::create_dir_all(dir.join("config.d")).unwrap();
    let main = "[defaults]\ninit_timeout = \"5m\"\ngrace = \"1s\"\n[workflow.builder]\nmax_runtime = \"1h\"\n";
    fs::write(dir.join("config.toml"), main).unwrap();
    fs::write(dir.join("config.d/20-b.toml"), "[defaults]\ngrace = \"3s\"\n").unwrap();
    fs::write(dir.join("config.d/10-a.toml"), "[defaults]\ngrace = \"2s\"\n[workflow.builder]\ngrace = \"9s\"")
        .unwrap();
    fs::write(dir.join("config.d/.hidden.toml"), "no").unwrap();
    fs::write(dir.join("config.d/30-c.toml~"), "no").unwrap();
    let sources = origin.sources().unwrap();
    let names: Vec<_> = sources.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["config.toml", "10-a.toml", "20-b.toml"]);
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.defaults.init_timeout, config.defaults.grace), (mins(5), Duration::from_secs(3)));
    let builder = config.limits("builder");
    // 60 min from the built-in file, 1 h from the main file, 9 s from the drop-in.
    assert_eq!(
        (builder.init_timeout, builder.max_runtime, builder.grace),
        (mins(60), mins(60), Duration::from_secs(9))
    );

    fs::write(dir.join("config.d/10-a.toml"), "x = 1").unwrap();
    fs::write(dir.join("config.d/20-b.toml"), "y = 1").unwrap();
    let error = Config::load(&sources).unwrap_err();
    assert_eq!(error.0.len(), 2, "the mistakes of every file: {error}");
    assert_eq!(Origin::File("/x".into()).sources(), Ok(vec![PathBuf::from("/x")]));
}

#[test]
fn the_users_directory_is_the_one_that_xdg_names() {
    let home = |xdg: Option<&str>, home: Option<&str>| user_config_home(xdg.map(Into::into), home.map(Into::into));
    assert_eq!(home(Some("/x"), Some("/h")), Some("/x".into()));
    assert_eq!(home(Some("relative"), Some("/h")), Some("/h/.config".into()));
    assert_eq!(home(Some(""), None), None);
}
