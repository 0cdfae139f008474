//! A run in a terminal: an editor, a pager and a shell work inside it, and the terminal is as it was afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Terminal, World, eventually, lines};

#[test]
fn an_editor_works_inside_a_run() {
    needs_cgroup!();
    needs_program!("tmux");
    needs_program!("vi");
    let vim = if common::find_program("vim").is_some() { "vim" } else { "vi" };
    let world = World::new();
    let terminal = Terminal::new(&world);
    let (before, _) = terminal.state("before");
    terminal.types_line(&format!("$G run -- {vim} -u NONE -i NONE -n letter"));
    terminal.shows("\"letter\"");
    terminal.types(&["i", "Dear Guardian"]);
    terminal.shows("Dear Guardian");
    // Ctrl-C is the editor's, not ours.
    terminal.types(&["C-c"]);
    // An interrupt flushes what is typed right behind it, so the colon is typed until it is there.
    let colon = |screen: &str| screen.lines().rfind(|l| !l.trim().is_empty()).is_some_and(|l| l.starts_with(':'));
    terminal.shows_that("the editor's command line", |screen| {
        let there = colon(screen);
        if !there {
            terminal.types(&[":"]);
            std::thread::sleep(Duration::from_millis(100));
        }
        there
    });
    terminal.types(&["wq", "Enter"]);
    terminal.is_at_the_prompt();
    let (after, status) = terminal.state("after");
    assert_eq!((after, status.as_str()), (before, "0"));
    assert_eq!(lines(world.path("letter")), ["Dear Guardian"]);
    drop(terminal);
    world.assert_nothing_left();
}

#[test]
fn a_pager_works_inside_a_run() {
    needs_cgroup!();
    needs_program!("tmux");
    needs_program!("less");
    let world = World::new();
    let terminal = Terminal::new(&world);
    let (before, _) = terminal.state("before");
    std::fs::write(world.path("book"), (1..=500).map(|i| format!("line {i}.\n")).collect::<String>()).unwrap();
    terminal.types_line("$G run -- less book");
    terminal.shows("line 1.");
    terminal.types(&["G"]);
    terminal.shows("line 500.");
    terminal.types(&["q"]);
    terminal.is_at_the_prompt();
    let (after, status) = terminal.state("after");
    assert_eq!((after, status.as_str()), (before.clone(), "0"));
    // And at the end of a pipe, where standard input is not the terminal.
    terminal.types_line("cat book | $G run -- less");
    terminal.shows("line 1.");
    terminal.types(&["q"]);
    terminal.is_at_the_prompt();
    assert_eq!(terminal.state("piped").0, before);
    drop(terminal);
    world.assert_nothing_left();
}

#[test]
fn a_shell_with_job_control_works_inside_a_run() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let terminal = Terminal::new(&world);
    let (before, _) = terminal.state("before");
    terminal.types_line("PS1='inner> ' $G run -- bash --norc --noprofile -i");
    terminal.shows("inner>");
    // Once it has spoken, it is the shell's foreground job and ^Z is meant for it.
    terminal.types_line("sh -c 'echo begun; exec sleep 1001'");
    terminal.shows_that("begun", |screen| screen.lines().any(|line| line == "begun"));
    terminal.types(&["C-z"]);
    terminal.shows("Stopped");
    terminal.types_line("clear; fg");
    terminal.shows_that("the job again", |screen| screen.contains("sleep 1001") && !screen.contains("Stopped"));
    terminal.types(&["C-c"]);
    terminal.ends_with("inner>");
    terminal.types_line("clear; echo still-$((40+2))");
    terminal.shows("still-42");
    terminal.types_line("exit 3");
    terminal.is_at_the_prompt();
    let (after, status) = terminal.state("after");
    assert_eq!((after, status.as_str()), (before, "3"));
    drop(terminal);
    world.assert_nothing_left();
}

#[test]
fn a_run_can_be_stopped_with_ctrl_z_and_continued() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let terminal = Terminal::new(&world);
    let (before, _) = terminal.state("before");
    terminal.types_line("$G run -- sh -c 'echo $$ > pid; read line; echo got $line; exit 5'");
    eventually("the command runs", || world.path("pid").exists().then_some(()));
    terminal.types(&["C-z"]);
    terminal.shows("Stopped");
    let pid = lines(world.path("pid"))[0].parse().unwrap();
    let state = || common::proc_stat(pid).map(|f| f[0].clone()).unwrap_or_default();
    eventually("the command is stopped too", || (state() == "T").then_some(()));
    terminal.types_line("clear; fg");
    // The shell names the job when it has given it the terminal; what is typed before that may be the shell's.
    terminal.shows_that("the job again", |screen| screen.contains("read line") && !screen.contains("Stopped"));
    terminal.types_line("hello");
    terminal.shows("got hello");
    terminal.is_at_the_prompt();
    let (after, status) = terminal.state("after");
    assert_eq!((after, status.as_str()), (before, "5"));
    drop(terminal);
    world.assert_nothing_left();
}

/// As timeout(1) does. Without a parent in its session it would be an orphaned process group, to which the terminal gives
/// an error.
#[test]
fn a_command_below_a_shim_may_make_a_process_group_of_its_own() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new_in(common::Place::Subtree);
    let terminal = Terminal::new(&world);
    terminal.types_line("$G --backend subtree run -- timeout 1 cat");
    terminal.is_at_the_prompt();
    assert_eq!(terminal.state("after").1, "124");
    drop(terminal);
    world.assert_nothing_left();
}

#[test]
fn ctrl_c_ends_a_run_and_gives_the_terminal_back() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let terminal = Terminal::new(&world);
    let (before, _) = terminal.state("before");
    terminal.types_line("$G run --grace 1s -- sh -c 'setsid sleep 1000 & echo up; sleep 1000'");
    terminal.shows_that("up", |screen| screen.lines().any(|line| line == "up"));
    terminal.types(&["C-c"]);
    terminal.is_at_the_prompt();
    let (after, status) = terminal.state("after");
    assert_eq!(after, before);
    // Ended by the terminal's SIGINT itself, or by our kill, whichever was first.
    assert!(["130", "137"].contains(&status.as_str()), "{status}");
    drop(terminal);
    world.assert_nothing_left();
}

#[test]
fn ctrl_c_ends_a_command_that_ignores_it() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let terminal = Terminal::new(&world);
    terminal.types_line("$G run --grace 500ms -- sh -c 'trap \"\" INT TERM; echo up; sleep 1000; sleep 1000'");
    terminal.shows_that("up", |screen| screen.lines().any(|line| line == "up"));
    terminal.types(&["C-c"]);
    terminal.is_at_the_prompt();
    assert_eq!(terminal.state("after").1, "137");
    drop(terminal);
    let run = world.only_run();
    assert!(run.outcome.as_ref().unwrap().text.contains("^C on the terminal"), "{run:?}");
    world.assert_nothing_left();
}

#[test]
fn a_limit_gives_the_terminal_back_as_it_was() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let terminal = Terminal::new(&world);
    let (before, _) = terminal.state("before");
    // Killed at once, the command cannot set the terminal back: the client does.
    terminal.types_line("$G run --max-runtime 1s --grace 1s -- sh -c 'trap \"\" TERM; stty raw -echo; sleep 1000'");
    terminal.is_at_the_prompt();
    let (after, status) = terminal.state("after");
    assert_eq!((after, status.as_str()), (before, "124"));
    drop(terminal);
    world.assert_nothing_left();
}
