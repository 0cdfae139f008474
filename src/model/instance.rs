//! The kinds of instance.

use std::fmt;

/// Whose runs an instance guards, and where it is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum InstanceKind {
    /// The host's: every user's runs, on the system bus.
    System,
    /// One user's, on the session bus, and on the socket in the state directory.
    User,
    /// One user's, on the socket in the state directory alone. It is started when it is needed and exits when idle.
    #[default]
    Private,
}

impl InstanceKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Private => "private",
        }
    }
}

impl fmt::Display for InstanceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
