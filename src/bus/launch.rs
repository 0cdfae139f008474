//! The wire form of a launch, `a{sv}`, both ways. Strict: an unknown key, a wrong type, a NUL byte or a size over the
//! bound is refused in a sentence, and nothing is started.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use zbus::{Array, DeserializeDict, OwnedVariant, SerializeDict, Signature, Type, Variant};

use super::view::{containment_from, usec};
use crate::daemon::command::LaunchRequest;
use crate::model::{Action, Error, ErrorKind, InvalidRunId, Notify, Readiness, Reserved, RunId, valid_workflow_name};

/// The most bytes that the command and its arguments may have together.
const COMMAND_MAX: usize = 1 << 20;
/// The most bytes that the environment may have, as `execve` takes about 2 MiB for both.
const ENVIRONMENT_MAX: usize = 1 << 20;
/// The most bytes of a prompt. Longer ones are files.
const PROMPT_MAX: usize = 4 << 20;
/// The longest path, as in `PATH_MAX`.
const PATH_MAX: usize = 4096;
/// The longest name for people, in characters.
const NAME_MAX: usize = 128;
/// The longest reason, in bytes, as of a kill.
const REASON_MAX: usize = 4096;
/// The longest duration, in microseconds: 100 years, as in the configuration.
const DURATION_MAX: u64 = 100 * 365 * 24 * 3600 * 1_000_000;

const KEYS: [&str; 43] = [
    "Workflow",
    "Executor",
    "Reason",
    "Name",
    "Command",
    "Environment",
    "WorkingDirectory",
    "QueueTimeoutUSec",
    "InitTimeoutUSec",
    "MaxRuntimeUSec",
    "InitAction",
    "MaxRuntimeAction",
    "IdleTimeoutUSec",
    "IdleAction",
    "SpinTimeoutUSec",
    "SpinAction",
    "InputTimeoutUSec",
    "InputAction",
    "TurnTimeoutUSec",
    "TurnAction",
    "LoopMax",
    "LoopAction",
    "MaxTurns",
    "MaxTurnsAction",
    "MaxTokens",
    "MaxTokensAction",
    "MaxCostMicroUSD",
    "MaxCostAction",
    "PermissionTimeoutUSec",
    "PermissionAction",
    "Escapees",
    "HeartbeatTimeoutUSec",
    "HeartbeatAction",
    "GraceUSec",
    "Readiness",
    "Run",
    "MemoryMaxBytes",
    "TasksMax",
    "CPUMaxPercent",
    "IsolatePIDs",
    "CleanupGitLocks",
    "UID",
    "Prompt",
];

/// A launch as `a{sv}`. Byte strings are `ay`; a limit that is off is the greatest number.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct LaunchDict {
    workflow: Option<String>,
    reason: Option<String>,
    name: Option<String>,
    command: Vec<Vec<u8>>,
    environment: Option<Vec<Vec<u8>>>,
    working_directory: Vec<u8>,
    #[zbus(rename = "QueueTimeoutUSec")]
    queue_timeout_usec: Option<u64>,
    #[zbus(rename = "InitTimeoutUSec")]
    init_timeout_usec: Option<u64>,
    #[zbus(rename = "MaxRuntimeUSec")]
    max_runtime_usec: Option<u64>,
    init_action: Option<String>,
    max_runtime_action: Option<String>,
    #[zbus(rename = "IdleTimeoutUSec")]
    idle_timeout_usec: Option<u64>,
    idle_action: Option<String>,
    #[zbus(rename = "SpinTimeoutUSec")]
    spin_timeout_usec: Option<u64>,
    spin_action: Option<String>,
    #[zbus(rename = "InputTimeoutUSec")]
    input_timeout_usec: Option<u64>,
    input_action: Option<String>,
    #[zbus(rename = "TurnTimeoutUSec")]
    turn_timeout_usec: Option<u64>,
    turn_action: Option<String>,
    loop_max: Option<u64>,
    loop_action: Option<String>,
    max_turns: Option<u64>,
    max_turns_action: Option<String>,
    max_tokens: Option<u64>,
    max_tokens_action: Option<String>,
    #[zbus(rename = "MaxCostMicroUSD")]
    max_cost_micro_usd: Option<u64>,
    max_cost_action: Option<String>,
    #[zbus(rename = "PermissionTimeoutUSec")]
    permission_timeout_usec: Option<u64>,
    permission_action: Option<String>,
    escapees: Option<String>,
    #[zbus(rename = "HeartbeatTimeoutUSec")]
    heartbeat_timeout_usec: Option<u64>,
    heartbeat_action: Option<String>,
    #[zbus(rename = "GraceUSec")]
    grace_usec: Option<u64>,
    readiness: Option<String>,
    run: Option<String>,
    memory_max_bytes: Option<u64>,
    tasks_max: Option<u64>,
    #[zbus(rename = "CPUMaxPercent")]
    cpu_max_percent: Option<u32>,
    #[zbus(rename = "IsolatePIDs")]
    isolate_pids: Option<bool>,
    cleanup_git_locks: Option<bool>,
    #[zbus(rename = "UID")]
    uid: Option<u32>,
    executor: Option<String>,
    prompt: Option<Vec<u8>>,
}

