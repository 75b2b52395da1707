use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use contract::dealers::Dealers;
use contract::document::{self, Document};
use contract::ids::{ReleaseId, Revision, Sha256Digest, SiteName};
use contract::manifest::Manifest;
use contract::refusal::Place;
use contract::site::{ReleaseChoice, Site};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::TrustError;
use super::comment::Subject;
use super::commits::{self, Candidate, CommitRule};
use super::floor::Floor;
use super::hq::{CHANNELS, DEALERS, Freshness, Hq};
use super::signed::{Expected, Signatures, believe};
use crate::secrets::Sealed;
use crate::source::{Repository, Snapshot, Tree};

/// Bytes of a manifest or a site that are read at most. `contract::document` has closer limits for each; this one keeps
/// what is absurd from being read at all.
pub(super) const DOCUMENT_LIMIT: usize = 1 << 20;
/// Names that an error lists at most.
const NAMES_LISTED: usize = 8;

/// What was seen before. The store keeps it; it must survive whatever happens to the repository's copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The last revision that was accepted.
    pub accepted: Option<Revision>,
    /// What every release was when it was first accepted.
    pub releases: BTreeMap<ReleaseId, Sha256Digest>,
    /// The release in force.
    pub in_force: Option<ReleaseId>,
    /// The newest of HQ's documents.
    pub floor: Floor,
}

/// How a revision must stand to the last one that was accepted. The first one ever is taken as it comes.
#[derive(Clone, Copy)]
pub enum HistoryRule<'a> {
    /// It is that one or comes after it.
    FastForward(&'a Repository),
    /// As above, or it is this very revision, which an operator has named.
    AcceptRewrite(&'a Repository, &'a Revision),
}

/// A release that is well-formed.
#[derive(Debug, Clone)]
pub struct CheckedRelease {
    document: Document<Manifest>,
    digest: Sha256Digest,
}

/// A site and its release that are well-formed and fit together. Nobody vouched for them.
#[derive(Debug, Clone)]
pub struct CheckedSite {
    revision: Option<Revision>,
    document: Document<Site>,
    release: CheckedRelease,
    sealed: Sealed,
}

/// A release that HQ has signed.
#[derive(Debug, Clone)]
pub struct VerifiedRelease {
    release: CheckedRelease,
    signatures: Signatures,
}

/// A site of one revision, with a release that HQ has signed.
#[derive(Debug, Clone)]
pub struct VerifiedSite {
    checked: CheckedSite,
    revision: Revision,
    signatures: Signatures,
    freshness: Freshness,
}

impl CheckedRelease {
    /// What it says.
    pub fn manifest(&self) -> &Manifest {
        &self.document.value
    }

    /// Its id.
    pub fn id(&self) -> &ReleaseId {
        &self.document.value.release
    }

    /// SHA-256 of the manifest's file.
    pub fn digest(&self) -> &Sha256Digest {
        &self.digest
    }

    /// Where a field stands, such as `templates.zigbee2mqtt.builder`.
    pub fn place(&self, field: &str) -> Place {
        self.document.outline.place(field)
    }
}

impl CheckedSite {
    /// The revision that it is from; none for files on a laptop.
    pub fn revision(&self) -> Option<&Revision> {
        self.revision.as_ref()
    }

    /// What the dealer says.
    pub fn site(&self) -> &Site {
        &self.document.value
    }

    /// The release that the site names.
    pub fn release(&self) -> &CheckedRelease {
        &self.release
    }

    /// Its secrets, encrypted as they stand in the tree.
    pub fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    /// Files and lines of all its fields.
    pub(crate) fn outline(&self) -> &contract::document::Outline {
        &self.document.outline
    }

    /// File and line of a field of the site, such as `instances.zigbee.network.ip`.
    pub fn place(&self, field: &str) -> Place {
        self.document.outline.place(field)
    }
}

impl VerifiedRelease {
    /// Who signed it.
    pub fn signatures(&self) -> &Signatures {
        &self.signatures
    }
}

impl Deref for VerifiedRelease {
    type Target = CheckedRelease;

    fn deref(&self) -> &CheckedRelease {
        &self.release
    }
}

impl VerifiedSite {
    /// The revision that it is from.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Who signed its release.
    pub fn signatures(&self) -> &Signatures {
        &self.signatures
    }

