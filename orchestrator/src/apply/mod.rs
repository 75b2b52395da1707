//! Walks a plan. Every instance has a lane of its own, so that one instance's trouble does not stop the others; a lane
//! does its steps in order and writes each into the journal before and after.
//!
//! Nothing here remembers what was meant to happen: a lane that ends, well or badly, wakes the loop, which observes
//! and plans afresh. Waiting for a guest is not a lane's work either; it is what the next plan shows.

mod lane;
mod resume;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use contract::assignment::Assignment;
use contract::ids::{Hostname, InstanceName, Vmid};
use contract::site::Prune;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use crate::agents::{Book, Wake};
use crate::plan::{Action, InstancePlan, Plan, WiringDigest};
use crate::proxmox::{Client, ProxmoxError};
use crate::store::{Event, EventKind, InstanceRecord, Store, StoreError, now};

/// Starts at once. Booting guests compete for the same disk; more at a time makes none of them faster.
const STARTS: usize = 4;

/// Label of a guest that was started and did not enrol in time.
pub const NEVER_ENROLLED: &str = "guest-never-enrolled";

/// Label of a change that was made again and again without effect.
pub const DOES_NOT_STICK: &str = "does-not-stick";

/// What a lane needs besides the plan.
#[derive(Debug)]
pub struct Work {
    /// The plan.
    pub plan: Plan,
    /// What the site asks for, whatever of it is in the plan.
    pub wanted: BTreeSet<InstanceName>,
    /// Whether what it does not ask for may go.
    pub prune: Prune,
    /// Rendered assignments and their keyed digests, by instance.
    pub assignments: BTreeMap<InstanceName, (WiringDigest, Assignment)>,
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
    /// The newest work: a lane that waited for its turn must not do what nobody asks for any more.
    latest: RwLock<Option<Arc<Work>>>,
    lanes: Mutex<BTreeSet<InstanceName>>,
    /// What each instance's last lane did, and when it ended: the same again at once does not stick.
    finished: Mutex<BTreeMap<InstanceName, (String, Instant)>>,
    /// Back-off of instances that the ledger has no row for.
    resting: Mutex<BTreeMap<InstanceName, Instant>>,
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

/// An instance's turn. Whatever ends the lane, a panic too, ends the turn and wakes the loop.
struct Turn {
    executor: Executor,
    instance: InstanceName,
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.executor.0.lanes).remove(&self.instance);
        self.executor.0.wake.notify_one();
    }
}

/// The same steps for one instance again within this time have not had their effect.
const STICKS: Duration = Duration::from_secs(60);
/// Rest of an instance that the ledger has no row for.
const ROWLESS_REST: Duration = Duration::from_secs(30);

/// A poisoned lock guards plain maps, which are whole at every instant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|held| held.into_inner())
}

impl Executor {
    /// An executor without lanes.
    pub fn new(client: Client, store: Store, book: Arc<Book>, wake: Wake) -> Self {
        Self(Arc::new(Inner {
            client,
            store,
            book,
            wake,
            latest: RwLock::default(),
            lanes: Mutex::default(),
            finished: Mutex::default(),
            resting: Mutex::default(),
            templates: Mutex::default(),
            backups: AsyncMutex::default(),
            starts: Semaphore::new(STARTS),
        }))
    }

    /// Instances that something is being done for right now. Their part of a plan would be out of date at once.
    pub fn busy(&self) -> BTreeSet<InstanceName> {
        lock(&self.0.lanes).clone()
    }

    /// Opens a lane for every instance that has something to do, is not in `busy` and is not waiting for its next try.
    /// Returns how many were opened. `busy` are the instances that were busy when the plan's observation began.
    pub fn start(&self, work: &Arc<Work>, busy: &BTreeSet<InstanceName>) -> Result<usize, StoreError> {
        *self.0.latest.write().unwrap_or_else(|held| held.into_inner()) = Some(work.clone());
        let records = self.0.store.instances()?;
        self.publish(work, &records);
        let mut opened = 0;
        for (index, part) in work.plan.instances.iter().enumerate() {
            if busy.contains(&part.instance) {
                continue;
            }
            let trouble = records.get(&part.instance).and_then(|record| record.trouble.as_ref());
            if part.steps.iter().all(|step| step.action.is_wait()) {
                // Whatever it was, it is no longer there.
                let over = trouble.is_some_and(|trouble| trouble.reason != NEVER_ENROLLED);
                if over && part.blocked.is_none() {
                    self.0.store.clear_trouble(&part.instance)?;
                }
                continue;
            }
            let rests = lock(&self.0.resting).get(&part.instance).is_some_and(|until| *until > Instant::now());
            if rests || trouble.is_some_and(|trouble| trouble.is_resting(now())) {
                continue;
            }
            if self.sticks(part)?
                && let Some(turn) = self.enter(&part.instance)
            {
                opened += 1;
                let work = work.clone();
                tokio::spawn(async move {
                    turn.executor.run(&work.plan.instances[index], &work).await;
                });
            }
        }
        Ok(opened)
    }

    /// Whether a lane for these steps may open: not when the last one did just that a moment ago.
    fn sticks(&self, part: &InstancePlan) -> Result<bool, StoreError> {
        let again = lock(&self.0.finished)
            .get(&part.instance)
            .is_some_and(|(steps, ended)| ended.elapsed() < STICKS && *steps == fingerprint(part));
        if !again {
            return Ok(true);
        }
        lock(&self.0.finished).remove(&part.instance);
        let words: Vec<&str> = part.steps.iter().map(|step| step.action.word()).collect();
        let message = format!(
            "{} was done and is still asked for: Proxmox, or somebody beside us, undoes it; `ctrlable why {}` shows what",
            words.join(", "),
            part.instance
        );
        self.0.store.record(
            Event::new(EventKind::StepFailed, format!("{}: {message}", part.instance))
                .instance(&part.instance)
                .reason(DOES_NOT_STICK),
        )?;
        self.rest(&part.instance, DOES_NOT_STICK, &message)?;
        Ok(false)
    }

    /// Notes trouble, in the ledger or, without a row there, in memory.
    fn rest(&self, instance: &InstanceName, reason: &str, message: &str) -> Result<(), StoreError> {
        if !self.0.store.note_trouble(instance, reason, message)? {
            lock(&self.0.resting).insert(instance.clone(), Instant::now() + ROWLESS_REST);
        }
        Ok(())
    }

    /// Puts the assignments in force that the ledger already numbered: after a restart, memory is empty.
    fn publish(&self, work: &Work, records: &BTreeMap<InstanceName, InstanceRecord>) {
        for (name, (digest, assignment)) in &work.assignments {
            if let Some(record) = records.get(name).filter(|record| record.assignment.as_ref() == Some(&digest.content))
            {
                let mut assignment = assignment.clone();
                assignment.generation = record.generation;
                self.0.book.put(assignment);
            }
        }
    }

    fn enter(&self, instance: &InstanceName) -> Option<Turn> {
        let free = lock(&self.0.lanes).insert(instance.clone());
        free.then(|| Turn { executor: self.clone(), instance: instance.clone() })
    }

    fn template_lock(&self, template: Vmid) -> Arc<AsyncMutex<()>> {
        lock(&self.0.templates).entry(template).or_default().clone()
    }
}

/// What a lane for this part would do, as text: equal for equal steps.
fn fingerprint(part: &InstancePlan) -> String {
    let steps: Vec<&Action> = part.steps.iter().map(|step| &step.action).filter(|action| !action.is_wait()).collect();
    serde_json::to_string(&steps).unwrap_or_default()
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
