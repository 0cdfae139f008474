//! The threads that look for what runs leave in their directories. A directory can be on a file system that hangs, or be made
//! by its user to take long: so each user has a thread of their own, and whoever makes it hang does that to themselves.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::seeker::Answers;
use crate::failpoint;
use crate::kernel::{Finding, git};
use crate::model::Worktree;

/// How long a thread without errands stays.
const STAYS: Duration = Duration::from_secs(60);
/// What a look needs is on the heap.
const STACK_BYTES: usize = 256 << 10;

/// A look, and when it was asked for.
type Errand = (Worktree, Instant);

/// The threads, by user.
#[derive(Debug)]
pub(super) struct Looker {
    answers: Answers,
    errands: BTreeMap<u32, mpsc::Sender<Errand>>,
}

impl Looker {
    pub(super) fn new(answers: Answers) -> Self {
        Self { answers, errands: BTreeMap::new() }
    }

    /// Without a thread nobody answers, which whoever asked gives up to wait for; the next errand tries again.
    pub(super) fn look(&mut self, of: Worktree) {
        let uid = of.uid;
        let errand = (of, Instant::now());
        let errand = match self.errands.get(&uid) {
            Some(errands) => match errands.send(errand) {
                Ok(()) => return,
                // It has had nothing to do for long, and has ended.
                Err(mpsc::SendError(errand)) => errand,
            },
            None => errand,
        };
        // Those of others may have ended as well: what is kept of them is not much, but there can be many users.
        self.errands.remove(&uid);
        if let Some(errands) = self.start()
            && errands.send(errand).is_ok()
        {
            self.errands.insert(uid, errands);
        }
    }

    fn start(&self) -> Option<mpsc::Sender<Errand>> {
        let (sender, errands) = mpsc::channel::<Errand>();
        let answers = self.answers.clone();
        let work = move || {
            while let Ok((of, asked)) = errands.recv_timeout(STAYS) {
                let _ = failpoint::hit("locks.look");
                let found = git::look(&of, asked);
                answers.give([Finding::Locks { run: of.run, number: of.number, found }]);
            }
        };
        std::thread::Builder::new().name("locks".to_owned()).stack_size(STACK_BYTES).spawn(work).ok().map(|_| sender)
    }
}
