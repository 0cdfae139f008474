//! Tokens: random secrets that are shown once and kept as hashes, a line each: `name role sha256 created`.
//!
//! SHA-256 without salt or stretching is right here: what is hashed is 256 random bits, which nobody tries out. The file is
//! root's or the user's own; who could write to it could make themselves an operator, so a file that others may write to is
//! refused.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use crate::model::{Error, ErrorKind, escape};

/// Where the tokens for the host's instance are.
pub const SYSTEM_FILE: &str = "/etc/guardian/web-tokens";
/// The name of the file, in a state directory and in systemd's directory of credentials.
pub const FILE: &str = "web-tokens";
/// What a token begins with, so that whoever searches for leaked secrets finds them.
const PREFIX: &str = "gdn_";
/// The longest name.
const NAME_MAX: usize = 64;
/// The most tokens in a file.
const TOKENS_MAX: usize = 1000;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To read.
    Viewer,
    /// To end, extend, freeze and thaw runs, too.
    Operator,
    /// To start runs, too: to have commands executed.
    Starter,
}

impl Role {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Starter => "starter",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "starter" => Ok(Self::Starter),
            _ => Err(format!("{} is not a role: use viewer, operator or starter", shown(text))),
        }
    }
}

/// SHA-256 of a secret.
pub type Digest = [u8; 32];

/// The hash of a secret.
pub fn digest(secret: &str) -> Digest {
    Sha256::digest(secret.as_bytes()).into()
}

/// Whether two hashes are the same, in a time that does not tell how far they are.
pub fn same(a: &Digest, b: &Digest) -> bool {
    let difference = a.iter().zip(b).fold(0_u8, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// 256 random bits in hexadecimal.
pub fn random_hex() -> Result<String, Error> {
    let mut bytes = [0_u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        let got = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += got.map_err(|e| Error::internal(format!("the kernel gives no random bytes: {e}")))?;
    }
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Whose, or what for: goes on record with what is done by it.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The hash of the secret.
    pub digest: Digest,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

impl Token {
    /// A new one, and its secret, which is kept nowhere.
    pub fn new(name: &str, role: Role, created_at: String) -> Result<(Self, String), Error> {
        valid_name(name).map_err(Error::invalid)?;
        let secret = format!("{PREFIX}{}", random_hex()?);
        Ok((Self { name: name.to_owned(), role, digest: digest(&secret), created_at }, secret))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.name, self.role, hex(&self.digest), self.created_at)
    }
}

/// What is wrong with a name, if anything is.
pub fn valid_name(name: &str) -> Result<(), String> {
    let is_fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@');
    match name.len() {
        1..=NAME_MAX if name.bytes().all(is_fine) => Ok(()),
        _ => Err(format!("{} is no name of a token: it has 1 to {NAME_MAX} of A-Z a-z 0-9 . _ - @", shown(name))),
    }
}

/// Reads the lines of a file; says which one is wrong, and how.
pub fn parse(text: &str) -> Result<Vec<Token>, String> {
    let mut all: Vec<Token> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let token = line_of(line).map_err(|why| format!("line {}: {why}", n + 1))?;
        if all.iter().any(|other| other.name == token.name) {
            return Err(format!("line {}: the name {} is there twice", n + 1, token.name));
        }
        all.push(token);
    }
    match all.len() {
        0..=TOKENS_MAX => Ok(all),
        n => Err(format!("{n} tokens, of which there can be {TOKENS_MAX}")),
    }
}

fn line_of(line: &str) -> Result<Token, String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [name, role, hash, created] = words[..] else {
        return Err(format!("{} words and not the four of `name role sha256 created`", words.len()));
    };
    valid_name(name)?;
    let mut digest = [0; 32];
    let is_hex = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    // Not shown: somebody may have put the secret itself here.
    let bad = || "the third word is no SHA-256, which has 64 hexadecimal digits".to_owned();
    if !is_hex {
        return Err(bad());
    }
    for (byte, pair) in digest.iter_mut().zip(hash.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
    }
    created.parse::<jiff::Timestamp>().map_err(|_| format!("{} is no time as of RFC 3339", shown(created)))?;
    Ok(Token { name: name.to_owned(), role: role.parse()?, digest, created_at: created.to_owned() })
}

fn shown(text: &str) -> String {
    format!("{:?}", escape(&text.chars().take(40).collect::<String>()))
}

/// Reads a file; one that is not there has no tokens.
pub fn read(path: &Path) -> Result<Vec<Token>, Error> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot read {}: {e}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == IoKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let meta = file.metadata().map_err(failed)?;
    let uid = rustix::process::geteuid().as_raw();
    if meta.mode() & 0o022 != 0 || (meta.uid() != 0 && meta.uid() != uid) {
        return Err(Error::invalid(format!(
            "others could put tokens of their own into {0}: `chmod 600 {0}`, and it has to be root's or yours",
            path.display()
        )));
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, 1 << 20), &mut text).map_err(failed)?;
    parse(&text).map_err(|why| {
        Error::invalid(format!("the tokens cannot be used: {}: {why}: correct or remove that line", path.display()))
    })
}

