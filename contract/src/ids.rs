//! Names, numbers and addresses as types that cannot hold anything else.
//!
//! Every type parses from its text form, prints the same text, and serialises as it. [`InvalidId`] says what was
//! expected in words that a person can act on.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not what its type expects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{got}` is not {kind}: {expected}")]
pub struct InvalidId {
    /// What was asked for, with its article: "a site name".
    pub kind: &'static str,
    /// What was given, shortened to 80 characters.
    pub got: String,
    /// The rule, as a sentence part.
    pub expected: &'static str,
}

impl InvalidId {
    fn new(kind: &'static str, got: &str, expected: &'static str) -> Self {
        Self { kind, got: got.chars().take(80).collect(), expected }
    }
}

/// A lower-case DNS label: `[a-z]([a-z0-9-]*[a-z0-9])?`, at most `max` characters (RFC 1123, section 2.1).
fn is_label(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= max
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// A decimal number as it is printed: no sign, no leading zero. `str::parse` would take both.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    canonical.then(|| text.parse().ok()).flatten()
}

/// Defines a string newtype with a checking constructor.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(InvalidId::new($kind, text, $expected)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// One customer location: one orchestrator.
    SiteName, "a site name",
    "a lower-case letter, then letters, digits and hyphens, at most 30 characters",
    |text| is_label(text, 30)
);
text_id!(
    /// One guest that a site asks for.
    InstanceName, "an instance name",
    "a lower-case letter, then letters, digits and hyphens, at most 30 characters",
    |text| is_label(text, 30)
);
text_id!(
    /// A catalogue entry of a release.
    TemplateName, "a template name",
    "a lower-case letter, then letters, digits and hyphens, at most 40 characters",
    |text| is_label(text, 40)
);
text_id!(
    /// The dealer that looks after a site.
    DealerName, "a dealer name",
    "a lower-case letter, then letters, digits and hyphens, at most 40 characters",
    |text| is_label(text, 40)
);
text_id!(
    /// A release of HQ: `2026.06`, or `2026.06.1` for a repaired one.
    ReleaseId, "a release id",
    "year and month like 2026.06, with an optional number behind like 2026.06.1",
    |text| {
        let parts: Vec<&str> = text.split('.').collect();
        let digits = |part: &str, least: usize, most: usize| {
            (least..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        matches!(parts.len(), 2 | 3)
            && digits(parts[0], 4, 4)
            && digits(parts[1], 2, 2)
            && ("01"..="12").contains(&parts[1])
            && parts.get(2).is_none_or(|part| digits(part, 1, 3))
    }
);
text_id!(
    /// A host name as `ctrlable-<site>-<instance>`: one DNS label of at most 63 characters (RFC 1035, section 2.3.4).
    Hostname, "a host name",
    "one lower-case DNS label of at most 63 characters",
    |text| is_label(text, 63)
);
text_id!(
    /// A Proxmox node (pve-api 2.4).
    NodeName, "a node name",
    "letters, digits and hyphens, neither first nor last a hyphen",
    |text| {
        let bytes = text.as_bytes();
        !bytes.is_empty() && bytes.len() <= 63
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && bytes[0] != b'-' && bytes[bytes.len() - 1] != b'-'
    }
);
text_id!(
    /// A Proxmox storage (pve-api 2.4).
    StorageId, "a storage id",
    "at least two characters: a letter, then letters, digits, dots, hyphens and underscores, last a letter or digit",
    |text| {
        let bytes = text.as_bytes();
        (2..=100).contains(&bytes.len())
            && bytes[0].is_ascii_alphabetic()
            && bytes[bytes.len() - 1].is_ascii_alphanumeric()
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
    }
);
text_id!(
    /// A bridge on the node; at most 15 characters, the kernel's limit (IFNAMSIZ).
    BridgeName, "a bridge name",
    "letters, digits, dots, hyphens and underscores, at most 15 characters",
    |text| (1..=15).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
);
text_id!(
    /// A Proxmox pool: one to three levels (pve-api 2.4); PVE 9 wants a letter first (13).
    PoolId, "a pool id",
    "a letter first, then letters, digits, dots, hyphens and underscores; up to three levels joined by /",
    |text| {
        text.len() <= 200 && text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.split('/').count() <= 3
            && text.split('/').all(|level| {
                !level.is_empty() && level.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            })
    }
);
text_id!(
    /// A git commit id: 40 lower-case hex digits (SHA-1 repositories) or 64 (SHA-256).
    Revision, "a git revision",
    "40 or 64 lower-case hex digits",
    |text| matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
);
text_id!(
    /// A SHA-256 digest: 64 lower-case hex digits.
    Sha256Digest, "a SHA-256 digest",
    "64 lower-case hex digits",
    |text| text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
);
text_id!(
    /// A systemd unit with its suffix, as systemd.unit(5) allows, at most 255 characters.
    UnitName, "a unit name",
    "a systemd unit with its suffix, such as zigbee2mqtt.service",
    |text| {
        let suffixes = [".service", ".socket", ".timer", ".target", ".mount", ".path"];
        text.len() <= 255
            && suffixes.iter().any(|suffix| text.len() > suffix.len() && text.ends_with(suffix))
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.@\\".contains(&byte))
    }
);
text_id!(
    /// A file inside a guest: absolute, normalised, no `..`, no control characters, at most 1024 bytes.
    GuestPath, "a path in a guest",
    "absolute, without `..`, `.`, empty parts or control characters",
    |text| {
        text.len() <= 1024 && text.len() > 1 && text.starts_with('/') && !text.chars().any(char::is_control)
            && text[1..].split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    }
);
text_id!(
    /// The name of a secret that a site refers to: a lower-case letter, then `[a-z0-9._-]`, at most 64 characters.
    SecretName, "a secret name",
    "a lower-case letter, then lower-case letters, digits, dots, hyphens and underscores, at most 64 characters",
    |text| {
        (1..=64).contains(&text.len()) && text.as_bytes()[0].is_ascii_lowercase()
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
    }
);
text_id!(
    /// An IANA time zone such as `Europe/Berlin`, or `UTC`. Only the form is checked here.
    Timezone, "a time zone",
    "an IANA name such as Europe/Berlin",
    |text| {
        (1..=64).contains(&text.len()) && text.split('/').count() <= 3
            && text.split('/').all(|part| {
                part.starts_with(|first: char| first.is_ascii_alphabetic())
                    && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
            })
    }
);
text_id!(
    /// Permission bits of a file as three or four octal digits: `0600`.
    FileMode, "a file mode",
    "three or four octal digits such as 0600",
    |text| matches!(text.len(), 3 | 4) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'))
);
text_id!(
    /// Owner of a file as `user` or `user:group`.
    FileOwner, "a file owner",
    "user or user:group, each a name of letters, digits, `_` and `-`",
    |text| {
        let name = |part: &str| {
            (1..=32).contains(&part.len())
                && part.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
        };
        let parts: Vec<&str> = text.split(':').collect();
        parts.len() <= 2 && parts.into_iter().all(name)
    }
);

impl From<[u8; 32]> for Sha256Digest {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Hostname {
    /// The host name of an instance: `ctrlable-<site>-<instance>`; an error when it is longer than 63 characters.
    pub fn of(site: &SiteName, instance: &InstanceName) -> Result<Self, InvalidId> {
        format!("ctrlable-{site}-{instance}").parse()
    }
}

impl FileMode {
    /// The bits as a number.
    pub fn bits(&self) -> u32 {
        self.0.bytes().fold(0, |bits, digit| bits * 8 + u32::from(digit - b'0'))
    }
}

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

impl TryFrom<String> for VmidRange {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<VmidRange> for String {
    fn from(range: VmidRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for VmidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

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

impl TryFrom<String> for Mac {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02X}:{b:02X}:{c:02X}:{d:02X}:{e:02X}:{g:02X}")
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

impl TryFrom<String> for Ipv4Cidr {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<Ipv4Cidr> for String {
    fn from(cidr: Ipv4Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
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

impl TryFrom<String> for PveVersion {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<PveVersion> for String {
    fn from(version: PveVersion) -> Self {
        version.to_string()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_only_as_they_are_printed() {
        for text in ["100-199", "100 - 199"] {
            assert_eq!(text.parse::<VmidRange>().map(String::from), Ok("100-199".to_owned()));
        }
        assert!(
            ["+100-199", "0100-199", "100-", "-", "100-199-"].iter().all(|text| text.parse::<VmidRange>().is_err())
        );
        assert!("02:00:00:00:00:0a".parse::<Mac>().is_ok());
        assert!(
            ["02:00:00:00:00:+a", "02:00:00:00:00", "02:00:00:00:00:0g"].iter().all(|mac| mac.parse::<Mac>().is_err())
        );
        assert!("10.0.0.2/8".parse::<Ipv4Cidr>().is_ok());
        assert!(
            ["10.0.0.2/+8", "10.0.0.2/08", "10.0.0.2/7", "10.0.0.02/8"]
                .iter()
                .all(|ip| ip.parse::<Ipv4Cidr>().is_err())
        );
        assert_eq!("8.10".parse::<PveVersion>().map(|version| (version.major, version.minor)), Ok((8, 10)));
        assert!(["8", "+8.2", "8.02", "8.2.x", "8.2.1.1"].iter().all(|text| text.parse::<PveVersion>().is_err()));
    }
}
