use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::ids::Revision;
use git2::cert::Cert;
use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, Direction, ErrorClass, ErrorCode, FetchOptions, Oid,
    RemoteCallbacks, RemoteRedirect, RepositoryInitOptions,
};

use super::history::{Change, History, Which};
use super::known_hosts::{KnownHosts, Verdict, fingerprint, kind_of, listed_name};
use super::remote::Transport;
use super::{Remote, ShownKey, Snapshot, SourceError, parts};

/// Where the branch's head is kept. Not below refs/heads or refs/remotes: nobody checks it out.
const HEAD_REF: &str = "refs/ctrlable/fetched";
/// Held while fetching, so that leftovers of a killed process can be told from the work of a living one.
const LOCK_FILE: &str = "ctrlable.lock";
/// Configuration of the copy itself.
const CONFIG: [(&str, bool); 2] = [
    // After a power cut a reference must not name objects that never reached the disk.
    ("core.fsyncObjectFiles", true),
    // Redirects stay on their host.
    ("http.followRedirects", false),
];
/// Milliseconds for a connection to open, and for each single answer. Silence longer than 30 s means a dead path: TCP
/// itself would wait for minutes. A remote that trickles is stopped by [`Limits::time`].
const SILENCE_MS: i32 = 30_000;
/// Names of branches that an error lists at most.
const BRANCHES_LISTED: usize = 8;

/// Where to fetch from, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://`, `ssh://`, `file://` or an absolute path.
    pub url: String,
    /// The one branch that is fetched: its short name.
    pub branch: String,
    /// For `ssh://`.
    pub ssh: Option<SshAccess>,
    /// Authorities beside the system's, for `https://`: a PEM file. libgit2 keeps one list per process.
    pub ca_file: Option<PathBuf>,
    /// How much is taken.
    pub limits: Limits,
}

/// How `ssh://` remotes are reached. Neither an agent nor `~/.ssh` is ever asked.
#[derive(Debug, Clone)]
pub struct SshAccess {
    /// A private key without a passphrase, readable by its owner only.
    pub key: PathBuf,
    /// The host keys that are accepted.
    pub known_hosts: PathBuf,
}

/// How much is taken from a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one fetch.
    pub fetched_bytes: usize,
    /// Objects of one fetch.
    pub objects: usize,
    /// Bytes of one file or directory listing.
    pub blob_bytes: usize,
    /// For one fetch.
    pub time: Duration,
}

impl Default for Limits {
    /// Ten years of a fleet of thousands of sites fit in; a repository with an image in it does not.
    fn default() -> Self {
        Self { fetched_bytes: 256 << 20, objects: 2_000_000, blob_bytes: 4 << 20, time: Duration::from_secs(300) }
    }
}

/// What a fetch brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The branch's head now.
    pub head: Revision,
    /// The branch's head at the last fetch, believed or not.
    pub previous: Option<Revision>,
    /// Over the wire.
    pub bytes_received: usize,
}

/// A bare copy of one branch in the state directory. Its calls block: use `spawn_blocking`.
pub struct Repository {
    git: git2::Repository,
    directory: PathBuf,
    remote: Remote,
    settings: Settings,
}

impl Repository {
    /// Opens the copy in `directory`, or makes it. Nothing is fetched yet.
    pub fn open(directory: &Path, settings: Settings) -> Result<Self, SourceError> {
        let remote = Remote::parse(&settings.url)?;
        if !git2::Reference::is_valid_name(&format!("refs/heads/{}", settings.branch)) {
            return Err(SourceError::BranchName { branch: settings.branch });
        }
        if matches!(remote.transport(), Transport::Ssh { .. }) && settings.ssh.is_none() {
            return Err(SourceError::SshNotConfigured { remote: remote.to_string() });
        }
        let broken = |cause: git2::Error| store_error(directory, &cause);
        prepare_libgit2(settings.ca_file.as_deref())?;
        // A process that was killed while it made the copy left a part of it, which making it again completes.
        let git = match git2::Repository::open_bare(directory) {
            Err(cause) if cause.code() == ErrorCode::NotFound => {
                let mut options = RepositoryInitOptions::new();
                options.bare(true).no_reinit(false).mkpath(true).external_template(false);
                git2::Repository::init_opts(directory, &options)
            }
            opened => opened,
        }
        .map_err(broken)?;
        let mut config = git.config().map_err(broken)?;
        let changes: Vec<_> = CONFIG.iter().filter(|(key, value)| config.get_bool(key).ok() != Some(*value)).collect();
        if !changes.is_empty() {
            let _lock = lock(directory)?;
            for (key, value) in changes {
                config.set_bool(key, *value).map_err(broken)?;
            }
        }
        Ok(Self { git, directory: directory.to_owned(), remote, settings })
    }

