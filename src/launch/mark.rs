//! The mark on a run's cgroup: whose it is, which run it holds, and of which boot.
//!
//! Owns the extended attribute and the proof that a directory is a run's. The mark is the same whether the directory was
//! made by us or by systemd.

use rustix::buffer::spare_capacity;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};

use crate::kernel::KernelError;
use crate::kernel::cgroup::CgroupDir;
use crate::model::RunId;

/// The extended attribute that marks a run's directory. cgroup2 takes `user.` attributes since Linux 5.7.
const MARK: &str = "user.guardian.run";

/// The instance that runs belong to, as their marks name it.
#[derive(Debug, Clone)]
pub struct Owner {
    key: String,
    boot_id: String,
    use_user_xattrs: bool,
}

impl Owner {
    /// The instance with this key, in this boot. Without extended attributes nothing is marked, and the recorded inode
    /// alone proves a directory.
    pub fn new(key: impl Into<String>, boot_id: impl Into<String>, use_user_xattrs: bool) -> Self {
        Self { key: key.into(), boot_id: boot_id.into(), use_user_xattrs }
    }

    /// What a run is marked with. The boot id is part of the mark because run ids and inodes say nothing across a reboot.
    pub fn text(&self, run: RunId) -> String {
        format!("{} {run} {}", self.key, self.boot_id)
    }

    /// True for the mark that this instance gave to the run in another boot.
    pub fn is_of_another_boot(&self, run: RunId, mark: &str) -> bool {
        mark.starts_with(&format!("{} {run} ", self.key)) && mark != self.text(run)
    }

    /// Marks a run's directory, where the kernel can.
    pub fn mark(&self, run: RunId, cgroup: &CgroupDir) {
        if self.use_user_xattrs {
            // Kernels before 5.7 say EOPNOTSUPP. Without the mark the recorded inode alone proves the directory ours.
            let _ = fsetxattr(cgroup, MARK, self.text(run).as_bytes(), XattrFlags::empty());
        }
    }

    /// Checks that a directory is the run's, by the inode that was recorded, if one was, and by its mark.
    pub fn prove(&self, run: RunId, cgroup: &CgroupDir, inode: Option<u64>) -> Result<(), KernelError> {
        let not_ours = |why| Err(KernelError::NotOurs { what: format!("cgroup {}", cgroup.path().display()), why });
        if let Some(inode) = inode.filter(|i| *i != cgroup.inode()) {
            return not_ours(format!("its inode is {}, not {inode}", cgroup.inode()));
        }
        match if self.use_user_xattrs { read(cgroup) } else { None } {
            Some(found) if found != self.text(run).as_bytes() => {
                not_ours(format!("it is marked {:?}", String::from_utf8_lossy(&found)))
            }
            None if inode.is_none() => not_ours("it has no mark, and its inode was not recorded".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Whether anybody has marked a directory as a run's.
pub fn is_marked(cgroup: &CgroupDir) -> bool {
    read(cgroup).is_some()
}

fn read(cgroup: &CgroupDir) -> Option<Vec<u8>> {
    let mut mark = Vec::with_capacity(256);
    fgetxattr(cgroup, MARK, spare_capacity(&mut mark)).ok()?;
    Some(mark)
}
