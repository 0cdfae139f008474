//! What is done for a run that has to wait for its turn.

use super::Driver;
use super::Recorder;
use crate::engine::Ticket;
use crate::kernel::{Exec, Kernel, Role};
use crate::model::{KeptLaunch, RunId};
use crate::store::Write;

impl<K: Kernel, R: Recorder> Driver<K, R> {
    /// Gives up what was made ahead for a detached run; the client of a foreground run is watched from now on.
    pub(super) fn wait(&mut self, run: RunId) {
        let Some(held) = self.held.get_mut(&run) else { return };
        held.is_kept = held.exec.is_some();
        if held.is_kept {
            return self.unreserve(run);
        }
        // Where it cannot be watched, the run is found to be without a client when it has its turn.
        if let Some(client) = &held.client {
            let _ = self.kernel.watch_process(run, Role::Client, client);
        }
    }

    /// What becomes of the file with what a run is to execute, with this record. It goes with the run, whoever held that and
    /// whether anything was found of it.
    pub(super) fn launch_kept(&self, ticket: Option<Ticket>) -> Option<Write> {
        match ticket? {
            Ticket::Queue(run) => {
                let held = self.held.get(&run).filter(|held| held.is_kept)?;
                let Exec { argv, env, cwd, input, .. } = held.exec.as_ref()?;
                let (argv, env, cwd, prompt) = (argv.clone(), env.clone(), cwd.clone(), input.clone());
                Some(Write::KeepLaunch(Box::new(KeptLaunch { run, argv, env, cwd, prompt })))
            }
            Ticket::Finish(run) => Some(Write::ForgetLaunch(run)),
            _ => None,
        }
    }

    /// How many bytes are kept of what queued runs are to execute.
    pub fn kept_bytes(&self) -> usize {
        let execs = self.held.values().filter(|held| held.is_kept).filter_map(|held| held.exec.as_ref());
        execs.map(|exec| exec.argv.iter().chain(&exec.env).chain(&exec.input).map(Vec::len).sum::<usize>()).sum()
    }
}
