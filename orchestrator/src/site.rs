//! The site in force: which revision is followed, and its assignments.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use contract::assignment::Assignment;
use contract::ids::{InstanceName, ReleaseId, Revision};

use crate::agents::SiteCa;
use crate::cli::ACCEPTED_REWRITE;
use crate::config::Config;
use crate::plan::{Desired, WiringDigest, Wished};
use crate::secrets::{Identities, Secrets};
use crate::source::{Repository, Settings, SourceError, SshAccess};
use crate::store::{Event, EventKind, Store, StoreError, Verdict};
use crate::trust::{
    self, CheckedSite, HistoryRule, KeySet, KeySetError, Memory, TrustError, VerifiedRelease, VerifiedSite,
};
use crate::wiring;

/// Follows the fleet repository: fetches, verifies, remembers.
#[derive(Debug)]
pub struct Follower {
    settings: Settings,
    directory: PathBuf,
    site: contract::ids::SiteName,
    keys: KeySet,
    store: Store,
    current: RwLock<Option<Arc<VerifiedSite>>>,
    /// What was wrong last, so that the log says each thing once.
    last_trouble: RwLock<String>,
}

/// What a look at the remote came to.
#[derive(Debug)]
pub enum Look {
    /// The head is in force already.
    Same,
    /// A new revision is in force.
    Accepted(Arc<VerifiedSite>),
    /// The head was refused; what was in force stays.
    Refused,
    /// The remote could not be read; what was in force stays.
    Unreachable,
}

impl Follower {
    /// Nothing is fetched yet.
    pub fn new(config: &Config, store: Store) -> Result<Self, KeySetError> {
        Ok(Self {
            settings: settings(config),
            directory: config.state.join("fleet.git"),
            site: config.site.clone(),
            keys: KeySet::parse(&config.keys)?,
            store,
            current: RwLock::default(),
            last_trouble: RwLock::default(),
        })
    }

    /// The site in force.
    pub fn current(&self) -> Option<Arc<VerifiedSite>> {
        self.current.read().unwrap_or_else(|held| held.into_inner()).clone()
    }

    fn set_current(&self, site: Arc<VerifiedSite>) {
        *self.current.write().unwrap_or_else(|held| held.into_inner()) = Some(site);
    }

    /// Whether this trouble is another than last time; remembers it.
    fn is_news(&self, trouble: &str) -> bool {
        let mut last = self.last_trouble.write().unwrap_or_else(|held| held.into_inner());
        let news = *last != trouble;
        trouble.clone_into(&mut last);
        news
    }

    fn memory(&self) -> Result<Memory, StoreError> {
        let accepted = self.store.accepted_revision()?.map(|record| record.revision);
        Ok(Memory { accepted, releases: self.store.releases()? })
    }

    /// Puts the last accepted revision in force again, from the local copy and verified anew: a restart needs no
    /// network.
    pub fn restore(&self) -> Result<Option<Arc<VerifiedSite>>, StoreError> {
        let Some(accepted) = self.store.accepted_revision()? else { return Ok(None) };
        let memory = Memory { accepted: None, releases: self.store.releases()? };
        match self.verify(&accepted.revision, &memory) {
            Ok(site) => {
                let site = Arc::new(site);
                self.set_current(site.clone());
                Ok(Some(site))
            }
            Err(error) => {
                self.store.record(
                    Event::new(
                        EventKind::RevisionRefused,
                        format!("{} was in force and cannot be read again: {error}", accepted.revision),
                    )
                    .revision(&accepted.revision)
                    .reason(error.reason()),
                )?;
                Ok(None)
            }
        }
    }

    fn verify(&self, revision: &Revision, memory: &Memory) -> Result<VerifiedSite, TrustError> {
        let repository = Repository::open(&self.directory, self.settings.clone())?;
        let rewrite: Option<Revision> =
            self.store.meta(ACCEPTED_REWRITE).ok().flatten().and_then(|text| text.parse().ok());
        let rule = match &rewrite {
            Some(revision) => HistoryRule::AcceptRewrite(&repository, revision),
            None => HistoryRule::FastForward(&repository),
        };
        trust::verify(&repository.at(revision)?, rule, &self.site, &self.keys, memory)
    }

    /// Fetches and verifies without remembering anything: what a person's `plan` looks at.
    pub fn preview(&self) -> Result<VerifiedSite, PreviewError> {
        let mut repository = Repository::open(&self.directory, self.settings.clone())?;
        let head = repository.fetch()?.head;
        Ok(self.verify(&head, &self.memory()?)?)
    }

    /// Fetches and verifies one release of the head.
    pub fn release(&self, id: &ReleaseId) -> Result<VerifiedRelease, PreviewError> {
        let mut repository = Repository::open(&self.directory, self.settings.clone())?;
        let head = repository.fetch()?.head;
        let memory = self.memory()?;
        Ok(trust::verify_release(&repository.at(&head)?, id, &self.keys, &memory)?)
    }

