//! The output of a run, as `guardian logs --follow` reads it: from its file or from the journal, with the rights of who asks.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};

use tokio::sync::mpsc;

use super::app::Event;
use crate::cli::session::Session;
use crate::model::RunId;

/// The lines that are read of what is there already.
const LINES: &str = "5000";
/// Bytes read at once.
const BLOCK: usize = 16 << 10;

/// A process that reads, until this is dropped.
pub struct Reader(Child);

impl Reader {
    /// Begins to read the output of a run.
    pub fn of(run: RunId, session: &Session, events: mpsc::Sender<Event>) -> io::Result<Self> {
        // One pipe for both: why there is nothing is told in the place of what would be there.
        let (mut reading, writing) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.args(session.options()).args(["logs", "--follow", "--lines", LINES, &run.to_string()]);
        command.stdin(Stdio::null()).stderr(writing.try_clone()?).stdout(writing);
        let child = command.spawn()?;
        // It holds our ends of the pipe, whose last one gone is the end of it.
        drop(command);
        let pass_on = move || loop {
            let mut block = vec![0; BLOCK];
            let part = match reading.read(&mut block) {
                Ok(0) => Err("it is over".to_owned()),
                Ok(n) => {
                    block.truncate(n);
                    Ok(block)
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(format!("it cannot be read: {e}")),
            };
            let is_last = part.is_err();
            if events.blocking_send(Event::Log(run, part)).is_err() || is_last {
                return;
            }
        };
        let reader = Self(child);
        std::thread::Builder::new().name("output".into()).spawn(pass_on)?;
        Ok(reader)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
