//! Property strings: `name=eth0,bridge=vmbr0`, parsed, checked and written back in Proxmox's order.

use std::collections::BTreeMap;

use super::{Param, Type, check};

/// The keys and values of a property string.
pub(crate) type Properties = BTreeMap<String, String>;

/// Parses without looking at the values.
pub(crate) fn parse(table: &'static [Param], value: &str) -> Result<Properties, String> {
    let mut found = Properties::new();
    let mut bare_seen = false;
    for part in value.split(',').filter(|part| !part.trim().is_empty()) {
        match part.split_once('=') {
            Some((key, text)) if !key.is_empty() && !text.is_empty() => {
                if found.contains_key(key) {
                    return Err(format!("duplicate key in comma-separated list property: {key}\n"));
                }
                let mut key = key;
                let mut param = table.iter().find(|param| param.name == key);
                if let Some(alias) = param.and_then(|param| param.alias) {
                    if let Some(key_alias) = param.and_then(|param| param.key_alias) {
                        if found.contains_key(key_alias) {
                            return Err(format!("key alias '{key_alias}' is already defined\n"));
                        }
                        found.insert(key_alias.to_owned(), key.to_owned());
                    }
                    key = alias;
                    param = table.iter().find(|param| param.name == key);
                }
                let text = match param.map(|param| param.kind) {
                    Some(Type::Flag) => boolean(text).unwrap_or(text),
                    _ => text,
                };
                found.insert(key.to_owned(), text.to_owned());
            }
            Some(_) => return Err("missing key in comma-separated list property\n".to_owned()),
            None => {
                let Some(default) = table.iter().find(|param| param.default_key) else {
                    return Err("value without key, but schema does not define a default key\n".to_owned());
                };
                if bare_seen {
                    return Err(format!("duplicate key in comma-separated list property: {}\n", default.name));
                }
                bare_seen = true;
                let part = match default.kind {
                    Type::Flag => boolean(part).unwrap_or(part),
                    _ => part,
                };
                found.insert(default.name.to_owned(), part.to_owned());
            }
        }
    }
    Ok(found)
}

/// Parses and checks; nested errors are listed as `PATH.KEY: text`.
pub(crate) fn parse_checked(table: &'static [Param], path: &str, value: &str, major: u8) -> Result<Properties, String> {
    let found = parse(table, value)?;
    let mut errors = String::new();
    for (key, text) in &found {
        match super::find(&[table], key, major) {
            None => errors.push_str(&format!("{path}.{key}: {}\n", check::UNKNOWN)),
            Some(param) => {
                if let Err(wrong) = check::check_value(param, &format!("{path}.{key}"), text, major) {
                    errors.push_str(&format!("{path}.{key}: {wrong}\n"));
                }
            }
        }
    }
    for param in table.iter().filter(|param| param.required) {
        if !found.contains_key(param.name) {
            errors.push_str(&format!("{path}.{}: {}\n", param.name, check::MISSING));
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(format!("format error\n{errors}")) }
}

/// Writes a property string: the default key bare, then required keys, then the rest, each in alphabetical order.
pub(crate) fn print(table: &'static [Param], properties: &Properties) -> String {
    let rank = |key: &str| match table.iter().find(|param| param.name == key) {
        Some(param) if param.default_key => 0,
        Some(param) if param.required => 1,
        _ => 2,
    };
    let mut keys: Vec<&String> = properties.keys().collect();
    keys.sort_by_key(|key| (rank(key), (*key).clone()));
    let parts: Vec<String> = keys
        .into_iter()
        .map(|key| {
            let value = &properties[key];
            if rank(key) == 0 { value.clone() } else { format!("{key}={value}") }
        })
        .collect();
    parts.join(",")
}

fn boolean(value: &str) -> Option<&'static str> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some("1"),
        "0" | "off" | "no" | "false" => Some("0"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::lxc::NET;
    use super::*;

    #[test]
    fn a_net_is_written_back_with_its_name_first_and_booleans_as_digits() {
        let found = parse_checked(NET, "net0", "type=veth,ip=10.0.0.5/24,firewall=yes,bridge=vmbr0,name=eth0", 9);
        assert_eq!(print(NET, &found.unwrap()), "name=eth0,bridge=vmbr0,firewall=1,ip=10.0.0.5/24,type=veth");
    }

    #[test]
    fn nested_errors_name_their_key() {
        let wrong = parse_checked(NET, "net0", "name=eth0,ip=10.0.0.5", 9).unwrap_err();
        assert_eq!(
            wrong,
            "format error\nnet0.ip: invalid format - value does not look like a valid ipv4 network configuration\n\n"
        );
        let wrong = parse_checked(NET, "net0", "name", 9).unwrap_err();
        assert_eq!(wrong, "value without key, but schema does not define a default key\n");
    }
}
