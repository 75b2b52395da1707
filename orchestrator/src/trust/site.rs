use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use contract::document::{self, Document};
use contract::ids::{ReleaseId, Revision, Sha256Digest, SiteName};
use contract::manifest::Manifest;
use contract::refusal::Place;
use contract::site::{ReleaseChoice, Site};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::TrustError;
use super::keys::{KeySet, SignatureError};
use super::signature::{KeyId, ReleaseComment, SIGNATURE_FILE_LIMIT};
use crate::secrets::Sealed;
use crate::source::{Repository, Snapshot, Tree};

/// Bytes of a manifest or a site that are read at most. `contract::document` has closer limits for each; this one keeps
/// what is absurd from being read at all.
const DOCUMENT_LIMIT: usize = 1 << 20;
/// Names that an error lists at most.
const NAMES_LISTED: usize = 8;

/// What was seen before. The store keeps it; it must survive whatever happens to the repository's copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The last revision that was accepted.
    pub accepted: Option<Revision>,
    /// What every release was when it was first accepted.
    pub releases: BTreeMap<ReleaseId, Sha256Digest>,
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

/// Who signed a release, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseSignature {
    key: KeyId,
    comment: ReleaseComment,
}

/// A release that HQ has signed.
#[derive(Debug, Clone)]
pub struct VerifiedRelease {
    release: CheckedRelease,
    signature: ReleaseSignature,
}

/// A site of one revision, with a release that HQ has signed.
#[derive(Debug, Clone)]
pub struct VerifiedSite {
    checked: CheckedSite,
    revision: Revision,
    signature: ReleaseSignature,
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

impl ReleaseSignature {
    /// The key that made it.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// When, by the clock of the one who signed.
    pub fn signed_at(&self) -> Timestamp {
        self.comment.signed_at
    }
}

impl VerifiedRelease {
    /// Who signed it.
    pub fn signature(&self) -> &ReleaseSignature {
        &self.signature
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
    pub fn signature(&self) -> &ReleaseSignature {
        &self.signature
    }

    /// Moves the memory on. From then on nothing older is accepted, and the release may never change.
    pub fn remember(&self, memory: &mut Memory) {
        memory.accepted = Some(self.revision.clone());
        memory.releases.insert(self.release.id().clone(), self.release.digest().clone());
    }
}

impl Deref for VerifiedSite {
    type Target = CheckedSite;

