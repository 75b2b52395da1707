//! Resolves a template's wiring for one instance: references in, values out. An agent never sees a template language.

use std::cell::Cell;
use std::collections::BTreeMap;

use contract::PROTOCOL;
use contract::assignment::{AssignedFile, Assignment};
use contract::ids::{FileMode, Generation, Hostname, InstanceName, ReleaseId, SecretName};
use contract::manifest::{InputKind, Template};
use contract::secret::{Redacted, Secret};
use contract::site::{InputValue, Instance, SecretRef, Site};
use serde_json::Value;

use crate::plan::Wished;
use crate::secrets::{Secrets, SecretsError};

/// Why an assignment cannot be rendered now. The instance waits; the others go on.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// A secret that the site names is nowhere.
    #[error(
        "secret `{name}` is neither in {} of the revision in force nor in the orchestrator's own secrets file",
        crate::secrets::all_file(site)
    )]
    SecretMissing {
        /// Which.
        name: SecretName,
        /// Whose.
        site: contract::ids::SiteName,
    },
    /// A secret that the site names cannot be read.
    #[error("secret `{name}`: {cause}")]
    SecretUnreadable {
        /// Which.
        name: SecretName,
        /// Why.
        cause: SecretsError,
    },
    /// The merge does not render, although its release passed: a mistake of ours.
    #[error("{0}")]
    Render(#[from] contract::reference::RenderError),
    /// The host name does not fit.
    #[error("{0}")]
    Hostname(#[from] contract::ids::InvalidId),
}

impl WiringError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SecretMissing { .. } => "secret-missing",
            Self::SecretUnreadable { cause, .. } => cause.reason(),
            Self::Render(error) => error.reason(),
            Self::Hostname(_) => "hostname-too-long",
        }
    }

    /// What `plan` is told.
    pub fn wished(&self) -> Wished {
        let remedy = match self {
            Self::SecretMissing { name, .. } => format!("`ctrlable secrets set {name}` in a checkout, and merge"),
            Self::SecretUnreadable { cause, .. } => cause.remedy().into(),
            Self::Render(_) | Self::Hostname(_) => "correct the release or the site".into(),
        };
        Wished::Missing { reason: self.reason(), message: self.to_string(), remedy }
    }
}

/// Everything that an instance's assignment is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The site.
    pub site: &'a Site,
    /// The instance's name.
    pub instance: &'a InstanceName,
    /// What the site says about it.
    pub wished: &'a Instance,
    /// The release that the site follows.
    pub release: &'a ReleaseId,
    /// The instance's template in that release.
    pub template: &'a Template,
    /// Values for `{ secret: name }`.
    pub secrets: &'a Secrets,
}

/// An assignment, and the secrets that are in it.
#[derive(Debug)]
pub struct Rendered<'a> {
    /// Its generation is 0 until the ledger gives it one.
    pub assignment: Assignment,
    /// By name.
    pub secrets: BTreeMap<&'a SecretName, &'a Secret>,
}

/// Renders an assignment.
pub fn render(inputs: Inputs<'_>) -> Result<Rendered<'_>, WiringError> {
    let Inputs { site, instance, wished, release, template, .. } = inputs;
    let hostname = Hostname::of(&site.site, instance)?;
    let secrets = needed(&inputs)?;
    let values = Values { site, instance, hostname: &hostname, template, given: &wished.wiring, secrets: &secrets };
    let mut files = Vec::with_capacity(template.wiring.files.len());
    for file in &template.wiring.files {
        let gets_secret = Cell::new(false);
        let merge = contract::reference::render(&file.merge, &|name| {
            gets_secret.set(gets_secret.get() || values.is_secret(name));
            values.lookup(name)
        })?;
        // A file that held nothing secret before may be open to all: only a template that says so leaves it open.
        let private = gets_secret.get().then(FileMode::private);
        files.push(AssignedFile {
            path: file.path.clone(),
            format: file.format,
            mode: file.mode.clone().or(private),
            owner: file.owner.clone(),
            merge: Redacted::new(merge),
        });
    }
    let assignment = Assignment {
        protocol: PROTOCOL,
        site: site.site.clone(),
        instance: instance.clone(),
        generation: Generation(0),
        hostname,
        release: release.clone(),
        template: wished.template.clone(),
        timezone: site.timezone.clone(),
        files,
        units: template.wiring.units.clone(),
        probes: template.probes.clone(),
    };
    Ok(Rendered { assignment, secrets })
}

/// Every secret that will be looked up, so that a lookup that finds nothing means "not given".
fn needed<'a>(inputs: &Inputs<'a>) -> Result<BTreeMap<&'a SecretName, &'a Secret>, WiringError> {
    let Inputs { site, wished, template, secrets, .. } = *inputs;
    let shared = site.shared.mqtt.iter().filter_map(|mqtt| mqtt.password.as_ref());
    let uses_mqtt = template.wiring.inputs.values().any(|input| input.kind == InputKind::Mqtt);
    let given = wished.wiring.values().filter_map(|value| match value {
        InputValue::Secret(reference) => Some(reference),
        InputValue::Plain(_) => None,
    });
    let references = shared.filter(|_| uses_mqtt).chain(given);
    references
        .map(|SecretRef { secret: name }| match secrets.get(name) {
            Ok(Some(secret)) => Ok((name, secret)),
            Ok(None) => Err(WiringError::SecretMissing { name: name.clone(), site: site.site.clone() }),
            Err(cause) => Err(WiringError::SecretUnreadable { name: name.clone(), cause: cause.clone() }),
        })
        .collect()
}

