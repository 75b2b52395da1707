//! The node's network: a namespace with a bridge in it, and a pair of virtual interfaces for each guest.
//!
//! The machine's own network, forwarding, firewall and network managers never see any of it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::str::FromStr;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::place::{NAMESPACES, Place};
use super::tool;
use crate::runtime::{Failure, Interface, Nic, Vmid};

/// What statfs(2) calls the file system of namespaces (`NSFS_MAGIC`, linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subnet {
    network: u32,
    prefix: u8,
}

impl FromStr for Subnet {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = || format!("`{text}` is not an IPv4 subnet between /8 and /28, such as 10.77.0.0/24");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| (8..=28).contains(prefix)).ok_or_else(bad)?;
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(bad());
        }
        Ok(Self { network: address.to_bits() & Self::mask_bits(prefix), prefix })
    }
}

impl Subnet {
    fn mask_bits(prefix: u8) -> u32 {
        u32::MAX << (32 - u32::from(prefix))
    }

    fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    fn host(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network + number)
    }

    /// The node's own address: the first.
    pub(super) fn node(self) -> Ipv4Addr {
        self.host(1)
    }

    /// Netmask, as dnsmasq wants it.
    pub(super) fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Self::mask_bits(self.prefix))
    }

    /// First and last address given out by DHCP: the upper half, so that the lower is free for fixed ones.
    pub(super) fn leases(self) -> (Ipv4Addr, Ipv4Addr) {
        (self.host(self.size() / 2), self.host(self.size() - 2))
    }
}

/// The bridge that guests join, and the network on it.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) bridge: String,
    pub(super) subnet: Subnet,
}

impl Network {
    /// Reads the two settings.
    pub(super) fn new(bridge: &str, subnet: &str) -> Result<Self, Failure> {
        // 15 is the kernel's limit (IFNAMSIZ - 1).
        let sound = !bridge.is_empty()
            && bridge.len() <= 15
            && bridge.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            && bridge.starts_with(|c: char| c.is_ascii_alphabetic());
        if !sound {
            return Err(format!("`{bridge}` is not a bridge name such as vmbr0"));
        }
        Ok(Self { bridge: bridge.to_owned(), subnet: subnet.parse()? })
    }

    /// Makes the namespace and the bridge, or finds them as they are.
    pub(super) fn ensure(&self, place: &Place) -> Result<(), Failure> {
        let namespace = place.namespace();
        make_namespace(&namespace)?;
        let ip = |args: &[&str]| ip_in(&namespace, args);
        ip(&["link", "set", "lo", "up"])?;
        if ip(&["link", "show", "dev", &self.bridge]).is_err() {
            // A fixed, locally administered address: otherwise it changes with the ports, and neighbours' caches lie.
            let mac = place
                .id
                .as_bytes()
                .chunks(2)
                .fold("02:ff".to_owned(), |mac, pair| format!("{mac}:{}", String::from_utf8_lossy(pair)));
            let bridge = ["link", "add", "name", &self.bridge, "address", &mac, "type", "bridge"];
            ip(&[&bridge[..], &["stp_state", "0", "forward_delay", "0"]].concat())?;
        }
        let wanted = format!("{}/{}", self.subnet.node(), self.subnet.prefix);
        let present = addresses(&ip(&["-j", "address", "show", "dev", &self.bridge])?)?;
        let present: Vec<String> =
            present.iter().flat_map(|interface| &interface.inet).map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
        match present.first() {
            None => drop(ip(&["address", "add", &wanted, "dev", &self.bridge])?),
            Some(one) if *one == wanted => {}
            Some(other) => {
                return Err(format!(
                    "{} in {namespace} already has {other}, not {wanted}; run `ctrlable-lab down --state {}` first",
                    self.bridge,
                    place.state().display()
                ));
            }
        }
        ip(&["link", "set", "dev", &self.bridge, "up"])?;
        Ok(())
    }

