//! Agents, as a shell script that says how far it has come with `guardian heartbeat`: what people are shown of that, and what
//! each rule says and does. With a real instance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Place, World, eventually, python, start};
use guardian::model::{EventKind, Health};
use serde_json::{Value, json};

/// A script that has `say` for `guardian heartbeat`.
fn script(world: &World, lines: &str) -> String {
    format!("say() {{ '{}' heartbeat \"$@\" || exit 99; }}\n{lines}\n", world.executable().display())
}

/// Runs the script in the foreground.
fn agent(world: &World, options: &[&str], lines: &str) -> common::Done {
    world.run(options, &["sh", "-c", &script(world, lines)])
}

/// Each case is one of a rule: the options, what the agent says, and the sentence in which a user is told why it was ended.
#[test]
fn an_agent_is_ended_by_each_rule_and_told_why_in_a_sentence() {
    let world = World::new_in(Place::Subtree);
    let cases: [(&[&str], &str, &str, &str); 6] = [
        (
            &["--turn-timeout", "400ms", "--readiness", "exec"],
            "say --turn 7 --turns-max 30 --tool Bash; sleep 1000",
            "turn_timeout",
            "turn 7 of 30 has taken 400 ms, its turn_timeout: Bash was called last",
        ),
        (
            &["--loop-max", "3", "--loop-action", "kill"],
            "say --tool Bash; for n in 1 2 3; do say --repeats $n --repeated 'npm test'; done; sleep 1000",
            "loop",
            "Bash was called 3 times in a row with the same arguments: npm test",
        ),
        (
            &["--max-turns", "2"],
            "for n in 1 2 3; do say --turn $n; done; sleep 1000",
            "max_turns",
            "it has begun turn 3 of the 2 that max_turns allows",
        ),
        (
            &["--max-tokens", "1000"],
            "say --tokens 1200; sleep 1000",
            "max_tokens",
            "it has used 1200 of the 1000 tokens that max_tokens allows",
        ),
        (
            &["--max-cost", "5.00"],
            "say --cost 4.99; say --cost 5.02; sleep 1000",
            "max_cost",
            "it has cost $5.02 of the $5.00 that max_cost allows",
        ),
        (
            &["--permission-timeout", "400ms", "--permission-action", "kill"],
            "say --waiting 'permission to run rm'; sleep 1000",
            "permission_timeout",
            "it has waited 400 ms for permission to run rm, its permission_timeout",
        ),
    ];
    for (options, lines, rule, sentence) in cases {
        let done = agent(&world, options, lines);
        assert!(done.exits(124).stderr.contains(&format!("was ended: {sentence}\n")), "{done:?}");
        let run = world.runs().into_iter().find(|run| run.ended() == format!("killed({sentence})"));
        let run = run.unwrap_or_else(|| panic!("{:?}", world.runs()));
        world.assert_killed(&run, rule);
        let shown = world.guardian(["show", &run.run_id]).stdout;
        assert!(shown.contains("graceful kill by guardian at ") && shown.contains(sentence), "{shown}");
        let audited = world.audit().into_iter().filter(|row| row.kind == EventKind::KillIntent);
        assert!(audited.clone().any(|row| row.reason == sentence), "{:?}", audited.collect::<Vec<_>>());
    }
    let stats = world.guardian(["stats", "--json"]).list::<Value>().remove(0);
    let kills = &stats["kills"];
    for rule in ["turn_timeout", "loop", "max_turns", "max_tokens", "max_cost", "permission_timeout"] {
        assert_eq!(kills[rule], json!(1), "{stats}");
    }
    world.assert_nothing_left();
}