/// Looks references up.
struct Values<'a> {
    site: &'a Site,
    instance: &'a InstanceName,
    hostname: &'a Hostname,
    template: &'a Template,
    given: &'a BTreeMap<String, InputValue>,
    secrets: &'a BTreeMap<&'a SecretName, &'a Secret>,
}

impl Values<'_> {
    /// Whether a reference is to a secret.
    fn is_secret(&self, name: &str) -> bool {
        let input = name.split('.').next().unwrap_or(name);
        match self.template.wiring.inputs.get(input) {
            Some(known) if known.kind == InputKind::Mqtt => name.ends_with(".password"),
            Some(_) => matches!(self.given.get(input), Some(InputValue::Secret(_))),
            None => false,
        }
    }

    fn secret(&self, reference: &SecretRef) -> Option<Value> {
        self.secrets.get(&reference.secret).map(|secret| secret.expose().into())
    }

    fn lookup(&self, name: &str) -> Option<Value> {
        match name {
            "site.name" => return Some(self.site.site.as_str().into()),
            "site.timezone" => return self.site.timezone.as_ref().map(|zone| zone.as_str().into()),
            "instance.name" => return Some(self.instance.as_str().into()),
            "instance.hostname" => return Some(self.hostname.as_str().into()),
            _ => {}
        }
        let (input_name, part) = name.split_once('.').map_or((name, None), |(input, part)| (input, Some(part)));
        let input = self.template.wiring.inputs.get(input_name)?;
        if input.kind == InputKind::Mqtt {
            let mqtt = self.site.shared.mqtt.as_ref()?;
            return match part? {
                "host" => Some(mqtt.host.as_str().into()),
                "port" => Some(mqtt.port.into()),
                "username" => mqtt.username.as_deref().map(Value::from),
                "password" => mqtt.password.as_ref().and_then(|reference| self.secret(reference)),
                _ => None,
            };
        }
        match self.given.get(input_name) {
            Some(InputValue::Plain(value)) => Some(value.clone()),
            Some(InputValue::Secret(reference)) => self.secret(reference),
            None => input.default.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MANIFEST: &str = r#"release: "2026.06"
proxmox_min_version: "8.2"
templates:
  sensor:
    kind: lxc
    builder: ctrlable/sensor
    resources: { cpu: 1, ram: 128, disk: 2 }
    unprivileged: true
    wiring:
      inputs:
        mqtt: { type: mqtt, from: shared.mqtt, required: true }
        pin: { type: secret }
        topic: { type: string, default: "load" }
      files:
        - { path: /etc/a.env, format: env, merge: { PASSWORD: "${mqtt.password}" } }
        - { path: /etc/b.env, format: env, merge: { PIN: "x${pin}" } }
        - { path: /etc/c.env, format: env, merge: { USER: "${mqtt.username}", TOPIC: "${topic}" } }
        - { path: /etc/d.env, format: env, mode: "0640", merge: { PASSWORD: "${mqtt.password}" } }
"#;
    const SITE: &str = r#"site: acme
dealer: acme
release: "2026.06"
proxmox: { storage: local-lvm, bridge: vmbr0, pool: ctrlable, vmids: 2000-2099 }
shared:
  mqtt: { host: 192.0.2.1, username: ctrlable, password: { secret: mqtt } }
instances:
  attic: { template: sensor, network: { ip: dhcp }, wiring: { pin: { secret: pin } } }
"#;

    #[test]
    fn a_file_with_a_secret_is_private_unless_its_template_says_otherwise() {
        let manifest = contract::document::manifest("releases/2026.06.yaml", MANIFEST.as_bytes()).unwrap().value;
        let site = contract::document::site("sites/acme/site.yaml", SITE.as_bytes()).unwrap().value;
        let file = tempfile::NamedTempFile::new().unwrap();
        let gather = || Secrets::gather(&Default::default(), &crate::secrets::Identities::default(), Some(file.path()));
        let name = "attic".parse().unwrap();
        let render = |secrets: &Secrets| {
            let (wished, template) = (&site.instances[&name], &manifest.templates[&"sensor".parse().unwrap()]);
            let inputs = Inputs { site: &site, instance: &name, wished, release: &manifest.release, template, secrets };
            render(inputs).map(|rendered| {
                let modes = rendered.assignment.files.iter().map(|file| file.mode.clone().map(String::from));
                let names: Vec<String> = rendered.secrets.keys().map(|name| name.to_string()).collect();
                (modes.collect::<Vec<_>>(), names)
            })
        };
        std::fs::write(file.path(), "mqtt: hunter2\n").unwrap();
        assert_eq!(render(&gather()).unwrap_err().reason(), "secret-missing");
        std::fs::write(file.path(), "mqtt: hunter2\npin: hunter3\n").unwrap();
        let (modes, names) = render(&gather()).unwrap();
        let private = Some("0600".to_owned());
        assert_eq!(modes, [private.clone(), private, None, Some("0640".to_owned())]);
        assert_eq!(names, ["mqtt", "pin"]);
    }
}
