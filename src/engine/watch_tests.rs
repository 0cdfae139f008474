use super::*;
use crate::engine::{Event, Found, ReplyTo, Settings, Ticket};
use crate::model::{
    Answer, CgroupIdentity, Cleanup, ContainerId, Error, ExitStatus, GitLocks, Limits, Outcome, ProcessId, ProcessSeen,
    Processes, Readiness, Resources, RunSpec, Sandbox, Wall, Watch,
};

/// An engine with one run, of which every look shows what is set here.
struct Bench {
    engine: Engine,
    now: Now,
    look: Sample,
    evidence: Evidence,
    audit: Vec<AuditEvent>,
    answers: Vec<Result<Answer, Error>>,
    kept: String,
    killed: bool,
}

const RUN: RunId = RunId::from_bytes([1, 2, 3, 4, 5, 0]);
/// A run that does nothing.
const STILL: Sample = Sample {
    cpu_usec: Some(1000),
    cpu_wait_usec: Some(0),
    memory_bytes: None,
    memory_pressure: None,
    io_bytes: Some(0),
    activity_bytes: Some(0),
    processes: Some(Processes::NONE),
    waits_for_input: Some(false),
    frozen: Some(false),
    suspended_usec: Some(0),
    host_cpu_pressure: Some(0),
};

fn me() -> Actor {
    Actor::User { uid: 7, name: "me".into() }
}

fn minutes(n: u64) -> Option<Duration> {
    Some(Duration::from_secs(60 * n))
}

fn idle_for_15_min() -> Watch {
    Watch { idle_timeout: minutes(15), ..Watch::default() }
}

impl Bench {
    fn new(watch: Watch, init_timeout: Option<Duration>, max_runtime: Option<Duration>) -> Self {
        let mut bench = Self {
            engine: Engine::new(Settings { max_runs: 9, ..Settings::default() }),
            now: Now { mono: Mono(5_000_000_000), wall: Wall(1_000_000) },
            look: STILL,
            evidence: Evidence {
                processes: vec![ProcessSeen { pid: 7, name: "claude".into(), state: 'S', ..ProcessSeen::default() }],
                total: 1,
                ..Evidence::default()
            },
            audit: Vec::new(),
            answers: Vec::new(),
            kept: String::new(),
            killed: false,
        };
        let limits = Limits {
            max_running: None,
            queue_timeout: None,
            init_timeout,
            max_runtime,
            watch,
            grace: Duration::from_secs(5),
            readiness: if init_timeout.is_some() { Readiness::Output } else { Readiness::Exec },
            resources: Resources { memory_max_bytes: Some(1000), ..Resources::default() },
            isolate_pids: false,
            cleanup: Cleanup::default(),
            sandbox: Sandbox::default(),
            credentials: Vec::new(),
        };
        let spec = RunSpec { limits, ..crate::engine::tests::spec(RUN) };
        bench.step(Event::Launch { spec: Box::new(spec), reply: ReplyTo(0), actor: me(), reason: String::new() });
        let (main, container) = (ProcessId { pid: 9, start_ticks: 9 }, bench.container());
        bench.step(Event::Contained { run: RUN, main, container, notices: Vec::new() });
        bench
    }

