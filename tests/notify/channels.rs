//! Each channel, by `--test` and `guardian notify test`; what is refused; and Debian's Alertmanager.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use crate::common::*;
use crate::rig::*;

/// The signature is what whoever has the key computes of the body.
#[track_caller]
pub fn assert_signed(request: &Request, key: &str) {
    let header = request.header("Guardian-Signature").unwrap();
    let (at, given) = header.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(format!("{at}.{}", request.body).as_bytes());
    let expected: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(given, expected);
    assert!(at.parse::<i64>().unwrap() > 1_700_000_000);
}

fn with_route(channels: &str) -> String {
    let names: Vec<String> = channels
        .lines()
        .filter_map(|l| l.strip_prefix("[channel.")?.strip_suffix(']'))
        .map(|n| format!("{n:?}"))
        .collect();
    format!("{channels}\n[[route]]\nchannels = [{}]\n", names.join(", "))
}

#[test]
fn each_service_gets_what_it_takes() {
    let server = Server::start(Mode::Status(200));
    let dir = tempfile::tempdir().unwrap();
    let mut channels = String::new();
    for kind in ["slack", "discord", "teams", "ntfy", "alertmanager", "webhook"] {
        let url = secret(dir.path(), kind, &server.url(&format!("/{kind}")));
        channels += &format!(
            "[channel.{kind}]\ntype = \"{kind}\"\nurl_file = \"{}\"\nallow_private = true\ntitle = \"{{event}} é\"\n",
            url.display()
        );
        if kind == "ntfy" {
            channels += &format!("secret_file = \"{}\"\n", secret(dir.path(), "token", "tk_1").display());
        }
    }
    let notify = Notify::alone(&with_route(&channels));
    let (status, said) = notify.test("");
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(said.matches(": delivered").count(), 6, "{said}");
    let requests = server.requests();
    let to = |path: &str| requests.iter().find(|r| r.path == path).unwrap_or_else(|| panic!("{path}: {requests:?}"));
    assert_eq!(to("/slack").json()["blocks"][0]["text"]["text"], "test é");
    assert_eq!(to("/discord").json()["embeds"][0]["title"], "test é");
    assert_eq!(to("/teams").json()["attachments"][0]["content"]["type"], "AdaptiveCard");
    let ntfy = to("/ntfy");
    assert_eq!(ntfy.header("Title"), Some("=?UTF-8?Q?test=20=C3=A9?="));
    assert_eq!((ntfy.header("Authorization"), ntfy.header("Priority")), (Some("Bearer tk_1"), Some("3")));
    assert!(ntfy.body.starts_with("a test:"), "{}", ntfy.body);
    assert_eq!(to("/alertmanager/api/v2/alerts").json()[0]["labels"]["alertname"], "GuardianTest");
    assert_eq!(to("/webhook").json()["events"][0]["event"], "test");
    assert!(to("/webhook").header("User-Agent").unwrap().starts_with("guardian-notify/"));
}

#[test]
fn private_addresses_are_refused_unless_a_channel_allows_them() {
    let server = Server::start(Mode::Status(200));
    let port = server.address.port();
    let dir = tempfile::tempdir().unwrap();
    let plain = secret(dir.path(), "plain", &server.url("/"));
    let mut channels = format!("[channel.plain]\ntype = \"webhook\"\nurl_file = \"{}\"\n", plain.display());
    let hosts = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0.0.0.0", "169.254.169.254"];
    for (i, host) in hosts.iter().enumerate() {
        channels += &format!("[channel.c{i}]\ntype = \"webhook\"\nurl = \"https://{host}:{port}/x\"\n");
    }
    channels += &format!(
        "[channel.mail]\ntype = \"email\"\nserver = \"localhost\"\nport = {port}\nfrom = \"a@example.org\"\nto = \
         \"b@example.org\"\ntls = \"none\"\n"
    );
    let notify = Notify::alone(&with_route(&channels));
    let (status, said) = notify.test("");
    assert_eq!(status, Some(1), "{said}");
    assert_eq!(said.matches("is a private, local or reserved address").count(), hosts.len() + 1, "{said}");
    assert!(said.contains("plain: its address is not encrypted"), "{said}");
    assert!(!said.contains("/x"), "{said}");
    assert!(server.requests().is_empty());
}

