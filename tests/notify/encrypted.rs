//! TLS with servers that are not of these tests: who is told what, and who is not.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::rig::*;

/// A web server and a mail server, ended with the test.
struct Servers {
    child: Child,
    dir: tempfile::TempDir,
    https: u16,
    smtp: u16,
}

impl Servers {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout"])
            .arg(path("key"))
            .arg("-out")
            .arg(path("certificate"))
            .args(subject)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/notify/servers.py");
        // The distribution's Python has the mail server, whichever is first in the path.
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .args([path("certificate"), path("key"), path("log")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut port = |name: &str| {
            let line = lines.next().unwrap_or_else(|| panic!("no {name}: is python3-aiosmtpd installed?")).unwrap();
            line.strip_prefix(name).unwrap_or_else(|| panic!("{line}")).trim().parse().unwrap()
        };
        let (https, smtp) = (port("https"), port("smtp"));
        Self { child, dir, https, smtp }
    }

    /// What they were given.
    fn got(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `--test` of a configuration, by somebody who trusts their certificate, or only what the host trusts.
    fn test(&self, trusted: bool, channel: &str) -> (Option<i32>, String) {
        let names: Vec<&str> = channel.lines().filter_map(|l| l.strip_prefix("[channel.")?.strip_suffix(']')).collect();
        let notify = Notify::alone(&format!("{channel}\n[[route]]\nchannels = {names:?}\n"));
        let mut command = notify.command();
        if trusted {
            command.env("SSL_CERT_FILE", self.dir.path().join("certificate"));
        }
        let done = command.arg("--test").output().unwrap();
        (done.status.code(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_webhook_is_told_only_where_its_certificate_is_of_its_name_and_trusted() {
    let servers = Servers::start();
    let hook = |host: &str| {
        let url = format!("https://{host}:{}/the-secret-path", servers.https);
        format!("[channel.hook]\ntype = \"webhook\"\nurl = \"{url}\"\nallow_private = true\n")
    };
    let (status, said) = servers.test(false, &hook("localhost"));
    assert!(status == Some(1) && said.starts_with("hook: localhost: TLS: ") && !said.contains("secret"), "{said}");
    let (status, said) = servers.test(true, &hook("127.0.0.1"));
    assert!(status == Some(1) && said.starts_with("hook: 127.0.0.1: TLS: "), "{said}");
    assert_eq!(servers.got(), Vec::<Value>::new());
    assert_eq!(servers.test(true, &hook("localhost")), (Some(0), "hook: delivered\n".to_owned()));
    let got = servers.got();
    assert!(got.len() == 1 && got[0]["path"] == "/the-secret-path" && got[0]["tls"] == "TLSv1.3", "{got:?}");
}

#[test]
fn mail_goes_to_a_server_that_is_trusted_and_by_whom_it_knows() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let mail = |host: &str, password: &str| {
        let password = secret(dir.path(), password, &format!("{password}\n"));
        format!(
            "[channel.mail]\ntype = \"email\"\nserver = \"{host}\"\nport = {}\nallow_private = true\nfrom = \
             \"g@example.org\"\nto = [\"a@example.org\"]\nuser = \"guardian\"\nsecret_file = \"{}\"\n",
            servers.smtp,
            password.display()
        )
    };
    let (status, said) = servers.test(false, &mail("localhost", "the-password"));
    assert!(
        status == Some(1)
            && said.starts_with("mail: localhost: cannot be connected to: ")
            && said.contains("certificate"),
        "{said}"
    );
    let (status, said) = servers.test(true, &mail("127.0.0.1", "the-password"));
    assert!(
        status == Some(1)
            && said.starts_with("mail: 127.0.0.1: cannot be connected to: ")
            && said.contains("certificate"),
        "{said}"
    );
    let (status, said) = servers.test(true, &mail("localhost", "another-password"));
    assert!(status == Some(1) && said.contains("mail: localhost: answers 535") && !said.contains("password"), "{said}");
    assert_eq!(servers.got(), Vec::<Value>::new());
    assert_eq!(servers.test(true, &mail("localhost", "the-password")), (Some(0), "mail: delivered\n".to_owned()));
    let got = servers.got();
    assert!(got.len() == 1 && got[0]["tls"] == true && got[0]["to"] == serde_json::json!(["a@example.org"]), "{got:?}");
    assert!(got[0]["mail"].as_str().unwrap().contains("Subject: test: guardian guardiand on "), "{got:?}");
}
