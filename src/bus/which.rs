//! The message buses that an instance can be on, and where their sockets are.

use std::path::{Path, PathBuf};

use crate::model::InstanceKind;

/// A message bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bus {
    /// The host's.
    System,
    /// The user's.
    Session,
}

impl std::fmt::Display for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::Session => "session",
        })
    }
}

impl Bus {
    /// The bus of this kind of instance; a private one has none.
    pub fn of(kind: InstanceKind) -> Option<Self> {
        match kind {
            InstanceKind::System => Some(Self::System),
            InstanceKind::User => Some(Self::Session),
            InstanceKind::Private => None,
        }
    }

    /// The variable that names its address.
    fn variable(self) -> &'static str {
        match self {
            Self::System => "DBUS_SYSTEM_BUS_ADDRESS",
            Self::Session => "DBUS_SESSION_BUS_ADDRESS",
        }
    }

    /// Its address: what the environment names, else the usual socket, if there is one. Nothing is ever started for it.
    pub fn address(self) -> Option<String> {
        if let Some(named) = std::env::var(self.variable()).ok().filter(|a| !a.is_empty()) {
            // `unixexec:` and `autolaunch:` start programs, `tcp:` leads to who knows whom.
            let usable = named.split(';').find(|a| a.starts_with("unix:path=") || a.starts_with("unix:abstract="));
            return usable.map(str::to_owned);
        }
        let socket = self.sockets().into_iter().find(|socket| socket.exists())?;
        Some(format!("unix:path={}", escape(&socket)))
    }

    fn sockets(self) -> Vec<PathBuf> {
        match self {
            Self::System => vec![PathBuf::from("/run/dbus/system_bus_socket")],
            Self::Session => {
                let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
                let own = PathBuf::from(format!("/run/user/{}", rustix::process::geteuid().as_raw()));
                named.into_iter().chain([own]).map(|dir| dir.join("bus")).collect()
            }
        }
    }
}

/// A path as an address has it: all but a few characters as `%` and two hexadecimal digits.
fn escape(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_/.\\*".contains(&b);
    let one = |b: &u8| if plain(*b) { char::from(*b).to_string() } else { format!("%{b:02x}") };
    path.as_os_str().as_bytes().iter().map(one).collect()
}
