//! The layout of DESIGN.md, held: which room may import which, and how long a file may be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a room may see of the others. A longer path opens that part only.
const MAY_SEE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("failpoint", &[]),
    ("stream", &[]),
    // A part of each room's own, which sees no other.
    (
        "fuzz",
        &[
            "model::fuzz",
            "engine::fuzz",
            "config::fuzz",
            "kernel::fuzz",
            "launch::fuzz",
            "executor::fuzz",
            "store::fuzz",
            "bus::fuzz",
            "cli::fuzz",
            "notify::fuzz",
            "web::fuzz",
        ],
    ),
    ("engine", &["model"]),
    ("executor", &["model"]),
    ("config", &["model", "executor"]),
    ("kernel", &["model", "failpoint"]),
    ("launch", &["model", "kernel", "failpoint", "stream", "executor::relay"]),
    ("store", &["model", "failpoint"]),
    ("daemon", &["model", "engine", "config", "kernel", "launch", "store", "bus", "failpoint", "executor"]),
    ("bus", &["model", "daemon::command", "daemon::published", "stream", "failpoint"]),
    ("json", &["model", "bus::client"]),
    ("web", &["model", "json", "bus::client"]),
    (
        "notify",
        &[
            "model",
            "json",
            "bus::client",
            "config::ConfigErrors",
            "config::Problem",
            "config::kind",
            "config::suggest",
            "config::user_config_home",
        ],
    ),
    (
        "cli",
        &[
            "model",
            "failpoint",
            "json",
            "config",
            "bus::client",
            "executor",
            "launch::environment",
            "launch::foreground",
            "launch::gate",
            "launch::orphans",
            "daemon::instance",
            "daemon::state_dir",
            "web::tokens",
        ],
    ),
];

/// Longer files are rooms to divide; DESIGN.md says about 500.
const MOST_LINES: usize = 600;

fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => walk(&path, files),
                path if path.extension().is_some_and(|e| e == "rs") => files.push(path),
                _ => {}
            }
        }
    }
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files.sort();
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The module path of a file below src: `engine::step` for engine/step.rs, `engine` for engine/mod.rs.
fn module_of(file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(root()).unwrap().with_extension("");
    let mut parts: Vec<String> = relative.iter().map(|p| p.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|p| p == "mod" || p == "lib") {
        parts.pop();
    }
    parts
}

/// The code without comments and string literals, which may name anything.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut chars = text.chars().peekable();
    let mut previous = ' ';
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('/', Some('/')) => while chars.next_if(|c| *c != '\n').is_some() {},
            ('"', _) => {
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            // A quote in quotes is not the beginning of a string.
            ('\'', Some('"')) if !previous.is_alphanumeric() => {
                chars.next();
                chars.next();
            }
            _ => code.push(c),
        }
        previous = c;
    }
    code
}

/// Every path of the crate that the code names, as its parts after `crate`; a group counts for each of its members.
fn paths_in(code: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let tokens = tokens(code);
    let mut found = BTreeSet::new();
    let mut i = 0;
    while i < tokens.len() {
        let starts = i == 0 || tokens[i - 1] != "::";
        let base = match tokens[i].as_str() {
            "crate" if starts => Some(Vec::new()),
            "super" if starts => Some(module[..module.len().saturating_sub(1)].to_vec()),
            // The executables and doc tests see the library from outside.
            "guardian" if starts && module.first().is_some_and(|m| m == "bin") => Some(Vec::new()),
            _ => None,
        };
        i += 1;
        if let Some(base) = base
            && tokens.get(i).is_some_and(|t| t == "::")
        {
            i = tree(&tokens, i + 1, base, &mut found);
        }
    }
    found
}

/// Reads a use tree or a path from token `i`, below `base`; gives the token after it.
fn tree(tokens: &[String], mut i: usize, mut base: Vec<String>, found: &mut BTreeSet<Vec<String>>) -> usize {
    loop {
        match tokens.get(i).map(String::as_str) {
            Some("super") => {
                base.pop();
                i += 1;
            }
            Some("self" | "*") => i += 1,
            Some("{") => {
                i += 1;
                while tokens.get(i).is_some_and(|t| t != "}") {
                    i = if tokens[i] == "," { i + 1 } else { tree(tokens, i, base.clone(), found).max(i + 1) };
                }
                return i + 1;
            }
            Some(word) if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                base.push(word.to_owned());
                i += 1;
            }
            _ => break,
        }
        if tokens.get(i).is_none_or(|t| t != "::") {
            break;
        }
        i += 1;
    }
    // `as name` belongs to the tree and names nothing.
    if tokens.get(i).is_some_and(|t| t == "as") {
        i += 2;
    }
    found.insert(base);
    i
}

fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() || c == '_' {
            let mut word = String::from(c);
            while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                word.push(c);
            }
            tokens.push(word);
        } else if c == ':' && chars.next_if_eq(&':').is_some() {
            tokens.push("::".to_owned());
        } else if !c.is_whitespace() {
            tokens.push(c.to_string());
        }
    }
    tokens
}

fn may_see(room: &str, path: &[String]) -> bool {
    let Some((_, allowed)) = MAY_SEE.iter().find(|(name, _)| *name == room) else {
        return false;
    };
    let rooms = MAY_SEE.iter().any(|(name, _)| path.first().is_some_and(|p| p == name));
    // What is not a room is a macro or an item of lib.rs.
    !rooms
        || path[0] == room
        || allowed.iter().any(|a| a.split("::").zip(path).all(|(a, p)| a == p) && reaches(a, path))
}

/// A path that stops short of what is allowed would bring the whole room.
fn reaches(allowed: &str, path: &[String]) -> bool {
    path.len() >= allowed.split("::").count()
}

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    for file in sources() {
        let module = module_of(&file);
        let Some(room) = module.first().filter(|room| *room != "bin").cloned() else { continue };
        if module.len() == 1 && !MAY_SEE.iter().any(|(name, _)| *name == room) {
            wrong.push(format!("{}: {room} is not a room of DESIGN.md", file.display()));
            continue;
        }
        for path in paths_in(&code_of(&std::fs::read_to_string(&file).unwrap()), &module) {
            if !may_see(&room, &path) {
                wrong.push(format!("{} uses crate::{}", file.display(), path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "against the layout of DESIGN.md:\n{}", wrong.join("\n"));
}

#[test]
fn the_pure_core_imports_nothing_that_does_io() {
    const IO: &[&str] = &["nix", "rustix", "zbus", "tokio", "rusqlite", "procfs", "cgroups_rs"];
    const STD_IO: &[&str] = &["fs", "net", "os", "process", "thread"];
    for file in sources() {
        let module = module_of(&file);
        if !module.first().is_some_and(|room| room == "engine" || room == "model") {
            continue;
        }
        let tokens = tokens(&code_of(&std::fs::read_to_string(&file).unwrap()));
        for window in tokens.windows(3).filter(|w| w[1] == "::") {
            let std_io = window[0] == "std" && STD_IO.contains(&window[2].as_str());
            let clock = (window[0] == "Instant" || window[0] == "SystemTime") && window[2] == "now";
            assert!(!std_io && !clock && !IO.contains(&window[0].as_str()), "{}: {}", file.display(), window.concat());
        }
    }
}

#[test]
fn files_are_short_enough_to_be_read() {
    let lines = |file: &PathBuf| std::fs::read_to_string(file).unwrap().lines().count();
    let long: Vec<String> = (sources().iter().map(|f| (f, lines(f))))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "rooms to divide:\n{}", long.join("\n"));
}

#[test]
fn the_scanner_sees_what_it_must() {
    let module = ["engine".to_owned(), "step".to_owned()];
    let code = code_of(
        "use crate::{model::{Run, kill::Receipt as R}, kernel}; // crate::store\n\
         fn f() { let s = \"crate::bus\"; let q = '\"'; crate::daemon::go(); super::rules::x(); super::super::cli::y() }",
    );
    let found: Vec<String> = paths_in(&code, &module).into_iter().map(|p| p.join("::")).collect();
    let expected = ["cli::y", "daemon::go", "engine::rules::x", "kernel", "model::Run", "model::kill::Receipt"];
    assert_eq!(found, expected);
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
    assert!(may_see("bus", &path("daemon::command::Command")) && !may_see("bus", &path("daemon")));
    assert!(may_see("engine", &path("model")) && !may_see("engine", &path("kernel::Kernel")));
}
