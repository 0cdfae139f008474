//! Signals, a moment's worth at a time: who waits for the answer to a call has it before the signals of the same moment, and
//! what changes several times in it is told once.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::broadcast::{self, Receiver};

use super::{Services, Signal};
use crate::model::RunId;

/// The signals from now on.
pub(super) struct Moments {
    signals: Receiver<Signal>,
    moment: Duration,
    /// Those of the moment that has begun: kept here, so that who stops waiting for its end loses none.
    begun: Vec<Signal>,
}

impl Moments {
    /// With moments of this length.
    pub(super) fn new(services: &Services, moment: Duration) -> Self {
        Self { signals: services.signals.subscribe(), moment, begun: Vec::new() }
    }

    /// The signals of the next moment, in order; none once there can be no more. A receiver that is late misses some.
    pub(super) async fn next(&mut self) -> Option<Vec<Signal>> {
        while self.begun.is_empty() {
            match self.signals.recv().await {
                Ok(signal) => self.begun.push(signal),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
        tokio::time::sleep(self.moment).await;
        loop {
            match self.signals.try_recv() {
                Ok(signal) => self.begun.push(signal),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return Some(last_of_each(std::mem::take(&mut self.begun))),
            }
        }
    }
}

/// Without what a later one says anew: of the changes of a run the last, of the numbers the greatest.
fn last_of_each(signals: Vec<Signal>) -> Vec<Signal> {
    let mut last: HashMap<(u8, Option<RunId>), usize> = HashMap::new();
    for (at, signal) in signals.iter().enumerate() {
        last.insert(kind(signal), at);
    }
    let kept = signals.into_iter().enumerate().filter(|(at, signal)| last.get(&kind(signal)) == Some(at));
    kept.map(|(_, signal)| signal).collect()
}

fn kind(signal: &Signal) -> (u8, Option<RunId>) {
    match signal {
        Signal::EventAppended(_) => (0, None),
        Signal::InstanceChanged => (1, None),
        Signal::RunChanged(view) => (2, Some(view.spec.id)),
        Signal::RunFinished(view) => (3, Some(view.spec.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_kind_the_last_is_told_in_order() {
        let signals =
            vec![Signal::EventAppended(1), Signal::InstanceChanged, Signal::EventAppended(2), Signal::EventAppended(3)];
        let told: Vec<String> = last_of_each(signals).iter().map(|s| format!("{s:?}")).collect();
        assert_eq!(told, ["InstanceChanged", "EventAppended(3)"]);
    }
}
