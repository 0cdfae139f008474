//! A run in a terminal: an editor, a pager and a shell work inside it, and the terminal is as it was afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{GUARDIAN, World, eventually, is_alive, lines};

/// A terminal with a shell in it, driven through tmux as a person would.
struct Terminal<'a> {
    world: &'a World,
    socket: String,
}

impl<'a> Terminal<'a> {
    fn new(world: &'a World) -> Self {
        let socket = world.path("tmux").to_str().unwrap().to_owned();
        let terminal = Self { world, socket };
        let mut tmux = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30"]);
        // A shell that is not interactive, as tmux's own, takes PS1 out of the environment.
        tmux.arg("exec env PS1='outer> ' bash --norc --noprofile -i");
        tmux.env("GUARDIAN_STATE_DIR", world.state()).env("G", GUARDIAN).env("LC_ALL", "C.UTF-8");
        tmux.env_remove("TMUX").env_remove("PROMPT_COMMAND").current_dir(world.path(""));
        assert!(tmux.status().unwrap().success());
        terminal.shows("outer>");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.args(["-S", &self.socket]).args(args);
        tmux
    }

    /// Types keys: tmux's names for them, or text.
    fn types(&self, keys: &[&str]) {
        let mut args = vec!["send-keys", "--"];
        args.extend(keys);
        assert!(self.tmux(&args).status().unwrap().success());
    }

    fn types_line(&self, text: &str) {
        self.types(&[text, "Enter"]);
    }

    fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        self.shows_that(text, |screen| screen.contains(text));
    }

    #[track_caller]
    fn shows_that(&self, what: &str, is: impl Fn(&str) -> bool) {
        let mut last = String::new();
        let mut polls = 0;
        eventually(what, || {
            last = self.screen();
            polls += 1;
            if polls % 500 == 0 {
                eprintln!("waiting for {what:?} on this screen:\n{last}");
            }
            is(&last).then_some(())
        });
    }

    /// The last line of the screen that is not empty is the outer shell's prompt: it has the terminal again.
    #[track_caller]
    fn is_at_the_prompt(&self) {
        self.ends_with("outer>");
    }

    /// The last line of the screen that is not empty.
    #[track_caller]
    fn ends_with(&self, line: &str) {
        self.shows_that(line, |screen| screen.lines().rfind(|l| !l.trim().is_empty()).is_some_and(|l| l == line));
    }

    /// Writes `stty -g` and the last exit status to a file, and gives both.
    #[track_caller]
    fn state(&self, file: &str) -> (String, String) {
        self.types_line(&format!("echo $? > {file}.status; stty -g > {file}.new; mv {file}.new {file}; clear"));
        let path = self.world.path(file);
        eventually("the shell says how the terminal is set", || path.exists().then_some(()));
        self.is_at_the_prompt();
        (lines(&path)[0].clone(), lines(self.world.path(&format!("{file}.status")))[0].clone())
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // The server and the shell carry the mark of the workloads: they must be gone before anything is asserted.
        let ours = self.tmux(&["display-message", "-p", "#{pid} #{pane_pid}"]).output().unwrap().stdout;
        let ours: Vec<u32> = String::from_utf8_lossy(&ours).split_whitespace().flat_map(str::parse).collect();
        let _ = self.tmux(&["kill-server"]).status();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ours.iter().any(|&pid| is_alive(pid)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

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
