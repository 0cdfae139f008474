//! `org.guardian.Guardian1.Run`: one run as an object. Its properties are the keys of [`super::view`], each with a value
//! always: where the view has none, the empty one. An object is made when its path is first used on a connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use zbus::{OwnedVariant, interface};

use super::access::{self, Request, blocking, unexpected};
use super::error::Refusal;
use super::explain::{ExplanationDict, explanation};
use super::heartbeat::heartbeat;
use super::manager::{kill_arguments, timer};
use super::rights::{Peer, Right};
use super::samples::{WireSample, samples};
use super::view::{
    self, KillDict, WireActor, WireEscapee, WireHealth, WireOutcome, WireProcess, WireReason, WireRule, WireStep, usec,
};
use super::{Services, launch};
use crate::daemon::command::{Answer, Command};
use crate::model::{Error, Outcome, Phase, ProcessId, Receipt, RunView, Wall};

/// One run, as one peer sees it. Only made for a run that the peer may see.
pub struct RunObject {
    services: Arc<Services>,
    peer: Peer,
    /// The run as it was when the object was made; it stands once the run has left the published views.
    made: Arc<RunView>,
}

impl RunObject {
    /// The object of this run.
    pub fn new(services: Arc<Services>, peer: Peer, made: Arc<RunView>) -> Self {
        Self { services, peer, made }
    }

    fn request(&self) -> Request<'_> {
        Request { services: &self.services, peer: &self.peer }
    }

    async fn turn(&self) -> Result<access::Turn, Error> {
        self.services.calls.enter(self.peer.caller.uid).await
    }

    async fn now(&self) -> Result<Arc<RunView>, Refusal> {
        let id = self.made.spec.id;
        if self.made.phase == Phase::Finished {
            return Ok(self.made.clone());
        }
        match self.services.published.run(id) {
            Some(view) => Ok(view),
            None => Ok(self.request().run(id, Right::ReadAll).await?),
        }
    }

    async fn receipt<T: Default>(&self, read: impl FnOnce(&Receipt) -> T + Send) -> Result<T, Refusal> {
        Ok(self.now().await?.receipt.as_ref().map(read).unwrap_or_default())
    }

    async fn act(&self, command: Command) -> Result<Answer, Refusal> {
        let view = self.now().await?;
        if !access::may_see(&self.peer.caller, &view) {
            self.request().demand(Right::KillRun).await?;
        }
        if view.phase == Phase::Finished {
            return Err(Error::already_finished(self.made.spec.id).into());
        }
        Ok(self.request().ask(command).await?)
    }
}

fn process(id: Option<ProcessId>) -> (u32, u64) {
    id.map_or((0, 0), |p| (p.pid, p.start_ticks))
}

fn wall(at: Option<Wall>) -> u64 {
    at.map_or(0, |w| w.0)
}

