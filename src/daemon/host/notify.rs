//! The notify sockets of all runs: where they are, who keeps them over a restart, and how much is listened to.
//!
//! ```text
//!  NOTIFY_SOCKET=DIR/ID ──▶ is there room? ──▶ is the sender of the run? ──▶ not too many? ──▶ the engine
//!                            flooded ◀─┘ no          foreign ◀─┘ no        flooded ◀─┘ no
//! ```
//!
//! Every datagram is taken out of its socket, whatever becomes of it, so that no sender is ever held up.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sd_notify::NotifyState;

use super::{Holder, Host};
use crate::kernel::notify::{Datagram, MESSAGE_MAX, NotifySocket};
use crate::kernel::poll::{Poller, Registration};
use crate::kernel::{Heard, KernelError, clock, process};
use crate::model::{Limits, Mono, Notification, Notify, RunId};

/// How many messages of one run are taken in within a second, and of all runs together.
const PER_RUN: u32 = 50;
const OF_ALL: u32 = 2000;
/// How many datagrams of a run are read before others have their turn.
const BATCH: usize = 64;
/// How old a run is when the service manager is asked to keep its socket: most of those that are over sooner need no such
/// service, which costs it more than their launch costs us.
pub(super) const STORED_AFTER: Duration = Duration::from_secs(1);
/// The longest path that a socket address takes: 108 bytes with the NUL.
const PATH_MAX: usize = 107;

/// Where the sockets are, and who keeps them while no instance runs.
#[derive(Debug, Clone)]
pub struct NotifyOptions {
    /// The directory, which is this instance's alone.
    pub dir: PathBuf,
    /// Whether the service manager that started this instance keeps descriptors for the next one.
    pub stored: bool,
}

/// What may still be taken in within the present second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    most: u32,
    taken: u32,
    begun: Mono,
}

impl Rate {
    fn new(most: u32) -> Self {
        Self { most, taken: 0, begun: Mono(0) }
    }

    /// Takes one more, if there is room for it.
    fn take(&mut self, now: Mono) -> bool {
        if now.since(self.begun) >= Duration::from_secs(1) {
            (self.begun, self.taken) = (now, 0);
        }
        let room = self.taken < self.most;
        self.taken += u32::from(room);
        room
    }
}

/// A socket that is listened to.
#[derive(Debug)]
struct Voice {
    socket: NotifySocket,
    rate: Rate,
    opened: Mono,
    /// The service manager keeps it.
    stored: bool,
    _watch: Registration,
}

/// All sockets.
#[derive(Debug)]
pub(super) struct Voices {
    options: NotifyOptions,
    /// Left open by an earlier instance, and not asked for yet.
    kept: HashMap<RunId, OwnedFd>,
    open: HashMap<RunId, Voice>,
    /// Why there is none.
    missing: HashMap<RunId, String>,
    of_all: Rate,
}

impl Voices {
    pub(super) fn new(options: NotifyOptions) -> Self {
        let (kept, open, missing) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { options, kept, open, missing, of_all: Rate::new(OF_ALL) }
    }

    pub(super) fn keep(&mut self, sockets: Vec<(RunId, OwnedFd)>) {
        self.kept.extend(sockets);
    }

    fn path(&self, run: RunId) -> PathBuf {
        self.options.dir.join(run.to_string())
    }

    /// What a run's command is told, if there is a socket.
    pub(super) fn told(&self, run: RunId, limits: &Limits) -> Option<Notify> {
        self.open.contains_key(&run).then(|| Notify { socket: self.path(run), window: limits.heartbeat_window() })
    }

    /// Why a run has no socket.
    pub(super) fn notice(&mut self, run: RunId) -> Option<String> {
        let why = self.missing.remove(&run)?;
        Some(format!("it has no NOTIFY_SOCKET, so it can send no heartbeats: {why}"))
    }

    pub(super) fn listen(&mut self, run: RunId, user: u32, poller: &Poller) {
        if self.open.contains_key(&run) {
            return;
        }
        match self.opened(run, user, poller) {
            Ok(voice) => drop(self.open.insert(run, voice)),
            Err(e) => drop(self.missing.insert(run, e.to_string())),
        }
    }

    fn opened(&mut self, run: RunId, user: u32, poller: &Poller) -> Result<Voice, KernelError> {
        let path = self.path(run);
        // Nobody reaches a socket any more whose file is gone.
        let kept = self.kept.remove(&run).filter(|_| path.exists());
        let (socket, stored) = match kept {
            Some(kept) => (NotifySocket::over(kept)?, true),
            None => (self.bound(&path, user)?, false),
        };
        let watch = poller.watch_notify(run, socket.fd().clone())?;
        Ok(Voice { socket, rate: Rate::new(PER_RUN), opened: clock::now().mono, stored, _watch: watch })
    }

