//! The state directory: one instance, one lock, one socket, one key.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};

use super::host::NotifyOptions;
use super::service;
use crate::bus;
use crate::failpoint;
use crate::model::{Error, InstanceKind};

/// Where the system instance's is, unless systemd says another place.
pub const SYSTEM: &str = "/var/lib/guardian";

/// Where it is: as named, or by GUARDIAN_STATE_DIR; else for the system's instance where systemd made it, and for others in
/// the user's own place for state.
pub fn find(kind: InstanceKind, named: Option<PathBuf>) -> Result<PathBuf, Error> {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    let absolute = |name| set(name).filter(|p| p.is_absolute());
    if let Some(dir) = named.or_else(|| set("GUARDIAN_STATE_DIR").filter(|p| !p.as_os_str().is_empty())) {
        return Ok(dir);
    }
    if kind == InstanceKind::System {
        return Ok(absolute("STATE_DIRECTORY").unwrap_or_else(|| SYSTEM.into()));
    }
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return Ok(state.join("guardian"));
    }
    let passwd = || nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|u| u.dir);
    absolute("HOME").or_else(passwd).map(|home| home.join(".local/state/guardian")).ok_or_else(|| {
        Error::invalid(
            "there is no home directory for the state: name a directory with --state-dir or GUARDIAN_STATE_DIR",
        )
    })
}

/// The name of the socket in the state directory.
pub const SOCKET: &str = "bus.sock";
/// The name of the lock in the state directory; holds the pid of the instance.
pub const LOCK: &str = "instance.lock";

/// How long a lock is waited for whose holder has no socket.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Another instance serves this state directory.
#[derive(Debug, thiserror::Error)]
#[error("another instance serves {}", state_dir.display())]
pub struct AlreadyServed {
    /// The state directory.
    pub state_dir: PathBuf,
}

/// The directory, its owner's alone. Somebody who can write to it could make us kill by a record of theirs.
pub fn prepare(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| {
        format!("cannot create the state directory {}: name another with --state-dir", dir.display())
    })?;
    let dir = dir.canonicalize().with_context(|| format!("cannot use the state directory {}", dir.display()))?;
    if failpoint::without("guard.rights").is_some() {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
    }
    let meta = fs::metadata(&dir)?;
    let uid = nix::unistd::geteuid().as_raw();
    if meta.uid() != uid {
        bail!("the state directory {} belongs to uid {}, and this is uid {uid}", dir.display(), meta.uid());
    }
    if meta.permissions().mode() & 0o022 != 0 {
        bail!("others may write to the state directory {0}: `chmod go-w {0}`", dir.display());
    }
    Ok(dir)
}

/// Takes the instance's lock, and writes our pid into it. It holds until it is dropped.
pub fn lock(state_dir: &Path) -> anyhow::Result<Flock<fs::File>> {
    let path = state_dir.join(LOCK);
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let mut file = file;
    let begun = Instant::now();
    let mut lock = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if state_dir.join(SOCKET).exists() => {
                return Err(anyhow::Error::new(AlreadyServed { state_dir: state_dir.to_owned() }));
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if begun.elapsed() > LOCK_PATIENCE => {
                let pid = fs::read_to_string(&path).unwrap_or_default();
                bail!(
                    "another instance (pid {pid}) has the lock of {}: if it does not answer, end it with `kill {pid}`, and \
                     the next one takes up its runs",
                    state_dir.display(),
                    pid = pid.trim()
                );
            }
            // Its holder has no socket: it is about to serve, or about to be gone.
            Err((same, nix::errno::Errno::EWOULDBLOCK)) => {
                file = same;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((_, e)) => return Err(anyhow::Error::new(e).context(format!("cannot lock {}", path.display()))),
        }
    };
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(lock)
}

/// Where the notify sockets of runs are: for the host's instance the one that systemd makes for it below /run, in
/// which others find what they know the name of; else in the state directory.
pub fn notify(kind: InstanceKind, state_dir: &Path) -> anyhow::Result<NotifyOptions> {
    let stored = kind != InstanceKind::Private && service::keeps_descriptors();
    let given = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from).filter(|dir| dir.is_absolute());
    if let Some(dir) = given.filter(|_| kind == InstanceKind::System) {
        return Ok(NotifyOptions { dir, stored });
    }
    let dir = state_dir.join("notify");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(NotifyOptions { dir, stored })
}

/// What is printed from now on (a panic, at most) is kept in the state directory: whoever started us has gone.
pub fn redirect_stderr(state_dir: &Path) -> anyhow::Result<()> {
    let path = state_dir.join("instance.log");
    let file = fs::OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    nix::unistd::dup2_stderr(&file).context("cannot redirect the standard error")?;
    Ok(())
}

/// The word that names this instance's cgroups and is in the mark on each run's. In a file of its own, so that it
/// outlives a corrupt database: with it the live runs are found again.
pub fn key(state_dir: &Path) -> anyhow::Result<String> {
    let path = state_dir.join("instance-key");
    match fs::read_to_string(&path) {
        Ok(text) if text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit()) => return Ok(text),
        Ok(_) => {
            bail!("{} does not hold a key of 8 digits: restore it, or remove it once no run is live", path.display())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
    let mut bytes = [0; 4];
    super::launcher::random(&mut bytes)?;
    let key: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    // Whole or not at all: half a key would refuse every later start.
    let new = state_dir.join("instance-key.new");
    fs::write(&new, &key)
        .and_then(|()| fs::File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

/// The socket, its owner's alone. What is at its path is of a dead instance: we hold the lock.
pub fn bind(state_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    let _ = fs::remove_file(&path);
    let listener = bus::socket::bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
    let mode = if failpoint::without("guard.rights").is_some() { 0o666 } else { 0o600 };
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}
