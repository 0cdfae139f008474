//! `doctor`: what guards this host, what is missing, and what to type to get it.

use serde_json::{Value, json};

use super::output::{Output, Tone, escape, hint, local_time};
use super::session::Session;
use super::{Done, json as shapes};
use crate::bus::client::{Client, Description};
use crate::model::Wall;

/// Describes the instance; starts it if there is none, because whether it starts is the question.
pub async fn main(session: &Session, out: &Output) -> Done {
    let own = env!("CARGO_PKG_VERSION");
    let answer = session.ask(async |c: &Client| c.describe().await).await;
    if out.json {
        let value = match &answer {
            Ok(d) => Value::Object(shapes::instance(d)),
            Err(e) => json!({"error": e.kind, "message": e.message}),
        };
        out.json(&json!({"client_version": own, "socket": session.socket(), "instance": value}))?;
    } else {
        out.line(format!("{:>10}  {own}", "client"))?;
        out.line(format!("{:>10}  {}", "socket", escape(&session.socket().to_string_lossy())))?;
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

fn text(d: &Description, out: &Output) -> std::io::Result<()> {
    let row = |name: &str, value: String| out.line(format!("{name:>10}  {value}"));
    row("instance", format!("{} {}, pid {}", escape(&d.instance), escape(&d.version), d.pid))?;
    row("since", local_time(Wall(d.start_timestamp_usec)))?;
    row("state", escape(&d.state_directory))?;
    row("config", if d.config_file.is_empty() { "defaults".to_owned() } else { escape(&d.config_file) })?;
    row("backend", format!("{} in {}", escape(&d.backend), escape(&d.control_group)))?;
    row("runs", format!("{} live, {} in all, {} kills", d.runs_active, d.runs_total, d.kills_total))?;
    row("audit", format!("{} rows", d.last_sequence))?;
    let tone = if d.health == "healthy" { Tone::Good } else { Tone::Bad };
    row("health", out.tone(tone, escape(&d.health)))?;
    d.health_reasons.iter().try_for_each(|r| row("", escape(r)))?;
    d.notes.iter().enumerate().try_for_each(|(n, note)| row(if n == 0 { "missing" } else { "" }, escape(note)))
}
