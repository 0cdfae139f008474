//! An instance: the engine's thread and loop, and what is started and stopped around it.
//!
//! ```text
//!  bus thread (tokio)  ── Envelope ──▶ ┐                       ┌──▶ store thread ──▶ journal thread
//!  store thread ──────── Notice ─────▶ ├─ loop: wait, drain ───┤
//!  kernel (epoll) ────── Notice ─────▶ ┘   deadlines, samples  └──▶ Published ──▶ bus
//! ```

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::fcntl::Flock;
use serde_json::json;
use tokio::sync::{oneshot, watch};

use crate::bus::client::Client;
use crate::bus::{self, About, Bus, Services, Signal};
use crate::config::{self, Config};
use crate::engine::{Engine, Event};
use crate::failpoint;
use crate::kernel::{Kernel as _, Notice};
use crate::model::{
    Actor, Answer, AuditEvent, AuditRow, Containment, Error, ErrorKind, EventKind, Health, InstanceKind, Mono, Now,
    Refused, Reserved, RunId, UsageMinute, escape,
};
use crate::store::{self, Batch, Launches, Store};

use super::bus_thread::Listen;
use super::command::{Caller, Command, Commands, Envelope, LaunchRequest};
use super::driver::{Driver, Recorder, launch_error};
use super::history::Readers;
use super::host::{Host, HostOptions};
use super::journal::{self, Entry, Journal};
use super::launcher;
use super::published::{Change, InstanceView, Published};
use super::reservations::Reservations;
use super::service::{self, ServiceManager};
use super::state_dir;
use super::takeover;

/// What an instance is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose runs it guards.
    pub kind: InstanceKind,
    /// Where it keeps database, logs, lock and socket.
    pub state_dir: PathBuf,
    /// The configuration file; the usual places if none is given.
    pub config: Option<PathBuf>,
    /// The backend that is insisted on; the configuration's if none is given.
    pub backend: Option<Containment>,
    /// It runs in the foreground of somebody who watches: log lines to standard error, no exit when idle.
    pub foreground: bool,
}

/// How many bytes of commands and environments of queued runs are held, and kept in files, before no more are taken.
const KEPT_MAX: usize = 256 << 20;
/// How long the bus may take to give us our name.
const NAME: Duration = Duration::from_secs(15);

/// Serves until stopped or idle. Up to the moment when clients are answered, what goes wrong is returned to whoever started
/// it; after that it is in the journal and the audit.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let state_dir = state_dir::prepare(&options.state_dir)?;
    let _lock = take_lock(options.kind, &state_dir)?;
    // Started by way of /proc/self/exe, it would be `exe` to ps and pgrep. A name is for people: failing costs nothing.
    let _ = rustix::thread::set_name(c"guardiand");
    super::panics::are_fatal();
    super::bus_thread::block_signals()?;
    journal::init_logging(options.foreground);
    let (config, files) =
        config::load_for(options.kind, options.config.as_deref()).context("the configuration is refused")?;
    let mut instance = Instance::start(options, &state_dir, config, &files)?;
    if !options.foreground {
        state_dir::redirect_stderr(&state_dir)?;
    }
    instance.serve();
    instance.stop();
    Ok(())
}

