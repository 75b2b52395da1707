//! Values of a configuration: how they are stored, and how the API shows them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::guests::Kind;
use crate::schema::properties::{self, Properties};
use crate::schema::{self, Type, formats};

/// Keys and values as in the file.
pub(crate) type Config = BTreeMap<String, String>;

/// A value in an answer: integers and booleans are numbers, everything else is a string.
pub(crate) fn value_json(kind: Kind, key: &str, value: &str) -> Value {
    if key == "cipassword" {
        return json!("**********");
    }
    match schema::find(&[kind.keys()], key, 9).map(|param| param.kind) {
        Some(Type::Whole | Type::Flag) => value.parse::<i64>().map_or_else(|_| json!(value), |number| json!(number)),
        _ => json!(value),
    }
}

/// The base of a key without its number.
pub(crate) fn base(kind: Kind, key: &str) -> &'static str {
    schema::find(&[kind.keys()], key, 9).map_or("", |param| param.name)
}

pub(crate) fn is_volume_key(kind: Kind, key: &str) -> bool {
    match kind {
        Kind::Lxc => matches!(base(kind, key), "rootfs" | "mp" | "unused"),
        Kind::Qemu => matches!(base(kind, key), "ide" | "sata" | "scsi" | "virtio" | "efidisk0" | "unused"),
    }
}

/// The table of the property string behind a volume key.
pub(crate) fn volume_table(kind: Kind, key: &str) -> &'static [schema::Param] {
    match (kind, base(kind, key)) {
        (Kind::Lxc, "mp") => schema::lxc::MOUNT,
        (Kind::Lxc, _) => schema::lxc::ROOTFS,
        (Kind::Qemu, _) => schema::qemu::DISK,
    }
}

/// Volume id and size in a value such as `local:900/vm-900-disk-0.raw,size=2G`.
pub(crate) fn volume_of(kind: Kind, value: &str) -> Option<(String, Option<u64>)> {
    let (table, key) = match kind {
        Kind::Lxc => (schema::lxc::MOUNT, "volume"),
        Kind::Qemu => (schema::qemu::DISK, "file"),
    };
    let found = properties::parse(table, value).ok()?;
    Some((found.get(key)?.clone(), found.get("size").and_then(|size| formats::parse_size(size))))
}

/// Puts another volume id (and size) into a volume value.
pub(crate) fn with_volume(kind: Kind, key: &str, value: &str, volid: &str, size: Option<u64>) -> String {
    let table = volume_table(kind, key);
    let default = if kind == Kind::Lxc { "volume" } else { "file" };
    let mut found = properties::parse(table, value).unwrap_or_default();
    found.insert(default.to_owned(), volid.to_owned());
    if let Some(size) = size {
        found.insert("size".to_owned(), formats::format_size(size));
    }
    match kind {
        Kind::Lxc => properties::print(table, &found),
        Kind::Qemu => properties::print(table, &found),
    }
}

/// A value as it is stored, once it has been checked.
pub(crate) fn normalise(kind: Kind, key: &str, value: &str, random_mac: impl FnOnce() -> String) -> String {
    match (kind, base(kind, key)) {
        (_, "tags") => tags(value),
        (Kind::Lxc, "description") => value.lines().map(|line| format!("{line}\n")).collect(),
        (Kind::Qemu, "description") => value.trim_end().to_owned(),
        (Kind::Lxc, "net") => lxc_net(value, random_mac),
        (Kind::Qemu, "net") => qemu_net(value, random_mac),
        (Kind::Qemu, "sshkeys") => {
            // Proxmox decodes the keys, ends them with a line feed and encodes them again.
            let mut keys = value.to_owned();
            if !keys.ends_with("%0A") {
                keys.push_str("%0A");
            }
            keys
        }
        (Kind::Qemu, "cipassword") => {
            format!("$5${}", hex::encode(Sha256::digest(value.as_bytes())))
        }
        (Kind::Lxc, "nameserver" | "searchdomain") => formats::split_list(value).collect::<Vec<_>>().join(" "),
        _ => value.to_owned(),
    }
}

