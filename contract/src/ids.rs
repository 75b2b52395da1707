//! Names, numbers and addresses as types that cannot hold anything else.
//!
//! Every type parses from its text form, prints the same text, and serialises as it. [`InvalidId`] says what was
//! expected in words that a person can act on.

mod addresses;
mod numbers;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use addresses::{Ipv4Cidr, Mac};
pub use numbers::{Generation, PveVersion, Vlan, Vmid, VmidRange};

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
    pub(crate) fn new(kind: &'static str, got: &str, expected: &'static str) -> Self {
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

/// Lets serde take and give a type as its text form.
macro_rules! via_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
use via_text;

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
    /// For its owner alone: 0600.
    pub fn private() -> Self {
        Self("0600".to_owned())
    }

    /// The bits as a number.
    pub fn bits(&self) -> u32 {
        self.0.bytes().fold(0, |bits, digit| bits * 8 + u32::from(digit - b'0'))
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