    /// Whether HQ's word was fresh when it was accepted: if not, it only keeps the release that was in force.
    pub fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// Moves the memory on. From then on nothing older is accepted, and the release may never change.
    pub fn remember(&self, memory: &mut Memory) {
        memory.accepted = Some(self.revision.clone());
        memory.in_force = Some(self.release.id().clone());
        memory.releases.insert(self.release.id().clone(), self.release.digest().clone());
    }
}

impl Deref for VerifiedSite {
    type Target = CheckedSite;

    fn deref(&self) -> &CheckedSite {
        &self.checked
    }
}

/// Believes a revision, or says why not: it continues what was accepted, HQ has signed the release as what it is and has
/// not revoked it, the release is what it was before, site and release are well-formed and fit together, the site keeps
/// within HQ's limits, and the commits that changed it are signed as demanded. When HQ's word is out of date, only the
/// release in force goes on.
pub fn verify(
    snapshot: &Snapshot<'_>,
    rule: HistoryRule<'_>,
    commits: CommitRule,
    site: &SiteName,
    hq: &Hq,
    memory: &Memory,
    now: Timestamp,
) -> Result<VerifiedSite, TrustError> {
    continues(snapshot.id(), rule, memory)?;
    let document = read_site(snapshot, site)?;
    let none = BTreeMap::new();
    let id = release_of(snapshot, &document, hq.channels().map_or(&none, |known| &known.channels))?;
    let freshness = hq.freshness(now);
    match freshness {
        Freshness::ExpiredAt(expired) if memory.in_force.as_ref() != Some(&id) => {
            return Err(TrustError::ChannelsExpired { expired, release: id });
        }
        Freshness::ExpiredAt(_) | Freshness::Current => {}
    }
    let VerifiedRelease { release, signatures } = verify_release(snapshot, &id, hq, memory)?;
    let checked = fit_together(snapshot, document, release, hq.dealers())?;
    // What was accepted already is not asked for signatures again, also when more is demanded from now on.
    if commits != CommitRule::Off && memory.accepted.as_ref() != Some(snapshot.id()) {
        let candidate = Candidate {
            repository: rule.repository(),
            revision: snapshot.id(),
            // An operator's word stands for what was before, as at the first contact.
            after: memory.accepted.as_ref().filter(|_| !rule.names(snapshot.id())),
            site,
            dealer: &checked.site().dealer,
        };
        commits::verify(commits, &candidate, hq.dealers().ok_or(TrustError::DealersMissing)?)?;
    }
    Ok(VerifiedSite { checked, revision: snapshot.id().clone(), signatures, freshness })
}

/// Believes one release of a revision, or says why not.
pub fn verify_release(
    tree: &dyn Tree,
    id: &ReleaseId,
    hq: &Hq,
    memory: &Memory,
) -> Result<VerifiedRelease, TrustError> {
    if let Some(why) = hq.revoked(id) {
        return Err(TrustError::ReleaseRevoked { release: id.clone(), why: why.to_owned() });
    }
    let (file, content) = read_release(tree, id)?;
    let expected = Expected::Subject(Subject::Release(id.clone()));
    let signatures = believe(tree, &file, &content, &expected, hq.keys(), "the keys in force")?;
    // Only now is the content looked into: a parser never sees what nobody signed.
    let release = CheckedRelease::parse(&file, &content)?;
    match memory.releases.get(id) {
        Some(before) if before != release.digest() => Err(TrustError::ReleaseChanged {
            release: id.clone(),
            before: before.clone(),
            now: release.digest().clone(),
        }),
        _ => Ok(VerifiedRelease { release, signatures }),
    }
}

/// Checks the files of a laptop as [`verify`] would, but for signature and history, which a laptop cannot judge.
pub fn check(tree: &dyn Tree, site: &SiteName) -> Result<CheckedSite, TrustError> {
    let document = read_site(tree, site)?;
    let channels = match (&document.value.release, tree.read(CHANNELS, DOCUMENT_LIMIT)?) {
        (ReleaseChoice::Channel(_), Some(content)) => {
            document::channels(CHANNELS, &content).map_err(TrustError::Documents)?.value.channels
        }
        _ => BTreeMap::new(),
    };
    let id = release_of(tree, &document, &channels)?;
    let (file, content) = read_release(tree, &id)?;
    let release = CheckedRelease::parse(&file, &content)?;
    let dealers = match tree.read(DEALERS, DOCUMENT_LIMIT)? {
        Some(content) => Some(document::dealers(DEALERS, &content).map_err(TrustError::Documents)?.value),
        None => None,
    };
    fit_together(tree, document, release, dealers.as_ref())
}

