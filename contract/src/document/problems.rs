//! Collecting what is wrong with one document.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::outline::Outline;
use super::raw::Given;
use crate::ids::{InvalidId, Vlan, Vmid};
use crate::refusal::{Reason, Refusal};

/// More refusals than a person reads at once; it bounds the work that a hostile document can ask for.
pub(super) const MOST: usize = 100;

/// Proof that a refusal was recorded. Only [`Problems`] makes it, so an error can never be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// A value, or the proof that its absence was reported.
pub(super) type Checked<T> = Result<T, Reported>;

/// A field path under construction: a chain on the stack that costs nothing until it is printed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Path<'a> {
    /// The document.
    Root,
    /// A field of a mapping.
    Key(&'a Path<'a>, &'a str),
    /// An item of a list, from 0.
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    /// The path of a field.
    pub(super) fn key<'a>(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    /// The path of an item.
    pub(super) fn index(&self, index: usize) -> Path<'_> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(parent, key) => {
                parent.fmt(f)?;
                let key = segment(key);
                if matches!(parent, Self::Root) || key.starts_with('[') {
                    f.write_str(&key)
                } else {
                    write!(f, ".{key}")
                }
            }
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// One key as it stands in a path: `["a.b"]` when it is more than a word.
pub(super) fn segment(key: &str) -> String {
    if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        key.to_owned()
    } else {
        format!("[\"{}\"]", key.escape_debug())
    }
}

/// The refusals of one document.
pub(super) struct Problems<'a> {
    outline: &'a Outline,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    refusals: Vec<Refusal>,
    fields: BTreeSet<String>,
}

impl<'a> Problems<'a> {
    /// None yet.
    pub(super) fn new(outline: &'a Outline) -> Self {
        Self { outline, found: RefCell::default() }
    }

    /// The file as it was named.
    pub(super) fn file(&self) -> &str {
        self.outline.file()
    }

    /// The proof for a field that was refused already, or something in it; nothing when it was not.
    pub(super) fn refused(&self, at: &Path<'_>) -> Option<Reported> {
        let at = at.to_string();
        let found = self.found.borrow();
        let mut below = found.fields.range(at.clone()..).map_while(|field| field.strip_prefix(at.as_str()));
        below.any(|rest| rest.is_empty() || rest.starts_with(['.', '['])).then_some(Reported(()))
    }

    /// Takes over refusals that were made before the outline was complete.
    pub(super) fn extend(&self, refusals: Vec<Refusal>) {
        for refusal in refusals {
            self.push(refusal);
        }
    }

    /// Records a refusal. The first one of a field is the one that counts: what follows from it is only noise.
    pub(super) fn refuse(
        &self,
        reason: Reason,
        at: &Path<'_>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Reported {
        if self.found.borrow().refusals.len() >= MOST {
            return Reported(());
        }
        let place = self.outline.place(&at.to_string());
        self.push(Refusal { reason, place, message: message.into(), remedy: remedy.into() });
        Reported(())
    }

    fn push(&self, refusal: Refusal) {
        let mut found = self.found.borrow_mut();
        if found.refusals.len() < MOST && found.fields.insert(refusal.place.field.clone()) {
            found.refusals.push(refusal);
        }
    }

    /// The value of a field that must be there. Silent when it was already refused.
    pub(super) fn need<T>(&self, at: &Path<'_>, given: Given<T>) -> Checked<T> {
        given.0.ok_or_else(|| {
            if let Some(reported) = self.refused(at) {
                return reported;
            }
            let field = match at {
                Path::Key(_, key) => *key,
                Path::Root | Path::Index(..) => "value",
            };
            self.refuse(
                Reason::MissingField,
                at,
                format!("`{field}` is missing"),
                format!("add `{field}:` here; the file reference in docs/ says what it means"),
            )
        })
    }

    /// Parses a text that is not secret and may be quoted.
    pub(super) fn parse<T: FromStr<Err = InvalidId>>(&self, at: &Path<'_>, reason: Reason, text: &str) -> Checked<T> {
        text.parse().map_err(|error| self.invalid(at, reason, &error))
    }

    /// Refuses a text or number for what its type says.
    pub(super) fn invalid(&self, at: &Path<'_>, reason: Reason, error: &InvalidId) -> Reported {
        let message = format!("`{}` is not {}", error.got.escape_debug(), error.kind);
        self.refuse(reason, at, message, format!("write {}", error.expected))
    }

    /// Parses a field that must be there.
    pub(super) fn need_parsed<T: FromStr<Err = InvalidId>>(
        &self,
        at: &Path<'_>,
        reason: Reason,
        given: Given<String>,
    ) -> Checked<T> {
        let text = self.need(at, given)?;
        self.parse(at, reason, &text)
    }

    /// Parses a field that may be absent.
    pub(super) fn parsed<T: FromStr<Err = InvalidId>>(
        &self,
        at: &Path<'_>,
        reason: Reason,
        given: Given<String>,
    ) -> Checked<Option<T>> {
        given.0.map(|text| self.parse(at, reason, &text)).transpose()
    }

    /// A whole number within a range.
    pub(super) fn number<T: TryFrom<i64>>(
        &self,
        at: &Path<'_>,
        reason: Reason,
        number: i64,
        range: std::ops::RangeInclusive<i64>,
        what: &str,
    ) -> Checked<T> {
        let fits = range.contains(&number).then(|| T::try_from(number).ok()).flatten();
        fits.ok_or_else(|| {
            let remedy = format!("write a whole number from {} to {}", range.start(), range.end());
            self.refuse(reason, at, format!("{number} is not {what}"), remedy)
        })
    }

    /// A VLAN tag that may be absent.
    pub(super) fn vlan(&self, at: &Path<'_>, given: Given<i64>) -> Checked<Option<Vlan>> {
        let vlan = given.0.map(|number| self.number::<u16>(at, Reason::BadVlan, number, 1..=4094, "a VLAN tag"));
        let vlan = vlan.transpose()?.map(Vlan::try_from).transpose();
        vlan.map_err(|error| self.invalid(at, Reason::BadVlan, &error))
    }

    /// A VMID that may be absent.
    pub(super) fn vmid(&self, at: &Path<'_>, given: Given<i64>) -> Checked<Option<Vmid>> {
        let vmid = given.0.map(|number| self.number::<u32>(at, Reason::BadVmid, number, 100..=999_999_999, "a VMID"));
        let vmid = vmid.transpose()?.map(Vmid::try_from).transpose();
        vmid.map_err(|error| self.invalid(at, Reason::BadVmid, &error))
    }

    /// A TCP port.
    pub(super) fn port(&self, at: &Path<'_>, number: i64) -> Checked<u16> {
        self.number(at, Reason::BadPort, number, 1..=65535, "a port")
    }

    /// All of them in the order of their lines.
    pub(super) fn into_refusals(self) -> Vec<Refusal> {
        sorted(self.found.into_inner().refusals)
    }
}

/// Refusals in the order of their lines.
pub(super) fn sorted(mut refusals: Vec<Refusal>) -> Vec<Refusal> {
    refusals.sort_by(|a, b| (&a.place, a.reason).cmp(&(&b.place, b.reason)));
    refusals
}
