//! Our templates among the guests: found by tags and description block, never by name or number.

use contract::ids::{ReleaseId, Sha256Digest, TemplateName};
use contract::manifest::GuestKind;

use super::client::Client;
use super::error::ProxmoxError;
use super::guest::{GuestConfig, GuestRef};
use super::marker::Marker;
use super::tags::{TEMPLATE, Tags};

/// A guest that is a template of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateGuest {
    /// Which guest.
    pub guest: GuestRef,
    /// Of which release.
    pub release: ReleaseId,
    /// Its name in the catalogue.
    pub template: TemplateName,
    /// SHA-256 of the manifest that it was made from, when known.
    pub digest: Option<Sha256Digest>,
}

/// A guest that carries our tag and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuspectTemplate {
    /// Which guest.
    pub guest: GuestRef,
    /// What is wrong, and the remedy.
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Templates {
    /// Ready to be cloned.
    pub usable: Vec<TemplateGuest>,
    /// Tagged as ours, but not to be trusted.
    pub suspect: Vec<SuspectTemplate>,
}

impl Templates {
    /// Templates of a release and name; more than one when several nodes have it, or by mistake.
    pub fn of<'a>(
        &'a self,
        release: &'a ReleaseId,
        template: &'a TemplateName,
    ) -> impl Iterator<Item = &'a TemplateGuest> {
        self.usable.iter().filter(move |found| found.release == *release && found.template == *template)
    }
}

impl TemplateGuest {
    /// What a tagged guest is, or what is wrong with it.
    pub fn recognise(config: &GuestConfig) -> Result<Self, String> {
        if !config.template {
            return Err("it is tagged as our template, but is none: convert it, or remove the tag".to_owned());
        }
        match config.marker().map_err(|error| error.to_string())? {
            Some(Marker::Template { release, template, digest }) => {
                let expected = Tags::of_template(&release, &template);
                match expected.iter().find(|tag| !config.tags.has(tag)) {
                    None => Ok(Self { guest: config.guest.clone(), release, template, digest }),
                    Some(tag) => Err(format!(
                        "its description says {template} of {release}, but the tag `{tag}` is missing: adopt it again"
                    )),
                }
            }
            Some(Marker::Guest { site, instance, .. }) => {
                Err(format!("its description says that it is instance {instance} of site {site}: adopt it again"))
            }
            None => Err("it is tagged as our template, but its description has no ctrlable block: adopt it".to_owned()),
        }
    }
}

impl Client {
    /// Our templates. Tags are live in the cluster's list; whether a guest is a template is read from its configuration,
    /// because that list is late.
    pub async fn templates(&self) -> Result<Templates, ProxmoxError> {
        let mut found = Templates::default();
        for row in self.guests().await?.into_iter().filter(|row| row.tags.has(TEMPLATE)) {
            let config = match self.guest_config(&row.guest).await {
                Ok(config) => config,
                // Gone since it was listed, or listed by VM.Audit that a moment later is gone too.
                Err(error) if matches!(error.reason(), "not-found" | "not-visible") => continue,
                Err(error) => return Err(error),
            };
            match TemplateGuest::recognise(&config) {
                Ok(template) => found.usable.push(template),
                Err(why) => found.suspect.push(SuspectTemplate { guest: row.guest, why }),
            }
        }
        found.usable.sort_by_key(|template| (template.guest.kind != GuestKind::Lxc, template.guest.vmid));
        Ok(found)
    }
}
