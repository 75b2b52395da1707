//! From a release as it was written to a valid [`Manifest`].

use std::collections::BTreeMap;

use super::problems::{Checked, Path, Problems};
use super::raw::{self, Given};
use super::site::{CPU, DISK, RAM, resource};
use super::wiring;
use crate::assignment::{HttpProbe, Probe, TcpProbe};
use crate::ids::{ReleaseId, TemplateName};
use crate::manifest::{Artifact, GuestKind, Manifest, Os, Privilege, Resources, Template};
use crate::refusal::Reason;

/// Names that move: what stands there tomorrow is not what was validated.
const BRANCHES: &[&str] = &["main", "master", "head", "develop", "dev", "trunk", "next", "latest", "stable"];

/// Checks everything that the manifest alone can tell.
pub(super) fn validate(problems: &Problems<'_>, raw: raw::Release) -> Checked<Manifest> {
    let root = Path::Root;
    let at = root.key("release");
    let release = problems.need_parsed(&at, Reason::BadReleaseId, raw.release);
    if let Ok(release) = &release {
        agrees_with_file(problems, &at, release);
    }
    let at = root.key("community_scripts_ref");
    let pin_refused = problems.refused(&at).is_some();
    let pin = raw.community_scripts_ref.0.map(|text| pin(problems, &at, text)).transpose();
    let pin_given = pin_refused || !matches!(pin, Ok(None));
    let oldest = problems.need_parsed(&root.key("proxmox_min_version"), Reason::BadVersion, raw.proxmox_min_version);
    let at = root.key("templates");
    let templates = problems.need(&at, raw.templates).and_then(|raw| templates(problems, &at, raw));
    if let Ok(templates) = &templates
        && !pin_given
        && let Some((name, template)) = templates.iter().find(|(_, template)| needs_pin(template))
    {
        let message = format!("`{name}` is built by {}, but nothing says of which commit", template.builder);
        let remedy = "add `community_scripts_ref:` with a tag or a full commit of community-scripts/ProxmoxVE";
        problems.refuse(Reason::MissingField, &root.key("community_scripts_ref"), message, remedy);
    }
    Ok(Manifest { release: release?, community_scripts_ref: pin?, proxmox_min_version: oldest?, templates: templates? })
}

fn agrees_with_file(problems: &Problems<'_>, at: &Path<'_>, release: &ReleaseId) {
    let expected = format!("releases/{release}.yaml");
    let file = problems.file();
    if file != expected {
        let message = format!("the release is called `{release}`, but the file is {}", file.escape_debug());
        problems.refuse(Reason::NameMismatch, at, message, format!("move the file to {expected}, or correct the id"));
    }
}

/// Whether a template is built by a script of the pinned repository.
fn needs_pin(template: &Template) -> bool {
    template.artifact.is_none() && ["ct/", "vm/"].iter().any(|folder| template.builder.starts_with(folder))
}

/// A tag, or a full commit id. Git cannot tell a tag from a branch by its name; real tags hold a digit, and the usual
/// names of branches are refused.
fn pin(problems: &Problems<'_>, at: &Path<'_>, text: String) -> Checked<String> {
    let remedy = "write a tag such as v2026.05.3, or a commit with all its 40 hex digits";
    let refuse = |message: &str| Err(problems.refuse(Reason::UnpinnedRef, at, message, remedy));
    let name = text.strip_prefix("refs/tags/").unwrap_or(&text);
    if text.starts_with("refs/heads/") || text.starts_with("refs/remotes/") || text.starts_with("origin/") {
        return refuse("this is a branch, and branches move");
    }
    if BRANCHES.contains(&name.to_ascii_lowercase().as_str()) {
        return refuse("this is the name of a branch, and branches move");
    }
    let hex = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hex && (7..40).contains(&name.len()) && name.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        return refuse("this is an abbreviated commit, and may become another one's");
    }
    let fits = (1..=100).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && !name.contains("..")
        && !name.ends_with('.')
        && !name.ends_with(".lock")
        && name.bytes().any(|byte| byte.is_ascii_digit());
    if fits { Ok(text) } else { refuse("this is neither a tag with a number in it nor a commit") }
}

