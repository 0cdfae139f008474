//! What runs say of themselves, by whatever speaks sd_notify(3): systemd-notify, Python, `guardian heartbeat` in a script; in
//! a cgroup and below a shim. And what is not taken: of others, too much, too long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use common::{Place, Run, World, eventually, proc_file, python, start};
use guardian::model::{EventKind, Health, Phase, Refused};

const PLACES: [Place; 3] = [Place::Root, Place::Subtree, Place::User];

/// Worlds of all places that can be made here.
fn worlds() -> impl Iterator<Item = World> {
    PLACES.into_iter().filter_map(|place| match place.can_be_made() {
        Ok(()) => Some(World::new_in(place)),
        Err(why) => {
            common::cannot_run(&format!("{place:?}: {why}"));
            None
        }
    })
}

/// sd_notify(3) by hand.
const SAY: &str = "
import array, os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text, fds=[]):
    data = text if isinstance(text, bytes) else text.encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
    s.sendmsg([data], rights, 0, os.environ['NOTIFY_SOCKET'])
def barrier():
    r, w = os.pipe()
    say('BARRIER=1', [w])
    os.close(w)
    assert os.read(r, 1) == b''
    os.close(r)
def wait(name):
    while not os.path.exists(name):
        time.sleep(0.01)
def done(name):
    open(name, 'w').close()
";

/// Starts a detached run of Python that can say something, and waits until it has said it.
fn detach(world: &World, options: &[&str], script: &str) -> String {
    let script = format!("{SAY}{script}\nbarrier()\ndone('said')\ntime.sleep(1000)\n");
    let run = world.detach(options, &[python(), "-c", &script]);
    eventually("it has said it", || world.path("said").exists().then_some(()));
    run
}

/// The notify socket of a run, by the environment of its main process.
fn socket_of(run: &Run) -> PathBuf {
    let environ = proc_file(run.main_process.unwrap().pid, "environ");
    let entry = environ.split(|b| *b == 0).find_map(|e| e.strip_prefix(b"NOTIFY_SOCKET=")).expect("a NOTIFY_SOCKET");
    PathBuf::from(String::from_utf8(entry.to_vec()).unwrap())
}

fn end(world: &World, run: &str) {
    world.guardian(["kill", "--force", run]).exits(0);
    // With what contained it, which is after its end was told.
    let left = || std::fs::read_dir(world.state().join("notify")).unwrap().count();
    eventually("its socket is removed", || (left() == 0).then_some(()));
    world.assert_nothing_left();
}

#[test]
fn systemd_notify_works_in_a_run_and_ready_is_what_is_waited_for() {
    needs_program!("systemd-notify");
    for world in worlds() {
        let script = "echo output; while [ ! -e go ]; do sleep 0.01; done; \
                      systemd-notify --ready --status='step 1 of 2'; : > said; sleep 1000";
        let run = world.detach(&["--readiness", "notify"], &["sh", "-c", script]);
        eventually("its output is there", || (world.guardian(["logs", &run]).stdout == "output\n").then_some(()));
        assert_eq!(world.show(&run).phase, Phase::Initializing, "output does not make it ready");
        std::fs::write(world.path("go"), "").unwrap();
        eventually("systemd-notify has returned", || world.path("said").exists().then_some(()));
        let shown = world.show(&run);
        assert_eq!(
            (shown.phase, shown.heartbeats.status.as_str()),
            (Phase::Running, "step 1 of 2"),
            "{:?}",
            world.place()
        );
        end(&world, &run);
    }
}

#[test]
fn a_script_says_how_it_is_and_it_is_told_when_guardian_heartbeat_returns() {
    for world in worlds() {
        let executable = world.executable().display().to_string();
        let script = format!(
            "'{executable}' heartbeat --ready --status 'one' && : > one; while [ ! -e go ]; do sleep 0.01; done; \
             '{executable}' heartbeat --status two && '{executable}' heartbeat --stopping && : > two; sleep 1000"
        );
        let run = world.detach(&["--readiness", "notify"], &["sh", "-c", &script]);
        eventually("it has said one", || world.path("one").exists().then_some(()));
        let shown = world.show(&run);
        assert_eq!((shown.phase, shown.heartbeats.total, shown.heartbeats.status.as_str()), (Phase::Running, 1, "one"));
        std::fs::write(world.path("go"), "").unwrap();
        eventually("it has said two", || world.path("two").exists().then_some(()));
        let said = world.show(&run).heartbeats;
        assert_eq!((said.total, said.status.as_str(), said.stopping), (2, "two", true), "{:?}", world.place());
        let text = world.guardian(["show", &run]).stdout;
        let listed = world.guardian(["ps"]).stdout;
        assert!(listed.contains(" two "), "{listed}");
        assert!(text.contains("heartbeats  2, the last at") && text.contains("status  two"), "{text}");
        // Heartbeats are no events.
        world.assert_audited(EventKind::RunReady, 1);
        end(&world, &run);
    }
}

