//! One instance's steps, in order.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use contract::enrolment::CLAIM_PREFIX;
use contract::ids::Vmid;
use contract::manifest::GuestKind;
use contract::secret::Secret;
use contract::site::Prune;
use tokio::time::Instant;

use super::{Executor, StepError, Work, crash_point, fingerprint, hostname, lock};
use crate::plan::{Action, Change, InstancePlan, Setting, Step, describe};
use crate::proxmox::{
    AfterTimeout, Backup, BackupMode, CloneMode, CloneRequest, ConfigChange, Disposition, GuestRef, Leftovers, Marker,
    Net, Problem, Tags, Upid, claim,
};
use crate::store::{Event, EventKind, JournalEntry, JournalState, Reservation, now};

/// Longest time that each kind of task may take before the lane stops waiting; the task goes on, and its row is
/// resumed by the next pass. A full clone of 32 GiB on a slow disk takes some ten minutes.
const CLONE: Duration = Duration::from_secs(60 * 60);
const BACKUP: Duration = Duration::from_secs(4 * 60 * 60);
const OTHER: Duration = Duration::from_secs(10 * 60);

/// Tries of one call within a step while Proxmox says that a lock is busy. Each waits up to 10 s by itself already.
const TRIES: u32 = 3;

impl Executor {
    /// Does an instance's steps until one has to be waited for, fails, or is no longer asked for.
    pub(super) async fn run(&self, part: &InstancePlan, work: &Work) {
        if let Err(error) = self.reserve(part, work) {
            self.trouble(part, work, "reserve", &error);
            return;
        }
        let removes = part.steps.iter().any(|step| matches!(step.action, Action::Destroy { .. }));
        for step in part.steps.iter().filter(|step| !step.action.is_wait()) {
            if !self.is_still_asked_for(part, removes) {
                return;
            }
            if let Err(error) = self.step(part, step, work).await {
                self.trouble(part, work, step.action.word(), &error);
                return;
            }
        }
        lock(&self.0.finished).insert(part.instance.clone(), (fingerprint(part), std::time::Instant::now()));
        // A guest that never enrolled stays in trouble until it does; what does not stick, until it does.
        let stays = |reason: &str| matches!(reason, super::NEVER_ENROLLED | super::DOES_NOT_STICK);
        let cleared = match self.0.store.instance(&part.instance) {
            Ok(Some(record)) if record.trouble.as_ref().is_some_and(|trouble| stays(&trouble.reason)) => Ok(()),
            Ok(_) => self.0.store.clear_trouble(&part.instance),
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            tracing::error!(reason = error.reason(), %error, "the ledger cannot be written");
        }
    }

    /// A lane may have waited for hours, for a template or a backup: what the dealer has taken back is not done.
    fn is_still_asked_for(&self, part: &InstancePlan, removes: bool) -> bool {
        let latest = self.0.latest.read().unwrap_or_else(|held| held.into_inner());
        latest.as_ref().is_none_or(|latest| {
            let wanted = latest.wanted.contains(&part.instance);
            if removes { !wanted && latest.prune == Prune::Allow } else { wanted }
        })
    }

    /// Binds number, MAC address and origin to the instance before anything is made under them.
    fn reserve(&self, part: &InstancePlan, work: &Work) -> Result<(), StepError> {
        let (Some(vmid), Some(mac)) = (part.vmid, part.mac) else { return Ok(()) };
        let known = self.0.store.instance(&part.instance)?;
        let clone = part.steps.iter().find_map(|step| match &step.action {
            Action::Clone { template, .. } => Some(template),
            _ => None,
        });
        let hostname = hostname(&work.plan, part)?;
        match (known, clone, work.assignments.get(&part.instance)) {
            // A guest that is there keeps what it was cloned from.
            (Some(record), None, _) if (record.vmid, record.mac) == (vmid, mac) => Ok(()),
            (Some(record), None, _) => Ok(self.0.store.reserve(&Reservation {
                instance: &part.instance,
                vmid,
                mac,
                hostname: &hostname,
                release: &record.release,
                template: &record.template,
            })?),
            (_, Some(template), _) => Ok(self.0.store.reserve(&Reservation {
                instance: &part.instance,
                vmid,
                mac,
                hostname: &hostname,
                release: &work.plan.release,
                template,
            })?),
            // A lost ledger: the guest is known by its marker.
            (None, None, Some((_, assignment))) => Ok(self.0.store.reserve(&Reservation {
                instance: &part.instance,
                vmid,
                mac,
                hostname: &hostname,
                release: &assignment.release,
                template: &assignment.template,
            })?),
            (None, None, None) => Ok(()),
        }
    }

