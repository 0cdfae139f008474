//! The scenarios of ends that nobody asks for: rules, leftovers, clients that die; and what is held after all of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::kills::received;
use super::lab::{Lab, eventually};
use super::workload::processes_of_a_tree;
use super::{Tried, Verdict};
use crate::model::{Error, Outcome, RunView};

/// The runs of which nothing may be left.
const RUNS: usize = 20;
/// The status of the command that leaves daemons behind.
const LEAVES: i32 = 7;

/// What ends a run that is not ended as it is to be.
const ELSE: [&str; 4] = ["--max-runtime", "10s", "--grace", "300ms"];

/// How a run ended, for people.
fn outcome(view: &RunView) -> String {
    view.outcome.as_ref().map(Outcome::to_string).unwrap_or_default()
}

/// Checks that a rule ended the run.
fn by_its_rule(view: &RunView, rule: &str) -> Tried {
    let text = format!("{}; {}", outcome(view), received(view)?);
    let by = match &view.outcome {
        Some(Outcome::Killed { reason }) => reason.code(),
        _ => "",
    };
    Ok(if by == rule { Verdict::Holds(text) } else { Verdict::Fails(format!("not ended by {rule} but: {text}")) })
}

pub async fn of_a_run_that_is_never_ready(lab: &Lab<'_>) -> Tried {
    let options = [&["--readiness", "notify", "--init-timeout", "1s"], &ELSE[..]].concat();
    let mut run = lab.start("silent", &options, 1).await?;
    let view = lab.over(&mut run).await?;
    by_its_rule(&view, "init_timeout")
}

pub async fn of_heartbeats(lab: &Lab<'_>) -> Tried {
    let options = [&["--heartbeat-timeout", "1s", "--heartbeat-action", "kill"], &ELSE[..]].concat();
    let mut run = lab.start("heartbeat", &options, 1).await?;
    let view = lab.over(&mut run).await?;
    by_its_rule(&view, "heartbeat_timeout")
}

pub async fn with_leftovers(lab: &Lab<'_>) -> Tried {
    let mut run = lab.start("leftovers", &["--grace", "300ms"], 4).await?;
    let view = lab.over(&mut run).await?;
    let text = format!("{}; {}", outcome(&view), received(&view)?);
    match view.outcome {
        Some(Outcome::Exited { code: LEAVES }) => Ok(Verdict::Holds(text)),
        _ => Ok(Verdict::Fails(format!("its exit status is {LEAVES}, but: {text}"))),
    }
}

pub async fn of_a_client(lab: &Lab<'_>) -> Tried {
    let mut run = lab.start("tree", &ELSE, processes_of_a_tree()).await?;
    run.client.kill().map_err(|e| Error::internal(format!("cannot kill the client: {e}")))?;
    let view = lab.over(&mut run).await?;
    by_its_rule(&view, "client_gone")
}

/// What an instance holds: its descriptors, if they may be seen.
fn descriptors(pid: u32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

pub async fn what_is_held(lab: &Lab<'_>) -> Tried {
    let mut warm = lab.start("exit", &[], 1).await?;
    lab.over(&mut warm).await?;
    let before = descriptors(lab.about.pid);
    let (mut containers, mut began) = (Vec::<PathBuf>::new(), Instant::now());
    for _ in 0..RUNS {
        let mut run = lab.start("exit", &[], 1).await?;
        let view = lab.over(&mut run).await?;
        if view.outcome != Some(Outcome::Exited { code: 0 }) {
            return Ok(Verdict::Fails(format!("{}: {}", view.spec.id, outcome(&view))));
        }
        containers.extend(view.container.as_ref().map(|c| c.path().to_owned()));
    }
    let took = began.elapsed();
    began = Instant::now();
    // A scope is removed by systemd, and a connection is closed, in their own time.
    let mut left = Vec::new();
    let mut after = before;
    eventually(async || {
        left = containers.iter().filter(|path| path.exists()).collect();
        after = descriptors(lab.about.pid);
        Ok((left.is_empty() && after <= before) || began.elapsed() > Duration::from_secs(10))
    })
    .await?;
    let fds = match (before, after) {
        (Some(before), Some(after)) => format!("{before} descriptors before, {after} after"),
        _ => "whose descriptors only root may see".to_owned(),
    };
    let text = format!(
        "{RUNS} runs in {:.1} s; of their containers {} are left; the instance, {fds}",
        took.as_secs_f64(),
        left.len()
    );
    let holds = left.is_empty() && (before.is_none() || after <= before);
    Ok(if holds { Verdict::Holds(text) } else { Verdict::Fails(text) })
}
