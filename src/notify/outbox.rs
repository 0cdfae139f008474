//! The outbox: what is still to be told, on disk, with the cursor into the audit in the same transactions.
//!
//! WAL with `synchronous=NORMAL`: a power cut may take back the last transactions, and with what was told the cursor, so that it
//! is told again; it cannot take one without the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::ZonedDateTime;
use jiff::tz::TimeZone;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::batch::Waiting;
use super::config::Config;
use super::event::{Notice, Severity};
use super::log;
use super::route::{Planned, plan};
use crate::model::Wall;

const FILE: &str = "notify.db";
/// The layout of the tables.
const VERSION: i64 = 1;
/// How long another thread's transaction is waited for.
const BUSY: Duration = Duration::from_secs(30);
/// A window of deduplication is no longer than this.
const LONGEST_WINDOW: Duration = Duration::from_secs(8 * 86_400);

const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- Never the number of an earlier one: order is by it.
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        channel TEXT NOT NULL,
        route TEXT NOT NULL,
        run TEXT NOT NULL,
        critical INTEGER NOT NULL,
        due INTEGER NOT NULL,
        held_until INTEGER NOT NULL,
        not_before INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        since INTEGER NOT NULL,
        grouped INTEGER NOT NULL,
        only_ends INTEGER NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX outbox_by_channel ON outbox (channel, id);
    CREATE TABLE told (
        route TEXT NOT NULL, run TEXT NOT NULL, event TEXT NOT NULL, channel TEXT NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (route, run, event, channel)
    ) STRICT, WITHOUT ROWID;
    -- What an Alertmanager is told of until it is over.
    CREATE TABLE alerts (
        channel TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (channel, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE counts (
        channel TEXT NOT NULL, what TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (channel, what)
    ) STRICT, WITHOUT ROWID;
";

/// Where the reader is in the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The last row that was read; 0 before the first.
    pub seq: u64,
    /// Its hash: an audit that begins anew has another row of that number.
    pub hash: String,
}

/// What became of notices that were taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Messages that wait now.
    pub queued: u64,
    /// Not told, because the same was told within its window.
    pub repeated: u64,
}

/// The right to be the only one that tells of this outbox.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] Flock<fs::File>);

/// Takes the right, or says who has it.
pub fn lock(dir: &Path) -> anyhow::Result<Lock> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot create {}: name another directory with --state-dir", dir.display()))?;
    let path = dir.join("notify.lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Lock(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            bail!("another guardian-notify uses {}: stop it, or name another directory with --state-dir", dir.display())
        }
        Err((_, e)) => Err(anyhow::Error::new(e).context(format!("cannot lock {}", path.display()))),
    }
}

/// A connection to the outbox. Each thread has its own.
#[derive(Debug)]
pub struct Outbox {
    db: Connection,
}

impl Outbox {
    /// Opens it; one that cannot be read is set aside, and told of: what waited in it is lost, what comes is not.
    pub fn open_or_begin(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(FILE);
        match Self::open(dir) {
            Err(e) if is_corrupt(&e) => {
                let aside = set_aside(&file)?;
                log::error(&format!(
                    "{} is unreadable ({e:#}) and was set aside as {}",
                    file.display(),
                    aside.display()
                ));
                Self::open(dir)
            }
            opened => opened,
        }
    }

