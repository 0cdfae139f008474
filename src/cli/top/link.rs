//! The instance, as the view asks it: in tasks of their own, whose answers are events. One that goes away is looked for anew.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};

use super::app::{Event, Told};
use crate::bus::client::{Client, RunFilter};
use crate::cli::now;
use crate::cli::output::{clip, escape};
use crate::cli::session::Session;
use crate::model::{Error, ErrorKind, KillMode, Phase, Rule, RunId, RunView, Wall, human_duration};

/// An answer that takes longer is told to be missing, and is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is asked what the selected run waits for: the instance looks at all its processes then.
const EXPLAIN: Duration = Duration::from_secs(5);
/// A run that is passed over on the way to another is not looked at.
const PASSING: Duration = Duration::from_millis(100);
/// What a run used is shown for so long: a reading each 5 s for each column of a wide screen.
const PAST_USEC: u64 = 15 * 60 * 1_000_000;
/// The longest reason in the status line.
const REASON: usize = 60;

/// How a run ended, by what matters most: a narrow screen cuts the rest. `guardian show` tells all of it.
fn ended(view: &RunView) -> Told {
    let id = view.spec.id;
    let outcome = view.outcome.as_ref().map(|o| clip(&escape(&o.to_string()), REASON)).unwrap_or_default();
    let Some(receipt) = &view.receipt else { return Told::good(format!("{id}: {outcome}")) };
    let survivors = if receipt.survivors == 1 { "survivor" } else { "survivors" };
    let proof = if receipt.proved { "" } else { " found" };
    let time = human_duration(Duration::from_micros(receipt.duration_usec));
    let text = format!("{id}: {} {survivors}{proof} after {time}, {outcome}", receipt.survivors);
    if receipt.survivors == 0 { Told::good(text) } else { Told::bad(text) }
}

/// The way to the instance.
pub struct Link {
    session: Session,
    /// The connection that answered last.
    client: RefCell<Option<Client>>,
    filter: RefCell<RunFilter>,
    delay: Duration,
    begun: Instant,
    events: mpsc::Sender<Event>,
    /// Something was done that the list will show.
    changed: Notify,
    failing: Cell<bool>,
}

impl Link {
    /// To the instance of this session, for these runs, asked so often.
    pub fn new(session: &Session, filter: RunFilter, delay: Duration, events: mpsc::Sender<Event>) -> Rc<Self> {
        Rc::new(Self {
            session: session.clone(),
            client: RefCell::default(),
            filter: RefCell::new(filter),
            delay,
            begun: Instant::now(),
            events,
            changed: Notify::new(),
            failing: Cell::default(),
        })
    }

    /// Lists everybody's runs from now on, or not.
    pub fn list_all(&self, all: bool) {
        self.filter.borrow_mut().all_users = all;
        self.changed.notify_one();
    }

    /// Asks over the connection there is, and where that is lost over the next.
    async fn ask<T>(&self, ask: impl AsyncFn(&Client) -> Result<T, Error>) -> Result<T, Error> {
        let held = self.client.borrow().clone();
        if let Some(client) = held {
            match ask(&client).await {
                Err(e) if e.kind == ErrorKind::Unavailable => drop(self.client.borrow_mut().take()),
                answer => return answer,
            }
        }
        let asked = async |client: &Client| {
            let answer = ask(client).await;
            if !matches!(&answer, Err(e) if e.kind == ErrorKind::Unavailable) {
                *self.client.borrow_mut() = Some(client.clone());
            }
            answer
        };
        self.session.ask(asked).await
    }

    /// The runs, and how the instance is.
    pub async fn list(&self) -> Result<Event, Error> {
        let filter = self.filter.borrow().clone();
        let (runs, instance) = self.ask(async |c: &Client| Ok((c.list(&filter).await?, c.describe().await?))).await?;
        Ok(Event::Listed { runs, instance: Box::new(instance), now: now(), at: self.begun.elapsed() })
    }

