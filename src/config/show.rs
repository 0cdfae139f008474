//! A configuration as the TOML that would give it.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::Config;
use crate::model::{Action, AgentWatchUpdate, Containment, Credential, Dollars, LimitUpdate, Limits};

impl Display for Config {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Limits {
            max_running,
            queue_timeout,
            init_timeout,
            max_runtime,
            watch,
            grace,
            readiness,
            resources,
            isolate_pids,
            cleanup,
            sandbox,
            credentials,
        } = &self.defaults;
        let defaults = LimitUpdate {
            max_running: Some(*max_running),
            queue_timeout: Some(*queue_timeout),
            init_timeout: Some(*init_timeout),
            max_runtime: Some(*max_runtime),
            watch: (*watch).into(),
            grace: Some(*grace),
            readiness: Some(*readiness),
            memory_max_bytes: Some(resources.memory_max_bytes),
            tasks_max: Some(resources.tasks_max),
            cpu_max_percent: Some(resources.cpu_max_percent),
            isolate_pids: Some(*isolate_pids),
            cleanup_git_locks: Some(cleanup.git_locks),
            sandbox: Some(*sandbox),
            credentials: Some(credentials.clone()),
            executor: Some(self.executor.clone()),
        };
        section(f, "defaults", &defaults)?;
        for (name, update) in &self.workflows {
            writeln!(f)?;
            section(f, &format!("workflow.{}", key(name)), update)?;
        }
        for (name, executor) in &self.executors {
            writeln!(f, "\n[executor.{}]\n{executor}", key(name))?;
        }
        let instance = &self.instance;
        writeln!(f, "\n[instance]")?;
        writeln!(f, "sample_interval = {}", duration(instance.sample_interval))?;
        writeln!(f, "idle_exit = {}", or_off(instance.idle_exit.map(duration)))?;
        writeln!(f, "log_max = {}", size(instance.log_max_bytes))?;
        writeln!(f, "max_runs = {}", instance.max_runs)?;
        writeln!(f, "max_running = {}", or_off(instance.max_running.map(|n| n.to_string())))?;
        writeln!(f, "backend = \"{}\"", instance.backend.map_or("auto", Containment::as_str))?;
        let cgroup = self.cgroup.as_ref().map_or_else(|| "auto".into(), |path| path.to_string_lossy());
        writeln!(f, "cgroup = {}", toml::Value::from(cgroup.as_ref()))?;
        writeln!(f, "\n[retention]")?;
        writeln!(f, "max_age = {}", or_off(self.retention.max_age.map(duration)))?;
        writeln!(f, "max_size = {}", or_off(self.retention.max_bytes.map(size)))
    }
}

fn section(f: &mut Formatter<'_>, name: &str, limits: &LimitUpdate) -> fmt::Result {
    writeln!(f, "[{name}]")?;
    let mut put = |key: &str, value: Option<String>| value.map_or(Ok(()), |value| writeln!(f, "{key} = {value}"));
    put("max_running", limits.max_running.map(|n| or_off(n.map(|n| n.to_string()))))?;
    put("queue_timeout", limits.queue_timeout.map(|t| or_off(t.map(duration))))?;
    put("init_timeout", limits.init_timeout.map(|t| or_off(t.map(duration))))?;
    put("max_runtime", limits.max_runtime.map(|t| or_off(t.map(duration))))?;
    let (watch, action) = (&limits.watch, |action: Option<Action>| action.map(|a| format!("\"{a}\"")));
    put("init_action", action(watch.init_action))?;
    put("max_runtime_action", action(watch.max_runtime_action))?;
    put("heartbeat_timeout", watch.heartbeat_timeout.map(|t| or_off(t.map(duration))))?;
    put("heartbeat_action", action(watch.heartbeat_action))?;
    put("idle_timeout", watch.idle_timeout.map(|t| or_off(t.map(duration))))?;
    put("idle_action", action(watch.idle_action))?;
    put("spin_timeout", watch.spin_timeout.map(|t| or_off(t.map(duration))))?;
    put("spin_action", action(watch.spin_action))?;
    put("input_timeout", watch.input_timeout.map(|t| or_off(t.map(duration))))?;
    put("input_action", action(watch.input_action))?;
    agent(&watch.agent, &mut put)?;
    put("escapees", action(watch.escapees))?;
    put("pressure_max", watch.pressure_max_percent.map(|p| or_off(p.map(|p| format!("\"{p}%\"")))))?;
    put("dry_run", watch.dry_run.map(|dry| dry.to_string()))?;
    put("grace", limits.grace.map(duration))?;
    put("readiness", limits.readiness.map(|r| format!("\"{}\"", r.as_str())))?;
    put("memory_max", limits.memory_max_bytes.map(|m| or_off(m.map(size))))?;
    put("tasks_max", limits.tasks_max.map(|t| or_off(t.map(|t| t.to_string()))))?;
    put("cpu_max", limits.cpu_max_percent.map(|c| or_off(c.map(|c| format!("\"{c}%\"")))))?;
    put("isolate_pids", limits.isolate_pids.map(|isolate| isolate.to_string()))?;
    put("cleanup.git_locks", limits.cleanup_git_locks.map(|removes| removes.to_string()))?;
    put("sandbox", limits.sandbox.map(|s| format!("\"{}\"", s.as_str())))?;
    let entry = |c: &Credential| toml::Value::from(format!("{}:{}", c.name, c.path)).to_string();
    put(
        "credentials",
        limits.credentials.as_ref().map(|all| format!("[{}]", all.iter().map(entry).collect::<Vec<_>>().join(", "))),
    )?;
    put("executor", limits.executor.as_ref().map(|name| toml::Value::from(name.as_str()).to_string()))
}

