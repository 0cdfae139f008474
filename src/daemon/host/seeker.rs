//! The thread that looks for escapees and ends them: what it reads can take long, or for ever, and nobody waits for it here.

use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use super::HostContainer;
use crate::failpoint;
use crate::kernel::Finding;
use crate::kernel::escape::{self, Inside, Live};
use crate::kernel::poll::Waker;
use crate::launch::systemd::{self, UnitKind};
use crate::model::{EscapeeAct, RunId, Sought};

/// How long a look takes at most. Reading a process costs 10 to 30 µs; the next look begins where this one came to.
const BUDGET: Duration = Duration::from_millis(500);

/// What is to be done, with the live runs as they are when it is asked for.
struct Errand {
    live: Live,
    what: What,
}

enum What {
    Look(Vec<Sought>),
    Act(Box<Sought>, EscapeeAct),
}

/// Where threads put what they have found, for the engine's to take.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    waker: Waker,
    findings: Arc<Mutex<Vec<Finding>>>,
}

impl Answers {
    pub(super) fn new(waker: Waker) -> Self {
        Self { waker, findings: Arc::default() }
    }

    pub(super) fn give(&self, found: impl IntoIterator<Item = Finding>) {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        self.waker.wake();
    }

    /// What was found since the last call.
    pub(super) fn take(&self) -> Vec<Finding> {
        std::mem::take(&mut *self.findings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn are_there(&self) -> bool {
        !self.findings.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The thread, and what it has to know.
#[derive(Debug)]
pub(super) struct Seeker {
    live: Live,
    answers: Answers,
    /// Begun with the first errand; it ends with this.
    errands: Option<mpsc::Sender<Errand>>,
}

impl Seeker {
    pub(super) fn new(answers: Answers) -> Self {
        Self { live: Live::default(), answers, errands: None }
    }

    /// A unit is about to be made for a run, and its process to be moved there: to systemd that is one step, to us two.
    pub(super) fn expect_unit(&mut self, run: RunId, kind: UnitKind) {
        self.live.0.insert(run, Inside::Named(OsString::from(systemd::unit_of(run, kind))));
    }

    /// What contains a run from now on.
    pub(super) fn add(&mut self, run: RunId, container: &HostContainer) {
        let inside = match container {
            HostContainer::Cgroup(cgroup) => Some(Inside::Cgroup(cgroup.name().to_owned())),
            HostContainer::Unit(unit) => unit.cgroup().map(|cgroup| Inside::Cgroup(cgroup.name().to_owned())),
            HostContainer::Subtree(subtree) => subtree.shim().map(Inside::Shim),
        };
        self.live.0.extend(inside.map(|inside| (run, inside)));
    }

    pub(super) fn forget(&mut self, run: RunId) {
        self.live.0.remove(&run);
    }

    pub(super) fn look(&mut self, runs: Vec<Sought>) {
        self.send(What::Look(runs));
    }

    pub(super) fn act(&mut self, of: Sought, act: EscapeeAct) {
        self.send(What::Act(Box::new(of), act));
    }

    /// Without a thread nobody answers, which whoever asked gives up to wait for; the next errand tries again.
    fn send(&mut self, what: What) {
        let errand = Errand { live: self.live.clone(), what };
        if self.errands.is_none() {
            self.errands = self.start();
        }
        if let Some(errands) = &self.errands
            && errands.send(errand).is_err()
        {
            self.errands = None;
        }
    }

    fn start(&self) -> Option<mpsc::Sender<Errand>> {
        let (sender, errands) = mpsc::channel::<Errand>();
        let answers = self.answers.clone();
        let work = move || {
            let mut from = 0;
            while let Ok(Errand { live, what }) = errands.recv() {
                let _ = failpoint::hit("escapees.look");
                let found = match what {
                    What::Look(runs) => escape::look(&runs, &live, &mut from, BUDGET),
                    What::Act(of, act) => vec![escape::act(&of, &live, act)],
                };
                answers.give(found);
            }
        };
        std::thread::Builder::new().name("escapees".to_owned()).spawn(work).ok().map(|_| sender)
    }
}
