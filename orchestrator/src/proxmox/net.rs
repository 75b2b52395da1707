//! `netN` property strings of containers and virtual machines (pve-api 7 and 8).
//!
//! Proxmox replaces the whole string on each write and makes up a new MAC when none is given, so a change is always read,
//! change, write, and keys that we do not know stay.

use std::collections::BTreeMap;
use std::fmt;

use contract::ids::{BridgeName, Ipv4Cidr, Mac, Vlan};
use contract::manifest::GuestKind;

/// A text that is not an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{got}` is not a Proxmox network interface: {why}")]
pub struct InvalidNet {
    /// What was given, shortened to 200 characters.
    pub got: String,
    /// What is wrong.
    pub why: String,
}

/// How an interface gets its IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// From a DHCP server.
    Dhcp,
    /// This one.
    Static {
        /// Address and prefix length.
        address: Ipv4Cidr,
        /// Default gateway.
        gateway: Option<std::net::Ipv4Addr>,
    },
    /// Proxmox does not say.
    Unset,
}

/// One interface. Equality is that of meaning: order of keys, case of the MAC and spelled-out defaults do not count.
#[derive(Debug, Clone)]
pub struct Net {
    kind: GuestKind,
    /// `name` of a container's interface, `model` of a virtual machine's.
    device: String,
    mac: Option<Mac>,
    options: BTreeMap<String, String>,
}

impl Net {
    /// A container's `eth0` on a bridge, with DHCP.
    pub fn container(bridge: &BridgeName) -> Self {
        Self::bare(GuestKind::Lxc, "eth0").with_bridge(bridge).with_addressing(Addressing::Dhcp)
    }

    /// A virtual machine's virtio interface on a bridge.
    pub fn machine(bridge: &BridgeName) -> Self {
        Self::bare(GuestKind::Vm, "virtio").with_bridge(bridge)
    }

    fn bare(kind: GuestKind, device: &str) -> Self {
        Self { kind, device: device.to_owned(), mac: None, options: BTreeMap::new() }
    }

