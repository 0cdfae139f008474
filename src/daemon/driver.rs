//! Performs what the engine decides: one queue, drained to the end for every event that comes in.
//!
//! Owns the open descriptors of every run and nothing that could be derived from the engine. Holds no rule: each effect
//! is one call of the kernel or the store, and its result goes back as an event. Generic over both, so that the property
//! tests drive the same code with a simulated kernel and a store that fails.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Effect, Engine, Event, Record, Removal, ReplyTo, Ticket};
use crate::failpoint;
use crate::kernel::{Attached, Exec, Kernel, KernelError, Notice, Role};
use crate::model::{Actor, Answer, AuditEvent, Error, ErrorKind, Phase, RunId, RunSpec, RunView};
use crate::store::{Batch, Write};

use super::published::{Published, UsageCell};
use super::recovery::Saved;

/// Evidence is taken between the intent and the first signal: it must not hold up the kill.
const EVIDENCE_BUDGET: Duration = Duration::from_millis(250);
/// How many runs are read in full at each sample, in turn. Reading /proc for all of 1,000 would cost 2 % of a core.
const TURN: usize = 16;

/// Where records go.
pub trait Recorder {
    /// Takes a batch, or gives it back because it cannot take more.
    fn submit(&mut self, batch: Batch) -> Result<(), Batch>;
    /// Sends an event to the journal alone.
    fn journal(&mut self, event: AuditEvent);
}

/// What becomes of an answer.
pub type Reply = Box<dyn FnOnce(Result<Answer, Error>) + Send>;

/// The descriptors of one run.
pub struct Held<K: Kernel> {
    /// What is to be executed, for a detached run that is not yet contained.
    pub exec: Option<Exec>,
    /// The main process; holds the gate of a detached run until it is opened.
    pub main: Option<K::Process>,
    /// The client of a foreground run.
    pub client: Option<K::Process>,
    /// What holds it together.
    pub container: Option<K::Container>,
    /// What its container could not do as asked, until it is contained.
    pub notices: Vec<String>,
    /// What it uses.
    pub usage: Arc<UsageCell>,
}

impl<K: Kernel> Held<K> {
    /// The processes of a foreground run that is to be contained, or of one that is adopted.
    pub fn new(main: Option<K::Process>, client: Option<K::Process>) -> Self {
        Self { exec: None, main, client, container: None, notices: Vec::new(), usage: Arc::default() }
    }

    /// What a detached run is to execute.
    pub fn detached(exec: Exec) -> Self {
        Self { exec: Some(exec), ..Self::new(None, None) }
    }
}

/// The engine with its hands.
pub struct Driver<K: Kernel, R: Recorder> {
    /// The kernel, real or simulated.
    pub kernel: K,
    /// The store, real or simulated.
    pub recorder: R,
    engine: Engine,
    published: Arc<Published>,
    held: BTreeMap<RunId, Held<K>>,
    queue: VecDeque<Event>,
    replies: HashMap<ReplyTo, Reply>,
    tickets: HashMap<u64, Ticket>,
    last_number: u64,
    next_full_read: Option<RunId>,
    boot_id: String,
    next_capped: Option<RunId>,
    stale: Vec<K::Container>,
    childless: bool,
    totals: (u64, u64),
    /// What the store could not take, in order. Bounded by the number of live runs: without a record none is launched.
    backlog: VecDeque<Batch>,
}

impl<K: Kernel, R: Recorder> Driver<K, R> {
    /// A driver without runs.
    pub fn new(kernel: K, recorder: R, engine: Engine, published: Arc<Published>) -> Self {
        Self {
            boot_id: kernel.boot_id(),
            kernel,
            recorder,
            engine,
            published,
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            replies: HashMap::new(),
            tickets: HashMap::new(),
            last_number: 0,
            next_full_read: None,
            next_capped: None,
            stale: Vec::new(),
            childless: true,
            totals: (0, 0),
            backlog: VecDeque::new(),
        }
    }

    /// The engine's state, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine, to be configured anew.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The descriptors of a run.
    pub fn held(&self, run: RunId) -> Option<&Held<K>> {
        self.held.get(&run)
    }

    /// Keeps the descriptors of a run that is about to be launched or adopted.
    pub fn hold(&mut self, run: RunId, held: Held<K>) {
        self.held.insert(run, held);
    }

