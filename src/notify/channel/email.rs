//! Mail, to a server of one's own.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;

use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport as _};

use super::{Failure, Words};
use crate::model::escape;
use crate::notify::address::is_public;
use crate::notify::config::{Channel, Email, MailTls};
use crate::notify::event::Notice;
use crate::notify::http::private;

pub(super) fn deliver(channel: &Channel, mail: &Email, words: &Words, notices: &[Notice]) -> Result<(), Failure> {
    let failed = |what: String| Failure::of_channel(format!("{}: {what}", mail.server));
    let message = compose(mail, words, notices)
        .map_err(|e| Failure { of_channel: false, ..failed(format!("the mail cannot be composed: {e}")) })?;
    let addresses = resolve(channel, mail).map_err(failed)?;
    // The server is known by its name, and connected to at an address that was checked.
    let tls = || TlsParameters::new(mail.server.clone()).map_err(|_| failed("TLS cannot be used".to_owned()));
    let tls = match mail.tls {
        MailTls::Starttls => Tls::Required(tls()?),
        MailTls::Tls => Tls::Wrapper(tls()?),
        MailTls::None => Tls::None,
    };
    let login = match &mail.login {
        Some((user, password)) => Some(Credentials::new(user.clone(), password.read().map_err(Failure::of_channel)?)),
        None => None,
    };
    let mut last = None;
    for address in addresses {
        let mut transport = SmtpTransport::builder_dangerous(address.to_string())
            .port(mail.port)
            .tls(tls.clone())
            .timeout(Some(channel.timeout));
        if let Some(login) = &login {
            transport = transport.credentials(login.clone());
        }
        match transport.build().send(&message) {
            Ok(_) => return Ok(()),
            Err(e) if is_answer(&e) => return Err(refused(&e, failed)),
            // Nobody is there, by IPv6 perhaps: the next address may do.
            Err(e) => last = Some(refused(&e, failed)),
        }
    }
    Err(last.unwrap_or_else(|| failed("there is no such host".to_owned())))
}

/// Whether somebody was there who has said something.
fn is_answer(e: &lettre::transport::smtp::Error) -> bool {
    e.status().is_some() || e.is_timeout() || e.is_tls() || e.is_client() || e.is_response()
}

/// What the server says may hold what it was sent: its code is told.
fn refused(e: &lettre::transport::smtp::Error, failed: impl Fn(String) -> Failure) -> Failure {
    let code = e.status().map(|code| format!("answers {code}"));
    let what = code.unwrap_or_else(|| {
        let why = std::error::Error::source(e);
        let late = why
            .and_then(|why| why.downcast_ref::<std::io::Error>())
            .is_some_and(|e| matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
        match why {
            _ if late || e.is_timeout() => "did not answer in time".to_owned(),
            _ if e.is_client() => {
                "cannot be used as configured: does it offer STARTTLS, and a way to log in?".to_owned()
            }
            // Of the system, or of TLS.
            Some(why) if !e.is_response() => format!("cannot be connected to: {}", escape(&why.to_string())),
            _ => "cannot be connected to".to_owned(),
        }
    });
    Failure { of_channel: !e.is_permanent(), ..failed(what) }
}

pub(super) fn compose(mail: &Email, words: &Words, notices: &[Notice]) -> Result<Message, lettre::error::Error> {
    let id = notices.first().map(|n| format!("<{}.{}@guardian.invalid>", n.id, plain(&n.host)));
    let mut message = Message::builder().from(mail.from.clone()).subject(&words.title).message_id(id);
    for to in &mail.to {
        message = message.to(to.clone());
    }
    message.header(ContentType::TEXT_PLAIN).body(format!("{}\n\n{}\n", words.title, words.text))
}

fn plain(host: &str) -> String {
    host.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect()
}

/// The addresses of the server, all of which may be used. A look-up has no time limit of its own.
fn resolve(channel: &Channel, mail: &Email) -> Result<Vec<IpAddr>, String> {
    let (sender, found) = mpsc::sync_channel(1);
    let server = (mail.server.clone(), mail.port);
    std::thread::spawn(move || {
        let found = server.to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>);
        // Whoever waited has given up.
        let _ = sender.send(found);
    });
    let found = match found.recv_timeout(channel.timeout) {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => return Err("there is no such host".to_owned()),
        Err(_) => return Err("its name was not looked up in time".to_owned()),
    };
    if let Some(address) = found.iter().find(|address| !channel.allow_private && !is_public(address.ip())) {
        return Err(private(*address));
    }
    Ok(found.iter().map(SocketAddr::ip).collect())
}
