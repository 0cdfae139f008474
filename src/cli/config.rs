//! `config`: checks and shows the configuration, without an instance.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Done;
use super::args::ConfigVerb;
use super::output::{Output, escape, human_size, note};
use super::session::Session;
use crate::config::{Config, ConfigErrors, Origin, user_config_home};
use crate::model::{Limits, human_duration};

/// The exit status of a configuration that is wrong: a value that makes no sense.
const WRONG: i32 = 2;

/// Checks or shows. Every mistake of every file is told, not the first alone.
pub fn main(verb: &ConfigVerb, session: &Session, out: &Output) -> Done {
    let named = match verb {
        ConfigVerb::Check { file: Some(file) } => Some(file.as_path()),
        ConfigVerb::Check { file: None } | ConfigVerb::Show => session.config(),
    };
    let loaded = origin(named).sources().and_then(|files| Ok((Config::load(&files)?, files)));
    let (config, files) = match loaded {
        Ok(loaded) => loaded,
        Err(ConfigErrors(problems)) => {
            problems.iter().for_each(|p| note(p.to_string()));
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
        ConfigVerb::Show => {
            let named = config.workflows.keys().map(|name| row(name, &config.limits(name)));
            let rows = std::iter::once(row("(all others)", &config.defaults)).chain(named).collect();
            let headings =
                ["WORKFLOW", "INIT_TIMEOUT", "MAX_RUNTIME", "GRACE", "READINESS", "MEMORY_MAX", "TASKS_MAX", "CPU_MAX"];
            out.table(headings, rows)?;
        }
    }
    Ok(0)
}

/// Whose configuration: the file that was named, root's own, or the user's.
fn origin(named: Option<&Path>) -> Origin {
    let home = || user_config_home(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"));
    match named {
        Some(file) => Origin::File(file.to_owned()),
        None => home().map_or(Origin::System, Origin::User),
    }
}

fn row(name: &str, limits: &Limits) -> [String; 8] {
    let off = || "off".to_owned();
    let resources = &limits.resources;
    [
        name.to_owned(),
        limits.init_timeout.map_or_else(off, human_duration),
        limits.max_runtime.map_or_else(off, human_duration),
        human_duration(limits.grace),
        limits.readiness.as_str().to_owned(),
        resources.memory_max_bytes.map_or_else(off, human_size),
        resources.tasks_max.map_or_else(off, |n| n.to_string()),
        resources.cpu_max_percent.map_or_else(off, |p| format!("{p} %")),
    ]
}

fn shape(config: &Config) -> Value {
    let usec = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let limits = |l: &Limits| {
        json!({
            "init_timeout_usec": l.init_timeout.map(usec),
            "max_runtime_usec": l.max_runtime.map(usec),
            "grace_usec": usec(l.grace),
            "readiness": l.readiness,
            "memory_max_bytes": l.resources.memory_max_bytes,
            "tasks_max": l.resources.tasks_max,
            "cpu_max_percent": l.resources.cpu_max_percent,
        })
    };
    let workflows: serde_json::Map<_, _> =
        config.workflows.keys().map(|name| (name.clone(), limits(&config.limits(name)))).collect();
    json!({
        "defaults": limits(&config.defaults),
        "workflows": workflows,
        "instance": {
            "sample_interval_usec": usec(config.instance.sample_interval),
            "idle_exit_usec": config.instance.idle_exit.map(usec),
            "log_max_bytes": config.instance.log_max_bytes,
            "max_runs": config.instance.max_runs,
        },
        "cgroup": config.cgroup,
    })
}