impl From<&LaunchRequest> for LaunchDict {
    fn from(r: &LaunchRequest) -> Self {
        let duration = |d: Option<Option<Duration>>| d.map(|d| d.map_or(u64::MAX, usec));
        let (watch, action) = (&r.limits.watch, |action: Option<Action>| action.map(|a| a.as_str().to_owned()));
        let (agent, number) = (&watch.agent, |n: Option<Option<u64>>| n.map(|n| n.unwrap_or(u64::MAX)));
        Self {
            workflow: r.workflow.clone(),
            reason: (!r.reason.is_empty()).then(|| r.reason.clone()),
            name: r.name.clone(),
            command: r.argv.clone(),
            environment: (!r.env.is_empty()).then(|| r.env.clone()),
            working_directory: r.cwd.clone(),
            queue_timeout_usec: duration(r.limits.queue_timeout),
            init_timeout_usec: duration(r.limits.init_timeout),
            max_runtime_usec: duration(r.limits.max_runtime),
            init_action: action(watch.init_action),
            max_runtime_action: action(watch.max_runtime_action),
            idle_timeout_usec: duration(watch.idle_timeout),
            idle_action: action(watch.idle_action),
            spin_timeout_usec: duration(watch.spin_timeout),
            spin_action: action(watch.spin_action),
            input_timeout_usec: duration(watch.input_timeout),
            input_action: action(watch.input_action),
            turn_timeout_usec: duration(agent.turn_timeout),
            turn_action: action(agent.turn_action),
            loop_max: number(agent.loop_max),
            loop_action: action(agent.loop_action),
            max_turns: number(agent.max_turns),
            max_turns_action: action(agent.max_turns_action),
            max_tokens: number(agent.max_tokens),
            max_tokens_action: action(agent.max_tokens_action),
            max_cost_micro_usd: number(agent.max_cost_micro_usd),
            max_cost_action: action(agent.max_cost_action),
            permission_timeout_usec: duration(agent.permission_timeout),
            permission_action: action(agent.permission_action),
            escapees: action(watch.escapees),
            heartbeat_timeout_usec: duration(watch.heartbeat_timeout),
            heartbeat_action: action(watch.heartbeat_action),
            grace_usec: r.limits.grace.map(usec),
            readiness: r.limits.readiness.map(|r| r.as_str().into()),
            run: r.reserved.map(|id| id.to_string()),
            memory_max_bytes: number(r.limits.memory_max_bytes),
            tasks_max: number(r.limits.tasks_max),
            cpu_max_percent: r.limits.cpu_max_percent.map(|m| m.unwrap_or(u32::MAX)),
            isolate_pids: r.limits.isolate_pids,
            cleanup_git_locks: r.limits.cleanup_git_locks,
            uid: r.uid,
            executor: r.limits.executor.clone(),
            prompt: r.prompt.clone(),
        }
    }
}

/// What ReserveRun answers with, as `a{sv}`: what will contain the run and, for a shim, what it is to hold it to.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct ReservedDict {
    containment: String,
    limited: Option<bool>,
    #[zbus(rename = "IsolatePIDs")]
    isolate_pids: Option<bool>,
    data_max_bytes: Option<u64>,
    tasks_max: Option<u64>,
    notify_socket: Option<Vec<u8>>,
    #[zbus(rename = "WatchdogUSec")]
    watchdog_usec: Option<u64>,
    command: Option<Vec<Vec<u8>>>,
}

