//! What this host has of what guarding needs, looked at from the client: `doctor` says it even where no instance starts.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, Process};
use serde_json::{Value, json};

use super::output::escape;
use crate::bus::client::Description;
use crate::launch::foreground;
use crate::model::Containment;

/// The controllers that limits need, with the limit that each enforces.
const CONTROLLERS: [(&str, &str); 3] = [("memory", "memory_max"), ("pids", "tasks_max"), ("cpu", "cpu_max")];
/// Where journald listens.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Present where systemd is PID 1: the cgroup tree is its own then, but for what it delegates.
const SYSTEMD: &str = "/run/systemd/system";

/// The host.
#[derive(Debug)]
pub struct Host {
    /// Where cgroup2 is mounted, and whether it can only be read there.
    mount: Option<(PathBuf, bool)>,
    /// The controllers that runs can have; none where there is nothing to ask.
    controllers: Option<Vec<String>>,
    /// Whether a cgroup can be killed by one write.
    cgroup_kill: Option<bool>,
    /// The instance contains runs by shims, and not by cgroups.
    shims: bool,
    /// Whether such a run can have a PID namespace of its own, or why not.
    isolation: Result<(), String>,
    /// Whether journald listens.
    journal: bool,
}

impl Host {
    /// Looks at the host, at the place that the instance uses if there is one.
    pub fn look(instance: Option<&Description>) -> Self {
        let subtree = instance.map(|d| PathBuf::from(&d.control_group)).filter(|p| p.is_absolute());
        let mount = mount(subtree.as_deref());
        let root = mount.as_ref().map(|(path, _)| path.as_path());
        // An instance enables controllers on demand, from the highest cgroup that it may change down to its own: what is
        // there to be had is what that one lists.
        let owns_tree = instance.is_none_or(|d| d.uid == 0) && !Path::new(SYSTEMD).exists();
        let highest = subtree.as_deref().and_then(Path::parent).filter(|_| !owns_tree).or(root);
        Self {
            controllers: highest.and_then(controllers_of),
            cgroup_kill: subtree.or_else(|| some_cgroup(root?)).map(|dir| dir.join("cgroup.kill").exists()),
            shims: instance.is_some_and(|d| d.backend == Containment::Subtree.as_str()),
            isolation: foreground::isolation(),
            journal: UnixDatagram::unbound().is_ok_and(|s| s.connect(JOURNAL).is_ok()),
            mount,
        }
    }

    /// A row for each thing: its name and what is to be said about it.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mount = match &self.mount {
            Some((path, false)) => escape(&path.to_string_lossy()),
            Some((path, true)) => format!("{}, read-only: no run can have a cgroup", escape(&path.to_string_lossy())),
            None => "not mounted: no run can have a cgroup".to_owned(),
        };
        let kill = match self.cgroup_kill {
            _ if self.shims => "by SIGKILL to each process below the shim, stopped before, until it has no child left",
            Some(true) => "by cgroup.kill",
            Some(false) => "one process after the other, until none is left: cgroup.kill needs Linux 5.14",
            None => "not known: there is no cgroup to look at",
        };
        let journal = match self.journal {
            true => format!("journald listens at {JOURNAL}"),
            false => format!("nobody listens at {JOURNAL}: the audit is in the database alone"),
        };
        let isolation = match &self.isolation {
            Ok(()) => "isolate_pids can be had: a PID namespace for a run below a shim".to_owned(),
            Err(why) => format!("isolate_pids cannot be had: {}", escape(why)),
        };
        vec![
            ("cgroup2", mount),
            ("limits", self.limits()),
            ("kill", kill.to_owned()),
            ("isolation", isolation),
            ("journal", journal),
        ]
    }

    fn limits(&self) -> String {
        if self.shims {
            return "memory_max for each process alone (RLIMIT_DATA); tasks_max with isolate_pids, for an ordinary user; not \
                    cpu_max: no cgroup contains the runs"
                .to_owned();
        }
        let Some(missing) = self.missing() else { return "not known: there is no cgroup to look at".to_owned() };
        let limit = |name: &&str| CONTROLLERS.iter().find(|(c, _)| c == name).map_or("", |(_, limit)| limit);
        let has: Vec<&str> =
            CONTROLLERS.iter().filter(|(c, _)| !missing.contains(c)).map(|(_, limit)| *limit).collect();
        let has = if has.is_empty() { "none enforced".to_owned() } else { format!("{} enforced", has.join(", ")) };
        let without: Vec<String> = missing.iter().map(|c| format!("{} (no {c} controller)", limit(c))).collect();
        if without.is_empty() { has } else { format!("{has}; not {}", without.join(", ")) }
    }

    fn missing(&self) -> Option<Vec<&'static str>> {
        let available = self.controllers.as_ref()?;
        Some(CONTROLLERS.iter().map(|(c, _)| *c).filter(|c| !available.iter().any(|a| a == c)).collect())
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "cgroup2_mount": self.mount.as_ref().map(|(path, _)| path),
            "cgroup2_read_only": self.mount.as_ref().map(|(_, read_only)| read_only),
            "controllers": self.controllers,
            "controllers_missing": self.missing(),
            "cgroup_kill": self.cgroup_kill,
            "isolate_pids": self.isolation.is_ok(),
            "isolate_pids_missing": self.isolation.as_ref().err(),
            "journal": self.journal,
        })
    }
}

