//! Numbers of guests, VLANs, versions and generations.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidId, decimal, via_text};

/// A guest's number in Proxmox: 100 to 999999999 (pve-api 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vmid(u32);

impl Vmid {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vmid {
    type Error = InvalidId;

    fn try_from(number: u32) -> Result<Self, InvalidId> {
        if (100..=999_999_999).contains(&number) {
            Ok(Self(number))
        } else {
            Err(InvalidId::new("a VMID", &number.to_string(), "a number from 100 to 999999999"))
        }
    }
}

impl From<Vmid> for u32 {
    fn from(vmid: Vmid) -> Self {
        vmid.0
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vmid {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        decimal::<u32>(text).ok_or_else(|| InvalidId::new("a VMID", text, "a number from 100 to 999999999"))?.try_into()
    }
}

/// The numbers that a site may use, both ends included: `2000-2099`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmidRange {
    first: Vmid,
    last: Vmid,
}

impl VmidRange {
    /// Lowest number.
    pub fn first(self) -> Vmid {
        self.first
    }

    /// Highest number.
    pub fn last(self) -> Vmid {
        self.last
    }

    /// Whether `vmid` lies in the range.
    pub fn contains(self, vmid: Vmid) -> bool {
        (self.first..=self.last).contains(&vmid)
    }

    /// All numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = Vmid> {
        (self.first.0..=self.last.0).map(Vmid)
    }
}

impl FromStr for VmidRange {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = || InvalidId::new("a VMID range", text, "two numbers from 100 on, the lower first, like 2000-2099");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let first: Vmid = first.trim().parse().map_err(|_| wrong())?;
        let last: Vmid = last.trim().parse().map_err(|_| wrong())?;
        if first <= last { Ok(Self { first, last }) } else { Err(wrong()) }
    }
}

via_text!(VmidRange);

impl fmt::Display for VmidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A VLAN tag: 1 to 4094 (IEEE 802.1Q).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Vlan(u16);

impl Vlan {
    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Vlan {
    type Error = InvalidId;

    fn try_from(number: u16) -> Result<Self, InvalidId> {
        if (1..=4094).contains(&number) {
            Ok(Self(number))
        } else {
            Err(InvalidId::new("a VLAN tag", &number.to_string(), "a number from 1 to 4094"))
        }
    }
}

impl From<Vlan> for u16 {
    fn from(vlan: Vlan) -> Self {
        vlan.0
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Proxmox VE version by its first two numbers: `8.2`. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PveVersion {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
}

impl FromStr for PveVersion {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = || InvalidId::new("a Proxmox version", text, "two or three numbers like 8.2");
        let mut parts = text.split('.').map(|part| decimal::<u16>(part).ok_or_else(wrong));
        let major = parts.next().ok_or_else(wrong)??;
        let minor = parts.next().ok_or_else(wrong)??;
        match (parts.next().transpose()?, parts.next()) {
            (_, None) => Ok(Self { major, minor }),
            _ => Err(wrong()),
        }
    }
}

via_text!(PveVersion);

impl fmt::Display for PveVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Numbers the assignments of one instance, from 1; higher is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
