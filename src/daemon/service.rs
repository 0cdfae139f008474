//! What the instance and the service manager that started it tell each other (sd_notify(3)): ready, reloading, stopping, a
//! sentence for `systemctl status`, and the pings by which systemd knows that *deciding* is alive: they come from the loop
//! that decides. Without a service manager all of it is silent.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::model::Mono;

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct ServiceManager {
    there: bool,
    /// The time between two pings, if it waits for them.
    interval: Option<Duration>,
    next: Option<Mono>,
    said: String,
}

impl ServiceManager {
    /// What the environment says.
    pub fn from_env() -> Self {
        // Two may be late or lost before it takes us for hung.
        let interval = sd_notify::watchdog_enabled().map(|within| within / 3);
        Self { there: std::env::var_os("NOTIFY_SOCKET").is_some(), interval, next: None, said: String::new() }
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

    /// How it is, in a sentence; told when it has changed.
    pub fn status(&mut self, sentence: impl FnOnce() -> String) {
        if !self.there {
            return;
        }
        let sentence = sentence();
        if sentence != self.said {
            tell(&[NotifyState::Status(&sentence)]);
            self.said = sentence;
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

    /// When the next ping is due.
    pub fn next_ping(&self) -> Option<Mono> {
        self.interval.and(self.next)
    }
}

/// Nothing is lost with an error but what a person would have seen: a service manager that wants pings and gets none
/// restarts us.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {e}");
    }
}
