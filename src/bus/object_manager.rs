//! `org.freedesktop.DBus.ObjectManager` of the runs, and the signals about them: only of runs that the peer may see.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{ObjectPath, OwnedObjectPath, Variant, fdo, interface};

use super::access;
use super::error::Refusal;
use super::manager::object_path;
use super::rights::Peer;
use super::view::{self, RunDict};
use super::{RUN_INTERFACE, RUN_PATH, Services, run_path};
use crate::model::{RunId, RunView};

/// The objects of live runs. Finished ones are objects too once they are asked for, but are not listed: there may be a
/// million of them.
pub struct ObjectManager {
    services: Arc<Services>,
    peer: Peer,
}

/// The interfaces of an object, each with its properties.
type Interfaces = HashMap<String, RunDict>;

impl ObjectManager {
    /// For this peer.
    pub fn new(services: Arc<Services>, peer: Peer) -> Self {
        Self { services, peer }
    }
}

#[interface(name = "org.freedesktop.DBus.ObjectManager", introspection_docs = false)]
impl ObjectManager {
    /// The live runs that the caller may see.
    #[zbus(out_args("objects"))]
    async fn get_managed_objects(&self) -> Result<HashMap<OwnedObjectPath, Interfaces>, Refusal> {
        let _turn = self.services.calls.enter(self.peer.caller.uid).await?;
        let mut objects = HashMap::new();
        for live in self.services.published.live() {
            if access::may_see(&self.peer.caller, &live.view) {
                let properties = RunDict::with_usage(&live.view, live.usage.get());
                let interfaces = HashMap::from([(RUN_INTERFACE.to_owned(), properties)]);
                objects.insert(object_path(live.view.spec.id)?, interfaces);
            }
        }
        Ok(objects)
    }

    /// A run began. Its properties are the keys of ListRuns: what has the empty value is left out.
    #[zbus(signal)]
    async fn interfaces_added(
        emitter: &SignalEmitter<'_>,
        object_path: ObjectPath<'_>,
        interfaces_and_properties: HashMap<&str, RunDict>,
    ) -> zbus::Result<()>;

    /// A run is over.
    #[zbus(signal)]
    async fn interfaces_removed(
        emitter: &SignalEmitter<'_>,
        object_path: ObjectPath<'_>,
        interfaces: &[&str],
    ) -> zbus::Result<()>;
}

/// What a peer was told of each run.
pub struct Told {
    peer: Peer,
    runs: HashMap<RunId, Arc<RunView>>,
}

impl Told {
    /// It knows the runs that are live now, or can list them.
    pub fn new(services: &Services, peer: Peer) -> Self {
        let live = services.published.live().into_iter().map(|live| live.view);
        let runs = live.filter(|v| access::may_see(&peer.caller, v)).map(|v| (v.spec.id, v)).collect();
        Self { peer, runs }
    }

    /// Whether the peer may be told about this run.
    pub fn concerns(&self, view: &RunView) -> bool {
        access::may_see(&self.peer.caller, view)
    }

    /// Tells of a run that began or changed.
    pub async fn changed(&mut self, emitter: &SignalEmitter<'_>, view: Arc<RunView>) -> zbus::Result<()> {
        let id = view.spec.id;
        let path = run_path(id);
        match self.runs.insert(id, view.clone()) {
            Some(before) => properties_changed(emitter, &path, &before, &view).await,
            None => {
                let added = HashMap::from([(RUN_INTERFACE, RunDict::from(view.as_ref()))]);
                let emitter = at(emitter, RUN_PATH)?;
                ObjectManager::interfaces_added(&emitter, ObjectPath::try_from(path)?, added).await
            }
        }
    }

    /// Tells that a run is over, as it ended.
    pub async fn finished(&mut self, emitter: &SignalEmitter<'_>, view: &RunView) -> zbus::Result<()> {
        let path = run_path(view.spec.id);
        let Some(before) = self.runs.remove(&view.spec.id) else { return Ok(()) };
        properties_changed(emitter, &path, &before, view).await?;
        let emitter = at(emitter, RUN_PATH)?;
        ObjectManager::interfaces_removed(&emitter, ObjectPath::try_from(path)?, &[RUN_INTERFACE]).await
    }
}

/// An emitter to the same peer, for another object.
fn at<'a>(emitter: &SignalEmitter<'_>, path: &'a str) -> zbus::Result<SignalEmitter<'a>> {
    let other = SignalEmitter::new(emitter.connection(), path)?;
    Ok(match emitter.destination() {
        Some(to) => other.set_destination(to.to_owned()),
        None => other,
    })
}

/// Tells what is not as before: of what people wait for the new value, of the rest that it is to be read again.
async fn properties_changed(
    emitter: &SignalEmitter<'_>,
    path: &str,
    before: &RunView,
    now: &RunView,
) -> zbus::Result<()> {
    let mut changed: HashMap<&str, Variant<'_>> = HashMap::new();
    if before.phase != now.phase {
        changed.insert("Phase", now.phase.as_str().into());
    }
    if before.health != now.health {
        changed.insert("Health", now.health.as_str().into());
    }
    if before.frozen != now.frozen {
        changed.insert("Frozen", now.frozen.into());
    }
    if before.outcome != now.outcome
        && let Some(outcome) = &now.outcome
    {
        changed.insert("Outcome", view::outcome(outcome).into());
    }
    let groups: [(bool, &[&str]); 6] = [
        (before.reasons != now.reasons, &["HealthReasons"]),
        (
            before.container != now.container || before.spec.main != now.spec.main,
            &["MainProcess", "ControlGroup", "ControlGroupInode", "ShimProcess", "ShimRecord"],
        ),
        (before.deadlines != now.deadlines, &["Deadlines", "InitTimeoutUSec", "MaxRuntimeUSec"]),
        (
            (before.started_at, before.ready_at, before.finished_at) != (now.started_at, now.ready_at, now.finished_at),
            &["StartTimestampUSec", "ReadyTimestampUSec", "FinishTimestampUSec"],
        ),
        (
            before.receipt != now.receipt,
            &[
                "KillMode",
                "KillReason",
                "KillActor",
                "KillTimestampUSec",
                "KillDurationUSec",
                "KillSteps",
                "KillTerminated",
                "KillKilled",
                "KillProved",
                "KillSurvivors",
                "KillProcesses",
                "KillProcessesTotal",
                "KillExplanation",
                "KillRemains",
            ],
        ),
        (before.notices != now.notices, &["Notices"]),
    ];
    let mut invalidated: Vec<&str> =
        groups.iter().filter(|(is, _)| *is).flat_map(|(_, names)| *names).copied().collect();
    if changed.contains_key("Outcome") {
        invalidated.push("OutcomeReason");
    }
    if changed.is_empty() && invalidated.is_empty() {
        return Ok(());
    }
    let emitter = at(emitter, path)?;
    let interface = InterfaceName::try_from(RUN_INTERFACE)?;
    fdo::Properties::properties_changed(&emitter, interface, changed, Cow::from(invalidated)).await
}
