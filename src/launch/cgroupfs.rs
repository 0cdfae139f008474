//! The backend `cgroupfs`: a directory of cgroup2 for each run, made by ourselves.
//!
//! ```text
//!   <base>/                    guardian below the mount, our own delegated cgroup, or as configured
//!     <instance key>/          the instance's subtree: nothing else is ever touched
//!       instance/              the instance itself, so that no run's kill reaches it
//!       bystanders/            processes from a delegated base itself, where they were in the way of controllers
//!       run_0123456789ab/      a run, marked with user.guardian.run = "KEY RUN BOOT"
//! ```
//!
//! Owns the choice of the base, the subtree, and attaching processes. A directory counts as a run's only if
//! inode or mark prove it; what cannot be proved is not killed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{Access, AtFlags, CWD, Mode, accessat, getxattr, mkdirat, unlinkat};
use rustix::io::Errno;

use super::limits;
use super::mark::{Owner, is_marked};
use crate::failpoint;
use crate::kernel::cgroup::{CgroupDir, parse_pids};
use crate::kernel::mount::{self, Cgroup2Mount};
use crate::kernel::{KernelError, process};
use crate::model::{ProcessId, Resources, RunId};

/// What holds the subtrees of all instances, where the tree is ours.
const BASE: &str = "guardian";
/// The directory of the instance itself.
const INSTANCE: &str = "instance";

/// The directory of processes that were in the way.
const BYSTANDERS: &str = "bystanders";

/// Present where systemd is PID 1 (`sd_booted(3)`): then the cgroup tree is systemd's, but for what it delegated.
const SYSTEMD: &str = "/run/systemd/system";

/// How the backend is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cgroup below which the subtree is made; chosen if none is configured.
    pub base: Option<PathBuf>,
    /// Where cgroup2 is mounted; found if none is given.
    pub mount: Option<Cgroup2Mount>,
    /// The name of the instance's directory: short, of letters, digits, `-`, `_` and `.`.
    pub key: String,
    /// Whose runs they are.
    pub owner: Owner,
    /// Whether the instance moves itself into its own directory.
    pub move_instance: bool,
}

/// The instance's subtree.
#[derive(Debug)]
pub struct CgroupTree {
    dir: CgroupDir,
    mount: Cgroup2Mount,
    /// The cgroups whose controllers we may enable, the highest first, our own last.
    chain: Vec<PathBuf>,
    /// The base, if systemd delegated it: what is in it may be moved about below it.
    delegated: Option<PathBuf>,
    owner: Owner,
    /// The cgroup that the instance was started in.
    home: Option<PathBuf>,
}

impl CgroupTree {
    /// Makes the subtree, or opens the one of an earlier instance with the same key.
    pub fn open(options: &Options) -> Result<Self, KernelError> {
        check_key(&options.key)?;
        let mount = match &options.mount {
            Some(mount) => mount.clone(),
            None => mount::find()?,
        };
        if mount.read_only {
            return Err(KernelError::NotDelegated {
                path: mount.mount_point,
                why: "cgroup2 is mounted read-only: start the container with a writable one (podman: \
                      --security-opt unmask=/sys/fs/cgroup; docker: --privileged or --cgroupns=private)"
                    .into(),
            });
        }
        let owns_tree = rustix::process::geteuid().is_root() && !Path::new(SYSTEMD).exists();
        let base = match &options.base {
            Some(base) => base.clone(),
            None if owns_tree => mount.mount_point.join(BASE),
            None => delegated(&mount, &options.key)?,
        };
        if mount.cgroup_of(&base).is_none() {
            return Err(KernelError::NotDelegated {
                why: format!("it is not below {}, where cgroup2 is mounted", mount.mount_point.display()),
                path: base,
            });
        }
        let path = base.join(&options.key);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(|e| not_delegated(&path, &e))?;
        let highest = if owns_tree { &mount.mount_point } else { &base };
        let mut chain: Vec<PathBuf> =
            path.ancestors().take_while(|a| a.starts_with(highest)).map(Path::to_owned).collect();
        chain.reverse();
        let subtree = Self {
            dir: CgroupDir::open(path)?,
            chain,
            delegated: has_delegate_mark(&base).then_some(base),
            owner: options.owner.clone(),
            home: process::cgroup(std::process::id()).ok().and_then(|cgroup| mount.directory_of(&cgroup)),
            mount,
        };
        if options.move_instance {
            subtree.move_instance()?;
        }
        Ok(subtree)
    }

