//! What a request says, in its path, its query and its body: held to the table of routes, which the OpenAPI document is made
//! of too.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reply::Problem;
use crate::model::{Error, ErrorKind, EventKind, Health, Phase, Rule, RunId, Wall, valid_workflow_name};

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The id of a run, in full.
    Run,
    /// The name of a workflow.
    Workflow,
    /// A phase.
    Phase,
    /// A health.
    Health,
    /// A kind of event of the audit.
    Event,
    /// A limit that is a time.
    Limit,
    /// Where a page of runs begins, as the page before it says.
    Cursor,
    /// Text of at most so many characters.
    Text(usize),
    /// A number from, and to.
    Number(u64, u64),
    /// true or false.
    Flag,
    /// A list of texts, one at least. Of a body only.
    Texts,
    /// Texts by name. Of a body only.
    Variables,
    /// Further values by name. Of a body only.
    Object(&'static [Field]),
}

/// A value that a request may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Whether it has to be there.
    pub required: bool,
    /// What it says.
    pub about: &'static str,
}

impl Field {
    /// A value that may be left out.
    pub const fn may(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, required: false, about }
    }

    /// A value that has to be there.
    pub const fn must(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, required: true, about }
    }
}

/// The largest number that JSON carries safely to a browser, 2^53 - 1; as microseconds it is 285 years.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

impl Kind {
    fn names(self) -> Vec<&'static str> {
        match self {
            Self::Phase => Phase::ALL.iter().map(|p| p.as_str()).collect(),
            Self::Health => [Health::Healthy, Health::Warning, Health::Critical].map(Health::as_str).to_vec(),
            Self::Event => EventKind::ALL.iter().map(|k| k.as_str()).collect(),
            Self::Limit => Rule::TIMED.map(Rule::as_str).to_vec(),
            _ => Vec::new(),
        }
    }

    /// Its schema, of JSON Schema 2020-12.
    pub fn schema(self) -> Value {
        match self {
            Self::Run => json!({"type": "string", "pattern": "^run_[0-9a-f]{12}$"}),
            Self::Workflow => json!({"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"}),
            Self::Phase | Self::Health | Self::Event | Self::Limit => json!({"type": "string", "enum": self.names()}),
            Self::Cursor => json!({"type": "string", "pattern": "^[0-9]{1,19}-run_[0-9a-f]{12}$"}),
            Self::Text(most) => json!({"type": "string", "maxLength": most}),
            Self::Number(from, to) => json!({"type": "integer", "minimum": from, "maximum": to}),
            Self::Flag => json!({"type": "boolean"}),
            Self::Texts => json!({"type": "array", "items": without_nul(), "minItems": 1}),
            Self::Variables => json!({
                "type": "object", "propertyNames": {"pattern": "^[^=\\u0000]+$"}, "additionalProperties": without_nul(),
            }),
            Self::Object(fields) => object_schema(fields),
        }
    }

    /// What a value of several parts has to be.
    fn wanted(self) -> &'static str {
        match self {
            Self::Texts => "a list of texts without NUL, one at least",
            Self::Variables => "an object of texts without NUL, by names without `=`",
            _ => "an object",
        }
    }

    /// Reads text of a path or a query.
    fn of_text(self, name: &str, text: &str) -> Result<Argument, Problem> {
        match self {
            Self::Number(from, to) => {
                let number = text.parse().ok().filter(|n| (from..=to).contains(n) && is_plain(text));
                number.map(Argument::Number).ok_or_else(|| wrong(name, &format!("a number from {from} to {to}")))
            }
            Self::Flag => match text {
                "true" => Ok(Argument::Flag(true)),
                "false" => Ok(Argument::Flag(false)),
                _ => Err(wrong(name, "true or false")),
            },
            Self::Run => {
                let run = text.parse::<RunId>().map_err(|e| Error::new(ErrorKind::InvalidRunId, e.to_string()))?;
                Ok(Argument::Text(run.to_string()))
            }
            Self::Texts | Self::Variables | Self::Object(_) => Err(wrong(name, self.wanted())),
            Self::Workflow => {
                valid_workflow_name(text).map_err(|why| Problem::from(Error::invalid(why)))?;
                Ok(Argument::Text(text.to_owned()))
            }
            Self::Cursor => Ok(Argument::Text(text.to_owned())),
            Self::Text(most) if text.chars().count() <= most => Ok(Argument::Text(text.to_owned())),
            Self::Text(most) => Err(wrong(name, &format!("at most {most} characters of text"))),
            Self::Phase | Self::Health | Self::Event | Self::Limit => {
                let names = self.names();
                let known = names.iter().find(|known| **known == text);
                known
                    .map(|known| Argument::Text((*known).to_owned()))
                    .ok_or_else(|| wrong(name, &format!("one of {}", names.join(", "))))
            }
        }
    }

    /// Reads a value of a body.
    fn of_json(self, name: &str, value: &Value) -> Result<Argument, Problem> {
        match (self, value) {
            (Self::Number(..), Value::Number(number)) => self.of_text(name, &number.to_string()),
            (Self::Flag, Value::Bool(flag)) => Ok(Argument::Flag(*flag)),
            (Self::Texts, Value::Array(items)) => {
                let text = |item: &Value| item.as_str().filter(|text| !text.contains('\0')).map(str::to_owned);
                let texts: Option<Vec<String>> = items.iter().map(text).collect();
                texts.filter(|texts| !texts.is_empty()).map(Argument::Texts).ok_or_else(|| wrong(name, self.wanted()))
            }
            (Self::Variables, Value::Object(map)) => {
                let pair = |(name, value): (&String, &Value)| {
                    let value = value.as_str().filter(|value| !value.contains('\0'))?;
                    let is_name = !name.is_empty() && !name.contains(['=', '\0']);
                    is_name.then(|| (name.clone(), value.to_owned()))
                };
                let pairs: Option<Vec<_>> = map.iter().map(pair).collect();
                pairs.map(Argument::Pairs).ok_or_else(|| wrong(name, self.wanted()))
            }
            (Self::Object(fields), Value::Object(map)) => {
                let mut inner = Arguments::default();
                inner.take_object(fields, map)?;
                Ok(Argument::Object(inner))
            }
            (Self::Texts | Self::Variables | Self::Object(_), _) => Err(wrong(name, self.wanted())),
            (Self::Number(from, to), _) => Err(wrong(name, &format!("a number from {from} to {to}"))),
            (Self::Flag, _) => Err(wrong(name, "true or false")),
            (_, Value::String(text)) => self.of_text(name, text),
            _ => Err(wrong(name, "a text")),
        }
    }
}

