//! `demo`: four runs at once, three of them bad, and how each ends. The same calls as everybody else's; nothing staged.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::marked::marked;
use super::output::{Output, Tone, escape, table};
use super::session::Session;
use super::{Done, audit, list, now, show};
use crate::bus::client::Client;
use crate::model::LaunchRequest;
use crate::model::{Error, ErrorKind, LimitUpdate, Outcome, Readiness, RunId, RunView};

/// The whole demo takes about ten seconds; this long it may take.
const AT_MOST: Duration = Duration::from_secs(30);
const FRAME: Duration = Duration::from_millis(200);

/// One of the four.
struct Act {
    name: &'static str,
    script: &'static str,
    limits: LimitUpdate,
}

const HEALTHY: &str = "echo working; sleep 3; echo done";
const STUCK: &str = "sleep 1000";
const HOSTILE: &str = "trap '' TERM HUP INT; echo 'you cannot end me'
( ( setsid sh -c 'trap \"\" TERM; while :; do sleep 1000; done' & ) & )
i=0; while [ $i -lt 100 ]; do ( setsid sleep 1000 & ) ; i=$((i+1)); sleep 0.05; done
while :; do sleep 1000; done";
const DAEMON: &str = "echo starting a daemon; setsid sleep 1000 >/dev/null 2>&1 & sleep 2; exit 0";

fn acts() -> [Act; 4] {
    let seconds = |s| Some(Some(Duration::from_secs(s)));
    let grace = Some(Duration::from_secs(1));
    let limits = || LimitUpdate { grace, readiness: Some(Readiness::Output), ..LimitUpdate::default() };
    [
        Act { name: "healthy", script: HEALTHY, limits: limits() },
        Act {
            name: "stuck in initialization",
            script: STUCK,
            limits: LimitUpdate { init_timeout: seconds(2), ..limits() },
        },
        Act { name: "hostile tree", script: HOSTILE, limits: LimitUpdate { max_runtime: seconds(4), ..limits() } },
        Act { name: "leaves a daemon behind", script: DAEMON, limits: limits() },
    ]
}

/// Runs the four, shows them live, then their receipts and audit, and looks for what is left.
pub async fn main(session: &Session, out: &Output) -> Done {
    let client = session.connect().await?;
    let begin = Instant::now();
    // Whatever they start inherits this, so that the search at the end asks the kernel and not the instance.
    let mark = format!("GUARDIAN_DEMO={}-{}", std::process::id(), now().0);
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    let mut runs = Vec::new();
    for act in acts() {
        let request = LaunchRequest {
            reason: String::new(),
            reserved: None,
            workflow: Some("demo".into()),
            name: Some(act.name.into()),
            argv: ["sh", "-c", act.script].map(|a| a.as_bytes().to_vec()).to_vec(),
            env: vec![mark.clone().into_bytes(), format!("PATH={path}").into_bytes()],
            cwd: b"/".to_vec(),
            limits: act.limits,
            uid: None,
            prompt: None,
        };
        runs.push(client.start(&request).await?);
    }
    out.line("Four runs of the workflow `demo`, one healthy and three bad:")?;
    let views = live(&client, &runs, begin, out).await?;
    out.line("\nWhat each came to:")?;
    for view in &views {
        ended(view, out)?;
    }
    out.line("\nThe audit of the hostile tree (`guardian audit RUN`):")?;
    for row in client.events(0, 1000, Some(&runs[2].to_string())).await? {
        out.line(audit::line(&row, out))?;
    }
    let left = marked(&mark)?;
    let containers = views.iter().filter_map(|v| v.container.as_ref()).filter(|c| c.path().exists()).count();
    let verdict = format!(
        "\n{} processes and {containers} containers of the four runs are left, after {:.1} s.",
        left.len(),
        begin.elapsed().as_secs_f64()
    );
    if left.is_empty() && containers == 0 {
        out.line(out.tone(Tone::Good, verdict))?;
        return Ok(0);
    }
    out.line(out.tone(Tone::Bad, verdict))?;
    Err(Error::internal(format!("left behind: pids {left:?}: please report this")).into())
}

/// Shows the runs until all are over: as a table that is drawn anew on a terminal, else a line for each change.
async fn live(client: &Client, runs: &[RunId], begin: Instant, out: &Output) -> anyhow::Result<Vec<RunView>> {
    let terminal = io::stdout().is_terminal();
    let mut drawn = 0;
    let mut last = vec![String::new(); runs.len()];
    loop {
        let mut views = Vec::new();
        for run in runs {
            views.push(client.show(&run.to_string()).await?);
        }
        if terminal {
            let text = table(HEADINGS, views.iter().map(|v| row(v, out)).collect());
            let mut screen = io::stdout().lock();
            if drawn > 0 {
                write!(screen, "\x1b[{drawn}A\x1b[J")?;
            }
            writeln!(screen, "{text}")?;
            screen.flush()?;
            drawn = text.lines().count();
        } else {
            for (view, last) in views.iter().zip(&mut last) {
                let state = view.outcome.as_ref().map_or_else(|| view.phase.to_string(), Outcome::to_string);
                if *last != state {
                    let at = begin.elapsed().as_secs_f64();
                    let name = view.spec.name.as_deref().unwrap_or_default();
                    out.line(format!("{at:>5.1} s  {}  {:<24}  {}", view.spec.id, escape(name), escape(&state)))?;
                    *last = state;
                }
            }
        }
        if views.iter().all(|v| v.outcome.is_some()) {
            return Ok(views);
        }
        if begin.elapsed() > AT_MOST {
            let live: Vec<_> = views.iter().filter(|v| v.outcome.is_none()).map(|v| v.spec.id.to_string()).collect();
            let text =
                format!("not over after {} s: {}: `guardian show` tells more", AT_MOST.as_secs(), live.join(", "));
            return Err(Error::new(ErrorKind::TimedOut, text).into());
        }
        tokio::time::sleep(FRAME).await;
    }
}

const HEADINGS: [&str; 7] = ["RUN", "NAME", "PHASE", "HEALTH", "TIME", "TASKS", "MEMORY"];

fn row(view: &RunView, out: &Output) -> [String; 7] {
    let [run, _, phase, health, time, _, memory, _, _] = list::row(view, now(), out);
    let name = escape(view.spec.name.as_deref().unwrap_or_default());
    [run, name, phase, health, time, view.usage.tasks.map_or_else(list::unknown, |n| n.to_string()), memory]
}

fn ended(view: &RunView, out: &Output) -> io::Result<()> {
    let outcome = view.outcome.as_ref().map(|o| escape(&o.to_string())).unwrap_or_default();
    let name = escape(view.spec.name.as_deref().unwrap_or_default());
    out.line(format!("  {name} ({}): {outcome}", view.spec.id))?;
    // The hostile one's list of processes is long and adds nothing here.
    let lines = view.receipt.as_ref().map(show::receipt_lines).unwrap_or_default();
    lines.iter().filter(|l| !l.contains(" there: ")).try_for_each(|l| out.line(format!("    {l}")))
}
