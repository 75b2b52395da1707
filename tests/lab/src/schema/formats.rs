//! Named formats and patterns, with the texts Proxmox answers when a value does not fit.

use std::net::{Ipv4Addr, Ipv6Addr};

fn refuse(fits: bool, text: impl Into<String>) -> Result<(), String> {
    if fits { Ok(()) } else { Err(text.into()) }
}

/// Splits a list the way Proxmox does: commas, semicolons and white space separate.
pub(crate) fn split_list(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ';', ' ', '\t', '\n', '\0']).filter(|item| !item.is_empty())
}

fn is_label(value: &str) -> bool {
    !value.is_empty()
        && !value.starts_with('-')
        && !value.ends_with('-')
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

pub(crate) fn is_vmid(value: &str) -> bool {
    (3..=9).contains(&value.len()) && !value.starts_with('0') && value.bytes().all(|b| b.is_ascii_digit())
}

pub(crate) fn vmid(value: &str) -> Result<(), String> {
    refuse(is_vmid(value), "value does not look like a valid VM ID")
}

pub(crate) fn node(value: &str) -> Result<(), String> {
    refuse(is_label(value), "value does not look like a valid node name")
}

pub(crate) fn dns_name(value: &str) -> Result<(), String> {
    refuse(value.split('.').all(is_label), "value does not look like a valid DNS name")
}

pub(crate) fn storage_id(value: &str) -> Result<(), String> {
    refuse(value.len() >= 2, format!("storage ID '{value}' cannot be shorter than 2 characters"))?;
    let bytes = value.as_bytes();
    let fits = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    refuse(fits, format!("storage ID '{value}' contains illegal characters"))
}

/// The wording of a release: before 9, a storage id that is too short was one with illegal characters.
pub(crate) fn as_worded(text: String, major: u8) -> String {
    match text.strip_suffix(" cannot be shorter than 2 characters") {
        Some(head) if major < 9 => format!("{head} contains illegal characters"),
        _ => text,
    }
}

pub(crate) fn config_id(value: &str) -> Result<(), String> {
    let bytes = value.as_bytes();
    let fits = bytes.len() >= 2
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
    refuse(fits, format!("invalid configuration ID '{value}'"))
}

pub(crate) fn pool_id(value: &str) -> Result<(), String> {
    let levels: Vec<&str> = value.split('/').collect();
    let fits = levels
        .iter()
        .all(|level| !level.is_empty() && level.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
    refuse(levels.len() <= 3 || !fits, format!("pool name '{value}' is nested too deeply (max levels = 3)"))?;
    refuse(fits, format!("pool name '{value}' contains invalid characters"))
}

pub(crate) fn tag(value: &str) -> Result<(), String> {
    let bytes = value.as_bytes();
    let fits = bytes.first().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_+.-".contains(b));
    refuse(fits, "invalid characters in tag")
}

pub(crate) fn mac(value: &str) -> Result<(), String> {
    let pairs: Vec<&str> = value.split(':').collect();
    let hex =
        pairs.len() == 6 && pairs.iter().all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
    let unicast = value.as_bytes().get(1).is_some_and(|b| b"02468aceACE".contains(b));
    refuse(hex && unicast, "value does not look like a valid unicast MAC address")
}

fn is_cidr4(value: &str) -> bool {
    value.split_once('/').is_some_and(|(address, prefix)| {
        address.parse::<Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|bits| (8..=32).contains(&bits))
    })
}

fn is_cidr6(value: &str) -> bool {
    value.split_once('/').is_some_and(|(address, prefix)| {
        address.parse::<Ipv6Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|bits| (8..=128).contains(&bits))
    })
}

pub(crate) fn ipv4_config(value: &str) -> Result<(), String> {
    let fits = matches!(value, "dhcp" | "manual") || is_cidr4(value);
    refuse(fits, "value does not look like a valid ipv4 network configuration")
}

pub(crate) fn ipv6_config(value: &str) -> Result<(), String> {
    let fits = matches!(value, "auto" | "dhcp" | "manual") || is_cidr6(value);
    refuse(fits, "value does not look like a valid ipv6 network configuration")
}

pub(crate) fn ipv4(value: &str) -> Result<(), String> {
    refuse(value.parse::<Ipv4Addr>().is_ok(), "value does not look like a valid IPv4 address")
}

pub(crate) fn ipv6(value: &str) -> Result<(), String> {
    refuse(value.parse::<Ipv6Addr>().is_ok(), "value does not look like a valid IPv6 address")
}

pub(crate) fn address(value: &str) -> Result<(), String> {
    let plain = value.split('%').next().unwrap_or(value);
    let fits = value.parse::<Ipv4Addr>().is_ok() || plain.parse::<Ipv6Addr>().is_ok();
    refuse(fits || value == "host", "value does not look like a valid IP address")
}

pub(crate) fn volume_id(value: &str) -> Result<(), String> {
    let fits = value.split_once(':').is_some_and(|(storage, name)| storage_id(storage).is_ok() && !name.is_empty());
    refuse(fits, "unable to parse volume ID")
}

pub(crate) fn startup(value: &str) -> Result<(), String> {
    let fits = value.split(',').all(|part| {
        let digits = part
            .strip_prefix("order=")
            .or_else(|| part.strip_prefix("up="))
            .or_else(|| part.strip_prefix("down="))
            .unwrap_or(part);
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    });
    refuse(fits, "unable to parse startup options")
}

