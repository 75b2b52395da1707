//! Where an interface is: MAC and IPv4 addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidId, decimal, via_text};

/// A unicast MAC address. Printed in capitals, as Proxmox stores it; compared by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// From six octets; an error for a multicast address.
    pub fn new(octets: [u8; 6]) -> Result<Self, InvalidId> {
        let mac = Self(octets);
        if octets[0] & 1 == 0 {
            Ok(mac)
        } else {
            Err(InvalidId::new("a MAC address", &mac.to_string(), "unicast: the second hex digit is even"))
        }
    }

    /// The six octets.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = || InvalidId::new("a MAC address", text, "six colon-separated pairs of hex digits");
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Self::new(octets) }
    }
}

via_text!(Mac);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02X}:{b:02X}:{c:02X}:{d:02X}:{e:02X}:{g:02X}")
    }
}

/// An IPv4 address with its prefix length, as Proxmox takes it: 8 to 32 (pve-api 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Cidr {
    /// The address without its prefix.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Number of network bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `other` lies in the same network.
    pub fn contains(self, other: Ipv4Addr) -> bool {
        let mask = u32::MAX << (32 - u32::from(self.prefix));
        u32::from(self.address) & mask == u32::from(other) & mask
    }
}

impl FromStr for Ipv4Cidr {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = || InvalidId::new("an address", text, "`dhcp`, or IPv4 with prefix length like 192.168.20.10/24");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let prefix = decimal(prefix).filter(|prefix| (8..=32).contains(prefix)).ok_or_else(wrong)?;
        Ok(Self { address, prefix })
    }
}

via_text!(Ipv4Cidr);

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}
