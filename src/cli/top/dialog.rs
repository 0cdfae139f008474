//! What is asked before something is done: the text that is typed, and what it comes to. Pure.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::model::{Action, KillMode, Phase, Rule, RunId, RunView, parse_duration};

/// The longest text that can be typed.
const LONGEST: usize = 256;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialog {
    /// The keys are shown.
    Help,
    /// What runs have to have in their text; it holds as it is typed.
    Filter,
    /// Whether a run is to be ended, and why.
    Kill(Kill),
    /// Which limit of a run gets how much more time.
    Extend(Extend),
}

/// The end of a run, being asked about. The run is the one that was selected then, whatever becomes of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Which.
    pub run: RunId,
    /// Its command, workflow and grace, to know it by.
    pub view: Box<RunView>,
    /// How.
    pub mode: KillMode,
    /// Why.
    pub reason: Input,
    /// The reason is typed, and only the confirmation is missing.
    pub is_asked: bool,
}

/// More time for a limit, being asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extend {
    /// Of which run.
    pub run: RunId,
    /// The limits that it has.
    pub rules: Vec<Rule>,
    /// Which of them.
    pub chosen: usize,
    /// How much longer, as it is typed.
    pub time: Input,
    /// What is wrong with that.
    pub wrong: Option<String>,
}

/// What a key came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The dialog goes on.
    Open,
    /// Nothing is to be done.
    No,
    /// It is to be done.
    Kill(RunId, KillMode, String),
    /// It is to be done.
    Extend(RunId, Rule, Duration),
}

impl Kill {
    /// Asks about the end of this run.
    pub fn new(view: &RunView, mode: KillMode) -> Self {
        Self { run: view.spec.id, view: Box::new(view.clone()), mode, reason: Input::default(), is_asked: false }
    }

    /// Takes a key. Enter alone ends nothing: whoever types ahead, or into the wrong window, would.
    pub fn key(&mut self, key: KeyEvent) -> Answer {
        match (self.is_asked, key.code) {
            (_, KeyCode::Esc) | (true, KeyCode::Char('n' | 'N')) => return Answer::No,
            (true, KeyCode::Char('y' | 'Y')) => {
                return Answer::Kill(self.run, self.mode, self.reason.text().trim().to_owned());
            }
            (true, KeyCode::Backspace) => self.is_asked = false,
            (true, _) => {}
            (false, KeyCode::Enter) => self.is_asked = true,
            (false, _) => drop(self.reason.key(key)),
        }
        Answer::Open
    }
}

impl Extend {
    /// Asks about the limits of this run; none if it has no limit that is running.
    pub fn new(view: &RunView) -> Option<Self> {
        let limits = &view.spec.limits;
        let has = |rule: &Rule| match rule {
            // Judged by looks, they run without a deadline that is told.
            Rule::IdleTimeout | Rule::SpinTimeout | Rule::InputTimeout => {
                limits.rule(*rule).is_some_and(|(action, time)| action != Action::Off && time.is_some())
            }
            rule => view.deadlines.iter().any(|(of, _)| of == rule),
        };
        let rules: Vec<Rule> = Rule::TIMED.into_iter().filter(has).collect();
        // What is nearest is what is meant, as a rule.
        let nearest = view.deadlines.iter().min_by_key(|(_, at)| *at).map(|(rule, _)| *rule);
        let chosen = rules.iter().position(|rule| Some(*rule) == nearest).unwrap_or(0);
        let is_live = view.phase < Phase::Stopping;
        let time = Input { text: "30m".into(), is_untouched: true };
        (is_live && !rules.is_empty()).then_some(Self { run: view.spec.id, rules, chosen, time, wrong: None })
    }

    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent) -> Answer {
        let last = self.rules.len().saturating_sub(1);
        match key.code {
            KeyCode::Esc => return Answer::No,
            KeyCode::Up | KeyCode::BackTab => self.chosen = self.chosen.checked_sub(1).unwrap_or(last),
            KeyCode::Down | KeyCode::Tab => self.chosen = if self.chosen < last { self.chosen + 1 } else { 0 },
            KeyCode::Enter => match (parse_duration(self.time.text()), self.rules.get(self.chosen)) {
                (Ok(time), Some(rule)) if !time.is_zero() => return Answer::Extend(self.run, *rule, time),
                (Ok(_), _) => self.wrong = Some("no time at all is no extension".to_owned()),
                (Err(why), _) => self.wrong = Some(why),
            },
            _ => {
                self.wrong = None;
                self.time.key(key);
            }
        }
        Answer::Open
    }
}

/// A line that is typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Input {
    text: String,
    /// It is a proposal, which the first character that is typed takes the place of.
    is_untouched: bool,
}

impl Input {
    /// What is typed so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A line that goes on with this text.
    pub fn of(text: &str) -> Self {
        Self { text: text.to_owned(), is_untouched: false }
    }

    /// Takes a key; false if it is none for a line.
    pub fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('u') if control => self.text.clear(),
            KeyCode::Char('w') if control => {
                let kept = self.text.trim_end();
                self.text.truncate(kept.rfind(' ').map_or(0, |at| at + 1));
            }
            KeyCode::Char('h') if control => drop(self.text.pop()),
            KeyCode::Char(c) if !control && !key.modifiers.contains(KeyModifiers::ALT) => {
                self.paste(c.encode_utf8(&mut [0; 4]))
            }
            KeyCode::Backspace => drop(self.text.pop()),
            _ => return false,
        }
        self.is_untouched = false;
        true
    }

    /// Takes a text: its first line, without what a line cannot have.
    pub fn paste(&mut self, text: &str) {
        if std::mem::take(&mut self.is_untouched) {
            self.text.clear();
        }
        let room = LONGEST.saturating_sub(self.text.chars().count());
        self.text.extend(text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(room));
    }
}
