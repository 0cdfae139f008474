//! Who is let in: to which name a request was sent, from which page, and with which token.
//!
//! Host and Origin are compared as they are, with names that were configured. So a page of somebody else that has its name
//! resolved to this host (DNS rebinding) gets nothing, and neither does one whose name only begins or ends like ours.

use std::net::SocketAddr;
use std::time::Instant;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, header};

use super::App;
use super::reply::Problem;
use super::tokens::Role;

/// The cookie with the id of a session.
pub const COOKIE: &str = "guardian_session";

/// The names under which one listener is asked.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    /// Of the listener itself, where there is no TLS.
    own: Vec<String>,
    /// That were configured: a proxy may be before them, with TLS or without.
    named: Vec<String>,
}

impl Hosts {
    /// Of a TCP address.
    pub fn of_address(at: SocketAddr, named: &[String]) -> Self {
        let mut own = vec![at.to_string()];
        if at.ip().is_loopback() {
            own.push(format!("localhost:{}", at.port()));
        }
        if at.port() == 80 {
            own =
                own.iter().filter_map(|host| host.strip_suffix(":80").map(str::to_owned)).chain(own.clone()).collect();
        }
        let mut named = Self::lower(named);
        named = named.iter().map(|name| format!("{name}:{}", at.port())).chain(named.clone()).collect();
        Self { own, named }
    }

    /// Of a unix socket.
    pub fn of_socket(named: &[String]) -> Self {
        Self { own: vec!["localhost".to_owned()], named: Self::lower(named) }
    }

    fn lower(named: &[String]) -> Vec<String> {
        named.iter().map(|name| name.to_ascii_lowercase()).collect()
    }

    /// Whether a request was sent to one of the names.
    pub fn admits(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.own.contains(&host) || self.named.contains(&host)
    }

    /// Whether a page has the origin of the name that a request was sent to.
    pub fn is_origin(&self, origin: &str, host: &str) -> bool {
        let (origin, host) = (origin.to_ascii_lowercase(), host.to_ascii_lowercase());
        let with = |scheme: &str| origin.strip_prefix(scheme).is_some_and(|of| of == host);
        with("http://") || (self.named.contains(&host) && with("https://"))
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The name of the token.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// A browser sends a cookie by itself: then it matters which page made it do so.
    pub by_cookie: bool,
}

/// The only value of a header, as text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Problem::malformed(format!("the header {name} is no text"))),
        },
        _ => Err(Problem::malformed(format!("the header {name} is there twice"))),
    }
}

/// Refuses what was sent to another name, or by a page of somebody else.
pub fn sent_here(parts: &Parts, hosts: &Hosts) -> Result<(), Problem> {
    let host = only(&parts.headers, &header::HOST)?;
    let Some(host) = host.filter(|host| hosts.admits(host)) else {
        return Err(Problem::forbidden(
            "this name is not served here: use the address that guardian-web listens on, or start it with --host NAME",
        ));
    };
    if parts.uri.authority().is_some_and(|of| !of.as_str().eq_ignore_ascii_case(host)) {
        return Err(Problem::forbidden("the request line names another host than the header Host"));
    }
    match only(&parts.headers, &header::ORIGIN)? {
        Some(origin) if !hosts.is_origin(origin, host) => {
            Err(Problem::forbidden("a page of somebody else asks: only the dashboard from here may"))
        }
        _ => Ok(()),
    }
}

/// Who asks, if anybody whom we know.
pub fn who(app: &App, headers: &HeaderMap) -> Result<Who, Problem> {
    let needs = "this needs a token: `guardian token new --role viewer NAME` makes one, and it goes into the header \
                 `Authorization: Bearer TOKEN`, or into the dashboard";
    if let Some(value) = only(headers, &header::AUTHORIZATION)? {
        let (scheme, secret) = value.split_once(' ').unwrap_or((value, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Problem::unauthorized(needs));
        }
        let token = app.tokens.with_secret(secret.trim());
        let token = token.ok_or_else(|| {
            Problem::unauthorized("this token does not hold: it was revoked, or never made (`guardian token list`)")
        })?;
        return Ok(Who { name: token.name, role: token.role, by_cookie: false });
    }
    let session = session_id(headers).and_then(|id| app.sessions.get(&app.tokens, id, Instant::now()));
    let session = session.ok_or_else(|| Problem::unauthorized(needs))?;
    Ok(Who { name: session.name, role: session.role, by_cookie: true })
}

/// The id of the session in the cookies.
pub fn session_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).map(|(_, id)| id).next()
}

/// Refuses a change that is not sent as the dashboard and programs send it. A page of somebody else can send no JSON and no
/// Authorization unless we allow it (CORS), which is never done; with a cookie it also has to be a page of ours.
pub fn may_change(parts: &Parts, who: Option<&Who>) -> Result<(), Problem> {
    if parts.method == Method::GET || parts.method == Method::HEAD {
        return Ok(());
    }
    let content_type = only(&parts.headers, &header::CONTENT_TYPE)?.unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Problem::malformed("what is sent has to be JSON, and to say so: `Content-Type: application/json`"));
    }
    if who.is_some_and(|who| who.by_cookie) && !parts.headers.contains_key(header::ORIGIN) {
        return Err(Problem::forbidden("with a cookie the page has to be named: the header Origin is missing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(at: &str, named: &[&str]) -> Hosts {
        let named: Vec<String> = named.iter().map(|n| (*n).to_owned()).collect();
        at.parse().map_or_else(|_| Hosts::of_socket(&named), |at| Hosts::of_address(at, &named))
    }

    #[test]
    fn a_host_is_exactly_one_of_ours() {
        let ours = hosts("127.0.0.1:8642", &["guard.example"]);
        for host in ["127.0.0.1:8642", "localhost:8642", "LocalHost:8642", "guard.example", "guard.example:8642"] {
            assert!(ours.admits(host), "{host}");
        }
        for host in [
            "",
            "127.attacker.example",
            "127.0.0.1.attacker.example:8642",
            "localhost.evil:8642",
            "127.0.0.1",
            "localhost",
            "localhost:864",
            "127.0.0.1:86420",
            "127.0.0.2:8642",
            "evil-guard.example",
            "guard.example.evil",
            "guard.example.",
            "user@127.0.0.1:8642",
            "127.0.0.1:8642 ",
            "[::1]:8642",
        ] {
            assert!(!ours.admits(host), "{host}");
        }
        assert!(hosts("[::1]:80", &[]).admits("[::1]") && !hosts("192.0.2.1:80", &[]).admits("localhost"));
        assert!(hosts("unix", &[]).admits("localhost") && !hosts("unix", &[]).admits("localhost:80"));
    }

    #[test]
    fn an_origin_is_that_of_the_host_and_tls_is_a_proxys() {
        let ours = hosts("127.0.0.1:8642", &["guard.example"]);
        assert!(ours.is_origin("http://127.0.0.1:8642", "127.0.0.1:8642"));
        assert!(ours.is_origin("https://guard.example", "guard.example"));
        for (origin, host) in [
            ("null", "127.0.0.1:8642"),
            ("", "127.0.0.1:8642"),
            ("http://localhost:8642", "127.0.0.1:8642"),
            ("https://127.0.0.1:8642", "127.0.0.1:8642"),
            ("http://127.0.0.1:8642.evil.example", "127.0.0.1:8642"),
            ("http://127.0.0.1:8642/", "127.0.0.1:8642"),
            ("http://127.0.0.1:86", "127.0.0.1:8642"),
        ] {
            assert!(!ours.is_origin(origin, host), "{origin}");
        }
    }
}
