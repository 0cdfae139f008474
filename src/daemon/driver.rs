//! Performs what the engine decides: one queue, drained to the end for every event that comes in.
//!
//! Owns the open descriptors of every run and nothing that could be derived from the engine. Holds no rule: each effect
//! is one call of the kernel or the store, and its result goes back as an event. Generic over both, so that the property
//! tests drive the same code with a simulated kernel and a store that fails.

mod escapees;
mod held;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Effect, Engine, Event, Record, Removal, ReplyTo, Run, Ticket};
use crate::failpoint;
use crate::kernel::{Attached, Heard, Kernel, KernelError, Notice, Role};
use crate::model::{
    Actor, Answer, AuditEvent, Error, ErrorKind, Phase, Receipt, RunId, RunSpec, RunView, Sample, Sought, Usage,
    UsageMinute,
};
use crate::store::{Batch, Write};

use super::published::{Published, UsageCell};
use super::recovery::Saved;
pub use held::Held;

mod evidence;
mod queued;
mod sampling;

/// How long what could not be done is left before it is tried again.
const CATCH_UP: Duration = Duration::from_millis(100);
/// Where records go.
pub trait Recorder {
    /// Takes a batch, or gives it back because it cannot take more.
    fn submit(&mut self, batch: Batch) -> Result<(), Batch>;
    /// Sends an event to the journal alone.
    fn journal(&mut self, event: AuditEvent);
    /// Takes what runs used, or drops it because it cannot take more.
    fn keep_samples(&mut self, minutes: Vec<UsageMinute>);
    /// The file in which the launch of a queued run is kept, if it is one.
    fn launch_file(&self, run: RunId) -> Option<PathBuf>;
}

