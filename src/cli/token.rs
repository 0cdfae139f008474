//! `token`: who may use guardian-web, and for what.

use std::io::ErrorKind as IoKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::TokenVerb;
use super::output::{Output, escape, hint};
use super::session::Session;
use super::{Done, now};
use crate::daemon::state_dir;
use crate::json::utc_time;
use crate::model::{Error, InstanceKind};
use crate::web::tokens::{self, FILE, SYSTEM_FILE, Token};

/// Makes, lists and revokes tokens of the instance that would be connected to.
pub async fn main(verb: &TokenVerb, session: &Session, out: &Output) -> Done {
    let kind = session.kind().await;
    let file = match kind {
        InstanceKind::System => PathBuf::from(SYSTEM_FILE),
        InstanceKind::User | InstanceKind::Private => session.state_dir().join(FILE),
    };
    match verb {
        TokenVerb::New { role, name } => {
            prepare(kind, &file)?;
            let (token, secret) = Token::new(name, *role, utc_time(now()))?;
            tokens::change(&file, |all| {
                if all.iter().any(|other| other.name == token.name) {
                    let what = format!("there is a token {name} already: revoke it first, or take another name");
                    return Err(Error::invalid(what));
                }
                all.push(token.clone());
                Ok(())
            })?;
            match out.json {
                true => out.json(&json!({
                    "name": token.name, "role": token.role.as_str(), "created_at": token.created_at, "token": secret,
                }))?,
                false => {
                    out.line(&secret)?;
                    hint("this is shown once: what is kept of it is a hash");
                }
            }
            changed(kind);
        }
        TokenVerb::List => list(&file, out)?,
        TokenVerb::Revoke { name } => {
            tokens::change(&file, |all| {
                let before = all.len();
                all.retain(|token| token.name != *name);
                match all.len() < before {
                    true => Ok(()),
                    false => Err(Error::invalid(format!(
                        "there is no token {:?} in {}: `guardian token list`",
                        escape(&name.chars().take(64).collect::<String>()),
                        file.display()
                    ))),
                }
            })?;
            changed(kind);
        }
    }
    Ok(0)
}

fn list(file: &Path, out: &Output) -> anyhow::Result<()> {
    let tokens = tokens::read(file)?;
    if out.json {
        let one = |t: &Token| json!({"name": t.name, "role": t.role.as_str(), "created_at": t.created_at});
        return Ok(out.json(&tokens.iter().map(one).collect())?);
    }
    let rows = tokens.into_iter().map(|t| [t.name, t.role.to_string(), t.created_at]).collect();
    Ok(out.table(["NAME", "ROLE", "CREATED"], rows)?)
}

/// The directory of the file, where there is none yet.
fn prepare(kind: InstanceKind, file: &Path) -> anyhow::Result<()> {
    let Some(dir) = file.parent() else { return Ok(()) };
    if kind != InstanceKind::System {
        state_dir::prepare(dir)?;
        return Ok(());
    }
    match std::fs::DirBuilder::new().mode(0o755).create(dir) {
        Err(e) if e.kind() != IoKind::AlreadyExists => {
            Err(Error::invalid(format!("cannot create {}: {e}: the host's tokens are root's to make", dir.display()))
                .into())
        }
        _ => Ok(()),
    }
}

/// systemd hands the file over when it starts the service, and not again.
fn changed(kind: InstanceKind) {
    if kind == InstanceKind::System {
        hint("`systemctl try-restart guardian-web` makes it hold now");
    }
}
