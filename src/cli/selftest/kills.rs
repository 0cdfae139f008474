//! The scenarios of a kill that somebody asks for.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::lab::{Lab, ended, eventually};
use super::workload::{ACCOUNTS, EACH, LINES, database_of, processes_of_a_tree};
use super::{Tried, Verdict, postgres};
use crate::bus::client::Client;
use crate::model::{Error, ErrorKind, EventKind, KillMode, RunId, RunView};

/// How many kill at once.
const CALLERS: usize = 100;

/// What a receipt says, in a few words; an error if it claims less than all of it.
pub fn received(view: &RunView) -> Result<String, Error> {
    let id = view.spec.id;
    let Some(receipt) = &view.receipt else { return Err(Error::internal(format!("{id} has no receipt"))) };
    if receipt.survivors != 0 {
        return Err(Error::internal(format!("the receipt of {id} names {} survivors", receipt.survivors)));
    }
    let took = receipt.duration_usec as f64 / 1e6;
    Ok(format!("SIGTERM to {}, SIGKILL to {}, 0 survivors, {took:.2} s", receipt.terminated, receipt.killed))
}

pub async fn during_file_operations(lab: &Lab<'_>) -> Tried {
    let mut seen = Vec::new();
    for (mode, name) in [(KillMode::Graceful, "graceful"), (KillMode::Force, "by force")] {
        let mut run = lab.start("files", &[], 5).await?;
        let dir = run.dir.clone();
        if !eventually(async || Ok(written(&dir).is_some_and(|lines| lines > 100))).await? {
            return Ok(Verdict::Fails("the workload wrote less than 100 lines".to_owned()));
        }
        let view = lab.kill(&mut run, mode).await?;
        let receipt = received(&view)?;
        lab.clean_up().await.map_err(Error::internal)?;
        let lines = whole(&dir)?;
        let (named, git) = (named(&view, &dir)?, repository(&dir.join("git"))?);
        seen.push(format!("{name}: {receipt}; {named}; {lines} lines appended, all whole but a last one; {git}"));
    }
    Ok(Verdict::Holds(seen.join(". ")))
}

/// How many lines all workers have written together.
fn written(dir: &Path) -> Option<usize> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let logs = entries.filter(|e| e.file_name().to_string_lossy().starts_with("log."));
    logs.map(|e| Some(std::fs::read_to_string(e.path()).ok()?.lines().count())).sum()
}

/// Checks that each log is whole but for its last line, and that each replaced file is one or the other. Gives the lines.
fn whole(dir: &Path) -> Result<usize, Error> {
    let broken = |what: String| Error::internal(format!("after the kill, {what}"));
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|e| broken(format!("{} is unreadable: {e}", path.display())))
    };
    let mut lines = 0;
    for entry in std::fs::read_dir(dir).map_err(|e| broken(e.to_string()))?.flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if let Some(pid) = name.strip_prefix("log.") {
            let text = read(&path)?;
            let complete = text.rfind('\n').map_or("", |end| &text[..end]);
            for (number, line) in complete.lines().enumerate() {
                if line != format!("{number} of {pid}") {
                    return Err(broken(format!("line {number} of {name} is {line:?}")));
                }
                lines += 1;
            }
        } else if name.starts_with("whole.") {
            let text = read(&path)?;
            let first = text.lines().next().unwrap_or_default();
            if text.lines().count() != LINES || text.lines().any(|line| line != first) {
                return Err(broken(format!("{name} is neither the old file nor the new one")));
            }
        }
    }
    Ok(lines)
}

/// What the receipt names as open for writing: each worker has its log open as long as it lives.
fn named(view: &RunView, dir: &Path) -> Result<String, Error> {
    let id = view.spec.id;
    let remains = view.receipt.as_ref().and_then(|receipt| receipt.remains.as_ref());
    let remains = remains.ok_or_else(|| Error::internal(format!("the receipt of {id} does not say what is left")))?;
    let logs = std::fs::read_dir(dir).map_err(|e| Error::internal(format!("{}: {e}", dir.display())))?.flatten();
    let logs = logs.filter(|entry| entry.file_name().to_string_lossy().starts_with("log.")).count();
    match (usize::try_from(remains.files_total), remains.not_looked_at.first()) {
        (Ok(files), None) if files < logs => Err(Error::internal(format!(
            "the receipt of {id} names {files} files that were open, and there were {logs}"
        ))),
        (_, Some(unseen)) => Ok(format!("{} files open for writing are named, but not {unseen}", remains.files_total)),
        (_, None) => Ok(format!("{} files open for writing are named", remains.files_total)),
    }
}

