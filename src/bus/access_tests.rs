use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use zbus::connection::Builder;
use zbus::{Guid, OwnedVariant, interface};

use super::super::rights::Authority;
use super::*;
use crate::bus::{About, AuditReport, RunFilter};
use crate::daemon::command::Commands;
use crate::daemon::published::{Published, UsageCell};
use crate::model::{
    AuditRow, Containment, Evidence, Health, Limits, Readiness, Resources, RunSpec, Sandbox, Statistics, Usage,
    UsageSample, Wall, Watch,
};

const ANN: u32 = 1001;
const BEN: u32 = 1002;
/// Whose instance it is.
const OWNER: u32 = 1000;

/// The store: what is finished.
struct Shelf(Vec<RunView>);

impl History for Shelf {
    fn run(&self, id: RunId) -> Result<Option<RunView>, Error> {
        Ok(self.0.iter().find(|v| v.spec.id == id).cloned())
    }

    fn runs(&self, _: &RunFilter) -> Result<Vec<RunView>, Error> {
        Ok(Vec::new())
    }

    fn resolve(&self, prefix: &str, owner: Option<u32>) -> Result<Vec<RunId>, Error> {
        let fits = |v: &&RunView| v.spec.id.to_string().starts_with(prefix) && owner.is_none_or(|o| o == v.spec.uid);
        Ok(self.0.iter().filter(fits).map(|v| v.spec.id).collect())
    }

    fn events(&self, _: u64, _: u32, _: Option<RunId>) -> Result<Vec<AuditRow>, Error> {
        Ok(Vec::new())
    }

    /// Whose runs were asked for, in the place of a workflow.
    fn statistics(&self, _: Option<&str>, uid: Option<u32>, _: Option<Wall>) -> Result<Vec<Statistics>, Error> {
        Ok(vec![Statistics { workflow: format!("{uid:?}"), ..Statistics::default() }])
    }

    fn samples(&self, _: RunId, _: Wall) -> Result<Vec<UsageSample>, Error> {
        Ok(Vec::new())
    }

    fn verify(&self) -> Result<AuditReport, Error> {
        Ok(AuditReport::default())
    }

    fn last_seq(&self) -> Result<u64, Error> {
        Ok(0)
    }
}

/// What is asked of polkit: about which client, which action, and with which flags.
type Question = (String, String, u32);

/// A polkit that grants these actions, and would grant all others for a password.
struct Polkit {
    grants: Vec<Right>,
    asked: Arc<Mutex<Vec<Question>>>,
}

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Polkit {
    fn check_authorization(
        &self,
        subject: (String, HashMap<String, OwnedVariant>),
        action: &str,
        _details: HashMap<String, String>,
        flags: u32,
        _cancellation: &str,
    ) -> (bool, bool, HashMap<String, String>) {
        let client = subject.1.get("name").and_then(|v| <&str>::try_from(v).ok()).unwrap_or_default();
        self.asked.lock().unwrap().push((format!("{} {client}", subject.0), action.to_owned(), flags));
        let granted = self.grants.iter().any(|right| right.action() == action);
        (granted, !granted, HashMap::new())
    }
}

/// Somebody whose rights polkit decides, the connection of that polkit, and what it is asked.
async fn polkit(uid: u32, grants: &[Right]) -> (Peer, zbus::Connection, Arc<Mutex<Vec<Question>>>) {
    let (here, there) = UnixStream::pair().unwrap();
    let asked = Arc::<Mutex<Vec<Question>>>::default();
    let polkit = Polkit { grants: grants.to_vec(), asked: asked.clone() };
    let server = Builder::unix_stream(there)
        .server(Guid::generate())
        .p2p()
        .serve_at("/org/freedesktop/PolicyKit1/Authority", polkit)
        .build();
    let (server, client) = tokio::join!(server, Builder::unix_stream(here).p2p().build());
    let authority = Some(Authority::new(client.unwrap(), ":1.7".to_owned()));
    (Peer { authority, ..peer(uid) }, server.unwrap(), asked)
}

