//! Edits in the text of a YAML file, so that comments, quoting and order of everything else stay.
//!
//! It knows plain block mappings and gives up on what is rarer; whoever calls it compares the result with the merge
//! of the values. Quoting matters: a YAML 1.1 reader takes `yes` for true, and writing the file anew would quote it.

use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::Value;

use super::Merge;

/// Blanks before what is nested, as every file of the catalogue has it.
const INDENT: usize = 2;

/// A part of the document by its place in the text, in bytes.
enum Node {
    Scalar {
        place: Range<usize>,
        in_line: bool,
    },
    Block {
        entries: Vec<Entry>,
        column: usize,
        end: usize,
    },
    /// Sequences, mappings between braces, aliases, and all that carries an anchor or a tag.
    Other {
        end: usize,
    },
}

struct Entry {
    /// `None` when the key is not a simple one.
    key: Option<String>,
    start: usize,
    value: Node,
}

impl Node {
    fn end(&self) -> usize {
        match self {
            Self::Scalar { place, .. } => place.end,
            Self::Block { end, .. } | Self::Other { end } => *end,
        }
    }
}

/// The text with `patch` in it; `None` when this is beyond a simple edit.
pub(super) fn edit(text: &str, patch: &Merge) -> Option<String> {
    let mut reader = Reader::new(text)?;
    let root = reader.document()?;
    let mut edits = Vec::new();
    match root {
        // Nothing but comments: the values follow them.
        None => edits.push((text.len()..text.len(), block(&Value::Object(patch.clone()), 0)?)),
        Some(Node::Block { entries, column, .. }) => merge(text, &entries, column, patch, &mut edits)?,
        Some(_) => return None,
    }
    let mut edited = text.to_owned();
    // From the end, so that earlier places stay true. The sort is stable: insertions at one place keep their order.
    edits.sort_by_key(|(place, _)| place.start);
    if edits.windows(2).any(|pair| pair[0].0.end > pair[1].0.start) {
        return None;
    }
    for (place, new) in edits.into_iter().rev() {
        // What is put at the end of a line without an ending needs one.
        let glue = place.is_empty() && place.start > 0 && !edited[..place.start].ends_with('\n');
        edited.replace_range(place, &if glue { format!("\n{new}") } else { new });
    }
    Some(edited)
}

type Edits = Vec<(Range<usize>, String)>;

fn merge(text: &str, entries: &[Entry], column: usize, patch: &Merge, edits: &mut Edits) -> Option<()> {
    let mut added = String::new();
    for (key, wanted) in patch {
        let found = entries.iter().find(|entry| entry.key.as_deref() == Some(key));
        match (found, wanted) {
            (None, Value::Null) => {}
            (None, wanted) => added.push_str(&entry_text(key, wanted, column)?),
            (Some(entry), Value::Null) => edits.push((lines(text, entry)?, String::new())),
            (Some(Entry { value: Node::Block { entries, column, .. }, .. }), Value::Object(wanted)) => {
                merge(text, entries, *column, wanted, edits)?;
            }
            (Some(Entry { value: Node::Scalar { place, in_line: true }, .. }), wanted)
                if !wanted.is_object() && !wanted.is_array() =>
            {
                if same(&text[place.clone()], wanted) {
                    continue;
                }
                edits.push((place.clone(), in_line(wanted)?));
            }
            (Some(entry), wanted) => edits.push((lines(text, entry)?, entry_text(key, wanted, column)?)),
        }
    }
    if !added.is_empty() {
        let at = entries.last().map(|entry| line_end(text, entry.value.end()))?;
        edits.push((at..at, added));
    }
    Some(())
}

/// The lines of an entry, which must have them to itself.
fn lines(text: &str, entry: &Entry) -> Option<Range<usize>> {
    let begin = text[..entry.start].rfind('\n').map_or(0, |at| at + 1);
    let alone = text[begin..entry.start].bytes().all(|byte| byte == b' ');
    alone.then(|| begin..line_end(text, entry.value.end().max(entry.start)))
}

/// Behind the line that `at` is in, or behind the line break that it already is behind.
fn line_end(text: &str, at: usize) -> usize {
    if at > 0 && text[..at].ends_with('\n') {
        return at;
    }
    text[at..].find('\n').map_or(text.len(), |end| at + end + 1)
}

fn same(text: &str, wanted: &Value) -> bool {
    serde_yaml::from_str::<serde_yaml::Value>(text).ok() == serde_yaml::to_value(wanted).ok()
}

/// A scalar that fits into a line, and that a reader of YAML 1.1 takes for the same: Home Assistant's and Frigate's are.
fn in_line(value: &Value) -> Option<String> {
    let text = serde_yaml::to_string(value).ok()?;
    let text = text.trim_end_matches('\n');
    let plain = value.as_str() == Some(text);
    if text.contains('\n') || plain && looks_otherwise(text) {
        // JSON's quotes are YAML's too, and hold every character.
        return serde_json::to_string(value).ok();
    }
    Some(text.to_owned())
}

/// Whether YAML 1.1 has another idea of a plain text: a boolean (`on`), or one of its many numbers (`1:30`, `0o7`, `1_0`).
fn looks_otherwise(text: &str) -> bool {
    const BOOLEANS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];
    BOOLEANS.iter().any(|word| text.eq_ignore_ascii_case(word))
        || text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first))
}

fn entry_text(key: &str, value: &Value, column: usize) -> Option<String> {
    let mut object = Merge::new();
    object.insert(key.to_owned(), value.clone());
    block(&Value::Object(object), column)
}

