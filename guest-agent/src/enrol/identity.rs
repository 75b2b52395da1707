//! What the guest says about itself: host name, interface, machine-id, host keys.

use contract::enrolment::Identity;
use contract::ids::{Hostname, Mac};

use crate::error::{Error, Reason, Result};
use crate::files::{Missing, Root};
use crate::first_boot::{machine_id, ssh_keys};
use crate::layout;
use crate::seal::record::SealRecord;

/// The interface that Proxmox gives a container first.
const PREFERRED_INTERFACE: &str = "eth0";

/// Kind of interface in `/sys/class/net/*/type`: Ethernet (`ARPHRD_ETHER`, if_arp.h).
const ETHERNET: &str = "1";

/// The host name as Proxmox wrote it.
pub(crate) fn hostname(root: &Root) -> Result<Hostname> {
    let text = root.read_text(layout::HOSTNAME, layout::SMALL_FILE)?.unwrap_or_default();
    let name = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
    name.parse().map_err(|cause| Error::new(Reason::HostnameInvalid, format!("{}: {cause}", layout::HOSTNAME)))
}

/// MAC addresses of the Ethernet interfaces, `eth0` first, then in the order in which the kernel made them.
pub(crate) fn macs(root: &Root) -> Result<Vec<Mac>> {
    let mut found = Vec::new();
    // Entries of this directory are links into /sys/devices, by which the kernel leads nobody astray.
    for name in root.directory(layout::INTERFACES, Missing::Accept)?.map_or(Ok(Vec::new()), |dir| dir.names())? {
        let read = |file: &str| root.read_kernel_file(&format!("{}/{name}/{file}", layout::INTERFACES));
        let (Some(kind), Some(address), Some(index)) = (read("type"), read("address"), read("ifindex")) else {
            continue;
        };
        if let (ETHERNET, Ok(mac)) = (kind.as_str(), address.parse::<Mac>()) {
            found.push((name != PREFERRED_INTERFACE, index.parse::<u32>().unwrap_or(u32::MAX), mac));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, mac)| mac).collect())
}

/// UUID of a virtual machine, in lower case. A container would see its node's.
pub(crate) fn uuid(root: &Root) -> Option<String> {
    let contained = root.read_kernel_file(layout::CONTAINER).is_some();
    root.read_kernel_file(layout::MACHINE_UUID).filter(|_| !contained).map(|uuid| uuid.to_ascii_lowercase())
}

/// What makes this guest unlike every other, as it is now.
pub(crate) fn identity(root: &Root, seal: Option<&SealRecord>) -> Result<Identity> {
    let id = machine_id::read(root)?
        .ok_or_else(|| Error::new(Reason::MachineId, format!("{} holds no machine-id", layout::MACHINE_ID)))?;
    Ok(Identity {
        machine_id: machine_id::digest(&id)?,
        sealed_machine_id: seal.and_then(|seal| seal.machine_id.clone()),
        ssh_host_keys: ssh_keys::shown(root)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_interface_is_eth0_or_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let interface = |name: &str, kind: &str, index: &str, address: &str| {
            for (file, text) in [("type", kind), ("ifindex", index), ("address", address)] {
                root.write_own(&format!("/sys/class/net/{name}/{file}"), format!("{text}\n").as_bytes(), 0o644)
                    .unwrap();
            }
        };
        assert!(macs(&root).unwrap().is_empty());
        interface("lo", "772", "1", "00:00:00:00:00:00");
        interface("docker0", "1", "5", "02:42:00:00:00:01");
        interface("ens18", "1", "2", "bc:24:11:00:00:02");
        let text = |root: &Root| macs(root).unwrap().iter().map(Mac::to_string).collect::<Vec<_>>();
        assert_eq!(text(&root), ["BC:24:11:00:00:02", "02:42:00:00:00:01"]);
        interface("eth0", "1", "9", "bc:24:11:00:00:09");
        assert_eq!(text(&root)[0], "BC:24:11:00:00:09");
    }

    #[test]
    fn the_host_name_is_one_label() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.write_own(layout::HOSTNAME, b"# by Proxmox\nctrlable-acme-hq-mqtt\n", 0o644).unwrap();
        assert_eq!(hostname(&root).unwrap().as_str(), "ctrlable-acme-hq-mqtt");
        for bad in ["", "CT101", "a.b"] {
            root.write_own(layout::HOSTNAME, bad.as_bytes(), 0o644).unwrap();
            assert_eq!(hostname(&root).unwrap_err().reason, Reason::HostnameInvalid);
        }
    }
}
