//! Agents as runs: the stand-in of `claude` in tests/agents and one that the configuration alone describes, in a cgroup and
//! below a shim, in the foreground and detached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Done, Place, Run, World, eventually, is_alive, signal, start};
use guardian::model::Phase;
use rustix::process::Signal;

/// Worlds of the places that can be made here, each with the configuration of the agents.
fn worlds() -> impl Iterator<Item = Agents> {
    [Place::Root, Place::Subtree].into_iter().filter_map(|place| match place.can_be_made() {
        Ok(()) => Some(Agents::new(World::new_in(place))),
        Err(why) => {
            common::cannot_run(&format!("{place:?}: {why}"));
            None
        }
    })
}

struct Agents {
    world: World,
    config: PathBuf,
}

impl Agents {
    fn new(world: World) -> Self {
        let claude = world.path("claude-stand-in");
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agents/claude"), &claude).unwrap();
        std::fs::set_permissions(&claude, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = world.path("config.toml");
        let text = format!(
            "[defaults]\ngrace = \"2s\"\n[workflow.brain]\nexecutor = \"claude-cli\"\n[workflow.lina]\nexecutor = \"inhouse\"\n\
             [executor.claude-cli]\ncommand = {:?}\n\
             [workflow.described]\nexecutor = \"described\"\n[executor.described]\nprogress = \"jsonl\"\n{DESCRIBED}\
             [executor.inhouse]\nprogress = \"jsonl\"\nready = \"/event=ready\"\nturn = \"/event=turn\"\ntool = \"/tool\"\ndone = \"/event=done\"\n",
            claude.to_str().unwrap()
        );
        std::fs::write(&config, text).unwrap();
        // The first command starts the instance, and with it what it reads.
        start(world.command(["ps"]).env("GUARDIAN_CONFIG", &config)).wait().exits(0);
        Self { world, config }
    }

    /// `guardian run` of an agent, with its mode as its prompt.
    fn command(&self, mode: &str, options: &[&str], command: &[&str]) -> Command {
        let prompt = self.world.path("prompt");
        std::fs::write(&prompt, mode).unwrap();
        let before = ["--workflow", "brain", "--prompt-file", prompt.to_str().unwrap()];
        let mut command = self.world.run_command(&[&before, options].concat(), command);
        command.env("GUARDIAN_CONFIG", &self.config);
        command
    }

    #[track_caller]
    fn run(&self, mode: &str, options: &[&str]) -> Done {
        start(&mut self.command(mode, options, &["claude"])).wait()
    }

    #[track_caller]
    fn detach(&self, mode: &str) -> String {
        let done = self.run(mode, &["--detach"]);
        done.exits(0).stdout.trim().to_owned()
    }

    #[track_caller]
    fn has_status(&self, run: &str, status: &str) -> Run {
        eventually(&format!("{run} says {status:?}"), || {
            let run = self.world.show(run);
            (run.heartbeats.status == status).then_some(run)
        })
    }
}

/// How the in-house agent of `described` writes what the rules look at.
const DESCRIBED: &str = "ready = \"/hello\"\nsession = \"/hello/session\"\nturn = \"/did=turn\"\ntool = \"/call/name\"\n\
    tool_input = \"/call/arguments\"\ncost_usd = \"/spent/usd\"\ntokens = [\"/spent/tokens\"]\ntotals = true\n\
    waiting = \"/asks\"\nerror = \"/failed\"\ndone = \"/bye\"\nsuccess = \"/bye=well\"\n";

/// That agent, in the modes of the stand-in of `claude`.
const INHOUSE: &str = r#"
import json, sys, time
def say(**line):
    print(json.dumps(line), flush=True)
mode = sys.argv[1]
if mode != "before_init":
    say(hello={"session": "s-1"})
if mode == "in_turn":
    say(did="turn"); say(call={"name": "Bash", "arguments": {"command": "npm test"}})
for n in range(1, 13):
    if mode in ("looping", "failing"):
        arguments = {"command": "npm test" if mode == "looping" else f"npm test -- {n}"}
        say(did="turn"); say(call={"name": "Bash", "arguments": arguments})
        if mode == "failing":
            say(failed="No such file or directory")
        time.sleep(0.05)
if mode == "permission":
    say(did="turn"); say(asks="permission to run rm")
if mode == "costly":
    say(did="turn"); say(spent={"usd": 4.99, "tokens": 100}); say(spent={"usd": 5.02, "tokens": 200})
time.sleep(1000)
"#;

/// Each way of being stuck that no counter shows, by the stand-in of `claude` and by an agent that the configuration describes:
/// ended by its rule, with the sentence that says what was seen, and nothing left.
#[test]
fn agents_that_are_stuck_are_ended_by_the_rule_for_it_and_told_why() {
    let turn = ["--turn-timeout", "700ms", "--turn-action", "kill"];
    let repeats = ["--loop-max", "5", "--loop-action", "kill"];
    let asks = ["--permission-timeout", "700ms", "--permission-action", "kill"];
    let cases: [(&str, &[&str], &str, &str); 7] = [
        ("before_init", &["--init-timeout", "1s"], "init_timeout", "init_timeout"),
        ("in_turn", &turn, "turn_timeout", "turn 1 has taken 700 ms, its turn_timeout: Bash was called last"),
        ("looping 12", &repeats, "loop", "times in a row with the same arguments: "),
        ("failing 12", &repeats, "loop", "No such file or directory"),
        ("permission", &asks, "permission_timeout", "it has waited 700 ms for permission"),
        ("ignoring", &turn, "turn_timeout", "turn 1 has taken 700 ms, its turn_timeout"),
        ("looping 12", &["--max-turns", "5", "--loop-max", "off"], "max_turns", " of the 5 that max_turns allows"),
    ];
    for agents in worlds() {
        let ended = |done: Done, rule: &str, sentence: &str| {
            assert!(done.exits(124).stderr.contains(sentence), "{sentence}: {done:?}");
            // The newest is the first.
            let run = agents.world.runs().remove(0);
            agents.world.assert_killed(&run, rule);
            assert!(run.ended().contains(sentence), "{run:?}");
        };
        for (mode, options, rule, sentence) in cases {
            ended(agents.run(mode, options), rule, sentence);
            let mode = mode.split(' ').next().unwrap();
            // Of the in-house one there is none that is deaf.
            if mode != "ignoring" {
                let options = [&["--workflow", "described"], options].concat();
                let mut command = agents.world.run_command(&options, &[common::python(), "-c", INHOUSE, mode]);
                ended(start(command.env("GUARDIAN_CONFIG", &agents.config)).wait(), rule, sentence);
            }
        }
        let options = ["--workflow", "described", "--max-cost", "5.00"];
        let mut command = agents.world.run_command(&options, &[common::python(), "-c", INHOUSE, "costly"]);
        let done = start(command.env("GUARDIAN_CONFIG", &agents.config)).wait();
        ended(done, "max_cost", "it has cost $5.02 of the $5.00 that max_cost allows");
        agents.world.assert_nothing_left();
    }
}

/// What it has cost and how many turns it took is what it said; a line of 50 MB is passed on as it is.
#[test]
fn an_agents_cost_and_turns_are_told_as_it_reported_them() {
    for agents in worlds() {
        agents.run("healthy 4", &[]).exits(0);
        let progress = |agents: &Agents| {
            let run = agents.world.runs().remove(0).run_id;
            agents.world.guardian(["show", "--json", &run]).json()[0]["progress"].clone()
        };
        let told = progress(&agents);
        assert_eq!((&told["turns"], &told["cost_micro_usd"]), (&4.into(), &50_000.into()), "{told}");
        assert_eq!((&told["result"]["success"], &told["tool"]), (&true.into(), &serde_json::Value::Null), "{told}");
        let long = agents.run("long_line", &[]);
        let line = long.exits(0).stdout.lines().max_by_key(|line| line.len()).unwrap();
        assert!(line.len() > 50 << 20 && line.contains(&"x".repeat(50 << 20)));
        let told = progress(&agents);
        assert_eq!((&told["turns"], &told["result"]["success"]), (&2.into(), &true.into()), "{told}");
        agents.world.assert_nothing_left();
    }
}

#[test]
fn an_agents_output_is_passed_on_and_its_progress_is_known() {
    for agents in worlds() {
        let done = agents.run("healthy 4", &["--model", "opus", "--max-turns", "9"]);
        let lines: Vec<serde_json::Value> = done.list();
        assert_eq!(
            (lines[0]["subtype"].as_str(), lines[0]["model"].as_str()),
            (Some("init"), Some("opus")),
            "{done:?}"
        );
        assert_eq!(lines.last().unwrap()["num_turns"], 4);
        let run = agents.world.only_run();
        assert_eq!((run.heartbeats.status.as_str(), run.ended()), ("finished with success", "exited(0)"));
        let shown = agents.world.guardian(["show", "--json", &run.run_id]).json();
        let shown = shown.get(0).unwrap_or(&shown)["command"].to_string();
        assert_eq!(shown, r#"["claude","--model=opus","--max-turns=9"]"#);
        agents.world.assert_nothing_left();
    }
}

#[test]
fn a_detached_agent_reads_its_prompt_and_is_ready_when_it_says_so() {
    for agents in worlds() {
        let run = agents.detach("healthy 3");
        agents.world.guardian(["wait", &run]).exits(0);
        agents.has_status(&run, "finished with success");
        let log = agents.world.guardian(["logs", &run]);
        assert!(log.exits(0).stdout.contains("\"All is done.\""), "{log:?}");
        let silent = agents.run("before_init", &["--detach", "--init-timeout", "1s"]).exits(0).stdout.trim().to_owned();
        agents.world.guardian(["wait", &silent]).exits(124);
        agents.world.assert_killed(&agents.world.show(&silent), "init_timeout");
        agents.world.assert_nothing_left();
    }
}

#[test]
fn a_kill_ends_an_agent_with_all_that_it_has_started_whether_it_listens_or_not() {
    for agents in worlds() {
        let run = agents.detach("in_turn");
        agents.has_status(&run, "turn 1: Bash");
        let main = agents.world.show(&run).main_process.unwrap().pid;
        agents.world.guardian(["kill", &run, "--reason", "a test"]).exits(0);
        let ended = agents.world.show(&run);
        agents.world.assert_killed(&ended, "requested");
        // The relay and the agent; its server ends with it, and may have done so before its own signal comes.
        assert!(ended.receipt().terminated >= 2 && !is_alive(main), "{ended:?}");
        let deaf = agents.detach("ignoring");
        agents.has_status(&deaf, "turn 1");
        agents.world.guardian(["kill", &deaf]).exits(0);
        agents.world.assert_killed(&agents.world.show(&deaf), "requested");
        agents.world.assert_nothing_left();
    }
}

#[test]
fn what_an_agent_leaves_behind_does_not_keep_its_run_and_is_ended() {
    for agents in worlds() {
        let done = agents.run("orphans", &[]);
        done.exits(0);
        assert!(done.stdout.contains("\"subtype\": \"success\""), "{done:?}");
        let run = agents.world.only_run();
        assert_eq!((run.phase, run.heartbeats.status.as_str()), (Phase::Finished, "finished with success"));
        agents.world.assert_nothing_left();
    }
}

#[test]
fn when_the_client_of_an_agent_dies_so_does_all_of_the_agent() {
    for agents in worlds() {
        let client = start(&mut agents.command("in_turn", &[], &["claude"]));
        let run = eventually("the agent is in its turn", || {
            agents.world.runs().into_iter().find(|run| run.heartbeats.status == "turn 1: Bash")
        });
        signal(client.pid(), Signal::KILL);
        client.wait();
        agents.world.finished();
        assert_eq!(agents.world.show(&run.run_id).receipt().survivors, 0);
        agents.world.assert_nothing_left();
    }
}

#[test]
fn a_command_that_cannot_be_executed_is_told_as_without_a_relay() {
    for agents in worlds() {
        for (command, code) in [("no-such-agent", 127), ("/etc", 126)] {
            let told = |executor: &str| {
                let mut process = agents.world.run_command(&["--executor", executor], &[command]);
                start(process.env("GUARDIAN_CONFIG", &agents.config)).wait()
            };
            let (direct, relayed) = (told("local"), told("inhouse"));
            assert_eq!((relayed.code, &relayed.stderr), (Some(code), &direct.stderr), "{direct:?}");
            let detached = |executor: &str| {
                let mut process = agents.world.run_command(&["--detach", "--executor", executor], &[command]);
                let done = start(process.env("GUARDIAN_CONFIG", &agents.config)).wait();
                // The id is another one.
                (
                    done.code,
                    done.stderr.split_once(": ").map(|(_, rest)| rest.replace(|c: char| c.is_ascii_hexdigit(), "")),
                )
            };
            assert_eq!(detached("inhouse"), detached("local"));
        }
        agents.world.assert_nothing_left();
    }
}

#[test]
fn an_agent_that_the_configuration_describes_is_read_without_code() {
    let script = "echo starting; echo '{\"event\":\"ready\"}'; echo '{\"event\":\"turn\",\"tool\":\"grep\"}'; \
                  while [ ! -e go ]; do sleep 0.05; done; echo '{\"event\":\"done\"}'; exit 5";
    for agents in worlds() {
        let mut command = agents.world.run_command(&["--detach", "--workflow", "lina"], &["sh", "-c", script]);
        let run = start(command.env("GUARDIAN_CONFIG", &agents.config)).wait().exits(0).stdout.trim().to_owned();
        agents.has_status(&run, "turn 1: grep");
        assert_eq!(agents.world.show(&run).phase, Phase::Running);
        std::fs::write(agents.world.path("go"), "").unwrap();
        agents.world.guardian(["wait", &run]).exits(5);
        agents.has_status(&run, "finished with success");
        assert!(agents.world.guardian(["logs", &run]).stdout.starts_with("starting\n{\"event\":\"ready\"}\n"));
        agents.world.assert_nothing_left();
    }
}

#[test]
fn what_cannot_be_read_is_refused_before_anything_is_started() {
    let agents = Agents::new(World::new_in(Place::Subtree));
    for (options, command, part) in [
        (&["--executor", "codex"][..], "claude", "there is no executor \"codex\""),
        (&["--executor", "a/b"], "claude", "is not the name of an executor"),
        (&["--prompt-file", "/no/such/prompt"], "claude", "--prompt-file /no/such/prompt: cannot be read"),
    ] {
        let mut process = agents.world.run_command(options, &[command]);
        let done = start(process.env("GUARDIAN_CONFIG", &agents.config)).wait();
        assert!(done.exits(125).stderr.contains(part), "{done:?}");
    }
    let mut process = agents.command("healthy", &[], &["claude", "--output-format", "text"]);
    let done = start(&mut process).wait();
    assert!(done.exits(125).stderr.contains("leave --output-format text out, or use --executor local"), "{done:?}");
    assert!(agents.world.runs().is_empty());
    agents.world.assert_nothing_left();
}
