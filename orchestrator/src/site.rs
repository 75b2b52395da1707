//! The site in force: which revision is followed, and its assignments.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use contract::assignment::Assignment;
use contract::ids::{InstanceName, ReleaseId, Revision};
use jiff::Timestamp;

use crate::agents::SiteCa;
use crate::cli::ACCEPTED_REWRITE;
use crate::config::Config;
use crate::floor::Keeper;
use crate::plan::{Desired, WiringDigest, Wished};
use crate::secrets::{Identities, Secrets};
use crate::source::{Repository, Settings, SourceError, SshAccess};
use crate::store::{Event, EventKind, RevisionRecord, Store, StoreError, Verdict};
use crate::trust::{
    self, CheckedSite, CommitRule, Floor, Freshness, HistoryRule, Hq, KeySetError, Memory, TrustError, VerifiedRelease,
    VerifiedSite,
};
use crate::wiring;

/// Follows the fleet repository: fetches, verifies, remembers.
#[derive(Debug)]
pub struct Follower {
    settings: Settings,
    directory: PathBuf,
    site: contract::ids::SiteName,
    commits: CommitRule,
    keeper: Arc<Keeper>,
    store: Store,
    current: RwLock<Option<Arc<VerifiedSite>>>,
    /// What HQ said last, whatever became of the site in that revision.
    hq: RwLock<Option<Arc<Hq>>>,
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
    /// Nobody has told this ledger yet what was accepted before it.
    FloorUnknown,
}

impl Follower {
    /// Nothing is fetched yet.
    pub fn new(config: &Config, store: Store) -> Result<Self, KeySetError> {
        Ok(Self {
            settings: settings(config),
            directory: config.state.join("fleet.git"),
            site: config.site.clone(),
            commits: config.commits,
            keeper: Arc::new(Keeper::new(store.clone(), config.trusted()?)),
            store,
            current: RwLock::default(),
            hq: RwLock::default(),
            last_trouble: RwLock::default(),
        })
    }

    /// Who keeps the floor.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// The site in force.
    pub fn current(&self) -> Option<Arc<VerifiedSite>> {
        self.current.read().unwrap_or_else(|held| held.into_inner()).clone()
    }

    /// What HQ said last.
    pub fn hq(&self) -> Option<Arc<Hq>> {
        self.hq.read().unwrap_or_else(|held| held.into_inner()).clone()
    }

    fn set_hq(&self, hq: Hq) {
        *self.hq.write().unwrap_or_else(|held| held.into_inner()) = Some(Arc::new(hq));
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
        let (accepted, in_force) = match self.store.accepted_revision()? {
            Some(RevisionRecord { revision, verdict: Verdict::Accepted { release, .. }, .. }) => {
                (Some(revision), Some(release))
            }
            _ => (None, None),
        };
        let floor = self.keeper.known()?.unwrap_or_default().floor;
        Ok(Memory { accepted, releases: self.store.releases()?, in_force, floor })
    }