    /// Where it fetches from.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The branch's head at the last fetch, believed or not.
    pub fn head(&self) -> Result<Option<Revision>, SourceError> {
        match self.git.refname_to_id(HEAD_REF) {
            Ok(oid) => Ok(Some(self.revision(oid)?)),
            Err(cause) if cause.code() == ErrorCode::NotFound => Ok(None),
            Err(cause) => Err(store_error(&self.directory, &cause)),
        }
    }

    /// Fetches the branch with its whole history, which the check for fast-forwards needs. No tags, no other branch.
    pub fn fetch(&mut self) -> Result<Fetched, SourceError> {
        let _lock = lock(&self.directory)?;
        let previous = self.head()?;
        let known_hosts = match (self.remote.transport(), &self.settings.ssh) {
            (Transport::Ssh { .. }, Some(ssh)) => {
                check_key(&ssh.key)?;
                Some(KnownHosts::read(&ssh.known_hosts)?)
            }
            _ => None,
        };
        let watch = Watch {
            remote: &self.remote,
            settings: &self.settings,
            known_hosts,
            started: Instant::now(),
            credentials_asked: Cell::new(false),
            failure: RefCell::new(None),
        };
        let unusable = |cause| store_error(&self.directory, &cause);

        let mut remote = self.git.remote_anonymous(self.remote.url()).map_err(unusable)?;
        let mut connection = remote
            .connect_auth(Direction::Fetch, Some(watch.callbacks()), None)
            .map_err(|cause| watch.explain(Phase::Connecting, cause, &self.directory))?;
        let heads = connection.list().map_err(|cause| watch.explain(Phase::Connecting, cause, &self.directory))?;
        let wanted = format!("refs/heads/{}", self.settings.branch);
        let Some(head) = heads.iter().find(|head| head.name() == wanted).map(git2::RemoteHead::oid) else {
            let branches: Vec<&str> = heads.iter().filter_map(|head| head.name().strip_prefix("refs/heads/")).collect();
            return Err(SourceError::BranchMissing {
                remote: self.remote.to_string(),
                branch: self.settings.branch.clone(),
                available: in_words(&branches),
            });
        };

        let mut options = FetchOptions::new();
        options
            .remote_callbacks(watch.callbacks())
            .download_tags(AutotagOption::None)
            .follow_redirects(RemoteRedirect::None)
            .update_fetchhead(false);
        let refspec = format!("+{wanted}:{HEAD_REF}");
        let remote = connection.remote();
        remote
            .download(&[refspec.as_str()], Some(&mut options))
            .map_err(|cause| watch.explain(Phase::Downloading, cause, &self.directory))?;
        let bytes_received = remote.stats().received_bytes();

        if let Err(cause) = self.git.find_commit(head) {
            let cause = format!("the head {head} of `{}` did not arrive: {}", self.settings.branch, cause.message());
            return Err(SourceError::Protocol { remote: self.remote.to_string(), cause });
        }
        let head_now = self.revision(head)?;
        if previous.as_ref() != Some(&head_now) {
            self.git.reference(HEAD_REF, head, true, "fetch").map_err(unusable)?;
        }
        Ok(Fetched { head: head_now, previous, bytes_received })
    }

