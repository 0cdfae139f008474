//! `org.guardian.Guardian1.Manager`: requests, reads and the audit. Its argument names and properties are the file
//! packaging/dbus/org.guardian.Guardian1.xml, which a test holds it to.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use zbus::object_server::SignalEmitter;
use zbus::{Connection, DeserializeDict, OwnedObjectPath, OwnedVariant, SerializeDict, Type, interface};

use super::access::{Request, unexpected};
use super::error::Refusal;
use super::explain::{ExplanationDict, explanation};
use super::filter::filter;
use super::launch::ReservedDict;
use super::rights::{Peer, Right};
use super::statistics::{self, StatisticsDict};
use super::view::{self, KillDict, RunDict};
use super::wire::Marshalled;
use super::{Services, access, launch, run_path};
use crate::daemon::command::{Answer, Command};
use crate::daemon::published::Ending;
use crate::failpoint;
use crate::model::{
    Actor, AuditRow, Error, ErrorKind, KillAnswer, KillMode, KillReason, Phase, Rule, RunId, RunView, Wall,
};

/// The most audit rows in one answer.
const EVENTS_MAX: u32 = 10_000;
/// The longest reason of a kill, in bytes.
const REASON_MAX: usize = 4096;

/// `(seq, at, kind, run, workflow, uid, actor, reason, details, hash)`: a row of the audit. Details are a JSON object.
pub type WireEvent = (u64, u64, String, String, String, u32, String, String, String, String);

/// What `doctor` asks for, as `a{sv}`.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct Description {
    /// The version of the instance.
    pub version: String,
    /// Its pid.
    #[zbus(rename = "PID")]
    pub pid: u32,
    /// Its uid.
    #[zbus(rename = "UID")]
    pub uid: u32,
    /// `system`, `user` or `private`.
    pub instance: String,
    /// Where it keeps its database and logs.
    pub state_directory: String,
    /// The configuration file; empty if there is none.
    pub config_file: String,
    /// What contains runs.
    pub backend: String,
    /// The backends that were looked at, in order: `(backend, chosen, why)`.
    pub backends: Vec<(String, bool, String)>,
    /// Where the cgroups of runs are made.
    pub control_group: String,
    /// How the instance itself is.
    pub health: String,
    /// Why it is not healthy.
    pub health_reasons: Vec<String>,
    /// Live runs.
    pub runs_active: u64,
    /// Runs accepted since it started.
    pub runs_total: u64,
    /// Kills begun since it started.
    pub kills_total: u64,
    /// When it began to serve.
    #[zbus(rename = "StartTimestampUSec")]
    pub start_timestamp_usec: u64,
    /// The number of the last row of the audit.
    pub last_sequence: u64,
    /// What is missing on this host, and what to type to get it.
    pub notes: Vec<String>,
}

/// What AuditVerify answers, as `a{sv}`.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct AuditDict {
    pub(super) intact: bool,
    pub(super) rows: u64,
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
    pub(super) last_hash: String,
    pub(super) broken_sequence: Option<u64>,
    pub(super) problem: Option<String>,
}

/// The manager, as one peer sees it.
pub struct Manager {
    services: Arc<Services>,
    peer: Peer,
}

impl Manager {
    /// The manager for this peer.
    pub fn new(services: Arc<Services>, peer: Peer) -> Self {
        Self { services, peer }
    }

    fn request(&self) -> Request<'_> {
        Request { services: &self.services, peer: &self.peer }
    }

    async fn turn(&self) -> Result<access::Turn, Error> {
        self.services.calls.enter(self.peer.caller.uid).await
    }

    async fn launched(&self, command: Command) -> Result<(String, OwnedObjectPath), Refusal> {
        let _ = failpoint::hit("bus.launch");
        match self.request().ask(command).await? {
            Answer::Run(id) => Ok((id.to_string(), object_path(id)?)),
            other => Err(unexpected(&other).into()),
        }
    }
}

