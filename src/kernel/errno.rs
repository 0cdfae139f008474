//! What an errno of the kernel means to Guardian: gone and busy are events, the rest are errors with their place.

use std::io;

use rustix::io::Errno;

use super::KernelError;

impl KernelError {
    /// The error for a failed operation on something. ESRCH, ENOENT and ENODEV (a file of a removed cgroup that was
    /// still open) say that it went away; EBUSY and ENOTEMPTY that something is still in it.
    pub fn from_errno(op: &'static str, what: impl Into<String>, errno: Errno) -> Self {
        let what = what.into();
        match errno {
            Errno::SRCH | Errno::NOENT | Errno::NODEV => KernelError::Gone { what },
            Errno::BUSY | Errno::NOTEMPTY => KernelError::Busy { what },
            other => KernelError::Io { op, what, source: other.into() },
        }
    }

    /// The error for a file whose text is not what the kernel documents.
    pub fn malformed(what: impl Into<String>, text: &str) -> Self {
        let shown: String = text.chars().take(80).collect();
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("unexpected text {shown:?}"));
        KernelError::Io { op: "understand", what: what.into(), source }
    }

    /// True if the thing went away: an event to whoever watches it.
    pub fn is_gone(&self) -> bool {
        matches!(self, KernelError::Gone { .. })
    }

    /// The errno, where the kernel gave one that is neither gone nor busy.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            KernelError::Io { source, .. } => source.raw_os_error().map(Errno::from_raw_os_error),
            _ => None,
        }
    }
}
