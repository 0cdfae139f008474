//! The message buses that an instance can be on, and where their sockets are.

use std::path::PathBuf;

use crate::model::{InstanceKind, bus_address_of, usable_bus_address};

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

    /// Whether it is the usual one, and not what the environment names.
    pub fn is_usual(self) -> bool {
        std::env::var_os(self.variable()).is_none_or(|named| named.is_empty())
    }

    /// Its address: what the environment names, else the usual socket, if there is one. Nothing is ever started for it.
    pub fn address(self) -> Option<String> {
        if let Some(named) = std::env::var(self.variable()).ok().filter(|a| !a.is_empty()) {
            return usable_bus_address(&named).map(str::to_owned);
        }
        let socket = self.sockets().into_iter().find(|socket| socket.exists())?;
        Some(bus_address_of(&socket))
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
