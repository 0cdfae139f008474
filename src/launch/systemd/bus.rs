//! The manager, on its bus or on its own socket: finding it, asking it, and looking whether its cgroups are those we see.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::{Connection, OwnedVariant, Type};

use super::Absent;
use crate::kernel::cgroup::CgroupDir;
use crate::kernel::mount::Cgroup2Mount;
use crate::kernel::process;
use crate::model::{bus_address_of, usable_bus_address};

/// The manager's name on the bus.
pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
/// The manager's object.
pub(super) const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
/// The manager's interface.
pub(super) const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// The time that connecting may take, with all that is asked meanwhile.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

/// An object on the bus, and the interface of it that is spoken to.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    pub name: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
}

/// The manager itself.
pub(super) const THE_MANAGER: Object<'static> = Object { name: SYSTEMD, path: MANAGER_PATH, interface: MANAGER };

const THE_BUS: Object<'static> =
    Object { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// The manager as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its major version; 0 if it cannot be read.
    pub version: u32,
    /// The directory of its cgroup.
    pub dir: PathBuf,
}

/// Calls a method. Who calls sets a deadline: a peer that is stopped never answers.
pub(super) async fn call<B, R>(bus: &Connection, at: Object<'_>, member: &str, body: &B) -> zbus::Result<R>
where
    B: Serialize + zbus::DynamicType,
    R: DeserializeOwned + Type,
{
    bus.call_method(Some(at.name), at.path, Some(at.interface), member, body).await?.body().deserialize()
}

/// Reads a property.
pub(super) async fn property<T>(bus: &Connection, at: Object<'_>, name: &str) -> zbus::Result<T>
where
    T: TryFrom<OwnedVariant, Error = zbus::Error>,
{
    let properties = Object { interface: "org.freedesktop.DBus.Properties", ..at };
    let value: OwnedVariant = call(bus, properties, "Get", &(at.interface, name)).await?;
    T::try_from(value)
}

/// Where the session bus should be: what the environment names, else the socket that systemd makes for each user.
/// `runtime_dirs` are tried in turn.
pub(super) fn address(named: Option<&str>, runtime_dirs: &[PathBuf], uid: u32) -> Result<String, Absent> {
    if let Some(named) = named.filter(|a| !a.is_empty()) {
        return usable_bus_address(named)
            .map(str::to_owned)
            .ok_or_else(|| Absent::Address { address: named.to_owned() });
    }
    let sockets = || runtime_dirs.iter().map(|dir| dir.join("bus"));
    if let Some(socket) = sockets().find(|socket| socket.exists()) {
        return Ok(bus_address_of(&socket));
    }
    let dir = runtime_dirs.iter().find(|dir| dir.is_dir());
    match (dir, runtime_dirs.last()) {
        (Some(dir), _) => Err(Absent::NoBus { socket: dir.join("bus") }),
        (None, last) => Err(Absent::NoSession { uid, dir: last.cloned().unwrap_or_default() }),
    }
}

/// Where the manager is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// Its own socket, if we are one whom it lets in there. A launch by way of the bus costs the bus as much as it costs us.
    pub socket: Option<PathBuf>,
    /// The bus that it is on, where it cannot be spoken to on its socket.
    pub bus: String,
}

/// Connects and looks at the manager, within the deadline.
pub(super) async fn connect(address: &Address, mount: &Cgroup2Mount, uid: u32) -> Result<(Connection, Place), Absent> {
    let mut step = "let us in";
    let found = tokio::time::timeout(CONNECT, find(address, mount, uid, &mut step)).await;
    found.unwrap_or_else(|_| Err(Absent::Silent { address: address.bus.clone(), step, within: CONNECT }))
}

async fn find(
    Address { socket, bus: address }: &Address,
    mount: &Cgroup2Mount,
    uid: u32,
    step: &mut &'static str,
) -> Result<(Connection, Place), Absent> {
    let refused = |e: zbus::Error| Absent::Refused { address: address.to_owned(), why: reason(&e) };
    let straight = match socket {
        Some(socket) => super::socket::connect(socket).await,
        None => None,
    };
    let (bus, known) = match straight {
        Some((connection, pid)) => (connection, Some(pid)),
        None => (zbus::connection::Builder::address(address.as_str()).build().await.map_err(refused)?, None),
    };
    *step = "give an answer of its systemd manager";
    let none = |e: zbus::Error| Absent::NoManager { address: address.to_owned(), why: reason(&e), uid };
    // A call, and not a look at who owns the name: the first client starts the bus, and the manager joins it a moment
    // later; a bus that systemd started keeps the call for so long.
    let version: String = property(&bus, THE_MANAGER, "Version").await.map_err(none)?;
    let cgroup: String = property(&bus, THE_MANAGER, "ControlGroup").await.map_err(none)?;
    let pid: u32 = match known {
        Some(pid) => pid,
        None => call(&bus, THE_BUS, "GetConnectionUnixProcessID", &(SYSTEMD,)).await.map_err(none)?,
    };
    let dir = directory(&cgroup, pid, mount, uid)?;
    Ok((bus, Place { version: major(&version), dir }))
}

/// `252.39-1~deb12u1`, `257.9`, `v258-rc1`.
fn major(version: &str) -> u32 {
    let digits = version.trim_start_matches('v');
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|d| d.parse().ok()).unwrap_or(0)
}

