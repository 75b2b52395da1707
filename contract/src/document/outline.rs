//! One pass over the events of a YAML document: the tree of its nodes, each with its line.

use std::collections::HashSet;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

use super::problems::{self, segment};
use super::scalar::{self, Plain};
use crate::refusal::{Place, Reason, Refusal};

/// How much a document may ask of its reader.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Length of the file.
    pub(super) bytes: usize,
    /// Levels of mappings and lists.
    pub(super) depth: usize,
}

/// Longest key. Real ones have a few dozen characters; paths are made of keys, so their length must be bounded.
const KEY_BYTES: usize = 256;

/// A value and the line where it stands; for a field, the line of its key.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// From 1.
    pub(super) line: usize,
    /// What stands there.
    pub(super) content: Content,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// An unquoted scalar that is not a text.
    Plain(Plain),
    /// A text.
    Text(String),
    /// Items in order.
    List(Vec<Node>),
    /// Fields in order.
    Map(Vec<(String, Node)>),
}

/// Where everything in a file stands.
#[derive(Debug, Clone)]
pub struct Outline {
    file: String,
    root: Node,
}

impl Outline {
    /// The file as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Line of a field such as `instances.zigbee.network.ip`, from 1; of the nearest thing around it when it is absent.
    pub fn line(&self, field: &str) -> usize {
        let mut node = &self.root;
        let mut rest = field;
        while let Some((child, tail)) = descend(node, rest) {
            node = child;
            rest = tail;
        }
        node.line
    }

    /// Where a field stands or should stand.
    pub fn place(&self, field: &str) -> Place {
        Place { file: self.file.clone(), line: self.line(field), field: field.to_owned() }
    }

    /// The whole document.
    pub(super) fn root(&self) -> &Node {
        &self.root
    }

    /// Reads the one document of a file. Mistakes that leave the rest readable are returned beside the outline.
    pub(super) fn read(file: &str, bytes: &[u8], limits: Limits) -> Result<(Self, Vec<Refusal>), Vec<Refusal>> {
        let whole = |reason, message: String, remedy: &str| {
            let place = Place { file: file.to_owned(), line: 0, field: String::new() };
            vec![Refusal { reason, place, message, remedy: remedy.to_owned() }]
        };
        if bytes.len() > limits.bytes {
            let message = format!("the file has {} bytes; {} are the most it may have", bytes.len(), limits.bytes);
            return Err(whole(Reason::TooLarge, message, "split it, or take out what is not needed"));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            let mut refusals = whole(Reason::NotUtf8, "this is not UTF-8 text".into(), "save the file as UTF-8");
            refusals.iter_mut().for_each(|refusal| refusal.place.line = line);
            refusals
        })?;
        let mut builder = Builder { file, limits, open: Vec::new(), root: None, mistakes: Vec::new() };
        for event in Parser::new_from_str(text) {
            let step = match event {
                Ok((event, span)) => builder.event(event, span.start.line()),
                Err(error) => Err(builder.syntax(&error)),
            };
            if let Err(refusal) = step {
                builder.mistakes.push(*refusal);
                return Err(builder.mistakes);
            }
        }
        match builder.root {
            Some(root) => Ok((Self { file: file.to_owned(), root }, builder.mistakes)),
            None => Err(whole(Reason::YamlDocuments, "the file holds no YAML document".into(), "write one")),
        }
    }
}

/// One step of [`Outline::line`]: the child that `path` begins with, and the rest of the path.
fn descend<'n, 'p>(node: &'n Node, path: &'p str) -> Option<(&'n Node, &'p str)> {
    let path = path.strip_prefix('.').unwrap_or(path);
    let after = |name: &str| {
        path.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
    };
    match &node.content {
        Content::Map(fields) => fields.iter().find_map(|(key, child)| Some((child, after(&segment(key))?))),
        Content::List(items) => {
            let (index, _) = path.strip_prefix('[')?.split_once(']')?;
            let child = items.get(index.parse::<usize>().ok()?)?;
            Some((child, after(&format!("[{index}]"))?))
        }
        Content::Plain(_) | Content::Text(_) => None,
    }
}

/// A list or mapping that is not closed yet.
struct Open {
    line: usize,
    items: Items,
}

/// What an open node has so far.
enum Items {
    List(Vec<Node>),
    Map { fields: Vec<(String, Node)>, keys: HashSet<String>, next: Option<Next> },
}

/// A key whose value comes next.
struct Next {
    key: String,
    line: usize,
    /// It stood in this mapping before: its value is read, but not kept.
    repeated: bool,
}

/// The state of the pass.
struct Builder<'a> {
    file: &'a str,
    limits: Limits,
    open: Vec<Open>,
    root: Option<Node>,
    mistakes: Vec<Refusal>,
}

/// Stops the pass.
type Stop = Box<Refusal>;

