//! The claim that a guest's configuration can carry: one for each start that may enrol, gone after it was used.
//!
//! A container has it in `env` (from Proxmox VE 9.1), if its template has the variable there already. That is how a
//! template says that its containers start with one: an lxc that cannot pass variables on takes `env` without a word and
//! fails at the start (pve-api 7), which whoever builds the template then sees, and nobody else. A virtual machine has
//! it in its SMBIOS serial number, unless somebody gave it another one.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use contract::enrolment::{CLAIM_PREFIX, CLAIM_VARIABLE};
use contract::manifest::GuestKind;
use contract::secret::Secret;

use super::guest::GuestConfig;

/// What the variable holds when it holds no claim.
const NONE: &str = "none";
/// Fields of `smbios1` that `base64=1` declares to be encoded.
const ENCODED: [&str; 6] = ["version", "serial", "manufacturer", "product", "sku", "family"];

/// A key of the configuration and what it has to be.
pub type Entry = (&'static str, Secret);

/// The configuration's entry with this claim in it, or with none; `None` when it cannot carry one.
pub fn entry(config: &GuestConfig, claim: Option<&Secret>) -> Option<Entry> {
    match config.guest.kind {
        GuestKind::Lxc => {
            let mut found = false;
            let pairs: Vec<String> = environment(config)
                .map(|(key, value)| {
                    found |= key == CLAIM_VARIABLE;
                    let ours = claim.map_or(NONE, Secret::expose);
                    format!("{key}={}", if key == CLAIM_VARIABLE { ours } else { value })
                })
                .collect();
            found.then(|| ("env", Secret::new(pairs.join("\0"))))
        }
        GuestKind::Vm => {
            let serial = claim.map(|claim| BASE64_STANDARD.encode(claim.expose()));
            let mut text = String::new();
            for (key, value) in smbios(config).into_iter().filter(|(key, _)| key != "serial") {
                let _ = write!(text, "{key}={value},");
            }
            if let Some(serial) = serial {
                let _ = write!(text, "serial={serial},");
            }
            let foreign = serial_number(config).is_some_and(|serial| !serial.starts_with(CLAIM_PREFIX));
            (!foreign).then(|| ("smbios1", Secret::new(format!("{text}base64=1"))))
        }
    }
}

/// Whether a claim stands in the configuration.
pub fn is_in(config: &GuestConfig) -> bool {
    match config.guest.kind {
        GuestKind::Lxc => {
            environment(config).any(|(key, value)| key == CLAIM_VARIABLE && value.starts_with(CLAIM_PREFIX))
        }
        GuestKind::Vm => serial_number(config).is_some_and(|serial| serial.starts_with(CLAIM_PREFIX)),
    }
}

fn environment(config: &GuestConfig) -> impl Iterator<Item = (&str, &str)> {
    let text = config.raw.get("env").map(String::as_str).unwrap_or_default();
    text.split('\0').filter_map(|pair| pair.split_once('='))
}

/// Fields of `smbios1`, those that can be encoded in their encoded form, without `base64` itself.
fn smbios(config: &GuestConfig) -> Vec<(String, String)> {
    let text = config.raw.get("smbios1").map(String::as_str).unwrap_or_default();
    let fields: Vec<(&str, &str)> = text.split(',').filter_map(|part| part.split_once('=')).collect();
    let encoded = fields.iter().any(|(key, value)| *key == "base64" && *value == "1");
    fields
        .into_iter()
        .filter(|(key, _)| *key != "base64")
        .map(|(key, value)| {
            let plain = !encoded && ENCODED.contains(&key);
            (key.to_owned(), if plain { BASE64_STANDARD.encode(value) } else { value.to_owned() })
        })
        .collect()
}

fn serial_number(config: &GuestConfig) -> Option<String> {
    let (_, encoded) = smbios(config).into_iter().find(|(key, _)| key == "serial")?;
    // What is no text is somebody's all the same.
    Some(BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::proxmox::GuestRef;

    fn config(kind: GuestKind, key: &str, value: Option<&str>) -> GuestConfig {
        let guest = GuestRef { kind, node: "pve1".parse().unwrap(), vmid: 900.try_into().unwrap() };
        GuestConfig::decode(&guest, value.map_or(json!({}), |value| json!({ key: value }))).unwrap()
    }

    fn claim() -> Secret {
        Secret::new("ctrlable-claim-abc")
    }

    #[test]
    fn a_container_carries_one_where_its_template_has_the_variable() {
        for without in [None, Some("LANG=C"), Some("XCTRLABLE_CLAIM=none")] {
            assert_eq!(entry(&config(GuestKind::Lxc, "env", without), Some(&claim())), None);
        }
        let plain = config(GuestKind::Lxc, "env", Some("LANG=C\0CTRLABLE_CLAIM=none\0A=b=c"));
        let (key, value) = entry(&plain, Some(&claim())).unwrap();
        assert_eq!((key, value.expose()), ("env", "LANG=C\0CTRLABLE_CLAIM=ctrlable-claim-abc\0A=b=c"));
        assert!(!is_in(&plain));
        let carrying = config(GuestKind::Lxc, "env", Some(value.expose()));
        assert!(is_in(&carrying));
        let (_, cleared) = entry(&carrying, None).unwrap();
        assert_eq!(cleared.expose(), "LANG=C\0CTRLABLE_CLAIM=none\0A=b=c");
    }

    #[test]
    fn a_machine_carries_one_as_its_serial_number() {
        let bare = config(GuestKind::Vm, "smbios1", Some("uuid=d4b32af4-45a7-4f8b-bd4e-19ad68b0e33a,product=Hub"));
        let (key, value) = entry(&bare, Some(&claim())).unwrap();
        let wanted = "uuid=d4b32af4-45a7-4f8b-bd4e-19ad68b0e33a,product=SHVi,serial=Y3RybGFibGUtY2xhaW0tYWJj,base64=1";
        assert_eq!((key, value.expose()), ("smbios1", wanted));
        assert!(!is_in(&bare) && is_in(&config(GuestKind::Vm, "smbios1", Some(wanted))));
        let (_, cleared) = entry(&config(GuestKind::Vm, "smbios1", Some(wanted)), None).unwrap();
        assert_eq!(cleared.expose(), "uuid=d4b32af4-45a7-4f8b-bd4e-19ad68b0e33a,product=SHVi,base64=1");
        assert_eq!(entry(&config(GuestKind::Vm, "smbios1", None), None).unwrap().1.expose(), "base64=1");
    }

    #[test]
    fn a_serial_number_of_somebody_elses_stays() {
        for serial in ["serial=A1234", "serial=QTEyMzQ=,base64=1", "serial=/w==,base64=1"] {
            let config = config(GuestKind::Vm, "smbios1", Some(serial));
            assert!(entry(&config, Some(&claim())).is_none() && !is_in(&config), "{serial}");
        }
    }
}
