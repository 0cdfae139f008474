//! What is wrong with a configuration: each mistake with its place, all of them together.

use std::fmt;
use std::path::{Path, PathBuf};

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1, in characters; none where the file could not be read at all.
    pub place: Option<(usize, usize)>,
    /// The key, with its tables: `workflow.builder.grace`; none where it is not about one.
    pub key: Option<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Problem {
    /// A mistake at a byte of the text.
    pub fn at(file: &Path, text: &str, offset: usize, key: Option<String>, message: String) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { file: file.to_owned(), place: Some((line, column)), key, message }
    }

    /// A file as a whole.
    pub fn whole(file: &Path, message: String) -> Self {
        Self { file: file.to_owned(), place: None, key: None, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why a configuration is refused: every mistake, in the order of the files and lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}
