//! From a site as it was written to a valid [`Site`].

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::hash::Hash;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::problems::{Checked, Path, Problems, Reported};
use super::raw::{self, Given};
use crate::ids::{Hostname, InstanceName, Ipv4Cidr, SecretName, SiteName, VmidRange};
use crate::refusal::Reason;
use crate::site::{
    Address, InputValue, Instance, Mqtt, Network, Onboot, Placement, Protection, Prune, ReleaseChoice,
    ResourceOverride, SecretRef, Shared, Site,
};

/// Most numbers in a site's range: far more than a cluster has guests, and few enough to be listed.
const MOST_VMIDS: u32 = 100_000;

/// IANA's port of MQTT without TLS.
const MQTT_PORT: u16 = 1883;

/// What a resource may be. Proxmox takes 1 to 8192 cores and at least 16 MiB (pve-api 2.4); more than 512 cores, 4 TiB of
/// memory or 128 TiB of disk for one appliance is a mistake in the unit.
pub(super) struct Bounds {
    /// Smallest and largest number.
    pub(super) range: std::ops::RangeInclusive<i64>,
    /// In words, with the unit.
    pub(super) what: &'static str,
}

/// Cores.
pub(super) const CPU: Bounds = Bounds { range: 1..=512, what: "a usable number of cores" };
/// Memory.
pub(super) const RAM: Bounds = Bounds { range: 16..=4_194_304, what: "a usable size of memory in MiB" };
/// Disk.
pub(super) const DISK: Bounds = Bounds { range: 1..=131_072, what: "a usable size of a disk in GiB" };

/// One resource within its bounds.
pub(super) fn resource(problems: &Problems<'_>, at: &Path<'_>, number: i64, bounds: Bounds) -> Checked<u32> {
    problems.number(at, Reason::BadResources, number, bounds.range, bounds.what)
}

/// Checks everything that the site alone can tell.
pub(super) fn validate(problems: &Problems<'_>, raw: raw::Site) -> Checked<Site> {
    let root = Path::Root;
    let site = problems.need_parsed(&root.key("site"), Reason::BadName, raw.site);
    if let Ok(site) = &site {
        agrees_with_directory(problems, &root.key("site"), site);
    }
    let dealer = problems.need_parsed(&root.key("dealer"), Reason::BadName, raw.dealer);
    let release = release(problems, &root, raw.release, raw.channel);
    let timezone = problems.parsed(&root.key("timezone"), Reason::BadTimezone, raw.timezone);
    let proxmox = problems.need(&root.key("proxmox"), raw.proxmox);
    let proxmox = proxmox.and_then(|proxmox| placement(problems, &root.key("proxmox"), proxmox));
    let shared = raw.shared.0.map_or(Ok(Shared::default()), |raw| shared(problems, &root.key("shared"), raw));
    let prune = if raw.prune.0.unwrap_or(false) { Prune::Allow } else { Prune::Refuse };
    let at = root.key("instances");
    let instances = problems.need(&at, raw.instances).and_then(|written| {
        let vmids = proxmox.as_ref().ok().map(|proxmox| proxmox.vmids);
        instances(problems, &at, site.as_ref().ok(), vmids, written)
    });
    Ok(Site {
        site: site?,
        dealer: dealer?,
        release: release?,
        timezone: timezone?,
        proxmox: proxmox?,
        shared: shared?,
        prune,
        instances: instances?,
    })
}

fn agrees_with_directory(problems: &Problems<'_>, at: &Path<'_>, site: &SiteName) {
    let expected = format!("sites/{site}/site.yaml");
    let file = problems.file();
    if file != expected {
        let message = format!("the site is called `{site}`, but the file is {}", file.escape_debug());
        problems.refuse(Reason::NameMismatch, at, message, format!("move the file to {expected}, or correct the name"));
    }
}