    /// Fetches, verifies, and puts the head in force if it holds. Blocks; call it where that is allowed.
    pub fn look(&self) -> Result<Look, StoreError> {
        let fetched =
            Repository::open(&self.directory, self.settings.clone()).and_then(|mut repository| repository.fetch());
        let head = match fetched {
            Ok(fetched) => fetched.head,
            Err(error) => {
                let text = error.to_string();
                if self.is_news(&text) {
                    self.store.record(
                        Event::new(EventKind::SourceFailed, format!("{text}. To do: {}", error.remedy()))
                            .reason(error.reason()),
                    )?;
                }
                return Ok(Look::Unreachable);
            }
        };
        if self.current().is_some_and(|site| *site.revision() == head) {
            self.is_news("");
            return Ok(Look::Same);
        }
        match self.verify(&head, &self.memory()?) {
            Ok(site) => {
                let site = Arc::new(site);
                self.accept(&site)?;
                self.is_news("");
                Ok(Look::Accepted(site))
            }
            Err(error) => {
                let message = format!("{error}. To do: {}", error.remedy());
                self.store.note_revision(
                    &head,
                    &Verdict::Refused { reason: error.reason().into(), message: message.clone() },
                )?;
                if self.is_news(&format!("{head} {message}")) {
                    self.store.record(
                        Event::new(EventKind::RevisionRefused, format!("{message}. What was in force stays in force"))
                            .revision(&head)
                            .reason(error.reason()),
                    )?;
                }
                Ok(Look::Refused)
            }
        }
    }

    /// Remembers first, so that a crash in between never forgets what was believed.
    fn accept(&self, site: &Arc<VerifiedSite>) -> Result<(), StoreError> {
        let (release, signer) = (site.release(), site.signature().key().to_string());
        self.store.note_release(release.id(), release.digest())?;
        self.store.note_revision(
            site.revision(),
            &Verdict::Accepted { release: release.id().clone(), signer: signer.clone() },
        )?;
        self.store.record(
            Event::new(
                EventKind::RevisionAccepted,
                format!("revision in force: release {} signed by {signer}", release.id()),
            )
            .revision(site.revision()),
        )?;
        // An operator's consent to a rewrite is for once.
        self.store.forget_meta(ACCEPTED_REWRITE)?;
        self.set_current(site.clone());
        Ok(())
    }
}

/// Why a preview cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The remote.
    #[error("{0}. To do: {remedy}", remedy = .0.remedy())]
    Source(#[from] SourceError),
    /// The revision.
    #[error("{0}. To do: {remedy} [{reason}]", remedy = .0.remedy(), reason = .0.reason())]
    Trust(#[from] TrustError),
    /// The ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn settings(config: &Config) -> Settings {
    let source = &config.source;
    Settings {
        url: source.url.clone(),
        branch: source.branch.clone(),
        ssh: match (&source.ssh_key, &source.known_hosts) {
            (Some(key), Some(known_hosts)) => Some(SshAccess { key: key.clone(), known_hosts: known_hosts.clone() }),
            _ => None,
        },
        ca_file: source.ca_file.clone(),
        limits: crate::source::Limits::default(),
    }
}

/// A site's wishes with everything that its assignments need.
#[derive(Debug)]
pub struct Wishes {
    /// For `plan`.
    pub desired: Desired,
    /// Rendered assignments with their keyed digests.
    pub assignments: BTreeMap<InstanceName, (WiringDigest, Assignment)>,
}

/// Renders every instance's assignment; one that cannot be rendered blocks its instance only.
pub fn wishes(site: &CheckedSite, ca: &SiteCa, secrets: &Secrets) -> Result<Wishes, contract::ids::InvalidId> {
    let mut assignments = BTreeMap::new();
    let desired = Desired::of(site, |instance| {
        let (document, release) = (site.site(), site.release());
        let Some((wished, template)) = document
            .instances
            .get(instance)
            .and_then(|wished| Some((wished, release.manifest().templates.get(&wished.template)?)))
        else {
            return Wished::Unknown;
        };
        let inputs = wiring::Inputs { site: document, instance, wished, release: release.id(), template, secrets };
        match wiring::render(inputs) {
            Ok(wiring::Rendered { assignment, secrets }) => {
                let digest = WiringDigest {
                    content: ca.keyed_digest(&contract::secret::to_json(&assignment)),
                    secrets: secrets
                        .into_iter()
                        .map(|(name, secret)| (name.clone(), ca.secret_digest(name, secret)))
                        .collect(),
                };
                assignments.insert(instance.clone(), (digest.clone(), assignment));
                Wished::Digest(digest)
            }
            Err(error) => error.wished(),
        }
    })?;
    Ok(Wishes { desired, assignments })
}

/// Reads the secrets of a revision and of the local file.
pub fn secrets(site: &CheckedSite, keys: &Identities, config: &Config) -> Secrets {
    Secrets::gather(site.sealed(), keys, config.secrets.as_deref())
}
