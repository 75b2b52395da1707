//! Plain lines on stderr. systemd's journal adds the time and reads the priority in front (sd-daemon(3)).

use std::fmt::Display;

use crate::error::Error;

/// Something that a person may want to know.
pub(crate) fn info(line: impl Display) {
    eprintln!("{}{line}", priority("<6>"));
}

/// Something that is not as it should be, and what to do.
pub(crate) fn warn(error: &Error) {
    eprintln!("{}{error}: {}", priority("<4>"), error.reason.remedy());
}

/// The priority, where the journal listens; a person at a terminal need not see it.
fn priority(prefix: &'static str) -> &'static str {
    if std::env::var_os("JOURNAL_STREAM").is_some() { prefix } else { "" }
}
