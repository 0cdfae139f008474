//! `[executor.NAME]`: how the progress of an agent is read, and which executor a run has.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use super::keys::suggest;
use super::values::clip;
use super::{Config, Problem};
use crate::executor::{Executor, LOCAL, Matchers};
use crate::model::{LimitUpdate, valid_workflow_name};

/// Which format an agent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// What `claude -p --output-format stream-json` does.
    StreamJson,
    /// A JSON object a line, read by matchers.
    Jsonl,
}

impl Progress {
    const fn as_str(self) -> &'static str {
        match self {
            Progress::StreamJson => "stream-json",
            Progress::Jsonl => "jsonl",
        }
    }
}

impl FromStr for Progress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Progress::StreamJson, Progress::Jsonl].into_iter().find(|p| p.as_str() == text);
        known.ok_or_else(|| format!("{:?} is not a format of progress: use jsonl or stream-json", clip(text)))
    }
}

/// An executor as the configuration has it so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutorTable {
    /// Its format.
    pub progress: Option<Progress>,
    /// What stands for `claude`.
    pub command: Option<String>,
    /// What the lines mean.
    pub matchers: Matchers,
}

impl ExecutorTable {
    /// The executor, or what is wrong with the table as a whole.
    fn executor(&self) -> Result<Executor, String> {
        match self.progress {
            None => {
                Err("has no progress: write progress = \"jsonl\", and what its lines mean, or \"stream-json\""
                    .to_owned())
            }
            Some(Progress::StreamJson) if self.matchers != Matchers::default() => Err(
                "says what lines mean, which stream-json knows by itself: write progress = \"jsonl\", or leave it out"
                    .to_owned(),
            ),
            Some(Progress::StreamJson) => match (&self.command, Executor::claude_cli()) {
                (Some(command), _) => Ok(Executor::StreamJson { command: command.clone() }),
                (None, usual) => Ok(usual),
            },
            Some(Progress::Jsonl) if self.command.is_some() => {
                Err("has a command, which is for progress = \"stream-json\" alone: each run names its own".to_owned())
            }
            Some(Progress::Jsonl) => Ok(Executor::Jsonl(Box::new(self.matchers.clone()))),
        }
    }
}

impl Display for ExecutorTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = |text: &str| toml::Value::from(text).to_string();
        let mut lines = Vec::new();
        lines.extend(self.progress.map(|p| format!("progress = {}", text(p.as_str()))));
        lines.extend(self.command.as_ref().map(|c| format!("command = {}", text(c))));
        let m = &self.matchers;
        let single = [
            ("ready", &m.ready),
            ("session", &m.session),
            ("model", &m.model),
            ("turn", &m.turn),
            ("tool", &m.tool),
            ("tool_input", &m.tool_input),
            ("cost_usd", &m.cost_usd),
            ("waiting", &m.waiting),
            ("error", &m.error),
            ("done", &m.done),
            ("success", &m.success),
            ("result", &m.result),
        ];
        let named = single.into_iter().filter_map(|(key, matcher)| Some((key, matcher.as_ref()?)));
        lines.extend(named.map(|(key, matcher)| format!("{key} = {}", text(&matcher.to_string()))));
        if !m.tokens.is_empty() {
            let tokens: Vec<String> = m.tokens.iter().map(|matcher| text(&matcher.to_string())).collect();
            lines.push(format!("tokens = [{}]", tokens.join(", ")));
        }
        lines.extend(m.totals.then(|| "totals = true".to_owned()));
        f.write_str(&lines.join("\n"))
    }
}

/// Refuses what cannot name an executor.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name {
        LOCAL => Err(format!("\"{LOCAL}\" executes a command as it is, and has no settings: choose another name")),
        name => valid_workflow_name(name).map_err(|why| why.replace("a workflow name", "the name of an executor")),
    }
}

impl Config {
    /// The executor of a run of this workflow that is launched with these limits, or why there is none.
    pub fn executor_of(&self, workflow: &str, update: &LimitUpdate) -> Result<Executor, String> {
        self.executor_named(self.executor_name(workflow, update))
    }

    /// Its name, whether there is one of that name or not.
    pub fn executor_name<'a>(&'a self, workflow: &str, update: &'a LimitUpdate) -> &'a str {
        let of_workflow = self.workflows.get(workflow).and_then(|update| update.executor.as_ref());
        update.executor.as_ref().or(of_workflow).unwrap_or(&self.executor)
    }

    fn executor_named(&self, name: &str) -> Result<Executor, String> {
        match self.executors.get(name) {
            Some(table) => table.executor().map_err(|why| format!("executor.{name} {why}")),
            None if name == LOCAL => Ok(Executor::Local),
            None => {
                let known = std::iter::once(LOCAL).chain(self.executors.keys().map(String::as_str));
                let hint = suggest(name, known);
                Err(format!("there is no executor {:?}: {hint}; a table [executor.NAME] adds one", clip(name)))
            }
        }
    }
}

/// What a file says of executors, of which only all files together tell whether it is right. Each problem has its place, and
/// gets its words in the end.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    named: Vec<(String, Problem)>,
    defined: BTreeMap<String, Problem>,
}