fn templates(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: BTreeMap<String, Given<raw::Template>>,
) -> Checked<BTreeMap<TemplateName, Template>> {
    if raw.is_empty() {
        let message = "the release has no templates";
        return Err(problems.refuse(Reason::NoTemplates, at, message, "add at least one"));
    }
    let mut templates = BTreeMap::new();
    let mut refused = None;
    for (name, raw) in raw {
        let at = at.key(&name);
        let parsed = problems.parse::<TemplateName>(&at, Reason::BadName, &name);
        match (parsed, problems.need(&at, raw).and_then(|raw| template(problems, &at, raw))) {
            (Ok(name), Ok(template)) => drop(templates.insert(name, template)),
            (Err(reported), _) | (_, Err(reported)) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(templates), Err)
}

fn template(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Template) -> Checked<Template> {
    let kind_at = at.key("kind");
    let kind = problems.need(&kind_at, raw.kind).and_then(|kind| match kind.as_str() {
        "lxc" => Ok(GuestKind::Lxc),
        "vm" => Ok(GuestKind::Vm),
        _ => {
            let message = "this is not a kind of guest";
            Err(problems.refuse(Reason::BadKind, &kind_at, message, "write lxc or vm"))
        }
    });
    if let Ok(kind) = kind {
        let of_containers = [
            ("os", raw.os.0.is_some()),
            ("unprivileged", raw.unprivileged.0.is_some()),
            ("portainer", raw.portainer.0.is_some()),
        ];
        let of_machines = [
            ("haos_version", raw.haos_version.0.is_some()),
            ("rebrand", raw.rebrand.0.is_some()),
            ("base_backup", raw.base_backup.0.is_some()),
        ];
        let (foreign, kinds) = match kind {
            GuestKind::Lxc => (of_machines, "virtual machines (kind: vm)"),
            GuestKind::Vm => (of_containers, "containers (kind: lxc)"),
        };
        for (field, _) in foreign.into_iter().filter(|(_, given)| *given) {
            let message = format!("only {kinds} have `{field}`");
            problems.refuse(Reason::WrongKindField, &at.key(field), message, "take it out, or correct the kind");
        }
    }
    let builder_at = at.key("builder");
    let builder = problems.need(&builder_at, raw.builder).and_then(|text| {
        if is_builder(&text) {
            return Ok(text);
        }
        let message = "this is not a builder";
        let remedy = "write ct/NAME.sh, vm/NAME.sh, turnkey/NAME or ctrlable/NAME, in lower case";
        Err(problems.refuse(Reason::BadBuilder, &builder_at, message, remedy))
    });
    let app_version = version(problems, &at.key("app_version"), raw.app_version);
    let os = raw.os.0.map(|raw| os(problems, &at.key("os"), raw)).transpose();
    let resources = raw.resources.0.map(|raw| resources(problems, &at.key("resources"), raw)).transpose();
    let haos_version = version(problems, &at.key("haos_version"), raw.haos_version);
    let base_backup = raw.base_backup.0.map(|name| file_name(problems, &at.key("base_backup"), name)).transpose();
    let vmid_base = problems.vmid(&at.key("vmid_base"), raw.vmid_base);
    let wiring = raw.wiring.0.map(|raw| wiring::validate(problems, &at.key("wiring"), raw)).transpose();
    let probes = probes(problems, &at.key("probes"), raw.probes.0.unwrap_or_default());
    let artifact = raw.artifact.0.map(|raw| artifact(problems, &at.key("artifact"), raw)).transpose();
    Ok(Template {
        kind: kind?,
        builder: builder?,
        app_version: app_version?,
        os: os?,
        resources: resources?,
        privilege: if raw.unprivileged.0.unwrap_or(true) { Privilege::Unprivileged } else { Privilege::Privileged },
        portainer: raw.portainer.0.unwrap_or(false),
        haos_version: haos_version?,
        rebrand: raw.rebrand.0.unwrap_or(false),
        base_backup: base_backup?,
        vmid_base: vmid_base?,
        wiring: wiring?.unwrap_or_default(),
        probes: probes?,
        artifact: artifact?,
    })
}

/// `^(ct|vm|turnkey|ctrlable)/[a-z0-9-]+(\.sh)?$`: one folder, one file, no way out.
fn is_builder(text: &str) -> bool {
    text.split_once('/').is_some_and(|(folder, file)| {
        let name = file.strip_suffix(".sh").unwrap_or(file);
        ["ct", "vm", "turnkey", "ctrlable"].contains(&folder)
            && (1..=100).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    })
}

/// A version as its makers write it: `9.x`, `15.1`, `v2.12.1-1`.
fn version(problems: &Problems<'_>, at: &Path<'_>, given: Given<String>) -> Checked<Option<String>> {
    given.0.map(|text| checked_version(problems, at, text)).transpose()
}

fn checked_version(problems: &Problems<'_>, at: &Path<'_>, text: String) -> Checked<String> {
    let fits = (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte));
    if fits {
        return Ok(text);
    }
    let remedy = "write 1 to 64 letters, digits, dots, hyphens, underscores and plus signs, such as \"9.x\"";
    Err(problems.refuse(Reason::BadVersion, at, "this is not a version", remedy))
}

