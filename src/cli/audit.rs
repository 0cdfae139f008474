//! `audit`: the audit log in order, and the check of its hash chain.

use std::time::Duration;

use super::Done;
use super::args::{AuditArgs, AuditVerb};
use super::output::{Output, Tone, escape, local_time, note};
use super::session::Session;
use crate::bus::client::Client;
use crate::json;
use crate::model::AuditRow;

/// Rows in one call.
const PAGE: u32 = 1000;
/// How often a follower looks for new rows.
const FOLLOW: Duration = Duration::from_millis(250);

/// Shows the audit, or verifies it.
pub async fn main(args: &AuditArgs, session: &Session, out: &Output) -> Done {
    if let Some(AuditVerb::Verify) = args.verb {
        return verify(session, out).await;
    }
    let mut after = args.after;
    let mut client = session.connect().await?;
    loop {
        let rows = match client.events(after, PAGE, args.run.as_deref()).await {
            Err(e) if args.follow && e.kind == crate::model::ErrorKind::Unavailable => {
                client = session.connect().await?;
                continue;
            }
            rows => rows?,
        };
        for row in &rows {
            // A line a row, so that a follower's reader need not parse an unfinished document.
            if out.json {
                out.json_line(&json::row(row))?
            } else {
                out.line(line(row, out))?
            }
            after = row.seq;
        }
        if rows.len() < PAGE as usize {
            if !args.follow {
                return Ok(0);
            }
            tokio::time::sleep(FOLLOW).await;
        }
    }
}

/// A row as a line.
pub fn line(row: &AuditRow, out: &Output) -> String {
    let e = &row.event;
    let run = e.run.map(|r| r.to_string()).unwrap_or_else(|| "-".to_owned());
    let reason = if e.reason.is_empty() { String::new() } else { format!("  {}", escape(&e.reason)) };
    let seq = out.tone(Tone::Dim, format!("{:>6}", row.seq));
    format!("{seq}  {}  {:<16}  {run:<16}  {}{reason}", local_time(e.at), e.kind.as_str(), escape(&e.actor.to_string()))
}

async fn verify(session: &Session, out: &Output) -> Done {
    let report = session.ask(async |c: &Client| c.verify().await).await?;
    if out.json {
        out.json(&json::report(&report))?;
    } else if report.broken.is_none() {
        out.line(format!("{} rows ({} to {}), the chain is whole", report.rows, report.first_seq, report.last_seq))?;
        out.line(format!("last hash {}", escape(&report.last_hash)))?;
    }
    match &report.broken {
        None => Ok(0),
        Some((seq, problem)) => {
            note(format!("the audit is broken at row {seq}: {}", escape(problem)));
            Ok(1)
        }
    }
}
