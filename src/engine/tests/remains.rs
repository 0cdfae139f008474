//! When a run's end waits for a look at what it leaves, and what of that its receipt tells.

use super::*;
use crate::model::{Cleanup, GitLock, LockFate, OpenFile, OpenFiles, Receipt, Worktree};

impl Steps {
    /// A step, and the look at locks that it asks for, unanswered.
    fn raw(&mut self, event: Event) -> Option<Worktree> {
        let effects = self.engine.step(event, self.now);
        effects.into_iter().find_map(|e| if let Effect::LookForLocks(of) = e { Some(*of) } else { None })
    }

    /// A run that was killed, with this seen before, and is empty. Gives the look at what it leaves.
    fn empty_after_a_kill(spec: RunSpec, evidence: Evidence) -> (Self, Worktree) {
        let mut b = Self::live(spec);
        b.kill(KillMode::Force);
        b.step(Event::Recorded(Ticket::Kill(ONE)));
        b.step(Event::Inspected { run: ONE, evidence });
        b.step(Event::Killed { run: ONE, processes: 1, trouble: None });
        b.step(Event::MainExited { run: ONE, status: Some(ExitStatus::Signaled(9)), oom: false });
        let of = b.raw(Event::Populated { run: ONE, populated: false }).expect("a look");
        assert_eq!(outcome(&b), None, "its end waits for the look");
        (b, of)
    }

    fn receipt(&self) -> Receipt {
        self.engine.view(ONE, self.now).unwrap().receipt.expect("a receipt")
    }
}

fn locks() -> GitLocks {
    let lock = GitLock { path: "/w/.git/index.lock".into(), fate: LockFate::Stale };
    GitLocks { locks: vec![lock], total: 1, not_looked_at: Vec::new() }
}

#[test]
fn the_end_of_a_killed_run_waits_for_the_look_and_the_receipt_tells_what_was_found() {
    let (mut b, of) = Steps::empty_after_a_kill(spec(ONE), Evidence::default());
    assert_eq!((of.uid, of.dir.to_str(), of.removes), (7, Some("/"), false));
    b.step(Event::LocksFound { run: ONE, number: of.number + 1, found: GitLocks::default() });
    assert_eq!(outcome(&b), None, "that is the answer to another question");
    b.step(Event::LocksFound { run: ONE, number: of.number, found: locks() });
    assert!(outcome(&b).is_some());
    assert_eq!(b.receipt().remains.unwrap().git, locks());
}

#[test]
fn a_look_that_is_not_answered_in_a_second_is_told_as_such() {
    let (mut b, of) = Steps::empty_after_a_kill(spec(ONE), Evidence::default());
    b.pass(SECOND - MS);
    assert_eq!(outcome(&b), None);
    b.pass(MS);
    assert!(outcome(&b).is_some());
    let git = b.receipt().remains.unwrap().git;
    assert_eq!(git.not_looked_at, ["locks of git in /: to look there took too long"]);
    b.step(Event::LocksFound { run: ONE, number: of.number, found: locks() });
    assert_eq!(b.receipt().remains.unwrap().git, git, "what is on record is on record");
}

#[test]
fn locks_are_removed_only_where_that_is_asked_for_and_rules_may_act() {
    for (git_locks, dry_run, removes) in [(true, false, true), (true, true, false), (false, false, false)] {
        let plain = spec(ONE);
        let watch = Watch { dry_run, ..plain.limits.watch };
        let limits = Limits { watch, cleanup: Cleanup { git_locks }, ..plain.limits.clone() };
        let (_, of) = Steps::empty_after_a_kill(RunSpec { limits, ..plain }, Evidence::default());
        assert_eq!(of.removes, removes, "{git_locks} {dry_run}");
    }
}

#[test]
fn the_times_of_files_count_for_nothing_once_the_clock_was_set() {
    let mut b = Steps::live(spec(ONE));
    let started = b.run().started;
    b.pass(60 * SECOND);
    let of = |b: &Steps| b.run().worktree(1, b.now);
    assert_eq!((of(&b).since, of(&b).until), (started, b.now.wall));
    for set in [-3_600_000_000_i64, -3_000_000, 3_000_000] {
        let wall = Wall(b.now.wall.0.checked_add_signed(set).unwrap());
        assert_eq!(b.run().worktree(1, Now { wall, ..b.now }).since, None, "{set}");
    }
}

