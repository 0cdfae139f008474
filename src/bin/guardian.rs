//! The command line, and the private instance behind its hidden verb.

fn main() -> std::process::ExitCode {
    guardian::failpoint::setup();
    guardian::cli::main()
}
