//! `doctor`: what guards this host, what is missing, and what to type to get it.

use std::io;

use serde_json::{Value, json};

use super::Done;
use super::host::Host;
use super::output::{Output, Tone, columns, escape, hint, local_time, wrapped};
use super::session::Session;
use crate::bus::client::{Client, Description};
use crate::json as shapes;
use crate::model::{InstanceKind, Wall};

/// The columns that the names of rows take.
const NAMES: usize = 10;

/// Describes the instance and the host. Starts an instance if there is none, because whether it starts is the question.
pub async fn main(session: &Session, out: &Output) -> Done {
    let own = env!("CARGO_PKG_VERSION");
    let answer = session.ask(async |c: &Client| c.describe().await).await;
    let host = Host::look(answer.as_ref().ok());
    if out.json {
        let value = match &answer {
            Ok(d) => Value::Object(shapes::instance(d)),
            Err(e) => json!({"error": e.kind, "message": e.message}),
        };
        let socket = session.socket();
        let looked: serde_json::Map<_, _> =
            session.looked().await.into_iter().map(|(kind, what)| (kind.as_str().to_owned(), what.into())).collect();
        out.json(&json!({
            "client_version": own, "socket": socket, "host": host.json(), "instance": value, "looked_for": looked,
        }))?;
    } else {
        row(out, "client", own)?;
        for (kind, what) in session.looked().await {
            row(out, kind.as_str(), &what)?;
        }
        let private = answer.as_ref().is_ok_and(|d| d.instance != InstanceKind::System.as_str());
        if private {
            row(out, "socket", &escape(&session.socket().to_string_lossy()))?;
        }
        host.rows().iter().try_for_each(|(name, value)| row(out, name, value))?;
        if let Ok(d) = &answer {
            text(d, out)?;
            if d.version != own {
                hint(format!("the instance has version {}: it is replaced when it has been idle", escape(&d.version)));
            }
        }
    }
    let d = answer?;
    Ok(if d.health == "healthy" { 0 } else { 1 })
}

fn text(d: &Description, out: &Output) -> io::Result<()> {
    let row = |name: &str, value: &str| row(out, name, value);
    row("instance", &format!("{} {}, pid {}", escape(&d.instance), escape(&d.version), d.pid))?;
    row("since", &local_time(Wall(d.start_timestamp_usec)))?;
    row("state", &escape(&d.state_directory))?;
    row("config", &if d.config_file.is_empty() { "defaults".to_owned() } else { escape(&d.config_file) })?;
    let place = if d.control_group.is_empty() { String::new() } else { format!(" in {}", escape(&d.control_group)) };
    row("backend", &format!("{}{place}", escape(&d.backend)))?;
    for (name, chosen, why) in &d.backends {
        row("", &format!("{} {}: {}", if *chosen { "taken," } else { "not" }, escape(name), escape(why)))?;
    }
    row("runs", &format!("{} live, {} in all, {} kills", d.runs_active, d.runs_total, d.kills_total))?;
    row("audit", &format!("{} rows", d.last_sequence))?;
    let tone = if d.health == "healthy" { Tone::Good } else { Tone::Bad };
    row("health", &out.tone(tone, escape(&d.health)))?;
    d.health_reasons.iter().try_for_each(|r| row("", &escape(r)))?;
    d.notes.iter().try_for_each(|note| row("missing", &escape(note)))
}

/// A row; on a terminal in as many lines as it takes. What goes elsewhere is one line a row, so that grep finds it.
fn row(out: &Output, name: &str, value: &str) -> io::Result<()> {
    let lines = match columns() {
        Some(columns) if columns > NAMES + 30 => wrapped(value, columns - NAMES - 2),
        _ => vec![value.to_owned()],
    };
    let names = std::iter::once(name).chain(std::iter::repeat(""));
    lines.iter().zip(names).try_for_each(|(line, name)| out.line(format!("{name:>NAMES$}  {line}")))
}
