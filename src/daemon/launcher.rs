//! From a request to a run that the engine can decide about: its id, its resolved limits, its processes held by pidfd.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use crate::config::Config;
use crate::engine::{Concurrency, Run, Settings};
use crate::executor::Executor;
use crate::failpoint;
use crate::kernel::{Exec, Kernel as _, KernelError, look, output, process};
use crate::launch::environment;
use crate::model::{Containment, Error, ErrorKind, Evidence, LOCAL, Limits, Readiness, RunId, RunSpec, RunView};

use super::command::{Caller, LaunchRequest};
use super::driver::Held;
use super::host::{self, Host};

/// The workflow of a run that names none.
pub const DEFAULT_WORKFLOW: &str = "default";
/// How much of a command is kept for people. The process has all of it.
const COMMAND_TEXT: usize = 4096;
/// How long a person who asks waits for a look at the processes, to which the time adds in which they are watched.
const LOOK: Duration = Duration::from_millis(150);

/// Fills the buffer from the kernel's random source.
pub fn random(buffer: &mut [u8]) -> Result<(), Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::internal(format!("the kernel gives no random bytes: {e}")))?;
    }
    Ok(())
}

/// An id, drawn at random.
pub fn new_id() -> Result<RunId, Error> {
    let mut bytes = [0; 6];
    random(&mut bytes)?;
    Ok(RunId::from_bytes(bytes))
}

/// Makes a run of the request. A detached one is started behind its gate here; a foreground one waits behind its
/// client's. Nothing of the command is executed yet.
pub fn prepare(
    host: &mut Host,
    config: &Config,
    state_dir: &Path,
    id: RunId,
    request: LaunchRequest,
    child: Option<OwnedFd>,
    caller: &Caller,
) -> Result<(RunSpec, Held<Host>), Error> {
    let workflow = request.workflow.clone().unwrap_or_else(|| DEFAULT_WORKFLOW.to_owned());
    let mut limits = limits_of(config, &request);
    let argv = executed(config, &request)?;
    let executor = config.executor_name(&workflow, &request.limits).to_owned();
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let uid = request.uid.unwrap_or(caller.uid);
    let user = if uid == caller.uid { caller.user.clone() } else { user_name(uid)? };
    host.listen(id, uid);
    let notify = host.notify(id, &limits);
    // What is read tells when it is ready, if it can be told at all.
    if argv.is_some() && notify.is_some() && limits.readiness == Readiness::Output {
        limits.readiness = Readiness::Notify;
    }
    let argv = argv.unwrap_or_else(|| request.argv.clone());
    let mut spec = RunSpec {
        id,
        workflow,
        executor,
        name: request.name.clone(),
        command: command_text(&request.argv),
        cwd: text(&request.cwd),
        uid,
        user,
        main: None,
        client: None,
        containment: host.containment(),
        limits,
        log: None,
    };
    let held = match child {
        Some(child) => {
            let (main, client) = attached(host, id, child, caller)?;
            spec.main = Some(host.process_id(&main));
            spec.client = Some(host.process_id(&client));
            Held::new(Some(main), Some(client))
        }
        None => {
            let cwd = if request.cwd.is_empty() { home(spec.uid)? } else { request.cwd };
            spec.cwd = text(&cwd);
            let own = nix::unistd::geteuid().as_raw();
            if spec.containment == Containment::Systemd {
                // The unit is its user's, and its output is in the journal.
                let log = std::path::PathBuf::new();
                let exec = Exec { argv, env: request.env, cwd, notify, log, input: request.prompt, kept: None };
                return Ok((spec, Held::detached(exec)));
            }
            // A child of ours has our rights.
            if spec.uid != own {
                return Err(Error::new(
                    ErrorKind::LaunchFailed,
                    format!(
                        "this instance has the backend {} and the rights of uid {own}, and cannot start a run of uid {}: \
                         start it in the foreground, or as the instance of its user (--private)",
                        spec.containment, spec.uid
                    ),
                ));
            }
            let log = log_path(state_dir, id)?;
            let mut env = request.env;
            environment::put(&mut env, id, notify.as_ref());
            let exec = Exec { argv, env, cwd, notify: None, log: log.clone(), input: request.prompt, kept: None };
            spec.log = Some(log);
            Held::detached(exec)
        }
    };
    Ok((spec, held))
}

/// What is executed in place of the request's command, if that is not executed as it is.
pub fn executed(config: &Config, request: &LaunchRequest) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let workflow = request.workflow.as_deref().unwrap_or(DEFAULT_WORKFLOW);
    let executor = config.executor_of(workflow, &request.limits).map_err(Error::invalid)?;
    let argv = executor.command_line(request.argv.clone()).map_err(Error::invalid)?;
    Ok((executor != Executor::Local).then_some(argv))
}

type Process = <Host as crate::kernel::Kernel>::Process;

/// The limits of a run: those of its workflow, and what its request changes of them.
pub fn limits_of(config: &Config, request: &LaunchRequest) -> Limits {
    let workflow = request.workflow.as_deref().unwrap_or(DEFAULT_WORKFLOW);
    let mut limits = config.limits(workflow).with(&request.limits);
    match failpoint::without("guard.rule").as_deref() {
        Some("init_timeout") => limits.init_timeout = None,
        Some("heartbeat_timeout") => limits.watch.heartbeat_timeout = None,
        _ => {}
    }
    limits
}

