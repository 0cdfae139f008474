//! A terminal with a shell in it, for what only a person at a terminal sees.

use std::process::Command;
use std::time::{Duration, Instant};

use super::host::*;
use super::world::{GUARDIAN, World};

/// A terminal with a shell in it, driven through tmux as a person would.
pub struct Terminal<'a> {
    world: &'a World,
    socket: String,
}

impl<'a> Terminal<'a> {
    /// One of 100 columns and 30 lines.
    pub fn new(world: &'a World) -> Self {
        Self::sized(world, 100, 30)
    }

    /// One of so many columns and lines.
    pub fn sized(world: &'a World, columns: u16, lines: u16) -> Self {
        let socket = world.path("tmux").to_str().unwrap().to_owned();
        let terminal = Self { world, socket };
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let mut tmux = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &lines]);
        // A shell that is not interactive, as tmux's own, takes PS1 out of the environment.
        tmux.arg("exec env PS1='outer> ' bash --norc --noprofile -i");
        tmux.env("GUARDIAN_STATE_DIR", world.state()).env("G", GUARDIAN);
        tmux.env_remove("TMUX").env_remove("PROMPT_COMMAND").current_dir(world.path(""));
        assert!(tmux.status().unwrap().success());
        terminal.shows("outer>");
        terminal
    }

    /// A command of tmux, about this terminal.
    pub fn tmux(&self, args: &[&str]) -> Command {
        let mut tmux = Command::new("tmux");
        // In another locale, what is not ASCII is told as underscores.
        tmux.args(["-S", &self.socket]).args(args).env("LC_ALL", "C.UTF-8");
        tmux
    }

    /// Types keys: tmux's names for them, or text.
    pub fn types(&self, keys: &[&str]) {
        let mut args = vec!["send-keys", "--"];
        args.extend(keys);
        assert!(self.tmux(&args).status().unwrap().success());
    }

    /// Types a line.
    pub fn types_line(&self, text: &str) {
        self.types(&[text, "Enter"]);
    }

    /// The text on the screen.
    pub fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits for a text on the screen.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.shows_that(text, |screen| screen.contains(text));
    }

    /// Waits for a screen such as this.
    #[track_caller]
    pub fn shows_that(&self, what: &str, is: impl Fn(&str) -> bool) {
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
    pub fn is_at_the_prompt(&self) {
        self.ends_with("outer>");
    }

    /// The last line of the screen that is not empty.
    #[track_caller]
    pub fn ends_with(&self, line: &str) {
        self.shows_that(line, |screen| screen.lines().rfind(|l| !l.trim().is_empty()).is_some_and(|l| l == line));
    }

    /// Writes `stty -g` and the last exit status to a file, and gives both.
    #[track_caller]
    pub fn state(&self, file: &str) -> (String, String) {
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
