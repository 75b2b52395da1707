//! The machine-readable block in a guest's description, from which a lost database is rebuilt.
//!
//! ```text
//! whatever a person wrote
//! <!-- ctrlable {"v":1,"role":"guest","site":"acme-hq","instance":"zigbee","release":"2026.06","template":"zigbee2mqtt"} -->
//! ```
//!
//! A description is Markdown for Proxmox, so the block does not show there.

use contract::ids::{InstanceName, ReleaseId, Sha256Digest, SiteName, TemplateName};
use serde::{Deserialize, Serialize};

use crate::trust::Numbers;

/// How the block begins; the JSON object and [`END`] follow.
const BEGIN: &str = "<!-- ctrlable ";
/// How the block ends.
const END: &str = "-->";
/// Characters that Proxmox takes in a description (pve-api 7).
pub const DESCRIPTION_LIMIT: usize = 8192;
/// The version that this code writes.
const VERSION: u32 = 1;

/// What a guest of ours is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Marker {
    /// A template of a release.
    Template {
        /// The release.
        release: ReleaseId,
        /// Its name in the catalogue.
        template: TemplateName,
        /// SHA-256 of the manifest that it was made from, when known.
        digest: Option<Sha256Digest>,
    },
    /// An instance of a site.
    Guest {
        /// The site.
        site: SiteName,
        /// The instance.
        instance: InstanceName,
        /// The release that it was cloned from.
        release: ReleaseId,
        /// The template that it was cloned from.
        template: TemplateName,
        /// The newest of HQ's documents that the site has accepted, should its ledger get lost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        floor: Option<Numbers>,
    },
}

/// The JSON object with its version.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    #[serde(flatten)]
    marker: T,
}

/// A block that is there and cannot be read, or does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMarker {
    /// It has no end.
    #[error("the ctrlable block in the description has no `-->`: restore it, or remove it to disown the guest")]
    Unterminated,
    /// There are several.
    #[error("the description has {0} ctrlable blocks: keep the right one")]
    Several(usize),
    /// The object is not what a block holds.
    #[error("the ctrlable block in the description cannot be read ({0}): restore it, or remove it to disown the guest")]
    Unreadable(String),
    /// Another version wrote it.
    #[error("the ctrlable block has version {0}, this program reads {VERSION}: upgrade it")]
    Version(u32),
    /// It does not fit.
    #[error("the description would have {0} characters with the ctrlable block, Proxmox takes 8192: shorten its text")]
    TooLong(usize),
}

impl InvalidMarker {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unterminated => "marker-unterminated",
            Self::Several(_) => "marker-several",
            Self::Unreadable(_) => "marker-unreadable",
            Self::Version(_) => "marker-version",
            Self::TooLong(_) => "marker-too-long",
        }
    }
}

impl Marker {
    /// Reads the block, whatever text surrounds it; none: the guest is not ours.
    pub fn parse(description: &str) -> Result<Option<Self>, InvalidMarker> {
        let mut blocks = description.split(BEGIN).skip(1);
        let Some(block) = blocks.next() else { return Ok(None) };
        match blocks.count() {
            0 => {}
            more => return Err(InvalidMarker::Several(more + 1)),
        }
        let (object, _) = block.split_once(END).ok_or(InvalidMarker::Unterminated)?;
        let unreadable = |error: serde_json::Error| InvalidMarker::Unreadable(error.to_string());
        let value: serde_json::Value = serde_json::from_str(object).map_err(unreadable)?;
        let version: Versioned<serde::de::IgnoredAny> = serde_json::from_value(value.clone()).map_err(unreadable)?;
        if version.v != VERSION {
            return Err(InvalidMarker::Version(version.v));
        }
        let read: Versioned<Self> = serde_json::from_value(value).map_err(unreadable)?;
        Ok(Some(read.marker))
    }

    /// The description with this block: in the place of an older one, else below a person's text, which is kept.
    pub fn render(&self, existing: &str) -> Result<String, InvalidMarker> {
        let object = serde_json::to_string(&Versioned { v: VERSION, marker: self })
            .map_err(|error| InvalidMarker::Unreadable(error.to_string()))?;
        let block = format!("{BEGIN}{object} {END}");
        let existing = existing.trim_end();
        let description = match Self::parse(existing) {
            Ok(None) if existing.is_empty() => block,
            Ok(None) => format!("{existing}\n{block}"),
            Err(error @ (InvalidMarker::Unterminated | InvalidMarker::Several(_))) => return Err(error),
            Ok(Some(_)) | Err(_) => {
                let (before, rest) = existing.split_once(BEGIN).ok_or(InvalidMarker::Unterminated)?;
                let (_, after) = rest.split_once(END).ok_or(InvalidMarker::Unterminated)?;
                format!("{before}{block}{after}")
            }
        };
        match description.chars().count() {
            length if length > DESCRIPTION_LIMIT => Err(InvalidMarker::TooLong(length)),
            _ => Ok(description),
        }
    }

