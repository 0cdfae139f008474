//! Values picked out of a line of JSON by pointers (RFC 6901), without building the rest of it: a line may have megabytes.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hasher;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The most bytes of a text that are kept.
pub const TEXT_MAX: usize = 2048;

/// The names on the way to a value, from the outermost.
pub type Path = Vec<String>;

/// A value that was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The value as text, if it is a text, a number or a truth; else the first text in it. Cut to [`TEXT_MAX`] bytes.
    pub text: String,
    /// The value, if it is a number.
    pub number: Option<f64>,
    /// It is null.
    pub null: bool,
    /// The same for the same value, and for no other that is likely to be met.
    pub digest: u64,
}

impl Found {
    fn scalar(text: &str, number: Option<f64>) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(u8::from(number.is_some()));
        hasher.write(text.as_bytes());
        Self { text: clip(text).to_owned(), number, null: false, digest: hasher.finish() }
    }

    /// It is there, and true.
    pub fn is_true(&self) -> bool {
        !self.null && self.text == "true"
    }

    /// The number, if it is one that counts something.
    pub fn count(&self) -> Option<u64> {
        self.number.filter(|n| (0.0..=1e15).contains(n)).map(|n| n as u64)
    }
}

/// The beginning of a text, of at most [`TEXT_MAX`] bytes.
pub fn clip(text: &str) -> &str {
    beginning(text, TEXT_MAX)
}

/// The whole characters of at most so many bytes.
pub fn beginning(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// The values at these paths in a JSON text, in their order. An error: it is not JSON.
pub fn pick(text: &[u8], paths: &[Path]) -> Result<Vec<Option<Found>>, serde_json::Error> {
    let mut found = vec![None; paths.len()];
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let active = (0..paths.len()).collect();
    Node { paths, depth: 0, active, told: false, found: &mut found }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(found)
}

/// Any value, as it is told of by itself.
impl<'de> serde::Deserialize<'de> for Found {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node { paths: &[], depth: 0, active: Vec::new(), told: true, found: &mut [] };
        node.deserialize(deserializer)
    }
}

/// A value in the text, and the paths that lead to it or on from it.
struct Node<'a> {
    paths: &'a [Path],
    depth: usize,
    active: Vec<usize>,
    /// What contains it is to be told of, so it is.
    told: bool,
    found: &'a mut [Option<Found>],
}

