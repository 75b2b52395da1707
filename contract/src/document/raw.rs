//! Documents as they are written. The comments on the fields become the descriptions in the JSON Schemas.
//!
//! `#[serde(default)]` marks what may be absent. At run time every field may be: validation says what is missing, so
//! that one omission does not hide the other mistakes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::{Map, Value};

/// A field: its value; or nothing, when it is absent or was refused by the reader.
#[derive(Debug)]
pub(super) struct Given<T>(pub(super) Option<T>);

impl<T> Default for Given<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Field<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Field<T> {
            type Value = Given<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_none<E>(self) -> Result<Self::Value, E> {
                Ok(Given(None))
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
                // The reader has recorded the error.
                Ok(Given(T::deserialize(deserializer).ok()))
            }
        }

        deserializer.deserialize_option(Field(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Given<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// `{ secret: name }`: a secret of the site by its name. `ctrlable secrets` gives it a value.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretRef {
    /// Its name.
    #[expect(dead_code, reason = "read by hand, so that no message quotes it; here for the schema")]
    pub(super) secret: Given<String>,
}

/// `{ secret: name }`.
fn secret_ref(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<SecretRef>()
}

/// A text, number or truth value, or `{ secret: name }`.
fn input_value(generator: &mut SchemaGenerator) -> Schema {
    let secret = generator.subschema_for::<SecretRef>();
    json_schema!({ "anyOf": [{ "type": ["string", "number", "boolean"] }, secret] })
}

/// Values by input.
fn input_values(generator: &mut SchemaGenerator) -> Schema {
    let value = input_value(generator);
    json_schema!({ "type": "object", "additionalProperties": value })
}

/// A text, number or truth value.
fn scalar(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "number", "boolean"] })
}

/// What a dealer says about one customer location: `sites/<site>/site.yaml`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Site of Ctrlable Provisioner")]
#[schemars(extend("oneOf" = [{ "required": ["release"] }, { "required": ["channel"] }]))]
pub(super) struct Site {
    /// Name of the site; equal to the name of its directory. Lower-case letters, digits and hyphens, at most 30.
    pub(super) site: Given<String>,
    /// Who looks after it.
    pub(super) dealer: Given<String>,
    /// The release that its instances follow, exactly: `"2026.06"`, in quotes. Either this or `channel`.
    #[serde(default)]
    pub(super) release: Given<String>,
    /// The channel whose release its instances follow, such as `stable`. Either this or `release`.
    #[serde(default)]
    pub(super) channel: Given<String>,
    /// Time zone of every guest, such as `Europe/Berlin`. Absent: left as the template has it.
    #[serde(default)]
    pub(super) timezone: Given<String>,
    /// Where its guests live on Proxmox.
    pub(super) proxmox: Given<Proxmox>,
    /// Services that several instances use.
    #[serde(default)]
    pub(super) shared: Given<Shared>,
    /// Whether guests of ours that the site no longer asks for are backed up and destroyed. Absent: false.
    #[serde(default)]
    pub(super) prune: Given<bool>,
    /// The guests that the site asks for, by name. `{}` for none.
    pub(super) instances: Given<BTreeMap<String, Given<Instance>>>,
}

/// Where guests live on Proxmox.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Proxmox {
    /// Name of the node. Absent: any.
    #[serde(default)]
    pub(super) node: Given<String>,
    /// Storage for disks, such as `local-lvm`.
    pub(super) storage: Given<String>,
    /// Bridge of the first interface, such as `vmbr0`.
    pub(super) bridge: Given<String>,
    /// VLAN tag of the first interface, 1 to 4094. Absent: untagged.
    #[serde(default)]
    #[schemars(range(min = 1, max = 4094))]
    pub(super) vlan: Given<i64>,
    /// Pool that every guest is a member of; the API token's rights hang on it.
    pub(super) pool: Given<String>,
    /// Numbers that guests of this site may have, both ends included: `2000-2099`.
    pub(super) vmids: Given<String>,
}

/// Services that several instances use.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Shared {
    /// The MQTT broker, for inputs with `from: shared.mqtt`.
    #[serde(default)]
    pub(super) mqtt: Given<Mqtt>,
}

/// An MQTT broker.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Mqtt {
    /// Name or IPv4 address.
    pub(super) host: Given<String>,
    /// TCP port. Absent: 1883.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Given<i64>,
    /// Absent: anonymous.
    #[serde(default)]
    pub(super) username: Given<String>,
    /// `{ secret: name }`, never the password itself.
    #[serde(default)]
    #[schemars(schema_with = "secret_ref")]
    pub(super) password: Given<Value>,
}