    /// The release that the guest was made from.
    pub fn release(&self) -> &ReleaseId {
        match self {
            Self::Template { release, .. } | Self::Guest { release, .. } => release,
        }
    }

    /// The template that the guest is or was made from.
    pub fn template(&self) -> &TemplateName {
        match self {
            Self::Template { template, .. } | Self::Guest { template, .. } => template,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn guest(instance: &str) -> Marker {
        Marker::Guest {
            site: "acme-hq".parse().unwrap(),
            instance: instance.parse().unwrap(),
            release: "2026.06".parse().unwrap(),
            template: "zigbee2mqtt".parse().unwrap(),
            floor: None,
        }
    }

    fn template(digest: Option<&str>) -> Marker {
        Marker::Template {
            release: "2026.06".parse().unwrap(),
            template: "zigbee2mqtt".parse().unwrap(),
            digest: digest.map(|digest| digest.parse().unwrap()),
        }
    }

    #[test]
    fn the_written_form_is_stable() {
        assert_eq!(
            guest("zigbee").render("").unwrap(),
            r#"<!-- ctrlable {"v":1,"role":"guest","site":"acme-hq","instance":"zigbee","release":"2026.06","template":"zigbee2mqtt"} -->"#
        );
        assert_eq!(
            template(None).render("").unwrap(),
            r#"<!-- ctrlable {"v":1,"role":"template","release":"2026.06","template":"zigbee2mqtt","digest":null} -->"#
        );
    }

    #[test]
    fn the_floor_is_three_numbers() {
        let mut marker = guest("zigbee");
        if let Marker::Guest { floor, .. } = &mut marker {
            *floor = Some(Numbers { keys: 2, channels: 17, dealers: 0 });
        }
        let text = marker.render("").unwrap();
        assert!(text.ends_with(r#""template":"zigbee2mqtt","floor":{"k":2,"c":17,"d":0}} -->"#), "{text}");
        assert_eq!(Marker::parse(&text).unwrap(), Some(marker));
    }

    #[test]
    fn a_template_without_digest_is_read() {
        let text = r#"<!-- ctrlable {"v":1,"role":"template","release":"2026.06","template":"zigbee2mqtt"} -->"#;
        assert_eq!(Marker::parse(text).unwrap(), Some(template(None)));
    }

    #[test]
    fn a_block_among_other_text_is_replaced_in_its_place() {
        let before = format!("# Zigbee\n{}\n\nasked for by Erika\n", guest("zigbee").render("").unwrap());
        assert_eq!(Marker::parse(&before).unwrap(), Some(guest("zigbee")));
        let after = guest("other").render(&before).unwrap();
        assert!(after.starts_with("# Zigbee\n<!-- ctrlable {") && after.ends_with("-->\n\nasked for by Erika"));
        assert_eq!(Marker::parse(&after).unwrap(), Some(guest("other")));
    }

    #[test]
    fn what_cannot_be_read_has_a_label() {
        for (text, reason) in [
            ("<!-- ctrlable {\"v\":1", "marker-unterminated"),
            ("<!-- ctrlable {} -->", "marker-unreadable"),
            ("<!-- ctrlable {\"v\":1,\"role\":\"king\"} -->", "marker-unreadable"),
            (
                "<!-- ctrlable {\"v\":1,\"role\":\"template\",\"release\":\"x\",\"template\":\"y\"} -->",
                "marker-unreadable",
            ),
            ("<!-- ctrlable {\"v\":2,\"role\":\"fleet\"} -->", "marker-version"),
            ("<!-- ctrlable {} --><!-- ctrlable {} -->", "marker-several"),
        ] {
            assert_eq!(Marker::parse(text).unwrap_err().reason(), reason, "{text}");
        }
        assert_eq!(Marker::parse("ctrlable <!-- -->").unwrap(), None);
    }

    #[test]
    fn a_text_that_leaves_no_room_is_an_error() {
        assert_eq!(guest("zigbee").render(&"ä".repeat(8190)).unwrap_err().reason(), "marker-too-long");
    }

    proptest! {
        #[test]
        fn a_persons_text_is_kept_and_the_block_comes_back(text in "[^<]{0,200}", newline in "\n?") {
            let marker = template(Some(&"0af5".repeat(16)));
            let written = marker.render(&text).unwrap();
            prop_assert!(written.starts_with(text.trim_end()));
            // Proxmox gives a newline back at the end.
            let read = format!("{written}{newline}");
            prop_assert_eq!(Marker::parse(&read).unwrap(), Some(marker.clone()));
            prop_assert_eq!(marker.render(&read).unwrap(), written);
        }

        #[test]
        fn no_description_panics(text in ".{0,40}(<!-- ctrlable )?.{0,40}(-->)?.{0,10}") {
            let _ = Marker::parse(&text);
            let _ = guest("zigbee").render(&text);
        }
    }
}
