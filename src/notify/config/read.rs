//! Reading tables key by key: what is not asked for is unknown, and every mistake is kept with its place.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::{Problem, kind, suggest};
use crate::model::escape;

/// As many mistakes as a person reads.
const MOST: usize = 100;

/// A file, and what is wrong with it.
pub(super) struct Reader<'a> {
    pub file: &'a Path,
    pub text: &'a str,
    pub problems: Vec<Problem>,
}

impl Reader<'_> {
    /// Keeps a mistake.
    pub fn refuse(&mut self, at: usize, key: Option<String>, message: String) {
        if self.problems.len() < MOST {
            self.problems.push(Problem::at(self.file, self.text, at, key, message));
        }
    }
}

/// A table on its way: its keys are taken one by one.
pub(super) struct Table<'a, 'r, 'd> {
    pub path: String,
    /// Where it begins.
    pub at: usize,
    reader: &'r mut Reader<'d>,
    fields: BTreeMap<&'a str, (usize, &'a Spanned<DeValue<'a>>)>,
    known: Vec<&'static str>,
    failed: bool,
}

impl<'a, 'r, 'd> Table<'a, 'r, 'd> {
    /// The table of this value, or a mistake.
    pub fn of(reader: &'r mut Reader<'d>, path: String, at: usize, value: &'a DeValue<'a>, how: &str) -> Option<Self> {
        match value {
            DeValue::Table(table) => Some(Self::new(reader, path, at, table)),
            other => {
                reader.refuse(at, Some(path), format!("is {}: {how}", kind(other)));
                None
            }
        }
    }

    /// A table.
    pub fn new(reader: &'r mut Reader<'d>, path: String, at: usize, table: &'a DeTable<'a>) -> Self {
        let fields = table.iter().map(|(key, value)| (&**key.get_ref(), (key.span().start, value))).collect();
        Self { path, at, reader, fields, known: Vec::new(), failed: false }
    }

    fn key(&self, name: &str) -> Option<String> {
        Some(format!("{}.{}", self.path, shown(name)))
    }

    /// The value of a key, if it is there and as it should be.
    pub fn get<T>(&mut self, name: &'static str, read: impl FnOnce(&'a DeValue<'a>) -> Result<T, String>) -> Option<T> {
        self.known.push(name);
        let (_, value) = self.fields.remove(name)?;
        match read(value.get_ref()) {
            Ok(value) => Some(value),
            Err(why) => {
                self.failed = true;
                let key = self.key(name);
                self.reader.refuse(value.span().start, key, why);
                None
            }
        }
    }

    /// The same of a key that has to be there.
    pub fn need<T>(
        &mut self,
        name: &'static str,
        example: &str,
        read: impl FnOnce(&'a DeValue<'a>) -> Result<T, String>,
    ) -> Option<T> {
        if !self.fields.contains_key(name) {
            self.known.push(name);
            self.refuse(format!("has no {name}: write {name} = {example}"));
            return None;
        }
        self.get(name, read)
    }

    /// Whether a key that is there was not as it should be.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// A mistake of the table as a whole.
    pub fn refuse(&mut self, message: String) {
        self.reader.refuse(self.at, Some(self.path.clone()), message);
    }

    /// What was not taken is unknown.
    pub fn finish(self) {
        for (name, (at, _)) in &self.fields {
            let hint = suggest(name, self.known.iter().copied());
            let key = self.key(name);
            self.reader.refuse(*at, key, format!("is not a key of it: {hint}"));
        }
    }
}

/// A text.
pub(super) fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value.as_str() {
        Some("") => Err("is empty".to_owned()),
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("must be a text in quotes, not {}", kind(value))),
    }
}

/// True or false.
pub(super) fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("must be true or false, without quotes, not {}", kind(value)))
}

/// A whole number in a range.
pub(super) fn number(value: &DeValue<'_>, least: u32, most: u32) -> Result<u32, String> {
    let refuse = || format!("must be a whole number, {least} to {most}");
    let number = value.as_integer().ok_or_else(refuse)?.to_string().parse().map_err(|_| refuse())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(refuse()) }
}

/// A text, or a list of them.
pub(super) fn texts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(items) if items.is_empty() => Err("is empty".to_owned()),
        DeValue::Array(items) => items.iter().map(|item| text(item.get_ref())).collect(),
        _ => text(value).map(|one| vec![one]),
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(value: &DeValue<'_>, words: &[(&'static str, T)]) -> Result<T, String> {
    let text = text(value)?;
    let known = words.iter().find(|(word, _)| *word == text);
    known.map(|(_, what)| *what).ok_or_else(|| {
        let hint = suggest(&text, words.iter().map(|(word, _)| *word));
        format!("{:?} is none of those that can stand here: {hint}", text.chars().take(40).collect::<String>())
    })
}

/// A name as it is shown.
pub(super) fn shown(name: &str) -> String {
    escape(&name.chars().take(40).collect::<String>())
}
