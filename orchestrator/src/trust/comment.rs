//! The trusted comment says what a signature is for, so that one of another document, or of another kind, is none.

use std::fmt;
use std::str::FromStr;

use contract::ids::ReleaseId;
use jiff::Timestamp;

use super::Malformed;

/// A kind of document that HQ signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `releases/<id>.yaml`.
    Release,
    /// `keys/<n>.yaml`.
    Keys,
    /// `channels.yaml`.
    Channels,
    /// `dealers.yaml`.
    Dealers,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Release, Self::Keys, Self::Channels, Self::Dealers];

    /// The word in the trusted comment.
    pub fn word(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Keys => "keys",
            Self::Channels => "channels",
            Self::Dealers => "dealers",
        }
    }
}

/// What exactly was signed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A release, by its id.
    Release(ReleaseId),
    /// Another document, by its kind and number.
    Numbered(Kind, u32),
}

impl Subject {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Release(_) => Kind::Release,
            Self::Numbered(kind, _) => *kind,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(id) => write!(f, "release {id}"),
            Self::Numbered(kind, number) => write!(f, "{} {number}", kind.word()),
        }
    }
}

/// What HQ says in a trusted comment: `ctrlable release 2026.06 signed 2026-11-20T12:00:00Z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedComment {
    /// What was signed.
    pub subject: Subject,
    /// When, by the clock of the one who signed; whole seconds.
    pub signed_at: Timestamp,
}

impl fmt::Display for SignedComment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ctrlable {} signed {}", self.subject, self.signed_at)
    }
}

impl FromStr for SignedComment {
    type Err = Malformed;

    /// Takes exactly what `Display` prints.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const NOT_OURS: Malformed = Malformed("it is not a trusted comment of HQ");
        let (subject, signed_at) =
            text.strip_prefix("ctrlable ").and_then(|rest| rest.split_once(" signed ")).ok_or(NOT_OURS)?;
        let (word, name) = subject.split_once(' ').ok_or(NOT_OURS)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word).ok_or(NOT_OURS)?;
        let subject = match kind {
            Kind::Release => Subject::Release(name.parse().map_err(|_| NOT_OURS)?),
            kind => Subject::Numbered(kind, name.parse().map_err(|_| NOT_OURS)?),
        };
        let comment = Self { subject, signed_at: signed_at.parse().map_err(|_| NOT_OURS)? };
        if comment.to_string() == text { Ok(comment) } else { Err(NOT_OURS) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_spelling_of_a_comment() {
        for text in [
            "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z",
            "ctrlable keys 2 signed 2026-11-20T12:00:00Z",
            "ctrlable channels 17 signed 2026-11-20T12:00:00Z",
            "ctrlable dealers 3 signed 2026-11-20T12:00:00Z",
        ] {
            assert_eq!(text.parse::<SignedComment>().unwrap().to_string(), text);
        }
        for other in [
            "timestamp:1700000000\tfile:2026.06.yaml\thashed",
            "ctrlable release 2026.6 signed 2026-11-20T12:00:00Z",
            "ctrlable release 2026.06",
            "ctrlable release 2026.06 signed yesterday",
            "ctrlable release 2026.06 signed 2026-11-20T13:00:00+01:00",
            "ctrlable release 2026.06 signed 2026-11-20 12:00:00Z",
            "ctrlable release  2026.06 signed 2026-11-20T12:00:00Z",
            "Ctrlable release 2026.06 signed 2026-11-20T12:00:00Z",
            "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z and more",
            "ctrlable channels 017 signed 2026-11-20T12:00:00Z",
            "ctrlable channels +17 signed 2026-11-20T12:00:00Z",
            "ctrlable channels -1 signed 2026-11-20T12:00:00Z",
            "ctrlable channels 2026.06 signed 2026-11-20T12:00:00Z",
            "ctrlable kings 1 signed 2026-11-20T12:00:00Z",
        ] {
            assert!(other.parse::<SignedComment>().is_err(), "{other}");
        }
    }
}
