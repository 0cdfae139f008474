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
use crate::model::{
    Action, Error, ErrorKind, InvalidRunId, Notification, Notify, Readiness, Reserved, RunId, valid_workflow_name,
};

/// The most bytes that the command and its arguments may have together.
const COMMAND_MAX: usize = 1 << 20;
/// The most bytes that the environment may have, as `execve` takes about 2 MiB for both.
const ENVIRONMENT_MAX: usize = 1 << 20;
/// The longest path, as in `PATH_MAX`.
const PATH_MAX: usize = 4096;
/// The longest name for people, in characters.
const NAME_MAX: usize = 128;
/// The longest duration, in microseconds: 100 years, as in the configuration.
const DURATION_MAX: u64 = 100 * 365 * 24 * 3600 * 1_000_000;

const KEYS: [&str; 26] = [
    "Workflow",
    "Name",
    "Command",
    "Environment",
    "WorkingDirectory",
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
    "UID",
];

/// A launch as `a{sv}`. Byte strings are `ay`; a limit that is off is the greatest number.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct LaunchDict {
    workflow: Option<String>,
    name: Option<String>,
    command: Vec<Vec<u8>>,
    environment: Option<Vec<Vec<u8>>>,
    working_directory: Vec<u8>,
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
    #[zbus(rename = "UID")]
    uid: Option<u32>,
}