    /// An instance that was started from inside a run's cgroup would die with it. In a cgroup of its own it does not,
    /// and none of its processes is in the way of controllers: a cgroup with processes hands none on.
    fn move_instance(&self) -> Result<(), KernelError> {
        let leaf = self.leaf(INSTANCE)?;
        leaf.write("cgroup.procs", "0").map_err(|e| KernelError::NotDelegated {
            path: leaf.path().to_owned(),
            why: format!(
                "the instance cannot move there ({e}): writing cgroup.procs needs the right to do so in the cgroup \
                 that both have in common; start it with `systemd-run --user --scope -p Delegate=yes`, or as root"
            ),
        })
    }

    /// A cgroup beside the runs, made if there is none.
    fn leaf(&self, name: &str) -> Result<CgroupDir, KernelError> {
        match mkdirat(&self.dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.dir.child(name.as_ref()),
            Err(e) => Err(self.error("make", name, e)),
        }
    }

    /// Moves the processes that are in this cgroup itself out of the way of controllers, if it is the base and was
    /// delegated: the client that started the instance, or a shell around both. In any other it gives false.
    pub fn make_room(&self, path: &Path) -> Result<bool, KernelError> {
        if self.delegated.as_deref() != Some(path) {
            return Ok(false);
        }
        let base = CgroupDir::open(path)?;
        let name = name_of(&base, &self.mount)?;
        let bystanders = self.leaf(BYSTANDERS)?;
        let aside = name_of(&bystanders, &self.mount)?;
        let move_aside = |pid| {
            let pidfd = process::open(pid)?;
            let id = process::identify(&pidfd)?;
            if process::cgroup(pid)? == name { attach(&bystanders, &aside, id, pidfd) } else { Ok(()) }
        };
        for pid in base.parsed("cgroup.procs", parse_pids)? {
            move_aside(pid).or_else(|e| if e.is_gone() { Ok(()) } else { Err(e) })?;
        }
        Ok(true)
    }

    /// Leaves nothing of an instance that stops: moves back to where it was started, or to the top if that is gone and
    /// the tree is ours, and removes its own cgroups. Those that hold runs, or are another instance's, are in use and
    /// stay. What systemd delegated it removes itself.
    pub fn leave(&self) {
        let top = self.chain.first().filter(|top| **top == self.mount.mount_point);
        let places = self.home.iter().chain(top);
        let moved = places.into_iter().any(|place| fs::write(place.join("cgroup.procs"), "0").is_ok());
        if moved {
            let own = [self.dir.path().join(INSTANCE), self.dir.path().join(BYSTANDERS), self.dir.path().to_owned()];
            let base = self.dir.path().parent().filter(|base| base.file_name().is_some_and(|name| name == BASE));
            own.iter().map(PathBuf::as_path).chain(base).for_each(|dir| drop(fs::remove_dir(dir)));
        }
    }

    fn error(&self, op: &'static str, name: &str, errno: Errno) -> KernelError {
        KernelError::from_errno(op, format!("cgroup {}", self.dir.path().join(name).display()), errno)
    }

