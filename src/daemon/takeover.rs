//! What an earlier instance left, from the store: runs on record, and what queued ones are to execute.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::config::Config;
use crate::engine::Run;
use crate::executor::relay;
use crate::kernel::{Exec, Kernel as _};
use crate::launch::environment;
use crate::model::{Actor, AuditEvent, Containment, EventKind, Now, RunId};
use crate::store::Launches;

use super::driver::{Driver, Recorder};
use super::history::Readers;
use super::host::Host;
use super::launcher;
use super::recovery::{self, Known, Memory};

/// The store's part of what is remembered.
struct Remembered<'a> {
    readers: &'a Readers,
    config: &'a Config,
    state_dir: &'a Path,
    launches: Launches,
}

impl Memory<Host> for Remembered<'_> {
    fn rebuild(&mut self, host: &mut Host, run: RunId) -> Option<Run> {
        let recorded = self.readers.quick().exists(run).unwrap_or(true);
        (!recorded).then(|| launcher::rebuilt(host, self.config, run))
    }

    fn launch(&mut self, host: &mut Host, run: &Run) -> Result<Exec, String> {
        let spec = &run.spec;
        let mut kept = self.launches.read(spec.id)?;
        // What goes through a relay has options that make it tell of its progress, which are on no record.
        let is_same =
            relay::is_relay(kept.argv.iter().map(Vec::as_slice)) || launcher::command_text(&kept.argv) == spec.command;
        if !is_same || kept.cwd != spec.cwd.as_bytes() && is_text(&kept.cwd) {
            return Err("what is kept of its launch is another command than the one on record".to_owned());
        }
        if spec.containment != host.containment() {
            return Err(format!(
                "it was to be contained by {}, and this instance has {}",
                spec.containment,
                host.containment()
            ));
        }
        // It has a socket when it has its turn; until then only the path of one.
        host.listen(spec.id, spec.uid);
        let notify = host.notify(spec.id, &spec.limits);
        host.unreserve(spec.id);
        if spec.containment == Containment::Systemd {
            return Ok(Exec {
                argv: kept.argv,
                env: kept.env,
                cwd: kept.cwd,
                notify,
                log: PathBuf::new(),
                input: kept.prompt,
                kept: None,
            });
        }
        environment::put(&mut kept.env, spec.id, notify.as_ref());
        let log = launcher::log_path(self.state_dir, spec.id).map_err(|e| e.message)?;
        Ok(Exec { argv: kept.argv, env: kept.env, cwd: kept.cwd, notify: None, log, input: kept.prompt, kept: None })
    }

    fn is_kept(&self, _: &Host, run: RunId) -> bool {
        self.launches.read(run).is_ok()
    }
}

/// What is not text is on record as a person would be shown it.
fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

/// Takes up what the earlier instance left, and says so in the audit.
pub fn take_up<R: Recorder>(
    driver: &mut Driver<Host, R>,
    readers: &Arc<Readers>,
    config: &Config,
    state_dir: &Path,
    set_aside: Option<(PathBuf, String)>,
    started: Now,
) -> anyhow::Result<()> {
    let event = |kind, reason, details| AuditEvent {
        at: started.wall,
        kind,
        run: None,
        workflow: None,
        actor: Actor::Guardian,
        reason,
        details,
    };
    if let Some((path, why)) = set_aside {
        let reason = format!("{why}: it is kept as {}", path.display());
        driver.audit(event(EventKind::StoreSetAside, reason, json!({ "path": path })));
    }
    driver.audit(event(EventKind::InstanceStarted, String::new(), json!({ "pid": std::process::id() })));
    let live = readers.quick().live_states()?;
    let waiting: BTreeMap<RunId, ()> = live.runs.iter().map(|(view, _)| (view.spec.id, ())).collect();
    let launches = Launches::of(state_dir);
    for e in launches.tidy(&waiting) {
        tracing::warn!("what is kept of the launches of runs that are over cannot be removed: {e}");
    }
    let known = live.runs.into_iter().map(|(view, state)| Known { view, state }).collect();
    let recovered = recovery::recover(driver, known, &mut Remembered { readers, config, state_dir, launches });
    for reason in recovered.left_alone {
        driver.audit(event(EventKind::ForeignCgroup, reason, json!({})));
    }
    let readers = readers.clone();
    driver.kernel.tidy(Box::new(move |run| readers.quick().is_over(run).unwrap_or(false)));
    Ok(())
}
