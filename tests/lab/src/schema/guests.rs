//! Parameters that containers and virtual machines share.

use super::formats as f;
use super::{Param, flag, text};

/// What every configuration write takes besides the keys.
pub(crate) const WRITE: &[Param] =
    &[text("delete").list_of(f::config_id), text("digest").max_len(40), text("revert").list_of(f::config_id)];
pub(crate) const READ: &[Param] = &[flag("current"), text("snapshot").format(f::config_id).max_len(40)];
pub(crate) const FEATURE: &[Param] = &[
    text("feature").required().one_of(&["snapshot", "clone", "copy"]),
    text("snapname").format(f::config_id).max_len(40),
];
pub(crate) const SNAPSHOT: &[Param] =
    &[text("description"), text("snapname").required().format(f::config_id).max_len(40)];
pub(crate) const SNAPSHOT_DELETE: &[Param] = &[flag("force")];
pub(crate) const ROLLBACK: &[Param] = &[flag("start")];