    /// Reads a property string.
    pub fn parse(kind: GuestKind, text: &str) -> Result<Self, InvalidNet> {
        let wrong = |why: String| InvalidNet { got: text.chars().take(200).collect(), why };
        let mut options = BTreeMap::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let (key, value) = (key.trim(), value.trim());
            if key.is_empty() {
                return Err(wrong("a part has no name".to_owned()));
            }
            if options.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(wrong(format!("`{key}` is given twice")));
            }
        }
        let mac_key;
        let device = match kind {
            GuestKind::Lxc => {
                mac_key = "hwaddr".to_owned();
                options.remove("name").ok_or_else(|| wrong("`name` is missing".to_owned()))?
            }
            GuestKind::Vm => match options.remove("model") {
                Some(model) => {
                    mac_key = "macaddr".to_owned();
                    model
                }
                // The short form `virtio=MAC`.
                None => {
                    let model = options.keys().find(|key| MODELS.contains(&key.as_str())).cloned();
                    mac_key = model.ok_or_else(|| wrong("the model is missing".to_owned()))?;
                    mac_key.clone()
                }
            },
        };
        if device.is_empty() {
            return Err(wrong("name or model is empty".to_owned()));
        }
        let another = options.keys().find(|key| **key != mac_key && MODELS.contains(&key.as_str()));
        if let (GuestKind::Vm, Some(another)) = (kind, another) {
            return Err(wrong(format!("both `{device}` and `{another}` are models")));
        }
        let mac = options.remove(&mac_key).filter(|mac| !mac.is_empty());
        let mac = mac.map(|mac| mac.parse::<Mac>()).transpose().map_err(|error| wrong(error.to_string()))?;
        Ok(Self { kind, device, mac, options })
    }

    /// The MAC, if one is fixed.
    pub fn mac(&self) -> Option<Mac> {
        self.mac
    }

    /// The bridge.
    pub fn bridge(&self) -> Option<&str> {
        self.option("bridge")
    }

    /// The VLAN tag.
    pub fn vlan(&self) -> Option<Vlan> {
        self.option("tag")?.parse::<u16>().ok()?.try_into().ok()
    }

    /// IPv4 of a container; a virtual machine has it in `ipconfigN`.
    pub fn addressing(&self) -> Addressing {
        match self.option("ip") {
            Some("dhcp") => Addressing::Dhcp,
            Some(address) => match address.parse() {
                Ok(address) => {
                    Addressing::Static { address, gateway: self.option("gw").and_then(|gateway| gateway.parse().ok()) }
                }
                Err(_) => Addressing::Unset,
            },
            None => Addressing::Unset,
        }
    }

    /// Whether a fixed IPv4 or IPv6 address stands in it.
    pub fn has_static_address(&self) -> bool {
        let fixed = |key| self.option(key).is_some_and(|value| !matches!(value, "dhcp" | "auto" | "manual" | ""));
        fixed("ip") || fixed("ip6")
    }

    /// Any other key.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// With a MAC.
    #[must_use]
    pub fn with_mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    /// On a bridge.
    #[must_use]
    pub fn with_bridge(self, bridge: &BridgeName) -> Self {
        self.with_option("bridge", Some(bridge.as_str()))
    }

    /// With a VLAN tag, or without.
    #[must_use]
    pub fn with_vlan(self, vlan: Option<Vlan>) -> Self {
        self.with_option("tag", vlan.map(|vlan| vlan.to_string()).as_deref())
    }

    /// With an IPv4 address; on a virtual machine nothing changes, see [`Net::addressing`].
    #[must_use]
    pub fn with_addressing(self, addressing: Addressing) -> Self {
        if self.kind == GuestKind::Vm {
            return self;
        }
        match addressing {
            Addressing::Dhcp => self.with_option("ip", Some("dhcp")).with_option("gw", None),
            Addressing::Unset => self.with_option("ip", None).with_option("gw", None),
            Addressing::Static { address, gateway } => self
                .with_option("ip", Some(&address.to_string()))
                .with_option("gw", gateway.map(|gateway| gateway.to_string()).as_deref()),
        }
    }

    /// With a key, or without. A value with a comma would end the key, so the comma is left out.
    #[must_use]
    pub fn with_option(mut self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.options.insert(key.to_owned(), value.replace(',', "")),
            None => self.options.remove(key),
        };
        self
    }

    /// The keys whose meaning differs, in `ours` and in the other; empty when both mean the same.
    pub fn differences(&self, other: &Net) -> Vec<String> {
        let (ours, theirs) = (self.meaning(), other.meaning());
        let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key)).cloned().collect()
    }

    /// Keys and values without what says nothing: defaults that Proxmox adds (`type=veth`) or that are off.
    fn meaning(&self) -> BTreeMap<String, String> {
        let mut meaning: BTreeMap<String, String> = self
            .options
            .iter()
            .map(|(key, value)| (key.clone(), value.to_lowercase()))
            .map(|(key, value)| match (key.as_str(), value.as_str()) {
                ("firewall" | "link_down" | "host-managed", "yes" | "on" | "true") => (key, "1".to_owned()),
                ("firewall" | "link_down" | "host-managed", "no" | "off" | "false") => (key, "0".to_owned()),
                _ => (key, value),
            })
            .filter(|(key, value)| {
                !matches!(
                    (key.as_str(), value.as_str()),
                    ("type", "veth") | ("firewall" | "link_down" | "host-managed", "0")
                )
            })
            .collect();
        meaning.insert("device".to_owned(), self.device.clone());
        if let Some(mac) = self.mac {
            meaning.insert("mac".to_owned(), mac.to_string());
        }
        meaning
    }
}

/// Models of a virtual machine's interface (recorded schema of 8.4 and 9.2, the same).
const MODELS: &[&str] = &[
    "e1000",
    "e1000-82540em",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "virtio",
    "vmxnet3",
];

impl PartialEq for Net {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.meaning() == other.meaning()
    }
}

impl Eq for Net {}