impl Node<'_> {
    fn ends(&self, path: usize) -> bool {
        self.paths[path].len() == self.depth
    }

    fn is_told(&self) -> bool {
        self.told || self.active.iter().any(|path| self.ends(*path))
    }

    /// The paths that go on by this name.
    fn by(&self, name: &str) -> Vec<usize> {
        let goes_on = |path: &&usize| self.paths[**path].get(self.depth).is_some_and(|part| part == name);
        self.active.iter().filter(goes_on).copied().collect()
    }

    fn put(self, found: Found) -> Found {
        let Self { paths, depth, active, found: all, .. } = self;
        for path in active.into_iter().filter(|path| paths[*path].len() == depth) {
            all[path] = Some(found.clone());
        }
        found
    }

    fn within(&mut self, active: Vec<usize>, told: bool) -> Node<'_> {
        Node { paths: self.paths, depth: self.depth + 1, active, told, found: self.found }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Found, E> {
        if self.is_told() { Ok(self.put(Found::scalar(text, None))) } else { Ok(Found::default()) }
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Found, E> {
        Ok(self.put(Found::scalar(if truth { "true" } else { "false" }, None)))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Found, E> {
        Ok(self.put(Found::scalar(&n.to_string(), Some(n as f64))))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Found, E> {
        Ok(self.put(Found::scalar(&n.to_string(), Some(n as f64))))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Found, E> {
        Ok(self.put(Found::scalar(&n.to_string(), Some(n))))
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(self.put(Found { null: true, ..Found::default() }))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Found, A::Error> {
        let told = self.is_told();
        let (mut whole, mut position) = (Whole::new(b'['), 0_usize);
        loop {
            let active = if self.active.is_empty() { Vec::new() } else { self.by(&position.to_string()) };
            let more = match told || !active.is_empty() {
                true => items.next_element_seed(self.within(active, told))?.map(|item| whole.add(item)).is_some(),
                false => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                return Ok(self.put(whole.found()));
            }
            position += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Found, A::Error> {
        let told = self.is_told();
        let mut whole = Whole::new(b'{');
        loop {
            let key = Key { node: &self, whole: told.then_some(&mut whole) };
            let Some(active) = entries.next_key_seed(key)? else { return Ok(self.put(whole.found())) };
            match told || !active.is_empty() {
                true => whole.add(entries.next_value_seed(self.within(active, told))?),
                false => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
    }
}

/// A list or an object on its way to being told of.
struct Whole {
    hasher: DefaultHasher,
    first: String,
}

impl Whole {
    fn new(kind: u8) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(kind);
        Self { hasher, first: String::new() }
    }

    fn add(&mut self, part: Found) {
        self.hasher.write_u64(part.digest);
        if self.first.is_empty() && part.number.is_none() {
            self.first = part.text;
        }
    }

    fn found(self) -> Found {
        Found { text: self.first, number: None, null: false, digest: self.hasher.finish() }
    }
}

/// The name of an entry: which paths go on by it, and a part of what is told.
struct Key<'a, 'b> {
    node: &'a Node<'b>,
    whole: Option<&'a mut Whole>,
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Vec<usize>, E> {
        if let Some(whole) = self.whole {
            whole.hasher.write(name.as_bytes());
            whole.hasher.write_u8(0xff);
        }
        Ok(self.node.by(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(text: &str, paths: &[&[&str]]) -> Vec<Option<Found>> {
        let paths: Vec<Path> = paths.iter().map(|path| path.iter().map(|p| (*p).to_owned()).collect()).collect();
        pick(text.as_bytes(), &paths).unwrap()
    }

    fn texts(text: &str, paths: &[&[&str]]) -> Vec<Option<String>> {
        picked(text, paths).into_iter().map(|found| found.map(|f| f.text)).collect()
    }

    #[test]
    fn values_are_found_where_their_pointer_leads() {
        let text = r#"{"a":{"b":[1,{"c":"x"}],"b2":true},"n":-1.5,"z":null}"#;
        let paths: [&[&str]; 7] =
            [&["a", "b", "1", "c"], &["a", "b2"], &["n"], &["z"], &["a", "q"], &["a", "b", "0"], &["a", "b"]];
        let found = texts(text, &paths);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found, [some("x"), some("true"), some("-1.5"), some(""), None, some("1"), some("x")]);
        assert_eq!(picked(text, &[&["n"], &["z"]])[0].as_ref().unwrap().number, Some(-1.5));
        assert!(picked(text, &[&["z"]])[0].as_ref().unwrap().null);
    }

    #[test]
    fn the_same_value_has_the_same_digest_and_another_one_another() {
        let digest = |value: &str| picked(&format!("{{\"v\":{value}}}"), &[&["v"]])[0].as_ref().unwrap().digest;
        assert_eq!(digest(r#"{"command":"ls","n":[1,2]}"#), digest(r#"{ "command" : "ls", "n": [1, 2] }"#));
        let others = [r#"{"command":"ls"}"#, r#"["command","ls"]"#, r#""ls""#, "1", r#""1""#, "[[1],2]", "[1,[2]]"];
        let digests: std::collections::BTreeSet<u64> = others.map(digest).into();
        assert_eq!(digests.len(), others.len());
    }

    #[test]
    fn what_is_not_json_is_an_error_and_long_texts_are_cut() {
        for text in ["", "{", "x", "{}{}", "{\"a\":01}", "[\u{1}"] {
            assert!(pick(text.as_bytes(), &[]).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(pick(deep.as_bytes(), &[]).is_err());
        let long = format!("{{\"v\":\"{}\"}}", "é".repeat(10_000));
        assert_eq!(texts(&long, &[&["v"]])[0].as_ref().unwrap().len(), TEXT_MAX);
    }
}
