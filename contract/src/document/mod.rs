//! From YAML text to [`Manifest`], [`Site`] and [`Dealers`], with the line of every mistake.
//!
//! The way of a document: [`outline`] reads the events of one YAML document into a tree of nodes with their lines and
//! refuses what data does not need (aliases, tags, duplicate keys); [`read`] lays the tree into the types of [`raw`],
//! which hold a document as it was written; [`manifest`], [`site`] and [`dealers`] turn those into the valid types. Each step goes on
//! after a mistake as long as the rest still makes sense, so that a dealer sees all of them at once.
//!
//! There is one YAML parser on that way, so nothing can be read in two ways.

use std::collections::BTreeSet;

use crate::dealers::{Dealer, Dealers, Limits as SiteLimits};
use crate::hq::{Channels, KeyList};
use crate::ids::ReleaseId;
use crate::manifest::Manifest;
use crate::refusal::{Reason, Refusal};
use crate::site::{ReleaseChoice, Site};

/// What a site and a manifest say about each other.
mod cross;
/// Raw dealers, and from there to valid ones.
mod dealers;
/// HQ's key lists and channels.
mod hq;
/// What a site asks for and what HQ allows.
mod limits;
/// Raw release to valid release.
mod manifest;
/// The tree of nodes and their lines.
mod outline;
/// Collecting refusals.
mod problems;
/// Documents as they are written; the JSON Schemas are made of these.
mod raw;
/// From the tree into the raw types.
mod read;
/// YAML's plain scalars.
mod scalar;
/// Raw site to valid site.
mod site;
/// Inputs, files and units of a template.
mod wiring;

pub use hq::MOST as MOST_SERIAL;
pub use outline::Outline;

use outline::Limits;
use problems::Problems;

/// A release of a hundred templates with generous wiring is about 200 kB.
const MANIFEST_LIMITS: Limits = Limits { bytes: 1 << 20, depth: 16 };

/// A site of a thousand instances is about 150 kB.
const SITE_LIMITS: Limits = Limits { bytes: 256 << 10, depth: 16 };

/// A list of the most keys that there may be is 2 kB.
const KEY_LIST_LIMITS: Limits = Limits { bytes: 16 << 10, depth: 4 };

/// A thousand revoked releases are about 60 kB.
const CHANNELS_LIMITS: Limits = Limits { bytes: 128 << 10, depth: 4 };

/// A thousand dealers with five Ed25519 keys each are about 600 kB.
const DEALERS_LIMITS: Limits = Limits { bytes: 1 << 20, depth: 16 };

/// A valid document and where in its file everything stands.
#[derive(Debug, Clone)]
pub struct Document<T> {
    /// What it says.
    pub value: T,
    /// Where it says it.
    pub outline: Outline,
}

/// Reads a release manifest. `file` is its path in the fleet repository, `releases/2026.06.yaml`; the stem must equal
/// the id inside.
pub fn manifest(file: &str, bytes: &[u8]) -> Result<Document<Manifest>, Vec<Refusal>> {
    document(file, bytes, MANIFEST_LIMITS, manifest::validate)
}

/// Reads a site definition. `file` is its path in the fleet repository, `sites/<site>/site.yaml`; the directory must
/// equal the name inside.
pub fn site(file: &str, bytes: &[u8]) -> Result<Document<Site>, Vec<Refusal>> {
    document(file, bytes, SITE_LIMITS, site::validate)
}

/// Reads one of HQ's key lists. `file` is its path in the fleet repository, `keys/2.yaml`; the stem must equal the
/// number inside.
pub fn key_list(file: &str, bytes: &[u8]) -> Result<Document<KeyList>, Vec<Refusal>> {
    document(file, bytes, KEY_LIST_LIMITS, hq::key_list)
}

/// Reads `channels.yaml`.
pub fn channels(file: &str, bytes: &[u8]) -> Result<Document<Channels>, Vec<Refusal>> {
    document(file, bytes, CHANNELS_LIMITS, hq::channels)
}