impl From<&Reserved> for ReservedDict {
    fn from(r: &Reserved) -> Self {
        Self {
            containment: r.containment.as_str().into(),
            limited: Some(r.limited),
            isolate_pids: Some(r.isolate_pids),
            data_max_bytes: r.data_max_bytes,
            tasks_max: r.tasks_max,
            notify_socket: r.notify.as_ref().map(|n| n.socket.as_os_str().as_bytes().to_vec()),
            watchdog_usec: r.notify.as_ref().and_then(|n| n.window).map(usec),
            command: r.command.clone(),
        }
    }
}

impl ReservedDict {
    /// What was reserved under this id.
    pub fn reserved(&self, run: RunId) -> Result<Reserved, Error> {
        let window = self.watchdog_usec.map(Duration::from_micros);
        let socket = self.notify_socket.as_deref().map(|path| PathBuf::from(OsStr::from_bytes(path)));
        Ok(Reserved {
            run,
            containment: containment_from(&self.containment)?,
            limited: self.limited.unwrap_or_default(),
            isolate_pids: self.isolate_pids.unwrap_or_default(),
            data_max_bytes: self.data_max_bytes,
            tasks_max: self.tasks_max,
            notify: socket.map(|socket| Notify { socket, window }),
            command: self.command.clone(),
        })
    }
}

