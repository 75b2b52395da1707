//! The TLS listener for guests: enrolment, renewal, assignment, health. Nothing for people lives here.

mod ca;
mod enrol;
mod listener;
mod renew;
/// The site's CA and its successor.
pub mod rotation;
mod serve;
mod verifier;
mod witness;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use contract::assignment::Assignment;
use contract::ids::{InstanceName, SiteName};
use tokio::sync::{Notify, watch};

use crate::floor::Keeper;
use crate::store::Store;

pub(crate) use ca::digest as sha256;
pub use ca::{CaError, InForce, SiteCa, Stage, claim};
pub use listener::{ListenError, listen};
pub use witness::Witness;

/// What the loop is woken by. Wake-ups say when, never what.
pub type Wake = Arc<Notify>;

/// The newest assignment of every instance. It holds secrets, so it lives in memory only and is rendered anew from the
/// revision in force after a restart.
#[derive(Debug)]
pub struct Book {
    pages: RwLock<BTreeMap<InstanceName, Arc<Assignment>>>,
    changed: watch::Sender<u64>,
}

impl Default for Book {
    fn default() -> Self {
        Self { pages: RwLock::default(), changed: watch::Sender::new(0) }
    }
}

impl Book {
    /// Puts an assignment in force; agents that wait for it get it at once.
    pub fn put(&self, assignment: Assignment) {
        let mut pages = self.pages.write().unwrap_or_else(|held| held.into_inner());
        let same = pages.get(&assignment.instance).is_some_and(|known| **known == assignment);
        if !same {
            pages.insert(assignment.instance.clone(), Arc::new(assignment));
            drop(pages);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The newest assignment of an instance.
    pub fn get(&self, instance: &InstanceName) -> Option<Arc<Assignment>> {
        self.pages.read().unwrap_or_else(|held| held.into_inner()).get(instance).cloned()
    }

    /// Forgets the assignment of an instance that is no more.
    pub fn forget(&self, instance: &InstanceName) {
        self.pages.write().unwrap_or_else(|held| held.into_inner()).remove(instance);
    }

    /// Sees every later [`Self::put`].
    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Everything that the handlers share.
#[derive(Debug)]
pub struct Agents {
    /// The ledger.
    pub store: Store,
    /// The newest of HQ's documents, which guests keep for us.
    pub keeper: Arc<Keeper>,
    /// The site's CA.
    pub ca: SiteCa,
    /// What Proxmox says about guests.
    pub witness: Witness,
    /// The site.
    pub site: SiteName,
    /// Assignments.
    pub book: Arc<Book>,
    /// Woken after an enrolment and after a change of health.
    pub wake: Wake,
    /// How long a started guest may enrol.
    pub window: Duration,
    /// How often a guest reports when nothing changes.
    pub interval: Duration,
    /// How long a guest's certificate is good.
    pub certificate_life: Duration,
    /// Held while a step of a CA rotation is taken.
    pub turning: Mutex<()>,
    /// Refusals that were recorded lately.
    pub refused: Mutex<HashMap<Refusal, Instant>>,
}

/// A refusal as it is remembered: where from, why, and in whose name.
pub type Refusal = (IpAddr, &'static str, Option<InstanceName>);

/// Time in which one address is refused for one reason without being recorded again.
const SAME_REFUSAL: Duration = Duration::from_secs(600);
/// Refusals that are remembered; beyond that, old ones are forgotten first.
const REFUSALS: usize = 1024;

impl Agents {
    /// Whether a refusal has not been recorded lately.
    fn is_news(&self, refusal: Refusal) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(|held| held.into_inner());
        let now = Instant::now();
        if refused.get(&refusal).is_some_and(|last| now.duration_since(*last) < SAME_REFUSAL) {
            return false;
        }
        if refused.len() >= REFUSALS {
            refused.retain(|_, last| now.duration_since(*last) < SAME_REFUSAL);
            if refused.len() >= REFUSALS {
                return false;
            }
        }
        refused.insert(refusal, now);
        true
    }
}

/// Who is on the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// SHA-256 of its client certificate, which our CA signed; absent before enrolment.
    pub certificate: Option<contract::ids::Sha256Digest>,
}
