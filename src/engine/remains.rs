//! What a run leaves: asked for when it is empty, and waited for no longer than a second, so that the receipt tells it.
//!
//! Locks of git are looked for in the directory of a run that was killed, or that was ended by a signal of others: git takes its
//! locks away itself where it is let end.

use std::time::Duration;

use crate::model::{GitLocks, Now, OpenFiles, Outcome, REMAINS_NAMED, Remains, RunId, Worktree, others};

use super::deadlines::Due;
use super::escape::LastLook;
use super::run::Kill;
use super::{Effect, Engine, Run};

/// How long an answer is waited for. A look takes some milliseconds; a file system that hangs can hold it up for ever.
const WAIT: Duration = Duration::from_secs(1);
/// How far the wall clock may be from where it would be had nobody set it, nor suspended the host.
const CLOCKS_APART: Duration = Duration::from_secs(2);

/// How far the look for locks of git has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum LocksLook {
    /// There was none.
    #[default]
    None,
    /// The end of the run waits for the one with this number.
    Awaited(u64),
    /// This was found.
    Done(GitLocks),
}

impl Engine {
    /// The end of a run that is empty waits for the look at what it leaves, if it can have left anything.
    pub(super) fn look_for_locks(&mut self, id: RunId, now: Now) {
        self.looks += 1;
        let number = self.looks;
        let Some(run) = self.runs.get_mut(&id) else { return };
        if !run.may_have_executed() {
            return;
        }
        run.locks = LocksLook::Awaited(number);
        let look = Effect::LookForLocks(Box::new(run.worktree(number, now)));
        self.deadlines.set(id, Due::Locks, now.mono + WAIT);
        self.effects.push(look);
    }

    pub(super) fn locks_found(&mut self, id: RunId, number: u64, found: GitLocks, now: Now) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.locks == LocksLook::Awaited(number)) else { return };
        run.locks = LocksLook::Done(found);
        self.deadlines.clear(id, Due::Locks);
        self.close(id, now);
    }

    pub(super) fn locks_overdue(&mut self, id: RunId, now: Now) {
        let Some(run) = self.runs.get(&id) else { return };
        let LocksLook::Awaited(number) = run.locks else { return };
        let why = format!("locks of git in {}: to look there took too long", run.spec.cwd);
        self.locks_found(id, number, GitLocks { not_looked_at: vec![why], ..GitLocks::default() }, now);
    }
}

impl Run {
    /// Whether it can have left anything. A client opens the gate itself as soon as it may, and does not tell of it.
    fn may_have_executed(&self) -> bool {
        let may_be_open = self.spec.client.is_some() && self.started.is_some() && !self.opening && !self.kept_closed;
        self.executing || may_be_open
    }

    /// Whether it was ended by a signal that is not ours, and nobody has looked at what that has left.
    pub(super) fn is_cut_short(&self, outcome: &Outcome) -> bool {
        let by_signal = matches!(outcome, Outcome::Signaled { .. } | Outcome::Oom | Outcome::Killed { .. });
        by_signal && self.may_have_executed() && self.locks == LocksLook::None
    }

    /// Whether its end waits for a look at what is left of it.
    pub(super) fn is_looked_at(&self) -> bool {
        self.escapes.last == LastLook::Awaited || matches!(self.locks, LocksLook::Awaited(_))
    }

    pub(super) fn worktree(&self, number: u64, now: Now) -> Worktree {
        let passed = now.mono.since(self.created.mono).as_micros();
        let shown = u128::from(now.wall.0.saturating_sub(self.created.wall.0));
        let is_true = passed.abs_diff(shown) <= CLOCKS_APART.as_micros();
        let limits = &self.spec.limits;
        Worktree {
            run: self.spec.id,
            number,
            dir: self.spec.cwd.clone().into(),
            uid: self.spec.uid,
            since: self.started.filter(|_| is_true),
            until: now.wall,
            removes: limits.cleanup.git_locks && !limits.watch.dry_run,
        }
    }

    /// What it leaves, for the receipt of its kill. None if nothing was executed.
    pub(super) fn remains(&self, kill: &Kill) -> Option<Remains> {
        if !self.may_have_executed() {
            return None;
        }
        let mut remains =
            Remains { others: others(&kill.evidence, self.spec.main.map(|p| p.pid)), ..Remains::default() };
        if let LocksLook::Done(found) = &self.locks {
            remains.git = found.clone();
        }
        match &kill.evidence.open {
            Some(open) => self.add_files(open, &mut remains),
            None if kill.evidence.total > 0 => {
                let why = "what it had open for writing: there was no time to look";
                remains.not_looked_at.push(why.to_owned());
            }
            None => {}
        }
        Some(remains)
    }

    fn add_files(&self, open: &OpenFiles, remains: &mut Remains) {
        let log = self.spec.log.as_ref().map(|log| log.to_string_lossy());
        let is_log = |path: &str| log.as_ref().is_some_and(|log| log == path);
        remains.files = open.files.iter().filter(|file| !is_log(&file.path)).cloned().collect();
        let logs = open.files.len() - remains.files.len();
        remains.files.truncate(REMAINS_NAMED);
        remains.files_total = open.total.saturating_sub(u32::try_from(logs).unwrap_or(0));
        match open.unseen {
            0 => {}
            1 => remains.not_looked_at.push("what 1 process had open for writing".to_owned()),
            n => remains.not_looked_at.push(format!("what {n} processes had open for writing")),
        }
    }

    /// The same of one that was not killed, in sentences: it has no receipt to tell it.
    pub(super) fn locks_left(&self) -> Vec<String> {
        let LocksLook::Done(found) = &self.locks else { return Vec::new() };
        found.locks.iter().map(|lock| format!("git lock: {lock}")).collect()
    }
}
