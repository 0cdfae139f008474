//! The command line: a file per verb, the definition in `args`, all output through `output`.
//!
//! Translates and calls; holds no rule. May touch the bus client, the model and the terminal; of the rest of the crate
//! only the gate of a foreground launch, the configuration for `config`, the file of tokens, and the instance's own entry.

mod args;
mod audit;
mod completions;
mod config;
mod csv;
mod demo;
mod doctor;
mod ending;
mod explain;
mod extend;
mod freeze;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod heartbeat;
mod host;
mod inherited;
mod kill;
mod launch;
mod list;
mod logs;
mod marked;
mod notify;
mod output;
mod run;
mod samples;
mod selftest;
mod session;
mod show;
mod stats;
mod terminal;
#[cfg(test)]
mod testing;
mod token;
mod top;
mod wait;
mod watch;
mod web;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;

use self::args::{Cli, InstanceArgs, RunCli, Verb};
use self::output::{Output, complain, escape, hint};
use self::session::Session;
use crate::daemon::{instance, state_dir};
use crate::model::{Error, ErrorKind, InstanceKind, Wall, is_unsafe};

/// What a verb comes to: its exit status.
type Done = anyhow::Result<i32>;

/// The exit status of a failure of our own, as of env, timeout and podman.
const OWN_FAILURE: i32 = 125;

/// The whole of `guardian`.
pub fn main() -> ExitCode {
    inherited::take_children_back();
    let cli = run_at_once(&std::env::args_os().collect::<Vec<_>>()).unwrap_or_else(parse::<Cli>);
    let out = Output::new(cli.global.json, cli.global.color);
    match verb(cli, &out) {
        Ok(status) => status,
        Err(e) => failed(&e),
    }
}

/// The command line, if its verb is `run` and nothing is wrong with it.
fn run_at_once(words: &[OsString]) -> Option<Cli> {
    words.iter().any(|word| word == "run").then(|| RunCli::try_parse_from(words).ok())?.map(Cli::from)
}

/// Reads the command line, or says what is wrong with it and ends. An argument may hold anything, also what it is refused
/// for: then it is told as a person can see it.
pub fn parse<C: Parser>() -> C {
    let words: Vec<OsString> = std::env::args_os().collect();
    C::try_parse_from(&words).unwrap_or_else(|e| match refused::<C>(&words) {
        Some(told) => {
            eprintln!("{told}");
            std::process::exit(e.exit_code())
        }
        None => e.exit(),
    })
}

/// What is told of arguments that are refused, if that is to be told otherwise than by clap.
fn refused<C: Parser>(words: &[OsString]) -> Option<String> {
    let is_safe = |word: &OsString| word.to_str().is_some_and(|word| !word.chars().any(is_unsafe));
    if words.iter().all(is_safe) {
        return None;
    }
    // With arguments that are escaped the same is wrong, as a rule; else what clap has said, escaped, will do.
    let safe = words.iter().map(|word| escape(&word.to_string_lossy()));
    let told = C::try_parse_from(safe).err().or_else(|| C::try_parse_from(words).err())?;
    let lines = told.to_string();
    let lines: Vec<String> = lines.lines().map(escape).collect();
    told.use_stderr().then(|| lines.join("\n"))
}