/// Text as the kernel takes it in arguments and variables.
fn without_nul() -> Value {
    json!({"type": "string", "pattern": "^[^\\u0000]*$"})
}

/// Digits, and not what Rust takes for a number beside them.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn wrong(name: &str, wanted: &str) -> Problem {
    Error::invalid(format!("{name} has to be {wanted}")).into()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Argument {
    Text(String),
    Number(u64),
    Flag(bool),
    Texts(Vec<String>),
    Pairs(Vec<(String, String)>),
    Object(Arguments),
}

/// The values of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments(BTreeMap<&'static str, Argument>);

impl Arguments {
    /// Takes in what a path or a query says. What is not known is refused: a filter that is silently not applied shows what
    /// nobody asked for.
    pub fn take(&mut self, fields: &'static [Field], pairs: &[(String, String)]) -> Result<(), Problem> {
        for (name, text) in pairs {
            let field = known(fields, name)?;
            if self.0.insert(field.name, field.kind.of_text(name, text)?).is_some() {
                return Err(Error::invalid(format!("{name} is there twice")).into());
            }
        }
        self.complete(fields)
    }

    /// Takes in what a body says: a JSON object, or nothing where nothing has to be there.
    pub fn take_body(&mut self, fields: &'static [Field], body: &[u8]) -> Result<(), Problem> {
        let object: Map<String, Value> = match body {
            [] => Map::new(),
            body => serde_json::from_slice(body)
                .map_err(|e| Problem::malformed(format!("the body is no JSON object: {e}")))?,
        };
        self.take_object(fields, &object)
    }

    fn take_object(&mut self, fields: &'static [Field], object: &Map<String, Value>) -> Result<(), Problem> {
        for (name, value) in object {
            let field = known(fields, name)?;
            // Null is as good as nothing, for what may be left out.
            if !value.is_null() || field.required {
                self.0.insert(field.name, field.kind.of_json(name, value)?);
            }
        }
        self.complete(fields)
    }

    fn complete(&self, fields: &'static [Field]) -> Result<(), Problem> {
        match fields.iter().find(|field| field.required && !self.0.contains_key(field.name)) {
            Some(field) => Err(Error::invalid(format!("{} is missing: {}", field.name, field.about)).into()),
            None => Ok(()),
        }
    }

    /// Refuses anything but just one of these values, where any are named.
    pub fn just_one(&self, names: &[&str]) -> Result<(), Problem> {
        match names.iter().filter(|name| self.0.contains_key(**name)).count() {
            1 => Ok(()),
            _ if names.is_empty() => Ok(()),
            _ => Err(Error::invalid(format!("just one of {} has to be there", names.join(", "))).into()),
        }
    }

    /// A text; empty where there is none.
    pub fn text(&self, name: &str) -> &str {
        self.some_text(name).unwrap_or_default()
    }

