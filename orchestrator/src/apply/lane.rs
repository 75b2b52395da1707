//! One instance's steps, in order.

use std::time::Duration;

use contract::ids::{InstanceName, Vmid};
use contract::manifest::GuestKind;
use tokio::time::Instant;

use super::{Executor, NEVER_ENROLLED, StepError, Work, crash_point, hostname};
use crate::plan::{Action, Change, InstancePlan, Setting, Step, describe};
use crate::proxmox::{
    AfterTimeout, Backup, BackupMode, CloneMode, CloneRequest, ConfigChange, Disposition, GuestRef, Leftovers, Marker,
    Net, Problem, Tags, Upid,
};
use crate::store::{Event, EventKind, JournalEntry, JournalState, Reservation, StoreError};

/// Longest time that each kind of task may take before the lane stops waiting; the task goes on, and its row is
/// resumed by the next pass. A full clone of 32 GiB on a slow disk takes some ten minutes.
const CLONE: Duration = Duration::from_secs(60 * 60);
const BACKUP: Duration = Duration::from_secs(4 * 60 * 60);
const OTHER: Duration = Duration::from_secs(10 * 60);

/// Tries of one call within a step while Proxmox says that a lock is busy. Each waits up to 10 s by itself already.
const TRIES: u32 = 3;

impl Executor {
    /// Does an instance's steps until one has to be waited for, or fails.
    pub(super) async fn run(&self, part: &InstancePlan, work: &Work) {
        if let Err(error) = self.reserve(part, work) {
            self.trouble(part, work, "reserve", &error);
            return;
        }
        for step in &part.steps {
            if step.action.is_wait() {
                break;
            }
            if let Err(error) = self.step(part, step, work).await {
                self.trouble(part, work, step.action.word(), &error);
                return;
            }
        }
        if let Err(error) = self.clear_trouble(&part.instance) {
            tracing::error!(reason = error.reason(), %error, "the ledger cannot be written");
        }
    }

    /// Something went right, or there is nothing left to do. A guest that never enrolled stays in trouble until it does.
    pub(super) fn clear_trouble(&self, instance: &InstanceName) -> Result<(), StoreError> {
        match self.0.store.instance(instance)?.and_then(|record| record.trouble) {
            Some(trouble) if trouble.reason != NEVER_ENROLLED => self.0.store.clear_trouble(instance),
            _ => Ok(()),
        }
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
                let uncertain =
                    matches!(&error, StepError::Proxmox(error) if error.disposition() == Disposition::Uncertain);
                if uncertain {
                    // It may have happened: find out before anybody plans with it.
                    self.settle(&part.instance, &step.action, vmid).await;
                }
                let state = if uncertain { JournalState::Interrupted } else { JournalState::Failed };
                self.0.store.ended(row, state, Some((error.reason(), &error.to_string())))?;
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
                let marker = Marker::Guest {
                    site: work.plan.site.clone(),
                    instance: part.instance.clone(),
                    release: work.plan.release.clone(),
                    template: template.clone(),
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
                let source = GuestRef { kind: *kind, node: node.clone(), vmid: *from };
                let lock = self.template_lock(*from);
                let _turn = match kind {
                    GuestKind::Lxc => Some(lock.lock().await),
                    GuestKind::Vm => None,
                };
                let upid = self.again(|| client.clone_guest(&source, &request)).await;
                if let Err(error) = &upid
                    && matches!(error.cause(), Problem::VmidTaken)
                {
                    // Not ours as far as can be seen, and no clone of ours runs: somebody else has the number, or the
                    // token cannot see what we made.
                    self.settle(&part.instance, &step.action, vmid).await;
                    if !self.is_ours(&guest(node, *kind), part).await {
                        self.number_taken(part, vmid)?;
                    }
                }
                let upid = upid?;
                // Whoever enrolled under this name before lived in a guest that is gone.
                self.0.store.forget_agent(&part.instance)?;
                self.finish(row, "clone", upid, CLONE).await?;
                if !self.is_ours(&guest(node, *kind), part).await {
                    return Err(StepError::Refused(format!("guest {vmid} does not carry our marker after its clone")));
                }
                Ok(())
            }
            Action::Configure { node, kind, changes } => self.configure(&guest(node, *kind), changes).await,
            Action::Grow { node, kind, to } => {
                let guest = guest(node, *kind);
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
                let generation = self.0.store.wire(&part.instance, digest, &work.plan.revision)?;
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
                if self.0.store.agent(&part.instance)?.is_none() {
                    self.0.store.open_window(&part.instance)?;
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
                match self.again(|| client.shutdown(&guest, SHUTDOWN, AfterTimeout::Kill)).await {
                    Ok(upid) => self.finish(row, "stop", upid, OTHER).await,
                    Err(error) if matches!(error.cause(), Problem::NotRunning) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Action::BackUp { node, storage } => {
                let _turn = self.0.backups.lock().await;
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
                if !self.is_ours(&guest, part).await {
                    return Err(StepError::Refused(format!(
                        "guest {vmid} does not carry our marker any more; it is left alone"
                    )));
                }
                let upid = self.again(|| client.destroy(&guest, Leftovers::Keep)).await?;
                self.finish(row, "destroy", upid, OTHER).await?;
                self.0.store.release_instance(&part.instance)?;
                Ok(())
            }
            Action::AwaitEnrolment | Action::AwaitHealthy => Ok(()),
        }
    }

    /// A number that should be free is not, and whose guest has it cannot be seen: the journal may know.
    fn number_taken(&self, part: &InstancePlan, vmid: Vmid) -> Result<(), StepError> {
        let half_made = match self.0.store.made(&part.instance, vmid)? {
            // A second guest with the same addresses must not come beside it.
            Some(JournalState::Done) => return Err(StepError::Hidden(vmid)),
            Some(_) => true,
            None => false,
        };
        self.0.store.note_taken(vmid)?;
        if half_made {
            let message = format!(
                "{}: guest {vmid} is probably a half-made clone of ours that the node left behind when it went down: \
                 look with `pct config {vmid}`, then `pct unlock {vmid}` and `pct destroy {vmid}` on the node",
                part.instance
            );
            let event = Event::new(EventKind::StepFailed, message).instance(&part.instance).reason("half-made-clone");
            self.0.store.record(event)?;
        }
        Ok(())
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

    /// Whether a guest carries the marker of this instance of this site.
    async fn is_ours(&self, guest: &GuestRef, part: &InstancePlan) -> bool {
        let config = match self.0.client.guest_config(guest).await {
            Ok(config) => config,
            Err(error) => {
                tracing::debug!(vmid = guest.vmid.get(), reason = error.reason(), "the marker cannot be read");
                return false;
            }
        };
        matches!(
            Marker::parse(&config.description),
            Ok(Some(Marker::Guest { instance, .. })) if instance == part.instance
        )
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
            .and_then(|()| self.0.store.note_trouble(&part.instance, error.reason(), &format!("{word}: {error}")));
        if let Err(error) = noted {
            tracing::error!(reason = error.reason(), %error, "the ledger cannot be written");
        }
    }
}

/// Time that a guest has for a clean end, Proxmox's own default; then it is stopped hard.
const SHUTDOWN: Duration = Duration::from_secs(60);