/// Changes a file: one who does so at a time, and whole or not at all.
pub fn change<T>(path: &Path, change: impl FnOnce(&mut Vec<Token>) -> Result<T, Error>) -> Result<T, Error> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot write {}: {e}", path.display()));
    let dir = path.parent().ok_or_else(|| Error::invalid(format!("{} is no file", path.display())))?;
    let held = File::open(dir).map_err(failed)?;
    rustix::fs::flock(&held, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    let mut tokens = read(path)?;
    let done = change(&mut tokens)?;
    if tokens.len() > TOKENS_MAX {
        return Err(Error::new(ErrorKind::LimitExceeded, format!("there are {TOKENS_MAX} tokens: revoke some first")));
    }
    let new = path.with_extension("new");
    let write = || {
        match fs::remove_file(&new) {
            Err(e) if e.kind() != IoKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        writeln!(file, "# Tokens of guardian-web, by `guardian token`: name, role, SHA-256 of the token, when made.")?;
        tokens.iter().try_for_each(|token| writeln!(file, "{token}"))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        held.sync_all()
    };
    write().map_err(failed)?;
    Ok(done)
}

/// The tokens of a file, read again when it has changed.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    tokens: Arc<Vec<Token>>,
    seen: Option<Stamp>,
}

/// What differs when a file was replaced or written to.
type Stamp = (u64, u64, i64, i64, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
}

impl Keeper {
    /// Reads the file for the first time: what is wrong in it is said at once.
    pub fn new(path: PathBuf) -> Result<Self, Error> {
        let seen = stamp(&path);
        let tokens = Arc::new(read(&path)?);
        Ok(Self { path, kept: Mutex::new(Kept { tokens, seen }) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens that hold now. While the file has a mistake it is what held before: who edits it locks nobody out.
    pub fn all(&self) -> Arc<Vec<Token>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if now != kept.seen {
            kept.seen = now;
            match read(&self.path) {
                Ok(tokens) => kept.tokens = Arc::new(tokens),
                Err(e) => tracing::error!("the tokens are as they were before: {}", escape(&e.message)),
            }
        }
        kept.tokens.clone()
    }

    /// The token with this secret. All are compared, whichever it is.
    pub fn with_secret(&self, secret: &str) -> Option<Token> {
        let wanted = digest(secret);
        self.all()
            .iter()
            .fold(None, |found, token| if same(&token.digest, &wanted) { Some(token.clone()) } else { found })
    }

    /// Whether this token still holds, with its role.
    pub fn holds(&self, digest: &Digest, role: Role) -> bool {
        self.all().iter().any(|token| same(&token.digest, digest) && token.role == role)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token(name: &str, role: Role) -> (Token, String) {
        Token::new(name, role, "2026-01-02T03:04:05Z".to_owned()).unwrap()
    }

    #[test]
    fn a_line_reads_back_as_it_was_written_and_holds_no_secret() {
        let (ann, secret) = token("ann@host", Role::Operator);
        assert_eq!((secret.len(), secret.starts_with("gdn_")), (68, true));
        assert_eq!(parse(&format!("# kept\n\n{ann}\n")), Ok(vec![ann.clone()]));
        assert!(!ann.to_string().contains(&secret[4..]));
        assert!(same(&digest(&secret), &ann.digest) && !same(&digest("other"), &ann.digest));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_without_the_secret() {
        let (ann, secret) = token("ann", Role::Viewer);
        let bad = |text: &str| parse(text).unwrap_err();
        assert!(bad(&format!("{ann}\n{ann}")).starts_with("line 2: the name ann is there twice"));
        assert!(bad("\nann viewer").starts_with("line 2: 2 words and not the four"));
        assert!(bad(&ann.to_string().replace("viewer", "root")).contains("\"root\" is not a role"));
        let leaked = bad(&format!("ann viewer {secret} 2026-01-02T03:04:05Z"));
        assert!(leaked.contains("no SHA-256") && !leaked.contains(&secret), "{leaked}");
        assert!(bad(&ann.to_string().replace("2026-", "x")).contains("no time"));
        assert!(bad("\x1b[2J viewer x y").contains("u{1b}"));
        assert!(valid_name("").is_err() && valid_name(&"a".repeat(65)).is_err() && valid_name("a b").is_err());
    }

    #[test]
    fn a_file_is_its_owners_alone_and_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let keeper = Keeper::new(path.clone()).unwrap();
        assert!(keeper.all().is_empty());
        let (ann, secret) = token("ann", Role::Viewer);
        change(&path, |all| {
            all.push(ann.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(keeper.with_secret(&secret), Some(ann.clone()));
        assert!(keeper.holds(&ann.digest, Role::Viewer) && !keeper.holds(&ann.digest, Role::Operator));
        // A mistake locks nobody out, and lets nobody in.
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(keeper.with_secret(&secret), Some(ann));
        assert!(Keeper::new(path.clone()).is_err());
        change(&path, |_| Ok(())).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert_eq!(keeper.with_secret(&secret), None);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(read(&path).unwrap_err().message.contains("chmod 600"));
    }
}
