//! The command line, and behind hidden verbs the private instance and the shim of a run.

fn main() -> std::process::ExitCode {
    guardian::failpoint::setup();
    guardian::launch::subtree::main(std::env::args_os()).unwrap_or_else(guardian::cli::main)
}
