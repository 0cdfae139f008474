//! A configuration as the TOML that would give it.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::Config;
use crate::model::{LimitUpdate, Limits};

impl Display for Config {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Limits { init_timeout, max_runtime, grace, readiness, resources } = &self.defaults;
        let defaults = LimitUpdate {
            init_timeout: Some(*init_timeout),
            max_runtime: Some(*max_runtime),
            grace: Some(*grace),
            readiness: Some(*readiness),
            memory_max_bytes: Some(resources.memory_max_bytes),
            tasks_max: Some(resources.tasks_max),
            cpu_max_percent: Some(resources.cpu_max_percent),
        };
        section(f, "defaults", &defaults)?;
        for (name, update) in &self.workflows {
            writeln!(f)?;
            section(f, &format!("workflow.{}", key(name)), update)?;
        }
        let instance = &self.instance;
        writeln!(f, "\n[instance]")?;
        writeln!(f, "sample_interval = {}", duration(instance.sample_interval))?;
        writeln!(f, "idle_exit = {}", or_off(instance.idle_exit.map(duration)))?;
        writeln!(f, "log_max = \"{}\"", instance.log_max_bytes)?;
        writeln!(f, "max_runs = {}", instance.max_runs)?;
        let cgroup = self.cgroup.as_ref().map_or_else(|| "auto".into(), |path| path.to_string_lossy());
        writeln!(f, "cgroup = {}", toml::Value::from(cgroup.as_ref()))?;
        writeln!(f, "\n[retention]")?;
        writeln!(f, "max_age = {}", or_off(self.retention.max_age.map(duration)))?;
        writeln!(f, "max_size = {}", or_off(self.retention.max_bytes.map(|b| format!("\"{b}\""))))
    }
}

fn section(f: &mut Formatter<'_>, name: &str, limits: &LimitUpdate) -> fmt::Result {
    writeln!(f, "[{name}]")?;
    let mut put = |key: &str, value: Option<String>| value.map_or(Ok(()), |value| writeln!(f, "{key} = {value}"));
    put("init_timeout", limits.init_timeout.map(|t| or_off(t.map(duration))))?;
    put("max_runtime", limits.max_runtime.map(|t| or_off(t.map(duration))))?;
    put("grace", limits.grace.map(duration))?;
    put("readiness", limits.readiness.map(|r| format!("\"{}\"", r.as_str())))?;
    put("memory_max", limits.memory_max_bytes.map(|m| or_off(m.map(|m| format!("\"{m}\"")))))?;
    put("tasks_max", limits.tasks_max.map(|t| or_off(t.map(|t| t.to_string()))))?;
    put("cpu_max", limits.cpu_max_percent.map(|c| or_off(c.map(|c| format!("\"{c}%\"")))))
}

/// A key that is not a bare one is quoted.
fn key(name: &str) -> String {
    match name.contains('.') {
        true => format!("\"{name}\""),
        false => name.to_owned(),
    }
}

fn duration(d: Duration) -> String {
    format!("\"{}\"", humantime::format_duration(d))
}

fn or_off(value: Option<String>) -> String {
    value.unwrap_or_else(|| "\"off\"".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_shown_loads_to_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (given, shown) = (dir.path().join("given.toml"), dir.path().join("shown.toml"));
        let text = "[defaults]\nmemory_max = \"2G\"\n[workflow.\"a.b\"]\ncpu_max = \"150%\"\ntasks_max = 5\ninit_timeout = \"off\"\n[instance]\nidle_exit = \"off\"\n";
        fs::write(&given, text).unwrap();
        let config = Config::load(&[given]).unwrap();
        fs::write(&shown, config.to_string()).unwrap();
        assert_eq!(Config::load(&[shown]).unwrap(), config);
    }
}