    /// Lists the runs again and again.
    pub async fn watch(self: Rc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.delay) => {}
                () = self.changed.notified() => {}
            }
            let answer = {
                let mut asked = std::pin::pin!(self.list());
                tokio::select! {
                    answer = &mut asked => answer,
                    () = tokio::time::sleep(PATIENCE) => {
                        let why = format!("the instance has not answered for {} s", PATIENCE.as_secs());
                        self.tell(Event::Lost(why, now())).await;
                        asked.await
                    }
                }
            };
            let event = match answer {
                Ok(listed) => listed,
                Err(e) if e.kind == ErrorKind::Unavailable => Event::Lost(e.message, now()),
                Err(e) => Event::Refused(escape(&e.message)),
            };
            self.failing.set(matches!(event, Event::Lost(..)));
            self.tell(event).await;
        }
    }

    /// Looks at the selected run again and again.
    pub async fn look(self: Rc<Self>, mut selected: watch::Receiver<Option<RunId>>) {
        let mut explained: Option<(RunId, Instant)> = None;
        loop {
            let run = *selected.borrow_and_update();
            if let Some(run) = run.filter(|_| !self.failing.get()) {
                let is_due = explained.is_none_or(|(of, at)| of != run || at.elapsed() >= EXPLAIN);
                if is_due {
                    explained = Some((run, Instant::now()));
                }
                // A run that is over by now is not listed any more either.
                let _ = self.look_at(run, is_due).await;
            }
            tokio::select! {
                changed = selected.changed() => match changed {
                    Ok(()) => tokio::time::sleep(PASSING).await,
                    Err(_) => return,
                },
                () = tokio::time::sleep(self.delay.max(Duration::from_secs(1))) => {}
            }
        }
    }

    async fn look_at(&self, run: RunId, explain: bool) -> Result<(), Error> {
        let id = run.to_string();
        let seen = self.ask(async |c: &Client| Ok((c.show(&id).await?, c.processes(run).await?)));
        let (view, processes) = seen.await?;
        self.tell(Event::Seen(Box::new(view), processes)).await;
        if explain {
            let since = Wall(now().0.saturating_sub(PAST_USEC));
            let more = self.ask(async |c: &Client| Ok((c.explain(&id).await?, c.samples(run, since).await?)));
            let (explained, samples) = more.await?;
            self.tell(Event::Explained(run, explained.sentence, samples)).await;
        }
        Ok(())
    }

    /// Asks for a kill; when it is on record, its end is waited for in a task of its own.
    pub async fn kill(self: Rc<Self>, run: RunId, mode: KillMode, reason: String) {
        let id = run.to_string();
        match self.ask(async |c: &Client| c.kill(&id, mode, &reason).await).await {
            Ok(answer) => {
                let reason = clip(&escape(&answer.reason.to_string()), REASON);
                self.told(Told::good(format!("{} kill of {id} is on record: {reason}", answer.mode))).await;
                tokio::task::spawn_local(self.over(run));
            }
            Err(e) => self.refused(&format!("{id} is not killed"), &e).await,
        }
    }

    async fn over(self: Rc<Self>, run: RunId) {
        let id = run.to_string();
        match self.ask(async |c: &Client| c.wait(&id, None).await).await {
            Ok(view) if view.phase == Phase::Finished => {
                self.told(ended(&view)).await;
            }
            Ok(view) => self.told(Told::bad(format!("{id} is still {}", view.phase))).await,
            Err(e) => self.refused(&format!("the end of {id} is not known"), &e).await,
        }
    }

    /// Gives a limit more time. Not asked twice: a lost answer would extend twice.
    pub async fn extend(self: Rc<Self>, run: RunId, rule: Rule, by: Duration) {
        let extended = async {
            let client = self.session.connect().await?;
            client.extend(&run.to_string(), rule.as_str(), by).await
        };
        match extended.await {
            Ok(at) => {
                let left = Duration::from_secs(at.0.saturating_sub(now().0) / 1_000_000);
                let (by, left) = (human_duration(by), human_duration(left));
                self.told(Told::good(format!("{rule} of {run} has {by} more: it is over in {left}"))).await;
            }
            Err(e) => self.refused(&format!("{run} is not extended"), &e).await,
        }
    }

    /// Freezes a run, or lets it go on.
    pub async fn freeze(self: Rc<Self>, run: RunId, frozen: bool) {
        let id = run.to_string();
        let asked = async |c: &Client| if frozen { c.freeze(&id).await } else { c.thaw(&id).await };
        match self.ask(asked).await {
            Ok(()) => self.told(Told::good(format!("{id} {}", if frozen { "is frozen" } else { "goes on" }))).await,
            Err(e) if frozen => self.refused(&format!("{id} is not frozen"), &e).await,
            Err(e) => self.refused(&format!("{id} does not go on"), &e).await,
        }
    }

    async fn refused(&self, what: &str, e: &Error) {
        self.told(Told::bad(format!("{what}: {}", escape(&e.message)))).await;
    }

    async fn told(&self, told: Told) {
        self.tell(Event::Told(told)).await;
        self.changed.notify_one();
    }

    /// Once the view has ended there is nobody to be told.
    async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{finished, killed};
    use crate::model::Outcome;

    #[test]
    fn what_a_kill_left_is_told_first() {
        let told = ended(&killed());
        let text = "run_000000000001: 0 survivors after 4 ms, killed(max_runtime of 3 s is over)";
        assert_eq!(told, Told::good(text));
        let mut left = killed();
        left.receipt.as_mut().unwrap().survivors = 1;
        assert!(ended(&left).text.starts_with("run_000000000001: 1 survivor after") && ended(&left) != told);
        assert_eq!(ended(&finished(Outcome::Exited { code: 0 })), Told::good("run_000000000001: exited(0)"));
    }
}
