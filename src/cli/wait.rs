//! `wait`: waits for a run to end, and exits with its status.

use std::time::{Duration, Instant};

use super::args::WaitArgs;
use super::output::{Output, note};
use super::session::Session;
use super::{Done, ending};
use crate::bus::client::Client;
use crate::json;
use crate::model::{Error, ErrorKind, RunView};

/// How often in a row the next instance is asked. Each starts in some milliseconds and takes the run up.
const INSTANCES: u32 = 8;

/// The run as it ended. The instance that was asked may die meanwhile: its successor knows the run too.
async fn until_over(args: &WaitArgs, session: &Session) -> Result<RunView, Error> {
    let begun = Instant::now();
    let mut failures = 0;
    loop {
        let left = args.timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
        match session.ask(async |c: &Client| c.wait(&args.run, left).await).await {
            Err(e) if e.kind == ErrorKind::Unavailable && failures < INSTANCES => {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(20 << failures)).await;
            }
            answer => return answer,
        }
    }
}

/// Waits. What ended the run goes to standard error, as with `run`.
pub async fn main(args: &WaitArgs, session: &Session, out: &Output) -> Done {
    let view = until_over(args, session).await?;
    if out.json {
        out.json(&json::run(&view))?;
    } else {
        ending::sentences(&view).iter().for_each(note);
    }
    Ok(view.outcome.as_ref().map_or(super::OWN_FAILURE, |o| o.exit_status()))
}
