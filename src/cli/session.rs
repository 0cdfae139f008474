//! Finding the instance, and starting the private one where nobody answers.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{child_subreaper, set_child_subreaper};

use super::args::Global;
use super::inherited;
use super::output::{escape, hint, note};
use crate::bus::client::{Bus, Client, OnBus, connect_socket};
use crate::daemon::state_dir;
use crate::launch::environment::OF_A_SERVICE;
use crate::model::{Containment, Error, ErrorKind, InstanceKind};

/// The time that a started instance has until it answers.
const START: Duration = Duration::from_secs(10);

/// How long the one instance that took the lock is relied on before another is started; then twice as long.
const AGAIN: Duration = Duration::from_millis(200);

/// How long an instance is asked again whose connection was lost.
const LOST: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// The variable that says which kind of instance is used.
const INSTANCE: &str = "GUARDIAN_INSTANCE";

/// The order in which instances are looked for: what guards the whole host guards best.
const ORDER: [InstanceKind; 3] = [InstanceKind::System, InstanceKind::User, InstanceKind::Private];

/// Where the instance is, or will be.
#[derive(Debug, Clone)]
pub struct Session {
    /// The kind that is insisted on.
    wanted: Option<InstanceKind>,
    state_dir: PathBuf,
    config: Option<PathBuf>,
    backend: Option<Containment>,
}