/// Checks a git repository. A lock that is left is git's way, and is told.
fn repository(dir: &Path) -> Result<String, Error> {
    if !dir.is_dir() {
        return Ok("git is not installed".to_owned());
    }
    let lock = dir.join(".git/index.lock").exists();
    let checked =
        Command::new("git").args(["fsck", "--full", "--no-dangling"]).current_dir(dir).stdin(Stdio::null()).output();
    let checked = checked.map_err(|e| Error::internal(format!("git fsck: {e}")))?;
    match checked.status.success() {
        true if lock => Ok("git fsck finds nothing, but an index.lock that nobody holds is left".to_owned()),
        true => Ok("git fsck finds nothing, and no lock is left".to_owned()),
        false => Err(Error::internal(format!("git fsck: {}", String::from_utf8_lossy(&checked.stderr)))),
    }
}

pub async fn during_database_writes(lab: &Lab<'_>) -> Tried {
    let mut seen = Vec::new();
    for kind in ["wal", "rollback"] {
        let mut run = lab.start(kind, &[], 3).await?;
        let path = database_of(&run.dir);
        if !eventually(async || Ok(accounts(&path).is_ok_and(|(_, moves)| moves > 50))).await? {
            return Ok(Verdict::Fails("the workload did less than 50 transactions".to_owned()));
        }
        let view = lab.kill(&mut run, KillMode::Force).await?;
        let receipt = received(&view)?;
        lab.clean_up().await.map_err(Error::internal)?;
        let failed = |e: rusqlite::Error| Error::internal(format!("the database ({kind}) after the kill: {e}"));
        // As its next user would: a journal that is left is rolled back by whoever opens it.
        let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(failed)?;
        let (sum, moves) = accounts(&path).map_err(failed)?;
        if check != "ok" || sum != EACH * ACCOUNTS {
            return Ok(Verdict::Fails(format!("{kind}: {receipt}; integrity_check: {check}; {sum} in all accounts")));
        }
        seen.push(format!("{kind}: {receipt}; integrity_check ok, the sum is what it was after {moves} transactions"));
    }
    seen.extend(postgres::killed_among_transactions(lab).await?);
    Ok(Verdict::Holds(seen.join(". ")))
}

/// The money in all accounts, and how often some of it was moved.
fn accounts(path: &Path) -> rusqlite::Result<(i64, i64)> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.busy_timeout(Duration::from_secs(1))?;
    let both = "SELECT (SELECT sum(money) FROM accounts), (SELECT count FROM moves)";
    db.query_row(both, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

pub async fn with_multiple_processes(lab: &Lab<'_>) -> Tried {
    let mut seen = Vec::new();
    for (mode, name) in [(KillMode::Graceful, "graceful"), (KillMode::Force, "by force")] {
        // Of its own: what an earlier try left in it would count as this one's processes.
        let dir = lab.place(&format!("many-{mode}-{}", crate::cli::now().0))?;
        let mut run = lab.start_in("tree", &["--grace", "300ms"], processes_of_a_tree(), dir).await?;
        let view = lab.kill(&mut run, mode).await?;
        seen.push(format!("{name}: {}", received(&view)?));
        lab.clean_up().await.map_err(Error::internal)?;
    }
    Ok(Verdict::Holds(seen.join(". ")))
}

/// Asks for a kill that must be refused for this reason. Afterwards there must be no kill more, of whatever run.
async fn refused(lab: &Lab<'_>, id: &str, kind: ErrorKind) -> Tried {
    // What a scenario before this one left behind is ended by the instance, and that counts too.
    if !eventually(async || Ok(lab.live().await?.is_empty())).await? {
        return Ok(Verdict::Fails("the runs of the scenarios before it do not end".to_owned()));
    }
    let last = async || lab.session.ask(async |c: &Client| c.describe().await).await.map(|d| d.kills_total);
    let before = last().await?;
    let answer = lab.session.ask(async |c: &Client| c.kill(id, KillMode::Graceful, "selftest").await).await;
    let text = match answer {
        Ok(kill) => return Ok(Verdict::Fails(format!("it was accepted: {} kill of {}", kill.mode, kill.run))),
        Err(e) if e.kind == kind => e.message,
        Err(e) => return Ok(Verdict::Fails(format!("refused as {:?} and not as {kind:?}: {}", e.kind, e.message))),
    };
    let kills = last().await? - before;
    match kills {
        0 => Ok(Verdict::Holds(format!("refused: {text}; no kill is on record for it"))),
        _ => Ok(Verdict::Fails(format!("refused: {text}; but {kills} kills are on record since"))),
    }
}

pub async fn of_no_run(lab: &Lab<'_>) -> Tried {
    let id = RunId::from_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).to_string();
    refused(lab, &id, ErrorKind::NoSuchRun).await
}

