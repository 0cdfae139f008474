//! Real programs that are stuck, each with a sentence that names the true cause: in a cgroup and below a shim.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{TcpListener, TcpStream};

use common::{Place, World, eventually, python};
use guardian::model::{EventKind, Phase};
use serde_json::Value;

impl World {
    fn stuck(&self, how: &[&str]) -> String {
        let script = self.script("stuck.py");
        self.detach(&["--readiness", "exec"], &[&[python(), &script], how].concat())
    }

    fn explained(&self, run: &str) -> Value {
        self.guardian(["explain", "--json", run]).json()
    }

    /// The sentence, once it has all of this: a program needs a moment to get stuck.
    #[track_caller]
    fn says(&self, run: &str, all: &[&str]) -> String {
        let mut last = String::new();
        let told = eventually(&format!("the sentence has {all:?}"), || {
            let told = self.explained(run)["explanation"].as_str().unwrap().to_owned();
            if told != last {
                eprintln!("it says: {told}");
                last.clone_from(&told);
            }
            all.iter().all(|text| told.contains(text)).then_some(told)
        });
        self.guardian(["kill", "--force", run]).exits(0);
        told
    }
}

fn deadlock_of_two_mutexes(world: &World) {
    let run = world.stuck(&["mutexes"]);
    let told = world.says(&run, &["is deadlocked: thread ", "waits for a lock that thread", "(futex)"]);
    assert!(told.starts_with("python3"), "{told}");
}

fn deadlock_of_locks_without_owner(world: &World) {
    let run = world.stuck(&["locks"]);
    world.says(&run, &["is deadlocked: all its 3 threads wait on futexes that no other process can wake"]);
}

fn thread_for_which_the_main_one_waits(world: &World) {
    let run = world.stuck(&["thread"]);
    world.says(&run, &["sleeps for another 16 min", " in its thread "]);
}

fn read_from_a_terminal(world: &World) {
    let run = world.stuck(&["terminal"]);
    world.says(&run, &["both processes sleep; ", "for which python3", "waits to read from the terminal /dev/pts/"]);
}

fn read_from_a_pipe_that_nobody_writes(world: &World) {
    // A user may not look into the processes of others.
    let nobody = match world.place() {
        Place::User => "that nobody else was found to write: it has the other end open itself (fd ",
        _ => "that nobody writes: it has the other end open itself (fd ",
    };
    let run = world.stuck(&["pipe"]);
    world.says(&run, &["waits to read from a pipe ", nobody]);
    let run = world.detach(&["--readiness", "exec"], &["sh", "-c", "mkfifo f; exec 3<>f; read x <&3"]);
    world.says(&run, &["waits to read from the FIFO ", "/work/f ", nobody, "(fd 0, read)"]);
}

fn processes_that_wait_for_each_other(world: &World) {
    let run = world.stuck(&["circle"]);
    let told =
        world.says(&run, &["both processes sleep; ", " wait for each other: the first waits to read from a pipe"]);
    assert_eq!(told.matches("python3 (pid ").count(), 3, "{told}");
}

fn server_that_never_answers(world: &World) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let run = world.stuck(&["tcp", &port]);
    world.says(&run, &[&format!("waits on a TCP read from 127.0.0.1:{port} (fd 3, recvfrom)")]);
    for (how, call) in [("select", "select"), ("poll", "poll"), ("epoll", "epoll")] {
        let run = world.stuck(&["polling", how, &port]);
        let told = world.says(&run, &[&format!("a TCP connection to 127.0.0.1:{port}"), call]);
        assert_eq!(told.contains("one of 2 descriptors"), how == "epoll", "{told}");
    }
}

fn server_that_takes_no_connection(world: &World) {
    let server = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&server, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&server, 0).unwrap();
    let address = TcpListener::from(server);
    let port = address.local_addr().unwrap().port();
    // The queue is full after a connection or two, and then the kernel drops what asks for one.
    let _full: Vec<TcpStream> = (0..8)
        .map_while(|_| {
            let to = ([127, 0, 0, 1], port).into();
            TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300)).ok()
        })
        .collect();
    let run = world.stuck(&["connect", &port.to_string()]);
    world.says(&run, &[&format!("waits for 127.0.0.1:{port} to answer a TCP connect, in SYN_SENT (fd 3, connect)")]);
}

fn lock_that_another_process_holds(world: &World) {
    let path = world.path("locked");
    let file = std::fs::File::create(&path).unwrap();
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
    file.lock().unwrap();
    let run = world.detach(&["--readiness", "exec"], &["flock", path.to_str().unwrap(), "true"]);
    let holder = format!("(pid {}) holds", std::process::id());
    let told = world.says(&run, &["flock (pid ", "waits for a lock on ", "/work/locked (fd 3, flock) that ", &holder]);
    assert!(!told.contains("(gone)"), "{told}");
    drop(file);
    // Taken by a process that is gone, and held by one that inherited the file.
    let script = "exec 9>held; flock 9; sleep 1000 & flock held true";
    let run = world.detach(&["--readiness", "exec"], &["sh", "-c", script]);
    world.says(&run, &["sleep (pid ", ", whose lock on ", "/work/held ", "flock (pid ", "waits for, sleeps for "]);
}

