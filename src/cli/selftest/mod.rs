//! `selftest`: the safety scenarios, on this host and against the instance that answers.
//!
//! Each scenario makes real processes (`workload`), ends them in its way, and then asks the kernel and not the instance what
//! is left. A process beside them that is no run's must live through all of it.

mod ends;
mod escapes;
mod kills;
mod lab;
mod own;
mod postgres;
mod workload;

use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use self::lab::Lab;
use super::Done;
use super::args::{Scenario, SelftestArgs};
use super::output::{Output, Tone, escape, note};
use super::session::Session;
use crate::model::Error;

pub use self::workload::main as workload;

/// What a scenario came to.
enum Verdict {
    /// What was observed, and it is what was promised.
    Holds(String),
    /// Why it could not be tried here.
    NotTried(String),
    /// What was observed, and it is not what was promised.
    Fails(String),
}

/// What a scenario came to, or what kept it from going on, which counts as a failure.
type Tried = Result<Verdict, Error>;

async fn try_it(scenario: Scenario, lab: &Lab<'_>) -> Tried {
    match scenario {
        Scenario::KillDuringFileOperations => kills::during_file_operations(lab).await,
        Scenario::KillDuringDatabaseWrites => kills::during_database_writes(lab).await,
        Scenario::KillWithMultipleProcesses => kills::with_multiple_processes(lab).await,
        Scenario::KillNonExistentWorkflow => kills::of_no_run(lab).await,
        Scenario::KillAlreadyCompletedWorkflow => kills::of_a_completed_run(lab).await,
        Scenario::ConcurrentKillRequests => kills::at_once(lab).await,
        Scenario::KillPermissionValidation => kills::by_another_user(lab).await,
        Scenario::ResourceCleanupVerification => ends::what_is_held(lab).await,
        Scenario::StuckInInitialization => ends::of_a_run_that_is_never_ready(lab).await,
        Scenario::HeartbeatLost => ends::of_heartbeats(lab).await,
        Scenario::Leftovers => ends::with_leftovers(lab).await,
        Scenario::Escapes => escapes::from_a_run(lab).await,
        Scenario::ClientKilled => ends::of_a_client(lab).await,
        Scenario::DaemonKilled => own::killed(lab).await,
        Scenario::FullStateDirectory => own::without_room(lab).await,
    }
}

/// Runs the scenarios that were asked for, all of them if none was. The exit status is 0 if none fails; with `--strict`, if
/// everything was tried as well.
pub async fn main(args: &SelftestArgs, session: &Session, out: &Output) -> Done {
    let lab = Lab::new(session).await?;
    if !out.json {
        out.line(format!("{}\n", lab.described()))?;
    }
    let (mut shown, mut failed, mut left) = (Vec::new(), 0, 0);
    let all = Scenario::value_variants();
    for scenario in if args.scenarios.is_empty() { all } else { &args.scenarios } {
        let shown_as = scenario.to_possible_value().unwrap_or_default();
        let (name, tries) = (shown_as.get_name(), shown_as.get_help().map(ToString::to_string).unwrap_or_default());
        let began = Instant::now();
        let tried = try_it(*scenario, &lab).await;
        let verdict = match (tried, lab.clean_up().await) {
            (Err(e), Err(left)) => Verdict::Fails(format!("{}; and {left}", e.message)),
            (Err(e), Ok(())) => Verdict::Fails(e.message),
            (Ok(Verdict::Holds(text)), Err(left)) => Verdict::Fails(format!("{text}; but {left}")),
            (Ok(verdict), _) => verdict,
        };
        let took = began.elapsed();
        let mut left_out = lab.left_out();
        let (word, code, tone, seen) = match verdict {
            Verdict::Holds(text) => ("holds", "holds", Tone::Good, text),
            Verdict::NotTried(why) => {
                left_out = vec![why];
                ("not tried", "not_tried", Tone::Warning, String::new())
            }
            Verdict::Fails(text) => ("FAILS", "fails", Tone::Bad, text),
        };
        failed += i32::from(code == "fails");
        left += left_out.len();
        let (seen, left_out) = (escape(&seen), left_out.iter().map(|why| escape(why)).collect::<Vec<_>>());
        if out.json {
            shown.push(json!({
                "scenario": name, "tried": tries, "observed": seen, "not_tried": left_out, "verdict": code,
                "duration_usec": took.as_micros() as u64,
            }));
            continue;
        }
        out.line(format!("{}  {name}  {:.1} s", out.tone(tone, format!("{word:<9}")), took.as_secs_f64()))?;
        out.line(format!("           tried: {tries}"))?;
        if !seen.is_empty() {
            out.line(format!("           seen:  {seen}"))?;
        }
        left_out.iter().try_for_each(|why| out.line(format!("           not tried: {why}")))?;
    }
    if out.json {
        out.json(&shown.into())?;
    }
    if failed > 0 {
        note(format!(
            "{failed} of the scenarios do not hold: please report this, with the text above and `guardian doctor`"
        ));
    }
    if left > 0 && args.strict {
        note(format!("{left} things were not tried, and with --strict they have to be"));
    }
    Ok(i32::from(failed > 0 || (left > 0 && args.strict)))
}
