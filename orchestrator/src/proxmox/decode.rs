//! Decoders that take numbers as strings and flags in every form that Proxmox has for them (pve-api 2.2).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A whole number given as a number or as a string.
pub fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => text.trim().parse().ok().or_else(|| text.trim().parse().ok().and_then(whole)),
        Value::Bool(flag) => Some(u64::from(*flag)),
        _ => None,
    }
}

/// Only values that a u64 holds exactly: sizes come as floats now and then.
fn whole(number: f64) -> Option<u64> {
    (number >= 0.0 && number < 2f64.powi(53)).then_some(number as u64)
}

/// A flag given as 0, 1, `"0"`, `"1"`, `""`, true or false; absent and null are false.
pub fn flag(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(Value::String(text)) => !matches!(text.as_str(), "" | "0" | "no" | "off" | "false"),
        Some(other) => number(other).is_some_and(|number| number != 0),
    }
}

/// A text; numbers are printed.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(u8::from(*flag).to_string()),
        _ => None,
    }
}

/// For serde: an optional number in either form.
pub fn maybe_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Value>::deserialize(deserializer)?.as_ref().and_then(number))
}

/// For serde: a number in either form; absent or unreadable is 0, as Proxmox shows sizes of what is offline.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(maybe_number(deserializer)?.unwrap_or(0))
}

/// For serde: a flag in any form.
pub fn any_flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(flag(Option::<Value>::deserialize(deserializer)?.as_ref()))
}

/// For serde: an optional text; numbers are printed, the empty string is absent.
pub fn maybe_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(value.as_ref().and_then(text).filter(|text| !text.is_empty()))
}

/// `data` as a list of rows; null is the empty list.
pub fn rows<T: DeserializeOwned>(data: Value) -> Result<Vec<T>, String> {
    if data.is_null() { Ok(Vec::new()) } else { one(data) }
}

/// `data` as one object.
pub fn one<T: DeserializeOwned>(data: Value) -> Result<T, String> {
    serde_json::from_value(data).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_in_every_form() {
        for (value, expected) in [
            (json!(5), Some(5)),
            (json!("5"), Some(5)),
            (json!(5.0), Some(5)),
            (json!("1.5"), Some(1)),
            (json!(-1), None),
            (json!("x"), None),
            (json!(""), None),
            (json!(null), None),
            (json!(1e300), None),
        ] {
            assert_eq!(number(&value), expected, "{value}");
        }
    }

    #[test]
    fn flags_in_every_form() {
        for value in [json!(1), json!("1"), json!(true), json!("yes")] {
            assert!(flag(Some(&value)), "{value}");
        }
        for value in [json!(0), json!("0"), json!(false), json!(""), json!(null)] {
            assert!(!flag(Some(&value)), "{value}");
        }
        assert!(!flag(None));
    }
}
