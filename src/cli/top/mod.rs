//! `top`: the runs live in the terminal, and what can be done to them.
//!
//! ```text
//!  keys, signals ─┐                           ┌─▶ screen ── areas, table, detail, dialog: drawn of the state alone
//!                 ├─▶ events ─▶ app (pure) ───┤
//!  link, reader ──┘                           └─▶ effects ─▶ link: lists, looks, kills, extends, freezes
//! ```
//!
//! Owns the screen and the state of the view. Everything of it is an event to `app`, which decides; what asks the instance runs
//! beside it, so that an instance that is slow never keeps a key waiting.

mod app;
mod areas;
mod detail;
mod dialog;
mod draw;
mod link;
mod log;
mod order;
mod paint;
mod reader;
mod screen;
mod table;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use ratatui::crossterm::event::{self, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet, spawn_local};

use self::app::{App, Effect, Event};
use self::link::Link;
use self::reader::Reader;
use self::screen::Screen;
use super::args::TopArgs;
use super::output::Output;
use super::session::{self, Session};
use super::terminal::not_ignored;
use super::{Done, list};
use crate::model::{Error, RunId};

/// Events that may wait to be taken in: output of a run that comes faster than it is drawn waits in its pipe.
const QUEUE: usize = 64;
/// How long the instance has to take in what was asked for last, when the view is left right after it.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a signal may wait for the view to end: longer than that takes.
const UNHEARD: Duration = Duration::from_secs(6);

/// Shows the view until it is left.
pub async fn main(args: &TopArgs, session: &Session, out: &Output) -> Done {
    if out.json {
        return Err(Error::invalid("top is for people and writes no JSON: `guardian ps --json` lists runs").into());
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let what = "top needs a terminal on standard input and output: `guardian ps` lists runs once";
        return Err(Error::invalid(what).into());
    }
    LocalSet::new().run_until(view(args, session, out.color())).await
}

async fn view(args: &TopArgs, session: &Session, color: bool) -> Done {
    let (events, mut news) = mpsc::channel(QUEUE);
    let link = Link::new(session, list::filter(&args.filter), args.delay, events.clone());
    // Before the screen is taken: what is wrong from the beginning is told as by any verb.
    let first = link.list().await?;
    session::hold_notes();
    take_signals(events.clone())?;
    let mut screen = Screen::take(color)?;
    read_keys(events.clone())?;

    let mut app = App::new(args.filter.all_users, screen.size()?);
    let (select, selected) = watch::channel(None);
    let mut desk = Desk { link, session, events, select, requests: JoinSet::new(), reader: None };
    let mut next = Some(first);
    spawn_local(desk.link.clone().watch());
    spawn_local(desk.link.clone().look(selected));
    let status = 'view: loop {
        // Whatever is there is taken in before anything is drawn.
        while let Some(event) = next.take().or_else(|| news.try_recv().ok()) {
            match event {
                Event::Signal(n) if n == Signal::SIGCONT as i32 => screen.retake()?,
                Event::Signal(n) => break 'view 128 + n,
                Event::NoKeys(why) => return Err(Error::internal(format!("no key can be read: {why}")).into()),
                event => {
                    app.resize(screen.size()?);
                    for effect in app.update(event) {
                        match effect {
                            Effect::Quit => break 'view 0,
                            Effect::Suspend => screen.suspend()?,
                            Effect::Redraw => screen.redraw()?,
                            effect => desk.act(effect),
                        }
                    }
                }
            }
        }
        app.resize(screen.size()?);
        screen.draw(&app)?;
        next = news.recv().await;
    };
    drop(screen);
    drop(news);
    // What was asked for by the last keys is heard: a kill that was confirmed is on record.
    let heard = async { while desk.requests.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_WORDS, heard).await;
    Ok(status)
}

/// Does what is to be done, without waiting for it.
struct Desk<'a> {
    link: Rc<Link>,
    session: &'a Session,
    events: mpsc::Sender<Event>,
    select: watch::Sender<Option<RunId>>,
    requests: JoinSet<()>,
    reader: Option<Reader>,
}

impl Desk<'_> {
    fn act(&mut self, effect: Effect) {
        let link = self.link.clone();
        match effect {
            Effect::List(all) => link.list_all(all),
            Effect::Look(run) => drop(self.select.send(run)),
            Effect::Kill(run, mode, reason) => drop(self.requests.spawn_local(link.kill(run, mode, reason))),
            Effect::Extend(run, rule, by) => drop(self.requests.spawn_local(link.extend(run, rule, by))),
            Effect::Freeze(run, frozen) => drop(self.requests.spawn_local(link.freeze(run, frozen))),
            Effect::CloseLog => self.reader = None,
            Effect::OpenLog(run) => match Reader::of(run, self.session, self.events.clone()) {
                Ok(reader) => self.reader = Some(reader),
                Err(e) => {
                    let (events, told) = (self.events.clone(), Event::Log(run, Err(format!("it cannot be read: {e}"))));
                    spawn_local(async move { events.send(told).await });
                }
            },
            // Of the terminal, and done there.
            Effect::Quit | Effect::Suspend | Effect::Redraw => {}
        }
    }
}

/// Signals become events: the terminal is given back before one of them ends the view. They are taken by a thread of their
/// own, which ends the process where the view cannot: a terminal that takes no output (^S, a connection that stands still)
/// keeps it from everything.
fn take_signals(events: mpsc::Sender<Event>) -> Result<(), Error> {
    let ends = not_ignored(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
    let failed = |e: std::io::Error| Error::internal(format!("cannot take signals: {e}"));
    let (begun, is_begun) = std::sync::mpsc::sync_channel(1);
    let take = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return drop(begun.send(Err(e))),
        };
        LocalSet::new().block_on(&runtime, async {
            let mut streams = Vec::new();
            for taken in ends.iter().chain([Signal::SIGCONT]) {
                match signal(SignalKind::from_raw(taken as i32)) {
                    Ok(stream) => streams.push((taken, stream)),
                    Err(e) => return drop(begun.send(Err(e))),
                }
            }
            let _ = begun.send(Ok(()));
            let mut all = JoinSet::new();
            for (taken, mut stream) in streams {
                let events = events.clone();
                all.spawn_local(async move {
                    while stream.recv().await.is_some() {
                        let told = events.send(Event::Signal(taken as i32));
                        if taken == Signal::SIGCONT {
                            let _ = told.await;
                            continue;
                        }
                        let _ = tokio::time::timeout(UNHEARD, told).await;
                        tokio::time::sleep(UNHEARD).await;
                        screen::give_up();
                        std::process::exit(128 + taken as i32);
                    }
                });
            }
            while all.join_next().await.is_some() {}
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(take).map_err(failed)?;
    is_begun.recv().unwrap_or(Ok(())).map_err(failed)
}

/// Keys are read by a thread of their own, which ends with the process.
fn read_keys(events: mpsc::Sender<Event>) -> std::io::Result<()> {
    let read = move || loop {
        let event = match event::read() {
            Ok(event::Event::Key(key)) if key.kind != KeyEventKind::Release => Event::Key(key),
            Ok(event::Event::Paste(text)) => Event::Paste(text),
            Ok(event::Event::Resize(..)) => Event::Size,
            Ok(_) => continue,
            Err(e) => {
                let _ = events.blocking_send(Event::NoKeys(e.to_string()));
                return;
            }
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    };
    std::thread::Builder::new().name("keys".into()).spawn(read).map(drop)
}
