//! YAML files. The text is edited where that is simple enough, so comments stay; else the file is written anew.

use serde_yaml::{Mapping, Value};

use super::{Merge, bad_merge, yaml_edit};
use crate::error::{Error, Reason, Result};

/// Merges into a YAML mapping.
pub(crate) fn merge(text: &str, patch: &Merge) -> Result<String> {
    let mut document = parse(text)?;
    let Value::Mapping(mapping) = &mut document else { return Err(bad_merge("the file is not a YAML mapping")) };
    if !merge_mapping(mapping, patch)? {
        return Ok(text.to_owned());
    }
    // An edit counts only if it reads as the merge of the values does.
    if let Some(edited) = yaml_edit::edit(text, patch)
        && parse(&edited).is_ok_and(|read| read == document)
    {
        return Ok(edited);
    }
    serde_yaml::to_string(&document).map_err(|cause| bad_merge(format!("cannot be written as YAML: {cause}")))
}

fn parse(text: &str) -> Result<Value> {
    // The text of the error may quote the file.
    let value = serde_yaml::from_str(text).map_err(|cause| {
        let place = cause.location().map_or_else(|| "the file".to_owned(), |place| format!("line {}", place.line()));
        Error::new(Reason::FileSyntax, format!("{place} is not YAML"))
    })?;
    Ok(if matches!(value, Value::Null) { Value::Mapping(Mapping::new()) } else { value })
}

fn merge_mapping(target: &mut Mapping, patch: &Merge) -> Result<bool> {
    let mut changed = false;
    for (key, wanted) in patch {
        changed |= match (target.get_mut(key), wanted) {
            (Some(_), serde_json::Value::Null) => target.shift_remove(key).is_some(),
            (None, serde_json::Value::Null) => false,
            (Some(Value::Mapping(inner)), serde_json::Value::Object(wanted)) => merge_mapping(inner, wanted)?,
            (current, wanted) => {
                let wanted = to_yaml(wanted)?;
                match current {
                    Some(current) if *current == wanted => false,
                    Some(current) => {
                        *current = wanted;
                        true
                    }
                    None => {
                        target.insert(Value::String(key.clone()), wanted);
                        true
                    }
                }
            }
        };
    }
    Ok(changed)
}

fn to_yaml(value: &serde_json::Value) -> Result<Value> {
    serde_yaml::to_value(super::without_nulls(value)).map_err(|_| bad_merge("cannot be written as YAML"))
}