    fn container(&self) -> ContainerId {
        ContainerId::Cgroup(CgroupIdentity { path: "/sim".into(), inode: 1 })
    }

    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.engine.step(event, self.now) {
                match effect {
                    Effect::Record(record) => {
                        self.audit.extend(record.audit);
                        self.kept = record.run.and_then(|(_, state)| state).unwrap_or_default();
                        match record.ticket {
                            Some(ticket @ (Ticket::Launch(_) | Ticket::Start(_))) => {
                                events.push(Event::Recorded(ticket))
                            }
                            Some(ticket) => self.killed |= matches!(ticket, Ticket::Kill(_)),
                            None => {}
                        }
                    }
                    Effect::Sample(run) => {
                        let Sample { cpu_usec, memory_bytes, .. } = self.look;
                        let sample = Sample { cpu_usec, memory_bytes, ..Sample::default() };
                        events.push(Event::Sampled { run, sample });
                    }
                    Effect::Inspect(run) | Effect::Explain(run) => {
                        events.push(Event::Inspected { run, evidence: self.evidence.clone() })
                    }
                    Effect::Examine(run) => events.push(Event::Examined { run, look: self.look }),
                    Effect::Probe(run) => events.push(Event::Probed { run, output: false }),
                    Effect::LookForLocks(of) => {
                        let found = GitLocks::default();
                        events.push(Event::LocksFound { run: of.run, number: of.number, found });
                    }
                    Effect::Freeze { run, frozen, actor, reply } => {
                        events.push(Event::FreezeDone { run, frozen, result: Ok(()), actor, reply });
                    }
                    Effect::Reply(_, answer) => self.answers.push(answer),
                    _ => {}
                }
            }
        }
    }

    /// Lets time pass from deadline to deadline.
    fn pass(&mut self, secs: u64) {
        let end = self.now.mono + Duration::from_secs(secs);
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.now.wall = self.now.wall_of(at);
            self.now.mono = at;
            self.step(Event::Tick);
        }
        self.now.wall = self.now.wall_of(end);
        self.now.mono = end;
    }

    fn kinds(&self) -> Vec<&'static str> {
        let of_rules = [EventKind::LimitWarning, EventKind::Verdict, EventKind::HealthChanged, EventKind::KillIntent];
        self.audit.iter().filter(|e| of_rules.contains(&e.kind)).map(|e| e.kind.as_str()).collect()
    }

    fn health(&self) -> Health {
        self.engine.run(RUN).map(Run::health).unwrap_or_default()
    }

    fn reason(&self) -> String {
        self.engine.run(RUN).and_then(|r| r.reasons.first()).map(|r| r.text.clone()).unwrap_or_default()
    }

    fn extend(&mut self, rule: Rule, by: Duration) -> Result<Answer, Error> {
        self.step(Event::Extend { run: RUN, rule, by, actor: me(), reply: ReplyTo(1) });
        self.answers.pop().unwrap()
    }

    fn freeze(&mut self, frozen: bool) {
        self.step(Event::Freeze { run: RUN, frozen, actor: me(), reply: ReplyTo(1) });
    }
}

#[test]
fn an_idle_run_is_warned_of_and_then_critical_and_each_is_said_once() {
    let mut b = Bench::new(idle_for_15_min(), None, None);
    b.pass(600);
    assert_eq!((b.health(), b.kinds().len()), (Health::Healthy, 0));
    b.pass(5);
    assert_eq!(b.health(), Health::Warning);
    assert_eq!(b.kinds(), ["limit_warning", "health_changed"]);
    assert!(b.reason().starts_with("idle for 10 min: "), "{}", b.reason());
    assert!(b.reason().ends_with("that is too long in 5 min, by idle_timeout"), "{}", b.reason());
    b.pass(300);
    assert_eq!(b.health(), Health::Critical);
    b.pass(3 * 3600);
    assert_eq!(b.kinds(), ["limit_warning", "health_changed", "verdict", "health_changed"]);
    assert!(!b.killed);
    b.look.activity_bytes = Some(1);
    b.pass(300);
    assert_eq!((b.health(), b.kinds().last().copied()), (Health::Healthy, Some("health_changed")));
    assert_eq!(b.audit.last().unwrap().reason, "healthy");
}

#[test]
fn an_idle_run_is_ended_where_the_action_says_so_and_not_in_a_dry_run() {
    let kill = Watch { idle_action: Action::Kill, ..idle_for_15_min() };
    let mut b = Bench::new(kill, None, None);
    b.pass(605);
    assert!(b.reason().ends_with("it is killed in 5 min, by idle_timeout"), "{}", b.reason());
    b.pass(300);
    assert!(b.killed);
    let intent = b.audit.iter().find(|e| e.kind == EventKind::KillIntent).unwrap();
    assert_eq!((intent.reason.as_str(), &intent.actor), ("idle_timeout of 15 min is over", &Actor::Guardian));
    let rule = Rule::IdleTimeout;
    let reason = KillReason::over(rule, Duration::from_secs(900));
    assert_eq!((reason.code(), Outcome::Killed { reason: reason.clone() }.exit_status()), ("idle_timeout", 124));

    let mut b = Bench::new(Watch { dry_run: true, ..kill }, None, None);
    b.pass(3600);
    assert!(!b.killed);
    assert_eq!(b.health(), Health::Critical);
    assert!(b.reason().ends_with("it would be killed, but for dry_run"), "{}", b.reason());
    assert_eq!(b.kinds().iter().filter(|k| **k == "verdict").count(), 1);
}

