//! Owns: turning nodes into typed values so that one wrong value does not hide the next.
//! Never: YAML text, ranges, relations between keys.
//! Flow: `tree::Node` -> serde -> the shapes in `file`; what fails is reported, left out and read
//! again.
//!
//! serde stops at the first error. Here the failing entry is set aside and the section read once
//! more without it, until it reads; sections are small (a torrent is one), so this costs nothing.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::diagnostic::{any_of, did_you_mean};
use super::tree::{Node, Place, Value};

/// Entries set aside in one section before it is given up.
const SET_ASIDE_MAX: usize = 64;

/// Something wrong with a value or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) place: Place,
    pub(super) key: String,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// What has been found so far, and which nodes are no longer looked at.
#[derive(Default)]
pub(super) struct Reading {
    problems: RefCell<Vec<Problem>>,
    aside: RefCell<HashSet<u32>>,
}

impl Reading {
    pub(super) fn set_aside(&self, node: &Node) {
        self.aside.borrow_mut().insert(node.id);
    }

    pub(super) fn is_aside(&self, node: &Node) -> bool {
        self.aside.borrow().contains(&node.id)
    }

    pub(super) fn report(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// Reads what can be read of a section; `None` where nothing can.
    pub(super) fn section<T: DeserializeOwned>(&self, node: &Node, path: &str) -> Option<T> {
        for _ in 0..SET_ASIDE_MAX {
            match T::deserialize(NodeReader { node, path: path.to_string(), reading: self }) {
                Ok(value) => return Some(value),
                Err(error) => {
                    let id = error.node?;
                    let whole = id == node.id;
                    self.aside.borrow_mut().insert(id);
                    self.report(error.problem);
                    if whole {
                        return None;
                    }
                }
            }
        }
        None
    }
}

#[derive(Debug)]
struct ReadError {
    /// The innermost node that failed.
    node: Option<u32>,
    problem: Problem,
}

impl ReadError {
    fn new(message: String, help: Option<String>) -> ReadError {
        let problem = Problem { place: Place::default(), key: String::new(), message, help };
        ReadError { node: None, problem }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> ReadError {
        ReadError::new(message.to_string(), None)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> ReadError {
        let found = match found {
            Unexpected::Map => "a mapping".to_string(),
            Unexpected::Seq => "a list".to_string(),
            Unexpected::Unit => "nothing".to_string(),
            Unexpected::Str(text) => format!("\"{text}\""),
            other => other.to_string(),
        };
        ReadError::new(format!("expected {expected}, found {found}"), None)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> ReadError {
        match found {
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => {
                ReadError::new(format!("{found} is out of range").replace("integer ", ""), None)
            }
            _ => Self::invalid_type(found, expected),
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> ReadError {
        let help = did_you_mean(variant, expected).map(|name| format!("did you mean \"{name}\"?"));
        ReadError::new(format!("expected {}, found \"{variant}\"", any_of(expected)), help)
    }
}

/// A deserializer over one node.
#[derive(Clone)]
struct NodeReader<'a> {
    node: &'a Node,
    path: String,
    reading: &'a Reading,
}

impl<'a> NodeReader<'a> {
    /// Says where it happened, unless something further inside already did.
    fn placed<T>(&self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        result.map_err(|mut error| {
            if error.node.is_none() {
                error.node = Some(self.node.id);
                error.problem.place = self.node.place;
                error.problem.key.clone_from(&self.path);
            }
            error
        })
    }

    fn child(&self, node: &'a Node, segment: &str) -> NodeReader<'a> {
        let dot = if self.path.is_empty() || segment.starts_with('[') { "" } else { "." };
        NodeReader { node, path: format!("{}{dot}{segment}", self.path), reading: self.reading }
    }

    fn unexpected(&self) -> Unexpected<'a> {
        match &self.node.value {
            Value::Null => Unexpected::Unit,
            Value::Scalar(text) => Unexpected::Str(text),
            Value::Seq(_) => Unexpected::Seq,
            Value::Map(_) => Unexpected::Map,
        }
    }

    fn scalar(&self, expected: &'static str) -> Result<&'a str, ReadError> {
        match self.node.text() {
            Some(text) => Ok(text),
            None => self.placed(Err(de::Error::invalid_type(self.unexpected(), &expected))),
        }
    }

    fn whole_number(&self) -> Result<i128, ReadError> {
        let text = self.scalar("a whole number")?;
        text.replace('_', "").parse().map_err(|_| {
            let error = ReadError::new(format!("expected a whole number, found \"{text}\""), None);
            self.placed::<()>(Err(error)).expect_err("invariant: an error stays one")
        })
    }

    fn entries(&self, entries: &'a [(Node, Node)]) -> EntriesReader<'a> {
        EntriesReader { reader: self.clone(), entries: entries.iter(), value: None }
    }

    fn report_unknown_keys(&self, entries: &'a [(Node, Node)], fields: &'static [&'static str]) {
        for (key, _) in entries {
            let name = key.text().unwrap_or_default();
            if fields.contains(&name) || self.reading.is_aside(key) {
                continue;
            }
            let within =
                if self.path.is_empty() { String::new() } else { format!(" in {}", self.path) };
            let help = match did_you_mean(name, fields) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("the keys here are {}", any_of(fields)),
            };
            self.reading.set_aside(key);
            self.reading.report(Problem {
                place: key.place,
                key: String::new(),
                message: format!("unknown key \"{name}\"{within}"),
                help: Some(help),
            });
        }
    }
}

macro_rules! read_number {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            let number = self.whole_number()?;
            let read = match (u64::try_from(number), i64::try_from(number)) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => Err(ReadError::new(format!("{number} is too large"), None)),
            };
            self.placed(read)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for NodeReader<'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let read = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Scalar(text) => visitor.visit_str(text),
            Value::Seq(items) => visitor
                .visit_seq(ItemsReader { reader: self.clone(), items: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(self.entries(entries)),
        };
        self.placed(read)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let text = self.scalar("true or false")?;
        let read = match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => visitor.visit_bool(true),
            "false" | "no" | "off" => visitor.visit_bool(false),
            _ => Err(ReadError::new(format!("expected true or false, found \"{text}\""), None)),
        };
        self.placed(read)
    }

    read_number! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let read = visitor.visit_str(self.scalar("one value")?);
        self.placed(read)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Seq(_) => self.deserialize_any(visitor),
            _ => self.placed(Err(de::Error::invalid_type(self.unexpected(), &"a list"))),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Map(entries) => {
                self.report_unknown_keys(entries, fields);
                let read = visitor.visit_map(self.entries(entries));
                self.placed(read)
            }
            // `limits:` with nothing under it, all of it commented out.
            Value::Null => visitor.visit_map(self.entries(&[])),
            _ => {
                let help = format!("the keys here are {}", any_of(fields));
                let mut error: ReadError =
                    de::Error::invalid_type(self.unexpected(), &"a mapping of keys and values");
                error.problem.help = Some(help);
                self.placed(Err(error))
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let read = match self.node.text() {
            Some(text) => visitor.visit_enum(NameReader(text)),
            None => Err(de::Error::invalid_type(self.unexpected(), &any_of(variants).as_str())),
        };
        self.placed(read)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct map identifier
        ignored_any
    }
}

struct EntriesReader<'a> {
    reader: NodeReader<'a>,
    entries: std::slice::Iter<'a, (Node, Node)>,
    value: Option<NodeReader<'a>>,
}

impl<'de> MapAccess<'de> for EntriesReader<'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        for (key, value) in self.entries.by_ref() {
            // A key with nothing after it is a key left out.
            let left_out = matches!(value.value, Value::Null);
            if left_out || self.reader.reading.is_aside(key) || self.reader.reading.is_aside(value)
            {
                continue;
            }
            let name = key.text().unwrap_or_default();
            self.value = Some(self.reader.child(value, name));
            return seed.deserialize(name.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let reader = self.value.take().expect("invariant: serde asks for a value after its key");
        let read = seed.deserialize(reader.clone());
        reader.placed(read)
    }
}

struct ItemsReader<'a> {
    reader: NodeReader<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for ItemsReader<'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        for (index, item) in self.items.by_ref() {
            if self.reader.reading.is_aside(item) {
                continue;
            }
            let reader = self.reader.child(item, &format!("[{index}]"));
            let read = seed.deserialize(reader.clone());
            return reader.placed(read).map(Some);
        }
        Ok(None)
    }
}

/// A scalar that names a variant.
struct NameReader<'a>(&'a str);

impl<'de> EnumAccess<'de> for NameReader<'_> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let value = seed.deserialize(self.0.into_deserializer())?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for NameReader<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        Ok(())
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, ReadError> {
        Err(de::Error::custom("a name stands alone here"))
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, ReadError> {
        Err(de::Error::custom("a name stands alone here"))
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ReadError> {
        Err(de::Error::custom("a name stands alone here"))
    }
}
