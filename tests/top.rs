//! `guardian top` as a person has it: in a real terminal, with real runs and real keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Place, Terminal, World, eventually, is_alive, pids, proc_file, python, signal};
use guardian::bus::client::Client;
use guardian::model::{Health, KillMode, LaunchRequest, Phase};
use rustix::process::Signal;

/// The digits of an id that are shown at 80 columns.
fn digits(run: &str) -> &str {
    &run["run_".len()..][..8]
}

/// A run that lives, writes and has a deadline far away; and one that is critical as soon as its limit of a second is over.
fn healthy_and_stuck(world: &World) -> (String, String) {
    let tick = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done";
    let healthy = world.detach(&["--max-runtime", "1h"], &["sh", "-c", tick]);
    let limit = ["--readiness", "notify", "--init-timeout", "1s", "--init-action", "warn"];
    let stuck = world.detach(&limit, &["sh", "-c", "setsid sleep 1000 & sleep 1000"]);
    (healthy, stuck)
}

impl Terminal<'_> {
    #[track_caller]
    fn becomes(&self, columns: u16, lines: u16, what: &str, is: impl Fn(&str) -> bool) {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        assert!(self.tmux(&["resize-window", "-x", &columns, "-y", &lines]).status().unwrap().success());
        self.shows_that(what, is);
    }
}

/// The line of the list that a run has.
fn line<'a>(screen: &'a str, run: &str) -> Option<&'a str> {
    let is_of_the_list = |line: &&str| line.chars().nth(1).is_some_and(|c| "✗!✓".contains(c));
    screen.lines().filter(is_of_the_list).find(|line| line.contains(digits(run)))
}

#[test]
fn a_stuck_run_is_seen_and_ended_by_keys() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let (healthy, stuck) = healthy_and_stuck(&world);
    let terminal = Terminal::sized(&world, 80, 24);
    let (before, _) = terminal.state("before");
    terminal.types_line("$G top");
    terminal.shows_that("both runs, and how they are", |screen| {
        line(screen, &healthy).is_some_and(|line| line.contains('✓') && line.contains("running"))
            && line(screen, &stuck).is_some_and(|line| line.contains('✗') && line.contains("initial"))
            && screen.contains("✗ 1 critical  ! 0 warning  ✓ 1 healthy")
    });
    // The worst is first, its line is below the headings.
    terminal.shows_that("the stuck run first", |screen| {
        let mut lines = screen.lines().skip_while(|line| !line.contains("WORKFLOW")).skip(1);
        lines.next().is_some_and(|line| line.contains(digits(&stuck)))
    });

    terminal.types(&["/"]);
    terminal.types(&[digits(&stuck), "Enter"]);
    terminal.shows_that("the stuck run alone, and why it is critical", |screen| {
        line(screen, &healthy).is_none()
            && line(screen, &stuck).is_some_and(|line| line.starts_with('>'))
            && screen.contains("init_timeout")
            && screen.contains("explain")
            && screen.contains("└─ ")
    });
    // What is not confirmed is not done.
    terminal.types(&["k"]);
    terminal.shows("Why?");
    terminal.types(&["not this time", "Enter"]);
    terminal.shows("is that so?");
    terminal.types(&["n"]);
    terminal.shows("nothing was done");
    assert_eq!(world.show(&stuck).phase, Phase::Initializing);
    terminal.types(&["k"]);
    terminal.shows("Why?");
    terminal.types(&["superseded by #214", "Enter"]);
    terminal.shows("is that so?");
    terminal.types(&["y"]);
    terminal.shows("0 survivors");
    let run = world.show(&stuck);
    assert_eq!((run.phase, run.ended()), (Phase::Finished, "killed(superseded by #214)"), "{run:?}");
    world.assert_killed(&run, "requested");
    assert_eq!(run.receipt().mode, KillMode::Graceful);

    terminal.types(&["Escape"]);
    terminal.shows_that("the healthy run alone", |screen| {
        line(screen, &healthy).is_some_and(|line| line.starts_with('>')) && line(screen, &stuck).is_none()
    });
    assert_eq!(world.show(&healthy).health, Health::Healthy);
    terminal.types(&["q"]);
    terminal.is_at_the_prompt();
    let (after, status) = terminal.state("after");
    assert_eq!((after, status.as_str()), (before, "0"));
    world.guardian(["kill", "--force", &healthy]).exits(0);
    drop(terminal);
    world.assert_nothing_left();
}