/// What becomes of an answer.
pub type Reply = Box<dyn FnOnce(Result<Answer, Error>) + Send>;

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
    /// Whose escapees are to be looked for, all in one look.
    seeking: Vec<Sought>,
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
    /// Whom evidence is still to be taken of, and how long that took in this turn.
    evidence: evidence::Turn,
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
            seeking: Vec::new(),
            replies: HashMap::new(),
            tickets: HashMap::new(),
            last_number: 0,
            next_full_read: None,
            next_capped: None,
            stale: Vec::new(),
            childless: true,
            totals: (0, 0),
            backlog: VecDeque::new(),
            evidence: evidence::Turn::default(),
        }
    }

    /// The engine's state, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
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
    pub fn launch(&mut self, spec: RunSpec, held: Held<K>, reply: Reply, actor: Actor, reason: String) {
        let id = spec.id;
        self.hold(id, held);
        let reply = self.expect_reply(reply);
        self.handle(Event::Launch { spec: Box::new(spec), reply, actor, reason });
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
                let phase = self.engine.view(run, self.kernel.now()).map(|view| view.phase);
                if failpoint::without("guard.leftovers").is_some()
                    && matches!(phase, Some(Phase::Initializing | Phase::Running))
                {
                    self.handle(Event::Populated { run, populated: false });
                }
            }
            Notice::ProcessExited(..) if failpoint::without("guard.client").is_some() => {}
            Notice::ProcessExited(run, Role::Client) => self.handle(Event::ClientGone(run)),
            Notice::ContainerChanged(run) => self.look(run),
            Notice::Told(run) if self.engine.is_containing(run) => {
                let event = self.complete(run).unwrap_or_else(|e| self.not_contained(run, &e));
                self.queue.push_back(event);
            }
            Notice::Told(run) => self.look(run),
            Notice::Spoke(run) => self.hear(run),
            Notice::Found => self.found(),
            Notice::Woken => {}
        }
        self.drain();
    }

    /// Takes in what the processes of a run said. Their senders may go on when all of it is done.
    fn hear(&mut self, run: RunId) {
        let container = self.held.get(&run).and_then(|h| h.container.as_ref());
        let Heard { messages, refused, barriers } = self.kernel.hear(run, container);
        self.handle(Event::Heard { run, messages, refused, reply: None });
        drop(barriers);
    }

    /// Takes in what the store says about a ticket.
    pub fn recorded(&mut self, number: u64, ok: bool) {
        let Some(ticket) = self.tickets.remove(&number) else { return };
        self.pass(match ticket {
            Ticket::Launch(_) => "launch.recorded",
            Ticket::Queue(_) => "queue.recorded",
            Ticket::Start(_) => "launch.started",
            Ticket::Kill(_) => "kill.recorded",
            Ticket::Finish(_) => "finish.recorded",
            Ticket::Escapees(_) => "escapees.recorded",
        });
        let ok = ok || failpoint::without("guard.record").is_some();
        self.handle(if ok { Event::Recorded(ticket) } else { Event::NotRecorded(ticket) });
    }

    fn drain(&mut self) {
        while let Some(event) = self.queue.pop_front() {
            let effects = self.engine.step(event, self.kernel.now());
            for effect in effects {
                self.perform(effect);
            }
        }
        self.seek();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Record(record) => self.record(*record),
            Effect::Journal(event) => self.recorder.journal(*event),
            Effect::Wait(run) => self.wait(run),
            Effect::Contain(run) => self.contain(run),
            Effect::OpenGate(run) => {
                let main = self.held.get_mut(&run).and_then(|h| h.main.as_mut());
                let result = main.map_or(Ok(()), |main| self.kernel.open_gate(main).map_err(|e| e.to_string()));
                if self.held.get(&run).is_some_and(|h| h.is_kept) {
                    self.pass("queue.opened");
                }
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
            Effect::Inspect(run) => self.inspect(run),
            Effect::Explain(run) => self.explain_later(run),
            Effect::Seek(of) => self.seeking.push(*of),
            Effect::LookForLocks(of) => self.kernel.look_for_locks(*of),
            Effect::ActOnEscapees { of, act } => self.kernel.act_on_escapees(*of, act),
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
            Effect::Sample(run) => {
                let held = self.held.get(&run).and_then(|h| Some((&h.usage, h.container.as_ref()?)));
                let usage = held.and_then(|(cell, container)| Some((cell, self.kernel.sample(container).ok()?)));
                // What cannot be read is not known, and the rules are told so.
                let sample = usage.map_or_else(Sample::default, |(cell, usage)| {
                    cell.update(usage);
                    usage.into()
                });
                self.queue.push_back(Event::Sampled { run, sample });
            }
            Effect::Examine(run) => {
                let held = self.held.get(&run).and_then(|h| Some((h.main.as_ref(), h.container.as_ref()?)));
                let known = self.engine.run(run).and_then(Run::known_look);
                let look = held.and_then(|(main, container)| self.kernel.examine(container, main, known).ok());
                let look = look.unwrap_or_default();
                if let Some(held) = self.held.get(&run) {
                    held.usage.pressed(look.memory_pressure);
                }
                self.queue.push_back(Event::Examined { run, look });
            }
            Effect::AskStatus(run) => {
                let held = self.held.get(&run);
                let status = held.and_then(|h| self.kernel.exit_status(h.container.as_ref(), h.main.as_ref()));
                self.queue.push_back(Event::StatusAsked { run, status });
            }
            Effect::Remove(run) => {
                let container = self.held.get(&run).and_then(|h| h.container.as_ref());
                let container = container.filter(|_| failpoint::without("guard.removal").is_none());
                let result = match container.map(|c| self.kernel.remove(c)) {
                    None | Some(Ok(()) | Err(KernelError::Gone { .. })) => Removal::Gone,
                    Some(Err(KernelError::Busy { .. })) => Removal::Busy,
                    Some(Err(e @ KernelError::NotOurs { .. })) => Removal::Refused(e.to_string()),
                    Some(Err(e)) => Removal::Failed(e.to_string()),
                };
                self.queue.push_back(Event::Removed { run, result });
                self.pass("finish.removed");
            }
            Effect::Publish(run) => self.publish(run),
            Effect::Finish(view) => self.finish(*view),
            Effect::Amend(view) => self.published.amend(*view),
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
            Some(Ticket::Queue(_)) => "queue.accepted",
            Some(Ticket::Start(_)) => "launch.contained",
            Some(Ticket::Kill(_)) => "kill.requested",
            Some(Ticket::Finish(_)) => "finish.empty",
            Some(Ticket::Escapees(_)) | None => "",
        });
        self.totals.0 += u64::from(matches!(ticket, Some(Ticket::Launch(_) | Ticket::Queue(_))));
        self.totals.1 += u64::from(matches!(ticket, Some(Ticket::Kill(_))));
        if let Some(Ticket::Finish(run)) = ticket
            && let Some(held) = self.held.get(&run)
            && let Some(Ok(usage)) = held.container.as_ref().map(|c| self.kernel.sample(c))
        {
            // The counters of the whole run, a moment before its container is removed.
            let peak = held.container.as_ref().and_then(|c| self.kernel.memory_peak(c));
            held.usage.update(Usage { memory_peak_bytes: peak, ..usage });
        }
        let number = ticket.map(|ticket| {
            let number = self.number();
            self.tickets.insert(number, ticket);
            number
        });
        let run = run.map(|(view, state)| {
            let held = self.held.get(&view.spec.id).map(|h| h.usage.get());
            // What is found out of a run after its end changes nothing of what it has used.
            let usage = held.or_else(|| Some(self.published.run(view.spec.id)?.usage)).unwrap_or_default();
            let state = state.map(|state| Saved::text(&self.boot_id, &state));
            Write::Run { view: Box::new(RunView { usage, ..view }), state }
        });
        let writes = (self.launch_kept(ticket).into_iter())
            .chain(run)
            .chain(intent.map(Write::KillIntent))
            .chain(receipt.map(|r| Write::KillDone(Box::new(r))))
            .chain(audit.into_iter().map(Write::Audit))
            .collect();
        let is_provisional = ticket.is_some_and(Ticket::is_provisional);
        self.backlog.push_back(Batch { writes, ticket: number, is_provisional });
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

    /// When there is something to catch up with: nothing else may happen for long that would be the occasion.
    pub fn behind(&self) -> Option<Duration> {
        // Killed processes become zombies some moments after their container is empty.
        let unreaped = !self.childless && self.held.is_empty();
        let behind = unreaped || !self.stale.is_empty() || !self.backlog.is_empty();
        if self.is_explaining() { Some(Duration::ZERO) } else { behind.then_some(CATCH_UP) }
    }

    /// Does what could not be done before, once a turn: takes evidence for warnings, gives the store what it had no room for,
    /// removes what was still in use, reaps.
    pub fn catch_up(&mut self) {
        self.explain();
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
        if run.place.is_some() {
            self.kernel.listen(id, run.spec.uid);
        }
        let created = self.kernel.create(&run.spec)?;
        let held = self.held.get_mut(&id).ok_or_else(|| gone(id))?;
        held.notices = created.notices;
        let container = held.container.insert(created.container);
        let _ = failpoint::hit("launch.created");
        if let Some(mut exec) = held.exec.take() {
            exec.kept = if held.is_kept { self.recorder.launch_file(id) } else { None };
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
        let populated = self.kernel.populated(container);
        // First, for what it says of how the run ended.
        let kills = self.kernel.oom_kills(container);
        if kills > 0 {
            self.queue.push_back(Event::OomKilled { run, kills });
        }
        match populated {
            // A container can be removed only when it is empty.
            Ok(false) | Err(KernelError::Gone { .. }) => {
                let stopped = self.kernel.was_stopped(container);
                if stopped == Some(true) {
                    self.queue.push_back(Event::StoppedOutside(run));
                }
                if stopped.is_some() {
                    // What it said last it said before that, and nothing is heard of a run that is over.
                    let Heard { messages, refused, .. } = self.kernel.hear(run, Some(container));
                    self.queue.push_back(Event::Heard { run, messages, refused, reply: None });
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
        let held = self.held.remove(&view.spec.id);
        let minute = held.as_ref().and_then(|h| h.usage.close_minute(view.spec.id, self.kernel.now()));
        if let Some(minute) = minute {
            self.recorder.keep_samples(vec![minute]);
        }
        let usage = held.as_ref().map(|h| h.usage.get()).unwrap_or_default();
        if failpoint::without("guard.descriptors").is_some() {
            std::mem::forget(held);
        }
        let mut view = RunView { usage, ..view };
        view.receipt.iter_mut().for_each(Receipt::shorten);
        self.published.finish(view);
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
