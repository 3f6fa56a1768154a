//! YAML and JSON text as a tree that knows the line of every field.
//!
//! A strict decoder that only sees values cannot say where a wrong one stands; this tree answers
//! that after the fact, by path.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value as Json};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// One document of a file: its text and the line it begins on (the first is 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Document<'a> {
    /// Text between two document markers.
    pub text: &'a str,
    /// Line of the file that `text` begins on.
    pub first_line: usize,
}

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Line of the file; that of the key where the value belongs to one.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// A YAML value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Anything but a list or a mapping.
    Scalar(Json),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order of the text, keys unique.
    Map(Vec<(String, Node)>),
}

/// One step down the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// Text that is not YAML, or a key given twice.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Line of the file.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Splits a file at its document markers, so that a broken document does not hide the next one.
/// JSON texts may also follow each other without any marker.
pub fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let mut begin = 0;
    let mut first_line = 1;
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) {
            push_document(&mut found, &text[begin..at], first_line);
            // What follows the marker on its own line belongs to the document (`--- {a: 1}`).
            begin = at + 3;
            first_line = index + 1;
        }
        at += line.len();
    }
    push_document(&mut found, &text[begin..], first_line);
    found
}

/// True for a line that begins with `---` or `...` as a word of its own.
fn is_marker(line: &str) -> bool {
    ["---", "..."].iter().any(|marker| {
        line.strip_prefix(marker)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    })
}

fn push_document<'a>(found: &mut Vec<Document<'a>>, text: &'a str, first_line: usize) {
    if text.lines().all(is_blank) {
        return;
    }
    if text.trim_start().starts_with('{') {
        push_json(found, text, first_line);
    } else {
        found.push(Document { text, first_line });
    }
}

/// True for a line without content: empty, a comment or a directive.
fn is_blank(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim();
    line.is_empty() || line.starts_with('#') || line.starts_with('%')
}

/// Splits JSON objects that follow each other; from the first that is not JSON on (flow YAML, or
/// broken) the rest is one document.
fn push_json<'a>(found: &mut Vec<Document<'a>>, text: &'a str, first_line: usize) {
    let mut begin = 0;
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    let mut line = first_line;
    while begin < text.len() {
        let end = match values.next() {
            Some(Ok(_)) => values.byte_offset(),
            Some(Err(_)) | None => text.len(),
        };
        let piece = &text[begin..end];
        if !piece.lines().all(is_blank) {
            found.push(Document {
                text: piece,
                first_line: line,
            });
        }
        line += piece.matches('\n').count();
        begin = end;
    }
}

/// Parses one document. A key given twice is an error.
pub fn parse(document: Document<'_>) -> Result<Node, SyntaxError> {
    parse_with(document, DuplicateKeyPolicy::Error)
}

/// Parses one document. Of a key given twice the last value holds.
pub fn parse_lenient(document: Document<'_>) -> Result<Node, SyntaxError> {
    parse_with(document, DuplicateKeyPolicy::LastWins)
}

fn parse_with(
    document: Document<'_>,
    duplicate_keys: DuplicateKeyPolicy,
) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! {
        // A file may hold a whole cluster; the depth stays limited (the tree is recursive).
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 1 << 30,
        },
        duplicate_keys: duplicate_keys,
        with_snippet: false,
        leading_zero_numbers_as_strings: true,
    };
    let mut node: Node = serde_saphyr::from_str_with_options(document.text, options)
        .map_err(|error| syntax_error(&error, document))?;
    node.move_down(document.first_line - 1);
    Ok(node)
}

fn syntax_error(error: &serde_saphyr::Error, document: Document<'_>) -> SyntaxError {
    let line = error.location().map_or(1, |at| at.line().max(1)) as usize;
    let message = error.to_string();
    // Its own place counts from the document's begin, its advice is for programmers.
    let message = message.lines().next().unwrap_or_default();
    let message = message
        .split_once(" at line ")
        .map_or(message, |(message, _)| message);
    let message = message
        .split_once(", set ")
        .map_or(message, |(message, _)| message);
    SyntaxError {
        line: line + document.first_line - 1,
        message: message.to_owned(),
    }
}

impl Node {
    /// The value of a key, where this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, node)| node),
            Value::Scalar(_) | Value::List(_) => None,
        }
    }

    /// The text, where this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(value) => value.as_str(),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// True for an empty document or an explicit null.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar(Json::Null))
    }

    /// Line of the field at `path`, or of the nearest thing above it that exists.
    pub fn line_of(&self, path: &[Step]) -> usize {
        let mut node = self;
        for step in path {
            let next = match (step, &node.value) {
                (Step::Key(key), Value::Map(_)) => node.get(key),
                (Step::Index(index), Value::List(items)) => items.get(*index),
                _ => None,
            };
            let Some(next) = next else { break };
            node = next;
        }
        node.line
    }

    /// The same as JSON, without the keys whose value is null: absent and null mean the same in
    /// the Kubernetes API.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Scalar(value) => value.clone(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .filter(|(_, node)| !node.is_null())
                .map(|(key, node)| (key.clone(), node.to_json()))
                .collect(),
        }
    }

    fn move_down(&mut self, lines: usize) {
        self.line += lines;
        match &mut self.value {
            Value::Scalar(_) => {}
            Value::List(items) => items.iter_mut().for_each(|node| node.move_down(lines)),
            Value::Map(entries) => entries
                .iter_mut()
                .for_each(|(_, node)| node.move_down(lines)),
        }
    }
}

/// Writes a path as users know it: `spec.ports[0].port`.
pub fn field(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value, referenced, ..
        } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: referenced.line() as usize,
            value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Json::Null))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Json::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(Json::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // Infinity and NaN have no JSON number: as text they fail where a number is wanted.
        Ok(Value::Scalar(Number::from_f64(value).map_or_else(
            || Json::String(value.to_string()),
            Json::Number,
        )))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::Scalar(
            String::from_utf8_lossy(value).into_owned().into(),
        ))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let mut node: Node = access.next_value()?;
            if key.referenced.line() > 0 {
                node.line = key.referenced.line() as usize;
            }
            entries.push((key.value, node));
        }
        Ok(Value::Map(entries))
    }
}
