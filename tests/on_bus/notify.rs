//! guardian-notify on the system bus, as a user of its own whom polkit lets read.

use std::process::Stdio;

use rustix::process::Signal;

use crate::common::*;
use crate::needs_bus;
use crate::polkit::pretend;
use crate::rig::*;

#[test]
fn guardian_notify_reads_by_polkits_leave_tells_of_silence_and_starts_no_instance() {
    needs_bus!();
    let mut rig = Rig::without_instance("SYSTEM");
    // A bus that could start an instance, and would leave a trace of it.
    let (services, started) = (rig.path("services"), rig.path("started"));
    std::fs::create_dir(&services).unwrap();
    let service = format!("[D-BUS Service]\nName={NAME}\nExec=/usr/bin/touch {}\n", started.display());
    std::fs::write(services.join(format!("{NAME}.service")), service).unwrap();
    rig.stop_bus();
    let config = std::fs::read_to_string(rig.path("bus.conf")).unwrap();
    let servicedir = format!("<servicedir>{}</servicedir></busconfig>", services.display());
    std::fs::write(rig.path("bus.conf"), config.replace("</busconfig>", &servicedir)).unwrap();
    rig.start_bus();
    rig.start_instance();
    let _polkit = pretend(&rig, "org.guardian.Guardian1.read-all");

    let (state, told) = (rig.path("notify"), rig.path("notify/told"));
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(BEN), Some(BEN)).unwrap();
    let config = format!(
        "[channel.file]\ntype = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"cat >>{}\"]\n[[route]]\nchannels = [\"file\"]\n",
        told.display()
    );
    std::fs::write(rig.path("notify.toml"), config).unwrap();
    // Where another user may execute it.
    let program = rig.path("guardian-notify");
    std::fs::copy(env!("CARGO_BIN_EXE_guardian-notify"), &program).unwrap();
    let log = rig.path("notify.log");
    let mut command = rig.as_user(BEN, &program);
    command.arg("--config").arg(rig.path("notify.toml")).arg("--state-dir").arg(&state);
    let stderr = std::fs::File::create(&log).unwrap();
    let _notify = Ours(command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap());
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("it reads", || said().contains("tells of what the audit has").then_some(()));
    let ann = rig.attach(ANN);
    assert!(rig.call(ANN, &["KillRun", "sss", &ann.run, "force", "enough"]).0.starts_with("a{sv}"));
    let has = |text: &str| std::fs::read_to_string(&told).unwrap_or_default().contains(text).then_some(());
    eventually("a kill of another user's run is told", || has(&ann.run).and(has("\"killed\"")));

    rig.guardiand.take().unwrap().end(Signal::TERM);
    eventually("that nobody answers is told", || has("guardiand does not answer"));
    assert!(!started.exists(), "it had an instance started: {}", said());
    rig.start_instance();
    eventually("that somebody answers again is told", || has("guardiand is well again"));
}
