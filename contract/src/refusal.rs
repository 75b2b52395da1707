//! Why a document is not accepted: a stable label, the place, the reason and the remedy.

use std::fmt;

/// Defines [`Reason`] with its labels.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $label:literal,)*) => {
        /// Why a document of the fleet repository is refused. The label is what scripts and metrics see.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable label.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            /// What the label means, as a sentence: the reference in `docs/` is made of these.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii(),)*
                }
            }
        }
    };
}

reasons! {
    /// Larger than a document of its kind may be.
    TooLarge = "too-large",
    /// Nested deeper than a document of its kind may be.
    TooDeep = "too-deep",
    /// Not UTF-8.
    NotUtf8 = "not-utf8",
    /// Not YAML.
    YamlSyntax = "yaml-syntax",
    /// More than one document, or none.
    YamlDocuments = "yaml-documents",
    /// Anchors and aliases are not accepted: they can make a small file enormous.
    YamlAlias = "yaml-alias",
    /// Explicit tags are not accepted: data says what it is by itself.
    YamlTag = "yaml-tag",
    /// A key stands twice in one mapping.
    DuplicateKey = "duplicate-key",
    /// A field that nobody knows.
    UnknownField = "unknown-field",
    /// A field that must be there is not.
    MissingField = "missing-field",
    /// A field holds another kind of value.
    WrongType = "wrong-type",

    /// Not a name of its kind.
    BadName = "bad-name",
    /// The document says another name than its path.
    NameMismatch = "name-mismatch",
    /// `ctrlable-<site>-<instance>` is longer than 63 characters.
    HostnameTooLong = "hostname-too-long",
    /// Not a VMID.
    BadVmid = "bad-vmid",
    /// Not a range of VMIDs.
    BadVmidRange = "bad-vmid-range",
    /// Outside the site's own range.
    VmidOutsideRange = "vmid-outside-range",
    /// Two instances ask for one VMID.
    DuplicateVmid = "duplicate-vmid",
    /// More instances than the range has numbers.
    RangeTooSmall = "range-too-small",
    /// Not an address.
    BadAddress = "bad-address",
    /// Two instances ask for one address.
    DuplicateAddress = "duplicate-address",
    /// The gateway is not in the address's network.
    GatewayOutsideNetwork = "gateway-outside-network",
    /// A gateway without a static address.
    GatewayWithoutAddress = "gateway-without-address",
    /// Not a MAC address.
    BadMac = "bad-mac",
    /// Two instances ask for one MAC address.
    DuplicateMac = "duplicate-mac",
    /// Not a VLAN tag.
    BadVlan = "bad-vlan",
    /// Not a time zone.
    BadTimezone = "bad-timezone",
    /// Cores, memory or disk outside what Proxmox takes.
    BadResources = "bad-resources",
    /// Less disk than the template has: a disk can only grow.
    DiskTooSmall = "disk-too-small",
    /// Neither `release` nor `channel`, or both.
    ReleaseChoice = "release-choice",
    /// The fleet repository has no such release.
    UnknownRelease = "unknown-release",
    /// The release has no such template.
    UnknownTemplate = "unknown-template",
    /// The template has no such input.
    UnknownInput = "unknown-input",
    /// A required input is not given.
    MissingInput = "missing-input",
    /// An input is given another kind of value.
    BadInput = "bad-input",
    /// A URL whose scheme the input does not take.
    BadScheme = "bad-scheme",
    /// A shared service that the template needs is not defined.
    MissingService = "missing-service",
    /// A secret stands in the document itself.
    PlainSecret = "plain-secret",
    /// Not a host or address.
    BadHost = "bad-host",
    /// Not a port.
    BadPort = "bad-port",

    /// Not a release id.
    BadReleaseId = "bad-release-id",
    /// A branch, where a tag or commit must stand.
    UnpinnedRef = "unpinned-ref",
    /// Not a version.
    BadVersion = "bad-version",
    /// Not `lxc` or `vm`.
    BadKind = "bad-kind",
    /// Not a builder script below the pinned reference.
    BadBuilder = "bad-builder",
    /// A field that only the other kind of guest has.
    WrongKindField = "wrong-kind-field",
    /// A release without templates.
    NoTemplates = "no-templates",
    /// Not a path inside a guest.
    BadPath = "bad-path",
    /// A path that wiring may not touch: the agent's own files, kernel file systems, accounts.
    ForbiddenPath = "forbidden-path",
    /// An input of a template that contradicts itself: its type, `from`, `schemes`, `default` or `required`.
    BadInputDefinition = "bad-input-definition",
    /// Two files of one wiring have one path.
    DuplicatePath = "duplicate-path",
    /// Not a file format.
    BadFormat = "bad-format",
    /// Not permission bits, or bits that let everybody write, or set-uid.
    BadMode = "bad-mode",
    /// Not an owner.
    BadOwner = "bad-owner",
    /// A merge that its format cannot hold.
    BadMerge = "bad-merge",
    /// Not a unit name.
    BadUnit = "bad-unit",
    /// Not a probe.
    BadProbe = "bad-probe",
    /// `${…}` names no input, or is not closed.
    BadReference = "bad-reference",
    /// Not a SHA-256 digest.
    BadDigest = "bad-digest",
    /// Not a URL that can be fetched.
    BadUrl = "bad-url",

    /// Not the number of a document of HQ.
    BadSerial = "bad-serial",
    /// Not a time in UTC with whole seconds.
    BadTime = "bad-time",
    /// Expires before it was issued.
    BadExpiry = "bad-expiry",
    /// A threshold of none, or of more keys than the list has.
    BadThreshold = "bad-threshold",
    /// Not a minisign public key, or too many of them.
    BadPublicKey = "bad-public-key",
    /// A key stands twice in one list.
    DuplicatePublicKey = "duplicate-public-key",
    /// A release is revoked without saying why.
    BadRevocation = "bad-revocation",
    /// A channel gives a release that is revoked.
    ChannelRevoked = "channel-revoked",
    /// Not an OpenSSH public key that can sign commits.
    BadSshKey = "bad-ssh-key",
    /// Not a number that a limit can have.
    BadLimit = "bad-limit",
    /// HQ does not let this dealer look after this site.
    DealerNotAllowed = "dealer-not-allowed",
    /// A template that HQ does not allow here.
    LimitTemplates = "limit-templates",
    /// A bridge that HQ does not allow here.
    LimitBridges = "limit-bridges",
    /// A privileged container, where HQ allows none.
    LimitPrivileged = "limit-privileged",
    /// More instances than HQ allows.
    LimitInstances = "limit-instances",
    /// More cores than HQ allows, or nobody knows how many.
    LimitCpu = "limit-cpu",
    /// More memory than HQ allows, or nobody knows how much.
    LimitMemory = "limit-memory",
    /// More disk than HQ allows, or nobody knows how much.
    LimitDisk = "limit-disk",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Where in a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Place {
    /// The file as it was named: `sites/acme-hq/site.yaml`.
    pub file: String,
    /// From 1; 0 when the whole file is meant.
    pub line: usize,
    /// `instances.zigbee.network.ip`; empty when the whole document is meant.
    pub field: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        Ok(())
    }
}

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message} [{reason}]\n  {remedy}")]
pub struct Refusal {
    /// Stable label.
    pub reason: Reason,
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl serde::Serialize for Refusal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut object = serializer.serialize_struct("Refusal", 6)?;
        object.serialize_field("reason", self.reason.label())?;
        object.serialize_field("file", &self.place.file)?;
        object.serialize_field("line", &self.place.line)?;
        object.serialize_field("field", &self.place.field)?;
        object.serialize_field("message", &self.message)?;
        object.serialize_field("remedy", &self.remedy)?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Reason;

    #[test]
    fn labels_are_distinct() {
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
    }
}