#[test]
fn a_program_gets_the_events_and_is_ended_with_its_group_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let (out, pid) = (dir.path().join("out"), dir.path().join("pid"));
    let exec = |name: &str, script: &str| {
        format!("[channel.{name}]\ntype = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\ntimeout = \"1s\"\n")
    };
    let slow = format!("sleep 1000 & echo $! >{}; wait", pid.display());
    let channels = [
        exec("reads", &format!("cat >{}; env >>{0}", out.display())),
        exec("fails", "exit 3"),
        exec("slow", &slow),
        "[channel.none]\ntype = \"exec\"\ncommand = [\"/none\"]\n".to_owned(),
    ];
    let notify = Notify::alone(&with_route(&channels.concat()));
    let (status, said) = notify.test("");
    assert_eq!(status, Some(1), "{said}");
    for line in [
        "reads: delivered",
        "fails: /bin/sh: ended with status 3",
        "slow: /bin/sh: did not end within 1s and was killed",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.contains("none: /none: cannot be executed"), "{said}");
    let got = std::fs::read_to_string(&out).unwrap();
    let mut values = serde_json::Deserializer::from_str(&got).into_iter::<Value>();
    let body = values.next().unwrap().unwrap();
    let env = &got[values.byte_offset()..];
    assert_eq!(body["events"][0]["event"], "test");
    assert!(!env.contains("CARGO") && env.contains("PATH="), "{env}");
    let left: u32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    eventually("what the program started is ended with it", || (!is_alive(left)).then_some(()));
}

/// The mail that a server is given, which knows as much of SMTP as is needed for one.
fn take_mail(listener: TcpListener) -> String {
    let (stream, _) = listener.accept().unwrap();
    let mut writing = stream.try_clone().unwrap();
    let mut say = |text: &str| writing.write_all(format!("{text}\r\n").as_bytes()).unwrap();
    say("220 here");
    let (mut mail, mut is_data) = (String::new(), false);
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        mail += &format!("{line}\n");
        match line.split(' ').next().unwrap_or_default() {
            "." if is_data => {
                is_data = false;
                say("250 taken");
            }
            _ if is_data => {}
            "EHLO" => say("250 here"),
            "DATA" => {
                is_data = true;
                say("354 go on");
            }
            "QUIT" => {
                say("221 bye");
                break;
            }
            _ => say("250 ok"),
        }
    }
    mail
}

#[test]
fn mail_is_sent_to_everybody_with_subject_and_text() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || take_mail(listener));
    let channel = format!(
        "[channel.mail]\ntype = \"email\"\nserver = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\nallow_private = true\nfrom = \
         \"Guardian <g@example.org>\"\nto = [\"a@example.org\", \"b@example.org\"]\n"
    );
    let notify = Notify::alone(&with_route(&channel));
    let (status, said) = notify.test("mail");
    assert_eq!((status, &*said), (Some(0), "mail: delivered\n"));
    let mail = server.join().unwrap();
    for part in [
        "RCPT TO:<a@example.org>",
        "RCPT TO:<b@example.org>",
        "Subject: test: guardian guardiand on ",
        "a test: messages",
    ] {
        assert!(mail.contains(part), "{part}: {mail}");
    }
    // STARTTLS that is not offered is not done without.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let channel = channel.replace(&port.to_string(), &listener.local_addr().unwrap().port().to_string());
    let server = std::thread::spawn(move || take_mail(listener));
    let notify = Notify::alone(&with_route(&channel.replace("tls = \"none\"", "tls = \"starttls\"")));
    let (status, said) = notify.test("mail");
    assert_eq!(status, Some(1), "{said}");
    assert!(!server.join().unwrap().contains("MAIL FROM"), "{said}");
}