/// One guest that a site asks for.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Instance {
    /// The template of the release that it is cloned from.
    pub(super) template: Given<String>,
    /// Its number, within `proxmox.vmids`. Absent: the lowest free one.
    #[serde(default)]
    #[schemars(range(min = 100, max = 999_999_999))]
    pub(super) vmid: Given<i64>,
    /// What differs from the template's resources.
    #[serde(default)]
    pub(super) resources: Given<Override>,
    /// Its first interface. Absent: an address by DHCP.
    #[serde(default)]
    pub(super) network: Given<Network>,
    /// Values for the template's inputs, by name.
    #[serde(default)]
    #[schemars(schema_with = "input_values")]
    pub(super) wiring: Given<BTreeMap<String, Value>>,
    /// Whether it starts with its node. Absent: true.
    #[serde(default)]
    pub(super) onboot: Given<bool>,
    /// Whether it is protected against destruction, also by Proxmox itself. Absent: false.
    #[serde(default)]
    pub(super) protect: Given<bool>,
}

/// Resources that an instance asks for instead of its template's.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Override {
    /// Cores.
    #[serde(default)]
    #[schemars(range(min = 1, max = 512))]
    pub(super) cpu: Given<i64>,
    /// Memory in MiB.
    #[serde(default)]
    #[schemars(range(min = 16, max = 4_194_304))]
    pub(super) ram: Given<i64>,
    /// Disk in GiB; never less than the template's.
    #[serde(default)]
    #[schemars(range(min = 1, max = 131_072))]
    pub(super) disk: Given<i64>,
}

/// The first interface of an instance.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    /// `dhcp`, or an IPv4 address with its prefix length: `192.168.20.10/24`.
    pub(super) ip: Given<String>,
    /// Default route; only with a static address.
    #[serde(default)]
    pub(super) gateway: Given<String>,
    /// VLAN tag instead of the site's, 1 to 4094.
    #[serde(default)]
    #[schemars(range(min = 1, max = 4094))]
    pub(super) vlan: Given<i64>,
    /// MAC address. Absent: one derived from site and instance, the same for ever.
    #[serde(default)]
    pub(super) mac: Given<String>,
}

/// Templates that were validated together: `releases/<id>.yaml`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Release manifest of Ctrlable Provisioner")]
pub(super) struct Release {
    /// Its id, such as `"2026.06"`, in quotes; equal to the file's stem.
    pub(super) release: Given<String>,
    /// Tag or full commit of community-scripts/ProxmoxVE. Needed by builders below `ct/` and `vm/`.
    #[serde(default)]
    pub(super) community_scripts_ref: Given<String>,
    /// Oldest Proxmox VE that the templates were validated on, such as `"8.2"`.
    pub(super) proxmox_min_version: Given<String>,
    /// The catalogue, by name.
    #[schemars(extend("minProperties" = 1))]
    pub(super) templates: Given<BTreeMap<String, Given<Template>>>,
}

/// One catalogue entry.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Template {
    /// Container or virtual machine.
    #[schemars(extend("enum" = ["lxc", "vm"]))]
    pub(super) kind: Given<String>,
    /// What builds it, such as `ct/zigbee2mqtt.sh`: below `ct/`, `vm/`, `turnkey/` or `ctrlable/`.
    #[schemars(extend("pattern" = "^(ct|vm|turnkey|ctrlable)/[a-z0-9-]+(\\.sh)?$"))]
    pub(super) builder: Given<String>,
    /// Version of the application, such as `"9.x"`.
    #[serde(default)]
    pub(super) app_version: Given<String>,
    /// Operating system of a container. Absent: the builder's own.
    #[serde(default)]
    pub(super) os: Given<Os>,
    /// What an instance gets unless its site says otherwise. Absent: the builder's own.
    #[serde(default)]
    pub(super) resources: Given<Resources>,
    /// Whether root in the container is an ordinary user of the host. Containers only. Absent: true.
    #[serde(default)]
    pub(super) unprivileged: Given<bool>,
    /// Install Portainer beside Docker. Containers only. Absent: false.
    #[serde(default)]
    pub(super) portainer: Given<bool>,
    /// Version of the Home Assistant operating system. Virtual machines only.
    #[serde(default)]
    pub(super) haos_version: Given<String>,
    /// Whether the appliance is rebranded. Virtual machines only. Absent: false.
    #[serde(default)]
    pub(super) rebrand: Given<bool>,
    /// File name of the base backup that is restored. Virtual machines only.
    #[serde(default)]
    pub(super) base_backup: Given<String>,
    /// Lowest number that a build may give the template.
    #[serde(default)]
    #[schemars(range(min = 100, max = 999_999_999))]
    pub(super) vmid_base: Given<i64>,
    /// How its services are pointed at others.
    #[serde(default)]
    pub(super) wiring: Given<Wiring>,
    /// What must hold for an instance to be healthy.
    #[serde(default)]
    pub(super) probes: Given<Vec<Probe>>,
    /// A prebuilt archive to import instead of building.
    #[serde(default)]
    pub(super) artifact: Given<Artifact>,
}

/// Operating system of a template.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Os {
    /// `debian`, `ubuntu`, …
    pub(super) distro: Given<String>,
    /// Its version in quotes, such as `"12"`.
    pub(super) version: Given<String>,
}