    /// Whether `candidate` is `of` or comes after it. A revision that `candidate`'s history does not have is no ancestor.
    pub fn is_descendant(&self, of: &Revision, candidate: &Revision) -> Result<bool, SourceError> {
        let candidate_commit = self.commit(candidate)?.id();
        if of == candidate {
            return Ok(true);
        }
        match self.commit(of) {
            Ok(of) => self
                .git
                .graph_descendant_of(candidate_commit, of.id())
                .map_err(|cause| store_error(&self.directory, &cause)),
            Err(SourceError::RevisionUnknown { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The files of one revision.
    pub fn at(&self, revision: &Revision) -> Result<Snapshot<'_>, SourceError> {
        let tree = self.commit(revision)?.tree_id();
        Ok(Snapshot::new(&self.git, &self.directory, revision.clone(), tree, self.settings.limits.blob_bytes))
    }

    /// The commits that changed a directory, as git sees it, among those that `head` has and `after` does not: the oldest
    /// first. All of its history where `after` is none.
    pub fn changes(
        &self,
        directory: &str,
        after: Option<&Revision>,
        head: &Revision,
        which: Which,
    ) -> Result<Vec<Change>, SourceError> {
        let after = after.map(|after| self.commit(after)).transpose()?.map(|commit| commit.id());
        let head = self.commit(head)?.id();
        History::new(&self.git, &self.directory, &parts(directory)?).changes(after, head, which)
    }

    fn commit(&self, revision: &Revision) -> Result<git2::Commit<'_>, SourceError> {
        let unknown = || SourceError::RevisionUnknown { revision: revision.clone() };
        let oid = Oid::from_str(revision.as_str()).map_err(|_| unknown())?;
        self.git.find_commit(oid).map_err(|cause| match cause.code() {
            ErrorCode::NotFound | ErrorCode::InvalidSpec => unknown(),
            _ => store_error(&self.directory, &cause),
        })
    }

    fn revision(&self, oid: Oid) -> Result<Revision, SourceError> {
        oid.to_string().parse().map_err(|cause: contract::ids::InvalidId| SourceError::Protocol {
            remote: self.remote.to_string(),
            cause: cause.to_string(),
        })
    }
}

/// Held while a copy is changed.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that another thread is just starting has the file open until it execs. If
        // this fails, closing it is what remains.
        let _ = self.0.unlock();
    }
}

/// Takes the lock and clears what a killed process left: lock files, which would stop every later fetch, and
/// half-received packs, which would fill the disk.
fn lock(directory: &Path) -> Result<Lock, SourceError> {
    let broken = |cause: std::io::Error| SourceError::Store { path: directory.to_owned(), cause: cause.to_string() };
    let lock = File::create(directory.join(LOCK_FILE)).map_err(broken)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(SourceError::Busy { path: directory.to_owned() }),
        Err(fs::TryLockError::Error(cause)) => return Err(broken(cause)),
    }
    let lock = Lock(lock);
    for leftover in [directory.join(format!("{HEAD_REF}.lock")), directory.join("config.lock")] {
        if leftover.exists() {
            fs::remove_file(&leftover).map_err(broken)?;
        }
    }
    for entry in fs::read_dir(directory.join("objects/pack")).into_iter().flatten() {
        let path = entry.map_err(broken)?.path();
        let finished = path.extension().is_some_and(|kind| kind == "pack" || kind == "idx");
        if !finished {
            fs::remove_file(&path).map_err(broken)?;
        }
    }
    Ok(lock)
}

/// What libgit2 was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Downloading,
}

/// Watches over one fetch. libgit2 carries only a number and a text out of its callbacks, so what they found is kept
/// here.
struct Watch<'a> {
    remote: &'a Remote,
    settings: &'a Settings,
    known_hosts: Option<KnownHosts>,
    started: Instant,
    credentials_asked: Cell<bool>,
    failure: RefCell<Option<SourceError>>,
}

