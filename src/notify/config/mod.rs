//! `notify.toml`: channels, routes, and how long a message is tried. Loaded whole, or refused whole with every mistake in it.

mod load;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::event::{Event, Severity};
use super::quiet::Quiet;
use super::secret::Secret;
use super::template::Template;
use crate::config::user_config_home;

/// Where the host's is.
const SYSTEM: &str = "/etc/guardian/notify.toml";

/// All of it.
#[derive(Debug, Clone)]
pub struct Config {
    /// How messages are delivered, whatever the channel.
    pub delivery: Delivery,
    /// The channels, by name.
    pub channels: BTreeMap<String, Channel>,
    /// The routes, in the order of the file.
    pub routes: Vec<Route>,
}

/// `[delivery]`.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// How long a message is tried.
    pub give_up_after: Duration,
    /// The longest time between two tries.
    pub retry_max: Duration,
    /// How many messages may wait for a channel.
    pub outbox_max: u32,
}

/// `[channel.NAME]`.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// What it is, with what it takes.
    pub target: Target,
    /// How long one try may take in all.
    pub timeout: Duration,
    /// Whether addresses that are not the world's are used.
    pub allow_private: bool,
    /// The title of a message, or its subject.
    pub title: Template,
    /// Its text.
    pub text: Template,
}

/// What a channel is.
#[derive(Debug, Clone)]
pub enum Target {
    /// JSON, signed where there is a secret.
    Webhook { url: Secret, secret: Option<Secret> },
    /// An incoming webhook of Slack.
    Slack { url: Secret },
    /// A webhook of Discord.
    Discord { url: Secret },
    /// A workflow of Teams.
    Teams { url: Secret },
    /// A topic of ntfy.
    Ntfy { url: Secret, token: Option<Secret> },
    /// An Alertmanager, by its address without a path.
    Alertmanager { url: Secret, token: Option<Secret> },
    /// A mail server.
    Email(Box<Email>),
    /// A program.
    Exec { command: Vec<String> },
}

impl Target {
    /// Whether it keeps what is on and what is over by itself: it is told of everything at once.
    pub fn is_stateful(&self) -> bool {
        matches!(self, Target::Alertmanager { .. })
    }
}

/// A channel of mail.
#[derive(Debug, Clone)]
pub struct Email {
    /// The server.
    pub server: String,
    /// Its port.
    pub port: u16,
    /// How it is kept private.
    pub tls: MailTls,
    /// Whom to log in as, and the password.
    pub login: Option<(String, Secret)>,
    /// Who writes.
    pub from: lettre::message::Mailbox,
    /// Who reads.
    pub to: Vec<lettre::message::Mailbox>,
}

/// How mail is kept private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailTls {
    /// By STARTTLS, or not at all sent.
    Starttls,
    /// From the first byte.
    Tls,
    /// Not: for a server on this host.
    None,
}

/// `[[route]]`.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name, or `route N`.
    pub name: String,
    /// The workflows; empty for all, and for what is about the instance.
    pub workflows: Vec<String>,
    /// The least that is told.
    pub severity: Severity,
    /// The events; none for all that are news.
    pub events: Option<BTreeSet<Event>>,
    /// Where they go.
    pub channels: Vec<String>,
    /// For how long the same event of the same run is not told again.
    pub dedup_window: Duration,
    /// How long others are waited for that go into the same message.
    pub group_window: Duration,
    /// When only what is critical is told.
    pub quiet: Option<Quiet>,
}

/// The file that is read where none is named: the host's, or the user's.
pub fn usual_file(is_user: bool) -> Option<PathBuf> {
    if !is_user {
        return Some(PathBuf::from(SYSTEM));
    }
    let home = user_config_home(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"))?;
    Some(home.join("guardian/notify.toml"))
}

impl Config {
    /// Loads a file.
    pub fn load(file: &Path) -> Result<Self, crate::config::ConfigErrors> {
        load::load(file)
    }

    /// The configuration of a text; the file is for what is told.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn parse(file: &Path, text: &str) -> Result<Self, crate::config::ConfigErrors> {
        load::parse(file, text)
    }
}