    fn deref(&self) -> &CheckedSite {
        &self.checked
    }
}

/// Believes a revision, or says why not: it continues what was accepted, HQ has signed the release as what it is, the
/// release is what it was before, and site and release are well-formed and fit together.
pub fn verify(
    snapshot: &Snapshot<'_>,
    rule: HistoryRule<'_>,
    site: &SiteName,
    keys: &KeySet,
    memory: &Memory,
) -> Result<VerifiedSite, TrustError> {
    continues(snapshot.id(), rule, memory)?;
    let document = read_site(snapshot, site)?;
    let id = release_of(snapshot, &document)?;
    let VerifiedRelease { release, signature } = verify_release(snapshot, id, keys, memory)?;
    let checked = fit_together(snapshot, document, release)?;
    Ok(VerifiedSite { checked, revision: snapshot.id().clone(), signature })
}

/// Believes one release of a revision, or says why not.
pub fn verify_release(
    tree: &dyn Tree,
    id: &ReleaseId,
    keys: &KeySet,
    memory: &Memory,
) -> Result<VerifiedRelease, TrustError> {
    let (file, content) = read_release(tree, id)?;
    let signature = match tree.read(&format!("{file}.minisig"), SIGNATURE_FILE_LIMIT)? {
        Some(signature) => signature_of(id, &file, &content, &signature, keys)?,
        None => return Err(TrustError::ReleaseUnsigned { file }),
    };
    // Only now is the content looked into: a parser never sees what nobody signed.
    let release = CheckedRelease::parse(&file, &content)?;
    match memory.releases.get(id) {
        Some(before) if before != release.digest() => Err(TrustError::ReleaseChanged {
            release: id.clone(),
            before: before.clone(),
            now: release.digest().clone(),
        }),
        _ => Ok(VerifiedRelease { release, signature }),
    }
}

/// Checks the files of a laptop as [`verify`] would, but for signature and history, which a laptop cannot judge.
pub fn check(tree: &dyn Tree, site: &SiteName) -> Result<CheckedSite, TrustError> {
    let document = read_site(tree, site)?;
    let id = release_of(tree, &document)?;
    let (file, content) = read_release(tree, id)?;
    let release = CheckedRelease::parse(&file, &content)?;
    fit_together(tree, document, release)
}

fn continues(candidate: &Revision, rule: HistoryRule<'_>, memory: &Memory) -> Result<(), TrustError> {
    let Some(accepted) = &memory.accepted else { return Ok(()) };
    let repository = match rule {
        HistoryRule::AcceptRewrite(_, named) if named == candidate => return Ok(()),
        HistoryRule::FastForward(repository) | HistoryRule::AcceptRewrite(repository, _) => repository,
    };
    if repository.is_descendant(accepted, candidate)? {
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

/// The release that the site names, if the tree has it.
fn release_of<'site>(tree: &dyn Tree, site: &'site Document<Site>) -> Result<&'site ReleaseId, TrustError> {
    let id = match &site.value.release {
        ReleaseChoice::Exact(id) => id,
        ReleaseChoice::Channel(channel) => {
            let (site, channel) = (site.value.site.clone(), channel.clone());
            return Err(TrustError::ChannelNotSupported { site, channel });
        }
    };
    let files = tree.list("releases")?;
    let releases: BTreeSet<ReleaseId> =
        files.iter().filter_map(|file| file.strip_suffix(".yaml")?.parse().ok()).collect();
    document::release_exists(site, &releases).map_err(|refusal| TrustError::Documents(vec![*refusal]))?;
    Ok(id)
}

fn read_release(tree: &dyn Tree, id: &ReleaseId) -> Result<(String, Vec<u8>), TrustError> {
    let file = format!("releases/{id}.yaml");
    match tree.read(&file, DOCUMENT_LIMIT)? {
        Some(content) => Ok((file, content)),
        None => Err(TrustError::ReleaseMissing { release: id.clone() }),
    }
}

fn signature_of(
    id: &ReleaseId,
    file: &str,
    content: &[u8],
    signature: &[u8],
    keys: &KeySet,
) -> Result<ReleaseSignature, TrustError> {
    let file = file.to_owned();
    let signed = match keys.verify(content, signature) {
        Ok(signed) => signed,
        Err(cause @ SignatureError::UnknownKey { .. }) => return Err(TrustError::ReleaseKeyUnknown { file, cause }),
        Err(cause) => return Err(TrustError::ReleaseSignatureWrong { file, cause }),
    };
    let Ok(comment) = signed.trusted_comment.parse::<ReleaseComment>() else {
        return Err(TrustError::ReleaseCommentMissing { file, comment: signed.trusted_comment });
    };
    if comment.release != *id {
        return Err(TrustError::ReleaseCommentMismatch { file, named: comment.release, expected: id.clone() });
    }
    Ok(ReleaseSignature { key: signed.key, comment })
}

impl CheckedRelease {
    fn parse(file: &str, content: &[u8]) -> Result<Self, TrustError> {
        let document = document::manifest(file, content).map_err(TrustError::Documents)?;
        Ok(Self { document, digest: digest(content) })
    }
}

fn fit_together(tree: &dyn Tree, document: Document<Site>, release: CheckedRelease) -> Result<CheckedSite, TrustError> {
    let refusals = document::against(&document, release.manifest());
    if !refusals.is_empty() {
        return Err(TrustError::Documents(refusals));
    }
    let sealed = Sealed::read(tree, &document.value.site);
    Ok(CheckedSite { revision: tree.revision().cloned(), document, release, sealed })
}

fn digest(content: &[u8]) -> Sha256Digest {
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