/// The directory of the manager's cgroup, if it is one that we see and may write to.
fn directory(cgroup: &str, pid: u32, mount: &Cgroup2Mount, uid: u32) -> Result<PathBuf, Absent> {
    let elsewhere = |why: String| Absent::Elsewhere { cgroup: cgroup.to_owned(), why };
    // A manager in another cgroup namespace names its cgroup otherwise than we do, and by chance we may have one of that
    // name too. That the manager itself is in it, as we see it, proves that both mean the same.
    match process::cgroup(pid) {
        Ok(own) if own.starts_with(cgroup) => {}
        Ok(own) => return Err(elsewhere(format!("its process {pid} is in {}", own.display()))),
        Err(e) => return Err(elsewhere(format!("its process cannot be seen: {e}"))),
    }
    // The host's manager has the root.
    let whole = matches!(cgroup, "" | "/");
    let place = mount.directory_of(Path::new(if whole { "/" } else { cgroup }));
    let dir = place.ok_or_else(|| elsewhere(format!("it is not below {}", mount.mount_point.display())))?;
    CgroupDir::open(&dir).map_err(|e| elsewhere(e.to_string()))?;
    let not_writable = |why: String| Absent::NotWritable { path: dir.clone(), why, uid };
    if mount.read_only && !whole {
        return Err(not_writable("cgroup2 is mounted read-only".to_owned()));
    }
    // Ours is the slice below it alone, if it is there already: nothing else may be changed by the service.
    let ours = if whole { dir.join("guardian.slice") } else { dir.clone() };
    if whole && !ours.exists() {
        return Ok(dir);
    }
    for file in ["", "cgroup.procs"] {
        accessat(CWD, ours.join(file), Access::WRITE_OK, AtFlags::EACCESS).map_err(|e| not_writable(e.to_string()))?;
    }
    Ok(dir)
}

/// What a person reads of a bus's error.
pub(super) fn reason(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, Some(message), _) => format!("{message} ({name})"),
        zbus::Error::MethodError(name, None, _) => name.to_string(),
        zbus::Error::Connection(e, _) => e.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_in_the_environment_comes_first() {
        let cases = [
            ("unix:path=/run/user/1000/bus", "unix:path=/run/user/1000/bus"),
            ("unix:path=/a,guid=00ff;unix:path=/b", "unix:path=/a,guid=00ff"),
            ("tcp:host=example.org,port=1;unix:abstract=/tmp/x", "unix:abstract=/tmp/x"),
        ];
        for (named, used) in cases {
            assert_eq!(address(Some(named), &[], 1000).unwrap(), used);
        }
        for bad in
            ["autolaunch:", "unixexec:path=/bin/true", "tcp:host=example.org,port=1", "nonsense", "unix:tmpdir=/"]
        {
            let error = address(Some(bad), &[], 1000).unwrap_err();
            assert!(error.to_string().contains("unset DBUS_SESSION_BUS_ADDRESS"), "{error}");
        }
    }

    #[test]
    fn without_an_address_the_users_own_socket_is_used() {
        let tmp = tempfile::tempdir().unwrap();
        let (other, own) = (tmp.path().join("other"), tmp.path().join("with space"));
        let dirs = [other, own.clone()];
        let error = address(None, &dirs, 1000).unwrap_err();
        assert_eq!(error, Absent::NoSession { uid: 1000, dir: own.clone() });
        assert!(error.to_string().contains("with space does not exist"), "{error}");
        assert!(error.to_string().contains("`loginctl enable-linger 1000`"), "{error}");

        std::fs::create_dir(&own).unwrap();
        let error = address(Some(""), &dirs, 1000).unwrap_err();
        assert_eq!(error, Absent::NoBus { socket: own.join("bus") });
        assert!(error.to_string().contains("`apt install dbus-user-session`"), "{error}");

        std::fs::write(own.join("bus"), "").unwrap();
        assert!(address(None, &dirs, 1000).unwrap().ends_with("with%20space/bus"));
    }

    #[test]
    fn versions_of_distributions_are_read() {
        for (text, version) in [("252.39-1~deb12u1", 252), ("257.13-1~deb13u1", 257), ("v258~rc1", 258), ("git", 0)] {
            assert_eq!(major(text), version, "{text}");
        }
    }

    #[test]
    fn a_manager_whose_cgroups_are_not_ours_is_of_no_use() {
        let mount = Cgroup2Mount { mount_point: "/nowhere".into(), root: "/".into(), read_only: false };
        let error = directory("/some/other/user@1000.service", std::process::id(), &mount, 1000).unwrap_err();
        assert!(matches!(error, Absent::Elsewhere { .. }) && error.to_string().contains("its process"), "{error}");
        let error = directory("/", std::process::id(), &mount, 1000).unwrap_err();
        assert!(matches!(error, Absent::Elsewhere { .. }) && error.to_string().contains("/nowhere"), "{error}");
    }
}