    /// One step, with its rows in the journal and its events.
    async fn step(&self, part: &InstancePlan, step: &Step, work: &Work) -> Result<(), StepError> {
        let vmid = part.vmid.ok_or_else(|| StepError::Refused("the plan gives it no number".into()))?;
        let word = step.action.word();
        let detail = describe(&step.action);
        let event = |kind, message: String| {
            let event = Event::new(kind, message).instance(&part.instance);
            match work.plan.revision.parse() {
                Ok(revision) => event.revision(&revision),
                Err(_) => event,
            }
        };
        let row = self.0.store.intend(&JournalEntry {
            instance: &part.instance,
            action: word,
            vmid,
            node: step.action.node(),
            detail: &detail,
            because: &step.because.to_string(),
            revision: &work.plan.revision,
            plan: &work.plan.hash(),
        })?;
        self.0.store.record(event(EventKind::StepStarted, format!("{}: {detail}", part.instance)))?;
        crash_point(word, "intended");
        match self.perform(part, step, work, row, vmid).await {
            Ok(()) => {
                crash_point(word, "performed");
                self.0.store.ended(row, JournalState::Done, None)?;
                self.0.store.record(event(EventKind::StepDone, format!("{}: {detail}: done", part.instance)))?;
                crash_point(word, "done");
                Ok(())
            }
            Err(error) => {
                if let StepError::Proxmox(cause) = &error {
                    if matches!(cause.cause(), Problem::TaskStillRunning(_)) {
                        // The row stays open; the next pass takes it up where it is.
                        return Err(error);
                    }
                    if cause.disposition() == Disposition::Uncertain {
                        // It may have happened: find out before anybody plans with it.
                        let found = self.settle(&part.instance, &step.action, vmid, patience(cause)).await;
                        if let Err(trouble) = found {
                            tracing::warn!(reason = trouble.reason(), %trouble, "what became of a call is not known");
                        }
                        self.0.store.ended(
                            row,
                            JournalState::Interrupted,
                            Some((error.reason(), &error.to_string())),
                        )?;
                        return Err(error);
                    }
                }
                self.0.store.ended(row, JournalState::Failed, Some((error.reason(), &error.to_string())))?;
                Err(error)
            }
        }
    }

