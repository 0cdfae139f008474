//! Loading: what each table takes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::read::{Reader, Table, number, shown, text, texts, truth, word};
use super::{Channel, Config, Delivery, Email, MailTls, Route, Target};
use crate::config::{ConfigErrors, Problem, kind, suggest};
use crate::model::parse_duration;
use crate::notify::event::{Event, Severity};
use crate::notify::quiet::Quiet;
use crate::notify::secret::{Secret, check_url};
use crate::notify::template::Template;

/// A configuration is some kilobytes; more than this is another file.
const MAX_BYTES: u64 = 1 << 20;

const TABLES: [&str; 3] = ["delivery", "channel", "route"];
const TYPES: [(&str, Type); 8] = [
    ("webhook", Type::Webhook),
    ("slack", Type::Slack),
    ("discord", Type::Discord),
    ("teams", Type::Teams),
    ("ntfy", Type::Ntfy),
    ("alertmanager", Type::Alertmanager),
    ("email", Type::Email),
    ("exec", Type::Exec),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Webhook,
    Slack,
    Discord,
    Teams,
    Ntfy,
    Alertmanager,
    Email,
    Exec,
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// The configuration in a file.
pub(super) fn load(file: &Path) -> Result<Config, ConfigErrors> {
    let whole = |message: String| ConfigErrors(vec![Problem::whole(file, message)]);
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| whole(format!("cannot be read: {e}: check the path, and that guardian-notify may read it")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(whole("is larger than 1 MiB: this is not a configuration of guardian-notify".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| whole("is not UTF-8: save it as UTF-8".to_owned()))?;
    parse(file, &text)
}

/// The configuration of a text; the file is for what is told.
pub(super) fn parse(file: &Path, text: &str) -> Result<Config, ConfigErrors> {
    let mut reader = Reader { file, text, problems: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        reader.refuse(at, None, format!("{}: this is not TOML", error.message().replace('\n', ", ")));
    }
    let mut config = Config {
        delivery: Delivery { give_up_after: DAY, retry_max: Duration::from_secs(300), outbox_max: 10_000 },
        channels: BTreeMap::new(),
        routes: Vec::new(),
    };
    let document = document.get_ref();
    for (name, value) in document {
        let (at, name) = (name.span().start, name.get_ref().as_ref());
        match name {
            "delivery" => delivery(&mut reader, at, value, &mut config.delivery),
            "channel" => channels(&mut reader, at, value, &mut config.channels),
            "route" => {}
            _ => {
                let hint = suggest(name, TABLES.into_iter());
                reader.refuse(at, Some(shown(name)), format!("is not a table of the configuration: {hint}"));
            }
        }
    }
    // Read after the channels that they name.
    if let Some((name, value)) = document.iter().find(|(name, _)| name.get_ref() == "route") {
        routes(&mut reader, name.span().start, value, document, &mut config.routes);
    } else if document.get("channel").is_some_and(|v| matches!(v.get_ref(), DeValue::Table(_))) {
        reader.refuse(0, None, "there is no [[route]]: nothing would ever be told".to_owned());
    }
    reader.problems.sort_by_key(|problem| problem.place);
    if reader.problems.is_empty() { Ok(config) } else { Err(ConfigErrors(reader.problems)) }
}

fn delivery(reader: &mut Reader<'_>, at: usize, value: &Spanned<DeValue<'_>>, into: &mut Delivery) {
    let Some(mut table) = Table::of(reader, "delivery".to_owned(), at, value.get_ref(), "write [delivery]") else {
        return;
    };
    if let Some(time) = table.get("give_up_after", |v| time(v, 10 * SECOND, 30 * DAY)) {
        into.give_up_after = time;
    }
    if let Some(time) = table.get("retry_max", |v| time(v, SECOND, DAY)) {
        into.retry_max = time;
    }
    if let Some(most) = table.get("outbox_max", |v| number(v, 10, 1_000_000)) {
        into.outbox_max = most;
    }
    table.finish();
}

fn channels(reader: &mut Reader<'_>, at: usize, value: &Spanned<DeValue<'_>>, into: &mut BTreeMap<String, Channel>) {
    let DeValue::Table(all) = value.get_ref() else {
        let what = kind(value.get_ref());
        return reader.refuse(at, Some("channel".to_owned()), format!("is {what}: write [channel.NAME]"));
    };
    for (key, value) in all {
        let (at, name) = (key.span().start, key.get_ref().as_ref());
        let path = format!("channel.{}", shown(name));
        if !is_channel_name(name) {
            let message = "cannot name a channel: use 1 to 64 letters, digits, `_`, `.` and `-`";
            reader.refuse(at, Some(path), message.to_owned());
            continue;
        }
        let how = format!("write it as a table, [{path}]");
        let Some(table) = Table::of(reader, path, at, value.get_ref(), &how) else { continue };
        if let Some(channel) = channel(table, name) {
            into.insert(name.to_owned(), channel);
        }
    }
}

fn is_channel_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(is_plain)
}

fn channel(mut table: Table<'_, '_, '_>, name: &str) -> Option<Channel> {
    // What else it takes depends on it.
    let kind = table.need("type", "\"webhook\"", |v| word(v, &TYPES))?;
    let is_http = !matches!(kind, Type::Email | Type::Exec);
    let allow_private = match kind {
        Type::Exec => false,
        _ => table.get("allow_private", truth).unwrap_or(false),
    };
    let timeout = table.get("timeout", |v| time(v, SECOND, Duration::from_secs(300)));
    let default = |text: &str| Template::parse(text, |_, _| String::new());
    let title = table.get("title", template).map_or_else(|| default("{event}: {workflow} {run} on {host}"), Ok);
    let text_of = table.get("template", template).map_or_else(|| default("{sentence}"), Ok);
    let url = if is_http { url(&mut table, kind, allow_private) } else { None };
    let secret = match kind {
        Type::Webhook | Type::Ntfy | Type::Alertmanager | Type::Email => secret(&mut table),
        _ => None,
    };
    let target = match kind {
        Type::Webhook => url.map(|url| Target::Webhook { url, secret }),
        Type::Slack => url.map(|url| Target::Slack { url }),
        Type::Discord => url.map(|url| Target::Discord { url }),
        Type::Teams => url.map(|url| Target::Teams { url }),
        Type::Ntfy => url.map(|url| Target::Ntfy { url, token: secret }),
        Type::Alertmanager => url.map(|url| Target::Alertmanager { url, token: secret }),
        Type::Email => email(&mut table, secret).map(|email| Target::Email(Box::new(email))),
        Type::Exec => {
            table.need("command", "[\"/usr/local/bin/page\"]", command).map(|command| Target::Exec { command })
        }
    };
    table.finish();
    Some(Channel {
        name: name.to_owned(),
        target: target?,
        timeout: timeout.unwrap_or(Duration::from_secs(if kind == Type::Exec { 30 } else { 10 })),
        allow_private,
        title: title.ok()?,
        text: text_of.ok()?,
    })
}

/// Where the secret is, if there is one.
fn secret(table: &mut Table<'_, '_, '_>) -> Option<Secret> {
    let file = table.get("secret_file", file).map(Secret::File);
    let credential = table.get("credential", credential);
    if file.is_some() && credential.is_some() {
        table.refuse("has secret_file and credential: write one of them".to_owned());
    }
    file.or(credential)
}

/// The address. Those of Slack, Discord and Teams are secrets: who knows one can write there.
fn url(table: &mut Table<'_, '_, '_>, kind: Type, allow_private: bool) -> Option<Secret> {
    let is_secret = matches!(kind, Type::Slack | Type::Discord | Type::Teams);
    let plain = table.get("url", |v| {
        let url = text(v)?;
        if is_secret {
            return Err(
                "is a secret: put it into a file, and write url_file = \"PATH\" or credential = \"NAME\"".to_owned()
            );
        }
        check_url(&url, allow_private).map(|()| Secret::Plain(url))
    });
    let file = table.get("url_file", file).map(Secret::File);
    let named = if is_secret { table.get("credential", credential) } else { None };
    let mut given = [plain, file, named].into_iter().flatten();
    let url = given.next();
    if given.next().is_some() {
        table.refuse("has its address twice: write one of url, url_file and credential".to_owned());
    }
    // What was there and wrong is told already.
    if url.is_none() && !table.failed() {
        let how = if is_secret { "url_file = \"PATH\", or credential = \"NAME\"" } else { "url = \"https://…\"" };
        table.refuse(format!("has no address: write {how}"));
    }
    url
}

fn email(table: &mut Table<'_, '_, '_>, password: Option<Secret>) -> Option<Email> {
    let mailbox = |text: &str| {
        text.parse::<lettre::message::Mailbox>().map_err(|_| {
            format!("{:?} is no address of mail: write it as \"Guardian <guardian@example.org>\"", shown(text))
        })
    };
    let server = table.need("server", "\"smtp.example.org\"", text);
    let words = [("starttls", MailTls::Starttls), ("tls", MailTls::Tls), ("none", MailTls::None)];
    let tls = table.get("tls", |v| word(v, &words)).unwrap_or(MailTls::Starttls);
    let usual = match tls {
        MailTls::Starttls => 587,
        MailTls::Tls => 465,
        MailTls::None => 25,
    };
    let port = table.get("port", |v| number(v, 1, 65_535)).and_then(|p| u16::try_from(p).ok()).unwrap_or(usual);
    let user = table.get("user", text);
    let from = table.need("from", "\"guardian@example.org\"", |v| mailbox(&text(v)?));
    let to =
        table.need("to", "[\"ops@example.org\"]", |v| texts(v)?.iter().map(|t| mailbox(t)).collect::<Result<_, _>>());
    let login = match (user, password) {
        (Some(_), Some(_)) if tls == MailTls::None => {
            table.refuse("would send the password in the clear: write tls = \"starttls\" or \"tls\"".to_owned());
            None
        }
        (Some(user), Some(password)) => Some((user, password)),
        (None, None) => None,
        _ => {
            table.refuse("needs user and its password (secret_file or credential), or neither".to_owned());
            None
        }
    };
    Some(Email { server: server?, port, tls, login, from: from?, to: to? })
}

fn routes(
    reader: &mut Reader<'_>,
    at: usize,
    value: &Spanned<DeValue<'_>>,
    document: &DeTable<'_>,
    into: &mut Vec<Route>,
) {
    let DeValue::Array(all) = value.get_ref() else {
        let what = kind(value.get_ref());
        return reader.refuse(at, Some("route".to_owned()), format!("is {what}: write [[route]]"));
    };
    // Channels with a mistake in them count: they are told of by themselves.
    let channels: Vec<&str> = match document.get("channel").map(|v| v.get_ref()) {
        Some(DeValue::Table(table)) => table.keys().map(|k| k.get_ref().as_ref()).collect(),
        _ => Vec::new(),
    };
    for (i, value) in all.iter().enumerate() {
        let number = i + 1;
        let at = value.span().start;
        let Some(table) = Table::of(reader, format!("route {number}"), at, value.get_ref(), "write [[route]]") else {
            continue;
        };
        if let Some(route) = route(table, number, &channels) {
            if into.iter().any(|other| other.name == route.name) {
                reader.refuse(at, Some(format!("route {number}")), "has the name of another route".to_owned());
            }
            into.push(route);
        }
    }
}

fn route(mut table: Table<'_, '_, '_>, number: usize, channels: &[&str]) -> Option<Route> {
    let name = table.get("name", text).unwrap_or_else(|| format!("route {number}"));
    let workflows = table.get("workflow", texts).unwrap_or_default();
    let severities = Severity::ALL.map(|s| (s.as_str(), s));
    let severity = table.get("severity", |v| word(v, &severities)).unwrap_or(Severity::Info);
    let words = Event::ALL.map(|e| (e.as_str(), e));
    let events = table.get("events", |v| {
        let DeValue::Array(items) = v else { return Err(format!("must be a list, not {}", kind(v))) };
        items.iter().map(|item| word(item.get_ref(), &words)).collect::<Result<_, _>>()
    });
    let to = table.need("channels", "[\"NAME\"]", |v| {
        let names = texts(v)?;
        match names.iter().find(|name| !channels.contains(&name.as_str())) {
            Some(name) if channels.is_empty() => Err(format!("there is no channel {:?}, nor any other", shown(name))),
            Some(name) => {
                let known = channels.iter().copied().filter(|name| is_channel_name(name));
                Err(format!("there is no channel {:?}: {}", shown(name), suggest(name, known)))
            }
            None => Ok(names),
        }
    });
    let window = |v: &DeValue<'_>| time(v, Duration::ZERO, 7 * DAY);
    let dedup_window = table.get("dedup_window", window).unwrap_or(Duration::from_secs(600));
    let group_window = table.get("group_window", |v| time(v, Duration::ZERO, DAY)).unwrap_or_default();
    let quiet = table.get("quiet_hours", |v| Quiet::parse(&text(v)?));
    table.finish();
    Some(Route { name, workflows, severity, events, channels: to?, dedup_window, group_window, quiet })
}

fn template(value: &DeValue<'_>) -> Result<Template, String> {
    Template::parse(&text(value)?, |name, known| suggest(name, known.iter().copied()))
}

fn time(value: &DeValue<'_>, least: Duration, most: Duration) -> Result<Duration, String> {
    let time = parse_duration(&text(value)?)?;
    match (least..=most).contains(&time) {
        true => Ok(time),
        false => Err(format!("is out of range: write {} to {}", spelt(least), spelt(most))),
    }
}

fn spelt(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn file(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() { Ok(path) } else { Err("is not an absolute path: begin it with /".to_owned()) }
}

fn credential(value: &DeValue<'_>) -> Result<Secret, String> {
    let name = text(value)?;
    if name.len() > 255
        || name.starts_with('.')
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
    {
        return Err("is no name of a credential: it is that of a LoadCredential= of the unit".to_owned());
    }
    Ok(Secret::Credential(name))
}

fn command(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let DeValue::Array(_) = value else {
        return Err("must be a list, the program first: no shell reads it".to_owned());
    };
    let words = texts(value)?;
    let program = words.first().is_some_and(|program| program.starts_with('/'));
    if !program {
        return Err("must begin with the absolute path of a program".to_owned());
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err("has a NUL in it".to_owned());
    }
    Ok(words)
}
