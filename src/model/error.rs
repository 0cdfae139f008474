//! Named errors: one table maps each to its D-Bus name, HTTP status and exit status.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident: $http:literal, $exit:literal;)*) => {
        /// The kinds of refusal. The D-Bus name is `org.guardian.Guardian1.Error.` and the kind.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name),*];

            /// The last part of the D-Bus error name.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorKind::$name => stringify!($name),)* }
            }

            /// The HTTP status.
            pub const fn http_status(self) -> u16 {
                match self { $(ErrorKind::$name => $http,)* }
            }

            /// The exit status of the command line.
            pub const fn exit_status(self) -> i32 {
                match self { $(ErrorKind::$name => $exit,)* }
            }
        }
    };
}

errors! {
    /// A value that makes no sense.
    InvalidArgument: 422, 2;
    /// A text that is not a run id, nor the beginning of one.
    InvalidRunId: 422, 2;
    /// The beginning of more than one run id.
    AmbiguousRunId: 422, 2;
    /// No run of that id that the caller may see.
    NoSuchRun: 404, 3;
    /// The run is over.
    AlreadyFinished: 409, 4;
    /// The caller may not do this.
    NotAuthorized: 403, 5;
    /// The launch failed; nothing was executed.
    LaunchFailed: 500, 6;
    /// No writable cgroup2 subtree.
    NotDelegated: 503, 7;
    /// The audit cannot be written, so no run is started.
    StoreUnavailable: 503, 8;
    /// Too many runs or calls.
    LimitExceeded: 429, 9;
    /// The time given for waiting is over; the run goes on.
    TimedOut: 504, 10;
    /// The instance cannot be reached, or is stopping.
    Unavailable: 503, 11;
    /// A mistake of ours.
    Internal: 500, 1;
}

/// A refusal: what failed, why, and what to do next, in a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Error {
    /// Its name for programs.
    pub kind: ErrorKind,
    /// Its sentence for people.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error {
    /// An error of that kind with that sentence.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// [`ErrorKind::NoSuchRun`], the same words for a run that does not exist and one that may not be seen.
    pub fn no_such_run(id: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NoSuchRun, format!("there is no run {id}: `guardian ps --all` lists the runs you may see"))
    }

    /// [`ErrorKind::AlreadyFinished`].
    pub fn already_finished(id: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::AlreadyFinished,
            format!("{id} is already finished: `guardian show {id}` says how it ended"),
        )
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}