fn verb(cli: Cli, out: &Output) -> anyhow::Result<ExitCode> {
    let session = Session::new(&cli.global)?;
    let session = &session;
    let done = match cli.verb {
        // Forks before there is a runtime, and has exit statuses of its own.
        Verb::Run(args) => return Ok(run::main(&args, session, out)),
        Verb::Instance(args) => serve(args, session),
        Verb::Completions { shell } => completions::completions(shell),
        Verb::Man { dir } => completions::man(dir.as_deref()),
        Verb::Notify(verb) => notify::main(&verb, &cli.global),
        Verb::Config(verb) => config::main(&verb, session, out),
        Verb::Ps(args) => runtime()?.block_on(list::ps(&args, session, out)),
        Verb::Top(args) => runtime()?.block_on(top::main(&args, session, out)),
        Verb::Show(args) => runtime()?.block_on(show::main(&args, session, out)),
        Verb::Explain(args) => runtime()?.block_on(explain::main(&args.run, session, out)),
        Verb::Kill(args) => runtime()?.block_on(kill::main(&args, session, out)),
        Verb::Wait(args) => runtime()?.block_on(wait::main(&args, session, out)),
        Verb::Logs(args) => runtime()?.block_on(logs::main(&args, session)),
        Verb::Extend(args) => runtime()?.block_on(extend::main(&args, session, out)),
        Verb::Heartbeat(args) => heartbeat::main(&args),
        Verb::Freeze(args) => runtime()?.block_on(freeze::main(&args.runs, true, session)),
        Verb::Thaw(args) => runtime()?.block_on(freeze::main(&args.runs, false, session)),
        Verb::History(args) => runtime()?.block_on(list::history(&args, session, out)),
        Verb::Stats(args) => runtime()?.block_on(stats::main(&args, session, out)),
        Verb::Audit(args) => runtime()?.block_on(audit::main(&args, session, out)),
        Verb::Doctor => runtime()?.block_on(doctor::main(session, out)),
        Verb::Selftest(args) => runtime()?.block_on(selftest::main(&args, session, out)),
        Verb::SelftestWorkload(args) => selftest::workload(&args),
        // The runtime has ended before it becomes another program.
        Verb::Web(args) => runtime()?.block_on(web::ready(&args, session)).and_then(web::become_it),
        Verb::Token(verb) => runtime()?.block_on(token::main(&verb, session, out)),
        Verb::Demo => runtime()?.block_on(demo::main(session, out)),
    };
    done.map(exit_code)
}

/// The hidden verb.
fn serve(args: InstanceArgs, session: &Session) -> Done {
    if args.detach {
        session::detach(std::env::args_os().skip(1))?;
        return Ok(0);
    }
    // A session of its own: no terminal, and no signal meant for whoever started it. Fails only for a group leader.
    let _ = rustix::process::setsid();
    let options = instance::Options {
        kind: InstanceKind::Private,
        state_dir: session.state_dir().to_owned(),
        config: session.config().map(Into::into),
        backend: session.backend(),
        foreground: false,
    };
    match instance::run(&options) {
        // Of several that are started at once, one serves.
        Err(e) if e.is::<state_dir::AlreadyServed>() => Ok(0),
        served => served.map(|()| 0),
    }
}

/// Says what failed, and gives the exit status of its kind.
fn failed(e: &anyhow::Error) -> ExitCode {
    if e.chain().filter_map(|c| c.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        // Whoever read our output has enough of it.
        return exit_code(0);
    }
    complain(&format!("{e:#}"));
    let kind = e.downcast_ref::<Error>().map(|e| e.kind);
    match kind {
        Some(ErrorKind::Unavailable | ErrorKind::NotDelegated) => hint("`guardian doctor` says what is missing"),
        Some(ErrorKind::InvalidRunId | ErrorKind::NoSuchRun) => hint("`guardian ps --all` lists runs"),
        _ => {}
    }
    exit_code(kind.map_or(1, ErrorKind::exit_status))
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1))
}

/// The runtime of a verb that talks to the instance.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Error::internal(format!("cannot start: {e}")))
}

/// The time, for people.
fn now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_are_refused_are_told_as_a_person_can_see_them() {
        use std::os::unix::ffi::OsStringExt;
        let told = |words: &[&[u8]]| {
            let words: Vec<_> = words.iter().map(|word| OsString::from_vec(word.to_vec())).collect();
            refused::<Cli>(&words)
        };
        assert_eq!(told(&[b"guardian", b"ps", b"--since", b"long"]), None, "clap has colours");
        for (words, part) in [
            ([&b"guardian"[..], b"ps", b"--since", b"\x1b[2Jlong\nerror: all is well"], r"\u{1b}[2Jlong\nerror: all"),
            ([b"guardian", b"ps", b"--\x9b\xff", b"x"], "--\u{fffd}\u{fffd}"),
            ([b"guardian", b"\x1b]0;title\x07", b"x", b"y"], r"\u{1b}]0;title\u{7}"),
        ] {
            let told = told(&words).unwrap();
            assert!(told.contains(part) && told.starts_with("error: "), "{told}");
            assert!(!told.replace('\n', "").chars().any(is_unsafe), "{told:?}");
        }
    }

    #[test]
    fn a_refusal_keeps_its_exit_status_under_context() {
        use anyhow::Context;
        let e = Err::<(), _>(Error::no_such_run("run_1")).context("showing").unwrap_err();
        assert_eq!(e.downcast_ref::<Error>().map(|e| e.kind.exit_status()), Some(3));
    }
}