#[test]
fn timers_that_only_warn_or_are_in_a_dry_run_end_nothing_and_a_person_still_does() {
    let warn = Watch { init_action: Action::Warn, max_runtime_action: Action::Warn, ..Watch::default() };
    for watch in [warn, Watch { dry_run: true, ..Watch::default() }] {
        let mut b = Bench::new(watch, minutes(1), minutes(2));
        b.pass(130);
        assert!(!b.killed, "{watch:?}");
        assert_eq!((b.health(), b.engine.run(RUN).unwrap().reasons.len()), (Health::Critical, 2));
        assert_eq!(b.kinds().iter().filter(|k| **k == "verdict").count(), 2);
        b.pass(3600);
        assert_eq!(b.kinds().iter().filter(|k| **k == "verdict").count(), 2, "said once");
        let step =
            Event::Kill { run: RUN, mode: KillMode::Force, text: "enough".into(), actor: me(), reply: ReplyTo(2) };
        b.step(step);
        assert!(b.killed);
    }
    let off = Watch { init_action: Action::Off, max_runtime_action: Action::Off, ..Watch::default() };
    let mut b = Bench::new(off, minutes(1), minutes(2));
    b.pass(3600);
    assert!(!b.killed && b.kinds().is_empty());
}

#[test]
fn one_that_spins_or_waits_for_input_is_warned_of_and_called_critical_by_nobody() {
    let watch = Watch { spin_timeout: minutes(20), input_timeout: minutes(2), ..idle_for_15_min() };
    let mut b = Bench::new(watch, None, None);
    b.look.waits_for_input = Some(true);
    b.pass(100);
    assert!(b.reason().starts_with("waiting for input for 1 min 36 s"), "{}", b.reason());
    b.pass(30);
    assert!(b.reason().starts_with("waiting for input for 2 min"), "{}", b.reason());
    b.pass(3600);
    assert_eq!((b.health(), b.kinds()), (Health::Warning, vec!["limit_warning", "health_changed", "verdict"]));
    let mut b = Bench::new(watch, None, None);
    for _ in 0..400 {
        b.look.cpu_usec = b.look.cpu_usec.map(|cpu| cpu + 5_000_000);
        b.pass(5);
    }
    assert!(b.reason().starts_with("spinning for 20 min"), "{}", b.reason());
    assert_eq!((b.health(), b.kinds()), (Health::Warning, vec!["limit_warning", "health_changed", "verdict"]));
}

#[test]
fn more_time_takes_a_warning_back_and_is_kept() {
    let mut b = Bench::new(Watch { idle_action: Action::Kill, ..idle_for_15_min() }, None, None);
    b.pass(610);
    assert_eq!(b.health(), Health::Warning);
    let ends = b.extend(Rule::IdleTimeout, Duration::from_secs(600)).unwrap();
    let at = b.now.wall_of(b.now.mono + Duration::from_secs(1501 - 610));
    assert!(matches!(ends, Answer::Deadline(wall) if wall.0.abs_diff(at.0) < 2_000_000), "{ends:?} {at:?}");
    assert_eq!((b.health(), b.kinds().last().copied()), (Health::Healthy, Some("health_changed")));
    b.pass(880);
    assert!(!b.killed, "25 min are allowed now");
    b.pass(310);
    assert!(b.killed);
    let refused = Bench::new(Watch::default(), None, None).extend(Rule::SpinTimeout, Duration::from_secs(1));
    assert!(refused.unwrap_err().message.contains("has no spin_timeout running"));
}

#[test]
fn the_clock_of_a_frozen_run_stands_still() {
    let watch = Watch { idle_action: Action::Kill, escapees: Action::Off, ..idle_for_15_min() };
    let mut b = Bench::new(watch, None, None);
    b.pass(610);
    b.freeze(true);
    b.pass(7200);
    assert_eq!((b.killed, b.health()), (false, Health::Warning));
    assert!(b.engine.next_deadline().is_none(), "a frozen run is not looked at");
    b.freeze(false);
    b.pass(295);
    assert!(!b.killed, "a whole window has to pass");
    b.pass(15);
    assert!(b.killed);
}

#[test]
fn the_next_instance_goes_on_after_a_whole_window() {
    let mut b = Bench::new(Watch { idle_action: Action::Kill, ..idle_for_15_min() }, None, None);
    b.pass(700);
    assert_eq!(b.health(), Health::Warning);
    let run: Run = serde_json::from_str(&b.kept).unwrap();
    b.engine = Engine::new(Settings { max_runs: 9, ..Settings::default() });
    b.pass(3600);
    let found = Found::There { container: b.container(), main_alive: true, client_alive: true };
    b.step(Event::Adopt { run: Box::new(run), found });
    b.pass(295);
    assert_eq!((b.killed, b.health()), (false, Health::Warning));
    b.pass(15);
    assert!(b.killed);
}

#[test]
fn what_an_earlier_version_kept_of_a_run_is_read_and_not_judged() {
    let b = Bench::new(idle_for_15_min(), None, None);
    let mut kept: serde_json::Value = serde_json::from_str(&b.kept).unwrap();
    for key in ["tracks", "told_health"] {
        kept.as_object_mut().unwrap().remove(key).unwrap();
    }
    kept["spec"]["limits"].as_object_mut().unwrap().remove("watch").unwrap();
    let run: Run = serde_json::from_value(kept).unwrap();
    assert_eq!((run.tracks.len(), run.spec.limits.watch), (0, Watch::default()));
}

