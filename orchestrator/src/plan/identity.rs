//! Which number and which MAC address an instance gets.

use std::collections::BTreeSet;

use contract::ids::{InstanceName, Mac, SiteName, Vmid, VmidRange};
use sha2::{Digest, Sha256};

/// Proxmox's own prefix, so that our guests look like every other guest to a dealer's network tools.
const PREFIX: [u8; 3] = [0xBC, 0x24, 0x11];

/// The MAC address of an instance: derived from its name, so that a guest that is made anew, even with a lost
/// database, keeps its DHCP lease. `taken` is avoided by hashing again.
pub fn mac_for(site: &SiteName, instance: &InstanceName, taken: &BTreeSet<Mac>) -> Option<Mac> {
    // 24 bits and at most 1000 guests: a handful of tries is ample, 256 is a bound, not an estimate.
    (0u16..256).find_map(|attempt| {
        let digest = Sha256::digest(format!("ctrlable mac 1\n{site}\n{instance}\n{attempt}"));
        let mac = Mac::new([PREFIX[0], PREFIX[1], PREFIX[2], digest[0], digest[1], digest[2]]).ok()?;
        (!taken.contains(&mac)).then_some(mac)
    })
}

/// The lowest number of the range that nobody has.
pub(super) fn lowest_free(range: VmidRange, taken: &BTreeSet<Vmid>) -> Option<Vmid> {
    range.iter().find(|vmid| !taken.contains(vmid))
}
