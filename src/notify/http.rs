//! One request to a server that may be anything: to an address that was checked, within a time, without redirects, and with no
//! word of the address in what is told of it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::address::is_public;
use super::config::Channel;
use super::secret::{Secret, check_url};

/// The longest head of an answer. Its body is not read at all.
const MAX_HEAD: usize = 64 << 10;

/// Why a message was not taken. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub what: String,
    /// It is the server's matter and not the message's: others would fare the same.
    pub of_channel: bool,
    /// How long the server wants to be left alone.
    pub wait: Option<Duration>,
}

impl Failure {
    /// Of the channel as it is now.
    pub fn of_channel(what: impl Into<String>) -> Self {
        Self { what: what.into(), of_channel: true, wait: None }
    }
}

/// A name leads to an address that is not the world's.
#[derive(Debug)]
struct NotPublic(SocketAddr);

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&private(self.0))
    }
}

impl std::error::Error for NotPublic {}

/// Why an address is not used.
pub fn private(address: SocketAddr) -> String {
    format!(
        "it leads to {}, which is a private, local or reserved address: write allow_private = true if it is meant",
        address.ip()
    )
}

/// Looks names up, and gives only addresses that may be used. It is these that are connected to: what a name leads to a moment
/// later does not matter.
#[derive(Debug)]
struct Checked {
    allow_private: bool,
}

impl Resolver for Checked {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        match found.iter().find(|address| !self.allow_private && !is_public(address.ip())) {
            // Not even where it leads to a public one as well: whose name it is decides which one is taken.
            Some(address) => Err(ureq::Error::Other(Box::new(NotPublic(*address)))),
            None => Ok(found),
        }
    }
}

/// Sends a body to a channel's address, with a path after it.
pub fn post(channel: &Channel, url: &Secret, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<(), Failure> {
    let url = url.read().map_err(Failure::of_channel)?;
    check_url(&url, channel.allow_private).map_err(|why| Failure::of_channel(format!("its address {why}")))?;
    let host = host(&url);
    let failed = |what: String| Failure::of_channel(format!("{host}: {what}"));
    let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
    let config = Config::builder()
        .timeout_global(Some(channel.timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .max_response_header_size(MAX_HEAD)
        .max_idle_connections(0)
        // What the environment names for a proxy would look the name up by itself.
        .proxy(None)
        .tls_config(tls)
        .user_agent(concat!("guardian-notify/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent =
        ureq::Agent::with_parts(config, DefaultConnector::default(), Checked { allow_private: channel.allow_private });
    let full = format!("{}{path}", if path.is_empty() { &url } else { url.trim_end_matches('/') });
    let mut request = agent.post(full);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send(body).map_err(|e| failed(told(&e)))?;
    let status = answer.status().as_u16();
    match status {
        200..300 => Ok(()),
        300..400 => {
            Err(failed(format!("answers {status}, a redirect, which is not followed: write the address it leads to")))
        }
        408 | 425 | 429 | 500.. => {
            let wait = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
            Err(Failure { wait: wait.map(Duration::from_secs), ..failed(format!("answers {status}")) })
        }
        _ => Err(Failure { of_channel: false, ..failed(format!("answers {status}")) }),
    }
}

/// The host of an address, which is all that is told of it.
pub fn host(url: &str) -> String {
    let uri: Option<Uri> = url.parse().ok();
    uri.and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_else(|| "its address".to_owned())
}

/// An error in words that cannot hold the address or what was sent.
fn told(e: &ureq::Error) -> String {
    match e {
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::Timeout(_) => "did not answer in time".to_owned(),
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        ureq::Error::ConnectionFailed => "cannot be connected to".to_owned(),
        ureq::Error::Tls(why) => format!("TLS: {why}"),
        ureq::Error::NativeTls(e) => format!("TLS: {e}"),
        ureq::Error::Protocol(_) => "does not speak HTTP".to_owned(),
        ureq::Error::Other(e) => match e.downcast_ref::<NotPublic>() {
            Some(refused) => refused.to_string(),
            None => "the request failed".to_owned(),
        },
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => "its address or a header is not well formed".to_owned(),
        _ => "the request failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_of_an_address_is_told() {
        assert_eq!(host("https://hooks.slack.com/services/T0/B0/secret"), "hooks.slack.com");
        assert_eq!(host("not an address"), "its address");
        let told = told(&ureq::Error::BadUri("https://secret".to_owned()));
        assert!(!told.contains("secret"), "{told}");
    }
}