impl HistoryRule<'_> {
    fn repository(&self) -> &Repository {
        match self {
            Self::FastForward(repository) | Self::AcceptRewrite(repository, _) => repository,
        }
    }

    /// Whether an operator has named this revision.
    fn names(&self, candidate: &Revision) -> bool {
        matches!(self, Self::AcceptRewrite(_, named) if *named == candidate)
    }
}

fn continues(candidate: &Revision, rule: HistoryRule<'_>, memory: &Memory) -> Result<(), TrustError> {
    let Some(accepted) = &memory.accepted else { return Ok(()) };
    if rule.names(candidate) || rule.repository().is_descendant(accepted, candidate)? {
        Ok(())
    } else {
        Err(TrustError::HistoryRewritten { accepted: accepted.clone(), candidate: candidate.clone() })
    }
}

fn read_site(tree: &dyn Tree, site: &SiteName) -> Result<Document<Site>, TrustError> {
    let file = format!("sites/{site}/site.yaml");
    match tree.read(&file, DOCUMENT_LIMIT)? {
        Some(content) => document::site(&file, &content).map_err(TrustError::Documents),
        None => {
            let available = nearest_first(tree.list("sites")?, site.as_str());
            Err(TrustError::SiteMissing { site: site.clone(), available })
        }
    }
}

/// The release that the site names or that its channel gives, if the tree has it.
fn release_of(
    tree: &dyn Tree,
    site: &Document<Site>,
    channels: &BTreeMap<String, ReleaseId>,
) -> Result<ReleaseId, TrustError> {
    let id = match &site.value.release {
        ReleaseChoice::Exact(id) => id,
        ReleaseChoice::Channel(channel) => channels.get(channel).ok_or_else(|| TrustError::ChannelUnknown {
            site: site.value.site.clone(),
            channel: channel.clone(),
            available: nearest_first(channels.keys().cloned().collect(), channel),
        })?,
    };
    let files = tree.list("releases")?;
    let releases: BTreeSet<ReleaseId> =
        files.iter().filter_map(|file| file.strip_suffix(".yaml")?.parse().ok()).collect();
    document::release_exists(site, &releases).map_err(|refusal| TrustError::Documents(vec![*refusal]))?;
    Ok(id.clone())
}

fn read_release(tree: &dyn Tree, id: &ReleaseId) -> Result<(String, Vec<u8>), TrustError> {
    let file = format!("releases/{id}.yaml");
    match tree.read(&file, DOCUMENT_LIMIT)? {
        Some(content) => Ok((file, content)),
        None => Err(TrustError::ReleaseMissing { release: id.clone() }),
    }
}

impl CheckedRelease {
    fn parse(file: &str, content: &[u8]) -> Result<Self, TrustError> {
        let document = document::manifest(file, content).map_err(TrustError::Documents)?;
        Ok(Self { document, digest: digest(content) })
    }
}

fn fit_together(
    tree: &dyn Tree,
    document: Document<Site>,
    release: CheckedRelease,
    dealers: Option<&Dealers>,
) -> Result<CheckedSite, TrustError> {
    let mut refusals = document::against(&document, release.manifest());
    if let Some(dealers) = dealers {
        refusals.extend(document::dealer_of(&document, dealers).err().map(|refusal| *refusal));
        let limits = dealers.limits_of(&document.value.dealer);
        refusals.extend(document::within(&document, release.manifest(), &limits));
    }
    if !refusals.is_empty() {
        return Err(TrustError::Documents(refusals));
    }
    let sealed = Sealed::read(tree, &document.value.site);
    Ok(CheckedSite { revision: tree.revision().cloned(), document, release, sealed })
}

pub(super) fn digest(content: &[u8]) -> Sha256Digest {
    <[u8; 32]>::from(Sha256::digest(content)).into()
}

/// Some names, those like `wanted` first.
fn nearest_first(mut names: Vec<String>, wanted: &str) -> String {
    names.sort_by(|a, b| strsim::jaro_winkler(b, wanted).total_cmp(&strsim::jaro_winkler(a, wanted)));
    match names.as_slice() {
        [] => "none".to_owned(),
        few if few.len() <= NAMES_LISTED => few.join(", "),
        many => format!("{} and {} more", many[..NAMES_LISTED].join(", "), many.len() - NAMES_LISTED),
    }
}
