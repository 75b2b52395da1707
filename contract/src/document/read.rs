//! From the tree of nodes into the raw types: a serde data format that goes on after a mistake.
//!
//! A field that cannot be read is recorded and left empty ([`Given`](super::raw::Given)); an unknown field is recorded
//! and passed over. No message quotes a value, because any value may be a secret that stands in the wrong place.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::outline::{Content, Node};
use super::problems::{Checked, Path, Problems, Reported};
use super::scalar::Plain;
use crate::refusal::Reason;

/// Reads the whole document. Fails only when it is not even a mapping.
pub(super) fn read<T: DeserializeOwned>(root: &Node, problems: &Problems<'_>) -> Checked<T> {
    let reader = Reader { node: root, path: &Path::Root, problems };
    T::deserialize(reader).map_err(|error| reader.settle(error))
}

/// What stops the reading of one value.
#[derive(Debug)]
pub(super) enum Error {
    /// It was recorded with its place.
    Reported(Reported),
    /// A type refused what it was given; recorded by the reader of that value.
    Unreported(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported(_) => f.write_str("refused"),
            Self::Unreported(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Unreported(message.to_string())
    }
}

/// One node as a serde value.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    problems: &'a Problems<'a>,
}

impl Reader<'_> {
    /// What stands at the node, in words.
    fn found(&self) -> &'static str {
        match &self.node.content {
            Content::Plain(Plain::Null) => "nothing",
            Content::Plain(Plain::Bool(_)) => "a truth value",
            Content::Plain(Plain::Number(number)) if number.is_f64() => "a number with a fraction",
            Content::Plain(Plain::Number(_)) => "a whole number",
            Content::Plain(Plain::Unclear(why)) => why,
            Content::Plain(Plain::Text) | Content::Text(_) => "a text",
            Content::List(_) => "a list",
            Content::Map(_) => "a mapping",
        }
    }

    /// The last name of the path.
    fn name(&self) -> &str {
        match self.path {
            Path::Key(_, key) => key,
            Path::Index(..) | Path::Root => "value",
        }
    }

    fn wrong_type(&self, expected: &str, remedy: String) -> Error {
        let message = format!("{} stands here where {expected} is expected", self.found());
        Error::Reported(self.problems.refuse(Reason::WrongType, self.path, message, remedy))
    }

    fn no_text(&self) -> Error {
        let remedy = match &self.node.content {
            Content::Plain(Plain::Null) => format!("give `{}` a value, or take the field out", self.name()),
            Content::List(_) | Content::Map(_) => format!("write one text: `{}: …`", self.name()),
            Content::Plain(_) | Content::Text(_) => {
                format!("YAML reads this as another kind of value: write it in quotes, `{}: \"…\"`", self.name())
            }
        };
        self.wrong_type("a text", remedy)
    }

    /// The proof for an error, which is recorded here if it was not before.
    fn settle(&self, error: Error) -> Reported {
        match error {
            Error::Reported(reported) => reported,
            Error::Unreported(_) => {
                let message = format!("{} stands here, which is not what `{}` holds", self.found(), self.name());
                self.problems.refuse(Reason::WrongType, self.path, message, "compare it with the JSON Schema")
            }
        }
    }

    /// The result of a visitor, with its error recorded.
    fn settled<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| Error::Reported(self.settle(error)))
    }

    fn no_mapping(&self) -> Error {
        let remedy = match (self.path, &self.node.content) {
            (Path::Root, _) => "write `name: value` lines".to_owned(),
            (_, Content::Plain(Plain::Null)) => {
                let name = self.name();
                format!("write `name: value` lines, indented below `{name}:`; write `{name}: {{}}` if none is meant")
            }
            _ => format!("write `name: value` lines, indented below `{}:`", self.name()),
        };
        self.wrong_type("a mapping", remedy)
    }

    fn fields<'de, V: Visitor<'de>>(
        &self,
        visitor: V,
        known: Option<&'static [&'static str]>,
    ) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Map(fields) => {
                self.settled(visitor.visit_map(Fields { of: *self, fields: fields.iter(), known, value: None }))
            }
            _ => Err(self.no_mapping()),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Plain(Plain::Null) => self.settled(visitor.visit_unit()),
            Content::Plain(Plain::Bool(value)) => self.settled(visitor.visit_bool(*value)),
            Content::Plain(Plain::Number(number)) => {
                self.settled(match (number.as_i64(), number.as_u64(), number.as_f64()) {
                    (Some(number), ..) => visitor.visit_i64(number),
                    (_, Some(number), _) => visitor.visit_u64(number),
                    (.., number) => visitor.visit_f64(number.unwrap_or_default()),
                })
            }
            Content::Plain(Plain::Unclear(_)) => {
                Err(self.wrong_type("a clear value", "write it in quotes, or as a plain decimal number".into()))
            }
            Content::Plain(Plain::Text) => self.settled(visitor.visit_str("")),
            Content::Text(text) => self.settled(visitor.visit_str(text)),
            Content::List(_) => self.deserialize_seq(visitor),
            Content::Map(_) => self.fields(visitor, None),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.settled(visitor.visit_some(self))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Text(text) => self.settled(visitor.visit_str(text)),
            _ => Err(self.no_text()),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_string(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Plain(Plain::Bool(value)) => self.settled(visitor.visit_bool(*value)),
            _ => Err(self.wrong_type("true or false", "write true or false, without quotes".into())),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Plain(Plain::Number(number)) if number.is_i64() => {
                self.settled(visitor.visit_i64(number.as_i64().unwrap_or_default()))
            }
            _ => Err(self.wrong_type("a whole number", "write a plain decimal number, without quotes".into())),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::List(items) => {
                self.settled(visitor.visit_seq(Items { of: self, items: items.iter().enumerate() }))
            }
            _ => {
                Err(self
                    .wrong_type("a list", format!("write `- item` lines below `{}:`, or `[item, item]`", self.name())))
            }
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.fields(visitor, None)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.fields(visitor, Some(fields))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

/// The items of a list.
struct Items<'a> {
    of: Reader<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        seed.deserialize(Reader { node, path: &self.of.path.index(index), problems: self.of.problems }).map(Some)
    }
}

/// The fields of a mapping. With `known`, all others are refused and passed over.
struct Fields<'a> {
    of: Reader<'a>,
    fields: std::slice::Iter<'a, (String, Node)>,
    known: Option<&'static [&'static str]>,
    value: Option<(&'a str, &'a Node)>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        for (key, node) in self.fields.by_ref() {
            match self.known {
                Some(known) if !known.contains(&key.as_str()) => {
                    let message = format!("`{}` is not a field here", key.escape_debug());
                    let remedy = nearest(key, known.iter().copied());
                    self.of.problems.refuse(Reason::UnknownField, &self.of.path.key(key), message, remedy);
                }
                _ => {
                    self.value = Some((key, node));
                    return seed.deserialize(StrDeserializer::new(key)).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, node)) = self.value.take() else {
            return Err(Error::Unreported("a value was asked for before its key".into()));
        };
        seed.deserialize(Reader { node, path: &self.of.path.key(key), problems: self.of.problems })
    }
}

/// The remedy for an unknown name: the known one that looks most like it, or all of them.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    /// Below this Jaro-Winkler similarity two names have nothing to do with each other.
    const ALIKE: f64 = 0.75;
    let known: Vec<&str> = known.collect();
    let alike = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)));
    match alike {
        Some((similarity, candidate)) if similarity >= ALIKE => format!("did you mean `{candidate}`?"),
        Some(_) => format!("there are: {}", known.join(", ")),
        None => "there are none here: take it out".to_owned(),
    }
}