fn peer(uid: u32) -> Peer {
    Peer { caller: Caller { uid, user: uid.to_string(), process: None }, authority: None, address: None }
}

const fn id(first: u8, last: u8) -> RunId {
    RunId::from_bytes([first, 0, 0, 0, 0, last])
}

fn view(id: RunId, uid: u32, phase: Phase) -> RunView {
    let limits = Limits {
        max_running: None,
        queue_timeout: None,
        init_timeout: None,
        max_runtime: None,
        watch: Watch::default(),
        grace: Duration::ZERO,
        readiness: Readiness::Exec,
        resources: Resources::default(),
        isolate_pids: false,
        cleanup: crate::model::Cleanup::default(),
        sandbox: Sandbox::Off,
        credentials: Vec::new(),
    };
    let spec = RunSpec {
        id,
        workflow: "builder".into(),
        executor: "local".into(),
        name: None,
        command: vec!["true".into()],
        cwd: "/".into(),
        uid,
        user: uid.to_string(),
        main: None,
        client: None,
        containment: Containment::Cgroupfs,
        limits,
        log: None,
    };
    RunView {
        spec,
        phase,
        health: Health::Healthy,
        reasons: Vec::new(),
        container: None,
        frozen: false,
        created_at: Wall(1),
        started_at: None,
        ready_at: None,
        finished_at: None,
        deadlines: Vec::new(),
        outcome: None,
        receipt: None,
        queued: None,
        usage: Usage::default(),
        heartbeats: Default::default(),
        progress: None,
        escapees: Vec::new(),
        notices: Vec::new(),
    }
}

const LIVE: RunId = id(0xaa, 1);
const OVER: RunId = id(0xab, 2);
const BENS: RunId = id(0xab, 3);
const NONE: RunId = id(0xcc, 9);

/// A live run and a finished one of Ann's, and a finished one of Ben's that begins like hers.
fn services() -> Arc<Services> {
    let published = Arc::new(Published::default());
    published.put(view(LIVE, ANN, Phase::Running), Arc::new(UsageCell::default()));
    let shelf = Shelf(vec![view(OVER, ANN, Phase::Finished), view(BENS, BEN, Phase::Finished)]);
    let about = About { uid: OWNER, ..About::default() };
    let (commands, _) = Commands::new(Arc::new(|| {}));
    let evidence = Arc::new(|_: &RunView, _: Duration| Ok(Evidence::default()));
    Services::new(commands, published, Arc::new(shelf), evidence, about, crate::bus::signals())
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s") })
}

fn kind<T>(answer: Result<T, Error>) -> Option<ErrorKind> {
    answer.err().map(|e| e.kind)
}

#[test]
fn a_run_is_its_owners_and_roots_and_that_of_who_is_granted_the_right() {
    wait(async {
        let services = services();
        let own = [ANN, 0, OWNER].map(|uid| (peer(uid), [None; 2]));
        let (kills, _a, _) = polkit(BEN, &[Right::KillRun]).await;
        let (reads, _b, _) = polkit(BEN, &[Right::ReadAll]).await;
        let (starts, _c, _) = polkit(BEN, &[Right::StartRun, Right::Manage]).await;
        let none = Some(ErrorKind::NoSuchRun);
        let others = [
            (peer(BEN), [none; 2]),
            (starts, [none; 2]),
            // Who may not see it is not told that it is there, whatever else it may do to it.
            (kills, [None, none]),
            (reads, [Some(ErrorKind::NotAuthorized), None]),
        ];
        for (peer, expected) in own.into_iter().chain(others) {
            let request = Request { services: &services, peer: &peer };
            for run in [LIVE, OVER] {
                let found =
                    [kind(request.run(run, Right::KillRun).await), kind(request.run(run, Right::ReadAll).await)];
                assert_eq!(found, expected, "{run} for {}", peer.caller.uid);
            }
            assert_eq!(kind(request.run(NONE, Right::KillRun).await), none);
        }
        let refused = Request { services: &services, peer: &peer(BEN) };
        let (hidden, unknown) = (refused.run(LIVE, Right::KillRun).await, refused.run(NONE, Right::KillRun).await);
        let told = |e: Result<_, Error>, id: RunId| {
            e.map(|_: Arc<RunView>| ()).unwrap_err().message.replace(&id.to_string(), "ID")
        };
        assert_eq!(told(hidden, LIVE), told(unknown, NONE), "nothing tells one from the other");
    });
}