/// What the engine is held to.
pub fn settings(config: &Config) -> Settings {
    let workflows = config.workflows.keys().map(|name| (name.clone(), config.limits(name).max_running)).collect();
    let (host, others) = (config.instance.max_running, config.defaults.max_running);
    Settings { max_runs: config.instance.max_runs, concurrency: Concurrency { host, workflows, others } }
}

/// The gated child and its client. Only a child of the caller, or of its shim, is attached: to take over other processes
/// is a right of its own.
fn attached(host: &mut Host, run: RunId, child: OwnedFd, caller: &Caller) -> Result<(Process, Process), Error> {
    let no_process = |what: &str, e: KernelError| Error::invalid(format!("{what} is not a live process: {e}"));
    let client = caller.process.as_ref().ok_or_else(|| Error::invalid("the caller's process is not known"))?;
    let id = client.id().map_err(|e| no_process("the caller", e))?;
    let pidfd = client.pidfd().try_clone();
    let pidfd = pidfd.map_err(|e| Error::internal(format!("cannot keep the caller's pidfd: {e}")))?;
    let client = host.known_process(pidfd, id);
    let main = host.process(child).map_err(|e| no_process("the descriptor given", e))?;
    let (main_id, client_id) = (host.process_id(&main), host.process_id(&client));
    host.is_started_by(run, main_id, client_id).map_err(|e| Error::invalid(e.to_string()))?;
    // One that has other rights already (it executed a set-user-ID program) is not its starter's to end.
    let uids = process::uids(main_id.pid).map_err(|e| no_process("the descriptor given", e))?;
    if caller.uid != 0 && uids != [caller.uid; 4] {
        return Err(Error::new(
            ErrorKind::NotAuthorized,
            format!(
                "process {} does not run as uid {} in every respect, so it is not taken over",
                main_id.pid, caller.uid
            ),
        ));
    }
    Ok((main, client))
}

/// The name of a user, who must exist.
fn user_name(uid: u32) -> Result<String, Error> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map(|u| u.name).ok_or_else(|| Error::invalid(format!("there is no user with the uid {uid}")))
}

/// The home directory of a user.
fn home(uid: u32) -> Result<Vec<u8>, Error> {
    use std::os::unix::ffi::OsStringExt as _;
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    let user =
        user.ok_or_else(|| Error::invalid(format!("uid {uid} has no home directory: name a WorkingDirectory")))?;
    Ok(user.dir.into_os_string().into_vec())
}

/// Where the output of a detached run goes.
pub fn log_path(state_dir: &Path, id: RunId) -> Result<std::path::PathBuf, Error> {
    let dir = state_dir.join("logs");
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|e| Error::new(ErrorKind::LaunchFailed, format!("cannot create {}: {e}", dir.display())))?;
    Ok(dir.join(format!("{id}.log")))
}

/// The command as text, cut where a person has seen enough.
pub fn command_text(argv: &[Vec<u8>]) -> Vec<String> {
    let mut left = COMMAND_TEXT;
    let mut words = Vec::new();
    for arg in argv {
        if left == 0 {
            words.push("…".to_owned());
            break;
        }
        let word: String = String::from_utf8_lossy(arg).chars().take(left).collect();
        left = left.saturating_sub(word.chars().count() + 1);
        words.push(word);
    }
    words
}

/// What the processes of a live run do, for a person who asks. With `watch`, what they use of the CPU in that time is told,
/// which it takes, and what the run wrote last.
pub fn evidence_of(view: &RunView, watch: Duration) -> Result<Evidence, Error> {
    let Some(container) = &view.container else { return Ok(Evidence::default()) };
    let mut evidence = match host::look(container, LOOK) {
        Ok(evidence) => evidence,
        Err(KernelError::Gone { .. } | KernelError::NotOurs { .. }) => return Ok(Evidence::default()),
        Err(e) => return Err(Error::internal(e.to_string())),
    };
    if watch > Duration::ZERO {
        look::watch(&mut evidence, watch);
        evidence.output = view.spec.log.as_deref().and_then(output::last);
    }
    Ok(evidence)
}

/// A run of a directory that carries our mark and has no record.
pub fn rebuilt(host: &Host, config: &Config, id: RunId) -> Run {
    let uid = nix::unistd::geteuid().as_raw();
    let spec = RunSpec {
        id,
        workflow: DEFAULT_WORKFLOW.to_owned(),
        executor: LOCAL.to_owned(),
        name: None,
        command: Vec::new(),
        cwd: String::new(),
        uid,
        user: uid.to_string(),
        main: None,
        client: None,
        containment: host.containment(),
        limits: config.limits(DEFAULT_WORKFLOW),
        log: None,
    };
    Run::unrecorded(spec, host.now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_cut_for_people() {
        let words = command_text(&[b"sh".to_vec(), vec![b'x'; 10_000], b"y".to_vec()]);
        assert_eq!((words[0].as_str(), words[1].len(), words[2].as_str()), ("sh", COMMAND_TEXT - 3, "…"));
        assert_eq!(command_text(&[b"\xff".to_vec()]), ["\u{fffd}"]);
    }
}
