//! What differs between a wish and a guest's settings.

use std::collections::BTreeSet;

use contract::ids::{InstanceName, Mac};
use contract::manifest::GuestKind;
use contract::site::{Onboot, Protection};

use super::decide::Planner;
use super::desired::DesiredInstance;
use super::observed::{ObservedGuest, ObservedNet, Owner, Settings, Window};
use super::{Change, Net0, Setting};

impl Planner<'_> {
    /// What differs between wish and settings; everything when there are none yet.
    pub(super) fn changes(
        &self,
        name: &InstanceName,
        wish: &DesiredInstance,
        mac: Mac,
        present: Option<(&ObservedGuest, &Settings)>,
    ) -> Vec<Change> {
        let field = format!("instances.{name}");
        let settings = present.map(|(_, settings)| settings);
        let mut changes = Vec::new();
        let mut note = |to: Setting, from: Option<String>, at: &str| {
            changes.push(Change {
                to,
                from: from.unwrap_or_else(|| "as in the template".into()),
                field: self.desired.place(at),
            });
        };
        if settings.is_none_or(|now| now.hostname != wish.hostname.as_str()) {
            note(Setting::Hostname(wish.hostname.clone()), settings.map(|now| now.hostname.clone()), &field);
        }
        if let Some(cores) = wish.cores.filter(|cores| settings.is_none_or(|now| now.cores != Some(*cores))) {
            let from = settings.map(|now| now.cores.map_or("all".into(), |cores| cores.to_string()));
            note(Setting::Cores(cores), from, &format!("{field}.resources.cpu"));
        }
        if let Some(memory) = wish.memory.filter(|memory| settings.is_none_or(|now| now.memory != Some(*memory))) {
            let from = settings.map(|now| now.memory.map_or("Proxmox's default".into(), |memory| memory.to_string()));
            note(Setting::Memory(memory), from, &format!("{field}.resources.ram"));
        }
        let net = Net0 {
            bridge: self.desired.bridge.clone(),
            tag: wish.vlan.map(|vlan| vlan.get()),
            mac: Some(mac),
            ip: wish.ip.filter(|_| wish.kind == contract::manifest::GuestKind::Lxc),
            gateway: wish.gateway.filter(|_| wish.kind == contract::manifest::GuestKind::Lxc),
        };
        let now = settings.map(|settings| settings.net0.as_ref());
        if now.is_none_or(|now| !same_net(wish, &net, now)) {
            let from = now.map(|now| {
                now.map_or("none".into(), |now| {
                    let ip = now.ip.as_deref().unwrap_or("no address");
                    let mac = now.mac.map_or(String::new(), |mac| format!(", {mac}"));
                    let tag = now.tag.map_or(String::new(), |tag| format!(" vlan {tag}"));
                    let gateway = now.gateway.as_ref().map_or(String::new(), |gateway| format!(" via {gateway}"));
                    format!("{}{tag}, {ip}{gateway}{mac}", now.bridge)
                })
            });
            note(Setting::Net0(net), from, &format!("{field}.network"));
        }
        let onboot = wish.onboot == Onboot::Start;
        if settings.is_none_or(|now| now.onboot != onboot) {
            note(Setting::Onboot(onboot), settings.map(|now| now.onboot.to_string()), &format!("{field}.onboot"));
        }
        let protect = wish.protect == Protection::Protected;
        if settings.is_none_or(|now| now.protection != protect) {
            note(
                Setting::Protection(protect),
                settings.map(|now| now.protection.to_string()),
                &format!("{field}.protect"),
            );
        }
        let tags = self.tags(name, present);
        if settings.is_none_or(|now| now.tags != tags) {
            let from = settings.map(|now| now.tags.iter().cloned().collect::<Vec<_>>().join(";"));
            note(Setting::Tags(tags.into_iter().collect()), from, &field);
        }
        let agent = self.observed.agents.get(name);
        let over = agent.is_none_or(|agent| agent.enrolled || agent.window == Window::Closed);
        if over && settings.is_some_and(|now| now.claim) {
            note(Setting::NoClaim, Some("one for its enrolment".into()), &field);
        }
        // `present` guests are found by their marker, so theirs is right; a clone carries it from its first instant.
        changes
    }

    /// The tags that the guest should have: ours, and those of others; never the ones that its template had as such.
    fn tags(&self, name: &InstanceName, present: Option<(&ObservedGuest, &Settings)>) -> BTreeSet<String> {
        let mut tags: BTreeSet<String> = present.map(|(_, now)| now.tags.clone()).unwrap_or_default();
        tags.remove("ctrlable-template");
        if let Some((ObservedGuest { owner: Owner::Ours { release, template, .. }, .. }, _)) = present {
            tags.remove(&format!("release-{release}"));
            tags.remove(&format!("template-{template}"));
        }
        tags.extend(["ctrlable".to_owned(), format!("site-{}", self.desired.site), format!("instance-{name}")]);
        tags
    }
}

/// Whether an interface already is what the site asks for. A VM has no `ip=`.
fn same_net(wish: &DesiredInstance, net: &Net0, now: Option<&ObservedNet>) -> bool {
    let Some(now) = now else { return false };
    let lxc = wish.kind == GuestKind::Lxc;
    let ip = match net.ip {
        Some(ip) => now.ip.as_deref() == Some(ip.to_string().as_str()),
        None => now.ip.as_deref() == Some("dhcp"),
    };
    now.bridge == net.bridge
        && now.tag == net.tag
        && now.mac == net.mac
        && (!lxc || (ip && now.gateway == net.gateway.map(|gateway| gateway.to_string())))
}