#[test]
fn a_beginning_of_an_id_names_ones_own_run_or_for_who_has_the_right_anybodys() {
    wait(async {
        let services = services();
        let (kills, _a, _) = polkit(BEN, &[Right::KillRun]).await;
        let (other, _b, _) = polkit(1003, &[Right::ReadAll]).await;
        for (peer, text, expected) in [
            (peer(ANN), "run_aa", Ok(LIVE)),
            (peer(ANN), "aa", Ok(LIVE)),
            // That somebody else has one that begins so is nothing to her.
            (peer(ANN), "run_ab", Ok(OVER)),
            (peer(ANN), "run_a", Err(ErrorKind::AmbiguousRunId)),
            (peer(ANN), "run_c", Err(ErrorKind::NoSuchRun)),
            (peer(ANN), "no id", Err(ErrorKind::InvalidRunId)),
            (peer(BEN), "run_ab", Ok(BENS)),
            (peer(BEN), "run_aa", Err(ErrorKind::NoSuchRun)),
            // Not even how many there are that begin so.
            (peer(1004), "run_ab", Err(ErrorKind::NoSuchRun)),
            (kills, "run_aa", Ok(LIVE)),
            (other.clone(), "run_aa", Ok(LIVE)),
            (other, "run_ab", Err(ErrorKind::AmbiguousRunId)),
            (peer(0), "run_aa", Ok(LIVE)),
            (peer(0), "run_ab", Err(ErrorKind::AmbiguousRunId)),
        ] {
            let right = if peer.caller.uid == 1003 { Right::ReadAll } else { Right::KillRun };
            let found = Request { services: &services, peer: &peer }.find(text, right).await;
            assert_eq!(found.map(|v| v.spec.id).map_err(|e| e.kind), expected, "{text} for {}", peer.caller.uid);
        }
        let (root, ann) = (peer(0), peer(ANN));
        let several = Request { services: &services, peer: &root }.find("run_ab", Right::KillRun).await.unwrap_err();
        assert!(several.message.contains(&format!("({OVER}, {BENS})")), "{several}");
        let request = Request { services: &services, peer: &ann };
        assert_eq!(request.find_live("run_aa", Right::KillRun).await, Ok(LIVE));
        assert_eq!(kind(request.find_live("run_ab", Right::KillRun).await), Some(ErrorKind::AlreadyFinished));
    });
}

#[test]
fn statistics_are_of_ones_own_runs_or_for_who_has_the_right_of_anybodys() {
    wait(async {
        let services = services();
        let (reads, _a, _) = polkit(BEN, &[Right::ReadAll]).await;
        let (kills, _b, _) = polkit(BEN, &[Right::KillRun]).await;
        let refused = Err(ErrorKind::NotAuthorized);
        for (peer, all, wanted, expected) in [
            (peer(BEN), false, None, Ok(Some("Some(1002)"))),
            (peer(BEN), false, Some(BEN), Ok(Some("Some(1002)"))),
            (peer(BEN), false, Some(ANN), Ok(None)),
            (peer(BEN), true, None, refused),
            (kills, true, None, refused),
            (reads.clone(), true, None, Ok(Some("None"))),
            (reads.clone(), false, Some(ANN), Ok(Some("Some(1001)"))),
            (reads, false, None, Ok(Some("Some(1002)"))),
            (peer(0), false, None, Ok(Some("None"))),
            (peer(0), false, Some(ANN), Ok(Some("Some(1001)"))),
        ] {
            let mut filter = HashMap::new();
            filter.extend(all.then(|| ("AllUsers".to_owned(), OwnedVariant::from(true))));
            filter.extend(wanted.map(|uid| ("UID".to_owned(), OwnedVariant::from(uid))));
            let request = Request { services: &services, peer: &peer };
            let told = crate::bus::statistics::statistics(&request, &filter).await;
            let whose = told.map(|all| all.into_iter().next().map(|dict| Statistics::try_from(dict).unwrap().workflow));
            let whose = whose.as_ref().map(Option::as_deref).map_err(|e| e.kind);
            assert_eq!(whose, expected, "{} asks for {all} {wanted:?}", peer.caller.uid);
        }
    });
}