    fn bound(&self, path: &Path, user: u32) -> Result<NotifySocket, KernelError> {
        if path.as_os_str().len() > PATH_MAX {
            let source = std::io::Error::other(format!(
                "a socket's path has at most {PATH_MAX} bytes: use a state directory with a shorter path"
            ));
            return Err(KernelError::Io { op: "bind", what: path.display().to_string(), source });
        }
        NotifySocket::bind(path, user)
    }

    /// Has the service manager keep the sockets of runs of this age for the next instance, so that nothing is lost that is
    /// said in between. If it does not, that one makes a socket at the same path.
    pub(super) fn store(&mut self, age: Duration) {
        let now = clock::now().mono;
        for (run, voice) in self.open.iter_mut().filter(|(_, voice)| !voice.stored && now.since(voice.opened) >= age) {
            voice.stored = true;
            if self.options.stored {
                let said = [NotifyState::FdStore, NotifyState::FdName(&run.to_string())];
                log(sd_notify::notify_with_fds(&said, &[voice.socket.fd().as_fd()]));
            }
        }
    }

    fn let_go(&self, run: RunId) {
        if self.options.stored {
            log(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&run.to_string())]));
        }
    }

    /// Closes and removes the socket of a run.
    pub(super) fn close(&mut self, run: RunId) {
        self.missing.remove(&run);
        if let Some(voice) = self.open.remove(&run) {
            if voice.stored {
                self.let_go(run);
            }
            // ENOENT: the directory was removed, as systemd does when a service is stopped.
            let _ = fs::remove_file(self.path(run));
        }
    }

    /// Removes what is left of runs that are over.
    pub(super) fn tidy(&mut self) {
        for run in std::mem::take(&mut self.kept).into_keys() {
            self.let_go(run);
        }
        for entry in fs::read_dir(&self.options.dir).into_iter().flatten().flatten() {
            let run = entry.file_name().to_str().and_then(|name| name.parse::<RunId>().ok());
            if run.is_some_and(|run| !self.open.contains_key(&run)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(super) fn hear(&mut self, run: RunId, is_member: impl Fn(u32) -> bool) -> Heard {
        let mut heard = Heard::default();
        let Some(voice) = self.open.get_mut(&run) else { return heard };
        let mut buffer = [0; MESSAGE_MAX];
        for _ in 0..BATCH {
            // An error of a datagram socket is of one message, which is gone with it.
            let Ok(Some(Datagram { length, sender, descriptors })) = voice.socket.receive(&mut buffer) else { break };
            heard.barriers.extend(descriptors);
            let now = clock::now().mono;
            let Some(message) = length.and_then(|length| buffer.get(..length)) else {
                heard.refused.too_long += 1;
                continue;
            };
            if !self.of_all.take(now) {
                heard.refused.flooded += 1;
            } else if !sender.is_some_and(|sender| sender.passes(&is_member)) {
                heard.refused.foreign += 1;
            } else if !voice.rate.take(now) {
                heard.refused.flooded += 1;
            } else {
                heard.messages.push(Notification::parse(message));
            }
        }
        heard
    }
}

impl Host {
    /// Whether a process is of the run that this holds.
    pub(super) fn is_member(holder: &Holder<'_>, pid: u32) -> bool {
        match holder {
            Holder::Cgroup(cgroup) => process::cgroup(pid).is_ok_and(|name| name.starts_with(cgroup.name())),
            Holder::Subtree(subtree) => subtree.has_member(pid),
        }
    }

    /// What the command of a run is told of its notify socket.
    pub fn notify(&self, run: RunId, limits: &Limits) -> Option<Notify> {
        self.voices.told(run, limits)
    }

    /// Has the service manager keep all notify sockets: this instance is about to stop.
    pub fn keep_notify_sockets(&mut self) {
        self.voices.store(Duration::ZERO);
    }
}

/// What cannot be stored is made anew by the next instance.
fn log(told: std::io::Result<()>) {
    if let Err(e) = told {
        tracing::debug!("the service manager cannot keep a notify socket: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_second_so_many_are_taken_and_no_more() {
        let mut rate = Rate::new(3);
        let at = |ms: u64| Mono(5_000_000_000 + ms * 1_000_000);
        let taken = |rate: &mut Rate, ms| (0..5).filter(|_| rate.take(at(ms))).count();
        assert_eq!([taken(&mut rate, 0), taken(&mut rate, 999), taken(&mut rate, 1000)], [3, 0, 3]);
    }
}