    /// Makes a guest's namespace with its interfaces, their other ends joined to the bridge.
    pub(super) fn attach(&self, place: &Place, vmid: Vmid, nics: &[Nic]) -> Result<(), Failure> {
        let (node, guest) = (place.namespace(), place.guest_namespace(vmid));
        for nic in nics {
            if nic.bridge != self.bridge {
                return Err(format!("bridge '{}' does not exist", nic.bridge));
            }
        }
        make_namespace(&guest)?;
        for (index, nic) in nics.iter().enumerate() {
            let port = port_name(vmid, index);
            let outer = ["link", "add", "name", &port, "type", "veth"];
            let inner = ["peer", "name", &nic.name, "netns", &guest, "address", &nic.mac];
            ip_in(&node, &[&outer[..], &inner[..]].concat())?;
            ip_in(&node, &["link", "set", "dev", &port, "master", &self.bridge, "up"])?;
        }
        Ok(())
    }
}

/// Removes a guest's interfaces and namespace, if they are there.
pub(super) fn detach(place: &Place, vmid: Vmid) -> Result<(), Failure> {
    // By name first, since a namespace takes its interfaces along only some time after it is deleted, and the next
    // start wants to use the same names.
    let node = place.namespace();
    if is_namespace(&Place::namespace_path(&node)) {
        let prefix = port_prefix(vmid);
        for name in link_names(&ip_in(&node, &["-j", "link", "show", "type", "veth"])?)? {
            let ours = name.strip_prefix(&prefix).is_some_and(|index| index.parse::<usize>().is_ok());
            if ours {
                ip_in(&node, &["link", "delete", "dev", &name])?;
            }
        }
    }
    delete_namespace(&place.guest_namespace(vmid))
}

/// A guest's interfaces as they are now, `lo` first.
pub(super) fn sample(place: &Place, vmid: Vmid) -> Result<Vec<Interface>, Failure> {
    let json = ip_in(&place.guest_namespace(vmid), &["-j", "address", "show"])?;
    let mut interfaces = addresses(&json)?;
    interfaces.sort_by_key(|interface| interface.name != "lo");
    Ok(interfaces)
}

/// Moves the calling thread into the node's namespace.
pub(super) fn enter(place: &Place) -> Result<(), Failure> {
    let path = Place::namespace_path(&place.namespace());
    let say = |error: &dyn std::fmt::Display| format!("cannot enter the network namespace {}: {error}", path.display());
    let namespace = fs::File::open(&path).map_err(|error| say(&error))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|error| say(&error))
}

/// Names of all network namespaces of one lab, the node's own last.
pub(super) fn namespaces(place: &Place) -> Vec<String> {
    let (node, prefix) = (place.namespace(), format!("{}-", place.namespace()));
    let mut names: Vec<String> = fs::read_dir(NAMESPACES)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| *name == node || name.starts_with(&prefix))
        .collect();
    names.sort_by_key(|name| *name == node);
    names
}

/// Deletes a namespace, if it is there.
pub(super) fn delete_namespace(name: &str) -> Result<(), Failure> {
    if !Place::namespace_path(name).exists() {
        return Ok(());
    }
    tool::run("ip", &["netns", "delete", name]).map(drop)
}

fn make_namespace(name: &str) -> Result<(), Failure> {
    let path = Place::namespace_path(name);
    if is_namespace(&path) {
        return Ok(());
    }
    if path.exists() {
        // What an interrupted `ip netns add` leaves: the file without the mount.
        fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    tool::run("ip", &["netns", "add", name]).map(drop)
}

fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(NSFS_MAGIC))
}

/// Runs `ip` for a namespace. Unlike `ip netns exec` this changes nothing for anybody else.
fn ip_in(namespace: &str, args: &[&str]) -> Result<String, Failure> {
    tool::run("ip", &[&["-n", namespace], args].concat())
}