#[test]
fn what_was_open_for_writing_is_named_without_the_log_and_no_more_than_a_person_reads() {
    let file = |n: usize| OpenFile { path: format!("/w/{n}"), size_bytes: Some(1), pid: 9, name: "sh".into() };
    // Two of its processes write to the log.
    let files: Vec<OpenFile> = (0..20).chain([3]).map(file).collect();
    let open = Some(OpenFiles { files: files.clone(), total: 50, unseen: 2 });
    let evidence = Evidence { open, total: 1, ..Evidence::default() };
    let (mut b, of) = Steps::empty_after_a_kill(RunSpec { log: Some("/w/3".into()), ..spec(ONE) }, evidence);
    b.step(Event::LocksFound { run: ONE, number: of.number, found: GitLocks::default() });
    let remains = b.receipt().remains.unwrap();
    assert_eq!((remains.files.len(), remains.files_total), (16, 48));
    assert_eq!((&remains.files[2], &remains.files[3]), (&files[2], &files[4]));
    assert_eq!(remains.not_looked_at, ["what 2 processes had open for writing"]);
}

#[test]
fn that_there_was_no_time_to_look_is_not_told_as_if_nothing_was_open() {
    let (mut b, of) = Steps::empty_after_a_kill(spec(ONE), Evidence { total: 1, ..Evidence::default() });
    b.step(Event::LocksFound { run: ONE, number: of.number, found: GitLocks::default() });
    let remains = b.receipt().remains.unwrap();
    assert_eq!(remains.not_looked_at, ["what it had open for writing: there was no time to look"]);
}

#[test]
fn one_that_was_not_killed_is_looked_at_if_a_signal_has_ended_it_and_told_of_in_a_notice() {
    for (status, looked_at) in [(ExitStatus::Signaled(9), true), (ExitStatus::Exited(1), false)] {
        let mut b = Steps::live(spec(ONE));
        b.step(Event::MainExited { run: ONE, status: Some(status), oom: false });
        let of = b.raw(Event::Populated { run: ONE, populated: false });
        assert_eq!((of.is_some(), outcome(&b).is_none()), (looked_at, looked_at), "{status:?}");
        if let Some(of) = of {
            b.step(Event::LocksFound { run: ONE, number: of.number, found: locks() });
            let view = b.engine.view(ONE, b.now).unwrap();
            let told = "git lock: /w/.git/index.lock: nobody holds it: remove it before git is used again";
            assert_eq!((view.notices, view.receipt), (vec![told.to_owned()], None));
        }
    }
}

#[test]
fn what_a_client_may_have_executed_is_looked_at_as_if_it_had() {
    let client = Some(ProcessId { pid: 70, start_ticks: 7 });
    let (mut b, of) = Steps::empty_after_a_kill(RunSpec { client, ..spec(ONE) }, Evidence::default());
    b.step(Event::LocksFound { run: ONE, number: of.number, found: locks() });
    assert_eq!(b.receipt().remains.unwrap().git, locks());
}

#[test]
fn of_a_run_that_executed_nothing_nothing_is_left() {
    for client in [None, Some(ProcessId { pid: 70, start_ticks: 7 })] {
        executed_nothing(RunSpec { client, ..spec(ONE) });
    }
}

fn executed_nothing(spec: RunSpec) {
    let mut b = Steps::new(9);
    b.contained(spec);
    b.kill(KillMode::Force);
    b.step(Event::Recorded(Ticket::Start(ONE)));
    b.step(Event::Recorded(Ticket::Kill(ONE)));
    b.step(Event::Killed { run: ONE, processes: 1, trouble: None });
    b.step(Event::MainExited { run: ONE, status: Some(ExitStatus::Signaled(9)), oom: false });
    assert_eq!(b.raw(Event::Populated { run: ONE, populated: false }), None);
    assert_eq!(b.receipt().remains, None);
}
