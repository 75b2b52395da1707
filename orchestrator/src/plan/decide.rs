//! From wishes and observations to steps.

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{Generation, InstanceName, Mac, NodeName, Vmid};
use contract::site::{Onboot, Protection, Prune};

use super::desired::{Desired, DesiredInstance, Wished};
use super::identity::{lowest_free, mac_for};
use super::observed::{Ledger, Observed, ObservedGuest, ObservedTemplate, Owner, Power, Settings, Window};
use super::{Action, Blocked, Cause, Change, InstancePlan, Net0, Plan, Setting, Step};

/// Bytes in a GiB.
const GIB: u64 = 1 << 30;

/// What has to be done so that what is there becomes what is wanted.
pub fn plan(desired: &Desired, observed: &Observed, ledger: &Ledger) -> Plan {
    let mut planner = Planner::new(desired, observed, ledger);
    let mut instances: Vec<InstancePlan> =
        desired.instances.iter().map(|(name, wish)| planner.wanted(name, wish)).collect();
    instances.extend(planner.unwanted());
    instances.sort_by(|a, b| a.instance.cmp(&b.instance));
    Plan { site: desired.site.clone(), revision: desired.revision.clone(), release: desired.release.clone(), instances }
}

struct Planner<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    ledger: &'a Ledger,
    /// Guests of this site by instance; more than one is a conflict that only a person can resolve.
    ours: BTreeMap<&'a InstanceName, Vec<(Vmid, &'a ObservedGuest)>>,
    /// Numbers that no new guest may get.
    numbers: BTreeSet<Vmid>,
    /// MAC addresses that no new guest may get.
    macs: BTreeSet<Mac>,
}