    /// Opens it.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(FILE);
        let what = || format!("cannot use {}", file.display());
        let mut db = Connection::open(&file).with_context(what)?;
        db.busy_timeout(BUSY).with_context(what)?;
        db.pragma_update(None, "journal_mode", "wal").with_context(what)?;
        db.pragma_update(None, "synchronous", "normal").with_context(what)?;
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).with_context(what)?;
        match tx.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).with_context(what)? {
            0 => {
                tx.execute_batch(SCHEMA).with_context(what)?;
                tx.pragma_update(None, "user_version", VERSION).with_context(what)?;
            }
            VERSION => {}
            newer => bail!("{} is of a newer guardian-notify (layout {newer}): use that one", file.display()),
        }
        tx.commit().with_context(what)?;
        Ok(Self { db })
    }

    fn begin(&mut self) -> rusqlite::Result<Transaction<'_>> {
        self.db.transaction_with_behavior(TransactionBehavior::Immediate)
    }

    /// Where the reader is; none before it was anywhere.
    pub fn cursor(&self) -> anyhow::Result<Option<Cursor>> {
        let Some(text) = self.meta("cursor")? else { return Ok(None) };
        let (seq, hash) = text.split_once(' ').unwrap_or((&text, ""));
        Ok(Some(Cursor { seq: seq.parse().context("the cursor is no number")?, hash: hash.to_owned() }))
    }

    /// What was kept under a name.
    pub fn meta(&self, key: &str) -> anyhow::Result<Option<String>> {
        let mut find = self.db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        Ok(find.query_row([key], |row| row.get(0)).optional()?)
    }

    /// Takes notices, with the place in the audit up to which they are all, and what is to be kept beside it.
    pub fn take(
        &mut self,
        config: &Config,
        notices: &[Notice],
        cursor: Option<&Cursor>,
        keep: &[(&str, &str)],
        now: Wall,
    ) -> anyhow::Result<Taken> {
        let local = local(now);
        let tx = self.begin()?;
        let mut taken = Taken::default();
        for notice in notices {
            let body = serde_json::to_string(notice)?;
            for planned in plan(config, notice, &local) {
                if was_told(&tx, &planned, notice)? {
                    count(&tx, planned.channel, "repeated", 1)?;
                    taken.repeated += 1;
                    continue;
                }
                insert(&tx, &planned, notice, &body, now)?;
                taken.queued += 1;
                bound(&tx, planned.channel, config.delivery.outbox_max)?;
            }
        }
        if let Some(cursor) = cursor {
            put_meta(&tx, "cursor", &format!("{} {}", cursor.seq, cursor.hash))?;
        }
        for (key, value) in keep {
            put_meta(&tx, key, value)?;
        }
        if !notices.is_empty() {
            let old = now.0.saturating_sub(usec(LONGEST_WINDOW));
            tx.execute("DELETE FROM told WHERE at < ?1", [signed(old)])?;
        }
        tx.commit()?;
        Ok(taken)
    }

    /// What waits for a channel, in order.
    pub fn waiting(&self, channel: &str) -> anyhow::Result<Vec<Waiting>> {
        let mut find = self.db.prepare_cached(
            "SELECT id, route, run, due, held_until, not_before, attempts, since, grouped FROM outbox WHERE channel = ?1 \
             ORDER BY id",
        )?;
        let rows = find.query_map([channel], |row| {
            let wall = |i| row.get::<_, i64>(i).map(|n| Wall(n.unsigned_abs()));
            Ok(Waiting {
                id: row.get(0)?,
                route: row.get(1)?,
                run: row.get(2)?,
                due: wall(3)?,
                held_until: wall(4)?,
                not_before: wall(5)?,
                attempts: row.get(6)?,
                since: wall(7)?,
                grouped: row.get(8)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The notice of a message, and whether it is only told that something is over; none if it is not there any more.
    pub fn notice(&self, id: i64) -> anyhow::Result<Option<(Notice, bool)>> {
        let mut find = self.db.prepare_cached("SELECT body, only_ends FROM outbox WHERE id = ?1")?;
        let found = find.query_row([id], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).optional()?;
        found.map(|(body, only_ends)| Ok((serde_json::from_str(&body)?, only_ends))).transpose()
    }

    /// These were taken by whoever is to be told.
    pub fn delivered(
        &mut self,
        channel: &str,
        ids: &[i64],
        alerts: Option<&BTreeMap<String, String>>,
    ) -> anyhow::Result<()> {
        let tx = self.begin()?;
        remove(&tx, ids)?;
        count(&tx, channel, "delivered", ids.len())?;
        if let Some(alerts) = alerts {
            tx.execute("DELETE FROM alerts WHERE channel = ?1", [channel])?;
            for (key, body) in alerts {
                tx.execute("INSERT INTO alerts (channel, key, body) VALUES (?1, ?2, ?3)", params![channel, key, body])?;
            }
        }
        tx.commit()?;
        Ok(())
    }

    /// These were not, and are tried again at their times.
    pub fn failed(&mut self, channel: &str, again: &[(i64, Wall)]) -> anyhow::Result<()> {
        let tx = self.begin()?;
        for (id, at) in again {
            let update = "UPDATE outbox SET attempts = attempts + 1, not_before = ?2 WHERE id = ?1";
            tx.execute(update, params![id, signed(at.0)])?;
        }
        count(&tx, channel, "failed", 1)?;
        tx.commit()?;
        Ok(())
    }

    /// These were tried for long enough.
    pub fn give_up(&mut self, channel: &str, ids: &[i64]) -> anyhow::Result<()> {
        let tx = self.begin()?;
        remove(&tx, ids)?;
        count(&tx, channel, "given_up", ids.len())?;
        tx.commit()?;
        Ok(())
    }

    /// Removes what waits for channels that are not configured any more, and says how much.
    pub fn forget_others(&mut self, config: &Config) -> anyhow::Result<usize> {
        let tx = self.begin()?;
        let names: Vec<String> = {
            let mut find =
                tx.prepare("SELECT DISTINCT channel FROM outbox UNION SELECT DISTINCT channel FROM alerts")?;
            let rows = find.query_map([], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        let mut removed = 0;
        for name in names.iter().filter(|name| !config.channels.contains_key(*name)) {
            removed += tx.execute("DELETE FROM outbox WHERE channel = ?1", [name])?;
            tx.execute("DELETE FROM alerts WHERE channel = ?1", [name])?;
        }
        tx.commit()?;
        Ok(removed)
    }

    /// What an Alertmanager was told of and is not over.
    pub fn alerts(&self, channel: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let mut find = self.db.prepare_cached("SELECT key, body FROM alerts WHERE channel = ?1")?;
        let rows = find.query_map([channel], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many messages wait, and what was counted over all channels.
    pub fn summary(&self) -> anyhow::Result<(u64, BTreeMap<String, u64>)> {
        let waiting: i64 = self.db.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?;
        let mut find = self.db.prepare_cached("SELECT what, sum(n) FROM counts GROUP BY what")?;
        let rows = find.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
        Ok((waiting.unsigned_abs(), rows.collect::<Result<_, _>>()?))
    }
}

/// Whether the same was told within its window. The window is of the events' own times: a restart changes nothing of it.
fn was_told(tx: &Transaction<'_>, planned: &Planned<'_>, notice: &Notice) -> rusqlite::Result<bool> {
    let window = usec(planned.dedup_window);
    if window == 0 {
        return Ok(false);
    }
    let (key, at) = (notice.key(), signed(notice.at.0));
    let find = "SELECT at FROM told WHERE route = ?1 AND run = ?2 AND event = ?3 AND channel = ?4";
    let of = params![planned.route, notice.run(), key, planned.channel];
    let last = tx.query_row(find, of, |row| row.get::<_, i64>(0)).optional()?;
    if last.is_some_and(|last| at.saturating_sub(last) < signed(window) && at >= last) {
        return Ok(true);
    }
    let put = "INSERT INTO told (route, run, event, channel, at) VALUES (?1, ?2, ?3, ?4, ?5) \
               ON CONFLICT DO UPDATE SET at = excluded.at";
    tx.execute(put, params![planned.route, notice.run(), key, planned.channel, at])?;
    Ok(false)
}

fn insert(tx: &Transaction<'_>, planned: &Planned<'_>, notice: &Notice, body: &str, now: Wall) -> rusqlite::Result<()> {
    let critical = notice.severity == Severity::Critical;
    let held = planned.held_until.map_or(0, |until| until.0);
    if planned.held_until.is_none() {
        // What is held of the run goes before it: people are told in order.
        let release =
            "UPDATE outbox SET held_until = 0, since = ?3 WHERE channel = ?1 AND run = ?2 AND held_until > ?3";
        tx.execute(release, params![planned.channel, notice.run(), signed(now.0)])?;
    }
    let due = now.0.saturating_add(usec(planned.group_window));
    tx.execute(
        "INSERT INTO outbox (channel, route, run, critical, due, held_until, not_before, attempts, since, grouped, only_ends, \
         body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, ?7, ?8, ?9, ?10)",
        params![
            planned.channel,
            planned.route,
            notice.run(),
            critical,
            signed(due),
            signed(held),
            signed(due.max(held)),
            !planned.group_window.is_zero(),
            planned.only_ends,
            body
        ],
    )?;
    Ok(())
}

/// A channel that takes nothing for long has an end: what is oldest goes, and what is critical last.
fn bound(tx: &Transaction<'_>, channel: &str, most: u32) -> rusqlite::Result<()> {
    let count_all = "SELECT count(*) FROM outbox WHERE channel = ?1";
    let over = tx.query_row(count_all, [channel], |row| row.get::<_, i64>(0))? - i64::from(most);
    if over > 0 {
        let oldest =
            "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE channel = ?1 ORDER BY critical, id LIMIT ?2)";
        let dropped = tx.execute(oldest, params![channel, over])?;
        count(tx, channel, "dropped", dropped)?;
        log::warn(&format!(
            "channel {channel}: {most} messages wait, so {dropped} of the oldest are not told any more"
        ));
    }
    Ok(())
}

fn remove(tx: &Transaction<'_>, ids: &[i64]) -> rusqlite::Result<()> {
    let mut delete = tx.prepare_cached("DELETE FROM outbox WHERE id = ?1")?;
    ids.iter().try_for_each(|id| delete.execute([id]).map(drop))
}

fn count(tx: &Transaction<'_>, channel: &str, what: &str, n: usize) -> rusqlite::Result<()> {
    let put = "INSERT INTO counts (channel, what, n) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET n = n + excluded.n";
    tx.execute(put, params![channel, what, i64::try_from(n).unwrap_or(i64::MAX)]).map(drop)
}

fn put_meta(tx: &Transaction<'_>, key: &str, value: &str) -> rusqlite::Result<()> {
    let put = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
    tx.execute(put, [key, value]).map(drop)
}

fn is_corrupt(e: &anyhow::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let of_sqlite = e.chain().find_map(|c| c.downcast_ref::<rusqlite::Error>());
    of_sqlite.and_then(rusqlite::Error::sqlite_error_code).is_some_and(|c| c == DatabaseCorrupt || c == NotADatabase)
}

fn set_aside(file: &Path) -> anyhow::Result<PathBuf> {
    let at = jiff::Timestamp::now().as_second();
    let aside = file.with_extension(format!("unreadable-{at}"));
    fs::rename(file, &aside).with_context(|| format!("cannot set {} aside", file.display()))?;
    for of_it in ["db-wal", "db-shm"] {
        let _ = fs::remove_file(file.with_extension(of_it));
    }
    Ok(aside)
}

fn local(now: Wall) -> ZonedDateTime {
    let usec = i64::try_from(now.0).unwrap_or(i64::MAX);
    let timestamp = jiff::Timestamp::from_microsecond(usec).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    timestamp.to_zoned_datetime(TimeZone::system())
}

fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// SQLite counts in signed numbers.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
