//! What dashboards cost: guardian-web, and the instance that it asks, with 1,000 runs and 20 who look on.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Extent;
use super::adaptor::Instance;
use super::host::{cpu_time, resident_mib};
use super::scale::{WITH_DEADLINE, percent, start, worst_late_ms};
use super::table::{Promise, Table, Unit};

const GUARDIAN_WEB: &str = env!("CARGO_BIN_EXE_guardian-web");
const DASHBOARDS: usize = 20;
/// Whoever wants to keep an instance from its work opens at least so many.
const CONNECTIONS: usize = 10_000;

/// Ended with the measurement, however that ends.
struct Web(Child);

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures 20 dashboards that are open.
pub fn measure(extent: Extent, table: &mut Table) {
    let instance = Instance::start();
    let runs = start(&instance, 1000);
    std::thread::sleep(Duration::from_secs(3));
    let seconds = Duration::from_secs(extent.seconds);
    let over = |pid: u32| {
        let before = cpu_time(pid);
        move || percent(cpu_time(pid) - before, seconds)
    };
    let alone = over(instance.pid());
    std::thread::sleep(seconds);
    let alone = alone();

    let made = instance.command(&["token", "new", "--role", "viewer", "bench"]).output().unwrap();
    let token = String::from_utf8(made.stdout).unwrap();
    let mut command = Command::new(GUARDIAN_WEB);
    command.args(["--private", "--listen", "127.0.0.1:0", "--print-link", "--state-dir"]).arg(instance.path("state"));
    let mut web = Web(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut link = String::new();
    BufReader::new(web.0.stdout.as_mut().unwrap()).read_line(&mut link).unwrap();
    let at = link.trim().strip_prefix("http://").and_then(|rest| rest.split("/#").next()).unwrap().to_owned();
    let listeners: Vec<_> = (0..DASHBOARDS).map(|_| listen(&at, token.trim())).collect();
    // The first list, and what every dashboard asks for when it is opened.
    std::thread::sleep(Duration::from_secs(3));
    let (of_web, of_instance) = (over(web.0.id()), over(instance.pid()));
    std::thread::sleep(seconds);
    let (of_web, of_instance) = (of_web(), of_instance());
    let looked = format!("{DASHBOARDS} dashboards, 1000 runs");
    table.add(&format!("guardian-web, of a core, {looked}"), Unit::Percent, of_web, None, Promise::AtMost(10.0));
    let resident = resident_mib(web.0.id(), "VmRSS");
    table.add("  its resident memory", Unit::MiB, resident, None, Promise::AtMost(60.0));
    let baseline = Some(("without them", alone));
    table.add("  the instance beside it, of a core", Unit::Percent, of_instance, baseline, Promise::Times(1.0, 1.0));
    besieged(table, &instance, &at);
    drop(web);
    listeners.into_iter().for_each(|listener| listener.join().unwrap());
    instance.kill_all(&runs);
}

/// How late deadlines are while connections are opened as fast as that goes, most of which are one too many.
fn besieged(table: &mut Table, instance: &Instance, at: &str) {
    let before = worst_late_ms(instance);
    let (opened, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut open = std::collections::VecDeque::new();
            while is_over.load(Ordering::Relaxed) == 0 || opened.load(Ordering::Relaxed) < CONNECTIONS {
                let Ok(mut stream) = TcpStream::connect(at) else {
                    // No more descriptors: the oldest makes room.
                    open.pop_front();
                    continue;
                };
                // A head that does not end.
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nX: ");
                opened.fetch_add(1, Ordering::Relaxed);
                open.push_back(stream);
                // Far more than it serves, and than the descriptors of this process allow for.
                if open.len() > 1500 {
                    open.pop_front();
                }
            }
        });
        let beside = worst_late_ms(instance);
        is_over.store(1, Ordering::Relaxed);
        beside
    });
    let opened = opened.load(Ordering::Relaxed);
    let what = format!("  max_runtime while {opened} connections are opened, worst of {WITH_DEADLINE}");
    table.add(&what, Unit::Ms, beside, Some(("without them", before)), Promise::AtMost(100.0));
}

/// Opens a dashboard: it lists the runs once, and then is told of what happens.
fn listen(at: &str, token: &str) -> std::thread::JoinHandle<()> {
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(at).unwrap();
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let mut answer = Vec::new();
    ask("/api/v1/runs").read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..answer.len().min(200)]));
    let mut events = ask("/api/v1/events");
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while events.read(&mut buffer).is_ok_and(|n| n > 0) {}
    })
}