    async fn perform(
        &self,
        part: &InstancePlan,
        step: &Step,
        work: &Work,
        row: i64,
        vmid: Vmid,
    ) -> Result<(), StepError> {
        let client = &self.0.client;
        let guest = |node: &contract::ids::NodeName, kind: GuestKind| GuestRef { kind, node: node.clone(), vmid };
        match &step.action {
            Action::Clone { template, from, node, kind, storage, pool } => {
                let from = from.ok_or_else(|| StepError::Refused("the plan is a rehearsal without a node".into()))?;
                let marker = Marker::Guest {
                    site: work.plan.site.clone(),
                    instance: part.instance.clone(),
                    release: work.plan.release.clone(),
                    template: template.clone(),
                    floor: self.0.store.floor()?.map(|known| known.floor.numbers()),
                };
                let request = CloneRequest {
                    vmid,
                    name: hostname(&work.plan, part)?,
                    pool: Some(pool.clone()),
                    description: Some(marker.render("").map_err(|error| StepError::Refused(error.to_string()))?),
                    storage: Some(storage.clone()),
                    target: None,
                    mode: CloneMode::Full,
                };
                let source = GuestRef { kind: *kind, node: node.clone(), vmid: from };
                let lock = self.template_lock(from);
                let _turn = match kind {
                    GuestKind::Lxc => Some(lock.lock().await),
                    GuestKind::Vm => None,
                };
                let upid = match self.again(|| client.clone_guest(&source, &request)).await {
                    Err(error) if matches!(error.cause(), Problem::VmidTaken) => {
                        self.number_is_taken(part, &step.action, &guest(node, *kind), work).await?;
                        return Err(error.into());
                    }
                    other => other?,
                };
                // The number was free: whatever agent had it is gone with its guest.
                self.0.store.forget_agent(&part.instance)?;
                self.finish(row, "clone", upid, CLONE).await?;
                match self.owned(&guest(node, *kind), part, work).await {
                    Owned::Yes => Ok(self.0.store.note_made(&part.instance)?),
                    Owned::No => {
                        Err(StepError::Refused(format!("guest {vmid} does not carry our marker after its clone")))
                    }
                    Owned::Unknown(error) => Err(error.into()),
                }
            }
            Action::Configure { node, kind, changes } => {
                let guest = guest(node, *kind);
                self.must_be_ours(&guest, part, work).await?;
                self.configure(&guest, changes).await
            }
            Action::Grow { node, kind, to } => {
                let guest = guest(node, *kind);
                self.must_be_ours(&guest, part, work).await?;
                let disk = client
                    .guest_config(&guest)
                    .await?
                    .root_disk_key()
                    .ok_or_else(|| StepError::Refused(format!("guest {vmid} has no root disk that could grow")))?;
                let upid = self.again(|| client.resize(&guest, &disk, *to, None)).await?;
                self.finish(row, "grow", upid, OTHER).await
            }
            Action::Wire => {
                let Some((digest, assignment)) = work.assignments.get(&part.instance) else {
                    return Err(StepError::Refused("its assignment could not be rendered".into()));
                };
                let generation =
                    self.0.store.wire(&part.instance, &digest.content, &digest.secrets, &work.plan.revision)?;
                crash_point("wire", "submitted");
                let mut assignment = assignment.clone();
                assignment.generation = generation;
                self.0.book.put(assignment);
                self.0.store.record(
                    Event::new(EventKind::Wired, format!("{}: assignment {generation} is ready", part.instance))
                        .instance(&part.instance),
                )?;
                Ok(())
            }
            Action::Start { node, kind } => {
                let guest = guest(node, *kind);
                let _place = self.0.starts.acquire().await;
                self.must_be_ours(&guest, part, work).await?;
                if self.0.store.agent(&part.instance)?.is_none() {
                    let claim = self.make_claim(&guest).await?;
                    self.0.store.open_window(&part.instance, claim.as_deref())?;
                }
                crash_point("start", "window");
                match self.again(|| client.start(&guest)).await {
                    Ok(upid) => self.finish(row, "start", upid, OTHER).await,
                    Err(error) if matches!(error.cause(), Problem::AlreadyRunning) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Action::Stop { node, kind } => {
                let guest = guest(node, *kind);
                self.must_be_ours(&guest, part, work).await?;
                match self.again(|| client.shutdown(&guest, SHUTDOWN, AfterTimeout::Kill)).await {
                    Ok(upid) => self.finish(row, "stop", upid, OTHER).await,
                    Err(error) if matches!(error.cause(), Problem::NotRunning) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Action::BackUp { node, storage } => {
                // One of this day will do: a destroy that fails must not fill the storage with further ones.
                if self.0.store.has_backup_since(&part.instance, vmid, now() - BACKUP_LASTS)? {
                    return Ok(());
                }
                let _turn = self.0.backups.lock().await;
                // vzdump takes both kinds by their number.
                let guest = guest(node, GuestKind::Lxc);
                let backup = Backup {
                    storage: storage.clone(),
                    mode: BackupMode::Snapshot,
                    notes: Some(format!("{} of {}, before it is destroyed", part.instance, work.plan.site)),
                };
                let upid = self.again(|| client.backup(&guest, &backup)).await?;
                self.finish(row, "back-up", upid, BACKUP).await
            }
            Action::Destroy { node, kind } => {
                let guest = guest(node, *kind);
                self.must_be_ours(&guest, part, work).await?;
                let upid = self.again(|| client.destroy(&guest, Leftovers::Keep)).await?;
                self.finish(row, "destroy", upid, OTHER).await?;
                self.0.store.release_instance(&part.instance)?;
                self.0.book.forget(&part.instance);
                Ok(())
            }
            Action::AwaitEnrolment | Action::AwaitHealthy => Ok(()),
        }
    }

    /// Writes a task down and waits for its end.
    async fn finish(&self, row: i64, word: &str, upid: Upid, within: Duration) -> Result<(), StepError> {
        self.0.store.submitted(row, upid.as_str())?;
        crash_point(word, "submitted");
        self.0.client.wait(&upid, Instant::now() + within).await?;
        Ok(())
    }

    /// Sets what differs; reads, changes and writes under the configuration's digest.
    async fn configure(&self, guest: &GuestRef, changes: &[Change]) -> Result<(), StepError> {
        let current = self.0.client.guest_config(guest).await?;
        let net0 = current.net0().map_err(|error| StepError::Refused(error.to_string()))?;
        let mut change = ConfigChange::default();
        for Change { to, .. } in changes {
            match to {
                Setting::Hostname(hostname) => change.name = Some(hostname.clone()),
                Setting::Cores(cores) => change.cores = Some(*cores),
                Setting::Memory(memory) => change.memory = Some(*memory),
                Setting::Onboot(on) => change.onboot = Some(*on),
                Setting::Protection(on) => change.protection = Some(*on),
                Setting::NoClaim => {
                    // As it is after the next start: what is pending already counts.
                    let next = self.0.client.next_config(guest).await?;
                    let entry = claim::entry(&next, None).filter(|_| claim::is_in(&next));
                    change.others.extend(entry.map(|(key, value)| (key.to_owned(), value.expose().to_owned())));
                }
                Setting::Tags(tags) => change.tags = Some(tags.iter().map(String::as_str).collect::<Tags>()),
                Setting::Net0(net) => {
                    let bridge = net
                        .bridge
                        .parse()
                        .map_err(|error: contract::ids::InvalidId| StepError::Refused(error.to_string()))?;
                    let mut wished = net0.clone().unwrap_or_else(|| match guest.kind {
                        GuestKind::Lxc => Net::container(&bridge),
                        GuestKind::Vm => Net::machine(&bridge),
                    });
                    wished =
                        wished.with_bridge(&bridge).with_option("tag", net.tag.map(|tag| tag.to_string()).as_deref());
                    if let Some(mac) = net.mac {
                        wished = wished.with_mac(mac);
                    }
                    if guest.kind == GuestKind::Lxc {
                        let ip = net.ip.map_or_else(|| "dhcp".to_owned(), |ip| ip.to_string());
                        wished = wished
                            .with_option("ip", Some(&ip))
                            .with_option("gw", net.gateway.map(|gateway| gateway.to_string()).as_deref());
                    }
                    change.net0 = Some(wished);
                }
            }
        }
        Ok(self.again(|| self.0.client.configure(guest, &change, current.digest.as_ref())).await?)
    }

    /// Puts a claim for this start alone into the guest's configuration, where it can carry one, and gives its digest. One
    /// that a crash leaves there was never announced, or the next pass takes it out.
    async fn make_claim(&self, guest: &GuestRef) -> Result<Option<String>, StepError> {
        let config = self.0.client.guest_config(guest).await?;
        let random = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let fresh = Secret::new(format!("{CLAIM_PREFIX}{random}"));
        let Some((key, value)) = claim::entry(&config, Some(&fresh)) else { return Ok(None) };
        let others = [(key.to_owned(), value.expose().to_owned())].into();
        let change = ConfigChange { others, ..ConfigChange::default() };
        self.again(|| self.0.client.configure(guest, &change, config.digest.as_ref())).await?;
        Ok(Some(crate::agents::sha256(fresh.expose().as_bytes()).to_string()))
    }

    /// The number turned out to have a guest. Whose it is decides: if it may be ours, nothing is made beside it.
    async fn number_is_taken(
        &self,
        part: &InstancePlan,
        action: &Action,
        guest: &GuestRef,
        work: &Work,
    ) -> Result<(), StepError> {
        let vmid = guest.vmid;
        let in_doubt = self.0.store.is_in_doubt(&part.instance, "clone", vmid)?;
        let made = self.0.store.instance(&part.instance)?.is_some_and(|record| record.made_at.is_some());
        self.settle(&part.instance, action, vmid, Duration::ZERO).await?;
        match self.owned(guest, part, work).await {
            Owned::Yes => Ok(()),
            Owned::No => Ok(self.0.store.note_taken(vmid)?),
            Owned::Unknown(error) if !matches!(error.cause(), Problem::NotVisible { .. } | Problem::NotFound(_)) => {
                Err(error.into())
            }
            // A second guest with the same addresses must not come beside it.
            Owned::Unknown(_) if made => Err(StepError::Hidden(vmid)),
            Owned::Unknown(_) => {
                self.0.store.note_taken(vmid)?;
                // No clone of ours runs any more, and what it would have made had been put into the pool at its end.
                if in_doubt {
                    let message = format!(
                        "{}: guest {vmid} is probably a half-made clone of ours that the node left behind when it went \
                         down: look with `pct config {vmid}`, then `pct unlock {vmid}` and `pct destroy {vmid}` on the node",
                        part.instance
                    );
                    let event = Event::new(EventKind::StepFailed, message);
                    self.0.store.record(event.instance(&part.instance).reason("half-made-clone"))?;
                }
                Ok(())
            }
        }
    }

    /// Whose a guest is, by its marker.
    async fn owned(&self, guest: &GuestRef, part: &InstancePlan, work: &Work) -> Owned {
        match self.0.client.guest_config(guest).await {
            Ok(config) => match config.marker() {
                Ok(Some(Marker::Guest { site, instance, .. }))
                    if site == work.plan.site && instance == part.instance =>
                {
                    Owned::Yes
                }
                _ => Owned::No,
            },
            Err(error) => Owned::Unknown(error),
        }
    }

    /// Between the plan and this instant lie queues: a number that went to somebody else is left alone.
    async fn must_be_ours(&self, guest: &GuestRef, part: &InstancePlan, work: &Work) -> Result<(), StepError> {
        match self.owned(guest, part, work).await {
            Owned::Yes => Ok(()),
            Owned::No => Err(StepError::Refused(format!(
                "guest {} does not carry the marker of {} any more; it is left alone",
                guest.vmid, part.instance
            ))),
            Owned::Unknown(error) => Err(error.into()),
        }
    }

    /// Calls again while Proxmox says that nothing happened and that the cause passes.
    async fn again<T, F>(&self, call: impl Fn() -> F) -> Result<T, crate::proxmox::ProxmoxError>
    where
        F: Future<Output = Result<T, crate::proxmox::ProxmoxError>>,
    {
        let mut tries = 1;
        loop {
            match call().await {
                Err(error) => match error.disposition() {
                    Disposition::Retry { after } if tries < TRIES => {
                        tracing::info!(reason = error.reason(), tries, "trying again");
                        tokio::time::sleep(after.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
                        tries += 1;
                    }
                    _ => return Err(error),
                },
                done => return done,
            }
        }
    }

    /// Notes why an instance does not get on.
    fn trouble(&self, part: &InstancePlan, work: &Work, word: &str, error: &StepError) {
        let event = Event::new(EventKind::StepFailed, format!("{}: {word} failed: {error}", part.instance))
            .instance(&part.instance)
            .reason(error.reason());
        let event = match work.plan.revision.parse() {
            Ok(revision) => event.revision(&revision),
            Err(_) => event,
        };
        let noted = self
            .0
            .store
            .record(event)
            .and_then(|()| self.rest(&part.instance, error.reason(), &format!("{word}: {error}")));
        if let Err(error) = noted {
            tracing::error!(reason = error.reason(), %error, "the ledger cannot be written");
        }
    }
}

/// Seconds after which a backup is too old to stand for the guest that is about to be destroyed: a day.
const BACKUP_LASTS: i64 = 86_400;

/// Whose a guest is.
enum Owned {
    /// This instance's of this site.
    Yes,
    /// Somebody else's.
    No,
    /// It could not be read.
    Unknown(crate::proxmox::ProxmoxError),
}

/// How long a call that had no answer may still begin its task: the relay gives up after 30 s while the daemon works on
/// (pve-api 1).
fn patience(error: &crate::proxmox::ProxmoxError) -> Duration {
    match error.cause() {
        Problem::Relay(..) | Problem::NoAnswer(_) => Duration::from_secs(35),
        _ => Duration::ZERO,
    }
}

/// Time that a guest has for a clean end, Proxmox's own default; then it is stopped hard.
const SHUTDOWN: Duration = Duration::from_secs(60);
