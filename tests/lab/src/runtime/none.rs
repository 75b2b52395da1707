//! Guests that are only records: they run because a file says so, and have the addresses their configuration says.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Address, Failure, GuestSpec, Interface, RootFs, Vmid};
use crate::clock;
use crate::state::write_private;

/// A guest that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Running {
    pid: u32,
    since_ms: u64,
    nics: Vec<Card>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Card {
    name: String,
    mac: String,
    /// Address and prefix length; none while nobody gave it one.
    address: Option<(Ipv4Addr, u8)>,
}

/// The runtime without guests.
#[derive(Debug)]
pub(crate) struct NoneRuntime {
    file: PathBuf,
    subnet: (Ipv4Addr, u8),
    /// From the start of a guest to an address on its interface.
    address_after: Duration,
    running: Mutex<BTreeMap<Vmid, Running>>,
    /// What a test lets interfaces show instead.
    pretended: Mutex<BTreeMap<Vmid, Vec<(Ipv4Addr, u8)>>>,
}

impl NoneRuntime {
    /// Finds what ran when the lab ended.
    pub(crate) fn open(state: &Path, subnet: &str, address_after: Duration) -> Result<Self, Failure> {
        let wrong = || format!("'{subnet}' is not an IPv4 network such as 10.77.0.0/24");
        let (network, prefix) = subnet.split_once('/').ok_or_else(wrong)?;
        let prefix = prefix.parse().ok().filter(|prefix| (8..=29).contains(prefix)).ok_or_else(wrong)?;
        let network = network.parse().map_err(|_| wrong())?;
        let file = state.join("running.json");
        let running = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        Ok(Self {
            file,
            subnet: (network, prefix),
            address_after,
            running: Mutex::new(running),
            pretended: Mutex::default(),
        })
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Vmid, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, running: &BTreeMap<Vmid, Running>) -> Result<(), Failure> {
        let text = serde_json::to_vec(running).map_err(|error| error.to_string())?;
        write_private(&self.file, &text).map_err(|error| format!("{error:#}"))
    }

    /// The same guest gets the same lease: the number of its MAC, spread over the upper half of the subnet.
    fn lease(&self, mac: &str, taken: &BTreeMap<Vmid, Running>) -> Option<(Ipv4Addr, u8)> {
        let (network, prefix) = self.subnet;
        let size = 1_u32 << (32 - u32::from(prefix));
        let digits = u64::from_str_radix(&mac.replace(':', ""), 16).unwrap_or_default();
        let half = size / 2;
        (0..half - 1)
            .map(|step| {
                let host = half + ((digits as u32).wrapping_add(step)) % (half - 1);
                Ipv4Addr::from(u32::from(network) + host)
            })
            .find(|address| {
                let mut cards = taken.values().flat_map(|guest| &guest.nics);
                !cards.any(|card| card.address.is_some_and(|(used, _)| used == *address) && card.mac != mac)
            })
            .map(|address| (address, prefix))
    }

