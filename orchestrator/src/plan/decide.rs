//! From wishes and observations to steps.

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{Generation, InstanceName, Mac, Vmid};

use super::desired::{Desired, DesiredInstance, Wished};
use super::identity::mac_for;
use super::observed::{Ledger, Made, Observed, ObservedGuest, Owner, Power, Window};
use super::{Action, Blocked, Cause, InstancePlan, Plan, Step};

/// What has to be done so that what is there becomes what is wanted.
pub fn plan(desired: &Desired, observed: &Observed, ledger: &Ledger) -> Plan {
    let mut planner = Planner::new(desired, observed, ledger);
    let mut instances: Vec<InstancePlan> =
        desired.instances.iter().map(|(name, wish)| planner.wanted(name, wish)).collect();
    instances.extend(planner.unwanted());
    instances.sort_by(|a, b| a.instance.cmp(&b.instance));
    Plan { site: desired.site.clone(), revision: desired.revision.clone(), release: desired.release.clone(), instances }
}

pub(super) struct Planner<'a> {
    pub(super) desired: &'a Desired,
    pub(super) observed: &'a Observed,
    pub(super) ledger: &'a Ledger,
    /// Guests of this site by instance; more than one is a conflict that only a person can resolve.
    pub(super) ours: BTreeMap<&'a InstanceName, Vec<(Vmid, &'a ObservedGuest)>>,
    /// Numbers that no new guest may get.
    pub(super) numbers: BTreeSet<Vmid>,
    /// MAC addresses that no new guest may get.
    pub(super) macs: BTreeSet<Mac>,
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

    pub(super) fn cause(&self, field: &str, observed: impl Into<String>) -> Cause {
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
        if let Some(why) = &self.desired.revoked {
            part.blocked = Some(Blocked {
                reason: "release-revoked",
                message: format!(
                    "HQ has revoked release {}, so nothing is cloned from it: {why}",
                    self.desired.release
                ),
                remedy: "let the site follow another release".into(),
            });
            return;
        }
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
            Some(template) => (Some(template.vmid), Some(template.node.clone()), template.disk),
            // A laptop knows neither node nor number; what it prints is a rehearsal.
            None => (None, self.desired.node.clone().or_else(|| "any-node".parse().ok()), None),
        };
        let Some(node) = node else { return };
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
            (Power::Running, Agent::MustEnrol, Window::Closed)
                if self.ledger.reservations.get(name).is_none_or(|held| held.guest == Made::NotYet) =>
            {
                part.blocked = Some(Blocked {
                    reason: "agent-unknown",
                    message: format!(
                        "guest {vmid} runs and is ours, but this ledger knows neither its making nor its agent"
                    ),
                    remedy: "restore the ledger's backup; or destroy the guest, and it is made anew".into(),
                });
                return;
            }
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
        let observed = match (&wish.wiring, known) {
            (Wished::Digest(_) | Wished::Unknown, None) => Some("it has no assignment yet".to_owned()),
            (Wished::Digest(digest), Some(known)) => digest.since(known),
            (Wished::Unknown, Some(_)) | (Wished::Missing { .. }, _) => None,
        };
        let Some(observed) = observed else { return };
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