    /// A text, if it is there.
    pub fn some_text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Argument::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A list of texts, if it is there.
    pub fn texts(&self, name: &str) -> Option<&[String]> {
        match self.0.get(name) {
            Some(Argument::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    /// Texts by name; none where there are none.
    pub fn pairs(&self, name: &str) -> &[(String, String)] {
        match self.0.get(name) {
            Some(Argument::Pairs(pairs)) => pairs,
            _ => &[],
        }
    }

    /// Further values; none where there are none.
    pub fn object(&self, name: &str) -> Arguments {
        match self.0.get(name) {
            Some(Argument::Object(inner)) => inner.clone(),
            _ => Arguments::default(),
        }
    }

    /// A number, if it is there.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name) {
            Some(Argument::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// A number that is the size of something.
    pub fn count(&self, name: &str, otherwise: u32) -> u32 {
        self.number(name).map_or(otherwise, |n| u32::try_from(n).unwrap_or(u32::MAX))
    }

    /// A time in microseconds, if it is there.
    pub fn time(&self, name: &str) -> Option<Wall> {
        self.number(name).map(Wall)
    }

    /// Whether it is true; not there is not true.
    pub fn flag(&self, name: &str) -> bool {
        self.0.get(name) == Some(&Argument::Flag(true))
    }

    /// The phase, if one is there.
    pub fn phase(&self) -> Option<Phase> {
        Phase::ALL.into_iter().find(|p| Some(p.as_str()) == self.some_text("phase"))
    }

    /// The health, if one is there.
    pub fn health(&self) -> Option<Health> {
        let all = [Health::Healthy, Health::Warning, Health::Critical];
        all.into_iter().find(|h| Some(h.as_str()) == self.some_text("health"))
    }

    /// The run, of a route that has one.
    pub fn run(&self) -> Result<RunId, Problem> {
        let run = self.text("id").parse::<RunId>();
        run.map_err(|e| Error::new(ErrorKind::InvalidRunId, e.to_string()).into())
    }
}

/// The schema of an object with these values and no others.
pub fn object_schema(fields: &[Field]) -> Value {
    // Null is as good as nothing, for what may be left out.
    let schema = |f: &Field| match f.required {
        true => f.kind.schema(),
        false => json!({"anyOf": [f.kind.schema(), {"type": "null"}]}),
    };
    let properties: Map<String, Value> = fields.iter().map(|f| (f.name.to_owned(), schema(f))).collect();
    let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn known<'a>(fields: &'a [Field], name: &str) -> Result<&'a Field, Problem> {
    fields.iter().find(|field| field.name == name).ok_or_else(|| {
        let name: String = name.chars().take(40).collect();
        let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
        let known = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        Error::invalid(format!("{name:?} is not known here: this takes {known}")).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        Field::may("limit", Kind::Number(1, 10), ""),
        Field::may("finished", Kind::Flag, ""),
        Field::may("phase", Kind::Phase, ""),
        Field::must("reason", Kind::Text(5), "why"),
    ];

    fn query(pairs: &[(&str, &str)]) -> Result<Arguments, u16> {
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let mut arguments = Arguments::default();
        arguments.take(FIELDS, &pairs).map(|()| arguments).map_err(|p| p.status.as_u16())
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_ignored() {
        let good = query(&[("reason", "x"), ("limit", "10"), ("finished", "true"), ("phase", "killing")]).unwrap();
        assert_eq!((good.text("reason"), good.number("limit"), good.flag("finished")), ("x", Some(10), true));
        assert_eq!(good.phase(), Some(Phase::Killing));
        for bad in [
            &[][..],
            &[("reason", "x"), ("reason", "y")],
            &[("reason", "too long")],
            &[("reason", "x"), ("limit", "11")],
            &[("reason", "x"), ("limit", "+1")],
            &[("reason", "x"), ("finished", "1")],
            &[("reason", "x"), ("phase", "dead")],
            &[("reason", "x"), ("other", "")],
        ] {
            assert_eq!(query(bad), Err(422), "{bad:?}");
        }
    }

    #[test]
    fn a_body_that_is_no_json_object_is_malformed_and_a_wrong_value_is_invalid() {
        let body = |text: &str| Arguments::default().take_body(FIELDS, text.as_bytes()).map_err(|p| p.status.as_u16());
        assert_eq!(body(r#"{"reason": "x", "limit": null}"#), Ok(()));
        for bad in ["{", "[]", "1", "\"x\"", "{} {}", "\u{feff}{}"] {
            assert_eq!(body(bad), Err(400), "{bad}");
        }
        for bad in
            ["", "{}", r#"{"reason": 1}"#, r#"{"reason": null}"#, r#"{"reason": "x", "limit": 1.5}"#, r#"{"x": 1}"#]
        {
            assert_eq!(body(bad), Err(422), "{bad}");
        }
    }
}
