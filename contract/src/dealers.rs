//! Which dealer may change which sites, with which keys, and how much any site may ask for; after validation.
//! `contract::document` makes these from HQ's signed `dealers.yaml`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::hq::Numbered;
use crate::ids::{BridgeName, DealerName, InvalidId, SiteName, TemplateName};

/// HQ's word on all dealers.
#[derive(Debug, Clone, PartialEq)]
pub struct Dealers {
    /// Grows with every edition; an older one is not taken again.
    pub serial: u32,
    /// When HQ wrote it.
    pub issued: Timestamp,
    /// For every site.
    pub limits: Limits,
    /// By name.
    pub dealers: BTreeMap<DealerName, Dealer>,
}

/// One dealer.
#[derive(Debug, Clone, PartialEq)]
pub struct Dealer {
    /// The sites that it looks after.
    pub sites: Vec<SitePattern>,
    /// The keys that its people sign commits with.
    pub keys: Vec<ssh_key::PublicKey>,
    /// For its sites, beside those for every site.
    pub limits: Limits,
}

impl Dealers {
    /// What a dealer's site may ask for: what the limits for all *and* the dealer's own allow. An unknown dealer has the
    /// limits for all.
    pub fn limits_of(&self, dealer: &DealerName) -> Limits {
        match self.dealers.get(dealer) {
            Some(dealer) => self.limits.narrowed(&dealer.limits),
            None => self.limits.clone(),
        }
    }
}

impl Numbered for Dealers {
    fn number(&self) -> u32 {
        self.serial
    }

    fn issued(&self) -> Timestamp {
        self.issued
    }
}

impl Dealer {
    /// Whether it looks after this site.
    pub fn covers(&self, site: &SiteName) -> bool {
        self.sites.iter().any(|pattern| pattern.covers(site))
    }
}

/// A site, or all sites whose names begin alike: `acme-hq`, `acme-*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitePattern(Pattern);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Site(SiteName),
    Beginning(String),
}

impl SitePattern {
    /// Whether the site is one of them.
    pub fn covers(&self, site: &SiteName) -> bool {
        match &self.0 {
            Pattern::Site(name) => name == site,
            Pattern::Beginning(beginning) => site.as_str().starts_with(beginning),
        }
    }
}

impl FromStr for SitePattern {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || {
            let expected =
                "the name of a site like acme-hq, or the beginning of names with a star behind it like acme-*";
            InvalidId::new("a site or a pattern of sites", text, expected)
        };
        let Some(beginning) = text.strip_suffix('*') else {
            return text.parse().map(|site| Self(Pattern::Site(site))).map_err(|_| invalid());
        };
        // What could begin the name of a site: with any letter behind it, it is one.
        match format!("{beginning}x").parse::<SiteName>() {
            Ok(_) => Ok(Self(Pattern::Beginning(beginning.to_owned()))),
            Err(_) => Err(invalid()),
        }
    }
}

impl fmt::Display for SitePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pattern::Site(site) => site.fmt(f),
            Pattern::Beginning(beginning) => write!(f, "{beginning}*"),
        }
    }
}

/// How much a site may ask for. What is absent is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Templates that may be used.
    pub templates: Option<BTreeSet<TemplateName>>,
    /// Bridges that guests may be on.
    pub bridges: Option<BTreeSet<BridgeName>>,
    /// Whether containers may be privileged.
    pub privileged: PrivilegedContainers,
    /// Guests of one site.
    pub instances: Option<u32>,
    /// What all guests of one site have together.
    pub per_site: ResourceLimits,
    /// What one guest has.
    pub per_instance: ResourceLimits,
}

/// Whether a site may have privileged containers: root in one is root on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrivilegedContainers {
    /// If the release has such templates.
    #[default]
    Allowed,
    /// Not even then.
    Forbidden,
}

/// At most this much; what is absent is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceLimits {
    /// Cores.
    pub cpu: Option<u32>,
    /// MiB.
    pub ram: Option<u32>,
    /// GiB.
    pub disk: Option<u32>,
}

impl Limits {
    /// What both allow.
    pub fn narrowed(&self, other: &Self) -> Self {
        let privileged = match (self.privileged, other.privileged) {
            (PrivilegedContainers::Allowed, PrivilegedContainers::Allowed) => PrivilegedContainers::Allowed,
            _ => PrivilegedContainers::Forbidden,
        };
        Self {
            templates: common(self.templates.as_ref(), other.templates.as_ref()),
            bridges: common(self.bridges.as_ref(), other.bridges.as_ref()),
            privileged,
            instances: least(self.instances, other.instances),
            per_site: self.per_site.narrowed(other.per_site),
            per_instance: self.per_instance.narrowed(other.per_instance),
        }
    }
}

impl ResourceLimits {
    fn narrowed(self, other: Self) -> Self {
        Self { cpu: least(self.cpu, other.cpu), ram: least(self.ram, other.ram), disk: least(self.disk, other.disk) }
    }
}

/// The smaller of two limits.
fn least(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    one.into_iter().chain(other).min()
}

/// The names that are in both lists.
fn common<T: Ord + Clone>(one: Option<&BTreeSet<T>>, other: Option<&BTreeSet<T>>) -> Option<BTreeSet<T>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one & other),
        (one, other) => one.or(other).cloned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_says_and_nothing_else() {
        let covers = |pattern: &str, site: &str| {
            let parsed: SitePattern = pattern.parse().unwrap();
            assert_eq!(parsed.to_string(), pattern);
            parsed.covers(&site.parse().unwrap())
        };
        assert!(covers("acme-hq", "acme-hq") && covers("acme-*", "acme-hq") && covers("*", "acme-hq"));
        assert!(covers("acme*", "acmeville"));
        assert!(!covers("acme-hq", "acme-hq-2") && !covers("acme-*", "acme") && !covers("acme-*", "beta-acme-hq"));
        for bad in ["", "**", "*-hq", "acme-*-hq", "Acme-*", "-*", "acme/*", "acme?", &"a".repeat(40)] {
            assert!(bad.parse::<SitePattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_dealer_can_narrow_what_all_may_and_never_widen_it() {
        let names = |names: &[&str]| Some(names.iter().map(|name| name.parse().unwrap()).collect());
        let all = Limits {
            templates: names(&["zigbee2mqtt", "frigate"]),
            instances: Some(10),
            privileged: PrivilegedContainers::Forbidden,
            per_site: ResourceLimits { ram: Some(8192), ..ResourceLimits::default() },
            ..Limits::default()
        };
        let own = Limits {
            templates: names(&["frigate", "zwavejs"]),
            instances: Some(20),
            per_site: ResourceLimits { ram: Some(4096), disk: Some(100), ..ResourceLimits::default() },
            ..Limits::default()
        };
        let wanted = Limits {
            templates: names(&["frigate"]),
            instances: Some(10),
            privileged: PrivilegedContainers::Forbidden,
            per_site: ResourceLimits { ram: Some(4096), disk: Some(100), cpu: None },
            ..Limits::default()
        };
        assert_eq!(all.narrowed(&own), wanted);
        assert_eq!(own.narrowed(&all), wanted);
        assert_eq!(all.narrowed(&Limits::default()), all);
    }
}
