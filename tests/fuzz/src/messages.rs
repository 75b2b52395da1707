//! What guests and orchestrators tell each other.

use std::fmt::Debug;

use contract::assignment::Assignment;
use contract::bootstrap::Bootstrap;
use contract::enrolment::EnrolRequest;
use contract::health::HealthReport;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Read, printed and read again it is the same, and showing it harms nobody.
fn same<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(data).ok()?;
    let text = serde_json::to_string(&read).unwrap();
    let again: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(read, again, "{text}");
    Some(read)
}

pub(crate) fn assignment(data: &[u8]) {
    same::<Assignment>(data);
}

pub(crate) fn bootstrap(data: &[u8]) {
    same::<Bootstrap>(data);
}

pub(crate) fn enrolment(data: &[u8]) {
    same::<EnrolRequest>(data);
}

pub(crate) fn health(data: &[u8]) {
    if let Some(report) = same::<HealthReport>(data) {
        report.problems();
    }
}