impl Doubts {
    /// An executor is named here.
    pub fn named(&mut self, name: &str, place: Problem) {
        self.named.push((name.to_owned(), place));
    }

    /// An executor is defined here, among other places perhaps.
    pub fn defined(&mut self, name: &str, place: Problem) {
        self.defined.insert(name.to_owned(), place);
    }

    /// Those that hold.
    pub fn settled(self, config: &Config) -> Vec<Problem> {
        let wrong = |(name, place): (String, Problem)| {
            let is_defined = config.executors.contains_key(&name);
            let message = config.executor_named(&name).err().filter(|_| !is_defined)?;
            Some(Problem { message, ..place })
        };
        let broken = |(name, place): (String, Problem)| {
            let message = config.executors.get(&name)?.executor().err()?;
            Some(Problem { message, ..place })
        };
        let named: Vec<Problem> = self.named.into_iter().filter_map(wrong).collect();
        let mut all: Vec<Problem> = named.into_iter().chain(self.defined.into_iter().filter_map(broken)).collect();
        all.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn load(text: &str) -> Result<Config, Vec<String>> {
        let loaded = Config::of([(Path::new("c.toml"), Ok(text.to_owned()))].into_iter());
        loaded.map_err(|e| e.0.iter().map(ToString::to_string).collect())
    }

    const CODEX: &str = "[executor.codex]\nprogress = \"jsonl\"\nready = \"/type=thread.started\"\nturn = \"/type=turn.started\"\n\
                         tokens = [\"/usage/input_tokens\", \"/usage/output_tokens\"]\ntotals = true\n";

    #[test]
    fn a_workflow_has_the_executor_that_it_names_and_a_run_may_name_another() {
        let config =
            load(&format!("[workflow.x]\nexecutor = \"codex\"\n[workflow.y]\nexecutor = \"claude-cli\"\n{CODEX}"))
                .unwrap();
        let none = LimitUpdate::default();
        assert!(matches!(config.executor_of("x", &none), Ok(Executor::Jsonl(m)) if m.totals && m.tokens.len() == 2));
        assert_eq!(config.executor_of("y", &none), Ok(Executor::claude_cli()));
        assert_eq!(config.executor_of("other", &none), Ok(Executor::Local));
        let local = LimitUpdate { executor: Some("local".into()), ..none };
        assert_eq!(config.executor_of("x", &local), Ok(Executor::Local));
        let odd = LimitUpdate { executor: Some("codx".into()), ..local };
        let why = "there is no executor \"codx\": did you mean codex?; a table [executor.NAME] adds one";
        assert_eq!(config.executor_of("x", &odd), Err(why.to_owned()));
    }

    #[test]
    fn the_executable_of_claude_can_be_another() {
        let config =
            load("[executor.claude-cli]\ncommand = \"/opt/claude\"\n[defaults]\nexecutor = \"claude-cli\"\n").unwrap();
        let executor = config.executor_of("any", &LimitUpdate::default());
        assert_eq!(executor, Ok(Executor::StreamJson { command: "/opt/claude".into() }));
    }

    #[test]
    fn mistakes_about_executors_are_told_with_their_place() {
        let told = load(
            "[workflow.x]\nexecutor = \"codx\"\n[executor.local]\n[executor.a]\nready = \"type\"\n\
             [executor.b]\nprogress = \"xml\"\n[executor.c]\nprogress = \"jsonl\"\ncommand = \"c\"\n\
             [executor.d]\nprogress = \"stream-json\"\nturn = \"/t\"\n[executor.\"a/b\"]\n[executor.e]\ntokens = \"/a\"\ntols = \"/b\"\n",
        )
        .unwrap_err();
        let expected = [
            "c.toml:2:12: workflow.x.executor: there is no executor \"codx\":",
            "c.toml:3:11: executor.local: \"local\" executes a command as it is",
            "c.toml:5:9: executor.a.ready: \"type\" is not a JSON pointer (RFC 6901)",
            "c.toml:4:11: executor.a: has no progress: write progress = \"jsonl\"",
            "c.toml:7:12: executor.b.progress: \"xml\" is not a format of progress: use jsonl or stream-json",
            "c.toml:8:11: executor.c: has a command, which is for progress = \"stream-json\" alone",
            "c.toml:11:11: executor.d: says what lines mean, which stream-json knows by itself",
            "c.toml:14:11: executor.a/b: \"a/b\" is not the name of an executor",
            "c.toml:16:10: executor.e.tokens: must be a list",
            "c.toml:17:1: executor.e.tols: is not a key of the configuration",
        ];
        for line in expected {
            assert!(told.iter().any(|t| t.starts_with(line)), "{line}\n{told:#?}");
        }
    }

    #[test]
    fn what_is_shown_of_executors_loads_to_the_same() {
        let config = load(&format!("{CODEX}tool = \"/a~1b=x y\"\n[defaults]\nexecutor = \"codex\"\n")).unwrap();
        assert_eq!(load(&config.to_string()).unwrap(), config);
    }
}
