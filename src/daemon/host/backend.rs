//! Which backend an instance has: the strongest that can be had here, or the one that is insisted on.

use std::sync::Arc;

use super::HostOptions;
use crate::kernel::KernelError;
use crate::kernel::poll::Waker;
use crate::launch::cgroupfs::{self, CgroupTree};
use crate::launch::mark::Owner;
use crate::launch::systemd::{self, Manager};
use crate::model::{Considered, Containment, InstanceKind};

/// What contains new runs.
#[derive(Debug)]
pub(super) enum Taken {
    /// Units of this manager.
    Systemd(Manager),
    /// Cgroups in this tree.
    Cgroupfs(CgroupTree),
    /// Shims.
    Subtree,
}

impl Taken {
    /// The systemd manager, or that there is none.
    pub(super) fn manager(&self) -> Result<&Manager, KernelError> {
        match self {
            Taken::Systemd(manager) => Ok(manager),
            Taken::Cgroupfs(_) | Taken::Subtree => Err(KernelError::Gone { what: "the connection to systemd".into() }),
        }
    }

    /// Whether it is the host's systemd manager.
    pub(super) fn is_of_host(&self, kind: InstanceKind) -> bool {
        kind == InstanceKind::System && matches!(self, Taken::Systemd(_))
    }

    /// Its name.
    pub(super) fn containment(&self) -> Containment {
        match self {
            Taken::Systemd(_) => Containment::Systemd,
            Taken::Cgroupfs(_) => Containment::Cgroupfs,
            Taken::Subtree => Containment::Subtree,
        }
    }
}

/// Goes through the backends in the order of preference. The last one can be had everywhere. Gives it, and every one that
/// was looked at, in order, with what became of it.
pub(super) fn choose(
    options: &HostOptions,
    owner: &Owner,
    waker: &Waker,
) -> Result<(Taken, Vec<Considered>), KernelError> {
    let mut considered = Vec::new();
    for backend in Containment::ALL {
        if options.backend.is_some_and(|only| only != backend) {
            continue;
        }
        match open(backend, options, owner, waker) {
            Ok((taken, why)) => {
                considered.push(Considered { backend, chosen: true, why });
                return Ok((taken, considered));
            }
            Err(why) if options.backend.is_some() => return Err(KernelError::NoBackend { backend, why }),
            Err(why) => considered.push(Considered { backend, chosen: false, why }),
        }
    }
    Ok((Taken::Subtree, considered))
}

/// Opens a backend. Gives it and why it can be had, or why it cannot.
fn open(backend: Containment, options: &HostOptions, owner: &Owner, waker: &Waker) -> Result<(Taken, String), String> {
    match backend {
        Containment::Systemd => {
            let waker = waker.clone();
            let whole = options.kind == InstanceKind::System;
            let of_systemd =
                systemd::Options { mount: options.mount.clone(), ..systemd::Options::from_env(whole, owner.clone()) };
            let manager = Manager::connect(of_systemd, Arc::new(move || waker.wake())).map_err(|e| e.to_string())?;
            let why = format!(
                "{} systemd manager (version {}) makes a unit for each run in {}",
                if whole { "the host's" } else { "the user's" },
                manager.version(),
                manager.cgroup().display()
            );
            Ok((Taken::Systemd(manager), why))
        }
        Containment::Cgroupfs => {
            let tree = CgroupTree::open(&cgroupfs::Options {
                base: options.base.clone(),
                mount: options.mount.clone(),
                key: options.key.clone(),
                owner: owner.clone(),
                move_instance: options.move_instance,
            });
            let tree = tree.map_err(|e| e.to_string())?;
            let why = format!("a cgroup for each run can be made in {}", tree.path().display());
            Ok((Taken::Cgroupfs(tree), why))
        }
        Containment::Subtree => {
            Ok((Taken::Subtree, "each run has a shim above it, its subreaper, which needs nothing else".to_owned()))
        }
    }
}
