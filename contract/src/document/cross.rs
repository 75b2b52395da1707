//! What a site and a manifest say about each other.

use super::problems::{Path, Problems};
use super::read::nearest;
use super::wiring::value_fits;
use crate::manifest::{InputKind, Manifest, Need, Template};
use crate::refusal::Reason;
use crate::site::{InputValue, Instance, Site};

/// Checks every instance against its template.
pub(super) fn check(problems: &Problems<'_>, site: &Site, manifest: &Manifest) {
    let root = Path::Root;
    let instances = root.key("instances");
    for (name, instance) in &site.instances {
        let at = instances.key(name.as_str());
        match manifest.templates.get(&instance.template) {
            Some(template) => fits(problems, &at, site, instance, template),
            None => {
                let message = format!("release {} has no template `{}`", manifest.release, instance.template);
                let remedy = nearest(instance.template.as_str(), manifest.templates.keys().map(|name| name.as_str()));
                problems.refuse(Reason::UnknownTemplate, &at.key("template"), message, remedy);
            }
        }
    }
}

fn fits(problems: &Problems<'_>, at: &Path<'_>, site: &Site, instance: &Instance, template: &Template) {
    if let (Some(disk), Some(resources)) = (instance.resources.disk, template.resources)
        && disk < resources.disk
    {
        let message = format!("{disk} GiB is less than the {} GiB of the template", resources.disk);
        let remedy = "a disk can only grow: ask for at least as much, or take the field out";
        problems.refuse(Reason::DiskTooSmall, &at.key("resources").key("disk"), message, remedy);
    }
    let wiring = at.key("wiring");
    let inputs = &template.wiring.inputs;
    for (name, value) in &instance.wiring {
        let at = wiring.key(name);
        let Some(input) = inputs.get(name) else {
            let message = format!("`{}` has no input `{}`", instance.template, name.escape_debug());
            let given_by_instance = inputs.iter().filter(|(_, input)| input.kind != InputKind::Mqtt);
            problems.refuse(
                Reason::UnknownInput,
                &at,
                message,
                nearest(name, given_by_instance.map(|(name, _)| name.as_str())),
            );
            continue;
        };
        match value {
            InputValue::Plain(value) => {
                if let Err(misfit) = value_fits(&input.kind, value) {
                    problems.refuse(misfit.reason, &at, misfit.message, misfit.remedy);
                }
            }
            InputValue::Secret(_) if input.kind == InputKind::Secret => {}
            InputValue::Secret(_) => {
                let message = "this input does not take a secret";
                problems.refuse(Reason::BadInput, &at, message, "write the value itself");
            }
        }
    }
    for (name, input) in inputs.iter().filter(|(_, input)| input.need == Need::Required) {
        if input.kind == InputKind::Mqtt && site.shared.mqtt.is_none() {
            let message = format!("`{}` needs the site's MQTT service, and there is none", instance.template);
            let remedy = "add `shared: { mqtt: { host: … } }` to the site";
            problems.refuse(Reason::MissingService, &at.key("template"), message, remedy);
        } else if input.kind != InputKind::Mqtt && !instance.wiring.contains_key(name) {
            let help = input.help.as_deref().map(|help| format!(": {help}")).unwrap_or_default();
            let message = format!("`{}` needs the input `{name}`{help}", instance.template);
            problems.refuse(
                Reason::MissingInput,
                &wiring.key(name),
                message,
                format!("add `{name}:` to `wiring` here"),
            );
        }
    }
}