fn os(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Os) -> Checked<Os> {
    let distro_at = at.key("distro");
    let distro = problems.need(&distro_at, raw.distro).and_then(|text| {
        let fits = (1..=30).contains(&text.len())
            && text.as_bytes()[0].is_ascii_lowercase()
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if fits {
            return Ok(text);
        }
        let message = "this is not the name of a distribution";
        Err(problems.refuse(Reason::BadName, &distro_at, message, "write it in lower case, such as debian"))
    });
    let version_at = at.key("version");
    let version = problems.need(&version_at, raw.version).and_then(|text| checked_version(problems, &version_at, text));
    Ok(Os { distro: distro?, version: version? })
}

fn resources(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Resources) -> Checked<Resources> {
    let one = |name, given, bounds| {
        let at = at.key(name);
        problems.need(&at, given).and_then(|number| resource(problems, &at, number, bounds))
    };
    let (cpu, ram, disk) = (one("cpu", raw.cpu, CPU), one("ram", raw.ram, RAM), one("disk", raw.disk, DISK));
    Ok(Resources { cpu: cpu?, ram: ram?, disk: disk? })
}

fn file_name(problems: &Problems<'_>, at: &Path<'_>, text: String) -> Checked<String> {
    let fits = (1..=200).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits {
        return Ok(text);
    }
    let remedy = "write a file name without a folder: letters, digits, dots, hyphens and underscores";
    Err(problems.refuse(Reason::BadName, at, "this is not a file name", remedy))
}

fn probes(problems: &Problems<'_>, at: &Path<'_>, raw: Vec<raw::Probe>) -> Checked<Vec<Probe>> {
    let mut probes = Vec::with_capacity(raw.len());
    let mut refused = None;
    for (index, raw) in raw.into_iter().enumerate() {
        match probe(problems, &at.index(index), raw) {
            Ok(probe) => probes.push(probe),
            Err(reported) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(probes), Err)
}

fn probe(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Probe) -> Checked<Probe> {
    let refused_below = problems.refused(at);
    match (raw.unit.0, raw.http.0, raw.tcp.0) {
        (Some(unit), None, None) => problems.parse(&at.key("unit"), Reason::BadUnit, &unit).map(Probe::Unit),
        (None, Some(raw), None) => {
            let at = at.key("http");
            let at = at.key("url");
            let url = problems.need(&at, raw.url)?;
            if is_own_url(&url) {
                return Ok(Probe::Http(HttpProbe { url }));
            }
            let message = "this is not a URL of the guest itself";
            Err(problems.refuse(Reason::BadProbe, &at, message, "write http://127.0.0.1:PORT/PATH"))
        }
        (None, None, Some(raw)) => {
            let at = at.key("tcp");
            let at = at.key("port");
            let port = problems.need(&at, raw.port)?;
            Ok(Probe::Tcp(TcpProbe { port: problems.port(&at, port)? }))
        }
        _ => Err(refused_below.unwrap_or_else(|| {
            let message = "a probe is exactly one of unit, http and tcp";
            let remedy = "write one item for each: `- unit: NAME.service`, `- http: { url: … }`, `- tcp: { port: … }`";
            problems.refuse(Reason::BadProbe, at, message, remedy)
        })),
    }
}

/// `http://127.0.0.1[:PORT]/PATH`: plain HTTP on the loopback, because the agent has no other business.
fn is_own_url(url: &str) -> bool {
    let Some((authority, _)) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')) else { return false };
    let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host == "127.0.0.1" && digits && port.parse::<u16>().is_ok_and(|port| port > 0) && is_url_text(url)
}

/// Printable ASCII without blanks and quotes, of a length that every server takes.
pub(super) fn is_url_text(url: &str) -> bool {
    url.len() <= 2048 && url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte))
}

fn artifact(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Artifact) -> Checked<Artifact> {
    let url_at = at.key("url");
    let url = problems.need(&url_at, raw.url).and_then(|url| {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        let remedy = "write https://HOST/PATH or http://HOST/PATH";
        match authority {
            Some(authority) if authority.contains('@') => {
                let message = "credentials stand in this URL";
                Err(problems.refuse(Reason::BadUrl, &url_at, message, "take them out: the digest is what is believed"))
            }
            Some(authority) if !authority.is_empty() && !authority.starts_with(':') && is_url_text(&url) => Ok(url),
            _ => Err(problems.refuse(Reason::BadUrl, &url_at, "this is not a URL that can be fetched", remedy)),
        }
    });
    let sha256 = problems.need_parsed(&at.key("sha256"), Reason::BadDigest, raw.sha256);
    Ok(Artifact { url: url?, sha256: sha256? })
}