#[test]
fn the_command_line_tries_channels_and_names_the_near_one() {
    let server = Server::start(Mode::Status(200));
    let channel = format!("[channel.hook]\ntype = \"webhook\"\nurl = \"{}\"\nallow_private = true\n", server.url("/"));
    let notify = Notify::alone(&with_route(&channel));
    let guardian = |args: &[&str]| {
        let done = Command::new(GUARDIAN).args(args).arg("--config").arg(notify.path("notify.toml")).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        (done.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    assert_eq!(guardian(&["notify", "test"]), (Some(0), "hook: delivered\n".to_owned()));
    assert_eq!(guardian(&["notify", "test", "hook"]).0, Some(0));
    let (status, said) = guardian(&["notify", "test", "hok"]);
    assert!(status == Some(1) && said.contains("there is no channel \"hok\": did you mean hook?"), "{said}");
    server.now(Mode::Drop);
    let (status, said) = guardian(&["notify", "test", "hook"]);
    assert!(status == Some(1) && said.starts_with("hook: 127.0.0.1: "), "{said}");
}

#[test]
fn a_wrong_configuration_is_refused_whole_with_each_line() {
    let text = "[channel.hook]\ntype = \"webhook\"\nurl = \"https://example.org\"\ntimout = \"3s\"\n\n[[route]]\nchanels = [\"hook\"]\n";
    let notify = Notify::alone(text);
    let done = notify.command().arg("--check-config").output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}");
    for part in [
        "notify.toml:4:1: channel.hook.timout: is not a key of it: did you mean timeout?",
        "notify.toml:6:1: route 1: has no channels: write channels = [\"NAME\"]",
        "notify.toml:7:1: route 1.chanels: is not a key of it: did you mean channels?",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let served = notify.command().arg("--socket").arg("/none").output().unwrap();
    assert_eq!(served.status.code(), Some(1), "and it does not serve");
    let example = include_str!("../../packaging/etc/notify.toml");
    let done = Notify::alone(example).command().arg("--check-config").output().unwrap();
    assert!(done.status.success(), "the example: {}", String::from_utf8_lossy(&done.stderr));
}

/// GET, as a browser would: the body.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[test]
fn the_alertmanager_of_debian_shows_what_is_on_and_that_it_is_over() {
    crate::needs_program!("prometheus-alertmanager");
    let dir = tempfile::tempdir().unwrap();
    let config = secret(dir.path(), "am.yml", "route:\n  receiver: none\nreceivers:\n- name: none\n");
    // Taken just now and free again: whoever else takes it makes this test fail, and nothing else.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut alertmanager = Command::new("prometheus-alertmanager")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let shown = || -> Option<Vec<Value>> { serde_json::from_str(&get(port, "/api/v2/alerts")?).ok() };
    let named = |name: &str, run: &str| {
        shown()
            .unwrap_or_default()
            .into_iter()
            .find(|a| a["labels"]["alertname"] == name && a["labels"]["run_id"] == run)
    };
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("it serves", shown);
        let world = world();
        let channel =
            format!("[channel.am]\ntype = \"alertmanager\"\nurl = \"http://127.0.0.1:{port}\"\nallow_private = true\n");
        let mut notify = Notify::of(&world, &with_route(&channel));
        notify.start();
        let run = troubled(&world);
        let alert = eventually("it shows the run", || named("GuardianRunCritical", &run));
        assert_eq!(alert["status"]["state"], "active", "{alert}");
        assert_eq!(
            (&alert["labels"]["workflow"], &alert["labels"]["severity"]),
            (&"builder".into(), &"critical".into())
        );
        assert!(alert["annotations"]["summary"].as_str().unwrap().contains("max_runtime"), "{alert}");
        assert!(named("GuardianRunWarning", &run).is_none(), "it is worse, and not both");
        world.guardian(["kill", "--force", &run]).exits(0);
        eventually("it is over", || named("GuardianRunCritical", &run).is_none().then_some(()));
        eventually("the kill is shown", || named("GuardianRunKilled", &run));
        notify.stop();
    }));
    let _ = alertmanager.kill();
    let _ = alertmanager.wait();
    if let Err(why) = tried {
        eprintln!("alertmanager said:\n{}", std::fs::read_to_string(dir.path().join("log")).unwrap_or_default());
        std::panic::resume_unwind(why);
    }
}