#[test]
fn a_run_is_started_as_oneself_or_by_who_may_start_them_as_others() {
    wait(async {
        let services = services();
        let (starts, _a, _) = polkit(BEN, &[Right::StartRun]).await;
        let (kills, _b, _) = polkit(BEN, &[Right::KillRun]).await;
        let refused = Some(ErrorKind::NotAuthorized);
        for (peer, uid, expected) in [
            (peer(BEN), None, None),
            (peer(BEN), Some(BEN), None),
            (peer(BEN), Some(ANN), refused),
            (peer(BEN), Some(0), refused),
            (kills, Some(ANN), refused),
            (starts, Some(ANN), None),
            (peer(0), Some(ANN), None),
        ] {
            let request = LaunchRequest { uid, ..LaunchRequest::default() };
            let answer = Request { services: &services, peer: &peer }.may_launch(&request).await;
            assert_eq!(kind(answer), expected, "{} as {uid:?}", peer.caller.uid);
        }
    });
}

#[test]
fn polkit_is_asked_about_the_client_itself_and_nobody_for_a_password() {
    wait(async {
        let services = services();
        let (peer, polkit, asked) = polkit(BEN, &[Right::Manage]).await;
        let request = Request { services: &services, peer: &peer };
        for right in Right::ALL {
            assert_eq!(request.has(right).await, right == Right::Manage, "{right:?}");
            let (subject, action, flags) = asked.lock().unwrap().pop().unwrap();
            assert_eq!((subject.as_str(), action.as_str(), flags), ("system-bus-name :1.7", right.action(), 0));
        }
        assert_eq!(kind(request.demand(Right::Manage).await), None);
        let refused = request.demand(Right::ReadAll).await.unwrap_err();
        assert!(refused.message.contains("who is granted org.guardian.Guardian1.read-all"), "{refused}");
        // Once it is gone, it grants nothing.
        polkit.close().await.unwrap();
        assert!(!request.has(Right::Manage).await);
    });
}

#[test]
fn calls_of_one_user_take_turns_and_too_many_are_refused_and_nobody_else_is_held_up() {
    wait(async {
        let calls = Calls::default();
        let mut turns = Vec::new();
        for _ in 0..IN_FLIGHT {
            turns.push(calls.enter(ANN).await.unwrap());
        }
        let mut late: Vec<_> = (0..QUEUED).map(|_| Box::pin(calls.enter(ANN))).collect();
        let mut looked = Context::from_waker(Waker::noop());
        assert!(late.iter_mut().all(|call| call.as_mut().poll(&mut looked).is_pending()), "they wait for a turn");
        let refused = calls.enter(ANN).await.map(drop).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::LimitExceeded);
        assert!(refused.message.contains("uid 1001 has 1088 calls open"), "{refused}");
        assert!(matches!(pin!(calls.enter(BEN)).poll(&mut looked), Poll::Ready(Ok(_))));
        turns.pop();
        assert!(matches!(late[0].as_mut().poll(&mut looked), Poll::Ready(Ok(_))), "the next one has its turn");
        let waits: Vec<_> = (0..WAITING).map(|_| calls.enter_wait(ANN).unwrap()).collect();
        assert_eq!(calls.enter_wait(ANN).map(drop).unwrap_err().kind, ErrorKind::LimitExceeded);
        assert!(calls.enter_wait(BEN).is_ok());
        drop(waits);
        assert!(calls.enter_wait(ANN).is_ok());
    });
}