    /// Puts the last accepted revision in force again, from the local copy and verified anew: a restart needs no
    /// network.
    pub fn restore(&self) -> Result<Option<Arc<VerifiedSite>>, StoreError> {
        // What was accepted once is judged as it stood then: neither a key nor a release that HQ took back since, nor a
        // document that is out of date by now, takes away what runs. It is accepted already, so nothing in it is new.
        let then = Memory { floor: Floor::default(), ..self.memory()? };
        if let Some(revision) = self.keeper.known()?.and_then(|known| known.revision) {
            match self.open().and_then(|repository| self.hq_of(&repository, &revision, &then.floor)) {
                Ok(hq) => self.set_hq(hq),
                Err(error) => tracing::warn!(reason = error.reason(), %error, "what HQ said last cannot be read again"),
            }
        }
        let Some(accepted) = self.store.accepted_revision()? else { return Ok(None) };
        match self.judge(&accepted.revision, &then).1 {
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

    fn open(&self) -> Result<Repository, TrustError> {
        Ok(Repository::open(&self.directory, self.settings.clone())?)
    }

    fn hq_of(&self, repository: &Repository, revision: &Revision, before: &Floor) -> Result<Hq, TrustError> {
        trust::verify_hq(&repository.at(revision)?, self.keeper.configured(), before)
    }

    /// What HQ says in a revision, if that holds, and whether the site in it is believed.
    fn judge(&self, revision: &Revision, memory: &Memory) -> (Option<Hq>, Result<VerifiedSite, TrustError>) {
        let judged = self.open().and_then(|repository| {
            let hq = self.hq_of(&repository, revision, &memory.floor)?;
            Ok((repository, hq))
        });
        let (repository, hq) = match judged {
            Ok(judged) => judged,
            Err(error) => return (None, Err(error)),
        };
        let rewrite: Option<Revision> =
            self.store.meta(ACCEPTED_REWRITE).ok().flatten().and_then(|text| text.parse().ok());
        let rule = match &rewrite {
            Some(revision) => HistoryRule::AcceptRewrite(&repository, revision),
            None => HistoryRule::FastForward(&repository),
        };
        let site = repository.at(revision).map_err(TrustError::from).and_then(|snapshot| {
            trust::verify(&snapshot, rule, self.commits, &self.site, &hq, memory, Timestamp::now())
        });
        (Some(hq), site)
    }

    /// Fetches and verifies without remembering anything: what a person's `plan` looks at.
    pub fn preview(&self) -> Result<VerifiedSite, PreviewError> {
        let mut repository = self.open()?;
        let head = repository.fetch()?.head;
        Ok(self.judge(&head, &self.memory()?).1?)
    }

    /// Fetches and verifies one release of the head.
    pub fn release(&self, id: &ReleaseId) -> Result<VerifiedRelease, PreviewError> {
        let mut repository = self.open()?;
        let head = repository.fetch()?.head;
        let memory = self.memory()?;
        let hq = self.hq_of(&repository, &head, &memory.floor)?;
        Ok(trust::verify_release(&repository.at(&head)?, id, &hq, &memory)?)
    }

    /// Fetches, verifies, and puts the head in force if it holds. Blocks; call it where that is allowed.
    pub fn look(&self) -> Result<Look, StoreError> {
        if self.keeper.known()?.is_none() {
            if self.is_news("floor-unknown") {
                let message = "nothing is accepted before the markers of this site's guests on Proxmox were read: a ledger \
                               that is new, or was lost, does not know what was accepted before it";
                self.store.record(Event::new(EventKind::Floor, message).reason("floor-unknown"))?;
            }
            return Ok(Look::FloorUnknown);
        }
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
        // Others may have told of newer words of HQ than the remote has.
        let memory = self.memory()?;
        let behind = self.hq().is_some_and(|hq| hq.floor().numbers() != memory.floor.numbers());
        if !behind && self.current().is_some_and(|site| *site.revision() == head) {
            self.is_news("");
            return Ok(Look::Same);
        }
        let (hq, site) = self.judge(&head, &memory);
        if let Some(hq) = hq {
            self.keeper.accept(&hq, &head)?;
            self.set_hq(hq);
        }
        match site {
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
        let signers: Vec<String> = site.signatures().by.keys().map(ToString::to_string).collect();
        let (release, signer) = (site.release(), signers.join(", "));
        self.store.note_release(release.id(), release.digest())?;
        self.store.note_revision(
            site.revision(),
            &Verdict::Accepted { release: release.id().clone(), signer: signer.clone() },
        )?;
        self.store.record(
            Event::new(
                EventKind::RevisionAccepted,
                match site.freshness() {
                    Freshness::Current => format!("revision in force: release {} signed by {signer}", release.id()),
                    Freshness::ExpiredAt(then) => {
                        format!("revision in force: release {}, frozen since {then}", release.id())
                    }
                },
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
pub fn wishes(
    site: &CheckedSite,
    hq: Option<&Hq>,
    ca: &SiteCa,
    secrets: &Secrets,
) -> Result<Wishes, contract::ids::InvalidId> {
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
    // What runs goes on; it is only not made anew.
    let desired = match hq.and_then(|hq| hq.revoked(site.release().id())) {
        Some(why) => desired.revoked(why),
        None => desired,
    };
    Ok(Wishes { desired, assignments })
}

/// Reads the secrets of a revision and of the local file.
pub fn secrets(site: &CheckedSite, keys: &Identities, config: &Config) -> Secrets {
    Secrets::gather(site.sealed(), keys, config.secrets.as_deref())
}