/// Takes the state directory's lock. A user's instance that systemd starts takes over from a private one, which stood in
/// for it; that one's runs live on.
fn take_lock(kind: InstanceKind, state_dir: &Path) -> anyhow::Result<Flock<fs::File>> {
    let served = match state_dir::lock(state_dir) {
        Err(e) if kind == InstanceKind::User && e.is::<state_dir::AlreadyServed>() => e,
        taken => return taken,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stopped = runtime.block_on(async {
        let client = Client::connect(&state_dir.join(state_dir::SOCKET)).await?;
        match client.describe().await?.instance == InstanceKind::Private.as_str() {
            true => client.stop().await.map(|()| true),
            false => Ok(false),
        }
    });
    match stopped {
        // It removes its socket before it lets go of the lock, and a lock without a socket is waited for.
        Ok(true) => state_dir::lock(state_dir),
        Ok(false) => Err(served),
        Err(e) => Err(served.context(format!("the private instance was asked to stop and did not: {e}"))),
    }
}

/// Waits until the name on the bus is ours: who is told that we serve must find us there.
fn wait_for_name(held: &watch::Receiver<Option<Result<(), String>>>) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match &*held.borrow() {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => anyhow::bail!("cannot serve: {why}"),
            None if begun.elapsed() > NAME => anyhow::bail!("the bus gave no name in {} s", NAME.as_secs()),
            None => {}
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The store's writer, the journal beside it, and what is kept of queued runs.
struct Records {
    writer: store::Writer,
    journal: Journal,
    launches: Launches,
}

impl Recorder for Records {
    fn submit(&mut self, batch: Batch) -> Result<(), Batch> {
        self.writer.submit(batch)
    }

    fn journal(&mut self, event: AuditEvent) {
        self.journal.send(Entry { seq: None, event });
    }

    fn keep_samples(&mut self, minutes: Vec<UsageMinute>) {
        self.writer.keep_samples(minutes);
    }

    fn launch_file(&self, run: RunId) -> Option<PathBuf> {
        Some(self.launches.path(run))
    }
}

struct Instance {
    options: Options,
    state_dir: PathBuf,
    config: Config,
    driver: Driver<Host, Records>,
    published: Arc<Published>,
    view: InstanceView,
    commands: mpsc::Receiver<Box<Envelope>>,
    store_notices: mpsc::Receiver<store::Notice>,
    connections: watch::Receiver<usize>,
    /// Dropped to end the bus thread, which drops its sender when it is through.
    bus_stop: Option<oneshot::Sender<()>>,
    bus_done: mpsc::Receiver<()>,
    last_busy: Now,
    next_sample: Option<Mono>,
    reservations: Reservations,
    /// Why the store is in trouble, while it is.
    trouble: Option<String>,
    /// Audit events that the journal did not get.
    dropped: u64,
    service: ServiceManager,
    stopping: bool,
}

impl Instance {
    fn start(options: &Options, state_dir: &Path, config: Config, files: &[PathBuf]) -> anyhow::Result<Self> {
        let opened = Store::open(state_dir)?;
        let readers = Arc::new(Readers::new(opened.store.reader()?, opened.store.reader()?));
        let key = state_dir::key(state_dir)?;
        // What guards everybody's runs has to start processes as everybody, which is for PID 1 to do.
        let usual = (options.kind == InstanceKind::System).then_some(Containment::Systemd);
        let backend = options.backend.or(config.instance.backend).or(usual);
        let host = HostOptions {
            kind: options.kind,
            backend,
            base: config.cgroup.clone(),
            notify: state_dir::notify(options.kind, state_dir)?,
            ..HostOptions::new(key, state_dir)
        };
        let stored = host.notify.stored;
        let (mut host, waker) = Host::new(host)?;
        if stored {
            host.keep(service::kept_sockets());
        }
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || waker.wake());
        let journal = Journal::start()?;
        let signals = bus::signals();
        let (store_sender, store_notices) = mpsc::channel();
        let writer = {
            let (wake, journal, signals) = (wake.clone(), journal.clone(), signals.clone());
            let notice = move |notice| {
                let _ = store_sender.send(notice);
                wake();
            };
            let sink = move |row: &AuditRow| {
                let _ = signals.send(Signal::EventAppended(row.seq));
                journal.send(Entry { seq: Some(row.seq), event: row.event.clone() });
            };
            opened.store.into_writer(config.retention, Box::new(notice), Some(Box::new(sink)))?
        };
        let published = Arc::new(Published::default());
        {
            let signals = signals.clone();
            published.on_change(Box::new(move |change| {
                let _ = signals.send(match change {
                    Change::Run(view) => Signal::RunChanged(view),
                    Change::Finished(view) => Signal::RunFinished(view),
                    Change::Instance => Signal::InstanceChanged,
                });
            }));
        }
        let control_group = host.control_group().map(|path| path.display().to_string()).unwrap_or_default();
        let engine = Engine::new(launcher::settings(&config));
        let (commands, envelopes) = Commands::new(wake);
        let mut driver = Driver::new(
            host,
            Records { writer, journal, launches: Launches::of(state_dir) },
            engine,
            published.clone(),
        );
        let started = driver.kernel.now();
        let set_aside = opened.set_aside.map(|s| (s.path, s.why));
        takeover::take_up(&mut driver, &readers, &config, state_dir, set_aside, started)?;

        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uid: nix::unistd::geteuid().as_raw(),
            instance: options.kind,
            state_dir: state_dir.to_owned(),
            config: files.first().cloned(),
            backend: driver.kernel.containment(),
            considered: driver.kernel.considered().to_vec(),
            started_at: started.wall,
            notes: driver.kernel.notes(),
        };
        let evidence: bus::EvidenceReader = Arc::new(launcher::evidence_of);
        let services = Services::new(commands.clone(), published.clone(), readers, evidence, about, signals);
        let (connections_sender, connections) = watch::channel(0);
        let (held, is_held) = watch::channel(None);
        let listen = Listen {
            // The host's too: root comes by it, without the bus in between. Everybody else comes by the bus.
            socket: state_dir::bind(state_dir)?,
            bus: Bus::of(options.kind),
            held,
        };
        let (bus_stop, bus_done) = super::bus_thread::start(listen, services, commands, connections_sender)?;
        if options.kind != InstanceKind::Private {
            wait_for_name(&is_held)?;
        }
        let view = InstanceView { control_group, ..InstanceView::default() };
        published.put_instance(view.clone());
        Ok(Self {
            options: options.clone(),
            state_dir: state_dir.to_owned(),
            config,
            driver,
            published,
            view,
            commands: envelopes,
            store_notices,
            connections,
            bus_stop: Some(bus_stop),
            bus_done,
            last_busy: started,
            next_sample: None,
            reservations: Reservations::default(),
            trouble: None,
            dropped: 0,
            service: ServiceManager::from_env(),
            stopping: false,
        })
    }

    fn serve(&mut self) {
        self.service.ready();
        self.count();
        while !self.stopping {
            self.service.ping(self.driver.kernel.now().mono);
            let timeout = self.timeout();
            let notices = match self.driver.kernel.wait(timeout) {
                Ok(notices) => notices,
                Err(e) => {
                    // Waiting fails only for a bug of ours. The next instance takes the runs up.
                    self.report(EventKind::InstanceStopped, format!("waiting for events failed: {e}"));
                    return;
                }
            };
            for notice in notices {
                match notice {
                    Notice::Woken => {}
                    notice => self.driver.notice(notice),
                }
            }
            self.take_store_notices();
            while let Ok(envelope) = self.commands.try_recv() {
                self.command(*envelope);
                self.take_store_notices();
            }
            self.driver.catch_up();
            self.on_time();
            self.count();
        }
    }

    fn tell_health(&mut self) {
        let trouble = self.trouble.as_ref();
        let critical = trouble.map(|why| format!("the audit cannot be written, so no run is started: {why}"));
        let dropped = (self.dropped > 0).then(|| {
            format!(
                "{} audit events did not reach the journal, which was slow: `guardian audit` has them",
                self.dropped
            )
        });
        self.view.health = match (&critical, &dropped) {
            (Some(_), _) => Health::Critical,
            (None, Some(_)) => Health::Warning,
            (None, None) => Health::Healthy,
        };
        self.view.reasons = critical.into_iter().chain(dropped).collect();
        self.published.put_instance(self.view.clone());
    }

    fn count(&mut self) {
        let dropped = self.driver.recorder.journal.dropped();
        if dropped != self.dropped {
            self.dropped = dropped;
            self.tell_health();
        }
        let totals = self.driver.totals();
        if totals != (self.view.runs_total, self.view.kills_total) {
            (self.view.runs_total, self.view.kills_total) = totals;
            self.published.put_instance(self.view.clone());
        }
        let (view, live) = (&self.view, self.driver.engine().live());
        let backend = self.driver.kernel.containment();
        let now = self.driver.kernel.now().mono;
        self.service.status(now, || service::sentence(view, live, backend));
    }

    /// Until the next deadline, sample, or look at whether anybody is still there. Without runs and with a client
    /// nothing is to be done until the client speaks.
    fn timeout(&self) -> Option<Duration> {
        let now = self.driver.kernel.now().mono;
        let idle = self.idle_exit().map(|after| self.last_busy.mono + after);
        let expiry = self.reservations.next();
        let due = [self.driver.engine().next_deadline(), self.next_sample, idle, expiry, self.service.next()];
        let next = due.into_iter().flatten().min();
        let behind = self.driver.behind();
        next.map(|at| at.since(now)).into_iter().chain(behind).min()
    }

    fn idle_exit(&self) -> Option<Duration> {
        let idle = !self.options.foreground && self.driver.engine().runs().next().is_none();
        self.config.instance.idle_exit.filter(|_| idle)
    }

    fn on_time(&mut self) {
        let now = self.driver.kernel.now();
        if self.driver.engine().next_deadline().is_some_and(|at| at <= now.mono) {
            self.driver.handle(Event::Tick);
        }
        for run in self.reservations.expired(now.mono) {
            self.driver.unreserve(run);
        }
        if self.driver.engine().runs().next().is_none() {
            self.next_sample = None;
        } else {
            self.last_busy = now;
            let interval = self.config.instance.sample_interval;
            if self.next_sample.is_none_or(|at| at <= now.mono) {
                // The first one waits its interval too: a run of a moment is not sampled.
                if self.next_sample.is_some() {
                    self.driver.sample(self.config.instance.log_max_bytes);
                }
                self.next_sample = Some(now.mono + interval);
            }
        }
        if self.driver.kernel.is_stale() && self.driver.engine().runs().next().is_none() {
            self.stopping = true;
        }
        if let Some(after) = self.idle_exit()
            && now.mono.since(self.last_busy.mono) >= after
        {
            if *self.connections.borrow() == 0 {
                self.stopping = true;
            }
            self.last_busy = now;
        }
    }

    fn take_store_notices(&mut self) {
        while let Ok(notice) = self.store_notices.try_recv() {
            match notice {
                store::Notice::Recorded(ticket) => self.driver.recorded(ticket, true),
                store::Notice::Failed(ticket, _) => self.driver.recorded(ticket, false),
                store::Notice::Troubled(why) => {
                    self.trouble = Some(why.clone());
                    self.tell_health();
                    if failpoint::without("guard.record").is_none() {
                        self.driver.handle(Event::StoreTroubled(why));
                    }
                }
                store::Notice::Recovered => {
                    self.trouble = None;
                    self.tell_health();
                    self.driver.handle(Event::StoreRecovered);
                }
            }
        }
    }

    fn command(&mut self, Envelope { command, caller, reply }: Envelope) {
        self.last_busy = self.driver.kernel.now();
        let actor = Actor::User { uid: caller.uid, name: caller.user.clone() };
        let published = self.published.clone();
        let about = about(&command);
        let reply = move |answer: Result<Answer, Error>| {
            // The engine knows live runs only. One that it has just let go of is finished, not unknown.
            let answer = answer.map_err(|e| match about {
                Some(id) if e == Error::no_such_run(id) && published.run(id).is_some() => Error::already_finished(id),
                _ => e,
            });
            // Who asked may be gone.
            let _ = reply.send(answer);
        };
        match command {
            Command::Reserve { request, container } => reply(self.reserve(&request, container, &caller)),
            Command::Attach { request, child } => {
                self.launch(request, Some(child), &caller, Box::new(reply));
            }
            Command::Start { request } => self.launch(request, None, &caller, Box::new(reply)),
            Command::ReportExit { run, status } => {
                let reply = self.driver.expect_reply(Box::new(reply));
                self.driver.handle(Event::Reported { run, status, reply });
            }
            Command::Kill { run, mode, text } => {
                let reply = self.driver.expect_reply(Box::new(reply));
                self.driver.handle(Event::Kill { run, mode, text, actor, reply });
            }
            Command::Extend { run, rule, by } => {
                let reply = self.driver.expect_reply(Box::new(reply));
                self.driver.handle(Event::Extend { run, rule, by, actor, reply });
            }
            Command::Heartbeat { run, said } => {
                let reply = Some(self.driver.expect_reply(Box::new(reply)));
                let messages = vec![*said];
                self.driver.handle(Event::Heard { run, messages, refused: Refused::default(), reply });
            }
            Command::Freeze(run) | Command::Thaw(run) => {
                let frozen = matches!(command, Command::Freeze(_));
                let reply = self.driver.expect_reply(Box::new(reply));
                self.driver.handle(Event::Freeze { run, frozen, actor, reply });
            }
            Command::Refresh(run) => {
                self.driver.shown(run);
                reply(Ok(Answer::Done));
            }
            Command::Reload => {
                self.service.reloading();
                reply(self.reload(actor));
                self.service.ready();
            }
            Command::Stop => {
                self.stopping = true;
                reply(Ok(Answer::Done));
            }
        }
    }

    fn reserve(
        &mut self,
        request: &LaunchRequest,
        container: oneshot::Sender<OwnedFd>,
        caller: &Caller,
    ) -> Result<Answer, Error> {
        // On a full disk the record of a shim cannot be made either, which would be the lesser reason.
        if let Some(refusal) = self.driver.engine().refuses_all() {
            return Err(refusal);
        }
        self.driver.kernel.room()?;
        let command = launcher::executed(&self.config, request)?;
        let id = launcher::new_id()?;
        self.reservations.add(id, caller, self.driver.kernel.now().mono)?;
        let limits = launcher::limits_of(&self.config, request);
        let uid = request.uid.unwrap_or(caller.uid);
        let (reserved, fd) = self.driver.kernel.reserve(id, uid, &limits).map_err(|e| launch_error(&e))?;
        // Who asked may be gone: then the reservation expires.
        if let Some(fd) = fd {
            let _ = container.send(fd);
        }
        Ok(Answer::Reserved(Reserved { command, ..reserved }))
    }

    fn launch(&mut self, request: LaunchRequest, child: Option<OwnedFd>, caller: &Caller, reply: super::driver::Reply) {
        let id = match request.reserved {
            Some(id) => self.reservations.take(id, caller).map(|()| id),
            None => self.driver.kernel.room().and_then(|()| launcher::new_id()),
        };
        let id = id.and_then(|id| self.room_to_keep(child.is_none()).map(|()| id));
        let id = match id {
            Ok(id) => id,
            Err(e) => return reply(Err(e)),
        };
        let reason = request.reason.clone();
        let host = &mut self.driver.kernel;
        match launcher::prepare(host, &self.config, &self.state_dir, id, request, child, caller) {
            Ok((spec, held)) => {
                let actor = Actor::User { uid: caller.uid, name: caller.user.clone() };
                self.driver.launch(spec, held, reply, actor, reason);
            }
            Err(e) => {
                self.driver.unreserve(id);
                reply(Err(e));
            }
        }
    }

    /// Refuses a detached run while what is kept of queued ones takes too much memory.
    fn room_to_keep(&self, is_detached: bool) -> Result<(), Error> {
        if !is_detached || self.driver.kept_bytes() < KEPT_MAX {
            return Ok(());
        }
        let message = format!(
            "the commands and environments of queued runs take {} MiB, which is the most that is kept: wait until some of \
             them have started",
            KEPT_MAX >> 20
        );
        Err(Error::new(ErrorKind::LimitExceeded, message))
    }

    /// The new configuration whole, or the old one.
    fn reload(&mut self, actor: Actor) -> Result<Answer, Error> {
        let (config, _) = config::load_for(self.options.kind, self.options.config.as_deref()).map_err(|e| {
            Error::invalid(format!("the configuration is refused, and the old one stays in force: {e:#}"))
        })?;
        self.driver.handle(Event::Configured(launcher::settings(&config)));
        self.config = config;
        self.audit(EventKind::ConfigReloaded, actor, String::new(), json!({}));
        Ok(Answer::Done)
    }

    fn report(&mut self, kind: EventKind, reason: String) {
        self.audit(kind, Actor::Guardian, reason, json!({ "pid": std::process::id() }));
    }

    fn audit(&mut self, kind: EventKind, actor: Actor, reason: String, details: serde_json::Value) {
        let at = self.driver.kernel.now().wall;
        self.driver.audit(AuditEvent { at, kind, run: None, workflow: None, actor, reason, details });
    }

    /// Live runs stay as they are: the next instance takes them up.
    fn stop(mut self) {
        self.driver.kernel.keep_notify_sockets();
        self.service.stopping();
        let live = self.driver.engine().live();
        let reason = if live == 0 { String::new() } else { format!("{live} runs are left for the next instance") };
        // New clients find no socket and start the next instance, which waits for our lock.
        let _ = fs::remove_file(self.state_dir.join(state_dir::SOCKET));
        self.report(EventKind::InstanceStopped, reason);
        self.driver.catch_up();
        self.driver.keep_open_minutes();
        drop(self.bus_stop.take());
        // The bus answers what it has taken in; a client that does not read its answer is not waited for.
        let _ = self.bus_done.recv_timeout(Duration::from_secs(2));
        if live == 0 {
            self.driver.kernel.leave();
        }
        if let Err(e) = self.driver.recorder.writer.stop() {
            eprintln!("guardian: {}", escape(&e.to_string()));
        }
    }
}

/// The run that a command is about.
fn about(command: &Command) -> Option<RunId> {
    match command {
        Command::ReportExit { run, .. } | Command::Kill { run, .. } | Command::Extend { run, .. } => Some(*run),
        Command::Heartbeat { run, .. } => Some(*run),
        Command::Freeze(run) | Command::Thaw(run) | Command::Refresh(run) => Some(*run),
        Command::Reserve { .. } | Command::Attach { .. } | Command::Start { .. } => None,
        Command::Reload | Command::Stop => None,
    }
}
