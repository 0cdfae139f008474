//! What a run leaves: files that it had open for writing when it was killed, locks of git that nobody holds, and who was ended
//! with it. Every path, name and command is as the run chose it: whoever shows it escapes it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Evidence, ProcessSeen, RELAY_NAME, RunId, Wall};

/// As many files, and as many locks, as are named.
pub const REMAINS_NAMED: usize = 16;
/// As many of those who were ended with a run as are named.
const OTHERS_NAMED: usize = 8;
/// As much of a command as tells which it is.
const COMMAND_CHARS: usize = 60;

/// What a run leaves, a part of the receipt of its kill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// Who was there beside the main process when the kill began, and was ended with the run: those that had run longest
    /// first; empty if there was nobody.
    pub others: String,
    /// Files that were open for writing when the kill began, at most [`REMAINS_NAMED`]: they may be half written. What was
    /// deleted is not among them, nor is the log of the run.
    pub files: Vec<OpenFile>,
    /// How many there were.
    pub files_total: u32,
    /// Locks of git in the repository of the run's directory.
    pub git: GitLocks,
    /// What else could not be looked at, and why, in sentences.
    pub not_looked_at: Vec<String>,
}

/// A file that a process has open for writing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Its path, as the process sees it.
    pub path: String,
    /// Its size then, where that could be asked without a server that may not answer.
    pub size_bytes: Option<u64>,
    /// A process that has it open.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        match self.size_bytes {
            Some(1) => f.write_str(", 1 byte")?,
            Some(n) => write!(f, ", {n} bytes")?,
            None => {}
        }
        write!(f, ", by {} (pid {})", self.name, self.pid)
    }
}

/// What the processes of a run had open for writing at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    /// Some of the files.
    pub files: Vec<OpenFile>,
    /// How many there are.
    pub total: u32,
    /// How many processes could not be looked at, or not wholly.
    pub unseen: u32,
}

/// Locks of git: files beside what they lock, which is not written to while they are there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitLocks {
    /// At most [`REMAINS_NAMED`] of them.
    pub locks: Vec<GitLock>,
    /// How many there are.
    pub total: u32,
    /// What could not be looked at, and why, in sentences.
    pub not_looked_at: Vec<String>,
}

/// A lock of git that was there when the run was over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitLock {
    /// Its path.
    pub path: String,
    /// What became of it.
    pub fate: LockFate,
}

/// What became of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum LockFate {
    /// It was removed: it was proved to be the run's, and nobody's any more.
    Removed,
    /// The same is proved, and nobody asked for its removal.
    Stale,
    /// It was left alone.
    LeftAlone {
        /// Why, in half a sentence: what is not proved of it, or why it could not be removed.
        why: String,
    },
}

impl LockFate {
    /// The name in D-Bus and output.
    pub const fn as_str(&self) -> &'static str {
        match self {
            LockFate::Removed => "removed",
            LockFate::Stale => "stale",
            LockFate::LeftAlone { .. } => "left_alone",
        }
    }

    /// Why it was left alone; empty otherwise.
    pub fn why(&self) -> &str {
        match self {
            LockFate::Removed | LockFate::Stale => "",
            LockFate::LeftAlone { why } => why,
        }
    }
}

impl fmt::Display for GitLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fate {
            LockFate::Removed => write!(f, "{}: removed, because nobody holds it", self.path),
            LockFate::Stale => write!(f, "{}: nobody holds it: remove it before git is used again", self.path),
            LockFate::LeftAlone { why } => write!(f, "{}: left alone: {why}", self.path),
        }
    }
}

/// Where a run has worked, and what has to be known of it to tell its locks from those of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worktree {
    /// The run.
    pub run: RunId,
    /// Which of the looks this is, so that an answer is known by it.
    pub number: u64,
    /// Its working directory.
    pub dir: PathBuf,
    /// Its user.
    pub uid: u32,
    /// When it began; none if the clock was set meanwhile, or the host suspended, so that the times of files say nothing.
    pub since: Option<Wall>,
    /// When it was over.
    pub until: Wall,
    /// Locks that are proved to be its own and nobody's any more are removed.
    pub removes: bool,
}

impl Remains {
    /// Whether there is anything to tell.
    pub fn is_empty(&self) -> bool {
        *self == Remains::default()
    }

    /// All of it, a line for each. `left_behind` says that the main process had exited by then.
    pub fn lines(&self, left_behind: bool) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.others.is_empty() {
            let how = if left_behind { "left behind by it, and ended" } else { "ended with it" };
            lines.push(format!("{how}: {}", self.others));
        }
        lines.extend(self.files.iter().map(|file| format!("may be half written: {file}")));
        lines.extend(more(self.files_total, self.files.len(), "open for writing"));
        lines.extend(self.git.locks.iter().map(|lock| format!("git lock: {lock}")));
        lines.extend(more(self.git.total, self.git.locks.len(), "locks of git"));
        lines.extend(self.unseen().map(|what| format!("not looked at: {what}")));
        lines
    }

    /// What could not be looked at.
    pub fn unseen(&self) -> impl Iterator<Item = &String> {
        self.not_looked_at.iter().chain(&self.git.not_looked_at)
    }
}

fn more(total: u32, named: usize, what: &str) -> Option<String> {
    let more = usize::try_from(total).unwrap_or(usize::MAX).saturating_sub(named);
    (more > 0).then(|| format!("{more} more {what}"))
}