/// Reads HQ's list of dealers. `file` is its path in the fleet repository, `dealers.yaml`.
pub fn dealers(file: &str, bytes: &[u8]) -> Result<Document<Dealers>, Vec<Refusal>> {
    document(file, bytes, DEALERS_LIMITS, dealers::validate)
}

/// The dealer that the site names, if HQ lets it look after this site.
pub fn dealer_of<'d>(site: &Document<Site>, dealers: &'d Dealers) -> Result<&'d Dealer, Box<Refusal>> {
    limits::dealer_of(&site.outline, &site.value, dealers)
}

/// Every limit of HQ that the site exceeds, with the field that does and the limit. Empty when all is well. What an
/// instance does not say itself is what its template gives; where that is not known either, a limit counts as exceeded.
pub fn within(site: &Document<Site>, manifest: &Manifest, limits: &SiteLimits) -> Vec<Refusal> {
    limits::check(&site.outline, &site.value, manifest, limits)
}

/// What only both together can tell: unknown templates and inputs, missing inputs and services, values of the wrong
/// type, disks that would shrink. Empty when all is well.
pub fn against(site: &Document<Site>, manifest: &Manifest) -> Vec<Refusal> {
    let problems = Problems::new(&site.outline);
    cross::check(&problems, &site.value, manifest);
    problems.into_refusals()
}

/// Whether the fleet repository has the release that the site names exactly. A site that follows a channel passes:
/// which release that is, only the verified `channels.yaml` tells.
pub fn release_exists(site: &Document<Site>, releases: &BTreeSet<ReleaseId>) -> Result<(), Box<Refusal>> {
    match &site.value.release {
        ReleaseChoice::Exact(id) if !releases.contains(id) => {
            let newest = releases.last().map(|id| format!("; the newest is {id}")).unwrap_or_default();
            Err(Box::new(Refusal {
                reason: Reason::UnknownRelease,
                place: site.outline.place("release"),
                message: format!("there is no release {id} in this fleet repository"),
                remedy: format!("name one of the files below releases/{newest}"),
            }))
        }
        ReleaseChoice::Exact(_) | ReleaseChoice::Channel(_) => Ok(()),
    }
}

/// JSON Schema (2020-12) of a release manifest.
pub fn manifest_schema() -> serde_json::Value {
    schemars::schema_for!(raw::Release).to_value()
}

/// JSON Schema (2020-12) of a site definition.
pub fn site_schema() -> serde_json::Value {
    schemars::schema_for!(raw::Site).to_value()
}

/// JSON Schema (2020-12) of a key list.
pub fn key_list_schema() -> serde_json::Value {
    schemars::schema_for!(raw::KeyList).to_value()
}

/// JSON Schema (2020-12) of `channels.yaml`.
pub fn channels_schema() -> serde_json::Value {
    schemars::schema_for!(raw::Channels).to_value()
}

/// JSON Schema (2020-12) of the list of dealers.
pub fn dealers_schema() -> serde_json::Value {
    schemars::schema_for!(dealers::RawDealers).to_value()
}

/// The whole way of one document.
fn document<R: serde::de::DeserializeOwned, T>(
    file: &str,
    bytes: &[u8],
    limits: Limits,
    validate: fn(&Problems<'_>, R) -> problems::Checked<T>,
) -> Result<Document<T>, Vec<Refusal>> {
    let (outline, mistakes) = Outline::read(file, bytes, limits).map_err(problems::sorted)?;
    let problems = Problems::new(&outline);
    problems.extend(mistakes);
    let value = read::read::<R>(outline.root(), &problems).and_then(|raw| validate(&problems, raw));
    let refusals = problems.into_refusals();
    match value {
        Ok(value) if refusals.is_empty() => Ok(Document { value, outline }),
        _ => Err(refusals),
    }
}
