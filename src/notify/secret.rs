//! Secrets: where each is, and what may be said of it. What one holds is never told, not even by its `Debug`.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ureq::http::Uri;

/// The longest that a secret may be.
const MAX_BYTES: u64 = 16 << 10;

/// Where a secret is, or an address that may be one.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// In the configuration itself.
    Plain(String),
    /// In a file.
    File(PathBuf),
    /// A credential that systemd loads for the unit.
    Credential(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Plain(_) => "(in the configuration)",
            Secret::File(_) => "(in a file)",
            Secret::Credential(_) => "(a credential)",
        })
    }
}

impl Secret {
    /// What it holds, read anew each time: a secret is replaced without a restart.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Secret::Plain(text) => Ok(text.clone()),
            Secret::File(path) => read(path),
            Secret::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
                Some(dir) => read(&Path::new(&dir).join(name)),
                None => Err(format!(
                    "the credential {name} is not here: systemd gives it to the unit, by LoadCredential={name}:PATH"
                )),
            },
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(MAX_BYTES).read_to_string(&mut text));
    read.map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
    let text = text.trim();
    if text.is_empty() { Err(format!("{} is empty", path.display())) } else { Ok(text.to_owned()) }
}

/// Whether this is an address to send to. Says nothing of what is in it.
pub fn check_url(url: &str, allow_private: bool) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|_| "is no address: write it as https://HOST/PATH".to_owned())?;
    let Some(authority) = uri.authority().filter(|a| !a.host().is_empty()) else {
        return Err("has no host: write it as https://HOST/PATH".to_owned());
    };
    if authority.as_str().contains('@') {
        return Err("has a user in it: use secret_file or credential".to_owned());
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if allow_private => Ok(()),
        Some("http") => {
            Err("is not encrypted: write https://, or allow_private = true for a server in a network of your own"
                .to_owned())
        }
        _ => Err("is no address of the web: write it as https://HOST/PATH".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_from_its_file_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s");
        std::fs::write(&file, " hidden\n").unwrap();
        assert_eq!(Secret::File(file.clone()).read(), Ok("hidden".to_owned()));
        assert!(!format!("{:?}", Secret::Plain("hidden".to_owned())).contains("hidden"));
        std::fs::write(&file, "\n").unwrap();
        assert!(Secret::File(file).read().unwrap_err().ends_with("is empty"));
        assert!(Secret::File(dir.path().join("none")).read().unwrap_err().contains("cannot be read"));
    }
}
