//! Ending what is in a cgroup: SIGTERM to every process, `cgroup.kill`, and what stands in for it on old kernels.
//!
//! Owns the passes over `cgroup.procs`. Each process is opened by pidfd, then seen to be in the cgroup, then signalled
//! through the pidfd. Decides nothing: when to terminate, when to kill and when to repeat is the caller's.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use super::cgroup::CgroupDir;
use super::{KernelError, process};
use crate::failpoint;

/// Passes over the processes before the rest is left to the caller's next call. A process forked during a pass is met
/// by the next one; a tree that forks faster than it is read would never let the passes end.
const MAX_PASSES: usize = 32;

/// Time for all passes, so that the engine's thread is never held up by a fork storm.
pub(super) const MAX_TIME: Duration = Duration::from_millis(250);

/// The cgroup whose processes are meant.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its directory.
    pub dir: &'a CgroupDir,
    /// Its name as in `/proc/PID/cgroup`.
    pub name: &'a Path,
}

impl Target<'_> {
    /// Sends SIGTERM, then SIGCONT, to every process, and thaws what is frozen. Gives the number signalled.
    ///
    /// A stopped process acts on SIGTERM only after SIGCONT, a frozen one only after the thaw.
    pub fn terminate(&self) -> Result<u32, KernelError> {
        let signalled = self.signal_until_none_is_new(&[Signal::TERM, Signal::CONT]);
        // Thawed even if the passes failed: a cgroup left frozen would sit out the whole grace period.
        let thawed = self.thaw();
        let signalled = signalled?;
        thawed?;
        Ok(signalled)
    }

    /// Kills every process. Gives the number that were there just before.
    ///
    /// `cgroup.kill` (Linux 5.14) marks the cgroup, so that children forked during the kill die too, and reaches
    /// sub-cgroups, frozen and threaded ones. It is EOPNOTSUPP in a threaded cgroup, which a run can make of its own
    /// root: then, on older kernels and when forced, the processes are killed one by one.
    pub fn kill(&self, force_fallback: bool) -> Result<u32, KernelError> {
        // A number for the receipt: what keeps it from being counted does not keep the kill from being done.
        let present = self.dir.pids().map_or(0, |pids| u32::try_from(pids.len()).unwrap_or(u32::MAX));
        if !force_fallback && failpoint::without("guard.kill").is_none() {
            match self.dir.write("cgroup.kill", "1") {
                Ok(()) => return Ok(present),
                Err(e) if e.is_gone() && self.dir.has("cgroup.procs") => {}
                Err(e) if e.errno() == Some(Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        self.kill_one_by_one().map(|()| present)
    }

    /// Stops forking and running, kills through pidfds until no process is new, and thaws: a frozen process dies of
    /// SIGKILL at once, but one that was being frozen may still be on its way.
    fn kill_one_by_one(&self) -> Result<(), KernelError> {
        // Both are help, not condition: without the pids controller or the freezer (Linux 5.2) the passes still win
        // against anything but a fork storm.
        let _ = self.dir.write("pids.max", "0");
        let _ = self.dir.write("cgroup.freeze", "1");
        let killed = self.signal_until_none_is_new(&[Signal::KILL]);
        let thawed = self.thaw();
        killed?;
        thawed?;
        self.signal_until_none_is_new(&[Signal::KILL]).map(drop)
    }

    fn signal_until_none_is_new(&self, signals: &[Signal]) -> Result<u32, KernelError> {
        let started = Instant::now();
        let mut done = BTreeSet::new();
        let mut signalled = 0;
        for _ in 0..MAX_PASSES {
            let new: Vec<u32> = self.dir.pids()?.difference(&done).copied().collect();
            if new.is_empty() || started.elapsed() > MAX_TIME {
                break;
            }
            for pid in new {
                done.insert(pid);
                if signal_if(pid, signals, || Ok(is_inside(&process::cgroup(pid)?, self.name)))? {
                    signalled += 1;
                }
            }
        }
        Ok(signalled)
    }

    /// Thaws the cgroup and every one below it.
    fn thaw(&self) -> Result<(), KernelError> {
        self.dir.walk(&mut |dir| match dir.read("cgroup.freeze") {
            Ok(text) if text.trim() == "1" => dir.write("cgroup.freeze", "0"),
            Ok(_) => Ok(()),
            Err(e) if e.is_gone() => Ok(()),
            Err(e) => Err(e),
        })
    }
}

/// Signals one process if it is of the run; true if it was sent the first signal. The question is asked after the pidfd
/// pinned the process: a pid that was given to another one before is then another's.
pub(super) fn signal_if(
    pid: u32,
    signals: &[Signal],
    is_ours: impl FnOnce() -> Result<bool, KernelError>,
) -> Result<bool, KernelError> {
    let sent = process::open(pid).and_then(|pidfd| {
        if !is_ours()? || is_spared(pid) {
            return Ok(false);
        }
        let mut signals = signals.iter();
        signals.next().map_or(Ok(()), |first| process::signal(&pidfd, *first))?;
        // The first one may have ended it: then there is nobody for the next, and it counts all the same.
        signals.try_for_each(|s| process::signal(&pidfd, *s).or_else(|e| if e.is_gone() { Ok(()) } else { Err(e) }))?;
        Ok(true)
    });
    match sent {
        Err(e) if e.is_gone() => Ok(false),
        // Of another user, as a setuid program is to an unprivileged instance: the rest is signalled all the same, and
        // `cgroup.kill`, where there is one, reaches this one, since it asks for no right but writing the file.
        Err(e) if e.errno() == Some(Errno::PERM) => Ok(false),
        other => other,
    }
}

/// True if a test has taken this process out of all kills.
pub fn is_spared(pid: u32) -> bool {
    let Some(words) = failpoint::without("guard.kill") else { return false };
    let line = process::command_line(pid, 4096).unwrap_or_default();
    words.split(' ').all(|word| line.contains(word))
}

/// True if the cgroup of a process is this one or below it.
fn is_inside(cgroup: &Path, of: &Path) -> bool {
    cgroup.starts_with(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_means_the_same_cgroup_or_one_below_and_no_similar_name() {
        let of = Path::new("/guardian/u0/run_000000000001");
        assert!(is_inside(of, of));
        assert!(is_inside(&of.join("sub/sub"), of));
        for outside in
            ["/", "/guardian/u0", "/guardian/u0/run_0000000000012", "/guardian/u0/run_000000000001 (deleted)"]
        {
            assert!(!is_inside(Path::new(outside), of), "{outside}");
        }
    }

    #[test]
    fn a_process_that_is_listed_but_lives_elsewhere_is_not_signalled() {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        std::fs::write(tmp.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        let dir = CgroupDir::open_unchecked(tmp.path()).unwrap();
        let target = Target { dir: &dir, name: Path::new("/guardian/none/run_000000000001") };
        assert_eq!(target.terminate().unwrap(), 0);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A directory with the files of a cgroup, which lists these processes, as if they were there.
    fn listing(pids: &[u32]) -> (tempfile::TempDir, CgroupDir) {
        let tmp = tempfile::tempdir().unwrap();
        let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        std::fs::write(tmp.path().join("cgroup.procs"), text).unwrap();
        let dir = CgroupDir::open_unchecked(tmp.path()).unwrap();
        (tmp, dir)
    }

    fn sleep() -> std::process::Child {
        std::process::Command::new("sleep").arg("600").spawn().unwrap()
    }

    fn signal_of(child: &mut std::process::Child) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap())
    }

    /// The cgroup of everything that a test starts.
    fn ours() -> std::path::PathBuf {
        process::cgroup(std::process::id()).unwrap_or_else(|_| "/".into())
    }

    #[test]
    fn sigterm_reaches_who_is_there_and_counts_each_once_and_the_frozen_are_thawed() {
        let (mut one, mut stopped, mut gone) = (sleep(), sleep(), sleep());
        gone.kill().unwrap();
        gone.wait().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&stopped), Signal::STOP).unwrap();
        let (tmp, dir) = listing(&[one.id(), stopped.id(), gone.id()]);
        std::fs::create_dir(tmp.path().join("sub")).unwrap();
        let frozen = [tmp.path().join("cgroup.freeze"), tmp.path().join("sub/cgroup.freeze")];
        frozen.iter().for_each(|file| std::fs::write(file, "1\n").unwrap());
        std::fs::create_dir(tmp.path().join("other")).unwrap();
        let other = tmp.path().join("other/cgroup.freeze");
        // Of a value that shows a write.
        std::fs::write(&other, "2\n").unwrap();
        let name = ours();
        assert_eq!(Target { dir: &dir, name: &name }.terminate().unwrap(), 2);
        assert_eq!((signal_of(&mut one), signal_of(&mut stopped)), (Some(15), Some(15)));
        for file in frozen {
            assert!(std::fs::read_to_string(&file).unwrap().starts_with('0'), "{}", file.display());
        }
        assert_eq!(std::fs::read_to_string(other).unwrap(), "2\n", "what is not frozen is not written to");
    }

    #[test]
    fn what_cannot_be_thawed_or_asked_about_is_told_and_who_is_gone_is_not() {
        let mut child = sleep();
        let (tmp, dir) = listing(&[child.id()]);
        std::fs::create_dir(tmp.path().join("cgroup.freeze")).unwrap();
        let name = ours();
        assert!(Target { dir: &dir, name: &name }.terminate().is_err(), "it may sit out its grace frozen");
        assert_eq!(signal_of(&mut child), Some(15), "the signal is sent all the same");
        let own = std::process::id();
        let io = |errno| std::io::Error::from_raw_os_error(errno);
        let failed = |errno| Err(KernelError::Io { op: "read", what: "cgroup".into(), source: io(errno) });
        assert!(signal_if(own, &[], || failed(nix::libc::EIO)).is_err());
        assert!(
            !signal_if(own, &[], || failed(nix::libc::EPERM)).unwrap(),
            "of another user: the others are signalled"
        );
        assert!(!signal_if(own, &[], || Err(KernelError::Gone { what: "it".into() })).unwrap());
    }

    #[test]
    fn one_write_kills_a_cgroup_where_the_kernel_has_it_and_else_each_is_killed() {
        let mut child = sleep();
        let name = ours();
        let (tmp, dir) = listing(&[child.id()]);
        let written = || std::fs::read_to_string(tmp.path().join("cgroup.kill")).unwrap();
        std::fs::write(tmp.path().join("cgroup.kill"), "").unwrap();
        assert_eq!(Target { dir: &dir, name: &name }.kill(false).unwrap(), 1);
        assert_eq!((written().as_str(), child.try_wait().unwrap()), ("1", None));
        std::fs::write(tmp.path().join("cgroup.kill"), "").unwrap();
        std::fs::write(tmp.path().join("pids.max"), "max").unwrap();
        assert_eq!(Target { dir: &dir, name: &name }.kill(true).unwrap(), 1);
        assert_eq!((written().as_str(), signal_of(&mut child)), ("", Some(9)));
        assert_eq!(std::fs::read_to_string(tmp.path().join("pids.max")).unwrap(), "0ax", "it forks no more");

        let mut child = sleep();
        let (tmp, dir) = listing(&[child.id()]);
        assert_eq!(Target { dir: &dir, name: &name }.kill(false).unwrap(), 1, "an older kernel");
        assert_eq!(signal_of(&mut child), Some(9));
        std::fs::remove_file(tmp.path().join("cgroup.procs")).unwrap();
        assert!(Target { dir: &dir, name: &name }.kill(false).unwrap_err().is_gone(), "the cgroup was removed");
    }
}