#[interface(name = "org.guardian.Guardian1.Run", introspection_docs = false)]
impl RunObject {
    /// Ends the run. The answer means accepted and on record; WaitRun tells when it is done.
    #[zbus(out_args("kill"))]
    async fn kill(&self, mode: &str, reason: String) -> Result<KillDict, Refusal> {
        let _turn = self.turn().await?;
        let (mode, text) = kill_arguments(mode, reason)?;
        match self.act(Command::Kill { run: self.made.spec.id, mode, text }).await? {
            Answer::Kill(answer) => Ok(KillDict::from(&answer)),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Gives a timer more time; answers when it will now end the run.
    #[zbus(out_args("deadline_usec"))]
    async fn extend(&self, limit: &str, by_usec: u64) -> Result<u64, Refusal> {
        let _turn = self.turn().await?;
        let (rule, by) = (timer(limit)?, launch::duration("the extension", by_usec)?);
        match self.act(Command::Extend { run: self.made.spec.id, rule, by }).await? {
            Answer::Deadline(at) => Ok(at.0),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Says something for the run, as its processes do at its notify socket: a heartbeat, and what else is named.
    async fn heartbeat(&self, options: HashMap<String, OwnedVariant>) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        let said = Box::new(heartbeat(&options)?);
        self.act(Command::Heartbeat { run: self.made.spec.id, said }).await?;
        Ok(())
    }

    /// Pauses the run.
    async fn freeze(&self) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        self.act(Command::Freeze(self.made.spec.id)).await?;
        Ok(())
    }

    /// Lets it go on.
    async fn thaw(&self) -> Result<(), Refusal> {
        let _turn = self.turn().await?;
        self.act(Command::Thaw(self.made.spec.id)).await?;
        Ok(())
    }

    /// Its processes now; none once it is finished.
    #[zbus(out_args("processes"))]
    async fn processes(&self) -> Result<Vec<WireProcess>, Refusal> {
        let _turn = self.turn().await?;
        let view = self.now().await?;
        if view.phase == Phase::Finished {
            return Ok(Vec::new());
        }
        let read = self.services.evidence.clone();
        Ok(view::processes(&blocking(move || read(&view, Duration::ZERO)).await?.processes))
    }

    /// As Manager.ExplainRun.
    #[zbus(out_args("explanation"))]
    async fn explain(&self) -> Result<ExplanationDict, Refusal> {
        let _turn = self.turn().await?;
        let view = self.now().await?;
        Ok(explanation(&self.request(), &view).await?)
    }

    /// What it used since a time, in order.
    #[zbus(out_args("samples"))]
    async fn samples(&self, since_usec: u64) -> Result<Vec<WireSample>, Refusal> {
        let _turn = self.turn().await?;
        let view = self.now().await?;
        Ok(samples(&self.request(), view.spec.id, Wall(since_usec)).await?)
    }

    #[zbus(property(emits_changed_signal = "const"), name = "RunID")]
    async fn run_id(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.id.to_string())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn workflow(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.workflow.clone())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn executor(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.executor.clone())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn name(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.name.clone().unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn command(&self) -> Result<Vec<String>, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.command.clone())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn working_directory(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.cwd.clone())
    }

    #[zbus(property(emits_changed_signal = "const"), name = "UID")]
    async fn uid(&self) -> Result<u32, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.uid)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn user(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.user.clone())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn main_process(&self) -> Result<(u32, u64), Refusal> {
        let v = self.now().await?;
        Ok(process(v.spec.main))
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn client_process(&self) -> Result<(u32, u64), Refusal> {
        let v = self.now().await?;
        Ok(process(v.spec.client))
    }

    #[zbus(property(emits_changed_signal = "const"), name = "QueueTimeoutUSec")]
    async fn queue_timeout_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.queue_timeout.map_or(u64::MAX, usec))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn queue_position(&self) -> Result<u32, Refusal> {
        Ok(self.now().await?.queued.as_ref().map_or(0, |q| q.position))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn queue_length(&self) -> Result<u32, Refusal> {
        Ok(self.now().await?.queued.as_ref().map_or(0, |q| q.of))
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn queue_reason(&self) -> Result<String, Refusal> {
        Ok(self.now().await?.queued.as_ref().map(|q| q.why.clone()).unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "InitTimeoutUSec")]
    async fn init_timeout_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.init_timeout.map_or(u64::MAX, usec))
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "MaxRuntimeUSec")]
    async fn max_runtime_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.max_runtime.map_or(u64::MAX, usec))
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn rules(&self) -> Result<Vec<WireRule>, Refusal> {
        let v = self.now().await?;
        Ok(view::rules(&v))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn dry_run(&self) -> Result<bool, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.watch.dry_run)
    }

    #[zbus(property(emits_changed_signal = "const"), name = "GraceUSec")]
    async fn grace_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(usec(v.spec.limits.grace))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn readiness(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.readiness.as_str().into())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn memory_max_bytes(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.resources.memory_max_bytes.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn tasks_max(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.resources.tasks_max.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "const"), name = "CPUMaxPercent")]
    async fn cpu_max_percent(&self) -> Result<u32, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.resources.cpu_max_percent.unwrap_or(u32::MAX))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn cleanup_git_locks(&self) -> Result<bool, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.cleanup.git_locks)
    }

    #[zbus(property(emits_changed_signal = "const"), name = "IsolatePIDs")]
    async fn isolate_pids(&self) -> Result<bool, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.isolate_pids)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn sandbox(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.limits.sandbox.as_str().into())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn log_path(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.log.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default())
    }

    #[zbus(property)]
    async fn phase(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.phase.as_str().into())
    }

    #[zbus(property)]
    async fn health(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.health.as_str().into())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn health_reasons(&self) -> Result<Vec<WireHealth>, Refusal> {
        let v = self.now().await?;
        Ok(view::health_reasons(&v))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn containment(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.spec.containment.as_str().into())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn control_group(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(view::cgroup(&v).map(|c| c.path.to_string_lossy().into_owned()).unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn control_group_inode(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(view::cgroup(&v).map_or(0, |c| c.inode))
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn shim_process(&self) -> Result<(u32, u64), Refusal> {
        let v = self.now().await?;
        Ok(view::shim(&v).unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn shim_record(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(view::shim_record(&v).unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn escapees(&self) -> Result<Vec<WireEscapee>, Refusal> {
        let v = self.now().await?;
        Ok(view::escapees(&v))
    }

    #[zbus(property)]
    async fn frozen(&self) -> Result<bool, Refusal> {
        let v = self.now().await?;
        Ok(v.frozen)
    }

    #[zbus(property(emits_changed_signal = "const"), name = "CreateTimestampUSec")]
    async fn create_timestamp_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.created_at.0)
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "StartTimestampUSec")]
    async fn start_timestamp_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(wall(v.started_at))
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "ReadyTimestampUSec")]
    async fn ready_timestamp_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(wall(v.ready_at))
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "FinishTimestampUSec")]
    async fn finish_timestamp_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(wall(v.finished_at))
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn deadlines(&self) -> Result<Vec<(String, u64)>, Refusal> {
        let v = self.now().await?;
        Ok(view::deadlines(&v))
    }

    #[zbus(property)]
    async fn outcome(&self) -> Result<WireOutcome, Refusal> {
        let v = self.now().await?;
        Ok(v.outcome.as_ref().map(view::outcome).unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn outcome_reason(&self) -> Result<WireReason, Refusal> {
        Ok(match &self.now().await?.outcome {
            Some(Outcome::Killed { reason }) => view::reason(reason),
            _ => WireReason::default(),
        })
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_mode(&self) -> Result<String, Refusal> {
        self.receipt(|r| r.mode.as_str().to_owned()).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_reason(&self) -> Result<WireReason, Refusal> {
        self.receipt(|r| view::reason(&r.reason)).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_actor(&self) -> Result<WireActor, Refusal> {
        self.receipt(|r| view::actor(&r.actor)).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "KillTimestampUSec")]
    async fn kill_timestamp_usec(&self) -> Result<u64, Refusal> {
        self.receipt(|r| r.requested_at.0).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "KillDurationUSec")]
    async fn kill_duration_usec(&self) -> Result<u64, Refusal> {
        self.receipt(|r| r.duration_usec).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_steps(&self) -> Result<Vec<WireStep>, Refusal> {
        self.receipt(view::steps).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_terminated(&self) -> Result<u32, Refusal> {
        self.receipt(|r| r.terminated).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_killed(&self) -> Result<u32, Refusal> {
        self.receipt(|r| r.killed).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_proved(&self) -> Result<bool, Refusal> {
        self.receipt(|r| r.proved).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_survivors(&self) -> Result<u32, Refusal> {
        self.receipt(|r| r.survivors).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_processes(&self) -> Result<Vec<WireProcess>, Refusal> {
        self.receipt(|r| view::processes(&r.processes)).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_processes_total(&self) -> Result<u32, Refusal> {
        self.receipt(|r| r.processes_total).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_explanation(&self) -> Result<String, Refusal> {
        self.receipt(|r| r.explanation.clone()).await
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn kill_remains(&self) -> Result<HashMap<String, OwnedVariant>, Refusal> {
        self.receipt(|r| r.remains.as_ref().map(|r| view::RemainsDict::from(r).property()).unwrap_or_default()).await
    }

    #[zbus(property(emits_changed_signal = "false"), name = "CPUUsageNSec")]
    async fn cpu_usage_nsec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.usage.cpu_usec.map_or(u64::MAX, |u| u.saturating_mul(1000)))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn memory_current_bytes(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.usage.memory_bytes.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn memory_peak_bytes(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.usage.memory_peak_bytes.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn tasks_current(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.usage.tasks.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "false"), name = "IOReadBytes")]
    async fn io_read_bytes(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.usage.io_read_bytes.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "false"), name = "IOWriteBytes")]
    async fn io_write_bytes(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.usage.io_write_bytes.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn activity_bytes(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.usage.activity_bytes.unwrap_or(u64::MAX))
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn heartbeats_total(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.heartbeats.total)
    }

    #[zbus(property(emits_changed_signal = "invalidates"), name = "LastHeartbeatTimestampUSec")]
    async fn last_heartbeat_timestamp_usec(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(wall(v.heartbeats.last_at))
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn status_text(&self) -> Result<String, Refusal> {
        let v = self.now().await?;
        Ok(v.heartbeats.status.clone())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn status_errno(&self) -> Result<i32, Refusal> {
        let v = self.now().await?;
        Ok(v.heartbeats.errno.unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn says_stopping(&self) -> Result<bool, Refusal> {
        let v = self.now().await?;
        Ok(v.heartbeats.stopping)
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn notify_foreign(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.heartbeats.refused.foreign)
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn notify_flooded(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.heartbeats.refused.flooded)
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn notify_too_long(&self) -> Result<u64, Refusal> {
        let v = self.now().await?;
        Ok(v.heartbeats.refused.too_long)
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn progress(&self) -> Result<HashMap<String, OwnedVariant>, Refusal> {
        let v = self.now().await?;
        Ok(v.progress.as_ref().map(|p| view::ProgressDict::from(p).property()).unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn notices(&self) -> Result<Vec<String>, Refusal> {
        let v = self.now().await?;
        Ok(v.notices.clone())
    }
}
