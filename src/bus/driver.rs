//! `org.freedesktop.DBus` on a peer-to-peer connection: the answers that a client of a real bus expects, so that
//! `busctl --address=unix:path=…` and every D-Bus library work on the private socket. There is one peer and one name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use zbus::{fdo, interface};

use super::BUS_NAME;

/// Where a bus driver is.
pub const DRIVER_PATH: &str = "/org/freedesktop/DBus";
/// The name of the peer, and of us, as a bus would number them.
const PEER: &str = ":1.1";
const OURS: &str = ":1.0";
const DRIVER: &str = "org.freedesktop.DBus";

/// Whether the peer listens to signals. Nobody is sent what they did not ask for.
#[derive(Debug, Default)]
pub struct Listening {
    on: AtomicBool,
    changed: Notify,
}

impl Listening {
    /// The peer listens.
    pub fn begin(&self) {
        self.on.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Returns once the peer has asked for signals.
    pub async fn begun(&self) {
        while !self.on.load(Ordering::Acquire) {
            self.changed.notified().await;
        }
    }
}

/// The driver, for one peer.
pub struct Driver {
    /// Set by AddMatch.
    pub listening: Arc<Listening>,
}

fn no_name(name: &str) -> fdo::Error {
    let shown: String = name.chars().take(80).collect();
    fdo::Error::NameHasNoOwner(format!("{shown:?} is not on this connection: only {BUS_NAME} is"))
}

#[interface(name = "org.freedesktop.DBus", introspection_docs = false)]
impl Driver {
    async fn hello(&self) -> &'static str {
        PEER
    }

    async fn add_match(&self, _rule: &str) {
        self.listening.begin();
    }

    async fn remove_match(&self, _rule: &str) {}

    async fn get_name_owner(&self, name: &str) -> fdo::Result<&'static str> {
        match name {
            BUS_NAME | OURS => Ok(OURS),
            PEER => Ok(PEER),
            DRIVER => Ok(DRIVER),
            other => Err(no_name(other)),
        }
    }

    async fn name_has_owner(&self, name: &str) -> bool {
        matches!(name, BUS_NAME | OURS | PEER | DRIVER)
    }

    async fn list_names(&self) -> Vec<&'static str> {
        vec![DRIVER, BUS_NAME, OURS, PEER]
    }

    async fn list_activatable_names(&self) -> Vec<&'static str> {
        Vec::new()
    }

    async fn start_service_by_name(&self, name: &str, _flags: u32) -> fdo::Result<u32> {
        // 2 is DBUS_START_REPLY_ALREADY_RUNNING.
        if name == BUS_NAME { Ok(2) } else { Err(no_name(name)) }
    }

    async fn get_id(&self) -> String {
        "0".repeat(32)
    }
}
