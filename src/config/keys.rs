//! The keys: what each sets and which values it takes. A key that is not here is unknown, and the nearest is suggested.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::values::{
    OFF, clip, parse_cost_or_off, parse_count_or_off, parse_duration_or_off, parse_number_or_off, parse_percent_or_off,
    parse_repeats_or_off, parse_runs_or_off, parse_size, parse_size_or_off,
};
use super::{Config, ExecutorTable, Progress};
use crate::executor::Matcher;
use crate::model::{Action, Containment, Credential, LimitUpdate, parse_duration};

/// What a key does with its value, or why it refuses it.
type Set<T> = fn(&mut T, &DeValue<'_>) -> Result<(), String>;

/// The keys of one kind of table, by name.
pub(super) type Keys<T> = [(&'static str, Set<T>)];

/// Top-level tables.
pub(super) const TABLES: [&str; 5] = ["defaults", "workflow", "executor", "instance", "retention"];

/// `[defaults]` and `[workflow.NAME]`.
pub(super) const LIMITS: &Keys<LimitUpdate> = &[
    ("max_running", |l, v| put(&mut l.max_running, number_or_text(v).and_then(|t| parse_runs_or_off(&t)))),
    ("queue_timeout", |l, v| put(&mut l.queue_timeout, text(v).and_then(parse_duration_or_off))),
    ("init_timeout", |l, v| put(&mut l.init_timeout, text(v).and_then(parse_duration_or_off))),
    ("max_runtime", |l, v| put(&mut l.max_runtime, text(v).and_then(parse_duration_or_off))),
    ("init_action", |l, v| put(&mut l.watch.init_action, text(v).and_then(str::parse))),
    ("max_runtime_action", |l, v| put(&mut l.watch.max_runtime_action, text(v).and_then(str::parse))),
    ("heartbeat_timeout", |l, v| put(&mut l.watch.heartbeat_timeout, text(v).and_then(parse_duration_or_off))),
    ("heartbeat_action", |l, v| put(&mut l.watch.heartbeat_action, text(v).and_then(Action::parse_of_heartbeats))),
    ("idle_timeout", |l, v| put(&mut l.watch.idle_timeout, text(v).and_then(parse_duration_or_off))),
    ("idle_action", |l, v| put(&mut l.watch.idle_action, text(v).and_then(str::parse))),
    ("spin_timeout", |l, v| put(&mut l.watch.spin_timeout, text(v).and_then(parse_duration_or_off))),
    ("spin_action", |l, v| put(&mut l.watch.spin_action, text(v).and_then(str::parse))),
    ("input_timeout", |l, v| put(&mut l.watch.input_timeout, text(v).and_then(parse_duration_or_off))),
    ("input_action", |l, v| put(&mut l.watch.input_action, text(v).and_then(Action::parse_harmless))),
    ("turn_timeout", |l, v| put(&mut l.watch.agent.turn_timeout, text(v).and_then(parse_duration_or_off))),
    ("turn_action", |l, v| put(&mut l.watch.agent.turn_action, text(v).and_then(str::parse))),
    ("loop_max", |l, v| put(&mut l.watch.agent.loop_max, number_or_text(v).and_then(|t| parse_repeats_or_off(&t)))),
    ("loop_action", |l, v| put(&mut l.watch.agent.loop_action, text(v).and_then(str::parse))),
    ("max_turns", |l, v| put(&mut l.watch.agent.max_turns, number_or_text(v).and_then(|t| parse_number_or_off(&t)))),
    ("max_turns_action", |l, v| put(&mut l.watch.agent.max_turns_action, text(v).and_then(str::parse))),
    ("max_tokens", |l, v| put(&mut l.watch.agent.max_tokens, number_or_text(v).and_then(|t| parse_number_or_off(&t)))),
    ("max_tokens_action", |l, v| put(&mut l.watch.agent.max_tokens_action, text(v).and_then(str::parse))),
    ("max_cost", |l, v| {
        put(&mut l.watch.agent.max_cost_micro_usd, number_or_text(v).and_then(|t| parse_cost_or_off(&t)))
    }),
    ("max_cost_action", |l, v| put(&mut l.watch.agent.max_cost_action, text(v).and_then(str::parse))),
    ("permission_timeout", |l, v| put(&mut l.watch.agent.permission_timeout, text(v).and_then(parse_duration_or_off))),
    ("permission_action", |l, v| put(&mut l.watch.agent.permission_action, text(v).and_then(str::parse))),
    ("escapees", |l, v| put(&mut l.watch.escapees, text(v).and_then(str::parse))),
    ("pressure_max", |l, v| put(&mut l.watch.pressure_max_percent, text(v).and_then(parse_percent_or_off))),
    ("dry_run", |l, v| put(&mut l.watch.dry_run, truth(v))),
    ("grace", |l, v| {
        put(&mut l.grace, text(v).and_then(|t| at_most(parse_duration(t)?, Duration::from_secs(86_400), "24h")))
    }),
    ("readiness", |l, v| put(&mut l.readiness, text(v).and_then(str::parse))),
    ("memory_max", |l, v| put(&mut l.memory_max_bytes, number_or_text(v).and_then(|t| parse_size_or_off(&t)))),
    ("tasks_max", |l, v| put(&mut l.tasks_max, number_or_text(v).and_then(|t| parse_count_or_off(&t)))),
    ("cpu_max", |l, v| put(&mut l.cpu_max_percent, text(v).and_then(parse_percent_or_off))),
    ("isolate_pids", |l, v| put(&mut l.isolate_pids, truth(v))),
    ("cleanup", |l, v| {
        let refuse = || "must be a table: write cleanup.git_locks = true".to_owned();
        for (name, value) in v.as_table().ok_or_else(refuse)? {
            match name.get_ref().as_ref() {
                "git_locks" => put(&mut l.cleanup_git_locks, truth(value.get_ref()))?,
                other => {
                    let hint = suggest(other, ["git_locks"].into_iter());
                    return Err(format!("cleanup.{} is not a key of the configuration: {hint}", clip(other)));
                }
            }
        }
        Ok(())
    }),
    ("sandbox", |l, v| put(&mut l.sandbox, text(v).and_then(str::parse))),
    ("credentials", |l, v| {
        let entries = v.as_array().ok_or_else(|| "must be a list: [\"NAME:PATH\"]".to_owned())?;
        let read = |entry: &toml::Spanned<DeValue<'_>>| text(entry.get_ref())?.parse::<Credential>();
        put(&mut l.credentials, entries.iter().map(read).collect())
    }),
    ("executor", |l, v| put(&mut l.executor, text(v).map(str::to_owned))),
];

/// `[executor.NAME]`.
pub(super) const EXECUTOR: &Keys<ExecutorTable> = &[
    ("progress", |e, v| put(&mut e.progress, text(v).and_then(str::parse::<Progress>))),
    ("command", |e, v| {
        let command = text(v)?;
        let good = !command.is_empty() && !command.contains('\0');
        put(&mut e.command, if good { Ok(command.to_owned()) } else { Err("must be a name or a path".to_owned()) })
    }),
    ("ready", |e, v| put(&mut e.matchers.ready, matcher(v))),
    ("session", |e, v| put(&mut e.matchers.session, matcher(v))),
    ("model", |e, v| put(&mut e.matchers.model, matcher(v))),
    ("turn", |e, v| put(&mut e.matchers.turn, matcher(v))),
    ("tool", |e, v| put(&mut e.matchers.tool, matcher(v))),
    ("tool_input", |e, v| put(&mut e.matchers.tool_input, matcher(v))),
    ("tokens", |e, v| {
        let entries = v.as_array().ok_or_else(|| "must be a list: [\"/usage/input_tokens\"]".to_owned())?;
        e.matchers.tokens = entries.iter().map(|entry| matcher(entry.get_ref())).collect::<Result<_, _>>()?;
        Ok(())
    }),
    ("cost_usd", |e, v| put(&mut e.matchers.cost_usd, matcher(v))),
    ("totals", |e, v| {
        e.matchers.totals = truth(v)?;
        Ok(())
    }),
    ("waiting", |e, v| put(&mut e.matchers.waiting, matcher(v))),
    ("error", |e, v| put(&mut e.matchers.error, matcher(v))),
    ("done", |e, v| put(&mut e.matchers.done, matcher(v))),
    ("success", |e, v| put(&mut e.matchers.success, matcher(v))),
    ("result", |e, v| put(&mut e.matchers.result, matcher(v))),
];

/// `[instance]`.
pub(super) const INSTANCE: &Keys<Config> = &[
    ("sample_interval", |c, v| {
        let d = at_least(parse_duration(text(v)?)?, Duration::from_secs(1), "1s")?;
        c.instance.sample_interval = at_most(d, Duration::from_secs(60), "60s")?;
        Ok(())
    }),
    ("idle_exit", |c, v| {
        c.instance.idle_exit = parse_duration_or_off(text(v)?)?;
        Ok(())
    }),
    ("log_max", |c, v| {
        c.instance.log_max_bytes = at_least(parse_size(&number_or_text(v)?)?, 64 << 10, "64K")?;
        Ok(())
    }),
    ("max_runs", |c, v| {
        let refuse = || "must be a whole number, 1 to 1000000".to_owned();
        let n = v.as_integer().ok_or_else(refuse)?.to_string().parse().map_err(|_| refuse())?;
        c.instance.max_runs = if (1..=1_000_000).contains(&n) { n } else { return Err(refuse()) };
        Ok(())
    }),
    ("max_running", |c, v| {
        c.instance.max_running = parse_runs_or_off(&number_or_text(v)?)?;
        Ok(())
    }),
    ("backend", |c, v| {
        let name = text(v)?;
        c.instance.backend = match name {
            "auto" => None,
            name => Some(name.parse::<Containment>().map_err(|e| format!("{e}, nor auto"))?),
        };
        Ok(())
    }),
    ("cgroup", |c, v| {
        let path = text(v)?;
        c.cgroup = match path {
            "auto" => None,
            _ if path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..") => {
                Some(PathBuf::from(path))
            }
            _ => return Err(format!("{:?} is not an absolute path without `..`: write one, or auto", clip(path))),
        };
        Ok(())
    }),
];

/// `[retention]`.
pub(super) const RETENTION: &Keys<Config> = &[
    ("max_age", |c, v| {
        let age = parse_duration_or_off(text(v)?)?;
        c.retention.max_age = age.map(|age| at_least(age, Duration::from_secs(3600), "1h")).transpose()?;
        Ok(())
    }),
    ("max_size", |c, v| {
        let size = parse_size_or_off(&number_or_text(v)?)?;
        c.retention.max_bytes = size.map(|size| at_least(size, 16 << 20, "16M")).transpose()?;
        Ok(())
    }),
];

/// The most characters of names that are told.
const NAMES_MAX: usize = 800;

/// `: did you mean …?`, or which there are.
pub fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let name = clip(name);
    let near = known.clone().map(|k| (strsim::damerau_levenshtein(&name, k), k)).min();
    match near {
        // A third of the letters wrong is a typing error; more is another word.
        Some((distance, k)) if distance * 3 <= k.len().max(3) => format!("did you mean {k}?"),
        _ => {
            let mut names = known.collect::<Vec<_>>().join(", ");
            if let Some((at, _)) = names.char_indices().nth(NAMES_MAX) {
                names.truncate(at);
                names.push('…');
            }
            format!("known here are {names}")
        }
    }
}

fn put<T>(field: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *field = Some(value?);
    Ok(())
}

fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| match value {
        DeValue::Integer(n) => format!("{n} has no unit: write a text in quotes, such as \"{n}s\" or \"{n}%\""),
        DeValue::Boolean(false) => format!("write \"{OFF}\", in quotes, to turn a limit off"),
        _ => format!("must be a text in quotes, not {}", kind(value)),
    })
}

fn matcher(value: &DeValue<'_>) -> Result<Matcher, String> {
    text(value)?.parse()
}

fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("must be true or false, without quotes, not {}", kind(value)))
}

/// Counts and sizes may be written without quotes.
fn number_or_text(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::Integer(n) if n.radix() == 10 => Ok(n.as_str().to_owned()),
        DeValue::Integer(_) => Err("must be a decimal number".to_owned()),
        DeValue::Float(n) => Err(format!("{} is a fraction: write it in quotes", n.as_str())),
        _ => text(value).map(str::to_owned),
    }
}

/// The kind of a value, with its article.
pub fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn at_least<T: PartialOrd>(value: T, least: T, spelt: &str) -> Result<T, String> {
    if value < least { Err(format!("is too little: write {spelt} or more")) } else { Ok(value) }
}

fn at_most<T: PartialOrd>(value: T, most: T, spelt: &str) -> Result<T, String> {
    if value > most { Err(format!("is too much: write {spelt} or less")) } else { Ok(value) }
}
