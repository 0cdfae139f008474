//! The options of `run` for executors: how an agent is started.

use std::path::PathBuf;

use clap::Args;

use crate::executor::command::AgentOptions;

// What an agent is started with.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = "Agents")]
pub struct ExecutorArgs {
    /// How the command is executed and its progress read: local, claude-cli, or an executor of the configuration [default:
    /// the workflow's; claude-cli with one of the next options]
    #[arg(long, value_name = "NAME")]
    pub executor: Option<String>,
    /// The file with the prompt, which the command reads from its standard input and which is on no command line; - is the
    /// standard input of `guardian run`
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// The model of a claude
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The session that a claude goes on with
    #[arg(long, value_name = "SESSION")]
    pub resume: Option<String>,
    /// A tool that a claude may use unasked (repeatable)
    #[arg(long, value_name = "TOOL")]
    pub allowed_tools: Vec<String>,
}

/// The options that make a command line of their own, so that no COMMAND is needed.
pub const INSTEAD_OF_A_COMMAND: [&str; 4] = ["prompt_file", "model", "resume", "allowed_tools"];

impl ExecutorArgs {
    /// What is asked of a claude, beside a number of turns.
    pub fn options(&self) -> AgentOptions {
        AgentOptions {
            model: self.model.clone(),
            max_turns: None,
            resume: self.resume.clone(),
            allowed_tools: self.allowed_tools.clone(),
        }
    }
}
