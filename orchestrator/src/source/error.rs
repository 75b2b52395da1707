use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use contract::ids::Revision;

/// Why fetching or reading did not work. `Display` says what, where and why; [`SourceError::remedy`] what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Not a URL of a kind that is understood.
    #[error("the repository address is not understood: {why}")]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// A transport on which anybody could answer.
    #[error("`{scheme}:` does not prove who answers, so nothing is fetched over it")]
    InsecureTransport {
        /// Its scheme.
        scheme: String,
    },
    /// The URL holds a user name or password that may be a secret. It is not repeated.
    #[error("the repository address for {host} contains credentials")]
    UrlCredentials {
        /// The host in it.
        host: String,
    },
    /// Not a branch name.
    #[error("`{branch}` is not a branch name")]
    BranchName {
        /// As configured.
        branch: String,
    },
    /// No answer, or the connection broke.
    #[error("{remote} cannot be reached: {cause}")]
    Unreachable {
        /// Where.
        remote: String,
        /// In libgit2's words.
        cause: String,
    },
    /// The server's certificate is not accepted.
    #[error("the certificate of {remote} is not accepted: {cause}")]
    Certificate {
        /// Where.
        remote: String,
        /// In libgit2's words.
        cause: String,
    },
    /// The server refused the key, or wants one that we do not have.
    #[error("{remote} does not let us in: {cause}")]
    Auth {
        /// Where.
        remote: String,
        /// Why.
        cause: String,
    },
    /// An `ssh://` remote without a key configured.
    #[error("{remote} is fetched over ssh, but no key is configured")]
    SshNotConfigured {
        /// Where.
        remote: String,
    },
    /// The private key cannot be used.
    #[error("the ssh key {} cannot be used: {cause}", path.display())]
    SshKey {
        /// Its file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The list of host keys cannot be read.
    #[error("the known hosts {} cannot be read: {cause}", path.display())]
    KnownHosts {
        /// Its file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Nobody has accepted this host key.
    #[error("{key}, which {} does not list{hint}", key.known_hosts.display())]
    HostKeyUnknown {
        /// What was shown.
        key: Box<ShownKey>,
        /// Which keys the list has for this host; empty when none.
        hint: String,
    },
    /// The host had another key of this kind.
    #[error("{key}, but {} lists {expected}: somebody may be in between", key.known_hosts.display())]
    HostKeyChanged {
        /// What was shown.
        key: Box<ShownKey>,
        /// Fingerprint of what is listed.
        expected: String,
    },
    /// The key is marked as revoked.
    #[error("{key}, which {} marks as revoked", key.known_hosts.display())]
    HostKeyRevoked {
        /// What was shown.
        key: Box<ShownKey>,
    },
    /// Larger than we take.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit with its unit.
        limit: String,
    },
    /// It took too long.
    #[error("{remote} did not finish within {} seconds", after.as_secs())]
    Timeout {
        /// Where.
        remote: String,
        /// The time it had.
        after: Duration,
    },
    /// The remote has no such branch.
    #[error("{remote} has no branch `{branch}`; it has {available}")]
    BranchMissing {
        /// Where.
        remote: String,
        /// Which.
        branch: String,
        /// The branches there are, in words.
        available: String,
    },
    /// What arrived is not what git sends.
    #[error("{remote} sent something that cannot be used: {cause}")]
    Protocol {
        /// Where.
        remote: String,
        /// Why.
        cause: String,
    },
    /// The repository does not have this revision.
    #[error("revision {revision} is not in the repository")]
    RevisionUnknown {
        /// Which.
        revision: Revision,
    },
    /// Not a path inside a repository.
    #[error("`{path}` is not a path inside the repository")]
    Path {
        /// As given.
        path: String,
    },
    /// A link, submodule or directory where a file must be, or a file where a directory must be.
    #[error("{path} is {found}, where {wanted} must be")]
    WrongEntry {
        /// Where.
        path: String,
        /// What it is, with its article.
        found: &'static str,
        /// What it must be, with its article.
        wanted: &'static str,
    },
    /// Our own copy cannot be read or written.
    #[error("the local copy {} cannot be used: {cause}", path.display())]
    Store {
        /// Its directory.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The directory on a laptop cannot be read.
    #[error("the checkout {} cannot be read: {cause}", path.display())]
    Checkout {
        /// Its root.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Another process fetches into the same directory.
    #[error("another process is fetching into {}", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
}

/// A host key that a server has shown, and where it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownKey {
    /// Host as known_hosts writes it: `[host]:port` where the port is not 22.
    pub host: String,
    /// Such as `ssh-ed25519`.
    pub kind: String,
    /// As `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The list of accepted keys.
    pub known_hosts: PathBuf,
}

impl fmt::Display for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shows the {} key {}", self.host, self.kind, self.fingerprint)
    }
}