impl<'a> Planner<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed, ledger: &'a Ledger) -> Self {
        let mut ours: BTreeMap<&InstanceName, Vec<(Vmid, &ObservedGuest)>> = BTreeMap::new();
        for (vmid, guest) in &observed.guests {
            if let Owner::Ours { site, instance, .. } = &guest.owner
                && *site == desired.site
            {
                ours.entry(instance).or_default().push((*vmid, guest));
            }
        }
        let mut numbers: BTreeSet<Vmid> = observed.guests.keys().copied().chain(ledger.taken.iter().copied()).collect();
        numbers.extend(ledger.reservations.values().map(|reservation| reservation.vmid));
        numbers.extend(desired.instances.values().filter_map(|wish| wish.vmid));
        let mut macs: BTreeSet<Mac> = ledger.reservations.values().map(|reservation| reservation.mac).collect();
        macs.extend(desired.instances.values().filter_map(|wish| wish.mac));
        macs.extend(observed.guests.values().filter_map(|guest| guest.settings.as_ref()?.net0.as_ref()?.mac));
        Self { desired, observed, ledger, ours, numbers, macs }
    }

    fn cause(&self, field: &str, observed: impl Into<String>) -> Cause {
        Cause { field: self.desired.place(field), observed: observed.into() }
    }

    /// An instance that the site asks for.
    fn wanted(&mut self, name: &InstanceName, wish: &DesiredInstance) -> InstancePlan {
        let mut part =
            InstancePlan { instance: name.clone(), vmid: None, mac: None, steps: vec![], blocked: None, notes: vec![] };
        let guests = self.ours.get(name).cloned().unwrap_or_default();
        match guests.as_slice() {
            [] => self.missing(name, wish, &mut part),
            [(vmid, guest)] => self.present(name, wish, *vmid, guest, &mut part),
            several => {
                let numbers: Vec<String> = several.iter().map(|(vmid, _)| vmid.to_string()).collect();
                part.blocked = Some(Blocked {
                    reason: "duplicate-guest",
                    message: format!("guests {} all carry the marker of {name}", numbers.join(" and ")),
                    remedy: "destroy all but the right one, or remove the marker from the others' descriptions".into(),
                });
            }
        }
        if part.blocked.is_some() {
            part.steps.clear();
        }
        part
    }

    /// No guest yet: from clone to health.
    fn missing(&mut self, name: &InstanceName, wish: &DesiredInstance, part: &mut InstancePlan) {
        let field = format!("instances.{name}");
        let (vmid, mac) = match self.reserve(name, wish) {
            Ok(pair) => pair,
            Err(blocked) => {
                part.blocked = Some(blocked);
                return;
            }
        };
        part.vmid = Some(vmid);
        part.mac = Some(mac);
        let template = match self.template(wish) {
            Ok(template) => template,
            Err(blocked) => {
                part.blocked = Some(blocked);
                return;
            }
        };
        let (from, node, template_disk) = match template {
            Some(template) => (template.vmid, template.node.clone(), template.disk),
            // A laptop knows neither node nor number; what it prints is a rehearsal.
            None => match rehearsal(self.desired) {
                Some((from, node)) => (from, node, None),
                None => return,
            },
        };
        if let Some(blocked) = self.storage_trouble(&node, wish, template_disk) {
            part.blocked = Some(blocked);
            return;
        }
        if let Some(blocked) = missing_wiring(wish) {
            part.blocked = Some(blocked);
            return;
        }
        let kind = wish.kind;
        part.steps.push(Step {
            action: Action::Clone {
                template: wish.template.clone(),
                from,
                node: node.clone(),
                kind,
                storage: self.desired.storage.clone(),
                pool: self.desired.pool.clone(),
            },
            because: self.cause(&field, "no guest carries its marker"),
        });
        part.steps.push(Step {
            action: Action::Configure { node: node.clone(), kind, changes: self.changes(name, wish, mac, None) },
            because: self.cause(&field, "a clone has its template's settings"),
        });
        if let Some(to) = wish.disk.filter(|disk| template_disk.is_none_or(|now| now < *disk)) {
            let observed =
                template_disk.map_or("the template's disk".into(), |now| format!("the template has {now} GiB"));
            part.steps.push(Step {
                action: Action::Grow { node: node.clone(), kind, to },
                because: self.cause(&format!("{field}.resources.disk"), observed),
            });
        }
        self.wire(name, wish, &field, part);
        part.steps
            .push(Step { action: Action::Start { node, kind }, because: self.cause(&field, "a clone is stopped") });
        self.await_agent(&field, &super::ObservedAgent::default(), part, Agent::MustEnrol);
    }

    /// A guest is there: compare, correct, start, rewire.
    fn present(
        &mut self,
        name: &InstanceName,
        wish: &DesiredInstance,
        vmid: Vmid,
        guest: &ObservedGuest,
        part: &mut InstancePlan,
    ) {
        let field = format!("instances.{name}");
        part.vmid = Some(vmid);
        if let Some(lock) = &guest.lock {
            part.notes.push(format!("guest {vmid} is locked by Proxmox ({lock}); waiting"));
            part.blocked = Some(Blocked {
                reason: "guest-locked",
                message: format!("guest {vmid} holds the lock `{lock}`"),
                remedy: format!(
                    "nothing while a task explains it; a stale one only goes by `pct unlock {vmid}` on the node"
                ),
            });
            return;
        }
        let Some(settings) = &guest.settings else {
            part.blocked = Some(Blocked {
                reason: "guest-unreadable",
                message: format!("the settings of guest {vmid} cannot be read"),
                remedy: "check with `ctrlable doctor` that the token may audit the pool".into(),
            });
            return;
        };
        if guest.kind != wish.kind {
            part.blocked = Some(Blocked {
                reason: "kind-changed",
                message: format!("guest {vmid} is of another kind than template {}", wish.template),
                remedy: "give the instance a new name, so that a new guest is made beside the old one".into(),
            });
            return;
        }
        if let Owner::Ours { release, template, .. } = &guest.owner {
            if *template != wish.template {
                part.notes.push(format!(
                    "was cloned from template {template}, the site now asks for {}: the guest is kept as it is; \
                     give the instance a new name to get a new guest",
                    wish.template
                ));
            } else if *release != self.desired.release {
                part.notes.push(format!(
                    "was cloned from release {release}; it is kept and wired by {}",
                    self.desired.release
                ));
            }
        }
        if let Some(blocked) = missing_wiring(wish) {
            part.blocked = Some(blocked);
            return;
        }
        let mac = wish
            .mac
            .or_else(|| self.ledger.reservations.get(name).map(|reservation| reservation.mac))
            .or(settings.net0.as_ref().and_then(|net| net.mac))
            .or_else(|| mac_for(&self.desired.site, name, &self.macs));
        let Some(mac) = mac else { return };
        part.mac = Some(mac);
        let (node, kind) = (guest.node.clone(), guest.kind);
        let changes = self.changes(name, wish, mac, Some((guest, settings)));
        if !changes.is_empty() {
            let words: Vec<&str> = changes.iter().map(|change| change.to.word()).collect();
            part.steps.push(Step {
                because: self.cause(&field, format!("{} differ", words.join(", "))),
                action: Action::Configure { node: node.clone(), kind, changes },
            });
        }
        if let (Some(to), Some(now)) = (wish.disk, settings.disk)
            && now < to
        {
            part.steps.push(Step {
                action: Action::Grow { node: node.clone(), kind, to },
                because: self.cause(&format!("{field}.resources.disk"), format!("the disk has {now} GiB")),
            });
        }
        self.wire(name, wish, &field, part);
        let agent = self.observed.agents.get(name).cloned().unwrap_or_default();
        let enrols = if agent.enrolled { Agent::Enrolled } else { Agent::MustEnrol };
        match (guest.power, enrols, agent.window) {
            (Power::Stopped, ..) => part
                .steps
                .push(Step { action: Action::Start { node, kind }, because: self.cause(&field, "it is stopped") }),
            // Only a guest that we have just started may enrol: start it again.
            (Power::Running, Agent::MustEnrol, Window::Closed) => {
                let because = self.cause(&field, "it runs, has not enrolled, and its window is closed");
                part.steps.push(Step { action: Action::Stop { node: node.clone(), kind }, because: because.clone() });
                part.steps.push(Step { action: Action::Start { node, kind }, because });
            }
            (Power::Running, ..) => {}
        }
        self.await_agent(&field, &agent, part, enrols);
    }

    /// A new generation, when what the guest should have is not what it was last given.
    fn wire(&self, name: &InstanceName, wish: &DesiredInstance, field: &str, part: &mut InstancePlan) {
        let known = self.ledger.reservations.get(name).and_then(|reservation| reservation.wiring.as_ref());
        let observed = match &wish.wiring {
            Wished::Digest(digest) if known != Some(digest) => match known {
                None => "it has no assignment yet",
                Some(_) => "the assignment's content changed",
            },
            Wished::Unknown if known.is_none() => "it has no assignment yet",
            Wished::Digest(_) | Wished::Unknown | Wished::Missing { .. } => return,
        };
        part.steps.push(Step { action: Action::Wire, because: self.cause(&format!("{field}.wiring"), observed) });
    }

    fn await_agent(&self, field: &str, agent: &super::ObservedAgent, part: &mut InstancePlan, enrols: Agent) {
        if enrols == Agent::MustEnrol {
            part.steps.push(Step {
                action: Action::AwaitEnrolment,
                because: self.cause(field, "its agent has no certificate yet"),
            });
        }
        let newest = self.ledger.reservations.get(&part.instance).map_or(Generation(0), |known| known.generation);
        let rewired = part.steps.iter().any(|step| step.action == Action::Wire);
        if enrols == Agent::MustEnrol || rewired || agent.decided < newest {
            part.steps.push(Step {
                action: Action::AwaitHealthy,
                because: self.cause(field, "its newest assignment is not in force yet"),
            });
        }
    }

    /// What differs between wish and settings; everything when there are none yet.
    fn changes(
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
        let tags = self.tags(name, settings);
        if settings.is_none_or(|now| now.tags != tags) {
            let from = settings.map(|now| now.tags.iter().cloned().collect::<Vec<_>>().join(";"));
            note(Setting::Tags(tags.into_iter().collect()), from, &field);
        }
        // `present` guests are found by their marker, so theirs is right; a clone carries it from its first instant.
        changes
    }

    /// The tags that the guest should have: ours, and those of others; never the template's own.
    fn tags(&self, name: &InstanceName, settings: Option<&Settings>) -> BTreeSet<String> {
        let mut tags: BTreeSet<String> = settings
            .map(|now| &now.tags)
            .into_iter()
            .flatten()
            .filter(|tag| {
                let tag = tag.as_str();
                tag != "ctrlable-template"
                    && !tag.starts_with("release-")
                    && !tag.starts_with("template-")
                    && !tag.starts_with("site-")
                    && !tag.starts_with("instance-")
            })
            .cloned()
            .collect();
        tags.extend(["ctrlable".to_owned(), format!("site-{}", self.desired.site), format!("instance-{name}")]);
        tags
    }

    /// The number and MAC address that a new guest gets: what was reserved, if it is still free.
    fn reserve(&mut self, name: &InstanceName, wish: &DesiredInstance) -> Result<(Vmid, Mac), Blocked> {
        let held = self.ledger.reservations.get(name);
        let occupied = |vmid: &Vmid| self.observed.guests.contains_key(vmid) || self.ledger.taken.contains(vmid);
        let vmid = match wish.vmid {
            Some(vmid) if occupied(&vmid) => {
                return Err(Blocked {
                    reason: "vmid-taken",
                    message: format!("the site asks for number {vmid}, which another guest has"),
                    remedy: format!("choose another `instances.{name}.vmid`, or leave it out"),
                });
            }
            Some(vmid) => Some(vmid),
            None => held
                .map(|held| held.vmid)
                .filter(|vmid| !occupied(vmid) && self.desired.vmids.contains(*vmid))
                .or_else(|| lowest_free(self.desired.vmids, &self.numbers)),
        };
        let Some(vmid) = vmid else {
            return Err(Blocked {
                reason: "vmids-exhausted",
                message: format!("no number of {} is free", self.desired.vmids),
                remedy: "widen `proxmox.vmids`, or remove guests that are no longer needed".into(),
            });
        };
        self.numbers.insert(vmid);
        let mac = wish.mac.or(held.map(|held| held.mac)).or_else(|| mac_for(&self.desired.site, name, &self.macs));
        let Some(mac) = mac else {
            return Err(Blocked {
                reason: "macs-exhausted",
                message: "no MAC address of our range is free".into(),
                remedy: format!("give `instances.{name}.network.mac`"),
            });
        };
        self.macs.insert(mac);
        Ok((vmid, mac))
    }

    /// The template to clone; `None` on a laptop.
    fn template(&self, wish: &DesiredInstance) -> Result<Option<&'a ObservedTemplate>, Blocked> {
        let Some(version) = self.observed.version else { return Ok(None) };
        let release = &self.desired.release;
        if version < self.desired.min_version {
            return Err(Blocked {
                reason: "node-too-old",
                message: format!(
                    "release {release} needs Proxmox VE {}, the node has {version}",
                    self.desired.min_version
                ),
                remedy: "upgrade the node, or stay on an older release".into(),
            });
        }
        let matching: Vec<&ObservedTemplate> = self
            .observed
            .templates
            .iter()
            .filter(|template| template.release == *release && template.template == wish.template)
            .filter(|template| self.desired.node.as_ref().is_none_or(|node| template.node == *node))
            .collect();
        let place = self.desired.node.as_ref().map_or(String::new(), |node| format!(" on node {node}"));
        match matching.as_slice() {
            [template] if template.kind == wish.kind => Ok(Some(template)),
            [template] => Err(Blocked {
                reason: "template-kind",
                message: format!(
                    "template {} is a {:?}, the release says {:?}",
                    template.vmid, template.kind, wish.kind
                ),
                remedy: format!("remove the tags of {} and adopt the right guest", template.vmid),
            }),
            [] => Err(Blocked {
                reason: "template-missing",
                message: format!("there is no template {} of release {release}{place}", wish.template),
                remedy: format!(
                    "build it (docs/template.md) and mark it with `ctrlable template adopt VMID --release {release} \
                     --name {}`",
                    wish.template
                ),
            }),
            several => {
                let numbers: Vec<String> = several.iter().map(|template| template.vmid.to_string()).collect();
                Err(Blocked {
                    reason: "template-ambiguous",
                    message: format!(
                        "templates {} are all {} of release {release}{place}",
                        numbers.join(" and "),
                        wish.template
                    ),
                    remedy: "remove all but one, or say `proxmox.node`".into(),
                })
            }
        }
    }

    fn storage_trouble(&self, node: &NodeName, wish: &DesiredInstance, template_disk: Option<u32>) -> Option<Blocked> {
        self.observed.version?;
        let name = &self.desired.storage;
        let at = self.desired.place("proxmox.storage");
        let Some(storage) =
            self.observed.storages.iter().find(|storage| storage.node == *node && storage.storage == *name)
        else {
            return Some(Blocked {
                reason: "storage-missing",
                message: format!("node {node} has no storage {name}, or the token may not see it"),
                remedy: format!("correct {at}, or grant Datastore.AllocateSpace on /storage/{name}"),
            });
        };
        let content = match wish.kind {
            contract::manifest::GuestKind::Lxc => "rootdir",
            contract::manifest::GuestKind::Vm => "images",
        };
        if !storage.active {
            return Some(Blocked {
                reason: "storage-inactive",
                message: format!("storage {name} on {node} is not active"),
                remedy: "bring it back on the node".into(),
            });
        }
        if !storage.content.contains(content) {
            return Some(Blocked {
                reason: "storage-content",
                message: format!("storage {name} does not take {content}"),
                remedy: format!("correct {at}, or allow it in the storage's content types"),
            });
        }
        let need = u64::from(wish.disk.into_iter().chain(template_disk).max().unwrap_or(1)) * GIB;
        if storage.available < need {
            return Some(Blocked {
                reason: "storage-full",
                message: format!(
                    "storage {name} has {:.1} GiB free, the guest needs {} GiB",
                    storage.available as f64 / GIB as f64,
                    need / GIB
                ),
                remedy: "free space, or ask for less disk; it is tried again by itself".into(),
            });
        }
        None
    }

    /// Guests of this site that it no longer asks for.
    fn unwanted(&self) -> Vec<InstancePlan> {
        let mut parts = Vec::new();
        for (name, guests) in self.ours.iter().filter(|(name, _)| !self.desired.instances.contains_key(**name)) {
            for (vmid, guest) in guests {
                let mut part = InstancePlan {
                    instance: (*name).clone(),
                    vmid: Some(*vmid),
                    mac: None,
                    steps: vec![],
                    blocked: None,
                    notes: vec![],
                };
                self.remove(guest, *vmid, &mut part);
                parts.push(part);
            }
        }
        parts
    }

    fn remove(&self, guest: &ObservedGuest, vmid: Vmid, part: &mut InstancePlan) {
        let because = self.cause("instances", format!("guest {vmid} is ours and no longer asked for"));
        if self.desired.prune == Prune::Refuse {
            part.notes.push(format!("guest {vmid} is no longer asked for; it is kept, because `prune` is off"));
            return;
        }
        let blocked = |reason, message: String, remedy: &str| Some(Blocked { reason, message, remedy: remedy.into() });
        if self.desired.instances.is_empty() {
            part.blocked = blocked(
                "prune-everything",
                "a site without instances never destroys its guests".into(),
                "remove them one by one, or destroy them in Proxmox",
            );
            return;
        }
        let Some(settings) = guest.settings.as_ref().filter(|_| guest.lock.is_none()) else {
            part.blocked = blocked(
                "guest-unreadable",
                format!("guest {vmid} is locked or cannot be read"),
                "it is tried again by itself",
            );
            return;
        };
        if settings.protection {
            part.blocked = blocked(
                "protected",
                format!("guest {vmid} is protected"),
                "set `protect: false` in a revision that still has the instance, then remove it",
            );
            return;
        }
        let Some(backup) = self
            .observed
            .storages
            .iter()
            .find(|storage| storage.node == guest.node && storage.active && storage.content.contains("backup"))
        else {
            part.blocked = blocked(
                "no-backup-storage",
                format!("node {} has no active storage for backups, and nothing is destroyed without one", guest.node),
                "allow `backup` in a storage's content types, and grant the token Datastore.AllocateSpace on it",
            );
            return;
        };
        let (node, kind) = (guest.node.clone(), guest.kind);
        part.steps.push(Step {
            action: Action::BackUp { node: node.clone(), storage: backup.storage.clone() },
            because: because.clone(),
        });
        if guest.power == Power::Running {
            part.steps.push(Step { action: Action::Stop { node: node.clone(), kind }, because: because.clone() });
        }
        part.steps.push(Step { action: Action::Destroy { node, kind }, because });
    }
}

