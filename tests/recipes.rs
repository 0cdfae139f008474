//! The examples that people copy, as they are in the packages, against a real instance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::*;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/doc/examples").join(name)
}

/// Python with the examples' modules and `guardian` in its path, asking the world's instance.
fn python(world: &World, script: &str) -> Output {
    let guardian = Path::new(env!("CARGO_BIN_EXE_guardian")).parent().unwrap();
    Command::new("python3")
        .args(["-c", script])
        .env("PYTHONPATH", example(""))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PATH", format!("{}:{}", guardian.display(), std::env::var("PATH").unwrap()))
        .env("GUARDIAN_STATE_DIR", world.state())
        .env("GUARDIAN_INSTANCE", "private")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

#[test]
fn a_python_program_runs_commands_and_loses_none() {
    let world = World::new_in(Place::Subtree);
    world.guardian(["ps"]).exits(0);
    let script = r#"
import subprocess
from guarded import Guarded, run

done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], workflow="ci", name="a name")
assert (done.returncode, done.output, done.limit) == (3, b"out\nerr\n", None), done
assert done.view["workflow"] == "ci" and done.view["name"] == "a name", done.view

# What would be left behind, and hang for ever.
done = run(["sh", "-c", "setsid sleep 1001 & echo up; exec sleep 1000"], timeout=4, grace="1s")
assert (done.returncode, done.output, done.limit) == (124, b"up\n", "max_runtime"), (done.returncode, done.view["outcome"])
assert "max_runtime" in done.sentence, done.sentence

agent = Guarded(["sleep", "1002"], workflow="agent", idle_timeout="15m", idle_action="kill")
try:
    agent.wait(timeout=0.2)
    raise SystemExit("it did not wait")
except subprocess.TimeoutExpired:
    pass
assert agent.show()["phase"] != "finished"
receipt = agent.kill("the user cancelled")
assert "the user cancelled" in str(receipt) and "survivors" in str(receipt), receipt
ended = agent.wait()
assert (ended.returncode, ended.limit) == (137, None), ended.view["outcome"]

try:
    run(["true"], max_runtim="1s")
    raise SystemExit("a mistake was passed over")
except subprocess.CalledProcessError as e:
    assert b"--max-runtim" in e.stderr, e.stderr
try:
    run(["/nowhere/to/be/found"])
    raise SystemExit("nothing was executed")
except subprocess.CalledProcessError as e:
    assert b"/nowhere/to/be/found" in e.stderr, e.stderr
print("all of it")
"#;
    let done = python(&world, script);
    assert!(done.status.success() && said(&done).contains("all of it"), "{}", said(&done));
    world.assert_nothing_left();
}

#[test]
fn programs_say_how_far_they_are() {
    let world = World::new_in(Place::Subtree);
    world.guardian(["ps"]).exits(0);
    let guardian = Path::new(env!("CARGO_BIN_EXE_guardian")).parent().unwrap();
    let path = format!("PATH={}:{}", guardian.display(), std::env::var("PATH").unwrap());
    for (name, heartbeats) in [("heartbeat.sh", 3), ("heartbeat.py", 3)] {
        let program = example(name);
        let run = world.detach(&["--readiness", "notify", "--env", &path], &[program.to_str().unwrap()]);
        world.guardian(["wait", &run]).exits(0);
        let view = world.guardian(["show", "--json", &run]).json();
        let (view, said) = (&view[0], &view[0]["heartbeats"]);
        assert!(view["ready_at"].is_string() && said["total"].as_u64() >= Some(heartbeats), "{name}: {view}");
        assert!(said["status"] == "done" && said["stopping"] == true, "{name}: {said}");
    }
}