    /// The controllers that no run here can have.
    pub fn missing_controllers(&self) -> Vec<&'static str> {
        let top = self.chain.first().and_then(|top| CgroupDir::open_unchecked(top).ok());
        let there = top.and_then(|top| top.read("cgroup.controllers").ok()).unwrap_or_default();
        let is_there = |c: &&str| there.split_ascii_whitespace().any(|t| t == *c);
        ["memory", "pids", "cpu"].into_iter().filter(|c| !is_there(c)).collect()
    }

    /// The subtree's directory, open.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The subtree's directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a run's cgroup and marks it. `Busy` if there is one of that name.
    pub fn create(&self, run: RunId) -> Result<CgroupDir, KernelError> {
        let name = run.to_string();
        match mkdirat(&self.dir, name.as_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(self.error("make", &name, Errno::BUSY)),
            Err(e) => return Err(self.error("make", &name, e)),
        }
        let cgroup = self.dir.child(name.as_ref())?;
        let _ = failpoint::hit("cgroup.made");
        self.owner.mark(run, &cgroup);
        Ok(cgroup)
    }

    /// Sets limits on a run's cgroup. Gives what cannot be done as asked, in sentences.
    pub fn limit(&self, cgroup: &CgroupDir, resources: &Resources) -> Vec<String> {
        limits::apply(&self.chain, cgroup, resources, &|busy| self.make_room(busy))
    }

    /// Opens the cgroup of a run of which no more is known than its name, if its mark proves that it is that one. One without
    /// a mark in which nothing is, as an instance leaves it that dies while it makes it, is removed.
    pub fn reopen(&self, run: RunId) -> Result<CgroupDir, KernelError> {
        let name = run.to_string();
        let cgroup = self.dir.child(name.as_ref())?;
        match self.owner.prove(run, &cgroup, None) {
            Ok(()) => Ok(cgroup),
            // The kernel removes none with processes or other cgroups in it.
            Err(_) if !is_marked(&cgroup) && unlinkat(&self.dir, name.as_str(), AtFlags::REMOVEDIR).is_ok() => {
                Err(KernelError::Gone { what: format!("the cgroup of {run}") })
            }
            Err(e) => Err(e),
        }
    }

    /// The runs that have a directory here.
    pub fn list(&self) -> Result<Vec<RunId>, KernelError> {
        let names = self.dir.children()?;
        let mut runs: Vec<RunId> = names.iter().filter_map(|n| n.to_str().ok()?.parse().ok()).collect();
        runs.sort();
        Ok(runs)
    }

    /// Where cgroup2 is mounted.
    pub fn mount(&self) -> &Cgroup2Mount {
        &self.mount
    }
}

/// The name of a cgroup in `/proc/PID/cgroup`.
pub fn name_of(cgroup: &CgroupDir, mount: &Cgroup2Mount) -> Result<PathBuf, KernelError> {
    mount.cgroup_of(cgroup.path()).ok_or_else(|| KernelError::NotDelegated {
        path: cgroup.path().to_owned(),
        why: format!("it is not below the mount of cgroup2 at {}", mount.mount_point.display()),
    })
}

/// Moves a process into a run's cgroup, unless it is there, and checks that it is that process and that it is there. `name`
/// is that of the cgroup in `/proc/PID/cgroup`.
pub fn attach(cgroup: &CgroupDir, name: &Path, id: ProcessId, pidfd: impl AsFd) -> Result<(), KernelError> {
    cgroup.verify()?;
    let what = || format!("process {}", id.pid);
    let pidfd = pidfd.as_fd();
    let alive = || match process::has_exited(pidfd) {
        true => Err(KernelError::Gone { what: what() }),
        false => Ok(()),
    };
    // cgroup.procs takes a number and nothing else. Alive before and after the write, the process kept its pid in
    // between, so the number was its own. One that began its life in the cgroup need not be moved.
    alive()?;
    if process::cgroup(id.pid)? != name {
        cgroup.write("cgroup.procs", &id.pid.to_string())?;
    }
    let found = process::cgroup(id.pid)?;
    if process::stat(id.pid)?.start_ticks != id.start_ticks {
        return Err(KernelError::NotOurs { what: what(), why: "it started at another time".into() });
    }
    // Last, so that all of the above was read of this process and not of a later one with its pid.
    alive()?;
    match found == name {
        true => Ok(()),
        false => Err(KernelError::NotOurs {
            what: what(),
            why: format!("it is in cgroup {}, not {}", found.display(), name.display()),
        }),
    }
}

/// The key is a directory's name beside those of other instances, and a word of the mark.
fn check_key(key: &str) -> Result<(), KernelError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    match !key.is_empty() && key.len() <= 64 && !key.starts_with('.') && key.bytes().all(fine) {
        true => Ok(()),
        false => Err(KernelError::Io {
            op: "use",
            what: format!("instance key {:?}", key.chars().take(70).collect::<String>()),
            source: io::Error::new(
                io::ErrorKind::InvalidInput,
                "it must be 1 to 64 letters, digits, '-', '_' or '.', and not begin with '.'",
            ),
        }),
    }
}

