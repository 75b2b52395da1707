//! The first boot of a clone: an identity of its own, before anything that shows an identity starts.

/// A copy of an enrolled guest begins anew.
pub(crate) mod cloned;
/// The guest's id.
pub(crate) mod machine_id;
/// SSH host keys.
pub(crate) mod ssh_keys;

/// The steps, on disk while they happen.
pub(crate) mod journal;

use journal::Journal;

use crate::error::Result;
use crate::files::Root;
use crate::log;
use crate::seal::record::SealRecord;
use crate::state::{Phase, State};

/// Resets the identity, unless that was done. Interrupted and started again, it makes new keys: sshd has not run yet.
pub(crate) fn reset_identity(root: &Root, state: &mut State, seal: Option<&SealRecord>) -> Result<()> {
    if state.phase == Phase::Sealed {
        state.become_phase(Phase::FirstBoot, root)?;
        Journal::clear(root)?;
    }
    if state.phase != Phase::FirstBoot {
        return Ok(());
    }
    let journal = Journal::new(root);
    let machine_id =
        journal.step("machine-id", || machine_id::ensure_fresh(root, seal.and_then(|seal| seal.machine_id.as_ref())));
    // Without a good machine-id the guest stops here, but not without keys: somebody has to log in and look.
    let keys = journal.step("ssh-host-keys", || ssh_keys::replace(root))?;
    machine_id?;
    log::info(format_args!("first boot: machine-id and SSH host keys are new ({})", keys.join(", ")));
    state.become_phase(Phase::Enrolling, root)
}
