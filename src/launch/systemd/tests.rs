//! What can be said of the manager where there is none. Real managers are met in virtual machines.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

/// A uid that is not root's: the tests may run as root.
const UID: u32 = 1000;

fn options(address: Option<String>, dir: &Path) -> Options {
    let owner = Owner::new("test", "boot", true);
    Options { whole: false, address, runtime_dirs: vec![dir.to_owned()], mount: None, uid: UID, owner }
}

fn absent(options: Options) -> Absent {
    let started = Instant::now();
    let absent = Manager::connect(options, Arc::new(|| {})).unwrap_err();
    assert!(started.elapsed() < bus::CONNECT + SLACK, "{absent} after {:?}", started.elapsed());
    absent
}

/// A session bus of our own, without systemd.
struct Bus(Child, String);

impl Bus {
    fn start(dir: &Path) -> Option<Self> {
        // A configuration of its own: the distribution's would let it start the user's services.
        let config = dir.join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:dir={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>\
             </busconfig>",
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let arguments = ["--nofork", "--nopidfile", "--nosyslog", "--print-address=1"];
        let spawned = Command::new("dbus-daemon")
            .args(arguments)
            .arg(format!("--config-file={}", config.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Err(e) if e.kind() == ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
                eprintln!("SKIPPED: dbus-daemon (package dbus) is needed");
                return None;
            }
            spawned => spawned.unwrap(),
        };
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Some(Self(child, address.trim().to_owned()))
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn root_is_told_that_it_has_no_manager_of_its_own() {
    let tmp = tempfile::tempdir().unwrap();
    let absent = absent(Options { uid: 0, ..options(None, tmp.path()) });
    assert_eq!(absent, Absent::Root);
    assert!(absent.to_string().contains("Delegate=yes"), "{absent}");
}

#[test]
fn without_a_session_there_is_a_way_to_get_one() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("none");
    assert_eq!(absent(options(None, &dir)), Absent::NoSession { uid: UID, dir });
    assert!(matches!(absent(options(None, tmp.path())), Absent::NoBus { .. }));
}

#[test]
fn a_socket_that_nobody_listens_on_is_refused_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(tmp.path().join("bus")).unwrap());
    let started = Instant::now();
    let absent = absent(options(None, tmp.path()));
    assert!(matches!(absent, Absent::Refused { .. }) && started.elapsed() < bus::CONNECT, "{absent}");
    let text = absent.to_string();
    assert!(text.contains("Connection refused") && text.contains("`unset DBUS_SESSION_BUS_ADDRESS`"), "{text}");
}

#[test]
fn a_bus_that_never_answers_is_given_up() {
    let tmp = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(tmp.path().join("bus")).unwrap();
    let started = Instant::now();
    let absent = absent(options(None, tmp.path()));
    assert!(started.elapsed() >= bus::CONNECT);
    assert!(matches!(absent, Absent::Silent { step: "let us in", .. }), "{absent}");
    assert!(absent.to_string().contains("did not let us in within 2 s"), "{absent}");
}

#[test]
fn a_bus_without_systemd_is_told_from_one_with() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(bus) = Bus::start(tmp.path()) else { return };
    let absent = absent(options(Some(bus.1.clone()), tmp.path()));
    assert!(matches!(absent, Absent::NoManager { uid: UID, .. }), "{absent}");
    let text = absent.to_string();
    assert!(text.contains("org.freedesktop.systemd1") && text.contains("enable-linger"), "{text}");
}

#[test]
fn scopes_are_found_in_slices_and_nowhere_else() {
    let tmp = tempfile::tempdir().unwrap();
    let there = [
        ("guardian.slice/guardian-a\\x2db.slice", 2),
        ("guardian.slice", 1),
        ("other.slice/other-deeper.slice", 3),
        ("", 4),
    ];
    let name = |n: u8| names::unit(RunId::from_bytes([0, 0, 0, 0, 0, n]), UnitKind::Scope);
    for (slice, n) in there {
        fs::create_dir_all(tmp.path().join(slice).join(name(n))).unwrap();
    }
    let elsewhere = [
        format!("guardian.slice/{}/{}", name(1), name(9)),
        format!("app.service/{}", name(9)),
        "guardian.slice/guardian-run_00000000000g.scope".to_owned(),
        "guardian.slice/run_000000000009".to_owned(),
    ];
    elsewhere.iter().for_each(|path| fs::create_dir_all(tmp.path().join(path)).unwrap());
    let found = units_below(tmp.path()).unwrap();
    let expected: Vec<(RunId, PathBuf)> = [1, 2, 3, 4]
        .map(|n| {
            let (slice, _) = there.iter().find(|(_, m)| *m == n).unwrap();
            (RunId::from_bytes([0, 0, 0, 0, 0, n]), tmp.path().join(slice).join(name(n)))
        })
        .into();
    assert_eq!(found, expected);
    assert!(units_below(&tmp.path().join("gone")).unwrap_err().is_gone());
}