/// The keys of an agent.
fn agent(agent: &AgentWatchUpdate, put: &mut impl FnMut(&str, Option<String>) -> fmt::Result) -> fmt::Result {
    let action = |action: Option<Action>| action.map(|a| format!("\"{a}\""));
    let number = |n: Option<Option<u64>>| n.map(|n| or_off(n.map(|n| n.to_string())));
    let cost = |n: Option<Option<u64>>| n.map(|n| or_off(n.map(|n| format!("\"{}\"", Dollars(n).exact()))));
    put("turn_timeout", agent.turn_timeout.map(|t| or_off(t.map(duration))))?;
    put("turn_action", action(agent.turn_action))?;
    put("loop_max", number(agent.loop_max))?;
    put("loop_action", action(agent.loop_action))?;
    put("max_turns", number(agent.max_turns))?;
    put("max_turns_action", action(agent.max_turns_action))?;
    put("max_tokens", number(agent.max_tokens))?;
    put("max_tokens_action", action(agent.max_tokens_action))?;
    put("max_cost", cost(agent.max_cost_micro_usd))?;
    put("max_cost_action", action(agent.max_cost_action))?;
    put("permission_timeout", agent.permission_timeout.map(|t| or_off(t.map(duration))))?;
    put("permission_action", action(agent.permission_action))
}

/// A key that is not a bare one is quoted.
fn key(name: &str) -> String {
    match name.contains('.') {
        true => format!("\"{name}\""),
        false => name.to_owned(),
    }
}

/// As a person would write it: in one unit, if one fits.
fn duration(d: Duration) -> String {
    let fits =
        |(length, _): &&(u64, &str)| d.subsec_nanos() == 0 && !d.is_zero() && d.as_secs().is_multiple_of(*length);
    match [(86400, "d"), (3600, "h"), (60, "m"), (1, "s")].iter().find(fits) {
        Some((length, unit)) => format!("\"{}{unit}\"", d.as_secs() / length),
        None => format!("\"{}\"", humantime::format_duration(d)),
    }
}

fn size(bytes: u64) -> String {
    let fits = |(shift, _): &&(u32, &str)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match [(40, "T"), (30, "G"), (20, "M"), (10, "K")].iter().find(fits) {
        Some((shift, unit)) => format!("\"{}{unit}\"", bytes >> shift),
        None => format!("\"{bytes}\""),
    }
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
        let text = "[defaults]\nmemory_max = \"2G\"\n[workflow.\"a.b\"]\ncpu_max = \"150%\"\ntasks_max = 5\ninit_timeout = \"off\"\nisolate_pids = true\ncleanup.git_locks = true\nidle_timeout = \"off\"\nspin_action = \"kill\"\nescapees = \"kill\"\nmax_cost = \"5.1\"\nloop_max = \"off\"\nmax_turns = 30\nturn_timeout = \"10m\"\ndry_run = true\nmax_running = 2\nqueue_timeout = \"1h\"\n[instance]\nmax_running = 7\nbackend = \"subtree\"\nidle_exit = \"off\"\n";
        fs::write(&given, text).unwrap();
        let config = Config::load(&[given]).unwrap();
        fs::write(&shown, config.to_string()).unwrap();
        assert_eq!(Config::load(&[shown]).unwrap(), config);
    }

    #[test]
    fn values_are_shown_as_a_person_would_write_them() {
        let secs = Duration::from_secs;
        let shown = [90 * 86400, 5400, 5400 + 1].map(|s| duration(secs(s)));
        assert_eq!(shown, ["\"90d\"", "\"90m\"", "\"5401s\""]);
        assert_eq!([duration(Duration::ZERO), duration(Duration::from_millis(1500))], ["\"0s\"", "\"1s 500ms\""]);
        assert_eq!([64 << 20, 3 << 29, 1000, 0].map(size), ["\"64M\"", "\"1536M\"", "\"1000\"", "\"0\""]);
    }
}
