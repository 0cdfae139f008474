//! What the instance and the service manager that started it tell each other (sd_notify(3)): ready, reloading, stopping, a
//! sentence for `systemctl status`, and the pings by which systemd knows that *deciding* is alive: they come from the loop
//! that decides. Without a service manager all of it is silent.

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;

use super::published::InstanceView;
use crate::model::{Containment, Mono, RunId};

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct ServiceManager {
    there: bool,
    /// The time between two pings, if it waits for them.
    interval: Option<Duration>,
    next: Option<Mono>,
    said: String,
    /// When the next sentence is told.
    tells: Option<Mono>,
}

/// How old a sentence may be that a person reads. Told of at once, each launch would be followed by a message to systemd
/// just when systemd is to start its unit.
const TOLD_AFTER: Duration = Duration::from_secs(1);

impl ServiceManager {
    /// What the environment says.
    pub fn from_env() -> Self {
        // Two may be late or lost before it takes us for hung.
        let interval = sd_notify::watchdog_enabled().map(|within| within / 3);
        Self {
            there: std::env::var_os("NOTIFY_SOCKET").is_some(),
            interval,
            next: None,
            said: String::new(),
            tells: None,
        }
    }

    /// The instance serves.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// It reads its configuration anew, until it is ready again.
    pub fn reloading(&self) {
        // From systemd 253 on, for units of `Type=notify-reload`; others pass over the time.
        let at = NotifyState::monotonic_usec_now().ok();
        tell(&std::iter::once(NotifyState::Reloading).chain(at).collect::<Vec<_>>());
    }

    /// It is about to exit.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// How it is, in a sentence; told a moment after it has changed.
    pub fn status(&mut self, now: Mono, sentence: impl FnOnce() -> String) {
        if !self.there {
            return;
        }
        let sentence = sentence();
        if sentence == self.said {
            self.tells = None;
        } else if self.said.is_empty() || self.tells.is_some_and(|at| at <= now) {
            tell(&[NotifyState::Status(&sentence)]);
            self.said = sentence;
            self.tells = None;
        } else {
            self.tells.get_or_insert(now + TOLD_AFTER);
        }
    }

    /// Pings when it is time to.
    pub fn ping(&mut self, now: Mono) {
        let Some(interval) = self.interval else { return };
        if self.next.is_none_or(|at| at <= now) {
            tell(&[NotifyState::Watchdog]);
            self.next = Some(now + interval);
        }
    }

    /// When something is to be told next.
    pub fn next(&self) -> Option<Mono> {
        [self.interval.and(self.next), self.tells].into_iter().flatten().min()
    }
}

/// What `systemctl status` shows.
pub fn sentence(view: &InstanceView, live: usize, backend: Containment) -> String {
    let runs = match live {
        0 => "no run is live".to_owned(),
        1 => "1 run is live".to_owned(),
        n => format!("{n} runs are live"),
    };
    let since = format!("{} launched and {} killed since the start", view.runs_total, view.kills_total);
    match view.reasons.first() {
        Some(reason) => format!("{reason}; {runs}, {since}"),
        None => format!("Guarding: {runs}, {since} (backend {backend})"),
    }
}

/// Whether the service manager can be asked to keep descriptors for the next instance.
pub fn keeps_descriptors() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The notify sockets that it has kept since the last instance, by the names that they were given: the ids of their runs.
/// To be asked for once.
pub fn kept_sockets() -> Vec<(RunId, OwnedFd)> {
    let Ok(kept) = sd_notify::listen_fds_with_names() else { return Vec::new() };
    let own = |(fd, name): (i32, String)| {
        // SAFETY: the service manager has opened it for this process under this number; nothing else takes it over.
        #[allow(unsafe_code)]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // What has another name is closed.
        Some((name.parse().ok()?, fd))
    };
    kept.filter_map(own).collect()
}

/// Nothing is lost with an error but what a person would have seen: a service manager that wants pings and gets none
/// restarts us.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {e}");
    }
}