/// The node's end of a guest's interface, named as Proxmox names it.
fn port_name(vmid: Vmid, index: usize) -> String {
    format!("{}{index}", port_prefix(vmid))
}

fn port_prefix(vmid: Vmid) -> String {
    format!("veth{vmid}i")
}

fn parse_list(json: &str) -> Result<Vec<Value>, Failure> {
    let json = if json.trim().is_empty() { "[]" } else { json };
    serde_json::from_str(json).map_err(|error| format!("`ip -j` answered what is not a JSON list: {error}"))
}

fn link_names(json: &str) -> Result<Vec<String>, Failure> {
    Ok(parse_list(json)?.iter().filter_map(|link| Some(link.get("ifname")?.as_str()?.to_owned())).collect())
}

/// Reads the answer of `ip -j address show`.
fn addresses(json: &str) -> Result<Vec<Interface>, Failure> {
    let of_family = |link: &Value, family: &str| -> Vec<(String, u8)> {
        let Some(list) = link.get("addr_info").and_then(Value::as_array) else {
            return Vec::new();
        };
        list.iter()
            .filter(|address| address.get("family").and_then(Value::as_str) == Some(family))
            .filter_map(|address| {
                let prefix = u8::try_from(address.get("prefixlen")?.as_u64()?).ok()?;
                Some((address.get("local")?.as_str()?.to_owned(), prefix))
            })
            .collect()
    };
    let interface = |link: &Value| {
        Some(Interface {
            name: link.get("ifname")?.as_str()?.to_owned(),
            mac: link.get("address")?.as_str()?.to_ascii_lowercase(),
            inet: of_family(link, "inet"),
            inet6: of_family(link, "inet6"),
        })
    };
    Ok(parse_list(json)?.iter().filter_map(interface).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_subnet_gives_the_node_its_first_address_and_dhcp_the_upper_half() {
        let subnet: Subnet = "10.77.0.0/24".parse().unwrap();
        assert_eq!(subnet.node(), Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(subnet.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(subnet.leases(), (Ipv4Addr::new(10, 77, 0, 128), Ipv4Addr::new(10, 77, 0, 254)));
        assert_eq!("10.77.0.9/24".parse::<Subnet>().unwrap(), subnet, "any address of it names it");
        let wide: Subnet = "172.16.0.0/12".parse().unwrap();
        assert_eq!(wide.leases(), (Ipv4Addr::new(172, 24, 0, 0), Ipv4Addr::new(172, 31, 255, 254)));
    }

    #[test]
    fn what_is_no_subnet_is_refused_by_name() {
        for text in
            ["", "10.77.0.0", "10.77.0.0/30", "10.77.0.0/0", "10.77.0.0/x", "fd00::/64", "300.1.1.0/24", "127.0.0.0/8"]
        {
            let refused = text.parse::<Subnet>().unwrap_err();
            assert!(refused.contains(&format!("`{text}`")), "{refused}");
        }
        assert!(Network::new("-x", "10.77.0.0/24").is_err());
        assert!(Network::new("a/b", "10.77.0.0/24").is_err());
    }

    #[test]
    fn reads_what_ip_prints() {
        let json = r#"[{"ifname":"eth0","link_index":3,"address":"BC:24:11:00:00:01","addr_info":[
            {"family":"inet","local":"10.77.0.5","prefixlen":24},{"family":"inet6","local":"fe80::1","prefixlen":64}]},
            {},{"ifname":"tun0","link_type":"none","addr_info":[]}]"#;
        let found = addresses(json).unwrap();
        assert_eq!(found.len(), 1, "what has no link address is no interface of a guest");
        assert_eq!(found[0].mac, "bc:24:11:00:00:01");
        assert_eq!(found[0].inet, [("10.77.0.5".to_owned(), 24)]);
        assert_eq!(found[0].inet6, [("fe80::1".to_owned(), 64)]);
    }
}