#[test]
fn a_run_is_frozen_extended_and_read_by_keys_and_the_screen_may_change_its_size() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let (healthy, stuck) = healthy_and_stuck(&world);
    let terminal = Terminal::sized(&world, 80, 24);
    terminal.types_line("$G top --delay 200ms");
    terminal.shows("✗ 1 critical");
    terminal.types(&["/"]);
    terminal.types(&[digits(&healthy), "Enter"]);
    terminal.shows_that("the healthy run alone", |screen| line(screen, &stuck).is_none());

    terminal.types(&["f"]);
    terminal.shows("is frozen");
    terminal.shows_that("it in the list", |screen| line(screen, &healthy).is_some_and(|line| line.contains("frozen")));
    assert!(world.show(&healthy).frozen);
    terminal.types(&["f"]);
    terminal.shows("goes on");
    assert!(!world.show(&healthy).frozen);

    terminal.types(&["e"]);
    terminal.shows("> max_runtime");
    terminal.types(&["10m", "Enter"]);
    terminal.shows("has 10 min more");

    terminal.types(&["l"]);
    terminal.shows_that("its log as it grows", |screen| screen.contains(": log") && screen.contains("tick "));
    terminal.types(&["Home"]);
    terminal.shows_that("its log from the beginning", |screen| screen.lines().any(|line| line == "tick 1"));
    terminal.types(&["q"]);
    terminal.shows("DEADLINE");
    let is_reader = |pid: &u32| String::from_utf8_lossy(&proc_file(*pid, "cmdline")).contains("logs\0--follow");
    let readers = || world.guardians().into_iter().filter(is_reader).count();
    eventually("nobody reads the log any more", || (readers() == 0).then_some(()));

    terminal.becomes(120, 40, "wide columns", |screen| screen.contains("STATUS, COMMAND") && screen.contains(&healthy));
    terminal.becomes(40, 10, "few columns", |screen| {
        line(screen, &healthy).is_some() && !screen.contains("DEADLINE") && !screen.contains('─')
    });
    terminal.becomes(5, 2, "next to nothing", |screen| !screen.contains("RUN"));
    terminal.becomes(80, 24, "what it was", |screen| screen.contains("DEADLINE") && screen.contains('─'));
    // The instance dies, and the next one is found.
    terminal.types(&["Escape"]);
    world.guardian(["kill", "--force", &stuck]).exits(0);
    terminal.shows("1 kill");
    world.crash_instance();
    terminal.shows_that("the next instance", |screen| {
        screen.contains("0 kills") && line(screen, &healthy).is_some_and(|line| line.contains("running"))
    });
    terminal.types(&["C-c"]);
    terminal.is_at_the_prompt();
    world.guardian(["kill", "--force", &healthy]).exits(0);
    drop(terminal);
    world.assert_nothing_left();
}

/// So many runs, the youngest last; of another workflow and with a name is the one in the middle.
fn many(world: &World, count: usize) -> Vec<String> {
    world.guardian(["ps"]).exits(0);
    let request = |is_middle: bool| LaunchRequest {
        workflow: is_middle.then(|| "builder".to_owned()),
        name: is_middle.then(|| "the needle".to_owned()),
        argv: ["sleep", "1000"].map(|word| word.as_bytes().to_vec()).into(),
        env: vec![format!("GUARDIAN_STATE_DIR={}", world.state().display()).into_bytes()],
        cwd: b"/".to_vec(),
        ..LaunchRequest::default()
    };
    // By the bus: of a command each, most of the time would be that of the command.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&world.state().join("bus.sock")).await.unwrap();
        let mut runs = Vec::new();
        for n in 0..count {
            runs.push(client.start(&request(n == count / 2)).await.unwrap().to_string());
        }
        runs
    })
}

#[test]
fn a_thousand_runs_are_scrolled_filtered_and_sorted_and_a_key_ends_one() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let runs = many(&world, 1000);
    let (oldest, needle, youngest) = (&runs[0], &runs[500], &runs[999]);
    let terminal = Terminal::sized(&world, 80, 24);
    let selects = |what: &str, run: &str| {
        terminal.shows_that(what, |screen| line(screen, run).is_some_and(|line| line.starts_with('>')));
    };
    terminal.types_line("$G top");
    terminal.shows_that("all of them", |screen| {
        screen.contains("1000 live runs") && screen.contains("✗ 0 critical  ! 0 warning  ✓ 1000 healthy")
    });
    selects("the oldest", oldest);
    terminal.types(&["End"]);
    selects("the youngest", youngest);
    terminal.types(&["Up"]);
    selects("the one before it", &runs[998]);
    terminal.types(&["Home", "PageDown"]);
    terminal.shows_that("the second page", |screen| {
        line(screen, &runs[7]).is_some() && line(screen, oldest).is_none() && screen.contains('>')
    });

    terminal.types(&["/"]);
    terminal.types(&["NEEDLE", "Enter"]);
    selects("the one that is looked for", needle);
    terminal.shows("filter \"NEEDLE\": 1 shown");
    terminal.types(&["Escape"]);
    selects("it among all others", needle);
    // By workflow, the other way round: `builder` comes last of two.
    terminal.types(&["<", "r", "End"]);
    terminal.shows("by workflow, reversed");
    selects("the only one of its workflow at the end", needle);

    terminal.types(&["k"]);
    terminal.shows("Why?");
    terminal.types(&["one less", "Enter"]);
    terminal.shows("is that so?");
    terminal.types(&["y"]);
    terminal.shows("0 survivors");
    terminal.shows("999 live runs");
    assert_eq!(world.show(needle).ended(), "killed(one less)");
    terminal.types(&["q"]);
    terminal.is_at_the_prompt();
    let left: Vec<&str> = runs.iter().filter(|run| *run != needle).map(String::as_str).collect();
    world.guardian([&["kill", "--force"], &*left].concat()).exits(0);
    drop(terminal);
    world.assert_nothing_left();
}

