//! What a run may rely on: its files are whole after a kill, its client's end is its end, its exit status and streams
//! pass through, and nothing of it outlives it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Stdio;
use std::time::Duration;

use common::{World, eventually, is_alive, lines, python, signal, start};
use guardian::model::{EventKind, KillMode, Phase};
use rustix::process::Signal;

/// A script of tests/workloads.
fn script(name: &str) -> String {
    format!("{}/tests/workloads/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs a writer that ignores SIGTERM until `cgroup.kill` ends it in the middle of its work.
fn killed_in_the_middle_of(world: &World, writer: &str, mode: &str) {
    let options = ["--max-runtime", "2s", "--grace", "100ms"];
    let done = world.run(&options, &[python(), &script("writer.py"), writer, mode]);
    done.exits(124);
    world.assert_nothing_left();
    let run = world.only_run();
    world.assert_killed(&run, "max_runtime");
    assert!(run.receipt().killed >= 1, "the writer was to be killed, not to end by itself");
}

/// The number of writes that the workload was told are safe.
fn acknowledged(world: &World) -> usize {
    let count = std::fs::read(world.path("acknowledged")).unwrap().len();
    assert!(count > 10, "only {count} writes before the kill");
    count
}

#[test]
fn what_was_fsynced_before_a_kill_is_whole() {
    needs_cgroup!();
    let world = World::new();
    killed_in_the_middle_of(&world, "append", "");
    let acknowledged = acknowledged(&world);
    let file = std::fs::read(world.path("records")).unwrap();
    assert!(file.len() >= acknowledged * 64, "{} bytes for {acknowledged} records of 64", file.len());
    for (i, record) in file.chunks(64).take(acknowledged).enumerate() {
        assert_eq!(String::from_utf8_lossy(record), format!("{i:063}\n"));
    }
}

#[test]
fn a_file_that_is_replaced_by_rename_is_the_old_or_the_new_one() {
    needs_cgroup!();
    let world = World::new();
    killed_in_the_middle_of(&world, "rename", "");
    let acknowledged = acknowledged(&world);
    let file = lines(world.path("document"));
    let number: usize = file[0].parse().unwrap();
    assert!(number + 1 >= acknowledged, "document {number} after {acknowledged} were safe");
    assert_eq!(file.len(), 1000);
    assert!(file.iter().all(|line| *line == file[0]), "a torn document");
}

fn a_database_survives(mode: &str) {
    needs_cgroup!();
    let world = World::new();
    killed_in_the_middle_of(&world, "sqlite", mode);
    let acknowledged = acknowledged(&world);
    let database = rusqlite::Connection::open(world.path("workload.db")).unwrap();
    let integrity: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
    let committed: i64 = database.query_row("SELECT count(DISTINCT batch) FROM t", [], |row| row.get(0)).unwrap();
    assert!(committed as usize >= acknowledged, "{committed} transactions, {acknowledged} acknowledged");
    let torn: i64 = database
        .query_row("SELECT count(*) FROM (SELECT 1 FROM t GROUP BY batch HAVING count(*) <> 50)", [], |row| row.get(0))
        .unwrap();
    assert_eq!(torn, 0, "transactions that are there in part");
}

#[test]
fn a_database_in_wal_mode_survives_a_kill() {
    a_database_survives("wal");
}

#[test]
fn a_database_with_a_rollback_journal_survives_a_kill() {
    a_database_survives("delete");
}

/// A tree that says when it is up, notes SIGTERM, and ends by it.
const NOTES_SIGTERM: [&str; 3] =
    ["sh", "-c", "trap 'echo TERM > noted; exit 0' TERM; setsid sleep 1000 & sleep 1000 & : > up; wait"];

#[test]
fn a_client_killed_with_sigkill_takes_its_run_with_it() {
    needs_cgroup!();
    let world = World::new();
    let client = start(&mut world.run_command(&["--grace", "1s"], &NOTES_SIGTERM));
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    signal(client.pid(), Signal::KILL);
    assert_eq!(client.wait().code, None);
    let runs = world.finished();
    world.assert_killed(&runs[0], "client_gone");
    assert_eq!(lines(world.path("noted")), ["TERM"], "a graceful kill");
    world.assert_nothing_left();
}

fn a_signal_to_the_client_ends_the_run_gracefully(how: Signal) {
    needs_cgroup!();
    let world = World::new();
    let client = start(&mut world.run_command(&["--grace", "5s"], &NOTES_SIGTERM));
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    // A shell that was forked just now has its parent's trap, and SIGTERM would be lost on it.
    let sleeps =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep");
    eventually("its children are executed", || {
        (world.workload().iter().filter(|p| sleeps(p)).count() == 2).then_some(())
    });
    signal(client.pid(), how);
    client.wait().exits(137);
    world.assert_nothing_left();
    let run = world.only_run();
    world.assert_killed(&run, "requested");
    let receipt = run.receipt();
    assert_eq!((receipt.mode, receipt.terminated, receipt.killed), (KillMode::Graceful, 3, 0), "{receipt:?}");
    assert_eq!(lines(world.path("noted")), ["TERM"]);
}

#[test]
fn sigterm_to_the_client_ends_the_run_gracefully() {
    a_signal_to_the_client_ends_the_run_gracefully(Signal::TERM);
}

#[test]
fn sigint_to_the_client_ends_the_run_gracefully() {
    a_signal_to_the_client_ends_the_run_gracefully(Signal::INT);
}

#[test]
fn a_detached_run_outlives_its_client_and_keeps_its_output_and_status() {
    needs_cgroup!();
    let world = World::new();
    let waits = "echo out; echo err >&2; while [ ! -e go ]; do sleep 0.01; done; echo end; exit 7";
    let run = world.detach(&[], &["sh", "-c", waits]);
    eventually("the first output is in the log", || {
        let logged = world.guardian(["logs", &run]);
        (logged.exits(0).stdout == "out\nerr\n").then_some(())
    });
    assert_ne!(world.show(&run).phase, Phase::Finished);
    std::fs::write(world.path("go"), "").unwrap();
    world.guardian(["wait", &run]).exits(7);
    assert_eq!(world.guardian(["logs", &run]).exits(0).stdout, "out\nerr\nend\n");
    assert_eq!(world.show(&run).ended(), "exited(7)");
    // It may be shortened, with or without what all ids share.
    let short = &run[..8];
    assert_eq!(world.show(short).run_id, run);
    assert_eq!(world.show(&run[4..]).run_id, run);
    world.assert_nothing_left();
}

#[test]
fn a_run_without_output_is_ended_by_its_init_timeout() {
    needs_cgroup!();
    let world = World::new();
    world.run(&["--init-timeout", "1s", "--grace", "1s"], &["sleep", "1000"]).exits(124);
    world.assert_killed(&world.only_run(), "init_timeout");
    world.run(&["--init-timeout", "3s"], &["sh", "-c", "echo ready; sleep 4"]).exits(0);
    world.assert_nothing_left();
}

#[test]
fn exit_statuses_and_signals_pass_through() {
    needs_cgroup!();
    let world = World::new();
    let not_executable = world.path("not-executable");
    std::fs::write(&not_executable, "#!/bin/sh\n").unwrap();
    let cases: &[(&[&str], i32)] = &[
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "ulimit -c 0; kill -SEGV $$"], 139),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["no-such-command-anywhere"], 127),
        (&["/no/such/file"], 127),
        (&[not_executable.to_str().unwrap()], 126),
        (&["/"], 126),
    ];
    for (command, code) in cases {
        let done = world.run(&[], command);
        assert_eq!(done.code, Some(*code), "{command:?}: {done:?}");
    }
    world.assert_nothing_left();
}

