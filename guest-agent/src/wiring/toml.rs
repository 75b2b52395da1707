//! TOML files. Comments, order and layout of what is not touched are kept.

use serde_json::Value;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, value};

use super::{Merge, bad_merge};
use crate::error::{Error, Reason, Result};

/// Merges into a TOML document.
pub(crate) fn merge(text: &str, patch: &Merge) -> Result<String> {
    let mut document: DocumentMut = text.parse().map_err(|cause: toml_edit::TomlError| {
        // The text of the error quotes the line, which may hold a secret.
        let line = cause.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Error::new(Reason::FileSyntax, format!("line {line} is not TOML"))
    })?;
    let changed = merge_table(document.as_table_mut(), Style::Block, patch)?;
    Ok(if changed { document.to_string() } else { text.to_owned() })
}

/// How a table is written, which decides how tables inside it can be.
#[derive(Clone, Copy)]
enum Style {
    /// Below its `[header]`.
    Block,
    /// Between braces on one line.
    Inline,
}

fn merge_table(target: &mut dyn TableLike, style: Style, patch: &Merge) -> Result<bool> {
    let mut changed = false;
    for (key, wanted) in patch {
        if wanted.is_null() {
            changed |= target.remove(key).is_some();
            continue;
        }
        let inner_style =
            target.get(key).map_or(style, |item| if item.is_inline_table() { Style::Inline } else { style });
        if let (Some(inner), Value::Object(wanted)) = (target.get_mut(key).and_then(Item::as_table_like_mut), wanted) {
            changed |= merge_table(inner, inner_style, wanted)?;
            continue;
        }
        let mut item = match style {
            Style::Block => to_item(key, wanted)?,
            Style::Inline => Item::Value(to_value(key, wanted)?),
        };
        match target.get_mut(key) {
            Some(current) if same(current, &item) => continue,
            // A table cannot stand where a value did, so it goes to the end.
            Some(current) if current.is_value() != item.is_value() => {
                target.remove(key);
                target.insert(key, item);
            }
            Some(current) => {
                // A comment behind the value stays.
                if let (Some(old), Some(new)) = (current.as_value(), item.as_value_mut()) {
                    *new.decor_mut() = old.decor().clone();
                }
                *current = item;
            }
            None => {
                target.insert(key, item);
            }
        }
        changed = true;
    }
    Ok(changed)
}

fn to_item(key: &str, wanted: &Value) -> Result<Item> {
    let Value::Object(object) = wanted else { return Ok(Item::Value(to_value(key, wanted)?)) };
    let mut table = Table::new();
    // A table with nothing but tables needs no header of its own.
    table.set_implicit(!object.is_empty() && object.values().all(Value::is_object));
    for (key, wanted) in object.iter().filter(|(_, wanted)| !wanted.is_null()) {
        table.insert(key, to_item(key, wanted)?);
    }
    Ok(Item::Table(table))
}

fn to_value(key: &str, wanted: &Value) -> Result<toml_edit::Value> {
    Ok(match wanted {
        Value::Bool(flag) => (*flag).into(),
        Value::String(text) => text.as_str().into(),
        Value::Number(number) => match (number.as_i64(), number.is_f64(), number.as_f64()) {
            (Some(integer), _, _) => integer.into(),
            (None, true, Some(float)) => float.into(),
            _ => return Err(bad_merge(format!("the number of `{key}` is too large for TOML"))),
        },
        Value::Array(list) => {
            let values: Result<Array> = list.iter().map(|element| to_value(key, element)).collect();
            values?.into()
        }
        Value::Object(object) => {
            let mut table = InlineTable::new();
            for (key, wanted) in object.iter().filter(|(_, wanted)| !wanted.is_null()) {
                table.insert(key, to_value(key, wanted)?);
            }
            table.into()
        }
        Value::Null => return Err(bad_merge(format!("`{key}` has a null in a list, which TOML cannot hold"))),
    })
}

/// Whether two items hold the same data, whatever their layout.
fn same(left: &Item, right: &Item) -> bool {
    match (left.as_table_like(), right.as_table_like()) {
        (Some(left), Some(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, item)| right.get(key).is_some_and(|other| same(item, other)))
        }
        (None, None) => match (left.as_value(), right.as_value()) {
            (Some(left), Some(right)) => same_value(left, right),
            _ => left.is_none() && right.is_none(),
        },
        _ => false,
    }
}

fn same_value(left: &toml_edit::Value, right: &toml_edit::Value) -> bool {
    use toml_edit::Value::{Array, Boolean, Float, InlineTable, Integer, String};
    match (left, right) {
        (String(left), String(right)) => left.value() == right.value(),
        (Integer(left), Integer(right)) => left.value() == right.value(),
        (Float(left), Float(right)) => left.value() == right.value(),
        (Boolean(left), Boolean(right)) => left.value() == right.value(),
        (Array(left), Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same_value(left, right))
        }
        (InlineTable(_), InlineTable(_)) => same(&value(left.clone()), &value(right.clone())),
        _ => false,
    }
}