/// Those that were there beside the main process, named so that a person knows each: by the beginning of its command.
pub fn others(evidence: &Evidence, main: Option<u32>) -> String {
    let relay = |pid: Option<u32>| {
        let one = evidence.processes.iter().find(|p| Some(p.pid) == pid);
        one.is_some_and(|p| p.name.as_bytes() == RELAY_NAME.to_bytes())
    };
    // Behind a relay is the command, which is what people call the run.
    let behind = evidence.processes.iter().filter(|p| relay(main) && Some(p.ppid) == main).max_by_key(|p| p.age_usec);
    let is_other = |p: &&ProcessSeen| Some(p.pid) != main && behind.is_none_or(|b| b.pid != p.pid) && p.state != 'Z';
    let mut others: Vec<&ProcessSeen> = evidence.processes.iter().filter(is_other).collect();
    others.sort_by_key(|p| (std::cmp::Reverse(p.age_usec), p.pid));
    let unnamed = evidence.total.saturating_sub(u32::try_from(evidence.processes.len()).unwrap_or(u32::MAX));
    let more = others.len().saturating_sub(OTHERS_NAMED).saturating_add(usize::try_from(unnamed).unwrap_or(usize::MAX));
    let named: Vec<String> = others.iter().take(OTHERS_NAMED).map(|p| named(p)).collect();
    match more {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn named(p: &ProcessSeen) -> String {
    let what = if p.command.is_empty() { &p.name } else { &p.command };
    let mut text: String = what.chars().take(COMMAND_CHARS).collect();
    if what.chars().nth(COMMAND_CHARS).is_some() {
        text.push('…');
    }
    format!("{text} (pid {})", p.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, ppid: u32, name: &str, command: &str) -> ProcessSeen {
        let age_usec = u64::from(1000 - pid);
        ProcessSeen { pid, ppid, name: name.into(), command: command.into(), age_usec, ..ProcessSeen::default() }
    }

    fn evidence(processes: Vec<ProcessSeen>, total: u32) -> Evidence {
        Evidence { processes, total, ..Evidence::default() }
    }

    #[test]
    fn who_was_ended_with_a_run_is_named_by_its_command_and_the_longest_there_first() {
        let seen = vec![
            process(9, 7, "node", ""),
            process(7, 1, "agent", "agent --headless"),
            process(8, 7, "node", "node server.js"),
        ];
        assert_eq!(others(&evidence(seen.clone(), 3), Some(7)), "node server.js (pid 8), node (pid 9)");
        let left_behind = others(&evidence(seen[2..].to_vec(), 1), Some(7));
        assert_eq!(left_behind, "node server.js (pid 8)");
        assert_eq!(others(&evidence(vec![seen[1].clone()], 1), Some(7)), "", "nobody else was there");
    }

    #[test]
    fn behind_a_relay_the_command_is_the_run_and_not_somebody_else() {
        let seen = vec![
            process(7, 1, "guardian-relay", "guardian-relay"),
            process(8, 7, "claude", "claude -p x"),
            process(9, 8, "node", "node mcp.js"),
        ];
        assert_eq!(others(&evidence(seen, 3), Some(7)), "node mcp.js (pid 9)");
    }

    #[test]
    fn of_many_some_are_named_and_long_commands_are_cut() {
        let all: Vec<ProcessSeen> = (1..=12).map(|pid| process(pid, 0, "x", &"ä".repeat(70))).collect();
        let text = others(&evidence(all, 30), None);
        assert!(text.starts_with(&format!("{}… (pid 1), ", "ä".repeat(60))), "{text}");
        assert!(text.ends_with("(pid 8) and 22 more"), "{text}");
    }

    #[test]
    fn each_thing_that_is_left_is_a_line() {
        let file = OpenFile { path: "/w/out".into(), size_bytes: Some(4096), pid: 7, name: "sh".into() };
        let unknown = OpenFile { size_bytes: None, ..file.clone() };
        let lock = |fate| GitLock { path: "/w/.git/index.lock".into(), fate };
        let remains = Remains {
            others: "node (pid 9)".into(),
            files: vec![file, unknown],
            files_total: 5,
            git: GitLocks {
                locks: vec![
                    lock(LockFate::Removed),
                    lock(LockFate::Stale),
                    lock(LockFate::LeftAlone { why: "it is older than the run".into() }),
                ],
                total: 3,
                not_looked_at: vec!["/w/.git is a symbolic link".into()],
            },
            not_looked_at: Vec::new(),
        };
        let lines = [
            "ended with it: node (pid 9)",
            "may be half written: /w/out, 4096 bytes, by sh (pid 7)",
            "may be half written: /w/out, by sh (pid 7)",
            "3 more open for writing",
            "git lock: /w/.git/index.lock: removed, because nobody holds it",
            "git lock: /w/.git/index.lock: nobody holds it: remove it before git is used again",
            "git lock: /w/.git/index.lock: left alone: it is older than the run",
            "not looked at: /w/.git is a symbolic link",
        ];
        assert_eq!(remains.lines(false), lines);
        assert_eq!(remains.lines(true)[0], "left behind by it, and ended: node (pid 9)");
        assert!(Remains::default().lines(false).is_empty() && Remains::default().is_empty());
    }

    #[test]
    fn the_fate_of_a_lock_is_kept_and_read_again() {
        for fate in [LockFate::Removed, LockFate::Stale, LockFate::LeftAlone { why: "x".into() }] {
            let text = serde_json::to_string(&fate).unwrap();
            assert!(text.contains(fate.as_str()), "{text}");
            assert_eq!(serde_json::from_str::<LockFate>(&text).unwrap(), fate);
        }
    }
}
