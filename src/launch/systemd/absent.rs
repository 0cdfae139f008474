//! Why the user's systemd manager cannot be used, in sentences that end with what to type.

use std::path::PathBuf;
use std::time::Duration;

/// The step at which the manager was not there, with what a person can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// We are root.
    #[error(
        "the instance of root does not use a user's systemd manager: it makes cgroups of its own; start it as a unit with \
         Delegate=yes, or run Guardian as an ordinary user"
    )]
    Root,
    /// We are not, and the host's manager is wanted.
    #[error("the host's systemd manager makes units for root alone: use an instance of your own (--user or --private)")]
    NotRoot,
    /// Nobody has made the directory that the session bus would be in.
    #[error(
        "no systemd manager runs for user {uid}: {dir} does not exist; log in through PAM (ssh, a console, \
         `machinectl shell`; not su or sudo), or let root type `loginctl enable-linger {uid}`",
        dir = dir.display()
    )]
    NoSession {
        /// Us.
        uid: u32,
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is there and holds no bus.
    #[error(
        "there is no session bus at {socket}, and DBUS_SESSION_BUS_ADDRESS is not set: let root type \
         `apt install dbus-user-session` (elsewhere: the package with dbus.socket for users), then log in again",
        socket = socket.display()
    )]
    NoBus {
        /// Where it would be.
        socket: PathBuf,
    },
    /// The address is of a kind that we do not use: it would start programs, or lead to another host.
    #[error(
        "the session bus address {address:?} is not that of a unix socket: `unset DBUS_SESSION_BUS_ADDRESS` to use the one \
         in /run/user"
    )]
    Address {
        /// The address.
        address: String,
    },
    /// Nobody listens, or it does not let us in.
    #[error(
        "the session bus at {address} cannot be connected to: {why}; `systemctl --user status dbus.socket` tells more, and \
         `unset DBUS_SESSION_BUS_ADDRESS` forgets an address from an earlier session"
    )]
    Refused {
        /// The address.
        address: String,
        /// What was said.
        why: String,
    },
    /// It did not answer in time.
    #[error(
        "the session bus at {address} did not {step} within {} s: `systemctl --user status` tells whether the manager is stuck",
        .within.as_secs()
    )]
    Silent {
        /// The address.
        address: String,
        /// What it should have done.
        step: &'static str,
        /// How long it had.
        within: Duration,
    },
    /// There is a bus, and no systemd on it.
    #[error(
        "no systemd manager is on the session bus at {address}: {why}; a bus of dbus-run-session or dbus-launch has none: \
         `unset DBUS_SESSION_BUS_ADDRESS`, or let root type `loginctl enable-linger {uid}`"
    )]
    NoManager {
        /// The address.
        address: String,
        /// What the bus said.
        why: String,
        /// Us.
        uid: u32,
    },
    /// Its cgroups are not those that we see.
    #[error(
        "the systemd manager's cgroup {cgroup} is not one that we see: {why}; start Guardian outside of the container, or \
         systemd inside of it"
    )]
    Elsewhere {
        /// Its cgroup, in its own words.
        cgroup: String,
        /// How that was seen.
        why: String,
    },
    /// Its cgroups are not ours to kill.
    #[error(
        "the systemd manager's cgroup {path} cannot be written to: {why}; on a host with cgroup v1, boot with \
         systemd.unified_cgroup_hierarchy=1; elsewhere, `systemctl show user@{uid}.service -p Delegate` should say yes",
        path = path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        why: String,
        /// Us.
        uid: u32,
    },
    /// We could not even ask.
    #[error(
        "the thread that speaks to the systemd manager cannot be started: {0}; `ulimit -u` tells how many there may be"
    )]
    NoThread(String),
}