#[test]
fn guardian_heartbeat_says_when_it_is_not_inside_a_run() {
    let world = World::new();
    let mut command = world.command(["heartbeat"]);
    command.env_remove("GUARDIAN_RUN_ID").env("NOTIFY_SOCKET", "/run/systemd/notify");
    let done = start(&mut command).wait();
    assert!(done.exits(2).stderr.contains("this is not inside a run"), "{done:?}");
}

#[test]
fn a_foreground_run_has_a_socket_of_its_own_whatever_its_client_inherited() {
    for world in worlds() {
        let script = format!(
            "{SAY}say('WATCHDOG=1\\nSTATUS=\\x1b[31mred\\nERRNO=2\\nMAINPID=1\\nUNKNOWN=1')\nbarrier()\n\
             print(os.environ['NOTIFY_SOCKET'], os.environ.get('WATCHDOG_PID'), os.environ['WATCHDOG_USEC'])\n"
        );
        let mut command = world.run_command(&[], &[python(), "-c", &script]);
        command.env("NOTIFY_SOCKET", "/nowhere").env("WATCHDOG_PID", "1").env("WATCHDOG_USEC", "7");
        let done = start(&mut command).wait();
        let run = world.only_run();
        let socket = world.state().join("notify").join(&run.run_id);
        assert_eq!(done.exits(0).stdout, format!("{} None 300000000\n", socket.display()));
        let said = &run.heartbeats;
        assert_eq!((said.total, said.status.as_str(), said.errno), (1, "\u{fffd}[31mred", Some(2)));
        assert!(run.notices.iter().any(|n| n.contains("MAINPID")), "{run:?}");
        assert!(done.stderr.contains("MAINPID= was refused"), "{done:?}");
        world.assert_nothing_left();
    }
}

#[test]
fn who_is_not_of_the_run_says_nothing_for_it() {
    // As root in both, whom no mode of a file keeps out: it is the sender that is looked at.
    for place in [Place::Root, Place::Subtree] {
        needs_place!(place);
        let world = World::new_in(place);
        let run = detach(&world, &["--readiness", "notify"], "say('WATCHDOG=1')");
        let socket = socket_of(&world.show(&run));
        let outside = UnixDatagram::unbound().unwrap();
        outside.send_to(b"READY=1\nSTATUS=lies", &socket).unwrap();
        // Nor is another run of the same user.
        let other = format!("{SAY}os.environ['NOTIFY_SOCKET'] = {socket:?}\nsay('WATCHDOG=1')\nbarrier()\n");
        world.run(&[], &[python(), "-c", &other]).exits(0);
        let shown = world.show(&run);
        assert_eq!(
            shown.heartbeats.refused,
            Refused { foreign: 3, ..Refused::default() },
            "the barrier is refused as well"
        );
        assert_eq!(
            (shown.phase, shown.heartbeats.total, shown.heartbeats.status.as_str()),
            (Phase::Initializing, 1, "")
        );
        let text = world.guardian(["show", &run]).stdout;
        assert!(text.contains("3 from outside of the run"), "{text}");
        end(&world, &run);
    }
}

#[test]
fn a_daemon_of_the_run_is_of_the_run() {
    for world in worlds() {
        let script = "
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        wait('orphaned')
        say('WATCHDOG=1')
        barrier()
        done('beaten')
        time.sleep(1000)
    os._exit(0)
os.wait()
done('orphaned')
wait('beaten')";
        let run = detach(&world, &[], script);
        let said = world.show(&run).heartbeats;
        assert_eq!((said.total, said.refused), (1, Refused::default()), "{:?}", world.place());
        end(&world, &run);
    }
}

#[test]
fn floods_and_giants_are_counted_and_hold_up_nobody() {
    for place in [Place::Root, Place::Subtree] {
        needs_place!(place);
        let world = World::new_in(place);
        let script = "
def padded(n):
    return b'WATCHDOG=1\\nX=' + b'x' * (n - 13)
say(padded(8192))
say(padded(8193))
say(padded(100000))
barrier()
time.sleep(1.1)
for _ in range(5000):
    say('WATCHDOG=1')";
        let run = detach(&world, &[], script);
        let said = world.show(&run).heartbeats;
        assert_eq!((said.refused.too_long, said.refused.foreign), (2, 0), "{said:?}");
        // The barriers are messages too.
        let taken = said.total - 1;
        assert!((40..=500).contains(&taken), "fifty in a second, however many come: {said:?}");
        assert!((5000..=5001).contains(&(taken + said.refused.flooded)), "each is taken or counted: {said:?}");
        end(&world, &run);
    }
}