    pub(crate) async fn import(&self, _vmid: Vmid, _rootfs: RootFs) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) async fn clone_disk(&self, _source: Vmid, _target: Vmid) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) async fn start(&self, spec: &GuestSpec) -> Result<(), Failure> {
        let mut running = self.running();
        let nics = spec
            .nics
            .iter()
            .map(|nic| Card {
                name: nic.name.clone(),
                mac: nic.mac.to_ascii_lowercase(),
                address: match &nic.address {
                    Address::Static { cidr, .. } => Some(*cidr),
                    Address::Dhcp => self.lease(&nic.mac.to_ascii_lowercase(), &running),
                    Address::Manual => None,
                },
            })
            .collect();
        let pid = running.values().map(|guest| guest.pid).max().unwrap_or(20_000) + 1;
        running.insert(spec.vmid, Running { pid, since_ms: clock::epoch_millis(), nics });
        self.save(&running)
    }

    pub(crate) async fn stop(&self, vmid: Vmid) -> Result<(), Failure> {
        let mut running = self.running();
        running.remove(&vmid);
        self.save(&running)
    }

    pub(crate) async fn shutdown(&self, vmid: Vmid, _timeout: u64) -> Result<(), Failure> {
        self.stop(vmid).await
    }

    pub(crate) async fn pid(&self, vmid: Vmid) -> Option<u32> {
        self.running().get(&vmid).map(|guest| guest.pid)
    }

    pub(crate) async fn interfaces(&self, vmid: Vmid) -> Vec<Interface> {
        let running = self.running();
        let Some(guest) = running.get(&vmid) else {
            return Vec::new();
        };
        let up = clock::epoch_millis().saturating_sub(guest.since_ms) >= self.address_after.as_millis() as u64;
        let lo = Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            inet: vec![("127.0.0.1".to_owned(), 8)],
            inet6: vec![("::1".to_owned(), 128)],
        };
        let pretended = self.pretended.lock().unwrap_or_else(PoisonError::into_inner).get(&vmid).cloned();
        let cards = guest.nics.iter().map(|card| Interface {
            name: card.name.clone(),
            mac: card.mac.clone(),
            inet: pretended
                .clone()
                .unwrap_or_else(|| card.address.into_iter().collect())
                .into_iter()
                .filter(|_| up)
                .map(|(address, prefix)| (address.to_string(), prefix))
                .collect(),
            inet6: if up { link_local(&card.mac).into_iter().collect() } else { Vec::new() },
        });
        std::iter::once(lo).chain(cards).collect()
    }

    pub(crate) fn pretend(&self, vmid: Vmid, shown: Option<Vec<(Ipv4Addr, u8)>>) -> Result<(), Failure> {
        let mut pretended = self.pretended.lock().unwrap_or_else(PoisonError::into_inner);
        match shown {
            Some(shown) => pretended.insert(vmid, shown),
            None => pretended.remove(&vmid),
        };
        Ok(())
    }

    pub(crate) fn own_addresses(&self) -> BTreeMap<Vmid, Vec<Ipv4Addr>> {
        let of = |guest: &Running| guest.nics.iter().filter_map(|card| Some(card.address?.0)).collect();
        self.running().iter().map(|(vmid, guest)| (*vmid, of(guest))).collect()
    }

    pub(crate) async fn destroy(&self, vmid: Vmid) -> Result<(), Failure> {
        self.stop(vmid).await
    }
}

/// The address an interface gives itself from its MAC.
fn link_local(mac: &str) -> Option<(String, u8)> {
    let bytes: Vec<u16> = mac.split(':').filter_map(|pair| u16::from_str_radix(pair, 16).ok()).collect();
    let [a, b, c, d, e, f] = bytes.as_slice() else {
        return None;
    };
    let address = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f);
    Some((address.to_string(), 64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Nic;
    use super::*;

    fn spec(vmid: Vmid, mac: &str, address: Address) -> GuestSpec {
        let nic = Nic { name: "eth0".to_owned(), mac: mac.to_owned(), bridge: "vmbr0".to_owned(), address };
        GuestSpec { vmid, hostname: "a".to_owned(), nics: vec![nic], memory: 512, environment: Vec::new() }
    }

    #[test]
    fn a_mac_becomes_a_link_local_address() {
        assert_eq!(link_local("bc:24:11:56:13:d3").unwrap().0, "fe80::be24:11ff:fe56:13d3");
    }

    #[tokio::test]
    async fn guests_survive_a_restart_and_leases_do_not_collide() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = NoneRuntime::open(dir.path(), "10.77.0.0/24", Duration::ZERO).unwrap();
        // These two MACs fall on the same lease.
        runtime.start(&spec(100, "BC:24:11:00:00:00", Address::Dhcp)).await.unwrap();
        runtime.start(&spec(101, "BC:24:11:00:00:7F", Address::Dhcp)).await.unwrap();
        let again = NoneRuntime::open(dir.path(), "10.77.0.0/24", Duration::ZERO).unwrap();
        let first = again.interfaces(100).await[1].inet.clone();
        let second = again.interfaces(101).await[1].inet.clone();
        assert!(!first.is_empty() && !second.is_empty());
        assert_ne!(first, second);
        again.stop(100).await.unwrap();
        assert_eq!(again.pid(100).await, None);
    }
}
