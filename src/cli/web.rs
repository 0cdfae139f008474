//! `web`: the dashboard for whoever sits here, by guardian-web in the foreground.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use super::Done;
use super::args::WebArgs;
use super::output::{escape, hint};
use super::session::Session;
use crate::bus::client::Client;
use crate::model::{Error, ErrorKind, InstanceKind};

/// What guardian-web is executed as, once the instance answers: a private one is started by this, and not by guardian-web.
pub async fn ready(args: &WebArgs, session: &Session) -> anyhow::Result<Command> {
    session.ask(async |c: &Client| c.describe().await).await?;
    let mut command = Command::new(beside()?);
    match session.kind().await {
        InstanceKind::System => command.arg("--system"),
        InstanceKind::User => command.arg("--user").arg("--state-dir").arg(session.state_dir()),
        InstanceKind::Private => command.arg("--private").arg("--state-dir").arg(session.state_dir()),
    };
    command.arg("--listen").arg(format!("127.0.0.1:{}", args.port)).arg("--print-link");
    Ok(command)
}

/// Becomes guardian-web; comes back only when that fails.
pub fn become_it(mut command: Command) -> Done {
    hint("open this link in a browser on this host, within five minutes; ^C ends it");
    let failed = command.exec();
    let program = escape(&command.get_program().to_string_lossy());
    Err(Error::new(ErrorKind::Unavailable, format!("cannot execute {program}: {failed}")).into())
}

/// The executable beside this one: of the same version.
fn beside() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|e| Error::internal(format!("cannot find this executable: {e}")))?;
    let web = own.with_file_name("guardian-web");
    match web.is_file() {
        true => Ok(web),
        false => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} does not exist: it is installed beside guardian, or built by `cargo build --bins`",
                web.display()
            ),
        )),
    }
}
