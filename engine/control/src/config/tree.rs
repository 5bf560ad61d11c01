//! Owns: a YAML document as a tree with positions, and where in it `${...}` is replaced.
//! Never: knows which keys exist or what a value means.
//! Flow: text of the file -> serde-saphyr -> `Node` -> `variables` -> `read`.

use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, Spanned};

use super::variables;

/// Nodes of one file: 100,000 listed torrents with about 20 each, and room.
const NODES_MAX: usize = 8_000_000;
/// Text of one file.
pub(super) const FILE_BYTES_MAX: u64 = 256 << 20;
const SCALAR_BYTES_MAX: usize = 256 << 20;
const DEPTH_MAX: usize = 32;

/// Where something stands in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1; 0 where it is not known.
    pub(super) line: u32,
    /// In characters, from 1.
    pub(super) column: u32,
    /// In characters.
    pub(super) width: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Unique in its tree, set by [`number`].
    pub(super) id: u32,
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    /// The text as it was written, whatever YAML would make of it.
    Scalar(String),
    Seq(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// What stops the file from being read as YAML.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) place: Place,
    pub(super) message: String,
    pub(super) help: &'static str,
}

impl Node {
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, value)| value)
    }

    pub(super) fn entry(&self, key: &str) -> Option<&(Node, Node)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name.text() == Some(key)),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Value::Seq(items) => items,
            _ => &[],
        }
    }
}

/// Reads one document. A key that stands twice is an error beside the tree, so that it does not
/// hide the others.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<SyntaxError>) {
    let mut errors = Vec::new();
    let mut parsed = parse_with(text, DuplicateKeyPolicy::Error);
    if let Err(error) = &parsed
        && let Error::DuplicateMappingKey { .. } = error.without_snippet()
    {
        errors.push(syntax_error(error));
        parsed = parse_with(text, DuplicateKeyPolicy::FirstWins);
    }
    match parsed {
        Ok(raw) => {
            let mut node = raw.into_node(text);
            number(&mut node, &mut 0);
            (Some(node), errors)
        }
        Err(error) => {
            errors.push(syntax_error(&error));
            (None, errors)
        }
    }
}

fn parse_with(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Raw, Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_events: NODES_MAX * 2,
            max_total_scalar_bytes: SCALAR_BYTES_MAX,
            max_depth: DEPTH_MAX,
        },
        duplicate_keys: duplicate_keys,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn syntax_error(error: &Error) -> SyntaxError {
    let error = error.without_snippet();
    let place = error.location().map(place_of).unwrap_or_default();
    let message = error.to_string();
    // The position is printed once, by the diagnostic; the library's own options are not the
    // user's.
    let message = message.split(" at line ").next().unwrap_or(&message);
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or(message).to_string();
    let help = match error {
        Error::DuplicateMappingKey { .. } => "leave one of them out",
        _ if message.contains("tab") => "indent with spaces",
        _ => "look at the line above too: an open bracket or quote, or an indentation that differs",
    };
    SyntaxError { place: Place { width: 1, ..place }, message, help }
}

fn place_of(location: Location) -> Place {
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let width = location.span().len().clamp(1, 1000);
    Place { line: narrow(location.line()), column: narrow(location.column()), width: narrow(width) }
}

fn number(node: &mut Node, next: &mut u32) {
    node.id = *next;
    *next += 1;
    match &mut node.value {
        Value::Null | Value::Scalar(_) => {}
        Value::Seq(items) => items.iter_mut().for_each(|item| number(item, next)),
        Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            number(key, next);
            number(value, next);
        }),
    }
}

/// A node as serde-saphyr hands it out, before plain scalars get their own text back.
struct Raw(Spanned<RawValue>);

enum RawValue {
    Null,
    Text(String),
    /// A plain scalar that YAML takes for a number or a truth value, as that prints.
    Typed(String),
    Seq(Vec<Raw>),
    Map(Vec<(Raw, Raw)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        Spanned::deserialize(deserializer).map(Raw)
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawValue, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }
    fn visit_unit<E: de::Error>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Typed(value.to_string()))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(value.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(RawValue::Seq(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawValue::Map(entries))
    }
}

impl Raw {
    fn into_node(self, text: &str) -> Node {
        let place = place_of(self.0.referenced);
        let value = match self.0.value {
            RawValue::Null => Value::Null,
            RawValue::Text(value) => Value::Scalar(value),
            RawValue::Typed(printed) => {
                Value::Scalar(written(text, self.0.defined).unwrap_or(printed))
            }
            RawValue::Seq(items) => {
                Value::Seq(items.into_iter().map(|item| item.into_node(text)).collect())
            }
            RawValue::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (key.into_node(text), value.into_node(text)))
                    .collect(),
            ),
        };
        Node { id: 0, place, value }
    }
}

/// A plain scalar as it stands in the file: `1.10` and `0x1F` stay what they are.
fn written(text: &str, location: Location) -> Option<String> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let len = usize::try_from(location.span().byte_len()?).ok()?;
    let scalar = text.get(Range { start, end: start.checked_add(len)? })?.trim();
    let one_token = !scalar.is_empty() && !scalar.contains(char::is_whitespace);
    one_token.then(|| scalar.to_string())
}

/// Replaces `${VAR}`, `${VAR:-default}` and `${file:PATH}` in every value; `$${` stands for `${`.
/// Keys stay as they are.
pub(super) fn interpolate(
    node: &mut Node,
    lookup: &dyn Fn(&str) -> Option<String>,
    failed: &mut dyn FnMut(&Node, String),
) {
    match &mut node.value {
        Value::Null => {}
        Value::Scalar(text) => {
            if text.contains("${") {
                match variables::replaced(text, lookup) {
                    Ok(text) => node.value = Value::Scalar(text),
                    Err(message) => failed(node, message),
                }
            }
        }
        Value::Seq(items) => {
            items.iter_mut().for_each(|item| interpolate(item, lookup, failed));
        }
        Value::Map(entries) => {
            entries.iter_mut().for_each(|(_, value)| interpolate(value, lookup, failed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        let (node, errors) = parse(text);
        assert!(errors.is_empty(), "{errors:?}");
        node.unwrap()
    }

    #[test]
    fn scalars_keep_their_own_text() {
        let node = tree("a: 1.10\nb: on\nc: 0x1F\nd: \"007\"\ne: &x 1e3\nf: *x\ng: 010\nh: True\n");
        for (key, text) in [
            ("a", "1.10"),
            ("b", "on"),
            ("c", "0x1F"),
            ("d", "007"),
            ("e", "1e3"),
            ("f", "1e3"),
            ("g", "010"),
            ("h", "True"),
        ] {
            assert_eq!(node.get(key).unwrap().text(), Some(text), "{key}");
        }
    }

    #[test]
    fn places_are_where_the_value_stands() {
        let node = tree("a:\n  - ünï: 5\n");
        let (key, value) = node.get("a").unwrap().items()[0].entry("ünï").unwrap();
        assert_eq!(key.place, Place { line: 2, column: 5, width: 3 });
        assert_eq!(value.place, Place { line: 2, column: 10, width: 1 });
    }

    #[test]
    fn a_key_that_stands_twice_does_not_hide_the_rest() {
        let (node, errors) = parse("a: 1\na: 2\nb: 3\n");
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].place.line, 2);
        assert_eq!(node.unwrap().get("b").unwrap().text(), Some("3"));
    }
}