pub(crate) fn timezone(value: &str) -> Result<(), String> {
    let fits = value == "host"
        || (value.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+-".contains(&b)) && !value.starts_with('/'));
    refuse(fits, format!("invalid time zone '{value}'"))
}

pub(crate) fn role_id(value: &str) -> Result<(), String> {
    let fits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    refuse(fits, format!("role name '{value}' contains invalid characters"))
}

pub(crate) fn user_id(value: &str) -> Result<(), String> {
    refuse(value.len() >= 3, format!("user name '{value}' is too short"))?;
    refuse(value.len() <= 64, format!("user name '{value}' is too long ({} > 64)", value.len()))?;
    let fits = value.rsplit_once('@').is_some_and(|(user, realm)| {
        !user.is_empty() && !user.bytes().any(|b| b.is_ascii_whitespace() || b == b':' || b == b'/') && is_realm(realm)
    });
    refuse(fits, format!("value '{value}' does not look like a valid user name"))
}

fn is_realm(value: &str) -> bool {
    value.len() >= 2
        && value.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// The pattern of token names, which is also the one of realms.
pub(crate) fn is_token_name(value: &str) -> bool {
    is_realm(value)
}

pub(crate) fn token_id(value: &str) -> Result<(), String> {
    let fits = value.split_once('!').is_some_and(|(user, token)| user_id(user).is_ok() && is_token_name(token));
    refuse(fits, format!("value '{value}' does not look like a valid token ID"))
}

pub(crate) fn content(value: &str) -> Result<(), String> {
    const KNOWN: &[&str] = &["rootdir", "images", "vztmpl", "iso", "backup", "snippets", "import", "none"];
    refuse(KNOWN.contains(&value), format!("invalid content type '{value}'"))
}

pub(crate) fn urlencoded(value: &str) -> Result<(), String> {
    let fits = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-%_.!~*'()".contains(&b));
    refuse(fits, format!("invalid urlencoded string: {value}"))
}

pub(crate) fn task_status(value: &str) -> Result<(), String> {
    refuse(matches!(value, "ok" | "warning" | "error" | "unknown"), format!("unable to parse '{value}'"))
}

pub(crate) fn ha_sid(value: &str) -> Result<(), String> {
    let id = value.strip_prefix("ct:").or_else(|| value.strip_prefix("vm:")).unwrap_or(value);
    refuse(is_vmid(id), "value does not look like a valid HA resource ID")
}

pub(crate) fn mount_path(value: &str) -> Result<(), String> {
    let dotted = value.split('/').any(|part| part == "." || part == "..");
    refuse(!dotted, format!("{value} contains illegal character sequences"))
}

pub(crate) fn disk_size(value: &str) -> Result<(), String> {
    refuse(parse_size(value).is_some(), format!("unable to parse disk size '{value}'"))
}

/// Bytes of a size such as `8G`; the unit is exact about its case, as Proxmox is.
pub(crate) fn parse_size(value: &str) -> Option<u64> {
    let (digits, factor) = match value.as_bytes().last()? {
        b'K' => (value.strip_suffix('K')?, 1_u64 << 10),
        b'M' => (value.strip_suffix('M')?, 1 << 20),
        b'G' => (value.strip_suffix('G')?, 1 << 30),
        b'T' => (value.strip_suffix('T')?, 1 << 40),
        _ => (value, 1),
    };
    let shape = digits.split('.').collect::<Vec<_>>();
    let fits =
        shape.len() <= 2 && shape.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if !fits {
        return None;
    }
    let amount: f64 = digits.parse().ok()?;
    Some((amount * factor as f64) as u64)
}

/// The shortest form of a size, as Proxmox stores it: `8G`, `512M`.
pub(crate) fn format_size(bytes: u64) -> String {
    for (unit, factor) in [("T", 1_u64 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    bytes.to_string()
}

pub(crate) fn is_resize(value: &str) -> bool {
    parse_size(value.strip_prefix('+').unwrap_or(value)).is_some()
}

pub(crate) fn is_interface(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

pub(crate) fn is_vlan_list(value: &str) -> bool {
    value.split(';').all(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
}

pub(crate) fn is_mount_options(value: &str) -> bool {
    const KNOWN: &[&str] = &["discard", "lazytime", "noatime", "nodev", "noexec", "nosuid"];
    value.split(';').all(|option| KNOWN.contains(&option))
}

pub(crate) fn is_file_systems(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_; ".contains(&b))
}

pub(crate) fn is_octal_mode(value: &str) -> bool {
    value.len() == 4 && value.starts_with('0') && value.bytes().all(|b| (b'0'..=b'7').contains(&b))
}

pub(crate) fn is_printable(value: &str) -> bool {
    !value.is_empty() && !value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f)
}

pub(crate) fn is_environment(value: &str) -> bool {
    value.split('\0').all(|pair| {
        pair.split_once('=').is_some_and(|(key, text)| {
            !key.is_empty()
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && (text.is_empty() || is_printable(text))
        })
    })
}

pub(crate) fn is_serial(value: &str) -> bool {
    value == "socket" || (value.starts_with("/dev/") && value.len() > 5 && !value.contains(','))
}

pub(crate) fn is_word(value: &str) -> bool {
    !value.is_empty() && !value.contains(char::is_whitespace)
}

pub(crate) fn is_uuid_or_switch(value: &str) -> bool {
    matches!(value, "0" | "1") || is_uuid(value)
}

pub(crate) fn is_uuid(value: &str) -> bool {
    let groups: Vec<&str> = value.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()))
}