/// A mapping or list as lines that begin at `column`.
fn block(value: &Value, column: usize) -> Option<String> {
    let indent = " ".repeat(column);
    let mut text = String::new();
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
                let key = in_line(&Value::String(key.clone()))?;
                text.push_str(&match value {
                    Value::Object(inner) if inner.values().any(|value| !value.is_null()) => {
                        format!("{indent}{key}:\n{}", block(value, column + INDENT)?)
                    }
                    Value::Object(_) => format!("{indent}{key}: {{}}\n"),
                    Value::Array(list) if !list.is_empty() => {
                        format!("{indent}{key}:\n{}", block(value, column + INDENT)?)
                    }
                    scalar => format!("{indent}{key}: {}\n", in_line(scalar)?),
                });
            }
        }
        Value::Array(list) => {
            for value in list {
                // What is nested in a list is written as JSON, which YAML holds.
                let element = match value {
                    Value::Object(_) | Value::Array(_) => serde_json::to_string(value).ok()?,
                    scalar => in_line(scalar)?,
                };
                text.push_str(&format!("{indent}- {element}\n"));
            }
        }
        _ => return None,
    }
    Some(text)
}

/// Length of a quoted scalar at the beginning of `source`; the parser counts what follows it in the line, too.
fn quoted_length(source: &str) -> Option<usize> {
    let mut letters = source.char_indices();
    let (_, quote) = letters.next()?;
    while let Some((at, letter)) = letters.next() {
        if quote == '"' && letter == '\\' || quote == '\'' && source[at..].starts_with("''") {
            letters.next();
        } else if letter == quote {
            return Some(at + 1);
        }
    }
    None
}

/// Turns the parser's events into nodes.
struct Reader<'a> {
    events: std::vec::IntoIter<(Event<'a>, Span)>,
    /// Byte offset of every character: the parser counts characters.
    offsets: Vec<usize>,
    text: &'a str,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Option<Self> {
        let events: Result<Vec<_>, _> = Parser::new_from_str(text).collect();
        let offsets = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        Some(Self { events: events.ok()?.into_iter(), offsets, text })
    }

    fn byte(&self, character: usize) -> usize {
        self.offsets.get(character).copied().unwrap_or(self.text.len())
    }

    /// The only document; inside it `None` when it is empty.
    fn document(&mut self) -> Option<Option<Node>> {
        loop {
            match self.events.next()? {
                (Event::StreamStart, _) => {}
                (Event::DocumentStart(_), _) => {
                    let (event, span) = self.events.next()?;
                    let empty = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, 0, None) if text.is_empty());
                    return if empty { Some(None) } else { self.node(event, span).map(Some) };
                }
                (Event::StreamEnd, _) => return Some(None),
                _ => return None,
            }
        }
    }

    /// The depth is bounded: the file went through a parser with a limit before.
    fn node(&mut self, event: Event<'a>, span: Span) -> Option<Node> {
        let place = self.byte(span.start.index())..self.byte(span.end.index());
        Some(match event {
            Event::Scalar(_, style, 0, None) => {
                let quoted_or_plain =
                    matches!(style, ScalarStyle::Plain | ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted);
                let source = self.text.get(place.clone())?;
                let length = match style {
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => quoted_length(source)?,
                    ScalarStyle::Plain => source.trim_end().len(),
                    _ => source.len(),
                };
                let (source, place) = (&source[..length], place.start..place.start + length);
                Node::Scalar { in_line: quoted_or_plain && !source.is_empty() && !source.contains('\n'), place }
            }
            Event::MappingStart(anchor, tag) => {
                let in_braces = self.text.get(place.start..)?.starts_with('{');
                let mut entries = Vec::new();
                let mut end = place.end;
                loop {
                    let (event, key_span) = self.events.next()?;
                    if matches!(event, Event::MappingEnd) {
                        if in_braces {
                            end = self.byte(key_span.end.index());
                        }
                        break;
                    }
                    let key = match &event {
                        Event::Scalar(text, _, 0, None) => Some(text.to_string()),
                        _ => None,
                    };
                    let start = self.byte(key_span.start.index());
                    let key_end = self.node(event, key_span)?.end();
                    let (event, value_span) = self.events.next()?;
                    let value = match self.node(event, value_span)? {
                        // The place of a value that is not there is that of whatever comes next.
                        Node::Scalar { place, .. } if place.is_empty() => {
                            Node::Scalar { place: key_end..key_end, in_line: false }
                        }
                        value => value,
                    };
                    end = value.end();
                    entries.push((Entry { key, start, value }, key_span.start.col()));
                }
                match entries.first() {
                    Some((_, column)) if !in_braces && anchor == 0 && tag.is_none() => {
                        let column = *column;
                        Node::Block { entries: entries.into_iter().map(|(entry, _)| entry).collect(), column, end }
                    }
                    _ => Node::Other { end },
                }
            }
            Event::SequenceStart(..) => {
                let in_brackets = self.text.get(place.start..)?.starts_with('[');
                let mut end = place.end;
                loop {
                    let (event, span) = self.events.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        if in_brackets {
                            end = self.byte(span.end.index());
                        }
                        break;
                    }
                    end = self.node(event, span)?.end();
                }
                Node::Other { end }
            }
            Event::Scalar(..) | Event::Alias(_) => Node::Other { end: place.end },
            _ => return None,
        })
    }
}
