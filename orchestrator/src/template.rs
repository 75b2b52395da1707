//! Making a guest one of our templates: checks, tags, description block.
//!
//! [`examine`] is a pure function from what Proxmox shows to what is wrong and what is to be written; [`adopt`] asks,
//! lets it judge, and writes once.

use contract::ids::{ReleaseId, Sha256Digest, TemplateName, Vmid};
use contract::manifest::{GuestKind, Privilege, Template};

use crate::proxmox::{Client, ConfigChange, GuestConfig, GuestRef, Marker, ProxmoxError, Tags, Templates};

/// What is done with flags that clones would inherit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InheritedFlags {
    /// They stay, with a warning.
    #[default]
    Warn,
    /// They are cleared.
    Clear,
}

/// What to adopt as what.
#[derive(Debug, Clone, PartialEq)]
pub struct Adoption {
    /// The guest.
    pub vmid: Vmid,
    /// The release.
    pub release: ReleaseId,
    /// Its name in the catalogue.
    pub template: TemplateName,
    /// SHA-256 of the manifest; absent: one that is written there already stays.
    pub digest: Option<Sha256Digest>,
    /// The manifest's entry, when it is at hand.
    pub entry: Option<Template>,
    /// What is done with `onboot` and `protection`.
    pub flags: InheritedFlags,
}

/// Why a guest cannot be adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// It does not exist, or the token may not see it.
    #[error(
        "guest {0} does not exist, or the token may not see it: put it in the pool, or grant PVETemplateUser on it"
    )]
    NotFound(Vmid),
    /// It is no template.
    #[error("{0} is not a template: seal it, stop it and convert it (`pct template`, `qm template`)")]
    NotATemplate(GuestRef),
    /// It is held by an operation.
    #[error("{guest} is locked ({lock}): wait until that is done")]
    Locked {
        /// Which guest.
        guest: GuestRef,
        /// Proxmox's word.
        lock: String,
    },
    /// It is of the other kind.
    #[error("{0} is not of the kind that the manifest names: choose the right guest, or correct the manifest")]
    WrongKind(GuestRef),
    /// A container's root is, or is not, the host's.
    #[error("{guest} is {is}, the manifest wants {wanted}: build it again")]
    WrongPrivilege {
        /// Which guest.
        guest: GuestRef,
        /// What it is.
        is: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// It has no first interface, or one that cannot be read.
    #[error("{guest} has no usable net0 ({why}): give it one interface on a bridge, with DHCP")]
    NoInterface {
        /// Which guest.
        guest: GuestRef,
        /// What is wrong.
        why: String,
    },
    /// Clones would all have its address.
    #[error("net0 of {0} has a fixed address, which every clone would inherit: set it to DHCP")]
    StaticAddress(GuestRef),
    /// It is another template, or a guest of a site.
    #[error("{guest} is already {what}: adopt another guest, or remove its ctrlable block first")]
    AlreadyOurs {
        /// Which guest.
        guest: GuestRef,
        /// What it is.
        what: String,
    },
    /// Another guest on the node is the same template.
    #[error("{other} is already template {template} of release {release}: destroy one of the two")]
    Duplicate {
        /// The other one.
        other: GuestRef,
        /// The release.
        release: ReleaseId,
        /// Its name.
        template: TemplateName,
    },
    /// The description cannot take the block.
    #[error(transparent)]
    Marker(#[from] crate::proxmox::marker::InvalidMarker),
}

impl Obstacle {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not-found",
            Self::NotATemplate(_) => "not-a-template",
            Self::Locked { .. } => "locked",
            Self::WrongKind(_) => "wrong-kind",
            Self::WrongPrivilege { .. } => "wrong-privilege",
            Self::NoInterface { .. } => "no-interface",
            Self::StaticAddress(_) => "static-address",
            Self::AlreadyOurs { .. } => "already-ours",
            Self::Duplicate { .. } => "duplicate-template",
            Self::Marker(error) => error.reason(),
        }
    }
}

/// An adoption that failed.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The guest cannot be adopted; all obstacles.
    #[error("guest {vmid} cannot be adopted: {}", .obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused {
        /// The guest.
        vmid: Vmid,
        /// What stands in the way; at least one.
        obstacles: Vec<Obstacle>,
    },
    /// Proxmox could not be asked or did not take the change.
    #[error(transparent)]
    Proxmox(#[from] ProxmoxError),
}

impl AdoptError {
    /// Stable label; of several obstacles that of the first.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused { obstacles, .. } => obstacles.first().map_or("refused", Obstacle::reason),
            Self::Proxmox(error) => error.reason(),
        }
    }
}

/// What [`examine`] decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What to write; empty: nothing is to be done.
    pub change: ConfigChange,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// What [`adopt`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Which guest.
    pub guest: GuestRef,
    /// Whether something was written.
    pub outcome: Outcome,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Whether an adoption wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Tags and description were written.
    Marked,
    /// They were right before.
    NothingToDo,
}