impl Watch<'_> {
    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks
            .credentials(|_, user, allowed| self.credentials(user, allowed))
            .transfer_progress(|progress| {
                let limits = &self.settings.limits;
                if progress.received_bytes() > limits.fetched_bytes {
                    self.fail(SourceError::TooLarge {
                        what: format!("the fetch from {}", self.remote),
                        limit: format!("{} bytes", limits.fetched_bytes),
                    });
                    return false;
                }
                if progress.total_objects() > limits.objects {
                    self.fail(SourceError::TooLarge {
                        what: format!("the fetch from {}", self.remote),
                        limit: format!("{} objects", limits.objects),
                    });
                    return false;
                }
                self.in_time()
            })
            .sideband_progress(|_| self.in_time());
        // For TLS none is set: libgit2 verifies chain and name with OpenSSL, and nobody can talk it out of its verdict.
        if matches!(self.remote.transport(), Transport::Ssh { .. }) {
            callbacks.certificate_check(|certificate, host| self.host_key(certificate, host));
        }
        callbacks
    }

    fn in_time(&self) -> bool {
        let limit = self.settings.limits.time;
        let in_time = self.started.elapsed() <= limit;
        if !in_time {
            self.fail(SourceError::Timeout { remote: self.remote.to_string(), after: limit });
        }
        in_time
    }

    /// Keeps the first failure and gives libgit2 something to stop on.
    fn fail(&self, failure: SourceError) -> git2::Error {
        let stop = git2::Error::new(ErrorCode::User, ErrorClass::Callback, failure.reason());
        self.failure.borrow_mut().get_or_insert(failure);
        stop
    }

    fn credentials(&self, user: Option<&str>, allowed: CredentialType) -> Result<Cred, git2::Error> {
        let denied = |cause: &str| SourceError::Auth { remote: self.remote.to_string(), cause: cause.to_owned() };
        let (Transport::Ssh { user: configured, .. }, Some(ssh)) = (self.remote.transport(), &self.settings.ssh) else {
            return Err(self.fail(denied("it asks for a password, and https is used for public repositories only")));
        };
        let user = user.unwrap_or(configured);
        if allowed.contains(CredentialType::USERNAME) {
            return Cred::username(user);
        }
        if !allowed.contains(CredentialType::SSH_KEY) {
            return Err(self.fail(denied("it takes no keys")));
        }
        // libgit2 asks again for as long as it gets an answer.
        if self.credentials_asked.replace(true) {
            return Err(self.fail(denied(&format!("it does not accept the key {}", ssh.key.display()))));
        }
        Cred::ssh_key(user, None, &ssh.key, None)
    }

    /// libgit2 itself looks into ~/.ssh; its verdict never stands.
    fn host_key(&self, certificate: &Cert<'_>, host: &str) -> Result<CertificateCheckStatus, git2::Error> {
        let unreadable = || SourceError::Protocol { remote: self.remote.to_string(), cause: "no host key".to_owned() };
        let Some(key) = certificate.as_hostkey().and_then(|shown| shown.hostkey()) else {
            return Err(self.fail(unreadable()));
        };
        let (Transport::Ssh { port, .. }, Some(ssh), Some(known)) =
            (self.remote.transport(), &self.settings.ssh, &self.known_hosts)
        else {
            return Err(self.fail(unreadable()));
        };
        let shown = Box::new(ShownKey {
            host: listed_name(host, *port),
            kind: kind_of(key).to_owned(),
            fingerprint: fingerprint(key),
            known_hosts: ssh.known_hosts.clone(),
        });
        Err(self.fail(match known.judge(host, *port, &shown.kind, key) {
            Verdict::Known => return Ok(CertificateCheckStatus::CertificateOk),
            Verdict::Revoked => SourceError::HostKeyRevoked { key: shown },
            Verdict::Changed { expected } => SourceError::HostKeyChanged { key: shown, expected },
            Verdict::Unknown { other_kinds } => {
                let hint = match other_kinds.as_slice() {
                    [] => String::new(),
                    kinds => format!("; it lists {} for this host", kinds.join(", ")),
                };
                SourceError::HostKeyUnknown { key: shown, hint }
            }
        }))
    }

    /// The failure that a callback found, or libgit2's own sorted by what it means to a person.
    fn explain(&self, phase: Phase, cause: git2::Error, directory: &Path) -> SourceError {
        if let Some(failure) = self.failure.borrow_mut().take() {
            return failure;
        }
        let remote = self.remote.to_string();
        let text = cause.message().to_owned();
        match (cause.code(), cause.class()) {
            (ErrorCode::Certificate, _) => SourceError::Certificate { remote, cause: text },
            (ErrorCode::Auth, _) => SourceError::Auth { remote, cause: text },
            (ErrorCode::Timeout, _) => {
                SourceError::Timeout { remote, after: Duration::from_millis(SILENCE_MS.unsigned_abs().into()) }
            }
            (_, ErrorClass::Indexer | ErrorClass::Zlib | ErrorClass::Object | ErrorClass::Tree) => {
                SourceError::Protocol { remote, cause: text }
            }
            (_, ErrorClass::Os | ErrorClass::Filesystem | ErrorClass::Odb) if phase == Phase::Downloading => {
                store_error(directory, &cause)
            }
            _ => SourceError::Unreachable { remote, cause: text },
        }
    }
}

