//! Parameters from query, form and JSON, with pveproxy's quirks.

use serde_json::Value;

use crate::schema::check::{Raw, RawParams};

/// Percent-decodes; `+` stays as it is, as in paths.
pub(crate) fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let pair = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.filter(|_| byte == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Form and query: split on `&` and `;`, then on `=`, of which only the second field is kept.
pub(crate) fn form(text: &str) -> RawParams {
    let mut params = RawParams::new();
    for part in text.split(['&', ';']).filter(|part| !part.is_empty()) {
        let mut fields = part.split('=');
        let key = unescape(&fields.next().unwrap_or_default().replace('+', " "));
        // A bare key is null, which counts as absent.
        let Some(value) = fields.next() else { continue };
        add(&mut params, key, unescape(&value.replace('+', " ")));
    }
    params.remove("_dc");
    params
}

fn add(params: &mut RawParams, key: String, value: String) {
    let joined = match params.remove(&key) {
        None => Raw::One(value),
        Some(Raw::One(first)) => Raw::Many(vec![first, value]),
        Some(Raw::Many(mut values)) => {
            values.push(value);
            Raw::Many(values)
        }
    };
    params.insert(key, joined);
}

/// A JSON body; the error is pveproxy's text.
pub(crate) fn json(body: &[u8], major: u8) -> Result<RawParams, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| {
        format!(
            "malformed JSON string, neither tag, array, object, number, string or atom, at character offset {} \
             (before \"(end of string)\") at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line {}.\n",
            body.len(),
            if major >= 9 { 934 } else { 917 }
        )
    })?;
    let Value::Object(fields) = value else {
        return Err("Not a HASH reference at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line 945.\n".to_owned());
    };
    Ok(fields.into_iter().filter_map(|(key, value)| Some((key, raw(value)?))).collect())
}

fn raw(value: Value) -> Option<Raw> {
    match value {
        Value::Null => None,
        Value::Array(items) => Some(Raw::Many(items.into_iter().filter_map(scalar).collect())),
        other => scalar(other).map(Raw::One),
    }
}

fn scalar(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(true) => Some("1".to_owned()),
        Value::Bool(false) => Some("0".to_owned()),
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Option<Raw> {
        Some(Raw::One(text.to_owned()))
    }

    #[test]
    fn a_raw_equals_sign_truncates_and_a_semicolon_splits() {
        let params = form("net0=name=eth0,bridge=vmbr0&a=1;b=2");
        assert_eq!(params.get("net0").cloned(), one("name"));
        assert_eq!(params.get("a").cloned(), one("1"));
        assert_eq!(params.get("b").cloned(), one("2"));
    }

    #[test]
    fn an_empty_value_is_a_string_and_a_bare_key_is_absent() {
        let params = form("a=&b&_dc=1");
        assert_eq!(params.get("a").cloned(), one(""));
        assert!(!params.contains_key("b") && !params.contains_key("_dc"));
    }

    #[test]
    fn plus_and_percent_are_decoded_and_repeated_keys_become_a_list() {
        let params = form("t=a+b%2Bc&k=1&k=2");
        assert_eq!(params.get("t").cloned(), one("a b+c"));
        assert_eq!(params.get("k").cloned(), Some(Raw::Many(vec!["1".to_owned(), "2".to_owned()])));
    }

    #[test]
    fn json_booleans_are_digits_and_null_is_absent() {
        let params = json(br#"{"a":true,"b":null,"c":5,"d":["x","y"]}"#, 9).unwrap_or_default();
        assert_eq!(params.get("a").cloned(), one("1"));
        assert!(!params.contains_key("b"));
        assert_eq!(params.get("c").cloned(), one("5"));
        assert_eq!(params.get("d").cloned(), Some(Raw::Many(vec!["x".to_owned(), "y".to_owned()])));
        assert!(json(b"{\"poolid\":", 9).is_err_and(|text| text.contains("character offset 10")));
    }
}