impl From<&LaunchRequest> for LaunchDict {
    fn from(r: &LaunchRequest) -> Self {
        let duration = |d: Option<Option<Duration>>| d.map(|d| d.map_or(u64::MAX, usec));
        let (watch, action) = (&r.limits.watch, |action: Option<Action>| action.map(|a| a.as_str().to_owned()));
        Self {
            workflow: r.workflow.clone(),
            name: r.name.clone(),
            command: r.argv.clone(),
            environment: (!r.env.is_empty()).then(|| r.env.clone()),
            working_directory: r.cwd.clone(),
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
            escapees: action(watch.escapees),
            heartbeat_timeout_usec: duration(watch.heartbeat_timeout),
            heartbeat_action: action(watch.heartbeat_action),
            grace_usec: r.limits.grace.map(usec),
            readiness: r.limits.readiness.map(|r| r.as_str().into()),
            run: r.reserved.map(|id| id.to_string()),
            memory_max_bytes: r.limits.memory_max_bytes.map(|m| m.unwrap_or(u64::MAX)),
            tasks_max: r.limits.tasks_max.map(|m| m.unwrap_or(u64::MAX)),
            cpu_max_percent: r.limits.cpu_max_percent.map(|m| m.unwrap_or(u32::MAX)),
            isolate_pids: r.limits.isolate_pids,
            uid: r.uid,
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
            "UID" => {
                let Variant::U32(uid) = value else { return Err(wrong(key, value, "u")) };
                request.uid = Some(*uid);
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

fn wrong(key: &str, value: &Variant<'_>, wanted: &str) -> Error {
    let got: String = value.value_signature().to_string().chars().take(20).collect();
    Error::invalid(format!("{key} has the D-Bus type {wanted}, not {got}"))
}

fn without_nul(key: &str, bytes: &[u8]) -> Result<(), Error> {
    if bytes.contains(&0) { Err(Error::invalid(format!("{key} holds a NUL byte"))) } else { Ok(()) }
}

fn text(key: &str, value: &Variant<'_>) -> Result<String, Error> {
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

/// Reads what is said for a run: a heartbeat, unless it is said to be about to end.
pub fn heartbeat(dict: &HashMap<String, OwnedVariant>) -> Result<Notification, Error> {
    let mut said = Notification::default();
    for (key, value) in dict {
        let value: &Variant<'_> = value;
        match (key.as_str(), value) {
            ("Ready", Variant::Bool(ready)) => said.ready = *ready,
            ("Stopping", Variant::Bool(stopping)) => said.stopping = *stopping,
            ("Ready" | "Stopping", _) => return Err(wrong(key, value, "b")),
            ("Status", _) => said.status = Some(Notification::status_of(&text(key, value)?)),
            ("ExtendTimeoutUSec", Variant::U64(usec)) => said.extend = Some(duration(key, *usec)?),
            ("ExtendTimeoutUSec", _) => return Err(wrong(key, value, "t")),
            _ => {
                let shown: String = key.chars().take(40).collect();
                return Err(Error::invalid(format!(
                    "{shown:?} is not a key of a heartbeat: use Ready, Status, Stopping and ExtendTimeoutUSec"
                )));
            }
        }
    }
    said.heartbeat = !said.stopping;
    Ok(said)
}

/// Refuses what a caller says about a duration when it is longer than any limit may be.
pub fn duration(name: &str, usec: u64) -> Result<Duration, Error> {
    if usec > DURATION_MAX {
        return Err(Error::invalid(format!("{name} is longer than 100 years")));
    }
    Ok(Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use zbus::wire::{LE, serialized::Context, to_bytes};

    use super::*;
    use crate::model::{LimitUpdate, WatchUpdate};

    fn request() -> LaunchRequest {
        LaunchRequest { argv: vec![b"sh".to_vec(), b"-c".to_vec()], cwd: b"/tmp".to_vec(), ..LaunchRequest::default() }
    }

    fn over_the_wire(request: &LaunchRequest) -> Result<LaunchRequest, Error> {
        let encoded = to_bytes(Context::new(LE, 0), &LaunchDict::from(request)).unwrap();
        parse(&encoded.deserialize::<HashMap<String, OwnedVariant>>().unwrap().0)
    }

    fn with(key: &str, value: Variant<'_>) -> Result<LaunchRequest, Error> {
        let encoded = to_bytes(Context::new(LE, 0), &LaunchDict::from(&request())).unwrap();
        let mut dict = encoded.deserialize::<HashMap<String, OwnedVariant>>().unwrap().0;
        dict.insert(key.into(), OwnedVariant::try_from(value).unwrap());
        parse(&dict)
    }

    fn refused(key: &str, value: Variant<'_>) -> String {
        with(key, value).unwrap_err().message
    }

    #[test]
    fn a_launch_comes_back_as_it_went() {
        let limits = LimitUpdate {
            init_timeout: Some(None),
            max_runtime: Some(Some(Duration::from_secs(3))),
            watch: WatchUpdate {
                init_action: Some(Action::Warn),
                max_runtime_action: Some(Action::Off),
                heartbeat_timeout: Some(Some(Duration::from_secs(9))),
                heartbeat_action: Some(Action::KillIfIdle),
                idle_timeout: Some(None),
                idle_action: Some(Action::Kill),
                spin_timeout: Some(Some(Duration::from_secs(9))),
                spin_action: Some(Action::Off),
                input_timeout: Some(Some(Duration::from_secs(8))),
                input_action: Some(Action::Warn),
                escapees: Some(Action::Kill),
                pressure_max_percent: None,
                dry_run: None,
            },
            grace: Some(Duration::from_millis(5)),
            readiness: Some(Readiness::Exec),
            memory_max_bytes: Some(Some(1 << 30)),
            tasks_max: Some(None),
            cpu_max_percent: Some(Some(150)),
            isolate_pids: Some(true),
            sandbox: None,
            credentials: None,
        };
        let full = LaunchRequest {
            uid: Some(7),
            reserved: Some(RunId::from_bytes([1; 6])),
            workflow: Some("builder".into()),
            name: Some("näme".into()),
            argv: vec![b"printf".to_vec(), b"\xff\xfe".to_vec(), b"".to_vec()],
            env: vec![b"A=".to_vec(), b"B=\xff".to_vec()],
            cwd: b"/d\xff".to_vec(),
            limits,
        };
        for request in [request(), full] {
            let back = over_the_wire(&request).unwrap();
            assert_eq!(format!("{back:?}"), format!("{request:?}"));
        }
    }

    #[test]
    fn strings_do_for_bytes() {
        assert_eq!(with("Command", vec!["ls", "-l"].into()).unwrap().argv, [b"ls".to_vec(), b"-l".to_vec()]);
        assert_eq!(with("WorkingDirectory", "/srv".into()).unwrap().cwd, b"/srv");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_a_sentence() {
        assert!(refused("MaxRuntimeUsec", 1u64.into()).contains("do you mean MaxRuntimeUSec?"));
        assert_eq!(refused("Colour", 1u64.into()), "\"Colour\" is not a key of a launch");
        assert_eq!(refused("MaxRuntimeUSec", 1u32.into()), "MaxRuntimeUSec has the D-Bus type t, not u");
        assert_eq!(refused("GraceUSec", u64::MAX.into()), "GraceUSec cannot be off");
        assert!(refused("InitTimeoutUSec", (u64::MAX - 1).into()).contains("100 years"));
        assert!(refused("Workflow", "a b".into()).contains("not a workflow name"));
        assert!(refused("Name", "x".repeat(129).into()).contains("1 to 128"));
        assert!(refused("Command", Vec::<&str>::new().into()).contains("Command is missing"));
        assert!(refused("Command", vec![""].into()).contains("empty"));
        assert!(refused("Command", vec![1u32].into()).contains("as or aay"));
        assert!(refused("Command", vec!["x".repeat(COMMAND_MAX)].into()).contains("larger than 1024 KiB"));
        assert_eq!(refused("Command", vec![vec![b'a', 0]].into()), "Command holds a NUL byte");
        assert!(refused("WorkingDirectory", "tmp".into()).contains("absolute"));
        assert_eq!(refused("Environment", vec!["OK=1", "SECRET"].into()), "entry 1 of Environment is not KEY=VALUE");
        assert!(refused("Environment", vec!["=x"].into()).contains("entry 0"));
        assert!(refused("TasksMax", 0u64.into()).contains("1 or more"));
        assert!(refused("IdleAction", "stop".into()).contains("off, warn or kill"));
        assert!(refused("InputAction", "kill".into()).contains("off or warn"));
        assert!(refused("Readiness", "maybe".into()).contains("output, exec or notify"));
    }
}