impl SourceError {
    /// Stable label for metrics, events and scripts.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Url { .. } => "source-url",
            Self::InsecureTransport { .. } => "insecure-transport",
            Self::UrlCredentials { .. } => "source-url-credentials",
            Self::BranchName { .. } => "source-branch-name",
            Self::Unreachable { .. } => "source-unreachable",
            Self::Certificate { .. } => "source-certificate",
            Self::Auth { .. } => "source-auth",
            Self::SshNotConfigured { .. } => "source-ssh-not-configured",
            Self::SshKey { .. } => "source-ssh-key",
            Self::KnownHosts { .. } => "source-known-hosts",
            Self::HostKeyUnknown { .. } => "source-host-key-unknown",
            Self::HostKeyChanged { .. } => "source-host-key-changed",
            Self::HostKeyRevoked { .. } => "source-host-key-revoked",
            Self::TooLarge { .. } => "source-too-large",
            Self::Timeout { .. } => "source-timeout",
            Self::BranchMissing { .. } => "source-branch-missing",
            Self::Protocol { .. } => "source-protocol",
            Self::RevisionUnknown { .. } => "source-revision-unknown",
            Self::Path { .. } => "source-path",
            Self::WrongEntry { .. } => "source-wrong-entry",
            Self::Store { .. } => "source-store",
            Self::Checkout { .. } => "source-checkout",
            Self::Busy { .. } => "source-busy",
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Url { .. } => {
                "use https://HOST/PATH, ssh://git@HOST/PATH, file:///PATH or an absolute path".to_owned()
            }
            Self::InsecureTransport { .. } => "use https:// or ssh:// instead".to_owned(),
            Self::UrlCredentials { .. } => {
                "remove them from the address; for a private repository use ssh:// with a deploy key".to_owned()
            }
            Self::BranchName { .. } => "give the branch's short name, such as main".to_owned(),
            Self::Unreachable { .. } | Self::Timeout { .. } => {
                "check network, name and path; the site keeps its last good revision and tries again".to_owned()
            }
            Self::Certificate { .. } => {
                "check the host's name and clock; for a private authority name its certificate as the CA file"
                    .to_owned()
            }
            Self::Auth { .. } => "add our public key to the repository as a read-only deploy key".to_owned(),
            Self::SshNotConfigured { .. } => "configure a private key and a known_hosts file".to_owned(),
            Self::SshKey { .. } => {
                "give a private key without a passphrase that only its owner can read (chmod 600)".to_owned()
            }
            Self::KnownHosts { .. } => "make it with ssh-keyscan HOST, and compare the fingerprints".to_owned(),
            Self::HostKeyUnknown { key, .. } => format!(
                "compare the fingerprint with the one the host's operator publishes; if it is the same: {} >> {}",
                keyscan(&key.host, &key.kind),
                key.known_hosts.display()
            ),
            Self::HostKeyChanged { key, .. } => format!(
                "do not go on until the host's operator confirms a new key; then: ssh-keygen -R '{}' -f {} and add the \
                 new key",
                key.host,
                key.known_hosts.display()
            ),
            Self::HostKeyRevoked { .. } => {
                "the host must get a new key; ask its operator what happened to the old one".to_owned()
            }
            Self::TooLarge { .. } => {
                "keep only manifests, signatures and sites in the repository, or raise the limit".to_owned()
            }
            Self::BranchMissing { .. } => "correct the branch's name, or push it".to_owned(),
            Self::Protocol { .. } => "run git fsck on the remote; the site keeps its last good revision".to_owned(),
            Self::RevisionUnknown { .. } => "fetch first, and give the whole revision".to_owned(),
            Self::Path { .. } => "use names joined by single slashes, without `.` and `..`".to_owned(),
            Self::WrongEntry { wanted, .. } => format!("replace it by {wanted} in the repository"),
            Self::Store { path, .. } => {
                format!("check the disk; the copy holds nothing of its own: {} may be deleted", path.display())
            }
            Self::Checkout { .. } => "give the directory that holds releases/ and sites/".to_owned(),
            Self::Busy { .. } => "try again when it has finished".to_owned(),
        }
    }
}

/// The command that prints a host's key of one kind.
fn keyscan(host: &str, kind: &str) -> String {
    match host.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        Some((name, port)) => format!("ssh-keyscan -t {kind} -p {port} {name}"),
        None => format!("ssh-keyscan -t {kind} {host}"),
    }
}
