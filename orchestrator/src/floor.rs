//! Keeps the floor, the newest of HQ's documents that were accepted, in more places than one: in the ledger, in the markers
//! of our guests on Proxmox, and in every guest. What one of them loses the others still know; the newest wins.

use std::sync::{Mutex, MutexGuard};

use contract::ids::Revision;

use crate::observe::ToldFloor;
use crate::proxmox::{Client, ConfigChange, Marker, ProxmoxError};
use crate::store::{Event, EventKind, FloorRecord, Store, StoreError};
use crate::trust::{self, Hq, KeySet, Numbers, TrustError};

/// Markers that are rewritten in one pass at most: each is a call of some 100 ms on a real node, and nothing hurries.
const MARKERS_AT_ONCE: usize = 10;

/// Bytes of a floor that agents keep at most.
const EVIDENCE_LIMIT: usize = contract::floor::MAX_BYTES;

/// Keeps the floor.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    configured: KeySet,
    /// Reading and writing it back is one thing.
    turn: Mutex<()>,
}

/// What came of a floor that a guest handed out.
#[derive(Debug)]
pub enum Offered {
    /// It is ours.
    Same,
    /// It is newer than ours; ours moved up to it.
    Newer(Numbers),
    /// It is older than ours, or there is none.
    Older,
    /// It proves nothing.
    Wrong(TrustError),
}

impl Keeper {
    /// Of this ledger, with the configured list of keys.
    pub fn new(store: Store, configured: KeySet) -> Self {
        Self { store, configured, turn: Mutex::default() }
    }

    /// HQ's first list of keys.
    pub fn configured(&self) -> &KeySet {
        &self.configured
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(|held| held.into_inner())
    }

    /// The floor; none in a ledger that nobody has told one yet.
    pub fn known(&self) -> Result<Option<FloorRecord>, StoreError> {
        self.store.floor()
    }

    /// Moves the floor up to what was verified in a revision. A revision that proves less than what others told (HQ's
    /// word before it reached this remote) does not get this far.
    pub fn accept(&self, hq: &Hq, revision: &Revision) -> Result<(), StoreError> {
        let _turn = self.turn();
        let before = self.store.floor()?.unwrap_or_default();
        let evidence = trust::to_text(hq.evidence()).filter(|text| text.len() <= EVIDENCE_LIMIT);
        if evidence.is_none() {
            tracing::warn!(reason = "floor-too-large", "the floor does not fit into what agents keep");
        }
        let mut record = FloorRecord { floor: hq.floor().clone(), evidence, revision: Some(revision.clone()) };
        // Others may have told of something newer while this was being judged.
        record.floor.raise(before.floor.numbers());
        record.floor.time = record.floor.time.max(before.floor.time);
        if record.floor.numbers() != hq.floor().numbers() {
            record.evidence = before.evidence.clone();
        }
        if record == before {
            return Ok(());
        }
        self.store.set_floor(&record)?;
        let (old, new) = (before.floor.numbers(), record.floor.numbers());
        if old != new {
            let event = Event::new(EventKind::Floor, format!("nothing goes back behind {new} any more"));
            self.store.record(event.revision(revision))?;
        }
        Ok(())
    }

    /// Believes what our own markers on Proxmox say. From then on the floor is known.
    pub fn told_by_proxmox(&self, numbers: Numbers) -> Result<(), StoreError> {
        let _turn = self.turn();
        if self.store.raise_floor(numbers)? {
            let message = format!("the markers on Proxmox know of newer documents than the ledger: {numbers}");
            self.store.record(Event::new(EventKind::Floor, message).reason("floor-restored"))?;
        }
        Ok(())
    }

    /// Takes what a guest hands out, whoever it is: it has to prove itself.
    pub fn offered(&self, text: &str) -> Result<Offered, StoreError> {
        let _turn = self.turn();
        let Some(before) = self.store.floor()? else { return Ok(Offered::Older) };
        if before.evidence.as_deref() == Some(text) {
            return Ok(Offered::Same);
        }
        let proved = match trust::prove(text, &self.configured) {
            Ok(floor) => floor,
            Err(error) => return Ok(Offered::Wrong(error)),
        };
        // Who knows an older list only may have been signed for by a key that HQ has taken back since.
        if proved.keys.number < before.floor.keys.number {
            return Ok(Offered::Older);
        }
        let (old, told) = (before.floor.numbers(), proved.numbers());
        let all = old.max(told);
        // Nobody has more than this one, and we have no evidence of our own for it.
        let adopt = all == told && (all != old || before.evidence.is_none());
        if all == old && !adopt {
            return Ok(Offered::Older);
        }
        let mut record = before;
        record.floor.raise(all);
        record.floor.time = record.floor.time.max(proved.time);
        if adopt {
            record.evidence = Some(text.to_owned());
        }
        self.store.set_floor(&record)?;
        Ok(if all == old { Offered::Same } else { Offered::Newer(all) })
    }

    /// Writes the floor into markers that say another one. A guest that cannot be written to now is for the next pass.
    pub async fn repair(&self, client: &Client, markers: &[&ToldFloor]) -> Result<(), StoreError> {
        let Some(known) = self.store.floor()? else { return Ok(()) };
        let numbers = known.floor.numbers();
        let wrong = markers.iter().filter(|told| told.numbers != Some(numbers));
        let mut written = 0;
        for told in wrong.take(MARKERS_AT_ONCE) {
            match write(client, told, numbers).await {
                Ok(()) => written += 1,
                Err(error) => {
                    tracing::info!(vmid = told.guest.vmid.get(), reason = error.reason(), "a marker is left for later");
                }
            }
        }
        if written > 0 {
            let message = format!("the markers of {written} guests say now: {numbers}");
            self.store.record(Event::new(EventKind::Floor, message))?;
        }
        Ok(())
    }
}

/// Reads a marker again and writes it with the floor, under the digest of what was read.
async fn write(client: &Client, told: &ToldFloor, numbers: Numbers) -> Result<(), ProxmoxError> {
    let config = client.guest_config(&told.guest).await?;
    let Ok(Some(Marker::Guest { site, instance, release, template, .. })) = config.marker() else { return Ok(()) };
    if (&site, &instance) != (&told.site, &told.instance) {
        return Ok(());
    }
    let marker = Marker::Guest { site, instance, release, template, floor: Some(numbers) };
    // A person's text that leaves no room is more important than one of many copies.
    let Ok(description) = marker.render(&config.description) else { return Ok(()) };
    let change = ConfigChange { description: Some(description), ..ConfigChange::default() };
    client.configure(&told.guest, &change, config.digest.as_ref()).await
}
