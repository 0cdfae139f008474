//! Where cgroup2 is mounted, and how paths of that mount and paths in `/proc/PID/cgroup` translate.
//!
//! Owns the parsing of `/proc/self/mountinfo`. On a unified host the mount is `/sys/fs/cgroup`, on a hybrid one
//! `/sys/fs/cgroup/unified`; in a container it may be a bind mount of a subtree, or read-only.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::KernelError;

/// One mount of cgroup2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup2Mount {
    /// The directory it is mounted on.
    pub mount_point: PathBuf,
    /// The cgroup that the mount point shows, as `/proc/PID/cgroup` would name it: `/`, or a subtree's path.
    pub root: PathBuf,
    /// It cannot be written to.
    pub read_only: bool,
}

impl Cgroup2Mount {
    /// The directory of a cgroup named as in `/proc/PID/cgroup`; none if this mount does not show it.
    pub fn directory_of(&self, cgroup: &Path) -> Option<PathBuf> {
        join(&self.mount_point, cgroup.strip_prefix(&self.root).ok()?)
    }

    /// The name in `/proc/PID/cgroup` of the cgroup in a directory; none if the directory is not below this mount.
    pub fn cgroup_of(&self, directory: &Path) -> Option<PathBuf> {
        join(&self.root, directory.strip_prefix(&self.mount_point).ok()?)
    }
}

/// `Path::join` with an empty path adds a slash, which makes another name of the same thing.
fn join(to: &Path, rest: &Path) -> Option<PathBuf> {
    // A cgroup outside the cgroup namespace is named `/../other`: no directory here shows it.
    let outside = rest.components().any(|c| c.as_os_str() == "..");
    match rest.as_os_str().is_empty() {
        _ if outside => None,
        true => Some(to.to_owned()),
        false => Some(to.join(rest)),
    }
}

/// Finds the mount of cgroup2 to use: a writable one if there is any, and of these the one that shows most.
pub fn find() -> Result<Cgroup2Mount, KernelError> {
    best(read()?).ok_or_else(not_mounted)
}

fn read() -> Result<Vec<Cgroup2Mount>, KernelError> {
    const PATH: &str = "/proc/self/mountinfo";
    let text = std::fs::read(PATH).map_err(|source| KernelError::Io { op: "read", what: PATH.to_owned(), source })?;
    Ok(parse(&text))
}

fn not_mounted() -> KernelError {
    KernelError::NotDelegated {
        path: PathBuf::from("/sys/fs/cgroup"),
        why: "cgroup2 is not mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified` mounts it beside cgroup v1, and \
              the kernel's command line option systemd.unified_cgroup_hierarchy=1 makes systemd do without v1"
            .to_owned(),
    }
}

/// Finds the mount of cgroup2 that shows most, writable or not. A hardened service sees the whole tree read-only, and the part
/// that is its own writable, in a mount on top of it.
pub fn find_whole() -> Result<Cgroup2Mount, KernelError> {
    let all = read()?;
    all.into_iter().min_by_key(|m| (m.root.components().count(), m.read_only)).ok_or_else(not_mounted)
}

fn best(mounts: Vec<Cgroup2Mount>) -> Option<Cgroup2Mount> {
    mounts.into_iter().min_by_key(|m| (m.read_only, m.root.components().count()))
}

/// Reads the mounts of cgroup2 from the text of a mountinfo file. Of mounts on the same directory only the last one is
/// given, because it hides the others. A line that is no mount is skipped.
pub fn parse(mountinfo: &[u8]) -> Vec<Cgroup2Mount> {
    let mut found: Vec<Cgroup2Mount> = Vec::new();
    for (mount, is_cgroup2) in mountinfo.split(|b| *b == b'\n').filter_map(parse_line) {
        found.retain(|earlier| earlier.mount_point != mount.mount_point);
        if is_cgroup2 {
            found.push(mount);
        }
    }
    found
}

