//! What the command line takes and refuses.

use clap::CommandFactory;

use super::*;

fn run(arguments: &[&str]) -> RunArgs {
    match Cli::try_parse_from([&["guardian", "run"], arguments].concat()).unwrap().verb {
        Verb::Run(run) => *run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_verb_is_described_by_what_it_does_and_not_by_what_it_takes() {
    let about = |cli: &clap::Command| {
        cli.get_subcommands().map(|verb| verb.get_about().map(ToString::to_string)).collect::<Vec<_>>()
    };
    let mut cli = Cli::command();
    let listed = about(&cli);
    cli.build();
    assert_eq!(about(&cli).get(..listed.len()), Some(listed.as_slice()));
}

#[test]
fn a_run_is_the_same_with_the_other_verbs_and_without_them() {
    let lines = [
        "run true",
        "run -- true",
        "--json --state-dir /x run --detach -w builder -n a --env A=1 --env B -- sh -c x --private",
        "run --max-runtime 3s --private --color never ls -l --json",
        "--backend subtree run --memory-max 1G --isolate-pids -C / run run",
    ];
    for line in lines {
        let words: Vec<&str> = std::iter::once("guardian").chain(line.split(' ')).collect();
        let (all, alone) = (Cli::try_parse_from(&words).unwrap(), RunCli::try_parse_from(&words).unwrap());
        assert_eq!(format!("{all:?}"), format!("{:?}", Cli::from(alone)), "{line}");
    }
    for line in
        ["", "run", "run --help", "help run", "--version", "--version run true", "ps run", "--user --system run true"]
    {
        let words: Vec<&str> = std::iter::once("guardian").chain(line.split_whitespace()).collect();
        assert!(Cli::try_parse_from(&words).is_err() || line == "ps run", "{line}");
        assert!(RunCli::try_parse_from(&words).is_err(), "{line}");
    }
}

#[test]
fn everything_after_the_command_belongs_to_it() {
    let plain = run(&["--max-runtime", "3s", "--", "sh", "-c", "x", "--detach"]);
    assert_eq!((plain.command.len(), plain.detach), (4, false));
    assert_eq!(run(&["ls", "-l", "--json"]).command, ["ls", "-l", "--json"]);
    assert!(Cli::try_parse_from(["guardian", "run"]).is_err());
}

#[test]
fn limits_are_read_with_units_and_can_be_off() {
    let run = run(&["--memory-max=2G", "--tasks-max", "off", "--cpu-max", "150%", "--init-timeout", "off", "x"]);
    assert_eq!(run.memory_max, Some(NumberLimit(Some(2 << 30))));
    assert_eq!(run.tasks_max, Some(NumberLimit(None)));
    assert_eq!(run.cpu_max, Some(NumberLimit(Some(150))));
    assert_eq!(run.init_timeout, Some(TimeLimit(None)));
    for bad in ["--memory-max=0", "--memory-max=much", "--tasks-max=-1", "--cpu-max=5000000000", "--grace=off"] {
        assert!(Cli::try_parse_from(["guardian", "run", bad, "x"]).is_err(), "{bad}");
    }
}

#[test]
fn audit_takes_a_run_or_verify() {
    let audit = |arguments: &[&str]| match Cli::try_parse_from(arguments).unwrap().verb {
        Verb::Audit(audit) => audit,
        other => panic!("{other:?}"),
    };
    assert!(matches!(audit(&["guardian", "audit", "verify"]).verb, Some(AuditVerb::Verify)));
    assert_eq!(audit(&["guardian", "audit", "run_1"]).run.as_deref(), Some("run_1"));
}

/// The words of a line of a shell script, up to a comment or to what else the shell is told.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (c, quote) {
            (_, Some(end)) if c == end => quote = None,
            (_, Some(_)) => word.push(c),
            ('"' | '\'', None) => quote = Some(c),
            ('#' | '|' | ';' | '&' | '>' | '<', None) => break,
            (' ', None) => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            _ => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

#[test]
fn each_command_in_the_documents_is_one() {
    let documents = [include_str!("../../README.md"), include_str!("../../packaging/doc/RECIPES.md")];
    let mut checked = 0;
    for document in documents {
        let code = document.split("```").skip(1).step_by(2).filter(|block| !block.starts_with("text"));
        for line in code.flat_map(str::lines) {
            let padded = format!(" {line}").replace(['"', '\''], "\"").replace("\"guardian ", "\" guardian ");
            let Some((before, command)) = padded.split_once(" guardian ") else { continue };
            // In quotes it is the argument of something.
            let is_quoted = before.matches('"').count() % 2 == 1;
            let command = if is_quoted { command.split('"').next().unwrap_or_default() } else { command };
            let words = [vec!["guardian".to_owned()], words(command)].concat();
            if words.len() == 1 || words.iter().any(|word| word.contains(['…', '$'])) {
                continue;
            }
            if let Err(e) = Cli::try_parse_from(&words) {
                assert!(!e.use_stderr(), "{line}: {e}");
            }
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}
