//! The `${…}` references that stand in the strings of a template's wiring.
//!
//! `${coordinator}` is an input, `${mqtt.host}` a part of one, `${site.name}` a [builtin](BUILTINS); `$${` is the text
//! `${`. A `$` before anything else is only a `$`. There is nothing more: no expressions, no defaults, no nesting.
//! Errors never hold a value, because a value may be a secret.

use serde_json::{Map, Value};
use zeroize::Zeroize;

/// References that every template has, whatever its inputs.
pub const BUILTINS: &[&str] = &["site.name", "site.timezone", "instance.name", "instance.hostname"];

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// As it stands; the escape is undone.
    Text(&'a str),
    /// What stands between `${` and `}`.
    Reference(&'a str),
}

/// A text whose references cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// `${` without `}`.
    #[error("a `${{` is not closed")]
    Unclosed,
    /// Not `name` or `name.part`.
    #[error("what stands between `${{` and `}}` is not `name` or `name.part` of lower-case letters, digits and `_`")]
    BadName,
}

impl ReferenceError {
    /// Stable label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unclosed => "unclosed-reference",
            Self::BadName => "bad-reference-name",
        }
    }
}

/// A merge that could not be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A text of the merge is not well formed.
    #[error("at `{at}`: {source}")]
    Reference {
        /// Dotted path in the merge.
        at: String,
        /// Why.
        source: ReferenceError,
    },
    /// A list or an object cannot stand inside a longer text.
    #[error("at `{at}`: `${{{name}}}` is a list or an object and cannot stand inside a longer text")]
    NotScalar {
        /// Dotted path in the merge.
        at: String,
        /// The reference.
        name: String,
    },
}

impl RenderError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Reference { source, .. } => source.reason(),
            Self::NotScalar { .. } => "not-scalar",
        }
    }
}

/// Whether `text` is a name that an input may have: `[a-z][a-z0-9_]*`, at most 40 characters.
pub fn is_name(text: &str) -> bool {
    text.len() <= 40
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Takes a text apart.
pub fn parse(text: &str) -> Result<Vec<Part<'_>>, ReferenceError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(dollar) = rest.find("${") {
        let before = &rest[..dollar];
        if let Some(before) = before.strip_suffix('$') {
            // `$${`: the first `$` is the escape, the rest is text.
            parts.extend((!before.is_empty()).then_some(Part::Text(before)));
            parts.push(Part::Text(&rest[dollar..dollar + 2]));
            rest = &rest[dollar + 2..];
            continue;
        }
        parts.extend((!before.is_empty()).then_some(Part::Text(before)));
        let (name, after) = rest[dollar + 2..].split_once('}').ok_or(ReferenceError::Unclosed)?;
        let (input, part) = name.split_once('.').unwrap_or((name, "x"));
        if !is_name(input) || !is_name(part) {
            return Err(ReferenceError::BadName);
        }
        parts.push(Part::Reference(name));
        rest = after;
    }
    parts.extend((!rest.is_empty()).then_some(Part::Text(rest)));
    Ok(parts)
}

/// A text that parses to itself: every `${` escaped.
pub fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

