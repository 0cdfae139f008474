//! Loading: the built-in file, then each source over it. Mistakes are collected over all files before any is told.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::executors::Doubts;
use super::keys::{EXECUTOR, INSTANCE, Keys, LIMITS, RETENTION, TABLES, kind, suggest};
use super::values::{check_workflow, shown};
use super::{BUILT_IN, Config, ConfigErrors, Problem};
use crate::model::LimitUpdate;

/// A configuration is some kilobytes; more than this is another file.
const MAX_BYTES: u64 = 1 << 20;

/// As many mistakes as a person reads. To find the place of each takes time, and another file has one a line.
const MOST: usize = 100;

impl Config {
    /// Loads the built-in defaults and, over them, these files in order: whole, or not at all.
    pub fn load(sources: &[PathBuf]) -> Result<Self, ConfigErrors> {
        Self::of(sources.iter().map(|file| (file.as_path(), read(file))))
    }

    /// The defaults and, over them, these texts in order.
    pub(super) fn of<'a>(
        layers: impl Iterator<Item = (&'a Path, Result<String, Problem>)>,
    ) -> Result<Self, ConfigErrors> {
        let mut config = Config::blank();
        let mut problems = Vec::new();
        let mut doubts = Doubts::default();
        let built_in = Path::new("built-in config.toml");
        for (file, text) in std::iter::once((built_in, Ok(BUILT_IN.to_owned()))).chain(layers) {
            let (config, problems, doubts) = (&mut config, &mut problems, &mut doubts);
            match text {
                Ok(text) => Layer { file, text: &text, config, problems, doubts }.apply(),
                Err(problem) => problems.push(problem),
            }
        }
        problems.extend(doubts.settled(&config));
        if problems.is_empty() { Ok(config) } else { Err(ConfigErrors(problems)) }
    }
}

fn read(file: &Path) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    File::open(file).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(|e| {
        Problem::whole(file, format!("cannot be read: {e}: check the path, and that guardiand may read it"))
    })?;
    text_of(file, bytes)
}

/// What a file holds, as text.
pub(super) fn text_of(file: &Path, bytes: Vec<u8>) -> Result<String, Problem> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Problem::whole(file, "is larger than 1 MiB: this is not a configuration of Guardian".to_owned()));
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(e.as_bytes());
        Problem::at(file, &text, valid, None, "is not UTF-8 from here on: save it as UTF-8".to_owned())
    })
}

/// One file on its way into the configuration.
struct Layer<'a> {
    file: &'a Path,
    text: &'a str,
    config: &'a mut Config,
    problems: &'a mut Vec<Problem>,
    /// What only all files together can tell.
    doubts: &'a mut Doubts,
}

impl Layer<'_> {
    fn apply(mut self) {
        let first = self.problems.len();
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            self.refuse(at, None, format!("{}: this is not TOML", error.message().replace('\n', ", ")));
        }
        for (name, value) in document.get_ref() {
            let (at, name) = (name.span().start, name.get_ref().as_ref());
            match name {
                "workflow" => self.workflows(at, value),
                "executor" => self.executors(at, value),
                "defaults" => {
                    let mut update = LimitUpdate::default();
                    self.table(at, name, value, LIMITS, &mut update);
                    self.config.defaults = self.config.defaults.clone().with(&update);
                    self.names_executor(name, value);
                    if let Some(executor) = update.executor {
                        self.config.executor = executor;
                    }
                }
                "instance" | "retention" => {
                    let keys = if name == "instance" { INSTANCE } else { RETENTION };
                    // The table borrows the layer and the configuration at once: a copy, and back.
                    let mut config = self.config.clone();
                    self.table(at, name, value, keys, &mut config);
                    *self.config = config;
                }
                _ => {
                    let hint = suggest(name, TABLES.into_iter());
                    self.refuse(at, Some(shown(name)), format!("is not a table of the configuration: {hint}"));
                }
            }
        }
        // Tables are kept by name; people read from the top.
        if let Some(new) = self.problems.get_mut(first..) {
            new.sort_by_key(|problem| problem.place);
        }
    }

    fn workflows(&mut self, at: usize, value: &Spanned<DeValue<'_>>) {
        let DeValue::Table(table) = value.get_ref() else {
            let what = kind(value.get_ref());
            return self.refuse(at, Some("workflow".to_owned()), format!("is {what}: write [workflow.NAME]"));
        };
        for (name, value) in table {
            let (at, name) = (name.span().start, name.get_ref().as_ref());
            let path = format!("workflow.{}", shown(name));
            if let Err(why) = check_workflow(name) {
                self.refuse(at, Some(path), why);
                continue;
            }
            // What an earlier file says of the workflow stays, but for the keys named here.
            let mut update = self.config.workflows.get(name).cloned().unwrap_or_default();
            self.table(at, &path, value, LIMITS, &mut update);
            self.config.workflows.insert(name.to_owned(), update);
            self.names_executor(&path, value);
        }
    }

    fn executors(&mut self, at: usize, value: &Spanned<DeValue<'_>>) {
        let DeValue::Table(table) = value.get_ref() else {
            let what = kind(value.get_ref());
            return self.refuse(at, Some("executor".to_owned()), format!("is {what}: write [executor.NAME]"));
        };
        for (name, value) in table {
            let (at, name) = (name.span().start, name.get_ref().as_ref());
            let path = format!("executor.{}", shown(name));
            if let Err(why) = super::executors::check_name(name) {
                self.refuse(at, Some(path), why);
                continue;
            }
            let mut executor = self.config.executors.get(name).cloned().unwrap_or_default();
            self.table(at, &path, value, EXECUTOR, &mut executor);
            self.config.executors.insert(name.to_owned(), executor);
            self.doubts.defined(name, Problem::at(self.file, self.text, at, Some(path), String::new()));
        }
    }

    /// A table that names an executor, which may be defined in a later file.
    fn names_executor(&mut self, path: &str, value: &Spanned<DeValue<'_>>) {
        let named = value.get_ref().as_table().and_then(|table| table.get("executor"));
        if let Some(named) = named
            && let Some(name) = named.get_ref().as_str()
        {
            let key = Some(format!("{path}.executor"));
            let problem = Problem::at(self.file, self.text, named.span().start, key, String::new());
            self.doubts.named(name, problem);
        }
    }

    fn table<T>(&mut self, at: usize, path: &str, value: &Spanned<DeValue<'_>>, keys: &Keys<T>, into: &mut T) {
        let DeValue::Table(table) = value.get_ref() else {
            let what = kind(value.get_ref());
            return self.refuse(at, Some(path.to_owned()), format!("is {what}: write it as a table, [{path}]"));
        };
        for (name, value) in table {
            let key = Some(format!("{path}.{}", shown(name.get_ref())));
            match keys.iter().find(|(known, _)| name.get_ref().as_ref() == *known) {
                None => {
                    let hint = suggest(name.get_ref(), keys.iter().map(|(known, _)| *known));
                    self.refuse(name.span().start, key, format!("is not a key of the configuration: {hint}"));
                }
                Some((_, set)) => {
                    if let Err(why) = set(into, value.get_ref()) {
                        self.refuse(value.span().start, key, why);
                    }
                }
            }
        }
    }

    fn refuse(&mut self, at: usize, key: Option<String>, message: String) {
        match self.problems.len() {
            ..MOST => self.problems.push(Problem::at(self.file, self.text, at, key, message)),
            MOST => {
                let more = "and there are more mistakes: mend these first".to_owned();
                self.problems.push(Problem::at(self.file, self.text, self.text.len(), None, more));
            }
            _ => {}
        }
    }
}
