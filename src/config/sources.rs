//! Where the configuration is: which files, in which order.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Config;
use super::{ConfigErrors, Problem};
use crate::model::InstanceKind;

/// Whose configuration is read. Ask it for its files at every reload: drop-ins come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `/etc/guardian/config.toml` and `/etc/guardian/config.d/*.toml`.
    System,
    /// `guardian/config.toml` and `guardian/config.d/*.toml` in this directory. As with systemd's user manager, the
    /// system's files do not count: they are about another instance.
    User(PathBuf),
    /// This file and no other, as with `--config` of other daemons: no drop-ins, and it must exist.
    File(PathBuf),
}

impl Origin {
    /// The files to load, in order. No file at all is fine, but for [`Origin::File`].
    pub fn sources(&self) -> Result<Vec<PathBuf>, ConfigErrors> {
        match self {
            Origin::System => in_directory(Path::new("/etc/guardian")),
            Origin::User(home) => in_directory(&home.join("guardian")),
            Origin::File(file) => Ok(vec![file.clone()]),
        }
    }
}

/// The user's directory for configuration, from `XDG_CONFIG_HOME` and `HOME`. A relative one does not count, as the XDG
/// specification demands.
pub fn user_config_home(xdg_config_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |text: OsString| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
    xdg_config_home.and_then(absolute).or_else(|| home.and_then(absolute).map(|home| home.join(".config")))
}

/// The configuration of an instance: this file, or what is in the usual place for its kind; and the files read.
pub fn load_for(kind: InstanceKind, file: Option<&Path>) -> Result<(Config, Vec<PathBuf>), ConfigErrors> {
    let usual = || match kind {
        InstanceKind::System => Some(Origin::System),
        InstanceKind::User | InstanceKind::Private => {
            user_config_home(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME")).map(Origin::User)
        }
    };
    let origin = file.map(|file| Origin::File(file.to_owned())).or_else(usual);
    let sources = origin.map_or_else(|| Ok(Vec::new()), |origin| origin.sources())?;
    Ok((Config::load(&sources)?, sources))
}

fn in_directory(dir: &Path) -> Result<Vec<PathBuf>, ConfigErrors> {
    let main = dir.join("config.toml");
    // Anything but a certain "not there" is kept, so that loading tells what is wrong with it.
    let exists = !matches!(fs::metadata(&main), Err(e) if e.kind() == io::ErrorKind::NotFound);
    let mut files = drop_ins(&dir.join("config.d"))?;
    if exists {
        files.insert(0, main);
    }
    Ok(files)
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigErrors> {
    let refuse = |e: io::Error| {
        ConfigErrors(vec![Problem::whole(dir, format!("cannot be listed: {e}: make it readable for guardiand"))])
    };
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(refuse)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(refuse)?.path();
        // Editors leave hidden files.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|ext| ext == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
