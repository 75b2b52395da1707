//! `dealers.yaml` as it is written, and from there to valid [`Dealers`].

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use schemars::JsonSchema;
use ssh_key::{Algorithm, PublicKey};

use super::hq::{number, time};
use super::problems::{Checked, Path, Problems};
use super::raw::Given;
use super::site::{Bounds, CPU, DISK, RAM};
use crate::dealers::{Dealer, Dealers, Limits, PrivilegedContainers, ResourceLimits};
use crate::ids::{DealerName, InvalidId};
use crate::refusal::Reason;

/// A site cannot have more guests than numbers (`vmids`), of which it may have this many.
const MOST_INSTANCES: i64 = 100_000;

/// Which dealer may change which sites, with which keys, and how much any site may ask for: `dealers.yaml`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Dealers of Ctrlable Provisioner")]
pub(super) struct RawDealers {
    /// Number of this edition, from 1. Every edition has a higher one than the last.
    #[schemars(range(min = 1, max = 999_999_999))]
    serial: Given<i64>,
    /// When it was written, in UTC: `2026-11-20T12:00:00Z`.
    issued: Given<String>,
    /// What any site may ask for. Absent: anything.
    #[serde(default)]
    limits: Given<RawLimits>,
    /// The dealers, by name. `{}` for none.
    dealers: Given<BTreeMap<String, Given<RawDealer>>>,
}

/// One dealer.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Dealer")]
struct RawDealer {
    /// The sites that it looks after: names like `acme-hq`, or beginnings of names like `"acme-*"`.
    sites: Given<Vec<Given<String>>>,
    /// Public keys that its people sign commits with, each as in an OpenSSH `.pub` file. Absent: none.
    #[serde(default)]
    keys: Given<Vec<Given<String>>>,
    /// What its sites may ask for; narrows the limits for all. Absent: only those hold.
    #[serde(default)]
    limits: Given<RawLimits>,
}

/// How much a site may ask for. What is absent is not limited.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Limits")]
struct RawLimits {
    /// Templates that may be used.
    #[serde(default)]
    templates: Given<Vec<Given<String>>>,
    /// Bridges that guests may be on.
    #[serde(default)]
    bridges: Given<Vec<Given<String>>>,
    /// Whether containers may be privileged, which makes their root the host's root. Absent: true.
    #[serde(default)]
    privileged: Given<bool>,
    /// Guests of one site.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    instances: Given<i64>,
    /// What all guests of one site have together.
    #[serde(default)]
    per_site: Given<RawResources>,
    /// What one guest has.
    #[serde(default)]
    per_instance: Given<RawResources>,
}

/// Processor, memory and disk at most.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Resources")]
struct RawResources {
    /// Cores.
    #[serde(default)]
    #[schemars(range(min = 1))]
    cpu: Given<i64>,
    /// Memory in MiB.
    #[serde(default)]
    #[schemars(range(min = 16))]
    ram: Given<i64>,
    /// Disk in GiB.
    #[serde(default)]
    #[schemars(range(min = 1))]
    disk: Given<i64>,
}

/// Checks everything that the document alone can tell.
pub(super) fn validate(problems: &Problems<'_>, raw: RawDealers) -> Checked<Dealers> {
    let root = Path::Root;
    let serial = number(problems, &root.key("serial"), raw.serial, 1);
    let issued = time(problems, &root.key("issued"), raw.issued);
    let limits = raw.limits.0.map_or(Ok(Limits::default()), |raw| limits(problems, &root.key("limits"), raw));
    let at = root.key("dealers");
    let dealers = problems.need(&at, raw.dealers).and_then(|raw| dealers(problems, &at, raw));
    Ok(Dealers { serial: serial?, issued: issued?, limits: limits?, dealers: dealers? })
}

