//! PostgreSQL as a workload, where it is installed: a database of its own in a scratch directory, by an unprivileged user.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::kills::received;
use super::lab::{Lab, came, eventually, internal};
use super::workload::up;
use crate::model::{Error, KillMode};

/// The longest path of a directory in which its socket has room.
const LONGEST: usize = 80;
/// The rows that are acknowledged before the kill, at least.
const ROWS: usize = 100;
/// The time until a server answers.
const ANSWERS: Duration = Duration::from_secs(60);

/// The directory of its programs.
fn programs() -> Option<PathBuf> {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&in_path)
        .filter_map(|dir| dir.join("initdb").canonicalize().ok()?.parent().map(Into::into));
    let of_a_distribution = |parent: &str, bin: &str| {
        let versions = std::fs::read_dir(parent).into_iter().flatten().flatten();
        versions.map(|version| version.path().join(bin)).collect::<Vec<_>>()
    };
    let all = in_path.chain(of_a_distribution("/usr/lib/postgresql", "bin")).chain(of_a_distribution("/usr", "bin"));
    let has = |dir: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|program| dir.join(program).is_file());
    all.into_iter().find(has)
}

/// A database: `data`, and `programs`, which is a link.
struct Database<'a>(&'a Path);

impl Database<'_> {
    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// One of its programs, as the user whose the data are: the server refuses to be root's.
    fn program(&self, name: &str) -> Result<Command, Error> {
        let mut command = Command::new(self.0.join("programs").join(name));
        let data = std::fs::metadata(self.data()).map_err(internal("look at the database"))?;
        if rustix::process::geteuid().is_root() {
            command.uid(data.uid()).gid(data.gid());
        }
        command.current_dir(self.data()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }

    /// A client, which reads statements and prints bare rows.
    fn client(&self) -> Result<Command, Error> {
        let mut command = self.program("psql")?;
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "selftest", "-d", "postgres", "-h"]);
        command.arg(self.data());
        Ok(command)
    }
}