fn busy_loop(world: &World) {
    let run = world.stuck(&["busy"]);
    let told = world.says(&run, &["1 of 2 processes runs; python3 (pid ", "computes: ", " % of a core over 1"]);
    assert!(!told.contains("waits"), "{told}");
}

fn wait_for_a_stuck_child(world: &World) {
    let run = world.detach(&["--readiness", "exec"], &["sh", "-c", "sleep 1000; true"]);
    world
        .says(&run, &["both processes sleep; sleep (pid ", ", for which sh (pid ", " waits, sleeps for 16 min 40 s ("]);
    let run = world.detach(&["--readiness", "exec"], &["sh", "-c", "sleep 1000 | cat; true"]);
    world.says(&run, &["all 3 processes sleep; sleep (pid ", "cat (pid ", " wait, sleeps for 16 min 40 s ("]);
}

fn stopped_process(world: &World) {
    let run = world.stuck(&["stopped"]);
    world.says(&run, &["python3 (pid ", ") is stopped by a signal (SIGSTOP or alike) until it is sent SIGCONT"]);
}

fn frozen_run(world: &World) {
    let run = world.detach(&["--readiness", "exec"], &["sleep", "1000"]);
    world.guardian(["freeze", &run]).exits(0);
    let frozen = ["its only process is frozen until the run is thawed; sleep (pid "];
    let stopped = ["sleep (pid ", "is stopped by a signal"];
    world.says(&run, if world.place() == Place::Root { &frozen } else { &stopped });
}

fn datagram_that_nobody_sends(world: &World) {
    let run = world.stuck(&["datagram"]);
    world.says(&run, &["waits to read from the unix socket waits.sock (fd 3, recvfrom)"]);
}

/// A server of the run's own user, outside of the run.
fn unix_server_that_never_answers(world: &World) {
    let path = world.path("server.sock");
    let server = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
    let accepting = std::thread::spawn(move || server.accept().unwrap());
    let run = world.stuck(&["unix", path.to_str().unwrap()]);
    let _connection = accepting.join().unwrap();
    // A user may not look into who has the other end.
    let me = match world.place() {
        Place::User => format!("waits to read from a unix socket to {} (fd 3, recvfrom)", path.display()),
        _ => format!("(pid {}) at {} (fd 3, recvfrom)", std::process::id(), path.display()),
    };
    world.says(&run, &["waits to read from a unix socket to ", &me]);
}

fn name_that_is_made_to_steer_terminals(world: &World) {
    let run = world.stuck(&["named", "x"]);
    let told = eventually("it has its name and its argument", || {
        let text = world.guardian(["explain", &run]).exits(0).stdout.clone();
        (text.contains("title") && text.contains("run_0: ok")).then_some(text)
    });
    assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
    assert!(told.lines().all(|line| !line.starts_with("run_0: ok")), "{told}");
    assert!(told.contains(r"\u{1b}[2J\nrun_0: ok (pid "), "{told}");
    world.guardian(["kill", "--force", &run]).exits(0);
    let shown = world.guardian(["show", &run]).exits(0).stdout.clone();
    assert!(shown.contains(r"explanation: \u{1b}[2J\nrun_0: ok (pid "), "{shown}");
}

/// What was seen before the first signal is kept: in the receipt, the record and the audit.
fn kill_keeps_what_was_seen(world: &World) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let cause = format!("waits on a TCP read from 127.0.0.1:{port} (fd 3, recvfrom)");
    let script = world.script("stuck.py");
    let run = world.detach(
        &["--readiness", "exec", "--grace", "10m"],
        &["sh", "-c", "trap 'echo terminated' TERM; \"$@\"; sleep 1000", "sh", python(), &script, "tcp", &port],
    );
    eventually("it is stuck", || world.explained(&run)["explanation"].as_str()?.contains(&cause).then_some(()));
    world.guardian(["kill", "--no-wait", &run]).exits(0);
    // In its grace only the shell and what it starts then are left, and it can be explained too.
    eventually("it is explained in its grace", || {
        let told = world.explained(&run);
        let phase = world.show(&run).phase;
        (phase == Phase::Stopping && told["explanation"].as_str()?.contains("sleep (pid ")).then_some(())
    });
    world.guardian(["kill", "--force", &run]).exits(0);
    let kept = world.explained(&run);
    assert!(kept["explanation"].as_str().unwrap().contains(&cause), "{kept}");
    assert_eq!(kept["kept"], true);
    let seen = &kept["evidence"]["processes"];
    let client = seen.as_array().unwrap().iter().find(|p| p["name"] == "python3").unwrap();
    let on = &client["threads"][0]["wait"]["on"];
    assert_eq!((on["kind"].as_str(), on["fd"].as_i64()), (Some("file"), Some(3)), "{client}");
    assert_eq!(on["file"]["peer"], format!("127.0.0.1:{port}"));
    assert!(client["command"].as_str().unwrap().contains("stuck.py tcp"), "{client}");
    let row = world.audit().into_iter().find(|r| r.kind == EventKind::KillTerminated).unwrap();
    assert!(row.reason.contains(&cause), "{row:?}");
    let history = world.guardian(["history", "--json"]).json();
    assert!(history[0]["receipt"]["explanation"].as_str().unwrap().contains(&cause), "{history}");
    world.guardian(["explain", &run]).exits(0);
}