/// Our own cgroup, if it was handed to us.
fn delegated(mount: &Cgroup2Mount, key: &str) -> Result<PathBuf, KernelError> {
    let name = process::cgroup(std::process::id())?;
    let own = mount.directory_of(&base_of(&name, key)).ok_or_else(|| KernelError::NotDelegated {
        path: mount.mount_point.clone(),
        why: format!("our own cgroup {} is outside of what is mounted there", name.display()),
    })?;
    let refuse = |why: String| Err(KernelError::NotDelegated { path: own.clone(), why });
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere, but systemd moves and removes what it finds in cgroups that it did not delegate.
        return match has_delegate_mark(&own) {
            true => Ok(own),
            false => refuse(
                "the cgroup tree belongs to systemd, which did not delegate this cgroup: start the instance as a unit \
                 with Delegate=yes (`systemd-run --scope -p Delegate=yes guardiand …`)"
                    .into(),
            ),
        };
    }
    // Making a directory is not enough: moving a process asks for the right to write cgroup.procs of the cgroup that
    // it comes from, or of one above both.
    for file in ["", "cgroup.procs"] {
        if let Err(e) = accessat(CWD, own.join(file), Access::WRITE_OK, AtFlags::EACCESS) {
            return refuse(format!(
                "we may not write there ({e}): start the instance with `systemd-run --user --scope -p Delegate=yes`, \
                 or name a cgroup that was delegated to you in the configuration"
            ));
        }
    }
    Ok(own)
}

/// An instance that is already in its own subtree, or in a run of it, makes no subtree within it.
fn base_of(cgroup: &Path, key: &str) -> PathBuf {
    let inner = cgroup.ancestors().find(|a| a.file_name().is_some_and(|n| n == key));
    inner.and_then(Path::parent).unwrap_or(cgroup).to_owned()
}

/// systemd marks what it delegates: `trusted.delegate` since 236, `user.delegate` since 251.
fn has_delegate_mark(path: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = Vec::with_capacity(8);
        getxattr(path, *name, spare_capacity(&mut value)).is_ok() && value == b"1"
    })
}

fn not_delegated(path: &Path, error: &io::Error) -> KernelError {
    KernelError::NotDelegated {
        path: path.to_owned(),
        why: format!(
            "{error}; name a cgroup below the mount of cgroup2 that you may write to in the configuration, \
             or start the instance as root"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_in_its_own_subtree_makes_no_subtree_within() {
        let cases = [
            ("/user/app", "/user/app"),
            ("/user/app/u0/instance", "/user/app"),
            ("/user/app/u0/run_000000000001/sub", "/user/app"),
            ("/u0", "/"),
            ("/", "/"),
        ];
        for (own, base) in cases {
            assert_eq!(base_of(Path::new(own), "u0"), Path::new(base), "{own}");
        }
    }

    #[test]
    fn a_key_is_one_plain_directory_name() {
        for good in ["system", "u1000", "private-3f.a_b"] {
            check_key(good).unwrap();
        }
        for bad in ["", ".", "..", ".x", "a/b", "a b", "é", &"k".repeat(65)] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_base_outside_of_the_mount_is_refused_before_anything_is_made() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().join("base");
        let mount = Cgroup2Mount { mount_point: "/cg".into(), root: "/".into(), read_only: false };
        let options = Options {
            base: Some(base.clone()),
            mount: Some(mount),
            key: "test".into(),
            owner: Owner::new("test", "boot", true),
            move_instance: false,
        };
        let error = CgroupTree::open(&options).unwrap_err().to_string();
        assert!(error.contains("not below /cg"), "{error}");
        assert!(!base.exists());
    }

    #[test]
    fn a_read_only_mount_is_refused_with_a_way_out() {
        let mount = Cgroup2Mount { mount_point: "/cg".into(), root: "/".into(), read_only: true };
        let options = Options {
            base: None,
            mount: Some(mount),
            key: "test".into(),
            owner: Owner::new("test", "boot", true),
            move_instance: false,
        };
        let error = CgroupTree::open(&options).unwrap_err().to_string();
        assert!(error.contains("read-only") && error.contains("start the container"), "{error}");
    }
}
