//! `config`: checks and shows the configuration, without an instance.

use std::time::Duration;

use serde_json::{Value, json};

use super::args::ConfigVerb;
use super::output::{Output, escape, note};
use super::session::Session;
use super::{Done, runtime};
use crate::config::{Config, ConfigErrors, load_for};
use crate::model::{LimitUpdate, Limits};

/// The exit status of a configuration that is wrong: a value that makes no sense.
const WRONG: i32 = 2;

/// Checks or shows. Every mistake of every file is told, not the first alone.
pub fn main(verb: &ConfigVerb, session: &Session, out: &Output) -> Done {
    let named = match verb {
        ConfigVerb::Check { file: Some(file) } => Some(file.as_path()),
        ConfigVerb::Check { file: None } | ConfigVerb::Show => session.config(),
    };
    let kind = runtime()?.block_on(session.kind());
    let (config, files) = match load_for(kind, named) {
        Ok(loaded) => loaded,
        Err(ConfigErrors(problems)) => {
            problems.iter().for_each(|p| note(escape(&p.to_string())));
            return Ok(WRONG);
        }
    };
    match verb {
        ConfigVerb::Check { .. } => {
            let files: Vec<_> = files.iter().map(|f| escape(&f.to_string_lossy())).collect();
            let what = if files.is_empty() { "the defaults (there is no file)".to_owned() } else { files.join(", ") };
            out.line(format!("{what}: good"))?;
        }
        ConfigVerb::Show if out.json => out.json(&shape(&config))?,
        ConfigVerb::Show => out.line(config.to_string().trim_end())?,
    }
    Ok(0)
}

fn shape(config: &Config) -> Value {
    let usec = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let limits = |l: &Limits| {
        let mut shown = json!({
            "max_running": l.max_running,
            "queue_timeout_usec": l.queue_timeout.map(usec),
            "init_timeout_usec": l.init_timeout.map(usec),
            "max_runtime_usec": l.max_runtime.map(usec),
            "init_action": l.watch.init_action,
            "max_runtime_action": l.watch.max_runtime_action,
            "idle_timeout_usec": l.watch.idle_timeout.map(usec),
            "idle_action": l.watch.idle_action,
            "spin_timeout_usec": l.watch.spin_timeout.map(usec),
            "spin_action": l.watch.spin_action,
            "input_timeout_usec": l.watch.input_timeout.map(usec),
            "input_action": l.watch.input_action,
            "escapees": l.watch.escapees,
            "pressure_max_percent": l.watch.pressure_max_percent,
            "dry_run": l.watch.dry_run,
            "grace_usec": usec(l.grace),
            "readiness": l.readiness,
            "memory_max_bytes": l.resources.memory_max_bytes,
            "tasks_max": l.resources.tasks_max,
            "cpu_max_percent": l.resources.cpu_max_percent,
            "isolate_pids": l.isolate_pids,
            "cleanup": {"git_locks": l.cleanup.git_locks},
            "sandbox": l.sandbox,
            "credentials": l.credentials,
        });
        if let Some(map) = shown.as_object_mut() {
            map.extend(crate::json::agent_limits(&l.watch.agent));
        }
        shown
    };
    let executor = |name: &str| {
        let update = LimitUpdate { executor: Some(name.to_owned()), ..LimitUpdate::default() };
        config.executor_of(name, &update).ok()
    };
    let executors: serde_json::Map<_, _> =
        config.executors.keys().map(|name| (name.clone(), json!(executor(name)))).collect();
    let executor_of = |name: &String| config.workflows.get(name).and_then(|w| w.executor.as_ref());
    let workflow_executors: serde_json::Map<_, _> = (config.workflows.keys())
        .map(|name| (name.clone(), json!(executor_of(name).unwrap_or(&config.executor))))
        .collect();
    let workflows: serde_json::Map<_, _> =
        config.workflows.keys().map(|name| (name.clone(), limits(&config.limits(name)))).collect();
    json!({
        "defaults": limits(&config.defaults),
        "workflows": workflows,
        "executor": config.executor,
        "workflow_executors": workflow_executors,
        "executors": executors,
        "instance": {
            "sample_interval_usec": usec(config.instance.sample_interval),
            "idle_exit_usec": config.instance.idle_exit.map(usec),
            "log_max_bytes": config.instance.log_max_bytes,
            "max_runs": config.instance.max_runs,
            "max_running": config.instance.max_running,
            "backend": config.instance.backend,
        },
        "retention": {
            "max_age_usec": config.retention.max_age.map(usec),
            "max_size_bytes": config.retention.max_bytes,
        },
        "cgroup": config.cgroup,
    })
}
