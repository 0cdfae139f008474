//! What a configuration says of an agent's JSON lines: JSON pointers (RFC 6901), each with a value or without.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::pick::Found;

/// Matches a line where something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Matcher {
    path: Vec<String>,
    value: Option<String>,
}

impl Matcher {
    /// The names on the way to the value.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// Whether what was found there matches: anything but null, or the value that is named, as text.
    pub fn matches(&self, found: Option<&Found>) -> bool {
        found.is_some_and(|f| !f.null && self.value.as_ref().is_none_or(|value| *value == f.text))
    }
}

impl FromStr for Matcher {
    type Err = String;

    /// Reads `POINTER` or `POINTER=VALUE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(40).collect();
        let (pointer, value) = match text.split_once('=') {
            Some((pointer, value)) => (pointer, Some(value.to_owned())),
            None => (text, None),
        };
        let Some(names) = pointer.strip_prefix('/') else {
            return Err(format!(
                "{shown:?} is not a JSON pointer (RFC 6901): write /NAME or /NAME/NAME, and =VALUE after it if the value \
                 matters, such as \"/type=turn\""
            ));
        };
        let unescaped = |name: &str| {
            let parts = name.split("~1").map(|part| part.replace("~0", "\0"));
            let name = parts.collect::<Vec<_>>().join("/");
            (!name.contains('~')).then(|| name.replace('\0', "~"))
        };
        let path: Option<Vec<String>> = names.split('/').map(unescaped).collect();
        let wrong = || format!("{shown:?} has a ~ that is not ~0 (which is ~) or ~1 (which is /): write it as ~0");
        Ok(Self { path: path.ok_or_else(wrong)?, value })
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.path {
            write!(f, "/{}", name.replace('~', "~0").replace('/', "~1"))?;
        }
        self.value.as_ref().map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

impl TryFrom<String> for Matcher {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Matcher> for String {
    fn from(matcher: Matcher) -> Self {
        matcher.to_string()
    }
}

/// What the lines of an agent mean. What is not named is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matchers {
    /// It is initialized; none: with its first line of JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<Matcher>,
    /// Where its session is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Matcher>,
    /// Where its model is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Matcher>,
    /// A turn begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn: Option<Matcher>,
    /// It calls the tool whose name is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<Matcher>,
    /// What it calls the tool with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_input: Option<Matcher>,
    /// Numbers of tokens, which are summed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Matcher>,
    /// What it cost, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<Matcher>,
    /// Tokens and costs are those of the run so far, and not of the line.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub totals: bool,
    /// It waits for permission or input: for what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Matcher>,
    /// Something failed: what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Matcher>,
    /// Its final report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<Matcher>,
    /// Its final report is a success; none: unless the same line matches `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<Matcher>,
    /// The text of its final report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Matcher>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matcher_is_a_json_pointer_and_perhaps_a_value() {
        for text in ["/type", "/a/0/b~1c~0d", "/type=turn", "/a=b=c", "/", "/a="] {
            let matcher: Matcher = text.parse().unwrap();
            assert_eq!(matcher.to_string(), text);
        }
        let matcher: Matcher = "/a~1b/~01".parse().unwrap();
        assert_eq!(matcher.path(), ["a/b", "~1"]);
        for bad in ["", "type", "type=/x", "=x"] {
            assert!(bad.parse::<Matcher>().unwrap_err().contains("not a JSON pointer"), "{bad}");
        }
        for bad in ["/a~", "/~2", "/a~~1"] {
            assert!(bad.parse::<Matcher>().unwrap_err().contains("write it as ~0"), "{bad}");
        }
    }

    #[test]
    fn null_is_not_there_and_a_value_is_compared_as_text() {
        let found = |text: &str| Found { text: text.into(), ..Found::default() };
        let there: Matcher = "/a".parse().unwrap();
        assert!(there.matches(Some(&found("false"))) && !there.matches(None));
        assert!(!there.matches(Some(&Found { null: true, ..Found::default() })));
        let is: Matcher = "/a=true".parse().unwrap();
        assert!(is.matches(Some(&found("true"))) && !is.matches(Some(&found("false"))));
    }
}
