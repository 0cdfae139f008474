//! The command line of `claude`: what it needs so that its progress can be read, and what a launch asks of it by options.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use super::Executor;
use super::relay;
use crate::model::CLAUDE;

/// What a launch asks of an agent, beside its prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentOptions {
    /// `--model`.
    pub model: Option<String>,
    /// `--max-turns`.
    pub max_turns: Option<u64>,
    /// `--resume`: the session to go on with.
    pub resume: Option<String>,
    /// `--allowedTools`.
    pub allowed_tools: Vec<String>,
}

impl AgentOptions {
    /// The command line: the one that is given, or `claude` alone, with these options behind its first word.
    pub fn command(&self, given: Vec<OsString>) -> Vec<OsString> {
        let mut words = given.into_iter();
        let mut all = vec![words.next().unwrap_or_else(|| CLAUDE.into())];
        let mut option = |name: &str, value: Option<String>| {
            // One word: a value is never taken for another option.
            all.extend(value.map(|value| OsString::from(format!("{name}={value}"))));
        };
        option("--model", self.model.clone());
        option("--max-turns", self.max_turns.map(|n| n.to_string()));
        option("--resume", self.resume.clone());
        option("--allowedTools", (!self.allowed_tools.is_empty()).then(|| self.allowed_tools.join(",")));
        all.extend(words);
        all
    }

    /// Whether anything is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Executor {
    /// What is executed for this command of a launch, or why it cannot be.
    pub fn command_line(&self, argv: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
        let Some(spec) = self.spec() else { return Ok(argv) };
        let argv = match self {
            Self::StreamJson { command } => completed(command, argv)?,
            Self::Local | Self::Jsonl(_) => argv,
        };
        Ok(relay::command_line(&spec, argv))
    }
}

/// The command line with what it lacks so that its progress can be read. A script that starts `claude` itself is left alone.
fn completed(command: &str, mut argv: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
    let Some(program) = argv.first_mut() else { return Ok(argv) };
    if program == CLAUDE.as_bytes() {
        *program = command.as_bytes().to_vec();
    }
    let name = |path: &[u8]| Path::new(std::ffi::OsStr::from_bytes(path)).file_name().map(ToOwned::to_owned);
    let known = [name(command.as_bytes()), Some(CLAUDE.into())];
    if !known.contains(&name(program)) {
        return Ok(argv);
    }
    // Behind the first word: options with many values, such as --allowedTools, take what follows them.
    let mut missing: Vec<&str> = Vec::new();
    if !has(&argv, &["-p", "--print"]) {
        missing.push("-p");
    }
    match value_of(&argv, "--output-format").as_deref() {
        None => missing.extend(["--output-format", "stream-json"]),
        Some(b"stream-json") => {}
        Some(other) => {
            return Err(format!(
                "its progress is read from --output-format stream-json: leave --output-format {} out, or use --executor local",
                String::from_utf8_lossy(other).chars().take(40).collect::<String>()
            ));
        }
    }
    if !has(&argv, &["--verbose"]) {
        missing.push("--verbose");
    }
    argv.splice(1..1, missing.into_iter().map(|word| word.as_bytes().to_vec()));
    Ok(argv)
}

/// The words that are options, or values of some.
fn options(argv: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
    argv.iter().skip(1).map(Vec::as_slice).take_while(|word| *word != b"--")
}

fn has(argv: &[Vec<u8>], names: &[&str]) -> bool {
    options(argv).any(|word| names.iter().any(|name| word == name.as_bytes()))
}

/// The value of an option, as `--name value` or `--name=value`.
fn value_of(argv: &[Vec<u8>], name: &str) -> Option<Vec<u8>> {
    let mut words = options(argv);
    while let Some(word) = words.next() {
        match word.strip_prefix(name.as_bytes()) {
            Some(b"") => return words.next().map(<[u8]>::to_vec),
            Some([b'=', value @ ..]) => return Some(value.to_vec()),
            _ => {}
        }
    }
    None
}

/// How many turns the agent may have, if its command line says so.
pub fn turns_max(argv: &[OsString]) -> Option<u64> {
    let argv: Vec<Vec<u8>> = argv.iter().map(|word| word.clone().into_vec()).collect();
    String::from_utf8(value_of(&argv, "--max-turns")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(command: &str, words: &str) -> Result<String, String> {
        let argv = words.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        let argv = super::completed(command, argv)?;
        Ok(argv.into_iter().map(|word| String::from_utf8(word).unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_a_command_line_lacks_is_put_behind_its_first_word() {
        let all = "claude -p --output-format stream-json --verbose";
        assert_eq!(completed("claude", "claude").unwrap(), all);
        assert_eq!(completed("claude", all).unwrap(), all);
        assert_eq!(
            completed("claude", "claude --verbose --print --allowedTools Bash Read -- -p").unwrap(),
            "claude --output-format stream-json --verbose --print --allowedTools Bash Read -- -p"
        );
        assert_eq!(
            completed("claude", "claude --output-format=stream-json").unwrap(),
            "claude -p --verbose --output-format=stream-json"
        );
        assert_eq!(
            completed("/opt/agents/claude-2", "claude --model opus").unwrap(),
            "/opt/agents/claude-2 -p --output-format stream-json --verbose --model opus"
        );
        assert_eq!(completed("claude", "/usr/bin/claude").unwrap(), all.replace("claude -p", "/usr/bin/claude -p"));
    }

    #[test]
    fn a_script_is_left_alone_and_another_format_is_refused() {
        assert_eq!(completed("claude", "sh -c claude").unwrap(), "sh -c claude");
        let refused = completed("claude", "claude --output-format text").unwrap_err();
        assert!(refused.contains("leave --output-format text out, or use --executor local"), "{refused}");
    }

    #[test]
    fn options_of_a_launch_come_first_and_a_command_is_not_needed() {
        let options = AgentOptions {
            model: Some("opus".into()),
            max_turns: Some(30),
            resume: Some("5f0c".into()),
            allowed_tools: vec!["Bash(git log:*)".into(), "Read".into()],
        };
        let words = options.command(Vec::new());
        let expected =
            ["claude", "--model=opus", "--max-turns=30", "--resume=5f0c", "--allowedTools=Bash(git log:*),Read"];
        assert_eq!(words, expected.map(OsString::from));
        assert_eq!(turns_max(&words), Some(30));
        let given =
            AgentOptions { model: Some("m".into()), ..AgentOptions::default() }.command(vec!["c".into(), "x".into()]);
        assert_eq!(given, ["c", "--model=m", "x"].map(OsString::from));
        assert_eq!(turns_max(&["claude".into(), "--max-turns".into(), "5".into()]), Some(5));
        assert_eq!(turns_max(&given), None);
    }

    #[test]
    fn a_command_that_is_read_goes_through_the_relay() {
        let argv = || vec![b"sh".to_vec(), b"-c".to_vec()];
        assert_eq!(Executor::Local.command_line(argv()), Ok(argv()));
        let line = Executor::Jsonl(Box::default()).command_line(argv()).unwrap();
        assert_eq!(line[..4].to_vec(), [&b"/proc/self/exe"[..], b"relay", b"{\"progress\":\"jsonl\"}", b"--"]);
        assert_eq!(relay::command_of(&line), argv());
        assert_eq!(relay::command_of(&argv()), argv());
        let line = Executor::claude_cli().command_line(vec![b"claude".to_vec()]).unwrap();
        assert_eq!(relay::command_of(&line).len(), 5);
    }
}