/// Whoever tells first: the client, which knows the status alone, the pidfd, or the cgroup's count.
#[test]
fn an_end_by_the_oom_killer_is_one_in_whatever_order_it_is_told() {
    let exited = |oom| Event::MainExited { run: RUN, status: None, oom };
    let reported = || Event::Reported { run: RUN, status: ExitStatus::Signaled(9), reply: ReplyTo(1) };
    let counted = || Event::OomKilled { run: RUN, kills: 1 };
    for (events, oom) in [
        (vec![reported(), exited(true)], true),
        (vec![exited(true), reported()], true),
        (vec![reported(), exited(false), counted()], true),
        (vec![reported(), exited(false)], false),
    ] {
        let mut b = Bench::new(idle_for_15_min(), None, None);
        for event in events {
            b.step(event);
        }
        b.step(Event::Populated { run: RUN, populated: false });
        let finished = b.audit.iter().find(|event| event.kind.as_str() == "run_finished").unwrap();
        assert_eq!(finished.details["outcome"]["kind"] == "oom", oom, "{finished:?}");
    }
}

#[test]
fn memory_is_warned_of_near_its_limit_under_pressure_and_when_it_cost_a_process() {
    let mut b = Bench::new(Watch { pressure_max_percent: Some(40), ..idle_for_15_min() }, None, None);
    b.look.waits_for_input = None;
    for (used, health) in
        [(899, Health::Healthy), (900, Health::Warning), (860, Health::Warning), (849, Health::Healthy)]
    {
        b.look.memory_bytes = Some(used);
        b.pass(310);
        assert_eq!(b.health(), health, "{used}");
    }
    for (percent, health) in [(39, Health::Healthy), (40, Health::Warning), (90, Health::Warning), (0, Health::Healthy)]
    {
        b.look.memory_pressure = Some(percent);
        b.pass(310);
        assert_eq!(b.health(), health, "{percent} %");
    }
    assert_eq!(b.kinds(), ["health_changed"; 4]);
    for kills in [1, 1, 3] {
        b.step(Event::OomKilled { run: RUN, kills });
    }
    assert!(b.reason().starts_with("the kernel has ended 2 processes of it"), "{}", b.reason());
    assert_eq!(b.kinds()[4..], ["verdict", "health_changed", "verdict"]);
}

/// One that works is looked at by no rule, and may have to wait for memory all the more.
#[test]
fn pressure_is_noticed_at_the_next_sample_of_a_run_that_no_rule_looks_at() {
    let mut b = Bench::new(Watch { pressure_max_percent: Some(40), ..idle_for_15_min() }, None, None);
    let sampled = |b: &mut Bench, memory_pressure| {
        b.step(Event::Sampled { run: RUN, sample: Sample { memory_pressure, ..Sample::default() } });
        b.health()
    };
    for (host, wanted) in [(None, false), (Some(19), false), (Some(20), true), (Some(100), true)] {
        assert_eq!(b.engine.wants_pressure(RUN, host), wanted, "{host:?}");
    }
    assert_eq!(sampled(&mut b, Some(39)), Health::Healthy);
    assert_eq!(sampled(&mut b, Some(40)), Health::Warning);
    assert_eq!(
        b.reason(),
        "all its processes waited for memory in 40 % of the last minute: it needs more, or a smaller load"
    );
    // What was said is read until it can be taken back.
    assert!(b.engine.wants_pressure(RUN, Some(0)));
    assert_eq!(sampled(&mut b, None), Health::Warning);
    assert_eq!(sampled(&mut b, Some(3)), Health::Healthy);
    assert!(!b.engine.wants_pressure(RUN, Some(0)));
    let mut off = Bench::new(idle_for_15_min(), None, None);
    assert!(!off.engine.wants_pressure(RUN, Some(100)));
    assert_eq!(sampled(&mut off, Some(100)), Health::Healthy);
}

#[test]
fn when_a_rule_will_be_over_is_shown_once_it_is_near() {
    let mut b = Bench::new(idle_for_15_min(), None, minutes(60));
    let shown =
        |b: &Bench| b.engine.view(RUN, b.now).unwrap().deadlines.iter().map(|(rule, _)| *rule).collect::<Vec<_>>();
    b.pass(590);
    assert_eq!(shown(&b), [Rule::MaxRuntime]);
    b.pass(20);
    assert_eq!(shown(&b), [Rule::MaxRuntime, Rule::IdleTimeout]);
}
