//! `config`: checks and shows the configuration, without an instance.

use super::Done;
use super::args::ConfigVerb;
use super::output::{Output, escape};
use super::session::Session;
use crate::config;

/// Checks or shows.
pub fn main(verb: &ConfigVerb, session: &Session, out: &Output) -> Done {
    let file = match verb {
        ConfigVerb::Check { file: Some(file) } => Some(file.as_path()),
        ConfigVerb::Check { file: None } | ConfigVerb::Show => session.config(),
    };
    let loaded = config::load(file)?;
    match verb {
        ConfigVerb::Show => out.line(loaded.text)?,
        ConfigVerb::Check { .. } => {
            let files: Vec<_> = loaded.files.iter().map(|f| escape(&f.to_string_lossy())).collect();
            let what = if files.is_empty() { "the defaults (there is no file)".to_owned() } else { files.join(", ") };
            out.line(format!("{what}: good"))?;
        }
    }
    Ok(0)
}
