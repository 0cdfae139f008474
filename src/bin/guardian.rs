//! The command line, and behind hidden verbs the private instance, the shim and the relay of a run, and the wrapper of a service.

fn main() -> std::process::ExitCode {
    guardian::failpoint::setup();
    guardian::launch::hidden(std::env::args_os).unwrap_or_else(guardian::cli::main)
}
