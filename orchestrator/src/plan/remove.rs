//! Guests of ours that the site no longer asks for.

use contract::ids::Vmid;
use contract::site::Prune;

use super::decide::Planner;
use super::observed::{ObservedGuest, Power};
use super::{Action, Blocked, InstancePlan, Step};

impl Planner<'_> {
    /// One part for each of them.
    pub(super) fn unwanted(&self) -> Vec<InstancePlan> {
        let mut parts = Vec::new();
        for (name, guests) in self.ours.iter().filter(|(name, _)| !self.desired.instances.contains_key(**name)) {
            let several = guests.len() > 1;
            for (vmid, guest) in guests {
                let mut part = InstancePlan {
                    instance: (*name).clone(),
                    vmid: Some(*vmid),
                    mac: None,
                    steps: vec![],
                    blocked: None,
                    notes: vec![],
                };
                let known = self.ledger.reservations.get(*name).is_some_and(|held| held.vmid == *vmid);
                if several || !(known || self.desired.vmids.contains(*vmid)) {
                    part.notes.push(format!(
                        "guest {vmid} carries the marker of {name}, which is no longer asked for; it is kept, because it \
                         may be a copy: destroy it in Proxmox if it is not needed"
                    ));
                } else {
                    self.remove(guest, *vmid, &mut part);
                }
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
        let mut backups: Vec<_> = self
            .observed
            .storages
            .iter()
            .filter(|storage| storage.node == guest.node && storage.active && storage.content.contains("backup"))
            .collect();
        // Proxmox lists storages in no order (pve-api 2.2); the same one must be chosen every time.
        backups.sort_by(|a, b| a.storage.cmp(&b.storage));
        let Some(backup) = backups.first() else {
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