/// `ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [OPTIONAL…] - TYPE SOURCE SUPEROPTIONS`
fn parse_line(line: &[u8]) -> Option<(Cgroup2Mount, bool)> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let separator = 6 + fields.get(6..)?.iter().position(|f| *f == b"-")?;
    let fs_type = fields.get(separator + 1)?;
    let super_options = fields.get(separator + 3).copied().unwrap_or_default();
    let read_only = |options: &[u8]| options.split(|b| *b == b',').any(|o| o == b"ro");
    let mount = Cgroup2Mount {
        root: unescape(fields[3]),
        mount_point: unescape(fields[4]),
        read_only: read_only(fields[5]) || read_only(super_options),
    };
    Some((mount, *fs_type == b"cgroup2"))
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "23 28 0:21 / /proc rw,nosuid - proc proc rw\n\
        30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn only(text: &str) -> Cgroup2Mount {
        let found = parse(text.as_bytes());
        assert_eq!(found.len(), 1, "{found:?}");
        found.into_iter().next().unwrap()
    }

    #[test]
    fn unified_and_hybrid_hosts_are_told_apart_by_the_mount_alone() {
        assert_eq!(only(UNIFIED).mount_point, Path::new("/sys/fs/cgroup"));
        assert_eq!(only(HYBRID).mount_point, Path::new("/sys/fs/cgroup/unified"));
        assert!(!only(HYBRID).read_only);
    }

    #[test]
    fn a_read_only_mount_is_noticed_in_either_set_of_options() {
        for (mount, superblock) in [("ro,nosuid", "rw"), ("rw", "ro")] {
            let text = format!("30 23 0:26 / /sys/fs/cgroup {mount} - cgroup2 cgroup {superblock}\n");
            assert!(only(&text).read_only, "{text}");
        }
    }

    #[test]
    fn escaped_paths_are_read_back() {
        let text = "30 23 0:26 /a\\040b /mnt/my\\040cgroups\\134x\\999 rw - cgroup2 cgroup2 rw\n";
        assert_eq!(only(text).mount_point, Path::new("/mnt/my cgroups\\x\\999"));
        assert_eq!(only(text).root, Path::new("/a b"));
    }

    #[test]
    fn optional_fields_and_malformed_lines_do_no_harm() {
        let text = "1 2 0:3 / /m rw shared:1 master:2 propagate_from:3 - cgroup2 none rw\nnonsense\n1 2 3\n\n\
                    5 6 0:7 / /n rw - \n";
        assert_eq!(only(text).mount_point, Path::new("/m"));
        assert!(parse(b"").is_empty());
    }

    #[test]
    fn a_mount_that_is_hidden_by_a_later_one_is_not_used() {
        let text = format!("{UNIFIED}50 23 0:50 / /sys/fs/cgroup rw - tmpfs none rw\n");
        assert!(parse(text.as_bytes()).is_empty());
    }

    #[test]
    fn a_writable_mount_that_shows_everything_is_preferred() {
        let text = "1 2 0:3 / /ro ro - cgroup2 none rw\n1 2 0:3 /sub /bind rw - cgroup2 none rw\n\
                    1 2 0:3 / /all rw - cgroup2 none rw\n";
        assert_eq!(best(parse(text.as_bytes())).unwrap().mount_point, Path::new("/all"));
        assert!(best(Vec::new()).is_none());
    }

    #[test]
    fn paths_translate_both_ways_through_a_bind_mount() {
        let whole = only(HYBRID);
        assert_eq!(whole.directory_of(Path::new("/")).unwrap().as_os_str(), "/sys/fs/cgroup/unified");
        assert_eq!(whole.cgroup_of(Path::new("/sys/fs/cgroup/unified/a/b")).unwrap(), Path::new("/a/b"));

        let bound = Cgroup2Mount { mount_point: "/cg".into(), root: "/docker/c1".into(), read_only: false };
        assert_eq!(bound.directory_of(Path::new("/docker/c1/x")).unwrap(), Path::new("/cg/x"));
        assert_eq!(bound.cgroup_of(Path::new("/cg/x")).unwrap(), Path::new("/docker/c1/x"));
        assert!(bound.directory_of(Path::new("/elsewhere")).is_none());
        assert!(bound.cgroup_of(Path::new("/elsewhere")).is_none());
        assert!(whole.directory_of(Path::new("/../other")).is_none());
    }
}
