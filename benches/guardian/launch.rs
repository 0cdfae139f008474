//! From the request to launch to the command's first instruction, against posix_spawn; from its exit to finished.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Extent;
use super::adaptor::Instance;
use super::host::until;
use super::table::{Promise, Table, Unit, median_ms};

/// A command that says when it was executed, in nanoseconds of wall-clock time.
pub const CLOCK: [&str; 2] = ["date", "+%s%N"];

/// Measures.
pub fn measure(extent: Extent, table: &mut Table) {
    let instance = Instance::start();
    let (mut spawned, mut detached, mut foreground, mut finished, mut noticed) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..extent.rounds.max(10) {
        let began = now();
        let output = Command::new(CLOCK[0]).arg(CLOCK[1]).stdin(Stdio::null()).output().unwrap();
        spawned.push(since(began, &output.stdout));

        let began = now();
        let run = instance.run(&CLOCK);
        let view = instance.wait(run);
        let log = view.spec.log.expect("a detached run has a log");
        detached.push(since(began, &std::fs::read(log).unwrap()));

        let began = now();
        let output = instance.command(&["run", "--", CLOCK[0], CLOCK[1]]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        foreground.push(since(began, &output.stdout));

        let (bare, ours) = exit_to_finished(&instance);
        noticed.push(bare);
        finished.push(ours);
    }
    let spawned = median_ms(spawned);
    let baseline = Some(("posix_spawn", spawned));
    let promise = Promise::Times(1.0, 3.0);
    table.add("launch to exec, detached, over D-Bus", Unit::Ms, median_ms(detached), baseline, promise);
    table.add("launch to exec, guardian run, whole client", Unit::Ms, median_ms(foreground), baseline, promise);
    let baseline = Some(("our own poll of its pidfd", median_ms(noticed)));
    table.add("exit to finished, over D-Bus", Unit::Ms, median_ms(finished), baseline, Promise::AtMost(1.0));
}

/// The time since 1970, as `date` says it.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The time from then to what was printed.
pub fn since(began: Duration, printed: &[u8]) -> Duration {
    let text = String::from_utf8_lossy(printed);
    let at = Duration::from_nanos(text.trim().parse().unwrap_or_else(|_| panic!("not a time: {text:?}")));
    at.saturating_sub(began)
}

/// Ends the main process from outside. Gives the time until our own poll sees it, and until WaitRun answers.
fn exit_to_finished(instance: &Instance) -> (Duration, Duration) {
    let run = instance.run(&["sleep", "100000"]);
    let main = until("the command is executed", || {
        let main = instance.show(run).spec.main?;
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", main.pid)).ok()?;
        (comm.trim() == "sleep").then_some(main)
    });
    let pid = Pid::from_raw(main.pid as i32).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let began = Instant::now();
    pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    let watcher = std::thread::spawn(move || {
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        began.elapsed()
    });
    instance.wait(run);
    let ours = began.elapsed();
    (watcher.join().unwrap(), ours)
}
