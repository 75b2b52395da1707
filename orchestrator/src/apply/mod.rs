//! Walks a plan. Every instance has a lane of its own, so that one instance's trouble does not stop the others; a lane
//! does its steps in order and writes each into the journal before and after.
//!
//! Nothing here remembers what was meant to happen: a lane that ends, well or badly, wakes the loop, which observes
//! and plans afresh. Waiting for a guest is not a lane's work either; it is what the next plan shows.

mod lane;
mod resume;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use contract::assignment::Assignment;
use contract::ids::{Hostname, InstanceName, Vmid};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use crate::agents::{Book, Wake};
use crate::plan::{InstancePlan, Plan};
use crate::proxmox::{Client, ProxmoxError};
use crate::store::{InstanceRecord, Store, StoreError, now};

/// Starts at once. Booting guests compete for the same disk; more at a time makes none of them faster.
const STARTS: usize = 4;

/// Label of a guest that was started and did not enrol in time.
pub const NEVER_ENROLLED: &str = "guest-never-enrolled";

/// What a lane needs besides the plan.
#[derive(Debug)]
pub struct Work {
    /// The plan.
    pub plan: Plan,
    /// Rendered assignments and their keyed digests, by instance.
    pub assignments: BTreeMap<InstanceName, (String, Assignment)>,
}

/// Executes plans.
#[derive(Debug, Clone)]
pub struct Executor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    store: Store,
    book: Arc<Book>,
    wake: Wake,
    lanes: Mutex<BTreeSet<InstanceName>>,
    /// One clone at a time per container template: Proxmox locks the source (pve-api 6).
    templates: Mutex<BTreeMap<Vmid, Arc<AsyncMutex<()>>>>,
    /// One backup at a time per node: Proxmox does not take more (pve-api 9).
    backups: AsyncMutex<()>,
    starts: Semaphore,
}

/// Why a step did not get done.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Proxmox(#[from] ProxmoxError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Refused(String),
    #[error(
        "guest {0} was made for this instance and the token cannot see it any more: put it back into the site's pool; \
         if it is to go, destroy it, or give the instance another `vmid`"
    )]
    Hidden(Vmid),
}

impl StepError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Proxmox(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Refused(_) => "precondition",
            Self::Hidden(_) => "guest-hidden",
        }
    }
}

impl Executor {
    /// An executor without lanes.
    pub fn new(client: Client, store: Store, book: Arc<Book>, wake: Wake) -> Self {
        Self(Arc::new(Inner {
            client,
            store,
            book,
            wake,
            lanes: Mutex::default(),
            templates: Mutex::default(),
            backups: AsyncMutex::default(),
            starts: Semaphore::new(STARTS),
        }))
    }

    /// Instances that something is being done for right now. Their part of a plan would be out of date at once.
    pub fn busy(&self) -> BTreeSet<InstanceName> {
        self.0.lanes.lock().unwrap_or_else(|held| held.into_inner()).clone()
    }

    /// Opens a lane for every instance that has something to do, is not busy and is not waiting for its next try.
    /// Returns how many were opened.
    pub fn start(&self, work: &Arc<Work>) -> Result<usize, StoreError> {
        let records = self.0.store.instances()?;
        self.publish(work, &records);
        let mut opened = 0;
        for (index, part) in work.plan.instances.iter().enumerate() {
            let idle = part.steps.iter().all(|step| step.action.is_wait());
            let resting = records
                .get(&part.instance)
                .and_then(|record| record.trouble.as_ref())
                .is_some_and(|trouble| trouble.retry_at > now());
            if idle && part.blocked.is_none() {
                // What went wrong was undone by somebody else, or had happened after all.
                self.clear_trouble(&part.instance)?;
            }
            if !idle && !resting && self.enter(&part.instance) {
                opened += 1;
                let (executor, work) = (self.clone(), work.clone());
                tokio::spawn(async move {
                    let part = &work.plan.instances[index];
                    executor.run(part, &work).await;
                    executor.leave(&part.instance);
                });
            }
        }
        Ok(opened)
    }

    /// Puts the assignments in force that the ledger already numbered: after a restart, memory is empty.
    fn publish(&self, work: &Work, records: &BTreeMap<InstanceName, InstanceRecord>) {
        for (name, (digest, assignment)) in &work.assignments {
            if let Some(record) = records.get(name).filter(|record| record.assignment.as_ref() == Some(digest)) {
                let mut assignment = assignment.clone();
                assignment.generation = record.generation;
                self.0.book.put(assignment);
            }
        }
    }

    fn enter(&self, instance: &InstanceName) -> bool {
        self.0.lanes.lock().unwrap_or_else(|held| held.into_inner()).insert(instance.clone())
    }

    fn leave(&self, instance: &InstanceName) {
        self.0.lanes.lock().unwrap_or_else(|held| held.into_inner()).remove(instance);
        self.0.wake.notify_one();
    }

    fn template_lock(&self, template: Vmid) -> Arc<AsyncMutex<()>> {
        self.0.templates.lock().unwrap_or_else(|held| held.into_inner()).entry(template).or_default().clone()
    }
}

/// Host name of a part of a plan.
fn hostname(plan: &Plan, part: &InstancePlan) -> Result<Hostname, StepError> {
    Hostname::of(&plan.site, &part.instance).map_err(|error| StepError::Refused(error.to_string()))
}

/// In debug builds, dies as by `kill -9` when `CTRLABLE_CRASH_AT` names this instant: `clone:submitted`. The crash
/// tests go through all of them.
fn crash_point(action: &str, instant: &str) {
    #[cfg(debug_assertions)]
    if std::env::var("CTRLABLE_CRASH_AT").is_ok_and(|at| at == format!("{action}:{instant}")) {
        tracing::warn!(action, instant, "dying here, as asked");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = (action, instant);
}
