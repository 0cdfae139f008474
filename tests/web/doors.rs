//! Who is let in: tokens, sessions, hosts and origins; and how it is started.

use std::io::Write as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::common::*;
use crate::rig::*;

#[test]
fn everything_but_the_page_and_metrics_needs_a_token() {
    let web = Web::new();
    let document = web.get("/api/v1/openapi.json").bearer(&web.viewer).json();
    for (path, verbs) in document["paths"].as_object().unwrap() {
        let asked =
            path.replace("{id}", "run_0123456789ab").replace("{executor}", "builder").replace("{name}", "index.html");
        let is_open = matches!(path.as_str(), "/" | "/assets/{name}" | "/metrics" | "/healthz" | "/api/v1/login");
        for ask in verbs.as_object().unwrap().keys().map(|verb| match verb.as_str() {
            "post" => web.post(&asked, "{}"),
            _ => web.get(&asked),
        }) {
            for ask in [ask.clone(), ask.clone().bearer("gdn_wrong"), ask.header("Authorization", "Basic eDp5")] {
                let reply = ask.send();
                assert_eq!(reply.status == 401, !is_open, "{path}: {reply:?}");
            }
        }
    }
}

#[test]
fn a_code_gives_a_session_once_and_a_session_is_a_pages_from_here() {
    let web = Web::new();
    let run = web.sleeper("builder");
    let cookie = web.cookie();
    let set = web.post("/api/v1/login", &format!(r#"{{"code": "{}"}}"#, web.code)).send();
    set.is(401);
    let who = web.get("/api/v1/whoami").cookie(&cookie).json();
    assert_eq!((&who["token"], &who["role"]), (&"link".into(), &"operator".into()));
    let kill = web.post(&web.kill_path(&run), "{}").cookie(&cookie);
    for origin in
        ["http://evil.example", "null", "http://127.0.0.1", "https://localhost", &format!("{}.evil", web.origin())]
    {
        kill.clone().header("Origin", origin).send().is(403);
        web.get("/api/v1/runs").cookie(&cookie).header("Origin", origin).send().is(403);
        kill.clone().without("Cookie").bearer(&web.operator).header("Origin", origin).send().is(403);
    }
    kill.send().is(403);
    kill.clone().header("Origin", &web.origin()).header("Content-Type", "text/plain").send().is(400);
    kill.clone().header("Origin", &web.origin()).without("Content-Type").send().is(400);
    assert_eq!(web.world.show(&run).phase, guardian::model::Phase::Running);
    let done = kill.header("Origin", &web.origin()).send();
    assert_eq!(done.is(200).json()["receipt"]["reason_text"], "(token link, guardian-web)");

    web.post("/api/v1/logout", "{}").cookie(&cookie).send().is(403);
    let out = web.post("/api/v1/logout", "{}").cookie(&cookie).header("Origin", &web.origin()).send();
    assert!(out.is(200).header("set-cookie").unwrap().contains("Max-Age=0"));
    web.get("/api/v1/whoami").cookie(&cookie).send().is(401);
}

#[test]
fn a_token_gives_a_session_until_it_is_revoked() {
    let web = Web::new();
    let login = |token: &str| web.post("/api/v1/login", &format!(r#"{{"token": "{token}"}}"#)).send();
    let reply = login(&web.viewer);
    assert_eq!(reply.is(200).json()["role"], "viewer");
    let set = reply.header("set-cookie").unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(set.contains(part), "{set}");
    }
    let cookie = reply.cookie();
    web.get("/api/v1/runs").cookie(&cookie).send().is(200);
    web.get("/api/v1/runs").cookie(&format!("other=1; {cookie}")).send().is(200);
    web.get("/api/v1/runs").cookie("guardian_session=wrong").send().is(401);
    web.world.guardian(["token", "revoke", "ann"]).exits(0);
    web.get("/api/v1/runs").cookie(&cookie).send().is(401);
    web.get("/api/v1/runs").bearer(&web.viewer).send().is(401);
    web.get("/api/v1/runs").bearer(&web.operator).send().is(200);
    web.post("/api/v1/login", "{}").send().is(422);
    web.post("/api/v1/login", r#"{"token": "a", "code": "b"}"#).send().is(422);
    // Who guesses is slowed down, and is told for how long.
    let refused = (0..20).map(|_| login("gdn_guess")).find(|reply| reply.status != 401).unwrap();
    assert_eq!(refused.is(429).json()["error"], "TooManyRequests");
    assert!((1..=3).contains(&refused.header("retry-after").unwrap().parse::<u32>().unwrap()));
}

#[test]
fn only_our_own_names_are_answered() {
    let web = Web::with(&["--host", "guard.example"]);
    let port = web.at.port();
    let asked = |host: &str| web.get("/api/v1/runs").bearer(&web.viewer).header("Host", host).send().status;
    for host in
        [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "guard.example".into(), "GUARD.example".into()]
    {
        assert_eq!(asked(&host), 200, "{host}");
    }
    for host in [
        "127.attacker.example".to_owned(),
        format!("127.attacker.example:{port}"),
        format!("localhost.evil:{port}"),
        "localhost".to_owned(),
        "evil.guard.example".to_owned(),
        "guard.example.evil".to_owned(),
        String::new(),
    ] {
        assert_eq!(asked(&host), 403, "{host}");
        web.get("/").header("Host", &host).send().is(403);
    }
    web.get("/").without("Host").send().is(403);
    let mut twice = web.get("/");
    twice.headers.push(("Host".into(), "evil.example".into()));
    twice.send().is(400);
    let absolute = Ask::new(web.at, "GET", "http://evil.example/");
    absolute.send().is(403);
    // A proxy with TLS is before a name, and not before the address.
    let post = |host: &str, origin: &str| {
        web.post("/api/v1/logout", "{}").bearer(&web.viewer).header("Host", host).header("Origin", origin).send().status
    };
    assert_eq!(post("guard.example", "https://guard.example"), 200);
    assert_eq!(post("guard.example", "https://other.example"), 403);
    assert_eq!(post(&web.at.to_string(), &format!("https://{}", web.at)), 403);
}

#[test]
fn tokens_are_made_listed_and_revoked_and_kept_as_hashes() {
    let world = World::new_in(Place::Subtree);
    let made = world.guardian(["token", "new", "--role", "operator", "ci@host", "--json"]).json();
    let secret = made["token"].as_str().unwrap();
    assert_eq!((made["name"].as_str(), made["role"].as_str()), (Some("ci@host"), Some("operator")));
    let kept = std::fs::read_to_string(world.state().join("web-tokens")).unwrap();
    assert!(!kept.contains(&secret[4..]) && kept.contains("ci@host operator "), "{kept}");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(world.state().join("web-tokens")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    world.guardian(["token", "new", "--role", "viewer", "ci@host"]).exits(2);
    world.guardian(["token", "new", "--role", "root", "x"]).exits(2);
    world.guardian(["token", "new", "--role", "viewer", "a b"]).exits(2);
    let listed = world.guardian(["token", "list"]).exits(0).stdout.clone();
    assert!(listed.contains("ci@host") && !listed.contains(secret), "{listed}");
    world.guardian(["token", "revoke", "ci@host"]).exits(0);
    world.guardian(["token", "revoke", "ci@host"]).exits(2);
    assert_eq!(world.guardian(["token", "list", "--json"]).json(), serde_json::json!([]));
}

/// What guardian-web says when it does not start.
fn refusal(world: &World, arguments: &[&str]) -> String {
    let mut command = Command::new(GUARDIAN_WEB);
    command.arg("--state-dir").arg(world.state()).args(arguments).env_remove("LISTEN_FDS");
    let done = start(&mut command).wait();
    done.exits(1);
    done.stderr
}

#[test]
fn it_does_not_start_where_it_would_be_open_or_useless() {
    let world = World::new_in(Place::Subtree);
    world.guardian(["ps"]).exits(0);
    let said = refusal(&world, &["--listen", "0.0.0.0:0"]);
    assert!(said.contains("no TLS") && said.contains("--allow-remote"), "{said}");
    assert!(refusal(&world, &[]).contains("nothing to listen on"));
    std::fs::write(world.state().join("web-tokens"), "ann viewer nonsense 2026-01-01T00:00:00Z\n").unwrap();
    let said = refusal(&world, &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("line 1") && said.contains("no SHA-256"), "{said}");
}

#[test]
fn guardian_web_prints_a_link_and_ends_when_it_is_told_to() {
    let world = World::new_in(Place::Subtree);
    let mut command = world.command(["web"]);
    let mut process = Process(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let (at, code) = link(&mut process.0);
    assert!(at.ip().is_loopback() && code.len() == 64);
    // In no argument, where everybody could read it.
    assert!(!String::from_utf8_lossy(&proc_file(process.0.id(), "cmdline")).contains(&code));
    let mut login = Ask::new(at, "POST", "/api/v1/login").header("Content-Type", "application/json");
    login.body = Some(format!(r#"{{"code": "{code}"}}"#));
    let reply = login.send();
    reply.is(200);
    let listener = Listener::new(Ask::new(at, "GET", "/api/v1/events").cookie(&reply.cookie()));
    assert_eq!(process.end(Signal::TERM), Some(0));
    assert!(listener.is_closed(PATIENCE));
}

#[test]
fn a_socket_of_systemd_is_served_and_readiness_is_told() {
    let world = World::new_in(Place::Subtree);
    world.guardian(["ps"]).exits(0);
    let token = world.guardian(["token", "new", "--role", "viewer", "ann"]).exits(0).stdout.trim().to_owned();
    let (path, notify) = (world.path("web.sock"), world.path("notify"));
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(PATIENCE)).unwrap();
    let script = "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); \
                  os.dup2(s.fileno(), 3); os.set_inheritable(3, True); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); \
                  os.execv(sys.argv[2], sys.argv[2:])";
    let mut command = Command::new(python());
    command.args(["-c", script]).arg(&path).arg(GUARDIAN_WEB).arg("--state-dir").arg(world.state());
    let mut process = Process(command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null()).spawn().unwrap());
    let mut said = [0; 100];
    let n = told.recv(&mut said).unwrap();
    assert_eq!(said[..n].trim_ascii(), b"READY=1");
    let asked = |host: &str| {
        let mut ask = Ask::new("127.0.0.1:1".parse().unwrap(), "GET", "/api/v1/runs").bearer(&token);
        ask = ask.header("Host", host);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(ask.text().as_bytes()).unwrap();
        Reply::read(stream).status
    };
    assert_eq!((asked("localhost"), asked("localhost.evil"), asked("")), (200, 403, 403));
    assert_eq!(process.end(Signal::TERM), Some(0));
    let n = told.recv(&mut said).unwrap();
    assert_eq!(said[..n].trim_ascii(), b"STOPPING=1");
    assert!(path.exists(), "it is systemd's to remove");
}