#[test]
fn descriptors_that_come_with_a_message_are_closed() {
    let world = World::new_in(Place::Subtree);
    let script = "
wait('go')
for _ in range(40):
    say('WATCHDOG=1', [0] * 253)
";
    let run =
        world.detach(&[], &[python(), "-c", &format!("{SAY}{script}\nbarrier()\ndone('said')\ntime.sleep(1000)\n")]);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", world.running_instance())).unwrap().count();
    world.show(&run);
    let before = eventually("nobody is connected", || {
        let first = open();
        std::thread::yield_now();
        (first == open()).then_some(first)
    });
    std::fs::write(world.path("go"), "").unwrap();
    eventually("it has said it", || world.path("said").exists().then_some(()));
    assert_eq!(world.show(&run).heartbeats.total, 40, "they are heartbeats all the same");
    eventually("all are closed", || (open() <= before + 2).then_some(()));
    end(&world, &run);
}

#[test]
fn heartbeats_go_on_over_a_restart_of_the_instance() {
    for world in worlds() {
        let script = format!(
            "{SAY}n = 0\nwhile True:\n  n += 1\n  try: say('WATCHDOG=1\\nSTATUS=beat %d' % n)\n  except OSError: pass\n  time.sleep(0.05)\n"
        );
        let options = ["--heartbeat-timeout", "5s", "--heartbeat-action", "kill", "--readiness", "exec"];
        let run = world.detach(&options, &[python(), "-c", &script]);
        eventually("heartbeats come", || (world.show(&run).heartbeats.total > 2).then_some(()));
        let socket = socket_of(&world.show(&run));
        world.crash_instance();
        let before = world.show(&run).heartbeats;
        assert_eq!(socket_of(&world.show(&run)), socket);
        let now = eventually("they come again", || {
            let now = world.show(&run).heartbeats;
            (now.total > before.total + 2).then_some(now)
        });
        assert!(now.last_at_usec > before.last_at_usec && now.status.starts_with("beat "), "{now:?}");
        assert_eq!(world.audited(EventKind::HeartbeatLate), 0);
        end(&world, &run);
    }
}

#[test]
fn a_run_whose_heartbeats_stop_is_critical_or_ended_as_it_was_told() {
    for place in [Place::Root, Place::Subtree] {
        needs_place!(place);
        let world = World::new_in(place);
        let script = format!("{SAY}say('WATCHDOG=1\\nSTATUS=step 3')\ntime.sleep(1000)\n");
        let options = ["--heartbeat-timeout", "300ms", "--heartbeat-action", "kill"];
        let done = world.run(&options, &[python(), "-c", &script]);
        assert!(done.exits(124).stderr.contains("heartbeat_timeout of 300 ms is over"), "{done:?}");
        world.assert_killed(&world.only_run(), "heartbeat_timeout");
        let run = detach(&world, &["--heartbeat-timeout", "300ms"], "say('WATCHDOG=1\\nSTATUS=step 3')");
        eventually("it is late", || (world.show(&run).health == Health::Critical).then_some(()));
        let text = world.guardian(["show", &run]).stdout;
        assert!(text.contains("no heartbeat for 300 ms") && text.contains("its status was: step 3"), "{text}");
        assert!(text.contains("the heartbeat_timeout: ") && text.contains("(pid "), "{text}");
        world.assert_audited(EventKind::HeartbeatLate, 2);
        end(&world, &run);
    }
}

#[test]
fn who_may_end_a_run_may_send_heartbeats_for_it_on_the_bus() {
    needs_program!("busctl");
    let world = World::new_in(Place::Subtree);
    let run = world.detach(&["--readiness", "notify"], &["sleep", "1000"]);
    let heartbeat = |arguments: &[&str]| {
        let address = format!("--address=unix:path={}", world.state().join("bus.sock").display());
        let path = format!("/org/guardian/Guardian1/run/{run}");
        let call = ["call", "org.guardian.Guardian1", &path, "org.guardian.Guardian1.Run", "Heartbeat", "a{sv}"];
        Command::new("busctl").arg(address).args(call).args(arguments).output().unwrap()
    };
    let done = heartbeat(&["2", "Ready", "b", "true", "Status", "s", "from afar"]);
    assert!(done.status.success(), "{done:?}");
    let shown = world.show(&run);
    assert_eq!(
        (shown.phase, shown.heartbeats.total, shown.heartbeats.status.as_str()),
        (Phase::Running, 1, "from afar")
    );
    let refused = heartbeat(&["1", "Colour", "s", "red"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a key of a heartbeat"), "{refused:?}");
    end(&world, &run);
    assert!(!heartbeat(&["0"]).status.success());
}