/// Reads a launch.
pub fn parse(dict: &HashMap<String, OwnedVariant>) -> Result<LaunchRequest, Error> {
    let mut request = LaunchRequest::default();
    for (key, value) in dict {
        let value: &Variant<'_> = value;
        match key.as_str() {
            "Workflow" => {
                let name = text(key, value)?;
                valid_workflow_name(&name).map_err(Error::invalid)?;
                request.workflow = Some(name);
            }
            "Reason" => {
                request.reason = text(key, value)?;
                if request.reason.len() > REASON_MAX {
                    return Err(Error::invalid(format!("Reason has at most {REASON_MAX} bytes")));
                }
            }
            "Name" => {
                let name = text(key, value)?;
                if name.is_empty() || name.chars().count() > NAME_MAX {
                    return Err(Error::invalid(format!("Name has 1 to {NAME_MAX} characters")));
                }
                request.name = Some(name);
            }
            "Command" => request.argv = list(key, value, COMMAND_MAX)?,
            "Environment" => request.env = list(key, value, ENVIRONMENT_MAX)?,
            "WorkingDirectory" => request.cwd = bytes(key, value)?,
            "QueueTimeoutUSec" => request.limits.queue_timeout = Some(timer(key, value)?),
            "InitTimeoutUSec" => request.limits.init_timeout = Some(timer(key, value)?),
            "MaxRuntimeUSec" => request.limits.max_runtime = Some(timer(key, value)?),
            "HeartbeatTimeoutUSec" => request.limits.watch.heartbeat_timeout = Some(timer(key, value)?),
            "HeartbeatAction" => {
                let action = Action::parse_of_heartbeats(&text(key, value)?).map_err(Error::invalid)?;
                request.limits.watch.heartbeat_action = Some(action);
            }
            "IdleTimeoutUSec" => request.limits.watch.idle_timeout = Some(timer(key, value)?),
            "SpinTimeoutUSec" => request.limits.watch.spin_timeout = Some(timer(key, value)?),
            "InputTimeoutUSec" => request.limits.watch.input_timeout = Some(timer(key, value)?),
            "InitAction" => request.limits.watch.init_action = Some(action(key, value)?),
            "MaxRuntimeAction" => request.limits.watch.max_runtime_action = Some(action(key, value)?),
            "IdleAction" => request.limits.watch.idle_action = Some(action(key, value)?),
            "SpinAction" => request.limits.watch.spin_action = Some(action(key, value)?),
            "Escapees" => request.limits.watch.escapees = Some(action(key, value)?),
            "InputAction" => {
                let action = Action::parse_harmless(&text(key, value)?).map_err(Error::invalid)?;
                request.limits.watch.input_action = Some(action);
            }
            "TurnTimeoutUSec" => request.limits.watch.agent.turn_timeout = Some(timer(key, value)?),
            "TurnAction" => request.limits.watch.agent.turn_action = Some(action(key, value)?),
            "LoopMax" => {
                let most = limit(key, value)?;
                if most == Some(1) {
                    return Err(Error::invalid("LoopMax is 2 or more: what happens once is no loop"));
                }
                request.limits.watch.agent.loop_max = Some(most);
            }
            "LoopAction" => request.limits.watch.agent.loop_action = Some(action(key, value)?),
            "MaxTurns" => request.limits.watch.agent.max_turns = Some(limit(key, value)?),
            "MaxTurnsAction" => request.limits.watch.agent.max_turns_action = Some(action(key, value)?),
            "MaxTokens" => request.limits.watch.agent.max_tokens = Some(limit(key, value)?),
            "MaxTokensAction" => request.limits.watch.agent.max_tokens_action = Some(action(key, value)?),
            "MaxCostMicroUSD" => request.limits.watch.agent.max_cost_micro_usd = Some(limit(key, value)?),
            "MaxCostAction" => request.limits.watch.agent.max_cost_action = Some(action(key, value)?),
            "PermissionTimeoutUSec" => request.limits.watch.agent.permission_timeout = Some(timer(key, value)?),
            "PermissionAction" => request.limits.watch.agent.permission_action = Some(action(key, value)?),
            "GraceUSec" => {
                let grace = timer(key, value)?;
                request.limits.grace = Some(grace.ok_or_else(|| Error::invalid("GraceUSec cannot be off"))?);
            }
            "Readiness" => {
                request.limits.readiness = Some(text(key, value)?.parse::<Readiness>().map_err(Error::invalid)?)
            }
            "Run" => {
                let id = text(key, value)?.parse();
                request.reserved =
                    Some(id.map_err(|e: InvalidRunId| Error::new(ErrorKind::InvalidRunId, e.to_string()))?);
            }
            "MemoryMaxBytes" => request.limits.memory_max_bytes = Some(limit(key, value)?),
            "TasksMax" => request.limits.tasks_max = Some(limit(key, value)?),
            "CPUMaxPercent" => {
                let Variant::U32(percent) = value else { return Err(wrong(key, value, "u")) };
                request.limits.cpu_max_percent = Some(match *percent {
                    u32::MAX => None,
                    0 => return Err(Error::invalid("CPUMaxPercent is 1 or more, in percent of one core")),
                    percent => Some(percent),
                });
            }
            "IsolatePIDs" => {
                let Variant::Bool(isolate) = value else { return Err(wrong(key, value, "b")) };
                request.limits.isolate_pids = Some(*isolate);
            }
            "CleanupGitLocks" => {
                let Variant::Bool(removes) = value else { return Err(wrong(key, value, "b")) };
                request.limits.cleanup_git_locks = Some(*removes);
            }
            "UID" => {
                let Variant::U32(uid) = value else { return Err(wrong(key, value, "u")) };
                request.uid = Some(*uid);
            }
            "Executor" => {
                let name = text(key, value)?;
                valid_workflow_name(&name)
                    .map_err(|why| Error::invalid(why.replace("a workflow name", "the name of an executor")))?;
                request.limits.executor = Some(name);
            }
            "Prompt" => {
                let prompt = match value {
                    Variant::Str(s) => s.as_bytes().to_vec(),
                    Variant::Array(a) if a.element_signature() == &Signature::U8 => octets(a),
                    _ => return Err(wrong(key, value, "s or ay")),
                };
                if prompt.len() > PROMPT_MAX {
                    return Err(Error::invalid(format!("Prompt is larger than {} MiB", PROMPT_MAX >> 20)));
                }
                request.prompt = Some(prompt);
            }
            other => return Err(unknown(other)),
        }
    }
    check(&request)?;
    Ok(request)
}

/// Checks what the keys mean together.
fn check(request: &LaunchRequest) -> Result<(), Error> {
    match request.argv.first() {
        None => return Err(Error::invalid("Command is missing: it is the command and its arguments, as or aay")),
        Some(command) if command.is_empty() => return Err(Error::invalid("Command is the empty string")),
        Some(_) => {}
    }
    // Absent, it is the home directory of the run's owner.
    let absolute = request.cwd.is_empty() || request.cwd.first() == Some(&b'/');
    if !absolute || request.cwd.len() > PATH_MAX {
        return Err(Error::invalid(format!("WorkingDirectory is an absolute path of at most {PATH_MAX} bytes")));
    }
    // The position and not the entry: it may hold a secret.
    if let Some(n) = request.env.iter().position(|e| !e.iter().skip(1).any(|b| *b == b'=')) {
        return Err(Error::invalid(format!("entry {n} of Environment is not KEY=VALUE")));
    }
    Ok(())
}