/// ssh itself refuses a key that others can read, and so do we; libssh2 would not.
fn check_key(path: &Path) -> Result<(), SourceError> {
    let refused = |cause: String| SourceError::SshKey { path: path.to_owned(), cause };
    let metadata = fs::metadata(path).map_err(|cause| refused(cause.to_string()))?;
    if !metadata.is_file() {
        return Err(refused("it is not a file".to_owned()));
    }
    match metadata.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(refused("others than its owner can read it".to_owned())),
    }
}

pub(super) fn store_error(directory: &Path, cause: &git2::Error) -> SourceError {
    SourceError::Store { path: directory.to_owned(), cause: cause.message().to_owned() }
}

fn in_words(branches: &[&str]) -> String {
    match branches {
        [] => "no branch at all".to_owned(),
        few if few.len() <= BRANCHES_LISTED => few.join(", "),
        many => format!("{} and {} more", many[..BRANCHES_LISTED].join(", "), many.len() - BRANCHES_LISTED),
    }
}

/// Settings that libgit2 keeps for the whole process, made before its first use here.
fn prepare_libgit2(ca_file: Option<&Path>) -> Result<(), SourceError> {
    /// None: not prepared yet. The authorities that were added, otherwise.
    static PREPARED: Mutex<Option<BTreeSet<PathBuf>>> = Mutex::new(None);
    let mut prepared = PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    let added = match &mut *prepared {
        Some(added) => added,
        none => {
            isolate_libgit2().map_err(|cause| store_error(Path::new("libgit2"), &cause))?;
            none.insert(BTreeSet::new())
        }
    };
    if let Some(file) = ca_file
        && !added.contains(file)
    {
        // libgit2 reports only that OpenSSL did not like it.
        let certificate = |cause: String| SourceError::Certificate {
            remote: format!("the authorities in {}", file.display()),
            cause,
        };
        fs::metadata(file).map_err(|cause| certificate(cause.to_string()))?;
        trust_authorities(file).map_err(|cause| certificate(cause.message().to_owned()))?;
        added.insert(file.to_owned());
    }
    Ok(())
}

/// Keeps the machine's git configuration out (`url.….insteadOf` and `http.proxy` could lead elsewhere), sets time-outs,
/// and reads `file://` remotes of another owner: that check protects from hooks and configured commands, and libgit2
/// runs neither.
#[allow(unsafe_code)]
fn isolate_libgit2() -> Result<(), git2::Error> {
    use git2::ConfigLevel::{Global, ProgramData, System, XDG};
    // SAFETY: these write C globals without synchronisation. The caller holds a lock and comes here once, before this
    // module gives anybody a repository to use.
    unsafe {
        for level in [ProgramData, System, XDG, Global] {
            git2::opts::set_search_path(level, "")?;
        }
        git2::opts::set_server_connect_timeout_in_milliseconds(SILENCE_MS)?;
        git2::opts::set_server_timeout_in_milliseconds(SILENCE_MS)?;
        git2::opts::set_verify_owner_validation(false)?;
    }
    git2::opts::strict_hash_verification(true);
    Ok(())
}

#[allow(unsafe_code)]
fn trust_authorities(file: &Path) -> Result<(), git2::Error> {
    // SAFETY: as above; OpenSSL guards its own store against connections that are open meanwhile.
    unsafe { git2::opts::set_ssl_cert_file(file) }
}