fn dealers(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: BTreeMap<String, Given<RawDealer>>,
) -> Checked<BTreeMap<DealerName, Dealer>> {
    let mut dealers = BTreeMap::new();
    let mut refused = None;
    for (name, raw) in raw {
        let at = at.key(&name);
        let read = problems.need(&at, raw).and_then(|raw| {
            let name = problems.parse(&at, Reason::BadName, &name);
            let dealer = dealer(problems, &at, raw);
            Ok((name?, dealer?))
        });
        match read {
            Ok((name, dealer)) => drop(dealers.insert(name, dealer)),
            Err(reported) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(dealers), Err)
}

fn dealer(problems: &Problems<'_>, at: &Path<'_>, raw: RawDealer) -> Checked<Dealer> {
    let sites = problems
        .need(&at.key("sites"), raw.sites)
        .and_then(|raw| list(problems, &at.key("sites"), raw, |at, text| problems.parse(at, Reason::BadName, text)));
    let keys = raw.keys.0.unwrap_or_default();
    let keys = list(problems, &at.key("keys"), keys, |at, text| key(problems, at, text));
    let limits = raw.limits.0.map_or(Ok(Limits::default()), |raw| limits(problems, &at.key("limits"), raw));
    Ok(Dealer { sites: sites?, keys: keys?, limits: limits? })
}

/// The kinds that OpenSSH makes today. DSA is broken, and a certificate would need an authority and a clock.
fn key(problems: &Problems<'_>, at: &Path<'_>, text: &str) -> Checked<PublicKey> {
    let usable = |algorithm| {
        use Algorithm::{Ecdsa, Ed25519, Rsa, SkEcdsaSha2NistP256, SkEd25519};
        matches!(algorithm, Ed25519 | Ecdsa { .. } | Rsa { .. } | SkEd25519 | SkEcdsaSha2NistP256)
    };
    match PublicKey::from_openssh(text) {
        Ok(key) if usable(key.algorithm()) => Ok(key),
        Ok(_) | Err(_) => {
            let message = "this is not an OpenSSH public key that can sign commits";
            let remedy = "write the one line of a .pub file: ssh-ed25519 AAAA… who@where, without options before it";
            Err(problems.refuse(Reason::BadSshKey, at, message, remedy))
        }
    }
}

fn limits(problems: &Problems<'_>, at: &Path<'_>, raw: RawLimits) -> Checked<Limits> {
    let templates = names(problems, &at.key("templates"), raw.templates);
    let bridges = names(problems, &at.key("bridges"), raw.bridges);
    let privileged = match raw.privileged.0 {
        Some(false) => PrivilegedContainers::Forbidden,
        Some(true) | None => PrivilegedContainers::Allowed,
    };
    let instances_at = at.key("instances");
    let instances = raw.instances.0.map(|number| {
        problems.number(&instances_at, Reason::BadLimit, number, 0..=MOST_INSTANCES, "a usable number of guests")
    });
    let per_site = resources(problems, &at.key("per_site"), raw.per_site, SITE_FACTOR);
    let per_instance = resources(problems, &at.key("per_instance"), raw.per_instance, 1);
    Ok(Limits {
        templates: templates?,
        bridges: bridges?,
        privileged,
        instances: instances.transpose()?,
        per_site: per_site?,
        per_instance: per_instance?,
    })
}

/// A site's sum may be this many times what one guest may have; all of them still fit into 32 bits.
const SITE_FACTOR: i64 = 1000;

fn resources(problems: &Problems<'_>, at: &Path<'_>, raw: Given<RawResources>, factor: i64) -> Checked<ResourceLimits> {
    let Given(Some(raw)) = raw else { return Ok(ResourceLimits::default()) };
    let one = |name, given: Given<i64>, Bounds { range, what }: Bounds| {
        let range = *range.start()..=range.end() * factor;
        given.0.map(|number| problems.number(&at.key(name), Reason::BadLimit, number, range, what)).transpose()
    };
    let (cpu, ram, disk) = (one("cpu", raw.cpu, CPU), one("ram", raw.ram, RAM), one("disk", raw.disk, DISK));
    Ok(ResourceLimits { cpu: cpu?, ram: ram?, disk: disk? })
}

/// A set of names that may be absent.
fn names<T: FromStr<Err = InvalidId> + Ord>(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: Given<Vec<Given<String>>>,
) -> Checked<Option<BTreeSet<T>>> {
    let Given(Some(raw)) = raw else { return Ok(None) };
    let names = list(problems, at, raw, |at, text| problems.parse(at, Reason::BadName, text))?;
    Ok(Some(names.into_iter().collect()))
}

/// All items of a list, or the proof that one was refused.
fn list<T>(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: Vec<Given<String>>,
    parse: impl Fn(&Path<'_>, &str) -> Checked<T>,
) -> Checked<Vec<T>> {
    let parsed = raw.into_iter().enumerate().map(|(index, text)| {
        let at = at.index(index);
        problems.need(&at, text).and_then(|text| parse(&at, &text))
    });
    // Every mistake is reported, so all are looked at before the first one counts.
    parsed.collect::<Vec<_>>().into_iter().collect()
}
