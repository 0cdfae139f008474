//! The state of the view, and what each event makes of it: keys and answers come in, what is to be done goes out. Pure: no
//! clock, no terminal, no instance.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::areas::Areas;
use super::dialog::{Answer, Dialog, Extend, Input, Kill};
use super::log::Log;
use super::order::{List, Row};
use crate::bus::client::Description;
use crate::cli::output::Tone;
use crate::model::{Containment, KillMode, ProcessSeen, Rule, RunId, RunView, UsageSample, Wall};

/// What comes in.
#[derive(Debug)]
pub enum Event {
    /// A key.
    Key(KeyEvent),
    /// Text that was pasted, which is no keys: a line of it could end a run.
    Paste(String),
    /// The terminal has another size.
    Size,
    /// The runs there are.
    Listed {
        /// All that may be seen.
        runs: Vec<RunView>,
        /// What the instance says of itself.
        instance: Box<Description>,
        /// When.
        now: Wall,
        /// When, since the view began.
        at: Duration,
    },
    /// The instance refuses to list them, for this reason.
    Refused(String),
    /// It does not answer, for this reason, at this time.
    Lost(String, Wall),
    /// The selected run was read anew.
    Seen(Box<RunView>, Vec<ProcessSeen>),
    /// What it waits for, and what it used over time.
    Explained(RunId, String, Vec<UsageSample>),
    /// Something was done, or was not.
    Told(Told),
    /// A part of the output of a run, or its end: why there is no more.
    Log(RunId, Result<Vec<u8>, String>),
    /// A signal; the view ends, or comes back from having been stopped.
    Signal(i32),
    /// No key can be read any more, for this reason.
    NoKeys(String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Leave.
    Quit,
    /// Give the shell its turn.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// List everybody's runs from now on, or not, at once.
    List(bool),
    /// Look at this run from now on.
    Look(Option<RunId>),
    /// End it, for this reason.
    Kill(RunId, KillMode, String),
    /// Give this limit so much more time.
    Extend(RunId, Rule, Duration),
    /// Freeze it, or let it go on.
    Freeze(RunId, bool),
    /// Read its output.
    OpenLog(RunId),
    /// Read it no more.
    CloseLog,
}

/// A message for the status line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// How it looks.
    pub tone: Tone,
    /// In a sentence, escaped.
    pub text: String,
}

impl Told {
    /// Something that was done.
    pub fn good(text: impl Into<String>) -> Self {
        Self { tone: Tone::Good, text: text.into() }
    }

    /// Something that was not.
    pub fn bad(text: impl Into<String>) -> Self {
        Self { tone: Tone::Bad, text: text.into() }
    }

    fn plain(text: impl Into<String>) -> Self {
        Self { tone: Tone::Plain, text: text.into() }
    }
}

/// What was seen of the selected run, beyond the list.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its processes, once they were looked at.
    pub processes: Vec<ProcessSeen>,
    /// What it waits for.
    pub explanation: Option<String>,
    /// What it used lately, oldest first.
    pub samples: Vec<UsageSample>,
}

/// The state.
#[derive(Debug, Default)]
pub struct App {
    /// The time of what is shown.
    pub now: Wall,
    /// The instance, once it has told.
    pub instance: Option<Box<Description>>,
    /// The runs.
    pub list: List,
    /// Which of them is selected: it stays so wherever it goes in the list.
    pub selected: Option<RunId>,
    /// Everybody's runs are listed.
    pub all_users: bool,
    /// More of the selected run.
    pub seen: Seen,
    /// What is asked.
    pub dialog: Option<Dialog>,
    /// The details have the whole screen, from this line on.
    pub whole: Option<usize>,
    /// The output of a run has it.
    pub log: Option<Log>,
    /// What was told last.
    pub told: Option<Told>,
    /// Why nothing new is shown.
    pub trouble: Option<String>,
    /// The columns and lines of the terminal.
    pub size: (u16, u16),
    /// The place of the first run on the screen.
    pub first: usize,
    place: usize,
}

impl App {
    /// A view of this size that has not been told anything.
    pub fn new(all_users: bool, size: (u16, u16)) -> Self {
        Self { all_users, size, ..Self::default() }
    }

    /// The selected run, while it is listed.
    pub fn row(&self) -> Option<&Row> {
        self.list.get(self.list.place(self.selected?)?)
    }