#[test]
fn standard_streams_pass_through_untouched() {
    needs_cgroup!();
    let world = World::new();
    let done = world.run(&[], &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(done.exits(0).stdout, "out\n");
    assert!(done.stderr.starts_with("err\n") || done.stderr.ends_with("err\n"), "{done:?}");

    let mut command = world.run_command(&[], &["cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut cat = command.spawn().unwrap();
    let sent: String = (0..200_000).map(|i| format!("{i}\n")).collect();
    let mut stdin = cat.stdin.take().unwrap();
    let to_send = sent.clone();
    let sender = std::thread::spawn(move || stdin.write_all(to_send.as_bytes()));
    let output = cat.wait_with_output().unwrap();
    sender.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == sent.as_bytes(), "{} bytes of {}", output.stdout.len(), sent.len());
    world.assert_nothing_left();
}

#[test]
fn environment_and_working_directory_can_be_set_and_are_not_stored() {
    needs_cgroup!();
    let world = World::new();
    let options = ["--env", "SECRET=pa55word-of-the-test", "--cwd", "/usr"];
    let done = world.run(&options, &["sh", "-c", "echo $SECRET $PWD"]);
    assert_eq!(done.exits(0).stdout, "pa55word-of-the-test /usr\n");
    let run = world.detach(&options, &["sh", "-c", "test ${#SECRET} = 20 && pwd"]);
    world.guardian(["wait", &run]).exits(0);
    assert_eq!(world.guardian(["logs", &run]).exits(0).stdout, "/usr\n");
    for file in std::fs::read_dir(world.state()).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(8).any(|w| w == b"pa55word"), "{} holds the environment", file.display());
    }
}