/// Whether an agent still has to enrol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Enrolled,
    MustEnrol,
}

fn missing_wiring(wish: &DesiredInstance) -> Option<Blocked> {
    match &wish.wiring {
        Wished::Missing { reason, message, remedy } => {
            Some(Blocked { reason, message: message.clone(), remedy: remedy.clone() })
        }
        Wished::Digest(_) | Wished::Unknown => None,
    }
}

/// Number and node that a laptop prints for a template that it cannot see.
fn rehearsal(desired: &Desired) -> Option<(Vmid, NodeName)> {
    let node = desired.node.clone().or_else(|| "any-node".parse().ok())?;
    Some((Vmid::try_from(100).ok()?, node))
}

/// Whether an interface already is what the site asks for. A VM has no `ip=`.
fn same_net(wish: &DesiredInstance, net: &Net0, now: Option<&super::observed::ObservedNet>) -> bool {
    let Some(now) = now else { return false };
    let lxc = wish.kind == contract::manifest::GuestKind::Lxc;
    let ip = match net.ip {
        Some(ip) => now.ip.as_deref() == Some(ip.to_string().as_str()),
        None => now.ip.as_deref() == Some("dhcp"),
    };
    now.bridge == net.bridge
        && now.tag == net.tag
        && now.mac == net.mac
        && (!lxc || (ip && now.gateway == net.gateway.map(|gateway| gateway.to_string())))
}
