//! `explain`: what a run waits for.

use super::Done;
use super::output::{Output, Tone, escape, local_time};
use super::session::Session;
use crate::bus::client::Client;
use crate::json;

/// Says it in a sentence, and then in detail.
pub async fn main(run: &str, session: &Session, out: &Output) -> Done {
    let told = session.ask(async |c: &Client| c.explain(run).await).await?;
    if out.json {
        out.json(&json::explained(&told))?;
        return Ok(0);
    }
    let when = match told.is_kept {
        true => format!("just before it was killed, at {}", local_time(told.seen_at)),
        false => format!("at {}", local_time(told.seen_at)),
    };
    out.line(format!("{}: {}", told.run, escape(&told.sentence)))?;
    out.line(out.tone(Tone::Dim, format!("  {when}:")))?;
    for line in &told.details {
        out.line(format!("  {}", escape(line)))?;
    }
    Ok(0)
}
