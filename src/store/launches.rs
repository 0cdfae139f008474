//! What queued runs are to execute: a file for each, beside the database and not in it, since it has the environment.
//!
//! ```text
//!  STATE/queue/run_0123456789ab:  guardian-launch 1 run_0123456789ab ARGUMENTS VARIABLES PROMPT\n
//!                                 cwd\0  argument\0…  KEY=VALUE\0…  prompt
//! ```
//!
//! PROMPT is the length of the prompt in bytes, `-` where there is none. A file is its owner's alone, is synced before the run
//! is on record, and is removed when the run is over. Whoever executes the command empties it just before: while it is whole,
//! nothing of the run was executed, and when it is empty, or gone, the run had its turn.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::model::{KeptLaunch, RunId};

/// The directory, in the state directory.
const DIR: &str = "queue";
/// The first word of a file, and the version of what follows.
const HEAD: &str = "guardian-launch 1";
/// The bus takes 1 MiB of arguments, 1 MiB of environment and 4 MiB of prompt, and a path.
const MAX_BYTES: u64 = 7 << 20;
/// What stands for no prompt.
const NONE: &str = "-";

/// The launches that one state directory keeps.
#[derive(Debug, Clone)]
pub struct Launches(PathBuf);

impl Launches {
    /// Those of this state directory, whether there are any or not.
    pub fn of(state_dir: &Path) -> Self {
        Self(state_dir.join(DIR))
    }

    /// The file of one.
    pub fn path(&self, run: RunId) -> PathBuf {
        self.0.join(run.to_string())
    }

    /// Keeps one, such that a power cut leaves it; in the place of what was kept of the run.
    pub fn keep(&self, launch: &KeptLaunch) -> io::Result<()> {
        let path = self.path(launch.run);
        let new = path.with_extension("new");
        let keep = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
            remove(&new)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&bytes_of(launch))?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.0)?.sync_all()
        };
        keep().map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// Removes one, if it is there.
    pub fn forget(&self, run: RunId) -> io::Result<()> {
        remove(&self.path(run))
    }

    /// Reads one; says what is wrong with it.
    pub fn read(&self, run: RunId) -> Result<KeptLaunch, String> {
        let path = self.path(run);
        let failed = |e: io::Error| format!("{} cannot be read: {e}", path.display());
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        // Who could write it would have it executed as the user of the run.
        if !meta.is_file() || meta.uid() != own || meta.mode() & 0o077 != 0 || meta.len() > MAX_BYTES {
            return Err(format!("{} is no file of uid {own} alone, or is too large", path.display()));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        let launch = read_from(&bytes).filter(|launch| launch.run == run);
        launch.ok_or_else(|| format!("{} does not hold the launch of {run}", path.display()))
    }

    /// Removes what is kept of runs that do not wait any more; gives what could not be removed.
    pub fn tidy(&self, waiting: &BTreeMap<RunId, ()>) -> Vec<io::Error> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let is_waiting = |name: &str| name.parse().is_ok_and(|run: RunId| waiting.contains_key(&run));
        let stale = entries.flatten().filter(|entry| !entry.file_name().to_str().is_some_and(is_waiting));
        stale.filter_map(|entry| remove(&entry.path()).err()).collect()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn bytes_of(launch: &KeptLaunch) -> Vec<u8> {
    let prompt = launch.prompt.as_ref().map_or(NONE.to_owned(), |prompt| prompt.len().to_string());
    let (arguments, variables) = (launch.argv.len(), launch.env.len());
    let mut bytes = format!("{HEAD} {} {arguments} {variables} {prompt}\n", launch.run).into_bytes();
    for text in std::iter::once(&launch.cwd).chain(&launch.argv).chain(&launch.env) {
        bytes.extend_from_slice(text);
        bytes.push(0);
    }
    bytes.extend_from_slice(launch.prompt.as_deref().unwrap_or_default());
    bytes
}

fn read_from(bytes: &[u8]) -> Option<KeptLaunch> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (head, rest) = bytes.split_at(end);
    let head = std::str::from_utf8(head).ok()?.strip_prefix(HEAD)?;
    let mut words = head.split_ascii_whitespace();
    let run = words.next()?.parse().ok()?;
    let (arguments, variables): (usize, usize) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let prompt = match words.next()? {
        NONE => None,
        length => Some(length.parse::<usize>().ok()?),
    };
    let mut rest = rest.get(1..)?;
    let mut texts = Vec::new();
    for _ in 0..arguments.checked_add(variables)?.checked_add(1)? {
        let end = rest.iter().position(|b| *b == 0)?;
        texts.push(rest.get(..end)?.to_vec());
        rest = rest.get(end + 1..)?;
    }
    // All of it is there, and nothing else.
    if words.next().is_some() || arguments == 0 || rest.len() != prompt.unwrap_or(0) {
        return None;
    }
    let env = texts.split_off(1 + arguments);
    let argv = texts.split_off(1);
    Some(KeptLaunch { run, argv, env, cwd: texts.pop()?, prompt: prompt.map(|_| rest.to_vec()) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn launch(n: u8) -> KeptLaunch {
        let texts = |all: &[&[u8]]| all.iter().map(|text| text.to_vec()).collect();
        KeptLaunch {
            run: RunId::from_bytes([0, 0, 0, 0, 0, n]),
            argv: texts(&[b"sh", b"-c", b"", b"a\nb \xff"]),
            env: texts(&[b"SECRET=a\nb", b"EMPTY="]),
            cwd: b"/tmp/\xfe".to_vec(),
            prompt: (n % 2 == 1).then(|| b"do\0it\n".to_vec()),
        }
    }

    #[test]
    fn a_launch_is_read_as_it_was_kept_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let launches = Launches::of(dir.path());
        let one = launch(1);
        assert!(launches.read(one.run).unwrap_err().contains("cannot be read"));
        for kept in [launch(2), launch(1), launch(1)] {
            launches.keep(&kept).unwrap();
            assert_eq!(launches.read(kept.run), Ok(kept));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&launches.0), mode(&launches.path(one.run))), (0o700, 0o600));
        launches.forget(one.run).unwrap();
        launches.forget(one.run).unwrap();
        assert!(launches.read(one.run).is_err());
    }

    #[test]
    fn what_is_cut_or_changed_or_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let launches = Launches::of(dir.path());
        let one = launch(1);
        launches.keep(&one).unwrap();
        let (path, whole) = (launches.path(one.run), bytes_of(&one));
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(launches.read(one.run).is_err(), "cut after {cut} bytes");
        }
        fs::write(&path, [&whole[..], b"X=1\0"].concat()).unwrap();
        assert!(launches.read(one.run).is_err());
        fs::write(&path, bytes_of(&launch(2))).unwrap();
        assert!(launches.read(one.run).unwrap_err().contains("does not hold the launch"));
        fs::write(&path, &whole).unwrap();
        assert!(launches.read(one.run).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(launches.read(one.run).unwrap_err().contains("alone"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(launches.read(one.run).is_err());
    }

    #[test]
    fn what_no_run_waits_for_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let launches = Launches::of(dir.path());
        assert!(launches.tidy(&BTreeMap::new()).is_empty());
        (1..=3).for_each(|n| launches.keep(&launch(n)).unwrap());
        fs::write(launches.path(launch(1).run).with_extension("new"), "half").unwrap();
        assert!(launches.tidy(&BTreeMap::from([(launch(2).run, ())])).is_empty());
        let left: Vec<_> = fs::read_dir(&launches.0).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, [launch(2).run.to_string().as_str()]);
    }
}