/// Kills a server and its clients among transactions, starts it again, and looks for each row that was acknowledged. None, with
/// the reason noted, where it cannot be tried.
pub async fn killed_among_transactions(lab: &Lab<'_>) -> Result<Option<String>, Error> {
    let Some(programs) = programs() else {
        lab.leave_out("PostgreSQL: it is not installed");
        return Ok(None);
    };
    let dir = lab.place("postgres")?;
    if dir.as_os_str().len() > LONGEST {
        lab.leave_out(format!("PostgreSQL: the path of {} is too long for its socket (TMPDIR)", dir.display()));
        return Ok(None);
    }
    symlink(programs, dir.join("programs")).map_err(internal("link"))?;
    let database = Database(&dir);
    std::fs::create_dir(database.data()).map_err(internal("make a directory"))?;
    if rustix::process::geteuid().is_root() {
        let user = |name| nix::unistd::User::from_name(name).ok().flatten();
        let Some(user) = user("postgres").or_else(|| user("nobody")) else {
            lab.leave_out(
                "PostgreSQL: there is neither a user postgres nor nobody, and the server refuses to be root's",
            );
            return Ok(None);
        };
        std::os::unix::fs::chown(database.data(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .map_err(internal("give a directory away"))?;
    }
    let mut initdb = database.program("initdb")?;
    initdb.args(["--username=selftest", "--auth=trust", "--locale=C", "--encoding=UTF8", "--no-sync", "-D"]);
    initdb.arg(database.data());
    let made = came(lab.marked(initdb)).await?;
    if !made.status.success() {
        // It wants an account for its user, for one.
        lab.leave_out(format!("PostgreSQL: {}", made.stderr));
        return Ok(None);
    }
    let mut run = lab.start_in("postgres", &[], 3, dir.clone()).await?;
    if !eventually(async || Ok(acknowledged(&dir)?.len() > ROWS)).await? {
        return Err(Error::internal("PostgreSQL acknowledged less than 100 rows"));
    }
    let view = lab.kill(&mut run, KillMode::Force).await?;
    let receipt = received(&view)?;
    lab.clean_up().await.map_err(Error::internal)?;
    // Its processes write over their environment, and the mark with it.
    let left = end_those_in(&database.data());
    if left > 0 {
        return Err(Error::internal(format!("{left} processes of PostgreSQL were left behind")));
    }
    let acknowledged = acknowledged(&dir)?;
    let rows = after_recovery(&database).await?;
    match acknowledged.difference(&rows).count() {
        0 => Ok(Some(format!(
            "PostgreSQL: {receipt}; started again, it has all {} rows that it had acknowledged",
            acknowledged.len()
        ))),
        lost => Err(Error::internal(format!(
            "PostgreSQL: {receipt}; started again, {lost} of {} acknowledged rows are lost",
            acknowledged.len()
        ))),
    }
}

/// The rows of which a client was told that they are there.
fn acknowledged(dir: &Path) -> Result<BTreeSet<u64>, Error> {
    let mut rows = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(internal("read a directory"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("acknowledged.") {
            let text = std::fs::read_to_string(entry.path()).map_err(internal("read what was acknowledged"))?;
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            rows.extend(whole.lines().filter_map(|line| line.parse::<u64>().ok()));
        }
    }
    Ok(rows)
}

/// Starts the server again, by itself and for one statement; it first goes through its log. Gives the rows.
async fn after_recovery(database: &Database<'_>) -> Result<BTreeSet<u64>, Error> {
    let mut server = database.program("postgres")?;
    // -F: what it reads is in the page cache, and goes with the scratch directory.
    server.args(["--single", "-F", "-D"]).arg(database.data()).arg("postgres");
    server.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut server = server.spawn().map_err(internal("start PostgreSQL again"))?;
    let rows = database.data().join("rows.txt");
    if let Some(mut input) = server.stdin.take() {
        let file = rows.to_string_lossy().replace('\'', "''");
        writeln!(input, "COPY rows TO '{file}'").map_err(internal("ask PostgreSQL"))?;
    }
    let status = super::lab::ended(&mut server).await?;
    let rows = std::fs::read_to_string(rows);
    let rows = rows.map_err(|_| {
        Error::internal(format!("PostgreSQL after the kill: {}", super::lab::said(&mut server, status)))
    })?;
    Ok(rows.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Ends the processes that work in a directory, which is ours alone. Gives their number.
fn end_those_in(dir: &Path) -> usize {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    all.filter(|pid| {
        let pidfd = Pid::from_raw(*pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let is_there = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
        pidfd.is_some_and(|pidfd| is_there && pidfd_send_signal(&pidfd, Signal::KILL).is_ok())
    })
    .count()
}

/// The workload: a server and two clients.
pub fn serve(dir: &Path, begin: impl FnOnce() -> std::io::Result<Vec<Child>>) -> anyhow::Result<()> {
    let database = Database(dir);
    let mut server = database.program("postgres")?;
    server.arg("-D").arg(database.data()).args(["-c", "listen_addresses=", "-k"]).arg(database.data());
    let mut server = server.spawn()?;
    let began = Instant::now();
    let mut create = database.client()?;
    create.args(["-c", "CREATE TABLE IF NOT EXISTS rows (id BIGINT PRIMARY KEY)"]);
    while !create.status()?.success() {
        if let Some(status) = server.try_wait()? {
            return Err(Error::internal(format!("PostgreSQL: {status}")).into());
        }
        if began.elapsed() > ANSWERS {
            return Err(Error::internal("PostgreSQL does not answer").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _clients = begin()?;
    server.wait()?;
    Ok(())
}

/// The workload's client: a row after the other, each noted when the server has acknowledged it.
pub fn insert(dir: &Path) -> anyhow::Result<()> {
    let mut client = Database(dir).client()?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut asks), Some(answers)) = (client.stdin.take(), client.stdout.take()) else {
        return Err(Error::internal("a client without pipes").into());
    };
    let mut answers = BufReader::new(answers);
    let pid = std::process::id();
    let mut noted = std::fs::File::create(dir.join(format!("acknowledged.{pid}")))?;
    for number in u64::from(pid) << 32.. {
        writeln!(asks, "INSERT INTO rows VALUES ({number}) RETURNING id;")?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        if answer.trim() != number.to_string() {
            return Err(Error::internal(format!("PostgreSQL answered {answer:?}")).into());
        }
        noted.write_all(answer.as_bytes())?;
        if number == u64::from(pid) << 32 {
            up(dir)?;
        }
    }
    Ok(())
}
