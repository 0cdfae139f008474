use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;
use crate::kernel::clock;
use crate::model::RunId;

/// A git that lives makes all locks of its user doubtful, for other tests too: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The run's user: another one than root, of whose processes on this host some may show nobody what they have open.
const USER: u32 = 54_321;

/// A directory with a repository that a run has worked in for a minute.
struct Place {
    top: tempfile::TempDir,
    of: Worktree,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join(".git/refs/heads")).unwrap();
        fs::create_dir_all(top.path().join("src/deep")).unwrap();
        let now = clock::now().wall.0;
        let of = Worktree {
            run: RunId::from_bytes([1; 6]),
            number: 7,
            dir: top.path().to_owned(),
            uid: if is_root() { USER } else { nix::unistd::geteuid().as_raw() },
            since: Some(Wall(now - 60_000_000)),
            until: Wall(now + 60_000_000),
            removes: true,
        };
        Self { top, of, _alone: alone }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// Makes a file with all that is around it.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Looks, where all is the user's.
    fn look(&self) -> GitLocks {
        if is_root() {
            self.give(self.top.path(), USER);
        }
        self.look_as_it_is()
    }

    fn look_as_it_is(&self) -> GitLocks {
        look(&self.of, Instant::now())
    }

    fn give(&self, path: &Path, uid: u32) {
        assert!(Command::new("chown").args(["-hR", &uid.to_string()]).arg(path).status().unwrap().success());
    }

    /// What became of the only lock that there is.
    #[track_caller]
    fn fate(&self, name: &str) -> LockFate {
        let found = self.look();
        let [lock] = &found.locks[..] else { panic!("{found:?}") };
        assert_eq!((Path::new(&lock.path), found.total), (&*self.path(name), 1));
        assert_eq!(found.not_looked_at, Vec::<String>::new());
        lock.fate.clone()
    }

    /// Why the only lock was left alone. It is there.
    #[track_caller]
    fn left_alone(&self, name: &str) -> String {
        let LockFate::LeftAlone { why } = self.fate(name) else { panic!("{name} is not left alone") };
        assert!(fs::symlink_metadata(self.path(name)).is_ok(), "{name} is there");
        why
    }

    /// Why nothing was looked at.
    #[track_caller]
    fn unseen(&self) -> String {
        let found = self.look();
        assert_eq!((found.locks.len(), found.total), (0, 0), "{found:?}");
        found.not_looked_at.join("; ")
    }
}

/// A process of the test's that is ended with it.
struct Living(Child);