fn release(
    problems: &Problems<'_>,
    root: &Path<'_>,
    release: Given<String>,
    channel: Given<String>,
) -> Checked<ReleaseChoice> {
    let refused = problems.refused(&root.key("release")).or_else(|| problems.refused(&root.key("channel")));
    match (release.0, channel.0) {
        (Some(id), None) => problems.parse(&root.key("release"), Reason::BadReleaseId, &id).map(ReleaseChoice::Exact),
        (None, Some(channel)) => {
            // A channel name has the form of a site name; there is no type of its own.
            match channel.parse::<SiteName>() {
                Ok(name) => Ok(ReleaseChoice::Channel(name.to_string())),
                Err(error) => {
                    let message = format!("`{}` is not a channel name", error.got.escape_debug());
                    let remedy = format!("write {}, such as stable", error.expected);
                    Err(problems.refuse(Reason::BadName, &root.key("channel"), message, remedy))
                }
            }
        }
        (Some(_), Some(_)) => {
            let message = "both `release` and `channel` are given";
            Err(problems.refuse(Reason::ReleaseChoice, &root.key("channel"), message, "keep one of the two"))
        }
        (None, None) => Err(refused.unwrap_or_else(|| {
            let message = "neither `release` nor `channel` is given";
            let remedy = "add `release: \"2026.06\"` for one release, or `channel: stable` to follow a channel";
            problems.refuse(Reason::ReleaseChoice, root, message, remedy)
        })),
    }
}

fn placement(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Proxmox) -> Checked<Placement> {
    let node = problems.parsed(&at.key("node"), Reason::BadName, raw.node);
    let storage = problems.need_parsed(&at.key("storage"), Reason::BadName, raw.storage);
    let bridge = problems.need_parsed(&at.key("bridge"), Reason::BadName, raw.bridge);
    let vlan = problems.vlan(&at.key("vlan"), raw.vlan);
    let pool = problems.need_parsed(&at.key("pool"), Reason::BadName, raw.pool);
    let at = at.key("vmids");
    let vmids = problems.need_parsed(&at, Reason::BadVmidRange, raw.vmids).and_then(|range: VmidRange| {
        let length = range.last().get() - range.first().get() + 1;
        if length > MOST_VMIDS {
            let message = format!("the range has {length} numbers; {MOST_VMIDS} are the most it may have");
            return Err(problems.refuse(Reason::BadVmidRange, &at, message, "choose a smaller range for this site"));
        }
        Ok(range)
    });
    Ok(Placement { node: node?, storage: storage?, bridge: bridge?, vlan: vlan?, pool: pool?, vmids: vmids? })
}

fn shared(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Shared) -> Checked<Shared> {
    let mqtt = raw.mqtt.0.map(|raw| mqtt(problems, &at.key("mqtt"), raw)).transpose()?;
    Ok(Shared { mqtt })
}

fn mqtt(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Mqtt) -> Checked<Mqtt> {
    let host_at = at.key("host");
    let host = problems.need(&host_at, raw.host).and_then(|host| {
        if is_host(&host) {
            return Ok(host);
        }
        let message = "this is neither a host name nor an IPv4 address";
        let remedy = "write a name like broker.example.net or an address like 192.168.20.10, without scheme or port";
        Err(problems.refuse(Reason::BadHost, &host_at, message, remedy))
    });
    let port = raw.port.0.map_or(Ok(MQTT_PORT), |port| problems.port(&at.key("port"), port));
    let has_username = raw.username.0.is_some();
    let username = raw.username.0.map(|name| {
        if !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control) {
            return Ok(name);
        }
        let message = "this is not a user name";
        let remedy = "write 1 to 256 characters without control characters, or take the field out";
        Err(problems.refuse(Reason::BadName, &at.key("username"), message, remedy))
    });
    let password = raw.password.0.map(|value| secret(problems, &at.key("password"), &value)).transpose();
    if let Ok(Some(_)) = password
        && !has_username
    {
        let remedy = "add `username:`, or take the password out";
        let message = "a password needs a user name (MQTT 3.1.1, section 3.1.2.9)";
        problems.refuse(Reason::MissingField, &at.key("username"), message, remedy);
    }
    Ok(Mqtt { host: host?, port: port?, username: username.transpose()?, password: password? })
}

