//! What Proxmox and SSH write.

use std::str::from_utf8;

use contract::manifest::GuestKind;
use orchestrator::proxmox::{Marker, Net, Tags, Upid};
use orchestrator::source::{KnownHosts, Verdict};
use orchestrator::trust::Numbers;

pub(crate) fn upid(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    if let Ok(upid) = text.parse::<Upid>() {
        assert_eq!(upid.to_string(), text);
        let parts = [upid.node().as_str(), upid.kind(), upid.id(), upid.user()];
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?}");
    }
}

pub(crate) fn net(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    for kind in [GuestKind::Lxc, GuestKind::Vm] {
        let Ok(net) = Net::parse(kind, text) else { continue };
        let again = Net::parse(kind, &net.to_string()).unwrap_or_else(|error| panic!("{error}: {net}"));
        assert_eq!(again, net);
        assert_eq!(net.differences(&again), Vec::<String>::new());
        let mac = "BC:24:11:00:00:01".parse().unwrap();
        let changed = net.clone().with_mac(mac).with_addressing(net.addressing());
        assert_eq!(Net::parse(kind, &changed.to_string()).unwrap().mac(), Some(mac), "{changed}");
    }
}

pub(crate) fn tags(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    let tags = Tags::parse(text);
    assert_eq!(Tags::parse(&tags.to_string()), tags);
    let ours = Tags::of_guest(&"acme-hq".parse().unwrap(), &"zigbee".parse().unwrap());
    let both = tags.with_ours(&ours);
    assert!(ours.iter().all(|tag| both.has(tag)), "{both}");
    // A guest that was not ours keeps what looks like ours; from then on, ours are ours.
    let again = both.with_ours(&ours);
    assert_eq!(again.with_ours(&ours), again);
}

pub(crate) fn marker(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    let parsed = Marker::parse(text);
    let ours = Marker::Guest {
        site: "acme-hq".parse().unwrap(),
        instance: "zigbee".parse().unwrap(),
        release: "2026.06".parse().unwrap(),
        template: "zigbee2mqtt".parse().unwrap(),
        floor: Some(Numbers { keys: 2, channels: 17, dealers: 3 }),
    };
    for marker in parsed.into_iter().flatten().chain([ours]) {
        // Into whatever text: it is found there again, and put there a second time it changes nothing.
        let Ok(description) = marker.render(text) else { continue };
        assert_eq!(Marker::parse(&description), Ok(Some(marker.clone())), "{description}");
        assert_eq!(marker.render(&description).as_ref(), Ok(&description));
    }
}

pub(crate) fn known_hosts(data: &[u8]) {
    const KIND: &str = "ssh-ed25519";
    let Ok(text) = from_utf8(data) else { return };
    let Ok(list) = KnownHosts::parse(text) else { return };
    let before = list.judge("git.example.com", 22, KIND, b"key");
    list.judge("192.0.2.1", 2222, KIND, b"key");
    // What a person adds is believed, unless the same key is revoked.
    let longer = KnownHosts::parse(&format!("{text}\ngit.example.com {KIND} a2V5\n")).unwrap();
    let after = longer.judge("git.example.com", 22, KIND, b"key");
    let wanted = if before == Verdict::Revoked { Verdict::Revoked } else { Verdict::Known };
    assert_eq!(after, wanted);
}