/// Fills in a merge.
///
/// A string that is nothing but one reference takes the value's own type; inside a longer text, scalars are written
/// out. What refers to something that `lookup` does not know (an optional input that nobody gave) is left out of its
/// object or list, and an object that thereby lost everything is left out as well, except the outermost.
pub fn render(merge: &Value, lookup: &dyn Fn(&str) -> Option<Value>) -> Result<Value, RenderError> {
    let empty = if merge.is_array() { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
    Ok(render_at(merge, "", lookup)?.unwrap_or(empty))
}

/// [`render`] below `at`; nothing when the value is to be left out.
fn render_at(merge: &Value, at: &str, lookup: &dyn Fn(&str) -> Option<Value>) -> Result<Option<Value>, RenderError> {
    match merge {
        Value::String(text) => render_text(text, at, lookup),
        Value::Array(items) => {
            let mut rendered = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                rendered.extend(render_at(item, &format!("{at}[{index}]"), lookup)?);
            }
            Ok(Some(Value::Array(rendered)))
        }
        Value::Object(fields) => {
            let mut rendered = Map::new();
            for (key, field) in fields {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                if let Some(value) = render_at(field, &at, lookup)? {
                    rendered.insert(key.clone(), value);
                }
            }
            let emptied = rendered.is_empty() && !fields.is_empty();
            Ok((!emptied).then_some(Value::Object(rendered)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(Some(merge.clone())),
    }
}

/// [`render`] for one text.
fn render_text(text: &str, at: &str, lookup: &dyn Fn(&str) -> Option<Value>) -> Result<Option<Value>, RenderError> {
    let parts = parse(text).map_err(|source| RenderError::Reference { at: at.to_owned(), source })?;
    if let [Part::Reference(name)] = parts[..] {
        return Ok(lookup(name));
    }
    let mut rendered = String::with_capacity(text.len());
    for part in parts {
        match part {
            Part::Text(text) => rendered.push_str(text),
            Part::Reference(name) => match lookup(name) {
                None => return Ok(None),
                Some(Value::String(mut value)) => {
                    rendered.push_str(&value);
                    // It may be a secret.
                    value.zeroize();
                }
                Some(value @ (Value::Number(_) | Value::Bool(_))) => rendered.push_str(&value.to_string()),
                Some(_) => return Err(RenderError::NotScalar { at: at.to_owned(), name: name.to_owned() }),
            },
        }
    }
    Ok(Some(Value::String(rendered)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn lookup(name: &str) -> Option<Value> {
        match name {
            "mqtt.host" => Some(json!("192.168.20.10")),
            "mqtt.port" => Some(json!(1883)),
            "beta" => Some(json!(true)),
            "tree" => Some(json!({ "a": 1 })),
            "tricky" => Some(json!("${mqtt.host}")),
            _ => None,
        }
    }

    #[test]
    fn a_text_comes_apart() {
        use Part::{Reference, Text};
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("plain $5 $").unwrap(), [Text("plain $5 $")]);
        assert_eq!(
            parse("mqtt://${mqtt.host}:${mqtt.port}").unwrap(),
            [Text("mqtt://"), Reference("mqtt.host"), Text(":"), Reference("mqtt.port")]
        );
        assert_eq!(parse("a$${b}c").unwrap(), [Text("a"), Text("${"), Text("b}c")]);
        assert_eq!(parse("${open"), Err(ReferenceError::Unclosed));
        for bad in ["${}", "${A}", "${a b}", "${.a}", "${a.}", "${a.b.c}", "${1}", "${a${b}}"] {
            assert_eq!(parse(bad), Err(ReferenceError::BadName), "{bad}");
        }
    }

    #[test]
    fn a_lone_reference_keeps_its_type_and_text_is_filled_in() {
        let merge = json!({
            "server": "mqtt://${mqtt.host}:${mqtt.port}",
            "port": "${mqtt.port}",
            "beta": ["${beta}", "is ${beta}"],
            "literal": "$${mqtt.host}",
            "once": "${tricky}!",
            "tree": "${tree}",
            "kept": [null, 1, false, {}],
        });
        let expected = json!({
            "server": "mqtt://192.168.20.10:1883",
            "port": 1883,
            "beta": [true, "is true"],
            "literal": "${mqtt.host}",
            "once": "${mqtt.host}!",
            "tree": { "a": 1 },
            "kept": [null, 1, false, {}],
        });
        assert_eq!(render(&merge, &lookup).unwrap(), expected);
    }

    #[test]
    fn what_refers_to_nothing_is_left_out() {
        let merge = json!({
            "user": "${mqtt.username}",
            "auth": { "user": "${mqtt.username}", "password": "p${mqtt.password}" },
            "list": ["${mqtt.username}", "stays"],
        });
        assert_eq!(render(&merge, &lookup).unwrap(), json!({ "list": ["stays"] }));
        assert_eq!(render(&json!({ "user": "${mqtt.username}" }), &lookup).unwrap(), json!({}));
    }

    #[test]
    fn an_error_says_where_and_never_what() {
        let error = render(&json!({ "a": { "b": ["x ${tree}"] } }), &lookup).unwrap_err();
        assert_eq!(error.reason(), "not-scalar");
        let text = error.to_string();
        assert!(text.contains("a.b[0]") && text.contains("${tree}") && !text.contains('1'), "{text}");
        let error = render(&json!({ "a": "hunter2 ${" }), &lookup).unwrap_err();
        assert_eq!(error.reason(), "unclosed-reference");
        assert!(!error.to_string().contains("hunter2"));
    }

    /// JSON of a few levels with texts that look like references now and then.
    fn tree() -> impl Strategy<Value = Value> {
        let text = prop_oneof!["[a-z$ {}]{0,12}", Just("${mqtt.host}".to_owned()), Just("$${".to_owned())];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,4}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// Every string escaped.
    fn escaped(value: &Value) -> Value {
        match value {
            Value::String(text) => escape(text).into(),
            Value::Array(items) => items.iter().map(escaped).collect(),
            Value::Object(fields) => {
                Value::Object(fields.iter().map(|(key, field)| (key.clone(), escaped(field))).collect())
            }
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>()) {
            let _ = parse(&text);
        }

        #[test]
        fn the_parts_of_a_text_spell_it(text in "[a-z.$ {}]{0,30}") {
            if let Ok(parts) = parse(&text) {
                let mut spelt = String::new();
                for part in parts {
                    match part {
                        Part::Text("${") => spelt.push_str("$${"),
                        Part::Text(text) => spelt.push_str(text),
                        Part::Reference(name) => spelt.push_str(&format!("${{{name}}}")),
                    }
                }
                prop_assert_eq!(spelt, text);
            }
        }

        #[test]
        fn an_escaped_text_renders_to_itself(text in any::<String>()) {
            let merge = json!({ "x": escape(&text) });
            prop_assert_eq!(render(&merge, &|_| None).unwrap(), json!({ "x": text }));
        }

        #[test]
        fn an_escaped_tree_renders_to_itself(merge in tree()) {
            prop_assert_eq!(render(&escaped(&merge), &|_| None).unwrap(), merge);
        }

        #[test]
        fn rendering_never_panics(merge in tree()) {
            let _ = render(&merge, &lookup);
        }

        #[test]
        fn a_value_is_never_read_as_a_reference(value in "[$ {}a-z.]{0,20}") {
            let given = Value::from(value);
            prop_assert_eq!(render(&json!({ "x": "${a}" }), &|_| Some(given.clone())).unwrap(), json!({ "x": given }));
        }
    }
}