#[test]
fn an_instance_killed_with_sigkill_is_followed_by_one_that_takes_up_its_runs() {
    needs_cgroup!();
    let world = World::new();
    let detached = world.detach(&["--grace", "1s"], &NOTES_SIGTERM);
    eventually("the workload is up", || world.path("up").exists().then_some(()));
    let first = world.running_instance();
    world.crash_instance();
    assert_eq!(world.workload().len(), 3, "runs go on without an instance");
    assert_ne!(world.show(&detached).phase, Phase::Finished);
    assert_ne!(world.running_instance(), first);
    assert_eq!(world.audited(EventKind::RunAdopted), 1);
    world.guardian(["kill", &detached, "--reason", "the test is over"]).exits(0);
    let runs = world.finished();
    world.assert_killed(&runs[0], "requested");
    assert_eq!(runs[0].ended(), "killed(the test is over)");
    assert_eq!(lines(world.path("noted")), ["TERM"]);
    world.assert_nothing_left();
    world.assert_audit_holds();
    assert!(!is_alive(first));
}

#[test]
fn an_instance_that_hangs_holds_up_neither_an_exit_nor_a_signal() {
    needs_cgroup!();
    let world = World::new();
    world.run(&[], &["true"]).exits(0);
    let instance = world.running_instance();
    rustix::fs::mkfifoat(rustix::fs::CWD, world.path("go"), rustix::fs::Mode::RWXU).unwrap();
    let exits = start(&mut world.run_command(&[], &["sh", "-c", "echo up > exits; read x < go; exit 7"]));
    let sleeps = start(&mut world.run_command(&[], &["sh", "-c", "echo up > sleeps; exec sleep 1000"]));
    eventually("the workloads are up", || ["exits", "sleeps"].iter().all(|f| world.path(f).exists()).then_some(()));
    signal(instance, Signal::STOP);
    signal(sleeps.pid(), Signal::TERM);
    std::fs::write(world.path("go"), "\n").unwrap();
    let (exits, sleeps) = (exits.wait(), sleeps.wait());
    signal(instance, Signal::CONT);
    assert!(exits.exits(7).stderr.contains("no instance watched it"), "{exits:?}");
    assert!(sleeps.exits(143).stderr.contains("is watched by no instance"), "{sleeps:?}");
    world.finished();
    world.assert_nothing_left();
}

/// As systemd leaves it, which removes an empty scope at once.
#[test]
fn a_run_that_ended_unseen_is_waited_for_until_it_is_known_to_be_lost() {
    needs_cgroup!();
    let world = World::new();
    let run = world.detach(&[], &["sh", "-c", "while [ ! -e go ]; do sleep 0.01; done"]);
    let cgroup = world.show(&run).cgroup.unwrap().path;
    world.crash_instance();
    std::fs::write(world.path("go"), "").unwrap();
    eventually("its cgroup can be removed", || std::fs::remove_dir(&cgroup).ok());
    world.guardian(["wait", &run]).exits(125);
    assert!(world.show(&run).ended().starts_with("lost("), "{:?}", world.show(&run));
}

#[test]
fn a_start_that_was_left_to_an_instance_which_was_killed_is_made_again() {
    needs_cgroup!();
    let world = World::new();
    std::fs::DirBuilder::new().mode(0o700).create(world.state()).unwrap();
    // As an instance leaves it that is killed at its start: an earlier one's socket, on which nobody listens.
    drop(std::os::unix::net::UnixListener::bind(world.state().join("bus.sock")).unwrap());
    let lock = std::fs::File::create(world.state().join("instance.lock")).unwrap();
    lock.lock().unwrap();
    let client = start(&mut world.run_command(&[], &["true"]));
    std::thread::sleep(Duration::from_millis(300));
    drop(lock);
    let done = client.wait();
    assert!(done.exits(0).took < Duration::from_secs(5), "{done:?}");
}

#[test]
fn an_instance_whose_socket_was_removed_is_named() {
    needs_cgroup!();
    let world = World::new();
    let run = world.detach(&[], &["sleep", "1000"]);
    let instance = world.running_instance();
    std::fs::remove_file(world.state().join("bus.sock")).unwrap();
    let refused = world.guardian(["ps"]);
    assert!(refused.exits(11).stderr.contains(&format!("`kill {instance}`")), "{refused:?}");
    signal(instance, Signal::TERM);
    world.guardian(["kill", &run]).exits(0);
    world.assert_nothing_left();
}

#[test]
fn a_process_that_moved_to_another_cgroup_is_told_of() {
    needs_cgroup!();
    let world = World::new();
    // Needs root: only who may write there can leave.
    let root = common::cgroup2_mount().unwrap().join("cgroup.procs");
    if std::fs::OpenOptions::new().write(true).open(&root).is_err() {
        return;
    }
    let script = format!("sleep 1000 <&- >&- 2>&- & echo $! > {}; echo $! > escapee; exit 3", root.display());
    let done = world.run(&[], &["sh", "-c", &script]);
    let escapee: u32 = lines(world.path("escapee"))[0].parse().unwrap();
    signal(escapee, Signal::KILL);
    assert!(done.exits(3).stderr.contains(&format!("sleep (pid {escapee}) left the cgroup of run_")), "{done:?}");
}
