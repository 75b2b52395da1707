//! What HQ says beside releases, after validation: who may sign, which release a channel gives, what is revoked.
//! `contract::document` makes these from YAML. Every such document is numbered, so that an older one can be told.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::ids::ReleaseId;

/// One list of HQ's public keys: `keys/<n>.yaml`. The first is the orchestrator's own configuration, so a file begins
/// with 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyList {
    /// Its number; equal to the file's stem.
    pub keys: u32,
    /// Different keys that must have signed a document.
    pub threshold: u32,
    /// When it was made.
    pub issued: Timestamp,
    /// minisign's public keys, as in the second line of a `.pub` file.
    pub public_keys: Vec<String>,
}

/// Which release each channel gives, and which releases nobody may install any more: `channels.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    /// Grows with every change.
    pub serial: u32,
    /// When it was made.
    pub issued: Timestamp,
    /// Until when sites follow it to another release.
    pub expires: Timestamp,
    /// Releases by channel.
    pub channels: BTreeMap<String, ReleaseId>,
    /// Why, by release.
    pub revoked: BTreeMap<ReleaseId, String>,
}

/// A document that HQ numbers.
pub trait Numbered {
    /// Its number or serial.
    fn number(&self) -> u32;

    /// When it was made, by HQ's clock.
    fn issued(&self) -> Timestamp;
}

impl Numbered for KeyList {
    fn number(&self) -> u32 {
        self.keys
    }

    fn issued(&self) -> Timestamp {
        self.issued
    }
}

impl Numbered for Channels {
    fn number(&self) -> u32 {
        self.serial
    }

    fn issued(&self) -> Timestamp {
        self.issued
    }
}