/// The mount of cgroup2 that shows this cgroup; without one, that which an instance would use: a writable one, and of
/// these the one that shows most.
fn mount(subtree: Option<&Path>) -> Option<(PathBuf, bool)> {
    let mounts = Process::myself().and_then(|p| p.mountinfo()).ok()?;
    let shows = |m: &MountInfo| subtree.is_none_or(|s| s.starts_with(&m.mount_point));
    let read_only = |m: &MountInfo| m.mount_options.contains_key("ro") || m.super_options.contains_key("ro");
    let found = mounts.0.iter().filter(|m| m.fs_type == "cgroup2" && shows(m));
    let best = found.min_by_key(|m| (read_only(m), Path::new(&m.root).components().count()))?;
    Some((best.mount_point.clone(), read_only(best)))
}

fn controllers_of(cgroup: &Path) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.controllers")).ok()?;
    Some(text.split_ascii_whitespace().map(escape).collect())
}

/// Any cgroup but the root, which lacks the files of the others.
fn some_cgroup(root: &Path) -> Option<PathBuf> {
    let mut below = std::fs::read_dir(root).ok()?.flatten().map(|e| e.path());
    below.find(|p| p.join("cgroup.procs").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare() -> Host {
        let isolation = Err("no user namespaces".into());
        Host { mount: None, controllers: None, cgroup_kill: None, shims: false, isolation, journal: false }
    }

    fn host(controllers: Option<&str>) -> Host {
        let controllers = controllers.map(|c| c.split(' ').map(str::to_owned).collect());
        Host { mount: Some(("/cg".into(), false)), controllers, cgroup_kill: Some(true), ..bare() }
    }

    #[test]
    fn every_limit_is_said_to_be_enforced_or_not() {
        let limits = |controllers| host(controllers).limits();
        assert_eq!(limits(Some("cpu io memory pids")), "memory_max, tasks_max, cpu_max enforced");
        let some = "tasks_max enforced; not memory_max (no memory controller), cpu_max (no cpu controller)";
        assert_eq!(limits(Some("hugetlb pids")), some);
        assert!(limits(Some("rdma")).starts_with("none enforced; not memory_max"), "{}", limits(Some("rdma")));
        assert!(limits(None).starts_with("not known"));
        assert_eq!(host(Some("memory")).json()["controllers_missing"], json!(["pids", "cpu"]));
    }

    #[test]
    fn a_host_without_cgroup2_says_so() {
        let none = bare();
        assert!(none.rows()[0].1.starts_with("not mounted"));
        assert_eq!(none.json()["cgroup2_mount"], Value::Null);
    }

    #[test]
    fn where_shims_contain_runs_no_controller_is_named() {
        let rows = Host { shims: true, ..host(Some("memory pids cpu")) }.rows();
        assert!(rows[1].1.starts_with("memory_max for each process alone"), "{rows:?}");
        assert!(rows[2].1.contains("SIGKILL to each process"), "{rows:?}");
        assert_eq!(rows[3].1, "isolate_pids cannot be had: no user namespaces");
    }
}