impl Drop for Living {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_lock_that_nobody_holds_is_told_and_removed_only_if_that_is_asked_for() {
    let mut place = Place::new();
    let lock = place.file(".git/index.lock", "");
    place.of.removes = false;
    assert_eq!(place.fate(".git/index.lock"), LockFate::Stale);
    assert!(lock.exists());
    place.of.removes = true;
    place.of.dir = place.path("src/deep");
    assert_eq!(place.fate(".git/index.lock"), LockFate::Removed);
    assert!(!lock.exists());
    assert_eq!(place.look(), GitLocks::default());
}

#[test]
fn locks_are_found_wherever_git_has_them_and_nothing_else_is_touched() {
    let place = Place::new();
    let names = [
        "HEAD",
        "config",
        "packed-refs",
        "shallow",
        "refs/heads/main",
        "refs/heads/a/b",
        "objects/pack/multi-pack-index",
    ];
    let locks: Vec<PathBuf> = names.iter().map(|name| place.file(&format!(".git/{name}.lock"), "")).collect();
    let others = [".git/index", ".git/hooks/x.lock", ".git/refs/heads/main", "src/Cargo.lock", "package.lock"];
    let others: Vec<PathBuf> = others.iter().map(|name| place.file(name, "")).collect();
    let found = place.look();
    assert_eq!((found.total as usize, found.locks.len()), (names.len(), names.len()), "{found:?}");
    assert!(found.locks.iter().all(|lock| lock.fate == LockFate::Removed), "{found:?}");
    assert!(locks.iter().all(|lock| !lock.exists()) && others.iter().all(|other| other.exists()));
}

#[test]
fn a_lock_that_a_living_process_has_open_is_its_own() {
    let place = Place::new();
    let lock = place.file(".git/index.lock", "");
    let mut sleep = Command::new("sleep");
    let sleep = Living(sleep.arg("600").stdin(File::open(lock).unwrap()).stdout(Stdio::null()).spawn().unwrap());
    let why = place.left_alone(".git/index.lock");
    assert!(why.ends_with(&format!(" (pid {}) has it open", sleep.0.id())), "{why}");
    drop(sleep);
    assert_eq!(place.fate(".git/index.lock"), LockFate::Removed);
}

/// It closes its lock and goes on to hold it while an editor or a hook runs.
#[test]
fn a_lock_is_doubtful_as_long_as_a_git_of_its_user_lives() {
    let place = Place::new();
    place.file(".git/index.lock", "");
    let git = place.path("git");
    fs::copy("/bin/sleep", &git).unwrap();
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let begun = |argument: &str| {
        let mut command = Command::new(&git);
        command.args(["600", argument]).stdin(Stdio::null());
        if is_root() {
            command.uid(USER).gid(USER);
        }
        let child = Living(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while crate::kernel::process::stat(child.0.id()).unwrap().comm != "git" {
            assert!(Instant::now() < deadline, "it is executed");
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    };
    let living = begun("0");
    let why = place.left_alone(".git/index.lock");
    assert_eq!(why, format!("git (pid {}) is there, and may hold it", living.0.id()));
    drop(living);
    assert_eq!(place.fate(".git/index.lock"), LockFate::Removed);
}

#[test]
fn what_is_no_lock_of_the_runs_is_left_alone_and_told_as_such() {
    let mut place = Place::new();
    let lock = place.path(".git/index.lock");
    assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
    assert_eq!(place.left_alone(".git/index.lock"), "it is no regular file");
    fs::remove_file(&lock).unwrap();

    let victim = place.file("victim", "");
    symlink(&victim, &lock).unwrap();
    assert_eq!(place.left_alone(".git/index.lock"), "it is no regular file");
    fs::remove_file(&lock).unwrap();

    fs::hard_link(&victim, &lock).unwrap();
    assert_eq!(place.left_alone(".git/index.lock"), "it is one of 2 links to the same file");
    fs::remove_file(&lock).unwrap();
    assert!(victim.exists());

    fs::create_dir(&lock).unwrap();
    assert_eq!(place.left_alone(".git/index.lock"), "it is no regular file");
    fs::remove_dir(&lock).unwrap();

    fs::write(&lock, "").unwrap();
    let since = place.of.since;
    place.of.since = Some(Wall(clock::now().wall.0 + 30_000_000));
    assert_eq!(place.left_alone(".git/index.lock"), "it is older than the run");
    place.of.since = None;
    assert!(place.left_alone(".git/index.lock").starts_with("the clock was set or the host suspended"));
    place.of.since = since;
    place.of.until = Wall(clock::now().wall.0 - 30_000_000);
    assert_eq!(place.left_alone(".git/index.lock"), "it was made after the run was over");
}

#[test]
fn what_belongs_to_another_user_is_neither_removed_nor_told_of() {
    if !is_root() {
        return;
    }
    let other = 54_322;
    let place = Place::new();
    place.file(".git/refs/of/index.lock", "");
    let fate = |of_lock: u32, of_directory: u32, of_git: u32| {
        place.give(&place.path(""), USER);
        place.give(&place.path(".git/refs/of"), of_directory);
        chown(place.path(".git/refs/of/index.lock"), Some(of_lock), None).unwrap();
        chown(place.path(".git"), Some(of_git), None).unwrap();
        let found = place.look_as_it_is();
        let told = found.locks.iter().map(|lock| lock.fate.why().to_owned()).chain(found.not_looked_at).next();
        assert!(place.path(".git/refs/of/index.lock").exists());
        told.unwrap_or_default()
    };
    assert_eq!(fate(other, USER, USER), format!("it belongs to uid {other}, and not to the run's user"));
    assert_eq!(fate(USER, other, USER), "its directory belongs to somebody else");
    let git = place.path(".git");
    assert_eq!(fate(USER, USER, other), format!("{} belongs to uid {other}, and not to the run's user", git.display()));
}

#[test]
fn no_link_leads_out_of_the_directory() {
    let mut place = Place::new();
    let victim = place.file("victim/.git/index.lock", "");
    fs::create_dir(place.path("work")).unwrap();
    symlink(place.path("victim/.git"), place.path("work/.git")).unwrap();
    place.of.dir = place.path("work");
    assert!(place.unseen().ends_with("/work/.git is a symbolic link, which is not followed"));
    symlink(place.path("victim"), place.path("link")).unwrap();
    place.of.dir = place.path("link");
    assert!(place.unseen().ends_with("/link: there is a symbolic link on the way, which is not followed"));
    fs::remove_dir_all(place.path(".git/refs")).unwrap();
    symlink(place.path("victim/.git"), place.path(".git/refs")).unwrap();
    place.of.dir = place.path("");
    let found = place.look();
    assert!(
        found.locks.is_empty() && found.not_looked_at[0].contains("/.git/refs: there is a symbolic link"),
        "{found:?}"
    );
    assert!(victim.exists());
}

#[test]
fn a_file_that_names_a_repository_is_believed_only_if_that_leads_back() {
    let mut place = Place::new();
    let victim = place.file("victim/.git/index.lock", "");
    place.of.dir = place.path("elsewhere/work");
    let refused = |named: &str, why: &str| {
        place.file("elsewhere/work/.git", named);
        let told = place.unseen();
        assert!(told.contains(why), "{told}");
    };
    let named = format!("gitdir: {}\n", victim.parent().unwrap().display());
    refused(&named, "/victim/.git, which is in no repository around it");
    refused("gitdir: /nowhere/at/all\n", "/nowhere/at/all: No such file or directory");
    refused("something else", "/elsewhere/work/.git: it is not what git writes there");
    refused(&"x".repeat(9000), "it is not what git writes there");
    // It looks like one of a worktree, and names another.
    place.file("victim/.git/worktrees/w/commondir", "../..\n");
    place.file("victim/.git/worktrees/w/gitdir", &format!("{}\n", place.path("other/.git").display()));
    place.file("elsewhere/work/.git", &format!("gitdir: {}\n", place.path("victim/.git/worktrees/w").display()));
    assert!(place.unseen().ends_with("/victim/.git/worktrees/w, which does not lead back"));
    place.file("victim/.git/worktrees/w/commondir", &format!("{}\n", place.path(".git").display()));
    assert!(place.unseen().ends_with("which is not where worktrees of a repository are"));
    assert!(victim.exists());
}

#[test]
fn locks_of_a_worktree_and_of_its_repository_are_found() {
    let mut place = Place::new();
    place.file(".git/worktrees/w/commondir", "../..\n");
    place.file(".git/worktrees/w/gitdir", &format!("{}\n", place.path("beside/w/.git").display()));
    place.file("beside/w/.git", &format!("gitdir: {}\n", place.path(".git/worktrees/w").display()));
    place.file(".git/worktrees/w/index.lock", "");
    place.file(".git/packed-refs.lock", "");
    let of_another = place.file(".git/worktrees/v/index.lock", "");
    place.of.dir = place.path("beside/w");
    let found = place.look();
    let paths: Vec<&str> = found.locks.iter().map(|lock| lock.path.as_str()).collect();
    assert_eq!(
        paths,
        [place.path(".git/worktrees/w/index.lock"), place.path(".git/packed-refs.lock")]
            .map(|p| p.to_str().unwrap().to_owned())
    );
    assert!(found.locks.iter().all(|lock| lock.fate == LockFate::Removed) && of_another.exists(), "{found:?}");
}

#[test]
fn locks_of_submodules_are_found_from_inside_and_from_outside() {
    let mut place = Place::new();
    place.file(".git/modules/lib/x/HEAD", "");
    place.file("lib/x/.git", "gitdir: ../../.git/modules/lib/x\n");
    for dir in ["", "lib/x"] {
        place.file(".git/modules/lib/x/index.lock", "");
        place.of.dir = place.path(dir);
        assert_eq!(place.fate(".git/modules/lib/x/index.lock"), LockFate::Removed, "{dir}");
    }
}

#[test]
fn a_repository_without_end_takes_no_time_and_that_is_said() {
    let mut place = Place::new();
    place.of.dir = place.path("src");
    let deep: PathBuf = std::iter::repeat_n("d", 100).collect();
    fs::create_dir_all(place.path(".git/refs/heads").join(deep)).unwrap();
    let begun = Instant::now();
    let found = place.look();
    assert!(found.not_looked_at[0].ends_with(": it goes too deep"), "{found:?}");
    for n in 0..60_000 {
        File::create(place.path(&format!(".git/{n}"))).unwrap();
    }
    let made = begun.elapsed();
    let found = place.look();
    assert!(begun.elapsed() - made < BUDGET + Duration::from_secs(1), "{:?}", begun.elapsed() - made);
    assert!(found.not_looked_at[0].starts_with("all of ") && found.locks.is_empty(), "{found:?}");
    for n in 0..60_000 {
        fs::rename(place.path(&format!(".git/{n}")), place.path(&format!(".git/{n}.lock"))).unwrap();
    }
    let found = place.look();
    assert!(found.total > 16 && found.locks.len() == 16, "{} of {}", found.locks.len(), found.total);
}

#[test]
fn a_lock_may_have_any_name() {
    let place = Place::new();
    let name = OsStr::from_bytes(b"a\n\x1b[31m\xff.lock");
    fs::write(place.path(".git/refs/heads").join(name), "").unwrap();
    let found = place.look();
    assert!(found.locks[0].path.ends_with("/.git/refs/heads/a\n\x1b[31m\u{fffd}.lock"), "{found:?}");
    assert_eq!(found.locks[0].fate, LockFate::Removed);
}

#[test]
fn nothing_is_done_any_more_once_nobody_waits_for_it() {
    let place = Place::new();
    let lock = place.file(".git/index.lock", "");
    let found = look(&place.of, Instant::now() - BUDGET);
    assert!(found.not_looked_at[0].ends_with("there was no time to look"), "{found:?}");
    assert!(lock.exists());
}

#[test]
fn where_there_is_no_repository_there_is_nothing_to_tell() {
    let mut place = Place::new();
    fs::remove_dir_all(place.path(".git")).unwrap();
    assert_eq!(place.look(), GitLocks::default());
    place.of.dir = place.path("gone");
    assert!(place.unseen().contains("/gone: No such file or directory"));
    place.of.dir = "relative".into();
    assert_eq!(place.unseen(), "locks of git: relative is no absolute path");
}