impl Builder<'_> {
    fn refusal(&self, reason: Reason, line: usize, message: String, remedy: &str) -> Stop {
        let field = self.here();
        let place = Place { file: self.file.to_owned(), line, field };
        Box::new(Refusal { reason, place, message, remedy: remedy.to_owned() })
    }

    /// Dotted path of the value that comes next.
    fn here(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.items {
                Items::List(items) => path.push_str(&format!("[{}]", items.len())),
                Items::Map { next: Some(next), .. } => {
                    let key = segment(&next.key);
                    if !path.is_empty() && !key.starts_with('[') {
                        path.push('.');
                    }
                    path.push_str(&key);
                }
                Items::Map { next: None, .. } => {}
            }
        }
        path
    }

    fn syntax(&self, error: &ScanError) -> Stop {
        let message = format!("this is not YAML: {}", error.info());
        let remedy = "look at this line and the one before: indentation, colons, closing quotes and brackets";
        self.refusal(Reason::YamlSyntax, error.marker().line(), message, remedy)
    }

    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), Stop> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                let message = "a second YAML document begins here".to_owned();
                Err(self.refusal(Reason::YamlDocuments, line, message, "put it into a file of its own"))
            }
            Event::Alias(_) => {
                let message = "an alias (`*name`) stands here".to_owned();
                if self.expects_key() {
                    return Err(self.refusal(Reason::YamlAlias, line, message, "write the name out"));
                }
                self.mistake(Reason::YamlAlias, line, message, "write the value out");
                self.value(line, Content::Plain(Plain::Null))
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.decorations(line, anchor, tag.as_deref());
                let plain = if style == ScalarStyle::Plain { scalar::resolve(&text) } else { Plain::Text };
                match plain {
                    Plain::Text => self.value(line, Content::Text(text.into_owned())),
                    plain if self.expects_key() => self.not_a_key(line, &plain),
                    plain => self.value(line, Content::Plain(plain)),
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.decorations(line, anchor, tag.as_deref());
                self.begin(line, Items::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.decorations(line, anchor, tag.as_deref());
                self.begin(line, Items::Map { fields: Vec::new(), keys: HashSet::new(), next: None })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { line, items: Items::List(items) }) => self.value(line, Content::List(items)),
                Some(Open { line, items: Items::Map { fields, .. } }) => self.value(line, Content::Map(fields)),
                None => Ok(()),
            },
            Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd | Event::Nothing => {
                Ok(())
            }
        }
    }

    /// A mistake that leaves the rest readable.
    fn mistake(&mut self, reason: Reason, line: usize, message: String, remedy: &str) {
        if self.mistakes.len() < problems::MOST {
            let refusal = self.refusal(reason, line, message, remedy);
            self.mistakes.push(*refusal);
        }
    }

    /// Anchors and tags.
    fn decorations(&mut self, line: usize, anchor: usize, tag: Option<&Tag>) {
        if anchor > 0 {
            let message = "an anchor (`&name`) stands here".to_owned();
            self.mistake(Reason::YamlAlias, line, message, "take it out, and write the value wherever it is used");
        }
        if tag.is_some() {
            let message = "a tag (`!name`) stands here".to_owned();
            self.mistake(Reason::YamlTag, line, message, "take it out; use quotes to make a text of a number");
        }
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { items: Items::Map { next: None, .. }, .. }))
    }

    fn not_a_key(&self, line: usize, plain: &Plain) -> Result<(), Stop> {
        let what = match plain {
            Plain::Null => "nothing",
            Plain::Bool(_) => "a truth value",
            Plain::Number(_) | Plain::Unclear(_) | Plain::Text => "a number",
        };
        let message = format!("{what} stands here as the name of a field");
        Err(self.refusal(Reason::WrongType, line, message, "write the name as a text, in quotes if need be"))
    }

    fn begin(&mut self, line: usize, items: Items) -> Result<(), Stop> {
        if self.expects_key() {
            let message = "a list or a mapping stands here as the name of a field".to_owned();
            return Err(self.refusal(Reason::WrongType, line, message, "write the name as a text"));
        }
        if self.open.len() >= self.limits.depth {
            let message = format!("this is nested deeper than {} levels", self.limits.depth);
            return Err(self.refusal(Reason::TooDeep, line, message, "no field of this file lies that deep"));
        }
        self.open.push(Open { line, items });
        Ok(())
    }

    /// A finished value: the next key, the value of the last key, an item, or the document.
    fn value(&mut self, line: usize, content: Content) -> Result<(), Stop> {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(Node { line, content });
            return Ok(());
        };
        match &mut open.items {
            Items::List(items) => items.push(Node { line, content }),
            Items::Map { fields, next, .. } if next.is_some() => {
                if let Some(Next { key, line, repeated: false }) = next.take() {
                    fields.push((key, Node { line, content }));
                }
            }
            Items::Map { keys, next, .. } => {
                // Lists, mappings, aliases and numbers as keys were refused where they began.
                let Content::Text(key) = content else { return Ok(()) };
                if key.len() > KEY_BYTES {
                    let message = format!("the name of this field is longer than {KEY_BYTES} bytes");
                    return Err(self.refusal(Reason::TooLarge, line, message, "shorten it"));
                }
                let repeated = !keys.insert(key.clone());
                let message = repeated.then(|| format!("`{}` stands twice in one mapping", key.escape_debug()));
                *next = Some(Next { key, line, repeated });
                if let Some(message) = message {
                    self.mistake(Reason::DuplicateKey, line, message, "keep one of the two");
                }
            }
        }
        Ok(())
    }
}