/// Lower-cased, without duplicates, sorted, joined with `;`. An empty list is stored as one space.
pub(crate) fn tags(value: &str) -> String {
    let set: BTreeSet<String> = formats::split_list(value).map(str::to_ascii_lowercase).collect();
    if set.is_empty() { " ".to_owned() } else { set.into_iter().collect::<Vec<_>>().join(";") }
}

fn lxc_net(value: &str, random_mac: impl FnOnce() -> String) -> String {
    let mut found = properties::parse(schema::lxc::NET, value).unwrap_or_default();
    found.entry("hwaddr".to_owned()).or_insert_with(random_mac);
    found.insert("type".to_owned(), "veth".to_owned());
    properties::print(schema::lxc::NET, &found)
}

fn qemu_net(value: &str, random_mac: impl FnOnce() -> String) -> String {
    let mut found = properties::parse(schema::qemu::NET, value).unwrap_or_default();
    let model = found.remove("model").unwrap_or_default();
    let mac = found.remove("macaddr").unwrap_or_else(random_mac);
    let rest = properties::print(schema::qemu::NET, &found);
    let comma = if rest.is_empty() { "" } else { "," };
    format!("{model}={mac}{comma}{rest}")
}

/// The bridge of a net value with its VLAN tag.
pub(crate) fn bridge_of(kind: Kind, value: &str) -> Option<(String, Option<String>)> {
    let found = parse_net(kind, value);
    Some((found.get("bridge")?.clone(), found.get("tag").cloned()))
}

pub(crate) fn parse_net(kind: Kind, value: &str) -> Properties {
    let table = if kind == Kind::Lxc { schema::lxc::NET } else { schema::qemu::NET };
    properties::parse(table, value).unwrap_or_default()
}

/// The same net with another MAC.
pub(crate) fn with_mac(kind: Kind, value: &str, mac: String) -> String {
    let mut found = parse_net(kind, value);
    let key = if kind == Kind::Lxc { "hwaddr" } else { "macaddr" };
    found.remove(key);
    match kind {
        Kind::Lxc => lxc_net(&properties::print(schema::lxc::NET, &found), || mac),
        Kind::Qemu => {
            let model = found.remove("model").unwrap_or_default();
            let rest = properties::print(schema::qemu::NET, &found);
            let comma = if rest.is_empty() { "" } else { "," };
            format!("{model}={mac}{comma}{rest}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> String {
        "BC:24:11:00:00:01".to_owned()
    }

    #[test]
    fn tags_are_a_sorted_set_in_lower_case() {
        assert_eq!(tags("Web;prod,web a-1"), "a-1;prod;web");
        assert_eq!(tags(""), " ");
    }

    #[test]
    fn a_container_net_gets_what_it_lacks() {
        assert_eq!(
            normalise(Kind::Lxc, "net0", "ip=dhcp,bridge=vmbr0,name=eth0", mac),
            "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp,type=veth"
        );
        let kept = "name=eth0,hwaddr=bc:24:11:aa:bb:cc,rate=1.50";
        assert_eq!(normalise(Kind::Lxc, "net0", kept, mac), "name=eth0,hwaddr=bc:24:11:aa:bb:cc,rate=1.50,type=veth");
    }

    #[test]
    fn a_machine_net_names_its_model_first() {
        let long = "model=virtio,macaddr=bc:24:11:aa:bb:dd,bridge=vmbr0";
        assert_eq!(normalise(Kind::Qemu, "net0", long, mac), "virtio=bc:24:11:aa:bb:dd,bridge=vmbr0");
        assert_eq!(normalise(Kind::Qemu, "net0", "virtio,bridge=vmbr0", mac), "virtio=BC:24:11:00:00:01,bridge=vmbr0");
        assert_eq!(
            with_mac(Kind::Qemu, "virtio=bc:24:11:aa:bb:dd,bridge=vmbr0", mac()),
            "virtio=BC:24:11:00:00:01,bridge=vmbr0"
        );
    }

    #[test]
    fn descriptions_differ_by_kind() {
        assert_eq!(normalise(Kind::Lxc, "description", "line1\nline2", mac), "line1\nline2\n");
        assert_eq!(normalise(Kind::Qemu, "description", "hello  \n\n", mac), "hello");
    }
}