/// A host name (RFC 1123, section 2.1) or an IPv4 address. A name whose last label is a number is a broken address.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let name = text.len() <= 253 && text.split('.').all(label) && !numeric_end;
    name || text.parse::<Ipv4Addr>().is_ok_and(|address| !address.is_unspecified() && !address.is_broadcast())
}

/// `{ secret: name }`. Nothing of a wrong value is quoted.
fn secret(problems: &Problems<'_>, at: &Path<'_>, value: &Value) -> Checked<SecretRef> {
    const REMEDY: &str = "write `{ secret: name }` and give it a value with `ctrlable secrets set name`; \
                          what stood here is in git's history now: change it where it is used";
    match value {
        Value::Object(fields) => secret_fields(problems, at, fields),
        Value::String(_) | Value::Number(_) => {
            Err(problems.refuse(Reason::PlainSecret, at, "a secret stands here in plain text", REMEDY))
        }
        Value::Null | Value::Bool(_) | Value::Array(_) => {
            let message = "this is not a reference to a secret";
            Err(problems.refuse(Reason::WrongType, at, message, "write `{ secret: name }`"))
        }
    }
}

fn secret_fields(
    problems: &Problems<'_>,
    at: &Path<'_>,
    fields: &serde_json::Map<String, Value>,
) -> Checked<SecretRef> {
    let mut unknown = None;
    for key in fields.keys().filter(|key| *key != "secret") {
        let message = "only `secret` is a field here";
        unknown = Some(problems.refuse(Reason::UnknownField, &at.key(key), message, "write `{ secret: name }`"));
    }
    if let Some(reported) = unknown {
        return Err(reported);
    }
    let at = at.key("secret");
    match fields.get("secret") {
        Some(Value::String(name)) => match name.parse::<SecretName>() {
            Ok(secret) => Ok(SecretRef { secret }),
            // Not quoted: it may be the secret itself.
            Err(error) => {
                let message = "this is not the name of a secret";
                Err(problems.refuse(Reason::BadName, &at, message, format!("write {}", error.expected)))
            }
        },
        Some(_) => {
            Err(problems.refuse(Reason::WrongType, &at, "this is not the name of a secret", "write a name as a text"))
        }
        None => problems.need(&at, Given(None)),
    }
}