#[test]
fn an_agent_is_shown_while_it_works_and_when_it_is_done() {
    let world = World::new();
    let lines = "say --ready --session abc --model opus --turn 6 --turns-max 30
say --turn 7 --tokens 1200 --cost 1.25 --tool Bash --repeats 10 --repeated 'npm test'
: > said; while [ ! -e go ]; do sleep 0.02; done
say --repeats 1 --waiting 'permission to run rm'
: > waits; while [ ! -e on ]; do sleep 0.02; done
say --cost 1.50 --result success --result-text 'all is well'";
    let run = world.detach(&["--readiness", "notify"], &["sh", "-c", &script(&world, lines)]);
    eventually("it has said it", || world.path("said").exists().then_some(()));
    let listed = world.guardian(["ps"]).stdout;
    assert!(listed.contains(" turn 7 of 30: Bash "), "{listed}");
    let shown = world.guardian(["show", &run]).stdout;
    for line in [
        "          session  abc\n",
        "            model  opus\n",
        "             turn  7 of 30\n",
        "           tokens  1200\n",
        "             cost  $1.25\n",
        "        last tool  Bash\n",
        "          repeats  10 times in a row: npm test\n",
        "             loop  10, warn\n",
        "permission_timeout  2 min, warn\n",
        "Bash was called 10 times in a row with the same arguments: npm test\n",
    ] {
        assert!(shown.contains(line), "{line:?} is not in\n{shown}");
    }
    assert_eq!(world.show(&run).health, Health::Warning);
    std::fs::write(world.path("go"), "").unwrap();
    eventually("it waits", || world.path("waits").exists().then_some(()));
    let now = world.show(&run);
    assert_eq!((now.health, now.health_reasons.len()), (Health::Healthy, 0), "the loop is over");
    let text = world.guardian(["show", &run]).stdout;
    assert!(text.contains("        waits for  permission to run rm\n"), "{text}");
    std::fs::write(world.path("on"), "").unwrap();
    world.guardian(["wait", &run]).exits(0);
    let progress = world.guardian(["show", "--json", &run]).list::<Value>().remove(0)["progress"].clone();
    let expected = json!({
        "session_id": "abc", "model": "opus", "turns": 7, "turns_max": 30, "tokens": 1200, "cost_micro_usd": 1_500_000,
        "tool": "Bash", "repeats": 1, "repeated": null, "waiting": null,
        "result": {"success": true, "text": "all is well"}, "summary": "turn 7 of 30: done",
    });
    assert_eq!(progress, expected);
    let past = world.guardian(["history"]).stdout;
    assert!(past.contains(" TURNS  COST   COMMAND") && past.contains(" 7      $1.50  "), "{past}");
    let csv = world.guardian(["history", "--csv"]).stdout;
    assert!(csv.lines().nth(1).is_some_and(|row| row.ends_with(",abc,7,1200,1500000,true")), "{csv}");
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let session: String =
        database.query_row("SELECT session_id FROM workflow_processes", [], |row| row.get(0)).unwrap();
    assert_eq!(session, "abc");
    world.assert_nothing_left();
}

#[test]
fn what_an_agent_has_reported_survives_the_instance_and_its_turn_has_all_of_its_time_again() {
    let world = World::new_in(Place::Subtree);
    let lines = "say --session abc --turn 7 --cost 1; : > said; sleep 1000";
    let options = ["--turn-timeout", "1h", "--readiness", "exec"];
    let run = world.detach(&options, &["sh", "-c", &script(&world, lines)]);
    eventually("it has said it", || world.path("said").exists().then_some(()));
    let progress = |world: &World| {
        let shown = world.guardian(["show", "--json", &run]).list::<Value>().remove(0);
        let deadline = shown["deadlines"].as_array().unwrap().iter().find(|d| d["rule"] == "turn_timeout").cloned();
        (shown["progress"].clone(), deadline.expect("it is in a turn")["at_usec"].as_u64().unwrap())
    };
    let before = progress(&world);
    world.crash_instance();
    let after = progress(&world);
    assert_eq!(after.0, before.0);
    assert!(after.1 > before.1, "{after:?} {before:?}");
    let extended = world.guardian(["extend", &run, "turn_timeout", "1h"]);
    assert!(extended.exits(0).stdout.contains("turn_timeout"), "{extended:?}");
    // A time of the one clock is told as one of the other, which is set a little now and then.
    assert!(progress(&world).1 >= after.1 + 3_599_000_000);
    world.guardian(["kill", "--force", &run]).exits(0);
    world.assert_nothing_left();
}

/// Its process is gone before anybody can have heard of it.
#[test]
fn the_last_words_of_an_agent_are_heard_if_it_waits_until_they_are() {
    let world = World::new();
    let say = "
import array, os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def send(data, rights=[]):
    s.sendmsg([data], rights, 0, os.environ['NOTIFY_SOCKET'])
for n in range(40):
    send(b'X_GUARDIAN_TURNS=%d' % n)
send(b'X_GUARDIAN_RESULT=success\\nX_GUARDIAN_RESULT_TEXT=done')
r, w = os.pipe()
send(b'BARRIER=1', [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [w]))])
os.close(w)
assert os.read(r, 1) == b''
os._exit(0)
";
    for _ in 0..5 {
        world.run(&[], &[python(), "-c", say]).exits(0);
    }
    let runs = world.guardian(["history", "--json"]).list::<Value>();
    for run in &runs {
        assert_eq!(
            (&run["progress"]["turns"], &run["progress"]["result"]["text"]),
            (&json!(39), &json!("done")),
            "{run}"
        );
    }
    assert_eq!(runs.len(), 5);
    world.assert_nothing_left();
}

#[test]
fn what_makes_no_sense_on_the_command_line_is_refused_with_what_to_write() {
    let world = World::new();
    for (options, wanted) in [
        (["--max-cost", "5,00"], "write it as 5.00"),
        (["--loop-max", "1"], "from 2"),
        (["--max-turns", "0"], "a whole number from 1"),
        (["--turn-action", "stop"], "off, warn or kill"),
    ] {
        let done = start(&mut world.run_command(&options, &["true"])).wait();
        assert!(done.exits(2).stderr.contains(wanted), "{done:?}");
    }
}
