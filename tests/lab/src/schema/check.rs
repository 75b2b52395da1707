//! Checks parameters against a schema, with Proxmox's texts.

use std::collections::BTreeMap;

use super::{Param, Type, formats, properties};

/// A value as the client sent it, before anybody looked at its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Raw {
    One(String),
    Many(Vec<String>),
}

/// Decoded parameters of a request, those of the path included.
pub(crate) type RawParams = BTreeMap<String, Raw>;

/// Parameters that fit the schema.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(BTreeMap<String, Raw>);

/// What is wrong, by parameter.
pub(crate) type Errors = BTreeMap<String, String>;

impl Params {
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Raw::One(value)) => Some(value),
            _ => None,
        }
    }
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "1")
    }
    pub(crate) fn whole(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|value| value.parse().ok())
    }
    pub(crate) fn vmid(&self, name: &str) -> Option<u32> {
        self.text(name).and_then(|value| value.parse().ok())
    }
    /// The members of a list-like text.
    pub(crate) fn items(&self, name: &str) -> Vec<String> {
        match self.0.get(name) {
            Some(Raw::One(value)) => formats::split_list(value).map(str::to_owned).collect(),
            Some(Raw::Many(values)) => values.clone(),
            None => Vec::new(),
        }
    }
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Raw::One(value) => Some((name.as_str(), value.as_str())),
            Raw::Many(_) => None,
        })
    }
}

/// Checks `raw` against the tables; all errors are collected, as Proxmox does.
pub(crate) fn check(raw: RawParams, tables: &[&'static [Param]], major: u8) -> Result<Params, Errors> {
    let mut errors = Errors::new();
    let mut good = BTreeMap::new();
    for (name, value) in raw {
        let Some(param) = super::find(tables, &name, major) else {
            errors.insert(name, UNKNOWN.to_owned());
            continue;
        };
        if let Some(other) = param.needs {
            good.entry(name.clone()).or_insert_with(|| value.clone());
            if !good.contains_key(other) && !param_present(&good, other) {
                errors.entry(other.to_owned()).or_insert_with(|| format!("missing property required by '{name}'"));
            }
        }
        match value_of(param, value) {
            Ok(value) => {
                let checked = match &value {
                    Raw::One(text) => check_value(param, &name, text, major),
                    Raw::Many(items) => items.iter().try_for_each(|item| check_value(param, &name, item, major)),
                };
                match checked {
                    Ok(()) => drop(good.insert(name, value)),
                    Err(text) => drop(errors.insert(name, text)),
                }
            }
            Err(text) => drop(errors.insert(name, text)),
        }
    }
    // A dependency may be met by a parameter that came later in the alphabet.
    errors.retain(|name, text| !(text.starts_with("missing property required by") && good.contains_key(name)));
    for param in tables.iter().flat_map(|table| table.iter()) {
        let wanted = param.required && param.count.is_none() && param.only_on.is_none_or(|only| only == major);
        if wanted && !good.contains_key(param.name) && !errors.contains_key(param.name) {
            errors.insert(param.name.to_owned(), MISSING.to_owned());
        }
    }
    if errors.is_empty() { Ok(Params(good)) } else { Err(errors) }
}

pub(crate) const UNKNOWN: &str =
    "property is not defined in schema and the schema does not allow additional properties";
pub(crate) const MISSING: &str = "property is missing and it is not optional";

fn param_present(good: &BTreeMap<String, Raw>, name: &str) -> bool {
    good.contains_key(name)
}

/// Arrays for strings: a list format joins them, a list type wants them, anything else refuses them.
fn value_of(param: &Param, value: Raw) -> Result<Raw, String> {
    match (param.kind, value) {
        (Type::List, Raw::One(text)) => Ok(Raw::Many(vec![text])),
        (Type::List, many) => Ok(many),
        (_, Raw::Many(items)) if param.listed => Ok(Raw::One(items.join(","))),
        (kind, Raw::Many(_)) => Err(format!("type check ('{}') failed - got ARRAY", type_name(kind))),
        (_, one) => Ok(one),
    }
}

fn type_name(kind: Type) -> &'static str {
    match kind {
        Type::Text => "string",
        Type::Flag => "boolean",
        Type::Whole => "integer",
        Type::Number => "number",
        Type::List => "array",
    }
}

fn is_whole(value: &str) -> bool {
    let digits = value.strip_prefix(['+', '-']).unwrap_or(value);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn is_number(value: &str) -> bool {
    let digits = value.strip_prefix(['+', '-']).unwrap_or(value);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    plain(whole) && plain(fraction) && !(whole.is_empty() && fraction.is_empty())
}

/// Checks one value; `path` is what nested errors are keyed with.
pub(crate) fn check_value(param: &Param, path: &str, value: &str, major: u8) -> Result<(), String> {
    let typed = match param.kind {
        Type::Text | Type::List => true,
        Type::Flag => matches!(value, "0" | "1"),
        Type::Whole => is_whole(value),
        Type::Number => is_number(value) && !value.is_empty(),
    };
    if !typed {
        return Err(format!("type check ('{}') failed - got '{value}'", type_name(param.kind)));
    }
    if let Some(format) = param.format {
        let checked = if param.listed { formats::split_list(value).try_for_each(format) } else { format(value) };
        checked.map_err(|text| format!("invalid format - {}\n", formats::as_worded(text, major)))?;
    }
    if let Some(table) = param.properties {
        properties::parse_checked(table, path, value, major).map_err(|text| format!("invalid format - {text}"))?;
    }
    if param.pattern.is_some_and(|fits| !fits(value)) {
        return Err("value does not match the regex pattern".to_owned());
    }
    let length = value.chars().count();
    if let Some(most) = param.max_len.filter(|most| length > *most) {
        return Err(format!("value may only be {most} characters long"));
    }
    if let Some(least) = param.min_len.filter(|least| length < *least) {
        return Err(format!("value must be at least {least} characters long"));
    }
    if matches!(param.kind, Type::Whole | Type::Number) {
        let amount: f64 = value.parse().unwrap_or(0.0);
        if let Some(most) = param.maximum.filter(|most| amount > *most as f64) {
            return Err(format!("value must have a maximum value of {most}"));
        }
        if let Some(least) = param.minimum.filter(|least| amount < *least as f64) {
            return Err(format!("value must have a minimum value of {least}"));
        }
    }
    if !param.values.is_empty() && !param.values.contains(&value) {
        return Err(format!("value '{value}' does not have a value in the enumeration '{}'", param.values.join(", ")));
    }
    Ok(())
}

impl Params {
    /// Values that were checked elsewhere: those of the path.
    pub(crate) fn of(values: BTreeMap<String, String>) -> Self {
        Self(values.into_iter().map(|(name, value)| (name, Raw::One(value))).collect())
    }
    pub(crate) fn with(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}