#[test]
fn the_terminal_is_given_back_whatever_ends_or_stops_the_view() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let terminal = Terminal::sized(&world, 80, 24);
    let (before, _) = terminal.state("before");
    let pid = || {
        eventually("the view runs", || {
            pids()
                .into_iter()
                .find(|&pid| proc_file(pid, "cmdline").ends_with(b"\0top\0") && world.guardians().contains(&pid))
        })
    };
    for (how, status) in [(Signal::TERM, "143"), (Signal::HUP, "129"), (Signal::INT, "130")] {
        terminal.types_line("$G top");
        terminal.shows("no live runs");
        signal(pid(), how);
        terminal.is_at_the_prompt();
        assert_eq!(terminal.state(status), (before.clone(), status.to_owned()), "{how:?}");
    }
    terminal.types_line("$G top");
    terminal.shows("no live runs");
    terminal.types(&["C-z"]);
    terminal.shows("Stopped");
    assert_eq!(terminal.state("stopped").0, before);
    terminal.types_line("fg");
    terminal.shows_that("the view again", |screen| screen.contains("no live runs") && !screen.contains("outer>"));
    // Stopped by somebody else, and continued by the shell.
    let view = pid();
    signal(view, Signal::STOP);
    terminal.shows("Stopped");
    terminal.types_line("fg");
    terminal.shows_that("the view again", |screen| screen.contains("no live runs") && !screen.contains("Stopped"));
    terminal.types(&["q"]);
    terminal.is_at_the_prompt();
    assert_eq!(terminal.state("quit"), (before, "0".to_owned()));
    assert!(!is_alive(view));
    drop(terminal);
    world.assert_nothing_left();
}

#[cfg(feature = "failpoints")]
#[test]
fn the_terminal_is_given_back_in_a_panic_which_can_be_read() {
    needs_cgroup!();
    needs_program!("tmux");
    let world = World::new();
    let terminal = Terminal::sized(&world, 80, 24);
    let (before, _) = terminal.state("before");
    terminal.types_line("FAILPOINTS='top.draw=2*off->panic(it is broken)' $G top");
    terminal.shows("it is broken");
    terminal.is_at_the_prompt();
    assert_eq!(terminal.state("panicked"), (before, "101".to_owned()));
}

#[test]
fn a_terminal_that_takes_no_output_keeps_no_signal_waiting_for_ever() {
    let world = World::new_in(Place::Subtree);
    world.guardian(["ps"]).exits(0);
    // Nobody reads what is drawn, until the terminal is full; each change of its size is drawn anew.
    let script = r#"
import fcntl, os, pty, signal, struct, sys, termios, time
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
time.sleep(1)
def resize(lines):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 200, 0, 0))
end = time.monotonic() + 30
lines = 40
while True:
    lines = 100 - lines
    resize(lines)
    time.sleep(0.05)
    stacks = [open(f"/proc/{child}/task/{t}/syscall").read().split()[:2] for t in os.listdir(f"/proc/{child}/task")]
    if ["1", "0x1"] in stacks:
        break
    if time.monotonic() > end:
        sys.exit(f"it is not kept from writing: {stacks}")
os.kill(child, signal.SIGTERM)
end = time.monotonic() + 60
while True:
    gone, status = os.waitpid(child, os.WNOHANG)
    if gone:
        break
    if time.monotonic() > end:
        sys.exit("it does not end")
    time.sleep(0.05)
print("ended with", os.waitstatus_to_exitcode(status))
"#;
    let mut command = std::process::Command::new(python());
    command
        .args(["-c", script])
        .arg(world.executable())
        .args(["--private", "--state-dir"])
        .arg(world.state())
        .arg("top");
    let done = command.stdin(std::process::Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&[&*done.stdout, &*done.stderr].concat()).into_owned();
    assert_eq!(said.trim(), "ended with 143");
}

#[test]
fn without_a_terminal_it_says_what_to_type_instead() {
    let world = World::new();
    let piped = world.guardian(["top"]);
    piped.exits(2);
    assert!(piped.stderr.contains("needs a terminal") && piped.stderr.contains("`guardian ps`"), "{piped:?}");
    let json = world.guardian(["top", "--json"]);
    json.exits(2);
    assert!(json.stderr.contains("`guardian ps --json`"), "{json:?}");
    world.guardian(["top", "--delay", "1ms"]).exits(2);
    assert_eq!(world.instance(), None, "nothing was started for it");
}
