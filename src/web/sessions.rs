//! Logins: what a browser gets for a token or a one-time code. Kept in memory alone: who restarts guardian-web logs everybody
//! out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::tokens::{Digest, Keeper, Role, digest, random_hex, same};
use crate::model::Error;

/// How long a login lasts.
pub const LASTS: Duration = Duration::from_secs(12 * 3600);
/// Logins at the same time; of more, the one that ends first is ended.
const SESSIONS_MAX: usize = 1024;
/// How long a one-time code can be used.
const CODE_LASTS: Duration = Duration::from_secs(300);
/// Logins that may be tried at once, and the time after which one more may be.
const ATTEMPTS: (u32, Duration) = (10, Duration::from_secs(3));
/// Who has logged in with a one-time code, on record.
const LINK: &str = "link";

/// Who is logged in, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The name of the token.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The token, with which it ends; none where it was a one-time code.
    token: Option<Digest>,
    until: Instant,
}

/// All logins.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By the hash of their ids: how long a look takes says nothing about an id.
    open: HashMap<Digest, Session>,
    code: Option<(Digest, Instant)>,
    attempts: Option<Attempts>,
}

impl Sessions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one-time code, which takes the place of any before.
    pub fn new_code(&self, now: Instant) -> Result<String, Error> {
        let code = random_hex()?;
        self.state().code = Some((digest(&code), now + CODE_LASTS));
        Ok(code)
    }

    /// Whether a login may be tried now; if not, after how long.
    pub fn attempt(&self, now: Instant) -> Result<(), Duration> {
        self.state().attempts.get_or_insert_with(|| Attempts::new(now)).take(now)
    }

    /// Opens a session with a token; gives its id.
    pub fn with_token(&self, tokens: &Keeper, secret: &str, now: Instant) -> Result<Option<(String, Session)>, Error> {
        let Some(token) = tokens.with_secret(secret) else { return Ok(None) };
        let session = Session { name: token.name, role: token.role, token: Some(token.digest), until: now + LASTS };
        self.open(session, now).map(Some)
    }

    /// Opens a session with the one-time code, which is no good any more afterwards.
    pub fn with_code(&self, code: &str, now: Instant) -> Result<Option<(String, Session)>, Error> {
        let given = digest(code);
        let is_it = self.state().code.take_if(|(kept, until)| *until > now && same(kept, &given)).is_some();
        if !is_it {
            return Ok(None);
        }
        self.open(Session { name: LINK.into(), role: Role::Operator, token: None, until: now + LASTS }, now).map(Some)
    }

    fn open(&self, session: Session, now: Instant) -> Result<(String, Session), Error> {
        let id = random_hex()?;
        let open = &mut self.state().open;
        open.retain(|_, s| s.until > now);
        if open.len() >= SESSIONS_MAX
            && let Some(first) = open.iter().min_by_key(|(_, s)| s.until).map(|(id, _)| *id)
        {
            open.remove(&first);
        }
        open.insert(digest(&id), session.clone());
        Ok((id, session))
    }

    /// The session with this id, unless its time is over or its token does not hold any more.
    pub fn get(&self, tokens: &Keeper, id: &str, now: Instant) -> Option<Session> {
        let key = digest(id);
        let session = self.state().open.get(&key).cloned()?;
        let holds = session.until > now && session.token.is_none_or(|token| tokens.holds(&token, session.role));
        if !holds {
            self.state().open.remove(&key);
        }
        holds.then_some(session)
    }

    /// Ends the session with this id.
    pub fn close(&self, id: &str) {
        self.state().open.remove(&digest(id));
    }
}

/// A bucket: as many attempts as there are in it, and one more every so often.
#[derive(Debug)]
struct Attempts {
    left: u32,
    since: Instant,
}

impl Attempts {
    fn new(now: Instant) -> Self {
        Self { left: ATTEMPTS.0, since: now }
    }

    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let (most, every) = ATTEMPTS;
        let passed = now.saturating_duration_since(self.since);
        let new = u32::try_from(passed.as_micros() / every.as_micros()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(new).min(most);
        self.since = if self.left == most { now } else { self.since + every * new };
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(every.saturating_sub(now.saturating_duration_since(self.since))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::{Token, change};
    use super::*;

    #[test]
    fn attempts_are_limited_and_come_back_with_time() {
        let begin = Instant::now();
        let mut attempts = Attempts::new(begin);
        assert!((0..10).all(|_| attempts.take(begin).is_ok()));
        assert_eq!(attempts.take(begin + Duration::from_secs(1)), Err(Duration::from_secs(2)));
        assert!(attempts.take(begin + Duration::from_secs(3)).is_ok());
        assert!(attempts.take(begin + Duration::from_secs(4)).is_err());
        let later = begin + Duration::from_secs(3600);
        assert!((0..10).all(|_| attempts.take(later).is_ok()) && attempts.take(later).is_err());
    }

    #[test]
    fn a_code_is_good_once_and_for_five_minutes() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Keeper::new(dir.path().join("t")).unwrap();
        let (sessions, now) = (Sessions::default(), Instant::now());
        let code = sessions.new_code(now).unwrap();
        assert_eq!(sessions.with_code("", now).unwrap(), None);
        let (id, session) = sessions.with_code(&code, now).unwrap().unwrap();
        assert_eq!((session.role, session.name.as_str()), (Role::Operator, "link"));
        assert_eq!(sessions.get(&tokens, &id, now), Some(session));
        assert_eq!(sessions.with_code(&code, now).unwrap(), None);
        let code = sessions.new_code(now).unwrap();
        assert_eq!(sessions.with_code(&code, now + CODE_LASTS).unwrap(), None);
        sessions.close(&id);
        assert_eq!(sessions.get(&tokens, &id, now), None);
    }

    #[test]
    fn a_session_ends_with_its_time_and_with_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let (token, secret) = Token::new("ann", Role::Viewer, "2026-01-02T03:04:05Z".into()).unwrap();
        change(&path, |all| {
            all.push(token);
            Ok(())
        })
        .unwrap();
        let tokens = Keeper::new(path.clone()).unwrap();
        let (sessions, now) = (Sessions::default(), Instant::now());
        assert_eq!(sessions.with_token(&tokens, "gdn_wrong", now).unwrap(), None);
        let open = |n: u64| sessions.with_token(&tokens, &secret, now + Duration::from_secs(n)).unwrap().unwrap().0;
        let id = open(0);
        assert!(sessions.get(&tokens, &id, now).is_some());
        assert!(sessions.get(&tokens, &id, now + LASTS).is_none());
        // The memory for them is bounded: the first goes.
        let ids: Vec<String> = (0..SESSIONS_MAX as u64 + 1).map(open).collect();
        assert!(sessions.get(&tokens, &ids[0], now).is_none() && sessions.get(&tokens, &ids[1], now).is_some());
        change(&path, |all| {
            all.clear();
            Ok(())
        })
        .unwrap();
        assert!(sessions.get(&tokens, &ids[5], now).is_none());
    }
}
