//! What a site asks for against what HQ allows.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::outline::Outline;
use super::problems::{MOST, sorted};
use super::read::nearest;
use crate::dealers::{Dealer, Dealers, Limits, PrivilegedContainers};
use crate::manifest::{Manifest, Privilege, Template};
use crate::refusal::{Reason, Refusal};
use crate::site::{Instance, Site};

/// The dealer of the site, if HQ lets it look after this site.
pub(super) fn dealer_of<'d>(outline: &Outline, site: &Site, dealers: &'d Dealers) -> Result<&'d Dealer, Box<Refusal>> {
    let refuse = |message, remedy| {
        Err(Box::new(Refusal { reason: Reason::DealerNotAllowed, place: outline.place("dealer"), message, remedy }))
    };
    match dealers.dealers.get(&site.dealer) {
        Some(dealer) if dealer.covers(&site.site) => Ok(dealer),
        Some(dealer) => {
            let message = format!("HQ does not let `{}` look after {}", site.dealer, site.site);
            refuse(message, format!("its sites are: {}; HQ can add this one to dealers.yaml", in_words(&dealer.sites)))
        }
        None => {
            let message = format!("HQ knows no dealer `{}`", site.dealer);
            let nearest = nearest(site.dealer.as_str(), dealers.dealers.keys().map(|name| name.as_str()));
            refuse(message, format!("{nearest}; HQ can add it to dealers.yaml"))
        }
    }
}

/// Every limit that the site exceeds.
pub(super) fn check(outline: &Outline, site: &Site, manifest: &Manifest, limits: &Limits) -> Vec<Refusal> {
    let mut found = Found { outline, refusals: Vec::new() };
    if let Some(bridges) = &limits.bridges {
        found.name(Reason::LimitBridges, "proxmox.bridge", "bridge", &site.proxmox.bridge, bridges);
    }
    let count = site.instances.len();
    if let Some(most) = limits.instances.filter(|most| count > *most as usize) {
        let message = format!("{count} instances are more than the {most} that HQ allows (limit `instances`)");
        found.push(Reason::LimitInstances, "instances", message, "take some out, or ask HQ for a higher limit");
    }
    for (name, instance) in &site.instances {
        let Some(template) = manifest.templates.get(&instance.template) else { continue };
        let at = format!("instances.{name}.template");
        if let Some(templates) = &limits.templates {
            found.name(Reason::LimitTemplates, &at, "template", &instance.template, templates);
        }
        if limits.privileged == PrivilegedContainers::Forbidden && template.privilege == Privilege::Privileged {
            let message = format!(
                "`{}` is a privileged container, and HQ allows none (limit `privileged: false`)",
                instance.template
            );
            found.push(Reason::LimitPrivileged, &at, message, "use another template, or ask HQ to allow it");
        }
    }
    for resource in RESOURCES {
        resource.check(&mut found, site, manifest, limits);
    }
    found.refusals.truncate(MOST);
    sorted(found.refusals)
}

/// One resource and where it stands.
struct Resource {
    reason: Reason,
    name: &'static str,
    unit: &'static str,
    /// What an instance asks for, or else what its template gives; none where neither says it.
    wanted: fn(&Instance, &Template) -> Option<u32>,
    /// Of one instance, and of the whole site.
    limits: fn(&Limits) -> (Option<u32>, Option<u32>),
}

const RESOURCES: [Resource; 3] = [
    Resource {
        reason: Reason::LimitCpu,
        name: "cpu",
        unit: "cores",
        wanted: |instance, template| instance.resources.cpu.or(template.resources.map(|given| given.cpu)),
        limits: |limits| (limits.per_instance.cpu, limits.per_site.cpu),
    },
    Resource {
        reason: Reason::LimitMemory,
        name: "ram",
        unit: "MiB of memory",
        wanted: |instance, template| instance.resources.ram.or(template.resources.map(|given| given.ram)),
        limits: |limits| (limits.per_instance.ram, limits.per_site.ram),
    },
    Resource {
        reason: Reason::LimitDisk,
        name: "disk",
        unit: "GiB of disk",
        wanted: |instance, template| instance.resources.disk.or(template.resources.map(|given| given.disk)),
        limits: |limits| (limits.per_instance.disk, limits.per_site.disk),
    },
];

impl Resource {
    fn check(&self, found: &mut Found<'_>, site: &Site, manifest: &Manifest, limits: &Limits) {
        let Self { reason, name: resource, unit, .. } = *self;
        let (per_instance, per_site) = (self.limits)(limits);
        if per_instance.is_none() && per_site.is_none() {
            return;
        }
        let mut sum = 0_u64;
        for (name, instance) in &site.instances {
            let Some(template) = manifest.templates.get(&instance.template) else { continue };
            let field = format!("instances.{name}.resources.{resource}");
            let Some(wanted) = (self.wanted)(instance, template) else {
                let message = format!(
                    "HQ limits `{resource}`, and neither this instance nor `{}` says how much it gets",
                    instance.template
                );
                found.push(reason, &field, message, &format!("add `resources: {{ {resource}: … }}` to the instance"));
                continue;
            };
            sum += u64::from(wanted);
            if let Some(most) = per_instance.filter(|most| wanted > *most) {
                let message = format!(
                    "{wanted} {unit} are more than the {most} that HQ allows one instance (limit \
                     `per_instance.{resource}`)"
                );
                found.push(reason, &field, message, "ask for less, or ask HQ for a higher limit");
            }
        }
        if let Some(most) = per_site.filter(|most| sum > u64::from(*most)) {
            let message = format!(
                "{sum} {unit} in all instances together are more than the {most} that HQ allows a site (limit \
                 `per_site.{resource}`)"
            );
            found.push(reason, "instances", message, "ask for less, or ask HQ for a higher limit");
        }
    }
}

/// Refusals so far. Several may have one field: each limit counts for itself.
struct Found<'a> {
    outline: &'a Outline,
    refusals: Vec<Refusal>,
}

impl Found<'_> {
    fn push(&mut self, reason: Reason, field: &str, message: String, remedy: &str) {
        let place = self.outline.place(field);
        self.refusals.push(Refusal { reason, place, message, remedy: remedy.to_owned() });
    }

    /// Refuses a name that is not in the list.
    fn name<T: Ord + Display>(&mut self, reason: Reason, field: &str, what: &str, name: &T, allowed: &BTreeSet<T>) {
        if !allowed.contains(name) {
            let message = format!("HQ does not allow the {what} `{name}` here (limit `{what}s`)");
            self.push(reason, field, message, &format!("allowed are: {}", in_words(allowed)));
        }
    }
}

fn in_words<T: Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
