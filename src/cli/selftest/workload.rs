//! The workloads of the scenarios: what people's commands do, in this executable, so that a host needs nothing else for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use rusqlite::{Connection, TransactionBehavior};

use super::escapes::open_ways;
use super::lab::WORKLOAD;
use super::postgres;
use crate::cli::Done;
use crate::cli::args::WorkloadArgs;
use crate::launch::environment::RUN_ID;
use crate::model::Error;

/// The money of each account in the database, and how many there are.
pub const EACH: i64 = 1000;
pub const ACCOUNTS: i64 = 50;
/// The lines of a file that is replaced as a whole.
pub const LINES: usize = 400;
/// The processes of a tree beside the first one, by what each is.
pub const TREE: [(&str, usize); 5] = [("deaf", 8), ("session", 8), ("daemon", 4), ("stopped", 2), ("subreaper", 1)];

/// All of them, with the first one and the daemon that the subreaper gets.
pub fn processes_of_a_tree() -> usize {
    TREE.iter().map(|(_, count)| count).sum::<usize>() + 2
}

/// Is the workload. Whatever fails ends it, which the scenario sees.
pub fn main(args: &WorkloadArgs) -> Done {
    let dir = args.dir.as_path();
    match args.kind.as_str() {
        "sleep" => sleep(),
        "exit" => first(dir)?,
        "files" => {
            let mut children = (0..4).map(|_| again("files-worker", dir)).collect::<io::Result<Vec<_>>>()?;
            children.extend(git(dir)?);
            first(dir)?;
            children.into_iter().try_for_each(|mut child| child.wait().map(drop))?;
        }
        "files-worker" => files(dir)?,
        "wal" | "rollback" => {
            let journal = if args.kind == "wal" { "WAL" } else { "DELETE" };
            fill(dir, journal)?;
            let children = (0..2).map(|_| again("database-worker", dir)).collect::<io::Result<Vec<_>>>()?;
            first(dir)?;
            children.into_iter().try_for_each(|mut child| child.wait().map(drop))?;
        }
        "database-worker" => database(dir)?,
        "postgres" => postgres::serve(dir, || {
            let clients = (0..2).map(|_| again("postgres-worker", dir)).collect();
            first(dir).and(clients)
        })?,
        "postgres-worker" => postgres::insert(dir)?,
        "tree" => {
            for (kind, count) in TREE {
                for _ in 0..count {
                    again(kind, dir)?;
                }
            }
            first(dir)?;
            deaf()?;
            sleep();
        }
        "deaf" => {
            deaf()?;
            up(dir)?;
            sleep();
        }
        "session" => {
            rustix::process::setsid()?;
            up(dir)?;
            sleep();
        }
        // Forks twice, as daemons do: the one in between is gone at once.
        "daemon" => drop(again("session", dir)?),
        "stopped" => {
            up(dir)?;
            raise(Signal::SIGSTOP)?;
            sleep();
        }
        "subreaper" => {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
            up(dir)?;
            again("daemon", dir)?;
            sleep();
        }
        "escapes" => {
            again("session", dir)?;
            again("daemon", dir)?;
            first(dir)?;
            sleep();
        }
        "ways" => fs::write(dir.join("ways"), open_ways().join("\n"))?,
        "leftovers" => {
            for _ in 0..3 {
                again("daemon", dir)?;
            }
            first(dir)?;
            // The daemons are up when the command exits, as those of people are.
            while fs::read_dir(dir)?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("up.")).count()
                < 4
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            return Ok(7);
        }
        "heartbeat" => {
            let status = Command::new("/proc/self/exe").args(["heartbeat", "--status", "the only one"]).status()?;
            if !status.success() {
                return Err(Error::internal(format!("guardian heartbeat: {status}")).into());
            }
            first(dir)?;
            sleep();
        }
        "silent" => {
            first(dir)?;
            sleep();
        }
        other => return Err(Error::invalid(format!("there is no workload {other:?}")).into()),
    }
    Ok(0)
}

fn sleep() {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// Starts one more process of the workload.
fn again(kind: &str, dir: &Path) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORKLOAD).arg(kind).arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}

/// Says that this process is up.
pub fn up(dir: &Path) -> io::Result<()> {
    File::create(dir.join(format!("up.{}", std::process::id()))).map(drop)
}

/// Says which run this is, and that its first process is up.
fn first(dir: &Path) -> io::Result<()> {
    let new = dir.join("run.new");
    fs::write(&new, std::env::var(RUN_ID).unwrap_or_default())?;
    fs::rename(new, dir.join("run"))?;
    up(dir)
}

/// Lets SIGTERM and its like wait for ever.
fn deaf() -> nix::Result<()> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
}

/// Appends numbered lines, and replaces a file by another whole one, on disk each time.
fn files(dir: &Path) -> io::Result<()> {
    let pid = std::process::id();
    let mut log = OpenOptions::new().create(true).append(true).open(dir.join(format!("log.{pid}")))?;
    let (new, whole) = (dir.join(format!("new.{pid}")), dir.join(format!("whole.{pid}")));
    for number in 0_u64.. {
        log.write_all(format!("{number} of {pid}\n").as_bytes())?;
        log.sync_data()?;
        let mut file = File::create(&new)?;
        file.write_all(format!("{number}\n").repeat(LINES).as_bytes())?;
        file.sync_data()?;
        fs::rename(&new, &whole)?;
        if number == 0 {
            up(dir)?;
        }
    }
    Ok(())
}

/// Commits in a loop, where there is git.
fn git(dir: &Path) -> io::Result<Option<Child>> {
    let repository = dir.join("git");
    let there = Command::new("git").args(["init", "--quiet"]).arg(&repository).status().is_ok_and(|s| s.success());
    if !there {
        return Ok(None);
    }
    let script = "while :; do echo more >>file && git add file && git -c user.name=selftest -c user.email=selftest@localhost \
                  commit --quiet --message more || exit; done";
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(repository)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().map(Some)
}

/// The database of a workload.
pub fn database_of(dir: &Path) -> PathBuf {
    dir.join("accounts.db")
}

fn fill(dir: &Path, journal: &str) -> rusqlite::Result<()> {
    let db = Connection::open(database_of(dir))?;
    db.pragma_update(None, "journal_mode", journal)?;
    db.execute_batch(&format!(
        "BEGIN; CREATE TABLE moves (count INTEGER NOT NULL); INSERT INTO moves VALUES (0);
         CREATE TABLE accounts (id INTEGER PRIMARY KEY, money INTEGER NOT NULL);
         WITH RECURSIVE ids (id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM ids WHERE id + 1 < {ACCOUNTS})
         INSERT INTO accounts SELECT id, {EACH} FROM ids; COMMIT"
    ))
}

/// Moves money from one account to another, so that the sum is the same whenever it ends.
fn database(dir: &Path) -> anyhow::Result<()> {
    let mut db = Connection::open(database_of(dir))?;
    db.busy_timeout(Duration::from_secs(10))?;
    up(dir)?;
    for number in i64::from(std::process::id()).. {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("UPDATE accounts SET money = money - 1 WHERE id = ?1", [number % ACCOUNTS])?;
        transaction.execute("UPDATE accounts SET money = money + 1 WHERE id = ?1", [(number * 7 + 1) % ACCOUNTS])?;
        transaction.execute("UPDATE moves SET count = count + 1", [])?;
        transaction.commit()?;
    }
    Ok(())
}