impl Session {
    /// The place that the options name, or the user's own.
    pub fn new(global: &Global) -> Result<Self, Error> {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = state_dir::find(InstanceKind::Private, global.state_dir.clone())?;
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|e| Error::invalid(format!("{} has no absolute path: {e}", path.display())))
        };
        let config = global.config.clone().or_else(|| set("GUARDIAN_CONFIG"));
        let config = config.as_deref().map(absolute).transpose()?;
        // What says how a private instance is to be started is about that one.
        let private = global.state_dir.is_some() || set("GUARDIAN_STATE_DIR").is_some() || config.is_some();
        let wanted = match global {
            Global { system: true, .. } => Some(InstanceKind::System),
            Global { user: true, .. } => Some(InstanceKind::User),
            Global { private: true, .. } | Global { backend: Some(_), .. } => Some(InstanceKind::Private),
            _ if private => Some(InstanceKind::Private),
            _ => wanted_by_environment()?,
        };
        Ok(Self { wanted, state_dir: absolute(&dir)?, config, backend: global.backend })
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The configuration file that was named.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The backend that was insisted on.
    pub fn backend(&self) -> Option<Containment> {
        self.backend
    }

    /// The options by which another process asks the same instance.
    pub fn options(&self) -> Vec<OsString> {
        let kind = match self.wanted {
            None => return Vec::new(),
            Some(kind) if kind != InstanceKind::Private => return vec![format!("--{kind}").into()],
            Some(_) => "--private".into(),
        };
        let mut options = vec![kind, "--state-dir".into(), self.state_dir.clone().into()];
        if let Some(config) = &self.config {
            options.extend(["--config".into(), config.clone().into()]);
        }
        if let Some(backend) = self.backend {
            options.extend(["--backend".into(), backend.as_str().into()]);
        }
        options
    }

    /// The instance's socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("bus.sock")
    }

    /// The kind of instance that would be connected to, without starting any.
    pub async fn kind(&self) -> InstanceKind {
        if let Some(wanted) = self.wanted {
            return wanted;
        }
        for kind in ORDER {
            let Some(bus) = Bus::of(kind) else { continue };
            if straight(kind).await.is_some() || Client::is_known_on(bus).await {
                return kind;
            }
        }
        InstanceKind::Private
    }

    /// What there is of each kind of instance that is looked for before a private one, in sentences.
    pub async fn looked(&self) -> Vec<(InstanceKind, String)> {
        let mut looked = Vec::new();
        for kind in ORDER.into_iter().filter(|kind| self.wanted.is_none_or(|wanted| wanted == *kind)) {
            let Some(bus) = Bus::of(kind) else { continue };
            let what = match bus.address() {
                None => "there is no such bus here".to_owned(),
                Some(address) if Client::is_known_on(bus).await => format!("on the bus at {}", escape(&address)),
                Some(address) => format!("not on the bus at {}, nor known to it", escape(&address)),
            };
            looked.push((kind, what));
        }
        looked
    }

    /// Connects to the instance: to the kind that is insisted on, or to the first that is there. The buses start what they
    /// know; a private instance is started here.
    pub async fn connect(&self) -> Result<Client, Error> {
        for kind in ORDER.into_iter().filter(|kind| self.wanted.is_none_or(|wanted| wanted == *kind)) {
            let Some(bus) = Bus::of(kind) else { return self.connect_private().await };
            if let Some(client) = straight(kind).await {
                return Ok(client);
            }
            match Client::on_bus(bus).await {
                OnBus::There(client) => return Ok(client),
                OnBus::Absent if self.wanted.is_some() => return Err(absent(kind)),
                OnBus::Absent => {}
                OnBus::Broken(why) if self.wanted.is_some() => return Err(broken(kind, &why)),
                OnBus::Broken(why) => warn_once(kind, &why),
            }
        }
        Err(Error::internal("there is no kind of instance"))
    }

    /// Connects to the instance of the state directory; starts it if nobody answers.
    async fn connect_private(&self) -> Result<Client, Error> {
        let until = Instant::now() + LOST;
        let client = loop {
            match Client::over(self.stream().await?).await {
                Err(e) if e.kind == ErrorKind::Unavailable && Instant::now() < until => tokio::time::sleep(PAUSE).await,
                client => break client?,
            }
        };
        if let Some(wanted) = self.backend {
            let has = client.backend().await?;
            if has != wanted {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "the instance contains runs by {has}, not by {wanted}: leave out --backend, or stop the instance \
                         first (`guardian doctor` tells its pid; SIGTERM stops it, and its runs live on)"
                    ),
                ));
            }
        }
        Ok(client)
    }

    /// A connection to the private instance's socket; starts the instance if nobody listens there.
    async fn stream(&self) -> Result<std::os::unix::net::UnixStream, Error> {
        let socket = self.socket();
        match connect_socket(&socket) {
            Err(e) if nobody(&e) => self.start().await,
            stream => stream.map_err(|e| {
                Error::new(ErrorKind::Unavailable, format!("cannot connect to {}: {e}", socket.display()))
            }),
        }
    }

    /// Asks the instance, and again where the connection is lost: an idle instance may exit just then, and one that was
    /// killed takes connections until it is gone.
    pub async fn ask<T>(&self, ask: impl AsyncFn(&Client) -> Result<T, Error>) -> Result<T, Error> {
        let mut lost: Option<Instant> = None;
        loop {
            let answer = ask(&self.connect().await?).await;
            match answer {
                Err(e) if e.kind == ErrorKind::Unavailable && lost.is_none_or(|since| since.elapsed() < LOST) => {
                    lost.get_or_insert_with(Instant::now);
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    /// Starts the private instance and waits until it listens. Of several that are started at once one takes the lock;
    /// the others exit, and everybody connects to the one.
    async fn start(&self) -> Result<std::os::unix::net::UnixStream, Error> {
        let failed =
            |what: String| Error::new(ErrorKind::Unavailable, format!("the instance could not be started: {what}"));
        let spawn = || {
            let pipe = self.spawn().map_err(|e| failed(format!("cannot execute /proc/self/exe: {e}")))?;
            Words::new(pipe).map_err(|e| failed(e.to_string()))
        };
        let mut words = spawn()?;
        let begin = Instant::now();
        let (mut again, mut pause) = (begin + AGAIN, AGAIN);
        loop {
            match connect_socket(&self.socket()) {
                Ok(stream) => return Ok(stream),
                Err(e) if !nobody(&e) => return Err(failed(format!("{}: {e}", self.socket().display()))),
                Err(_) => {}
            }
            if words.read() {
                // It says so as it would to a person.
                let said = words.text.trim();
                if !said.is_empty() {
                    return Err(failed(said.strip_prefix("guardian: ").unwrap_or(said).to_owned()));
                }
                // It left the start to another, or was killed. The other may have been killed too, after everybody had
                // relied on it.
                if Instant::now() > again {
                    words = spawn()?;
                    pause *= 2;
                    again = Instant::now() + pause;
                }
            }
            if begin.elapsed() > START {
                let said = if words.text.is_empty() { "it said nothing".into() } else { words.text };
                return Err(failed(format!("it does not answer after {} s: {said}", START.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Starts it as nobody's child: the process started here starts the instance, and exits.
    fn spawn(&self) -> io::Result<OwnedFd> {
        let (reading, writing) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("instance").arg("--detach").arg("--state-dir").arg(&self.state_dir);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        if let Some(backend) = self.backend {
            command.arg("--backend").arg(backend.as_str());
        }
        // It is no part of the service that we may be of, and does not speak for it.
        for name in OF_A_SERVICE {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writing).current_dir("/");
        let status = unparented(|| command.status())?;
        if !status.success() {
            let mut words = String::new();
            drop(command);
            io::Read::take(&reading, 4096).read_to_string(&mut words)?;
            return Err(io::Error::other(words.trim().to_owned()));
        }
        Ok(reading.into())
    }
}

/// The host's instance on its own socket, which is root's: as systemctl speaks to systemd, a launch does without the bus.
/// Where nobody answers there, the bus may start it, or knows why it does not.
async fn straight(kind: InstanceKind) -> Option<Client> {
    if kind != InstanceKind::System || !Bus::System.is_usual() || !rustix::process::geteuid().is_root() {
        return None;
    }
    let stream = connect_socket(&Path::new(state_dir::SYSTEM).join(state_dir::SOCKET)).ok()?;
    Client::over(stream).await.ok()
}

/// The kind that the environment insists on.
fn wanted_by_environment() -> Result<Option<InstanceKind>, Error> {
    let Some(text) = std::env::var_os(INSTANCE).filter(|v| !v.is_empty()) else { return Ok(None) };
    let kind = ORDER.into_iter().find(|kind| text == kind.as_str());
    kind.map(Some).ok_or_else(|| {
        Error::invalid(format!("{INSTANCE} is {text:?}: it is one of system, user and private, or unset"))
    })
}

fn absent(kind: InstanceKind) -> Error {
    let what = match kind {
        InstanceKind::System => {
            "there is no system instance here: install the package, or start guardiand as root where a system bus is"
        }
        _ => "there is no user instance on the session bus: `systemctl --user start guardiand`, or use --private",
    };
    Error::new(ErrorKind::Unavailable, what)
}

fn broken(kind: InstanceKind, why: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the {kind} instance does not start: {why}: `{}` tells more", status(kind)),
    )
}

fn status(kind: InstanceKind) -> &'static str {
    match kind {
        InstanceKind::System => "systemctl status guardiand",
        _ => "systemctl --user status guardiand",
    }
}

/// Whether it was said why another instance stands in.
static SAID: AtomicBool = AtomicBool::new(false);

/// Says no such thing from now on: who has the screen tells which instance it shows.
pub fn hold_notes() {
    SAID.store(true, Ordering::Relaxed);
}

/// Another instance stands in, with other rights and other runs: once in a process it is said why.
fn warn_once(kind: InstanceKind, why: &str) {
    if !SAID.swap(true, Ordering::Relaxed) {
        note(format!("the {kind} instance does not start ({}), so another is used", escape(why)));
        hint(format!("`{}` tells more; --private or {INSTANCE}=private does without it", status(kind)));
    }
}

/// Starts something that is to be nobody's child. The client of a foreground run adopts orphans: not this one, which would
/// be taken for a process of the run by whoever ends the client with all its descendants.
fn unparented<T>(start: impl FnOnce() -> T) -> T {
    let adopting = child_subreaper().ok().flatten();
    if adopting.is_some() {
        let _ = set_child_subreaper(None);
    }
    let started = start();
    if adopting.is_some() {
        let _ = set_child_subreaper(adopting);
    }
    started
}

/// What a starting instance writes on its standard error.
struct Words {
    pipe: std::fs::File,
    text: String,
}

impl Words {
    fn new(pipe: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        Ok(Self { pipe: pipe.into(), text: String::new() })
    }

    /// Reads what is there; true once there can be no more.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.pipe.read(&mut bytes) {
                Ok(0) => return true,
                Ok(n) if self.text.len() < 1 << 16 => self.text.push_str(&String::from_utf8_lossy(&bytes[..n])),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}

fn nobody(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The hidden verb with `--detach`: starts the instance and leaves it to init.
pub fn detach(arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Result<()> {
    inherited::hand_no_descriptor_on();
    let rest = arguments.filter(|a| a != "--detach");
    Command::new("/proc/self/exe").args(rest).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    Ok(())
}
