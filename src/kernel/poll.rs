//! The one place where the engine sleeps: an epoll over pidfds, `cgroup.events` files and the command eventfd.
//!
//! Owns the registrations. Each has a key that is never used again, and takes itself out of the epoll when dropped:
//! closing the descriptor alone would not do, since a child that was just forked holds a copy of it until it executes,
//! and the kernel keeps an entry for as long as anyone does. An event whose key is not known any more is stale and is
//! passed over.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::{Errno, read, write};

use super::{KernelError, Notice, Role};
use crate::model::RunId;

/// The key of the command eventfd; registrations count up from the next one.
const WAKER_KEY: u64 = 0;

/// Events taken at once; the rest comes with the next call.
const BATCH: usize = 64;

/// The longest sleep. Nothing is lost by waking once a day, and the milliseconds of it fit `epoll_pwait`, which every
/// kernel has; `epoll_pwait2`, needed for longer ones, came with Linux 5.11.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default)]
struct Registry {
    last_key: u64,
    notices: HashMap<u64, Notice>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    registry: Mutex<Registry>,
}

impl Shared {
    /// A panic elsewhere cannot leave the map half changed: each change is one call.
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The epoll and its registrations.
#[derive(Debug)]
pub struct Poller {
    shared: Arc<Shared>,
    command: Arc<OwnedFd>,
}

/// Wakes the poller from another thread: a command is waiting.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Makes the current or the next wait return with [`Notice::Woken`]. Many calls may give one notice.
    pub fn wake(&self) {
        // EAGAIN says that the counter is full, so the poller is about to wake anyway; nothing else can happen to an
        // eventfd that both sides hold open.
        let _ = write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// A watched descriptor. Dropped, it is watched no longer.
#[derive(Debug)]
pub struct Registration {
    shared: Arc<Shared>,
    fd: Arc<OwnedFd>,
    key: u64,
}

impl Registration {
    /// The descriptor that is watched.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.registry().notices.remove(&self.key);
        // ENOENT and EBADF would say that it is out already.
        let _ = epoll::delete(&self.shared.epoll, &*self.fd);
    }
}

impl Poller {
    /// An epoll with nothing but the command eventfd.
    pub fn new() -> Result<(Self, Waker), KernelError> {
        let failed = |op| move |e| KernelError::from_errno(op, "the poller", e);
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed("create an epoll for"))?;
        let command =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed("create an eventfd for"))?;
        epoll::add(&epoll, &command, EventData::new_u64(WAKER_KEY), EventFlags::IN)
            .map_err(failed("watch the eventfd of"))?;
        let command = Arc::new(command);
        let shared = Arc::new(Shared { epoll, registry: Mutex::default() });
        let waker = Waker(command.clone());
        Ok((Self { shared, command }, waker))
    }

    /// Watches a pidfd. Told once: a pidfd stays readable after the exit, and would wake us for ever.
    pub fn watch_process(&self, run: RunId, role: Role, pidfd: Arc<OwnedFd>) -> Result<Registration, KernelError> {
        self.watch(pidfd, EventFlags::IN | EventFlags::ONESHOT, Notice::ProcessExited(run, role))
    }

    /// Watches the pidfd of a shim, in the same way: when it is readable, the run may be empty.
    pub fn watch_shim(&self, run: RunId, pidfd: Arc<OwnedFd>) -> Result<Registration, KernelError> {
        self.watch(pidfd, EventFlags::IN | EventFlags::ONESHOT, Notice::ContainerChanged(run))
    }

    /// Watches a run's notify socket. Level triggered: told until all of it is taken in.
    pub fn watch_notify(&self, run: RunId, socket: Arc<OwnedFd>) -> Result<Registration, KernelError> {
        self.watch(socket, EventFlags::IN, Notice::Spoke(run))
    }

    /// Watches an open `cgroup.events`. A file that was not read since the last change is ready, so a fresh one tells
    /// at once: whoever watches a cgroup that is already empty is not left waiting. Edge triggered, so that a change
    /// is told once, whether the file is read or not.
    pub fn watch_cgroup(&self, run: RunId, events: Arc<OwnedFd>) -> Result<Registration, KernelError> {
        self.watch(events, EventFlags::PRI | EventFlags::ET, Notice::ContainerChanged(run))
    }

    fn watch(&self, fd: Arc<OwnedFd>, flags: EventFlags, notice: Notice) -> Result<Registration, KernelError> {
        let key = {
            let mut registry = self.shared.registry();
            registry.last_key += 1;
            let key = registry.last_key;
            registry.notices.insert(key, notice);
            key
        };
        // The registration is made only now: its drop takes the descriptor out of the epoll, which after a failed
        // attempt to watch it twice would end the first watch.
        match epoll::add(&self.shared.epoll, fd.as_fd(), EventData::new_u64(key), flags) {
            Ok(()) => Ok(Registration { shared: self.shared.clone(), fd, key }),
            Err(e) => {
                self.shared.registry().notices.remove(&key);
                Err(KernelError::from_errno("watch", format!("{notice:?}"), e))
            }
        }
    }

    /// Sleeps until something happens or the time is over, and says what happened. A signal makes it return early,
    /// with nothing. On the older `epoll_pwait` the time is rounded up to a millisecond: never too early.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Notice>, KernelError> {
        let timeout = timeout.unwrap_or(LONGEST).min(LONGEST);
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        // On the stack, since an event has room for a pointer and would keep the poller from moving between threads.
        let mut room = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let events = match epoll::wait(&self.shared.epoll, &mut room, Some(&timeout)) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(KernelError::from_errno("wait with", "the poller", e)),
        };
        let registry = self.shared.registry();
        let notices = events.iter().filter_map(|event| match event.data.u64() {
            WAKER_KEY => {
                // Reading sets the counter to zero. EAGAIN says that somebody else has done so.
                let _ = read(&*self.command, &mut [0u8; 8]);
                Some(Notice::Woken)
            }
            key => registry.notices.get(&key).copied(),
        });
        Ok(notices.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::process;

    const SOON: Option<Duration> = Some(Duration::from_secs(10));
    const NOW: Option<Duration> = Some(Duration::ZERO);
    const RUN: RunId = RunId::from_bytes([1; 6]);

    fn sleeper() -> std::process::Child {
        std::process::Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn many_wakes_are_one_notice() {
        let (mut poller, waker) = Poller::new().unwrap();
        assert_eq!(poller.wait(NOW).unwrap(), []);
        let from_thread = waker.clone();
        std::thread::spawn(move || (0..100).for_each(|_| from_thread.wake())).join().unwrap();
        waker.wake();
        assert_eq!(poller.wait(SOON).unwrap(), [Notice::Woken]);
        assert_eq!(poller.wait(NOW).unwrap(), []);
    }

    #[test]
    fn the_time_given_is_slept_and_not_less() {
        let (mut poller, _waker) = Poller::new().unwrap();
        let started = std::time::Instant::now();
        assert_eq!(poller.wait(Some(Duration::from_micros(2500))).unwrap(), []);
        assert!(started.elapsed() >= Duration::from_micros(2500));
    }

    #[test]
    fn an_exit_is_told_once() {
        let (mut poller, _waker) = Poller::new().unwrap();
        let mut child = sleeper();
        let fd = Arc::new(process::open(child.id()).unwrap());
        let _watch = poller.watch_process(RUN, Role::Main, fd).unwrap();
        assert_eq!(poller.wait(NOW).unwrap(), []);
        child.kill().unwrap();
        assert_eq!(poller.wait(SOON).unwrap(), [Notice::ProcessExited(RUN, Role::Main)]);
        assert_eq!(poller.wait(NOW).unwrap(), []);
        child.wait().unwrap();
    }

    #[test]
    fn what_is_not_watched_any_more_is_not_told_even_while_a_copy_is_open() {
        let (mut poller, _waker) = Poller::new().unwrap();
        let mut child = sleeper();
        let fd = Arc::new(process::open(child.id()).unwrap());
        let copy = fd.try_clone().unwrap();
        drop(poller.watch_process(RUN, Role::Client, fd).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process::has_exited(&copy));
        assert_eq!(poller.wait(NOW).unwrap(), []);
        assert!(poller.shared.registry().notices.is_empty());
    }

    #[test]
    fn the_same_descriptor_cannot_be_watched_twice_and_the_first_watch_stays() {
        let (mut poller, _waker) = Poller::new().unwrap();
        let mut child = sleeper();
        let fd = Arc::new(process::open(child.id()).unwrap());
        let _first = poller.watch_process(RUN, Role::Main, fd.clone()).unwrap();
        assert!(poller.watch_process(RUN, Role::Client, fd).is_err());
        assert_eq!(poller.shared.registry().notices.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(poller.wait(SOON).unwrap(), [Notice::ProcessExited(RUN, Role::Main)]);
    }
}
