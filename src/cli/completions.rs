//! `completions` and `man`: made of the definition of the command line.

use std::io;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;

use super::Done;
use super::args::Cli;

/// Prints completions.
pub fn completions(shell: clap_complete::Shell) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "guardian", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script)?;
    Ok(0)
}

/// Prints the main page, or writes one for each verb.
pub fn man(dir: Option<&Path>) -> Done {
    match dir {
        None => clap_mangen::Man::new(Cli::command()).render(&mut io::stdout().lock())?,
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            clap_mangen::generate_to(Cli::command(), dir)
                .with_context(|| format!("cannot write into {}", dir.display()))?;
        }
    }
    Ok(0)
}
