//! What a launch is made of: the options of `run` as a request.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::args::RunArgs;
use crate::executor::CLAUDE_CLI;
use crate::executor::command::AgentOptions;
use crate::model::LaunchRequest;
use crate::model::{Error, LimitUpdate, WatchUpdate};

/// What stands for the standard input in the place of a file.
const STANDARD_INPUT: &str = "-";
/// The most bytes of a prompt, as on the bus.
const PROMPT_MAX: u64 = 4 << 20;

/// The request of these options. The working directory is where this process is.
pub fn request(args: &RunArgs) -> Result<LaunchRequest, Error> {
    let percent = |limit: Option<u64>| limit.map(|p| u32::try_from(p).unwrap_or(u32::MAX - 1));
    let uid = args.uid.as_deref().map(uid_of).transpose()?;
    // Another user's run begins at home, if nothing is said.
    let cwd = match (uid, &args.cwd) {
        (Some(_), None) => PathBuf::new(),
        _ => std::env::current_dir()
            .map_err(|e| Error::invalid(format!("the working directory cannot be told: {e}: name one with --cwd")))?,
    };
    Ok(LaunchRequest {
        workflow: args.workflow.clone(),
        reason: String::new(),
        name: args.name.clone(),
        argv: command(args),
        env: Vec::new(),
        cwd: cwd.into_os_string().into_vec(),
        limits: LimitUpdate {
            max_running: None,
            queue_timeout: args.queue_timeout.map(|l| l.0),
            init_timeout: args.init_timeout.map(|l| l.0),
            max_runtime: args.max_runtime.map(|l| l.0),
            watch: watch(args),
            grace: args.grace,
            readiness: args.readiness(),
            memory_max_bytes: args.memory_max.map(|l| l.0),
            tasks_max: args.tasks_max.map(|l| l.0),
            cpu_max_percent: args.cpu_max.map(|l| percent(l.0)),
            isolate_pids: args.isolate_pids.then_some(true),
            cleanup_git_locks: args.cleanup_git_locks.then_some(true),
            sandbox: None,
            credentials: None,
            executor: executor(args),
        },
        reserved: None,
        uid,
        prompt: None,
    })
}

/// The command with what is asked of a claude. It is told of the most turns, so that it ends by itself before it is ended.
fn command(args: &RunArgs) -> Vec<Vec<u8>> {
    let is_claude = executor(args).as_deref() == Some(CLAUDE_CLI);
    let max_turns = args.agent.max_turns.and_then(|limit| limit.0).filter(|_| is_claude);
    let options = AgentOptions { max_turns, ..args.executor.options() };
    options.command(args.command.clone()).into_iter().map(OsString::into_vec).collect()
}

/// The executor that is named, or the one that the options are for.
fn executor(args: &RunArgs) -> Option<String> {
    let is_for_claude = args.command.is_empty() || !args.executor.options().is_empty();
    let implied = || is_for_claude.then(|| CLAUDE_CLI.to_owned());
    args.executor.executor.clone().or_else(implied)
}

/// The prompt of a detached run: the file, read whole. Before the working directory is changed.
pub fn prompt(file: &Path) -> Result<Vec<u8>, Error> {
    let read = match file == Path::new(STANDARD_INPUT) {
        true => read_all(std::io::stdin()),
        false => std::fs::File::open(file).and_then(read_all),
    };
    let prompt = read.map_err(|e| cannot_read(file, &e))?;
    match prompt.len() as u64 > PROMPT_MAX {
        true => Err(Error::invalid(format!(
            "--prompt-file {}: a prompt has at most {} MiB: have the command read the rest from a file",
            file.display(),
            PROMPT_MAX >> 20
        ))),
        false => Ok(prompt),
    }
}

fn read_all(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(PROMPT_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts the file with the prompt in the place of our standard input, which the command of a foreground run inherits.
pub fn prompt_as_input(file: &Path) -> Result<(), Error> {
    if file == Path::new(STANDARD_INPUT) {
        return Ok(());
    }
    let opened = std::fs::File::open(file).map_err(|e| cannot_read(file, &e))?;
    nix::unistd::dup2_stdin(&opened).map_err(|e| cannot_read(file, &e.into()))
}

fn cannot_read(file: &Path, e: &std::io::Error) -> Error {
    Error::invalid(format!("--prompt-file {}: cannot be read: {e}", file.display()))
}

fn watch(args: &RunArgs) -> WatchUpdate {
    WatchUpdate {
        init_action: args.init_action,
        max_runtime_action: args.max_runtime_action,
        heartbeat_timeout: args.heartbeat_timeout.map(|l| l.0),
        heartbeat_action: args.heartbeat_action,
        idle_timeout: args.idle_timeout.map(|l| l.0),
        idle_action: args.idle_action,
        spin_timeout: args.spin_timeout.map(|l| l.0),
        spin_action: args.spin_action,
        input_timeout: args.input_timeout.map(|l| l.0),
        input_action: args.input_action,
        escapees: args.escapees,
        pressure_max_percent: None,
        dry_run: None,
        agent: args.agent.update(),
    }
}

/// A user by name or number.
fn uid_of(text: &str) -> Result<u32, Error> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let user = nix::unistd::User::from_name(text)
        .map_err(|e| Error::invalid(format!("--uid {text}: the users of this host cannot be looked up: {e}")))?;
    let user =
        user.ok_or_else(|| Error::invalid(format!("--uid {text}: there is no such user: `getent passwd` lists them")))?;
    Ok(user.uid.as_raw())
}

/// The environment of the command: this process's, with what `--env` sets. A detached run gets the same; another user's
/// run only what is set.
pub fn environment(args: &RunArgs) -> Result<Vec<Vec<u8>>, Error> {
    let own = std::env::vars_os().map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat());
    let mut env: Vec<Vec<u8>> = if args.uid.is_some() { Vec::new() } else { own.collect() };
    for entry in &args.env {
        let bytes = entry.as_bytes();
        let (key, value) = match bytes.iter().position(|b| *b == b'=') {
            Some(0) => return Err(Error::invalid("--env takes KEY=VALUE or KEY, and the key is empty")),
            Some(at) => (&bytes[..at], Some(bytes[at + 1..].to_vec())),
            None => (bytes, std::env::var_os(OsStr::from_bytes(bytes)).map(OsStringExt::into_vec)),
        };
        let value = value.ok_or_else(|| {
            Error::invalid(format!("--env {0}: there is no variable {0} to pass on", entry.to_string_lossy()))
        })?;
        env.retain(|e| !(e.starts_with(key) && e.get(key.len()) == Some(&b'=')));
        env.push([key, b"=", &value].concat());
    }
    Ok(env)
}