/// The path of a run's object.
pub fn object_path(run: RunId) -> Result<OwnedObjectPath, Error> {
    OwnedObjectPath::try_from(run_path(run)).map_err(|e| Error::internal(e.to_string()))
}

pub(super) fn event(row: AuditRow) -> WireEvent {
    let e = row.event;
    let (uid, name) = view::actor(&e.actor);
    let run = e.run.map(|r| r.to_string()).unwrap_or_default();
    let details = e.details.to_string();
    (
        row.seq,
        e.at.0,
        e.kind.as_str().into(),
        run,
        e.workflow.unwrap_or_default(),
        uid,
        name,
        e.reason,
        details,
        row.hash,
    )
}

/// Checks the arguments of a kill.
pub fn kill_arguments(mode: &str, reason: String) -> Result<(KillMode, String), Error> {
    let mode = mode.parse().map_err(Error::invalid)?;
    if reason.len() > REASON_MAX {
        return Err(Error::invalid(format!("a reason has at most {REASON_MAX} bytes")));
    }
    Ok((mode, reason))
}

/// Checks the name of a timer.
pub fn timer(limit: &str) -> Result<Rule, Error> {
    limit.parse().map_err(Error::invalid)
}

#[interface(name = "org.guardian.Guardian1.Manager", introspection_docs = false)]
impl Manager {
    /// Starts a detached run. The answer comes once the command is executed in its cgroup or, while as many runs as may run
    /// at once do so, once it is on durable record that the run is queued.
    #[zbus(out_args("run_id", "path"))]
    async fn start_run(&self, options: HashMap<String, OwnedVariant>) -> Result<(String, OwnedObjectPath), Refusal> {
        let _turn = self.turn().await?;
        let request = launch::parse(&options)?;
        self.request().may_launch(&request).await?;
        self.launched(Command::Start { request }).await
    }

    /// Reserves an id for a run with these options, for some seconds. Where cgroups are the instance's own, the run's comes
    /// with it: a child that is forked into it (CLONE_INTO_CGROUP) need not be moved. Where there are none, it is the record
    /// of a shim that the caller is to start. AttachRun or StartRun with this id follows.
    #[zbus(out_args("run_id", "container", "descriptors"))]
    async fn reserve_run(
        &self,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<(String, ReservedDict, Vec<zbus::OwnedFd>), Refusal> {
        let _turn = self.turn().await?;
        let request = launch::parse(&options)?;
        self.request().may_launch(&request).await?;
        let (container, given) = tokio::sync::oneshot::channel();
        match self.request().ask(Command::Reserve { request, container }).await? {
            Answer::Reserved(reserved) => {
                let descriptors = given.await.ok().map(Into::into).into_iter().collect();
                Ok((reserved.run.to_string(), ReservedDict::from(&reserved), descriptors))
            }
            other => Err(unexpected(&other).into()),
        }
    }

    /// Contains a gated child of the caller. The answer comes once it is in its cgroup: the gate may be opened. While as many
    /// runs as may run at once do so it is waited for, which may take long: the run is queued meanwhile.
    #[zbus(out_args("run_id", "path"))]
    async fn attach_run(
        &self,
        options: HashMap<String, OwnedVariant>,
        child: zbus::OwnedFd,
    ) -> Result<(String, OwnedObjectPath), Refusal> {
        let _wait = self.services.calls.enter_wait(self.peer.caller.uid)?;
        let request = launch::parse(&options)?;
        if request.uid.is_some_and(|uid| uid != self.peer.caller.uid) {
            return Err(Error::invalid("a foreground run is its caller's: leave out UID").into());
        }
        self.launched(Command::Attach { request, child: child.into() }).await
    }

    /// Tells how the main process of a foreground run ended, which only its parent can know.
    async fn report_exit(&self, run: &str, kind: &str, value: i32) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        let status = view::exit_status_from(kind, value)?;
        // It is the parent's to say: no right over others' runs makes one its parent.
        let parent = Peer { authority: None, ..self.peer.clone() };
        let own = Request { services: &self.services, peer: &parent };
        let run = own.find_live(run, Right::KillRun).await?;
        self.request().ask(Command::ReportExit { run, status }).await?;
        Ok(())
    }

