//! What each event is answered with, where random sequences do not tell.

mod adopted;
mod agents;
mod ends;
mod escapees;
mod kills;
mod looks;
mod queues;
mod remains;
mod said;
mod starts;

use super::*;
use crate::engine::run::Timer;
use crate::model::{
    CgroupIdentity, Cleanup, ContainerId, ErrorKind, Evidence, ExitStatus, GitLocks, Health, KillMode, KillReason,
    Limits, Outcome, Phase, ProcessId, ProcessSeen, Resources, RunSpec, Sandbox, Watch,
};

const ONE: RunId = RunId::from_bytes([0, 0, 0, 0, 0, 1]);
const TWO: RunId = RunId::from_bytes([0, 0, 0, 0, 0, 2]);
const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn me() -> Actor {
    Actor::User { uid: 7, name: "me".into() }
}

fn container() -> ContainerId {
    ContainerId::Cgroup(CgroupIdentity { path: "/sim".into(), inode: 1 })
}

/// A detached run that is ready at once, without limits.
pub(super) fn spec(id: RunId) -> RunSpec {
    let limits = Limits {
        max_running: None,
        queue_timeout: None,
        init_timeout: None,
        max_runtime: None,
        watch: Watch { escapees: crate::model::Action::Off, ..Watch::default() },
        grace: 5 * SECOND,
        readiness: Readiness::Exec,
        resources: Resources::default(),
        isolate_pids: false,
        cleanup: Cleanup::default(),
        sandbox: Sandbox::Off,
        credentials: Vec::new(),
    };
    RunSpec {
        id,
        workflow: "test".into(),
        executor: "local".into(),
        name: None,
        command: vec!["sim".into()],
        cwd: "/".into(),
        uid: 7,
        user: "me".into(),
        main: None,
        client: None,
        containment: Containment::Cgroupfs,
        limits,
        log: None,
    }
}

/// An engine, step by step.
struct Steps {
    engine: Engine,
    now: Now,
}

impl Steps {
    fn new(max_runs: usize) -> Self {
        let now = Now { mono: Mono(5_000_000_000), wall: Wall(1_000_000_000_000_000) };
        Self { engine: Engine::new(Settings { max_runs, ..Settings::default() }), now }
    }

    /// What is asked of git is answered at once: there is no repository.
    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = self.engine.step(event, self.now);
        while let Some(at) = effects.iter().position(|e| matches!(e, Effect::LookForLocks(_))) {
            let Effect::LookForLocks(of) = effects.remove(at) else { continue };
            let answer = Event::LocksFound { run: of.run, number: of.number, found: GitLocks::default() };
            effects.extend(self.engine.step(answer, self.now));
        }
        effects
    }

    fn launch(&mut self, spec: RunSpec) -> Vec<Effect> {
        self.step(Event::Launch { spec: Box::new(spec), reply: ReplyTo(1), actor: me(), reason: String::new() })
    }

    /// Launched, and contained.
    fn contained(&mut self, spec: RunSpec) -> Vec<Effect> {
        let id = spec.id;
        self.launch(spec);
        self.step(Event::Recorded(Ticket::Launch(id)));
        let main = ProcessId { pid: 9, start_ticks: 9 };
        self.step(Event::Contained { run: id, main, container: container(), notices: Vec::new() })
    }

    /// Launched, and its command is executed.
    fn live(spec: RunSpec) -> Self {
        let (mut steps, id, is_detached) = (Self::new(9), spec.id, spec.client.is_none());
        steps.contained(spec);
        steps.step(Event::Recorded(Ticket::Start(id)));
        // A client opens the gate itself.
        if is_detached {
            steps.step(Event::GateOpened { run: id, result: Ok(()) });
        }
        steps
    }

    /// Lets time pass from deadline to deadline. Gives what is wanted then, with the time since now.
    fn pass(&mut self, d: Duration) -> Vec<(Duration, Effect)> {
        let (from, end) = (self.now.mono, self.now.mono + d);
        let mut all = Vec::new();
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.at(at);
            let effects = self.step(Event::Tick);
            all.extend(effects.into_iter().map(|e| (at.since(from), e)));
        }
        self.at(end);
        all
    }

    fn at(&mut self, at: Mono) {
        self.now = Now { mono: at, wall: self.now.wall_of(at) };
    }

    fn kill(&mut self, mode: KillMode) -> Vec<Effect> {
        self.step(Event::Kill { run: ONE, mode, text: "because".into(), actor: me(), reply: ReplyTo(2) })
    }

    fn run(&self) -> &Run {
        self.engine.run(ONE).unwrap()
    }

    fn phase(&self) -> Option<Phase> {
        self.engine.run(ONE).map(Run::phase)
    }

    /// What the next instance is told of the run.
    fn kept(&self) -> Run {
        serde_json::from_str(&serde_json::to_string(self.run()).unwrap()).unwrap()
    }
}

fn audit(effects: &[Effect]) -> Vec<&AuditEvent> {
    let records = effects.iter().filter_map(|e| if let Effect::Record(record) = e { Some(record) } else { None });
    records.flat_map(|record| &record.audit).collect()
}

fn answers(effects: &[Effect]) -> Vec<&Result<Answer, Error>> {
    effects.iter().filter_map(|e| if let Effect::Reply(_, answer) = e { Some(answer) } else { None }).collect()
}

fn has(effects: &[Effect], is: impl Fn(&Effect) -> bool) -> bool {
    effects.iter().any(is)
}

fn there() -> Found {
    Found::There { container: container(), main_alive: true, client_alive: true }
}

/// The next instance, to which this was left.
fn next(b: &Steps, found: Found) -> (Steps, Vec<Effect>) {
    let mut next = Steps { engine: Engine::new(Settings { max_runs: 9, ..Settings::default() }), now: b.now };
    let effects = next.step(Event::Adopt { run: Box::new(b.kept()), found });
    (next, effects)
}

fn outcome(b: &Steps) -> Option<Outcome> {
    b.engine.view(ONE, b.now).and_then(|v| v.outcome)
}

fn wants_probe(effects: &[(Duration, Effect)]) -> Vec<Duration> {
    effects.iter().filter(|(_, e)| matches!(e, Effect::Probe(ONE))).map(|(at, _)| *at).collect()
}

fn initializing(readiness: Readiness, init_timeout: Option<Duration>) -> Steps {
    let plain = spec(ONE);
    Steps::live(RunSpec { limits: Limits { readiness, init_timeout, ..plain.limits.clone() }, ..plain })
}