/// A run that is silent is told from one that was never heard.
fn last_heartbeat_and_last_output(world: &World) {
    let guardian = env!("CARGO_BIN_EXE_guardian");
    let script = "printf 'begun\\n\\033[2Jstep 7 of 9\\n\\n'; \"$0\" heartbeat --status 'at work'; sleep 1000";
    let run = world.detach(&["--readiness", "exec"], &["sh", "-c", script, guardian]);
    let details = eventually("both are told", || {
        let told = world.explained(&run);
        let details = told["details"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_owned());
        let details: Vec<String> = details.collect();
        (details.iter().any(|d| d.starts_with("last heartbeat "))
            && told["explanation"].as_str()?.contains("sleep (pid "))
        .then_some(details)
    });
    let starting = |with: &str| details.iter().find(|d| d.starts_with(with)).cloned().unwrap_or_default();
    assert!(starting("last heartbeat ").ends_with(" ago, status: at work"), "{details:?}");
    assert!(starting("last output ").ends_with(r" ago: \u{1b}[2Jstep 7 of 9"), "{details:?}");
    world.guardian(["kill", "--force", &run]).exits(0);
    let quiet = world.detach(&["--readiness", "exec"], &["sleep", "1000"]);
    eventually("its silence is told", || {
        let told = world.guardian(["explain", &quiet]).exits(0).stdout.clone();
        (told.contains("no output so far") && !told.contains("last heartbeat")).then_some(())
    });
    world.guardian(["kill", "--force", &quiet]).exits(0);
}

fn run_that_ended_by_itself_has_nothing_to_explain(world: &World) {
    world.run(&[], &["true"]).exits(0);
    let run = world.only_run().run_id;
    let done = world.guardian(["explain", &run]);
    done.exits(4);
    assert!(done.stderr.contains("was not killed"), "{done:?}");
    world.guardian(["explain", "run_000000000000"]).exits(3);
}

macro_rules! causes {
    ($place:expr; $($name:ident)*) => {
        $(#[test]
        fn $name() {
            needs_place!($place);
            needs_program!("flock");
            super::$name(&World::new_in($place));
        })*
    };
}

macro_rules! everywhere {
    ($($name:ident)*) => {
        mod cgroupfs {
            use super::*;
            causes!(Place::Root; $($name)*);
        }

        mod subtree {
            use super::*;
            causes!(Place::Subtree; $($name)*);
        }

        mod user {
            use super::*;
            causes!(Place::User; $($name)*);
        }
    };
}

everywhere! {
    deadlock_of_two_mutexes
    deadlock_of_locks_without_owner
    thread_for_which_the_main_one_waits
    read_from_a_terminal
    read_from_a_pipe_that_nobody_writes
    processes_that_wait_for_each_other
    server_that_never_answers
    server_that_takes_no_connection
    busy_loop
    wait_for_a_stuck_child
    stopped_process
    frozen_run
    datagram_that_nobody_sends
    unix_server_that_never_answers
    name_that_is_made_to_steer_terminals
    kill_keeps_what_was_seen
    last_heartbeat_and_last_output
    run_that_ended_by_itself_has_nothing_to_explain
}

mod only {
    use super::*;

    mod cgroupfs {
        use super::*;
        causes!(Place::Root; lock_that_another_process_holds);
    }

    fn lock_that_another_process_holds(world: &World) {
        super::lock_that_another_process_holds(world);
    }

    /// A look that is not allowed is no error, and what is known is said.
    #[test]
    fn what_a_user_may_not_look_into_is_said_to_be_unreadable() {
        needs_place!(Place::User);
        let world = World::new_in(Place::User);
        let run = world.stuck(&["private"]);
        world.says(&run, &["python3 (pid ", "waits for something that cannot be read here"]);
    }
}
