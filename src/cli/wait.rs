//! `wait`: waits for a run to end, and exits with its status.

use super::args::WaitArgs;
use super::output::{Output, note};
use super::session::Session;
use super::{Done, ending, json};
use crate::bus::client::Client;

/// Waits. What ended the run goes to standard error, as with `run`.
pub async fn main(args: &WaitArgs, session: &Session, out: &Output) -> Done {
    let view = session.ask(async |c: &Client| c.wait(&args.run, args.timeout).await).await?;
    if out.json {
        out.json(&json::run(&view))?;
    } else {
        ending::sentences(&view).iter().for_each(note);
    }
    Ok(view.outcome.as_ref().map_or(super::OWN_FAILURE, |o| o.exit_status()))
}