/// Processor, memory and disk.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Resources {
    /// Cores.
    #[schemars(range(min = 1, max = 512))]
    pub(super) cpu: Given<i64>,
    /// Memory in MiB.
    #[schemars(range(min = 16, max = 4_194_304))]
    pub(super) ram: Given<i64>,
    /// Disk in GiB.
    #[schemars(range(min = 1, max = 131_072))]
    pub(super) disk: Given<i64>,
}

/// A prebuilt template.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Artifact {
    /// Where it lies: `https://…` or `http://…`. Only the digest is believed.
    pub(super) url: Given<String>,
    /// SHA-256 of the whole file: 64 lower-case hex digits.
    pub(super) sha256: Given<String>,
}

/// Inputs, and the files and units that they go to.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wiring {
    /// What an instance is given, by name (`[a-z][a-z0-9_]*`).
    #[serde(default)]
    pub(super) inputs: Given<BTreeMap<String, Given<Input>>>,
    /// Files to merge values into, in this order.
    #[serde(default)]
    pub(super) files: Given<Vec<WiredFile>>,
    /// Units to restart when a file changed, in this order, and to watch always.
    #[serde(default)]
    pub(super) units: Given<Vec<Given<String>>>,
}

/// One input of a template.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// What it holds.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["mqtt", "url", "string", "integer", "boolean", "secret"]))]
    pub(super) kind: Given<String>,
    /// Where its value comes from: `shared.mqtt`, for the type `mqtt`.
    #[serde(default)]
    #[schemars(extend("enum" = ["shared.mqtt"]))]
    pub(super) from: Given<String>,
    /// For the type `url`: the schemes that it takes. Absent: any.
    #[serde(default)]
    pub(super) schemes: Given<Vec<Given<String>>>,
    /// Whether an instance without it is refused. Absent: false, and what refers to it is left out.
    #[serde(default)]
    pub(super) required: Given<bool>,
    /// What it is when the site gives nothing.
    #[serde(default)]
    #[schemars(schema_with = "scalar")]
    pub(super) default: Given<Value>,
    /// What a dealer should know about it.
    #[serde(default)]
    pub(super) help: Given<String>,
}

/// One file of a template's wiring.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WiredFile {
    /// Where: an absolute path inside the guest.
    pub(super) path: Given<String>,
    /// How it is merged.
    #[schemars(extend("enum" = ["yaml", "json", "toml", "ini", "env", "conf"]))]
    pub(super) format: Given<String>,
    /// Permission bits in quotes, such as `"0600"`. Absent: kept, or 0600 for a new file or one with a secret.
    #[serde(default)]
    pub(super) mode: Given<String>,
    /// `user` or `user:group`. Absent: kept, or root for a new file.
    #[serde(default)]
    pub(super) owner: Given<String>,
    /// What must stand in the file; `${input}` in a text is replaced, `$${` is the text `${`, `null` removes a key.
    pub(super) merge: Given<Map<String, Value>>,
}

/// One thing that must hold: exactly one of the fields.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct Probe {
    /// This unit is active.
    #[serde(default)]
    pub(super) unit: Given<String>,
    /// A GET answers 200 to 399.
    #[serde(default)]
    pub(super) http: Given<Http>,
    /// A TCP connection is accepted.
    #[serde(default)]
    pub(super) tcp: Given<Tcp>,
}

/// A GET on the guest itself.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    /// `http://127.0.0.1:PORT/PATH`.
    pub(super) url: Given<String>,
}

/// A TCP port of the guest itself.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tcp {
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Given<i64>,
}

/// One list of HQ's public keys: `keys/<n>.yaml`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Key list of Ctrlable Provisioner")]
pub(super) struct KeyList {
    /// Its number, one more than that of the list before; equal to the file's stem. The first file is 2.
    #[schemars(range(min = 2, max = 999_999_999))]
    pub(super) keys: Given<i64>,
    /// How many different keys of the list must have signed what HQ publishes.
    #[schemars(range(min = 1, max = 32))]
    pub(super) threshold: Given<i64>,
    /// When it was made, in UTC: `2026-11-20T12:00:00Z`.
    pub(super) issued: Given<String>,
    /// minisign public keys: the second lines of `.pub` files.
    pub(super) public_keys: Given<Vec<Given<String>>>,
}

/// What channels give and what is revoked: `channels.yaml`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Channels of Ctrlable Provisioner")]
pub(super) struct Channels {
    /// Grows by one with every change. Going back to an older release is a new serial, too.
    #[schemars(range(min = 1, max = 999_999_999))]
    pub(super) serial: Given<i64>,
    /// When it was made, in UTC: `2026-11-20T12:00:00Z`.
    pub(super) issued: Given<String>,
    /// From then on no site changes its release until there is a newer one. Running sites stay as they are.
    pub(super) expires: Given<String>,
    /// The release that each channel gives, by name: `stable: "2026.06"`. `{}` for none.
    pub(super) channels: Given<BTreeMap<String, Given<String>>>,
    /// Releases that nobody may install any more, and why: `"2026.05": "broker does not start"`.
    #[serde(default)]
    pub(super) revoked: Given<BTreeMap<String, Given<String>>>,
}
