//! Tag lists, compared as sets: Proxmox lowercases, sorts and joins them as the data centre likes (pve-api 7).

use std::collections::BTreeSet;
use std::fmt;

use contract::ids::{InstanceName, ReleaseId, SiteName, TemplateName};

/// Marks each guest of ours.
pub const GUEST: &str = "ctrlable";
/// Marks each template of ours.
pub const TEMPLATE: &str = "ctrlable-template";

/// The tags of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tags(BTreeSet<String>);

impl Tags {
    /// Reads a list; commas, semicolons and blanks separate.
    pub fn parse(text: &str) -> Self {
        text.split([',', ';', ' ']).collect()
    }

    /// Tags of a guest of a site: `ctrlable`, `site-<site>`, `instance-<instance>`.
    pub fn of_guest(site: &SiteName, instance: &InstanceName) -> Self {
        [GUEST.to_owned(), format!("site-{site}"), format!("instance-{instance}")].iter().map(String::as_str).collect()
    }

    /// Tags of a template: `ctrlable-template`, `release-<id>`, `template-<name>`.
    pub fn of_template(release: &ReleaseId, template: &TemplateName) -> Self {
        let tags = [TEMPLATE.to_owned(), format!("release-{release}"), format!("template-{template}")];
        tags.iter().map(String::as_str).collect()
    }

    /// Whether a tag is set.
    pub fn has(&self, tag: &str) -> bool {
        self.0.contains(&tag.to_lowercase())
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All tags, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Those of others and `ours`. On a guest that was ours before, what we set then and no longer want is left out.
    #[must_use]
    pub fn with_ours(&self, ours: &Tags) -> Self {
        let was_ours = self.has(GUEST) || self.has(TEMPLATE);
        let set_by_us = |tag: &str| {
            let prefixes = ["site-", "instance-", "release-", "template-"];
            tag == GUEST || tag == TEMPLATE || prefixes.iter().any(|prefix| tag.starts_with(prefix))
        };
        self.iter().filter(|tag| !(was_ours && set_by_us(tag))).chain(ours.iter()).collect()
    }
}

impl<'a> FromIterator<&'a str> for Tags {
    fn from_iter<I: IntoIterator<Item = &'a str>>(tags: I) -> Self {
        Self(tags.into_iter().map(|tag| tag.trim().to_lowercase()).filter(|tag| !tag.is_empty()).collect())
    }
}

impl fmt::Display for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tags: Vec<&str> = self.iter().collect();
        f.write_str(&tags.join(";"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn order_case_and_separators_do_not_matter() {
        assert_eq!(Tags::parse("Web;prod,A-1  web"), Tags::parse("a-1;prod;web"));
        assert_eq!(Tags::parse("b;a").to_string(), "a;b");
        assert!(Tags::parse(" ").is_empty());
    }

    #[test]
    fn tags_of_others_stay() {
        let old = Tags::parse("backup-daily;ctrlable-template;release-2026.05;template-zigbee2mqtt");
        let ours = Tags::of_template(&"2026.06".parse().unwrap(), &"zigbee2mqtt".parse().unwrap());
        let new = old.with_ours(&ours);
        assert_eq!(new.to_string(), "backup-daily;ctrlable-template;release-2026.06;template-zigbee2mqtt");
        assert_eq!(new.with_ours(&ours), new);
        assert!(Tags::parse("template-base").with_ours(&ours).has("template-base"), "not set by us");
    }
}
