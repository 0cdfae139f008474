//! Where Guardian runs: with all rights, with none, or in a container that shows it half of the host.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::host::*;

/// A place. Every `guardian` of a world runs there, and so do its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// As whoever runs the tests: root, with a cgroup2 that can be written.
    Root,
    /// As whoever runs the tests, with `--backend subtree`.
    Subtree,
    /// As a user that has nothing, not even an entry in /etc/passwd.
    User,
    /// As root in a mount namespace whose cgroup2 is read-only, as docker makes it.
    ReadOnlyCgroup,
    /// As such a user where /proc shows nobody else's processes.
    HidePidUser,
    /// As root where /proc shows others nobody's processes.
    HidePidRoot,
    /// As such a user in a user namespace that allows no other below it.
    NoNamespaces,
}

impl Place {
    /// Whether a cgroup contains runs there, if nothing else is asked for: a directory, or a scope of systemd's.
    pub fn has_cgroups(self) -> bool {
        matches!(self, Place::Root | Place::HidePidRoot)
    }

    /// Whether it is that of an ordinary user.
    pub fn is_a_users(self) -> bool {
        matches!(self, Place::User | Place::HidePidUser | Place::NoNamespaces)
    }

    /// Why this place cannot be made here, if it cannot.
    pub fn can_be_made(self) -> Result<(), String> {
        if self.has_cgroups() {
            cgroup_can_be_made()?;
        }
        if self == Place::Root || self == Place::Subtree {
            return Ok(());
        }
        if !rustix::process::geteuid().is_root() {
            return Err(format!("only root can make the place {self:?}"));
        }
        let uid = self.is_a_users().then(spare_uid);
        match self.enter(uid, Path::new("true"), &[] as &[&str]).output() {
            Ok(done) if done.status.success() => Ok(()),
            Ok(done) => Err(format!("the place {self:?} cannot be made: {}", String::from_utf8_lossy(&done.stderr))),
            Err(e) => Err(format!("the place {self:?} cannot be made: {e}")),
        }
    }

    /// A program that is executed there, under the pid that is started.
    pub fn enter<S: AsRef<OsStr>>(self, uid: Option<u32>, program: &Path, args: &[S]) -> Command {
        // What is mounted is seen by nobody else, and goes away with the last process that is there.
        let mount = match self {
            Place::Root | Place::Subtree | Place::User | Place::NoNamespaces => None,
            Place::ReadOnlyCgroup => {
                let mount = cgroup2_mount().map(|m| format!("mount -o remount,bind,ro '{}' || exit 99; ", m.display()));
                Some(mount.unwrap_or_default())
            }
            Place::HidePidUser | Place::HidePidRoot => {
                Some("mount -t proc -o hidepid=2 proc /proc || exit 99; ".into())
            }
        };
        let mut words: Vec<String> = Vec::new();
        if let Some(mount) = mount {
            words.extend(["unshare", "--mount", "--propagation", "private", "sh", "-c"].map(str::to_owned));
            words.extend([format!("{mount}exec \"$@\""), "sh".to_owned()]);
        }
        if let Some(uid) = uid {
            words.extend(["setpriv", "--reuid", &uid.to_string(), "--regid", &uid.to_string()].map(str::to_owned));
            words.push("--clear-groups".to_owned());
        }
        if self == Place::NoNamespaces {
            // The limit is that of the new user namespace. The rights that it takes to set it are given up again.
            let limit = "echo 0 >/proc/sys/user/max_user_namespaces || exit 99; exec setpriv --inh-caps=-all --ambient-caps=-all \"$@\"";
            words.extend(
                ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", limit, "sh"].map(str::to_owned),
            );
        }
        let mut all = words.iter().map(OsStr::new).chain([program.as_os_str()]).chain(args.iter().map(AsRef::as_ref));
        let mut command = Command::new(all.next().unwrap());
        command.args(all);
        command
    }
}

/// A uid that nobody has: no account and no process. Processes of it are those of one world.
pub fn spare_uid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let has_account = |uid: u32| accounts.lines().any(|l| l.split(':').nth(2) == Some(&uid.to_string()));
    loop {
        // Below 65535, which is the highest that a container with a user namespace may have.
        let uid = 60_000 + (std::process::id() * 37 + NEXT.fetch_add(1, Ordering::Relaxed)) % 5_000;
        if !has_account(uid) && !pids().into_iter().any(|pid| uid_of(pid) == Some(uid)) {
            return uid;
        }
    }
}

/// Whether any user may execute this file.
pub fn can_be_reached(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let allows = |p: &Path, mode: u32| std::fs::metadata(p).is_ok_and(|m| m.permissions().mode() & mode == mode);
    allows(path, 0o005) && path.ancestors().skip(1).all(|dir| allows(dir, 0o001))
}
