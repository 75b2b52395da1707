//! What Proxmox writes into a Debian container: after a clone, and before each start.

use super::mounted::Mounted;
use crate::runtime::{Address, Failure, GuestSpec, Nic};

/// The marks around the node's part of /etc/hosts: Proxmox VE's own.
const BEGIN: &str = "# --- BEGIN PVE ---";
const END: &str = "# --- END PVE ---";

/// After a clone: the machine-id is emptied, everything else stays, SSH host keys included.
pub(super) fn after_clone(disk: &Mounted) -> Result<(), Failure> {
    match disk.read("etc/machine-id")? {
        Some(id) if !id.is_empty() => disk.write("etc/machine-id", ""),
        _ => Ok(()),
    }
}

/// Before a start: host name, hosts, interfaces.
pub(super) fn before_start(disk: &Mounted, spec: &GuestSpec) -> Result<(), Failure> {
    let short = short_name(&spec.hostname);
    disk.write("etc/hostname", &format!("{short}\n"))?;
    let hosts = disk.read("etc/hosts")?.unwrap_or_default();
    disk.write("etc/hosts", &with_section(&hosts, &hosts_line(&spec.hostname)))?;
    disk.directory("etc/systemd/network")?;
    for nic in &spec.nics {
        let path = format!("etc/systemd/network/{}.network", nic.name);
        match network_file(nic) {
            Some(text) => disk.write(&path, &text)?,
            None => disk.delete(&path)?,
        }
    }
    Ok(())
}

/// The host name without its domain.
pub(super) fn short_name(hostname: &str) -> &str {
    hostname.split('.').next().unwrap_or(hostname)
}

fn hosts_line(hostname: &str) -> String {
    match short_name(hostname) {
        short if short == hostname => format!("127.0.1.1 {short}"),
        short => format!("127.0.1.1 {hostname} {short}"),
    }
}

/// Replaces the marked section of a file, or adds it at the end.
fn with_section(text: &str, line: &str) -> String {
    let section = format!("{BEGIN}\n{line}\n{END}\n");
    if let Some((before, rest)) = text.split_once(BEGIN)
        && let Some((_, after)) = rest.split_once(END)
    {
        return format!("{before}{section}{}", after.strip_prefix('\n').unwrap_or(after));
    }
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{gap}{section}")
}

/// What systemd-networkd is told about one interface; nothing for one that is left to the guest.
fn network_file(nic: &Nic) -> Option<String> {
    let addressing = match &nic.address {
        Address::Manual => return None,
        // By MAC, as Proxmox VE does: reservations must outlive a new machine-id.
        Address::Dhcp => "DHCP=ipv4\nIPv6AcceptRA=false\n\n[DHCPv4]\nClientIdentifier=mac\n".to_owned(),
        Address::Static { cidr: (address, prefix), gateway } => {
            let gateway = gateway.map(|gateway| format!("Gateway={gateway}\n")).unwrap_or_default();
            format!("Address={address}/{prefix}\n{gateway}IPv6AcceptRA=false\n")
        }
    };
    let name = &nic.name;
    Some(format!(
        "# Written by the node before each start.\n[Match]\nName={name}\n\n[Network]\nDescription=Interface {name}\n{addressing}"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::Ipv4Addr;

    use super::*;

    fn nic(address: Address) -> Nic {
        Nic { name: "eth0".into(), mac: "BC:24:11:00:00:01".into(), bridge: "vmbr0".into(), address }
    }

    #[test]
    fn the_section_of_hosts_is_replaced_and_the_rest_kept() {
        let first = with_section("127.0.0.1 localhost", &hosts_line("zigbee.example.net"));
        assert_eq!(first, format!("127.0.0.1 localhost\n{BEGIN}\n127.0.1.1 zigbee.example.net zigbee\n{END}\n"));
        let second = with_section(&format!("{first}10.0.0.1 own\n"), &hosts_line("mqtt"));
        assert_eq!(second, format!("127.0.0.1 localhost\n{BEGIN}\n127.0.1.1 mqtt\n{END}\n10.0.0.1 own\n"));
    }

    #[test]
    fn an_interface_is_static_by_dhcp_or_left_alone() {
        let fixed =
            Address::Static { cidr: (Ipv4Addr::new(10, 77, 0, 5), 24), gateway: Some(Ipv4Addr::new(10, 77, 0, 1)) };
        let text = network_file(&nic(fixed)).unwrap();
        assert!(
            text.contains("[Match]\nName=eth0\n") && text.contains("\nAddress=10.77.0.5/24\nGateway=10.77.0.1\n"),
            "{text}"
        );
        let text = network_file(&nic(Address::Dhcp)).unwrap();
        assert!(text.contains("\nDHCP=ipv4\n") && text.contains("[DHCPv4]\nClientIdentifier=mac\n"), "{text}");
        assert!(network_file(&nic(Address::Manual)).is_none());
    }
}