    /// Takes an event.
    pub fn update(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Key(key) => return self.key(key),
            Event::Paste(text) => self.paste(&text),
            Event::Listed { runs, instance, now, at } => {
                self.now = now;
                self.trouble = None;
                self.instance = Some(instance);
                self.list.take(runs, now, at);
                return self.settle();
            }
            Event::Refused(why) => {
                self.told = Some(Told::bad(why));
                if std::mem::take(&mut self.all_users) {
                    return vec![Effect::List(false)];
                }
            }
            Event::Lost(why, now) => (self.trouble, self.now) = (Some(why), now),
            Event::Seen(view, processes) if self.selected == Some(view.spec.id) => self.seen.processes = processes,
            Event::Explained(run, sentence, samples) if self.selected == Some(run) => {
                (self.seen.explanation, self.seen.samples) = (Some(sentence), samples);
            }
            Event::Told(told) => self.told = Some(told),
            Event::Log(run, part) => {
                if let Some(log) = self.log.as_mut().filter(|log| log.run == run) {
                    log.take(part);
                }
            }
            Event::Seen(..) | Event::Explained(..) | Event::Size | Event::Signal(_) | Event::NoKeys(_) => {}
        }
        Vec::new()
    }

    fn paste(&mut self, text: &str) {
        match &mut self.dialog {
            Some(Dialog::Kill(kill)) if !kill.is_asked => kill.reason.paste(text),
            Some(Dialog::Extend(extend)) => extend.time.paste(text),
            Some(Dialog::Filter) => {
                let mut filter = Input::of(&self.list.filter);
                filter.paste(text);
                self.list.filter = filter.text().to_owned();
                self.list.arrange();
            }
            _ => {}
        }
    }

    fn key(&mut self, key: KeyEvent) -> Vec<Effect> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return vec![Effect::Quit],
                KeyCode::Char('z') => return vec![Effect::Suspend],
                KeyCode::Char('l') => return vec![Effect::Redraw],
                _ => {}
            }
        }
        self.told = None;
        match self.dialog.take() {
            None if self.log.is_some() => self.key_of_log(key),
            None => self.key_of_list(key),
            Some(dialog) => self.key_of_dialog(dialog, key),
        }
    }

    fn key_of_log(&mut self, key: KeyEvent) -> Vec<Effect> {
        let lines = Areas::log_lines(self.size);
        if self.log.as_mut().is_some_and(|log| log.key(key, lines)) {
            return Vec::new();
        }
        match key.code {
            KeyCode::Esc | KeyCode::Char('q' | 'l') => {
                self.log = None;
                vec![Effect::CloseLog]
            }
            _ => Vec::new(),
        }
    }

    fn key_of_dialog(&mut self, mut dialog: Dialog, key: KeyEvent) -> Vec<Effect> {
        let answer = match &mut dialog {
            Dialog::Help => Answer::No,
            Dialog::Filter => return self.key_of_filter(key),
            Dialog::Kill(kill) => kill.key(key),
            Dialog::Extend(extend) => extend.key(key),
        };
        match answer {
            Answer::Open => self.dialog = Some(dialog),
            Answer::No if matches!(dialog, Dialog::Help) => {}
            Answer::No => self.told = Some(Told::plain("nothing was done")),
            Answer::Kill(run, mode, reason) => return vec![Effect::Kill(run, mode, reason)],
            Answer::Extend(run, rule, time) => return vec![Effect::Extend(run, rule, time)],
        }
        Vec::new()
    }

    fn key_of_filter(&mut self, key: KeyEvent) -> Vec<Effect> {
        let mut filter = Input::of(&self.list.filter);
        match key.code {
            KeyCode::Enter => return Vec::new(),
            KeyCode::Esc => filter = Input::default(),
            _ => {
                self.dialog = Some(Dialog::Filter);
                if !filter.key(key) {
                    return self.moved(key.code).unwrap_or_default();
                }
            }
        }
        self.list.filter = filter.text().to_owned();
        self.list.arrange();
        self.settle()
    }

    fn key_of_list(&mut self, key: KeyEvent) -> Vec<Effect> {
        if let Some(from) = &mut self.whole {
            let page = usize::from(self.size.1.saturating_sub(2));
            match key.code {
                KeyCode::Up => *from = from.saturating_sub(1),
                KeyCode::Down => *from = from.saturating_add(1),
                KeyCode::PageUp => *from = from.saturating_sub(page),
                KeyCode::PageDown => *from = from.saturating_add(page),
                KeyCode::Home => *from = 0,
                KeyCode::Esc | KeyCode::Enter => self.whole = None,
                _ => return self.command(key.code),
            }
            return Vec::new();
        }
        self.moved(key.code).unwrap_or_else(|| self.command(key.code))
    }

    /// Moves the selection, if the key does that.
    fn moved(&mut self, key: KeyCode) -> Option<Vec<Effect>> {
        let page = Areas::of(self.size).runs().max(1);
        let place = self.selected.and_then(|run| self.list.place(run)).unwrap_or(0);
        let to = match key {
            KeyCode::Up => place.saturating_sub(1),
            KeyCode::Down => place + 1,
            KeyCode::PageUp => place.saturating_sub(page),
            KeyCode::PageDown => place + page,
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX,
            _ => return None,
        };
        Some(self.select(to))
    }

    /// The selected run stays so if it is still listed; else the one that is in its place now is selected.
    fn settle(&mut self) -> Vec<Effect> {
        self.select(self.selected.and_then(|run| self.list.place(run)).unwrap_or(self.place))
    }

    /// Selects the run in this place, or the last one.
    fn select(&mut self, place: usize) -> Vec<Effect> {
        self.place = place.min(self.list.len().saturating_sub(1));
        let run = self.list.get(self.place).map(|row| row.view.spec.id);
        self.scroll();
        if run == self.selected {
            return Vec::new();
        }
        self.selected = run;
        self.seen = Seen::default();
        // What was read in full is gone: another run in its place would be taken for it.
        self.whole = None;
        vec![Effect::Look(run)]
    }

    /// Takes what is on the screen to the selected run, and no further than it has to.
    fn scroll(&mut self) {
        let page = Areas::of(self.size).runs().max(1);
        let last = self.list.len().saturating_sub(page);
        self.first = self.first.min(last).min(self.place).max((self.place + 1).saturating_sub(page));
    }

    /// The terminal has this size now.
    pub fn resize(&mut self, size: (u16, u16)) {
        self.size = size;
        self.scroll();
    }

    fn command(&mut self, key: KeyCode) -> Vec<Effect> {
        let sorted = |app: &mut Self| {
            app.list.arrange();
            app.settle()
        };
        match key {
            KeyCode::Char('q') => vec![Effect::Quit],
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => {
                self.dialog = Some(Dialog::Help);
                Vec::new()
            }
            KeyCode::Char('/') => {
                self.dialog = Some(Dialog::Filter);
                Vec::new()
            }
            KeyCode::Char('s' | '>') => {
                self.list.sort = self.list.sort.neighbour(true);
                sorted(self)
            }
            KeyCode::Char('<') => {
                self.list.sort = self.list.sort.neighbour(false);
                sorted(self)
            }
            KeyCode::Char('r') => {
                self.list.reversed = !self.list.reversed;
                sorted(self)
            }
            KeyCode::Char('A') => {
                self.all_users = !self.all_users;
                vec![Effect::List(self.all_users)]
            }
            KeyCode::Esc => {
                self.list.filter.clear();
                sorted(self)
            }
            KeyCode::Enter | KeyCode::Char('k' | 'K' | 'f' | 'e' | 'l') => self.command_of_run(key),
            _ => Vec::new(),
        }
    }

    /// What is for the selected run.
    fn command_of_run(&mut self, key: KeyCode) -> Vec<Effect> {
        let Some(view) = self.row().map(|row| row.view.clone()) else {
            self.told = Some(Told::plain("no run is selected"));
            return Vec::new();
        };
        let run = view.spec.id;
        match key {
            KeyCode::Char('k') => self.dialog = Some(Dialog::Kill(Kill::new(&view, KillMode::Graceful))),
            KeyCode::Char('K') => self.dialog = Some(Dialog::Kill(Kill::new(&view, KillMode::Force))),
            KeyCode::Char('f') => return vec![Effect::Freeze(run, !view.frozen)],
            KeyCode::Char('e') => match Extend::new(&view) {
                Some(extend) => self.dialog = Some(Dialog::Extend(extend)),
                None => self.told = Some(Told::plain(format!("{run} has no limit that could be extended"))),
            },
            KeyCode::Char('l') if has_log(&view) => {
                self.log = Some(Log::of(run));
                return vec![Effect::OpenLog(run)];
            }
            KeyCode::Char('l') => {
                let text = format!("{run} has no log: its output went where `guardian run` was called");
                self.told = Some(Told::plain(text));
            }
            _ => self.whole = Some(0),
        }
        Vec::new()
    }
}

/// Whether there is output to be read: a file, or what the journal has of a service.
fn has_log(view: &RunView) -> bool {
    let is_service = view.spec.client.is_none() && view.spec.containment == Containment::Systemd;
    view.spec.log.is_some() || is_service
}
