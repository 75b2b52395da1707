//! The node: its state, its locks, its tasks, and what its guests are.

pub(crate) mod config;
pub(crate) mod guests;
pub(crate) mod locks;
pub(crate) mod network;
pub(crate) mod resources;
pub(crate) mod storage;
pub(crate) mod tasks;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::auth::Caller;
use crate::auth::privileges::Access;
use crate::control::log::Journal;
use crate::faults::Faults;
use crate::runtime::{Runtime, Vmid};
use crate::state::State;

/// The release that is imitated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Release {
    #[value(name = "9.2")]
    V9_2,
    #[value(name = "8.4")]
    V8_4,
    #[value(name = "8.2")]
    V8_2,
}

impl Release {
    pub(crate) fn major(self) -> u8 {
        match self {
            Self::V9_2 => 9,
            Self::V8_4 | Self::V8_2 => 8,
        }
    }
    /// Version, release and repository id as `GET /version` has them.
    pub(crate) fn version(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::V9_2 => ("9.2.11", "9.2", "14a22df35955d97d"),
            Self::V8_4 => ("8.4.21", "8.4", "3c89aa0bcbfd4b14"),
            Self::V8_2 => ("8.2.10", "8.2", "4c8a8b9b0b0f8f4d"),
        }
    }
    /// The `message` key exists since http-server 5.2.0.
    pub(crate) fn has_message(self) -> bool {
        self != Self::V8_2
    }
    /// One text for every failed authentication, since pve-manager 8.4.17 and 9.1.5.
    pub(crate) fn unified_auth_text(self) -> bool {
        self != Self::V8_2
    }
    /// Bytes of a request body.
    pub(crate) fn body_limit(self) -> usize {
        if self == Self::V8_2 { 64 * 1024 } else { 512 * 1024 }
    }
    /// `ip-addresses` in the interfaces of a container, since pve-container 5.2.6.
    pub(crate) fn has_ip_addresses(self) -> bool {
        self != Self::V8_2
    }
}

/// How long things take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Timings {
    /// A few milliseconds each.
    Instant,
    /// The medians of a real node.
    Recorded,
}

/// Work whose duration was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Read,
    Write,
    Clone,
    Start,
    Stop,
    Shutdown,
    Destroy,
    Template,
    Snapshot,
    Backup,
    /// What a call takes that ends a task.
    Interrupt,
    /// From the end of the start task to an address on the interface.
    Address,
}

impl Timings {
    pub(crate) fn of(self, work: Work) -> Duration {
        let millis = match (self, work) {
            (Self::Instant, Work::Read | Work::Write) => 0,
            (Self::Instant, Work::Address) => 30,
            (Self::Instant, _) => 3,
            (Self::Recorded, Work::Read) => 2,
            (Self::Recorded, Work::Write) => 26,
            (Self::Recorded, Work::Clone) => 2370,
            (Self::Recorded, Work::Start) => 1320,
            (Self::Recorded, Work::Stop) => 1130,
            (Self::Recorded, Work::Shutdown) => 1500,
            (Self::Recorded, Work::Destroy) => 130,
            (Self::Recorded, Work::Template) => 300,
            (Self::Recorded, Work::Snapshot) => 200,
            (Self::Recorded, Work::Backup) => 3000,
            (Self::Recorded, Work::Interrupt) => 2000,
            (Self::Recorded, Work::Address) => 410,
        };
        Duration::from_millis(millis)
    }
}

/// The node in the box.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) release: Release,
    pub(crate) timings: Timings,
    pub(crate) runtime: Runtime,
    pub(crate) fingerprint: String,
    pub(crate) faults: Faults,
    pub(crate) journal: Journal,
    pub(crate) locks: locks::Locks,
    pub(crate) cache: resources::Cache,
    pub(crate) running_tasks: Mutex<HashMap<String, Arc<tasks::Handle>>>,
    state: Mutex<State>,
}

/// The state, writable; what changed is on disk before the next one gets the lock.
pub(crate) struct Write<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Write<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.0
    }
}
impl std::ops::DerefMut for Write<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0
    }
}
impl Drop for Write<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.flush() {
            tracing::error!("the lab's state could not be saved: {error:#}; free space in its state directory");
        }
    }
}

/// What a node is made of.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) release: Release,
    pub(crate) timings: Timings,
    pub(crate) runtime: Runtime,
    pub(crate) fingerprint: String,
    pub(crate) faults: Faults,
    pub(crate) state: State,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let node = Arc::new(Self {
            name: parts.name,
            release: parts.release,
            timings: parts.timings,
            runtime: parts.runtime,
            fingerprint: parts.fingerprint,
            faults: parts.faults,
            journal: Journal::default(),
            locks: locks::Locks::default(),
            cache: resources::Cache::default(),
            running_tasks: Mutex::default(),
            state: Mutex::new(parts.state),
        });
        node.bury_dead_tasks();
        node
    }

    pub(crate) fn read(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> Write<'_> {
        Write(self.read())
    }

    pub(crate) fn major(&self) -> u8 {
        self.release.major()
    }

    /// Runs `question` with the caller's access rules.
    pub(crate) fn access<T>(&self, caller: &Caller, question: impl FnOnce(Access<'_>, &State) -> T) -> T {
        let state = self.read();
        question(Access { cluster: state.cluster(), caller, major: self.major() }, &state)
    }

    /// Waits as long as the work took on a real node; real containers take their own time.
    pub(crate) async fn pace(&self, work: Work) {
        let wait = match self.runtime {
            Runtime::Nspawn(_) => Duration::ZERO,
            Runtime::None(_) => self.timings.of(work),
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether a guest runs, by the only one who knows.
    pub(crate) async fn pid(&self, vmid: Vmid) -> Option<u32> {
        let record = self.read().guest(vmid).map(|guest| (guest.kind, guest.running));
        match record? {
            (guests::Kind::Lxc, _) => self.runtime.pid(vmid).await,
            (guests::Kind::Qemu, running) => running.map(|running| running.pid),
        }
    }
}
