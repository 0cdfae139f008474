//! What others than a run's owner and root may do, which polkit decides: only the host's instance has others.

use std::collections::HashMap;
use std::time::Duration;

use zbus::{Connection, Variant};

/// How long polkit may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A right, which is an action of packaging/polkit/org.guardian.Guardian1.policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// End, extend, freeze and thaw runs of others.
    KillRun,
    /// Start runs as another user.
    StartRun,
    /// See runs of others, and the whole audit.
    ReadAll,
    /// Reload and stop the instance.
    Manage,
}

impl Right {
    /// Every right.
    pub const ALL: [Self; 4] = [Self::KillRun, Self::StartRun, Self::ReadAll, Self::Manage];

    /// The name of its action.
    pub fn action(self) -> &'static str {
        match self {
            Self::KillRun => "org.guardian.Guardian1.kill-run",
            Self::StartRun => "org.guardian.Guardian1.start-run",
            Self::ReadAll => "org.guardian.Guardian1.read-all",
            Self::Manage => "org.guardian.Guardian1.manage",
        }
    }
}

/// Polkit, asked about one client of the system bus.
#[derive(Debug, Clone)]
pub struct Authority {
    connection: Connection,
    /// The client's unique name: polkit finds out itself who that is.
    client: String,
}

impl Authority {
    /// For the client with this unique name.
    pub fn new(connection: Connection, client: String) -> Self {
        Self { connection, client }
    }

    /// Whether the client has the right. Without polkit, without an answer in time and on any error it has not. Nobody is
    /// asked for a password: who wants to be asked uses pkexec or run0.
    pub async fn grants(&self, right: Right) -> bool {
        let name: Variant<'_> = self.client.as_str().into();
        let subject = ("system-bus-name", HashMap::from([("name", name)]));
        let details: HashMap<&str, &str> = HashMap::new();
        let body = (subject, right.action(), details, 0_u32, "");
        let asked = self.connection.call_method(
            Some("org.freedesktop.PolicyKit1"),
            "/org/freedesktop/PolicyKit1/Authority",
            Some("org.freedesktop.PolicyKit1.Authority"),
            "CheckAuthorization",
            &body,
        );
        let answer = match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                tracing::warn!("polkit cannot be asked about {}, so {} is refused: {e}", right.action(), self.client);
                return false;
            }
            Err(_) => {
                let within = ANSWER.as_secs();
                tracing::warn!(
                    "polkit did not answer about {} in {within} s: {} is refused",
                    right.action(),
                    self.client
                );
                return false;
            }
        };
        let granted = answer.body().deserialize::<(bool, bool, HashMap<String, String>)>();
        granted.is_ok_and(|(granted, _, _)| granted)
    }
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who it is.
    pub caller: crate::daemon::command::Caller,
    /// Who decides what it may do beyond what is its own; nobody where only one user and root can connect.
    pub authority: Option<Authority>,
    /// Its unique name on a message bus, to which signals are addressed.
    pub address: Option<String>,
}