    /// Ends a run. The answer means accepted and on record; WaitRun tells when it is done.
    #[zbus(out_args("kill"))]
    async fn kill_run(&self, run: &str, mode: &str, reason: String) -> Result<KillDict, Refusal> {
        let _turn = self.turn().await?;
        let (mode, text) = kill_arguments(mode, reason)?;
        let found = self.request().find_live(run, Right::KillRun).await;
        if let (Err(e), Ok(run)) = (&found, run.parse())
            && failpoint::without("guard.refusal").as_deref() == Some(e.kind.as_str())
        {
            let reason = KillReason::Requested { text };
            let never = KillAnswer { run, mode, reason, actor: Actor::Guardian, requested_at: Wall(0) };
            return Ok(KillDict::from(&never));
        }
        match self.request().ask(Command::Kill { run: found?, mode, text }).await? {
            Answer::Kill(mut answer) => {
                if failpoint::without("guard.one_kill").is_some() {
                    answer.requested_at.0 += u64::from(mode == KillMode::Force);
                }
                Ok(KillDict::from(&answer))
            }
            other => Err(unexpected(&other).into()),
        }
    }

    /// Waits until a run is over, or the time (the greatest number: for ever) is.
    #[zbus(out_args("view"))]
    async fn wait_run(
        &self,
        run: &str,
        timeout_usec: u64,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<RunDict, Refusal> {
        let _wait = self.services.calls.enter_wait(self.peer.caller.uid)?;
        let known = self.request().find(run, Right::ReadAll).await?;
        if known.phase == Phase::Finished {
            return Ok(RunDict::from(known.as_ref()));
        }
        let id = known.spec.id;
        let receiver = match self.services.published.ending(id) {
            Ending::Finished(view) => return Ok(RunDict::from(view.as_ref())),
            Ending::Unknown => return Ok(RunDict::from(self.request().run(id, Right::ReadAll).await?.as_ref())),
            Ending::Pending(receiver) => receiver,
        };
        let timeout = async {
            match timeout_usec {
                u64::MAX => std::future::pending().await,
                usec => tokio::time::sleep(Duration::from_micros(usec)).await,
            }
        };
        tokio::select! {
            view = receiver => match view {
                Ok(view) => Ok(RunDict::from(view.as_ref())),
                Err(_) => Err(Error::new(ErrorKind::Unavailable, "the instance is stopping: ask the next one").into()),
            },
            () = timeout => Err(Error::new(
                ErrorKind::TimedOut,
                format!("{id} is still live after {}", crate::model::human_duration(Duration::from_micros(timeout_usec))),
            ).into()),
            // Nobody is there to be answered; the wait must not outlive them.
            () = connection.closed() => Err(Error::new(ErrorKind::Unavailable, "the caller is gone").into()),
        }
    }

    /// Gives a timer of a run more time; answers when it will now end the run.
    #[zbus(out_args("deadline_usec"))]
    async fn extend_run(&self, run: &str, limit: &str, by_usec: u64) -> Result<u64, Refusal> {
        let _turn = self.turn().await?;
        let (rule, by) = (timer(limit)?, launch::duration("the extension", by_usec)?);
        let run = self.request().find_live(run, Right::KillRun).await?;
        match self.request().ask(Command::Extend { run, rule, by }).await? {
            Answer::Deadline(at) => Ok(at.0),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Pauses a run.
    async fn freeze_run(&self, run: &str) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        let run = self.request().find_live(run, Right::KillRun).await?;
        self.request().ask(Command::Freeze(run)).await?;
        Ok(())
    }

    /// Lets a paused run go on.
    async fn thaw_run(&self, run: &str) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        let run = self.request().find_live(run, Right::KillRun).await?;
        self.request().ask(Command::Thaw(run)).await?;
        Ok(())
    }

    /// Lists the live runs that the caller may see and, with Finished, the newest finished ones.
    #[zbus(out_args("runs"))]
    async fn list_runs(&self, filter_by: HashMap<String, OwnedVariant>) -> Result<Marshalled, Refusal> {
        let _turn = self.turn().await?;
        let filter = filter(&filter_by)?;
        let live = self.services.published.live();
        let mut over = Vec::new();
        let uid = self.peer.caller.uid;
        let see_all = self.request().sees_all(&filter).await?;
        let shown = |v: &RunView| see_all || access::may_see(&self.peer.caller, v);
        if filter.finished {
            let wanted = filter.uid.is_none_or(|wanted| see_all || wanted == uid);
            if wanted {
                let mut stored = filter.clone();
                if !see_all {
                    stored.uid = Some(uid);
                }
                over = self.request().read(move |h| h.runs(&stored)).await?;
            }
            // What is published is newer than what is stored.
            let recent = self.services.published.recent();
            let seen: HashSet<RunId> = live.iter().map(|v| v.view.spec.id).collect();
            let recent = recent.iter().filter(|v| filter.admits(v) && shown(v) && !seen.contains(&v.spec.id));
            let known: HashSet<RunId> = recent.clone().map(|v| v.spec.id).chain(seen.iter().copied()).collect();
            over.retain(|v| v.phase == Phase::Finished && !known.contains(&v.spec.id));
            over.extend(recent.map(|v| (**v).clone()));
            over.sort_by_key(|v| Reverse(v.created_at));
            over.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
        }
        let live = live.iter().filter(|l| filter.admits(&l.view) && shown(&l.view));
        let live = live.map(|l| RunDict::with_usage(&l.view, l.usage.get()));
        Ok(Marshalled::of(live.chain(over.iter().filter(|v| shown(v)).map(RunDict::from))))
    }

    /// What there is to say about the runs that are over, a dictionary for each workflow.
    #[zbus(out_args("workflows"))]
    async fn statistics(&self, filter_by: HashMap<String, OwnedVariant>) -> Result<Vec<StatisticsDict>, Refusal> {
        let _turn = self.turn().await?;
        Ok(statistics::statistics(&self.request(), &filter_by).await?)
    }

    /// The object of a run, by its id or the unique beginning of one.
    #[zbus(out_args("path"))]
    async fn get_run(&self, run: &str) -> Result<OwnedObjectPath, Refusal> {
        let _turn = self.turn().await?;
        Ok(object_path(self.request().find(run, Right::ReadAll).await?.spec.id)?)
    }

    /// Everything about one run, read anew if it is live.
    #[zbus(out_args("view"))]
    async fn show_run(&self, run: &str) -> Result<RunDict, Refusal> {
        let _turn = self.turn().await?;
        let view = self.request().find(run, Right::ReadAll).await?;
        if view.phase == Phase::Finished {
            return Ok(RunDict::from(view.as_ref()));
        }
        // A run that is over meanwhile is shown as it ended.
        match self.request().ask(Command::Refresh(view.spec.id)).await {
            Err(e) if !matches!(e.kind, ErrorKind::NoSuchRun | ErrorKind::AlreadyFinished) => return Err(e.into()),
            _ => {}
        }
        Ok(RunDict::from(self.request().run(view.spec.id, Right::ReadAll).await?.as_ref()))
    }

    /// What a run waits for: a live one now, a killed one just before the first signal.
    #[zbus(out_args("explanation"))]
    async fn explain_run(&self, run: &str) -> Result<ExplanationDict, Refusal> {
        let _turn = self.turn().await?;
        let view = self.request().find(run, Right::ReadAll).await?;
        Ok(explanation(&self.request(), &view).await?)
    }

    /// The audit after a row, in order. The signal EventAppended says that there is more.
    #[zbus(out_args("events"))]
    async fn events(&self, after: u64, max: u32) -> Result<Vec<WireEvent>, Refusal> {
        let _turn = self.turn().await?;
        self.request().demand(Right::ReadAll).await?;
        let rows = self.request().read(move |h| h.events(after, max.clamp(1, EVENTS_MAX), None)).await?;
        Ok(rows.into_iter().map(event).collect())
    }

    /// The audit of one run after a row, in order.
    #[zbus(out_args("events"))]
    async fn run_events(&self, run: &str, after: u64, max: u32) -> Result<Vec<WireEvent>, Refusal> {
        let _turn = self.turn().await?;
        let id = self.request().find(run, Right::ReadAll).await?.spec.id;
        let rows = self.request().read(move |h| h.events(after, max.clamp(1, EVENTS_MAX), Some(id))).await?;
        Ok(rows.into_iter().map(event).collect())
    }

    /// Checks the hash chain of the whole audit.
    #[zbus(out_args("report"))]
    async fn audit_verify(&self) -> Result<AuditDict, Refusal> {
        let _turn = self.turn().await?;
        self.request().demand(Right::ReadAll).await?;
        let report = self.request().read(|h| h.verify()).await?;
        Ok(AuditDict {
            intact: report.broken.is_none(),
            rows: report.rows,
            first_sequence: report.first_seq,
            last_sequence: report.last_seq,
            last_hash: report.last_hash,
            broken_sequence: report.broken.as_ref().map(|b| b.0),
            problem: report.broken.map(|b| b.1),
        })
    }

    /// Reads the configuration anew, whole or not at all.
    async fn reload(&self) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        self.request().demand(Right::Manage).await?;
        self.request().ask(Command::Reload).await?;
        Ok(())
    }