pub async fn of_a_completed_run(lab: &Lab<'_>) -> Tried {
    let mut run = lab.start("exit", &[], 1).await?;
    lab.over(&mut run).await?;
    refused(lab, &run.id.to_string(), ErrorKind::AlreadyFinished).await
}

pub async fn at_once(lab: &Lab<'_>) -> Tried {
    let mut run = lab.start("tree", &["--grace", "300ms"], processes_of_a_tree()).await?;
    let id = run.id.to_string();
    let client = lab.session.connect().await?;
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..CALLERS {
        let (client, id) = (client.clone(), id.clone());
        let mode = if number % 2 == 0 { KillMode::Graceful } else { KillMode::Force };
        // As many calls as one user may have at a time are less than this: the others are told so, and come again.
        callers.spawn(async move {
            loop {
                match client.kill(&id, mode, "selftest").await {
                    Err(e) if e.kind == ErrorKind::LimitExceeded => tokio::time::sleep(Duration::from_millis(5)).await,
                    answer => return answer,
                }
            }
        });
    }
    let (mut accepted, mut late, mut kills) = (0, 0, BTreeSet::new());
    while let Some(answer) = callers.join_next().await {
        match answer.map_err(|e| Error::internal(e.to_string()))? {
            Ok(kill) => {
                accepted += 1;
                kills.insert((kill.run, kill.requested_at));
            }
            Err(e) if e.kind == ErrorKind::AlreadyFinished => late += 1,
            Err(e) => return Err(e),
        }
    }
    let view = lab.over(&mut run).await?;
    let rows = lab.session.ask(async |c: &Client| c.events(0, 1000, Some(&id)).await).await?;
    let intents = rows.iter().filter(|row| row.event.kind == EventKind::KillIntent).count();
    let text = format!(
        "{accepted} were told of {} kill, {late} that it is over; {intents} intent on record; {}",
        kills.len(),
        received(&view)?
    );
    Ok(if intents == 1 && kills.len() == 1 { Verdict::Holds(text) } else { Verdict::Fails(text) })
}

/// The user that owns nothing.
const NOBODY: u32 = 65534;

pub async fn by_another_user(lab: &Lab<'_>) -> Tried {
    if !rustix::process::geteuid().is_root() {
        return Ok(Verdict::NotTried("only root can be another user".to_owned()));
    }
    let mut run = lab.start("silent", &[], 1).await?;
    let tried = kill_as_nobody(lab, &run.id.to_string()).await;
    let unknown = kill_as_nobody(lab, &RunId::from_bytes([0xff; 6]).to_string()).await;
    let lives = run.client.try_wait().is_ok_and(|status| status.is_none());
    let ended = lab.kill(&mut run, KillMode::Force).await;
    let (tried, unknown) = (tried?, unknown?);
    let text = format!("user {NOBODY} was told: {}", tried.1);
    match tried.0 != 0 && lives && tried == unknown {
        true => ended.map(|_| {
            Verdict::Holds(format!("{text}; the same as of a run that there never was, and the run lived on"))
        }),
        false => Ok(Verdict::Fails(format!(
            "{text} ({}); of an unknown run: {} ({}); lives: {lives}",
            tried.0, unknown.1, unknown.0
        ))),
    }
}

/// The exit status and the words of a kill by somebody else, without the run's id.
async fn kill_as_nobody(lab: &Lab<'_>, id: &str) -> Result<(i32, String), Error> {
    // Somebody else may not be able to execute what is in the home directory of who tests.
    let open = std::fs::File::open(&lab.executable).map_err(|e| Error::internal(e.to_string()))?;
    let mut command = Command::new(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)));
    let _ = rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty());
    command.args(lab.options()).args(["kill", id]).env_clear().stdin(Stdio::null()).current_dir("/");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).uid(NOBODY).gid(NOBODY);
    let mut child = command.spawn().map_err(|e| Error::internal(format!("cannot be user {NOBODY}: {e}")))?;
    let status = ended(&mut child).await?;
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        std::io::Read::read_to_string(stderr, &mut text).map_err(|e| Error::internal(e.to_string()))?;
    }
    Ok((status.code().unwrap_or(-1), text.trim().replace(id, "RUN").replace('\n', "; ")))
}