    /// Asks for a launch. What is held of a run that is refused is let go of.
    pub fn launch(&mut self, spec: RunSpec, held: Held<K>, reply: Reply, actor: Actor) {
        let id = spec.id;
        self.hold(id, held);
        let reply = self.expect_reply(reply);
        self.handle(Event::Launch { spec: Box::new(spec), reply, actor });
        if self.engine.run(id).is_none() {
            self.held.remove(&id);
            self.unreserve(id);
        }
    }

    /// Removes the container that was made ahead for a run, if the run was not launched into it.
    pub fn unreserve(&mut self, run: RunId) {
        if let Some(container) = self.kernel.unreserve(run) {
            self.discard(container);
        }
    }

    /// A number under which the reply is kept.
    pub fn expect_reply(&mut self, reply: Reply) -> ReplyTo {
        let to = ReplyTo(self.number());
        self.replies.insert(to, reply);
        to
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Runs accepted and kills begun so far.
    pub fn totals(&self) -> (u64, u64) {
        self.totals
    }

    /// Puts an event on record that is about no run.
    pub fn audit(&mut self, event: AuditEvent) {
        self.record(Record { audit: vec![event], ..Record::default() });
        self.drain();
    }

    /// Takes in an event and does everything that follows from it.
    pub fn handle(&mut self, event: Event) {
        self.queue.push_back(event);
        self.drain();
    }

    /// Takes in what the kernel noticed.
    pub fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::ProcessExited(run, Role::Main) => {
                let Some(held) = self.held.get(&run) else { return };
                let status = self.kernel.exit_status(held.container.as_ref(), held.main.as_ref());
                let oom = held.container.as_ref().is_some_and(|c| self.kernel.oom_kills(c) > 0);
                self.handle(Event::MainExited { run, status, oom });
            }
            Notice::ProcessExited(run, Role::Client) => self.handle(Event::ClientGone(run)),
            Notice::ContainerChanged(run) => self.look(run),
            Notice::Told(run) if self.engine.is_containing(run) => {
                let event = self.complete(run).unwrap_or_else(|e| self.not_contained(run, &e));
                self.queue.push_back(event);
            }
            Notice::Told(run) => self.look(run),
            Notice::Woken => {}
        }
        self.drain();
    }

    /// Takes in what the store says about a ticket.
    pub fn recorded(&mut self, number: u64, ok: bool) {
        let Some(ticket) = self.tickets.remove(&number) else { return };
        self.pass(match ticket {
            Ticket::Launch(_) => "launch.recorded",
            Ticket::Start(_) => "launch.started",
            Ticket::Kill(_) => "kill.recorded",
            Ticket::Finish(_) => "finish.recorded",
        });
        self.handle(if ok { Event::Recorded(ticket) } else { Event::NotRecorded(ticket) });
    }

    fn drain(&mut self) {
        while let Some(event) = self.queue.pop_front() {
            let effects = self.engine.step(event, self.kernel.now());
            for effect in effects {
                self.perform(effect);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Record(record) => self.record(*record),
            Effect::Journal(event) => self.recorder.journal(*event),
            Effect::Contain(run) => self.contain(run),
            Effect::OpenGate(run) => {
                let opened = self.held.get_mut(&run).and_then(|h| h.main.as_mut()).map(|p| self.kernel.open_gate(p));
                let result = match opened {
                    Some(Err(e)) => Err(e.to_string()),
                    Some(Ok(())) | None => Ok(()),
                };
                self.queue.push_back(Event::GateOpened { run, result });
            }
            Effect::CloseGate(run) => {
                if let Some(main) = self.held.get_mut(&run).and_then(|h| h.main.as_mut()) {
                    self.kernel.close_gate(main);
                }
            }
            Effect::Probe(run) => {
                let log = self.engine.run(run).and_then(|r| r.spec.log.clone());
                let container = self.held.get(&run).and_then(|h| h.container.as_ref());
                let output = container.is_some_and(|c| self.kernel.has_output(c, log.as_deref()));
                self.queue.push_back(Event::Probed { run, output });
            }
            Effect::Look(run) => self.look(run),
            Effect::Inspect(run) => {
                let container = self.held.get(&run).and_then(|h| h.container.as_ref());
                let evidence = container.map(|c| self.kernel.evidence(c, EVIDENCE_BUDGET)).unwrap_or_default();
                self.queue.push_back(Event::Inspected { run, evidence });
                self.pass("kill.evidence");
            }
            Effect::Terminate(run) => {
                let (processes, trouble) = self.act(run, K::terminate);
                self.queue.push_back(Event::Terminated { run, processes, trouble });
                self.pass("kill.terminated");
            }
            Effect::Kill(run) => {
                let (processes, trouble) = self.act(run, K::kill);
                self.queue.push_back(Event::Killed { run, processes, trouble });
                self.pass("kill.killed");
            }
            Effect::Freeze { run, frozen, actor, reply } => {
                let container = self.held.get(&run).and_then(|h| h.container.as_ref());
                let result = match container.map(|c| self.kernel.freeze(c, frozen)) {
                    Some(Err(e)) => Err(e.to_string()),
                    Some(Ok(())) => Ok(()),
                    None => Err("the run has no container".to_owned()),
                };
                self.queue.push_back(Event::FreezeDone { run, frozen, result, actor, reply });
            }
            Effect::AskStatus(run) => {
                let held = self.held.get(&run);
                let status = held.and_then(|h| self.kernel.exit_status(h.container.as_ref(), h.main.as_ref()));
                self.queue.push_back(Event::StatusAsked { run, status });
            }
            Effect::Remove(run) => {
                let container = self.held.get(&run).and_then(|h| h.container.as_ref());
                let result = match container.map(|c| self.kernel.remove(c)) {
                    None | Some(Ok(()) | Err(KernelError::Gone { .. })) => Removal::Gone,
                    Some(Err(KernelError::Busy { .. })) => Removal::Busy,
                    Some(Err(e)) => Removal::Refused(e.to_string()),
                };
                self.queue.push_back(Event::Removed { run, result });
                self.pass("finish.removed");
            }
            Effect::Publish(run) => self.publish(run),
            Effect::Finish(view) => self.finish(*view),
            Effect::Reply(to, answer) => {
                let launched = matches!(answer, Ok(Answer::Run(_)));
                if let Some(reply) = self.replies.remove(&to) {
                    reply(answer);
                }
                if launched {
                    self.pass("launch.answered");
                }
            }
        }
    }

    /// Passes a failpoint. An error there is the test's way to say nothing but "go on".
    fn pass(&self, name: &str) {
        let _ = failpoint::hit(name);
    }

    fn record(&mut self, record: Record) {
        let Record { audit, run, intent, receipt, ticket } = record;
        self.pass(match ticket {
            Some(Ticket::Launch(_)) => "launch.accepted",
            Some(Ticket::Start(_)) => "launch.contained",
            Some(Ticket::Kill(_)) => "kill.requested",
            Some(Ticket::Finish(_)) => "finish.empty",
            None => "",
        });
        match ticket {
            Some(Ticket::Launch(_)) => self.totals.0 += 1,
            Some(Ticket::Kill(_)) => self.totals.1 += 1,
            _ => {}
        }
        if let Some(Ticket::Finish(run)) = ticket
            && let Some(held) = self.held.get(&run)
            && let Some(Ok(usage)) = held.container.as_ref().map(|c| self.kernel.sample(c))
        {
            // The counters of the whole run, a moment before its container is removed.
            held.usage.update(usage);
        }
        let number = ticket.map(|ticket| {
            let number = self.number();
            self.tickets.insert(number, ticket);
            number
        });
        let usage = |view: &RunView| self.held.get(&view.spec.id).map(|h| h.usage.get()).unwrap_or_default();
        let run = run.map(|(view, state)| {
            let usage = usage(&view);
            let state = state.map(|state| Saved::text(&self.boot_id, &state));
            Write::Run { view: Box::new(RunView { usage, ..view }), state }
        });
        let writes = run
            .into_iter()
            .chain(intent.map(Write::KillIntent))
            .chain(receipt.map(|r| Write::KillDone(Box::new(r))))
            .chain(audit.into_iter().map(Write::Audit))
            .collect();
        self.backlog.push_back(Batch { writes, ticket: number });
        self.flush();
        // What the store cannot take now does not hold up the run: it is kept, and the run is told so.
        let waiting = self.backlog.iter_mut().filter_map(|batch| batch.ticket.take());
        let refused: Vec<Ticket> = waiting.filter_map(|number| self.tickets.remove(&number)).collect();
        self.queue.extend(refused.into_iter().map(Event::NotRecorded));
    }

    /// Removes the container of a run that was over before this instance began, now or at a later turn.
    pub fn discard(&mut self, container: K::Container) {
        if matches!(self.kernel.remove(&container), Err(KernelError::Busy { .. })) {
            self.stale.push(container);
        }
    }

    /// Whether there is something to catch up with: nothing else may happen for long that would be the occasion.
    pub fn is_behind(&self) -> bool {
        // Killed processes become zombies some moments after their container is empty.
        let unreaped = !self.childless && self.held.is_empty();
        unreaped || !self.stale.is_empty() || !self.backlog.is_empty()
    }

    /// Does what could not be done before: gives the store what it had no room for, removes what was still in use, reaps.
    pub fn catch_up(&mut self) {
        for container in std::mem::take(&mut self.stale) {
            self.discard(container);
        }
        // To ask costs 40 µs with a thousand children: so not at every turn, but when there are no runs, and with samples.
        if !self.childless && self.held.is_empty() {
            self.childless = !self.kernel.reap();
        }
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(batch) = self.backlog.pop_front() {
            if let Err(batch) = self.recorder.submit(batch) {
                self.backlog.push_front(batch);
                return;
            }
        }
    }

    fn contain(&mut self, run: RunId) {
        let event = self.try_contain(run).unwrap_or_else(|e| Some(self.not_contained(run, &e)));
        self.queue.extend(event);
    }

    fn not_contained(&self, run: RunId, error: &KernelError) -> Event {
        let container = self.held.get(&run).and_then(|h| h.container.as_ref()).and_then(|c| self.kernel.identity(c));
        Event::NotContained { run, error: launch_error(error), container }
    }

    /// None if the container takes the process in later.
    fn try_contain(&mut self, id: RunId) -> Result<Option<Event>, KernelError> {
        let run = self.engine.run(id).ok_or_else(|| gone(id))?;
        let created = self.kernel.create(&run.spec)?;
        let held = self.held.get_mut(&id).ok_or_else(|| gone(id))?;
        held.notices = created.notices;
        let container = held.container.insert(created.container);
        let _ = failpoint::hit("launch.created");
        if let Some(exec) = held.exec.take() {
            held.main = self.kernel.spawn(&exec, container)?;
            if held.main.is_none() {
                return Ok(None);
            }
        }
        let main = held.main.as_mut().ok_or_else(|| gone(id))?;
        match self.kernel.attach(container, main)? {
            Attached::Now => self.attached(id).map(Some),
            Attached::Later => Ok(None),
        }
    }

    fn complete(&mut self, id: RunId) -> Result<Event, KernelError> {
        let held = self.held.get_mut(&id).ok_or_else(|| gone(id))?;
        let container = held.container.as_mut().ok_or_else(|| gone(id))?;
        let notices = self.kernel.complete(container, &mut held.main)?;
        held.notices.extend(notices);
        self.attached(id)
    }

    fn attached(&mut self, id: RunId) -> Result<Event, KernelError> {
        let held = self.held.get_mut(&id).ok_or_else(|| gone(id))?;
        let (Some(container), Some(main)) = (&held.container, &held.main) else { return Err(gone(id)) };
        let _ = failpoint::hit("launch.attached");
        self.kernel.watch_container(id, container)?;
        self.kernel.watch_process(id, Role::Main, main)?;
        if let Some(client) = &held.client {
            self.kernel.watch_process(id, Role::Client, client)?;
        }
        let container = self.kernel.identity(container).ok_or_else(|| gone(id))?;
        let main = self.kernel.process_id(main);
        Ok(Event::Contained { run: id, main, container, notices: std::mem::take(&mut held.notices) })
    }

    /// Acts on the run's container. A container that went away was empty: the look that follows finds that.
    fn act(
        &mut self,
        run: RunId,
        action: fn(&mut K, &K::Container) -> Result<u32, KernelError>,
    ) -> (u32, Option<String>) {
        let Some(container) = self.held.get(&run).and_then(|h| h.container.as_ref()) else { return (0, None) };
        match action(&mut self.kernel, container) {
            Ok(processes) => (processes, None),
            Err(KernelError::Gone { .. }) => (0, None),
            Err(e) => (0, Some(e.to_string())),
        }
    }

    fn look(&mut self, run: RunId) {
        let Some(container) = self.held.get(&run).and_then(|h| h.container.as_ref()) else {
            // It is gone, or never was: only a run that is being adopted without a container asks.
            return;
        };
        if !self.kernel.is_intact(container) {
            self.queue.push_back(Event::ContainmentLost(run));
        }
        match self.kernel.populated(container) {
            // A container can be removed only when it is empty.
            Ok(false) | Err(KernelError::Gone { .. }) => {
                let stopped = self.kernel.was_stopped(container);
                if stopped == Some(true) {
                    self.queue.push_back(Event::StoppedOutside(run));
                }
                if stopped.is_some() {
                    self.queue.push_back(Event::Populated { run, populated: false });
                }
            }
            Ok(true) => self.queue.push_back(Event::Populated { run, populated: true }),
            // Not readable is not empty. What waits for this has a deadline that looks again.
            Err(_) => {}
        }
    }

    /// Publishes a run of an earlier instance as that recorded it.
    pub fn publish_as_recorded(&self, view: RunView) {
        let usage = UsageCell::default();
        usage.update(view.usage);
        self.published.put(view, Arc::new(usage));
    }

    fn publish(&mut self, run: RunId) {
        let Some(view) = self.engine.view(run, self.kernel.now()) else { return };
        // A run that is over is published when its outcome is on record.
        if view.phase == Phase::Finished {
            return;
        }
        let usage = self.held.get(&run).map(|h| h.usage.clone()).unwrap_or_default();
        self.published.put(view, usage);
    }

    fn finish(&mut self, view: RunView) {
        self.childless = false;
        // There is one if the launch failed before it was used.
        self.unreserve(view.spec.id);
        let usage = self.held.remove(&view.spec.id).map(|h| h.usage.get()).unwrap_or_default();
        self.published.finish(RunView { usage, ..view });
    }

    /// Reads the counters of all runs, some of them in full, and keeps some logs to their size.
    pub fn sample(&mut self, log_max_bytes: u64) {
        self.kernel.begin_samples();
        for held in self.held.values() {
            if let Some(container) = &held.container
                && let Ok(usage) = self.kernel.sample(container)
            {
                held.usage.update(usage);
            }
        }
        self.kernel.end_samples();
        self.childless = !self.kernel.reap();
        let (turn, next) = self.turn(self.next_full_read);
        self.next_full_read = next;
        turn.into_iter().for_each(|id| self.refresh(id));
        let (turn, next) = self.turn(self.next_capped);
        self.next_capped = next;
        for id in turn {
            if let Some(log) = self.engine.run(id).and_then(|r| r.spec.log.as_deref()) {
                // A log that cannot be cut stays too large; `doctor` and the disk's own alarms tell.
                let _ = self.kernel.cap_log(log, log_max_bytes);
            }
        }
    }

    /// The next few runs after this one, round and round, and where the following turn begins.
    fn turn(&self, from: Option<RunId>) -> (Vec<RunId>, Option<RunId>) {
        let from = from.unwrap_or(RunId::from_bytes([0; 6]));
        let around = self.held.range(from..).chain(self.held.range(..from));
        let mut turn: Vec<RunId> = around.map(|(id, _)| *id).take(TURN + 1).collect();
        let next = turn.get(TURN).copied();
        turn.truncate(TURN);
        (turn, next)
    }

    /// Reads one run in full.
    pub fn refresh(&mut self, run: RunId) {
        if let Some(held) = self.held.get(&run)
            && let Some(container) = &held.container
            && let Ok(usage) = self.kernel.usage(container)
        {
            held.usage.update(usage);
        }
    }
}

fn gone(run: RunId) -> KernelError {
    KernelError::Gone { what: format!("the process of {run}") }
}

/// Why a run could not be contained.
pub fn launch_error(error: &KernelError) -> Error {
    let kind = match error {
        KernelError::NotDelegated { .. } => ErrorKind::NotDelegated,
        _ => ErrorKind::LaunchFailed,
    };
    Error::new(kind, format!("the run could not be contained, and nothing was executed: {error}"))
}
