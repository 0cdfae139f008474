//! A thread for each channel: takes what is next from the outbox, tells it, and keeps what became of it. One that hangs holds
//! up nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{Next, Waiting, backoff, next};
use super::channel::{Failure, alertmanager, deliver};
use super::config::{Channel, Config, Target};
use super::event::Notice;
use super::log;
use super::outbox::Outbox;
use super::serve::{Bell, now};
use crate::model::Wall;

/// The longest that a channel is not looked at.
const LOOK: Duration = Duration::from_secs(60);

/// How long it is waited where the outbox itself cannot be used.
const BROKEN: Duration = Duration::from_secs(5);

/// A channel at work.
pub struct Worker {
    pub config: Arc<Config>,
    pub channel: Channel,
    pub outbox: Outbox,
    pub bell: Arc<Bell>,
    /// Tries of the channel that failed one after the other.
    pub failures: u32,
    /// When what an Alertmanager was told is told again.
    pub again: Instant,
    /// When it is tried again after a failure that was the channel's.
    pub paused: Option<Instant>,
}

impl Worker {
    /// Works until it is told to stop.
    pub fn run(mut self) {
        let mut heard = 0;
        while !self.bell.is_over() {
            let wait = self.step().unwrap_or_else(|e| {
                log::error(&format!("channel {}: the outbox cannot be used: {e:#}", self.channel.name));
                Some(BROKEN)
            });
            if let Some(wait) = wait {
                heard = self.bell.wait(heard, wait);
            }
        }
    }

    /// Does what is next; then how long to wait, if there is nothing.
    fn step(&mut self) -> anyhow::Result<Option<Duration>> {
        if let Some(until) = self.paused {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Ok(Some(left));
            }
            self.paused = None;
        }
        if self.channel.target.is_stateful() && self.again <= Instant::now() {
            self.tell_again()?;
            self.again = Instant::now() + alertmanager::AGAIN;
        }
        let waiting = self.outbox.waiting(&self.channel.name)?;
        match next(&waiting, now()) {
            Next::Send(batch) => self.send(&batch),
            Next::Wait(until) => {
                let until = until.map_or(LOOK, |at| Duration::from_micros(at.0.saturating_sub(now().0)));
                Ok(Some(until.clamp(Duration::from_millis(1), LOOK)))
            }
        }
    }

    fn send(&mut self, batch: &[Waiting]) -> anyhow::Result<Option<Duration>> {
        let mut notices: Vec<(Notice, bool)> = Vec::new();
        for waiting in batch {
            // What a full outbox has let go of in the meantime is not told.
            notices.extend(self.outbox.notice(waiting.id)?);
        }
        let ids: Vec<i64> = batch.iter().map(|w| w.id).collect();
        let (result, on) = self.tell(notices)?;
        match result {
            Ok(()) => {
                self.outbox.delivered(&self.channel.name, &ids, on.as_ref())?;
                if self.failures > 0 {
                    log::info(&format!("channel {} takes messages again", self.channel.name));
                }
                self.failures = 0;
                Ok(None)
            }
            Err(failure) => self.failed(batch, &failure),
        }
    }

    /// Tells these; and what is on afterwards, for one that keeps it.
    #[allow(clippy::type_complexity)]
    fn tell(
        &self,
        notices: Vec<(Notice, bool)>,
    ) -> anyhow::Result<(Result<(), Failure>, Option<std::collections::BTreeMap<String, String>>)> {
        let Target::Alertmanager { url, token } = &self.channel.target else {
            let notices: Vec<Notice> = notices.into_iter().map(|(notice, _)| notice).collect();
            let told = if notices.is_empty() { Ok(()) } else { deliver(&self.channel, &notices) };
            return Ok((told, None));
        };
        let mut on = self.outbox.alerts(&self.channel.name)?;
        let mut posts = Vec::new();
        for (notice, only_ends) in &notices {
            let change = alertmanager::change(on, notice, *only_ends, now());
            on = change.on;
            posts.extend(change.posts);
        }
        Ok((alertmanager::post(&self.channel, url, token.as_ref(), &posts), Some(on)))
    }

    fn failed(&mut self, batch: &[Waiting], failure: &Failure) -> anyhow::Result<Option<Duration>> {
        let (name, at) = (&self.channel.name, now());
        let delivery = &self.config.delivery;
        let too_old = |w: &&Waiting| at.0.saturating_sub(w.since.0) >= usec(delivery.give_up_after);
        let (old, young): (Vec<_>, Vec<_>) = batch.iter().partition(too_old);
        if !old.is_empty() {
            let ids: Vec<i64> = old.iter().map(|w| w.id).collect();
            let runs: Vec<&str> = old.iter().map(|w| if w.run.is_empty() { "guardiand" } else { &*w.run }).collect();
            let after = humantime::format_duration(delivery.give_up_after);
            let (n, about) = (ids.len(), runs.join(", "));
            log::error(&format!(
                "channel {name}: {n} messages were given up after {after}, about {about}: {}",
                failure.what
            ));
            self.outbox.give_up(name, &ids)?;
        }
        let later = |attempts: u32| {
            let own = backoff(attempts, delivery.retry_max, chance());
            own.max(failure.wait.unwrap_or_default().min(delivery.retry_max))
        };
        let again: Vec<(i64, Wall)> =
            young.iter().map(|w| (w.id, Wall(at.0.saturating_add(usec(later(w.attempts + 1)))))).collect();
        self.outbox.failed(name, &again)?;
        // The first tells what is wrong; of the others some, so that the journal shows that it still is.
        if self.failures < 3 || self.failures.is_power_of_two() {
            log::warn(&format!("channel {name}: {}", failure.what));
        }
        self.failures = self.failures.saturating_add(1);
        // What is of the channel would meet the next message too.
        self.paused = failure.of_channel.then(|| Instant::now() + later(self.failures));
        Ok(None)
    }

    /// What an Alertmanager is not told again is over there.
    fn tell_again(&mut self) -> anyhow::Result<()> {
        let Target::Alertmanager { url, token } = &self.channel.target else { return Ok(()) };
        let on = self.outbox.alerts(&self.channel.name)?;
        if let Err(failure) = alertmanager::post(&self.channel, url, token.as_ref(), &alertmanager::again(&on, now())) {
            log::warn(&format!("channel {}: {}", self.channel.name, failure.what));
        }
        Ok(())
    }
}

fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Any number. Without one there is no spread, and nothing else.
fn chance() -> u32 {
    let mut bytes = [0; 4];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}
