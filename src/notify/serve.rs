//! The process: the reader on this thread, a worker for each channel, and an end on SIGTERM that loses nothing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};

use super::channel::deliver;
use super::config::{Channel, Config};
use super::event::{Event, Notice};
use super::log;
use super::outbox::{self, Outbox};
use super::reader::{Reader, Source};
use super::worker::Worker;
use crate::model::Wall;

/// How long a message that is under way is waited for at the end. What was not taken by then is sent again.
const LAST: Duration = Duration::from_secs(10);

/// What is served.
#[derive(Debug)]
pub struct Options {
    /// The configuration.
    pub config: Config,
    /// Where the outbox is.
    pub state_dir: PathBuf,
    /// Whose audit is read.
    pub source: Source,
}

/// Wakes the workers, and tells them when to stop.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
    over: AtomicBool,
}

impl Bell {
    /// Something is to be done.
    pub fn ring(&self) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        *rung += 1;
        self.changed.notify_all();
    }

    /// Everybody is to stop.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.ring();
    }

    /// Whether everybody is to stop.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits until it is rung again after the ring of this number, or the time is over; the number of the last ring.
    pub fn wait(&self, heard: u64, time: Duration) -> u64 {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(rung, time, |rung| *rung == heard && !self.is_over());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn serve(options: Options) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    // Before there is another thread: each has what the first had.
    signals.thread_block().context("cannot block signals")?;
    let _lock = outbox::lock(&options.state_dir)?;
    let mut outbox = Outbox::open_or_begin(&options.state_dir)?;
    let forgotten = outbox.forget_others(&options.config)?;
    if forgotten > 0 {
        log::warn(&format!("{forgotten} messages waited for channels that are not configured any more"));
    }
    if options.config.channels.is_empty() {
        log::warn("there is no channel in the configuration: nobody is told of anything");
    }
    let config = Arc::new(options.config);
    let bell = Arc::new(Bell::default());
    let mut workers = Vec::new();
    for (name, channel) in &config.channels {
        let worker = Worker {
            config: config.clone(),
            channel: channel.clone(),
            outbox: Outbox::open(&options.state_dir)?,
            bell: bell.clone(),
            failures: 0,
            again: Instant::now(),
            paused: None,
        };
        let thread = std::thread::Builder::new().name(format!("to-{name}"));
        workers.push(thread.spawn(move || worker.run()).context("cannot start a thread")?);
    }
    let ends = bell.clone();
    let waiter = std::thread::Builder::new().name("signals".to_owned());
    waiter
        .spawn(move || {
            let _ = signals.wait();
            ends.end();
        })
        .context("cannot start a thread")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let reader = Reader::new(config, outbox, bell.clone(), options.source);
    let done = runtime.block_on(reader.run());
    bell.end();
    let deadline = Instant::now() + LAST;
    while workers.iter().any(|w| !w.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    done
}

/// Sends a message through one channel or all, at once and past routes and outbox; false if one did not take it.
pub fn test(config: &Config, only: Option<&str>) -> anyhow::Result<bool> {
    let chosen: Vec<&Channel> = config.channels.values().filter(|c| only.is_none_or(|name| name == c.name)).collect();
    match (chosen.is_empty(), only) {
        (true, Some(name)) => bail!(
            "there is no channel {name:?}: {}",
            crate::config::suggest(name, config.channels.keys().map(String::as_str))
        ),
        (true, None) => bail!("there is no channel in the configuration: write [channel.NAME]"),
        _ => {}
    }
    let sentence = "a test: messages of Guardian arrive here".to_owned();
    let notice = Notice::of_instance(Event::Test, now(), sentence, &host());
    let mut good = true;
    for channel in chosen {
        match deliver(channel, std::slice::from_ref(&notice)) {
            Ok(()) => println!("{}: delivered", channel.name),
            Err(failure) => {
                println!("{}: {}", channel.name, crate::model::escape(&failure.what));
                good = false;
            }
        }
    }
    Ok(good)
}

/// The time, by the wall.
pub fn now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// This host's name.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
