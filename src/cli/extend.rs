//! `extend`: gives a timer of a run more time.

use serde_json::json;

use super::Done;
use super::args::ExtendArgs;
use super::output::{Output, local_time};
use super::session::Session;
use crate::bus::client::Client;
use crate::json::utc_time;

/// Extends, and says when the timer will now end the run.
pub async fn main(args: &ExtendArgs, session: &Session, out: &Output) -> Done {
    // Not asked twice: a lost answer would extend twice.
    let client: Client = session.connect().await?;
    let at = client.extend(&args.run, &args.limit, args.by).await?;
    if out.json {
        out.json(&json!({"limit": args.limit, "deadline": utc_time(at), "deadline_usec": at.0}))?;
    } else {
        out.line(format!("{} ends it at {}", args.limit, local_time(at)))?;
    }
    Ok(0)
}