fn instances(
    problems: &Problems<'_>,
    at: &Path<'_>,
    site: Option<&SiteName>,
    vmids: Option<VmidRange>,
    raw: BTreeMap<String, Given<raw::Instance>>,
) -> Checked<BTreeMap<InstanceName, Instance>> {
    let mut taken = Taken::default();
    let mut instances = BTreeMap::new();
    let mut refused = None;
    if let Some(range) = vmids {
        let room = range.last().get() - range.first().get() + 1;
        if raw.len() > room as usize {
            let message = format!("there are {} instances, but {range} has only {room} numbers", raw.len());
            let remedy = "widen `proxmox.vmids`; every instance needs a number of its own";
            refused =
                Some(problems.refuse(Reason::RangeTooSmall, &Path::Root.key("proxmox").key("vmids"), message, remedy));
        }
    }
    for (name, raw) in raw {
        let at = at.key(&name);
        let Given(Some(raw)) = raw else {
            refused = problems.need::<()>(&at, Given(None)).err();
            continue;
        };
        let name = instance_name(problems, &at, site, &name);
        let instance = instance(problems, &at, vmids, raw);
        if let Ok(instance) = &instance {
            taken.claim(problems, &at, instance);
        }
        match (name, instance) {
            (Ok(name), Ok(instance)) => drop(instances.insert(name, instance)),
            (Err(reported), _) | (_, Err(reported)) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(instances), Err)
}

fn instance_name(problems: &Problems<'_>, at: &Path<'_>, site: Option<&SiteName>, name: &str) -> Checked<InstanceName> {
    let name: InstanceName = problems.parse(at, Reason::BadName, name)?;
    if let Some(site) = site
        && Hostname::of(site, &name).is_err()
    {
        let message = format!("the host name `ctrlable-{site}-{name}` is longer than 63 characters");
        return Err(problems.refuse(
            Reason::HostnameTooLong,
            at,
            message,
            "shorten the name of the instance or the site",
        ));
    }
    Ok(name)
}

fn instance(problems: &Problems<'_>, at: &Path<'_>, vmids: Option<VmidRange>, raw: raw::Instance) -> Checked<Instance> {
    let template = problems.need_parsed(&at.key("template"), Reason::BadName, raw.template);
    let vmid_at = at.key("vmid");
    let vmid = problems.vmid(&vmid_at, raw.vmid).and_then(|vmid| match (vmid, vmids) {
        (Some(vmid), Some(range)) if !range.contains(vmid) => {
            let message = format!("{vmid} lies outside the site's range {range}");
            let remedy = "choose a number of `proxmox.vmids`, or take the field out and one is chosen";
            Err(problems.refuse(Reason::VmidOutsideRange, &vmid_at, message, remedy))
        }
        (vmid, _) => Ok(vmid),
    });
    let resources = raw.resources.0.map_or(Ok(ResourceOverride::default()), |raw| {
        let at = at.key("resources");
        let one = |name, given: Given<i64>, bounds| {
            given.0.map(|number| resource(problems, &at.key(name), number, bounds)).transpose()
        };
        let (cpu, ram, disk) = (one("cpu", raw.cpu, CPU), one("ram", raw.ram, RAM), one("disk", raw.disk, DISK));
        Ok(ResourceOverride { cpu: cpu?, ram: ram?, disk: disk? })
    });
    let network = raw.network.0.map_or(Ok(Network::default()), |raw| network(problems, &at.key("network"), raw));
    let wiring = raw.wiring.0.map_or(Ok(BTreeMap::new()), |raw| wiring(problems, &at.key("wiring"), raw));
    let onboot = if raw.onboot.0.unwrap_or(true) { Onboot::Start } else { Onboot::Stay };
    let protect = if raw.protect.0.unwrap_or(false) { Protection::Protected } else { Protection::Unprotected };
    Ok(Instance {
        template: template?,
        vmid: vmid?,
        resources: resources?,
        network: network?,
        wiring: wiring?,
        onboot,
        protect,
    })
}

fn network(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Network) -> Checked<Network> {
    let vlan = problems.vlan(&at.key("vlan"), raw.vlan);
    let mac = problems.parsed(&at.key("mac"), Reason::BadMac, raw.mac);
    let ip_at = at.key("ip");
    let gateway_at = at.key("gateway");
    let address = problems.need(&ip_at, raw.ip).and_then(|ip| {
        if ip == "dhcp" {
            return match raw.gateway.0 {
                None => Ok(Address::Dhcp),
                Some(_) => {
                    let message = "with `ip: dhcp` the gateway comes from the DHCP server";
                    let remedy = "take the gateway out, or give a static address";
                    Err(problems.refuse(Reason::GatewayWithoutAddress, &gateway_at, message, remedy))
                }
            };
        }
        let cidr: Ipv4Cidr = problems.parse(&ip_at, Reason::BadAddress, &ip)?;
        usable(problems, &ip_at, cidr, cidr.address())?;
        let gateway = raw.gateway.0.map(|text| gateway(problems, &gateway_at, cidr, &text)).transpose()?;
        Ok(Address::Static { cidr, gateway })
    });
    Ok(Network { address: address?, vlan: vlan?, mac: mac? })
}

fn gateway(problems: &Problems<'_>, at: &Path<'_>, cidr: Ipv4Cidr, text: &str) -> Checked<Ipv4Addr> {
    let Ok(gateway) = text.parse::<Ipv4Addr>() else {
        let message = format!("`{}` is not a gateway", text.chars().take(80).collect::<String>().escape_debug());
        return Err(problems.refuse(Reason::BadAddress, at, message, "write an IPv4 address without prefix length"));
    };
    if !cidr.contains(gateway) {
        let message = format!("{gateway} does not lie in the network of {cidr}");
        let remedy = "a gateway must be reachable directly: correct it, the address or the prefix length";
        return Err(problems.refuse(Reason::GatewayOutsideNetwork, at, message, remedy));
    }
    if gateway == cidr.address() {
        let message = "the gateway is the instance's own address";
        return Err(problems.refuse(Reason::BadAddress, at, message, "write the address of the router"));
    }
    usable(problems, at, cidr, gateway).map(|()| gateway)
}

/// Refuses what no host can have: the network's own address, its broadcast address, loopback, multicast, 0.0.0.0/8.
fn usable(problems: &Problems<'_>, at: &Path<'_>, cidr: Ipv4Cidr, address: Ipv4Addr) -> Checked<()> {
    let host_bits = u32::MAX.checked_shr(u32::from(cidr.prefix())).unwrap_or(0);
    let host = u32::from(address) & host_bits;
    // RFC 3021: a /31 has no network and broadcast address; a /32 has one address only.
    let what = if cidr.prefix() <= 30 && host == 0 {
        "the network's own address"
    } else if cidr.prefix() <= 30 && host == host_bits {
        "the network's broadcast address"
    } else if address.is_loopback() || address.octets()[0] == 0 || address.octets()[0] >= 224 {
        "a reserved address"
    } else {
        return Ok(());
    };
    Err(problems.refuse(
        Reason::BadAddress,
        at,
        format!("{address} is {what}"),
        "write an address that a host can have",
    ))
}

fn wiring(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: BTreeMap<String, Value>,
) -> Checked<BTreeMap<String, InputValue>> {
    let mut values = BTreeMap::new();
    let mut refused: Option<Reported> = None;
    for (name, value) in raw {
        let at = at.key(&name);
        let checked = match value {
            Value::Object(fields) => secret_fields(problems, &at, &fields).map(InputValue::Secret),
            Value::Null | Value::Array(_) => {
                let message = "an input is a text, a number or a truth value";
                Err(problems.refuse(Reason::WrongType, &at, message, "write one value, or `{ secret: name }`"))
            }
            plain => Ok(InputValue::Plain(plain)),
        };
        match checked {
            Ok(value) => drop(values.insert(name, value)),
            Err(reported) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(values), Err)
}

/// What instances may not have in common, and who has it.
#[derive(Default)]
struct Taken {
    vmids: HashMap<crate::ids::Vmid, String>,
    addresses: HashMap<Ipv4Addr, String>,
    macs: HashMap<crate::ids::Mac, String>,
}

impl Taken {
    fn claim(&mut self, problems: &Problems<'_>, at: &Path<'_>, instance: &Instance) {
        let network = at.key("network");
        if let Some(vmid) = instance.vmid {
            claim(problems, &at.key("vmid"), Reason::DuplicateVmid, &mut self.vmids, vmid, at);
        }
        if let Address::Static { cidr, .. } = instance.network.address {
            let reason = Reason::DuplicateAddress;
            claim(problems, &network.key("ip"), reason, &mut self.addresses, cidr.address(), at);
        }
        if let Some(mac) = instance.network.mac {
            claim(problems, &network.key("mac"), Reason::DuplicateMac, &mut self.macs, mac, at);
        }
    }
}

fn claim<K: Hash + Eq + Copy + Display>(
    problems: &Problems<'_>,
    at: &Path<'_>,
    reason: Reason,
    taken: &mut HashMap<K, String>,
    value: K,
    owner: &Path<'_>,
) {
    if let Some(other) = taken.get(&value) {
        let message = format!("`{other}` has {value} already");
        problems.refuse(reason, at, message, "give each instance its own");
    } else {
        taken.insert(value, owner.to_string());
    }
}
