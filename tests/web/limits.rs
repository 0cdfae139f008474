//! What a client can take of it: never more than its share, and nothing of the instance's time.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::rig::*;

#[test]
fn headers_without_end_are_refused() {
    let web = Web::new();
    let mut stream = connect(web.at);
    let mut writer = stream.try_clone().unwrap();
    let host = web.at.to_string();
    std::thread::spawn(move || {
        let _ = writer.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: ").as_bytes());
        // It stops listening in the middle.
        let _ = (0..256).try_for_each(|_| writer.write_all(&[b'x'; 4096]));
    });
    // What it says may be lost with the connection, which is reset: more was sent than it reads.
    let said = all_of(&mut stream);
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&said));
    let mut many = web.get("/");
    many.headers.extend((0..200).map(|n| (format!("X-{n}"), "1".to_owned())));
    many.send().is(431);
    let big = web.get("/").header("X", &"x".repeat(20_000)).text();
    let mut stream = connect(web.at);
    stream.write_all(big.as_bytes()).unwrap();
    assert!(all_of(&mut stream).starts_with(b"HTTP/1.1 431 "));
    web.get("/").header("X", &"x".repeat(8_000)).send().is(200);
}

#[test]
fn bodies_are_short_and_arrive_in_time() {
    let web = Web::new();
    let login = |body: &str| web.post("/api/v1/login", body);
    let long = format!(r#"{{"token": "{}"}}"#, "x".repeat(70_000));
    login(&long).send().is(413);
    // Without a length that would tell.
    let mut chunked = login("{}");
    chunked.body = None;
    let head = chunked.header("Transfer-Encoding", "chunked").text();
    let mut stream = connect(web.at);
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    let _ = (0..20).try_for_each(|_| stream.write_all(chunk.as_bytes()));
    let said = all_of(&mut stream);
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&said));

    let mut slow = connect(web.at);
    let text = login(r#"{"token": "x"}"#).text();
    slow.write_all(&text.as_bytes()[..text.len() - 3]).unwrap();
    let mut silent = connect(web.at);
    silent.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    let begin = Instant::now();
    let said = all_of(&mut slow);
    assert!(said.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&said));
    let said = all_of(&mut silent);
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&said));
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn too_many_connections_are_told_so_and_the_others_go_on() {
    // Each connection is a descriptor, at both ends.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum.map(|most| most.min(65_536)).or(Some(65_536));
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let web = Web::new();
    let run = web.world.detach(&["--max-runtime", "4s", "--readiness", "exec"], &["sleep", "1000"]);
    let listener = web.events("", None);
    // Ten times as many as there can be, of which each says nothing.
    let mut open: Vec<TcpStream> = (0..10_000).flat_map(|_| TcpStream::connect(web.at)).collect();
    assert!(open.len() > 9_000, "{}", open.len());
    // One that says nothing holds its place for ten seconds, which it may take to open them all: not each late one is refused.
    let is_told = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        all_of(stream).starts_with(b"HTTP/1.1 503 ")
    };
    assert!(open.iter_mut().skip(1024).step_by(100).any(is_told), "nobody is told that there are too many");
    // Who was there before still hears, and the limit ends the run when it should.
    let over = listener.until("the run is over", |told| told.kind == "run" && told.data["phase"] == "finished");
    assert_eq!(over.data["run_id"], run.as_str());
    let late = over.data["finished_at_usec"].as_u64().unwrap() - over.data["created_at_usec"].as_u64().unwrap();
    assert!((4_000_000..6_000_000).contains(&late), "{late} µs");
    drop(open);
    eventually("there is room again", || {
        let mut stream = connect(web.at);
        stream.write_all(web.get("/healthz").text().as_bytes()).ok()?;
        Reply::parse(&all_of(&mut stream)).filter(|reply| reply.status == 200)
    });
    let metrics = web.get("/metrics").send().body;
    let refused = metrics.lines().find_map(|line| line.strip_prefix("guardian_web_connections_refused_total "));
    let refused: u64 = refused.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap();
    assert!(refused > 2000, "{refused} were refused");
}