/// Judges a guest: what stands in the way, or what is to be written.
pub fn examine(request: &Adoption, config: &GuestConfig, others: &Templates) -> Result<Verdict, Vec<Obstacle>> {
    let guest = &config.guest;
    let mut obstacles = Vec::new();
    if !config.template {
        obstacles.push(Obstacle::NotATemplate(guest.clone()));
    }
    if let Some(lock) = &config.lock {
        obstacles.push(Obstacle::Locked { guest: guest.clone(), lock: lock.clone() });
    }
    if let Some(entry) = &request.entry {
        obstacles.extend(against_manifest(entry, config));
    }
    match config.net0() {
        Ok(Some(net)) if net.has_static_address() => obstacles.push(Obstacle::StaticAddress(guest.clone())),
        Ok(Some(_)) => {}
        Ok(None) => obstacles.push(Obstacle::NoInterface { guest: guest.clone(), why: "there is none".to_owned() }),
        Err(error) => obstacles.push(Obstacle::NoInterface { guest: guest.clone(), why: error.to_string() }),
    }
    let mut digest = request.digest.clone();
    match config.marker() {
        Ok(Some(Marker::Guest { site, instance, .. })) => obstacles
            .push(Obstacle::AlreadyOurs { guest: guest.clone(), what: format!("instance {instance} of site {site}") }),
        Ok(Some(Marker::Template { release, template, digest: written })) => {
            if release != request.release || template != request.template {
                let what = format!("template {template} of release {release}");
                obstacles.push(Obstacle::AlreadyOurs { guest: guest.clone(), what });
            }
            digest = digest.or(written);
        }
        Ok(None) => {}
        Err(error) => obstacles.push(error.into()),
    }
    // A cluster may have one on each node: clones cannot leave the node of a local disk.
    let same = others
        .of(&request.release, &request.template)
        .find(|other| other.guest.node == guest.node && other.guest.vmid != guest.vmid);
    if let Some(same) = same {
        let (release, template) = (request.release.clone(), request.template.clone());
        obstacles.push(Obstacle::Duplicate { other: same.guest.clone(), release, template });
    }
    let marker = Marker::Template { release: request.release.clone(), template: request.template.clone(), digest };
    let description = match marker.render(&config.description) {
        Ok(description) => description,
        Err(error) => {
            if !obstacles.contains(&error.clone().into()) {
                obstacles.push(error.into());
            }
            String::new()
        }
    };
    if !obstacles.is_empty() {
        return Err(obstacles);
    }
    Ok(verdict(request, config, description))
}

fn against_manifest(entry: &Template, config: &GuestConfig) -> Option<Obstacle> {
    let guest = config.guest.clone();
    if entry.kind != guest.kind {
        return Some(Obstacle::WrongKind(guest));
    }
    let word = |unprivileged: bool| if unprivileged { "unprivileged" } else { "privileged" };
    let wanted = entry.privilege == Privilege::Unprivileged;
    (guest.kind == GuestKind::Lxc && config.unprivileged != wanted).then(|| Obstacle::WrongPrivilege {
        guest,
        is: word(config.unprivileged),
        wanted: word(wanted),
    })
}

fn verdict(request: &Adoption, config: &GuestConfig, description: String) -> Verdict {
    let tags = config.tags.with_ours(&Tags::of_template(&request.release, &request.template));
    let mut change = ConfigChange {
        tags: (tags != config.tags).then_some(tags),
        description: (description != config.description).then_some(description),
        ..ConfigChange::default()
    };
    let mut warnings = Vec::new();
    for (name, set, field) in
        [("onboot", config.onboot, &mut change.onboot), ("protection", config.protection, &mut change.protection)]
    {
        match (set, request.flags) {
            (false, _) => {}
            (true, InheritedFlags::Clear) => *field = Some(false),
            (true, InheritedFlags::Warn) => warnings.push(format!(
                "`{name}` is set and every clone inherits it until it is configured: adopt with --clear-flags, or clear it"
            )),
        }
    }
    Verdict { change, warnings }
}

/// Checks a guest and marks it. A second time there is nothing to do.
pub async fn adopt(client: &Client, request: &Adoption) -> Result<Adopted, AdoptError> {
    let refused = |obstacles| AdoptError::Refused { vmid: request.vmid, obstacles };
    let row = client.find(request.vmid).await?.ok_or_else(|| refused(vec![Obstacle::NotFound(request.vmid)]))?;
    let others = client.templates().await?;
    let config = client.guest_config(&row.guest).await?;
    let Verdict { change, warnings } = examine(request, &config, &others).map_err(refused)?;
    let outcome = if change.is_empty() { Outcome::NothingToDo } else { Outcome::Marked };
    // With the digest of what was judged: if somebody changed it meanwhile, nothing is written.
    client.configure(&row.guest, &change, config.digest.as_ref()).await?;
    Ok(Adopted { guest: row.guest, outcome, warnings })
}

#[cfg(test)]
mod tests;