fn unknown(key: &str) -> Error {
    // A key may have a megabyte, and comparing takes its square.
    let shown: String = key.chars().take(40).collect();
    let lower = shown.to_lowercase();
    let close = |known: &&&str| strsim::jaro_winkler(&lower, &known.to_lowercase()) > 0.85;
    let hint = KEYS.iter().find(close).map(|k| format!(": do you mean {k}?")).unwrap_or_default();
    Error::invalid(format!("{shown:?} is not a key of a launch{hint}"))
}

pub(super) fn wrong(key: &str, value: &Variant<'_>, wanted: &str) -> Error {
    let got: String = value.value_signature().to_string().chars().take(20).collect();
    Error::invalid(format!("{key} has the D-Bus type {wanted}, not {got}"))
}

fn without_nul(key: &str, bytes: &[u8]) -> Result<(), Error> {
    if bytes.contains(&0) { Err(Error::invalid(format!("{key} holds a NUL byte"))) } else { Ok(()) }
}

pub(super) fn text(key: &str, value: &Variant<'_>) -> Result<String, Error> {
    let Variant::Str(s) = value else { return Err(wrong(key, value, "s")) };
    without_nul(key, s.as_bytes())?;
    Ok(s.to_string())
}

/// A string, or the bytes of one that is not UTF-8.
fn bytes(key: &str, value: &Variant<'_>) -> Result<Vec<u8>, Error> {
    let bytes = match value {
        Variant::Str(s) => s.as_bytes().to_vec(),
        Variant::Array(a) if a.element_signature() == &Signature::U8 => octets(a),
        _ => return Err(wrong(key, value, "s or ay")),
    };
    without_nul(key, &bytes)?;
    Ok(bytes)
}

fn octets(array: &Array<'_>) -> Vec<u8> {
    let octet = |v: &Variant<'_>| if let Variant::U8(b) = v { Some(*b) } else { None };
    array.inner().iter().filter_map(octet).collect()
}

fn list(key: &str, value: &Variant<'_>, max: usize) -> Result<Vec<Vec<u8>>, Error> {
    let Variant::Array(array) = value else { return Err(wrong(key, value, "as or aay")) };
    let mut total = 0;
    let mut all = Vec::with_capacity(array.len());
    for entry in array.inner() {
        let entry = bytes(key, entry).map_err(|_| wrong_entry(key, entry, value))?;
        total += entry.len() + 1;
        if total > max {
            return Err(Error::invalid(format!("{key} is larger than {} KiB", max / 1024)));
        }
        all.push(entry);
    }
    Ok(all)
}

fn wrong_entry(key: &str, entry: &Variant<'_>, whole: &Variant<'_>) -> Error {
    match entry {
        Variant::Str(_) => Error::invalid(format!("{key} holds a NUL byte")),
        Variant::Array(a) if a.element_signature() == &Signature::U8 => {
            Error::invalid(format!("{key} holds a NUL byte"))
        }
        _ => wrong(key, whole, "as or aay"),
    }
}

fn limit(key: &str, value: &Variant<'_>) -> Result<Option<u64>, Error> {
    match value {
        Variant::U64(u64::MAX) => Ok(None),
        Variant::U64(0) => Err(Error::invalid(format!("{key} is 1 or more, or the greatest number for off"))),
        Variant::U64(n) => Ok(Some(*n)),
        _ => Err(wrong(key, value, "t")),
    }
}

fn timer(key: &str, value: &Variant<'_>) -> Result<Option<Duration>, Error> {
    match value {
        Variant::U64(u64::MAX) => Ok(None),
        Variant::U64(n) if *n > DURATION_MAX => Err(Error::invalid(format!("{key} is longer than 100 years"))),
        Variant::U64(n) => Ok(Some(Duration::from_micros(*n))),
        _ => Err(wrong(key, value, "t")),
    }
}

fn action(key: &str, value: &Variant<'_>) -> Result<Action, Error> {
    text(key, value)?.parse().map_err(Error::invalid)
}

/// Refuses what a caller says about a duration when it is longer than any limit may be.
pub fn duration(name: &str, usec: u64) -> Result<Duration, Error> {
    if usec > DURATION_MAX {
        return Err(Error::invalid(format!("{name} is longer than 100 years")));
    }
    Ok(Duration::from_micros(usec))
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
