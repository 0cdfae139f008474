//! `freeze` and `thaw`: pause runs for inspection, and let them go on.

use super::Done;
use super::session::Session;
use crate::bus::client::Client;

/// Freezes or thaws the runs, one after the other; the first that fails ends it.
pub async fn main(runs: &[String], frozen: bool, session: &Session) -> Done {
    for run in runs {
        let ask = async |c: &Client| if frozen { c.freeze(run).await } else { c.thaw(run).await };
        session.ask(ask).await?;
    }
    Ok(0)
}
