//! What a run leaves when it is killed: locks of git, files that are half written, and who was ended with it. Told in the
//! receipt, and locks removed where that is asked for and proved. With a real instance and a real git.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{Place, World, eventually, is_alive, pids, start, uid_of};
use guardian::model::is_unsafe;
use serde_json::{Value, json};

/// A process of the test's, which is no run's.
struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A git that nobody has configured.
const GIT: &str = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null; \
                   git() { command git -c user.name=x -c user.email=x@localhost -c gc.auto=0 \"$@\"; }; ";

impl World {
    /// A repository in the working directory, of the run's user.
    fn repository(&self) {
        let made = format!("{GIT} git init --quiet . && echo 1 > file && git add file && git commit --quiet -m one");
        self.run(&[], &["sh", "-c", &made]).exits(0);
    }

    fn is_of_the_user(&self, path: &PathBuf) {
        chown(path, self.uid(), self.uid()).unwrap();
    }

    /// A detached run, once it has made a file.
    fn begun(&self, options: &[&str], script: &str, file: &str) -> String {
        let run = self.detach(&[&["--readiness", "exec"], options].concat(), &["sh", "-c", script]);
        eventually("the run has come so far", || self.path(file).exists().then_some(()));
        run
    }

    /// Kills a run by force, and gives what its receipt says that it leaves, at once.
    #[track_caller]
    fn killed(&self, run: &str) -> Value {
        self.guardian(["kill", "--force", run]).exits(0);
        self.remains(run)
    }

    #[track_caller]
    fn remains(&self, run: &str) -> Value {
        self.guardian(["show", "--json", run]).list::<Value>().remove(0)["receipt"]["remains"].clone()
    }

    fn shown(&self, run: &str) -> String {
        self.guardian(["show", run]).exits(0).stdout.clone()
    }
}

/// The fate of each lock, by its path below the working directory.
fn fates(world: &World, remains: &Value) -> Vec<(String, String, String)> {
    let top = world.path("");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |lock: &Value| {
        let (path, why) = (text(&lock["path"]), text(&lock["why"]));
        let why = if why.ends_with(" has open cannot be seen") { UNSEEN.to_owned() } else { why };
        (path.strip_prefix(top.to_str().unwrap()).unwrap_or(&path).to_owned(), text(&lock["fate"]), why)
    };
    remains["git_locks"].as_array().unwrap_or_else(|| panic!("{remains}")).iter().map(one).collect()
}

fn lock(name: &str, fate: &str, why: &str) -> (String, String, String) {
    (name.to_owned(), fate.to_owned(), why.to_owned())
}

/// Whether what root's processes have open can be seen by root: some hosts keep that of their PID 1 from everybody. Then no lock
/// of root's is proved to be nobody's.
fn all_is_seen(world: &World) -> bool {
    let is_seen = |pid: &u32| {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return !is_alive(*pid) };
        let is_read = |fd: fs::DirEntry| match fs::read(fd.path()) {
            Ok(_) => true,
            Err(e) => e.kind() != std::io::ErrorKind::PermissionDenied,
        };
        fds.flatten().all(is_read)
    };
    world.place() == Place::User || pids().iter().filter(|pid| uid_of(**pid) == Some(0)).all(is_seen)
}

/// The same of one that is proved to be the run's and nobody's any more.
fn proved(world: &World, name: &str, fate: &str) -> (String, String, String) {
    if all_is_seen(world) { lock(name, fate, "") } else { lock(name, "left_alone", UNSEEN) }
}

/// What is told where that cannot be seen, whoever it is.
const UNSEEN: &str = "what somebody has open cannot be seen";

/// A commit whose hook never comes to an end: git holds its lock, and is killed.
const STUCK_COMMIT: &str = "printf '#!/bin/sh\\n: > hooked\\nexec sleep 1000\\n' > .git/hooks/pre-commit; \
                            chmod +x .git/hooks/pre-commit; echo 2 >> file; git commit --quiet -a -m two";
/// What git does next, if it can.
const NEXT_COMMIT: &str = "rm -f hooked .git/hooks/pre-commit; git commit --quiet -a -m three";

