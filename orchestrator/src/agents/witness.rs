//! What Proxmox says about who is on the other end of a connection. A guest may claim anything; its MAC address and the
//! addresses of its running interface are what the hypervisor gave it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use contract::ids::{InstanceName, Mac, SiteName, Vmid};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use crate::proxmox::{Client, GuestConfig, GuestRef, Interface, Marker, Problem, ProxmoxError};

/// Longest time that one request for a certificate waits for Proxmox's word. An address shows within half a second of the
/// start (pve-api 5), so most guests that come early are answered in their first request.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at a guest that shows no address yet; grows by half each time, up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// How long a look serves others who ask about the same guest: what Proxmox says does not depend on who asks.
const FRESH: Duration = Duration::from_millis(20);
/// Looks at once. Proxmox has three workers on a node (pve-api 1), and the loop needs some of them.
const AT_ONCE: usize = 2;

/// The question: is this guest, with this MAC address, at this address?
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) site: &'a SiteName,
    pub(super) instance: &'a InstanceName,
    pub(super) vmid: Vmid,
    pub(super) mac: Mac,
    pub(super) address: IpAddr,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Testimony {
    /// It is.
    Yes,
    /// The guest under the number does not carry the instance's marker, or there is none.
    NotOurs,
    /// Its first interface has another MAC address, or none that runs has it.
    OtherMac,
    /// It does not run.
    NotRunning,
    /// Its interface has these addresses.
    ElsewhereAt(Vec<IpAddr>),
    /// Nothing can be said now, and why.
    Silent(String),
}

/// One look at a guest.
#[derive(Debug)]
struct Sight {
    config: GuestConfig,
    interfaces: Option<Vec<Interface>>,
}

type Look = Arc<Result<Option<Sight>, ProxmoxError>>;

/// What is known of one guest.
#[derive(Debug, Default)]
struct Known {
    /// Where it was found.
    guest: Option<GuestRef>,
    latest: Option<(Instant, Look)>,
}

/// Asks Proxmox, in bounds: one look at a time for each guest, whoever asks, and few over all.
#[derive(Debug)]
pub struct Witness {
    client: Client,
    /// By instance of the ledger, so there are not many.
    known: Mutex<HashMap<InstanceName, Arc<AsyncMutex<Known>>>>,
    places: Semaphore,
}

impl Witness {
    /// A witness that has seen nothing yet.
    pub fn new(client: Client) -> Self {
        Self { client, known: Mutex::default(), places: Semaphore::new(AT_ONCE) }
    }

    /// Asks until there is an answer or patience is over.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Testimony {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        let mut said = Testimony::Silent("Proxmox did not answer in time".to_owned());
        loop {
            match timeout_at(deadline, self.look(question)).await {
                Err(_) => return said,
                Ok(look) => said = judge(question, &look),
            }
            if !matches!(said, Testimony::Silent(_)) || Instant::now() + pause >= deadline {
                return said;
            }
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(LONGEST_PAUSE);
        }
    }

    async fn look(&self, question: &Question<'_>) -> Look {
        let cell = {
            let mut known = self.known.lock().unwrap_or_else(|held| held.into_inner());
            known.entry(question.instance.clone()).or_default().clone()
        };
        let mut known = cell.lock().await;
        if let Some((at, look)) = &known.latest
            && at.elapsed() < FRESH
        {
            return look.clone();
        }
        let guest = known.guest.take().filter(|guest| guest.vmid == question.vmid);
        let look = self.look_at(guest, question.vmid).await;
        if let Ok(Some(sight)) = &look {
            known.guest = Some(sight.config.guest.clone());
        }
        let look = Arc::new(look);
        known.latest = Some((Instant::now(), look.clone()));
        look
    }

    /// Where it was found last, else wherever it is: a guest may have been moved.
    async fn look_at(&self, guest: Option<GuestRef>, vmid: Vmid) -> Result<Option<Sight>, ProxmoxError> {
        let _place = self.places.acquire().await;
        let guest = match guest {
            Some(guest) => guest,
            None => match self.client.find(vmid).await? {
                Some(row) => row.guest,
                None => return Ok(None),
            },
        };
        let (config, interfaces) = tokio::join!(self.client.guest_config(&guest), self.client.interfaces(&guest));
        Ok(Some(Sight { config: config?, interfaces: interfaces? }))
    }
}