/// As Proxmox stores it: name or model first, then by name.
impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options: Vec<(&str, String)> =
            self.options.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        match (self.kind, self.mac) {
            (GuestKind::Lxc, mac) => {
                write!(f, "name={}", self.device)?;
                options.extend(mac.map(|mac| ("hwaddr", mac.to_string())));
            }
            // The short form is for models that are known.
            (GuestKind::Vm, mac) if !MODELS.contains(&self.device.as_str()) => {
                write!(f, "model={}", self.device)?;
                options.extend(mac.map(|mac| ("macaddr", mac.to_string())));
            }
            (GuestKind::Vm, Some(mac)) => write!(f, "{}={mac}", self.device)?,
            (GuestKind::Vm, None) => f.write_str(&self.device)?,
        }
        options.sort();
        for (key, value) in options {
            match value.is_empty() {
                true => write!(f, ",{key}")?,
                false => write!(f, ",{key}={value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const RECORDED: &str = "name=eth0,bridge=vmbr0,gw=10.123.0.2,hwaddr=BC:24:11:56:13:D3,ip=10.123.0.90/24,type=veth";

    #[test]
    fn a_recorded_container_interface_comes_back_as_it_was() {
        let net = Net::parse(GuestKind::Lxc, RECORDED).unwrap();
        assert_eq!(net.to_string(), RECORDED);
        assert_eq!(net.mac(), Some("bc:24:11:56:13:d3".parse().unwrap()));
        assert_eq!((net.bridge(), net.vlan()), (Some("vmbr0"), None));
        let expected = Addressing::Static {
            address: "10.123.0.90/24".parse().unwrap(),
            gateway: Some("10.123.0.2".parse().unwrap()),
        };
        assert_eq!(net.addressing(), expected);
        assert!(net.has_static_address());
    }

    #[test]
    fn a_change_keeps_the_mac_and_unknown_keys() {
        let net = Net::parse(GuestKind::Lxc, &format!("{RECORDED},rate=5,new-key=7")).unwrap();
        let changed = net.clone().with_addressing(Addressing::Dhcp).with_vlan(Some(20.try_into().unwrap()));
        assert_eq!(
            changed.to_string(),
            "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:56:13:D3,ip=dhcp,new-key=7,rate=5,tag=20,type=veth"
        );
        assert_eq!(net.differences(&changed), ["gw", "ip", "tag"]);
    }

    #[test]
    fn spelling_does_not_count() {
        let one =
            Net::parse(GuestKind::Lxc, "name=eth0,ip=dhcp,hwaddr=bc:24:11:00:00:01,bridge=vmbr0,firewall=yes").unwrap();
        let two = Net::parse(
            GuestKind::Lxc,
            "firewall=1,bridge=vmbr0,name=eth0,hwaddr=BC:24:11:00:00:01,type=veth,link_down=0,ip=dhcp",
        );
        assert_eq!(one, two.unwrap());
        assert_ne!(one, one.clone().with_mac("BC:24:11:00:00:02".parse().unwrap()));
    }

    #[test]
    fn both_forms_of_a_machine_interface() {
        let short = Net::parse(GuestKind::Vm, "virtio=BC:24:11:F3:57:F3,bridge=vmbr0").unwrap();
        let long = Net::parse(GuestKind::Vm, "model=virtio,macaddr=bc:24:11:f3:57:f3,bridge=vmbr0,firewall=0").unwrap();
        assert_eq!(short, long);
        assert_eq!(short.to_string(), "virtio=BC:24:11:F3:57:F3,bridge=vmbr0");
        assert_eq!(Net::parse(GuestKind::Vm, "e1000,bridge=vmbr0").unwrap().mac(), None);
        // A model that came after this program keeps the form in which it can be read again.
        let later = "model=newnic,bridge=vmbr0,macaddr=BC:24:11:F3:57:F3";
        assert_eq!(Net::parse(GuestKind::Vm, later).unwrap().to_string(), later);
    }

    #[test]
    fn what_is_no_interface_is_refused() {
        for text in ["", "bridge=vmbr0", "name=eth0,name=eth1", "name=eth0,hwaddr=zz", "name=eth0,,ip=dhcp"] {
            assert!(Net::parse(GuestKind::Lxc, text).is_err(), "{text}");
        }
        for text in ["", "bridge=vmbr0", "virtio=nonsense", "model=virtio,e1000", "virtio=BC:24:11:F3:57:F3,e1000"] {
            assert!(Net::parse(GuestKind::Vm, text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_reading_gives_the_same(
            vm: bool, vlan in proptest::option::of(1u16..4095), mac in proptest::option::of(any::<[u8; 5]>()),
            extra in proptest::collection::btree_map("x[a-z]{1,6}", "[a-zA-Z0-9;:./-]{1,10}", 0..3),
        ) {
            let bridge = "vmbr0".parse().unwrap();
            let mut net = if vm { Net::machine(&bridge) } else { Net::container(&bridge) };
            for (key, value) in &extra { net = net.with_option(key, Some(value)); }
            net = net.with_vlan(vlan.map(|vlan| vlan.try_into().unwrap()));
            if let Some([a, b, c, d, e]) = mac { net = net.with_mac(Mac::new([0xBC, a, b, c, d, e]).unwrap()); }
            let kind = if vm { GuestKind::Vm } else { GuestKind::Lxc };
            let read = Net::parse(kind, &net.to_string()).unwrap();
            prop_assert_eq!(&read, &net);
            prop_assert_eq!(read.to_string(), net.to_string());
        }

        #[test]
        fn no_text_panics(text in ".{0,80}", vm: bool) {
            let _ = Net::parse(if vm { GuestKind::Vm } else { GuestKind::Lxc }, &text);
        }
    }
}
