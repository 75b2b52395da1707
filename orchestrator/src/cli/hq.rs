//! `ctrlable release keys | channel | revoke | inspect`.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::release::Done;
use crate::release::{
    ChannelChange, Inspected, Inspection, KeyChange, ReleaseError, inspect, next_channels, next_keys,
};
use crate::trust::KeySet;

/// Writes the next list of keys.
pub(super) fn keys(dir: &Path, change: &KeyChange) -> Result<Done, ReleaseError> {
    let (path, number) = next_keys(dir, change, Timestamp::now())?;
    let text = format!(
        "wrote {}: list {number}\nnext: it takes signatures of the list before and of its own keys: \
         ctrlable release sign {} --key …",
        path.display(),
        path.display()
    );
    Ok(Done { text, json: json!({ "file": path, "keys": number }), met: true })
}

/// Writes the next channels.
pub(super) fn channels(dir: &Path, change: ChannelChange, lasts: SignedDuration) -> Result<Done, ReleaseError> {
    let (path, channels) = next_channels(dir, change, lasts, Timestamp::now())?;
    let text = format!(
        "wrote {}: serial {}, expires {}\nnext: ctrlable release sign {} --key …",
        path.display(),
        channels.serial,
        channels.expires,
        path.display()
    );
    let json = json!({ "file": path, "serial": channels.serial, "expires": channels.expires });
    Ok(Done { text, json, met: true })
}

/// Says who has signed a document, and who is missing.
pub(super) fn look(file: &PathBuf, keys: &KeySet) -> Result<Done, ReleaseError> {
    let Inspection { subject, expires, lists } = inspect(file, keys)?;
    let met = lists.iter().all(Inspected::is_met);
    let mut text = vec![format!("{}: {subject}", file.display())];
    let mut rows = Vec::new();
    for list in &lists {
        let Inspected { of, threshold, signed, missing, void } = list;
        let word = if list.is_met() { "enough" } else { "not enough" };
        text.push(format!("{of}: {} of {threshold} signatures, {word}", signed.len()));
        text.extend(signed.iter().map(|(key, at)| format!("  {key}  signed {at}")));
        text.extend(missing.iter().map(|key| format!("  {key}  has not signed")));
        text.extend(void.iter().map(|(file, why)| format!("  {file}  does not count: {why}")));
        let signed: Vec<_> =
            signed.iter().map(|(key, at)| json!({ "key": key.to_string(), "signed_at": at })).collect();
        let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let void: Vec<_> = void.iter().map(|(file, why)| json!({ "file": file, "why": why })).collect();
        rows.push(json!({
            "of": of, "threshold": threshold, "met": list.is_met(), "signed": signed, "missing": missing, "void": void,
        }));
    }
    text.extend(expires.map(|at| format!("followed until {at}")));
    let json = json!({ "file": file, "subject": subject.to_string(), "met": met, "expires": expires, "lists": rows });
    Ok(Done { text: text.join("\n"), json, met })
}

/// `90d`, `12h`: how long a document is followed.
pub(super) fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("`{text}` is not a duration: write 90d or 12h, at most ten years");
    let hours = match text.strip_suffix('d') {
        Some(days) => days.parse::<i64>().ok().and_then(|days| days.checked_mul(24)),
        None => text.strip_suffix('h').and_then(|hours| hours.parse().ok()),
    };
    let hours = hours.filter(|hours| (1..=24 * 3660).contains(hours)).ok_or_else(wrong)?;
    Ok(SignedDuration::from_hours(hours))
}