fn judge(question: &Question<'_>, look: &Result<Option<Sight>, ProxmoxError>) -> Testimony {
    let Sight { config, interfaces } = match look {
        Ok(Some(sight)) => sight,
        Ok(None) => return Testimony::NotOurs,
        Err(error) => {
            return Testimony::Silent(match error.cause() {
                Problem::AgentUnavailable(_) => {
                    "the QEMU guest agent does not answer yet: install qemu-guest-agent in the template, and set `agent: 1`"
                        .to_owned()
                }
                _ => error.to_string(),
            });
        }
    };
    let ours = matches!(config.marker(), Ok(Some(Marker::Guest { site, instance, .. }))
        if site == *question.site && instance == *question.instance);
    if !ours || config.template {
        return Testimony::NotOurs;
    }
    if config.net0().ok().flatten().and_then(|net| net.mac()) != Some(question.mac) {
        return Testimony::OtherMac;
    }
    let Some(interfaces) = interfaces else { return Testimony::NotRunning };
    let mut cards = interfaces.iter().filter(|card| card.mac == Some(question.mac)).peekable();
    // A guest agent that has just come up may list nothing at all; a guest without our card lists others.
    if cards.peek().is_none() && interfaces.iter().any(|card| card.mac.is_some_and(|mac| mac.octets() != [0; 6])) {
        return Testimony::OtherMac;
    }
    let addresses: Vec<IpAddr> =
        cards.flat_map(|card| &card.addresses).map(|address| address.ip.to_canonical()).collect();
    if addresses.contains(&question.address) {
        return Testimony::Yes;
    }
    let elsewhere: Vec<IpAddr> = addresses
        .into_iter()
        .filter(|ip| match ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        })
        .collect();
    // While only the other family has an address, this one's may still come.
    if elsewhere.iter().any(|ip| ip.is_ipv4() == question.address.is_ipv4()) {
        Testimony::ElsewhereAt(elsewhere)
    } else {
        Testimony::Silent("Proxmox shows no address of its interface yet".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use contract::manifest::GuestKind;
    use serde_json::{Value, json};

    use super::*;

    const MAC: &str = "BC:24:11:56:13:D3";
    /// As Proxmox VE 9.2 answers for a container: numbers as texts, types `inet` and `inet6`.
    const LXC: &str = r#"[{"name":"lo","ip-addresses":[{"ip-address-type":"inet","prefix":"8","ip-address":"127.0.0.1"}],
        "hardware-address":"00:00:00:00:00:00","hwaddr":"00:00:00:00:00:00","inet":"127.0.0.1/8"},
        {"inet6":"fe80::be24:11ff:fe56:13d3/64","inet":"10.123.0.90/24","hwaddr":"bc:24:11:56:13:d3","name":"eth0",
        "ip-addresses":[{"ip-address-type":"inet","prefix":"24","ip-address":"10.123.0.90"},
        {"ip-address-type":"inet6","prefix":"64","ip-address":"fe80::be24:11ff:fe56:13d3"}],
        "hardware-address":"bc:24:11:56:13:d3"}]"#;
    /// Before pve-container 5.2.6.
    const OLD: &str = r#"[{"name":"eth0","hwaddr":"bc:24:11:56:13:d3","inet":"10.123.0.90/24"}]"#;
    /// Right after a start.
    const EARLY: &str = r#"[{"name":"lo","hwaddr":"00:00:00:00:00:00","ip-addresses":[]},
        {"name":"eth0","hwaddr":"bc:24:11:56:13:d3","hardware-address":"bc:24:11:56:13:d3","ip-addresses":[]}]"#;
    /// A virtual machine's agent: numbers, types `ipv4` and `ipv6`.
    const QEMU: &str = r#"{"result":[{"name":"eth0","hardware-address":"bc:24:11:56:13:d3","statistics":{"rx-errs":0},
        "ip-addresses":[{"ip-address-type":"ipv4","prefix":24,"ip-address":"10.123.0.90"},
        {"ip-address-type":"ipv6","prefix":64,"ip-address":"fe80::be24:11ff:fe56:13d3"}]}]}"#;

    fn sight(instance: &str, mac: &str, interfaces: &str) -> Result<Option<Sight>, ProxmoxError> {
        let vmid = Vmid::try_from(900).unwrap();
        let guest = GuestRef { kind: GuestKind::Lxc, node: "pve1".parse().unwrap(), vmid };
        let marker = Marker::Guest {
            site: "acme-hq".parse().unwrap(),
            instance: instance.parse().unwrap(),
            release: "2026.06".parse().unwrap(),
            template: "sensor".parse().unwrap(),
            floor: None,
        };
        let net = format!("name=eth0,bridge=vmbr0,hwaddr={mac},ip=dhcp,type=veth");
        let config = json!({ "description": marker.render("").unwrap(), "net0": net });
        let data: Value = serde_json::from_str(interfaces).unwrap();
        let interfaces = (!data.is_null()).then(|| Interface::decode(&data));
        Ok(Some(Sight { config: GuestConfig::decode(&guest, config).unwrap(), interfaces }))
    }

    fn asked(look: &Result<Option<Sight>, ProxmoxError>, address: &str) -> Testimony {
        let address: IpAddr = address.parse().unwrap();
        let question = Question {
            site: &"acme-hq".parse().unwrap(),
            instance: &"attic".parse().unwrap(),
            vmid: 900.try_into().unwrap(),
            mac: MAC.parse().unwrap(),
            address: address.to_canonical(),
        };
        judge(&question, look)
    }

    #[test]
    fn the_address_of_the_running_interface_is_vouched_for_in_every_form_that_proxmox_has() {
        for form in [LXC, OLD, QEMU] {
            let look = sight("attic", MAC, form);
            assert_eq!(asked(&look, "10.123.0.90"), Testimony::Yes, "{form}");
            // As a listener on `::` sees an IPv4 peer.
            assert_eq!(asked(&look, "::ffff:10.123.0.90"), Testimony::Yes, "{form}");
            let elsewhere = Testimony::ElsewhereAt(vec!["10.123.0.90".parse().unwrap()]);
            assert_eq!(asked(&look, "10.123.0.91"), elsewhere, "{form}");
        }
        // Its loopback address is no proof: every guest has that one.
        assert!(matches!(asked(&sight("attic", MAC, LXC), "127.0.0.1"), Testimony::ElsewhereAt(_)));
    }

    #[test]
    fn what_is_not_known_yet_is_not_decided() {
        for early in [EARLY, r#"{"result":{"error":{"class":"GenericError","desc":"x"}}}"#, r#"{"result":[]}"#] {
            assert!(matches!(asked(&sight("attic", MAC, early), "10.123.0.90"), Testimony::Silent(_)), "{early}");
        }
        assert!(matches!(asked(&sight("attic", MAC, LXC), "2001:db8::5"), Testimony::Silent(_)));
    }

    #[test]
    fn another_guest_another_card_or_none_is_refused() {
        assert_eq!(asked(&sight("attic", MAC, "null"), "10.123.0.90"), Testimony::NotRunning);
        assert_eq!(asked(&sight("cellar", MAC, LXC), "10.123.0.90"), Testimony::NotOurs);
        assert_eq!(asked(&Ok(None), "10.123.0.90"), Testimony::NotOurs);
        assert_eq!(asked(&sight("attic", "BC:24:11:00:00:01", LXC), "10.123.0.90"), Testimony::OtherMac);
        let changed = OLD.replace("13:d3", "13:d4");
        assert_eq!(asked(&sight("attic", MAC, &changed), "10.123.0.90"), Testimony::OtherMac);
    }
}