    /// Stops the instance. Live runs go on; the next instance takes them up.
    async fn stop(&self) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        self.request().demand(Right::Manage).await?;
        self.request().ask(Command::Stop).await?;
        Ok(())
    }

    /// What this instance is, and how it is.
    #[zbus(out_args("instance"))]
    async fn describe(&self) -> Result<Description, Refusal> {
        let _turn = self.turn().await?;
        let about = &self.services.about;
        let state = self.services.published.instance();
        // A store that cannot be read is a reason for `doctor` to be run, not for it to fail.
        let last = self.request().read(|h| h.last_seq()).await;
        let mut health_reasons = state.reasons;
        if let Err(e) = &last {
            health_reasons.push(format!("the audit cannot be read: {e}"));
        }
        Ok(Description {
            version: about.version.clone(),
            pid: about.pid,
            uid: about.uid,
            instance: about.instance.as_str().into(),
            state_directory: about.state_dir.to_string_lossy().into_owned(),
            config_file: about.config.as_ref().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default(),
            backend: about.backend.as_str().into(),
            backends: (about.considered.iter())
                .map(|c| (c.backend.as_str().to_owned(), c.chosen, c.why.clone()))
                .collect(),
            control_group: state.control_group,
            health: state.health.as_str().into(),
            health_reasons,
            runs_active: self.services.published.active() as u64,
            runs_total: state.runs_total,
            kills_total: state.kills_total,
            start_timestamp_usec: about.started_at.0,
            last_sequence: last.unwrap_or_default(),
            notes: about.notes.clone(),
        })
    }

    /// The audit has a row with this number.
    #[zbus(signal)]
    pub async fn event_appended(emitter: &SignalEmitter<'_>, seq: u64) -> zbus::Result<()>;

    /// A run is over, with this outcome.
    #[zbus(signal)]
    pub async fn run_finished(emitter: &SignalEmitter<'_>, run_id: &str, outcome: &str) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"))]
    async fn version(&self) -> String {
        self.services.about.version.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn backend(&self) -> String {
        self.services.about.backend.as_str().to_owned()
    }

    #[zbus(property)]
    async fn health(&self) -> String {
        self.services.published.instance().health.as_str().into()
    }

    #[zbus(property)]
    async fn health_reasons(&self) -> Vec<String> {
        self.services.published.instance().reasons
    }

    #[zbus(property)]
    async fn runs_active(&self) -> u64 {
        self.services.published.active() as u64
    }

    #[zbus(property)]
    async fn runs_total(&self) -> u64 {
        self.services.published.instance().runs_total
    }

    #[zbus(property)]
    async fn kills_total(&self) -> u64 {
        self.services.published.instance().kills_total
    }
}