macro_rules! in_places {
    ($($name:ident)*) => {
        mod cgroup {
            use super::*;
            $(#[test] fn $name() { super::$name(Place::Root); })*
        }
        mod subtree {
            use super::*;
            $(#[test] fn $name() { super::$name(Place::User); })*
        }
    };
}

in_places! {
    a_commit_that_is_killed_leaves_its_lock_and_the_receipt_says_so
    the_lock_of_a_killed_commit_is_removed_where_that_is_asked_for
    a_lock_that_somebody_else_may_hold_stays_and_is_told_with_the_reason
    nothing_that_a_user_puts_there_leads_elsewhere
    a_file_that_is_open_for_writing_at_the_kill_is_named
    who_is_ended_with_a_run_is_named_by_command
    names_from_a_repository_steer_no_terminal
    a_kill_does_not_wait_for_a_look_that_hangs
    one_that_is_ended_by_a_signal_tells_of_its_locks_too
}

fn a_commit_that_is_killed_leaves_its_lock_and_the_receipt_says_so(place: Place) {
    needs_place!(place);
    needs_program!("git");
    let world = World::new_in(place);
    world.repository();
    let run = world.begun(&[], &format!("{GIT}{STUCK_COMMIT}"), "hooked");
    let remains = world.killed(&run);
    assert_eq!(fates(&world, &remains), [proved(&world, ".git/index.lock", "stale")], "{remains}");
    assert_eq!((&remains["git_locks_total"], &remains["not_looked_at"]), (&json!(1), &json!([])), "{remains}");
    let shown = world.shown(&run);
    let told =
        if all_is_seen(&world) { "nobody holds it: remove it before git is used again\n" } else { "left alone: what " };
    assert!(shown.contains(&format!("/.git/index.lock: {told}")), "{shown}");
    assert!(shown.contains(", 1 git lock left\n"), "{shown}");
    let next = world.run(&[], &["sh", "-c", &format!("{GIT}{NEXT_COMMIT}")]);
    assert!(next.stderr.contains("index.lock': File exists"), "git itself agrees: {next:?}");
    let audit = world.audit();
    assert!(
        audit.iter().any(|row| row.run_id.as_ref() == Some(&run) && row.reason.contains("1 git lock left")),
        "{audit:?}"
    );
    let explained = world.guardian(["explain", &run]).exits(0).stdout.clone();
    assert!(explained.contains(&format!("/.git/index.lock: {told}")), "{explained}");
}

fn the_lock_of_a_killed_commit_is_removed_where_that_is_asked_for(place: Place) {
    needs_place!(place);
    needs_program!("git");
    let world = World::new_in(place);
    let config = world.path("config.toml");
    fs::write(
        &config,
        "[workflow.tidy]\ncleanup.git_locks = true\n[workflow.dry]\ncleanup.git_locks = true\ndry_run = true\n",
    )
    .unwrap();
    start(world.command(["instance", "--detach"]).env("GUARDIAN_CONFIG", &config)).wait().exits(0);
    world.repository();
    let cases: [(&[&str], &str); 4] = [
        (&["--workflow", "tidy"], "removed"),
        (&["--cleanup-git-locks"], "removed"),
        (&["--workflow", "dry"], "stale"),
        (&[], "stale"),
    ];
    for (options, fate) in cases {
        let run = world.begun(options, &format!("{GIT}{STUCK_COMMIT}"), "hooked");
        let remains = world.killed(&run);
        assert_eq!(fates(&world, &remains), [proved(&world, ".git/index.lock", fate)], "{options:?} {remains}");
        let next = world.run(&[], &["sh", "-c", &format!("{GIT}{NEXT_COMMIT}")]);
        let is_removed = fate == "removed" && all_is_seen(&world);
        assert_eq!(next.code == Some(0), is_removed, "{options:?} {next:?}");
        let _ = fs::remove_file(world.path(".git/index.lock"));
    }
    let check = world.run(&[], &["sh", "-c", &format!("{GIT} git fsck --full --no-dangling")]);
    check.exits(0);
}

fn a_lock_that_somebody_else_may_hold_stays_and_is_told_with_the_reason(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    for dir in ["git", "git/refs"] {
        fs::create_dir(world.path(dir)).unwrap();
        world.is_of_the_user(&world.path(dir));
    }
    fs::rename(world.path("git"), world.path(".git")).unwrap();
    let old = world.path(".git/config.lock");
    fs::write(&old, "").unwrap();
    world.is_of_the_user(&old);
    // Times of files have the grain of a tick of the kernel's clock, which is 10 ms at most.
    let is_past =
        |path: &PathBuf| fs::metadata(path).unwrap().created().is_ok_and(|at| at.elapsed().unwrap().as_millis() > 20);
    eventually("the clock has gone on", || is_past(&old).then_some(()));
    let script = "mkfifo .git/HEAD.lock; : > .git/index.lock; : > .git/packed-refs.lock; : > made; exec sleep 1000";
    let run = world.begun(&["--cleanup-git-locks"], script, "made");
    // Another user's lock, and one that a process outside of the run has open.
    let foreign = world.path(".git/shallow.lock");
    if world.place() == Place::User {
        fs::write(&foreign, "").unwrap();
    }
    let mut sleep = Command::new("sleep");
    sleep.arg("1000").stdin(File::open(world.path(".git/index.lock")).unwrap()).stdout(Stdio::null());
    if let Some(uid) = world.uid() {
        std::os::unix::process::CommandExt::uid(&mut sleep, uid);
        std::os::unix::process::CommandExt::gid(&mut sleep, uid);
    }
    let holder = Bystander(sleep.spawn().unwrap());
    drop(sleep);
    let remains = world.killed(&run);
    let mut told = fates(&world, &remains);
    told.sort();
    let held = format!("sleep (pid {}) has it open", holder.0.id());
    let mut expected = vec![
        lock(".git/HEAD.lock", "left_alone", "it is no regular file"),
        lock(".git/config.lock", "left_alone", "it is older than the run"),
        lock(".git/index.lock", "left_alone", &held),
        proved(&world, ".git/packed-refs.lock", "removed"),
    ];
    if world.place() == Place::User {
        expected.push(lock(".git/shallow.lock", "left_alone", "it belongs to uid 0, and not to the run's user"));
    }
    assert_eq!(told, expected, "{remains}");
    for name in ["HEAD", "config", "index"] {
        assert!(fs::symlink_metadata(world.path(&format!(".git/{name}.lock"))).is_ok(), "{name}");
    }
    assert_eq!(world.path(".git/packed-refs.lock").exists(), !all_is_seen(&world));
    drop(holder);
}

/// It is of the same user, and of a group of others: its open files are not shown.
#[test]
fn a_process_whose_open_files_may_not_be_seen_may_hold_any_lock() {
    needs_place!(Place::User);
    let world = World::new_in(Place::User);
    let script = "mkdir .git; : > .git/index.lock; : > made; exec sleep 1000";
    let run = world.begun(&["--cleanup-git-locks"], script, "made");
    let mut sleep = Command::new("sleep");
    std::os::unix::process::CommandExt::uid(&mut sleep, world.uid().unwrap());
    let holder = Bystander(sleep.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let remains = world.killed(&run);
    let why = format!("what sleep (pid {}) has open cannot be seen", holder.0.id());
    assert_eq!(remains["git_locks"][0]["why"], json!(why), "{remains}");
    assert!(world.path(".git/index.lock").exists());
}

fn nothing_that_a_user_puts_there_leads_elsewhere(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let victim = world.path("victim");
    fs::create_dir_all(victim.join("refs")).unwrap();
    for path in [victim.clone(), victim.join("refs")] {
        world.is_of_the_user(&path);
    }
    let link = |to: &str| symlink(&victim, world.path(to)).unwrap();
    let cases = [
        ("ln -s victim .git", "/.git is a symbolic link, which is not followed".to_owned()),
        ("echo 'gitdir: victim' > .git", "which is in no repository around it".to_owned()),
        ("mkfifo .git", "/.git is neither a directory nor a file".to_owned()),
        ("mkdir .git; ln -s ../victim .git/refs", "/.git/refs: there is a symbolic link on the way".to_owned()),
    ];
    for (put, why) in cases {
        let script = format!("rm -rf .git made; {put}; : > victim/index.lock; : > made; exec sleep 1000");
        let _ = fs::remove_file(world.path("made"));
        let run = world.begun(&["--cleanup-git-locks"], &script, "made");
        let remains = world.killed(&run);
        assert_eq!(fates(&world, &remains), [], "{put}: {remains}");
        let unseen = remains["not_looked_at"][0].as_str().unwrap_or_default();
        assert!(unseen.contains(&why), "{put}: {unseen}");
        assert!(victim.join("index.lock").exists(), "{put}");
        let shown = world.shown(&run);
        assert!(shown.contains(&format!("not looked at: {}", &unseen[..20])), "{shown}");
    }
    // The directory itself is another one by the time when it is looked at.
    link("link");
    let moved = format!("{}/link", world.path("").display());
    let script = format!("mkdir -p sub; cd sub; rmdir ../sub; ln -s {moved} ../sub; : > ../moved; exec sleep 1000");
    fs::create_dir_all(victim.join(".git")).unwrap();
    fs::write(victim.join(".git/index.lock"), "").unwrap();
    fs::create_dir(world.path("sub")).unwrap();
    world.is_of_the_user(&world.path("sub"));
    let sub = world.path("sub").to_str().unwrap().to_owned();
    let run =
        world.begun(&["--cleanup-git-locks", "--cwd", &sub], &script.replace("mkdir -p sub; cd sub; ", ""), "moved");
    let remains = world.killed(&run);
    let unseen = remains["not_looked_at"][0].as_str().unwrap_or_default();
    assert!(unseen.contains("/sub: there is a symbolic link on the way"), "{remains}");
    assert!(victim.join(".git/index.lock").exists());
}

fn a_file_that_is_open_for_writing_at_the_kill_is_named(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    // What is done with, read only, deleted, or no file is not half written; nor is the run's own log.
    let script = "echo all > done; exec 3> half; printf 12345 >&3; exec 4< done; exec 5> gone; rm gone; exec 6<> /dev/null; \
                  mkfifo fifo; exec 7<> fifo; echo output; : > ready; exec sleep 1000";
    let run = world.begun(&[], script, "ready");
    let remains = world.killed(&run);
    let files = remains["files"].as_array().unwrap_or_else(|| panic!("{remains}"));
    assert_eq!((files.len(), &remains["files_total"]), (1, &json!(1)), "{remains}");
    let half = world.path("half");
    assert_eq!(
        (&files[0]["path"], &files[0]["size_bytes"], &files[0]["name"]),
        (&json!(half), &json!(5), &json!("sleep"))
    );
    let shown = world.shown(&run);
    let line = format!("may be half written: {}, 5 bytes, by sleep (pid {})\n", half.display(), files[0]["pid"]);
    assert!(shown.contains(&line), "{shown}");
    // Of many some are named, and it is said how many there are.
    let many = "for n in $(seq 30); do sleep 1000 > many$n & done; wait";
    let run = world.begun(&[], &format!("{many} & : > ready2; wait"), "ready2");
    eventually("all are open", || world.path("many30").exists().then_some(()));
    let remains = world.killed(&run);
    assert_eq!(
        (remains["files"].as_array().map(Vec::len), &remains["files_total"]),
        (Some(16), &json!(30)),
        "{remains}"
    );
    let shown = world.shown(&run);
    assert!(shown.contains("14 more open for writing\n"), "{shown}");
}

fn who_is_ended_with_a_run_is_named_by_command(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let servers = "sleep 1001 & sleep 1002 & : > servers; ";
    let run = world.begun(&[], &format!("{servers} wait"), "servers");
    eventually("the servers run", || (world.shown(&run).matches(" sleep (parent ").count() == 2).then_some(()));
    let remains = world.killed(&run);
    let others = remains["others"].as_str().unwrap_or_default();
    assert!(others.contains("sleep 1001 (pid ") && others.contains("sleep 1002 (pid "), "{remains}");
    assert!(!others.contains("sh -c"), "the run itself is not with itself: {others}");
    assert!(world.shown(&run).contains(&format!("ended with it: {others}\n")));
    // What the main process has left behind when it exited.
    let done = world.run(&["--grace", "5s"], &["sh", "-c", &format!("{servers} sleep 0.2; exit 3")]);
    done.exits(3);
    let left = world.runs().into_iter().find(|run| run.outcome.as_ref().is_some_and(|o| o.kind == "exited")).unwrap();
    let shown = world.shown(&left.run_id);
    assert!(shown.contains("left behind by it, and ended: sleep 1001 (pid "), "{shown}");
    world.assert_nothing_left();
}

fn names_from_a_repository_steer_no_terminal(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let name = r"a\n\033[2J\377b";
    let script = format!(
        "mkdir -p .git/refs; n=$(printf '{name}'); : > \".git/refs/$n.lock\"; exec 3> \"$n\"; : > made; exec sleep 1000"
    );
    let run = world.begun(&[], &script, "made");
    let remains = world.killed(&run);
    let shown = world.shown(&run);
    assert!(shown.contains("/.git/refs/a\\n\\u{1b}[2J") && shown.contains("/work/a\\n\\u{1b}[2J"), "{shown}");
    assert!(!shown.chars().any(|c| c != '\n' && is_unsafe(c)), "{shown:?}");
    let told = format!("{}{}", remains["git_locks"][0]["path"], remains["files"][0]["path"]);
    assert!(told.contains("refs/a\\n\\u001b[2J\u{fffd}b.lock") && told.contains("work/a\\n\\u001b[2J"), "{told}");
    let json = world.guardian(["show", "--json", &run]).exits(0).stdout.clone();
    assert!(!json.chars().any(|c| c != '\n' && is_unsafe(c)), "{json:?}");
}

fn a_kill_does_not_wait_for_a_look_that_hangs(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    start(world.command(["instance", "--detach"]).env("FAILPOINTS", "locks.look=sleep(3000)")).wait().exits(0);
    let script = "mkdir .git; : > .git/index.lock; : > made; exec sleep 1000";
    let run = world.begun(&["--cleanup-git-locks"], script, "made");
    let begun = std::time::Instant::now();
    let remains = world.killed(&run);
    assert!(begun.elapsed().as_millis() < 2900, "{:?}", begun.elapsed());
    let dir = world.path("made").parent().unwrap().to_owned();
    let why = format!("locks of git in {}: to look there took too long", dir.display());
    assert_eq!(remains["not_looked_at"], json!([why]), "{remains}");
    // Nothing is removed that was told to nobody, when the look comes back.
    std::thread::sleep(std::time::Duration::from_secs(3).saturating_sub(begun.elapsed()));
    let second = world.run(&[], &["sh", "-c", "test -e .git/index.lock"]);
    second.exits(0);
}

fn one_that_is_ended_by_a_signal_tells_of_its_locks_too(place: Place) {
    needs_place!(place);
    let world = World::new_in(place);
    let script = "mkdir -p .git; : > .git/index.lock; kill -KILL $$";
    let run = world.begun(&["--cleanup-git-locks"], script, ".git");
    world.guardian(["wait", &run]);
    let shown = world.shown(&run);
    let told = if all_is_seen(&world) { "removed, because nobody holds it" } else { "left alone: what " };
    assert!(shown.contains("notice  git lock: ") && shown.contains(&format!("/.git/index.lock: {told}")), "{shown}");
    assert_eq!(world.path(".git/index.lock").exists(), !all_is_seen(&world));
    // One that ends as it likes has tidied up, or left on purpose what is there.
    let run = world.begun(&["--cleanup-git-locks"], ": > .git/index.lock; : > over; exit 1", "over");
    world.guardian(["wait", &run]);
    assert!(!world.shown(&run).contains("git lock"));
    assert!(world.path(".git/index.lock").exists());
}
